"""Masks around a most exciting image (Walker et al. 2019): of the image itself, a Gaussian one, and the tightest.

A mask is (y, x), 0 to 1, at the size of the pictures it was made of. `under` puts a picture under it.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.morphology import convex_hull_image

F64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

THRESHOLD = 16.0  # levels from the mean
SMALLEST_PX = 50  # of blobs, at 36 x 64 pixels; scales with the picture
PUBLISHED_PX = 36 * 64
HULL_BLUR_PX, HULL_CUT, EDGE_BLUR_PX = 3.0, 0.3, 2.0
GAUSSIAN_POWER = 1.875  # of the square root of the Gaussian
TIGHT_SHARE = 0.9
TIGHT_EDGE_PX = 1.0


def under(levels: F64, mask: F64, mean_level: float) -> F64:
    """Return pictures (..., y, x) under a mask: what it hides is at the mean level."""
    found: F64 = mean_level + (levels - mean_level) * mask
    return found


def image_mask(levels: F64, mean_level: float, threshold: float = THRESHOLD) -> F64:
    """Return the mask of a picture (c, y, x) of levels: where it differs from the mean, closed and softened.

    |level - mean| > 16, blobs below 50 pixels dropped, convex hull, blur 3 and cut at 0.3, blur 2; scaled to a peak of
    1, which a narrow hull would lose by the blur. Raises ValueError where nothing stands out.
    """
    away = np.abs(levels - mean_level).max(0) > threshold
    hull = _hull(_without_blobs(away))
    wider = ndimage.gaussian_filter(hull.astype(np.float64), HULL_BLUR_PX) > HULL_CUT
    soft = ndimage.gaussian_filter(wider.astype(np.float64), EDGE_BLUR_PX)
    found: F64 = np.clip(soft / soft.max(), 0.0, 1.0)
    return found


def gaussian_mask(levels: F64, mean_level: float) -> F64:
    """Return a Gaussian with the second moments of (level - mean)², its square root to the power 1.875, peak 1."""
    energy = ((levels - mean_level) ** 2).sum(0)
    if energy.sum() <= 0:
        raise ValueError("a picture without contrast has no Gaussian mask")
    share = energy / energy.sum()
    y, x = np.mgrid[: share.shape[0], : share.shape[1]].astype(np.float64)
    cy, cx = (share * y).sum(), (share * x).sum()
    dy, dx = y - cy, x - cx
    spread = np.array([[(share * dy * dy).sum(), (share * dy * dx).sum()], [0.0, (share * dx * dx).sum()]])
    spread[1, 0] = spread[0, 1]
    inverse = np.linalg.inv(spread + 1e-3 * np.eye(2))  # a line of pixels has no width of its own
    away = inverse[0, 0] * dy**2 + 2 * inverse[0, 1] * dy * dx + inverse[1, 1] * dx**2
    found: F64 = np.exp(-0.5 * away) ** (GAUSSIAN_POWER / 2)
    return found


def tight_mask(
    levels: F64,
    mean_level: float,
    response: Callable[[F64], float],
    share: float = TIGHT_SHARE,
    edge_px: float = TIGHT_EDGE_PX,
) -> F64:
    """Return the tightest mask under which the response stays at `share` of that under the hull of the picture.

    `response` takes a picture (c, y, x) of levels. Start: convex hull of |level - mean| above its own sd; then 3x3
    erosions as long as the response allows; the edge is blurred by `edge_px`.
    """
    away = np.abs(levels - mean_level).max(0)
    hull = _hull(_without_blobs(away > away.std()))

    def soft(mask: Bool) -> F64:
        found: F64 = np.clip(ndimage.gaussian_filter(mask.astype(np.float64), edge_px), 0.0, 1.0)
        return found

    enough = share * response(under(levels, soft(hull), mean_level))
    while (smaller := ndimage.binary_erosion(hull, np.ones((3, 3), np.bool_))).any():
        if response(under(levels, soft(smaller), mean_level)) < enough:
            break
        hull = smaller
    return soft(hull)


def _without_blobs(away: Bool) -> Bool:
    """Return the places without their small islands; with the largest one, if all are small."""
    label, count = ndimage.label(away)
    if count == 0:
        raise ValueError("nothing stands out of the mean level: the picture has no mask")
    sizes = np.bincount(label.ravel())[1:]
    least = min(SMALLEST_PX * away.size / PUBLISHED_PX, sizes.max())
    kept: Bool = np.isin(label, 1 + np.flatnonzero(sizes >= least))
    return kept


def _hull(places: Bool) -> Bool:
    found: Bool = np.asarray(convex_hull_image(places), dtype=np.bool_)  # type: ignore[no-untyped-call]
    return found
