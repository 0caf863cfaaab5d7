"""The fold from journal entries to the rows of `session.h5`: pure, so that a rebuilt file equals the live one.

`rig.view.h5` feeds it entries in order and writes what it has gathered. It opens no file, reads no clock and never
drops anything silently: what should be there and is not becomes a row of `faults` whose sender is "view".
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

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
from rig.view.columns import NO_TIME, Buffer, Stack
from rig.view.devices import DeviceFold, as_json, known
from rig.view.tables import NAN, SCHEMAS
from stimuli.render import gamma_table
from stimuli.spec import LatentImage, Place, Stimulus

# Frames of a proposal are kept until they were drawn; a proposal this many proposals old is not drawn any more.
KEPT_PROPOSALS = 8
ORIGINS = ("derived_from", "replay_of", "cut_from")  # what a session may be that was not recorded as it stands

Pixels = npt.NDArray[np.uint8]


def identity(stimulus: Stimulus) -> str:
    """Return what must stay the same whenever a stimulus is proposed again (its row in the proposal may differ)."""
    return stimulus.spec.model_dump_json(exclude={"row"})


class ViewFold:
    """Everything `session.h5` shows of a session, gathered from its entries in order."""

    def __init__(self) -> None:
        """Start before the first entry."""
        self.tables: dict[str, Buffer] = {s.path: Buffer(s) for s in SCHEMAS}
        self.images: dict[str, Stack] = {}  # "160x160" -> frames as drawn
        self.codes: dict[str, Stack] = {}  # "144" -> latent codes
        self.devices = DeviceFold(self.tables, self._hole)
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
        self._gamma = gamma_table(1.0)
        self._stimuli: dict[str, str] = {}
        self._proposals: dict[int, tuple[int, int]] = {}  # number -> (phase, generation)
        self._usual: Place | None = None  # where images lie whose proposal names no place
        self._places: dict[int, Place] = {}  # of proposals that name one
        self._waiting: OrderedDict[int, dict[str, Pixels]] = OrderedDict()  # frames not drawn yet, per proposal
        self._frames: dict[str, int] = {}
        self._no_frame: set[str] = set()
        self._fold: dict[type[Document], Callable[[Entry, Any], None]] = {
            SessionStart: self._session_start,
            ProcessStarted: self._process_started,
            StopRequested: self._stop_requested,
            SessionStop: self._session_stop,
            Tick: self._tick,
            Fault: self._fault,
            Pause: self._pause,
            Proposal: self._proposal,
            PhaseEnded: self._phase_ended,
            WorkDone: self._work_done,
            ModelUpdated: self._model_updated,
            StimulusPrepared: self._prepared,
            TrialIntent: self._trial,
            Presented: self._presented,
            **self.devices.folds,
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
            self._usual = Place.model_validate(d.config["stimulus"])
            self._gamma = gamma_table(float(d.config["display"]["gamma"]))
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
            phase, generation = self._proposals.get(row["proposal"], (-1, -1))
            self._row("unrecorded", seq=entry.envelope.seq, phase=phase, generation=generation, **row)

    def _pause(self, entry: Entry, d: Pause) -> None:
        fields = d.model_dump(exclude={"kind", "version"})
        self._row("pauses", seq=entry.envelope.seq, receipt_host_ns=entry.envelope.receipt_host_ns, **fields)

    # --- what was to be shown

    def _proposal(self, entry: Entry, d: Proposal) -> None:
        self._proposals[d.proposal] = (d.phase, d.generation)
        if d.place is not None:
            self._places[d.proposal] = d.place
        frames: dict[str, Pixels] = {}
        for stimulus in d.stimuli:
            if isinstance(stimulus.spec, LatentImage) and stimulus.spec.row < len(d.frames):
                frames[stimulus.id] = d.frames[stimulus.spec.row]
            self._stimulus(entry, d, stimulus)
        self._waiting[d.proposal] = frames
        while len(self._waiting) > KEPT_PROPOSALS:
            self._waiting.popitem(last=False)
        ids = [s.id for s in d.stimuli]

        def name(index: int) -> str:
            return ids[index] if index < len(ids) else ""

        self._row(
            "model/proposals",
            seq=entry.envelope.seq,
            receipt_host_ns=entry.envelope.receipt_host_ns,
            proposal=d.proposal,
            phase=d.phase,
            generation=d.generation,
            agent=d.agent,
            model_version=d.model_version,
            stimuli=len(d.stimuli),
            tail_from=d.tail_from,
            final=d.final,
            fallback=as_json([name(k) for k in d.fallback]),
            place="" if d.place is None else as_json(d.place.model_dump()),
        )
        self._announced.proposed(d)
        for k, slot in enumerate(d.plan):
            self._row(
                "model/plan",
                proposal=d.proposal,
                slot=k,
                stimulus_id=name(slot.stimulus),
                role=slot.role,
                tail=k >= d.tail_from,
            )

    def _stimulus(self, entry: Entry, d: Proposal, stimulus: Stimulus) -> None:
        known = self._stimuli.setdefault(stimulus.id, identity(stimulus))
        if known != identity(stimulus):
            self._hole(entry, "stimulus identity used twice", f"{stimulus.id} was {known}, now {identity(stimulus)}")
        if self.tables["stimuli"].rows == len(self._stimuli):
            return  # not new
        size = row = 0
        if isinstance(stimulus.spec, LatentImage) and stimulus.spec.row < len(d.latents):
            code = d.latents[stimulus.spec.row]
            size = len(code)
            row = self.codes.setdefault(str(size), Stack(code.shape)).append(code)
        elif isinstance(stimulus.spec, LatentImage):
            self._hole(entry, "latent code missing", f"{stimulus.id} of proposal {d.proposal} came without its code")
        self._row(
            "stimuli",
            stimulus_id=stimulus.id,
            proposal=d.proposal,
            phase=d.phase,
            generation=d.generation,
            type=stimulus.spec.type,
            spec=stimulus.spec.model_dump_json(),
            parents=as_json(stimulus.parents),
            how=stimulus.how,
            figures=as_json(stimulus.figures),
            latent_size=size,
            latent_row=row if size else -1,
        )

    def _prepared(self, entry: Entry, d: StimulusPrepared) -> None:
        sha = d.frame_sha256
        self._row(
            "stimuli/prepared",
            seq=entry.envelope.seq,
            stimulus_id=d.stimulus_id,
            proposal=d.proposal,
            frame_sha256=sha,
        )
        proposed = self._waiting.get(d.proposal, {}).pop(d.stimulus_id, None)
        if sha in self._frames:
            return
        if proposed is not None:
            drawn = self._gamma[proposed]
            if hashlib.sha256(drawn.tobytes()).hexdigest() == sha:
                self._keep_frame(sha, d.stimulus_id, drawn)
                return
        if d.frame is not None and hashlib.sha256(d.frame.tobytes()).hexdigest() == sha:
            self._keep_frame(sha, d.stimulus_id, d.frame)
            return
        self._no_frame.add(sha)
        if d.frame is not None:
            why = "the frame that was sent with it has another sha256"
        elif proposed is not None:
            why = "the proposed frame after the gamma table has another sha256, and none was sent"
        else:
            why = "no frame was sent, and no proposal in the log holds it"
        self._hole(entry, "frame missing", f"{sha} of stimulus {d.stimulus_id} (proposal {d.proposal}): {why}")

    def _keep_frame(self, sha: str, stimulus_id: str, frame: Pixels) -> None:
        height, width = frame.shape[:2]
        row = self.images.setdefault(f"{height}x{width}", Stack(frame.shape)).append(frame)
        self._frames[sha] = len(self._frames)
        self._row("stimuli/frames", frame_sha256=sha, stimulus_id=stimulus_id, height=height, width=width, row=row)

    # --- what was shown

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
        phase, generation = self._proposals.get(d.proposal, (-1, -1))
        shown = (d.presentation,)
        if d.proposal not in self._proposals:
            self._hole(entry, "proposal missing", f"presentation {d.presentation} shows proposal {d.proposal}", shown)
        if d.frame_sha256 not in self._frames and d.frame_sha256 not in self._no_frame:
            self._no_frame.add(d.frame_sha256)
            detail = f"{d.frame_sha256} was shown in presentation {d.presentation} and never prepared in this log"
            self._hole(entry, "frame missing", detail, shown)
        flips = d.flips_host_ns
        place = self._places.get(d.proposal, self._usual) if d.proposal in self._proposals else None
        center = (NAN, NAN) if place is None else place.center_deg
        fields = d.model_dump(exclude={"kind", "version", "flips_host_ns", "previous_stimulus_id"})
        self._row(
            "presentations",
            **fields,
            seq=entry.envelope.seq,
            phase=phase,
            generation=generation,
            previous_stimulus_id=d.previous_stimulus_id or "",
            frame=self._frames.get(d.frame_sha256, -1),
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
