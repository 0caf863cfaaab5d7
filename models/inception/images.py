"""Makes the images of units: the most exciting one, and the controls that it is compared with (Walker 2019). Pure.

Yields after each step of about 10 ms, so that it can be done behind what is on the screen.
"""

from collections.abc import Generator, Iterable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from models.encoders.encoder import Encoder, rates_of
from models.encoders.eye import LUMINANCE, Eye
from models.inception import gabors
from models.inception.encoder import FeatureReadout
from models.inception.features import picture_of
from models.inception.learner import Learner
from models.inception.made import HOW, MEI, NATURAL, Made, MadeImage, at_contrast
from models.inception.matching import alike_in_steps, enlarged
from models.inception.schedule import NaturalSet
from models.synthesis.agreement import agreement
from models.synthesis.engine import Synthesis, Synthesised, levels_seen
from models.synthesis.frames import displaying
from models.synthesis.masks import image_mask
from models.synthesis.objectives import Maximise
from models.synthesis.starts import draw
from rig.config.inception import InceptionPhase
from rig.config.synthesis import Synthesis as Settings
from stimuli.spec import Stimulus

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]

Pictures = dict[str, tuple[F64, str]]  # by kind: (y, x), and the natural image that it was made of

GRID_CHUNK = 128  # Gabors in one step, of the bank of features; networks take about ten times as long
NATURAL_CHUNK = 16  # natural images in one step
GABOR_STARTS = 4  # best Gabors of the grid from which the ascent begins


class Knows(Protocol):
    """What the images are made from: the inception agent."""

    phase: InceptionPhase
    natural: NaturalSet

    def encoder(self) -> Encoder:
        """Return the encoder as it is fitted."""
        ...

    def known(self) -> Learner:
        """Return what was learnt."""
        ...

    def seen(self, image: int) -> F32:
        """Return what the eye sees of a natural image, (1, side, side)."""
        ...

    def look(self, images: Iterable[int]) -> Generator[None, None, None]:
        """Yield after each natural image that the eye has not seen yet: then `seen` is quick for all of them."""
        ...

    def picture(self, stimulus: Stimulus) -> U8:
        """Return the frame (y, x, rgb) of a natural image."""
        ...


def best_of_grid(
    encoder: Encoder, units: Sequence[int], contrast: float, step: int = 1
) -> Generator[None, None, F32]:
    """Yield after each step; return the parameters (unit, start, 6) of the best Gabors for columns `units`."""
    columns = torch.tensor(list(units))
    every, side = gabors.grid(step), encoder.eye.height
    rates: F32 = np.empty((0, len(units)), np.float32)
    at = np.empty((0, len(units)), np.int64)
    together = GRID_CHUNK if isinstance(encoder, FeatureReadout) else NATURAL_CHUNK
    for first in range(0, len(every), together):
        some = every[first : first + together]
        with torch.no_grad():
            new = encoder.rates(gabors.drawn(torch.from_numpy(some), side, contrast), columns).numpy()
        rates = np.concatenate([rates, new])
        at = np.concatenate([at, np.repeat(first + np.arange(len(some))[:, None], len(units), axis=1)])
        top = np.argsort(-rates, axis=0, kind="stable")[:GABOR_STARTS]
        rates, at = np.take_along_axis(rates, top, axis=0), np.take_along_axis(at, top, axis=0)
        yield
    return every[at].transpose(1, 0, 2).copy()


def images_for(
    agent: Knows, units: list[int], grid: F32, rng: np.random.Generator
) -> Generator[None, None, tuple[Made, ...]]:
    """Yield after each step; return the images of `units`, whose best Gabors of the grid are `grid`."""
    encoder, phase = agent.encoder(), agent.phase
    shape = agent.picture(agent.natural.stimuli[0]).shape[:2]
    synthesised = yield from _most_exciting(encoder, units, phase, shape, rng)
    optimised = None
    if "gabor_optimised" in phase.controls:
        optimised = yield from gabors.best_gabors(encoder, units, grid, phase.contrast)
    yield from agent.look(range(agent.natural.train))
    light = np.concatenate([agent.seen(k) for k in range(agent.natural.train)])  # (image, side, side)
    yield
    linear = agent.known().linear if "linear" in phase.controls else None
    made = []
    for k, unit in enumerate(units):
        own = synthesised.frames[k, synthesised.best[k]]
        window = _window(own, encoder)
        yield
        pictures: Pictures = {MEI: (own[..., 0].astype(np.float64), "")}
        if linear is not None:
            pictures["linear"] = enlarged(picture_of(linear[:, unit].astype(np.float32)), shape), ""
        if "gabor" in phase.controls:
            pictures["gabor"] = enlarged(_gabor(grid[k, 0], encoder), shape), ""
        if optimised is not None:
            pictures["gabor_optimised"] = enlarged(_gabor(optimised[k], encoder), shape), ""
        for control, under in (("natural_masked", window), ("natural", None)):
            if control in phase.controls:
                best = yield from _best_natural(encoder, unit, light, under, phase.contrast)
                stimulus = agent.natural.stimuli[best]
                picture = agent.picture(stimulus)
                yield
                pictures[control] = _cut(picture, under), stimulus.id
                yield
        large = enlarged(window.astype(np.float32), shape).clip(0.0, 1.0)
        found = agreement(synthesised.frames[k], synthesised.rates[k, :, 0], large)
        yield
        one = yield from _made(encoder, unit, pictures, phase.contrast, found.median)
        yield
        tuned = yield from _at_contrasts(encoder, one, phase.contrast_tuning)
        made.append(replace(one, images=one.images | tuned))
    return tuple(made)


def _made(
    encoder: Encoder, unit: int, pictures: Pictures, contrast: float, agrees: float
) -> Generator[None, None, Made]:
    """Yield after each step; return the images of a unit, alike in mean level and contrast."""
    # A unit whose linear fit found nothing has no linear receptive field to show.
    pictures = {kind: pair for kind, pair in pictures.items() if np.std(pair[0]) > 0}
    values = [picture for picture, _ in pictures.values()]
    frames, reached = yield from alike_in_steps(values, encoder.eye.mean[0], contrast)
    stacked = np.stack(frames)
    predicted = rates_of(encoder, stacked)[:, unit]
    yield
    codes = encoder.eye.see(stacked).flatten(1).numpy()
    images = {
        kind: MadeImage(codes[j].copy(), frames[j], float(predicted[j]), of)
        for j, (kind, (_, of)) in enumerate(pictures.items())
    }
    return Made(unit, reached, images, agrees)


def _at_contrasts(
    encoder: Encoder, made: Made, contrasts: Sequence[float]
) -> Generator[None, None, dict[str, MadeImage]]:
    """Yield after each step; return the most exciting and the best natural one at other contrasts, by kind.

    A contrast that a picture cannot reach, because it would clip before, is left out.
    """
    out: dict[str, MadeImage] = {}
    for kind in (MEI, NATURAL):
        if kind not in made.images:
            continue
        of = made.images[kind]
        levels = torch.from_numpy(of.frame.astype(np.float64)).permute(2, 0, 1)[None]
        for contrast in sorted(contrasts):
            found = yield from displaying(levels, Settings(mean_level=encoder.eye.mean[0], contrast=contrast))
            yield
            if found.reached[0]:
                code = encoder.eye.see(found.frames).flatten().numpy()
                predicted = float(rates_of(encoder, found.frames)[0, made.unit])
                how = f"{HOW[kind]}, at another contrast"
                at = at_contrast(kind, contrast)
                out[at] = MadeImage(code, found.frames[0], predicted, of.of, how, float(found.contrast[0]))
    return out


def settings_for(iterations: int, contrast: float, eye: Eye, shape: tuple[int, int]) -> Settings:
    """Return how images of `shape` are synthesised at the background's level: the published schedule, or shorter."""
    shorter = Settings().iterations / iterations  # fewer steps are as much larger, so that they lead as far
    return Settings(
        iterations=iterations,
        step_from=Settings().step_from * shorter,
        step_to=Settings().step_to * shorter,
        mean_level=eye.mean[0],
        contrast=contrast,
        frame_px=shape,
    )


def _most_exciting(
    encoder: Encoder, units: list[int], phase: InceptionPhase, shape: tuple[int, int], rng: np.random.Generator
) -> Generator[None, None, Synthesised]:
    """Yield after each step; return the most exciting images of columns `units` from every start."""
    settings = settings_for(phase.iterations, phase.contrast, encoder.eye, shape)
    starts = draw(["display"] * phase.starts, len(units), encoder.eye, settings, rng)
    work = Synthesis(encoder, Maximise(tuple(units)), starts, settings)
    while not work.part():
        yield
    return work.result()


def _window(frame: U8, encoder: Encoder) -> F64:
    """Return the mask (y, x) of a frame at the size of what the eye sees: where it differs from grey by over one sd.

    (The paper's threshold is 16 levels at its contrast; an sd does not depend on that.)
    """
    levels = levels_seen(encoder.eye, frame[None])[0].double().numpy()
    return image_mask(levels, encoder.eye.mean[0], float(levels.std()))


def _gabor(parameters: F32, encoder: Encoder) -> F32:
    drawn = gabors.drawn(torch.from_numpy(np.ascontiguousarray(parameters[None])), encoder.eye.height, 0.1)
    return np.asarray(drawn[0, 0].numpy(), np.float32)


def _best_natural(
    encoder: Encoder, unit: int, light: F32, window: F64 | None, contrast: float
) -> Generator[None, None, int]:
    """Yield after each step; return the natural image that excites a column most at the contrast, under a mask."""
    column, best, highest = torch.tensor([unit]), 0, -np.inf
    under = None if window is None else torch.from_numpy(window.astype(np.float32))
    for first in range(0, len(light), NATURAL_CHUNK):
        x = torch.from_numpy(light[first : first + NATURAL_CHUNK])
        if under is not None:
            x = (x - (x * under).sum((1, 2), keepdim=True) / under.sum()) * under
        with torch.no_grad():
            rates = encoder.rates(gabors.with_contrast(x[:, None], contrast), column)[:, 0].numpy()
        if rates.max() > highest:
            best, highest = first + int(rates.argmax()), float(rates.max())
        yield
    return best


def _cut(frame: U8, window: F64 | None) -> F64:
    """Return the luminance (y, x) of a frame (y, x, rgb); under a mask, as its difference from its mean there.

    Not its colours: the images that it is compared with are grey, and contrast over all channels would give a colourful
    picture as little as half of their luminance contrast.
    """
    values: F64 = frame.astype(np.float64) @ np.array(LUMINANCE)
    if window is None:
        return values
    large = np.clip(enlarged(window.astype(np.float32), frame.shape[:2]), 0.0, 1.0)
    out: F64 = (values - (values * large).sum() / large.sum()) * large
    return out
