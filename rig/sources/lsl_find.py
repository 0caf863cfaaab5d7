"""Finds the streams that an LSL source names, the reader for them, and the words where they cannot be used.

Used by the loop and the probe of `rig.sources.lsl`.
"""

from collections.abc import Sequence

import pylsl

from rig.clock import Clock
from rig.config.sources import (
    LslBehaviourSource,
    LslCalciumSource,
    LslCountSource,
    LslMarkerSource,
    LslSpikeSource,
)
from rig.sources.columns import Faults
from rig.sources.lsl_inlet import OpenStream, tune
from rig.sources.lsl_streams import Described, Reader, WrongStream

LslSource = LslSpikeSource | LslCountSource | LslCalciumSource | LslBehaviourSource | LslMarkerSource


def wanted(source: LslSource) -> tuple[str, ...]:
    """Return the names of the streams that a source reads, the main one first."""
    names: list[str | None] = [source.stream]
    if isinstance(source, LslCalciumSource):
        names.append(source.neuropil)
    if isinstance(source, LslSpikeSource | LslCountSource | LslCalciumSource):
        names.append(source.edges)
    return tuple(name for name in names if name is not None)


def reader_for(source: LslSource, streams: Sequence[Described], faults: Faults) -> Reader:
    """Return the account of a new run; raises WrongStream. Each reader is imported only where it is used."""
    match source:
        case LslSpikeSource():
            from rig.sources.lsl_spikes import SpikeReader

            return SpikeReader(source, streams, faults)
        case LslBehaviourSource():
            from rig.sources.lsl_behaviour import BehaviourReader

            return BehaviourReader(source, streams, faults)
        case LslMarkerSource():
            from rig.sources.lsl_markers import MarkerReader

            return MarkerReader(source, streams, faults)
        case _:
            from rig.sources.lsl_traces import TraceReader

            return TraceReader(source, streams, faults)


class Resolver:
    """Finds streams by name."""

    def __init__(self) -> None:
        """Start looking; the answers come in the background."""
        tune()
        self._found = pylsl.ContinuousResolver()
        self.gone: set[str] = set()  # streams that were lost; they stay visible for a few seconds

    def visible(self) -> list[str]:
        """Return the names of all streams on the network."""
        return sorted({info.name() for info in self._found.results()})

    def choose(self, names: tuple[str, ...], faults: Faults, place: str) -> list[pylsl.StreamInfo] | None:
        """Return one stream of each name, None until all are visible; of several the one made last, and a fault.

        Raises WrongStream where streams of one name are on different computers: nothing tells which one is meant.
        """
        found, chosen = self._found.results(), []
        for name in names:
            alive = [i for i in found if i.name() == name and i.uid() not in self.gone]
            alive = alive or [i for i in found if i.name() == name]
            if not alive:
                return None
            hosts = sorted({info.hostname() for info in alive})
            if len(hosts) > 1:
                reason = f"{len(alive)} LSL streams are named {name!r}, on the computers {', '.join(hosts)}"
                raise WrongStream(reason, "end all but one of them, or give them different names")
            if len(alive) > 1:
                detail = f"{place}: {len(alive)} LSL streams are named {name!r}"
                faults.once("stream name twice", detail, "the one made last is used; give them different names")
            chosen.append(max(alive, key=lambda info: float(info.created_at())))
        return chosen


def host_minus_lsl(clock: Clock) -> tuple[int, int]:
    """Return how far the host clock is ahead of LSL's own on this computer, and how wide the bracket was; ns."""
    tries = []
    for _ in range(5):  # the narrowest bracket of one clock's reading by the other
        before = clock.now_ns()
        lsl_s = pylsl.local_clock()
        after = clock.now_ns()
        tries.append((after - before, (before + after) // 2 - round(lsl_s * 1e9)))
    width_ns, ahead_ns = min(tries)
    return ahead_ns, width_ns


def nothing_came(
    names: tuple[str, ...], resolver: Resolver, streams: list[OpenStream], waited_s: float
) -> tuple[str, str]:
    """Return why a source cannot start, and the cure."""
    visible = resolver.visible()
    missing = [name for name in names if name not in visible]
    if missing:
        seen = ", ".join(map(repr, visible)) if visible else "none"
        reason = f"no LSL stream named {missing[0]!r} in {waited_s:g} s; streams seen: {seen}"
        return reason, "start the sender, or correct the names of the streams in the source's config"
    if not streams:
        reason = f"the LSL streams {list(names)} are announced and cannot be connected"
        return reason, "allow TCP ports 16572 to 16604 in the firewalls of both computers, or restart the sender"
    if any(one.offset is None for one in streams):
        reason = f"the sender of {list(names)} did not answer LSL's clock questions in {waited_s:g} s"
        return reason, "allow UDP ports 16572 to 16604 in the firewalls of both computers"
    reason = f"the LSL streams {list(names)} are there but sent no usable rows in {waited_s:g} s"
    return reason, "start the sender's acquisition; the rows that a source needs are in docs/wires/lsl.md"
