"""The figures of a counterfactual: curves over runs, differences between agents, and what to be warned of. Pure.

Used by `rig.replay.counterfactual`. Values are those of the target, as twins or neurons gave them: of a suppressed one
the lower ones are better.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student

from rig.replay.model_side import AgainstTwin, TwinWorth

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
UNKNOWN_SHARE = 0.2  # of a run's images: from there on the page warns


def mean_of(scores: F64) -> float | None:
    """Return the mean of the known ones, None without any."""
    return float(np.nanmean(scores)) if np.isfinite(scores).any() else None


def shared(a: F32, b: F32) -> int:
    """Return how many codes of `a` are in `b`, bit for bit."""
    known = {row.tobytes() for row in b}
    return sum(row.tobytes() in known for row in a)


def summary(runs: list[Sequence[AgainstTwin]], sign: float) -> dict[str, Any]:
    """Return curves over generations, mean and SEM over runs, and the best image of the run that ended best.

    `sign`: 1, or -1 where lower values are better.
    """
    length = min(len(run) for run in runs)
    mean = np.array([[g.mean for g in run[:length]] for run in runs])
    best = np.array([[g.best for g in run[:length]] for run in runs])
    last = max((run[length - 1] for run in runs), key=lambda g: sign * g.best)
    root = np.sqrt(len(runs))
    return {
        "generations": length,
        "runs": len(runs),
        "mean": mean.mean(axis=0).tolist(),
        "mean_sem": (mean.std(axis=0, ddof=1) / root).tolist(),
        "best": best.mean(axis=0).tolist(),
        "best_sem": (best.std(axis=0, ddof=1) / root).tolist(),
        "final_mean_of_runs": mean[:, -1].tolist(),
        "unknown_share": float(np.mean([g.unknown for run in runs for g in run[-3:]])),
        "best_frame": last.best_frame,
    }


def difference(own: list[Sequence[AgainstTwin]], theirs: list[Sequence[AgainstTwin]]) -> dict[str, float]:
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


def known(interval: tuple[float, float]) -> list[float] | None:
    """Return an interval as JSON has it, None where it is not known."""
    return None if np.isnan(interval).any() else list(interval)


def similarities(runs: dict[str, list[Sequence[AgainstTwin]]]) -> dict[str, float]:
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


def unknown(runs: dict[str, list[Sequence[AgainstTwin]]]) -> list[str]:
    """Warn of agents whose last images are unlike what was shown."""
    out = []
    for name, some in runs.items():
        share = float(np.mean([g.unknown for run in some for g in run[-3:]]))
        if share > UNKNOWN_SHARE:
            out.append(
                f"{name}: {share:.0%} of its last images are unlike what was shown in the session; there the twin only "
                "extrapolates"
            )
    return out


def worth_of(worth: TwinWorth) -> dict[str, Any]:
    """Return what a twin is worth, JSON-able."""
    return {
        "features": worth.features,
        "images": worth.images,
        "trials": worth.trials,
        "held_out_r": worth.held_out_r,
        "ceiling_r": None if np.isnan(worth.ceiling_r) else worth.ceiling_r,
        "later_r": worth.later_r,
        "held_out_ci": known(worth.held_out_ci),
        "ceiling_ci": known(worth.ceiling_ci),
        "later_ci": known(worth.later_ci),
    }
