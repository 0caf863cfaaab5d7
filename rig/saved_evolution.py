"""Evolutions of a recorded session: their codes, pictures and scores, read from its journal.

Used to start an evolution from another day's (`start: {type: saved}`; called by `rig.cli` when a config is read) and to
compare what two sessions evolved (`rig.similarity`).
"""

import base64
import re
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from rig.config.encoders import NetworkEncoder
from rig.config.evolution import SavedCodes, SavedStart
from rig.config.inception import LoopPhase
from rig.config.phases import EvolvePhase
from rig.config.reading import ConfigError, parse
from rig.config.revisit import RevisitPhase
from rig.config.session import Config
from rig.config.targets import Target
from rig.encoding import BadDocument
from rig.messages import ModelUpdated, Proposal, Response
from rig.replay.records import Log, ReplayError, config_of, session_start
from rig.saved_inception import taken, units_of
from stimuli.spec import LatentImage

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

SHRINK = 2.0  # presentations of a mean image that each image's mean is shrunk by: one lucky trial is no winner
PICTURED = 20  # images of each evolution's best and of its first generation that get their picture
COUNTS = ("candidate", "reshow", "confirmation")
NAME = re.compile(r"p(\d+)-(?:t(\d+)-)?(?:g|bet)")  # of an evolved image: phase, and target where there are several


@dataclass
class Image:
    """One evolved image."""

    stimulus_id: str
    generation: int
    code: F32
    frame: U8 | None = None
    """Its picture (y, x, rgb): the best PICTURED images and as many of the first generation have theirs."""
    values: list[float] = field(default_factory=list)


@dataclass
class Evolved:
    """One target's evolution in a session."""

    phase: int
    target: Target
    generator: str = ""
    frame_px: tuple[int, int] | None = None
    """Height and width of its frames."""
    contrast: float | None = None
    """RMS contrast that its generator was to give them."""
    background: int | None = None
    images: dict[str, Image] = field(default_factory=dict)

    def best(self, count: int) -> list[Image]:
        """Return the images with the best mean values, each shrunk towards the mean of its generation."""
        measured = [image for image in self.images.values() if image.values]
        total: dict[int, tuple[int, float]] = {}
        for image in measured:
            n, summed = total.get(image.generation, (0, 0.0))
            total[image.generation] = n + len(image.values), summed + sum(image.values)

        def shrunk(image: Image) -> float:
            n, summed = total[image.generation]
            mean = (sum(image.values) + SHRINK * summed / n) / (len(image.values) + SHRINK)
            return self.target.sign * mean

        return sorted(measured, key=lambda image: -shrunk(image))[:count]

    def first(self, count: int) -> list[Image]:
        """Return images of its first generation."""
        return [image for image in self.images.values() if image.generation == 0][:count]


def evolutions(folder: Path) -> list[Evolved]:
    """Return the evolutions of the session in `folder`, in order of phases and targets.

    Raises ConfigError where there is no session, or one of another version of the program.
    """
    journal = folder / "session.journal"
    if not journal.is_file():
        raise ConfigError(f"{folder}: holds no session.journal; give the folder of a session")
    try:
        config = config_of(session_start(journal))
        reading = _Reading(config, _proposed_units(config, journal))
        for record in Log(journal):
            if record.kind in ("proposal", "response"):
                try:
                    reading.take(record.entry.document)
                except BadDocument:
                    continue  # an unreadable record was left out live as well
    except ReplayError as error:
        raise ConfigError(f"{folder}: {error}") from error
    found = [one for one in reading.found.values() if one.images]
    _give_pictures(journal, [i for one in found for i in (*one.best(PICTURED), *one.first(PICTURED))])
    return found


def _give_pictures(journal: Path, images: list[Image]) -> None:
    """Read the pictures of some images: those of all would not fit into memory for a long session."""
    wanted = {image.stimulus_id: image for image in images}
    for record in Log(journal):
        if record.kind != "proposal":
            continue
        try:
            document = record.entry.document
        except BadDocument:
            continue
        assert isinstance(document, Proposal)  # noqa: S101 - by its kind
        for stimulus in document.stimuli:
            image = wanted.get(stimulus.id)
            if image is not None and image.frame is None and isinstance(stimulus.spec, LatentImage):
                image.frame = np.array(document.frames[stimulus.spec.row])


def _proposed_units(config: Config, journal: Path) -> dict[int, tuple[str, ...]]:
    """Return the units that phases were proposed, by phase: no config names them, the logged scores do."""
    phases = {k for k, p in enumerate(config.phases) if isinstance(p, EvolvePhase) and p.units == "proposed"}
    titles: dict[int, dict[int, str]] = {}
    for record in Log(journal) if phases else ():
        if record.kind != "model_updated":
            continue
        try:
            document = record.entry.document
        except BadDocument:
            continue  # an unreadable record was left out live as well
        if isinstance(document, ModelUpdated) and document.phase in phases:
            for score in document.scores:
                if (said := NAME.match(score.stimulus_id)) and score.source in COUNTS:
                    titles.setdefault(int(said[1]), {})[int(said[2] or 0)] = score.target
    return {
        phase: tuple(dict.fromkeys(of[number].split(" at ")[0] for number in sorted(of)))
        for phase, of in titles.items()
    }


class _Reading:
    def __init__(self, config: Config, proposed: dict[int, tuple[str, ...]]) -> None:
        self._config, self._units = config, proposed
        self.found: dict[tuple[int, int], Evolved] = {}

    def take(self, document: object) -> None:
        if isinstance(document, Proposal):
            self._proposed(document)
        elif isinstance(document, Response) and document.usable and document.role in COUNTS:
            one = self._of(document.stimulus_id)
            if one is not None and document.stimulus_id in one.images:
                value = float(one.target.value(np.asarray(document.rate_hz), document.units))
                if np.isfinite(value):
                    one.images[document.stimulus_id].values.append(value)

    def _of(self, name: str) -> Evolved | None:
        said = NAME.match(name)
        if said is None:
            return None
        phase, number = int(said[1]), int(said[2] or 0)
        settings = self._config.phases[phase] if phase < len(self._config.phases) else None
        if not isinstance(settings, EvolvePhase):
            return None
        objectives = settings.objectives(self._units.get(phase, ()))
        if number >= len(objectives):
            return None
        new = Evolved(
            phase,
            objectives[number],
            contrast=settings.generator.contrast,
            background=self._config.display.background,
        )
        return self.found.setdefault((phase, number), new)

    def _proposed(self, proposal: Proposal) -> None:
        if proposal.agent != "evolve":
            return
        for stimulus in proposal.stimuli:
            one = self._of(stimulus.id) if isinstance(stimulus.spec, LatentImage) else None
            if one is None or stimulus.id in one.images or not isinstance(stimulus.spec, LatentImage):
                continue
            row = stimulus.spec.row
            one.generator = stimulus.spec.generator
            one.frame_px = (proposal.frames.shape[1], proposal.frames.shape[2])
            one.images[stimulus.id] = Image(stimulus.id, proposal.generation, np.array(proposal.latents[row]))


def saved_codes(start: SavedStart) -> tuple[SavedCodes, ...]:
    """Return the best codes of each evolution that `start` may mean. Raises ConfigError."""
    found = evolutions(start.session)
    phases = {one.phase for one in found}
    wanted = max(phases, default=-1) if start.phase is None else start.phase - 1
    chosen = [one for one in found if one.phase == wanted]
    if not chosen:
        there = ", ".join(str(p + 1) for p in sorted(phases)) or "none"
        raise ConfigError(f"start.session {start.session}: no evolution in the phase asked for (there are: {there})")
    out = []
    for one in chosen:
        best = one.best(start.images)
        if best:
            means = tuple(float(np.mean(image.values)) for image in best)
            codes = np.stack([image.code for image in best]).astype("<f4")
            text = base64.b64encode(codes.tobytes()).decode()
            ids = tuple(image.stimulus_id for image in best)
            newest = max(image.generation for image in best)
            out.append(
                SavedCodes(
                    generator=one.generator,
                    target=one.target.title,
                    generation=newest,
                    stimulus_ids=ids,
                    scores=means,
                    size=codes.shape[1],
                    frame_px=one.frame_px,
                    contrast=one.contrast,
                    background=one.background,
                    float32_base64=text,
                )
            )
    return tuple(out)


def with_saved(config: Config, text: str) -> tuple[Config, str]:
    """Return config and text with everything filled in that phases take from other sessions.

    Evolve phases take codes, revisit phases images and responses; of the file that networks begin from the hash is
    taken. What was taken stands in the session's own config file and log, so that neither a restart nor a replay needs
    the other session, or takes another file for that one. A config that takes nothing, or has
    it, is returned as it is. Raises ConfigError.
    """
    if not any(_wanting(phase) for phase in config.phases):
        return config, text
    raw: dict[str, Any] = yaml.safe_load(text)
    for k, phase in enumerate(config.phases):
        if not _wanting(phase):
            continue
        where, part = f"phases.{k}", raw["phases"][k]
        try:
            if isinstance(phase, RevisitPhase):
                part["units"] = units_of(phase)
                part["taken"] = taken(phase, config).model_dump(mode="json")
            elif isinstance(phase, LoopPhase):
                where += ".encoder.start"
                part["encoder"]["start_sha256"] = _hash_of(phase)
            elif isinstance(phase, EvolvePhase) and isinstance(phase.start, SavedStart):
                where += ".start"
                part["start"]["codes"] = [one.model_dump(mode="json") for one in saved_codes(phase.start)]
        except (ConfigError, OSError) as error:
            raise ConfigError(f"{where}: {error}") from error
    head = "# What phases take from other sessions was filled in when this was read; comments of the file are lost.\n"
    filled = head + yaml.safe_dump(raw, sort_keys=False)
    return parse(filled), filled


def _hash_of(phase: LoopPhase) -> str:
    """Return the hash of the file that a phase's networks begin from. Raises ConfigError."""
    assert isinstance(phase.encoder, NetworkEncoder)  # noqa: S101 - else nothing is wanting
    assert phase.encoder.start is not None  # noqa: S101
    try:
        return sha256(phase.encoder.start.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(
            f"{phase.encoder.start} cannot be read ({error.strerror}); give a file of an earlier session's folder "
            "encoders, or null"
        ) from error


def _wanting(phase: object) -> bool:
    """Return whether a phase takes something that is not filled in yet."""
    if isinstance(phase, RevisitPhase):
        return phase.taken is None
    if isinstance(phase, LoopPhase):
        encoder = phase.encoder
        return isinstance(encoder, NetworkEncoder) and encoder.start is not None and encoder.start_sha256 is None
    return isinstance(phase, EvolvePhase) and isinstance(phase.start, SavedStart) and not phase.start.codes
