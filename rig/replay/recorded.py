"""What a session holds for a counterfactual: each generation's codes and scores, and every image with its responses.

Read from the journal once; frames are kept in the size that a twin sees.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rig.config.session import Config
from rig.display.places import places
from rig.encoding import BadDocument
from rig.messages import Proposal, Response
from rig.replay.frames import banks_of
from rig.replay.records import Log, config_of, session_start
from stimuli.render import render
from stimuli.spec import AnySpec, LatentImage

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
    rates: dict[str, list[F64]] = field(default_factory=dict)
    """Usable responses (unit,) to each of its candidates, in this generation."""

    def scores(self, unit: int) -> F64:
        """Return the score (population,) that the agent was told; NaN where there was none."""
        return np.array([self.rates[i][0][unit] if i in self.rates else np.nan for i in self.ids])


@dataclass
class RecordedSession:
    """Images and responses of a session."""

    config: Config
    phases: dict[int, list[RecordedGeneration]]
    """Generations of the phases in which something evolved."""
    pictures: U8
    """(image, ...) in order of first showing, as a twin sees them."""
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

    def __init__(self, config: Config, reduced: Callable[[U8], U8]) -> None:
        """Draw as the config's display says; raises ReplayError where a bank is gone."""
        self._angles, self._background = places(config).angles, config.display.background
        self._banks, self._reduced = banks_of(config), reduced
        self._drawn: dict[AnySpec, U8] = {}

    def __call__(self, spec: AnySpec) -> U8:
        """Return the picture of a spec."""
        if spec not in self._drawn:
            frame = render(spec, self._angles, self._background, self._banks)
            self._drawn[spec] = self._reduced(frame[None])[0]
        return self._drawn[spec]


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
        self._place: dict[str, int] = {}
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
            one = RecordedGeneration(proposal.generation, ids, np.array(proposal.latents[at]), latent[at])
            self._phases.setdefault(proposal.phase, []).append(one)
            self._by_proposal[proposal.proposal] = one

    def answered(self, response: Response) -> None:
        held = self._open.get(response.proposal)
        if held is None:
            return
        self._measure = response.measure
        name = response.stimulus_id
        if name not in self._place:
            proposal, latent = held
            spec = next(s.spec for s in proposal.stimuli if s.id == name)
            self._place[name] = len(self._pictures)
            self._pictures.append(latent[spec.row] if isinstance(spec, LatentImage) else self._draw(spec))
        self._image.append(self._place[name])
        self._rates.append(np.asarray(response.rate_hz))
        self._fixed.append(response.role in ("reference", "blank") or not self._evolves(response.proposal))
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
        return RecordedSession(self._config, self._phases, pictures, image, rates, fixed, self._measure)
