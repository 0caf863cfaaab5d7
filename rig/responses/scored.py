"""The Response of one presentation: measured, or missing with its reason.

Pure; part of the response fold (`rig.responses.windows`), which knows when the data of a presentation are final.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from rig.clocks.clockmap import ClockMap
from rig.config.scoring import Baseline, Responses
from rig.messages import Presented, Response
from rig.responses.device_data import DeviceData, Span
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


def measured(
    shown: Presented,
    onset: Onset,
    device: DeviceData,
    clockmap: ClockMap,
    settings: Responses,
    window_s: tuple[float, float],
    too_short: str,
) -> Measured:
    """Measure a presentation whose data are final; `too_short` says why no window of this run can be scored, or ""."""
    spans = spans_of(settings.baseline, window_s, onset.sample, device.rate_hz)
    coverage = device.covered(spans)
    count, early = device.kept.values(*spans[0]), None
    if len(spans) > 1:
        (start, end), (base_start, base_end) = spans
        early = device.kept.values(base_start, base_end)
        if device.kept.measure != "dff":  # a sum; dF/F is a mean, whatever the window's length
            early = early * ((end - start) / (base_end - base_start))
    reason = too_short
    if not reason and coverage < settings.min_coverage:
        reason = f"only {coverage:.1%} of its windows is covered by complete data"
    elif not reason and onset.uncertainty_ns > settings.max_onset_uncertainty_s * 1e9:
        known_ms = onset.uncertainty_ns / 1e6
        reason = f"its onset is known to {known_ms:.0f} ms only (responses.max_onset_uncertainty_s)"
    elif not reason:
        empty = [s for s, v in zip(spans, (count, early), strict=False) if v is not None and np.isnan(v).all()]
        reason = device.why_missing(empty[0]) if empty else ""
    edge_host = clockmap.to_host_ns(onset.edge) if onset.edge is not None else None
    return Measured(
        onset=onset,
        onset_host=clockmap.to_host_ns(onset.sample),
        flip_to_edge_ns=None if edge_host is None else edge_host[0] - shown.onset_flip_host_ns,
        window=spans[0],
        spans=spans,
        coverage=coverage,
        lost_messages=device.lost_messages(spans),
        measure=device.kept.measure,
        count=count,
        early=early,
        reason=reason,
        psth=None if settings.psth is None else device.course(onset.sample, settings.psth),
    )


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
