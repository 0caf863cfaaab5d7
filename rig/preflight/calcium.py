"""Traces of the scored source: does what it sends, with this config, make responses that mean something.

The documents go through the fold that scores them in a session (`rig.responses.traces`). Its baseline would take the
first twelfth of `calcium.baseline_window_s`; for the few seconds heard here it is given a shorter window.
"""

from collections import Counter
from collections.abc import Iterator
from math import ceil, exp, log

import numpy as np

from rig.config.session import Config
from rig.config.sources import Calcium, LslCalciumSource, LslCountSource, TracesWireSource
from rig.messages import Continuity, TraceBlock, UnitList
from rig.preflight.result import Result, Status
from rig.preflight.sources import Heard
from rig.responses.traces import LEAST_PERIODS, PERIOD_KNOWN_TO, TraceFold

HEARD_WINDOW_S = 24.0  # its first twelfth, 2 s, is heard
SHORT_OF_TAU = 0.5
CARRIED_WARN, CARRIED_FAIL = 0.2, 0.5  # what is left of an image's dF/F when the next begins
TOLD = 4  # problems of the fold named one by one

_Source = TracesWireSource | LslCalciumSource | LslCountSource


def traces(name: str, config: Config, heard: Heard) -> Iterator[Result]:
    """Yield what is to be said about the traces, if the source `name` is the scored one and sends frames or bins."""
    source = config.neural
    if source.name != name or not isinstance(source, _Source):
        return
    states = heard.all(name, Continuity)
    if not states or not states[-1].sample_rate_hz:
        return
    run, rate_hz = states[-1].run, states[-1].sample_rate_hz
    yield from _processed(source, config, heard, run, rate_hz)
    blocks = [b for b in heard.all(name, TraceBlock) if b.run == run]
    at = np.array([(n, s) for b in blocks for n, s in zip(b.frame, b.sample, strict=True)], np.float64).reshape(-1, 2)
    frames, samples = np.diff(at, axis=0).T
    if (frames > 0).any() and (period := float(np.median(samples[frames > 0] / frames[frames > 0]))) > 0:
        yield _rows(source, config, rate_hz / period)
    if not isinstance(source, LslCountSource):
        yield _indicator(source.name, source.calcium, config)


def _processed(source: _Source, config: Config, heard: Heard, run: int, rate_hz: float) -> Iterator[Result]:
    """Pass on what the fold says of lists, rows, neuropil and baseline."""
    title = f"source {source.name} traces"
    shown: _Source = source
    if not isinstance(source, LslCountSource):
        window_s = min(source.calcium.baseline_window_s, HEARD_WINDOW_S)
        calcium = source.calcium.model_copy(update={"baseline_window_s": window_s})
        shown = source.model_copy(update={"calcium": calcium})
    fold, problems, rows = TraceFold(shown, config.responses.units), Counter[str](), 0
    for _, sender, document in heard.documents:
        if sender == source.name and isinstance(document, UnitList | TraceBlock) and document.run == run:
            problems.update(fold.take(document, rate_hz))
            rows += len(document.frame) if isinstance(document, TraceBlock) else 0
    for problem, times in problems.most_common(TOLD):
        status, cure = _cure(problem, source)
        yield Result(title, status, f"{problem} ({times} times)" if times > 1 else problem, cure)
    if len(problems) > TOLD:
        yield Result(title, "fail", f"{len(problems) - TOLD} more problems in {rows} frames", "mend those above first")
    if not rows:
        yield Result(title, "fail", "no frame came", "see that the device acquires and that the bridge sends frames")
    elif not problems:
        yield Result(title, "ok", f"{rows} frames make {fold.measure} values of {len(config.responses.units)} units")


def _cure(problem: str, source: _Source) -> tuple[Status, str]:
    """Return how bad a problem of the fold is, and its cure."""
    if "no neuropil" in problem:
        return "warn", f"send neuropil beside the traces, or set calcium.neuropil: 0 of source {source.name}"
    if "baseline not positive" in problem:
        cure = (
            "send raw fluorescence (not dF/F, no offset subtracted below the dark level), lower calcium.neuropil, or "
            "take these units out of responses.units"
        )
        return "fail", cure
    if "lacks" in problem:
        return "fail", "correct responses.units: take the names as the source gives them"
    if "left out" in problem:
        return "fail", "see that the bridge sends a list of units before its frames, and frames in order"
    if "twice" in problem:
        return "warn", "give each unit its own name"
    return "warn", "responses that need these frames have no value: relieve the microscope's computer and the network"


def _rows(source: _Source, config: Config, row_hz: float) -> Result:
    """See how many frames or bins make a response, and a baseline."""
    title, responses = f"source {source.name} windows", config.responses
    what = "bins" if isinstance(source, LslCountSource) else "frames"
    windows = {"responses.window_s": responses.window_s}
    if responses.baseline.kind != "none":
        windows["responses.baseline.window_s"] = responses.baseline.window_s
    counts = {name: (end - start) * row_hz for name, (start, end) in windows.items()}
    said = f"{row_hz:.3g} {what}/s: " + ", ".join(f"{n:.1f} {what} in {name}" for name, n in counts.items())
    if short := [name for name, n in counts.items() if n < LEAST_PERIODS * (1 - PERIOD_KNOWN_TO)]:
        need_s = LEAST_PERIODS / row_hz
        return Result(title, "fail", said, f"make {' and '.join(short)} at least {need_s:.3g} s long, better 3 {what}")
    return Result(title, "ok", said)


def _indicator(name: str, calcium: Calcium, config: Config) -> Result:
    """See whether window and rhythm suit the indicator's decay."""
    title, tau_s = f"source {name} indicator", calcium.tau_s
    start, end = config.responses.window_s
    said = f"the response window of {end - start:.2f} s is {(end - start) / tau_s:.2g} tau ({tau_s:g} s)"
    short = end - start < SHORT_OF_TAU * tau_s
    longer = f"lengthen responses.window_s to {SHORT_OF_TAU * tau_s:.2g} s or more, or correct calcium.tau_s"
    if calcium.measure == "dff" and config.guest is None:
        period_s = config.presentation.on_s + config.presentation.off_s
        left = exp(-period_s / tau_s)
        said += f"; {left:.0%} of an image's dF/F is left when the next begins {period_s:.2f} s later"
        if left > CARRIED_WARN:
            need_s = -tau_s * log(CARRIED_WARN) - config.presentation.on_s
            cure = f"set presentation.off_s to {ceil(need_s * 10) / 10:.1f} s or more, or calcium.measure: deconvolved"
            cure = f"{cure}; {longer}" if short else cure
            return Result(title, "fail" if left > CARRIED_FAIL else "warn", said, cure)
    return Result(title, "warn" if short else "ok", said, longer if short else "")
