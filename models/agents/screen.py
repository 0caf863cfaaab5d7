"""The screen agent: a reference set, ten times in random order among blanks, then which units are worth an experiment.

Shows what the present agent shows, keeps every single response, and at the end judges each scored unit by
`models.agents.selection` against the thresholds of the config. Those do not move any more: what it leaves to later
phases are the units that passed all of them, the most reliable first, and the response window that their latencies
suggest. Every unit that did not pass has its reasons in the report, in the order of `REASONS`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from models.agents.carried import Leaves
from models.agents.present import Present
from models.agents.selection import Selectivity, false_discoveries, measure
from models.agents.timecourse import Course, TimeCourses
from models.agents.types import F64, Told
from rig.config.phases import ScreenPhase
from rig.config.scoring import Psth
from stimuli.spec import Place, Stimulus

FIGURES = (
    "p_blank", "p_tuned", "reliability", "reliability_low", "reliability_high", "sparseness", "mean_hz", "blank_hz",
    "driven_hz",
)  # fmt: skip
UNSEEN, SILENT, WEAK, UNTUNED = "never seen", "does not respond", "fires too little", "answers all images alike"
UNRELIABLE, NO_FIELD, OUTSIDE = "not reliable", "no receptive field", "its field is not in the image"
REASONS = (UNSEEN, SILENT, WEAK, UNTUNED, UNRELIABLE, NO_FIELD, OUTSIDE)


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
        psth: Psth | None,
    ) -> None:
        """Show `stimuli` as `Present` does, at `place`, which is `image` where it is None.

        `fields` are the receptive fields found before, by unit, None if nobody mapped; `psth`: what the time
        courses of responses are; None where they have none.
        """
        super().__init__(stimuli, phase.repeats, phase.blanks, len(units), frame_shape, rng, place)
        self.phase, self.phase_index, self.units, self.image, self.fields = phase, phase_index, units, image, fields
        self._trials: list[tuple[int, F64]] = []  # (stimulus, rates) of each usable presentation, blanks included
        self._courses = None
        if psth is not None:  # blanks are one more image
            self._courses = TimeCourses(len(stimuli) + 1, len(units), psth.bins, psth.window_s[0], psth.bin_s)
        self._judged: list[tuple[Selectivity, tuple[str, ...]]] | None = None

    def take(self, image: int, row: Told) -> None:
        """Keep a single response."""
        if row.rate_hz is None:
            return
        self._judged = None
        self._trials.append((image, np.array(row.rate_hz, np.float64)))
        if self._courses is not None and row.psth is not None:
            self._courses.take(image, row.rate_hz, row.psth.astype(np.float64))

    def report(self) -> dict[str, float]:
        """Return the present agent's figures, and those of units once everything was told.

        proposed: number of proposed units; window_start_s and window_end_s: the window that their latencies suggest.
        For each unit, after its name: rank among the proposed from 1, or `rejected, REASON` 1 for each reason;
        p_blank, p_tuned, reliability with its interval, sparseness, mean_hz, blank_hz, driven_hz and latency_s. Figures
        without data are left out.
        """
        out = super().report()
        if self.finished() is None:
            return out
        ranked = self.proposed()
        out["proposed"] = float(len(ranked))
        for k, (name, (found, reasons)) in enumerate(zip(self.units, self.judged(), strict=True)):
            figures = {figure: float(getattr(found, figure)) for figure in FIGURES}
            course = self._course(k)
            if course is not None:
                figures["latency_s"] = course.latency_s
            out |= {f"{name}: {figure}": value for figure, value in figures.items() if np.isfinite(value)}
            out |= {f"{name}: rejected, {reason}": 1.0 for reason in reasons}
            if name in ranked:
                out[f"{name}: rank"] = float(ranked.index(name) + 1)
        if (window := self._window()) is not None:
            out |= {"window_start_s": window[0], "window_end_s": window[1]}
        return out

    def finished(self) -> str | None:
        """Return why screening ends and which units it proposes."""
        shown = super().finished()
        if shown is None:
            return None
        ranked = self.proposed()
        words = f"proposed: {', '.join(ranked)}" if ranked else "no unit passed the thresholds"
        return f"{shown}; {words}"

    def leaves(self) -> Leaves:
        """Return the references with their rates, the proposed units, and the window that suits them."""
        return {**super().leaves(), "units": self.proposed(), "window_s": self._window()}

    def state(self) -> dict[str, Any]:
        """Return everything that decides what comes next and what is reported."""
        rates = np.array([rate for _, rate in self._trials], np.float64).reshape(-1, len(self.units))
        courses = None if self._courses is None else self._courses.state()
        return {**super().state(), "trials": [k for k, _ in self._trials], "rates": rates, "courses": courses}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state of an agent built with the same arguments."""
        super().restore(state)
        self._trials = list(zip(state["trials"], np.array(state["rates"], np.float64), strict=True))
        if self._courses is not None:
            self._courses.restore(state["courses"])
        self._judged = None

    # --- judging ------------------------------------------------------------------------------------------------------

    def judged(self) -> list[tuple[Selectivity, tuple[str, ...]]]:
        """Return what was measured of each unit, and why it is rejected: () for a proposed one."""
        if self._judged is None:
            rng = np.random.default_rng(self.phase_index)  # the same data give the same figures
            found = [measure(*self._rates_of(k), rng) for k in range(len(self.units))]
            phase = self.phase
            # A unit responds if blanks and images differ, or images among each other: two looks, each at half.
            responsive = [
                a or b
                for a, b in zip(
                    false_discoveries([f.p_blank for f in found], phase.chance / 2),
                    false_discoveries([f.p_tuned for f in found], phase.chance / 2),
                    strict=True,
                )
            ]
            tuned = false_discoveries([f.p_tuned for f in found], phase.chance)
            self._judged = [
                (f, self._reasons(self.units[k], f, responsive[k], tuned[k])) for k, f in enumerate(found)
            ]
        return self._judged

    def _reasons(self, unit: str, found: Selectivity, responsive: bool, tuned: bool) -> tuple[str, ...]:
        phase = self.phase
        if not found.presentations:
            return (UNSEEN,)
        reasons = {
            SILENT: not responsive,
            WEAK: not found.driven_hz >= phase.least_driven_hz,
            UNTUNED: responsive and not tuned,
            UNRELIABLE: not (found.reliability >= phase.least_reliability and found.reliability_low > 0),
        }
        if self.fields is not None:
            field = self.fields.get(unit)
            reasons[NO_FIELD] = field is None
            reasons[OUTSIDE] = field is not None and not _within(field.center_deg, self.image)
        return tuple(reason for reason in REASONS if reasons.get(reason, False))

    def proposed(self) -> tuple[str, ...]:
        """Return the units without a reason against them, the most reliable first."""
        passed = [k for k, (_, reasons) in enumerate(self.judged()) if not reasons]
        passed.sort(key=lambda k: -self.judged()[k][0].reliability)
        return tuple(self.units[k] for k in passed)

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

    def _course(self, unit: int) -> Course | None:
        return None if self._courses is None else self._courses.course(unit)

    def _window(self) -> tuple[float, float] | None:
        """Return the window that holds the responses of the proposed units, None if their time courses do not tell."""
        if self._courses is None:
            return None
        return self._courses.window([self.units.index(name) for name in self.proposed()])


def _within(point_deg: Sequence[float], image: Place) -> bool:
    return all(abs(p - c) <= image.size_deg / 2 for p, c in zip(point_deg, image.center_deg, strict=True))
