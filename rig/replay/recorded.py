"""What a session holds for a counterfactual: each generation's codes and scores, and every image with its responses.

Read from the journal once; frames are kept in the size that a twin sees.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rig.config.session import Config
from rig.config.targets import Target
from rig.display.places import places
from rig.encoding import BadDocument
from rig.messages import Proposal, Response
from rig.replay.frames import banks_of
from rig.replay.records import Log, config_of, session_start
from stimuli.render import render
from stimuli.spec import AnySpec, LatentImage, Place

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]


@dataclass
class RecordedGeneration:
    """One proposal of an evolution."""

    generation: int
    ids: tuple[str, ...]
    """The population, in the optimiser's order."""
    codes: F32
    """(population, latent)"""
    pictures: U8
    """(population, ...) as a twin sees them."""
    place: Place | None
    """Where they lay; None: where the config's `stimulus` says."""
    rates: dict[str, list[F64]] = field(default_factory=dict)
    """Usable responses (unit,) to each of its candidates, in this generation."""

    def of(self, prefix: str) -> "RecordedGeneration":
        """Return the images whose identities begin with `prefix`: those of one target."""
        own = [k for k, name in enumerate(self.ids) if name.startswith(prefix)]
        ids = tuple(self.ids[k] for k in own)
        return RecordedGeneration(self.generation, ids, self.codes[own], self.pictures[own], self.place, self.rates)

    def values(self, target: Target, units: tuple[str, ...]) -> F64:
        """Return the value (population,) of a target that the agent was told of each image; NaN where there was none.

        `units` are the scored ones, in the order of the responses.
        """
        told = [float(target.value(self.rates[i][0], units)) if i in self.rates else np.nan for i in self.ids]
        return np.array(told)


@dataclass
class RecordedSession:
    """Images and responses of a session."""

    config: Config
    phases: dict[int, list[RecordedGeneration]]
    """Generations of the phases in which something evolved."""
    pictures: U8
    """(image, ...) in order of first showing, as a twin sees them."""
    place: tuple[Place | None, ...]
    """Of each image: where it lay. One that was shown at two places is two images."""
    image: I64
    """(trial,) index into `pictures`, for every usable response."""
    rates: F64
    """(trial, unit)"""
    fixed: npt.NDArray[np.bool_]
    """(trial,) whether the image was shown whatever the responses before."""
    measure: str
    """What a response is, a key of `rig.messages.RATE_UNITS`."""


class Pictures:
    """Draws stimuli that are not latent, once each, as a twin sees them."""

    def __init__(self, config: Config, reduced: Callable[[U8], U8], place: Place | None = None) -> None:
        """Draw as the config's display says, for `place` if nothing else is asked for.

        Raises ReplayError where a bank is gone.
        """
        self._where, self._background, self._place = places(config), config.display.background, place
        self._banks, self._reduced = banks_of(config), reduced
        self._drawn: dict[tuple[AnySpec, Place | None], U8] = {}

    def __call__(self, spec: AnySpec) -> U8:
        """Return the picture of a spec at the usual place of these pictures."""
        return self.at(spec, self._place)

    def at(self, spec: AnySpec, place: Place | None) -> U8:
        """Return the picture of a spec at a place."""
        key = spec, place
        if key not in self._drawn:
            frame = render(spec, self._where.at(place).angles, self._background, self._banks)
            self._drawn[key] = self._reduced(frame[None])[0]
        return self._drawn[key]


def read(path: Path, reduced: Callable[[U8], U8]) -> RecordedSession:
    """Read what a counterfactual needs of the journal at `path`; raises ReplayError, ValueError."""
    config = config_of(session_start(path))
    reading = _Reading(config, reduced)
    for record in Log(path):
        if record.kind not in ("proposal", "response"):
            continue
        try:
            document = record.entry.document
        except BadDocument:
            continue
        if isinstance(document, Proposal):
            reading.proposed(document)
        elif isinstance(document, Response) and document.usable:
            reading.answered(document)
    return reading.session()


class _Reading:
    def __init__(self, config: Config, reduced: Callable[[U8], U8]) -> None:
        self._config, self._reduced = config, reduced
        self._draw = Pictures(config, reduced)
        self._number: dict[tuple[str, Place | None], int] = {}
        self._pictures: list[U8] = []
        self._image: list[int] = []
        self._rates: list[F64] = []
        self._fixed: list[bool] = []
        self._phases: dict[int, list[RecordedGeneration]] = {}
        self._open: dict[int, tuple[Proposal, U8]] = {}  # the newest two: responses come while the next one is shown
        self._by_proposal: dict[int, RecordedGeneration] = {}
        self._measure = "spikes"

    def proposed(self, proposal: Proposal) -> None:
        latent = self._reduced(np.asarray(proposal.frames)) if len(proposal.frames) else np.empty((0,), np.uint8)
        light = proposal.model_copy(update={"frames": proposal.frames[:0]})
        self._open[proposal.proposal] = light, latent
        for old in [n for n in self._open if n < proposal.proposal - 3]:
            del self._open[old]
            self._by_proposal.pop(old, None)
        rows = sorted({s.stimulus for s in proposal.plan if s.role == "candidate"})
        chosen = [proposal.stimuli[k] for k in rows]
        specs = [s.spec for s in chosen if isinstance(s.spec, LatentImage)]
        if specs and len(specs) == len(chosen):
            at = [spec.row for spec in specs]
            ids = tuple(s.id for s in chosen)
            codes = np.array(proposal.latents[at])
            one = RecordedGeneration(proposal.generation, ids, codes, latent[at], proposal.place)
            self._phases.setdefault(proposal.phase, []).append(one)
            self._by_proposal[proposal.proposal] = one

    def answered(self, response: Response) -> None:
        held = self._open.get(response.proposal)
        if held is None:
            return
        self._measure = response.measure
        name, (proposal, latent) = response.stimulus_id, held
        key = name, proposal.place
        if key not in self._number:
            spec = next(s.spec for s in proposal.stimuli if s.id == name)
            self._number[key] = len(self._pictures)
            drawn = latent[spec.row] if isinstance(spec, LatentImage) else self._draw.at(spec, proposal.place)
            self._pictures.append(drawn)
        self._image.append(self._number[key])
        self._rates.append(np.asarray(response.rate_hz))
        fixed = response.role in ("reference", "confirmation", "blank") or not self._evolves(response.proposal)
        self._fixed.append(fixed)
        generation = self._by_proposal.get(response.proposal)
        if generation is not None and response.role == "candidate":
            generation.rates.setdefault(name, []).append(np.asarray(response.rate_hz))

    def _evolves(self, proposal: int) -> bool:
        return proposal in self._by_proposal

    def session(self) -> RecordedSession:
        pictures = np.stack(self._pictures) if self._pictures else np.empty((0,), np.uint8)
        rates = np.stack(self._rates) if self._rates else np.empty((0, len(self._config.responses.units)))
        image = np.array(self._image, np.int64)
        fixed = np.array(self._fixed, np.bool_)
        where = tuple(place for _, place in self._number)
        return RecordedSession(self._config, self._phases, pictures, where, image, rates, fixed, self._measure)
