"""Signs of life, and when a child is started again: pure on a fake clock, the shared counters with real processes."""

import gc
import os
import subprocess
import sys
import timeit
from pathlib import Path

import psutil

from rig.clock import FakeClock
from rig.supervision.liveness import Pulse, Pulses, Sign, Stillness
from rig.supervision.restarts import LONGEST_WAIT_NS, MINUTE_NS, Restarts

ROOT = Path(__file__).parent.parent
S = 1_000_000_000
MS = 1_000_000


# --- standing still ---------------------------------------------------------------------------------------------------


def test_a_counter_that_moves_is_never_still() -> None:
    clock = FakeClock()
    stillness = Stillness(clock.now_ns(), Sign(0))
    for count in range(1, 1000):
        clock.advance_ns(50 * MS)
        assert stillness.look(clock.now_ns(), Sign(count)) == 0
    assert stillness.since_ns == clock.now_ns()


def test_a_counter_that_stands_is_still_since_it_last_moved() -> None:
    clock = FakeClock()
    stillness = Stillness(clock.now_ns(), Sign(0))
    clock.advance_ns(50 * MS)
    moved_ns = clock.now_ns()
    assert stillness.look(moved_ns, Sign(1)) == 0
    for _ in range(40):
        clock.advance_ns(50 * MS)
        still_ns = stillness.look(clock.now_ns(), Sign(1))
    assert still_ns == 2 * S
    assert stillness.since_ns == moved_ns


def test_who_did_not_look_cannot_say_that_nothing_moved() -> None:
    clock = FakeClock()
    stillness = Stillness(clock.now_ns(), Sign(7))
    clock.advance_ns(3600 * S)  # the machine slept, or the supervisor was stopped
    assert stillness.look(clock.now_ns(), Sign(7)) == 500 * MS


# --- the shared counters ----------------------------------------------------------------------------------------------

CHILD = """
import sys
from rig.supervision.child import Stop
stop = Stop()
for _ in range(5):
    bool(stop)
if "busy" in sys.argv:
    with stop.pulse.busy(33.0):
        print("there", flush=True)
        stop.wait(60)
print("there", flush=True)
stop.wait(60)
"""


def child(pulses: Pulses, slot: int, *words: str) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, *words],
        cwd=ROOT,
        env={**os.environ, **pulses.environment(slot)},
        pass_fds=pulses.inherited,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"there\n"
    return process


def end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.communicate()


def test_each_child_has_its_own_counter_and_a_kill_leaves_the_others_alone() -> None:
    pulses = Pulses(3)
    first, second = child(pulses, 0), child(pulses, 2)
    try:
        assert [pulses.look(k) for k in range(3)] == [Sign(5), Sign(0), Sign(5)]
        end(first)
        assert pulses.look(2) == Sign(5)
        third = child(pulses, 0)  # the one that is started in its place counts on
        end(third)
        assert pulses.look(0) == Sign(10)
    finally:
        end(first)
        end(second)
        pulses.close()


def test_what_a_child_declares_holds_while_it_does_it() -> None:
    pulses = Pulses(1)
    process = child(pulses, 0, "busy")
    try:
        assert pulses.look(0) == Sign(6, 33 * S)
    finally:
        end(process)
        pulses.close()
    pulse = Pulse()
    with pulse.busy(5.0):
        pass
    assert pulse._words[0] == 2  # one beat before and one after


def test_neither_side_starts_a_helper_process() -> None:
    pulses = Pulses(1)
    process = child(pulses, 0)
    try:
        names = [" ".join(p.cmdline()) for p in psutil.Process().children(recursive=True)]
        assert not [n for n in names if "resource_tracker" in n]
        assert not psutil.Process(process.pid).children()
    finally:
        end(process)
        pulses.close()


def test_a_beat_costs_next_to_nothing_and_gives_the_collector_nothing_to_do() -> None:
    pulses = Pulses(1)
    try:
        pulse = Pulse(pulses._words, 0)
        best_s = min(timeit.repeat(pulse.beat, number=20_000, repeat=5)) / 20_000
        gc.collect()
        gc.disable()
        before = gc.get_count()[0]
        for _ in range(10_000):
            pulse.beat()
        tracked = gc.get_count()[0] - before
        gc.enable()
        del pulse
    finally:
        pulses.close()
    assert best_s < 2e-6  # 0.1 us on an idle core
    assert tracked < 10


# --- restarts ---------------------------------------------------------------------------------------------------------


def test_the_first_restart_is_at_once_and_later_ones_wait_longer_and_longer() -> None:
    restarts, now = Restarts(6), 1000 * S
    waits = []
    for _ in range(6):
        due = restarts.died(now)
        assert due is not None
        waits.append(due - now)
        now += S
    assert waits == [0, S // 2, S, 2 * S, 4 * S, LONGEST_WAIT_NS]
    assert restarts.lately == 6


def test_too_many_deaths_within_any_minute_are_too_many() -> None:
    restarts = Restarts(3)
    assert all(restarts.died(k * S) is not None for k in (0, 10, 20))
    assert restarts.died(59 * S) is None


def test_deaths_that_lie_a_minute_back_are_forgotten() -> None:
    restarts, now = Restarts(1), 0
    for _ in range(10):
        assert restarts.died(now) == now
        now += MINUTE_NS


def test_none_allowed_is_none() -> None:
    assert Restarts(0).died(0) is None
