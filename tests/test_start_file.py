"""The file that a session's networks begin from: its hash is in the log, and another file of that name is refused."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from models.encoders.core_files import Cores, read_cores, write_cores
from models.encoders.network import Network
from models.encoders.weights import weights_of
from models.inception.encoder import eye_for
from rig.config.control import ControlPhase
from rig.config.encoders import NetworkEncoder
from rig.config.inception import InceptionPhase
from rig.config.reading import ConfigError, parse
from rig.config.session import Config
from rig.saved_evolution import with_saved
from tests.inception_units import SHORT, agent_of
from tests.test_inception_networks import TINY


def written(path: Path, seed: int) -> Path:
    """Write cores of TINY's architecture with weights of a seed."""
    eye = eye_for(128)
    architecture = NetworkEncoder.model_validate(TINY).architecture()
    network = Network(architecture, eye, {"session": ("a",)}, seed)
    write_cores(path, Cores(architecture, eye, [weights_of(network.core)]))
    return path


def begun(start: Path, **encoder: Any) -> tuple[Config, str]:
    """Return what `stimloop run` makes of a config whose second phase begins from a file."""
    phase = SHORT | {"encoder": TINY | {"start": str(start)} | encoder}
    text = yaml.safe_dump(
        {
            "seed": 4, "display": {"size_px": [200, 150], "width_cm": 40, "distance_cm": 30},
            "stimulus": {"size_deg": 12}, "sources": [{"type": "openephys"}],
            "responses": {"units": ["a", "b", "c", "d"]}, "phases": [phase],
        }
    )  # fmt: skip
    return with_saved(parse(text), text)


def test_the_log_says_which_file_it_was_and_a_restart_takes_no_other(tmp_path: Path) -> None:
    path = written(tmp_path / "phase1.safetensors", 1)
    config, text = begun(path)
    (phase,) = config.phases
    assert isinstance(phase, InceptionPhase)
    assert isinstance(phase.encoder, NetworkEncoder)
    assert phase.encoder.start_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert phase.encoder.start_sha256 in text  # the session's own config file has it too
    assert with_saved(config, text) == (config, text)  # as it is read again by a resumed session
    kept = agent_of(config).networks
    assert kept is not None
    theirs = read_cores(path, phase.encoder.architecture(), eye_for(128))[0]
    assert all(np.array_equal(array, theirs[name]) for name, array in weights_of(kept._network(0).core).items())
    written(path, 2)  # days later: another session's cores under this name
    with pytest.raises(ValueError, match=r"phases.0.encoder: .*phase1.safetensors: another file than the one"):
        agent_of(config)


def test_a_file_that_is_not_there_is_named_when_the_config_is_read(tmp_path: Path) -> None:
    missing = tmp_path / "encoders" / "phase1.safetensors"
    with pytest.raises(ConfigError, match=r"^phases\.0\.encoder\.start: .*phase1.safetensors cannot be read \(No such"):
        begun(missing)
    with pytest.raises(ConfigError, match=r"phases\.0\.encoder\.start: .* cannot be read \(Is a directory\)"):
        begun(tmp_path)


def test_a_hash_without_a_file_is_refused_and_none_is_taken_where_there_is_no_file() -> None:
    with pytest.raises(ConfigError, match="start_sha256: there is no start"):
        parse(yaml.safe_dump({"phases": [SHORT | {"encoder": TINY | {"start_sha256": "0" * 64}}],
                              "sources": [{"type": "openephys"}], "responses": {"units": ["a"]}}))  # fmt: skip
    text = yaml.safe_dump({"phases": [SHORT | {"encoder": TINY}], "sources": [{"type": "openephys"}],
                           "responses": {"units": ["a"]}})  # fmt: skip
    config = parse(text)
    assert with_saved(config, text) == (config, text)


def test_the_control_agent_s_loop_begins_from_the_same_file() -> None:
    encoder = NetworkEncoder.model_validate(TINY | {"start": "x.safetensors", "start_sha256": "0" * 64})
    assert ControlPhase(encoder=encoder).loop().encoder == encoder
