"""Reads a recorded session: images/images_SESSION.zip and the responses, single trials or averages."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.truth_v4 import recorded_images
from rig.config.reading import ConfigError

F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]
Int = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Session:
    """Responses to images; an image may stand in several columns of the file."""

    images: U8
    """(column, y, x, rgb), in the order of the file's columns."""
    identity: Int
    """(column,): number of the distinct image, from 0."""
    responses: F64
    """(column, unit): mean over repeats; NaN without any."""
    repeats: Int
    """(column, unit): repeats in that mean; 1 where only averages were recorded."""
    trials: F64 | None
    """(column, repeat, unit), NaN where there is none; None where only averages were recorded."""

    @property
    def distinct(self) -> int:
        """Return how many different images there are."""
        return int(self.identity.max()) + 1


def read(folder: Path, session: str) -> Session:
    """Read a session, single trials where there are some. Raises ConfigError that names the file and the cure."""
    raw = folder / "responses_raw" / f"responses_{session}.npy"
    averaged = folder / "responses_averaged" / f"responses_{session}.npy"
    path = raw if raw.exists() else averaged
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--data {folder}: {error}; it must hold responses_raw/responses_{session}.npy (neurons, images, repeats)"
            f" or responses_averaged/responses_{session}.npy (neurons, images)"
        ) from error
    if found.ndim != (3 if path == raw else 2) or found.dtype.kind not in "fiu":
        raise ConfigError(f"--data: {path} holds {found.dtype} of shape {found.shape}; docs/refit.md has the layout")
    trials = found.transpose(1, 2, 0).astype(np.float64) if path == raw else None
    images = recorded_images(folder, session)
    if len(images) != found.shape[1]:
        raise ConfigError(f"--session {session}: {len(images)} images, but {path} has {found.shape[1]} columns")
    if trials is None:
        responses = found.T.astype(np.float64)
        repeats = np.where(np.isnan(responses), 0, 1)
    else:
        repeats = np.sum(~np.isnan(trials), axis=1)
        sums = np.nansum(trials, axis=1)
        responses = np.divide(sums, repeats, out=np.full(sums.shape, np.nan), where=repeats > 0)
    return Session(images, _identities(images), responses, repeats.astype(np.intp), trials)


def _identities(images: U8) -> Int:
    """Return a number for each picture, the same for the same bytes, in order of appearance."""
    seen: dict[bytes, int] = {}
    return np.array([seen.setdefault(hashlib.sha256(x.tobytes()).digest(), len(seen)) for x in images], dtype=np.intp)


@dataclass(frozen=True)
class Split:
    """Columns of a session, parted by distinct image."""

    training: Int
    """In the order in which they are shown."""
    held_out: Int


def split(session: Session, held_out: float, seed: int) -> Split:
    """Part by distinct image: the held-out ones are chosen before anything is shown; the rest in random order."""
    order = np.random.default_rng(seed).permutation(session.distinct)
    left = max(1, round(held_out * session.distinct))
    rank = np.empty(session.distinct, np.intp)
    rank[order] = np.arange(session.distinct)
    place = rank[session.identity]
    by_place = np.argsort(place, kind="stable")
    return Split(by_place[place[by_place] >= left], np.flatnonzero(place < left))
