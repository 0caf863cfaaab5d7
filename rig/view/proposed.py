"""What was proposed and what was drawn of it, as rows and images of `session.h5`: part of the view's fold.

Pure, like `rig.view.fold`, which hands the documents in. A frame is filed once, when it was prepared: the proposed one
after the gamma table, or the one that came with the word that it is ready; none that has another sha256.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from rig.messages import Entry, Presented, Proposal, StimulusPrepared
from rig.view.columns import Buffer, Stack
from rig.view.devices import as_json
from stimuli.render import gamma_table
from stimuli.spec import LatentImage, Place, Stimulus

# Frames of a proposal are kept until they were drawn; a proposal this many proposals old is not drawn any more.
KEPT_PROPOSALS = 8
NOT_KNOWN = (-1, -1)  # phase and generation of a proposal that the log has not
Pixels = npt.NDArray[np.uint8]


def identity(stimulus: Stimulus) -> str:
    """Return what must stay the same whenever a stimulus is proposed again (its row in the proposal may differ)."""
    return stimulus.spec.model_dump_json(exclude={"row"})


class ProposedFold:
    """Tables of proposals and stimuli, and stacks of frames and latent codes."""

    def __init__(self, tables: dict[str, Buffer], hole: Callable[[Entry, str, str], None]) -> None:
        """Fill `tables`; `hole(entry, what, detail)` is told what is not there that should be."""
        self._tables = tables
        self._hole = hole
        self.images: dict[str, Stack] = {}  # "160x160" -> frames as drawn
        self.codes: dict[str, Stack] = {}  # "144" -> latent codes
        self._gamma = gamma_table(1.0)
        self._stimuli: dict[str, str] = {}
        self._made_in: dict[int, tuple[int, int]] = {}  # proposal -> (phase, generation)
        self._usual: Place | None = None  # where images lie whose proposal names no place
        self._places: dict[int, Place] = {}  # of proposals that name one
        self._waiting: OrderedDict[int, dict[str, Pixels]] = OrderedDict()  # frames not drawn yet, per proposal
        self._frames: dict[str, int] = {}
        self._no_frame: set[str] = set()

    def configured(self, config: Mapping[str, Any]) -> None:
        """Take place and gamma of a session's config. Raises KeyError, TypeError or ValueError where it has none."""
        self._usual = Place.model_validate(config["stimulus"])
        self._gamma = gamma_table(float(config["display"]["gamma"]))

    def made_in(self, proposal: int) -> tuple[int, int]:
        """Return phase and generation of a proposal, `NOT_KNOWN` if the log has it not."""
        return self._made_in.get(proposal, NOT_KNOWN)

    def place(self, proposal: int) -> Place | None:
        """Return where the images of a proposal lie; None where it is not known."""
        return self._places.get(proposal, self._usual) if proposal in self._made_in else None

    def frame(self, sha: str) -> int:
        """Return the row of a frame in stimuli/frames, -1 if there is none."""
        return self._frames.get(sha, -1)

    def lacking(self, d: Presented) -> Iterator[tuple[str, str]]:
        """Yield what a presentation shows and the log has not, what and in words; a missing frame is told once."""
        if d.proposal not in self._made_in:
            yield "proposal missing", f"presentation {d.presentation} shows proposal {d.proposal}"
        if d.frame_sha256 not in self._frames and d.frame_sha256 not in self._no_frame:
            self._no_frame.add(d.frame_sha256)
            detail = f"{d.frame_sha256} was shown in presentation {d.presentation} and never prepared in this log"
            yield "frame missing", detail

    def _row(self, table: str, **values: Any) -> None:
        self._tables[table].append(values)

    def proposal(self, entry: Entry, d: Proposal) -> None:
        """Take what is to be shown: the proposal, its plan, its stimuli."""
        self._made_in[d.proposal] = (d.phase, d.generation)
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
        if self._tables["stimuli"].rows == len(self._stimuli):
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

    def prepared(self, entry: Entry, d: StimulusPrepared) -> None:
        """Take what was drawn; keep its frame."""
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
