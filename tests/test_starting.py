"""Whether a process that is not ready yet is stuck or only slow: pure on a fake clock, the log with real processes."""

import threading
from pathlib import Path

import pytest

from rig.clock import FakeClock
from rig.supervision.liveness import Pulses, Sign
from rig.supervision.post import Post
from rig.supervision.processes import Child, SessionFailed, wait_ready
from rig.supervision.restarts import Restarts
from rig.supervision.starting import LONGEST_START_S, READY_S, SILENT_START_S, Starting, busy, cure

LOOK_NS = 50_000_000


def seconds_until_stuck(share: float, computes_s: float = 1e9, beats_per_s: float = 0.0) -> float:
    """Start a process that gets `share` of a core until it has computed for `computes_s`; look 20 times a second."""
    clock, began_ns = FakeClock(), FakeClock().now_ns()
    starting = Starting(began_ns, Sign(0))
    while True:
        clock.advance_ns(LOOK_NS)
        past_s = (clock.now_ns() - began_ns) * 1e-9
        if starting.stuck(clock.now_ns(), Sign(int(past_s * beats_per_s)), min(share * past_s, computes_s)):
            return past_s


def test_a_process_that_gets_no_processor_time_is_stuck_after_half_a_minute() -> None:
    assert seconds_until_stuck(0.0) == pytest.approx(READY_S, abs=0.2)


def test_one_that_computed_and_then_waits_is_stuck_half_a_minute_later() -> None:
    assert seconds_until_stuck(0.5, computes_s=2.0) == pytest.approx(4.0 + READY_S, abs=1.0)


def test_a_loop_of_looks_is_waiting_and_not_work() -> None:
    """20 looks a second of 0.2 ms each: 4 thousandths of a core."""
    assert seconds_until_stuck(0.004) < READY_S + 1.0


def test_the_model_server_comes_up_on_a_computer_that_gives_it_little_time() -> None:
    """It needs about 5 s of processor time; with nice 10 it gets a thirtieth of what is there beside it."""
    assert seconds_until_stuck(0.03, computes_s=5.0) > 5.0 / 0.03
    assert seconds_until_stuck(0.1, computes_s=5.0) == pytest.approx(50.0 + READY_S, abs=4.0)


def test_a_loop_without_end_is_ended_and_a_start_with_signs_of_life_later() -> None:
    assert seconds_until_stuck(1.0) == pytest.approx(SILENT_START_S, abs=0.2)
    assert seconds_until_stuck(1.0, beats_per_s=2.0) == pytest.approx(LONGEST_START_S, abs=0.2)
    assert seconds_until_stuck(0.0, beats_per_s=2.0) == pytest.approx(LONGEST_START_S, abs=0.2)


def test_the_cure_names_the_load_only_where_there_is_too_much_of_it() -> None:
    log = Path("logs/model.log")
    assert busy(2.9, 2) == ""
    assert cure(log, busy(2.9, 2)) == f"see {log}"
    assert busy(9.04, 2) == "this computer is busy: load 9.0 on 2 cores"
    assert cure(log, busy(9.04, 2)).startswith(f"{busy(9.04, 2)}; end other programs and start again")
    assert str(log) in cure(log, busy(9.04, 2))


# --- with real processes ----------------------------------------------------------------------------------------------


class WorkClock:
    """A clock on which a process gets an eightieth of a core, however much of one it really gets."""

    def __init__(self) -> None:
        self.child: Child | None = None

    def now_ns(self) -> int:
        return 1 if self.child is None else 1 + int(80e9 * self.child.used_s)

    def utc_ns(self) -> int:
        return self.now_ns()

    def sleep_until_ns(self, due_ns: int) -> None:
        threading.Event().wait(0.01)


def test_one_that_never_says_ready_is_named_with_its_processor_time_and_a_log_that_is_not_empty(tmp_path: Path) -> None:
    child = Child("sleeper", ["-c", "import sys; sys.stdin.read()"], tmp_path / "sleeper.log")
    words = r"sleeper was not ready after 3\d s, in which it got \d\.\d s of processor time"
    try:
        with pytest.raises(SessionFailed, match=words) as caught:
            wait_ready([child], FakeClock())
        assert f"see {child.log}" in str(caught.value)
        (line,) = child.log.read_text().splitlines()
        assert f"process {child.process.pid}: " in line
        assert "-c 'import sys; sys.stdin.read()'" in line
    finally:
        child.kill()


def test_one_that_computes_is_waited_for(tmp_path: Path) -> None:
    """It says ready after 0.75 s of computing, which are a minute on this clock."""
    compute = "import json, time\nwhile time.process_time() < 0.75: pass\nprint(json.dumps({'ready': {}}), flush=True)"
    child = Child("worker", ["-c", compute + "\ninput()"], tmp_path / "worker.log")
    clock = WorkClock()
    clock.child = child
    try:
        wait_ready([child], clock)
        assert child.ready == {}
        assert clock.now_ns() > 1.5 * READY_S * 1e9
    finally:
        child.kill()


def test_a_post_says_the_same_of_a_child_of_a_session(tmp_path: Path) -> None:
    pulses, clock = Pulses(1), FakeClock()
    waits = ["-c", "import sys; sys.stdin.read()"]
    one = Post("model", waits, tmp_path / "model.log", 1.0, Restarts(3), pulses, 0, clock)
    one.fill()
    try:
        said, began_ns = "", clock.now_ns()
        while not said:
            clock.advance_ns(LOOK_NS)
            said = one.look(clock.now_ns())
        assert clock.now_ns() - began_ns > READY_S * 1e9
        assert said.startswith("was not ready after 3")
        assert said.endswith("s of processor time")
    finally:
        assert one.child is not None
        one.child.kill()
        pulses.close()


def test_the_reason_of_one_that_ended_is_its_own_last_line_and_not_its_predecessors(tmp_path: Path) -> None:
    log = tmp_path / "one.log"
    first = "import sys; print('no camera', file=sys.stderr); sys.exit(3)"
    for code, words in ((first, "ended with code 3: no camera"), ("import sys; sys.exit(4)", "ended with code 4")):
        child = Child("one", ["-c", code], log)
        child.process.wait(60)
        assert child.how_ended() == words
        child.kill()
    assert log.read_text().count("--- ") == 2
