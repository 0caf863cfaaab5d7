"""The devices: reachable and of the right kind, which units, at which rates, how good a clock, how much is lost.

Each source's module is asked first (`probe`: reason and cure of what is wrong); those that answer are started as the
processes they are in a session, and the documents they send are judged. Nothing is read in a second way.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml

from rig.clock import Clock
from rig.clocks.clockmap import RATE_TOLERANCE, ClockMap
from rig.config.session import Config
from rig.config.sources import AnySource, LslBehaviourSource, LslMarkerSource, NeuralSource
from rig.encoding import BadDocument, decode
from rig.links.bus import Hello, Hub, Submitted
from rig.messages import (
    BehaviourBlock,
    ClockSample,
    Continuity,
    Document,
    Fault,
    SpikeBlock,
    TraceBlock,
    UnitList,
)
from rig.preflight.result import Result
from rig.supervision.processes import Child

LISTEN_S = 5.0  # of data, for the losses
FIRST_DATA_S = 12.0  # until then data must have begun
PROBE_S = 3.0
POLL_S = 0.02
BACKLOG_S = 1.0  # what was sent before we listened may come in one burst
FEW_PAIRS = 20
CLEAR_OF = 0.5  # part of responses.timeout_s that data may be old without a warning
D = TypeVar("D", bound=Document)


def probe(source: Any, clock: Clock) -> tuple[str, str]:
    """Ask the source's own module; return reason and cure, both empty if the source is usable."""
    match source.type:
        case "openephys":
            from rig.sources.openephys import probe as one
        case "openephys_events":
            from rig.sources.openephys_events import probe as one  # type: ignore[assignment]
        case "spikes_zmq":
            from rig.sources.spikes_zmq import probe as one  # type: ignore[assignment]
        case "traces_zmq":
            from rig.sources.traces_zmq import probe as one  # type: ignore[assignment]
        case _:
            from rig.sources.lsl import probe as one  # type: ignore[assignment]
    return one(source, clock, PROBE_S)


@dataclass
class Heard:
    """What the running sources have sent so far."""

    children: dict[str, Child] = field(default_factory=dict)
    refused: dict[str, tuple[str, str]] = field(default_factory=dict)  # sources that could not be reached
    documents: list[tuple[int, str, Document]] = field(default_factory=list)  # receipt (host ns), source, document

    @property
    def names(self) -> set[str]:
        """Names of the sources that were started."""
        return set(self.children)

    def unreachable(self) -> Iterator[Result]:
        """Yield what is wrong with the sources that could not be reached."""
        for name, (reason, cure) in self.refused.items():
            yield Result(f"source {name}", "fail", reason, cure)

    def all(self, name: str, kind: type[D]) -> list[D]:
        """Return the documents of a kind from one source, in order."""
        return [d for _, sender, d in self.documents if sender == name and isinstance(d, kind)]

    def begun_ns(self, name: str) -> int | None:
        """Return the receipt of the first Continuity that vouches for something, host ns."""
        receipts = (
            at for at, sender, d in self.documents
            if sender == name and isinstance(d, Continuity) and d.watermark_sample > 0
        )  # fmt: skip
        return next(receipts, None)

    def until_enough(self, clock: Clock) -> None:
        """Wait until each source has sent 5 s of data, has ended, or has had its time to begin."""
        give_up_ns = clock.now_ns() + round(FIRST_DATA_S * 1e9)

        def enough(name: str) -> bool:
            if self.children[name].exit_code is not None:
                return True
            begun, now = self.begun_ns(name), clock.now_ns()
            return now > give_up_ns if begun is None else now > begun + LISTEN_S * 1e9

        pause = threading.Event()
        while not all(enough(name) for name in self.children):
            pause.wait(0.05)


def _read(submitted: Submitted) -> Document:
    try:
        return decode(submitted.frames)
    except BadDocument as error:
        return Fault(what="bad document", detail=f"{submitted.name}: {error}", done="left out")


def _collect(hub: Hub, heard: Heard, clock: Clock, end: threading.Event) -> None:
    """Take and acknowledge every document, as the recorder would (thread body)."""
    acked: dict[str, int] = {}
    while not end.is_set():
        for incoming in hub.poll(POLL_S):
            if isinstance(incoming, Hello):
                hub.welcome(incoming.name, acked.setdefault(incoming.name, 0))
            elif isinstance(incoming, Submitted):
                if incoming.n == acked.get(incoming.name, 0) + 1:
                    acked[incoming.name] = incoming.n
                    heard.documents.append((clock.now_ns(), incoming.name, _read(incoming)))
                hub.ack(incoming.name, acked.get(incoming.name, 0))


@contextmanager
def listening(config: Config, folder: Path, clock: Clock) -> Iterator[Heard]:
    """Start the sources that can be reached, with the folder for their logs; they send into the value given."""
    heard = Heard()
    for source in config.sources:
        reason, cure = probe(source, clock)
        if reason:
            heard.refused[source.name] = (reason, cure)
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    hub, end = Hub("tcp://127.0.0.1:0"), threading.Event()
    thread = threading.Thread(target=_collect, args=(hub, heard, clock, end), name="collect", daemon=True)
    thread.start()
    try:
        for source in config.sources:
            if source.name not in heard.refused:
                words = ["-m", "rig.sources", "--folder", str(folder), "--endpoint", hub.endpoint]
                heard.children[source.name] = Child(
                    source.name, [*words, "--name", source.name], folder / f"{source.name}.log"
                )
        yield heard
    finally:
        for child in heard.children.values():
            child.end(5.0)
        end.set()
        thread.join()
        hub.close()


# --- judging ----------------------------------------------------------------------------------------------------------


def judge(source: AnySource, config: Config, heard: Heard) -> Iterator[Result]:
    """Yield what is to be said about one source that was started."""
    name = f"source {source.name}"
    child = heard.children[source.name]
    if child.failed is not None:
        yield Result(name, "fail", *child.failed)
        return
    done = heard.all(source.name, Continuity)
    begun = heard.begun_ns(source.name)
    if begun is None and not isinstance(source, LslMarkerSource):
        state = done[-1].state if done else "silent"
        cure = "see that the device runs and sends; the faults below may say more"
        yield Result(name, "fail", f"no data that could be vouched for in {FIRST_DATA_S:g} s (it is {state})", cure)
        yield from _faults(source.name, heard)
        return
    yield Result(name, "ok", f"{source.type}, {done[-1].state if done else 'online'}")
    if isinstance(source, LslMarkerSource) or begun is None:
        yield from _faults(source.name, heard)
        return
    if source.name == config.neural.name:
        yield _units(config, heard)
    if isinstance(source, NeuralSource):
        yield _rates(source.name, heard, _seconds(source.name, heard, begun))
    if isinstance(source, LslBehaviourSource):
        yield _channels(source.name, config, heard)
    yield from _clock(source.name, config, heard)
    yield _loss(source.name, heard, _seconds(source.name, heard, begun))
    yield from _faults(source.name, heard)


def _seconds(name: str, heard: Heard, begun: int) -> float:
    last = max(at for at, sender, d in heard.documents if sender == name and isinstance(d, Continuity))
    return max((last - begun) * 1e-9, 1e-3)


def _spikes(name: str, heard: Heard) -> dict[str, int]:
    """Return the number of spikes of each unit that sent one."""
    counts: dict[str, int] = {}
    for block in heard.all(name, SpikeBlock):
        for k, unit in enumerate(block.units):
            counts[unit] = counts.get(unit, 0) + int((block.unit == k).sum())
    return counts


def _units(config: Config, heard: Heard) -> Result:
    """See whether the scored units are among those that the source has."""
    name = config.neural.name
    lists = heard.all(name, UnitList)
    declared = set(lists[-1].units) if lists else set()
    seen = declared or set(_spikes(name, heard))
    wanted = config.responses.units
    missing = [unit for unit in wanted if unit not in seen]
    title = f"source {name} units"
    if not missing:
        return Result(title, "ok", f"all {len(wanted)} scored units are there, of {len(seen)}")
    hints = []
    for unit in missing[:8]:
        near = get_close_matches(unit, sorted(seen), 3, 0.5)
        hints.append(f"{unit!r}" + (f" (near: {', '.join(near)})" if near else ""))
    some = ", ".join(sorted(seen)[:12]) + (" ..." if len(seen) > 12 else "")
    said = f"not seen: {', '.join(hints)}; the source has {len(seen)}: {some or 'none'}"
    if declared or len(missing) == len(wanted):
        return Result(title, "fail", said, "correct responses.units: take the names as the source gives them")
    cure = "these may only be silent; correct responses.units if they are misspelt"
    return Result(title, "warn", said, cure)


def _rates(name: str, heard: Heard, seconds: float) -> Result:
    title = f"source {name} rates"
    frames = sum(len(block.frame) for block in heard.all(name, TraceBlock))
    sample_hz = heard.all(name, Continuity)[-1].sample_rate_hz
    if frames:
        return Result(title, "ok", f"{frames / seconds:.1f} frames/s; device ticks at {sample_hz:g} Hz")
    rates = sorted(n / seconds for n in _spikes(name, heard).values())
    if not rates:
        cure = "see that the spike detector is on and its thresholds are right"
        return Result(title, "warn", f"not one spike in {seconds:.1f} s", cure)
    said = (
        f"{sum(rates):.0f} spikes/s of {len(rates)} units, {rates[0]:.1f} to {rates[-1]:.1f} each; "
        f"device samples at {sample_hz:g} Hz"
    )
    return Result(title, "ok", said)


def _channels(name: str, config: Config, heard: Heard) -> Result:
    """See whether the behaviour source sends the channels that the gates look at."""
    blocks = heard.all(name, BehaviourBlock)
    seen = set(blocks[-1].channels) if blocks else set()
    fixation = config.gates.fixation
    wanted = [c.channel for c in config.gates.criteria if c.source == name]
    if fixation is not None and fixation.source == name:
        wanted += [fixation.x, fixation.y]
    missing = [channel for channel in dict.fromkeys(wanted) if channel not in seen]
    title, have = f"source {name} channels", ", ".join(sorted(seen)) or "none"
    if not missing:
        return Result(title, "ok", have)
    hints = []
    for channel in missing:
        near = get_close_matches(channel, sorted(seen), 3, 0.5)
        hints.append(f"{channel!r}" + (f" (near: {', '.join(near)})" if near else ""))
    cure = "correct the channel under gates:, or give the stream's channel that name with `channels` of the source"
    return Result(title, "fail", f"the gates need {', '.join(hints)}; the source has {have}", cure)


def clock_map(name: str, heard: Heard) -> ClockMap:
    """Return the clock map that the session would have by now."""
    done = heard.all(name, Continuity)
    rate_hz = done[-1].sample_rate_hz if done else 0.0
    clocks = ClockMap(rate_hz or None)
    for pair in heard.all(name, ClockSample):
        clocks.take(pair)
    return clocks


def _real_hz(name: str, heard: Heard, run: int) -> float | None:
    """Return the rate of the samples by the clock pairs themselves, Hz; None if they span too little time.

    A map by arrivals is held to the stated rate until it knows better, which takes longer than a check listens.
    """
    pairs = [(p.pair_host_ns * 1e-9, p.device_sample) for p in heard.all(name, ClockSample) if p.run == run]
    pairs = [p for p in pairs if p[0] > pairs[0][0] + BACKLOG_S]
    if len(pairs) < FEW_PAIRS or pairs[-1][0] - pairs[0][0] < LISTEN_S / 2:
        return None
    host, sample = np.array(pairs).T
    return float(np.polyfit(host - host[0], sample - sample[0], 1)[0])


def _clock(name: str, config: Config, heard: Heard) -> Iterator[Result]:
    title, clocks = f"source {name} clock", clock_map(name, heard)
    done = heard.all(name, Continuity)[-1]
    at, line = clocks.to_host_ns(done.watermark_sample), clocks.line
    if at is None or line is None:
        pairs = len(heard.all(name, ClockSample))
        cure = "see that the device sends without pauses; its rate must be within 1 % of what it states"
        yield Result(title, "fail", f"no clock map can be made of {pairs} pairs", cure)
        return
    real_hz = _real_hz(name, heard, done.run)
    if real_hz is not None and abs(real_hz / done.sample_rate_hz - 1) > RATE_TOLERANCE:
        said = f"samples come at {real_hz:.0f} Hz, and the device states {done.sample_rate_hz:g} Hz"
        cure = "correct the rate that the device or its bridge states: it must be within 1 % of the true one"
        yield Result(title, "fail", said, cure)
        return
    received = max(r for r, sender, d in heard.documents if sender == name and isinstance(d, Continuity))
    age_s = (received - at[0]) * 1e-9
    drift = clocks.drift_ppm()
    said = (
        f"drift {drift if drift is not None else 0:+.0f} ppm (+- {line.slope_uncertainty() * 1e6:.0f}), residual "
        f"{line.residual_ns * 1e-6:.3f} ms by {line.kind}, stated bound {at[1] * 1e-6:.3f} ms; "
        f"data are complete after {age_s:.2f} s"
    )
    timeout_s = config.responses.timeout_s
    warnings = clocks.warnings()
    if age_s > timeout_s:
        yield Result(title, "fail", said, f"responses wait {timeout_s:g} s: shorten the device's buffer or raise it")
    elif age_s > CLEAR_OF * timeout_s:
        yield Result(title, "warn", said, f"near responses.timeout_s ({timeout_s:g} s): raise it")
    elif warnings:
        cure = "see that the device's computer is not overloaded; a photodiode or a shared TTL line gives better pairs"
        yield Result(title, "warn", "; ".join([*(detail for _, detail in warnings), said]), cure)
    else:
        yield Result(title, "ok", said)


def _loss(name: str, heard: Heard, seconds: float) -> Result:
    done = heard.all(name, Continuity)
    lost = sum(
        max(c.lost_messages for c in done if c.run == run) - min(c.lost_messages for c in done if c.run == run)
        for run in {c.run for c in done}
    )
    gaps = [g for c in done for g in c.gaps if g.first_sample > 0]  # the first one is before we listened
    rate_hz = done[-1].sample_rate_hz or 1.0
    gone_s = sum(g.end_sample - g.first_sample for g in gaps) / rate_hz
    received = sum(max(c.messages for c in done if c.run == run) for run in {c.run for c in done})
    said = f"{lost} of {received + lost} messages lost in {seconds:.1f} s, {len(gaps)} gaps of {gone_s:.2f} s together"
    if lost or gaps:
        cure = "relieve the network and this computer; use wired links, larger buffers, fewer channels (mask)"
        return Result(f"source {name} loss", "fail", said, cure)
    return Result(f"source {name} loss", "ok", said)


def _faults(name: str, heard: Heard) -> Iterator[Result]:
    """Yield each kind of fault that the source itself reports, once."""
    told: dict[str, Fault] = {}
    for fault in heard.all(name, Fault):
        told.setdefault(fault.what, fault)
    for what, fault in told.items():
        yield Result(f"source {name}: {what}", "warn", fault.detail, fault.done)
