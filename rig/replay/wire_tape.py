"""From a journal to a tape: what the recorded devices put on their wires, message by message, with its time.

Pure: documents in, columns out. Called by `rig.replay.wire`; the tape is played by a process that knows the wire and
nothing of a session (`rig.animal.replayed`; decision 0013 says why they share a file and no code).

A journal holds no messages but what a source made of them. What is lost on the way, and how it is made again:

* Spikes and edges have their samples and arrivals. They are put on the wire again one by one, with their block.
* Blocks of voltage were checked and not kept. Where one began is known from the watermarks (first sample - 100), where
  one ended and when it came from the clock pairs and from the arrivals of its events; between those it is interpolated.
* A gap is made again by leaving out what was lost: its message numbers are skipped, its blocks are not sent.
* A run begins like a new acquisition, whatever made it begin in the recording.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from rig.messages import ClockSample, Continuity, Document, EdgeBlock, Entry, Gap, SpikeBlock

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

SPIKE, EDGE, DATA = 0, 1, 2
DEFERRAL = 100  # samples; a spike this near to a block's end comes with the next block
SHORT_BLOCK = 200  # samples; blocks this short make gaps of their own, which the source finds again by itself
USUAL_BLOCK = 700  # samples; where a run is too short to tell
HARVEST_NS = 10_000_000  # a Continuity is journalled at most about this long after its source looked
JOINED_AT = 1001  # message number of a run that the source joined when it was already going on


class NotReplayable(ValueError):
    """Traffic that cannot be made again from what the journal holds; the message says why and what can be done."""


@dataclass(frozen=True)
class Tape:
    """Messages of one device in the order in which they are sent; one element of each array per message.

    `a` and `b` by kind: SPIKE unit (index into `units`); EDGE line and state; DATA number of samples and rate in Hz.
    """

    units: tuple[str, ...]
    due_host_ns: I64  # when it arrived in the recording, host clock of the recording
    kind: I64
    number: I64  # the device's message number
    sample: I64
    a: I64
    b: I64


@dataclass
class _Run:
    """What the journal holds of one acquisition run."""

    rate_hz: float = 0.0
    events: list[tuple[int, int, int, int, int]] = field(default_factory=list)  # kind, a, b, sample, arrival
    late: list[int] = field(default_factory=list)  # for each event: watermark that it came after, -1 if it was in time
    seen: list[tuple[int, int]] = field(default_factory=list)  # (receipt host ns, watermark)
    pairs: dict[int, int] = field(default_factory=dict)  # end of a block: arrival of its first message
    gaps: list[Gap] = field(default_factory=list)
    watermark: int = 0


class _Units:
    def __init__(self) -> None:
        self.index: dict[str, int] = {}

    def of(self, names: tuple[str, ...]) -> I64:
        return np.array([self.index.setdefault(n, len(self.index)) for n in names], dtype=np.int64)


def openephys_tape(entries: Iterable[Entry], source: str) -> Tape:
    """Return what the Open Ephys GUI that was recorded as `source` sent. Raises NotReplayable."""
    runs: dict[int, _Run] = {}
    units = _Units()
    for entry in entries:
        document = entry.document
        if getattr(document, "source", None) != source or not hasattr(document, "run"):
            continue
        if runs and document.run < max(runs):
            continue  # sent again by a source that had not heard that it was journalled
        _note(runs.setdefault(document.run, _Run()), document, entry.envelope.receipt_host_ns, units)
    rows: list[I64] = []
    first = True
    for number in sorted(runs):
        run = runs[number]
        if run.events or any(w for _, w in run.seen):
            rows.append(_messages(run, source, first))
            first = False
    if not rows:
        raise NotReplayable(f"{source}: the journal holds no data of it; there is nothing to send")
    table = np.concatenate(rows)
    table[:, 0] = np.maximum.accumulate(table[:, 0])
    due, kind, count, sample, a, b = table.T.copy()
    return Tape(tuple(units.index), due, kind, count, sample, a, b)


def _note(run: _Run, document: Document, receipt_ns: int, units: _Units) -> None:
    if isinstance(document, SpikeBlock):
        names = units.of(document.units)
        columns = (names[document.unit].tolist(), document.sample.tolist(), document.arrival_host_ns.tolist())
        for unit, sample, arrival in zip(*columns, strict=True):
            _event(run, (SPIKE, unit, 0, sample, arrival))
    elif isinstance(document, EdgeBlock):
        edges = (document.line.tolist(), document.state.tolist(), document.sample.tolist())
        for line, state, sample, arrival in zip(*edges, document.arrival_host_ns.tolist(), strict=True):
            _event(run, (EDGE, line, state, sample, arrival))
    elif isinstance(document, ClockSample) and document.method == "arrival":
        run.pairs[int(document.device_sample)] = document.pair_host_ns
    elif isinstance(document, Continuity):
        run.rate_hz = document.sample_rate_hz or run.rate_hz
        run.watermark = document.watermark_sample
        run.seen.append((receipt_ns, document.watermark_sample))
        run.gaps += document.gaps


def _event(run: _Run, event: tuple[int, int, int, int, int]) -> None:
    run.events.append(event)
    run.late.append(run.watermark if event[3] < run.watermark else -1)


# --- one run ----------------------------------------------------------------------------------------------------------


@dataclass
class _Blocks:
    """The blocks of one run, in order."""

    start: I64
    end: I64
    sent: npt.NDArray[np.bool_]  # whether its voltage came
    skip: I64  # message numbers that are missing before it


def _messages(run: _Run, source: str, first_run: bool) -> I64:
    """Return the messages of a run (message, [due, kind, number, sample, a, b])."""
    if run.rate_hz <= 0 or not any(w for _, w in run.seen):
        raise NotReplayable(
            f"{source}: a run was recorded without a continuous channel, so nothing tells where its blocks were; "
            "only recordings with one channel at least in the ZMQ Interface's mask can be sent again"
        )
    blocks, joined, missing = _blocks(run)
    events = np.array(run.events, dtype=np.int64).reshape(-1, 5)
    kind, a, b, sample, arrival = events.T
    late = np.array(run.late, dtype=np.int64)
    ahead = np.where(kind == SPIKE, DEFERRAL, 0)
    block = np.searchsorted(blocks.start, sample + ahead, side="right") - 1
    behind = np.searchsorted(blocks.start, late + DEFERRAL, side="right")  # the block after the newest of that moment
    block = np.clip(np.where(late >= 0, np.maximum(block, behind), block), 0, len(blocks.start) - 1)
    begin, over = _times(run, blocks, block, arrival)
    out: list[tuple[int, int, int, int, int, int]] = []
    number = (JOINED_AT if joined else 1 + missing) if first_run else 1 + missing
    order = np.lexsort((arrival, block))
    cuts = np.searchsorted(block[order], np.arange(len(blocks.start) + 1))
    for k in range(len(blocks.start)):
        number += int(blocks.skip[k])
        for j in order[cuts[k] : cuts[k + 1]].tolist():
            due = min(max(int(arrival[j]), int(begin[k])), int(over[k]))
            out.append((due, int(kind[j]), number, int(sample[j]), int(a[j]), int(b[j])))
            number += 1
        if blocks.sent[k]:
            length = int(blocks.end[k] - blocks.start[k])
            out.append((int(over[k]), DATA, number, int(blocks.start[k]), length, round(run.rate_hz)))
            number += 1
    return np.array(out, dtype=np.int64).reshape(-1, 6)


def _blocks(run: _Run) -> tuple[_Blocks, bool, int]:
    """Return the blocks, whether the source joined the run after its first block, and what was lost before it."""
    starts = {w + DEFERRAL for _, w in run.seen if w > 0}
    known = sorted(starts | set(run.pairs))
    steps = np.diff(known)
    usual = int(np.bincount(steps).argmax()) if len(steps) and steps.max() < 1 << 20 else USUAL_BLOCK
    inner = [g for g in run.gaps if g.first_sample > 0 and g.end_sample <= max(known) + usual]
    inner = [g for g in inner if g.messages or usual > SHORT_BLOCK]
    bounds = {*known, *(g.end_sample for g in inner), *(g.first_sample + DEFERRAL for g in inner)}
    lost_first = [g for g in run.gaps if g.first_sample == 0 and g.end_sample > 0]
    if lost_first:
        bounds.add(lost_first[0].end_sample)
    bounds |= {max(min(bounds) - usual, 0), max(bounds) + usual}
    edges = _divided(sorted(bounds), usual)
    start, end = edges[:-1], edges[1:]
    joined = bool(lost_first) and (lost_first[0].end_sample in run.pairs or lost_first[0].end_sample not in starts)
    if lost_first:  # before the block that ended the first gap nothing came
        keep = end >= lost_first[0].end_sample if joined else start >= lost_first[0].end_sample
        start, end = start[keep], end[keep]
    blocks = _Blocks(start, end, np.ones(len(start), dtype=np.bool_), np.zeros(len(start), dtype=np.int64))
    for gap in inner:
        closing = np.flatnonzero(end == gap.end_sample)
        if len(closing):
            from_sample = gap.first_sample + DEFERRAL + (1 if gap.messages else 0)
            blocks.sent &= ~((start >= from_sample) & (end < gap.end_sample))
            blocks.skip[closing[0]] += gap.messages
    return blocks, joined, sum(g.messages for g in lost_first)


def _divided(bounds: list[int], usual: int) -> I64:
    """Return the bounds with those put between that lie a whole number of usual blocks apart."""
    out = [bounds[0]]
    for bound in bounds[1:]:
        parts = max(round((bound - out[-1]) / usual), 1)
        base, length = out[-1], bound - out[-1]
        out += [base + length * k // parts for k in range(1, parts + 1)]
    return np.array(out, dtype=np.int64)


def _times(run: _Run, blocks: _Blocks, block: I64, arrival: I64) -> tuple[I64, I64]:
    """Return when the first and when the last message of each block came, host ns."""
    count = len(blocks.start)
    begin, over = np.full(count, np.iinfo(np.int64).max), np.full(count, -1)
    np.minimum.at(begin, block, arrival)
    np.maximum.at(over, block, arrival)
    for k in np.flatnonzero(np.isin(blocks.end, list(run.pairs))).tolist():
        begin[k] = min(run.pairs[int(blocks.end[k])], begin[k])
    known = begin < np.iinfo(np.int64).max
    period = 1e9 / run.rate_hz
    origin = int(begin[known].min()) if known.any() else run.seen[0][0]
    at = (blocks.end - blocks.end[0]) * period
    if known.any():
        delay = np.interp(at, at[known], (begin[known] - origin) - at[known])
        guess = origin + np.rint(at + delay).astype(np.int64)
    else:
        guess = origin + np.rint(at).astype(np.int64)
    # It had come when a Continuity told of it, and had not when the one before did not.
    receipts, marks = np.array(run.seen, dtype=np.int64).T
    told = np.searchsorted(np.maximum.accumulate(marks), blocks.start - DEFERRAL)
    latest = receipts[np.minimum(told, len(receipts) - 1)]
    guess = np.where(told < len(receipts), np.minimum(guess, latest), guess)
    guess = np.where(told > 0, np.maximum(guess, receipts[np.maximum(told - 1, 0)] - HARVEST_NS), guess)
    begin = np.where(known, begin, guess)
    begin = np.maximum.accumulate(begin)
    over = np.maximum(over, begin)
    over = np.maximum.accumulate(over)
    begin[1:] = np.maximum(begin[1:], over[:-1])
    return begin, np.maximum(over, begin)
