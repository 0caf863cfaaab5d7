"""A twin: an encoding model fitted to one session, which stands in for a neuron in counterfactual replay.

Called through `rig.replay.counterfactual`. The model is linear in two sets of features of the picture: its luminance
and colours at low resolution (simple cells), and the energy of quadrature pairs of Gabors at three scales (complex
cells; Adelson & Bergen 1985; as in the voxel models of Kay, Naselaris, Prenger & Gallant 2008). Weights come from
ridge regression on each image's mean response, each image weighing as often as it was shown.

It states what it is worth: correlation with images that it was not fitted to, beside the best that any model could
reach with responses so noisy, and beside that for later generations predicted from earlier ones. Pure; numpy and
scikit-learn.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import RidgeCV

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

SIDE = 32  # pixels of the pictures that the twin sees
LUMINANCE_SIDE, COLOUR_SIDE = 16, 4
GABORS = ((2.0, 3), (4.0, 4), (8.0, 6))  # cycles per image, positions along each axis
ORIENTATIONS = 6
SIGMA_CYCLES = 0.4  # sd of a Gabor's window, in its periods
ALPHAS = np.logspace(-1, 6, 15)
FOLDS = 5
LEAST_IMAGES = 40
MOST_IMAGES = 5_000  # for the fit; more cost minutes and change little
BOOTSTRAPS = 1_000
EARLY = 0.7  # of the images, in order of first showing: the later ones are predicted from them
AXES = np.array([[1, 1, 1], [1, -1, 0], [-1, -1, 2]], np.float64) / np.sqrt([[3.0], [2.0], [6.0]])
FEATURES = ("linear", "energy", "linear and energy")


class TooLittle(ValueError):
    """The session holds too little to fit a twin to; the message says what is missing."""


def reduced(frames: U8) -> U8:
    """Return frames (n, y, x, rgb) as pictures (n, SIDE, SIDE, rgb), each pixel the mean of the area that it covers."""
    down, across = (_areas(points) for points in frames.shape[1:3])
    out = np.einsum("iy,nyxc,jx->nijc", down, frames.astype(np.float32), across, optimize=True)
    pictures: U8 = np.rint(out).astype(np.uint8)
    return pictures


def _areas(points: int) -> F32:
    """Return the shares (SIDE, points) of each of `points` pixels in SIDE equal stretches; rows sum to 1."""
    edges = np.linspace(0, points, SIDE + 1)
    at = np.arange(points)
    share = np.minimum(edges[1:, None], at + 1) - np.maximum(edges[:-1, None], at)
    share = np.clip(share, 0, None)
    out: F32 = (share / share.sum(axis=1, keepdims=True)).astype(np.float32)
    return out


def _gabors() -> tuple[F32, F32]:
    """Return the two phases of all Gabors, each (gabor, pixel), of unit length and without a mean."""
    axis = (np.arange(SIDE) + 0.5) / SIDE
    x, y = np.meshgrid(axis, axis)
    even, odd = list[F64](), list[F64]()
    for cycles, positions in GABORS:
        sigma = SIGMA_CYCLES / cycles
        places = (np.arange(positions) + 0.5) / positions
        for row in places:
            for column in places:
                window = np.exp(-((x - column) ** 2 + (y - row) ** 2) / (2 * sigma**2))
                for turn in np.arange(ORIENTATIONS) * np.pi / ORIENTATIONS:
                    across = (x - column) * np.cos(turn) + (y - row) * np.sin(turn)
                    angle = 2 * np.pi * cycles * across
                    for out, wave in ((even, np.cos(angle)), (odd, np.sin(angle))):
                        one = window * wave
                        one -= window * one.sum() / window.sum()
                        out.append((one / np.sqrt(np.sum(one**2))).ravel())
    return np.stack(even).astype(np.float32), np.stack(odd).astype(np.float32)


class _Eye:
    """Turns pictures into features."""

    def __init__(self) -> None:
        self._even, self._odd = _gabors()

    def features(self, pictures: U8) -> tuple[F64, F64]:
        """Return (linear, energy) features, each (picture, feature), of pictures (n, SIDE, SIDE, rgb)."""
        light = (pictures.astype(np.float32) - 127.5) / 127.5
        axes = np.einsum("nyxc,ac->anyx", light, AXES.astype(np.float32))
        count = len(pictures)
        parts = [_pooled(axes[0], LUMINANCE_SIDE), _pooled(axes[1], COLOUR_SIDE), _pooled(axes[2], COLOUR_SIDE)]
        linear = np.concatenate([p.reshape(count, -1) for p in parts], axis=1)
        flat = axes[0].reshape(count, -1)
        energy = np.hypot(flat @ self._even.T, flat @ self._odd.T)
        return linear.astype(np.float64), energy.astype(np.float64)


def _pooled(planes: F32, side: int) -> F32:
    step = SIDE // side
    out: F32 = planes.reshape(len(planes), side, step, side, step).mean(axis=(2, 4))
    return out


@dataclass(frozen=True)
class Noise:
    """Variance of one response about its image's mean: a + b max(mean, 0)."""

    a: float
    b: float
    repeated: int
    """Images with two or more usable responses; 0: nothing was repeated, and `a` is the twin's own error."""

    def variance(self, mean: F64) -> F64:
        """Return the variance (n,) at these means (n,)."""
        out: F64 = self.a + self.b * np.maximum(mean, 0.0)
        return out

    def draw(self, mean: F64, rng: np.random.Generator) -> F64:
        """Return one noisy response (n,) for each mean."""
        out: F64 = mean + rng.standard_normal(len(mean)) * np.sqrt(self.variance(mean))
        return out


@dataclass(frozen=True)
class Worth:
    """What a twin is worth, in figures that were not fitted."""

    features: str
    images: int
    trials: int
    held_out_r: float
    """Correlation of predicted and mean measured response over images, each predicted without it."""
    ceiling_r: float
    """The largest correlation that a perfect model could reach on average, from the noise of repeats."""
    later_r: float
    """Correlation over the last images when fitted to the first ones: what evolution asks of it."""
    held_out_ci: tuple[float, float]
    """95 % interval of it, of the ceiling and of `later_r`: bootstrap over images; NaN where not known."""
    ceiling_ci: tuple[float, float]
    later_ci: tuple[float, float]
    noise: Noise

    def warnings(self) -> list[str]:
        """Return in words what must not be forgotten when the twin is believed."""
        out = []
        share = self.held_out_r / self.ceiling_r if self.ceiling_r > 0 else 0.0
        if not share > 0.5:  # also where it is not known
            out.append(
                f"the twin explains little: held-out r = {self.held_out_r:.2f} of at most {self.ceiling_r:.2f}; "
                "what agents do with it says little about the neuron"
            )
        if not self.later_r > 0.5 * self.held_out_r:
            out.append(
                f"later images are predicted worse (r = {self.later_r:.2f}) than others (r = {self.held_out_r:.2f}): "
                "evolution leads to images that the twin does not know"
            )
        if self.held_out_r > self.ceiling_r:
            out.append(
                f"held-out r = {self.held_out_r:.2f} is above its ceiling {self.ceiling_r:.2f}: the noise is not known "
                "well from these repeats, so that nobody can say how much is left to explain"
            )
        if not self.noise.repeated:
            out.append("no image was shown twice: the noise is the twin's own error, and no ceiling is known")
        return out


class Twin:
    """A fitted stand-in neuron."""

    def __init__(
        self,
        eye: _Eye,
        columns: str,
        model: RidgeCV,
        scale: tuple[F64, F64],
        spread: F64,
        usual: float,
        worth: Worth,
    ) -> None:
        self._eye, self._columns, self._model, self._scale = eye, columns, model, scale
        self._spread, self._usual, self.worth = spread, usual, worth

    def rate_hz(self, pictures: U8) -> F64:
        """Return predicted responses (n,) to pictures (n, SIDE, SIDE, rgb), in the unit of the session's responses."""
        out: F64 = self._model.predict(self._standard(pictures))
        return out

    def unknown(self, pictures: U8) -> float:
        """Return the share of pictures that the fit knows less of than of 99 % of those that were shown.

        By leverage, x' (X' W X + alpha I)^-1 x, which grows in directions in which the shown pictures did not vary;
        that of a shown picture is taken as if it had been left out.
        """
        return float(np.mean(_leverage(self._standard(pictures), self._spread) > self._usual))

    def _standard(self, pictures: U8) -> F64:
        mean, sd = self._scale
        return (_columns(self._eye, pictures, self._columns) - mean) / sd


def _leverage(x: F64, spread: F64) -> F64:
    out: F64 = np.einsum("np,pq,nq->n", x, spread, x, optimize=True)
    return out


def _columns(eye: _Eye, pictures: U8, which: str) -> F64:
    parts = []
    for k in range(0, len(pictures), 512):  # pieces: float copies of thousands of pictures are large
        linear, energy = eye.features(pictures[k : k + 512])
        chosen = {"linear": [linear], "energy": [energy], "linear and energy": [linear, energy]}[which]
        parts.append(np.concatenate(chosen, axis=1))
    return np.concatenate(parts)


def noise_of(image: I64, rates: F64, fixed: npt.NDArray[np.bool_]) -> Noise:
    """Return the noise of repeats; `image`, `rates`, `fixed` (trial,). Without repeats `repeated` is 0, a is NaN.

    An image that an evolution shows again is shown again because its response was large, which may have been chance:
    then its first response and the later ones differ by more than noise. So the first response of each image that was
    not shown whatever it did (`fixed`) is left out, unless nothing was repeated without it.
    """
    _, at = np.unique(image, return_index=True)
    keep = np.array(fixed)
    later = np.ones(len(image), np.bool_)
    later[at] = False
    keep |= later
    if (np.bincount(image[keep]) > 1).any():
        image, rates = image[keep], rates[keep]
    count = np.bincount(image)
    mean = np.bincount(image, rates) / np.maximum(count, 1)
    square = np.bincount(image, (rates - mean[image]) ** 2)
    several = count > 1
    if not several.any():
        return Noise(float("nan"), 0.0, 0)
    variance = square[several] / (count[several] - 1)
    weight, level = count[several] - 1.0, np.maximum(mean[several], 0.0)
    # Weighted line through (mean, variance), its two numbers not below zero.
    middle, height = np.average(level, weights=weight), np.average(variance, weights=weight)
    spread = np.average((level - middle) ** 2, weights=weight)
    slope = np.average((level - middle) * (variance - height), weights=weight) / spread if spread > 0 else 0.0
    most = height / middle if middle > 0 else 0.0
    b = float(np.clip(slope, 0.0, most))
    return Noise(float(height - b * middle), b, int(several.sum()))


def fit(pictures: U8, image: I64, rates: F64, fixed: npt.NDArray[np.bool_], seed: int) -> Twin:
    """Fit a twin.

    Parameters
    ----------
    pictures
        (image, SIDE, SIDE, rgb), in order of first showing.
    image, rates
        (trial,) index into `pictures`, and the unit's response.
    fixed
        (trial,) whether the image was shown whatever the responses before: references, blanks, fixed sets.
    seed
        Of the folds, and of the choice where there are more than MOST_IMAGES.

    Raises TooLittle.
    """
    seen = np.unique(image)
    if len(seen) < LEAST_IMAGES:
        raise TooLittle(f"{len(seen)} images have usable responses; a twin needs {LEAST_IMAGES} or more")
    rng = np.random.default_rng(seed)
    if len(seen) > MOST_IMAGES:
        seen = np.sort(rng.choice(seen, MOST_IMAGES, replace=False))
    keep = np.isin(image, seen)
    fixed, rates = fixed[keep], rates[keep]
    pictures, image = pictures[seen], np.searchsorted(seen, image[keep])
    count = np.bincount(image).astype(np.float64)
    mean = np.bincount(image, rates) / count
    if mean.std() == 0:
        raise TooLittle("all images have the same response; there is nothing to fit")
    eye, fold = _Eye(), rng.permutation(len(mean)) % FOLDS
    best: tuple[float, str, F64] | None = None
    for which in FEATURES:
        x = _columns(eye, pictures, which)
        predicted = _held_out(x, mean, count, fold)
        r = _correlation(predicted, mean)
        if best is None or r > best[0]:
            best = r, which, predicted
    assert best is not None  # noqa: S101 - FEATURES is not empty
    r, which, predicted = best
    x = _columns(eye, pictures, which)
    scale = x.mean(axis=0), np.where(x.std(axis=0) > 0, x.std(axis=0), 1.0)
    standard = (x - scale[0]) / scale[1]
    noise = noise_of(image, rates, fixed)
    if not noise.repeated:
        noise = Noise(float(np.mean((rates - predicted[image]) ** 2)), 0.0, 0)
    first = int(EARLY * len(mean))
    later = _predict(x[:first], mean[:first], count[:first], x[first:])
    worth = Worth(
        which, len(mean), len(rates), r, _ceiling(mean, count, noise), _correlation(later, mean[first:]),
        _interval(lambda k: _correlation(predicted[k], mean[k]), len(mean), seed),
        _interval(lambda k: _ceiling(mean[k], count[k], noise), len(mean), seed),
        _interval(lambda k: _correlation(later[k], mean[first:][k]), len(mean) - first, seed),
        noise,
    )  # fmt: skip
    model = _ridge(standard, mean, count)
    spread = np.linalg.inv(standard.T @ (standard * count[:, None]) + model.alpha_ * np.eye(standard.shape[1]))
    own = _leverage(standard, spread)
    usual = float(np.percentile(own / np.maximum(1 - count * own, 1e-9), 99))
    return Twin(eye, which, model, scale, spread, usual, worth)


def _ridge(x: F64, y: F64, weight: F64) -> RidgeCV:
    return RidgeCV(alphas=ALPHAS).fit(x, y, sample_weight=weight)


def _predict(train: F64, y: F64, weight: F64, test: F64) -> F64:
    mean, sd = train.mean(axis=0), np.where(train.std(axis=0) > 0, train.std(axis=0), 1.0)
    out: F64 = _ridge((train - mean) / sd, y, weight).predict((test - mean) / sd)
    return out


def _held_out(x: F64, y: F64, weight: F64, fold: npt.NDArray[np.intp]) -> F64:
    """Return each image's response as predicted by a fit to the other folds."""
    out = np.empty(len(y))
    for k in range(FOLDS):
        out[fold == k] = _predict(x[fold != k], y[fold != k], weight[fold != k], x[fold == k])
    return out


def _interval(of: Callable[[I64], float], images: int, seed: int) -> tuple[float, float]:
    """Return the 95 % interval of a figure `of` images drawn with replacement, BOOTSTRAPS times."""
    rng = np.random.default_rng([seed, 3])
    values = np.array([of(rng.integers(0, images, images)) for _ in range(BOOTSTRAPS)])
    if np.isnan(values).any():
        return float("nan"), float("nan")
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _correlation(a: F64, b: F64) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else 0.0


def _ceiling(mean: F64, count: F64, noise: Noise) -> float:
    """Return the square root of the share of the means' variance that is not noise; NaN where nothing was repeated."""
    if not noise.repeated:
        return float("nan")
    total = float(mean.var())
    if total == 0:
        return 0.0
    return float(np.sqrt(max(total - float(np.mean(noise.variance(mean) / count)), 0.0) / total))
