"""A bridge of the open wires on paper, recorded by the source's own parser and ledger; and its tape, played to them."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from rig.messages import Continuity, Document, EdgeBlock, Entry, Envelope, SpikeBlock, TraceBlock, UnitList
from rig.replay.wire_tape_zmq import BridgeTape
from rig.sources.spikes_zmq import Spikes
from rig.sources.traces_zmq import Traces
from rig.sources.zmq_ledger import Ledger
from rig.sources.zmq_parse import ClockReply, Refusal, parse_spikes, parse_traces

START_NS = 7_000_000_000_000
RATE_HZ = 30_000.0
PPM = 40e-6  # by so much the device's clock is fast
BLOCK = 750
HARVEST_NS = 25_000_000
ASK_NS = 250_000_000
FIRST_SAMPLE = 90_000
Wire = Literal["spikes", "traces"]


def sample_at(host_ns: float) -> float:
    """Where the device's counter is at a host time."""
    return FIRST_SAMPLE + (host_ns - START_NS) * RATE_HZ * (1 + PPM) * 1e-9


def host_at(sample: float) -> int:
    return START_NS + round((sample - FIRST_SAMPLE) * 1e9 / (RATE_HZ * (1 + PPM)))


@dataclass
class Recorder:
    """A source without its sockets: parser, ledger and contents are the program's own; what comes out is journalled."""

    wire: Wire
    log: list[Entry] = field(default_factory=list)
    first_run: int = 30

    def __post_init__(self) -> None:
        self.ledger = Ledger("probe", self.first_run)
        self.contents: Any = (Spikes if self.wire == "spikes" else Traces)("probe")
        self.due = self.asked = self.begun = 0
        self.refused: list[Refusal] = []

    def until(self, now_ns: int, reply: Callable[[int], tuple[ClockReply, int] | None]) -> None:
        """Harvest and ask for the time until `now_ns`; `reply` returns answer and round trip."""
        self.due, self.asked, self.begun = self.due or now_ns, self.asked or now_ns, self.begun or now_ns
        while now_ns >= self.due:
            while self.asked <= self.due:
                if (answer := reply(self.asked)) is not None:
                    self.ledger.replied(answer[0], self.asked, self.asked + answer[1])
                self.asked += ASK_NS
            self.ledger.watch(self.due)
            self.ledger.watch_clock(self.due, self.begun)
            self.journal(self.ledger.harvest(self.contents, self.due), self.due)
            self.due += HARVEST_NS

    def take(self, frames: list[bytes], now_ns: int) -> None:
        message: Any = parse_spikes(frames) if self.wire == "spikes" else parse_traces(frames)
        if isinstance(message, Refusal):
            self.refused.append(message)
        else:
            self.ledger.take(message, self.contents, now_ns)

    def journal(self, documents: list[Document], now_ns: int) -> None:
        for document in documents:
            seq = len(self.log) + 1
            envelope = Envelope(
                seq=seq, receipt_host_ns=now_ns + 1_000_000, sender="probe", process="probe-1", sender_seq=seq,
                cause_seq=None, cause_index=None,
            )  # fmt: skip
            self.log.append(Entry(envelope, document))


@dataclass
class Bridge:
    """A bridge on paper: 10 s of blocks of 25 ms, 30 frames/s; what goes wrong is said by the number of the block."""

    wire: Wire
    lose: tuple[int, ...] = ()
    restart: tuple[int, ...] = ()
    other_units: tuple[int, int] = (0, 0)
    silent: tuple[int, int] = (0, 0)  # blocks in which the clock port does not answer
    stall: tuple[int, int] = (0, 0)  # blocks whose messages come in one burst with the one after
    overflow: tuple[int, ...] = ()  # blocks for which the bridge declares a gap
    empty: bool = False
    present: bool = True
    joined: int = 40  # a block with the list; those before it are nobody's loss
    blocks: int = 400

    def record(self) -> list[Entry]:
        """Return the journal of a source that listens from the block `joined` on."""
        rng, recorder = np.random.default_rng(5), Recorder(self.wire)
        self.run, self.number, self.list = 1, 0, 0
        waiting: list[list[bytes]] = []
        names = ["a", "b", "c"]
        frame = 0
        for k in range(self.blocks):
            first = FIRST_SAMPLE + k * BLOCK
            if k in self.restart:
                self.run, self.number = self.run + 1, 0
            changed = ["a", "b", "new"] if self.other_units[0] <= k < self.other_units[1] else ["a", "b", "c"]
            self.list += changed != names
            told, names = changed != names or self.number == 0 or k % 40 == 0, changed
            arrival = host_at(first + BLOCK) + int(rng.integers(400_000, 5_000_000))
            made = self.spikes(rng, first, names, told, k) if self.wire == "spikes" else []
            if self.wire == "traces":
                until = 1 + int((first + BLOCK - FIRST_SAMPLE) // 1000)
                made = self.frames(rng, list(range(frame + 1, until)), first, names, told, k)
                frame = max(frame, until - 1)
            lost = k in self.lose
            waiting += [] if lost else made
            recorder.until(arrival, lambda ns, k=k: self.reply(ns, k))  # type: ignore[misc]
            if self.stall[0] <= k < self.stall[1]:
                continue
            for j, message in enumerate(waiting if k >= self.joined else []):
                recorder.take(message, arrival + j * 20_000)
            waiting = []
        recorder.until(arrival + 60_000_000, lambda ns: self.reply(ns, self.blocks))
        assert not recorder.refused
        return recorder.log

    def head(self, **fields: Any) -> dict[str, Any]:
        self.number += 1
        return {"wire": self.wire, "version": 1, "run": f"r{self.run}", "number": self.number, "rate_hz": RATE_HZ,
                "list": self.list, **fields}  # fmt: skip

    def spikes(
        self, rng: np.random.Generator, first: int, names: list[str], told: bool, k: int
    ) -> list[list[bytes]]:
        count = 0 if self.empty else int(rng.poisson(1.2))
        end = first + BLOCK
        rows = np.stack([rng.integers(0, 3, count), rng.integers(first, end, count)], axis=1)
        edges = [] if self.empty or k % 8 else [[0, k // 8 % 2, first + 100]]
        fields: dict[str, Any] = {"through": end - 150, "ahead": 150, "edges": edges}
        if k in self.overflow:
            fields["gaps"] = [[first + 10, first + 60]]
        head = self.head(**fields, **({"units": names} if told else {}))
        return [[json.dumps(head).encode(), rows.astype("<i8").tobytes()]]

    def frames(
        self, rng: np.random.Generator, new: list[int], first: int, names: list[str], told: bool, k: int
    ) -> list[list[bytes]]:
        out = []
        if told:
            offsets = np.array([0.0, 0.001, 0.002], "<f8").tobytes()
            out.append([json.dumps(self.head(kind="units", units=names)).encode(), offsets])
        begins = [FIRST_SAMPLE + 1000 * (f - 1) for f in new]
        self.end = begins[-1] + 1000 if begins else getattr(self, "end", FIRST_SAMPLE)
        edges = [] if k % 8 else [[0, k // 8 % 2, first + 100]]
        fields = {"kind": "frames", "rois": 3, "frames": list(zip(new, begins, strict=True)), "through": self.end}
        motion = rng.normal(size=(len(new), 3)).round(3).tolist()
        values = rng.normal(100, 10, (2, len(new), 3)).astype("<f4")
        head = self.head(**fields, motion=motion, edges=edges)
        out.append([json.dumps(head).encode(), *(v.tobytes() for v in values)])
        return out

    def reply(self, ns: int, k: int) -> tuple[ClockReply, int] | None:
        if self.silent[0] <= k < self.silent[1]:
            return None
        trip = 100_000 + ns // 1000 % 60_000
        sample = float(int(sample_at(ns + trip // 2)))
        return ClockReply(f"r{self.run}", self.number, sample, self.present), trip


def played(tape: BridgeTape) -> Recorder:
    """Return what the source's own ledger makes of a tape."""
    recorder = Recorder(tape.wire, first_run=70)
    clock = tape.clock
    ends, bytes_, raw = [0, *tape.message_end.tolist()], [0, *tape.frame_end.tolist()], tape.content.tobytes()

    def reply(ns: int) -> tuple[ClockReply, int] | None:
        if any(begin <= ns < end for begin, end in clock.mute_ns.tolist()):
            return None
        k = max(int(np.searchsorted(clock.told[:, 0], ns, side="right")) - 1, 0)
        _, run, number = clock.told[k].tolist()
        mine = clock.run == run
        x, y = clock.host_ns[mine], clock.sample[mine]
        sample = float(np.interp(ns, x, y)) if x[0] <= ns <= x[-1] else float(y[-1 if ns > x[-1] else 0]) + (
            ns - float(x[-1 if ns > x[-1] else 0])
        ) * RATE_HZ * 1e-9
        return ClockReply(tape.runs[run], number, sample, clock.present), 0

    for k, now in enumerate(tape.due_host_ns.tolist()):
        recorder.until(now, reply)
        recorder.take([raw[bytes_[f] : bytes_[f + 1]] for f in range(ends[k], ends[k + 1])], now)
    recorder.until(int(tape.due_host_ns[-1]) + 60_000_000, reply)
    assert not recorder.refused
    return recorder


def rows(log: list[Entry]) -> list[Any]:
    """Return everything that was measured, with the arrivals, in order."""
    out: list[Any] = []
    for document in (e.document for e in log):
        if isinstance(document, SpikeBlock):
            columns = (document.unit, document.sample, document.arrival_host_ns)
            out += [("spike", document.units[u], s, t) for u, s, t in zip(*(c.tolist() for c in columns), strict=True)]
        elif isinstance(document, EdgeBlock):
            edges = (document.line, document.state, document.sample, document.arrival_host_ns)
            out += [("edge", *row) for row in zip(*(c.tolist() for c in edges), strict=True)]
        elif isinstance(document, TraceBlock):
            assert document.neuropil is not None
            assert document.motion is not None
            arrays = (document.values, document.neuropil, document.motion)
            for k, (frame, sample) in enumerate(zip(document.frame.tolist(), document.sample.tolist(), strict=True)):
                at = int(document.arrival_host_ns[k])
                out.append(("frame", frame, sample, at, document.list_number, *(a[k].tobytes() for a in arrays)))
    return sorted(out, key=repr)


def told(log: list[Entry]) -> dict[str, Any]:
    """Return what a log says of completeness: gaps, lists, losses and watermarks of each run."""
    runs: dict[int, int] = {}
    for entry in log:
        if (run := getattr(entry.document, "run", None)) is not None:
            runs.setdefault(run, len(runs))
    continuity = [e.document for e in log if isinstance(e.document, Continuity)]
    return {
        "gaps": [(runs[d.run], g.first_sample, g.end_sample, g.messages) for d in continuity for g in d.gaps],
        "lists": [
            (runs[d.run], d.list_number, d.from_sample, d.units, d.scan_offset_s.tolist(), d.measure)
            for d in (e.document for e in log) if isinstance(d, UnitList)
        ],
        "lost": [max(d.lost_messages for d in continuity if d.run == run) for run in runs],
        "through": [max(d.watermark_sample for d in continuity if d.run == run) for run in runs],
    }  # fmt: skip
