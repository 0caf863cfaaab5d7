"""How long things may take at most, by the config: what several processes wait for."""

from rig.config import Config


def drain_s(config: Config) -> float:
    """Return the longest time from the last image's onset until its response must be there, with a margin, s."""
    return config.presentation.on_s + config.responses.window_s[1] + config.responses.timeout_s + 2.0
