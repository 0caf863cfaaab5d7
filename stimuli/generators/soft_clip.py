"""Patterns without levels of their own -> frames: a drive around 0, clipped softly around the background.

Used by the generators that add up basis patterns. Soft clipping takes off little contrast for images with normal
level histograms and more for those with few strong features.
"""

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

MOST_ENCODED = 0.9  # of the span: levels nearer to it would have a drive that outweighs all others


def checked_span(contrast: float, background: int) -> float:
    """Return how far levels may go from the background, 0-127; raises ValueError if `contrast` (RMS) needs more."""
    span = min(background, 255 - background)
    if not 0 < contrast * 127.5 < 0.75 * span:
        raise ValueError(
            f"RMS contrast {contrast} cannot be reached around background {background}; "
            f"choose generator.contrast between 0 and {0.75 * span / 127.5:.2f}, or a background nearer to 128"
        )
    return float(span)


def soft_clip_drive(rms: float) -> float:
    """Return the sd s of normal levels whose softly clipped values x / sqrt(1 + x^2) have the RMS `rms` (below 1)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(101)
    weights = weights / weights.sum()
    low, high = 0.0, 1e3
    for _ in range(80):
        middle = (low + high) / 2
        x2 = (middle * nodes) ** 2
        if np.sqrt(weights @ (x2 / (1 + x2))) < rms:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def clipped_frame(x: F32, shape: tuple[int, int], background: float, span: float) -> U8:
    """Return the frame (y, x, rgb) of a drive `x` (3 * y, x), channel by channel: background + span at infinity."""
    # Soft clipping x / sqrt(1 + x^2): smooth, stays inside -1 to 1, several times faster than tanh.
    clipped = np.square(x)
    clipped += np.float32(1)
    np.sqrt(clipped, out=clipped)
    np.divide(x, clipped, out=clipped)
    clipped *= np.float32(span)
    clipped += np.float32(background + 0.5)  # truncation below then rounds
    return clipped.astype(np.uint8).reshape(3, *shape).transpose(1, 2, 0)


def drive_of(frame: U8, shape: tuple[int, int], background: float, span: float) -> npt.NDArray[np.float64]:
    """Return the drive (3, y, x) that `clipped_frame` makes this frame of; levels at the bounds give a large one.

    Raises ValueError for a frame of another shape.
    """
    if frame.dtype != np.uint8 or frame.shape != (*shape, 3):
        raise ValueError(f"a frame of {frame.dtype} {frame.shape}; this generator encodes uint8 {(*shape, 3)}")
    y = np.clip((frame.transpose(2, 0, 1) - background) / span, -MOST_ENCODED, MOST_ENCODED)
    out: npt.NDArray[np.float64] = y / np.sqrt(1 - y**2)
    return out
