"""`stimloop bench latency`: the two loops that vendors measure, through the whole program of a real short session.

Photodiode loop: flip command -> light on the patch -> edge at the source -> edge in the journal. Event-to-output loop:
a TTL edge arrives -> its document is routed -> an output is requested -> the output device has done it. A peer of the
session's recorder asks for an output at each photodiode edge and computes the figures from what it is routed; just
before the session ends it files them there as a Marker of the source "bench-latency", which `session.h5` holds too.
"""

import json
import platform
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml
from rich.console import Console

from rig.clock import Clock
from rig.config.reading import parse
from rig.config.session import Config
from rig.demo import any_screen
from rig.links.peer import Peer
from rig.links.ports import free_port
from rig.messages import (
    EdgeBlock,
    Entry,
    Marker,
    OutputDone,
    OutputRequest,
    Presented,
    ProcessStarted,
    Response,
    SpikeBlock,
    StopRequested,
)
from rig.supervision.processes import SessionFailed
from rig.supervision.runs import new_folder, simulated_animal
from rig.supervision.supervisor import Supervisor

_DEMO = Path(__file__).parent.parent.parent / "configs" / "demo.yaml"
SOURCE = "bench-latency"
OUTPUT = "latency"
WANTS = frozenset(
    {"presented", "edge_block", "spike_block", "response", "output_done", "process_started", "stop_requested"}
)
POLL_S = 0.05
FLUSH_S = 2.0
EARLY_NS = 5_000_000  # a flip's stamp may be taken after the light was already seen
STAGES = {
    "photodiode": ("flip_to_light", "flip_to_source", "flip_to_journal"),
    "event_to_output": ("spike_to_routed", "edge_to_routed", "edge_to_output_begun", "edge_to_output_done"),
}


class Loops:
    """Fold over what the recorder routes: how long each stage took, ms. It reads no clock."""

    def __init__(self, source: str, line: int | None, longest_ns: int, since_ns: int) -> None:
        """Look at rising edges of `line` of `source`; one later than `longest_ns` after its flip is not its own.

        What was journalled before `since_ns` was routed late only because nobody had asked for it.
        """
        self._source, self._line, self._longest_ns, self._since_ns = source, line, longest_ns, since_ns
        self._edges: list[tuple[int, int]] = []  # arrival and receipt by the recorder, host ns
        self._requests = 0
        self._asked: dict[str, int] = {}  # request -> arrival of its edge, host ns
        self.renderer = self.priority = "unknown"
        self.times_ms: dict[str, list[float]] = {stage: [] for stages in STAGES.values() for stage in stages}

    def take(self, entry: Entry, now_ns: int) -> OutputRequest | None:
        """Take an entry that was routed at `now_ns`; return the output to ask for, if there is one."""
        document = entry.document
        if isinstance(document, ProcessStarted) and document.name == "rig":
            self.renderer = document.notes.get("renderer", self.renderer)
            self.priority = document.notes.get("priority", self.priority)
        elif isinstance(document, SpikeBlock | EdgeBlock) and entry.envelope.receipt_host_ns < self._since_ns:
            return None
        elif isinstance(document, SpikeBlock) and document.source == self._source and len(document.sample):
            self._note("spike_to_routed", now_ns - int(document.arrival_host_ns.max()))
        elif isinstance(document, EdgeBlock) and document.source == self._source:
            return self._edge(document, entry.envelope.receipt_host_ns, now_ns)
        elif isinstance(document, Presented) and document.complete:
            self._shown(document.onset_flip_host_ns)
        elif isinstance(document, Response) and document.flip_to_edge_ns is not None:
            self._note("flip_to_light", document.flip_to_edge_ns)
        elif isinstance(document, OutputDone) and document.request in self._asked:
            arrived = self._asked.pop(document.request)
            if document.done and document.started_host_ns is not None and document.confirmed_host_ns is not None:
                self._note("edge_to_output_begun", document.started_host_ns - arrived)
                self._note("edge_to_output_done", document.confirmed_host_ns - arrived)
        return None

    def _edge(self, block: EdgeBlock, receipt_ns: int, now_ns: int) -> OutputRequest | None:
        rising = (block.line == self._line) & (block.state == 1)
        arrivals = block.arrival_host_ns[rising].tolist()
        if not arrivals:
            return None
        self._edges += [(arrival, receipt_ns) for arrival in arrivals]
        self._note("edge_to_routed", now_ns - arrivals[-1])
        self._requests += 1
        request = f"{OUTPUT}-{self._requests}"
        self._asked[request] = arrivals[-1]
        return OutputRequest(request=request, output=OUTPUT, what="marker", text=request, event_host_ns=arrivals[-1])

    def _shown(self, flip_ns: int) -> None:
        own = [e for e in self._edges if -EARLY_NS <= e[0] - flip_ns <= self._longest_ns]
        if own:
            arrival, receipt = min(own)
            self._note("flip_to_source", arrival - flip_ns)
            self._note("flip_to_journal", receipt - flip_ns)
        self._edges = [e for e in self._edges if e[0] > flip_ns]

    def _note(self, stage: str, ns: int) -> None:
        self.times_ms[stage].append(ns * 1e-6)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per stage: median, p99, largest and first time in ms, and how many; None where none came."""
        rows = []
        for loop, stages in STAGES.items():
            for stage in stages:
                times = self.times_ms[stage]
                row: dict[str, Any] = {"loop": loop, "stage": stage, "n": len(times)}
                for name, value in (
                    ("median_ms", np.median(times) if times else None),
                    ("p99_ms", np.percentile(times, 99) if times else None),
                    ("max_ms", max(times, default=None)),
                    ("first_ms", times[0] if times else None),
                ):
                    row[name] = None if value is None else round(float(value), 3)
                rows.append(row)
        return rows


def machine(config: Config, loops: Loops, simulated: bool) -> dict[str, str]:
    """Return the hardware and settings that the figures hold for."""
    cpu = platform.processor() or platform.machine()
    names = Path("/proc/cpuinfo")
    if names.exists():
        lines = names.read_text(encoding="utf-8", errors="replace").splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "cpu": f"{cpu}, {psutil.cpu_count()} logical cores, {psutil.virtual_memory().total / 2**30:.1f} GiB",
        "os": platform.platform(),
        "gpu": loops.renderer,
        "priority": loops.priority,
        "refresh_hz": f"{config.display.refresh_hz:g}",
        "vsync": str(config.display.vsync).lower(),
        "source": config.neural.type,
        "devices": "simulated" if simulated else "real",
    }


class _Probe:
    """The peer that asks for outputs, in a thread of its own so that nothing else delays it."""

    def __init__(self, endpoint: str, config: Config, simulated: bool, clock: Clock) -> None:
        line = config.neural.photodiode_line
        rhythm = config.presentation
        self._loops = Loops(config.neural.name, line, round((rhythm.on_s + rhythm.off_s) * 1e9), clock.now_ns())
        self._endpoint, self._config, self._simulated, self._clock = endpoint, config, simulated, clock
        self._end = threading.Event()
        self.figures: dict[str, Any] | None = None
        self._thread = threading.Thread(target=self._run, name="latency probe", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        peer = Peer(SOURCE, self._endpoint, WANTS, self._clock)
        try:
            while not self._end.is_set() and self.figures is None:
                for entry in peer.poll(POLL_S):
                    if isinstance(entry.document, StopRequested):
                        self._file(peer)
                    elif (request := self._loops.take(entry, self._clock.now_ns())) is not None:
                        peer.send(request)
        finally:
            peer.close()

    def _file(self, peer: Peer) -> None:
        """Compute the figures and put them into the session's log."""
        figures = {**machine(self._config, self._loops, self._simulated), "rows": self._loops.rows()}
        text = json.dumps(figures)
        now = self._clock.now_ns()
        peer.send(Marker(source=SOURCE, run=0, sample=None, arrival_host_ns=now, text=text))
        if peer.flush(FLUSH_S):
            self.figures = figures

    def close(self) -> None:
        """End the thread."""
        self._end.set()
        self._thread.join(FLUSH_S + 1)


def session_config(given: str | None, minutes: float) -> tuple[Config, str]:
    """Return the config of the session: the user's (or the demo's) screen and devices, photographs for `minutes`."""
    raw: dict[str, Any] = yaml.safe_load(_DEMO.read_text(encoding="utf-8") if given is None else given)
    raw["name"] = "bench-latency"
    if given is None:
        raw["sources"][0]["port"] = free_port(2)
    raw["outputs"] = [{"type": "print", "name": OUTPUT}]
    for part in ("reward", "gates", "guest"):
        raw.pop(part, None)
    raw["phases"] = [{"agent": "present", "images": ["natural"], "count": 10, "repeats": 1, "blanks": 0}]
    rhythm = parse(yaml.safe_dump(raw)).presentation
    each_s = rhythm.on_s + rhythm.off_s + rhythm.inter_trial_s / rhythm.images_per_trial
    raw["phases"][0]["repeats"] = max(1, round(minutes * 60 / each_s / 10))
    text = yaml.safe_dump(raw, sort_keys=False)
    return parse(text), text


def latency(
    minutes: float, sessions: Path, clock: Clock, console: Console, given: str | None = None
) -> dict[str, Any]:
    """Run a session and measure both loops; `given` is the YAML of a rig with real devices, None for the animal.

    Raises SessionFailed.
    """
    config, text = session_config(given, minutes)
    if config.neural.photodiode_line is None:
        raise SessionFailed(f"source {config.neural.name} has no photodiode_line\n  cure: name its line in the config")
    simulated, probe = given is None, None
    with ExitStack() as around:
        screen = around.enter_context(any_screen(config))
        folder = new_folder(sessions, config.name, text, clock)
        console.print(f"session {folder}, screen {screen}", highlight=False, soft_wrap=True)
        if simulated:
            around.enter_context(simulated_animal(folder, clock))
        supervisor = Supervisor(folder, config, simulated, clock)

        def watch() -> None:
            nonlocal probe
            if probe is None and supervisor.endpoint is not None:
                probe = _Probe(supervisor.endpoint, config, simulated, clock)
                around.callback(probe.close)

        supervisor.run(watch)
    if probe is None or probe.figures is None:
        raise SessionFailed(f"the session ended before its figures were filed\n  cure: see {folder / 'logs'}")
    return {"session": str(folder), "minutes": minutes, **probe.figures}
