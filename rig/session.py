"""The rig process, `python -m rig.session`: opens the window, gets its priority, and runs the loop of `rig.loop`.

Started by the supervisor (`rig.child` says how they talk). Never imports torch or HDF5.
"""

import argparse
import gc
import sys
from pathlib import Path

from rig import priority
from rig.bus import Peer
from rig.child import Stop, fail, say, shield
from rig.clock import Clock, HostClock
from rig.config import Config, ConfigError, load
from rig.display import DisplayError, Window, WindowLost, load_graphics
from rig.frames import FrameMaker
from rig.loop import WANTS, Places, Session
from rig.provenance import process_started
from stimuli.bank import folder_bank, natural_bank
from stimuli.geometry import image_rect, patch_rect, pixel_angles

NAME = "rig"
FLUSH_S = 5.0


def places(config: Config) -> Places:
    """Return the geometry of a session; raises ValueError where something does not fit on the screen."""
    display, place = config.display, config.stimulus
    rect = image_rect(display.size_px, display.width_cm, display.distance_cm, place.size_deg, place.center_deg)
    patch = None if display.patch is None else patch_rect(display.size_px, display.patch.corner, display.patch.size_px)
    if patch is not None and patch.overlaps(rect):
        raise ValueError("the photodiode patch covers part of the image; move one of them or make it smaller")
    return Places(rect, patch, pixel_angles(rect, display.size_px, display.width_cm, display.distance_cm))


def main(arguments: list[str] | None = None) -> int:
    """Process entry: `python -m rig.session --folder SESSION --endpoint tcp://127.0.0.1:PORT`."""
    parser = argparse.ArgumentParser(prog="rig.session")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--endpoint", required=True)
    options = parser.parse_args(arguments)
    stop, clock = Stop(), HostClock()
    try:
        config, _ = load(options.folder / "config.yaml")
        where = places(config)
        banks = {name: folder_bank(path) for name, path in config.banks.items()}
        banks["natural"] = natural_bank(float(config.display.background), config.natural_contrast)
        display = config.display
        frames = FrameMaker(where.angles, display.background, display.gamma, config.limits, banks)
        load_graphics()
        # The bus thread starts before and stays ordinary; the graphics driver's threads start after and inherit.
        line = Peer(NAME, options.endpoint, WANTS, clock)
        granted = priority.ask(config.processes.realtime)
        textures = config.presentation.images_per_trial
        window = Window(display, where.rect, where.patch, textures, frames.background_level, clock)
    except DisplayError as error:
        return fail(f"{NAME}: {error}", error.cure)
    except (ConfigError, OSError, ValueError) as error:
        return fail(f"{NAME}: {error}", "mend config.yaml as the message says")
    try:
        return _run(config, where, window, line, frames, clock, stop, granted)
    finally:
        window.close()
        line.close()


def _run(
    config: Config,
    where: Places,
    window: Window,
    line: Peer,
    frames: FrameMaker,
    clock: Clock,
    stop: Stop,
    granted: str,
) -> int:
    notes = {**window.notes, "priority": granted}
    line.send(process_started(NAME, clock, notes))
    say(ready=notes)
    gc.collect()
    gc.freeze()  # what the libraries hold lives as long as the process
    gc.disable()
    session = Session(config, where, window, line, frames, clock, stop)
    try:
        session.run()
    except WindowLost as error:
        line.flush(FLUSH_S)
        return fail(
            f"{NAME}: {error}", "see that nobody closes the window and that the screen stays on, then start again"
        )
    if not line.flush(0.5 if stop.orphaned else FLUSH_S):
        return fail(f"{NAME}: {line.unacked} documents were not journalled", "look for the recorder's own message")
    return 0


if __name__ == "__main__":
    shield()
    sys.exit(main())
