"""`stimloop check`: against the simulated animal with all in order, and with each thing broken in turn."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from rig.cli import app
from rig.clock import HostClock
from rig.config.screen import StimulusPlace
from rig.config.session import Config
from rig.links.ports import free_port
from rig.messages import BehaviourBlock, ClockSample, Continuity, Document, EdgeBlock, Fault, Gap, SpikeBlock, UnitList
from rig.preflight.machine import animal, banks, disk, geometry, outputs, realtime
from rig.preflight.model import judged, warm_up
from rig.preflight.photodiode import answer, photodiode
from rig.preflight.result import Result
from rig.preflight.screen import BLACK_S, SEED, WHITE_S
from rig.preflight.sources import Heard, judge, listening

ROOT = Path(__file__).parents[1]
RATE = 30_000.0
S = 1_000_000_000
UNITS = ("E01#0", "E02#0")
SOURCE: dict[str, Any] = {"type": "openephys", "name": "probe", "port": 5556, "http_port": None}


def config(**parts: Any) -> Config:
    """A small session; parts of the config replace those here."""
    given: dict[str, Any] = {
        "sources": [SOURCE],
        "responses": {"units": list(UNITS)},
        "phases": [{"agent": "evolve", "unit": "E01#0", "generations": 3}],
    }
    return Config.model_validate(given | parts)


def the(results: list[Result], name: str) -> Result:
    return next(r for r in results if r.name == name)


# --- what needs no device ---------------------------------------------------------------------------------------------


def test_a_sound_config_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert geometry(config()).status == "ok"
    assert banks(config()).status == "ok"
    assert [r.name for r in disk(config(), HostClock())] == ["disk space", "disk speed"]
    assert list(outputs(config())) == []


def test_an_image_beside_the_screen() -> None:
    # The config refuses it as well; the check stands for what changes after that.
    result = geometry(config().model_copy(update={"stimulus": StimulusPlace(center_deg=(60.0, 0.0))}))
    assert result.status == "fail"
    assert "stimulus" in result.remedy


def test_a_folder_of_pictures_that_is_not_there(tmp_path: Path) -> None:
    result = banks(config(banks={"mine": tmp_path / "none"}))
    assert result.status == "fail"
    assert result.message.startswith("mine: ")
    assert "banks" in result.remedy


def test_a_picture_that_cannot_be_shown_is_named_before_the_session(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    result = banks(config(banks={"mine": tmp_path}))
    assert result.status == "fail"
    assert "a.png: not a readable picture" in result.message


def test_files_of_a_simulated_animal_that_are_not_there_are_named_before_anything_starts(tmp_path: Path) -> None:
    assert list(animal(config())) == []
    twin = {"population": "twin", "weights": str(tmp_path / "model.pth")}
    (result,) = animal(config(animal=twin))
    assert result.status == "warn"  # a session with a real animal reads none of it
    assert result.message.startswith(f"animal.weights: {tmp_path / 'model.pth'} is not there")
    assert "animal.weights your own copy of it (docs/simulated_cells.md)" in result.remedy
    path = tmp_path / "twin.yaml"
    path.write_text(yaml.safe_dump(config(animal=twin).model_dump(mode="json", exclude_unset=True)))
    said = CliRunner().invoke(app, ["demo", "--config", str(path), "--sessions", str(tmp_path / "sessions")])
    assert said.exit_code != 0
    assert "animal.weights your own copy of it" in said.output
    assert not (tmp_path / "sessions").exists()
    (tmp_path / "model.pth").touch()
    assert list(animal(config(animal=twin))) == []
    (result,) = animal(config(animal={"population": "v4", "models": str(tmp_path / "v4")}))
    assert result.message.startswith("animal.models: ")


def test_a_session_larger_than_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    huge = config(phases=[{"agent": "present", "count": 20, "repeats": 10**12}])
    space = next(disk(huge, HostClock()))
    assert (space.status, space.name) == ("fail", "disk space")
    assert "free space" in space.remedy


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o500)
    assert list(disk(config(), HostClock()))[1].status == "fail"
    tmp_path.chmod(0o700)


def test_priority_switched_off_is_a_warning_and_asking_changes_nothing() -> None:
    before = os.sched_getscheduler(0) if hasattr(os, "sched_getscheduler") else None
    assert realtime(config(processes={"realtime": False})).status == "warn"
    result = realtime(config())
    assert result.status in ("ok", "warn")
    assert "rtprio" in result.remedy
    if before is not None:
        assert os.sched_getscheduler(0) == before


REWARD = {"output": "valve", "ul_per_s": 1000, "max_session_ml": 100}


def valve(port: Path, reward: dict[str, Any] = REWARD, **parts: Any) -> list[Result]:
    out = [{"type": "parallel", "name": "valve", "port": str(port)}]
    return list(outputs(config(outputs=out, reward=reward, **parts)))


def test_an_output_that_is_there_and_its_limits(tmp_path: Path) -> None:
    (tmp_path / "port").write_bytes(b"\0")
    found, limits = valve(tmp_path / "port")
    assert (found.name, found.status) == ("output valve", "ok")
    assert "simulated" in found.message
    assert (limits.name, limits.status) == ("reward", "ok")
    assert "100 uL a pulse" in limits.message
    assert (tmp_path / "port").read_bytes() == b"\0", "a check opens no valve"


def test_an_output_that_is_not_there(tmp_path: Path) -> None:
    found, _ = valve(tmp_path / "none")
    assert found.status == "fail"
    assert "none" in found.message
    assert "plug" in found.remedy


def test_a_reward_that_reaches_its_limit(tmp_path: Path) -> None:
    _, limits = valve(tmp_path / "port", REWARD | {"max_session_ml": 0.5})
    assert limits.status == "warn"
    assert "max_session_ml" in limits.remedy


def test_a_rhythm_that_asks_for_more_reward_than_a_minute_allows(tmp_path: Path) -> None:
    # 10 images of 0.2 s and a pause of 0.3 s, less the last image's own: 2.2 s a trial, 27.3 a minute, 2.7 s open.
    reward, long = REWARD | {"max_per_minute_s": 2.0}, [{"agent": "evolve", "unit": "E01#0", "generations": 20}]
    _, limits = valve(tmp_path / "port", reward)
    assert limits.status == "ok", "16 trials, 1.6 s: the whole session is within the limit of a minute"
    _, limits = valve(tmp_path / "port", reward, phases=long)
    assert limits.status == "warn"
    assert "only 20 of 27.3 trials a minute can be rewarded" in limits.message
    assert "pulse_s to 0.0733 s" in limits.remedy
    _, limits = valve(tmp_path / "port", reward | {"max_per_minute_s": 2.73}, phases=long)
    assert limits.status == "ok", limits
    _, limits = valve(tmp_path / "port", REWARD | {"max_session_ml": 0.55})
    assert "rewards end after trial 5 of 16" in limits.message


def test_messages_for_a_gui_that_is_not_there() -> None:
    port = free_port(2)
    (result,) = outputs(config(outputs=[{"type": "openephys_messages", "http_port": port}]))
    assert result.status == "fail"
    assert str(port) in result.message
    assert "http_port" in result.remedy


# --- the model --------------------------------------------------------------------------------------------------------


def test_the_model_makes_real_batches_and_says_how_long_they_take() -> None:
    settings = config(phases=[{"agent": "evolve", "unit": "E01#0"}, {"agent": "present", "count": 5}])
    figures = warm_up(settings)
    assert isinstance(figures, dict)
    wanted = [8 + 1, 5 + 1]  # references, 15 % of a batch, or pictures; and a blank
    assert [len(phase["stimuli"]) for phase in figures["phases"]] == wanted
    assert [len(phase["generated_luminance"]) for phase in figures["phases"]] == [40, 0]
    result = judged(figures, settings)
    assert result.status == "ok", result
    assert "phase 1 (evolve)" in result.message
    assert "phase 2 (present)" in result.message
    assert "p99" in result.message


def test_a_model_that_cannot_be_made_says_why() -> None:
    result = warm_up(config(phases=[{"agent": "present", "images": ["natural"], "count": 100_000}]))
    assert isinstance(result, Result)
    assert result.status == "fail"
    assert "100000" in result.message


def test_a_batch_that_outlasts_its_tail_is_a_warning() -> None:
    phase = {"phase": 0, "agent": "evolve", "first_s": 1.0, "batches": 5, "batch_p50_s": 2.0, "batch_p99_s": 3.0}
    figures = {"start_s": 1.0, "phases": [phase | {"step_p50_s": 0.01, "step_p99_s": 0.02, "tail": 10}]}
    result = judged(figures, config())
    assert result.status == "warn"
    assert "tail of 2.00 s" in result.message
    assert judged({**figures, "phases": [figures["phases"][0] | {"tail": 16}]}, config()).status == "ok"  # type: ignore[index]
    slow = judged({**figures, "phases": [figures["phases"][0] | {"tail": 16, "step_p99_s": 0.3}]}, config())  # type: ignore[index]
    assert "work step takes 0.30 s" in slow.message


# --- judging what a source sent: documents as data --------------------------------------------------------------------


class Child:
    """A source process that runs."""

    failed = None
    exit_code = None


def sent(*more: Document, seconds: float = 6.0, rate_hz: float = RATE, ppm: float = 0.0, age_s: float = 0.05) -> Heard:
    """What a healthy source sends in some seconds, and more documents of it at the end."""
    heard = Heard({"probe": Child()})  # type: ignore[dict-item]
    for k in range(round(seconds * 40)):
        host = 50 * S + k * 25_000_000
        sample = 1_000_000 + round((host - 50 * S) * 1e-9 * rate_hz * (1 + ppm * 1e-6))
        pair = ClockSample(source="probe", run=1, device_sample=sample, pair_host_ns=host)
        mark = sample - round(age_s * rate_hz)
        done = Continuity(
            source="probe", run=1, state="streaming", sample_rate_hz=rate_hz, watermark_sample=mark,
            messages=k, lost_messages=0, gaps=(Gap(first_sample=0, end_sample=5, messages=0),) if k == 0 else (),
        )  # fmt: skip
        heard.documents += [(host, "probe", d) for d in (pair, done)]
    heard.documents += [(heard.documents[-1][0], "probe", d) for d in more]
    return heard


def spiking(*units: str) -> SpikeBlock:
    zeros = np.zeros(len(units), np.int64)
    return SpikeBlock(
        source="probe", run=1, units=units, unit=np.arange(len(units), dtype=np.uint16), sample=zeros,
        arrival_host_ns=zeros,
    )  # fmt: skip


def judgement(heard: Heard, settings: Config | None = None) -> list[Result]:
    settings = settings or config()
    return list(judge(settings.sources[0], settings, heard))


def test_a_healthy_source() -> None:
    results = judgement(sent(spiking(*UNITS, "E09#0")))
    assert [r.name for r in results] == [
        "source probe", "source probe units", "source probe rates", "source probe clock", "source probe loss"
    ]  # fmt: skip
    assert {r.status for r in results} == {"ok"}
    assert "of 3" in results[1].message
    assert "data are complete after 0.05 s" in results[3].message


def test_a_unit_that_is_misspelt_has_its_near_name() -> None:
    some = the(judgement(sent(spiking("E01#0", "E02#1"))), "source probe units")
    assert some.status == "warn"
    assert "'E02#0' (near: E02#1" in some.message
    assert the(judgement(sent(spiking("A", "B"))), "source probe units").status == "fail"


def test_a_unit_that_a_declared_list_does_not_have_fails() -> None:
    listed = UnitList(
        source="probe", run=1, list_number=0, from_sample=0, units=("E01#0", "E03#0"), scan_offset_s=np.zeros(2),
        measure="spikes",
    )  # fmt: skip
    result = the(judgement(sent(listed, spiking("E01#0"))), "source probe units")
    assert result.status == "fail"
    assert "responses.units" in result.remedy


def test_no_spikes_at_all() -> None:
    results = judgement(sent())
    assert the(results, "source probe rates").status == "warn"
    assert the(results, "source probe units").status == "fail"


def test_a_clock_that_runs_away_is_a_warning() -> None:
    result = the(judgement(sent(spiking(*UNITS), ppm=400.0, seconds=30.0)), "source probe clock")
    assert result.status == "warn"
    assert "ppm" in result.message


def test_a_rate_that_cannot_be_right_gives_no_map() -> None:
    result = the(judgement(sent(spiking(*UNITS), ppm=30_000.0)), "source probe clock")
    assert result.status == "fail"
    assert "1 %" in result.remedy
    assert result.message == "samples come at 30900 Hz, and the device states 30000 Hz"


@pytest.mark.parametrize(("age_s", "status"), [(0.3, "ok"), (1.2, "warn"), (2.5, "fail")])
def test_old_data(age_s: float, status: str) -> None:
    assert the(judgement(sent(spiking(*UNITS), age_s=age_s)), "source probe clock").status == status


def test_loss_fails_and_the_gap_before_we_listened_does_not() -> None:
    gap = Gap(first_sample=1_100_000, end_sample=1_115_000, messages=7)
    last = Continuity(
        source="probe", run=1, state="streaming", sample_rate_hz=RATE, watermark_sample=1_178_000, messages=300,
        lost_messages=7, gaps=(gap,),
    )  # fmt: skip
    result = the(judgement(sent(spiking(*UNITS), last)), "source probe loss")
    assert result.status == "fail"
    assert "7 of 307 messages" in result.message
    assert "1 gaps of 0.50 s" in result.message


def test_faults_of_the_source_are_passed_on_with_what_it_does() -> None:
    fault = Fault(what="short blocks", detail="blocks of 174 samples", done="raise the buffer")
    result = the(judgement(sent(spiking(*UNITS), fault, fault)), "source probe: short blocks")
    assert (result.status, result.message, result.remedy) == ("warn", "blocks of 174 samples", "raise the buffer")


def test_a_source_that_never_vouches_fails() -> None:
    heard = Heard({"probe": Child()})  # type: ignore[dict-item]
    (result,) = judgement(heard)
    assert result.status == "fail"


def test_behaviour_without_the_gate_s_channel() -> None:
    settings = config(
        sources=[
            {"type": "openephys", "name": "probe", "http_port": None},
            {"type": "lsl_behaviour", "name": "eye", "stream": "eye"},
        ],
        gates={"fixation": {"source": "eye"}, "criteria": [{"source": "eye", "channel": "running_cm_s", "most": 1}]},
    )
    heard = sent()
    block = BehaviourBlock(
        source="eye", run=1, channels=("gaze_x_deg", "gaze_y", "running_cm_s"), sample=np.zeros(1, np.int64),
        arrival_host_ns=np.zeros(1, np.int64), values=np.zeros((1, 3)),
    )  # fmt: skip
    heard.documents = [(at, "eye", d) for at, _, d in heard.documents] + [(51 * S, "eye", block)]
    heard.children = {"eye": Child()}  # type: ignore[dict-item]
    result = the(list(judge(settings.sources[1], settings, heard)), "source eye channels")
    assert result.status == "fail"
    assert "'gaze_y_deg' (near: gaze_x_deg, gaze_y)" in result.message
    assert "gates" in result.remedy


# --- the photodiode ---------------------------------------------------------------------------------------------------

# Uneven, as the screen's own are.
FLASHES = [51 * S + round(at * 1e9) for at in np.cumsum(np.random.default_rng(1).uniform(0.25, 0.5, 12))]


def edges(lags_ms: list[float | None], line: int = 0, white_ms: float = 100.0, inverted: bool = False) -> EdgeBlock:
    """The edges that flashes with such lags make; None: not seen."""
    seen = [(at + lag * 1e6, 1) for at, lag in zip(FLASHES, lags_ms, strict=False) if lag is not None]
    both = sorted(seen + [(at + white_ms * 1e6, 0) for at, _ in seen])
    samples = [1_000_000 + round((at - 50 * S) * 1e-9 * RATE) for at, _ in both]
    states = [1 - state if inverted else state for _, state in both]
    return EdgeBlock(
        source="probe", run=1, line=np.full(len(both), line, np.uint8), state=np.array(states, np.uint8),
        sample=np.array(samples, np.int64), arrival_host_ns=np.array(samples, np.int64),
    )  # fmt: skip


def patch(*more: Document, settings: Config | None = None, flashes: list[int] = FLASHES) -> Result:
    (result,) = photodiode(settings or config(), sent(*more), flashes)
    return result


def test_flashes_that_come_back_give_the_lag() -> None:
    result = patch(edges([9.0, 10.0, 11.0] * 4))
    assert result.status == "ok"
    assert "12 of 12 flashes seen on line 0, lag 10.0 ms" in result.message
    assert "sd 0.8 ms" in result.message


@pytest.mark.parametrize(
    ("block", "status", "words"),
    [
        (edges([]), "fail", "not one of 12"),
        (edges([10.0] * 12, line=3), "fail", "set photodiode_line: 3"),
        (edges([10.0] * 9 + [None] * 3), "fail", "9 of 12"),
        (edges([60.0] * 12, white_ms=40.0), "fail", "edge_tolerance_s"),
        (edges([10.0] * 12, inverted=True), "fail", "polarity"),
        (edges([2.0, 7.0] * 6), "warn", "compositor"),
        (edges([2.0, 14.0] * 6), "fail", "compositor"),
    ],
    ids=["none", "other line", "some", "late", "inverted", "uneven", "very uneven"],
)
def test_what_can_be_wrong_with_the_photodiode(block: EdgeBlock, status: str, words: str) -> None:
    result = patch(block)
    assert result.status == status
    assert words in result.message + result.remedy


def regular(hz: float, line: int = 0) -> EdgeBlock:
    """A square wave from before the flashes to after them."""
    at = np.arange(0.2, 5.9, 0.5 / hz)  # s after the first clock pair
    samples = (1_000_000 + np.rint(at * RATE)).astype(np.int64)
    return EdgeBlock(
        source="probe", run=1, line=np.full(len(at), line, np.uint8), sample=samples, arrival_host_ns=samples,
        state=(np.arange(len(at)) % 2 == 0).astype(np.uint8),
    )  # fmt: skip


@pytest.mark.parametrize("hz", [2.0, 30.0, 60.0])
def test_a_regular_line_is_refused_and_not_suggested(hz: float) -> None:
    result = patch(regular(hz))
    assert result.status == "fail", result
    assert "edges unrelated to the 12 flashes" in result.message
    assert "frame clock or a sync line?" in result.message
    other = patch(regular(hz), settings=config(sources=[SOURCE | {"photodiode_line": 3}]))
    assert other.status == "fail"
    assert "unrelated to the flashes" in other.message
    assert "set photodiode_line" not in other.remedy
    assert "set photodiode_line: 5" in patch(regular(hz), edges([10.0] * 12, line=5)).remedy
    assert patch(regular(hz, 3), edges([10.0] * 12)).status == "ok"


@pytest.mark.parametrize("hz", [0.3, 0.5, 1.0, 2.0, 2.5, 2.7, 3.0, 3.3, 4.0, 5.0, 10.0, 30.0, 60.0, 120.0, 500.0])
def test_no_regular_line_is_believed_at_any_phase(hz: float) -> None:
    """With the flashes that the screen really makes: those of the seed."""
    rng = np.random.default_rng(SEED)
    steps = [round(float(rng.uniform(*BLACK_S)) * 60) / 60 + WHITE_S for _ in range(12)]
    flashes = [51 * S + round(at * 1e9) for at in np.cumsum(steps)]
    for phase_s in np.linspace(0, 1 / hz, 101):
        line = 51 * S + (np.arange(-2, 8 * hz + 2) / hz + phase_s) * 1e9
        assert not answer(flashes, line).believed, phase_s
    assert answer(flashes, np.array(flashes) + 9e6).believed


def test_a_flickering_backlight_makes_more_edges() -> None:
    result = patch(edges([10.0] * 12), edges([50.0] * 12))
    assert result.status == "warn"
    assert "12 more edges" in result.message


def test_without_a_photodiode_the_lag_of_the_config_is_named() -> None:
    result = patch(settings=config(display={"patch": None, "lag_s": 0.02}))
    assert result.status == "warn"
    assert "20 ms" in result.message


def test_without_a_screen_it_was_not_looked_at() -> None:
    assert patch(flashes=[]).status == "fail"


# --- real processes ---------------------------------------------------------------------------------------------------


@contextmanager
def playing(*options: str) -> Iterator[int]:
    """Run `stimloop fake openephys`; yields its port."""
    port = free_port(2)
    command = [sys.executable, "-m", "rig.cli", "fake", "openephys", "--port", str(port), "--channels", "2", *options]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    try:
        assert process.stdout is not None
        assert b"ready" in process.stdout.readline()
        yield port
    finally:
        process.terminate()
        process.communicate(timeout=200)


def listened(settings: Config, folder: Path) -> list[Result]:
    clock = HostClock(0)
    with listening(settings, folder, clock) as heard:
        found = list(heard.unreachable())
        heard.until_enough(clock)
    return found + [r for s in settings.sources if s.name in heard.names for r in judge(s, settings, heard)]


def probe_config(port: int, **source: Any) -> Config:
    return config(sources=[{"type": "openephys", "name": "probe", "port": port, "http_port": None, **source}])


@pytest.mark.alone
def test_a_running_device_is_heard_through_its_real_source(tmp_path: Path) -> None:
    with playing("--units", "3", "--rate", "30") as port:
        results = listened(probe_config(port), tmp_path)
    assert {r.name: r.status for r in results} == {
        "source probe": "ok", "source probe units": "ok", "source probe rates": "ok", "source probe clock": "ok",
        "source probe loss": "ok",
    }, results  # fmt: skip
    assert "90 spikes/s" in the(results, "source probe rates").message or "spikes/s of 3 units" in results[2].message


@pytest.mark.alone
def test_a_lossy_device_is_seen(tmp_path: Path) -> None:
    with playing("--rate", "30", "--fault", "drop@5", "--fault", "drop@7", "--fault", "drop@9") as port:
        results = listened(probe_config(port), tmp_path)
    loss = the(results, "source probe loss")
    assert loss.status == "fail", results
    assert "gaps" in loss.message


def test_nobody_on_the_port(tmp_path: Path) -> None:
    port = free_port(2)
    (result,) = listened(probe_config(port), tmp_path)
    assert result.status == "fail"
    assert f"127.0.0.1:{port}" in result.message
    assert "start the GUI" in result.remedy


def test_another_stream(tmp_path: Path) -> None:
    with playing() as port:
        (result,) = listened(probe_config(port, stream="ProbeB"), tmp_path)
    assert result.status == "fail"
    assert "'ProbeB'" in result.message


def test_the_command_prints_cures_and_fails_with_1(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(probe_config(free_port(2)).model_dump(mode="json")))
    without_screen = {k: v for k, v in os.environ.items() if k != "DISPLAY"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "rig.cli", "check", str(path)], cwd=tmp_path, capture_output=True, text=True,
        timeout=200,
        env=without_screen, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    failed = [k for k, line in enumerate(lines) if line.startswith("FAIL")]
    assert len(failed) >= 3, done.stdout  # the source, the screen, the photodiode
    assert all(lines[k + 1].strip().startswith("cure: ") and len(lines[k + 1]) > 20 for k in failed)
    assert any("screen" in lines[k] for k in failed)
    cure = next(lines[k + 1] for k in failed if "  screen: " in lines[k])
    assert cure.count("xvfb-run") == 1


@pytest.mark.display
def test_all_is_well_with_the_simulated_animal(private_screen: str, tmp_path: Path) -> None:
    settings = probe_config(free_port(2))
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    command = [sys.executable, "-m", "tests.run_animal", str(path), str(tmp_path / "truth")]
    animal = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    clock = HostClock()
    try:
        assert animal.stdout is not None
        assert b"ready" in animal.stdout.readline()
        begin_ns = clock.now_ns()
        # A process of its own: the graphics libraries keep their connection to the screen as long as they live.
        done = subprocess.run(
            [sys.executable, "-m", "rig.cli", "check", str(path)], cwd=ROOT, capture_output=True, text=True,
            timeout=200, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        took_s = (clock.now_ns() - begin_ns) * 1e-9
    finally:
        animal.communicate(b"stop\n", timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    for name in ("geometry", "texture upload", "source probe", "source probe units", "source probe loss", "model"):
        assert any(line.startswith(f"ok  {name}: ") for line in lines), done.stdout
    assert "12 of 12 flashes" in next(line for line in lines if "  photodiode: " in line)
    assert took_s < 30
