"""The whole loop as a user runs it: real processes, real sockets, a real window, the simulated animal.

One short session (an evolution of three generations) is run once and looked at from all sides.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import psutil
import pytest

from rig.links.ports import free_port
from rig.messages import (
    Entry,
    Fault,
    ModelUpdated,
    PhaseEnded,
    Presented,
    ProcessStarted,
    Proposal,
    Response,
    SessionStart,
    SessionStop,
    SpikeBlock,
    StimulusPrepared,
    TrialIntent,
)
from rig.recording.journal import read_all

ROOT = Path(__file__).parent.parent
pytestmark = [pytest.mark.display, pytest.mark.timeout(400)]
STIMLOOP = [sys.executable, "-m", "rig.cli"]


def config_text(port: int, generations: int = 3) -> str:
    return f"""
name: short
seed: 5
display: {{size_px: [400, 300], refresh_hz: 60, width_cm: 30}}
stimulus: {{size_deg: 10}}
presentation: {{on_s: 0.1, off_s: 0.0667, images_per_trial: 12, inter_trial_s: 0.25}}
sources: [{{type: openephys, name: probe, port: {port}, http_port: null}}]
responses: {{units: ["E01#0", "E02#0"]}}
phases:
- {{agent: present, images: [natural], count: 4, repeats: 2, blanks: 1}}
- agent: evolve
  unit: "E01#0"
  optimiser: {{type: xdream, preset: plos2020, population: 14}}
  generations: {generations}
  references: 4
  reshows: 1
  blanks: 1
animal: {{neurons: 4, noise: poisson}}
"""


def children_of(folder: Path) -> list[str]:
    """Return the command lines of all processes that belong to a session."""
    out = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if str(folder) in line:
            out.append(line)
    return out


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory, private_screen: str) -> Iterator[tuple[Path, str]]:
    """Run one short session with the animal, as `stimloop demo --config` does; return its folder and the output."""
    base = tmp_path_factory.mktemp("loop")
    config = base / "short.yaml"
    config.write_text(config_text(free_port(2)))
    done = subprocess.run(
        [*STIMLOOP, "demo", "--config", str(config), "--sessions", str(base / "sessions")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    output = done.stdout + done.stderr
    (folder,) = [p for p in (base / "sessions").iterdir() if (p / "session.journal").exists()]
    yield folder, output
    assert children_of(base) == [], "a process of the session is still there"


@pytest.fixture(scope="module")
def log(session: tuple[Path, str]) -> list[Entry]:
    return read_all(session[0] / "session.journal")


def documents(log: list[Entry], kind: type) -> list:  # type: ignore[type-arg]
    return [e.document for e in log if isinstance(e.document, kind)]


def test_the_session_is_complete(session: tuple[Path, str], log: list[Entry]) -> None:
    _, output = session
    assert isinstance(log[0].document, SessionStart)
    stop = log[-1].document
    assert isinstance(stop, SessionStop), output
    proposals = documents(log, Proposal)
    planned = sum(len(p.plan) for p in proposals)
    assert planned == 2 * 5 + 3 * 20 - 1  # the first generation has nothing to show again
    assert stop.presentations == stop.responses >= planned
    assert [p.last for p in documents(log, PhaseEnded)] == [False, True]
    assert {p.name for p in documents(log, ProcessStarted)} >= {"rig", "model", "probe", "recorder"}
    assert [e.envelope.seq for e in log] == list(range(1, len(log) + 1))


def test_every_presentation_has_one_response_and_nearly_all_are_usable(log: list[Entry]) -> None:
    shown = [p.presentation for p in documents(log, Presented)]
    responses = documents(log, Response)
    assert [r.presentation for r in responses] == shown == list(range(len(shown)))
    assert [n for t in documents(log, TrialIntent) for n in t.presentations] == shown
    assert all(bool(r.reason) != r.usable for r in responses)
    assert np.mean([r.usable for r in responses]) > 0.97, [r.reason for r in responses if not r.usable]
    assert np.mean([r.onset_source == "photodiode" for r in responses]) > 0.97
    assert sum(len(b.sample) for b in documents(log, SpikeBlock)) > 100


def test_the_plan_was_shown_as_proposed(log: list[Entry]) -> None:
    proposals = {p.proposal: p for p in documents(log, Proposal)}
    seen = [(p.proposal, p.slot) for p in documents(log, Presented) if p.slot >= 0]
    assert seen == sorted(set(seen))
    for p in documents(log, Presented):
        if p.slot >= 0:
            slot = proposals[p.proposal].plan[p.slot]
            assert p.stimulus_id == proposals[p.proposal].stimuli[slot.stimulus].id
            assert p.role == slot.role
        assert len(p.flips_host_ns) == 7  # six frames on, and the one that ended it
    prepared = {(s.proposal, s.stimulus_id): s.frame_sha256 for s in documents(log, StimulusPrepared)}
    assert all(prepared[p.proposal, p.stimulus_id] == p.frame_sha256 for p in documents(log, Presented))


def test_nothing_went_wrong_without_a_word(log: list[Entry]) -> None:
    serious = [f for f in documents(log, Fault) if f.what not in ("late proposal", "photodiode edge missing")]
    assert [f"{f.what}: {f.detail}" for f in serious] == []
    updates = documents(log, ModelUpdated)
    assert updates[-1].report["mean"] > 0


def test_replay_makes_every_decision_again(session: tuple[Path, str]) -> None:
    folder, _ = session
    done = subprocess.run(
        [*STIMLOOP, "replay", str(folder), "--verify"], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "identical: 5 of 5 proposals" in done.stdout


def test_replay_notices_a_changed_response(session: tuple[Path, str], tmp_path: Path) -> None:
    from rig.encoding import encode, encode_entry
    from rig.recording.journal import JournalReader, JournalWriter

    folder, _ = session
    target = tmp_path / "changed"
    target.mkdir()
    writer = JournalWriter(target / "session.journal", "changed")
    changed = False
    reader = JournalReader(folder / "session.journal")
    while entries := reader.read(final=True):
        for entry in entries:
            document = entry.document
            if isinstance(document, Response) and document.role == "candidate" and document.usable and not changed:
                changed = True
                document = document.model_copy(update={"rate_hz": document.rate_hz + 50})
            writer.append(entry.envelope.seq, encode_entry(entry.envelope, encode(document)))
    reader.close()
    writer.close()
    done = subprocess.run(
        [*STIMLOOP, "replay", str(target), "--verify"], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert changed
    assert done.returncode == 4
    assert "differ" in done.stderr


def test_the_hdf5_file_holds_each_presentation(session: tuple[Path, str], log: list[Entry]) -> None:
    folder, _ = session
    assert not (folder / "session.h5.part").exists()
    with h5py.File(folder / "session.h5", "r") as file:
        assert len(file["presentations/presentation"]) == len(documents(log, Presented))

        def described(name: str, item: object) -> None:
            if isinstance(item, h5py.Dataset):
                assert {"description", "unit"} <= set(item.attrs), name

        file.visititems(described)


def test_the_report_is_written_and_self_contained(session: tuple[Path, str]) -> None:
    folder, output = session
    html = (folder / "report.html").read_text()
    assert "data:image/png;base64," in html
    assert 'src="http' not in html
    assert "report" in output
    assert len(list((folder / "figures").glob("*.png"))) >= 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_a_signal_ends_a_session_in_order_also_after_its_view_was_killed(
    tmp_path: Path, private_screen: str, number: signal.Signals
) -> None:
    config = tmp_path / "long.yaml"
    config.write_text(config_text(free_port(2), generations=500))
    process = subprocess.Popen(
        [*STIMLOOP, "demo", "--config", str(config), "--sessions", str(tmp_path / "sessions")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            if "evolve generation 1" in line:
                break
        for child in psutil.Process(process.pid).children(recursive=True):
            if "rig.view.h5" in child.cmdline():
                child.kill()
        for line in process.stdout:  # the session goes on
            if "evolve generation 2" in line:
                break
        os.kill(process.pid, number)
        rest = process.stdout.read()
    process.wait(60)
    (folder,) = [p for p in (tmp_path / "sessions").iterdir() if (p / "session.journal").exists()]
    stop = read_all(folder / "session.journal")[-1].document
    assert isinstance(stop, SessionStop), rest
    assert stop.presentations == stop.responses > 0
    with h5py.File(folder / "session.h5", "r") as file:
        assert len(file["presentations/presentation"]) == stop.presentations
    assert children_of(tmp_path) == []


def test_a_source_that_is_not_there_ends_the_run_with_its_cure(tmp_path: Path, private_screen: str) -> None:
    config = tmp_path / "nobody.yaml"
    config.write_text(config_text(free_port(2)))
    refused = subprocess.run([*STIMLOOP, "run", str(config)], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert refused.returncode == 2
    assert "subject: missing" in refused.stderr  # nobody's data may be labelled as simulated by default
    config.write_text(config_text(free_port(2)) + "subject: {id: m1, species: Macaca mulatta}\n")
    done = subprocess.run(
        [*STIMLOOP, "run", str(config), "--sessions", str(tmp_path / "sessions")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 2
    assert "probe" in done.stderr
    assert "cure" in done.stderr
    assert children_of(tmp_path) == []


def test_a_bad_config_is_one_clear_error(tmp_path: Path) -> None:
    config = tmp_path / "bad.yaml"
    config.write_text(config_text(6000).replace("seed: 5", "sede: 5"))
    done = subprocess.run([*STIMLOOP, "run", str(config)], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2
    assert "sede" in done.stderr
    assert "Traceback" not in done.stderr


def test_json_of_the_log_is_plain(session: tuple[Path, str]) -> None:
    done = subprocess.run(
        [*STIMLOOP, "journal", str(session[0]), "--kind", "presented", "--limit", "3"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["presentation"] for line in lines] == [0, 1, 2]
    assert all(len(line["flips_host_ns"]) == 7 for line in lines)
    assert "more; use --limit" in done.stderr
