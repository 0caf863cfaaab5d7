"""The photodiode: do the flashes of the patch come back as edges, how late, and how evenly."""

from collections.abc import Iterator

import numpy as np

from rig.config import Config
from rig.messages import (
    EdgeBlock,
)
from rig.preflight.result import Result
from rig.preflight.sources import Heard, clock_map

REACH_NS = 120_000_000  # less than half of the shortest time between two flashes
SPREAD_WARN_MS = 2.0


def photodiode(config: Config, heard: Heard, flashes: list[int]) -> Iterator[Result]:
    """Yield what came of the flashes; `flashes` are the flips, host ns, that made the patch white."""
    source, title = config.neural, "photodiode"
    if config.guest is not None:
        return
    if config.display.patch is None or source.photodiode_line is None:
        said = f"none: onsets are flips plus display.lag_s ({config.display.lag_s * 1e3:g} ms)"
        cure = "mount one over a corner patch and set display.patch and photodiode_line; or measure the lag once"
        yield Result(title, "warn", said, cure)
        return
    if source.name not in heard.names or not flashes:
        missing = "the source" if flashes else "the screen"
        yield Result(title, "fail", f"not looked at: {missing} could not be used", "see above")
        return
    edges = _edges(source.name, heard)
    line = source.photodiode_line
    rising = np.array([at for at, of, state in edges if of == line and state == 1], dtype=np.float64)
    falling = np.array([at for at, of, state in edges if of == line and state == 0], dtype=np.float64)
    lags_ms = _lags(flashes, rising) * 1e-6
    if len(lags_ms) == 0:
        yield _unseen(edges, line, flashes)
        return
    within = rising[(rising > flashes[0] - REACH_NS) & (rising < flashes[-1] + REACH_NS)]
    said = (
        f"{len(lags_ms)} of {len(flashes)} flashes seen on line {line}, lag {lags_ms.mean():.1f} ms after the flip, "
        f"sd {lags_ms.std():.1f} ms"
    )
    tolerance_ms = config.responses.edge_tolerance_s * 1e3
    inverted = len(falling) and np.abs(_lags(flashes, falling)).mean() < np.abs(_lags(flashes, rising)).mean()
    if np.abs(lags_ms).max() > tolerance_ms and inverted:
        cure = "swap the polarity of the photodiode's comparator: the line must rise when the patch becomes white"
        yield Result(title, "fail", f"{said}; the line falls where it should rise", cure)
    elif np.abs(lags_ms).max() > tolerance_ms:
        cure = f"responses.edge_tolerance_s is {tolerance_ms:g} ms: find what delays the screen, or raise it"
        yield Result(title, "fail", said, cure)
    elif len(lags_ms) < len(flashes):
        cure = "move the photodiode onto the patch, shield it, set its threshold between the patch's white and black"
        yield Result(title, "fail", said, cure)
    elif len(within) > len(flashes):
        cure = "shield the photodiode, raise its threshold or low-pass it: a flickering backlight makes more edges"
        yield Result(title, "warn", f"{said}; and {len(within) - len(flashes)} more edges", cure)
    elif lags_ms.std() > SPREAD_WARN_MS:
        cure = "the screen or the compositor shows frames late now and then: switch the compositor off, see screen"
        yield Result(title, "warn", said, cure)
    else:
        yield Result(title, "ok", said)


def _edges(name: str, heard: Heard) -> list[tuple[int, int, int]]:
    """Return (host ns, line, state) of all edges that can be mapped."""
    clocks, found = clock_map(name, heard), []
    for block in heard.all(name, EdgeBlock):
        if block.run == clocks.run:
            for sample, line, state in zip(block.sample, block.line, block.state, strict=True):
                at = clocks.to_host_ns(float(sample))
                if at is not None:
                    found.append((at[0], int(line), int(state)))
    return found


def _lags(flashes: list[int], edges: np.ndarray) -> np.ndarray:
    """Return edge minus flip, ns, for each flash that has an edge within reach."""
    if len(edges) == 0:
        return np.zeros(0)
    nearest = [edges[np.argmin(np.abs(edges - at))] - at for at in flashes]
    return np.array([lag for lag in nearest if abs(lag) <= REACH_NS], dtype=np.float64)


def _unseen(edges: list[tuple[int, int, int]], line: int, flashes: list[int]) -> Result:
    others = sorted({of for _, of, state in edges if state == 1} - {line})
    for other in others:
        rising = np.array([at for at, of, state in edges if of == other and state == 1], dtype=np.float64)
        if len(_lags(flashes, rising)) > len(flashes) / 2:
            said = f"no edge on line {line} answers the flashes, those on line {other} do"
            return Result("photodiode", "fail", said, f"set photodiode_line: {other} in the source's config")
    lines = f"edges came on lines {', '.join(map(str, others))}" if others else "no other line had edges"
    cure = "see that it has power, looks at the patch (display.patch.corner) and is wired to that line"
    return Result("photodiode", "fail", f"not one of {len(flashes)} flashes was seen on line {line}; {lines}", cure)
