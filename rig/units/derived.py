"""The journal of a derived session: documents as they were, spikes exchanged, responses made anew.

Called by `rig.units.importing`, which has read and joined the sorted spikes. Spikes are put before the Continuity that
says that they are complete, so that the live WindowFold closes each response on the same entry as it did live.
"""

from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rig.config.session import Config
from rig.encoding import encode, encode_entry
from rig.messages import (
    Continuity,
    Document,
    Entry,
    Envelope,
    Fault,
    Gap,
    Presented,
    Response,
    SessionStart,
    SessionStop,
    SpikeBlock,
    UnitList,
)
from rig.recording.journal import JournalWriter
from rig.responses.windows import WindowFold
from rig.units.joining import Stretch

I64 = npt.NDArray[np.int64]
RECORDER = "recorder"


def unit_name(cluster: int) -> str:
    """Return the name under which a cluster of the sorter is scored."""
    return f"phy{cluster}"


class SortedSpikes:
    """The sorted spikes of one run, handed out up to a sample, and the stretches that the sorted file did not hold."""

    def __init__(self, source: str, run: int, clusters: list[int], trains: dict[int, I64] | None) -> None:
        """Take the trains (spike,) of the clusters; None: this run was not sorted, and has no units."""
        self._source, self._run, self._names = source, run, tuple(unit_name(c) for c in clusters)
        self.sorted = trains is not None
        columns = [trains[c] for c in clusters] if trains is not None else []
        unit = np.repeat(np.arange(len(columns)), [len(c) for c in columns])
        sample = np.concatenate(columns) if columns else np.zeros(0, dtype=np.int64)
        order = np.argsort(sample, kind="stable")
        self._unit, self._sample, self._at = unit[order], sample[order], 0

    def units(self) -> UnitList:
        """Return the list of the run's units."""
        names = self._names if self.sorted else ()
        return UnitList(
            source=self._source,
            run=self._run,
            list_number=0,
            from_sample=0,
            units=names,
            scan_offset_s=np.zeros(len(names)),
            measure="spikes",
        )

    def before(self, sample: int, receipt_ns: int) -> SpikeBlock | None:
        """Return the spikes before a sample that were not handed out yet."""
        end = int(np.searchsorted(self._sample, sample))
        rows = slice(self._at, max(end, self._at))
        self._at = max(end, self._at)
        if rows.start == rows.stop:
            return None
        present, unit = np.unique(self._unit[rows], return_inverse=True)
        return SpikeBlock(
            source=self._source,
            run=self._run,
            units=tuple(self._names[k] for k in present.tolist()),
            unit=unit.astype(np.uint16),
            sample=self._sample[rows].astype(np.int64),
            arrival_host_ns=np.full(rows.stop - rows.start, receipt_ns, dtype=np.int64),
        )


def not_recorded(parts: list[Stretch], run: int, first: int, last: int) -> tuple[Gap, ...]:
    """Return the stretches of a run, within what the session saw of it, that the sorted file does not hold."""
    out, at = [], first
    for part in sorted((p for p in parts if p.run == run), key=lambda p: p.first_sample):
        if part.first_sample > at:
            out.append(Gap(first_sample=at, end_sample=min(part.first_sample, last), messages=0))
        at = max(at, part.first_sample + part.length)
    if at < last:
        out.append(Gap(first_sample=at, end_sample=last, messages=0))
    return tuple(g for g in out if g.end_sample > g.first_sample)


class Derived:
    """Writes the journal of the derived session: documents as they were, spikes exchanged, responses made anew."""

    def __init__(self, path: Path, start: SessionStart, config: Config, spikes: dict[int, SortedSpikes]) -> None:
        """Begin a new journal at `path`."""
        self._journal = JournalWriter(path, path.parent.name)
        self._fold = WindowFold(config)
        self._start, self._source, self._spikes = start, config.neural.name, spikes
        self._gaps: dict[int, tuple[Gap, ...]] = {}
        self._seq_of: dict[int, int] = {}  # entry of the recorded session: of this one
        self._response_seq: dict[int, int] = {}  # presentation: entry of its new response
        self._began: set[int] = set()
        self._run: int | None = None  # of the newest data
        self.shown_in: Counter[int] = Counter()  # run: presentations
        self.presentations = self.responses = self.usable = self.faults = 0

    def not_recorded(self, run: int, gaps: tuple[Gap, ...]) -> None:
        """Let a run say with its first data where the sorted file holds nothing."""
        self._gaps[run] = gaps

    def take(self, entry: Entry) -> None:
        """Take the next entry of the recorded session."""
        document, envelope = entry.document, entry.envelope
        if envelope.sender == RECORDER and envelope.cause_seq is not None:
            if isinstance(document, Response) and document.presentation in self._response_seq:
                self._seq_of[envelope.seq] = self._response_seq[document.presentation]
            return  # the fold says it anew
        if isinstance(document, SessionStart):
            document = self._start
        elif isinstance(document, SessionStop):
            document = document.model_copy(
                update={"responses": self.responses, "usable": self.usable, "faults": self.faults}
            )
        elif isinstance(document, Continuity) and document.source == self._source:
            document = self._continuity(document, envelope)
        elif isinstance(document, SpikeBlock | UnitList) and document.source == self._source:
            return
        cause = envelope.cause_seq
        if cause is not None:
            envelope = envelope.model_copy(update={"cause_seq": self._seq_of.get(cause)})
            if envelope.cause_seq is None:  # what caused it comes later here, or not at all
                envelope = envelope.model_copy(update={"cause_index": None})
        self._seq_of[entry.envelope.seq] = self._append(envelope, document)

    def _continuity(self, document: Continuity, envelope: Envelope) -> Continuity:
        """Put the run's list of units and the spikes before the watermark in front of a Continuity."""
        if document.watermark_sample > 0:
            self._run = document.run
        spikes = self._spikes.get(document.run)
        if spikes is None:
            return document
        if document.run not in self._began and document.watermark_sample > 0:
            self._began.add(document.run)
            self._append(envelope, spikes.units())
            document = document.model_copy(update={"gaps": (*document.gaps, *self._gaps.get(document.run, ()))})
        block = spikes.before(document.watermark_sample, envelope.receipt_host_ns)
        if block is not None:
            self._append(envelope, block)
        return document

    def _append(self, envelope: Envelope, document: Document) -> int:
        seq = self._journal.last_seq + 1
        envelope = envelope.model_copy(update={"seq": seq})
        self._journal.append(seq, encode_entry(envelope, encode(document)))
        if isinstance(document, Presented):
            self.presentations += 1
            if self._run is not None:
                self.shown_in[self._run] += 1
        elif isinstance(document, Fault):
            self.faults += 1
        elif isinstance(document, Response):
            self.responses += 1
            self.usable += document.usable
            self._response_seq[document.presentation] = seq
        for index, caused in enumerate(self._fold.apply(Entry(envelope, document))):
            own = {"sender": RECORDER, "process": "units-import", "cause_seq": seq, "cause_index": index}
            self._append(envelope.model_copy(update=own), caused)
        return seq

    def close(self) -> None:
        """Close the journal."""
        self._journal.close()
