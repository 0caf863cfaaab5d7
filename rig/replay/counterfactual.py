"""Counterfactual: what another optimiser, seed or generator would have done with this session.

Two questions with two kinds of answers. *One step*: told exactly what the recorded agent was told, what would the other
one have shown next, generation by generation? That uses recorded responses only, and goes no further than one step:
the neuron never saw the other images. *Closed loop*: both agents evolve from the start against a twin, a model fitted
to this session, with the same noise. That goes as far as one likes, and is worth what the twin is worth.

Called by `stimloop replay SESSION --counterfactual OTHER.yaml`. It reads the journal and writes elsewhere. The models
come in through `WhatIf`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from scipy.stats import t as student

from rig.config.phases import EvolvePhase
from rig.config.reading import ConfigError, parse
from rig.config.session import Config
from rig.messages import RATE_UNITS
from rig.replay.model_side import AgainstTwin, TwinNeuron, WhatIf
from rig.replay.recorded import Pictures, RecordedGeneration, RecordedSession, read
from rig.replay.records import ReplayError, config_of, session_start
from stimuli.spec import Place

F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]
MAY_CHANGE = ("seed", "phases", "name")
RECORDED, CHANCE = "recorded", "recorded, other seed"
CHANCE_SEED = 1_000_003  # added to the session's seed for what chance alone changes
UNKNOWN_SHARE = 0.2  # of a run's images: from there on the page warns


@dataclass(frozen=True)
class Alternative:
    """Another config for the same session."""

    name: str
    config: Config


def alternative(path: Path, recorded: Config) -> Alternative:
    """Read a user's overrides; raises ReplayError with one clear message for anything wrong in them."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ReplayError(f"{path}: cannot be read as YAML: {error}") from error
    if not isinstance(raw, dict) or not raw:
        raise ReplayError(f"{path}: give `seed` or `phases` as in a config file, whatever is to be different")
    wrong = [str(key) for key in raw if key not in MAY_CHANGE]
    if wrong:
        raise ReplayError(
            f"{path}: {wrong[0]}: cannot be different in a counterfactual, the responses were recorded with the "
            f"session's own; only {' and '.join(MAY_CHANGE[:2])} can"
        )
    try:
        config = parse(yaml.safe_dump({**recorded.model_dump(mode="json"), **raw}))
    except ConfigError as error:
        raise ReplayError(f"{path}: {error}") from error
    if config.model_copy(update={"name": recorded.name}) == recorded:
        raise ReplayError(f"{path}: it says nothing that differs from the session's own config")
    return Alternative(str(raw.get("name", path.stem)), config)


def folder_name(path: Path, files: Sequence[Path]) -> str:
    """Return the folder that a comparison goes to, by the names of its alternatives. Raises ReplayError."""
    recorded = config_of(session_start(path))
    return "-".join(alternative(file, recorded).name for file in files)


def evolutions(config: Config) -> list[tuple[int, EvolvePhase]]:
    """Return the phases that evolve for a single unit at one size, with their numbers: a twin stands for one neuron."""
    phases = enumerate(config.phases)
    return [(k, p) for k, p in phases if isinstance(p, EvolvePhase) and p.unit is not None and len(p.sizes_deg) < 2]


def _pairs(recorded: Config, other: Alternative) -> list[tuple[int, int]]:
    """Return (recorded phase, other's phase) of the evolutions that are compared: in order, of the same unit."""
    own, theirs = evolutions(recorded), evolutions(other.config)
    if len(own) != len(theirs):
        raise ReplayError(
            f"{other.name}: has {len(theirs)} evolve phases, the session has {len(own)}; give one for each, in order"
        )
    for (_, a), (k, b) in zip(own, theirs, strict=True):
        if a.unit != b.unit:
            raise ReplayError(
                f"{other.name}: phases.{k}.unit: {b.unit}, but the session evolved for {a.unit}; keep the unit"
            )
        if a.place != b.place:
            raise ReplayError(f"{other.name}: phases.{k}.place: not where the session's images lay; keep the place")
    return [(a[0], b[0]) for a, b in zip(own, theirs, strict=True)]


def counterfactual(
    path: Path,
    files: Sequence[Path],
    models: WhatIf,
    repeats: int,
    most: int | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Answer both questions for the session whose journal is `path`; return the figures, JSON-able but for frames.

    `files` are the alternatives, `repeats` the runs of each agent against the twin, `most` the generations of each
    (None: as the configs say); `say` hears of progress. Raises ReplayError.
    """
    if repeats < 2:
        raise ReplayError("--repeats: two or more runs of each agent are needed to tell an agent from its luck")
    own = config_of(session_start(path))
    if not evolutions(own):
        raise ReplayError("no phase of this session chose its images by the responses of a single unit (`unit:`)")
    others = [alternative(file, own) for file in files]
    names = [RECORDED, *(o.name for o in others)]
    if len(set(names)) != len(names):
        raise ReplayError(f"two alternatives have the same name ({', '.join(names)}); give each a name of its own")
    pairs = {o.name: dict(_pairs(own, o)) for o in others}
    session = read(path, models.reduced)
    configs = {RECORDED: own, **{o.name: o.config for o in others}}
    out = []
    for phase, settings in evolutions(own):
        generations = session.phases.get(phase, [])
        if not generations:
            say(f"phase {phase + 1}: nothing of it is in the log; left out")
            continue
        place = generations[0].place
        there = [one for one in generations if one.place == place]
        if len(there) < len(generations):
            say(f"phase {phase + 1}: only the {len(there)} generations at the place of its first one are looked at")
        phases = {RECORDED: phase, **{name: pairs[name][phase] for name in pairs}}
        placed = {name: at_place(configs[name], phases[name], place) for name in configs}
        out.append(_Phase(session, phase, settings, there, models, placed, phases, say).answers(repeats, most))
    if not out:
        raise ReplayError("the log holds no generation of an evolution")
    start = session_start(path)
    return {
        "session": path.parent.name,
        "simulated": start.simulated,
        "unit_of_rates": RATE_UNITS[session.measure],
        "phases": out,
    }


def at_place(config: Config, phase: int, place: Place | None) -> Config:
    """Return a config whose phase number `phase` shows its images at `place`, also where that was yet to be found."""
    changed = config.phases[phase].model_copy(update={"place": place})
    return config.model_copy(update={"phases": (*config.phases[:phase], changed, *config.phases[phase + 1 :])})


class _Phase:
    """One evolution of the session, and what others would have made of it."""

    def __init__(
        self,
        session: RecordedSession,
        phase: int,
        settings: EvolvePhase,
        generations: list[RecordedGeneration],
        models: WhatIf,
        configs: dict[str, Config],
        phases: dict[str, int],
        say: Callable[[str], None],
    ) -> None:
        self._session, self._phase, self._settings, self._generations = session, phase, settings, generations
        self._models, self._configs, self._phases, self._say = models, configs, phases, say
        self._unit = session.config.responses.units.index(settings.unit)
        self._rate_unit = RATE_UNITS[session.measure]

    def answers(self, repeats: int, most: int | None) -> dict[str, Any]:
        twin = self._fit()
        worth = twin.worth
        self._say(
            f"phase {self._phase + 1}, {self._settings.unit}: twin ({worth.features}) fitted to {worth.images} images, "
            f"{worth.trials} responses; held-out r {worth.held_out_r:.2f}, ceiling {worth.ceiling_r:.2f}"
        )
        draw = Pictures(self._session.config, self._models.reduced, self._generations[0].place)
        runs: dict[str, list[Sequence[AgainstTwin]]] = {}
        for name, config in self._configs.items():
            self._say(f"phase {self._phase + 1}: {name} against the twin, {repeats} runs")
            run = self._models.closed_loop
            runs[name] = [run(config, self._phases[name], twin, draw, k, most) for k in range(repeats)]
        scores = [g.scores(self._unit) for g in self._generations]
        warnings = [*worth.warnings(), *misses(runs[RECORDED], scores), *_unknown(runs)]
        apart = {name: _difference(runs[RECORDED], runs[name]) for name in runs if name != RECORDED}
        return {
            "phase": self._phase,
            "unit": self._settings.unit,
            "twin": {
                "features": worth.features,
                "images": worth.images,
                "trials": worth.trials,
                "held_out_r": worth.held_out_r,
                "ceiling_r": None if np.isnan(worth.ceiling_r) else worth.ceiling_r,
                "later_r": worth.later_r,
                "held_out_ci": _known(worth.held_out_ci),
                "ceiling_ci": _known(worth.ceiling_ci),
                "later_ci": _known(worth.later_ci),
            },
            "warnings": warnings,
            "measured_mean": [_mean(one) for one in scores],
            "one_step": self._one_step(twin),
            "closed_loop": {name: _summary(runs[name], repeats) for name in runs},
            "final_difference": apart,
            "verdicts": [verdict(name, one, self._rate_unit) for name, one in apart.items()],
            "latent_similarity": _similarities(runs),
        }

    def _fit(self) -> TwinNeuron:
        session, place = self._session, self._generations[0].place
        rates = session.rates[:, self._unit]
        # A receptive field sees other parts of an image that lies elsewhere: such responses say nothing of this place.
        known = np.isfinite(rates) & np.array([session.place[k] == place for k in session.image], np.bool_)
        try:
            return self._models.fit(session.pictures, session.image[known], rates[known], session.fixed[known], 0)
        except ValueError as error:
            raise ReplayError(f"no twin of {self._settings.unit}: {error}") from error

    def _one_step(self, twin: TwinNeuron) -> dict[str, Any]:
        """Compare what each optimiser would have shown next with what was shown, at every generation."""
        own = self._configs[RECORDED]
        chance = own.model_copy(update={"seed": own.seed + CHANCE_SEED})
        configs = {CHANCE: (chance, self._phase)}
        left_out: dict[str, str] = {}
        for name, config in self._configs.items():
            if name == RECORDED:
                continue
            theirs = config.phases[self._phases[name]]
            if isinstance(theirs, EvolvePhase) and theirs.generator != self._settings.generator:
                left_out[name] = "its generator is another one: the recorded codes mean nothing to it"
            else:
                configs[name] = (config, self._phases[name])
        rows: dict[str, list[dict[str, float]]] = {name: [] for name in configs}
        for before, after in pairwise(self._generations):
            if after.generation != before.generation + 1:
                continue
            scores = before.scores(self._unit)
            shown = float(twin.rate_hz(after.pictures).mean())
            for name, (config, phase) in configs.items():
                codes = self._models.would_show(config, phase, before.codes, scores, before.generation)
                pictures = self._models.reduced(self._models.decode(own, self._phase, codes))
                rows[name].append(
                    {
                        "generation": float(after.generation),
                        "distance": float(np.linalg.norm(codes.mean(axis=0) - after.codes.mean(axis=0))),
                        "same_images": float(_shared(codes, after.codes)),
                        "twin_mean_shown": shown,
                        "twin_mean_instead": float(twin.rate_hz(pictures).mean()),
                    }
                )
        return {"rows": rows, "left_out": left_out}


def _mean(scores: F64) -> float | None:
    return float(np.nanmean(scores)) if np.isfinite(scores).any() else None


def _shared(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> int:
    """Return how many codes of `a` are in `b`, bit for bit."""
    known = {row.tobytes() for row in b}
    return sum(row.tobytes() in known for row in a)


def _summary(runs: list[Sequence[AgainstTwin]], repeats: int) -> dict[str, Any]:
    """Return curves over generations, mean and SEM over runs, and the best image of the run that ended best."""
    length = min(len(run) for run in runs)
    mean = np.array([[g.mean for g in run[:length]] for run in runs])
    best = np.array([[g.best for g in run[:length]] for run in runs])
    last = max((run[length - 1] for run in runs), key=lambda g: g.best)
    root = np.sqrt(repeats)
    return {
        "generations": length,
        "runs": repeats,
        "mean": mean.mean(axis=0).tolist(),
        "mean_sem": (mean.std(axis=0, ddof=1) / root).tolist(),
        "best": best.mean(axis=0).tolist(),
        "best_sem": (best.std(axis=0, ddof=1) / root).tolist(),
        "final_mean_of_runs": mean[:, -1].tolist(),
        "unknown_share": float(np.mean([g.unknown for run in runs for g in run[-3:]])),
        "best_frame": last.best_frame,
    }


def _difference(own: list[Sequence[AgainstTwin]], theirs: list[Sequence[AgainstTwin]]) -> dict[str, float]:
    """Return by how much the other's last generation is better, run by run with the same noise: mean and SEM."""
    apart = np.array([b[-1].mean - a[-1].mean for a, b in zip(own, theirs, strict=True)])
    return {"mean": float(apart.mean()), "sem": float(apart.std(ddof=1) / np.sqrt(len(apart))), "runs": len(apart)}


def verdict(name: str, apart: dict[str, float], unit: str) -> str:
    """Say whether the last generation of another agent is told from the recorded agent's, by the paired t-test."""
    runs = int(apart["runs"])
    reach = float(student.ppf(0.975, runs - 1)) * apart["sem"]
    said = f"{name} minus recorded: {apart['mean']:+.1f} ± {apart['sem']:.1f} {unit} (SE, n = {runs} runs)"
    told = "not distinguishable from"
    if abs(apart["mean"]) > reach:
        told = "more than" if apart["mean"] > 0 else "less than"
    return f"{said}: against the twin {told} the recorded agent's last generation (paired t, 95 %)"


def misses(runs: list[Sequence[AgainstTwin]], measured: list[F64]) -> list[str]:
    """Warn where the recorded agent's runs against the twin do not end where the neuron did.

    `measured`: the scores (image,) of each recorded generation. The session is one run more: its last generation should
    lie within the 95 % prediction interval of the others, its own error added.
    """
    last = min(len(measured), *(len(run) for run in runs)) - 1
    ended = np.array([run[last].mean for run in runs])
    scores = measured[last][np.isfinite(measured[last])]
    if len(scores) < 2:
        return []
    spread = ended.var(ddof=1) * (1 + 1 / len(ended)) + scores.var(ddof=1) / len(scores)
    if abs(scores.mean() - ended.mean()) <= student.ppf(0.975, len(ended) - 1) * np.sqrt(spread):
        return []
    sem = ended.std(ddof=1) / np.sqrt(len(ended))
    return [
        f"the twin misses the measured curve: at generation {last + 1} the recorded agent reaches {ended.mean():.1f} ± "
        f"{sem:.1f} against it (SEM, n = {len(ended)} runs), and the neuron gave {scores.mean():.1f} on average; so "
        "responses to evolved images are not what this neuron would give"
    ]


def _known(interval: tuple[float, float]) -> list[float] | None:
    return None if np.isnan(interval).any() else list(interval)


def _similarities(runs: dict[str, list[Sequence[AgainstTwin]]]) -> dict[str, float]:
    """Return the mean cosine between the best codes of all pairs of runs, within and between agents."""
    out = {}
    names = list(runs)
    for i, a in enumerate(names):
        for b in names[i:]:
            first, second = ([run[-1].best_code for run in runs[name]] for name in (a, b))
            pairs = [(x, y) for k, x in enumerate(first) for m, y in enumerate(second) if a != b or k < m]
            if pairs and all(x.shape == y.shape for x, y in pairs):
                cosines = [float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y))) for x, y in pairs]
                out[a if a == b else f"{a} / {b}"] = float(np.mean(cosines))
    return out


def _unknown(runs: dict[str, list[Sequence[AgainstTwin]]]) -> list[str]:
    out = []
    for name, some in runs.items():
        share = float(np.mean([g.unknown for run in some for g in run[-3:]]))
        if share > UNKNOWN_SHARE:
            out.append(
                f"{name}: {share:.0%} of its last images are unlike what was shown in the session; there the twin only "
                "extrapolates"
            )
    return out
