"""How long things may take at most, by the config: what several processes wait for."""

from rig.config.session import Config
from rig.config.sources import LslCalciumSource, LslCountSource, TracesWireSource

# A trace's window needs the frame that ends after it, and deconvolution two more. Until the frame rate is known one
# second counts for it (rig.responses.traces).
FRAMES_S = 1.0


def window_end_s(config: Config, window_s: tuple[float, float] | None = None) -> float:
    """Return when the last of the windows of a response, and of its time course, ends, s from the onset.

    `window_s`: the response window, None for that of the config.
    """
    responses = config.responses
    base = responses.baseline
    ends = [(window_s or responses.window_s)[1]]
    ends += [base.window_s[1]] if base.kind != "none" else []
    ends += [responses.psth.window_s[1]] if responses.psth is not None else []
    return max(ends)


def lag_s(config: Config) -> float:
    """Return the longest time from a sample's arrival until its value is final, s: spikes at once, traces later."""
    neural = config.neural
    if isinstance(neural, TracesWireSource | LslCalciumSource):
        return FRAMES_S + (neural.calcium.lag_s if neural.calcium.measure == "deconvolved" else 0.0)
    return FRAMES_S if isinstance(neural, LslCountSource) else 0.0


def patience_s(config: Config, window_s: tuple[float, float] | None = None) -> float:
    """Return the time from an onset flip after which a response without complete data is scored missing, s."""
    return window_end_s(config, window_s) + lag_s(config) + config.responses.timeout_s


def drain_s(config: Config) -> float:
    """Return the longest time from the last image's onset until its response must be there, with a margin, s."""
    return config.presentation.on_s + patience_s(config) + 2.0
