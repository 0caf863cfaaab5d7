"""The rig process: opens the window, gets its priority, and runs the loop of `rig.display.loop`.

Started by the supervisor (`rig.child` says how they talk), `python -m rig.display.session`. Never imports torch or
HDF5.
"""

import argparse
import gc
import sys
from pathlib import Path

from rig import priority
from rig.bus import Peer
from rig.child import Stop, fail, say, shield
from rig.clock import HostClock
from rig.config import ConfigError, load
from rig.display.frames import FrameMaker
from rig.display.loop import Session
from rig.display.places import places
from rig.display.programme import WANTS
from rig.display.trial_outputs import GAZE_WANTS
from rig.display.window import DisplayError, Window, WindowLost, load_graphics
from rig.outputs.lines import OutputError
from rig.outputs.onset import OnsetLines
from rig.provenance import process_started
from stimuli.bank import folder_bank, natural_bank

NAME = "rig"
FLUSH_S = 5.0


def main(arguments: list[str] | None = None) -> int:
    """Process entry: `python -m rig.display.session --folder SESSION --endpoint tcp://127.0.0.1:PORT`."""
    parser = argparse.ArgumentParser(prog="rig.display.session")
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
        wants = WANTS if config.gates.fixation is None else WANTS | GAZE_WANTS
        line = Peer(NAME, options.endpoint, wants, clock)
        onset = OnsetLines(config, line, clock)
        granted = priority.ask(config.processes.realtime)
        textures = config.presentation.images_per_trial
        window = Window(display, where.rect, where.patch, textures, frames.background_level, clock, where.fixation)
    except (DisplayError, OutputError) as error:
        return fail(f"{NAME}: {error}", error.cure)
    except (ConfigError, OSError, ValueError) as error:
        return fail(f"{NAME}: {error}", "mend config.yaml as the message says")
    try:
        notes = {**window.notes, "priority": granted}
        if where.fixation is not None and where.fixation.overlaps(where.rect):
            notes["fixation point"] = f"drawn over the image at {where.fixation}: those pixels of each frame are hidden"
        line.send(process_started(NAME, clock, notes))
        say(ready=notes)
        gc.collect()
        gc.freeze()  # what the libraries hold lives as long as the process
        gc.disable()
        return _run(Session(config, where, window, line, frames, clock, stop, onset), line, stop)
    finally:
        onset.close()
        window.close()
        line.close()


def _run(session: Session, line: Peer, stop: Stop) -> int:
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
