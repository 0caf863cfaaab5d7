"""Scrubbing: what the session was at any moment of its log, rebuilt by the live code from the entries up to there.

Called by `stimloop replay SESSION --until WHEN`. A moment is named by journal entry (1234), by presentation (p57: when
it had been shown) or by time since the start (12:30, 1:02:30, 90s).
"""

import hashlib
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rig.clock import Clock
from rig.display.trial import Planner, TrialPlan
from rig.encoding import BadDocument, encode, encode_entry
from rig.messages import (
    Entry,
    Fault,
    ModelUpdated,
    Origin,
    Pause,
    PhaseEnded,
    Presented,
    ProcessStarted,
    Proposal,
    Response,
    SessionStart,
    StopRequested,
    TrialIntent,
)
from rig.recording.journal import JournalWriter
from rig.replay.records import Log, Record, ReplayError, config_of, session_start
from rig.replay.verdict import Verdict
from rig.replay.verify import Beside, Fold, is_derived

LOOK_AHEAD_NS = 30_000_000_000  # after the moment, for the record of the image that was on the screen
LAST_FAULTS = 3
_TIME = re.compile(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d+)?)(s?)")


@dataclass(frozen=True)
class When:
    """A moment of a session."""

    kind: Literal["entry", "presentation", "time"]
    number: int
    """Sequence number, presentation, or ns since the start."""


def parse_when(text: str) -> When:
    """Read a moment as the user writes it; raises ReplayError."""
    text = text.strip()
    if re.fullmatch(r"p\d+", text):
        return When("presentation", int(text[1:]))
    if re.fullmatch(r"\d+", text):
        return When("entry", int(text))
    found = _TIME.fullmatch(text)
    if found is None:
        raise ReplayError(
            f"--until {text!r} is no moment; give a journal entry (1234), a presentation (p57), or a time since the "
            "start (12:30, 1:02:30 or 90s)"
        )
    hours, minutes, seconds, _ = found.groups()
    return When("time", int((int(hours or 0) * 3600 + int(minutes or 0) * 60 + float(seconds)) * 1e9))


@dataclass
class Moment:
    """What was known, shown and planned at a moment."""

    start: SessionStart
    seq: int = 0
    elapsed_ns: int = 0
    """Since the start of the session; across reboots by UTC."""
    host_ns: int = 0
    phase: int | None = None
    agent: str = ""
    generation: int | None = None
    proposal: int | None = None
    ended: str = ""
    """Why nothing more was proposed or shown; "" while the session ran."""
    paused: str = ""
    presentations: int = 0
    usable: int = 0
    unusable: int = 0
    reports: dict[int, dict[str, float]] = field(default_factory=dict)
    """Newest report of the agent of each phase."""
    model_version: str = ""
    faults: Counter[str] = field(default_factory=Counter)
    last_faults: deque[Fault] = field(default_factory=lambda: deque(maxlen=LAST_FAULTS))
    last_shown: Presented | None = None
    on_screen: Presented | None = None
    """The image that was on the screen; None: the background was."""
    planned: TrialPlan | None = None
    """What the rig was to show next; None: nothing was planned."""
    waiting: int = 0
    """Planned presentations that were still to be shown."""
    remade: Verdict = field(default_factory=Verdict)
    """Decisions of the model up to here, made again."""


class MomentFold:
    """Follows the log up to a moment."""

    def __init__(self, start: SessionStart) -> None:
        """Begin before the first entry."""
        config = config_of(start)
        rhythm = config.presentation
        self.moment = Moment(start)
        self._planner = Planner(rhythm.images_per_trial, rhythm.repeats_of_unusable)
        self._start_utc_ns = start.start_utc_ns
        self._ahead_ns = start.start_utc_ns - start.start_host_ns  # UTC less host clock, of the boot in which it ran

    def elapsed_ns(self, receipt_host_ns: int) -> int:
        """Return the time since the start at which an entry was received."""
        return receipt_host_ns + self._ahead_ns - self._start_utc_ns

    def take(self, entry: Entry) -> None:
        """Take the next entry."""
        moment, document = self.moment, entry.document
        moment.seq, moment.host_ns = entry.envelope.seq, entry.envelope.receipt_host_ns
        if isinstance(document, ProcessStarted) and entry.envelope.sender == "recorder":
            self._ahead_ns = document.start_utc_ns - document.start_host_ns
        moment.elapsed_ns = self.elapsed_ns(entry.envelope.receipt_host_ns)
        if isinstance(document, Proposal):
            moment.phase, moment.agent, moment.generation = document.phase, document.agent, document.generation
            moment.proposal = document.proposal
            self._planner.add(document)
        elif isinstance(document, TrialIntent):
            self._planner.intended(document)
        elif isinstance(document, Presented):
            moment.presentations, moment.last_shown = moment.presentations + 1, document
            self._planner.presented(document)
        elif isinstance(document, Response):
            moment.usable += document.usable
            moment.unusable += not document.usable
            self._planner.answered(document)
        else:
            self._others(document)

    def _others(self, document: object) -> None:
        moment = self.moment
        if isinstance(document, ModelUpdated):
            moment.reports[document.phase], moment.model_version = document.report, document.model_version
        elif isinstance(document, Fault):
            moment.faults[document.what] += 1
            moment.last_faults.append(document)
        elif isinstance(document, Pause):
            moment.paused = document.reason if document.paused else ""
        elif isinstance(document, PhaseEnded) and document.last:
            moment.ended = f"phase {document.phase + 1} ended: {document.reason}"
        elif isinstance(document, StopRequested):
            moment.ended = document.reason or "stopped"

    def finish(self) -> Moment:
        """Return the moment, with what was planned next."""
        self.moment.waiting = self._planner.waiting
        self.moment.planned = self._planner.next_trial()
        return self.moment


KINDS = frozenset(
    {
        "proposal", "trial_intent", "presented", "response", "model_updated", "fault", "pause", "phase_ended",
        "stop_requested", "process_started",
    }
)  # fmt: skip


def rebuild(path: Path, when: When, make_model: Callable[[SessionStart], Fold], wants: frozenset[str]) -> Moment:
    """Return what the session at `path` (its journal) was at a moment.

    The model's fold runs up to there as well, so that its decisions are made again and compared. Raises ReplayError
    where the session has no such moment.
    """
    start = session_start(path)
    fold, verdict, log = MomentFold(start), Verdict(), Log(path)
    model = None if is_derived(start) else Beside("model", make_model(start), wants, verdict)
    stream = iter(log)
    reached = False
    for record in stream:
        try:
            if when.kind == "time" and fold.elapsed_ns(record.envelope.receipt_host_ns) > when.number:
                reached = True
                _look_ahead([record], fold.moment)
                break
            _take(record, fold, model)
        except BadDocument:
            continue
        reached = _is_at(record, when)
        if reached:
            break
    if not reached:
        raise ReplayError(_never(when, fold.moment))
    moment = fold.moment
    if when.kind == "time":
        moment.elapsed_ns, moment.host_ns = when.number, moment.host_ns + when.number - moment.elapsed_ns
    if moment.on_screen is None:
        _look_ahead(stream, moment)
    if model is not None:
        model.finish(False)
    moment.remade = verdict
    return fold.finish()


def _take(record: Record, fold: MomentFold, model: Beside | None) -> None:
    if model is not None:
        model.take(record)
    if record.kind in KINDS:
        fold.take(record.entry)
    else:
        moment, envelope = fold.moment, record.envelope
        moment.seq, moment.host_ns = record.seq, envelope.receipt_host_ns
        moment.elapsed_ns = fold.elapsed_ns(envelope.receipt_host_ns)


def _is_at(record: Record, when: When) -> bool:
    if when.kind == "entry":
        return record.seq >= when.number
    if when.kind == "presentation" and record.kind == "presented":
        document = record.entry.document
        return isinstance(document, Presented) and document.presentation == when.number
    return False


def _never(when: When, moment: Moment) -> str:
    seconds = moment.elapsed_ns * 1e-9
    has = f"the log has {moment.seq} entries, {moment.presentations} presentations and {clock_words(moment.elapsed_ns)}"
    wanted = {
        "entry": f"no journal entry {when.number}",
        "presentation": f"no presentation {when.number}",
        "time": f"no moment {when.number * 1e-9:.1f} s after its start",
    }[when.kind]
    return f"this session has {wanted}: {has} ({seconds:.1f} s)"


def _look_ahead(records: Iterable[Record], moment: Moment) -> None:
    """Find the image that was on the screen: its record came when it was over."""
    for record in records:
        try:
            if record.envelope.receipt_host_ns > moment.host_ns + LOOK_AHEAD_NS:
                return
            if record.kind != "presented":
                continue
            shown = record.entry.document
        except BadDocument:
            continue
        if isinstance(shown, Presented) and shown.offset_flip_host_ns > moment.host_ns:
            if shown.onset_flip_host_ns <= moment.host_ns:
                moment.on_screen = shown
            return


def clock_words(elapsed_ns: int) -> str:
    """Return a time since the start as people write it."""
    seconds = max(elapsed_ns, 0) // 1_000_000_000
    hours, rest = divmod(seconds, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60:02d}:{rest % 60:02d}"


def words(moment: Moment) -> list[str]:
    """Return what is to be said of a moment, one line each."""
    lines = [f"session {moment.start.session} at {clock_words(moment.elapsed_ns)} since its start, entry {moment.seq}"]
    if moment.phase is None:
        lines.append("nothing was proposed yet")
    else:
        phases = len(moment.start.config.get("phases", ()))
        generation = "-" if moment.generation is None else moment.generation + 1
        lines.append(
            f"phase {moment.phase + 1} of {phases} ({moment.agent}), generation {generation}, "
            f"proposal {moment.proposal}"
        )
    responses = f"{moment.usable} usable, {moment.unusable} not"
    lines.append(f"shown {moment.presentations} presentations; responses: {responses}")
    for phase, report in sorted(moment.reports.items()):
        figures = ", ".join(f"{name} {value:.3g}" for name, value in report.items())
        lines.append(f"report of phase {phase + 1}: {figures or 'nothing yet'}")
        if "best" in report:
            lines.append(f"best so far in phase {phase + 1}: {report['best']:.3g} (mean over its re-shows)")
    if moment.on_screen is not None:
        lines.append(f"on the screen: {_image(moment.on_screen)}")
    else:
        last = "" if moment.last_shown is None else f"; the last image was {_image(moment.last_shown)}"
        lines.append(f"on the screen: background{last}")
    lines += [*_planned(moment), *_faults(moment)]
    if moment.paused:
        lines.append(f"paused: {moment.paused}")
    if moment.ended:
        lines.append(f"ended: {moment.ended}")
    made = moment.remade
    if made.identical or not made.agrees:
        agree = "all as journalled" if made.agrees else f"{len(made.different) + len(made.missing)} differ"
        version = f", model version {moment.model_version[:12]}" if moment.model_version else ""
        lines.append(f"model rebuilt: {made.decisions} decisions made again, {agree}{version}")
    return lines


def _image(shown: Presented) -> str:
    slot = "fallback" if shown.slot < 0 else f"slot {shown.slot}"
    where = f"presentation {shown.presentation}, trial {shown.trial}, proposal {shown.proposal}, {slot}"
    return f"{shown.stimulus_id} as {shown.role} ({where})"


def _planned(moment: Moment) -> list[str]:
    if moment.planned is None:
        return ["next planned: nothing"]
    on = moment.on_screen
    now = None if on is None else (on.proposal, on.slot)
    images = [one for one in moment.planned.images if (one.proposal.proposal, one.slot) != now]
    names = ", ".join(one.stimulus.id for one in images)
    return [f"next planned ({len(images)} of {moment.waiting} still to be shown): {names}"]


def _faults(moment: Moment) -> list[str]:
    total = moment.faults.total()
    if not total:
        return ["no fault so far"]
    counted = ", ".join(f"{n} x {what}" for what, n in moment.faults.most_common(5))
    return [f"{total} faults so far: {counted}", *(f"  last: {f.what}: {f.detail[:160]}" for f in moment.last_faults)]


def export(path: Path, moment: Moment, folder: Path, clock: Clock) -> None:
    """Write the session as it was at the moment into the new `folder`: config and journal up to there.

    Its SessionStart says that it is cut, where and from which session; all other entries are the same to the byte.
    Raises FileExistsError where the folder exists; the session itself is only read.
    """
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(moment.start.config_yaml, encoding="utf-8")
    with path.open("rb") as journal:
        digest = hashlib.file_digest(journal, "sha256").hexdigest()
    shown = "none" if moment.last_shown is None else str(moment.last_shown.presentation)
    since = clock_words(moment.elapsed_ns)
    how = {"up to entry": str(moment.seq), "last presentation": shown, "time since the start": since}
    origin = Origin(session=moment.start.session, journal_sha256=digest, made_utc_ns=clock.utc_ns(), how=how)
    start = moment.start.model_copy(update={"cut_from": origin})
    writer = JournalWriter(folder / "session.journal", moment.start.session)
    try:
        for record in Log(path):
            if record.seq > moment.seq:
                break
            first = record.kind == "session_start"
            writer.append(record.seq, encode_entry(record.envelope, encode(start)) if first else record.body)
    finally:
        writer.close()
