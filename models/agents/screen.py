"""The screen agent: a reference set, ten times in random order among blanks, then which units are worth an experiment.

Shows what the present agent shows, keeps every single response, and at the end judges each scored unit by
`models.agents.selection` against the thresholds of the config. Those do not move any more: what it leaves to later
phases are the units that passed all of them, the most reliable first, and the response window that their latencies
suggest, which the config may ask to lock. Every unit that did not pass has its reasons in the report, in the order of
`REASONS`. Judging many units takes seconds, so it is a work of its own, after the last response.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from models.agents.carried import Leaves, Screened
from models.agents.present import Present
from models.agents.selection import Measuring, Selectivity, false_discoveries
from models.agents.timecourse import TimeCourses
from models.agents.types import F64, Batch, Told, Work, nothing
from rig.config.phases import ScreenPhase
from rig.config.scoring import Psth
from stimuli.spec import Place, Stimulus

Window = tuple[float, float]

FIGURES = (
    "p_blank", "p_tuned", "reliability", "reliability_low", "reliability_high", "sparseness", "mean_hz", "blank_hz",
    "driven_hz",
)  # fmt: skip
UNSEEN, SILENT, WEAK, UNTUNED = "never seen", "does not respond", "fires too little", "answers all images alike"
UNRELIABLE, NO_FIELD, OUTSIDE = "not reliable", "no receptive field", "its field is not in the image"
REASONS = (UNSEEN, SILENT, WEAK, UNTUNED, UNRELIABLE, NO_FIELD, OUTSIDE)


@dataclass(frozen=True)
class Timing:
    """What time courses of responses are, and in which window their rates are."""

    psth: Psth
    window_s: Window
    """Of the rates, s from the onset."""
    refused: Callable[[Window], str]
    """Why later phases could not use a window, "" if they can."""


@dataclass(frozen=True)
class Judgement:
    """What became of all units; each field in the order of the scored units."""

    found: tuple[Selectivity, ...]
    reasons: tuple[tuple[str, ...], ...]
    """Against each; () for a proposed unit."""
    latency_s: tuple[float, ...]
    """NaN where there is none."""
    proposed: tuple[str, ...]
    """The most reliable first."""
    window_s: Window | None
    """That holds what the proposed units answer; None if their time courses do not tell."""
    locked_s: Window | None
    words: str
    """What was decided of the window; "" if nothing was to be decided."""


class Screen(Present):
    """Screens units with a reference set."""

    def __init__(
        self,
        phase: ScreenPhase,
        phase_index: int,
        stimuli: tuple[Stimulus, ...],
        units: tuple[str, ...],
        frame_shape: tuple[int, int],
        rng: np.random.Generator,
        place: Place | None,
        image: Place,
        fields: dict[str, Place] | None,
        timing: Timing | None,
    ) -> None:
        """Show `stimuli` as `Present` does, at `place`, which is `image` where it is None.

        `fields` are the receptive fields found before, by unit, None if nobody mapped; `timing` is None where
        responses have no time courses.
        """
        super().__init__(stimuli, phase.repeats, phase.blanks, len(units), frame_shape, rng, place)
        self.phase, self.phase_index, self.units, self.image, self.fields = phase, phase_index, units, image, fields
        self._trials: list[tuple[int, F64]] = []  # (stimulus, rates) of each usable presentation, blanks included
        self._timing, self._courses = timing, None
        if timing is not None:  # blanks are one more image
            psth = timing.psth
            self._courses = TimeCourses(len(stimuli) + 1, len(units), psth.bins, psth.window_s[0], psth.bin_s)
        self._concluded = False
        self._judged: Judgement | None = None

    def ask(self) -> Work:
        """Return the computation of the next block; after the last one, that of the judgement."""
        self._ledger.require_main_told()
        return super().ask() if super().finished() is None else Judging(self)

    def take(self, image: int, row: Told) -> None:
        """Keep a single response."""
        if row.rate_hz is None:
            return
        self._judged = None
        self._trials.append((image, np.array(row.rate_hz, np.float64)))
        if self._timing is not None and self._courses is not None and row.psth is not None:
            length_s = self._timing.window_s[1] - self._timing.window_s[0]
            baseline_hz = None if row.baseline is None else row.baseline / length_s
            self._courses.take(image, row.rate_hz, row.psth.astype(np.float64), baseline_hz)

    def report(self) -> dict[str, float]:
        """Return the present agent's figures, and those of units once they were judged.

        proposed: number of proposed units; window_start_s and window_end_s: the window that their latencies suggest;
        window_locked: 1 if later phases use it.
        For each unit, after its name: rank among the proposed from 1, or `rejected, REASON` 1 for each reason;
        p_blank, p_tuned, reliability with its interval, sparseness, mean_hz, blank_hz, driven_hz and latency_s. Figures
        without data are left out.
        """
        out = super().report()
        if self.finished() is None:
            return out
        judged = self.judged()
        out["proposed"] = float(len(judged.proposed))
        for name, found, reasons, latency_s in zip(
            self.units, judged.found, judged.reasons, judged.latency_s, strict=True
        ):
            figures = {figure: float(getattr(found, figure)) for figure in FIGURES} | {"latency_s": latency_s}
            out |= {f"{name}: {figure}": value for figure, value in figures.items() if np.isfinite(value)}
            out |= {f"{name}: rejected, {reason}": 1.0 for reason in reasons}
        out |= {f"{name}: rank": float(k + 1) for k, name in enumerate(judged.proposed)}
        if judged.window_s is not None:
            out |= {"window_start_s": judged.window_s[0], "window_end_s": judged.window_s[1]}
            out["window_locked"] = float(judged.locked_s is not None)
        return out

    def finished(self) -> str | None:
        """Return why screening ends and which units it proposes; None before they were judged."""
        shown = super().finished()
        if shown is None or not self._concluded:
            return None
        judged = self.judged()
        ranked = judged.proposed
        words = f"proposed: {', '.join(ranked)}" if ranked else "no unit passed the thresholds"
        return "; ".join(filter(None, (shown, words, judged.words)))

    def leaves(self) -> Leaves:
        """Return the references with their rates, the proposed units, and the window that suits them.

        Rates are those in the window of the phases that follow.
        """
        judged, left = self.judged(), super().leaves()
        blank_hz = np.array([f.blank_hz for f in judged.found])
        if judged.locked_s is not None and self._courses is not None:
            rates = self._courses.rates_hz(judged.locked_s)
            left["references"] = tuple(replace(m, rate_hz=rates[k]) for k, m in enumerate(left["references"]))
            blank_hz = rates[-1]
        screened = Screened(self.units, np.array([f.reliability for f in judged.found]), blank_hz)
        found: Leaves = {"units": judged.proposed, "window_s": judged.window_s, "locked_s": judged.locked_s}
        return {**left, **found, "screened": screened}

    def state(self) -> dict[str, Any]:
        """Return everything that decides what comes next and what is reported."""
        rates = np.array([rate for _, rate in self._trials], np.float64).reshape(-1, len(self.units))
        courses = None if self._courses is None else self._courses.state()
        trials = [k for k, _ in self._trials]
        own = {"trials": trials, "rates": rates, "courses": courses, "concluded": self._concluded}
        return {**super().state(), **own}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state of an agent built with the same arguments."""
        super().restore(state)
        self._trials = list(zip(state["trials"], np.array(state["rates"], np.float64), strict=True))
        if self._courses is not None:
            self._courses.restore(state["courses"])
        self._concluded, self._judged = state["concluded"], None

    def nothing(self) -> Batch:
        """Return the batch of the work that concludes the phase."""
        return nothing(self._block, self.frame_shape)

    # --- judging ------------------------------------------------------------------------------------------------------

    def judged(self) -> Judgement:
        """Return what became of all units; made now where the work that concludes the phase did not."""
        if self._judged is None:
            steps = self.judging()
            try:
                while True:
                    next(steps)
            except StopIteration as end:
                self._judged = end.value
        assert self._judged is not None  # noqa: S101
        return self._judged

    def judging(self) -> Generator[None, None, Judgement]:
        """Judge all units, in steps of a few milliseconds."""
        rng = np.random.default_rng(self.phase_index)  # the same data give the same figures
        found: list[Selectivity] = []
        latency_s: list[float] = []
        for k in range(len(self.units)):
            measuring = Measuring(*self._rates_of(k), rng)
            while not measuring.step():
                yield
            assert measuring.result is not None  # noqa: S101 - the last step made it
            found.append(measuring.result)
            course = None if self._courses is None else self._courses.course(k)
            latency_s.append(float("nan") if course is None else course.latency_s)
            yield
        phase = self.phase
        # A unit responds if blanks and images differ, or images among each other: two looks, each at half.
        looks = [[f.p_blank for f in found], [f.p_tuned for f in found]]
        responsive = np.any([false_discoveries(p, phase.chance / 2) for p in looks], axis=0)
        tuned = false_discoveries(looks[1], phase.chance)
        reasons = tuple(
            self._reasons(unit, f, bool(r), t)
            for unit, f, r, t in zip(self.units, found, responsive, tuned, strict=True)
        )
        passed = sorted((k for k, against in enumerate(reasons) if not against), key=lambda k: -found[k].reliability)
        window_s = None if self._courses is None else self._courses.window(passed)
        locked_s, words = self._locked(window_s)
        proposed = tuple(self.units[k] for k in passed)
        return Judgement(tuple(found), reasons, tuple(latency_s), proposed, window_s, locked_s, words)

    def conclude(self, judged: Judgement) -> None:
        """Take over the judgement."""
        self._concluded, self._judged = True, judged

    def _locked(self, window_s: Window | None) -> tuple[Window | None, str]:
        """Return the window that later phases are to use, None for the one they would use anyway; and why."""
        if not self.phase.lock_window or self._timing is None:
            return None, ""
        if window_s is None:
            return None, "no response window was found, so that it stays as it was"
        said = f"{window_s[0] * 1e3:.0f} to {window_s[1] * 1e3:.0f} ms"
        if why := self._timing.refused(window_s):
            return None, f"the response window found, {said}, is not locked: {why}"
        return window_s, f"the response window is locked at {said}"

    def _reasons(self, unit: str, found: Selectivity, responsive: bool, tuned: bool) -> tuple[str, ...]:
        phase = self.phase
        if not found.presentations:
            return (UNSEEN,)
        reasons = {
            SILENT: not responsive,
            WEAK: not found.driven_hz >= phase.least_driven_hz,
            UNTUNED: responsive and not tuned,
            # Its interval over images is wide where one or two of them drive a cell; that it is above 0 `tuned` tests.
            UNRELIABLE: not found.reliability >= phase.least_reliability,
        }
        if self.fields is not None:
            field = self.fields.get(unit)
            reasons[NO_FIELD] = field is None
            reasons[OUTSIDE] = field is not None and not _within(field.center_deg, self.image)
        return tuple(reason for reason in REASONS if reasons.get(reason, False))

    def _rates_of(self, unit: int) -> tuple[F64, F64]:
        """Return a unit's rates to images (image, repeat), filled up with NaN, and to blanks (presentation,)."""
        rows: list[list[float]] = [[] for _ in range(len(self.stimuli) + 1)]
        for image, rate in self._trials:
            rows[image].append(float(rate[unit]))
        longest = max((len(row) for row in rows[:-1]), default=0)
        out = np.full((len(self.stimuli), max(longest, 1)), np.nan)
        for k, row in enumerate(rows[:-1]):
            out[k, : len(row)] = row
        return out, np.array(rows[-1], np.float64)


class Judging:
    """The work of judging; what it makes shows nothing."""

    def __init__(self, agent: Screen) -> None:
        """Judge the units of `agent`, which is not touched before the result is taken."""
        self.steps = 0
        self._agent = agent
        self._work = agent.judging()
        self._judged: Judgement | None = None

    def step(self) -> bool:
        """Measure a little; return True when all units are judged. Further calls change nothing."""
        if self._judged is None:
            self.steps += 1
            try:
                next(self._work)
            except StopIteration as end:
                self._judged = end.value
        return self._judged is not None

    def peek(self) -> Batch:
        """Return the batch, which shows nothing."""
        if self._judged is None:
            raise RuntimeError("the units are not judged yet; call step until it returns True")
        return self._agent.nothing()

    def result(self) -> Batch:
        """Return the batch; the agent has concluded."""
        batch = self.peek()
        if self._judged is not None:
            self._agent.conclude(self._judged)
        return batch


def _within(point_deg: Sequence[float], image: Place) -> bool:
    return all(abs(p - c) <= image.size_deg / 2 for p, c in zip(point_deg, image.center_deg, strict=True))
