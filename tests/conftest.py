"""Fixtures that several test modules share."""

import gc
import shutil
from collections.abc import Iterator

import hypothesis
import pytest

from rig.display.virtual import virtual_screen

# Tests share the cores with real-time processes: how long one example takes says nothing about the code.
hypothesis.settings.register_profile("shared cores", deadline=None)
hypothesis.settings.load_profile("shared cores")


@pytest.fixture(autouse=True, scope="session")
def _what_is_loaded_lives_as_long_as_the_run() -> None:
    """Keep all that the collected modules hold out of every later collection: the display collects in each trial."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def private_screen() -> Iterator[str]:
    """Start a private Xvfb for the whole run and set DISPLAY to it, also where there is a real screen."""
    if shutil.which("Xvfb") is None:
        pytest.skip("Xvfb is not installed (apt-get install xvfb)")
    with virtual_screen((1280, 1024)) as display:
        yield display
