"""The watchdog of held lines: its two sides on a fake clock, then the real processes, killed in mid-pulse.

The fakes of rig/animal/valve.py are tested with it: the register file with its observer, and the serial valve.
"""

import itertools
import os
import signal
from pathlib import Path

import pytest

from rig.animal.valve import QUIET_NS, SerialValve, make_register
from rig.clock import FakeClock, HostClock
from rig.outputs import records as r
from rig.outputs.guardian import Guardian
from rig.outputs.lines import PPCLAIM, PPWDATA, OutputError, open_line
from rig.outputs.pair import Pair
from rig.outputs.pulser import Pulser
from tests.observer import LOW_WITHIN_MS, observed

MS = 1_000_000


class FakeLine:
    """Remembers each change with its time."""

    def __init__(self, clock: FakeClock) -> None:
        self.changes: list[tuple[bool, int]] = []
        self._clock = clock

    @property
    def high(self) -> bool:
        return bool(self.changes) and self.changes[-1][0]

    def set(self, high: bool) -> None:
        if high != self.high:
            self.changes.append((high, self._clock.now_ns()))


class Both:
    """A pulser and a guardian on one line, joined by queues; either can be made deaf and still from a moment on."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.line = FakeLine(self.clock)
        self.told: list[r.Told] = []
        self.to_guardian: list[r.Told] = []
        self.to_pulser: list[r.Told] = []
        self.pulser = Pulser(self.line, self._owner, self._into(self.to_guardian), self.clock)
        self.guardian = Guardian(self.line, self._owner, self._into(self.to_pulser), self.clock)
        self.still: set[str] = set()
        self.failed: list[str] = []
        self.owner_lives = True

    def _owner(self, kind: bytes, number: int = 0, value: int = 0) -> None:
        self.told.append(r.Told(kind, number, value))

    @staticmethod
    def _into(box: list[r.Told]) -> r.Tell:
        return lambda kind, number=0, value=0: box.append(r.Told(kind, number, value))

    def run(self, ms: float) -> None:
        """Let time pass in steps of 0.5 ms; whoever fails ends, as `watcher.serve` does it."""
        for _ in range(int(ms * 2)):
            self.clock.advance_ns(MS // 2)
            if self.owner_lives:
                self.pulser_hears(r.ALIVE)
            for name, role, box in (
                ("pulser", self.pulser, self.to_pulser),
                ("guardian", self.guardian, self.to_guardian),
            ):
                if name in self.still:
                    continue
                heard = box[:]
                box.clear()
                for told in heard:
                    role.partner_said(told)
                if role.tick():
                    role.end()
                    self.failed.append(name)
                    self.still |= {"pulser", "guardian"}  # it kills the other and ends

    def pulser_hears(self, kind: bytes, number: int = 0, value: int = 0) -> None:
        if "pulser" not in self.still:
            self.pulser.owner_said(r.Told(kind, number, value))


def test_a_pulse_has_its_length_and_both_live_on() -> None:
    both = Both()
    both.pulser_hears(r.PULSE, 1, 100 * MS)
    both.run(150)
    (up, down) = both.line.changes
    assert (up[0], down[0]) == (True, False)
    assert down[1] - up[1] == 100 * MS
    assert [t.kind for t in both.told] == [r.UP, r.DOWN]
    assert both.told[1].value == 100 * MS
    assert both.failed == []
    both.pulser_hears(r.PULSE, 2, 10 * MS)
    both.run(30)
    assert len(both.line.changes) == 4


def test_the_line_is_not_raised_without_the_guardian() -> None:
    both = Both()
    both.still.add("guardian")
    both.pulser_hears(r.PULSE, 1, 100 * MS)
    both.run(100)
    assert both.line.changes == []
    assert [t.kind for t in both.told] == [r.NOT_RAISED]
    assert both.failed == ["pulser"]


@pytest.mark.parametrize("victim", ["pulser", "guardian", "owner"])
@pytest.mark.parametrize("at_ms", [0.5, 1, 5, 20, 50, 99])
def test_whoever_falls_still_the_line_is_low_in_time(victim: str, at_ms: float) -> None:
    both = Both()
    both.pulser_hears(r.PULSE, 1, 400 * MS)
    both.run(at_ms)
    since = both.clock.now_ns()
    if victim == "owner":
        both.owner_lives = False
    else:
        both.still.add(victim)
    both.run(300)
    assert not both.line.high
    if both.line.changes:
        assert both.line.changes[-1][1] - since < LOW_WITHIN_MS * MS
    expected = {"pulser": r.RESCUED, "guardian": r.GUARDIAN_SILENT, "owner": r.OWNER_SILENT}[victim]
    assert both.told[-1].kind in (expected, r.NOT_RAISED)


def test_a_pulser_that_forgets_its_pulse_is_overruled_at_the_last_moment() -> None:
    both = Both()
    both.guardian.partner_said(r.Told(r.ARM, 1, both.clock.now_ns() + 50 * MS))
    both.line.set(True)
    for _ in range(200):  # it lives and says so, but never lowers
        both.clock.advance_ns(MS)
        both.guardian.partner_said(r.Told(r.BEAT, 0, 0))
        if both.guardian.tick():
            both.guardian.end()
            break
    assert both.line.changes[-1] == (False, both.line.changes[0][1] + 51 * MS)


def test_stop_lowers_at_once_and_a_second_pulse_is_refused_while_one_is_on() -> None:
    both = Both()
    both.pulser_hears(r.PULSE, 1, 400 * MS)
    both.run(10)
    both.pulser_hears(r.PULSE, 2, 400 * MS)
    assert both.told[-1] == r.Told(r.NOT_RAISED, 2, 0)
    both.pulser_hears(r.STOP)
    assert not both.line.high
    assert both.told[-1].kind == r.STOPPED
    both.run(100)
    assert both.failed == []


def test_an_onset_line_needs_no_owner_that_speaks_but_has_an_end() -> None:
    both = Both()
    both.owner_lives = False
    both.pulser_hears(r.LEVEL, 1, 200 * MS)
    both.run(150)
    assert both.line.high
    both.run(100)
    assert not both.line.high
    assert both.told[-1].kind == r.DOWN


# --- the real processes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["kill", "stop"])
@pytest.mark.parametrize("victim", [0, 1], ids=["pulser", "guardian"])
def test_a_killed_or_stopped_watcher_leaves_the_line_low(victim: int, number: signal.Signals, tmp_path: Path) -> None:
    register, clock = make_register(tmp_path / "port"), HostClock(spin_ns=0)
    with observed(register) as observer:
        for _ in range(5):
            pair = Pair(str(register), False, 3, clock)
            try:
                pair.raise_line(1, 3_000 * MS)
                observer.wait(1, 5)
                os.kill(pair.processes[victim].pid, number)
                since = clock.now_ns()
                low = observer.wait(0, 2)
                assert (low - since) / MS < LOW_WITHIN_MS
                codes = [p.wait(60) for p in pair.processes]  # nobody is left that could raise it again
                assert codes[victim] == -signal.SIGKILL
            finally:
                pair.close()
            assert register.read_bytes()[:1] == b"\0"


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="this system has no scheduling classes")
def test_without_real_time_priority_the_watchers_ask_for_none(tmp_path: Path) -> None:
    pair = Pair(str(make_register(tmp_path / "port")), False, 3, HostClock(spin_ns=0), realtime=False)
    try:
        assert [os.sched_getscheduler(p.pid) for p in pair.processes] == [os.SCHED_OTHER] * 2
    finally:
        pair.close()


def test_an_owner_that_is_silent_gets_no_longer_pulse(tmp_path: Path) -> None:
    register, clock = make_register(tmp_path / "port"), HostClock(spin_ns=0)
    with observed(register) as observer:
        pair = Pair(str(register), False, 0, clock)
        try:
            pair.pulse(1, 3_000 * MS)
            observer.wait(0, 5)
            assert [t.kind for t in pair.poll()] == [r.UP, r.OWNER_SILENT]
            assert pair.alive  # the pair is sound: the next pulse may come
        finally:
            pair.close()
    (up, low) = observer.changes
    assert (low[1] - up[1]) / MS < LOW_WITHIN_MS


def test_a_port_that_is_none_is_refused_with_a_cure(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file") as missing:
        open_line(str(tmp_path / "ttyUSB7"), True)
    assert "port's name" in missing.value.cure
    master, slave = os.openpty()
    try:
        with pytest.raises(OutputError, match="is no serial port with an RTS line"):
            open_line(os.ttyname(slave), True)  # a pseudo terminal has no RTS
        with pytest.raises(OutputError, match="is no parallel port"):
            open_line(os.ttyname(slave), False)
    finally:
        os.close(master)
        os.close(slave)


def test_the_parallel_port_s_requests_are_the_kernel_s() -> None:
    """linux/ppdev.h: _IO('p', 0x8b) and _IOW('p', 0x86, unsigned char), put together as asm-generic/ioctl.h does."""
    assert ord("p") << 8 | 0x8B == PPCLAIM
    assert 1 << 30 | 1 << 16 | ord("p") << 8 | 0x86 == PPWDATA


# --- the fake serial valve --------------------------------------------------------------------------------------------


def test_the_serial_valve_times_itself() -> None:
    clock = FakeClock()
    valve = SerialValve(clock, max_us=200_000)
    assert valve.hear("?") == "stimloop-valve 1 200000\n"
    assert valve.hear("P 1 200001") == "R 1 length\n"
    assert valve.hear("P 2 100000") == "A 2 100000\n"
    assert valve.hear("P 3 1000") == "R 3 busy\n"
    said = ""
    for _ in range(12):
        clock.advance_ns(10 * MS)
        assert valve.hear("K") == ""
        said += valve.tick()
    assert said == "E 2 100000 end\n"
    assert not valve.open


def test_the_serial_valve_closes_when_nobody_speaks_or_somebody_says_so() -> None:
    clock = FakeClock()
    valve = SerialValve(clock)
    valve.hear("P 1 2000000")
    clock.advance_ns(QUIET_NS)
    assert valve.tick() == ""
    clock.advance_ns(MS)
    assert valve.tick() == f"E 1 {(QUIET_NS + MS) // 1000} quiet\n"
    valve.hear("P 2 2000000")
    clock.advance_ns(5 * MS)
    assert valve.hear("X") == "E 2 5000 stop\n"
    assert valve.hear("X") == ""


@pytest.mark.parametrize("line", ["", "P", "P 1", "P x 10", "P 1 -5", "p 1 10", "?? 1", "P 1 10 10"])
def test_the_serial_valve_refuses_what_it_does_not_know(line: str) -> None:
    valve = SerialValve(FakeClock())
    assert valve.hear(line) == "R 0 unknown\n"
    assert not valve.open


def test_records_survive_any_split(tmp_path: Path) -> None:
    sent = [r.Told(bytes([65 + k]), k, -k) for k in range(9)]
    data = b"".join(r.RECORD.pack(*t) for t in sent)
    for cut in itertools.chain(range(0, 40), [len(data)]):
        reader, writer = os.pipe()
        box = r.Mailbox(reader)
        os.write(writer, data[:cut])
        got = box.read()
        os.write(writer, data[cut:])
        os.close(writer)
        got += box.read() + box.read()
        os.close(reader)
        assert got == sent
        assert not box.open
