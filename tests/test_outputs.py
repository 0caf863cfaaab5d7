"""The outputs process: limits and the log on a fake clock; then the real process, recorder, LSL inlet and devices."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pylsl
import pytest

from rig.animal.openephys_http import GuiHttp, GuiState
from rig.animal.valve import make_register
from rig.clock import FakeClock, HostClock
from rig.config.outputs import Reward
from rig.config.reading import parse
from rig.links.bus import Hub
from rig.links.peer import Peer
from rig.links.ports import free_port
from rig.messages import (
    Document,
    Entry,
    Envelope,
    Fault,
    OutputDone,
    OutputRequest,
    ProcessStarted,
    SessionStart,
    StopRequested,
)
from rig.outputs.allowance import Allowance
from rig.outputs.devices import REWARDS, Job, Outcome, PrintDevice
from rig.outputs.service import Outputs
from rig.provenance import process_started
from rig.recording.journal import read_all
from rig.recording.recorder import Recorder
from tests.observer import LOW_WITHIN_MS, observed

ROOT = Path(__file__).parent.parent
MS = 1_000_000
S = 1_000_000_000
REWARD = Reward(output="valve", pulse_s=0.1, ul_per_s=40, max_pulse_s=0.5, max_per_minute_s=1.0, max_session_ml=0.1)


def ask(name: str, output: str = "valve", what: Any = "reward", **more: Any) -> OutputRequest:
    return OutputRequest(request=name, output=output, what=what, **more)


# --- limits -----------------------------------------------------------------------------------------------------------


def test_no_pulse_is_longer_than_its_limit() -> None:
    allowance = Allowance(REWARD)
    assert allowance.refusal(0.5, 0) == ("", "")
    assert "max_pulse_s 0.5" in allowance.refusal(0.501, 0)[1]


def test_no_minute_has_more_than_its_limit_wherever_it_begins() -> None:
    allowance = Allowance(REWARD)
    for k in range(10):
        assert allowance.refusal(0.1, k * S) == ("", "")
        allowance.given(0.1, k * S)
    assert "max_per_minute_s 1" in allowance.refusal(0.1, 10 * S)[1]
    assert "max_per_minute_s 1" in allowance.refusal(0.1, 60 * S - 1)[1]
    assert allowance.refusal(0.1, 60 * S) == ("", "")
    assert "max_per_minute_s" in allowance.refusal(0.2, 60 * S)[1]


def test_no_session_has_more_than_its_volume() -> None:
    allowance = Allowance(REWARD)
    for k in range(25):  # 25 pulses of 4 uL are the 0.1 mL
        assert allowance.refusal(0.1, k * 100 * S) == ("", "")
        allowance.given(0.1, k * 100 * S)
    assert "max_session_ml 0.1 mL" in allowance.refusal(0.1, 99 * 100 * S)[1]
    assert allowance.session_ul == pytest.approx(100)


# --- the service ------------------------------------------------------------------------------------------------------


class Wire:
    """A bus that remembers."""

    process = "outputs-2"

    def __init__(self) -> None:
        self.sent: list[Document] = []

    def send(self, document: Document) -> None:
        self.sent.append(document)


class FakeValve:
    """Opens for as long as it is told, on the fake clock; a test may let it fail."""

    takes = REWARDS

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self.job: Job | None = None
        self.begun: list[str] = []
        self.cuts: list[str] = []
        self._start_ns = 0

    def begin(self, job: Job) -> None:
        assert self.job is None, "one pulse at a time"
        self.job, self._start_ns = job, self._clock.now_ns()
        self.begun.append(job.request.request)

    def poll(self) -> list[Outcome]:
        now = self._clock.now_ns()
        if self.job is None or (now - self._start_ns < self.job.length_ns and not self.cuts):
            return []
        request, self.job = self.job.request, None
        open_s, why = (now - self._start_ns) * 1e-9, self.cuts.pop() if self.cuts else ""
        return [Outcome(request, not why, why, self._start_ns, now, open_s, timed_by="watchdog")]

    def cut(self, why: str) -> None:
        self.cuts.append(why)

    def close(self) -> None:
        pass


class FakeOthers:
    """The other processes: all there until a test says so."""

    gone: int | None = None
    excused: int | None = None
    away: bool = False

    def excuse(self, pid: int) -> None:
        self.excused = pid

    def meet(self) -> bool:
        return not self.away

    def missing(self) -> int | None:
        return self.gone


class Desk:
    """The service with everything around it fake."""

    def __init__(self, reward: Reward | None = REWARD, process: str = "outputs-2") -> None:
        self.clock = FakeClock()
        self.wire, self.valve, self.others = Wire(), FakeValve(self.clock), FakeOthers()
        self.wire.process = process
        self.printer = PrintDevice("say", self.clock)
        devices: dict[str, Any] = {"valve": self.valve, "say": self.printer}
        self.service = Outputs(devices, self.valve, reward, (), self.wire, self.others, self.clock)
        self._seq = 0

    def take(self, document: Document, process: str = "rig-1") -> None:
        self._seq += 1
        envelope = Envelope(
            seq=self._seq,
            receipt_host_ns=self.clock.now_ns(),
            sender=process.split("-")[0],
            process=process,
            sender_seq=1,
        )
        self.service.take(Entry(envelope, document))

    def start(self) -> "Desk":
        self.take(process_started("outputs", self.clock, {}), self.wire.process)
        return self

    def run(self, ms: int, **state: bool) -> None:
        for _ in range(ms // 2):
            self.service.step(**state)
            self.clock.advance_ns(2 * MS)

    @property
    def done(self) -> dict[str, OutputDone]:
        found = [d for d in self.wire.sent if isinstance(d, OutputDone)]
        assert len({d.request for d in found}) == len(found), "each request is answered once"
        return {d.request: d for d in found}

    @property
    def faults(self) -> list[str]:
        return [d.detail for d in self.wire.sent if isinstance(d, Fault)]


def test_each_request_is_executed_once_and_in_turn() -> None:
    desk = Desk().start()
    for name in ("a", "b", "a"):
        desk.take(ask(name))
    desk.run(300)
    assert desk.valve.begun == ["a", "b"]
    first, second = desk.done["a"], desk.done["b"]
    assert (first.done, first.timed_by, first.reason) == (True, "watchdog", "")
    assert first.duration_s == pytest.approx(0.1)
    assert first.volume_ul == pytest.approx(4)
    assert second.session_volume_ul == pytest.approx(8)
    assert first.confirmed_host_ns is not None
    assert second.started_host_ns is not None
    assert second.started_host_ns >= first.confirmed_host_ns
    assert desk.faults == []


def test_what_exceeds_a_limit_is_refused_whoever_asks_and_is_a_fault() -> None:
    desk = Desk().start()
    desk.take(ask("long", duration_s=0.6))
    for k in range(11):
        desk.take(ask(f"r{k}"))
        desk.run(200)
    assert len(desk.valve.begun) == 10
    refused = {name for name, d in desk.done.items() if not d.done}
    assert refused == {"long", "r10"}
    assert "max_pulse_s" in desk.done["long"].reason
    assert "max_per_minute_s" in desk.done["r10"].reason
    assert desk.done["r10"].volume_ul is None
    assert len(desk.faults) == 2


@pytest.mark.parametrize(
    ("request_", "reward", "why"),
    [
        (ask("a", output="nobody"), REWARD, "no output 'nobody'"),
        (ask("a", output="say"), REWARD, "say is not reward.output"),
        (ask("a"), None, "valve is not reward.output"),
        (ask("a", what="marker", text="x"), REWARD, "valve takes no marker"),
    ],
    ids=["unknown", "not the valve", "no reward", "marker to a valve"],
)
def test_what_cannot_be_done_is_refused_with_the_reason(
    request_: OutputRequest, reward: Reward | None, why: str
) -> None:
    desk = Desk(reward).start()
    desk.take(request_)
    desk.run(20)
    assert not desk.done["a"].done
    assert why in desk.done["a"].reason
    assert why in desk.faults[0]
    assert desk.valve.begun == []


def test_after_a_restart_nothing_is_repeated_and_everything_counts() -> None:
    desk = Desk()
    desk.take(process_started("outputs", desk.clock, {}), "outputs-1")
    long_ago = -1000 * S  # not in the last minute
    given = OutputDone(
        request="given", output="valve", what="reward", done=True, volume_ul=70.0, started_host_ns=long_ago
    )
    desk.take(ask("given"))
    desk.take(given, "outputs-1")
    desk.take(ask("open", duration_s=0.3))
    desk.take(ask("text", output="say", what="marker"))
    desk.run(20)
    assert desk.wire.sent == []
    assert desk.valve.begun == []
    desk.start()
    desk.take(ask("new", duration_s=0.5))
    desk.take(ask("small"))
    desk.run(400)
    assert desk.valve.begun == ["small"]
    assert set(desk.done) == {"open", "text", "new", "small"}
    unknown = desk.done["open"]
    assert not unknown.done
    assert "not repeated" in unknown.reason
    assert unknown.volume_ul == pytest.approx(12)  # it may have been given: it counts
    assert unknown.duration_s is None
    assert "max_session_ml" in desk.done["new"].reason  # 70 + 12 were or may have been given; 20 more are over 100 uL
    assert desk.done["small"].session_volume_ul == pytest.approx(86)


def test_a_second_restart_counts_what_the_first_one_counted() -> None:
    desk = Desk(process="outputs-3")
    desk.take(ask("open"))
    lost = OutputDone(request="open", output="valve", what="reward", done=False, reason="not repeated", volume_ul=98.0)
    desk.take(lost, "outputs-2")
    desk.start()
    desk.take(ask("next"))
    desk.run(20)
    assert "max_session_ml" in desk.done["next"].reason


def test_a_pulse_is_cut_when_a_process_is_gone_but_not_at_the_orderly_end() -> None:
    desk = Desk().start()
    desk.take(ask("a", duration_s=0.5))
    desk.run(50)
    desk.others.gone = 77
    desk.run(20)
    assert "process 77" in desk.done["a"].reason
    assert desk.done["a"].duration_s == pytest.approx(0.05, abs=0.015)
    assert desk.done["a"].volume_ul == pytest.approx(40 * 0.05, abs=0.6)
    desk.others.gone = None
    rig = process_started("rig", desk.clock, {})
    desk.take(rig)
    desk.take(StopRequested(reason="done"))
    assert desk.others.excused == rig.pid  # it ends in order
    desk.take(ask("b", duration_s=0.2))
    desk.run(300)
    assert desk.done["b"].done
    desk.take(ask("c", duration_s=0.2))
    desk.run(50)
    desk.others.gone = 78  # but nobody else has been told to end yet
    desk.run(20)
    assert "process 78" in desk.done["c"].reason


def test_a_reward_that_would_come_too_late_is_not_given() -> None:
    desk = Desk().start()
    desk.take(ask("a"))
    desk.take(ask("b"))
    desk.clock.advance_ns(1_500 * MS)  # this process did not run
    desk.run(300)
    assert not desk.valve.begun
    assert "1.5 s after it was asked for" in desk.done["a"].reason
    assert {d.volume_ul for d in desk.done.values()} == {None}


def test_a_reward_waits_for_a_process_that_is_away_but_not_until_it_would_be_too_late() -> None:
    desk = Desk().start()
    desk.others.away = True
    desk.take(ask("a"))
    desk.run(300)
    assert not desk.valve.begun
    desk.others.away = False
    desk.run(300)
    assert desk.valve.begun == ["a"]
    desk.others.away = True
    desk.take(ask("b"))
    desk.run(1_500)
    assert len(desk.valve.begun) == 1
    assert "after it was asked for" in desk.done["b"].reason


PARENT = """
import subprocess, sys
sleeper = [sys.executable, "-c", "import time; time.sleep(60)", "-m", "rig.sources", "--name", "probe"]
look = "from rig.outputs.company import Company; c = Company(); [print(c.meet(), flush=True) for _ in sys.stdin]"
source = subprocess.Popen(sleeper)
one = subprocess.Popen([sys.executable, "-c", "import sys; " + look], stdin=-1, stdout=-1, text=True)
def meet():
    one.stdin.write("?\\n"); one.stdin.flush()
    return one.stdout.readline().strip()
print(meet())
source.kill(); source.wait()
print(meet())
source = subprocess.Popen(sleeper)
print(meet())
one.stdin.close(); one.wait(); source.kill(); source.wait()
"""


def test_the_company_misses_a_source_that_was_killed_until_its_successor_is_there() -> None:
    ran = subprocess.run([sys.executable, "-c", PARENT], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert ran.stdout.split() == ["True", "False", "True"], ran.stderr


def test_at_the_end_what_is_on_ends_and_nothing_begins() -> None:
    desk = Desk().start()
    desk.take(ask("a", duration_s=0.2))
    desk.take(ask("b"))
    desk.run(20)
    desk.run(300, stopping=True)
    assert desk.done["a"].done
    assert "session has ended" in desk.done["b"].reason
    desk.take(ask("c", duration_s=0.4))
    desk.run(20)
    desk.run(10, stopping=True, orphaned=True)
    assert "supervisor" in desk.done["c"].reason
    assert not desk.service.busy


# --- the real process -------------------------------------------------------------------------------------------------

CONFIG = """
sources: [{type: openephys}]
responses: {units: ["a"]}
phases: [{agent: present}]
outputs: OUTPUTS
"""


class Session:
    """`python -m rig.outputs` beside a recorder and a rig that the test is."""

    def __init__(self, folder: Path, outputs: list[dict[str, Any]], reward: dict[str, Any] | None = None) -> None:
        self.folder, self.clock = folder, HostClock(spin_ns=0)
        text = CONFIG.replace("OUTPUTS", json.dumps(outputs)) + (f"reward: {json.dumps(reward)}\n" if reward else "")
        (folder / "config.yaml").write_text(text)
        start = SessionStart(
            simulated=True, session="s", config_yaml=text, config={}, versions={}, commit=None, dirty=None,
            start_host_ns=1, start_utc_ns=2,
        )  # fmt: skip
        self.hub = Hub("tcp://127.0.0.1:0")
        self.recorder = Recorder(folder / "session.journal", self.hub, parse(text), self.clock, lambda: start)
        self.rig = Peer("rig", self.hub.endpoint, frozenset(), self.clock)
        self.process = self.spawn()

    def spawn(self) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "rig.outputs", "--folder", str(self.folder), "--endpoint", self.hub.endpoint],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip

    def until(self, done: Callable[[], object], seconds: float = 15) -> None:
        end = self.clock.now_ns() + int(seconds * 1e9)
        while not done():
            assert self.clock.now_ns() < end, f"not in time; last: {self.documents[-3:]}"
            self.recorder.step(0.005)
            self.rig.poll()

    @property
    def documents(self) -> list[Document]:
        return [e.document for e in read_all(self.folder / "session.journal")]

    def started(self, times: int = 1) -> None:
        def there() -> bool:
            return sum(isinstance(d, ProcessStarted) for d in self.documents) >= times

        self.until(there)

    def done(self, request: str, seconds: float = 15) -> OutputDone:
        def found() -> list[OutputDone]:
            return [d for d in self.documents if isinstance(d, OutputDone) and d.request == request]

        self.until(found, seconds)
        (one,) = found()
        return one

    def close(self) -> None:
        if self.process.poll() is None:
            assert self.process.stdin is not None
            self.process.stdin.write("stop\n")
            self.process.stdin.flush()
            self.until(lambda: self.process.poll() is not None)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self.rig.close()
        self.recorder.close("test over")


@contextmanager
def session(folder: Path, outputs: list[dict[str, Any]], reward: dict[str, Any] | None = None) -> Iterator[Session]:
    running = Session(folder, outputs, reward)
    try:
        running.started()
        yield running
    finally:
        running.close()


VALVE = {"output": "valve", "ul_per_s": 40, "max_pulse_s": 3, "max_session_ml": 10}


def test_a_held_line_gives_the_pulse_that_was_asked(tmp_path: Path) -> None:
    register = make_register(tmp_path / "port")
    outputs = [{"type": "parallel", "name": "valve", "port": str(register), "line": 5}]
    with observed(register) as observer, session(tmp_path, outputs, VALVE) as running:
        running.rig.send(ask("a", duration_s=0.25))
        done = running.done("a")
        observer.wait(0, 2)
        up, down = observer.changes
    assert (done.done, done.timed_by) == (True, "watchdog")
    assert done.duration_s == pytest.approx(0.25, abs=0.02)
    assert (down[1] - up[1]) * 1e-9 == pytest.approx(done.duration_s, abs=0.01)
    assert done.started_host_ns is not None
    assert abs(done.started_host_ns - up[1]) < 10 * MS


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["kill", "stop"])
def test_outputs_that_die_in_a_pulse_leave_the_line_low_and_never_repeat_it(
    number: signal.Signals, tmp_path: Path
) -> None:
    register = make_register(tmp_path / "port")
    outputs = [{"type": "parallel", "name": "valve", "port": str(register)}]
    with observed(register) as observer, session(tmp_path, outputs, VALVE) as running:
        running.rig.send(ask("a", duration_s=2.5))
        running.until(lambda: observer.changes)
        running.process.send_signal(number)
        since = running.clock.now_ns()
        low = observer.wait(0, 3)
        assert (low - since) / MS < LOW_WITHIN_MS
        running.process.kill()
        running.process.communicate()
        running.process = running.spawn()
        running.started(2)
        answer = running.done("a")
        assert not answer.done
        assert "not repeated" in answer.reason
        assert answer.volume_ul == pytest.approx(100)
        running.rig.send(ask("b"))
        assert running.done("b").session_volume_ul == pytest.approx(104, abs=0.5)
        assert len(observer.changes) == 4


@contextmanager
def serial_valve(*options: str) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "rig.animal.valve", "serial", *options],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())["ready"], process
    finally:
        process.communicate(timeout=5)


def test_a_serial_device_times_the_pulse_itself(tmp_path: Path) -> None:
    with serial_valve() as (port, device):
        outputs = [{"type": "serial", "name": "valve", "port": port}]
        with session(tmp_path, outputs, VALVE) as running:
            running.rig.send(ask("a", duration_s=0.3))
            done = running.done("a")
            assert device.stdout is not None
            up, down = (json.loads(device.stdout.readline()) for _ in range(2))
    assert (done.done, done.timed_by) == (True, "device")
    assert done.duration_s == pytest.approx(0.3, abs=0.02)
    assert (down["host_ns"] - up["host_ns"]) * 1e-9 == pytest.approx(0.3, abs=0.02)


def test_a_serial_device_closes_when_the_outputs_are_killed(tmp_path: Path) -> None:
    with serial_valve() as (port, device):
        outputs = [{"type": "serial", "name": "valve", "port": port}]
        with session(tmp_path, outputs, VALVE) as running:
            running.rig.send(ask("a", duration_s=2.5))
            running.until(lambda: any(isinstance(d, OutputRequest) for d in running.documents))
            assert device.stdout is not None
            assert json.loads(device.stdout.readline())["level"] == 1
            running.process.kill()
            since = running.clock.now_ns()
            down = json.loads(device.stdout.readline())
            running.process.communicate()
    assert down["level"] == 0
    assert (down["host_ns"] - since) / MS < LOW_WITHIN_MS


def test_a_device_that_does_not_confirm_is_not_asked_again_and_counts(tmp_path: Path) -> None:
    with serial_valve("--deaf") as (port, _):
        with session(tmp_path, [{"type": "serial", "name": "valve", "port": port}], VALVE) as running:
            running.rig.send(ask("a"))
            done = running.done("a")
    assert not done.done
    assert "did not accept" in done.reason
    assert done.duration_s is None
    assert done.volume_ul == pytest.approx(4)


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ({"type": "serial", "name": "valve", "port": "/dev/no-such-port"}, "no-such-port"),
        ({"type": "serial", "name": "valve", "port": "/dev/no-such-port", "mode": "rts"}, "No such file"),
        ({"type": "parallel", "name": "valve", "port": "/dev/null"}, "is no parallel port"),
    ],
    ids=["device", "rts", "parallel"],
)
def test_a_port_that_cannot_be_used_is_said_with_a_cure(output: dict[str, Any], reason: str, tmp_path: Path) -> None:
    text = CONFIG.replace("OUTPUTS", json.dumps([output])) + f"reward: {json.dumps(VALVE)}\n"
    (tmp_path / "config.yaml").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "rig.outputs", "--folder", str(tmp_path), "--endpoint", "tcp://127.0.0.1:9"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=200, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 2
    said = json.loads(done.stdout.splitlines()[-1])
    assert reason in said["failed"]
    assert said["cure"]


def test_markers_reach_an_inlet_with_the_time_of_their_flip(tmp_path: Path) -> None:
    name = f"stimloop-test-{HostClock().utc_ns():x}"
    outputs = [{"type": "lsl_markers", "stream": name}, {"type": "print", "name": "valve"}]
    with session(tmp_path, outputs, VALVE) as running:
        (found,) = pylsl.resolve_byprop("name", name, timeout=200)
        inlet = pylsl.StreamInlet(found, processing_flags=0)
        inlet.open_stream(timeout=200)
        got: list[tuple[str, float]] = []

        def pulled() -> int:
            text, stamp = inlet.pull_sample(timeout=0.0)
            if text is not None:
                got.append((text[0], stamp))
            return len(got)

        flip_ns = running.clock.now_ns() - 123_456_789
        running.rig.send(ask("onset-7", "markers", "marker", text="onset presentation=7", event_host_ns=flip_ns))
        running.rig.send(ask("reward"))
        running.until(lambda: pulled() >= 2)
        given = running.done("reward")
        inlet.close_stream()
        assert running.done("onset-7").done
    assert got[0][0] == "onset presentation=7"
    if sys.platform == "linux":  # LSL's clock is the host clock there
        assert got[0][1] == pytest.approx(flip_ns * 1e-9, abs=1e-4)
        assert given.started_host_ns is not None
        assert got[1][1] == pytest.approx(given.started_host_ns * 1e-9, abs=1e-4)
    assert got[1][0].startswith("reward request=reward open_s=0.1")


def test_trials_are_labelled_in_the_recording_of_the_gui(tmp_path: Path) -> None:
    state = GuiState("ProbeA", 4, 30_000.0, (), mode="RECORD")
    port = free_port(2)
    server = GuiHttp(state, port)
    try:
        with session(tmp_path, [{"type": "openephys_messages", "http_port": port}]) as running:
            for k in range(3):
                running.rig.send(ask(f"trial-{k}", "gui", "message", text=f"trial={k} presentations=0-9"))
            assert all(running.done(f"trial-{k}").done for k in range(3))
    finally:
        server.close()
    assert state.messages == [f"stimloop {tmp_path.name} trial={k} presentations=0-9" for k in range(3)]


def test_a_gui_that_is_away_is_a_fault_and_holds_nobody_up(tmp_path: Path) -> None:
    outputs = [{"type": "openephys_messages", "http_port": free_port(2)}, {"type": "print", "name": "valve"}]
    with session(tmp_path, outputs, VALVE) as running:
        running.rig.send(ask("label", "gui", "message", text="trial=0"))
        running.rig.send(ask("reward"))
        assert running.done("reward", 5).done
        answer = running.done("label")
        faults = [d.detail for d in running.documents if isinstance(d, Fault)]
    assert not answer.done
    assert "does not answer" in answer.reason
    assert any("gui, label" in detail for detail in faults)
