"""Supervision with real processes: kills, freezes, what is left behind, and sessions that go on."""

import io
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import psutil
import pytest
from rich.console import Console

from rig.animal.valve import make_register
from rig.clock import FakeClock, HostClock
from rig.config.reading import parse
from rig.encoding import encode, encode_entry
from rig.messages import (
    Envelope,
    Fault,
    OutputDone,
    PhaseEnded,
    Presented,
    Proposal,
    Response,
    SessionStart,
    SessionStop,
    TrialIntent,
)
from rig.provenance import session_start
from rig.recording.journal import JournalWriter
from rig.sources.__main__ import Lingering
from rig.supervision.liveness import Pulses
from rig.supervision.picture import Picture
from rig.supervision.post import Post
from rig.supervision.processes import SessionFailed, runs
from rig.supervision.restarts import Restarts
from rig.supervision.resume import resumable, wait_free
from rig.supervision.session_lock import SessionLock, Started, still_running
from tests.collector import Flag
from tests.kills import ROOT, Run, config_text, stimloop

S = 1_000_000_000


# --- one post ---------------------------------------------------------------------------------------------------------

BEATS = """
import sys, subprocess
from rig.supervision.child import Stop, say
stop = Stop()
if "traceable" in sys.argv:
    import ctypes
    ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_long(-1), 0, 0, 0)  # PR_SET_PTRACER: anybody
if "child" in sys.argv:
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
say(ready={})
while not stop:
    stop.wait(0.01)
"""


@contextmanager
def post(tmp_path: Path, *words: str, longest_s: float = 0.5) -> Iterator[Post]:
    pulses = Pulses(1)
    one = Post("one", ["-c", BEATS, *words], tmp_path / "log", longest_s, Restarts(3), pulses, 0, HostClock(spin_ns=0))
    one.fill()
    try:
        yield one
    finally:
        if one.child is not None:
            one.child.kill()
        pulses.close()


def look_until(one: Post, within_s: float, wanted: str = "") -> str:
    """Look at a post until it is ready (or something is `wanted`); return what was said last."""
    clock = HostClock(spin_ns=0)
    end_ns = clock.now_ns() + int(within_s * S)
    while clock.now_ns() < end_ns:
        said = one.look(clock.now_ns())
        if said if wanted else one.ready:
            return said
        clock.sleep_until_ns(clock.now_ns() + 20_000_000)
    return one.look(clock.now_ns())


def test_a_frozen_child_is_noticed_and_a_short_freeze_is_not(tmp_path: Path) -> None:
    with post(tmp_path, longest_s=1.5) as one:
        assert look_until(one, 20) == ""
        assert one.child is not None
        process = psutil.Process(one.child.process.pid)
        process.suspend()
        assert look_until(one, 0.7, "still") == ""
        process.resume()
        assert look_until(one, 2.0, "still") == ""  # it goes on by itself
        process.suspend()
        assert look_until(one, 5.0, "still").startswith("stood still for 1.5 s, its longest busy time is 1.5 s")
        one.vacate(HostClock().now_ns(), 0)  # also a stopped process is killed and reaped
        assert not runs(process)


def test_a_dead_child_is_named_and_what_it_started_is_gone_before_the_next_one(tmp_path: Path) -> None:
    clock = HostClock(spin_ns=0)
    with post(tmp_path, "child") as one:
        assert look_until(one, 20) == ""
        assert one.child is not None
        (grandchild,) = psutil.Process(one.child.process.pid).children()
        one.child.process.send_signal(signal.SIGKILL)
        assert look_until(one, 5, "dead") == "was killed by signal SIGKILL"
        one.vacate(clock.now_ns(), 0)
        assert not one.free(clock.now_ns())  # it may hold a port or a line
        end_ns = clock.now_ns() + 10 * S
        while not one.free(clock.now_ns()):
            assert clock.now_ns() < end_ns
            clock.sleep_until_ns(clock.now_ns() + S // 20)
        assert not runs(grandchild)


def test_stop_is_said_once_to_a_frozen_child_and_no_word_to_it_waits(tmp_path: Path) -> None:
    with post(tmp_path, longest_s=60) as one:
        assert look_until(one, 20) == ""
        assert one.child is not None
        frozen = psutil.Process(one.child.process.pid)
        frozen.suspend()
        done = threading.Event()

        def speak() -> None:
            assert one.child is not None
            for k in range(3000):
                one.child.say(f"journal {k} {'x' * 100}")  # 300 kB: several times what the pipe holds
                one.stop("a device failed")
            done.set()

        threading.Thread(target=speak, daemon=True).start()
        try:
            assert done.wait(60), "blocked by a child that does not read"
            assert one.child._unsaid.count(b"stop") <= 1
            frozen.resume()
            end_ns = HostClock().now_ns() + 5 * S
            while one.child.exit_code is None:  # what did not fit reaches it, the stop before all of it
                assert HostClock().now_ns() < end_ns
                one.look(HostClock().now_ns())
        finally:
            one.child.process.kill()
        assert one.child.exit_code == 0


def test_what_a_child_had_started_does_not_outlive_the_session_when_it_dies_at_the_end(tmp_path: Path) -> None:
    clock = HostClock(spin_ns=0)
    with post(tmp_path, "child") as one:
        assert look_until(one, 20) == ""
        assert one.child is not None
        (grandchild,) = psutil.Process(one.child.process.pid).children()
        psutil.Process(one.child.process.pid).suspend()  # it must not end by itself before it is killed
        one.stop()
        one.child.process.kill()
        assert look_until(one, 5, "dead") == "was killed by signal SIGKILL"
        one.finish()
        assert runs(grandchild)  # it may end by itself
        end_ns = clock.now_ns() + 10 * S
        while not one.deserted(clock.now_ns()):
            assert clock.now_ns() < end_ns
            clock.sleep_until_ns(clock.now_ns() + S // 20)
        assert not runs(grandchild)


@pytest.mark.skipif(not hasattr(signal, "SIGRTMIN"), reason="no real-time signals here")
def test_a_signal_without_a_name_is_named_as_well(tmp_path: Path) -> None:
    with post(tmp_path) as one:
        assert look_until(one, 20) == ""
        assert one.child is not None
        one.child.process.send_signal(signal.SIGRTMIN + 6)
        assert look_until(one, 5, "dead") == f"was killed by signal {signal.SIGRTMIN + 6} (Real-time signal 6)"


TRACER = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long] * 4
print(libc.ptrace(0x4206, int(sys.argv[1]), 0, 0), flush=True)  # PTRACE_SEIZE
sys.stdin.read()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs ptrace")
def test_a_child_that_the_system_does_not_let_die_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rig.supervision.processes.KILL_S", 0.5)
    with post(tmp_path, "traceable") as one:
        assert look_until(one, 20) == ""
        child = one.child
        assert child is not None
        # A process whose tracer does not look cannot be reaped: to its parent it is one that waits for a broken disk.
        tracer = subprocess.Popen(
            [sys.executable, "-c", TRACER, str(child.process.pid)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            assert tracer.stdout is not None
            if tracer.stdout.readline() != b"0\n":
                pytest.skip("this system lets nobody trace a process")
            before_ns = HostClock().now_ns()
            assert not one.vacate(before_ns, 0)
            assert HostClock().now_ns() - before_ns < 3 * S
            assert child.how_ended().startswith(f"cannot be killed: the system holds process {child.process.pid}")
        finally:
            tracer.communicate()
            child.process.wait(60)


# --- the session's lock -----------------------------------------------------------------------------------------------

HOLDS = """
import sys
from pathlib import Path
from rig.supervision.processes import Child, SessionFailed
from rig.supervision.session_lock import SessionLock
folder = Path(sys.argv[1])
try:
    lock = SessionLock(folder)
except SessionFailed as error:
    sys.exit(str(error))
one = Child("one", ["-c", sys.argv[2], *sys.argv[3:]], folder / "log")
while one.ready is None:
    one.update()
lock.write([("one", one)])
print(one.process.pid, flush=True)
sys.stdin.read()
"""


def holder(folder: Path, *words: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(folder), BEATS, *words],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_a_session_has_one_supervisor_and_what_a_dead_one_left_is_ended(tmp_path: Path) -> None:
    folder, text, console = tmp_path / "s", config_text(port=7000), Console(file=io.StringIO(), width=200)
    begun(folder, text).close()
    first = holder(folder, "child")
    try:
        assert first.stdout is not None
        frozen = psutil.Process(int(first.stdout.readline()))
        (grandchild,) = frozen.children()
        with pytest.raises(SessionFailed, match=rf"is in use: process {first.pid} runs this session\n  cure: end that"):
            wait_free(folder, parse(text), HostClock(), console)
        second = holder(folder)
        _, said = second.communicate()
        assert second.returncode == 1
        assert f"process {first.pid} runs this session" in said.decode()
        frozen.suspend()
        first.kill()
        first.wait()
        wait_free(folder, parse(text), FakeClock(), console)
        assert not runs(frozen)
        assert not runs(grandchild)
        said_lines = console.file.getvalue()  # type: ignore[attr-defined]
        assert f"killed what was left of the session: one, process {frozen.pid}" in said_lines
        assert f"killed what was left of the session: what one had started, process {grandchild.pid}" in said_lines
    finally:
        first.kill()
        first.communicate()
    SessionLock(folder).close()


def test_a_process_that_only_has_the_number_of_one_that_was_left_is_let_alone(tmp_path: Path) -> None:
    own = psutil.Process()
    assert Started("one", own.pid, own.create_time()).process() == own
    assert Started("one", own.pid, own.create_time() - 60).process() is None
    assert still_running([Started("one", own.pid, own.create_time() - 60, "no such mark")]) == {}
    (tmp_path / "session.lock").write_text("torn {")
    lock = SessionLock(tmp_path)
    assert lock.left == []
    lock.close()


# --- the terminal -----------------------------------------------------------------------------------------------------


def test_a_picture_that_fails_or_stands_still_holds_up_nobody() -> None:
    stands, goes_on, told = threading.Event(), threading.Event(), list[str]()

    def watch() -> None:
        if not stands.is_set():
            stands.set()
            raise OSError("no terminal")
        goes_on.wait(60)  # Ctrl-S

    picture = Picture(watch, told.append)
    picture.tell("a line")
    picture.watching = True
    assert stands.wait(60)
    clock = HostClock(spin_ns=0)
    end_ns = clock.now_ns() + 5 * S
    while picture.error is None:
        assert clock.now_ns() < end_ns
        clock.sleep_until_ns(clock.now_ns() + S // 100)
    assert str(picture.error) == "no terminal"
    before_ns = clock.now_ns()
    picture.tell("another")
    assert clock.now_ns() - before_ns < S // 10
    assert told == ["a line"]
    goes_on.set()
    picture.close()
    assert told == ["a line", "another"]


# --- sessions ---------------------------------------------------------------------------------------------------------


def answers(run: Run) -> dict[tuple[int, int], list[Response]]:
    """Return the responses of each planned slot."""
    out: dict[tuple[int, int], list[Response]] = {
        (p.proposal, k): [] for p in run.documents(Proposal) for k in range(len(p.plan))
    }
    for r in run.documents(Response):
        if r.slot >= 0:
            out[r.proposal, r.slot].append(r)
    return out


def check_accounts(run: Run) -> None:
    """Every announced presentation is accounted for, every slot answered once and for all, every number used once."""
    shown = [p.presentation for p in run.documents(Presented)]
    assert len(shown) == len(set(shown))
    assert [r.presentation for r in run.documents(Response)] == shown
    named = {n for f in run.documents(Fault) for n in f.presentations}
    announced = {n for t in run.documents(TrialIntent) for n in t.presentations}
    assert announced <= set(shown) | named
    for slot, given in answers(run).items():
        assert sum(r.usable for r in given) == 1 or (given and all(r.reason for r in given)), slot
        assert sum(r.usable for r in given) <= 1, slot
    assert [e.envelope.seq for e in run.entries] == list(range(1, len(run.entries) + 1))


@pytest.mark.display
def test_each_process_is_killed_once_and_the_session_comes_to_its_end(private_screen: str, tmp_path: Path) -> None:
    register = make_register(tmp_path / "port")
    (tmp_path / "c.yaml").write_text(config_text(register=register))
    run = Run(tmp_path, "demo", "--config", str(tmp_path / "c.yaml"), "--sessions", str(tmp_path / "s"))
    victims = ("recorder", "rig", "probe", "outputs", "model", "view")
    try:
        run.until(lambda: run.starts("recorder"))
        run.kill("recorder")  # the others are still starting
        assert not run.shown()
        run.more(3)
        for victim in victims:
            run.kill(victim)
            if victim in ("rig", "probe"):
                run.more(1)
        code = run.end(90)
    finally:
        run.put_down()
    assert code == 0, run.said()
    assert isinstance(run.entries[-1].document, SessionStop)
    check_accounts(run)
    faults = run.documents(Fault)
    restarted = Counter(f.detail.split()[0] for f in faults if f.what == "process restarted")
    assert restarted == {**dict.fromkeys(victims, 1), "recorder": 2}
    assert sum(f.done.endswith("before the first trial") for f in faults) == 1
    assert all(f.since_host_ns for f in faults if f.what == "process restarted")
    (gap,) = [f for f in faults if f.what == "data gap"]
    assert gap.detail.startswith("probe: a gap of ")
    volumes = [d.session_volume_ul for d in run.documents(OutputDone) if d.session_volume_ul is not None]
    assert volumes == sorted(volumes)  # never from zero again
    assert volumes[-1] == pytest.approx(sum(d.volume_ul or 0 for d in run.documents(OutputDone)))
    assert register.read_bytes()[:1] == b"\0"
    with h5py.File(run.folder / "session.h5", "r") as file:
        assert len(file["presentations/presentation"]) == run.shown()
    assert run.left() == []
    assert "recorder was killed by signal SIGKILL" in run.output.read_text()
    verified = stimloop("replay", str(run.folder), "--verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr


@pytest.mark.slow  # the chaos suite does the same many times
@pytest.mark.display
def test_a_session_whose_supervisor_was_killed_goes_on_in_its_folder(private_screen: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(config_text(repeats=2))
    run = Run(tmp_path, "demo", "--config", str(tmp_path / "c.yaml"), "--sessions", str(tmp_path / "s"))
    try:
        run.more(7)
        os.kill(run.process.pid, signal.SIGKILL)
        run.until(lambda: run.left() == [], alive=False)
        run.process.wait()
        run.read()
        stop = run.entries[-1].document
        assert isinstance(stop, SessionStop)
        assert stop.reason == "the supervisor is gone"
        assert stop.presentations == stop.responses == run.shown()
        unusable = [r.presentation for r in run.documents(Response) if not r.usable]
        assert set(unusable) <= {run.shown() - 1, run.shown() - 2}  # the animal died with the supervisor
        before = run.shown()
        resumed = Run(tmp_path, "run", "--resume", str(run.folder))
        try:
            code = resumed.end(90)
        finally:
            resumed.put_down()
    finally:
        run.put_down()
    assert code == 0, resumed.said()
    assert len(resumed.documents(SessionStart)) == 1
    assert resumed.documents(PhaseEnded)[-1].last
    assert resumed.shown() > before
    check_accounts(resumed)
    assert resumed.left() == []
    with h5py.File(run.folder / "session.h5", "r") as file:
        assert file.attrs["closed_in_order"]
        assert len(file["presentations/presentation"]) == resumed.shown()
    verified = stimloop("replay", str(run.folder), "--verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    again = stimloop("run", "--resume", str(run.folder))
    assert again.returncode == 2
    assert "is complete" in again.stderr
    assert "Traceback" not in again.stderr


@pytest.mark.slow
@pytest.mark.display
def test_a_killed_source_costs_the_image_that_was_on_and_not_the_rest_of_the_trial(
    private_screen: str, tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text(config_text(repeats=2))
    run = Run(tmp_path, "demo", "--config", str(tmp_path / "c.yaml"), "--sessions", str(tmp_path / "s"))
    try:
        run.more(2)  # of the first trial's six
        run.kill("probe")
        code = run.end(60)
    finally:
        run.put_down()
    assert code == 0, run.said()
    check_accounts(run)
    (cut,) = [f for f in run.documents(Fault) if f.what == "trial cut short"]
    assert "the source of a device is away" in cut.detail
    trial = run.documents(TrialIntent)[0]
    assert cut.presentations == trial.presentations[-len(cut.presentations) :]
    shown = {p.presentation for p in run.documents(Presented)}
    assert shown.isdisjoint(cut.presentations)
    unusable = [r.presentation for r in run.documents(Response) if not r.usable]
    # The one that was on, and at most the ones beside it whose windows reach into the gap.
    assert 1 <= len(unusable) <= 3, unusable
    assert unusable == list(range(unusable[0], unusable[0] + len(unusable)))


@pytest.mark.display
@pytest.mark.slow
def test_a_session_is_resumed_although_what_its_dead_supervisor_left_is_frozen(
    private_screen: str, tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text(config_text(repeats=2))
    run = Run(tmp_path, "demo", "--config", str(tmp_path / "c.yaml"), "--sessions", str(tmp_path / "s"))
    try:
        run.more(5)
        frozen = [psutil.Process(run.pid(name)) for name in ("recorder", "rig")]
        for process in frozen:
            process.suspend()
        refused = stimloop("run", "--resume", str(run.folder))
        assert refused.returncode == 2
        assert f"is in use: process {run.process.pid} runs this session" in refused.stderr
        os.kill(run.process.pid, signal.SIGKILL)
        run.process.wait()
        resumed = Run(tmp_path, "run", "--resume", str(run.folder))
        try:
            code = resumed.end(90)
        finally:
            resumed.put_down()
    finally:
        run.put_down()
    assert code == 0, resumed.said()
    for name, process in zip(("recorder", "rig"), frozen, strict=True):
        assert f"killed what was left of the session: {name}, process {process.pid}" in resumed.output.read_text()
        assert not runs(process)
    check_accounts(resumed)
    assert resumed.left() == []


@pytest.mark.display
@pytest.mark.slow
def test_one_that_dies_too_often_ends_the_session_in_order(private_screen: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(config_text(repeats=40, processes={"restarts_per_minute": 2}))
    run = Run(tmp_path, "demo", "--config", str(tmp_path / "c.yaml"), "--sessions", str(tmp_path / "s"))
    try:
        run.more(3)
        run.kill("model")
        run.kill("model")
        os.kill(run.pid("model"), signal.SIGKILL)
        code = run.end(60)
    finally:
        run.put_down()
    assert code == 2
    assert "model was restarted 2 times within a minute" in run.output.read_text()
    assert "cure: " in run.output.read_text()
    stop = run.entries[-1].document
    assert isinstance(stop, SessionStop)
    assert "model was restarted 2 times within a minute" in stop.reason
    assert stop.presentations == stop.responses == run.shown()
    assert run.left() == []


@pytest.mark.display
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_each_process_freezes_once_shortly_and_once_for_too_long(private_screen: str, tmp_path: Path) -> None:
    longest = {"recorder": 2, "rig": 2, "model": 2, "outputs": 2, "source": 2, "view": 2}
    register = make_register(tmp_path / "port")
    text = config_text(repeats=8, register=register, processes={"longest_busy_s": longest, "restarts_per_minute": 9})
    (tmp_path / "c.yaml").write_text(text)
    run = Run(tmp_path, "demo", "--config", str(tmp_path / "c.yaml"), "--sessions", str(tmp_path / "s"))
    victims = ("recorder", "rig", "probe", "outputs", "model", "view")
    clock = HostClock(spin_ns=0)
    try:
        run.more(3)
        for victim in victims:
            frozen = psutil.Process(run.pid(victim))
            frozen.suspend()
            clock.sleep_until_ns(clock.now_ns() + S)
            frozen.resume()
            run.more(1)
            assert frozen.is_running(), run.said()
            before = run.starts(victim)
            frozen.suspend()
            run.until(lambda victim=victim, before=before: run.starts(victim) > before)  # type: ignore[misc]
        code = run.end(120)
    finally:
        run.put_down()
    assert code == 0, run.said()
    check_accounts(run)
    restarted = [f.detail for f in run.documents(Fault) if f.what == "process restarted"]
    assert sorted(d.split()[0] for d in restarted) == sorted(victims)
    assert all(re.search(r"stood still for 2\.\d s, its longest busy time is 2 s", d) for d in restarted), restarted
    assert run.left() == []


@pytest.mark.display
@pytest.mark.timeout(400)
def test_a_view_that_stands_still_while_the_session_ends_comes_back_and_makes_the_file(
    private_screen: str, tmp_path: Path
) -> None:
    text = config_text(repeats=8, processes={"longest_busy_s": {"view": 2}})
    (tmp_path / "c.yaml").write_text(text)
    run = Run(tmp_path, "demo", "--config", str(tmp_path / "c.yaml"), "--sessions", str(tmp_path / "s"))
    try:
        run.more(3)
        view = psutil.Process(run.pid("view"))
        view.suspend()  # it hears of the end and cannot answer
        os.kill(run.process.pid, signal.SIGTERM)
        run.end(60)
    finally:
        run.put_down()
    stop = run.entries[-1].document
    assert isinstance(stop, SessionStop)
    with h5py.File(run.folder / "session.h5", "r") as file:
        assert len(file["presentations/presentation"]) == stop.presentations > 0
    assert not (run.folder / "session.h5.part").exists()
    assert run.left() == []


# --- what --resume refuses --------------------------------------------------------------------------------------------


def begun(folder: Path, text: str) -> JournalWriter:
    """Make a session folder whose journal holds a SessionStart; return its writer."""
    folder.mkdir()
    (folder / "config.yaml").write_text(text)
    start = session_start(folder, parse(text), text, False, HostClock())
    writer = JournalWriter(folder / "session.journal", folder.name)
    envelope = Envelope(
        seq=1, receipt_host_ns=0, sender="recorder", process="r", sender_seq=1, cause_seq=None, cause_index=None
    )
    writer.append(1, encode_entry(envelope, encode(start)))
    return writer


def test_a_session_that_runs_is_not_resumed_and_one_that_ended_is(tmp_path: Path) -> None:
    clock = FakeClock()
    writer = begun(tmp_path / "s", config_text(port=7000))
    config, simulated = resumable(tmp_path / "s")
    assert not simulated
    with pytest.raises(SessionFailed, match="in use by another process\n  cure: end the session that runs"):
        wait_free(tmp_path / "s", config, clock, Console(quiet=True))
    writer.close()
    wait_free(tmp_path / "s", config, clock, Console(quiet=True))


def test_a_session_goes_on_with_its_own_config_only(tmp_path: Path) -> None:
    text = config_text(port=7000)
    begun(tmp_path / "s", text).close()
    (tmp_path / "s" / "config.yaml").unlink()
    assert resumable(tmp_path / "s")[0] == parse(text)
    assert (tmp_path / "s" / "config.yaml").read_text() == text
    (tmp_path / "s" / "config.yaml").write_text(text.replace("seed: 3", "seed: 4"))
    with pytest.raises(SessionFailed, match=r"config\.yaml was changed since the session began"):
        resumable(tmp_path / "s")


def test_a_source_without_supervisor_serves_until_the_last_response_is_in() -> None:
    clock, stop = FakeClock(), Flag()
    gone = Lingering(stop, lambda: True, 0.8, clock)
    assert not gone
    stop.set()
    assert not gone
    clock.advance_ns(S * 7 // 10)
    assert not gone
    clock.advance_ns(S // 10)
    assert gone
    assert Lingering(stop, lambda: False, 0.8, clock)  # told to stop: at once


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--resume", "{}"], "holds no session.journal"),
        (["configs/demo.yaml", "--resume", "{}"], "leave this argument out"),
        ([], "give the config file of a session, or --resume"),
    ],
    ids=["no journal", "a config as well", "neither"],
)
def test_what_cannot_be_resumed_is_one_clear_error(words: list[str], reason: str, tmp_path: Path) -> None:
    done = stimloop("run", *(w.format(tmp_path) for w in words))
    assert done.returncode == 2
    assert reason in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
