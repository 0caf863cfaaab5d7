"""The source of the open spikes wire (docs/wires/spikes.md): bridges from Plexon, Blackrock, Intan, TDT, SpikeGLX.

Called by `rig.sources.__main__`. The bytes are read in `zmq_parse`, accounted for in `zmq_ledger`, received in
`zmq_feed`; here is what a message of spikes holds.
"""

import numpy as np

from rig.clock import Clock
from rig.config.sources import SpikesWireSource
from rig.links.peer import Peer
from rig.messages import (
    Document,
    SpikeBlock,
    UnitList,
)
from rig.sources.stopping import Say, Stopping
from rig.sources.zmq_feed import Feed, probe_feed
from rig.sources.zmq_ledger import Taken
from rig.sources.zmq_parse import AHEAD_S, I64, SpikesMessage, parse_spikes
from rig.supervision import child


class Spikes:
    """The spikes of one run since the last harvest, and the list of units that they are numbered in."""

    def __init__(self, source: str) -> None:
        """Start without a list."""
        self._source = source
        self._forget()

    def _forget(self) -> None:
        self._list: tuple[int, tuple[str, ...]] | None = None  # the bridge's number, names
        self._lists = 0  # our own: 0, 1, 2 ... in the run
        self._done: list[Document] = []  # blocks in the order of a list that is over
        self._rows: list[tuple[I64, I64, int]] = []  # unit, sample, arrival host ns

    def breaks(self, message: SpikesMessage) -> str:
        """Find nothing: spikes may come in any order."""
        return ""

    def most_ahead(self, message: SpikesMessage) -> int:
        """Return what the bridge states, or what the wire allows."""
        head = message.head
        return int(AHEAD_S * head.rate_hz) + 1 if head.ahead is None else head.ahead

    def take(self, message: SpikesMessage, run: int, arrival_ns: int, watermark: int) -> Taken:
        """Take the spikes of one message."""
        number, faults = message.head.list_number, []
        if message.units is not None:
            said = (number, message.units)
            if self._list is None or said[1] != self._list[1]:
                if self._list is not None:
                    faults.append(changed(self._list, said))
                self._new_list(said, run, watermark)
            self._list = said  # perhaps the same names under another number
        if self._list is None or self._list[0] != number:
            return Taken(f"a message numbers its units by list {number}, which was not sent yet", faults=tuple(faults))
        if not len(message.unit):
            return Taken(faults=tuple(faults))
        if int(message.unit.max()) >= len(self._list[1]):
            return Taken(f"unit {int(message.unit.max())} of {len(self._list[1])} units", faults=tuple(faults))
        self._rows.append((message.unit, message.sample, arrival_ns))
        oldest, newest = int(message.sample.min()), int(message.sample.max())
        return Taken(oldest=oldest, newest=newest, faults=tuple(faults))

    def _new_list(self, said: tuple[int, tuple[str, ...]], run: int, watermark: int) -> None:
        self._done += self._block(run)
        self._done.append(
            UnitList(
                source=self._source,
                run=run,
                list_number=self._lists,
                from_sample=watermark,
                units=said[1],
                scan_offset_s=np.zeros(len(said[1])),
                measure="spikes",
            )
        )
        self._lists += 1

    def _block(self, run: int) -> list[Document]:
        """Return the rows gathered as one SpikeBlock, which names only the units in it."""
        rows, self._rows = self._rows, []
        if not rows or self._list is None:
            return []
        present, unit = np.unique(np.concatenate([r[0] for r in rows]), return_inverse=True)
        return [
            SpikeBlock(
                source=self._source,
                run=run,
                units=tuple(self._list[1][k] for k in present.tolist()),
                unit=unit.astype(np.uint16),
                sample=np.concatenate([r[1] for r in rows]).astype(np.int64),
                arrival_host_ns=np.repeat(np.array([r[2] for r in rows], np.int64), [len(r[0]) for r in rows]),
            )
        ]

    def documents(self, run: int, ends: bool) -> list[Document]:
        """Return lists and blocks in their order; `ends` forgets the list."""
        out = [*self._done, *self._block(run)]
        self._done = []
        if ends:
            self._forget()
        return out


def changed(old: tuple[int, tuple[str, ...]], new: tuple[int, tuple[str, ...]]) -> tuple[str, str, str]:
    """Return the fault that says how a list of units (number, names) differs from the one before."""
    gone, come = [u for u in old[1] if u not in new[1]], [u for u in new[1] if u not in old[1]]
    parts = [f"{word}: {', '.join(some[:10])}" + (" ..." if len(some) > 10 else "")
             for word, some in (("gone", gone), ("new", come)) if some]  # fmt: skip
    detail = f"the unit list changed from {len(old[1])} to {len(new[1])} units; " + ("; ".join(parts) or "same names")
    if old[0] == new[0]:
        detail += f"; the bridge kept the number {old[0]}, it must give a changed list a new one"
    return "unit list changed", detail, "units are scored by name; one that is gone is missing, not zero"


class SpikesWire:
    """The source's loop."""

    def __init__(
        self,
        source: SpikesWireSource,
        peer: Peer,
        clock: Clock,
        stop: Stopping,
        say: Say = child.say,
    ) -> None:
        """Connect to the bridge; `run` does the rest."""
        self._feed = Feed("spikes", source, parse_spikes, Spikes(source.name), peer, clock, stop, say)

    def run(self) -> int:
        """Serve until stopped; return the process's exit code."""
        return self._feed.run()


def probe(source: SpikesWireSource, clock: Clock, wait_s: float = 3.0) -> tuple[str, str]:
    """Look whether usable messages come; return reason and cure, both empty if they do. For `stimloop check`."""
    return probe_feed("spikes", source.host, source.port, parse_spikes, clock, wait_s)
