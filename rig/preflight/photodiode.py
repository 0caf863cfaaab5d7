"""The photodiode: do the flashes of the patch come back as edges, how late, and how evenly.

The flashes are uneven in time. A line is believed only if its edges come with them and hardly without them: any regular
line (a frame clock, a sync line) has an edge somewhere near each flash.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rig.config.session import Config
from rig.messages import (
    EdgeBlock,
)
from rig.preflight.result import Result
from rig.preflight.screen import WHITE_S
from rig.preflight.sources import Heard, clock_map

REACH_NS = 120_000_000  # less than half of the shortest time between two flashes
SPREAD_WARN_MS = 2.0
SPREAD_MOST_MS = 3.0
UNRELATED_MOST = 0.25  # edges without a flash, in parts of the flashes
SLACK_NS = 20_000_000  # a frame: by so much an edge may miss the median lag and still belong to its flash
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Answer:
    """How the rising edges of one line go with the flashes."""

    lags_ms: F64
    """Edge minus flip of each flash that has an edge within reach."""
    flashes: int
    edges: int
    """Rising edges from the first flash to the last."""
    unrelated: int
    """Those of them that come while the patch is black."""

    @property
    def unrelated_line(self) -> bool:
        """Whether the edges come without the flashes, so that those that come with them mean nothing."""
        if self.unrelated > UNRELATED_MOST * self.flashes:
            return True
        # Twice the slack: what an answer may scatter by is a frame; more is no answer to an uneven flash.
        return len(self.lags_ms) > 0 and float(np.ptp(self.lags_ms)) > 2e-6 * SLACK_NS

    @property
    def believed(self) -> bool:
        """Whether this is what a photodiode over the patch gives."""
        enough = len(self.lags_ms) >= (1 - UNRELATED_MOST) * self.flashes
        return enough and not self.unrelated_line and float(self.lags_ms.std()) < SPREAD_MOST_MS


def answer(flashes: list[int], edges: F64) -> Answer:
    """Return how `edges` (edge,), host ns, of one line go with the flashes, host ns of the flips."""
    lags = _lags(flashes, edges)
    within = edges[(edges > flashes[0] - REACH_NS) & (edges < flashes[-1] + REACH_NS)]
    middle = float(np.median(lags)) if len(lags) else 0.0
    since = within[:, None] - np.array(flashes, np.float64)[None, :] - middle  # (edge, flash)
    related = ((since >= -SLACK_NS) & (since <= WHITE_S * 1e9 + SLACK_NS)).any(axis=1)
    return Answer(lags * 1e-6, len(flashes), len(within), int((~related).sum()))


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
    lines = {of: answer(flashes, _times(edges, of, 1)) for of in {line, *(of for _, of, state in edges if state == 1)}}
    own = lines[line]
    if own.unrelated_line:
        yield _unrelated(lines, line)
    elif len(own.lags_ms) == 0:
        yield _unseen(lines, line)
    else:
        yield _judged(own, np.abs(_lags(flashes, _times(edges, line, 0)) * 1e-6), line, config)


def _judged(own: Answer, falling_ms: F64, line: int, config: Config) -> Result:
    """Judge a line whose edges belong to the flashes."""
    title, lags_ms, flashes = "photodiode", own.lags_ms, own.flashes
    said = (
        f"{len(lags_ms)} of {flashes} flashes seen on line {line}, lag {lags_ms.mean():.1f} ms after the flip, "
        f"sd {lags_ms.std():.1f} ms"
    )
    tolerance_ms = config.responses.edge_tolerance_s * 1e3
    late = float(np.abs(lags_ms).max()) > tolerance_ms
    if late and len(falling_ms) and falling_ms.mean() < np.abs(lags_ms).mean():
        cure = "swap the polarity of the photodiode's comparator: the line must rise when the patch becomes white"
        return Result(title, "fail", f"{said}; the line falls where it should rise", cure)
    if late:
        cure = f"responses.edge_tolerance_s is {tolerance_ms:g} ms: find what delays the screen, or raise it"
        return Result(title, "fail", said, cure)
    if len(lags_ms) < flashes:
        cure = "move the photodiode onto the patch, shield it, set its threshold between the patch's white and black"
        return Result(title, "fail", said, cure)
    if own.edges > flashes:
        cure = "shield the photodiode, raise its threshold or low-pass it: a flickering backlight makes more edges"
        return Result(title, "warn", f"{said}; and {own.edges - flashes} more edges", cure)
    if lags_ms.std() > SPREAD_WARN_MS:
        cure = "the screen or the compositor shows frames late now and then: switch the compositor off, see screen"
        return Result(title, "fail" if lags_ms.std() > SPREAD_MOST_MS else "warn", said, cure)
    return Result(title, "ok", said)


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


def _times(edges: list[tuple[int, int, int]], line: int, state: int) -> F64:
    return np.array([at for at, of, to in edges if of == line and to == state], dtype=np.float64)


def _lags(flashes: list[int], edges: F64) -> F64:
    """Return edge minus flip, ns, for each flash that has an edge within reach."""
    if len(edges) == 0:
        return np.zeros(0)
    nearest = [edges[np.argmin(np.abs(edges - at))] - at for at in flashes]
    return np.array([lag for lag in nearest if abs(lag) <= REACH_NS], dtype=np.float64)


def _better(lines: dict[int, Answer], line: int) -> int | None:
    return next((of for of in sorted(lines) if of != line and lines[of].believed), None)


def _unrelated(lines: dict[int, Answer], line: int) -> Result:
    own, better = lines[line], _better(lines, line)
    spread = f" (of those near a flash the lag scatters by {own.lags_ms.std():.1f} ms)" if len(own.lags_ms) else ""
    said = (
        f"line {line} has {own.edges} edges unrelated to the {own.flashes} flashes{spread}: is it a frame clock or a "
        "sync line?"
    )
    if better is not None:
        cure = f"set photodiode_line: {better} in the source's config: the edges of that line answer the flashes"
    else:
        cure = "give photodiode_line the line to which the photodiode is wired, or null if there is none"
    return Result("photodiode", "fail", said, cure)


def _unseen(lines: dict[int, Answer], line: int) -> Result:
    better, flashes = _better(lines, line), lines[line].flashes
    if better is not None:
        said = f"no edge on line {line} answers the flashes, those on line {better} do"
        return Result("photodiode", "fail", said, f"set photodiode_line: {better} in the source's config")
    others = [
        f"line {of} has {one.edges} edges" + (" unrelated to the flashes" if one.unrelated_line else "")
        for of, one in sorted(lines.items()) if of != line
    ]  # fmt: skip
    seen = "; ".join(others) or "no other line had edges"
    cure = "see that it has power, looks at the patch (display.patch.corner) and is wired to that line"
    return Result("photodiode", "fail", f"not one of {flashes} flashes was seen on line {line}; {seen}", cure)
