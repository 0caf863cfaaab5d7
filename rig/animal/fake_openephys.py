"""A standalone fake of the Open Ephys GUI: `stimloop fake openephys`, for tests of any program that reads its wires.

Seeded Poisson spikes and a square wave on a TTL line, in blocks on time, over the real wires with the faults that were
asked for; no screen, no session. It writes what it sent, its truth, into a folder. docs/fake_openephys.md describes it.
"""

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from rig.animal.device_clock import DeviceClock
from rig.animal.event_broadcaster import EventBroadcaster, Format
from rig.animal.openephys_gui import Gui, open_http
from rig.animal.openephys_http import Output
from rig.animal.openephys_server import STREAM, OpenEphysServer, Quirks
from rig.animal.openephys_voltage import Voltage
from rig.animal.openephys_wire import Style
from rig.animal.wire import Block, WireError
from rig.clock import Clock

FLUSH_NS = 1_000_000_000


@dataclass(frozen=True)
class FakeSettings:
    """What the fake plays. Ports that are None are left alone."""

    port: int | None = 5556  # data port of the ZMQ Interface; heartbeat is the next one
    http_port: int | None = None
    events_port: int | None = None  # Event Broadcaster
    events_format: Format = "json"
    stream: str | None = None
    units: int = 4  # E01#0, E02#0, ...
    rate_hz: float = 10.0  # spikes/s of each unit
    channels: int = 16
    sample_rate_hz: float = 30_000.0
    line: int = 0
    edge_s: float = 0.5  # period of the square wave on `line`
    first_sample: int = 0
    ppm: float = 0.0  # drift of the device's clock
    style: Style = "1.0"
    faults: tuple[str, ...] = ()  # "name" or "name@seconds"
    quirks: bool = False
    voltage: bool = False  # spikes in noise on all channels instead of the counter on the first
    seed: int = 0

    @property
    def unit_names(self) -> tuple[str, ...]:
        """Names of the units."""
        return tuple(f"E{k + 1:02d}#0" for k in range(self.units))


def open_gui(settings: FakeSettings, clock: Clock, rng: np.random.Generator) -> Gui:
    """Open all ports that were asked for; raises WireError if one is taken, UnknownSwitch for a wrong fault."""
    names, rate_hz = settings.unit_names, settings.sample_rate_hz
    stream = settings.stream or STREAM
    outputs = []
    with ExitStack() as opened:
        data = events = None
        if settings.port is not None:
            data = OpenEphysServer(
                names,
                clock,
                settings.port,
                settings.stream,
                rate_hz,
                settings.style,
                channels=settings.channels,
                switches=settings.faults,
                quirks=Quirks(rng) if settings.quirks else None,
                voltage=Voltage(settings.channels, settings.units, rng) if settings.voltage else None,
            )
            opened.callback(data.close)
            outputs.append(Output("ZMQ Interface", settings.port))
        elif settings.faults:
            raise WireError("faults are switched on the ZMQ Interface, and it is off", "give it a port, or no --fault")
        if settings.events_port is not None:
            events = EventBroadcaster(names, settings.events_port, stream, rate_hz, settings.events_format)
            opened.callback(events.close)
            outputs.append(Output("Event Broadcaster", settings.events_port))
        http = open_http(settings.http_port, stream, rate_hz, settings.channels, tuple(outputs))
        opened.pop_all()
    return Gui(data, events, http)


class Activity:
    """What happens in the fake's device: spikes and edges of the next block."""

    def __init__(self, settings: FakeSettings, rng: np.random.Generator) -> None:
        """Draw from `rng`; the wave begins low."""
        self._settings, self._rng = settings, rng
        self._half = max(round(settings.edge_s / 2 * settings.sample_rate_hz), 1)
        self._state = 0
        self._next_edge = settings.first_sample + self._half

    def block(self, first: int, num_samples: int) -> Block:
        """Return the block of `num_samples` from sample `first` on, which must follow the one before."""
        s = self._settings
        count = int(self._rng.poisson(s.units * s.rate_hz * num_samples / s.sample_rate_hz))
        sample = np.sort(self._rng.integers(first, first + num_samples, count))
        unit = self._rng.integers(0, max(s.units, 1), count)
        edges = []
        while self._next_edge < first + num_samples:
            self._state = 1 - self._state
            edges.append((s.line, self._state, self._next_edge))
            self._next_edge += self._half
        return Block(first, num_samples, unit, sample, tuple(edges))


class Truth:
    """The folder with what was sent: spikes.csv, edges.csv and truth.json; raises OSError."""

    def __init__(self, folder: Path, settings: FakeSettings, start_host_ns: int) -> None:
        """Make the folder, which must be new or empty."""
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise FileExistsError(f"the truth folder {folder} is not empty; give a new one")
        self._folder, self._settings, self._start_host_ns = folder, settings, start_host_ns
        self._spikes: TextIO = (folder / "spikes.csv").open("w", encoding="utf-8")
        self._edges: TextIO = (folder / "edges.csv").open("w", encoding="utf-8")
        self._spikes.write("unit,sample,wire_sample\n")
        self._edges.write("line,state,sample,wire_sample\n")
        self._blocks = 0
        self._samples = 0

    def block(self, block: Block, offset: int, acquiring: bool) -> None:
        """Write down a block; one that fell into IDLE was not sent and is left out."""
        self._samples += block.num_samples
        if not acquiring:
            return
        self._blocks += 1
        names = self._settings.unit_names
        for unit, sample in zip(block.spike_unit.tolist(), block.spike_sample.tolist(), strict=True):
            self._spikes.write(f"{names[unit]},{sample},{sample - offset}\n")
        for line, state, sample in block.edges:
            self._edges.write(f"{line},{state},{sample},{sample - offset}\n")

    def counters(self, gui: Gui) -> dict[str, Any]:
        """Return what was sent in all."""
        out: dict[str, Any] = {"blocks": self._blocks, "device_samples": self._samples}
        if gui.data is not None:
            out |= asdict(gui.data.sent) | {"thrown": [list(t) for t in gui.data.thrown]}
        if gui.events is not None:
            out |= {"event_messages": gui.events.sent}
        if gui.http is not None:
            out |= {"gui_messages": gui.http.state.messages}
        return out

    def save(self, gui: Gui) -> None:
        """Flush the tables and write truth.json."""
        self._spikes.flush()
        self._edges.flush()
        told = {
            "settings": asdict(self._settings),
            "units": self._settings.unit_names,
            "start_host_ns": self._start_host_ns,
            **self.counters(gui),
        }
        (self._folder / "truth.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")

    def close(self) -> None:
        """Close the tables."""
        self._spikes.close()
        self._edges.close()


def run(
    settings: FakeSettings,
    clock: Clock,
    duration_s: float | None,
    truth_folder: Path | None,
    say: Callable[..., None],
) -> dict[str, Any]:
    """Be the GUI for `duration_s` of device time, or until interrupted (None); return what was sent.

    Says ready={...} when all ports are open. Raises WireError, UnknownSwitch, OSError.
    """
    activity_rng, wire_rng = (np.random.default_rng(s) for s in np.random.SeedSequence(settings.seed).spawn(2))
    gui = open_gui(settings, clock, wire_rng)
    start_ns = clock.now_ns()
    device = DeviceClock(settings.sample_rate_hz, settings.ppm, 0.0, 0.0, start_ns, settings.first_sample)
    activity, truth = Activity(settings, activity_rng), None
    counters: dict[str, Any] = {}
    try:
        truth = None if truth_folder is None else Truth(truth_folder, settings, start_ns)
        say(
            ready={
                "port": settings.port,
                "events_port": settings.events_port,
                "http_port": settings.http_port,
                "units": list(settings.unit_names),
            }
        )
        _play(settings, gui, activity, device, clock, duration_s, truth)
    finally:
        gui.close()
        if truth is not None:
            truth.save(gui)
            truth.close()
    if gui.data is not None:
        counters = asdict(gui.data.sent)
    return counters | ({"event_messages": gui.events.sent} if gui.events is not None else {})


def _play(
    settings: FakeSettings,
    gui: Gui,
    activity: Activity,
    device: DeviceClock,
    clock: Clock,
    duration_s: float | None,
    truth: Truth | None,
) -> None:
    """Send block after block, each when its last sample has been taken by the device's clock."""
    first = settings.first_sample
    last = None if duration_s is None else first + round(duration_s * settings.sample_rate_hz)
    flush_ns = clock.now_ns() + FLUSH_NS
    while last is None or first < last:
        block = activity.block(first, gui.block_samples)
        first += block.num_samples
        clock.sleep_until_ns(int(device.host_ns(first)))
        acquiring = gui.http is None or gui.http.state.mode != "IDLE"
        gui.send(block)
        if truth is None:
            continue
        truth.block(block, gui.offset, acquiring)
        if clock.now_ns() >= flush_ns:
            truth.save(gui)
            flush_ns = clock.now_ns() + FLUSH_NS
