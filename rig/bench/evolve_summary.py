"""From the rows of `stimloop bench evolve` to its figures: who won, by how much, and what is unusual."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rig.bench.evolve_statistics import SATURATION, Row, by_unit, presentations_to_best, ratio, strength
from rig.config.evolution_bench import OURS

RULES = {"true_best": "its best", "true_center": "the centre of its search"}


def summary(rows: Sequence[Row], units: Sequence[Row], main: str) -> dict[str, Any]:
    """Return the figures of rows; `units` describe the neurons, `main` is the generator that the headline is about."""
    known = {unit["name"]: unit for unit in units}
    reached = _reached(rows, known)
    rows = [{**row, "presentations_to_90": reached.get(row["key"])} for row in rows]
    plain = [row for row in rows if not row["disturbed"]]
    noises = list(dict.fromkeys(row["noise"] for row in plain))
    labels = list(dict.fromkeys(row["generator"] for row in plain))
    versus = {n: best for n in noises if (best := against_best_peer(_of(plain, main, n), known)) is not None}
    headline = {
        n: {**{k: v["ratio"][k] for k in ("ratio", "low", "high", "median", "units")}, "peer": v["peer"]}
        for n, v in versus.items()
    }
    return {
        "generator": main,
        "ratio_vs_best_peer": headline,
        "versus": versus,
        "beats_best_natural": {n: f for n in noises if (f := beats(_of(plain, main, n), known)) is not None},
        "by_optimiser": [line for g in labels for n in noises for line in table(_of(plain, g, n), known, g, n)],
        "generators": {n: r for n in noises if (r := between_generators(plain, known, main, n))},
        "disturbed": disturbance(rows, known),
        "unusual": unusual(plain, known),
        "units": [{k: v for k, v in unit.items() if k not in ("models", "natural_rates")} for unit in units],
        "rows": rows,
    }


def _of(rows: Sequence[Row], generator: str, noise: str) -> list[Row]:
    return [row for row in rows if row["generator"] == generator and row["noise"] == noise]


def _common(a: Sequence[Row], b: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Return the rows of two contestants on units and seeds that both have finished."""
    both = {(r["unit"], r["seed"]) for r in a} & {(r["unit"], r["seed"]) for r in b}
    return tuple([r for r in rows if (r["unit"], r["seed"]) in both] for rows in (a, b))  # type: ignore[return-value]


def _by_optimiser(rows: Sequence[Row]) -> dict[str, list[Row]]:
    out: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        out[row["optimiser"]].append(row)
    return dict(out)


def rule(rows: Sequence[Row], units: Mapping[str, Row]) -> tuple[float | None, str]:
    """Return the strength of one optimiser by the better of the two rules by which it may nominate, and that rule.

    Ours has one rule, its own. The others may, over all units, bet on the image with the best score or on the centre
    of their search, whichever suits them better.
    """
    fields = ["true_best"] if rows[0]["optimiser"] == OURS else list(RULES)
    worth = {field: strength(by_unit(rows, units, field), units) for field in fields}
    best = max(fields, key=lambda f: -np.inf if (w := worth[f]) is None else w)
    return worth[best], best


def against_best_peer(rows: Sequence[Row], units: Mapping[str, Row]) -> dict[str, Any] | None:
    """Compare ours with the best of the others, and that with saturation; None without both.

    The best one is chosen by its median over units, on the units and seeds that ours has too.
    """
    kinds = _by_optimiser(rows)
    ours = kinds.pop(OURS, [])
    ranked = []
    for name, theirs in kinds.items():
        own, other = _common(ours, theirs)
        if other and (found := rule(other, units))[0] is not None:
            ranked.append((found[0], name, found[1], own, other))
    if not ranked:
        return None
    _, name, field, own, other = max(ranked, key=lambda r: r[0])
    return {
        "peer": name,
        "nominates": RULES[field],
        "seeds": len({r["seed"] for r in own}),
        "ratio": ratio(by_unit(own, units, "true_best"), by_unit(other, units, field)).figures(),
        "saturated": ratio(by_unit(own, units, "true_best", True), by_unit(other, units, field, True)).figures(),
    }


def beats(
    rows: Sequence[Row], units: Mapping[str, Row], optimiser: str = OURS, field: str = "true_best"
) -> float | None:
    """Return the fraction of units whose nominated image, mean over seeds, beats the best natural image."""
    values = by_unit([r for r in rows if r["optimiser"] == optimiser], units, field)
    if not values:
        return None
    wins = [v > units[n]["natural_best"] - units[n]["natural_mean"] for n, v in values.items()]
    return round(float(np.mean(wins)), 4)


def table(rows: Sequence[Row], units: Mapping[str, Row], generator: str, noise: str) -> list[dict[str, Any]]:
    """Return one line for each optimiser under a generator and a noise, the strongest first."""
    kinds = _by_optimiser(rows)
    lines = []
    for name, own in kinds.items():
        worth, field = rule(own, units)
        values, center = by_unit(own, units, "true_best"), by_unit(own, units, "true_center")
        reached = [r["presentations_to_90"] for r in own]
        times = [r["update_ms"] for r in own if r["update_ms"] is not None]
        lines.append(
            {
                "generator": generator,
                "noise": noise,
                "optimiser": name,
                "runs": len(own),
                "units": len(values),
                "strength": worth,
                "nominates": RULES[field],
                "strength_of_best": strength(values, units),
                "strength_of_center": strength(center, units),
                "strength_of_best_shown": strength(by_unit(own, units, "best_shown"), units),
                "beats_best_natural": beats(own, units, name, field),
                "ours_over_it": _ours_over(kinds, name, units, field),
                "reached_90": f"{sum(r is not None for r in reached)} of {len(reached)}",
                "presentations_to_90": _median([r for r in reached if r is not None]),
                "update_ms": _median(times),
            }
        )
    return sorted(lines, key=lambda line: -(line["strength"] if line["strength"] is not None else -np.inf))


def _ours_over(
    kinds: Mapping[str, Sequence[Row]], name: str, units: Mapping[str, Row], field: str
) -> dict[str, Any] | None:
    if name == OURS or OURS not in kinds:
        return None
    own, other = _common(kinds[OURS], kinds[name])
    return ratio(by_unit(own, units, "true_best"), by_unit(other, units, field)).figures()


def _median(values: Sequence[float]) -> float | None:
    return round(float(np.median(values)), 2) if values else None


def between_generators(rows: Sequence[Row], units: Mapping[str, Row], main: str, noise: str) -> dict[str, Any]:
    """Return the ratio of the main generator to each other one, with our optimiser or else the first one."""
    rows = [r for r in rows if r["noise"] == noise]
    names = [r["optimiser"] for r in rows]
    if not names:
        return {}
    chosen = OURS if OURS in names else names[0]
    out: dict[str, Any] = {}
    for other in dict.fromkeys(r["generator"] for r in rows):
        a, b = _common(*([r for r in _of(rows, g, noise) if r["optimiser"] == chosen] for g in (main, other)))
        if other != main and a:
            pair = ratio(by_unit(a, units, "true_best"), by_unit(b, units, "true_best"))
            out[other] = {"optimiser": chosen, **pair.figures()}
    return out


def disturbance(rows: Sequence[Row], units: Mapping[str, Row]) -> list[dict[str, Any]]:
    """Return disturbed over undisturbed runs at equal usable presentations, by generator, noise and optimiser."""
    lines = []
    for generator, noise, optimiser in dict.fromkeys(
        (r["generator"], r["noise"], r["optimiser"]) for r in rows if r["disturbed"]
    ):
        same = [r for r in _of(rows, generator, noise) if r["optimiser"] == optimiser]
        a, b = _common([r for r in same if r["disturbed"]], [r for r in same if not r["disturbed"]])
        pair = ratio(by_unit(a, units, "true_best"), by_unit(b, units, "true_best"))
        lines.append({"generator": generator, "noise": noise, "optimiser": optimiser, **pair.figures()})
    return lines


def unusual(rows: Sequence[Row], units: Mapping[str, Row]) -> list[str]:
    """Return in words which units do not behave like the rest."""
    out = [f"{name}: {remark}" for name, unit in units.items() for remark in unit["remarks"]]
    for name, unit in units.items():
        own = [r["true_best"] for r in rows if r["unit"] == name]
        if own and max(own) > SATURATION * unit["natural_best"]:
            share = np.mean([v > SATURATION * unit["natural_best"] for v in own])
            out.append(f"{name}: {share:.0%} of runs end above {SATURATION} x the best natural image (saturated)")
        if own and max(own) <= unit["natural_mean"]:
            out.append(f"{name}: no run ends above its mean natural rate")
    return out


def _reached(rows: Sequence[Row], units: Mapping[str, Row]) -> dict[str, int | None]:
    """Return by key after how many presentations a run was at 90 % of the best end on the same task."""
    contestants: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        contestants[row["generator"], row["noise"], row["disturbed"], row["optimiser"]].append(row)
    tasks: dict[tuple[Any, ...], dict[str, list[tuple[int, float]]]] = defaultdict(dict)
    for own in contestants.values():
        column = 1 + list(RULES).index(rule(own, units)[1])
        for row in own:
            task = (row["unit"], row["generator"], row["noise"], row["seed"], row["disturbed"])
            tasks[task][row["key"]] = [(p[0], p[column]) for p in row["curve"] if p[column] is not None]
    out: dict[str, int | None] = {}
    for task, curves in tasks.items():
        out |= presentations_to_best(curves, units[task[0]]["natural_mean"])
    return out
