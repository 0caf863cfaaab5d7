"""What a `revisit` phase takes from another day's session: the images made then, and responses to held-out images.

Read from that session's journal when a config is read (`rig.saved_evolution.with_saved`).
"""

import base64
import csv
import hashlib
import io
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image as Picture

from rig.config.places import rect_of, usual
from rig.config.reading import ConfigError
from rig.config.revisit import MadeThen, RevisitPhase, SharedImage, Taken
from rig.config.session import Config
from rig.encoding import BadDocument
from rig.messages import ImageScore, ModelUpdated, Presented, Proposal, Response
from rig.replay.records import Log, ReplayError, config_of, session_start
from stimuli.bank import folder_bank
from stimuli.render import gamma_table
from stimuli.spec import HELD_OUT, BankImage, LatentImage, Place, Stimulus
from stimuli.tiles import built_in_banks

F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]

MEI = "mei"
LEAST_SHARED = 10  # images; as models.statistics asks
COLUMNS = ("before", "today")  # of a table of units


@dataclass
class _Phase:
    """What the log holds of one inception phase."""

    stimuli: dict[str, Stimulus] = field(default_factory=dict)
    frames: dict[str, U8] = field(default_factory=dict)
    place: Place | None = None
    shas: dict[str, str] = field(default_factory=dict)
    rates: dict[str, list[tuple[tuple[str, ...], F64]]] = field(default_factory=dict)
    """Of each natural image: units and rates of its usable presentations."""
    scores: tuple[ImageScore, ...] = ()


def units_of(phase: RevisitPhase) -> dict[str, str]:
    """Return unit of that day: unit today, from the phase or its table. Raises ConfigError."""
    if phase.table is None:
        return dict(phase.units)
    try:
        text = phase.table.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"table: {phase.table} cannot be read: {error}") from error
    rows = csv.DictReader(io.StringIO(text))
    if lacking := [name for name in COLUMNS if name not in (rows.fieldnames or ())]:
        raise ConfigError(f"table: {phase.table} has no column {lacking[0]!r}; its first line must be: before,today")
    out: dict[str, str] = {}
    for number, row in enumerate(rows, 2):
        before, today = ((row[name] or "").strip() for name in COLUMNS)
        if not before or not today:
            continue  # a unit that was not found again
        if before in out:
            raise ConfigError(f"table: {phase.table}, line {number}: {before!r} stands there twice; keep one")
        out[before] = today
    return out


def taken(phase: RevisitPhase, config: Config) -> Taken:
    """Return what `phase` of `config` takes from its session. Raises ConfigError."""
    journal = phase.session / "session.journal"
    if not journal.is_file():
        raise ConfigError(f"session: {phase.session} holds no session.journal; give the folder of a session")
    try:
        start = session_start(journal)
        before = config_of(start)
        found = _read(journal)
    except ReplayError as error:
        raise ConfigError(f"session: {phase.session}: {error}") from error
    number = max(found, default=-1) if phase.phase is None else phase.phase - 1
    one = found.get(number)
    if one is None or not one.scores:
        there = ", ".join(str(k + 1) for k, p in sorted(found.items()) if p.scores) or "none"
        raise ConfigError(
            f"session: {phase.session}: no images of an inception phase were shown back in the phase asked for (there "
            f"are: {there})"
        )
    if not any(HELD_OUT in stimulus.figures for stimulus in one.stimuli.values()):
        raise ConfigError(
            f"session: {phase.session}: its log does not say which natural images were held out (an earlier version "
            "recorded it); without them units cannot be told apart"
        )
    kinds = (MEI, *getattr(before.phases[number], "controls", ()))
    images = tuple(_made(score, one) for score in one.scores if score.source in kinds)
    shared, means = _shared(one, before.responses.units, images, phase.shared)
    if len(shared) < LEAST_SHARED:
        raise ConfigError(
            f"session: {phase.session}: {len(shared)} held-out images with responses; to tell units apart it takes "
            f"{LEAST_SHARED}"
        )
    place = usual(before.stimulus) if one.place is None else one.place
    _same_pictures(shared, config, place, before.display.gamma)
    return Taken(
        session=start.session,
        phase=number,
        place=None if place == usual(config.stimulus) else place,
        units=before.responses.units,
        shared=shared,
        means_base64=base64.b64encode(means.astype("<f8").tobytes()).decode(),
        images=images,
    )


def _same_pictures(shared: tuple[SharedImage, ...], config: Config, place: Place, gamma: float) -> None:
    """Raise ConfigError where the rig would draw another picture today than that day at `place`."""
    banks = built_in_banks(float(config.display.background), config.natural_contrast)
    banks |= {name: folder_bank(path, name) for name, path in config.banks.items()}
    table = gamma_table(gamma)  # of that day: screens are calibrated anew
    try:
        rect = rect_of(config.display, place)
        for one in shared:
            if one.bank not in banks:
                continue  # said by the checks of the config
            frame = np.ascontiguousarray(table[banks[one.bank].image(one.name, rect.height, rect.width)])
            if hashlib.sha256(frame.tobytes()).hexdigest() != one.frame_sha256:
                raise ConfigError(
                    f"session: {one.id} would not be the picture that was shown that day; use the display, distance, "
                    "image size, background and banks of that day"
                )
    except (ValueError, KeyError, OSError) as error:
        raise ConfigError(str(error)) from error


def _read(journal: Path) -> dict[int, _Phase]:
    found: dict[int, _Phase] = {}
    of_proposal: dict[int, int] = {}
    for record in Log(journal):
        if record.kind not in ("proposal", "presented", "response", "model_updated"):
            continue
        try:
            document = record.entry.document
        except BadDocument:
            continue  # an unreadable record was left out live as well
        if isinstance(document, Proposal) and document.agent == "inception":
            here = found.setdefault(document.phase, _Phase(place=document.place))
            of_proposal[document.proposal] = document.phase
            for stimulus in document.stimuli:
                here.stimuli.setdefault(stimulus.id, stimulus)
                if isinstance(stimulus.spec, LatentImage) and stimulus.id not in here.frames:
                    here.frames[stimulus.id] = np.array(document.frames[stimulus.spec.row])
        elif isinstance(document, Presented | Response) and document.proposal in of_proposal:
            here = found[of_proposal[document.proposal]]
            if isinstance(document, Presented):
                here.shas[document.stimulus_id] = document.frame_sha256
            elif document.usable:
                rates = np.asarray(document.rate_hz, np.float64)
                here.rates.setdefault(document.stimulus_id, []).append((document.units, rates))
        elif isinstance(document, ModelUpdated) and document.phase in found:
            found[document.phase].scores = document.scores or found[document.phase].scores
    return found


def _made(score: ImageScore, one: _Phase) -> MadeThen:
    out = io.BytesIO()
    Picture.fromarray(one.frames[score.stimulus_id]).save(out, "PNG", optimize=True)
    return MadeThen(
        id=score.stimulus_id,
        unit=score.target,
        kind=score.source,
        of=one.stimuli[score.stimulus_id].parents,
        mean_hz=score.raw,
        error_hz=score.error,
        presentations=score.presentations,
        frame_png_base64=base64.b64encode(out.getvalue()).decode(),
    )


def _shared(
    one: _Phase, units: tuple[str, ...], images: tuple[MadeThen, ...], most: int
) -> tuple[tuple[SharedImage, ...], F64]:
    """Return held-out images, `most` of those with the most presentations, and mean rates (image, unit).

    Never one that an image to be tested was made of: a match must not choose a result.
    """
    tested = {name for image in images for name in image.of}
    shown = Counter(
        {
            name: len(rates)
            for name, rates in one.rates.items()
            if HELD_OUT in one.stimuli[name].figures and name not in tested and name in one.shas
        }
    )
    out, means = [], []
    for name, _ in shown.most_common(most):
        spec = one.stimuli[name].spec
        if isinstance(spec, BankImage):
            out.append(SharedImage(id=name, bank=spec.bank, name=spec.name, frame_sha256=one.shas[name]))
            means.append(_mean(one.rates[name], units))
    return tuple(out), np.stack(means) if means else np.empty((0, len(units)))


def _mean(rows: list[tuple[tuple[str, ...], F64]], units: tuple[str, ...]) -> F64:
    """Return the mean rate of each unit (unit,), NaN where it never had one."""
    rates = np.full((len(rows), len(units)), np.nan)
    for k, (names, values) in enumerate(rows):
        at = {name: j for j, name in enumerate(names)}
        for column, unit in enumerate(units):
            if unit in at:
                rates[k, column] = values[at[unit]]
    known = np.isfinite(rates)
    total = np.where(known, rates, 0.0).sum(axis=0)
    out: F64 = np.where(known.any(axis=0), total / np.maximum(known.sum(axis=0), 1), np.nan)
    return out
