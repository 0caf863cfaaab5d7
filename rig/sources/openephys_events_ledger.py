"""How far the events of an Event Broadcaster are complete: watermark, runs, gaps, by what their order and time tell.

Pure: events and host times in, documents out. Called by `rig.sources.openephys_events`.

The plugin numbers nothing and sends nothing while no neuron fires, so losses cannot be counted. What is known:

* The GUI handles one block after the other and one socket keeps the order. An event at sample S belongs to a block
  that began after S - longest block - 100 (a spike of a block's last 100 samples comes with the next block), so all
  blocks before have been sent. The longest block is 6144 frames of a 44.1 kHz audio device, 0.14 s: nothing longer can
  be chosen in the GUI.
* While events keep coming, also time vouches: the earliest arrivals of the last 10 s say when the device takes a
  sample; what was older than the longest block, the 100 samples and 0.05 s for a busy GUI when the last event arrived
  has come. An event that comes later than that is a fault and widens this margin by as much.
* From the last event on time vouches for nothing: a frozen GUI and a pulled cable look like silent neurons.
* A connection that broke has lost what was sent meanwhile: a gap.
"""

from collections import deque
from typing import Literal

from rig.messages import (
    Continuity,
    Document,
    Gap,
)
from rig.sources.columns import ClockPairs, Columns, Faults
from rig.sources.openephys_events_parse import Edge, Event, Spike

State = Literal["connecting", "online", "streaming", "stalled", "offline"]

DEFERRAL = 100  # samples; spikes this near to a block's end come with the next one
LONGEST_BLOCK_S = 0.14
SLACK_NS = 50_000_000
SILENT_NS = 1_000_000_000
EARLIEST_NS = 10_000_000_000  # over this long the earliest arrival counts
STEP_NS = 1_000_000_000
AHEAD_NS = 100_000_000  # an event that seems to come this much before its time: the device's clock was set


class EventLedger:
    """Keeps account of one stream's events; `take` each, `harvest` the documents about 40 times a second."""

    def __init__(self, source: str, first_run: int) -> None:
        """Start before the first event; runs are numbered from `first_run`, which must be new to the session."""
        self.source, self.run = source, first_run
        self.state: State = "connecting"
        self.faults = Faults()
        self.total = 0  # events in all runs
        self.last_arrival_ns: int | None = None
        self._columns = Columns(source)
        self._pairs = ClockPairs(source)
        self._out: list[Document] = []
        self._nodes: dict[str, int] = {}
        self._rate_hz = 0.0
        self._slack_ns = SLACK_NS
        self._reset()

    def _reset(self) -> None:
        self.messages = 0
        self.watermark = 0
        self._highest = 0
        self._behind_since_ns: int | None = None  # since when no event was in time
        self._hole: int | None = 0  # first sample of a gap whose end is not known yet
        self._gaps: list[Gap] = []
        self._earliest: deque[tuple[int, float]] = deque()  # (host ns of its second, least arrival - sample time)
        self._pairs = ClockPairs(self.source)

    @property
    def margin_samples(self) -> int:
        """Samples before an event that may still miss events of its own block."""
        return int(LONGEST_BLOCK_S * self._rate_hz) + DEFERRAL

    # --- what arrives ---

    def take(self, event: Event, arrival_ns: int) -> None:
        """Account for one event received at host time `arrival_ns`."""
        if self.messages:
            self._same_run(event, arrival_ns)
        self._rate_hz = event.rate_hz
        margin = self.margin_samples
        if event.sample < self.watermark:
            self._late(event, arrival_ns)
        if isinstance(event, Spike):
            self._spike(event, arrival_ns)
        else:
            self._columns.edge(event.line, event.state, event.sample, arrival_ns)
        if self._hole is not None and event.sample > self._highest:
            end = event.sample + margin
            self._gaps.append(Gap(first_sample=min(self._hole, end), end_sample=end, messages=0))
            self._hole = None
        self._highest = max(self._highest, event.sample)
        self.watermark = max(self.watermark, event.sample - margin)
        self._keep_earliest(event, arrival_ns)
        # The block ends after this event: 100 samples later at least for a spike, one for an edge.
        after = 1 if isinstance(event, Edge) else DEFERRAL
        self._pairs.offer(event.sample + after, arrival_ns, self._rate_hz)
        self.messages += 1
        self.total += 1
        self.last_arrival_ns = arrival_ns
        self.state = "streaming"

    def _spike(self, spike: Spike, arrival_ns: int) -> None:
        node = self._nodes.setdefault(spike.electrode, spike.source_node)
        if node != spike.source_node:
            detail = f"{self.source}: nodes {node} and {spike.source_node} both have an electrode {spike.electrode!r}"
            done = "their spikes are counted as one unit; give them different names"
            self.faults.once("ambiguous unit", detail, done)
        self._columns.spike(spike.unit, spike.sample, arrival_ns)

    def _delay_ns(self, event: Event, arrival_ns: int) -> float:
        return arrival_ns - event.sample * (1e9 / event.rate_hz)

    def _keep_earliest(self, event: Event, arrival_ns: int) -> None:
        delay = self._delay_ns(event, arrival_ns)
        if not self._earliest or arrival_ns > self._earliest[-1][0] + STEP_NS:
            self._earliest.append((arrival_ns, delay))
        elif delay < self._earliest[-1][1]:
            self._earliest[-1] = (self._earliest[-1][0], delay)
        while self._earliest[0][0] < arrival_ns - EARLIEST_NS:
            self._earliest.popleft()

    def _same_run(self, event: Event, arrival_ns: int) -> None:
        """Begin a new run where a sample number does not mean the same moment any more."""
        excess = self._delay_ns(event, arrival_ns) - min(delay for _, delay in self._earliest)
        margin_ns = self.margin_samples * (1e9 / self._rate_hz) + SLACK_NS
        if event.rate_hz != self._rate_hz:
            why = f"the sample rate changed from {self._rate_hz:g} to {event.rate_hz:g} Hz"
        elif event.sample < self._highest - 2 * self.margin_samples:
            why = f"sample numbers jumped back from about {self._highest} to {event.sample}"
        elif excess < -AHEAD_NS:
            why = f"sample numbers jumped ahead by {-excess * 1e-9:.2f} s"
        elif self._all_behind(excess > margin_ns, arrival_ns):
            why = f"sample numbers go on {excess * 1e-9:.2f} s behind: acquisition was started again"
        else:
            return
        self.next_run(why, arrival_ns)

    def _all_behind(self, behind: bool, arrival_ns: int) -> bool:
        """Whether events come behind their time after a silence, or all of them have for a second."""
        if not behind:
            self._behind_since_ns = None
            return False
        if self._behind_since_ns is None:
            self._behind_since_ns = arrival_ns
        return self.state != "streaming" or arrival_ns > self._behind_since_ns + SILENT_NS

    def next_run(self, why: str, host_ns: int) -> None:
        """Begin a new run; what is before its first event may be incomplete."""
        self.faults.note("new acquisition", f"{self.source}: {why}", f"a new run begins ({self.run + 1})", host_ns)
        self._out += [*self._columns.take(self.run), *self._pairs.take(self.run, None), self._continuity()]
        self.run += 1
        self._reset()

    def _late(self, event: Event, arrival_ns: int) -> None:
        late_ns = int((self.watermark - event.sample) * (1e9 / self._rate_hz))
        self._slack_ns += late_ns
        detail = f"{self.source}: an event at sample {event.sample} came after sample {self.watermark} was complete"
        allowed = f"from now {self._slack_ns * 1e-9:.3f} s are allowed"
        done = f"logged; a response already closed does not count it; {allowed}"
        self.faults.note("late event", detail, done, arrival_ns)

    def broken(self, host_ns: int) -> None:
        """Take note that the connection broke: what was sent until the next event is lost."""
        if self._hole is None:
            self._hole = self.watermark
        detail = f"{self.source}: the connection to the Event Broadcaster broke"
        done = "from the watermark to the first event after it everything counts as missing; it comes back by itself"
        self.faults.note("connection broken", detail, done, host_ns)

    # --- silence and time ---

    def watch(self, now_ns: int, connected: bool, mode: str | None) -> None:
        """Advance by time, notice silence. `mode`: what the GUI says, None if it is not known."""
        if self.last_arrival_ns is None:
            self.state = "online" if connected else "connecting"
            return
        silent_ns = now_ns - self.last_arrival_ns
        if silent_ns <= SILENT_NS:
            if connected and mode != "IDLE" and self._hole is None:
                self._advance(self.last_arrival_ns)
            return
        if self.state == "streaming":
            self.state = "stalled"
            if mode != "IDLE":  # else the user stopped it, and the log says so
                detail = f"{self.source}: no event for {silent_ns * 1e-9:.2f} s: silent neurons or a frozen GUI"
                done = "nothing after the watermark counts as delivered; waiting for events"
                self.faults.note("no data", detail, done, self.last_arrival_ns)
        if self.state == "stalled" and not connected:
            self.state = "offline"
        elif self.state == "offline" and connected:
            self.state = "stalled"

    def _advance(self, arrival_ns: int) -> None:
        """Vouch by the time of the last arrival; only with a whole window, or the earliest are not early enough."""
        if not self._earliest or arrival_ns - self._earliest[0][0] < STEP_NS:
            return
        taken = (arrival_ns - min(delay for _, delay in self._earliest)) * self._rate_hz * 1e-9
        behind = self.margin_samples + self._slack_ns * self._rate_hz * 1e-9
        self.watermark = max(self.watermark, int(taken - behind))

    # --- what goes out ---

    def _continuity(self) -> Document:
        gaps, self._gaps = tuple(self._gaps), []
        return Continuity(
            source=self.source,
            run=self.run,
            state=self.state,
            sample_rate_hz=self._rate_hz,
            watermark_sample=self.watermark,
            messages=self.messages,
            lost_messages=0,  # none is known to be lost; how many were cannot be known
            gaps=gaps,
        )

    def harvest(self, now_ns: int) -> list[Document]:
        """Return what came since the last harvest: spikes, edges, clock pair, faults, then how far it is complete."""
        documents = [*self._out, *self._columns.take(self.run), *self._pairs.take(self.run, now_ns)]
        self._out = []
        return [*documents, *self.faults.due(now_ns), self._continuity()]

    def finish(self, now_ns: int) -> list[Document]:
        """Return the last documents: no fault stays untold."""
        documents = self.harvest(now_ns)
        return [*documents[:-1], *self.faults.due(now_ns, everything=True), documents[-1]]
