"""The source of the open traces wire (docs/wires/traces.md): ScanImage, CaImAn/OnACID, suite2p.

Called by `rig.sources.__main__`. The bytes are read in `zmq_parse`, accounted for in `zmq_ledger`, received in
`zmq_feed`; here is what messages of an imaging bridge hold. Fluorescence is passed on raw: what is made of it is the
business of `rig.responses.traces`.
"""

import numpy as np

from rig.clock import Clock
from rig.config.sources import TracesWireSource
from rig.links.peer import Peer
from rig.messages import (
    Document,
    TraceBlock,
    UnitList,
)
from rig.sources.spikes_zmq import changed
from rig.sources.stopping import Say, Stopping
from rig.sources.zmq_feed import Feed, probe_feed
from rig.sources.zmq_ledger import Taken
from rig.sources.zmq_parse import F32, FramesMessage, UnitsMessage, parse_traces
from rig.supervision import child


class Traces:
    """The frames of one run since the last harvest, and the list of ROIs that they are ordered by."""

    def __init__(self, source: str) -> None:
        """Start without a list."""
        self._source = source
        self._forget()

    def _forget(self) -> None:
        self._list: UnitsMessage | None = None
        self._lists = 0  # our own numbers: 0, 1, 2 ... in the run
        self._done: list[Document] = []  # what comes before the rows below
        self._rows: list[tuple[FramesMessage, int]] = []  # with arrival, host ns
        self._frame: int | None = None  # of the newest frame
        self._sample = -1

    def breaks(self, message: UnitsMessage | FramesMessage) -> str:
        """Say so if frame numbers or their samples go back."""
        if isinstance(message, UnitsMessage) or not len(message.frame) or self._frame is None:
            return ""
        if (frame := int(message.frame[0])) <= self._frame:
            return f"frame numbers went back from {self._frame} to {frame}; a bridge needs a new `run` for it"
        if (sample := int(message.sample[0])) <= self._sample:
            return f"samples jumped back: frame {frame} begins at {sample}, frame {self._frame} began at {self._sample}"
        return ""

    def most_ahead(self, message: UnitsMessage | FramesMessage) -> int:
        """Return 0: frames come in order, so that their own numbers tell what is missing after `through`."""
        return 0

    def take(self, message: UnitsMessage | FramesMessage, run: int, arrival_ns: int, watermark: int) -> Taken:
        """Take the frames, or the list, of one message."""
        if isinstance(message, UnitsMessage):
            return Taken(faults=self._new_list(message, run, watermark))
        number, units = message.head.list_number, message.values.shape[1]
        if not len(message.frame):
            return Taken() if self._list is not None else Taken("the list of ROIs was not sent yet")
        if self._list is None or self._list.head.list_number != number:
            return Taken(f"frames are ordered by the list {number} of ROIs, which was not sent yet")
        if units != len(self._list.units):
            return Taken(f"frames of {units} ROIs, the list {number} has {len(self._list.units)}")
        holes, faults = self._holes(message)
        if self._rows and _form(self._rows[-1][0]) != _form(message):
            self._done += self._block(run)
        self._rows.append((message, arrival_ns))
        self._frame, self._sample = int(message.frame[-1]), int(message.sample[-1])
        return Taken("", int(message.sample[0]), self._sample, holes, faults)

    def _holes(self, message: FramesMessage) -> tuple[tuple[tuple[int, int], ...], tuple[tuple[str, str, str], ...]]:
        """Return gaps and faults where frame numbers have holes."""
        if self._frame is None:
            return (), ()
        frame = np.concatenate([[self._frame], message.frame])
        sample = np.concatenate([[self._sample], message.sample])
        holes, faults = [], []
        for k in np.flatnonzero(np.diff(frame) > 1).tolist():
            first, end = int(sample[k]) + 1, int(sample[k + 1])
            detail = f"{int(frame[k + 1] - frame[k]) - 1} frames between {frame[k]} and {frame[k + 1]}, "
            holes.append((first, end))
            faults.append(("frames missing", f"{detail}samples {first} to {end}", "marked as a gap"))
        return tuple(holes), tuple(faults)

    def _new_list(self, message: UnitsMessage, run: int, watermark: int) -> tuple[tuple[str, str, str], ...]:
        old, self._list = self._list, message
        offsets = message.scan_offset_s
        if old is not None and old.units == message.units and np.array_equal(old.scan_offset_s, offsets):
            return ()  # the same again, for those who joined late
        self._done += self._block(run)
        self._done.append(
            UnitList(
                source=self._source,
                run=run,
                list_number=self._lists,
                from_sample=watermark,
                units=message.units,
                scan_offset_s=offsets,
                measure="fluorescence",
            )
        )
        self._lists += 1
        if old is None:
            return ()
        return (changed((old.head.list_number, old.units), (message.head.list_number, message.units)),)

    def _block(self, run: int) -> list[Document]:
        """Return the frames gathered as one TraceBlock."""
        rows, self._rows = self._rows, []
        if not rows:
            return []
        messages, first = [message for message, _ in rows], rows[0][0]
        lengths = [len(message.frame) for message in messages]

        def joined(parts: list[F32 | None]) -> F32 | None:
            there = [part for part in parts if part is not None]
            return np.concatenate(there).astype(np.float32, copy=False) if there else None

        return [
            TraceBlock(
                source=self._source,
                run=run,
                list_number=self._lists - 1,
                frame=np.concatenate([m.frame for m in messages]),
                sample=np.concatenate([m.sample for m in messages]),
                arrival_host_ns=np.repeat(np.array([arrival_ns for _, arrival_ns in rows], np.int64), lengths),
                values=np.concatenate([m.values for m in messages]).astype(np.float32, copy=False),
                neuropil=joined([m.neuropil for m in messages]) if first.neuropil is not None else None,
                motion=joined([m.motion for m in messages]) if first.motion is not None else None,
            )
        ]

    def documents(self, run: int, ends: bool) -> list[Document]:
        """Return lists and blocks in their order; `ends` forgets the list."""
        out = [*self._done, *self._block(run)]
        self._done = []
        if ends:
            self._forget()
        return out


def _form(message: FramesMessage) -> tuple[bool, bool]:
    """Say what a frame brings beside F; rows of one block bring the same."""
    return message.neuropil is not None, message.motion is not None


class TracesWire:
    """The source's loop."""

    def __init__(
        self,
        source: TracesWireSource,
        peer: Peer,
        clock: Clock,
        stop: Stopping,
        say: Say = child.say,
    ) -> None:
        """Connect to the bridge; `run` does the rest."""
        self._feed = Feed("traces", source, parse_traces, Traces(source.name), peer, clock, stop, say)

    def run(self) -> int:
        """Serve until stopped; return the process's exit code."""
        return self._feed.run()


def probe(source: TracesWireSource, clock: Clock, wait_s: float = 3.0) -> tuple[str, str]:
    """Look whether usable messages come; return reason and cure, both empty if they do. For `stimloop check`."""
    return probe_feed("traces", source.host, source.port, parse_traces, clock, wait_s)
