"""From a stimulus description to the exact 8-bit frame, in linear light; and the table that undoes the display's gamma.

Called by the rig between presentations. Latent images are not drawn here: they come as finished frames. Nothing here
draws on a screen or depends on one.
"""

from collections.abc import Mapping
from math import cos, radians, sin

import numpy as np
import numpy.typing as npt

from stimuli.bank import Bank
from stimuli.spec import BankImage, Blank, Grating, LatentImage

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
    spec: Blank | Grating | BankImage | LatentImage,
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
    if isinstance(spec, BankImage):
        if spec.bank not in banks:
            raise ValueError(f"no image bank {spec.bank!r} (there are {sorted(banks)}); add it to banks in the config")
        return banks[spec.bank].image(spec.name, height, width)
    raise TypeError(f"{spec.type!r} stimuli are not rendered: their finished frames travel in the Proposal")


def _grating(spec: Grating, angles: tuple[F64, F64], background: int) -> U8:
    """Draw a cosine grating around the background level, its disc as wide as the smaller side of the image."""
    amplitude = spec.contrast * background  # Michelson: (max - min) / (max + min) = amplitude / mean
    if background + amplitude > 256:  # 128 of 255 is grey for everybody: one level beyond the range is cut off
        raise ValueError(
            f"a grating of contrast {spec.contrast} on background {background} needs level "
            f"{background + amplitude:.0f}; lower its contrast or display.background"
        )
    azimuth, elevation = angles
    # Relative to the image's centre; the angles are monotonic along the axes, so the extremes are the corners.
    x = azimuth - (azimuth.min() + azimuth.max()) / 2
    y = elevation - (elevation.min() + elevation.max()) / 2
    pitch = max(float(np.abs(np.diff(x, axis=1)).max()), float(np.abs(np.diff(y, axis=0)).max()))
    if spec.cycles_per_deg * pitch > 0.5:
        raise ValueError(
            f"a grating of {spec.cycles_per_deg} cycles/degree is finer than pixels of {pitch:.3f} degrees can show; "
            f"use at most {0.5 / pitch:.2f} cycles/degree"
        )
    theta = radians(spec.orientation_deg)
    across = y * cos(theta) - x * sin(theta)  # degrees across the bars
    wave = np.cos(2 * np.pi * spec.cycles_per_deg * across + radians(spec.phase_deg))
    radius = min(float(x.max()), float(y.max()))
    inside = np.clip((radius - np.hypot(x, y)) / (EDGE * radius), 0, 1)
    window = (1 - np.cos(np.pi * inside)) / 2
    grey = np.clip(np.rint(background + amplitude * wave * window), 0, 255).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)
