"""Networks trained by the inception agent: restored to the bit, scored on images of their own, warm starts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from models.agents.inception import Inception
from models.agents.types import Told
from models.encoders.core_files import read_cores, write_cores
from models.encoders.encoder import rates_of
from models.encoders.ensemble import Ensemble
from models.encoders.eye import Eye
from models.encoders.network import Network
from models.encoders.resampled import Resampled, resampled
from models.encoders.weights import digest_of
from models.inception.encoder import eye_for
from models.inception.features import SIDE
from models.inception.networks import Networks
from models.server import WANTS, batch_hash, state_hash
from rig.config.encoders import Architecture, NetworkEncoder
from rig.config.inception import InceptionPhase
from rig.config.reading import ConfigError, load, parse
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
    assert subject.batches[-1].tail_from < len(subject.batches[-1].plan) / 3  # nearly all of it covers the training
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
    with pytest.raises(ConfigError, match=r"phases.0.*encoder.*core.first_kernel_px: 63 does not fit into side_px 32"):
        config(4, encoder=TINY | {"core": core | {"first_kernel_px": 63}})
    with pytest.raises(ConfigError, match=r"first_kernel_px: 25 does not fit into side_px 24; give at most 24"):
        config(4, encoder=TINY | {"core": core | {"first_kernel_px": 25}, "side_px": 24})
    one_place = TINY | {"core": core | {"first_kernel_px": 32}}
    with pytest.raises(ConfigError, match=r"training.slice: 1 picture of which first_kernel_px 32 leaves one place"):
        config(4, encoder=one_place | {"training": TINY["training"] | {"slice": 1}})
    agent_of(config(4, encoder=one_place))
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
    names = [f"E0{k}#0" for k in range(1, 5)]
    responses = {"units": names, "baseline": {"kind": "none"}}
    imaged: dict[str, Any] = {"responses": responses, "phases": [PHASE | {"encoder": poisson}]}
    scope = {"type": "traces_zmq", "name": "scope", "port": 5570, "calcium": {"measure": "dff"}}
    with pytest.raises(ConfigError, match=r"phases.0.encoder.training.loss: poisson is for counts, and dF/F"):
        parse(yaml.safe_dump(imaged | {"sources": [scope]}))
    parse(yaml.safe_dump(imaged | {"sources": [scope | {"calcium": {"measure": "deconvolved"}}]}))


def test_missing_presentations_are_shown_again_and_trained_on() -> None:
    of = config(4, encoder=TINY, controls=["linear"], least_score=-1.0, least_oracle=-1.0)
    one = agent_of(of)
    subject = Subject(of, one, lost=0.1)
    late: list[Told] = []
    while one.judged is None:
        late = go_on(one, subject, late, blocks=1)
    assert one.networks is not None
    assert len(one.networks.state()["images"]) == one.known().presentations > 0.95 * one.natural.train


# --- the shipped settings ---------------------------------------------------------------------------------------------

SHIPPED, _ = load(Path(__file__).parents[1] / "configs" / "inception.yaml")


def shipped(steps: int) -> Networks:
    """Return the networks of configs/inception.yaml, with fewer steps behind each block."""
    phase = SHIPPED.phases[0]
    assert isinstance(phase, InceptionPhase)
    assert isinstance(phase.encoder, NetworkEncoder)
    seen = np.random.default_rng(1).normal(0, 0.25, (80, 1, SIDE, SIDE)).astype(np.float32)
    of = phase.encoder.model_copy(update={"steps": steps})
    return Networks(of, SHIPPED.responses.units, eye_for(128), 80, 80, lambda k: seen[k], 3)


def looking(networks: Networks) -> list[int]:
    """Return a list of the pictures that networks look at from now on."""
    looked, see = list[int](), networks._seen
    networks._seen = lambda k: (looked.append(k), see(k))[1]  # type: ignore[func-returns-value]
    return looked


def told(first: int, count: int) -> list[tuple[int, Any]]:
    rng = np.random.default_rng(first)
    return [(k, rng.poisson(1.5, len(SHIPPED.responses.units)) / 0.15) for k in range(first, first + count)]


def test_networks_of_the_shipped_config_train_and_restore_to_the_bit() -> None:
    networks = shipped(5)
    for rows in (told(0, 60), told(60, 10), []):
        for _ in networks.learn(rows):
            pass
    state = networks.state()
    assert [fit["steps"] for fit in state["fits"]] == [3] * 5
    again = shipped(5)
    looked = looking(again)
    again.restore(state)
    assert state_hash(again.state()) == state_hash(state)
    before, after = networks.encoder(), again.encoder()
    assert before is not None
    assert after is not None
    assert before.name == after.name
    assert networks.report() == pytest.approx(again.report(), nan_ok=True)
    assert not looked  # no picture before training goes on
    x = torch.from_numpy(np.random.default_rng(2).normal(0, 0.25, (3, 1, SIDE, SIDE)).astype(np.float32))
    for one in (networks, again):
        for _ in one.learn([]):
            pass
    first, second = networks.encoder(), again.encoder()
    assert first is not None
    assert second is not None
    assert first.eye == eye_for(128)
    assert first.name == second.name
    assert torch.equal(first.rates(x), second.rates(x))
    assert state_hash(networks.state()) == state_hash(again.state())


def test_a_copy_is_trained_a_network_at_a_time_and_the_networks_themselves_stay_as_they_were() -> None:
    networks = shipped(5)
    for _ in networks.learn(told(0, 60)):
        pass
    before, copied = state_hash(networks.state()), networks.copied()
    assert len(list(copied.resumed())) == 5
    assert state_hash(copied.state()) == before
    assert len(list(copied.learn(told(60, 10)))) == 5  # one yield a step, as without `resumed`
    assert len(list(networks.copied().learn(told(60, 10)))) == 5
    assert state_hash(networks.state()) == before != state_hash(copied.state())


def test_each_network_begins_with_other_weights() -> None:
    networks = shipped(1)
    assert len({digest_of(networks._network(k).core, {}) for k in range(5)}) == 5


def test_each_network_keeps_other_images_apart_and_all_images_are_trained_on() -> None:
    networks = shipped(1)
    for _ in networks.learn(told(0, 80)):
        pass
    held = np.stack([networks._recording(k, 80).held_out for k in range(5)])
    assert held.sum(1).tolist() == [8] * 5
    assert held.sum(0).max() == 1


# --- fewer pixels -----------------------------------------------------------------------------------------------------


def test_pictures_with_fewer_pixels_keep_what_is_coarse_and_what_is_made_through_them_is_smooth() -> None:
    eye, small = Eye(32, 32, 1), Eye(24, 24, 1)
    at = (torch.arange(32) + 0.5) / 32
    coarse = torch.cos(2 * torch.pi * 4 * at)[None, None, None].expand(1, 1, 32, 32).clone()
    fewer = (torch.arange(24) + 0.5) / 24
    found = resampled(coarse, small)
    expected = torch.cos(2 * torch.pi * 4 * fewer).expand(24, 24)
    torch.testing.assert_close(found[0, 0, :, 5:-5], expected[:, 5:-5], atol=0.03, rtol=0)
    torch.testing.assert_close(resampled(torch.ones(1, 1, 32, 32), small), torch.ones(1, 1, 24, 24))
    assert resampled(coarse, eye) is coarse
    x = torch.zeros(1, 1, 32, 32, requires_grad=True)
    pattern = torch.cos(2 * torch.pi * 4 * fewer).expand(1, 1, 24, 24)
    (slope,) = torch.autograd.grad((resampled(x, small) * pattern).sum(), x)
    power = torch.fft.rfft(slope[0, 0, 16] * torch.hann_window(32)).abs().square()
    assert power[2:7].sum() > 0.99 * power.sum()  # an average over squares leaves 5 % of it above 12 cycles


def test_gradients_go_through_kernels_that_were_first_asked_for_without_any() -> None:
    encoder = Resampled(Network(Architecture(), Eye(22, 22, 1), {"s": ("a",)}, 1), Eye(37, 37, 1))
    rates_of(encoder, np.random.default_rng(0).integers(0, 256, (1, 41, 41, 3)).astype(np.uint8))
    levels = torch.full((1, 1, 41, 41), 100.0, requires_grad=True)
    encoder.rates(encoder.eye.see_levels(encoder.eye.reduce(levels))).sum().backward()
    assert levels.grad is not None


def test_an_encoder_of_fewer_pixels_sees_what_its_eye_takes_in() -> None:
    eye = Eye(32, 32, 1)
    core = {"type": "separable", "channels": 3, "layers": 1, "first_kernel_px": 7}
    inside = Network(Architecture.model_validate({"core": core}), Eye(24, 24, 1), {"s": ("a", "b")}, 1)
    encoder = Resampled(inside, eye)
    x = torch.randn((1, 1, 32, 32), generator=torch.Generator().manual_seed(1), requires_grad=True)
    for unit in range(2):
        (slope,) = torch.autograd.grad(encoder.rates(x, torch.tensor([unit])).sum(), x)
        seen = encoder.seen(unit)
        slope[0, 0, seen.y0 : seen.y1, seen.x0 : seen.x1] = 0
        assert (seen.y1 - seen.y0) * (seen.x1 - seen.x0) < 32 * 32
        assert not slope.any()
    assert encoder.units == ("a", "b")
    with pytest.raises(ValueError, match="standardises levels in another way"):
        Resampled(inside, Eye(32, 32, 1, (0.0,), (1.0,)))
