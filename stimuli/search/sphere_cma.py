"""CMA-ES on a sphere: all codes have one length, the search narrows by a schedule (Wang & Ponce, GECCO 2022).

Made by `factory`; the authors call it SphereCMA, in their program ZOHA_Sphere_lr_euclid. N: size of a code, lambda:
population; w: rank weights of the better half; all codes lie on the sphere of radius R.

    c0    = sum w x put back on the sphere                                after the first generation
    c     <- slerp(c, sum w x put back on the sphere, 1.5)                later: half as far again as the mean
    x     =  exponential map at c of  a_k / sqrt(N) u                     u: N(0, I) made tangent to the sphere at c
    a_k   =  50 to 7.33 deg, evenly in the logarithm ("exp"), or 15 + 1 / (0.0017 k + 0.0146) deg, k = 1, 2, .. ("inv")

From the second generation on there are lambda + 1 codes: c itself is shown first and has no weight.

Start. "matched": the first generation are codes of the generator's prior brought to its typical length, which is R.
"as_published": N(0, I) brought to length 300, the typical length of fc6 codes after an evolution.

Missing scores: see `recombination`; a missing one of c does not matter. Repeated rows of a batch count as their mean.
Late rows move nothing and count for `nominate`. The paper reports the code with the best single score, which is the
luckiest; `nominate` takes the best mean, or c first, with its own score when it was measured.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from stimuli.search.cma import CMA
from stimuli.search.optimiser import F32, F64, Asked, Nominee, Origin
from stimuli.search.recombination import Nominates, Ranked, Start, must_ask_again, nominated

PUBLISHED_NORM = 300.0
REACH = 1.5  # of the step from the old centre to the mean
EXP_DEG = (50.0, 7.33)


@dataclass(frozen=True)
class SphereSettings:
    """Settings of the CMA-ES on a sphere."""

    population: int = 40
    """Codes per generation, without the centre."""
    start: Start = "matched"
    """Length and first generation: of the prior, or as published."""
    norm: float | None = None
    """Length of all codes; None: the prior's typical length, or 300 as published."""
    schedule: Literal["exp", "inv"] = "exp"
    """How the search narrows."""
    schedule_generations: int = 75
    """Updates over which it narrows; it stays at the last angle."""
    nominates: Nominates = "best_score"
    """What `nominate` puts first."""

    def __post_init__(self) -> None:
        """Refuse settings with which the algorithm has no meaning."""
        if self.population < 4 or self.schedule_generations < 2:
            raise ValueError(
                f"population {self.population}, schedule of {self.schedule_generations} generations; "
                "need 4 or more, and 2 or more"
            )
        if self.norm is not None and not 0 < self.norm < np.inf:
            raise ValueError(f"norm {self.norm}; need a length above 0")

    def angle_deg(self, update: int) -> float:
        """Return the typical angle between centre and codes after update number `update` (0, 1, ..)."""
        k = min(update, self.schedule_generations - 1)
        if self.schedule == "inv":
            return 15 + 1 / (0.0017 * (k + 1) + 0.0146)
        first, last = EXP_DEG
        return float(first * (last / first) ** (k / (self.schedule_generations - 1)))


def on_sphere(rows: F64, radius: float) -> F64:
    """Return rows (.., latent) brought to length `radius`; raises FloatingPointError for a row of length 0."""
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    if not (length > 0).all():
        raise FloatingPointError("a code of length 0 has no direction; start from other codes")
    out: F64 = rows * (radius / length)
    return out


def slerp(start: F64, end: F64, reach: float) -> F64:
    """Return the unit vector (latent,) at `reach` of the arc from unit vector `start` to `end`; beyond it above 1."""
    angle = float(np.arctan2(np.linalg.norm(end - (start @ end) * start), start @ end))
    if angle < 1e-9 or np.pi - angle < 1e-9:  # the same point, or no shortest arc
        return end
    out: F64 = (np.sin((1 - reach) * angle) * start + np.sin(reach * angle) * end) / np.sin(angle)
    return on_sphere(out, 1.0)


def around(center: F64, draws: F64, angle_rad: float) -> F64:
    """Return unit vectors (row, latent) around the unit vector `center` for draws (row, latent) of N(0, I)."""
    tangent = draws - (draws @ center)[:, None] * center
    tangent *= angle_rad / np.sqrt(draws.shape[1])
    length = np.linalg.norm(tangent, axis=1, keepdims=True)
    # sin(length) / length, whose limit at 0 is 1
    out: F64 = np.cos(length) * center + np.sinc(length / np.pi) * tangent
    return out


class SphereCMA(CMA):
    """CMA-ES on a sphere (Wang & Ponce 2022)."""

    def __init__(self, settings: SphereSettings, first: F32, norm: float, rng: np.random.Generator) -> None:
        """Begin with the codes `first` (row, latent), each brought to the length `norm`."""
        start = on_sphere(np.asarray(first, dtype=np.float64), float(norm)).astype(np.float32)
        super().__init__(start.shape[1], start, rng)
        self.settings, self._norm = settings, float(norm)
        self._center: F64 | None = None  # of length 1
        self._updates = 0

    @property
    def center(self) -> F32 | None:
        """Centre of the search; None before the first update."""
        return None if self._center is None else (self._norm * self._center).astype(np.float32)

    def ask(self) -> Asked:
        """Move the centre and draw the next generation around it."""
        if self.generation == 0:
            return self._begin()
        scores = self._record.scores()
        if self._center is not None:
            scores = scores[1:]  # the centre has no weight
        if must_ask_again(self._record, scores):
            return self._record.open_missing()
        best = self._judge(scores)
        parents: tuple[int, ...] = ()
        if best is not None:
            offset = 0 if self._center is None else 1
            parents = tuple(self._record.batch[row + offset] for row in best.rows)
        self._move(best)
        return self._draw(parents)

    def nominate(self, count: int) -> list[Nominee]:
        """Return the best codes by mean score, or as the settings say the centre first."""
        if self.settings.nominates == "best_score" or self._center is None:
            return self._record.nominate(count)
        shown = self._record.archive.nominee(self._record.batch[0])
        if shown.measurements == 0:
            return nominated(self._record, count, self.center, self._level)
        rest = [n for n in self._record.nominate(count) if n.code_id != shown.code_id]
        return [shown, *rest][:count]

    def _move(self, best: Ranked | None) -> None:
        codes = self._record.codes().astype(np.float64)
        if self._center is None:
            mean = codes.mean(axis=0) if best is None else best.weights @ codes[best.rows]
            self._center = on_sphere(mean, 1.0)
        elif best is not None:
            mean = on_sphere(best.weights @ codes[1:][best.rows], 1.0)
            self._center = slerp(self._center, mean, REACH)

    def _draw(self, parents: tuple[int, ...]) -> Asked:
        assert self._center is not None  # noqa: S101 - set before the first draw
        angle_deg = self.settings.angle_deg(self._updates)
        self._updates += 1
        draws = self.rng.standard_normal((self.settings.population, len(self._center)))
        codes = np.concatenate([self._center[None], around(self._center, draws, np.radians(angle_deg))])
        origins = [Origin(parents, "centre of the search", {})]
        origins += [Origin(parents, "drawn around the centre", {"angle_deg": angle_deg})] * len(draws)
        return self._record.open(self._record.add((self._norm * codes).astype(np.float32), origins))

    def state(self) -> dict[str, Any]:
        """Return arrays and JSON-able values."""
        return {
            "record": self._record.state(),
            "first": None if self.generation or self._first is None else self._first.copy(),
            "rng": self.rng.bit_generator.state,
            "center": None if self._center is None else self._center.copy(),
            "updates": self._updates,
            "level": self._level,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state of a search with the same settings."""
        self._record.restore(state["record"])  # refuses codes of another size
        self.rng.bit_generator.state = state["rng"]
        if state["first"] is not None:  # nothing was asked for yet
            self._first = np.array(state["first"], dtype=np.float32)
        self._center = None if state["center"] is None else np.array(state["center"], dtype=np.float64)
        self._updates = int(state["updates"])
        self._level = None if state["level"] is None else float(state["level"])
