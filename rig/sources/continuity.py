"""Which of an Open Ephys stream's samples are complete: message numbers, blocks, runs, gaps, watermark.

Pure: messages and their arrival times in, documents out; no socket, no clock. Called by `rig.sources.openephys`.

What it relies on (measured on a live GUI): every message of a run is numbered from 1 without holes; a block sends its
spikes, then its TTL edges, then one Data message per selected channel; a spike in the last 100 samples of a block
comes with the next block. So once a Data message of the block that starts at sample S is here, everything before
S - 100 has been delivered, or its message number is missing.

A `run` of the documents is a stretch in which a sample number means one moment: it ends when message numbers start
again (a new acquisition) and also when sample numbers jump back within an acquisition (a looping file), jump ahead of
the clock or stand still. What the end of a run may have lost is a gap: a lost tail shows no hole in the numbers.
"""

from typing import Literal

from rig.messages import (
    Continuity,
    Document,
    Gap,
)
from rig.sources.columns import ClockPairs, Columns, Faults
from rig.sources.openephys_parse import Data, Message, Spike, Ttl
from rig.sources.pace import Pace

State = Literal["connecting", "online", "streaming", "stalled", "offline"]

DEFERRAL = 100  # samples; spikes this near to a block's end come with the next one
LONGEST_BLOCK = 4096  # samples; assumed only while no Data message tells the length
SHORT_BLOCK = 200  # samples; the GUI's Spike Detector loses spikes in blocks this short
EVENTS_SLACK_NS = 150_000_000  # the longest block: an event's delay hangs on its place within it
EVENTS_ONLY_NS = 1_000_000_000  # a run without Data for this long has an empty channel mask
NOMINAL_HZ = 30_000.0  # assumed only while no Data message tells the rate
SILENT_BLOCKS = 10
SILENT_LEAST_NS = 250_000_000
SILENT_EVENTS_NS = 5_000_000_000  # without Data messages silence may just mean no spikes
OFFLINE_NS = 6_000_000_000  # three heartbeats


class Ledger:
    """Keeps account of one stream; `take` each message, `harvest` the documents about 40 times a second."""

    def __init__(self, source: str, first_run: int, own_threshold: bool = False) -> None:
        """Start before the first message; runs are numbered from `first_run`, which must be new to the session.

        `own_threshold`: spikes come from the voltage, so that short blocks cost none unless the GUI detects some too.
        """
        self.source = source
        self.run = first_run
        self.state: State = "connecting"
        self.faults = Faults()
        self.total = 0  # messages in all runs
        self.last_arrival_ns: int | None = None
        self._columns = Columns(source)
        self._out: list[Document] = []
        self._number: int | None = None
        self._nodes: dict[str, int] = {}
        self._names: dict[tuple[str, int, int], str] = {}  # (electrode, sorted id, node): unit
        self._detects = not own_threshold
        self._rate_hz = 0.0
        self._reset(joined=True)

    def _reset(self, joined: bool) -> None:
        """Forget what belongs to one run. `joined`: events before its first block may exist that were not seen."""
        self.messages = 0
        self.lost = 0
        self.watermark = 0
        self._first_arrival_ns: int | None = None
        self._block: tuple[int, int] | None = None  # first sample, end
        self._channel = -1  # last channel seen in the newest block
        self._block_arrival_ns: int | None = None
        self._events_only = False
        self._gaps: list[tuple[int, int, int]] = []  # first sample, end, messages lost
        self._gap_end = 0  # end of the last gap told: gaps do not overlap
        self._hole: int | None = 0  # first sample of a gap whose end is not known yet
        self._hole_lost = 0
        self._joined = joined
        self._pairs = ClockPairs(self.source)
        self._pace = Pace()

    # --- what arrives ---

    def take(self, message: Message, arrival_ns: int) -> None:
        """Account for one message received at host time `arrival_ns`."""
        number = message.message_num
        if self._number is None or number != self._number + 1:
            self._out_of_step(number, arrival_ns)
        self._number = number
        if isinstance(message, Data):
            self._data(message, arrival_ns)
        else:
            self._event(message, arrival_ns)
        self.messages += 1
        self.total += 1
        self.last_arrival_ns = arrival_ns
        self.state = "streaming"

    def _out_of_step(self, number: int, arrival_ns: int) -> None:
        """Take a message whose number does not follow: the first of all, of a new acquisition, or behind a loss."""
        if self._number is None:
            self._joined = number > 1
        elif number <= self._number:
            detail = f"{self.source}: message numbers start again ({number} after {self._number}): a new acquisition"
            self._new_run("acquisition restarted", detail, arrival_ns, joined=False)
            if number > 1:
                self._lose(number - 1, f"the first {number - 1} messages of a new acquisition")
        else:
            lost = number - self._number - 1
            self._lose(lost, f"{lost} messages between numbers {self._number} and {number}")

    def _lose(self, lost: int, detail: str) -> None:
        self.lost += lost
        self._hole_lost += lost
        if self._hole is None:
            self._hole = self.watermark
        # That of a block whose rest may be lost would be too early for the next one.
        self._block_arrival_ns = None
        done = "the samples around them are marked as a gap; responses that need them are scored missing"
        self.faults.note("messages lost", f"{self.source}: {detail}", done, self.last_arrival_ns)

    def _new_run(self, what: str, detail: str, arrival_ns: int, joined: bool) -> None:
        """End the run; whatever it may still have sent up to `arrival_ns` is a gap."""
        end = max(self._due(arrival_ns), self._hole or 0)
        first = self.watermark
        if self._hole is not None:
            first = min(first, self._hole)
        self._tell_gap(first, end, self._hole_lost)
        done = f"a new run begins ({self.run + 1}); samples {first} to {end} of the old one count as a gap"
        self.faults.note(what, detail, done, self.last_arrival_ns)
        self._out += [*self._columns.take(self.run), *self._pairs.take(self.run, None), self._continuity()]
        self.run += 1
        self._reset(joined)

    def _due(self, now_ns: int) -> int:
        """Return the sample that the clock says the device has reached; without a block the watermark."""
        if self._block is None or self.last_arrival_ns is None:
            return self.watermark
        return self._block[1] + max(0, int((now_ns - self.last_arrival_ns) * 1e-9 * self._rate_hz))

    def _jumped_back(self, sample: int, arrival_ns: int) -> None:
        at = self._block[1] if self._block else self.watermark
        detail = f"{self.source}: sample numbers jumped back from about {at} to {sample} within one acquisition"
        self._new_run("samples jumped back", detail, arrival_ns, joined=True)

    def _in_pace(self, sample: int, arrival_ns: int, slack_ns: int = 0) -> bool:
        """Whether a sample came when it was due; begins a new run where sample numbers have left the clock."""
        verdict = self._pace.judge(sample, arrival_ns, self._rate_hz or NOMINAL_HZ, slack_ns)
        if verdict == "ahead":
            detail = f"{self.source}: sample numbers jumped ahead of the clock, to {sample}"
            self._new_run("samples jumped ahead", detail, arrival_ns, joined=True)
        elif verdict == "stood still":
            detail = f"{self.source}: the sample counter stood still: sample {sample} came long after it was due"
            self._new_run("samples stood still", detail, arrival_ns, joined=True)
        return verdict == "steady"

    def _data(self, data: Data, arrival_ns: int) -> None:
        start, end = data.sample_num, data.sample_num + data.num_samples
        if self._block is not None and start == self._block[0] and data.channel > self._channel:
            self._channel = data.channel
            if self._hole is not None:
                self._close_hole(end)
            return
        if self._block is not None and start < self._block[1]:
            self._jumped_back(start, arrival_ns)
        self._rate_hz = data.sample_rate_hz
        steady = self._in_pace(end, self._block_arrival_ns or arrival_ns)
        block = self._block  # none where one of these began a new run
        if block is not None and start > block[1] and self._hole is None:
            self._samples_missing(block[1], start, end)
        self._block, self._channel = (start, end), data.channel
        self._events_only = False
        # A run seen from its first message on has nothing before its first block.
        whole = block is None and not self._joined and not self._hole_lost
        self._close_hole(start if whole else end)
        if data.num_samples <= SHORT_BLOCK and self._detects:
            self._short_block(start, end, arrival_ns)
        if steady:  # a late one may be the first after a stand-still: its samples are not vouched for yet
            self.watermark = max(self.watermark, start - DEFERRAL)
        self._pairs.offer(end, self._block_arrival_ns or arrival_ns, self._rate_hz)
        self._block_arrival_ns = None

    def _short_block(self, start: int, end: int, arrival_ns: int) -> None:
        """Add a gap: in blocks this short the GUI's Spike Detector loses what lies in the last samples."""
        cure = "raise the GUI's audio buffer to at least 320 frames"
        detail = f"{self.source}: blocks of {end - start} samples make the Spike Detector lose spikes; {cure}"
        done = f"the last {DEFERRAL} samples of each such block are a gap; responses that need them are scored missing"
        self.faults.once("short blocks", detail, done, arrival_ns)
        self._tell_gap(max(start, end - DEFERRAL), end, 0)

    def _samples_missing(self, end: int, start: int, block_end: int) -> None:
        """Take note that samples from `end` to `start` are not there.

        The gap lasts to the end of the block behind them: if acquisition was started again and the first message seen
        of it has by chance the next number, then spikes of that block are lost as well.
        """
        detail = f"{self.source}: the device skipped {start - end} samples before sample {start}, no message is missing"
        self.faults.note("samples missing", detail, "marked as a gap", self.last_arrival_ns)
        self._tell_gap(end - DEFERRAL, block_end, 0)

    def _event(self, event: Spike | Ttl, arrival_ns: int) -> None:
        sample = event.sample_num
        if sample < self.watermark - (0 if self._events_only else LONGEST_BLOCK):
            self._jumped_back(sample, arrival_ns)
        elif sample < self.watermark:
            detail = f"{self.source}: an event at sample {sample} came after sample {self.watermark} was complete"
            self.faults.note("late event", detail, "logged; a response already closed does not count it", arrival_ns)
        if self._first_arrival_ns is None:
            self._first_arrival_ns = arrival_ns
        if isinstance(event, Spike):
            self._detects = True
            who = (event.electrode, event.sorted_id, event.source_node)
            self._columns.spike(self._names.get(who) or self._name(event), sample, arrival_ns)
        else:
            self._columns.edge(event.line, event.state, sample, arrival_ns)
        if self._block_arrival_ns is None:
            self._block_arrival_ns = arrival_ns
        if self._block is None and arrival_ns - self._first_arrival_ns > EVENTS_ONLY_NS:
            self._without_data(event, arrival_ns)

    def _name(self, spike: Spike) -> str:
        """Return a unit's name; electrodes of one name in two processors are two units."""
        node = self._nodes.setdefault(spike.electrode, spike.source_node)
        unit = spike.unit
        if node != spike.source_node:
            unit = f"{spike.unit}@{spike.source_node}"
            detail = f"{self.source}: nodes {node} and {spike.source_node} both have an electrode {spike.electrode!r}"
            done = f"the units of node {spike.source_node} are called {unit!r} and so on; give the electrodes own names"
            self.faults.once("ambiguous unit", detail, done)
        self._names[spike.electrode, spike.sorted_id, spike.source_node] = unit
        return unit

    def _without_data(self, event: Spike | Ttl, arrival_ns: int) -> None:
        """Advance by events alone: the length of blocks is unknown, so assume the longest."""
        self._events_only = True
        detail = f"{self.source}: the plugin sends no continuous channel, so silence and missing data look the same"
        cure = "select one channel in the ZMQ Interface's channel mask"
        done = f"blocks of {LONGEST_BLOCK} samples at {NOMINAL_HZ:g} Hz are assumed"
        self.faults.once("no data channel", f"{detail}; {cure}", done)
        margin = LONGEST_BLOCK + DEFERRAL
        if not self._in_pace(event.sample_num, arrival_ns, EVENTS_SLACK_NS):
            return
        self._close_hole(event.sample_num + margin)
        self.watermark = max(self.watermark, event.sample_num - margin)
        # The block ends after this event: at least 100 samples later for a spike, at least one for an edge.
        after = DEFERRAL if isinstance(event, Spike) else 1
        self._pairs.offer(event.sample_num + after, arrival_ns, self._rate_hz or NOMINAL_HZ)

    # --- gaps ---

    def _close_hole(self, end: int) -> None:
        if self._hole is not None:
            self._tell_gap(self._hole, end, self._hole_lost)
            self._hole, self._hole_lost = None, 0

    def _tell_gap(self, first: int, end: int, lost: int) -> None:
        first = max(first, self._gap_end)
        end = max(end, first)
        if self._gaps and self._gaps[-1][1:] == (first, 0) and not lost:
            self._gaps[-1] = (self._gaps[-1][0], end, 0)  # it goes on
        elif end > first or lost:
            self._gaps.append((first, end, lost))
        self._gap_end = end

    def detected(self, unit: str, sample: int, arrival_host_ns: int) -> None:
        """Add a spike that was found in the voltage."""
        self._columns.spike(unit, sample, arrival_host_ns)

    def unusable(self, first: int, end: int) -> None:
        """Add a gap: for samples `first` to `end` nothing can be said. It may overlap one that was told already."""
        if self._gaps and self._gaps[-1][1:] == (first, 0):
            self._gaps[-1] = (self._gaps[-1][0], end, 0)
        else:
            self._gaps.append((first, end, 0))

    # --- what goes out ---

    def _continuity(self) -> Document:
        gaps, self._gaps = self._gaps, []
        return Continuity(
            source=self.source,
            run=self.run,
            state=self.state,
            sample_rate_hz=self._rate_hz or (NOMINAL_HZ if self._events_only else 0.0),
            watermark_sample=self.watermark,
            messages=self.messages,
            lost_messages=self.lost,
            gaps=tuple(Gap(first_sample=first, end_sample=end, messages=lost) for first, end, lost in gaps),
        )

    def finish(self, now_ns: int) -> list[Document]:
        """Return the last documents: the clock says what was due and did not come, and no fault stays untold."""
        if self.total and (self.state != "streaming" or self._hole is not None):
            first, end = self.watermark if self._hole is None else min(self._hole, self.watermark), self._due(now_ns)
            self._tell_gap(first, end, self._hole_lost)
            due = f"samples to {end} were due"
            detail = f"{self.source}: at the end nothing had come since message {self._number}, {due}"
            self.faults.note("tail missing", detail, f"samples {first} to {end} are a gap", self.last_arrival_ns)
        documents = self.harvest(now_ns)
        return [*documents[:-1], *self.faults.due(now_ns, everything=True), documents[-1]]

    def harvest(self, now_ns: int) -> list[Document]:
        """Return what came since the last harvest: spikes, edges, clock pair, faults, then how far it is complete."""
        documents = [*self._out, *self._columns.take(self.run), *self._pairs.take(self.run, now_ns)]
        self._out = []
        return [*documents, *self.faults.due(now_ns), self._continuity()]

    # --- silence ---

    def silent_after_ns(self) -> int:
        """Return the silence after which the stream counts as stalled, ns."""
        if self._block is None:
            return SILENT_EVENTS_NS
        block_ns = (self._block[1] - self._block[0]) / self._rate_hz * 1e9
        return max(int(SILENT_BLOCKS * block_ns), SILENT_LEAST_NS)

    def watch(self, now_ns: int, heartbeat_host_ns: int | None, stopped: bool = False) -> None:
        """Notice silence. `heartbeat_host_ns` is when the GUI last answered anything, None if it has not yet.

        A lost tail of messages shows no hole in the numbers: only the clock tells that something is due. `stopped`: the
        GUI itself says that acquisition was stopped.
        """
        if self.last_arrival_ns is None:
            self.state = "connecting" if heartbeat_host_ns is None else "online"
            return
        silent_ns = now_ns - self.last_arrival_ns
        if self.state == "streaming" and silent_ns > self.silent_after_ns():
            self.state = "stalled"
            detail = f"{self.source}: no message for {silent_ns * 1e-9:.2f} s after message {self._number}"
            done = "nothing after the watermark counts as delivered; waiting for data"
            self.faults.note("no data", detail, done, self.last_arrival_ns)
        beating = heartbeat_host_ns is not None and now_ns - heartbeat_host_ns <= OFFLINE_NS
        if self.state == "stalled" and stopped:
            self.state = "online"  # not a fault of its own: whoever asked the GUI has told it
        elif self.state in ("stalled", "online") and silent_ns > OFFLINE_NS and not beating:
            self.state = "offline"
            detail = f"{self.source}: no data and no heartbeats for {silent_ns * 1e-9:.1f} s, the GUI is gone or frozen"
            done = "waiting; the connection comes back by itself"
            self.faults.note("device offline", detail, done, self.last_arrival_ns)
        elif self.state == "offline" and beating:
            self.state = "online"
