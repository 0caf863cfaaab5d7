"""Our own search for noisy responses: gradient evolution on the sphere of typical codes.

Made by `factory`; docs/noise_aware.md explains it and says what was tried. The published searches follow the better
half of single noisy scores in small steps. Here

1. Codes are searched in units of the prior (`code_space`): z ~ N(0, I) are typical codes, of length sqrt(N) nearly
   all. The centre is a direction c on that sphere, and a generation lies on a wide cone around it,

       z = R (cos(theta) c + sin(theta) u),      u random unit vectors at right angles to c,

   because a neuron's answer to small changes drowns in noise. The centre itself is far better than the codes around
   it; it is what is nominated.
2. Every measured code counts, bad ones against: with normal scores q (Blom 1958) of the ranks as weights,

       g = sum q u / |sum q u|,      c <- c + k g, back to length 1.

   Ranks and not rates, as noise may have tails; all and not the best half: for small steps in many dimensions the best
   weights are the expected normal order statistics (Arnold 2006, "Weighted multirecombination evolution strategies");
   they learn as much from 20 codes as log weights of the best half from 40.
3. Step k = sqrt(f / T), T generations measured so far, at most `MEMORY`, f the measured part of this one: all
   generations weigh the same in c, as in the Bayesian estimate of a direction that stays; the longer the search, the
   shorter the step. The angle narrows as far as responses are reliable, and the step with it: r being the part of the
   variance over a generation that repeats show to be no noise,

       theta = theta_0 a,      k = sqrt(f a / T),      a = (theta_1 / theta_0)^min(1, sum f r^2 / `NARROWING`).
4. The length of codes follows the same way, within a factor `norm_range` of the prior's: codes differ by small random
   factors exp(spread x), and log R <- forget log R + rate sum q x / |q|.
5. Rows of the newest three generations are kept open: a late score changes the step it belongs to as if it had been in
   time. Missing rows are left out; ranks within a generation are not hurt by slow drift.
6. Nominated is the newest centre, unless repeats of another code convince. Each generation holds the centre and
   `remeasured` codes that were shown before: those with the highest mean plus sd of what is believed of them. Belief is
   shrunken (`shrinkage`): the mean of their scores drawn to that of their generation, as far as noise, estimated from
   repeats, demands. Centres are drawn to their neighbours in time.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stimuli.search.archive import Archive
from stimuli.search.code_space import CodeSpace
from stimuli.search.optimiser import F32, F64, Asked, Nominee, Origin, Scores
from stimuli.search.shrinkage import Beliefs, normal_scores

KEPT_OPEN = 3  # generations whose steps can still change
LEAST_MEASURED = 4  # fewer make no direction
CONVINCING = 4  # measurements
CLEARLY = 3  # standard errors
MEMORY = 100.0  # generations that count: what a neuron wants may change from one hour to the next
NARROWING = 45.0  # wholly reliable generations until the angle is at its least
NORM_SPREAD = 0.1  # sd of the log of a code's length within a generation
NORM_RATE = 0.05
NORM_KEPT = 0.95  # of log R from one generation to the next: without evidence it goes back to the prior's


@dataclass(frozen=True)
class NoiseAwareSettings:
    """Settings of the noise-aware search."""

    population: int = 40
    """Codes per generation, with the centre and what is measured again."""
    angle_deg: float = 50.0
    """theta_0: how far from the centre codes lie under noise, and at first."""
    least_angle_deg: float = 5.0
    """theta_1: how far they lie at last when responses are reliable."""
    remeasured: int = 1
    """Rows of each generation for promising codes of earlier ones, besides the centre."""
    norm_range: float = 1.5
    """Codes are at most so many times longer or shorter than the prior's; 1: always as long."""

    def __post_init__(self) -> None:
        """Refuse settings with which the search has no meaning."""
        if self.remeasured < 0 or self.population < LEAST_MEASURED + 1 + self.remeasured:
            raise ValueError(
                f"population {self.population} with {self.remeasured} measured again; need {LEAST_MEASURED} new ones"
            )
        if not 0 < self.least_angle_deg <= self.angle_deg < 90:
            raise ValueError(
                f"angle_deg {self.angle_deg}, least_angle_deg {self.least_angle_deg}; need 0 < least <= angle < 90"
            )
        if not 1 <= self.norm_range < np.inf:
            raise ValueError(f"norm_range {self.norm_range}; need 1 or more")


@dataclass
class Generation:
    """Draws of one generation and what was measured of them."""

    ids: tuple[int, ...]
    """(row,) identities of the new draws, by rising number."""
    directions: F32
    """(row, dimension) unit vectors u."""
    lengths: F64
    """(row,) x: standard normal, of the log length."""
    count: F64
    total: F64

    def means(self) -> F64:
        """Return the mean score of each draw (row,), NaN where nothing was measured."""
        return np.where(self.count > 0, self.total / np.maximum(self.count, 1), np.nan)


@dataclass
class Track:
    """Where the search stands: everything that a generation's step changes."""

    direction: F64
    """(dimension,) c, or zeros before the first step."""
    effort: float
    """T: generations measured."""
    narrowed: float
    """sum of f r^2"""
    log_norm: float


class NoiseAware:
    """Gradient evolution on the sphere of typical codes, for noisy, late and missing scores."""

    def __init__(self, settings: NoiseAwareSettings, space: CodeSpace, first: F32, rng: np.random.Generator) -> None:
        """Begin with the codes `first` (row, latent); `space` says which codes are typical."""
        if first.ndim != 2 or first.shape[1] != space.latent or len(first) < LEAST_MEASURED:
            raise ValueError(
                f"start codes of shape {first.shape}; need at least {LEAST_MEASURED} with {space.latent} numbers"
            )
        self.settings, self.rng = settings, rng
        self._space = space
        self._first = np.array(first, dtype=np.float32)
        self._archive = Archive(space.latent)
        self._beliefs = Beliefs()
        self._track = Track(np.zeros(space.dimension), 0.0, 0.0, 0.0)  # without the generations still open
        self._open: list[Generation] = []
        self._shown: tuple[int, ...] = ()
        self._generation = 0
        self._center: F64 | None = None

    @property
    def generation(self) -> int:
        """Generations asked for."""
        return self._generation

    @property
    def asked(self) -> Asked | None:
        """The open generation."""
        if self._generation == 0:
            return None
        return Asked(self._archive.codes(self._shown), self._shown, self._archive.origins(self._shown))

    @property
    def center(self) -> F32 | None:
        """The code in the middle of the newest generation; None before there is one."""
        return None if self._center is None else self._space.codes(self._center[None])[0]

    def ask(self) -> Asked:
        """Step with what was told since, also for the generations before, and draw the next generation."""
        if self._generation == 0:
            return self._begin()
        for generation in self._open:
            self._beliefs.settle(generation.ids, generation.means())
        while len(self._open) > KEPT_OPEN:
            self._advance(self._track, self._open.pop(0))
        track = replace(self._track)  # its arrays are never changed in place
        for generation in self._open:
            self._advance(track, generation)
        if not track.direction.any():  # nothing was measured yet
            return self._show(self._shown)
        return self._draw(track)

    def tell(self, scores: Scores) -> None:
        """Take measurements of any generation; rows that nobody asked for count as much as others."""
        self._archive.record(scores)
        for code_id, score in zip(scores.code_ids.tolist(), scores.scores.tolist(), strict=True):
            if np.isnan(score):
                continue
            self._beliefs.tell(code_id, score)
            for generation in self._open:
                row = code_id - generation.ids[0] if generation.ids else -1
                if 0 <= row < len(generation.ids):
                    generation.count[row] += 1
                    generation.total[row] += score

    def nominate(self, count: int) -> list[Nominee]:
        """Return the newest centre, then other codes by estimate; of the centres only that one, which knows most.

        A code goes before it when repeats say so: `CONVINCING` or more, with an estimate `CLEARLY` standard errors
        above that of the centre, whose own error counts too: many were measured again.
        """
        newest = self._beliefs.newest_center
        out = []
        for code_id, code, measurements in self._held(newest):
            if code_id == newest or not self._beliefs.is_center(code_id):
                estimate, error = self._beliefs.of(code_id)
                out.append(Nominee(code_id, code, estimate, error, measurements))
        noise = self._beliefs.noise or 0.0
        level = next((n.estimate for n in out if n.code_id == newest), -np.inf)
        behind_it = self._beliefs.center_measurements

        def place(n: Nominee) -> tuple[int, float]:
            error = np.sqrt(noise / max(n.measurements, 1) + noise / max(behind_it, 1))
            ahead = n.measurements >= CONVINCING and n.estimate - CLEARLY * error > level
            return (0 if ahead else 1 if n.code_id == newest else 2), -n.estimate

        return sorted(out, key=place)[:count]

    def _held(self, newest: int | None) -> list[tuple[int, F32, int]]:
        """Return identity, code and number of measurements of what was measured, and of the newest centre."""
        known = self._archive.nominate(len(self._archive))
        out = [(n.code_id, n.code, n.measurements) for n in known if n.code_id is not None]
        if newest is not None and all(code_id != newest for code_id, _, _ in out):
            out.append((newest, self._archive.codes((newest,))[0], 0))
        return out

    def _begin(self) -> Asked:
        origins = [Origin((), "start code", {"index": float(k)}) for k in range(len(self._first))]
        ids = self._archive.add(self._first, origins)
        z = self._space.coordinates(self._first)
        length = np.linalg.norm(z, axis=1, keepdims=True)
        if not (length > 0).all():
            raise ValueError("a start code is the prior's mean, which has no direction; start from draws of the prior")
        self._add(ids, (z / length).astype(np.float32), np.zeros(len(z)))
        return self._show(ids)

    def _add(self, ids: tuple[int, ...], directions: F32, lengths: F64) -> None:
        self._open.append(Generation(ids, directions, lengths, np.zeros(len(ids)), np.zeros(len(ids))))

    def _show(self, ids: tuple[int, ...]) -> Asked:
        self._archive.open(ids, self._generation)
        self._generation += 1
        self._shown = ids
        return Asked(self._archive.codes(ids), ids, self._archive.origins(ids))

    def _advance(self, track: Track, generation: Generation) -> None:
        """Make the step of a generation: equations 2 to 4 of the module's docstring."""
        scores = generation.means()
        rows = np.flatnonzero(np.isfinite(scores))
        if len(rows) < LEAST_MEASURED:
            return
        weights = normal_scores(scores[rows]) * self._beliefs.worth(generation.count[rows])
        gradient = weights.astype(np.float32) @ generation.directions[rows]
        size = float(np.linalg.norm(gradient))
        if not size > 0:  # all scores alike
            return
        gradient = gradient.astype(np.float64) / size
        fraction = len(rows) / len(scores)
        track.effort = min(track.effort + fraction, MEMORY)
        track.narrowed = min(track.narrowed + fraction * (self._beliefs.reliability or 0.0) ** 2, NARROWING)
        if not track.direction.any():
            track.direction = gradient
            return
        step = np.sqrt(fraction / track.effort * self._narrowing(track))
        direction = track.direction + step * gradient
        track.direction = direction / np.linalg.norm(direction)
        slope = float(weights @ generation.lengths[rows]) / float(np.linalg.norm(weights))
        bound = np.log(self.settings.norm_range)
        track.log_norm = float(np.clip(NORM_KEPT * track.log_norm + NORM_RATE * slope, -bound, bound))

    def _narrowing(self, track: Track) -> float:
        """Return a: 1 under noise, theta_1 / theta_0 after many reliable generations."""
        return float((self.settings.least_angle_deg / self.settings.angle_deg) ** (track.narrowed / NARROWING))

    def _draw(self, track: Track) -> Asked:
        again = self._promising()
        fresh = self.settings.population - 1 - len(again)
        center = track.direction.astype(np.float32)
        directions = self.rng.standard_normal((fresh, len(center)), dtype=np.float32)
        directions -= np.outer(directions @ center, center)
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        lengths = self.rng.standard_normal(fresh) if self.settings.norm_range > 1 else np.zeros(fresh)
        angle = self.settings.angle_deg * self._narrowing(track)
        theta = np.float32(np.deg2rad(angle))
        typical = float(np.sqrt(len(center)) * np.exp(track.log_norm))
        radius = (typical * np.exp(NORM_SPREAD * lengths)).astype(np.float32)
        z = radius[:, None] * (np.cos(theta) * center + np.sin(theta) * directions)
        parents = tuple(self._open[-1].ids)
        figures = {"norm": float(np.exp(track.log_norm)), "angle_deg": angle}
        self._center = typical * track.direction
        middle = self._archive.add(self._space.codes(self._center[None]), [Origin(parents, "centre", figures)])
        self._beliefs.center(middle[0])
        ids = self._archive.add(self._space.codes(z), [Origin(middle, "drawn around the centre", figures)] * fresh)
        self._add(ids, directions, lengths)
        return self._show(middle + ids + again)

    def _promising(self) -> tuple[int, ...]:
        """Return the codes to be measured again: highest mean plus sd of what is believed; no centres."""
        held = self._archive.nominate(len(self._archive))
        able = [(sum(self._beliefs.of(n.code_id)), n.code_id) for n in held if n.code_id is not None]
        able = [(hope, code_id) for hope, code_id in able if not self._beliefs.is_center(code_id)]
        return tuple(code_id for _, code_id in sorted(able, reverse=True)[: self.settings.remeasured])

    def state(self) -> dict[str, Any]:
        """Return arrays and JSON-able values."""
        track = self._track
        return {
            "archive": self._archive.state(),
            "beliefs": self._beliefs.state(),
            "rng": self.rng.bit_generator.state,
            "generation": self._generation,
            "shown": list(self._shown),
            "center": None if self._center is None else self._center.copy(),
            "track": {
                "direction": track.direction.copy(),
                "effort": track.effort,
                "narrowed": track.narrowed,
                "log_norm": track.log_norm,
            },
            "open": [
                {
                    "ids": list(g.ids),
                    "directions": g.directions.copy(),
                    "lengths": g.lengths.copy(),
                    "count": g.count.copy(),
                    "total": g.total.copy(),
                }
                for g in self._open
            ],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state of a search with the same settings; raises ValueError where its codes have another size."""
        track = state["track"]
        direction = np.array(track["direction"], dtype=np.float64)
        if direction.shape != (self._space.dimension,):
            raise ValueError(f"a state of {direction.shape} dimensions; this search has {self._space.dimension}")
        self._archive.restore(state["archive"])  # refuses codes of another size
        self._beliefs.restore(state["beliefs"])
        self.rng.bit_generator.state = state["rng"]
        self._generation, self._shown = int(state["generation"]), tuple(state["shown"])
        self._center = None if state["center"] is None else np.array(state["center"], dtype=np.float64)
        self._track = Track(
            direction, float(track["effort"]), float(track["narrowed"]), float(track["log_norm"])
        )
        self._open = [
            Generation(
                tuple(g["ids"]),
                np.array(g["directions"], dtype=np.float32),
                *(np.array(g[key], dtype=np.float64) for key in ("lengths", "count", "total")),
            )
            for g in state["open"]
        ]
