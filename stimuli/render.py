"""From a stimulus description to the exact 8-bit frame, in linear light; and the table that undoes the display's gamma.

Called by the rig between presentations. Latent images are not drawn here: they come as finished frames. Nothing here
draws on a screen or depends on one.
"""

from collections.abc import Mapping
from math import cos, radians, sin

import numpy as np
import numpy.typing as npt

from stimuli.bank import Bank
from stimuli.spec import BankImage, Blank, Grating, GratingSquare, LatentImage, Patches, Square

U8 = npt.NDArray[np.uint8]
F64 = npt.NDArray[np.float64]

EDGE = 0.2  # fraction of a grating's radius over which its edge fades


def gamma_table(gamma: float) -> U8:
    """Return the 256 levels to send so that a display with exponent `gamma` emits light linear in the index."""
    if not gamma > 0:
        raise ValueError(f"display.gamma {gamma}: a positive exponent is needed; measure it or use 1")
    linear = np.arange(256) / 255
    return np.rint(255 * linear ** (1 / gamma)).astype(np.uint8)


def render(
    spec: Blank | Grating | BankImage | LatentImage | Patches,
    angles: tuple[F64, F64],
    background: int,
    banks: Mapping[str, Bank],
) -> U8:
    """Return the frame (y, x, rgb) of `spec` before the gamma table.

    `angles` are azimuth and elevation of the image's pixels, degrees, each (y, x), from `geometry.pixel_angles`;
    `background` is the grey level around the image, 0-255; `banks` are found by the name in the spec.
    """
    height, width = angles[0].shape
    if isinstance(spec, Blank):
        return np.full((height, width, 3), background, np.uint8)
    if isinstance(spec, Grating):
        return _grating(spec, angles, background)
    if isinstance(spec, Patches):
        return _patches(spec, angles, background)
    if isinstance(spec, BankImage):
        if spec.bank not in banks:
            raise ValueError(f"no image bank {spec.bank!r} (there are {sorted(banks)}); add it to banks in the config")
        return banks[spec.bank].image(spec.name, height, width)
    raise TypeError(f"{spec.type!r} stimuli are not rendered: their finished frames travel in the Proposal")


def _grating(spec: Grating, angles: tuple[F64, F64], background: int) -> U8:
    """Draw a cosine grating around the background level, its disc as wide as the smaller side of the image."""
    amplitude = _amplitude(spec, background)
    x, y, pitch = _from_centre(angles)
    wave = _wave(spec, x, y, pitch)
    radius = min(float(x.max()), float(y.max()))
    inside = np.clip((radius - np.hypot(x, y)) / (EDGE * radius), 0, 1)
    window = (1 - np.cos(np.pi * inside)) / 2
    grey = np.clip(np.rint(background + amplitude * wave * window), 0, 255).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _from_centre(angles: tuple[F64, F64]) -> tuple[F64, F64, float]:
    """Return the angles (y, x) right and up from the image's centre, and the widest step between pixels, degrees."""
    azimuth, elevation = angles
    # The angles are monotonic along the axes, so the extremes are the corners.
    x = azimuth - (azimuth.min() + azimuth.max()) / 2
    y = elevation - (elevation.min() + elevation.max()) / 2
    return x, y, max(float(np.abs(np.diff(x, axis=1)).max()), float(np.abs(np.diff(y, axis=0)).max()))


def _amplitude(spec: Grating | GratingSquare, background: int) -> float:
    """Return the amplitude in grey levels: Michelson, (max - min) / (max + min) = amplitude / mean."""
    amplitude = spec.contrast * background
    if background + amplitude > 256:  # 128 of 255 is grey for everybody: one level beyond the range is cut off
        raise ValueError(
            f"a grating of contrast {spec.contrast} on background {background} needs level "
            f"{background + amplitude:.0f}; lower its contrast or display.background"
        )
    return amplitude


def _wave(spec: Grating | GratingSquare, x: F64, y: F64, pitch: float) -> F64:
    """Return the cosine (y, x), -1 to 1, of angles `x`, `y` from its centre on pixels of `pitch` degrees."""
    if spec.cycles_per_deg * pitch > 0.5:
        raise ValueError(
            f"a grating of {spec.cycles_per_deg} cycles/degree is finer than pixels of {pitch:.3f} degrees can show; "
            f"use at most {0.5 / pitch:.2f} cycles/degree"
        )
    theta = radians(spec.orientation_deg)
    across = y * cos(theta) - x * sin(theta)  # degrees across the bars
    wave: F64 = np.cos(2 * np.pi * spec.cycles_per_deg * across + radians(spec.phase_deg))
    return wave


def _patches(spec: Patches, angles: tuple[F64, F64], background: int) -> U8:
    """Draw each square on the pixels whose centres lie in it: from its left and lower side up to the others."""
    x, y, pitch = _from_centre(angles)
    across, down = x[0], -y[:, 0]  # both ascend
    frame = np.full((*x.shape, 3), background, np.uint8)
    for square in spec.squares:
        (right, up), half = square.center_deg, square.size_deg / 2
        reach = max(abs(right) - float(across[-1]), abs(up) - float(down[-1])) + half
        if reach > 1.5 * pitch:
            raise ValueError(
                f"a square of {square.size_deg:g} degrees at {square.center_deg} from the centre reaches "
                f"{reach:.2f} degrees beyond its image; make the image larger, or the square smaller"
            )
        columns = slice(*np.searchsorted(across, [right - half, right + half]).tolist())
        rows = slice(*np.searchsorted(down, [-up - half, -up + half]).tolist())
        if columns.start == columns.stop or rows.start == rows.stop:
            raise ValueError(f"a square of {square.size_deg:g} degrees has no pixel of its own; make it larger")
        if isinstance(square, Square):
            frame[rows, columns] = square.level
        else:
            wave = _wave(square, x[rows, columns] - right, y[rows, columns] - up, pitch)
            grey = np.rint(background + _amplitude(square, background) * wave)
            frame[rows, columns] = np.clip(grey, 0, 255).astype(np.uint8)[:, :, None]
    return frame
