"""From a journal to a tape of the open wires: the messages that a bridge sent, and what its clock port answered.

Pure: documents in, bytes out. Called by `rig.replay.wire_recording`; played by `rig.animal.replayed_zmq`. The formats
are in docs/wires/spikes.md and traces.md.

A journal holds no messages but what a source made of them. What is lost on the way, and how it is made again:

* Rows that arrived at the same time came in one message. How many messages came in all is counted in each Continuity;
  those without rows are put where the samples that they vouch for were due.
* `through` is the watermark of the Continuity behind the message. Where several messages came before one Continuity it
  is interpolated for all but the last, never beyond what came later.
* Losses: their message numbers are left out. What the clock port told of a lost tail is told again.
* A run is a run of the bridge, whatever made it begin in the recording.
* The clock port answers from the recorded pairs, with a straight line through the pairs of a few seconds around.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rig.messages import Entry, Gap
from rig.replay.wire_clock_zmq import ClockTape, HostOf, clock_tape
from rig.replay.wire_log_zmq import BridgeRun, Period, TraceRow, runs_of
from rig.replay.wire_tape import NotReplayable

I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]
Wire = Literal["spikes", "traces"]

VERSION = 1
LIST_EVERY_NS = 1_000_000_000
TOLD_AFTER_NS = 600_000_000  # a lost tail is in the log so long after it was sent: a question and 0.5 s of patience
HARVEST_NS = 10_000_000  # a Continuity is journalled at most about this long after its source looked
FEW = 3  # messages before one Continuity; more of them came in a burst


@dataclass(frozen=True)
class BridgeTape:
    """Messages of one bridge in the order in which they are sent, and what its clock port says."""

    wire: Wire
    rate_hz: float
    runs: tuple[str, ...]  # the bridge's own names of its runs
    due_host_ns: I64  # (message,), when it arrived in the recording, host clock of the recording
    message_end: I64  # (message,), number of frames up to its last one
    frame_end: I64  # (frame,), number of bytes up to its last one
    content: U8  # (byte,)
    clock: ClockTape


@dataclass
class _Message:
    """One message that is to be made."""

    due_ns: int
    known: bool  # whether the time is its recorded arrival
    epoch: int  # index of its unit list in the run, -1 before the first
    rows: list[Any] = field(default_factory=list)  # (unit, sample) on the spikes wire, TraceRow on the traces wire
    edges: list[tuple[int, int, int]] = field(default_factory=list)
    gaps: list[tuple[int, int]] = field(default_factory=list)
    through: int = 0
    skip: int = 0  # numbers that are missing before it


def zmq_tape(entries: Iterable[Entry], source: str, wire: Wire) -> BridgeTape:
    """Return what the bridge that was recorded as `source` sent. Raises NotReplayable."""
    kept, silences = runs_of(entries, source)
    if not kept:
        raise NotReplayable(f"{source}: the journal holds no data of it; there is nothing to send")
    names = tuple(f"replay-{run.number}" for run in kept)
    clock = clock_tape(source, [(run.pairs, run.rate_hz, run.ends_ns) for run in kept], silences)
    due: list[int] = []
    known: list[bool] = []
    frames: list[list[bytes]] = []
    told: list[tuple[int, int, int]] = []
    for k, run in enumerate(kept):
        made = _Sender(run, wire, names[k], clock.host_of(k, run.rate_hz))
        made.send_all()
        due += made.due
        known += made.known
        frames += made.frames
        told += [(at_ns, k, number) for at_ns, number in made.told]
    # One whose time is guessed came before the next whose time is known.
    latest = np.where(known, due, np.iinfo(np.int64).max)
    due_ns = np.minimum(np.array(due, dtype=np.int64), np.minimum.accumulate(latest[::-1])[::-1])
    due_ns = np.maximum.accumulate(due_ns)
    flat = [frame for message in frames for frame in message]
    return BridgeTape(
        wire=wire,
        rate_hz=kept[-1].rate_hz,
        runs=names,
        due_host_ns=due_ns,
        message_end=np.cumsum([len(message) for message in frames], dtype=np.int64),
        frame_end=np.cumsum([len(frame) for frame in flat], dtype=np.int64),
        content=np.frombuffer(b"".join(flat), dtype=np.uint8),
        clock=clock.with_told(told),
    )


# --- the messages of one run ------------------------------------------------------------------------------------------


class _Sender:
    """Makes the messages of one run, in order."""

    def __init__(self, run: BridgeRun, wire: Wire, name: str, host_of: HostOf | None) -> None:
        """`name`: what the bridge calls the run; `host_of` tells when a sample was, host ns; None: nothing does."""
        self.due: list[int] = []
        self.known: list[bool] = []  # whether that is a recorded arrival
        self.frames: list[list[bytes]] = []
        self.told: list[tuple[int, int]] = []  # from when on the clock port tells which number
        self._run, self._wire, self._name, self._host_of = run, wire, name, host_of
        self._arrived = {int(p.device_sample): p.pair_host_ns for p in run.pairs if p.method == "arrival"}
        self._number = 0
        self._tail = 0  # numbers that the log knows to be lost and no message has passed yet
        self._hole = 0  # lost messages whose gap was not told yet
        self._edges: list[tuple[int, int, int]] = []  # of messages that cannot be sent
        self._watermark = 0
        self._receipt_ns = run.periods[0].receipt_ns - HARVEST_NS
        self._began = False
        self._epoch = -1  # list that was sent last
        self._listed_ns = 0
        self._frame: tuple[int, int] | None = None  # newest frame and its sample
        self._ahead = _ahead(run)
        self._delay_ns = _delay(run, host_of)

    def send_all(self) -> None:
        """Make all messages."""
        for period, lists in zip(self._run.periods, self._run.lists_before, strict=True):
            self._send(period, lists - 1)
            self._watermark, self._receipt_ns = max(self._watermark, period.watermark), period.receipt_ns

    def _send(self, period: Period, epoch: int) -> None:
        told = [g for g in period.gaps if g.messages]
        if not period.messages:
            if period.lost > 0:
                self._tail += period.lost
                self._hole += period.lost
                last_ns = self.due[-1] if self.due else 0
                self.told.append((max(last_ns, period.receipt_ns - TOLD_AFTER_NS), self._number + self._tail))
            return
        waits = period.lost >= 0 and self._hole + period.lost > 0 and not told
        if epoch < 0 or waits:  # the source could use none of them: they count among the lost
            self._edges += [edge for _, edge in period.edges]
            self._tail += period.lost
            self._hole += max(period.lost, 0)
            return
        messages = self._slots(period, epoch)
        self._holes(messages, period, told)
        self._through(messages, period, told)
        self._declared(messages, period)
        self._time(messages, period)
        messages[0].edges = self._edges + messages[0].edges
        self._edges, self._tail, self._hole, self._began = [], 0, 0, True
        for message in messages:
            self._put(message)

    def _slots(self, period: Period, epoch: int) -> list[_Message]:
        """Return a message for each arrival, and those without rows between them."""
        at: dict[int, _Message] = {}
        for arrival, of, row in period.rows:
            at.setdefault(arrival, _Message(arrival, True, of)).rows.append(row)
        for arrival, edge in period.edges:
            at.setdefault(arrival, _Message(arrival, True, -1)).edges.append(edge)
        out = [at[arrival] for arrival in sorted(at)]
        extra = period.messages - len(out)
        if extra > 0 and (len(out) + extra <= FEW or not out):
            for _ in range(extra):  # each into the widest stretch without a message
                bounds = [self._receipt_ns, *(m.due_ns for m in out), period.receipt_ns]
                k = int(np.argmax(np.diff(bounds)))
                out.insert(k, _Message((bounds[k] + bounds[k + 1]) // 2, False, -1))
        elif extra > 0:  # a burst: not before its first message that is known
            times = np.array([m.due_ns for m in out])[np.linspace(0, len(out) - 1, extra).round().astype(np.int64)]
            out = sorted([*out, *(_Message(t, True, -1) for t in times.tolist())], key=lambda m: m.due_ns)
        newest = self._epoch
        for message in out:
            message.epoch = newest = max(newest, message.epoch)
        if newest < epoch:  # a list that no row of this period is numbered by
            if out[-1].rows:
                out.append(_Message(out[-1].due_ns, True, epoch))
            out[-1].epoch = epoch
        if self._epoch < 0:  # what came before the first list could not be used
            first = next(k for k, message in enumerate(out) if message.epoch >= 0)
            out[first].edges = [edge for message in out[:first] for edge in message.edges] + out[first].edges
            out = out[first:]
        return out

    def _holes(self, messages: list[_Message], period: Period, told: list[Gap]) -> None:
        """Leave out the numbers that were lost."""
        skip = self._tail + period.lost
        if not told:
            messages[0].skip = max(skip, 0)
            return
        inner = sum(g.messages for g in told[1:])
        for gap, lost in zip(told, [skip - inner, *(g.messages for g in told[1:])], strict=True):
            messages[self._behind(gap, messages, period)].skip += max(lost, 0)

    def _behind(self, gap: Gap, messages: list[_Message], period: Period) -> int:
        """Return which message closed a gap."""
        if gap.first_sample <= self._watermark or len(messages) == 1:
            return 0
        share = (gap.first_sample - self._watermark) / max(period.watermark - self._watermark, 1)
        return min(max(round(share * len(messages)), 1), len(messages) - 1)

    def _through(self, messages: list[_Message], period: Period, told: list[Gap]) -> None:
        """Say how far each message vouches."""
        last, rate_hz = len(messages) - 1, self._run.rate_hz
        before = self._watermark
        if not self._began:
            passed_ns = messages[-1].due_ns - messages[0].due_ns
            before = max(period.watermark - round((passed_ns + 1e9 / rate_hz) * rate_hz * 1e-9), 0)
        if self._wire == "traces":
            self._through_frames(messages, before, period.watermark)
            return
        anchors = {-1: before, last: max(period.watermark, before)}
        for k, message in enumerate(messages):
            if message.epoch > (messages[k - 1].epoch if k else self._epoch) and k:
                anchors[k - 1] = self._run.lists[message.epoch].from_sample
        for gap in told:
            k = self._behind(gap, messages, period)
            if k:
                anchors[k - 1] = gap.first_sample
            closed = gap.end_sample - (round(rate_hz) + 1 if self._ahead is None else self._ahead)
            if k < last and gap.first_sample <= closed <= anchors[last]:
                anchors[k] = closed
        at = sorted(anchors)
        through = np.interp(np.arange(len(messages)), at, [anchors[k] for k in at]).astype(np.int64)
        through = np.maximum.accumulate(np.minimum(through, anchors[last]))
        later = anchors[last]
        for k in range(last, -1, -1):
            message = messages[k]
            message.through = int(through[k] if k == last else max(min(int(through[k]), later), before))
            samples = [row[1] for row in message.rows] + [edge[2] for edge in message.edges]
            later = min([later, *(s for s in samples if s >= before)])
            if message.rows:  # never further ahead than the wire allows
                newest = max(row[1] for row in message.rows)
                most = round(rate_hz) if self._ahead is None else self._ahead
                message.through = max(message.through, newest - most + 1)
        for one, other in pairwise(messages):
            other.through = max(one.through, other.through)

    def _through_frames(self, messages: list[_Message], before: int, watermark: int) -> None:
        """Say so for frames: up to where the next one begins, the last of them up to the watermark."""
        holding = [k for k, message in enumerate(messages) if message.rows]
        for k, message in enumerate(messages):
            later = [j for j in holding if j > k]
            if later and k < holding[0]:
                message.through = before
            elif later:
                message.through = messages[later[0]].rows[0].sample
            else:
                message.through = max(watermark, before)

    def _declared(self, messages: list[_Message], period: Period) -> None:
        """Put the gaps that the bridge declared itself into the last message."""
        holes: set[tuple[int, int]] = set()
        for message in messages if self._wire == "traces" else []:
            for row in message.rows:  # a hole in the frame counter makes its gap by itself
                if self._frame is not None and row.frame > self._frame[0] + 1:
                    holes.add((self._frame[1] + 1, row.sample))
                self._frame = row.frame, row.sample
        spans = [(g.first_sample, g.end_sample) for g in period.gaps if not g.messages and g.first_sample > 0]
        messages[-1].gaps = [span for span in spans if span not in holes]

    def _time(self, messages: list[_Message], period: Period) -> None:
        """Put messages without rows where the samples that they vouch for were due."""
        earliest = self._receipt_ns - HARVEST_NS
        for k, message in enumerate(messages):
            if not message.known and self._host_of is not None:
                at_ns = self._arrived.get(message.through, self._host_of(message.through) + self._delay_ns)
                known = (m.due_ns for m in messages[k + 1 :] if m.known)
                message.due_ns = max(min(at_ns, next(known, period.receipt_ns)), earliest)
            earliest = max(earliest, message.due_ns)

    # --- bytes ---

    def _put(self, message: _Message) -> None:
        if not self.told:
            self.told.append((message.due_ns, 0))
        changed = message.epoch != self._epoch
        lists = changed or message.due_ns >= self._listed_ns + LIST_EVERY_NS
        fields: dict[str, Any] = {"rate_hz": self._run.rate_hz, "list": message.epoch}
        if lists:
            self._epoch, self._listed_ns = message.epoch, message.due_ns
        if self._wire == "spikes":
            fields |= {"through": message.through} | ({} if self._ahead is None else {"ahead": self._ahead})
            fields |= {"edges": message.edges, "gaps": message.gaps}
            fields |= {"units": self._run.lists[message.epoch].units} if lists else {}
            array = np.array(message.rows, dtype="<i8").reshape(-1, 2)
            self._encode(message, message.skip, fields, array.tobytes())
            return
        listed = self._run.lists[message.epoch]
        skip = message.skip
        if lists:
            words = {"kind": "units", "units": listed.units}
            self._encode(message, skip, fields | words, listed.scan_offset_s.astype("<f8").tobytes())
            skip = 0
        for rows in _alike(message.rows) or [[]]:
            self._frames(message, rows, skip, fields | {"rois": len(listed.units)})
            skip = 0

    def _frames(self, message: _Message, rows: list[TraceRow], skip: int, fields: dict[str, Any]) -> None:
        """Make one message of frames."""
        last = not rows or rows[-1] is message.rows[-1]
        fields |= {"kind": "frames", "frames": [(row.frame, row.sample) for row in rows]}
        fields |= {"through": message.through if last else rows[-1].sample}
        if last:
            fields |= {"edges": message.edges, "gaps": message.gaps}
        if rows and rows[0].motion is not None:
            fields["motion"] = [row.motion.astype(float).tolist() for row in rows if row.motion is not None]
        arrays = [np.array([row.values for row in rows], dtype="<f4").tobytes()]
        if rows and rows[0].neuropil is not None:
            arrays.append(np.array([row.neuropil for row in rows], dtype="<f4").tobytes())
        self._encode(message, skip, fields, *arrays)

    def _encode(self, message: _Message, skip: int, fields: dict[str, Any], *arrays: bytes) -> None:
        self._number += 1 + skip
        head = {"wire": self._wire, "version": VERSION, "run": self._name, "number": self._number}
        self.due.append(message.due_ns)
        self.known.append(message.known)
        self.frames.append([json.dumps(head | fields).encode(), *arrays])
        self.told.append((message.due_ns, self._number))


def _alike(rows: list[TraceRow]) -> list[list[TraceRow]]:
    """Return the frames of one arrival in messages that bring the same beside F."""
    out: list[list[TraceRow]] = []
    for row in rows:
        form = row.neuropil is None, row.motion is None
        if not out or (out[-1][-1].neuropil is None, out[-1][-1].motion is None) != form:
            out.append([])
        out[-1].append(row)
    return out


def _ahead(run: BridgeRun) -> int | None:
    """Return by how much the bridge said that spikes may be ahead of `through`; None: it said nothing.

    It shows where messages were lost: their gap ends so far behind the message after it.
    """
    closed = [(p.messages, g.end_sample - p.watermark) for p in run.periods for g in p.gaps if g.messages]
    fewest = min((messages for messages, _ in closed), default=0)  # of one alone it is exact
    most = min((ahead for messages, ahead in closed if messages == fewest and ahead >= 0), default=None)
    return most if most is not None and most <= run.rate_hz else None


def _delay(run: BridgeRun, host_of: HostOf | None) -> int:
    """Return the usual time from the sample that a message vouches for to its arrival, ns."""
    late = []
    for period in run.periods:
        arrivals = {row[0] for row in period.rows} | {edge[0] for edge in period.edges}
        if host_of is not None and len(arrivals) == period.messages == 1:
            late.append(arrivals.pop() - host_of(period.watermark))
    return int(np.median(late)) if late else 0
