"""The record of a search: which codes are open, what was told of them, and the archive of all before.

Part of every optimiser here: it keeps the books so that an optimiser's own file holds its algorithm only.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from stimuli.search.archive import Archive
from stimuli.search.optimiser import F32, F64, Asked, Nominee, Origin, Scores

AGAIN_AT_MOST = 3  # times that unmeasured codes are asked for again before the search goes on without them


class Record:
    """The books of one search.

    A *batch* are the codes that the next update judges together; usually it is shown in one generation. If too little
    of it was measured, `open_missing` shows the rest again in a further generation.
    """

    def __init__(self, latent: int) -> None:
        """Begin with nothing shown; codes have `latent` numbers."""
        self.archive = Archive(latent)
        self.generation = 0
        self.again = 0
        """How often codes of the open batch were asked for again."""
        self._batch: tuple[int, ...] = ()
        self._shown: tuple[int, ...] = ()  # of the batch, what the newest generation shows
        self._count: dict[int, int] = {}
        self._sum: dict[int, float] = {}

    @property
    def batch(self) -> tuple[int, ...]:
        """Identities of the open batch (row,)."""
        return self._batch

    @property
    def asked(self) -> Asked | None:
        """The newest generation; None before the first."""
        if self.generation == 0:
            return None
        return Asked(self.archive.codes(self._shown), self._shown, self.archive.origins(self._shown))

    def add(self, codes: F32, origins: Sequence[Origin]) -> tuple[int, ...]:
        """Give new identities to codes (row, latent)."""
        return self.archive.add(codes, origins)

    def open(self, code_ids: tuple[int, ...]) -> Asked:
        """Begin a new batch with these codes, and a generation that shows all of it."""
        self._batch, self.again = code_ids, 0
        self._count, self._sum = dict.fromkeys(code_ids, 0), dict.fromkeys(code_ids, 0.0)
        return self._show(code_ids)

    def open_missing(self) -> Asked:
        """Begin a generation that shows again what was not measured of the open batch."""
        self.again += 1
        return self._show(tuple(k for k in dict.fromkeys(self._batch) if self._count[k] == 0))

    def _show(self, code_ids: tuple[int, ...]) -> Asked:
        self.archive.open(code_ids, self.generation)
        self.generation += 1
        self._shown = code_ids
        return Asked(self.archive.codes(code_ids), code_ids, self.archive.origins(code_ids))

    def tell(self, scores: Scores) -> None:
        """Take rows: of the open batch for `scores`, all of them for `nominate`."""
        self.archive.record(scores)
        if scores.extra:
            return
        for code_id, score in zip(scores.code_ids.tolist(), scores.scores.tolist(), strict=True):
            if code_id in self._count and not np.isnan(score):
                self._count[code_id] += 1
                self._sum[code_id] += score

    def scores(self) -> F64:
        """Return the mean score of each code of the open batch (row,), NaN where nothing was measured."""
        pairs = [(self._sum[k], self._count[k]) for k in self._batch]
        return np.array([total / count if count else np.nan for total, count in pairs], dtype=np.float64)

    def codes(self) -> F32:
        """Return the codes of the open batch (row, latent)."""
        return self.archive.codes(self._batch)

    def nominate(self, count: int) -> list[Nominee]:
        """Return the `count` codes with the best mean score."""
        return self.archive.nominate(count)

    def state(self) -> dict[str, Any]:
        """Return arrays and JSON-able values."""
        return {
            "archive": self.archive.state(),
            "generation": self.generation,
            "again": self.again,
            "batch": list(self._batch),
            "shown": list(self._shown),
            "told": [[k, self._count[k], self._sum[k]] for k in self._count if self._count[k]],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state; raises ValueError where its codes have another size."""
        self.archive.restore(state["archive"])
        self.generation, self.again = int(state["generation"]), int(state["again"])
        self._batch, self._shown = tuple(state["batch"]), tuple(state["shown"])
        self._count, self._sum = dict.fromkeys(self._batch, 0), dict.fromkeys(self._batch, 0.0)
        for code_id, count, total in state["told"]:
            self._count[code_id], self._sum[code_id] = count, total
