"""`stimloop check`: looks, before the animal is there, whether everything a session needs is in place.

Each check gives a status, what was seen, and for anything but "ok" its cure. It opens the real window, starts the real
source processes and the model's own warm-up; what it sees is what the session will see. The sources listen while the
window flashes its photodiode patch, so that the flashes come back as edges and 5 s of data are judged for loss.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from rig.clock import Clock
from rig.config.session import Config
from rig.preflight.calcium import traces
from rig.preflight.gaze import gaze
from rig.preflight.luminance import luminance
from rig.preflight.machine import animal, banks, disk, geometry, metadata, outputs, realtime
from rig.preflight.model import judged, warm_up
from rig.preflight.photodiode import photodiode
from rig.preflight.result import Result
from rig.preflight.screen import look_at_screen
from rig.preflight.sources import judge, listening
from rig.progress import expected_s, planned

__all__ = ["Result", "checks"]


def checks(config: Config, clock: Clock) -> Iterator[Result]:
    """Run all checks, one after the other, and yield their results as they come."""
    yield geometry(config)
    yield banks(config)
    yield from animal(config)
    yield metadata(config)
    yield from disk(config, clock)
    yield realtime(config)
    yield from outputs(config)
    with tempfile.TemporaryDirectory() as folder, listening(config, Path(folder), clock) as heard:
        yield from heard.unreachable()
        flashes: list[int] = []
        if config.guest is None:
            flashes = yield from look_at_screen(config, clock)
        heard.until_enough(clock)
    for source in config.sources:
        if source.name in heard.names:
            yield from judge(source, config, heard)
            yield from traces(source.name, config, heard)
            yield from gaze(source.name, config, heard)
    yield from photodiode(config, heard, flashes)
    figures = warm_up(config)
    if isinstance(figures, Result):
        yield figures
    else:
        yield judged(figures, config)
        yield luminance(config, figures)
    length = planned(config)
    yield Result("plan", "ok", f"{length} presentations, about {expected_s(config, length) / 60:.1f} minutes")
