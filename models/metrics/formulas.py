"""The formulas, each from sums over images of a few columns, so that one resampling of images serves them all.

Notation: image i, its usable repeats j = 1..k_i, response r_ij, image mean y_i, its variance s_i^2 (ddof 1), mean
prediction x_i; m images. s2, the noise variance, is the mean of s_i^2 over images with two repeats or more. Where the
published formula assumes equal repeats, the one here has each image's own k_i, and is the published one where they are
equal; every image counts the same. Called by `models.metrics.intervals`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.metrics.sums import ImageSums

F64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]
Totals = Mapping[str, F64]
"""Weighted sums over images of the columns, each (..., unit)."""

EPS = 1e-8  # added to each sd of a correlation, as its source does
CONSTANT = 1e-12  # a variance below this part of the mean square is rounding
LEAST_IMAGES = 3
LEAST_FEV = 0.15  # below, FEVe divides by almost nothing and its source shows none

Columns = Callable[[ImageSums], dict[str, F64]]


@dataclass(frozen=True)
class Formula:
    """One score."""

    name: str
    title: str
    """As written for people, with its source."""
    columns: Columns
    """Columns (image, unit) to be summed."""
    combine: Callable[[Totals], F64]
    """From sums (..., unit) to the score; NaN where it is not defined."""
    predicts: bool = True
    """It needs predictions."""
    repeats: bool = True
    """It needs two repeats of an image."""
    counts: bool = False
    """It is for counts only."""
    unsound: str = "the responses vary no more than their noise, or not at all"
    """Why `combine` says NaN of enough data."""
    shown: Callable[[Totals], Bool] | None = None
    """Of which units the score is shown at all; resampled data are not asked."""


def _safe(a: F64, b: F64) -> F64:
    """Return a / b, 0 where b is 0 (a column of an image that does not count)."""
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)


def _ratio(a: F64, b: F64) -> F64:
    """Return a / b, NaN where b is not above 0."""
    return np.divide(a, b, out=np.full_like(a, np.nan), where=b > 0)


def _variance(s: ImageSums) -> F64:
    """Return s_i^2, 0 for images with fewer than two repeats."""
    return np.maximum(_safe(s.square - _safe(s.sum**2, s.count), s.count - 1), 0.0)


def _correlation(n: F64, x: F64, y: F64, xx: F64, yy: F64, xy: F64) -> F64:
    """Return mean(z1 z2) with sd of ddof 0, from sums over n pairs; NaN where one does not vary."""
    mx, my, mxx, myy = (_ratio(v, n) for v in (x, y, xx, yy))
    vx, vy = mxx - mx**2, myy - my**2
    with np.errstate(invalid="ignore"):
        varies = (vx > CONSTANT * mxx) & (vy > CONSTANT * myy)
        r = (_ratio(xy, n) - mx * my) / ((np.sqrt(vx) + EPS) * (np.sqrt(vy) + EPS))
    return np.where(varies, r, np.nan)


# --- correlations -----------------------------------------------------------------------------------------------------


def _trial_columns(s: ImageSums) -> dict[str, F64]:
    return {
        "n": s.count, "x": s.predicted, "y": s.sum, "xx": s.predicted_square, "yy": s.square, "xy": s.product
    }  # fmt: skip


def _average_columns(s: ImageSums) -> dict[str, F64]:
    x, y = _safe(s.predicted, s.count), _safe(s.sum, s.count)
    return {"n": (s.count > 0).astype(float), "x": x, "y": y, "xx": x * x, "yy": y * y, "xy": x * y}


def _jackknife_columns(s: ImageSums) -> dict[str, F64]:
    """Return sums over pairs of r_ij and the other repeats' mean, (S_i - r_ij) / (k_i - 1), S_i the sum of all."""
    k = np.where(s.count > 1, s.count, 0.0)
    has = k > 0
    total, square = np.where(has, s.sum, 0.0), np.where(has, s.square, 0.0)
    others = np.where(has, k - 1, 1.0)
    return {
        "n": k, "x": total, "y": total, "yy": square,
        "xx": ((k - 2) * total**2 + square) / others**2, "xy": (total**2 - square) / others,
    }  # fmt: skip


def _correlate(t: Totals) -> F64:
    return _correlation(t["n"], t["x"], t["y"], t["xx"], t["yy"], t["xy"])


def _conservative_columns(s: ImageSums) -> dict[str, F64]:
    has = s.count > 1
    y = np.where(has, _safe(s.sum, s.count), 0.0)
    within = np.where(has, np.maximum(_safe(s.square, s.count) - y**2, 0.0), 0.0)  # ddof 0
    return {"m": has.astype(float), "y": y, "yy": y * y, "within": within}


def _conservative(t: Totals) -> F64:
    mean, square = _ratio(t["y"], t["m"]), _ratio(t["yy"], t["m"])
    v, w = square - mean**2, _ratio(t["within"], t["m"])
    with np.errstate(invalid="ignore"):
        v = np.where(v > CONSTANT * square, v, np.nan)
        out: F64 = v / np.sqrt(v * (v + w))
    return out


# --- explained variance -----------------------------------------------------------------------------------------------


def _fev_columns(s: ImageSums) -> dict[str, F64]:
    y = _safe(s.sum, s.count)
    error = _safe(s.square - 2 * s.product + s.predicted_square, s.count)
    return {
        "m": (s.count > 0).astype(float), "n": s.count, "y": y, "q": _safe(s.square, s.count), "e": error,
        "v": _variance(s), "has": (s.count > 1).astype(float),
    }  # fmt: skip


def _variances(t: Totals) -> tuple[F64, F64]:
    """Return the variance of all responses (ddof 1) and s2."""
    mean, square = _ratio(t["y"], t["m"]), _ratio(t["q"], t["m"])
    total = np.where(square - mean**2 > CONSTANT * square, square - mean**2, 0.0) * _ratio(t["n"], t["n"] - 1)
    return total, _ratio(t["v"], t["has"])


def _fev(t: Totals) -> F64:
    total, s2 = _variances(t)
    return _ratio(total - s2, total)


def _feve(t: Totals) -> F64:
    total, s2 = _variances(t)
    return 1 - _ratio(_ratio(t["e"], t["m"]) - s2, total - s2)


def _explainable(t: Totals) -> Bool:
    with np.errstate(invalid="ignore"):
        return _fev(t) > LEAST_FEV


def _snr_columns(s: ImageSums) -> dict[str, F64]:
    """On a = 2 sqrt(r + 3/8), whose square is 4 r + 3/2."""
    y = _safe(s.anscombe, s.count)
    square = 4 * s.sum + 4 * 3 / 8 * s.count
    v = np.maximum(_safe(square - s.count * y**2, s.count - 1), 0.0)
    return {"m": (s.count > 0).astype(float), "y": y, "yy": y * y, "v": v, "has": (s.count > 1).astype(float)}


def _snr(t: Totals) -> F64:
    between = _ratio(t["yy"] - _ratio(t["y"] ** 2, t["m"]), t["m"] - 1)
    return _ratio(between, _ratio(t["v"], t["has"]))


def _r2_er_columns(s: ImageSums) -> dict[str, F64]:
    x, y, part = _safe(s.predicted, s.count), _safe(s.sum, s.count), _safe(np.ones_like(s.count), s.count)
    return {
        "m": (s.count > 0).astype(float), "x": x, "y": y, "xx": x * x, "yy": y * y, "xy": x * y,
        "k": part, "xk": x * part, "xxk": x * x * part, "v": _variance(s), "has": (s.count > 1).astype(float),
    }  # fmt: skip


def _r2_er(t: Totals) -> F64:
    """[(Sxy)^2 - s2 sum x^2/k] / [Sxx (Syy - s2 sum 1/k (m-1)/m)], x and y mean-centred; of equal k the published."""
    m = t["m"]
    mx, my = _ratio(t["x"], m), _ratio(t["y"], m)
    sxx, syy, sxy = t["xx"] - m * mx**2, t["yy"] - m * my**2, t["xy"] - m * mx * my
    s2 = _ratio(t["v"], t["has"])
    in_product = s2 * (t["xxk"] - 2 * mx * t["xk"] + mx**2 * t["k"])
    signal = syy - s2 * t["k"] * _ratio(m - 1, m)
    with np.errstate(invalid="ignore"):
        varies = sxx > CONSTANT * t["xx"]
    return np.where(varies, _ratio(sxy**2 - in_product, sxx * signal), np.nan)


_NO_TUNING = "the mean responses vary no more than noise alone would make them, or the prediction does not vary"

FORMULAS: dict[str, Formula] = {
    f.name: f
    for f in (
        Formula(
            "single_trial_correlation", "correlation to single trials (Sensorium 2022)", _trial_columns, _correlate,
            repeats=False, unsound="the prediction or the responses do not vary",
        ),
        Formula(
            "correlation_to_average", "correlation to the mean over repeats (Sensorium 2022)", _average_columns,
            _correlate, repeats=False, unsound="the prediction or the mean responses do not vary",
        ),
        Formula(
            "oracle_jackknife", "oracle: correlation of each trial with the mean of the others (Walker 2019)",
            _jackknife_columns, _correlate, predicts=False,
        ),
        Formula(
            "oracle_conservative", "conservative oracle V / sqrt(V (V + W)) (neuralpredictors)", _conservative_columns,
            _conservative, predicts=False,
        ),
        Formula("fev", "fraction of explainable variance (Cadena 2019)", _fev_columns, _fev, predicts=False),
        Formula(
            "feve", "fraction of the explainable variance explained (Cadena 2019)", _fev_columns, _feve,
            unsound=f"its fraction of explainable variance is not above {LEAST_FEV}", shown=_explainable,
        ),
        Formula(
            "signal_to_noise", "variance of image means over noise variance, Anscombe-transformed counts (Cowley 2023)",
            _snr_columns, _snr, predicts=False, counts=True, unsound="there is no noise to divide by",
        ),
        Formula(
            "r2_er", "unbiased noise-corrected R2 (Pospisil and Bair 2021)", _r2_er_columns, _r2_er, unsound=_NO_TUNING
        ),
    )
}  # fmt: skip
