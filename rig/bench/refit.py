"""`stimloop bench refit`: what it needs of the models, which `rig.cli` joins, and what it prints."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rig.config.refit_bench import RefitBench

Say = Callable[[str], None]

UNITS, TRIALS, BATCHES = 100, 2000, (1, 10)


@dataclass(frozen=True)
class RefitSide:
    """What the bench takes from the models."""

    run: Callable[[RefitBench, Callable[[], int], Say], dict[str, Any]]
    time_updates: Callable[[int, int, tuple[int, ...], Callable[[], int]], list[dict[str, Any]]]


def lines(found: dict[str, Any]) -> list[str]:
    """Return the figures in words."""
    out = [f"{'images':>6s} {'r':>6s} {'R2_ER':>6s} {'update ms':>10s} {'tuning ms':>10s} {'|stream - batch|':>17s}"]
    out += [
        f"{row['images_seen']:6d} {_number(row['heldout_r_median'])} {_number(row['heldout_r2_er_median'])}"
        f" {row['update_ms']:10.2f} {row['tune_ms']:10.0f} {row['max_abs_diff_to_batch']:17.1e}"
        for row in found["rows"]
    ]
    gain = found["gain_over_plain"]
    out.append(f"plain frozen block 7 with kernel ridge, same images: r {found['plain_r_median']:.3f}")
    if gain["units"]:
        out.append(
            f"gain per neuron: mean {gain['mean']:+.3f} ({gain['mean_low']:+.3f} to {gain['mean_high']:+.3f}), median"
            f" {gain['median']:+.3f} ({gain['median_low']:+.3f} to {gain['median_high']:+.3f});"
            f" better in {gain['better_in']} of {gain['units']}"
        )
    return out + [
        f"update of {row['batch']} trials, {row['units']} units, {row['trials']} trials: {row['update_ms']:.1f} ms"
        for row in found.get("timing", ())
    ]


def _number(value: float | None) -> str:
    return "     -" if value is None else f"{value:6.3f}"
