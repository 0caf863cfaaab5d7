"""What is known of the codes shown so far: their scores, and the codes themselves while they can still matter.

Part of every optimiser here. An evolution of 2,000 generations of 40 codes of 4,096 numbers would hold 1.3 GB and
put them into each snapshot; kept are the codes of the newest generations and those with the best mean scores.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from stimuli.search.optimiser import F32, F64, Nominee, Origin, Scores

RECENT = 4  # generations whose codes are all kept: late scores are a generation late, seldom two
BEST = 60  # older codes kept, by mean score


class Archive:
    """Codes with identities 0, 1, 2, .. in the order they were made, and all that was told of them."""

    def __init__(self, latent: int, recent: int = RECENT, best: int = BEST) -> None:
        """Hold codes of `latent` numbers: all of the newest `recent` generations, and the `best` of the older ones."""
        self.latent = latent
        self._recent, self._best = recent, best
        self._made = 0  # identities given out
        self._generation = -1
        # (row,) arrays of the codes still held, by rising identity
        self._ids = np.empty(0, np.int64)
        self._codes: F32 = np.empty((0, latent), np.float32)
        self._origins: list[Origin] = []
        self._shown_in = np.empty(0, np.int64)  # newest generation it was part of
        self._count = np.empty(0, np.int64)  # measurements
        self._mean: F64 = np.empty(0, np.float64)
        self._spread: F64 = np.empty(0, np.float64)  # sum of squared differences from the mean

    def __len__(self) -> int:
        """Return the number of codes held."""
        return len(self._ids)

    def add(self, codes: F32, origins: Sequence[Origin]) -> tuple[int, ...]:
        """Give new identities to `codes` (row, latent), each with its origin, and hold them."""
        if not np.isfinite(codes).all():
            raise FloatingPointError("codes have grown beyond float32; start from codes of about unit size")
        count = len(codes)
        ids = np.arange(self._made, self._made + count)
        self._made += count
        self._ids = np.concatenate([self._ids, ids])
        self._origins += [origin for _, origin in zip(ids, origins, strict=True)]
        self._codes = np.concatenate([self._codes, np.asarray(codes, dtype=np.float32)])
        self._shown_in = np.concatenate([self._shown_in, np.full(count, self._generation)])
        self._count = np.concatenate([self._count, np.zeros(count, np.int64)])
        self._mean = np.concatenate([self._mean, np.full(count, np.nan)])
        self._spread = np.concatenate([self._spread, np.zeros(count)])
        return tuple(ids.tolist())

    def open(self, code_ids: tuple[int, ...], generation: int) -> None:
        """Note that these codes, held all, are shown in `generation`; forget what can matter no more."""
        self._generation = generation
        self._shown_in[self._rows(code_ids)] = generation
        old = np.flatnonzero(self._shown_in <= generation - self._recent)
        worth = np.where(self._count[old] > 0, self._mean[old], -np.inf)
        forgotten = old[np.argsort(-worth, kind="stable")][self._best :]
        if forgotten.size:
            keep = np.ones(len(self._ids), bool)
            keep[forgotten] = False
            self._origins = [origin for origin, kept in zip(self._origins, keep, strict=True) if kept]
            self._ids, self._codes, self._shown_in = self._ids[keep], self._codes[keep], self._shown_in[keep]
            self._count, self._mean, self._spread = self._count[keep], self._mean[keep], self._spread[keep]

    def record(self, scores: Scores) -> None:
        """Take down rows; those of codes no longer held change nothing. Raises ValueError for unknown identities."""
        ids = scores.code_ids
        if ids.size and (ids.min() < 0 or ids.max() >= self._made):
            wrong = ids[(ids < 0) | (ids >= self._made)][0]
            raise ValueError(f"a score for code {wrong}, which was never asked for; {self._made} codes were made")
        for code_id, score in zip(ids.tolist(), scores.scores.tolist(), strict=True):
            row = int(np.searchsorted(self._ids, code_id))
            if np.isnan(score) or row == len(self._ids) or self._ids[row] != code_id:
                continue
            before = 0.0 if self._count[row] == 0 else float(self._mean[row])
            self._count[row] += 1
            mean = before + (score - before) / float(self._count[row])
            self._spread[row] += (score - before) * (score - mean)  # Welford 1962
            self._mean[row] = mean

    def codes(self, code_ids: tuple[int, ...]) -> F32:
        """Return the codes (row, latent) of identities that are held; raises KeyError for others."""
        out: F32 = self._codes[self._rows(code_ids)]
        return out

    def origins(self, code_ids: tuple[int, ...]) -> tuple[Origin, ...]:
        """Return where codes that are held came from."""
        return tuple(self._origins[row] for row in self._rows(code_ids))

    def nominate(self, count: int, least: int = 1) -> list[Nominee]:
        """Return the `count` best codes by mean score among those measured at least `least` times.

        Fewer where fewer were measured. Ties go to the code measured more often, then to the older one.
        """
        able = np.flatnonzero(self._count >= max(least, 1))
        order = able[np.lexsort((self._ids[able], -self._count[able], -self._mean[able]))][:count]
        return [self._nominee(int(row)) for row in order]

    def nominee(self, code_id: int) -> Nominee:
        """Return what is known of one code that is held; its estimate is NaN where nothing was measured."""
        return self._nominee(int(self._rows((code_id,))[0]))

    def state(self) -> dict[str, Any]:
        """Return arrays and JSON-able values."""
        return {
            "made": self._made,
            "generation": self._generation,
            "ids": self._ids.copy(),
            "codes": self._codes.copy(),
            "origins": [[list(o.parents), o.how, dict(o.figures)] for o in self._origins],
            "shown_in": self._shown_in.copy(),
            "count": self._count.copy(),
            "mean": self._mean.copy(),
            "spread": self._spread.copy(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state; raises ValueError where its codes have another size."""
        codes = np.array(state["codes"], dtype=np.float32)
        if codes.ndim != 2 or codes.shape[1] != self.latent:
            raise ValueError(f"a state with codes of shape {codes.shape}; this optimiser's have {self.latent} numbers")
        self._codes, self._made, self._generation = codes, int(state["made"]), int(state["generation"])
        self._origins = [Origin(tuple(p), how, dict(figures)) for p, how, figures in state["origins"]]
        self._ids = np.array(state["ids"], dtype=np.int64)
        self._shown_in = np.array(state["shown_in"], dtype=np.int64)
        self._count = np.array(state["count"], dtype=np.int64)
        self._mean = np.array(state["mean"], dtype=np.float64)
        self._spread = np.array(state["spread"], dtype=np.float64)

    def _rows(self, code_ids: tuple[int, ...]) -> "np.ndarray[Any, np.dtype[np.intp]]":
        wanted = np.asarray(code_ids, dtype=np.int64)
        rows = np.searchsorted(self._ids, wanted)
        if (rows >= len(self._ids)).any() or (self._ids[rows] != wanted).any():
            raise KeyError(f"codes {sorted(set(code_ids) - set(self._ids.tolist()))} are not held")
        return rows

    def _nominee(self, row: int) -> Nominee:
        count = int(self._count[row])
        error = float(np.sqrt(self._spread[row] / (count - 1) / count)) if count > 1 else None
        return Nominee(int(self._ids[row]), self._codes[row].copy(), float(self._mean[row]), error, count)
