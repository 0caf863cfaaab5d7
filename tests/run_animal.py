"""Runs the simulated animal with its V1 neurons as a process of its own: CONFIG_FILE TRUTH_FOLDER.

Stands where `stimloop animal` stands, for tests that need the animal alone.
"""

import sys
from pathlib import Path

from models.truth import build
from rig.animal.process import look_rects, run
from rig.config.reading import load
from rig.supervision.child import Stop
from stimuli.geometry import pixel_angles


def main(config_file: str, truth_folder: str) -> int:
    config, _ = load(Path(config_file))
    display = config.display
    image, _ = look_rects(config)
    angles = pixel_angles(image, display.size_px, display.width_cm, display.distance_cm)
    return run(config, Path(truth_folder), build(config.animal, *angles), Stop())


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
