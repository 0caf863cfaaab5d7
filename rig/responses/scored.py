"""The Response of one presentation: measured, or missing with its reason. Pure; part of the response fold."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from rig.config.scoring import Baseline
from rig.messages import Presented, Response
from rig.responses.device_data import Span
from rig.responses.gates import Judged
from rig.responses.onset import Onset

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Measure = Literal["spikes", "counts", "deconvolved", "dff"]


@dataclass(frozen=True)
class Measured:
    """What the scored source says about one presentation; whether it counts is for the gates to say."""

    onset: Onset
    onset_host: tuple[int, int] | None  # ns, bound on its error
    flip_to_edge_ns: int | None
    window: Span
    spans: tuple[Span, ...]  # window, and baseline window if there is one
    coverage: float
    lost_messages: int
    measure: Measure
    count: F64
    early: F64 | None  # what the baseline window says `count` should be
    reason: str
    psth: F32 | None = None  # (unit, bin)


def spans_of(baseline: Baseline, window_s: tuple[float, float], onset: int, rate_hz: float) -> tuple[Span, ...]:
    """Return the response window, and the baseline window if there is one, in device samples."""
    windows = [window_s, *([baseline.window_s] if baseline.kind != "none" else [])]
    return tuple((onset + round(start * rate_hz), onset + round(end * rate_hz)) for start, end in windows)


def scored(
    shown: Presented, measured: Measured, judged: Judged, source: str, run: int, units: tuple[str, ...]
) -> Response:
    """Return what was measured, usable unless the source or the gates have a reason; its rate is not known yet."""
    reason = "; ".join(filter(None, (measured.reason, judged.reason)))
    nan = np.full(len(units), np.nan)
    host = measured.onset_host
    return Response(
        presentation=shown.presentation,
        proposal=shown.proposal,
        slot=shown.slot,
        role=shown.role,
        stimulus_id=shown.stimulus_id,
        source=source,
        run=run,
        usable=not reason,
        reason=reason,
        onset_source=measured.onset.source,
        onset_sample=measured.onset.sample,
        onset_host_ns=None if host is None else host[0],
        onset_uncertainty_ns=measured.onset.uncertainty_ns,
        onset_host_uncertainty_ns=None if host is None else host[1],
        flip_to_edge_ns=measured.flip_to_edge_ns,
        window_start_sample=measured.window[0],
        window_end_sample=measured.window[1],
        coverage=measured.coverage,
        lost_messages=measured.lost_messages,
        measure=measured.measure,
        behaviour=judged.behaviour,
        units=units,
        count=nan if reason else measured.count,
        baseline=nan,
        rate_hz=nan,
        psth=None if reason else measured.psth,
    )


def missing(shown: Presented, reason: str, source: str, units: tuple[str, ...], measure: Measure) -> Response:
    """Return the response of a presentation of which nothing was measured."""
    nan = np.full(len(units), np.nan)
    return Response(
        presentation=shown.presentation,
        proposal=shown.proposal,
        slot=shown.slot,
        role=shown.role,
        stimulus_id=shown.stimulus_id,
        source=source,
        usable=False,
        reason=reason,
        onset_source="none",
        onset_sample=None,
        onset_host_ns=None,
        onset_uncertainty_ns=None,
        onset_host_uncertainty_ns=None,
        flip_to_edge_ns=None,
        coverage=0.0,
        measure=measure,
        units=units,
        count=nan,
        baseline=nan,
        rate_hz=nan,
    )
