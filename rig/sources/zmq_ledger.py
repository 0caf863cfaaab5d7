"""Which data of a bridge on the open wires are complete: message numbers, runs, gaps, watermark, clock pairs.

Pure: messages and clock replies with their times in, documents out; no socket, no clock. Used by `zmq_feed`; what a
message holds beyond its head is the business of a `Contents` (`spikes_zmq`, `traces_zmq`).

What it relies on is in docs/wires/spikes.md: messages of a run are numbered from 1 without holes, each says `through`,
the sample before which everything was sent, and the clock reply states the number of the last message. So a message
that is missing shows at the next one, and a missing last one at the next reply. Whether samples keep pace with the
host's clock is judged by the bridge's clock where it tells the time, else by arrivals (`pace`).
"""

from dataclasses import dataclass
from typing import Protocol, TypeVar

from rig.messages import (
    ClockSample,
    Continuity,
    Document,
    Gap,
)
from rig.sources.columns import ClockPairs, Columns, Faults
from rig.sources.continuity import State
from rig.sources.pace import Pace
from rig.sources.zmq_parse import ClockReply, Head

JITTER_S = 0.05  # `through` may go back so far, or be so much in the future, without meaning anything
TAIL_GRACE_NS = 500_000_000  # a reply may overtake messages by less than this
SILENT_NS = 750_000_000  # a bridge sends at least four messages a second
TAIL_S = 1.0  # what was lost at the end may have run ahead by this
OFFLINE_NS = 6_000_000_000
CLOCK_SILENT_NS = 2_000_000_000
BEHIND_S = 2.0
MARKED = "the samples around them are marked as a gap; responses that need them are scored missing"


class Message(Protocol):
    """What all messages of the open wires have."""

    @property
    def head(self) -> Head:
        """Return what the message says of itself."""
        ...


_HOW = {"ahead": "jumped ahead", "stood still": "stood still"}

M = TypeVar("M", bound=Message, contravariant=True)


@dataclass(frozen=True)
class Taken:
    """What came of the contents of one message."""

    problem: str = ""  # why they could not be used
    oldest: int | None = None  # first and last sample in it
    newest: int | None = None
    holes: tuple[tuple[int, int], ...] = ()  # (first sample, end) that the device left out
    faults: tuple[tuple[str, str, str], ...] = ()  # (what, detail, done)


class Contents(Protocol[M]):
    """Gathers what messages hold between two harvests."""

    def breaks(self, message: M) -> str:
        """Say why the message cannot belong to the run so far; "" if it can."""
        ...

    def most_ahead(self, message: M) -> int:
        """Return by how many samples lost data may have been newer than `through`."""
        ...

    def take(self, message: M, run: int, arrival_ns: int, watermark: int) -> Taken:
        """Take the contents of a message received at host time `arrival_ns`."""
        ...

    def documents(self, run: int, ends: bool) -> list[Document]:
        """Return what was gathered and start empty again; `ends`: the run is over."""
        ...


class Ledger:
    """Keeps account of one bridge; `take` each message, `harvest` the documents about 40 times a second."""

    def __init__(self, source: str, first_run: int) -> None:
        """Start before the first message; runs are numbered from `first_run`, which must be new to the session."""
        self.source = source
        self.run = first_run
        self.state: State = "connecting"
        self.faults = Faults()
        self.total = 0  # messages in all runs
        self.usable = False  # whether contents have ever been used
        self._bridge_run: str | None = None
        self._rate_hz = 0.0
        self._last_arrival_ns: int | None = None
        self._replied_ns: int | None = None
        self._clock_silent = False
        self._out: list[Document] = []
        self._reset()

    def _reset(self) -> None:
        """Forget what belongs to one run."""
        self.watermark = 0
        self._number = 0
        self._messages = 0
        self._lost = 0
        self._gaps: list[Gap] = []
        self._gap_end = 0  # end of the last gap told: gaps do not overlap
        self._hole: int | None = 0  # first sample of a gap whose end is not known yet
        self._hole_lost = 0
        self._joining = True  # nothing of this run could be used yet, so that nothing is missing
        self._lead = 0  # how far data have run ahead of `through`, samples
        self._stated: tuple[int, int] | None = None  # number of a last message not seen yet, host ns of the reply
        self._tail = 0  # messages told as a lost tail since the last one that came
        self._behind = False
        self._pace, self._clock_pace = Pace(), Pace()  # of messages, of the bridge's clock
        self._through = -1  # newest of the run
        self._held: int | None = None  # newest `through` that came out of pace and counts once the clock vouches for it
        self._vouched = -1.0  # newest sample that the bridge's clock told in pace
        self._told_ns: int | None = None  # when it last told the time of now
        self._clock_sample = -1  # newest that the bridge's clock told
        self._left = ""  # how the bridge's clock shows that samples mean other moments now
        self._columns = Columns(self.source)
        self._pairs = ClockPairs(self.source)

    # --- what arrives ---

    def take(self, message: M, contents: Contents[M], arrival_ns: int) -> None:
        """Account for one message received at host time `arrival_ns`."""
        head = message.head
        if self._bridge_run is None:
            self._number = head.number - 1  # joined here: what came before is nobody's loss
        elif (why := self._breaks(head) or contents.breaks(message) or self._leaves(head, arrival_ns)) != "":
            self._next_run(why, head, contents, arrival_ns)
        self._bridge_run, self._rate_hz = head.run, head.rate_hz
        self._count(head, arrival_ns)
        taken = contents.take(message, self.run, arrival_ns, self.watermark)
        for what, detail, done in taken.faults:
            self.faults.note(what, f"{self.source}: {detail}", done, arrival_ns)
        for line, state, sample in head.edges:
            self._columns.edge(line, state, sample, arrival_ns)
        edges = [edge[2] for edge in head.edges]
        samples = [s for s in (taken.oldest, taken.newest, *edges) if s is not None]
        self._late(min(samples, default=self.watermark), arrival_ns)
        if samples and head.through is not None:
            self._lead = max(self._lead, max(samples) + 1 - head.through)
        if taken.problem and not self._joining:
            self._lose(1, taken.problem, arrival_ns)
        elif not taken.problem and head.through is not None:
            self._complete(message, contents, head.through, taken, arrival_ns)
        self._messages += 1
        self.total += 1
        self._last_arrival_ns = arrival_ns
        self.state = "streaming"

    def _breaks(self, head: Head) -> str:
        if head.run != self._bridge_run:
            return "the bridge was started again"
        if head.number <= self._number:
            return f"message numbers went back from {self._number} to {head.number}; a bridge needs a new `run` for it"
        if head.rate_hz != self._rate_hz:
            return f"the sample rate changed from {self._rate_hz:g} to {head.rate_hz:g} Hz"
        if head.through is not None and head.through < self.watermark - JITTER_S * head.rate_hz:
            return f"samples jumped back from {self.watermark} to {head.through}"
        return ""

    def _leaves(self, head: Head, arrival_ns: int) -> str:
        """Say so if samples have left the host's clock; hold those back that may have."""
        through = head.through
        if through is None or through <= self._through:  # nothing new: a device that pauses is judged when it goes on
            return self._left
        self._through = through
        verdict = self._pace.judge(through, arrival_ns, head.rate_hz)
        if verdict == "steady" or through <= self._vouched:
            self._held = None
            return self._left
        self._held = through
        if self._left or (self._told_ns is not None and arrival_ns - self._told_ns <= CLOCK_SILENT_NS):
            return self._left  # the next reply tells whether the data are late or the counter stood still
        return "" if verdict == "late" else f"samples left the clock: the counter {_HOW[verdict]} at {through}"

    def _next_run(self, why: str, head: Head, contents: Contents[M], arrival_ns: int) -> None:
        detail = f"{self.source}: {why}; the run before was complete to sample {self.watermark}"
        kinds = ("samples jumped back", "samples left the clock")
        what = next((kind for kind in kinds if why.startswith(kind)), "device restarted")
        self.faults.note(what, detail, f"a new run begins ({self.run + 1})", self._last_arrival_ns or arrival_ns)
        self._out += [*self._gathered(contents, None), self._continuity()]
        same = head.run == self._bridge_run and head.number > self._number
        number = self._number
        self.run += 1
        self._reset()
        self._number = number if same else 0

    def _count(self, head: Head, arrival_ns: int) -> None:
        """Compare the number with that of the message before."""
        missing = head.number - self._number - 1
        if missing < self._tail:
            # Told as lost, and here it is: a reply overtook messages by more than the grace.
            self._lost -= self._tail - missing
            self._hole_lost -= self._tail - missing
            if not self._hole_lost and not self._joining:
                self._hole = None
            detail = f"{self.source}: message {head.number} came after it was taken for lost"
            self.faults.note("late message", detail, "used; it does not count as lost", arrival_ns)
        elif missing > self._tail:
            lost = missing - self._tail
            between = f"between numbers {self._number} and {head.number}" if self._number else "of a new run's first"
            self._lose(lost, f"{lost} messages {between}", arrival_ns)
        self._tail, self._number = 0, head.number
        if self._stated is not None and self._stated[0] <= head.number:
            self._stated = None

    def _late(self, sample: int, arrival_ns: int) -> None:
        if sample >= self.watermark or self._joining:
            return
        detail = f"{self.source}: an event at sample {sample} came after everything before {self.watermark} was said"
        detail += " to be sent"
        done = "logged; a response already closed does not count it. The bridge must send a smaller `through`"
        self.faults.note("late event", detail, done, arrival_ns)

    def _complete(self, message: M, contents: Contents[M], through: int, taken: Taken, arrival_ns: int) -> None:
        """Advance the watermark; what the bridge or the device left out is a gap."""
        head = message.head
        for first, end in (*head.gaps, *taken.holes):
            self._gaps.append(Gap(first_sample=first, end_sample=end, messages=0))
        for first, end in head.gaps:
            detail = f"{self.source}: the bridge could not get samples {first} to {end} from its device"
            self.faults.note("samples missing", detail, "marked as a gap", arrival_ns)
        if self._hole is not None:
            # What is lost may have run ahead as far as anything of this run did, or as a bridge may.
            most = contents.most_ahead(message) if self._hole_lost else 0
            self._tell_gap(self._hole, through + max(self._lead, most))
            self._hole, self._hole_lost = None, 0
        self._joining, self.usable = False, True
        if self._held is None:
            self.watermark = max(self.watermark, through)
            self._pairs.offer(through, arrival_ns, head.rate_hz)

    def _lose(self, lost: int, detail: str, since_ns: int) -> None:
        self._lost += lost
        self._hole_lost += lost
        if self._hole is None:
            self._hole = self.watermark
        self.faults.note("messages lost", f"{self.source}: {detail}", MARKED, self._last_arrival_ns or since_ns)

    def _tell_gap(self, first: int, end: int) -> None:
        first = max(first, self._gap_end)
        self._gap_end = end = max(end, first)
        if end > first or self._hole_lost:
            self._gaps.append(Gap(first_sample=first, end_sample=end, messages=self._hole_lost))

    # --- the bridge's clock ---

    def replied(self, reply: ClockReply, sent_ns: int, received_ns: int) -> None:
        """Take the answer to a question sent and answered at these host times."""
        self._replied_ns = received_ns
        if reply.run != self._bridge_run:
            return  # of a run whose messages have not come yet, or are over
        if reply.number > self._number and self._stated is None:
            self._stated = (reply.number, received_ns)
        if reply.sample < self.watermark - JITTER_S * self._rate_hz:
            detail = f"{self.source}: the clock says sample {reply.sample:.0f}, data are complete to {self.watermark}"
            cure = "not used. The bridge's `sample` and `through` must count the same clock, `through` never ahead"
            self.faults.note("clock reply wrong", detail, cure, received_ns)
            return
        if reply.present and not self._in_pace(reply.sample, received_ns):
            return
        behind = reply.present and reply.sample - self.watermark > BEHIND_S * self._rate_hz and not self._joining
        if behind and not self._behind:
            detail = f"{self.source}: data are complete to sample {self.watermark}, the device is at {reply.sample:.0f}"
            done = "nothing after the watermark counts as delivered; waiting for data"
            self.faults.note("data behind the clock", detail, done, received_ns)
        self._behind = behind
        # A counter that reads S is on its way from S to S + 1.
        middle = 0.5 if reply.present and reply.sample.is_integer() else 0.0
        self._out.append(
            ClockSample(
                source=self.source,
                run=self.run,
                device_sample=reply.sample + middle,
                pair_host_ns=(sent_ns + received_ns) // 2 if reply.present else received_ns,
                method="round_trip" if reply.present else "arrival",
                round_trip_ns=received_ns - sent_ns if reply.present else None,
            )
        )

    def _in_pace(self, sample: float, received_ns: int) -> bool:
        """Whether the bridge's clock keeps pace; what came out of pace and is not newer then counts as complete."""
        self._told_ns = received_ns
        if sample <= self._clock_sample:  # it stands still; whether it does is judged when it goes on
            return False
        self._clock_sample = int(sample)
        verdict = self._clock_pace.judge(int(sample), received_ns, self._rate_hz)
        if verdict in ("ahead", "stood still"):
            self._left = f"samples left the clock: the device's counter {_HOW[verdict]} at {sample:.0f}"
        if verdict != "steady" or self._left:
            return False
        self._vouched = sample
        if self._held is not None and self._held <= sample:  # the data were late, or are later or earlier from now on
            self.watermark = max(self.watermark, self._held)
            self._held, self._pace = None, Pace()
        return True

    # --- silence ---

    def watch(self, now_ns: int) -> None:
        """Notice what does not come; call it only when everything that came was taken."""
        self._watch_tail(now_ns)
        clock_silent = self._replied_ns is None or now_ns - self._replied_ns > CLOCK_SILENT_NS
        if self._last_arrival_ns is None:
            self.state = "connecting" if clock_silent else "online"
            return
        silent_ns = now_ns - self._last_arrival_ns
        if self.state == "streaming" and silent_ns > SILENT_NS:
            self.state = "stalled"
            detail = f"{self.source}: no message for {silent_ns * 1e-9:.2f} s after message {self._number}"
            done = "nothing after the watermark counts as delivered; waiting for data"
            self.faults.note("no data", detail, done, self._last_arrival_ns)
        if self.state == "stalled" and silent_ns > OFFLINE_NS and clock_silent:
            self.state = "offline"
            detail = f"{self.source}: no data and no clock reply for {silent_ns * 1e-9:.1f} s: the bridge is gone"
            done = "waiting; the connection comes back by itself"
            self.faults.note("device offline", detail, done, self._last_arrival_ns)

    def watch_clock(self, now_ns: int, since_ns: int) -> None:
        """Notice that nobody tells the time, since `since_ns` at the latest."""
        silent = now_ns - max(self._replied_ns or 0, since_ns) > CLOCK_SILENT_NS
        if silent and not self._clock_silent and self.state == "streaming":
            detail = f"{self.source}: the bridge does not answer on its clock port (the data port plus one)"
            done = "clock pairs are made from arrivals, late by an unknown delay; a lost tail shows only as silence"
            self.faults.note("no clock reply", detail, done, self._replied_ns)
        self._clock_silent = silent

    def _watch_tail(self, now_ns: int) -> None:
        """Notice that a last message which the bridge states has not come: it is lost, or very late."""
        if self._stated is None or now_ns - self._stated[1] < TAIL_GRACE_NS:
            return
        lost = self._stated[0] - self._number - self._tail
        self._stated = None
        if lost > 0:
            detail = f"{lost} messages after number {self._number + self._tail}: the bridge says that it sent them"
            self._lose(lost, detail, now_ns)
            self._tail += lost

    # --- what goes out ---

    def _gathered(self, contents: Contents[M], now_ns: int | None) -> list[Document]:
        """Return what came; `now_ns` None ends the run."""
        pairs = self._pairs.take(self.run, now_ns)
        return [
            *contents.documents(self.run, ends=now_ns is None),
            *self._columns.take(self.run),
            *(pairs if self._clock_silent else []),
        ]

    def _continuity(self) -> Document:
        gaps, self._gaps = tuple(self._gaps), []
        return Continuity(
            source=self.source,
            run=self.run,
            state=self.state,
            sample_rate_hz=self._rate_hz,
            watermark_sample=self.watermark,
            messages=self._messages,
            lost_messages=self._lost,
            gaps=gaps,
        )

    def harvest(self, contents: Contents[M], now_ns: int) -> list[Document]:
        """Return what came since the last harvest: data, edges, clock pairs, faults, then how far it is complete."""
        documents = [*self._out, *self._gathered(contents, now_ns), *self.faults.due(now_ns), self._continuity()]
        self._out = []
        return documents

    def finish(self, contents: Contents[M], now_ns: int) -> list[Document]:
        """Return the last documents: what was lost and not closed by a message is a gap, and no fault stays untold."""
        if self._hole is not None and self._hole_lost and not self._joining:
            first, passed_ns = self._hole, now_ns - (self._last_arrival_ns or now_ns)
            end = max(self.watermark, self._through) + int((TAIL_S + passed_ns * 1e-9) * self._rate_hz)
            self._tell_gap(first, end)
            self._hole, self._hole_lost = None, 0
            detail = f"{self.source}: at the end no message had come behind those that were lost"
            self.faults.note("tail missing", detail, f"samples {first} to {end} are a gap", self._last_arrival_ns)
        documents = self.harvest(contents, now_ns)
        return [*documents[:-1], *self.faults.due(now_ns, everything=True), documents[-1]]
