"""The simulated animal as a process: eye, neurons, recording device and wire joined; `stimloop animal` runs it.

The neurons come as an argument, since `rig` knows no models. The loop of the eye runs in the calling thread; the
cortex, the amplifier and the wire's heartbeat have threads of their own.
"""

import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from rig.animal.amplifier import Amplifier, Firing
from rig.animal.behaviour import BehaviourOutlet, Follower, schedule
from rig.animal.cortex import Cortex, Population
from rig.animal.device_clock import DeviceClock
from rig.animal.event_broadcaster import EventBroadcaster
from rig.animal.eye import Eye, RealScreen, ScreenError
from rig.animal.lsl_calcium import LslCalcium
from rig.animal.lsl_counts import LslCounts
from rig.animal.lsl_outlets import LslOutlets
from rig.animal.neurons import Habits, Neurons
from rig.animal.noise_free import NoiseFreeNeurons
from rig.animal.openephys_faults import Faults
from rig.animal.openephys_gui import with_http
from rig.animal.openephys_rehearsal import open_openephys
from rig.animal.spikes_publisher import SpikesPublisher
from rig.animal.sync_input import SyncInput
from rig.animal.traces_publisher import TracesPublisher
from rig.animal.truth_log import TruthError, TruthLog
from rig.animal.wire import Wire, WireError
from rig.clock import Clock, HostClock
from rig.config.field import field_rect
from rig.config.outputs import ParallelOutput
from rig.config.places import patch_of
from rig.config.reading import ConfigError
from rig.config.session import Config
from rig.config.sources import (
    LslCalciumSource,
    LslCountSource,
    LslSpikeSource,
    NeuralSource,
    OpenEphysEventsSource,
    OpenEphysSource,
    SpikesWireSource,
    TracesWireSource,
)
from rig.priority import fifo
from rig.supervision import child
from stimuli.geometry import Rect
from stimuli.render import gamma_table

RATE_HZ = 30_000.0
EYE_PRIORITY = 4  # below the rig's: the animal must never disturb the screen it looks at
SWITCH_S = 0.0005  # how long a busy thread may hold up the eye
LARGEST_FIRST_SAMPLE = 10_000_000
DEFAULT_STREAM = "ProbeA-AP"
S = TypeVar("S", bound=NeuralSource)


class Ending(Protocol):
    """Anything that becomes true when the animal must end, for example rig.supervision.child.Stop."""

    def __bool__(self) -> bool:
        """Return whether to end."""
        ...


def look_rects(config: Config) -> tuple[Rect, Rect | None]:
    """Return the part of the screen that the eye looks at, and the photodiode patch; raises ConfigError.

    That part is the image square, or where cells lie that see at fixed angles (`rig.config.field`).
    """
    try:
        return field_rect(config), patch_of(config.display)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _listener(config: Config, kind: type[S]) -> S:
    """Return the first source of the config that listens to the animal's wire; raises WireError."""
    source = next((s for s in config.sources if isinstance(s, kind)), None)
    if source is not None:
        return source
    listens_to = kind.model_fields["type"].default
    raise WireError(
        f"animal.wire is {config.animal.wire}, but no source in the config is of type {listens_to}",
        f"add a source of type {listens_to}, or change animal.wire",
    )


def open_wire(
    config: Config,
    units: tuple[str, ...],
    clock: Clock,
    faults: Faults | None,
    device: DeviceClock,
    rng: np.random.Generator,
) -> tuple[Wire, int]:
    """Open the wire that the config's first fitting source listens to; return it and the photodiode's line.

    `device` is asked by wires that answer what time it is; `rng` draws the noise of a microscope.
    """
    settings = config.animal
    source: NeuralSource
    wire: Wire
    match settings.wire:
        case "openephys":
            source = _listener(config, OpenEphysSource)
            server = open_openephys(source, units, clock, RATE_HZ, settings.wire_faults, rng, faults)
            wire = with_http(server, source.port, source.http_port, RATE_HZ)
        case "openephys_events":
            source = _listener(config, OpenEphysEventsSource)
            events = EventBroadcaster(units, source.port, source.stream or DEFAULT_STREAM, RATE_HZ)
            wire = with_http(events, source.port, source.http_port, RATE_HZ)
        case "lsl":
            source = _listener(config, LslSpikeSource)
            wire = LslOutlets(units, clock, source.stream, source.edges, RATE_HZ, settings.wire_faults.switches)
        case "lsl_counts":
            source = _listener(config, LslCountSource)
            wire = LslCounts(units, clock, source, device, settings.wire_faults.switches)
        case "lsl_calcium":
            source = _listener(config, LslCalciumSource)
            wire = LslCalcium(units, clock, source, settings.calcium, device, rng, settings.wire_faults.switches)
        case "spikes_zmq":
            source = _listener(config, SpikesWireSource)
            wire = SpikesPublisher(units, clock, source.port, device, settings.wire_faults, rng)
        case "traces_zmq":
            source = _listener(config, TracesWireSource)
            switches, calcium = settings.wire_faults, settings.calcium
            wire = TracesPublisher(units, clock, source.port, device, calcium, switches, rng)
        case _:
            raise WireError(f"animal.wire {settings.wire} is not there yet", "choose openephys or spikes_zmq")
    return wire, source.photodiode_line or 0


def device_clock(config: Config, start_host_ns: int, rng: np.random.Generator) -> DeviceClock:
    """Draw the recording device's clock: drift from the config, offset and phase of the wander from `rng`."""
    return DeviceClock(
        rate_hz=RATE_HZ,
        ppm=config.animal.clock_ppm,
        wander_ppm=config.animal.clock_wander_ppm,
        phase=float(rng.uniform(0, 2 * np.pi)),
        start_host_ns=start_host_ns,
        start_sample=int(rng.integers(0, LARGEST_FIRST_SAMPLE)),
    )


def make_neurons(
    config: Config, units: tuple[str, ...], device: DeviceClock, rng: np.random.Generator
) -> Firing:
    """Make the neurons that `animal` in the config describes; raises ConfigError."""
    settings = config.animal
    if settings.noise == "none":
        if config.display.patch is None:
            raise ConfigError("animal.noise: none needs display.patch: noise-free spikes are placed from its edges")
        on_s = config.presentation.on_s
        return NoiseFreeNeurons(units, device, settings.latency_s, on_s, settings.dies, device.start_sample)
    habits = Habits(
        noise=settings.noise,
        latency_s=settings.latency_s,
        gain_drift=settings.gain_drift,
        dies=settings.dies,
        adaptation=settings.adaptation,
        carry_over=settings.carry_over,
        artefacts=settings.artefacts,
    )
    return Neurons(units, device, habits, rng, device.start_sample)


def run(
    config: Config,
    truth_folder: Path,
    population: Population,
    stop: Ending,
    clock: Clock | None = None,
    faults: Faults | None = None,
    say: Callable[..., None] = child.say,
) -> int:
    """Be the animal until `stop`; return the exit code. `truth_folder` must be new or empty.

    Says ready={...} when the wire is open and the eye looks, or failed=..., cure=... when it cannot.
    """
    # The eye sleeps between two looks; spinning there would cost a whole core.
    clock = HostClock(spin_ns=0) if clock is None else clock
    try:
        return _run(config, truth_folder, population, stop, clock, faults, say)
    except (WireError, ScreenError) as error:
        say(failed=error.reason, cure=error.cure)
    except (ConfigError, TruthError) as error:
        say(failed=str(error), cure="mend the config or the arguments of `stimloop animal` as the reason says")
    return 2


def _run(
    config: Config,
    truth_folder: Path,
    population: Population,
    stop: Ending,
    clock: Clock,
    faults: Faults | None,
    say: Callable[..., None],
) -> int:
    settings = config.animal
    seeds = np.random.SeedSequence(settings.seed).spawn(5)
    eye_rng, spike_rng, clock_rng, wire_rng = (np.random.default_rng(s) for s in seeds[:4])
    image, patch = look_rects(config)
    screen = RealScreen()
    wire: Wire | None = None
    truth: TruthLog | None = None
    behaviour: BehaviourOutlet | None = None
    sync: tuple[int, SyncInput] | None = None
    cortex = Cortex(population, config.display.gamma)
    try:
        # The first evaluation is the slowest (libraries load); the neurons must not begin late.
        population.rate_hz(np.full((image.height, image.width, 3), 0.5, dtype=np.float32))
        follow = None
        if settings.behaviour is not None:
            plan = schedule(settings.behaviour, clock.now_ns(), seeds[4])
            follow = Follower(plan, config.display.size_px[0] / config.display.width_cm, config.display.distance_cm)
        grey = int(gamma_table(config.display.gamma)[config.display.background])
        eye = Eye(screen, image, patch, cortex, clock, eye_rng, settings.saccades, settings.blinks, follow, grey)
        device = device_clock(config, clock.now_ns(), clock_rng)
        if unknown := sorted(set(settings.dies) - set(population.units)):
            raise ConfigError(f"animal.dies: {unknown[0]!r} is no unit; the units are {', '.join(population.units)}")
        neurons = make_neurons(config, population.units, device, spike_rng)
        cells = population.receptive_fields
        truth = TruthLog(truth_folder, population.units, device, settings.latency_s, neurons.smoothing_s, cells)
        if settings.behaviour is not None:
            behaviour = BehaviourOutlet(plan, clock, truth.event)
            behaviour.start()
        wire, line = open_wire(config, population.units, clock, faults, device, wire_rng)
        sync = _wired_sync(config, clock)
        amplifier = Amplifier(wire, neurons, cortex, device, truth, clock, line, device.start_sample, sync)
        realtime = config.processes.realtime
        notes = _look_and_record(eye, cortex, amplifier, stop, clock, say, population.units, realtime)
        truth.event("looks", **notes, **asdict(eye.looks), **asdict(amplifier.lateness))
    finally:
        cortex.close()
        if sync is not None:
            sync[1].close()
        if wire is not None:
            wire.close()
        if behaviour is not None:
            behaviour.close()
        if truth is not None:
            truth.close()
        screen.close()
    return 0


def _wired_sync(config: Config, clock: Clock) -> tuple[int, SyncInput] | None:
    """Return the device's TTL line for barcodes and its input, if the config wires one. Raises WireError."""
    port, sync = config.animal.sync_port, config.sync
    if port is None or sync is None:
        return None
    output = next(o for o in config.outputs if o.name == sync.output)
    bit = output.line if isinstance(output, ParallelOutput) else 0
    return sync.line, SyncInput(port, bit, clock, lambda: fifo(EYE_PRIORITY, config.processes.realtime))


def _look_and_record(
    eye: Eye,
    cortex: Cortex,
    amplifier: Amplifier,
    stop: Ending,
    clock: Clock,
    say: Callable[..., None],
    units: tuple[str, ...],
    realtime: bool,
) -> dict[str, Any]:
    """Run the three threads until the end; raise what the amplifier or the population raised."""
    ending = threading.Event()
    errors: list[Exception] = []
    notes: dict[str, Any] = {}

    def record() -> None:
        notes["amplifier_priority"] = fifo(EYE_PRIORITY - 1, realtime)
        try:
            amplifier.run(ending.is_set)
        except Exception as error:  # noqa: BLE001  # raised again in the main thread
            errors.append(error)
            ending.set()

    before_s = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    recorder = threading.Thread(target=record, name="amplifier", daemon=True)
    cortex.start()
    recorder.start()
    notes["eye_priority"] = fifo(EYE_PRIORITY, realtime)
    start_ns = clock.now_ns()
    say(ready={"units": list(units), "eye_priority": notes["eye_priority"]})
    try:
        eye.watch(lambda: bool(stop) or ending.is_set())
    finally:
        ending.set()
        recorder.join()
        sys.setswitchinterval(before_s)
    if errors:
        raise errors[0]
    notes["seconds"] = (clock.now_ns() - start_ns) * 1e-9
    return notes
