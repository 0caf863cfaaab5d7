"""Networks trained by the inception agent: restored to the bit, scored on images of their own, warm starts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.agents.inception import Inception
from models.agents.types import Told
from models.encoders.core_files import read_cores, write_cores
from models.encoders.encoder import rates_of
from models.encoders.ensemble import Ensemble
from models.server import WANTS, batch_hash, state_hash
from rig.config.encoders import NetworkEncoder
from rig.config.reading import ConfigError
from rig.messages import ModelUpdated, PhaseEnded, Proposal
from rig.recording.journal import read_all
from rig.replay.session import verify_session
from stimuli.spec import LatentImage
from tests.inception_units import Subject, agent_of, config, go_on, next_batch
from tests.test_inception_session import PHASE
from tests.test_replay import made, make

TINY: dict[str, Any] = {
    "type": "network", "members": 2, "steps": 12, "finish_blocks": 2,
    "core": {"type": "normalised", "channels": 4, "layers": 2, "first_kernel_px": 21, "kernel_px": 3},
    "training": {"loss": "gaussian", "batch": 32, "slice": 16, "most_epochs": 4, "decays": 0, "patience": 2},
}  # fmt: skip


def agent(start: str | None = None, **settings: Any) -> tuple[Inception, Subject]:
    encoder = TINY | ({} if start is None else {"start": start})
    of = config(4, encoder=encoder, controls=["linear"], least_score=-1.0, least_oracle=-1.0, **settings)
    one = agent_of(of)
    return one, Subject(of, one)


@pytest.fixture(scope="module")
def finished() -> tuple[Inception, Subject]:
    one, subject = agent()
    go_on(one, subject, [])
    return one, subject


def test_images_are_made_by_the_trained_networks_and_scored_on_images_none_was_trained_on(
    finished: tuple[Inception, Subject],
) -> None:
    one, _ = finished
    assert one.networks is not None
    encoder = one.encoder()
    assert isinstance(encoder, Ensemble)
    assert len(encoder.members) == 2
    mei = one.made[0].images["mei"]
    seen = encoder.eye.see(mei.frame[None])
    assert mei.predicted == pytest.approx(float(encoder.rates(seen)[0, one.made[0].unit]), rel=1e-4)
    state = one.networks.state()
    assert {one.natural.held_out(int(k)) for k in state["images"]} == {False}
    assert len(state["images"]) == one.natural.train
    report = one.report()
    assert report["bank_heldout_r"] != report["heldout_r"]
    frames = np.stack([one.picture(s) for s in one.natural.stimuli[one.natural.train :]])
    predicted = rates_of(encoder, frames)
    sums, counts = np.zeros((2, len(frames), 4))
    for image, rates in one.test:
        sums[image - one.natural.train] += rates
        counts[image - one.natural.train] += 1
    r = [np.corrcoef(predicted[:, k], (sums / counts)[:, k])[0, 1] for k in range(4)]
    assert report["heldout_r"] == pytest.approx(np.median(r), abs=0.12)  # later repeats came after the last score


def test_training_goes_on_to_the_bit_after_a_restart_in_its_middle() -> None:
    one, subject = agent()
    late = go_on(one, subject, [], blocks=6)
    state = one.state()
    assert [fit["steps"] > 0 for fit in state["networks"]["fits"]] == [True, True]
    of = subject.config
    again = agent_of(of)
    again.restore(state)
    assert state_hash(again.state()) == state_hash(state)
    twin = Subject(of, again)
    twin.rng.bit_generator.state, twin.batches = subject.rng.bit_generator.state, list(subject.batches)
    for _ in range(2):
        both = late
        batches = []
        for who, its in ((one, subject), (again, twin)):
            batch = next_batch(who)
            told = its.answer(batch, len(its.batches))
            its.batches.append(batch)
            who.tell([*both, *told[: batch.tail_from]])
            batches.append((batch_hash(batch), state_hash(who.state()), told[batch.tail_from :]))
        (first, first_state, late), (second, second_state, _) = batches
        assert (first, first_state) == (second, second_state)


@pytest.mark.slow  # the session is made and told twice
def test_a_whole_session_is_replayed_to_the_bit(tmp_path: Path) -> None:
    phase = PHASE | {"encoder": TINY | {"steps": 6, "finish_blocks": 1}, "most_units": 1, "controls": ["linear"]}
    journal = made(tmp_path / "networks", [phase], 1.0)
    outcome = verify_session(journal, make, WANTS, frames=True)
    assert (outcome.verdict.different, outcome.verdict.missing) == ([], [])
    documents = [e.document for e in read_all(journal)]
    (ended,) = [d for d in documents if isinstance(d, PhaseEnded)]
    assert ended.reason.endswith("images of 1 units were shown back")
    last = [d for d in documents if isinstance(d, ModelUpdated)][-1]
    assert {"bank_heldout_r", "network1_validation_r", "network2_epochs"} <= last.report.keys()
    images = [s for d in documents if isinstance(d, Proposal) for s in d.stimuli if isinstance(s.spec, LatentImage)]
    assert all("ensemble2-" in s.spec.generator for s in images)


def test_a_work_that_is_not_taken_changes_nothing() -> None:
    one, subject = agent()
    go_on(one, subject, [], blocks=6)
    assert one.networks is not None
    assert one.networks.encoder() is not None
    before = state_hash(one.state())
    work = one.ask()
    while not work.step():
        pass
    assert state_hash(one.state()) == before


def test_the_cores_of_a_session_begin_the_next_one(finished: tuple[Inception, Subject], tmp_path: Path) -> None:
    one, _ = finished
    assert agent()[0].cores() is None
    cores, path = one.cores(), tmp_path / "phase1.safetensors"
    assert cores is not None
    write_cores(path, cores)
    later, subject = agent(start=str(path), train=60)
    assert later.networks is not None
    go_on(later, subject, [], blocks=1)
    given = NetworkEncoder.model_validate(TINY)
    for mine, theirs in zip(read_cores(path, given.architecture(), later.eye), cores.weights, strict=True):
        assert all(np.array_equal(mine[name], theirs[name]) for name in theirs)
    network = later.networks._network(1)
    assert np.array_equal(network.core.state_dict()["filters.layers.0.0.weight"], theirs["filters.layers.0.0.weight"])
    other = TINY | {"start": str(path), "core": TINY["core"] | {"channels": 5}}
    with pytest.raises(ValueError, match=r"phases.0.encoder: .*phase1.safetensors: its core is .*'channels': 4"):
        agent_of(config(4, encoder=other))
    with pytest.raises(ValueError, match="cannot be read"):
        agent_of(config(4, encoder=TINY | {"start": str(tmp_path / "none.safetensors")}))
    for spoilt in ([], [{name: array * np.nan for name, array in core.items()} for core in cores.weights]):
        write_cores(path, replace(cores, weights=spoilt))
        with pytest.raises(ValueError, match=r"phase1.safetensors: (holds no core|its .* not finite)"):
            agent_of(config(4, encoder=TINY | {"start": str(path)}))


def test_a_network_that_cannot_be_built_is_refused_before_the_session_and_not_when_training_begins() -> None:
    core = TINY["core"]
    with pytest.raises(ValueError, match=r"phases.0.encoder: first_kernel_px 63 does not fit into the eye's 32 x 32"):
        agent_of(config(4, encoder=TINY | {"core": core | {"first_kernel_px": 63}}))
    with pytest.raises(ValueError, match=r"phases.0.encoder: readout .* needs the cortical positions"):
        agent_of(config(4, encoder=TINY | {"readout": {"type": "point", "cortex": True}}))


def test_cores_that_cannot_be_written_are_an_os_error_as_any_other_file(
    finished: tuple[Inception, Subject], tmp_path: Path
) -> None:
    cores = finished[0].cores()
    assert cores is not None
    (tmp_path / "phase1.part" / "full").mkdir(parents=True)  # nothing can be written in its place
    with pytest.raises(OSError, match=r"phase1\.part: cannot be written"):
        write_cores(tmp_path / "phase1.safetensors", cores)
    assert not (tmp_path / "phase1.safetensors").exists()


def test_counts_that_may_fall_below_zero_are_refused_when_the_config_is_read() -> None:
    poisson = TINY | {"output": "softplus", "training": {"loss": "poisson"}}
    with pytest.raises(ConfigError, match=r"phases.0.encoder.training.loss: poisson is for counts"):
        config(4, encoder=poisson)


def test_missing_presentations_are_shown_again_and_trained_on() -> None:
    of = config(4, encoder=TINY, controls=["linear"], least_score=-1.0, least_oracle=-1.0)
    one = agent_of(of)
    subject = Subject(of, one, lost=0.1)
    late: list[Told] = []
    while one.judged is None:
        late = go_on(one, subject, late, blocks=1)
    assert one.networks is not None
    assert len(one.networks.state()["images"]) == one.known().presentations > 0.95 * one.natural.train
