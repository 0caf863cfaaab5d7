"""The rig process: opens the window, gets its priority, and runs the loop of `rig.display.loop`.

Started by the supervisor (`rig.supervision.child` says how they talk), `python -m rig.display.session`. Never imports
torch or HDF5.
"""

import argparse
import gc
import sys
from pathlib import Path

from rig import priority
from rig.clock import HostClock
from rig.config.reading import ConfigError, load
from rig.display.frames import FrameMaker
from rig.display.loop import Session
from rig.display.places import places
from rig.display.programme import WANTS
from rig.display.trial_outputs import GAZE_WANTS
from rig.display.window import DisplayError, Window, WindowLost, load_graphics
from rig.links.peer import Peer
from rig.outputs.lines import OutputError
from rig.outputs.onset import OnsetLines
from rig.provenance import process_started
from rig.supervision.child import Stop, fail, say, shield
from stimuli.bank import folder_bank
from stimuli.tiles import built_in_banks

NAME = "rig"
FLUSH_S = 20.0  # long enough for a recorder that is being restarted


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
        banks |= built_in_banks(float(config.display.background), config.natural_contrast)
        display = config.display
        frames = FrameMaker(where, display.background, display.gamma, config.limits, banks)
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
        if where.hidden(where.usual):
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
        # Said first: should the flush be cut short, the supervisor knows that another start would not help.
        code = fail(
            f"{NAME}: {error}", "see that nobody closes the window and that the screen stays on, then start again"
        )
        with stop.pulse.busy(FLUSH_S + 1):
            line.flush(FLUSH_S)
        return code
    with stop.pulse.busy(FLUSH_S + 1):
        flushed = line.flush(0.5 if stop.orphaned else FLUSH_S)
    if not flushed:
        return fail(f"{NAME}: {line.unacked} documents were not journalled", "look for the recorder's own message")
    return 0


if __name__ == "__main__":
    shield()
    sys.exit(main())
