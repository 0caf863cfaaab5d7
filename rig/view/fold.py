"""The fold from journal entries to the rows of `session.h5`: pure, so that a rebuilt file equals the live one.

`rig.view.h5` feeds it entries in order and writes what it has gathered. It opens no file, reads no clock and never
drops anything silently: what should be there and is not becomes a row of `faults` whose sender is "view".
"""

from collections.abc import Callable
from typing import Any

from rig.messages import (
    Document,
    Entry,
    Fault,
    ModelUpdated,
    Pause,
    PhaseEnded,
    Presented,
    ProcessStarted,
    Proposal,
    SessionStart,
    SessionStop,
    StimulusPrepared,
    StopRequested,
    Tick,
    TrialIntent,
    WorkDone,
    kind_of,
)
from rig.view.announced import Announced
from rig.view.columns import NO_TIME, Buffer
from rig.view.devices import DeviceFold, as_json, known
from rig.view.proposed import ProposedFold
from rig.view.tables import NAN, SCHEMAS

ORIGINS = ("derived_from", "replay_of", "cut_from")  # what a session may be that was not recorded as it stands


class ViewFold:
    """Everything `session.h5` shows of a session, gathered from its entries in order."""

    def __init__(self) -> None:
        """Start before the first entry."""
        self.tables: dict[str, Buffer] = {s.path: Buffer(s) for s in SCHEMAS}
        self.devices = DeviceFold(self.tables, self._hole)
        self.proposed = ProposedFold(self.tables, self._hole)
        self.attributes: dict[str, str | int | bool] = {
            "session": "",
            "simulated": False,
            "subject": "",
            "config_yaml": "",
            "config": "",
            "versions": "",
            "commit": "",
            "dirty": "",
            "start_host_ns": NO_TIME,
            "start_utc_ns": NO_TIME,
            **dict.fromkeys(ORIGINS, ""),
            "closed_in_order": False,
            "stop_requested": "",
            "stop_reason": "",
            "last_seq": 0,
        }
        self.missing_entries = 0
        self.recorders = 0  # starts of the recorder
        self._previous = (0, NO_TIME)  # the entry before, and when it was received
        self._before: dict[str, tuple[int, int]] = {}  # the same for the first entry of each process
        self._announced = Announced()
        self._fold: dict[type[Document], Callable[[Entry, Any], None]] = {
            SessionStart: self._session_start,
            ProcessStarted: self._process_started,
            StopRequested: self._stop_requested,
            SessionStop: self._session_stop,
            Tick: self._tick,
            Fault: self._fault,
            Pause: self._pause,
            PhaseEnded: self._phase_ended,
            WorkDone: self._work_done,
            ModelUpdated: self._model_updated,
            TrialIntent: self._trial,
            Presented: self._presented,
            **self.devices.folds,
            StimulusPrepared: self.proposed.prepared,
            Proposal: self._proposal,
        }

    def apply(self, entry: Entry) -> None:
        """Take one entry; entries come in order, each once."""
        seq, expected = entry.envelope.seq, int(self.attributes["last_seq"]) + 1
        if seq != expected:
            self.missing_entries += 1
            self._hole(entry, "journal entries missing", f"after entry {expected - 1} comes entry {seq}")
        self.attributes["last_seq"] = seq
        self._before.setdefault(entry.envelope.process, self._previous)
        self._file(entry)
        self._previous = (seq, entry.envelope.receipt_host_ns)

    def _file(self, entry: Entry) -> None:
        fold = self._fold.get(type(entry.document))
        if fold is None:
            self._hole(
                entry, "document not filed", f"this version files no documents of kind {kind_of(entry.document)}"
            )
            return
        try:
            fold(entry, entry.document)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - columns that contradict each other, and what else cannot be filed
            detail = f"{kind_of(entry.document)} of {entry.envelope.sender}: {type(error).__name__}: {error}"
            self._hole(entry, "document not understood", detail)

    def _row(self, table: str, **values: Any) -> None:
        self.tables[table].append(values)

    def _hole(self, entry: Entry, what: str, detail: str, presentations: tuple[int, ...] = ()) -> None:
        """Record what this file should hold and cannot."""
        self._row(
            "faults",
            seq=entry.envelope.seq,
            receipt_host_ns=entry.envelope.receipt_host_ns,
            sender="view",
            what=what,
            detail=detail,
            done="filed without it",
            since_host_ns=NO_TIME,
            presentations=as_json(presentations),
        )

    # --- session and processes

    def _session_start(self, entry: Entry, d: SessionStart) -> None:
        self.attributes.update(
            session=d.session,
            simulated=d.simulated,
            subject=as_json(d.config.get("subject", {})),
            config_yaml=d.config_yaml,
            config=as_json(d.config),
            versions=as_json(d.versions),
            commit=d.commit or "",
            dirty="" if d.dirty is None else str(d.dirty).lower(),
            start_host_ns=d.start_host_ns,
            start_utc_ns=d.start_utc_ns,
            **{name: as_json(o.model_dump()) if (o := getattr(d, name)) else "" for name in ORIGINS},
        )
        try:
            self.proposed.configured(d.config)
            self.devices.name_response_units(tuple(str(u) for u in d.config["responses"]["units"]))
            for source in d.config["sources"]:
                self.devices.source(str(source["name"]))
        except (KeyError, TypeError, ValueError) as error:
            self._hole(entry, "config not understood", f"{type(error).__name__}: {error}")

    def _process_started(self, entry: Entry, d: ProcessStarted) -> None:
        self.recorders += d.name == "recorder"
        if entry.envelope.sender == "recorder":  # a closed session that is resumed is open again
            self.attributes["closed_in_order"] = False
        self._row(
            "processes",
            seq=entry.envelope.seq,
            previous_seq=self._before[entry.envelope.process][0],
            previous_receipt_host_ns=self._before[entry.envelope.process][1],
            name=d.name,
            pid=d.pid,
            boot_id=d.boot_id,
            start_host_ns=d.start_host_ns,
            start_utc_ns=d.start_utc_ns,
            notes=as_json(d.notes),
        )

    def _stop_requested(self, entry: Entry, d: StopRequested) -> None:
        self.attributes["stop_requested"] = d.reason

    def _session_stop(self, entry: Entry, d: SessionStop) -> None:
        self.attributes.update(stop_reason=d.reason, closed_in_order=True)
        self._row("stops", seq=entry.envelope.seq, receipt_host_ns=entry.envelope.receipt_host_ns, reason=d.reason)
        for name, said in {"presentations": d.presentations, "responses": d.responses}.items():
            if self.tables[name].rows != said:
                detail = f"the session ended with {said}, this file has {self.tables[name].rows}"
                self._hole(entry, f"{name} missing", detail)

    def _tick(self, entry: Entry, d: Tick) -> None:
        """Ticks carry nothing that an experimenter would look up; the journal has them."""

    def _fault(self, entry: Entry, d: Fault) -> None:
        self._row(
            "faults",
            seq=entry.envelope.seq,
            receipt_host_ns=entry.envelope.receipt_host_ns,
            sender=entry.envelope.sender,
            what=d.what,
            detail=d.detail,
            done=d.done,
            since_host_ns=known(d.since_host_ns),
            presentations=as_json(d.presentations),
        )
        for row in self._announced.lost(d):
            phase, generation = self.proposed.made_in(row["proposal"])
            self._row("unrecorded", seq=entry.envelope.seq, phase=phase, generation=generation, **row)

    def _pause(self, entry: Entry, d: Pause) -> None:
        fields = d.model_dump(exclude={"kind", "version"})
        self._row("pauses", seq=entry.envelope.seq, receipt_host_ns=entry.envelope.receipt_host_ns, **fields)

    # --- what was to be shown, and was

    def _proposal(self, entry: Entry, d: Proposal) -> None:
        self.proposed.proposal(entry, d)
        self._announced.proposed(d)

    def _trial(self, entry: Entry, d: TrialIntent) -> None:
        self._row(
            "trials",
            seq=entry.envelope.seq,
            trial=d.trial,
            first_presentation=d.presentations[0] if d.presentations else -1,
            presentations=len(d.presentations),
            start_host_ns=d.start_host_ns,
        )
        self._announced.trial(d)
        for presentation, proposal, slot in zip(d.presentations, d.proposals, d.slots, strict=False):
            self._row("trial_plan", trial=d.trial, presentation=presentation, proposal=proposal, slot=slot)

    def _presented(self, entry: Entry, d: Presented) -> None:
        self._announced.recorded(d.presentation)
        phase, generation = self.proposed.made_in(d.proposal)
        for what, detail in self.proposed.lacking(d):
            self._hole(entry, what, detail, (d.presentation,))
        flips = d.flips_host_ns
        place = self.proposed.place(d.proposal)
        center = (NAN, NAN) if place is None else place.center_deg
        fields = d.model_dump(exclude={"kind", "version", "flips_host_ns", "previous_stimulus_id"})
        self._row(
            "presentations",
            **fields,
            seq=entry.envelope.seq,
            phase=phase,
            generation=generation,
            previous_stimulus_id=d.previous_stimulus_id or "",
            frame=self.proposed.frame(d.frame_sha256),
            center_x_deg=center[0],
            center_y_deg=center[1],
            size_deg=NAN if place is None else place.size_deg,
            flips_first=self.tables["flips"].rows,
            flips_count=len(flips),
        )
        self.tables["flips"].extend(len(flips), {"presentation": d.presentation, "flip_host_ns": flips})

    # --- what the model said

    def _model_updated(self, entry: Entry, d: ModelUpdated) -> None:
        at = {"seq": entry.envelope.seq, "phase": d.phase, "generation": d.generation}
        figures = {name: d.report.get(name, NAN) for name in ("best", "mean", "reference")}
        said = {"model_version": d.model_version, "report": as_json(d.report)}
        self._row("model/updates", **at, **figures, **said, receipt_host_ns=entry.envelope.receipt_host_ns)
        for one in d.scores:
            error = NAN if one.error is None else one.error
            self._row("model/scores", **at, **one.model_dump(exclude={"version", "error"}), error=error)

    def _work_done(self, entry: Entry, d: WorkDone) -> None:
        fields = d.model_dump(exclude={"kind", "version"})
        self._row("model/work", seq=entry.envelope.seq, receipt_host_ns=entry.envelope.receipt_host_ns, **fields)

    def _phase_ended(self, entry: Entry, d: PhaseEnded) -> None:
        start, end = (NAN, NAN) if d.window_s is None else d.window_s
        fields = d.model_dump(exclude={"kind", "version", "window_s"}) | {"window_start_s": start, "window_end_s": end}
        self._row("model/phases", seq=entry.envelope.seq, receipt_host_ns=entry.envelope.receipt_host_ns, **fields)
