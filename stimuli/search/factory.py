"""Makes the optimiser that settings ask for. Called by the evolve agent and the bench.

Each optimiser has a frozen settings class of its own in its file; `rig.config.optimisers` makes them of a config.
Matched start: all begin with the same first generation, codes of the generator's prior, and those with a step size or
a length of their own take both from the prior, because a comparison between unmatched starts compares the starts.
"""

from math import erf

import numpy as np

from stimuli.generators.generator import Prior
from stimuli.search.cholesky_cma import PUBLISHED_SIGMA as CHOLESKY_SIGMA
from stimuli.search.cholesky_cma import CholeskyCMA, CholeskySettings
from stimuli.search.code_space import CodeSpace
from stimuli.search.ga import GASettings
from stimuli.search.noise_aware import NoiseAware, NoiseAwareSettings
from stimuli.search.optimiser import F32, F64, Optimiser
from stimuli.search.separable_cma import PUBLISHED_SIGMA as SEPARABLE_SIGMA
from stimuli.search.separable_cma import SeparableCMA, SeparableSettings
from stimuli.search.sphere_cma import PUBLISHED_NORM, SphereCMA, SphereSettings
from stimuli.search.xdream import XDream

Settings = GASettings | CholeskySettings | SphereSettings | SeparableSettings | NoiseAwareSettings

SMALLEST_SD = 1e-3  # of the typical one: a number that the prior never varies can still be searched, slowly


def build_optimiser(
    settings: Settings, prior: Prior, rng: np.random.Generator, start: F32 | None = None
) -> Optimiser:
    """Return an optimiser of codes like those of `prior`; every draw comes from `rng`.

    `start` (n, latent), best first: codes to begin with instead of draws from the prior, for example encoded pictures
    or the best of another day. If fewer than a population, draws fill it up; of more, the first ones are taken. Raises
    ValueError where an optimiser that begins as published is given them.
    """
    latent = len(prior.mean)
    if isinstance(settings, GASettings):
        return XDream(settings, start_codes(settings.population, prior, rng, start), rng)
    if isinstance(settings, NoiseAwareSettings):
        return NoiseAware(settings, CodeSpace(prior), start_codes(settings.population, prior, rng, start), rng)
    if settings.start == "as_published":
        if start is not None:
            raise ValueError("an optimiser that starts as published takes no start codes; choose start: matched")
        return _as_published(settings, latent, rng)
    first = start_codes(settings.population, prior, rng, start)
    if isinstance(settings, SphereSettings):
        return SphereCMA(settings, first, settings.norm or prior.norm, rng)
    sd = spread(prior)
    typical = float(np.sqrt(np.mean(np.square(sd))))
    if not typical > 0:
        raise ValueError("the prior of this generator does not vary; give it a standard deviation above 0")
    sigma = settings.sigma or typical
    if isinstance(settings, CholeskySettings):
        return CholeskyCMA(settings, first, sigma, rng)
    return SeparableCMA(settings, first, None, np.maximum(sd, SMALLEST_SD * typical) * (sigma / typical), rng)


def _as_published(
    settings: CholeskySettings | SphereSettings | SeparableSettings, latent: int, rng: np.random.Generator
) -> Optimiser:
    """Return an optimiser with its authors' start, whatever the generator's codes are like."""
    if isinstance(settings, SphereSettings):
        first = rng.standard_normal((settings.population, latent), dtype=np.float32)
        return SphereCMA(settings, first, settings.norm or PUBLISHED_NORM, rng)
    if isinstance(settings, CholeskySettings):
        return CholeskyCMA(settings, np.zeros((1, latent), np.float32), settings.sigma or CHOLESKY_SIGMA, rng)
    return SeparableCMA(settings, None, np.zeros(latent), np.full(latent, settings.sigma or SEPARABLE_SIGMA), rng)


def start_codes(count: int, prior: Prior, rng: np.random.Generator, start: F32 | None = None) -> F32:
    """Return `count` codes (count, latent): the first of `start`, filled up with draws from the prior."""
    if start is None:
        return prior.sample(count, rng)
    latent = len(prior.mean)
    if start.ndim != 2 or start.shape[1] != latent:
        raise ValueError(f"start codes of shape {start.shape}; this generator's have (n, {latent})")
    given = np.asarray(start[:count], dtype=np.float32)
    if len(given) == count:
        return given
    return np.concatenate([given, prior.sample(count - len(given), rng)])


def spread(prior: Prior) -> F64:
    """Return the standard deviation (latent,) of codes as the prior gives them, negative values cut where it cuts."""
    mean, sd = prior.mean.astype(np.float64), prior.sd.astype(np.float64)
    if not prior.rectified:
        return sd
    # Moments of max(N(mean, sd), 0), from its normal density and distribution at mean / sd.
    ratio = mean / np.maximum(sd, 1e-12)
    density = np.exp(-0.5 * np.square(ratio)) / np.sqrt(2 * np.pi)
    below = np.array([0.5 * (1 + erf(r / np.sqrt(2))) for r in ratio])
    first = mean * below + sd * density
    second = (np.square(mean) + np.square(sd)) * below + mean * sd * density
    out: F64 = np.sqrt(np.maximum(second - np.square(first), 0))
    return out
