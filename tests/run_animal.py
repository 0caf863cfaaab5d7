"""Runs the simulated animal with its V1 neurons as a process of its own: CONFIG_FILE TRUTH_FOLDER.

Stands where `stimloop animal` stands, for tests that need the animal alone.
"""

import sys
from pathlib import Path

from models.truth import build_for
from rig.animal.process import run
from rig.config.reading import load
from rig.supervision.child import Stop


def main(config_file: str, truth_folder: str) -> int:
    config, _ = load(Path(config_file))
    return run(config, Path(truth_folder), build_for(config), Stop())


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
