"""One simulated session whose processes are killed and frozen at seeded random moments, and what was done to it.

Real parts: the supervisor with all of its children in a process of its own (`rig.bench.hosted`), the simulated animal
as another program, the screen, a reward line that an observer watches. The strikes fall on the supervisor's own
children, found by their command lines, and now and then on the supervisor itself: then its children must end by
themselves, and the session is resumed. Nothing is judged here: `rig.bench.chaos` does that.
"""

import signal
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from rig.animal.valve import make_register
from rig.bench.chaos_checks import Struck
from rig.bench.chaos_line import observed
from rig.bench.hosted import below, end, host, name_of
from rig.clock import Clock
from rig.links.ports import free_port
from rig.links.witness import VARIABLE
from rig.recording.journal import JournalReader
from rig.supervision.processes import Child, SessionFailed
from rig.supervision.runs import new_folder, simulated_animal

# What is struck, and how often relative to the others.
VICTIMS = {"model": 4, "rig": 4, "recorder": 4, "source": 3, "view": 2, "outputs": 2, "receiver": 2, "supervisor": 1}
FREEZES = 0.4  # of all strikes; the others kill
FROZEN_S = (0.2, 6.0)
FIRST_S = (0.3, 20.0)  # from the first trial to the first strike: of some sessions the end is struck
WAIT_S = (0.3, 4.0)  # from one strike to the next: some fall while the one before is being mended
AT_ONCE = 0.15  # of all strikes follow the one before at once
AT_END = 0.5  # of the sessions, in which the last strike falls while the session is being closed
CLOSING_S = (0.0, 1.5)
IN_PULSE = 0.35  # of all strikes fall while a reward is being given
PULSE_S = 0.4
PULSE_WAIT_S = 6.0
BACK_S = 15.0  # a victim that is not there is waited for so long
LIMIT_S = 240.0
POLL_S = 0.02
GONE_NS = 5_000_000_000
CONFIG = """
name: chaos
seed: {seed}
display: {{size_px: [400, 300], refresh_hz: 60, width_cm: 30}}
stimulus: {{size_deg: 10}}
presentation:
  {{on_s: 0.1, off_s: 0.0667, images_per_trial: 12, inter_trial_s: 0.6, repeats_of_unusable: 10}}
sources: [{{type: openephys, name: probe, port: {port}, http_port: null}}]
responses:
  units: ["E01#0", "E02#0"]
  baseline: {{kind: none}}
  max_onset_uncertainty_s: 0.005
outputs: [{{type: parallel, name: valve, port: {register}, line: 2}}]
reward:
  {{output: valve, pulse_s: {pulse}, max_pulse_s: 0.5, ul_per_s: 40, max_per_minute_s: 60, max_session_ml: 20}}
phases:
- {{agent: evolve, unit: "E01#0", preset: plos2020, generations: {generations}, references: 4, reshows: 2, blanks: 1}}
processes:
  longest_busy_s: {{recorder: 3, rig: 3, model: 4, outputs: 3, source: 3, view: 5}}
  restarts_per_minute: 30
animal: {{neurons: 4, noise: none}}
"""


@dataclass(frozen=True)
class Strike:
    """What is to be done to one process."""

    victim: str
    how: str
    wait_s: float
    """After the strike before, or after the first trial began; `at_end` after the last image."""
    at_end: bool
    frozen_s: float
    in_pulse: bool
    """Wait further for a reward pulse, and strike at a random moment of it."""
    into_pulse_s: float


def plan(rng: np.random.Generator, strikes: int) -> tuple[Strike, ...]:
    """Draw the strikes of one session."""
    names = list(VICTIMS)
    weights = np.array([VICTIMS[name] for name in names], dtype=np.float64)
    last = strikes - 1 if rng.random() < AT_END else strikes
    return tuple(
        Strike(
            victim=names[int(rng.choice(len(names), p=weights / weights.sum()))],
            how="freeze" if rng.random() < FREEZES else "kill",
            wait_s=float(rng.uniform(*CLOSING_S)) if number == last else _wait_s(rng, number),
            at_end=number == last,
            frozen_s=float(rng.uniform(*FROZEN_S)),
            in_pulse=bool(rng.random() < IN_PULSE),
            into_pulse_s=float(rng.uniform(0.02, PULSE_S - 0.1)),
        )
        for number in range(strikes)
    )


def _wait_s(rng: np.random.Generator, number: int) -> float:
    if number == 0:
        return float(rng.uniform(*FIRST_S))
    return 0.0 if rng.random() < AT_ONCE else float(rng.uniform(*WAIT_S))


@dataclass(frozen=True)
class Ran:
    """A session that is over."""

    folder: Path
    truth: Path
    witness: Path
    struck: tuple[Struck, ...]
    changes: tuple[tuple[int, int], ...]
    """Of the reward line: (level, host ns)."""
    exit_code: int | None
    """None: it did not end by itself within LIMIT_S."""
    said: str
    left: tuple[str, ...]
    """Processes that still ran when the session was over."""
    seconds: float


def run(sessions: Path, seed: int, generations: int, strikes: tuple[Strike, ...], clock: Clock) -> Ran:
    """Run one session under `strikes` (none: undisturbed). DISPLAY names a screen. Raises SessionFailed."""
    sessions.mkdir(parents=True, exist_ok=True)
    folder = new_folder(sessions, "chaos" if strikes else "chaos-undisturbed", "", clock)
    register = make_register(folder.parent / f"{folder.name}-port")
    text = CONFIG.format(seed=seed, generations=generations, port=free_port(4), register=register, pulse=PULSE_S)
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    witness = folder.parent / f"{folder.name}-witness"
    witness.mkdir()
    start_ns = clock.now_ns()
    with ExitStack() as stack:
        line = stack.enter_context(observed(register))
        truth = stack.enter_context(simulated_animal(folder, clock))
        hand = _Hand(folder, {VARIABLE: str(witness)}, line.level, clock)
        stack.callback(hand.end)
        hand.strike(strikes)
        exit_code = hand.wait_end(start_ns + int(LIMIT_S * 1e9))
        said = "" if exit_code == 0 else hand.supervisor.why()
        left = hand.end()
        if not (folder / "session.journal").exists():
            raise SessionFailed(f"the session in {folder} did not begin: {said}")
    seconds = (clock.now_ns() - start_ns) * 1e-9
    return Ran(folder, truth, witness, tuple(hand.struck), tuple(line.changes), exit_code, said, tuple(left), seconds)


class _Hand:
    """Strikes the processes of one session."""

    def __init__(
        self, folder: Path, environment: Mapping[str, str], level: Callable[[], bool], clock: Clock
    ) -> None:
        self.struck: list[Struck] = []
        self._folder, self._environment, self._level, self._clock = folder, environment, level, clock
        self.supervisor = host(folder, environment)
        self._dead: list[Child] = []  # supervisors that were killed

    @property
    def _over(self) -> bool:
        return self.supervisor.exit_code is not None

    def end(self) -> list[str]:
        """End what is left of the session; return the names of what was."""
        return [name for one in (*self._dead, self.supervisor) for name in end(one)]

    def _pause(self, seconds: float) -> None:
        end_ns = self._clock.now_ns() + int(seconds * 1e9)
        while self._clock.now_ns() < end_ns and not self._over:
            self._clock.sleep_until_ns(min(end_ns, self._clock.now_ns() + int(POLL_S * 1e9)))

    def strike(self, strikes: tuple[Strike, ...]) -> None:
        """Carry out the strikes, one after the other, until the session is over."""
        if not strikes or not self._journalled("trial_intent"):
            return
        for number, one in enumerate(strikes):
            if one.at_end and not self._journalled("stop_requested"):
                return
            self._pause(one.wait_s)
            if one.in_pulse and not one.at_end:
                self._await_pulse(one.into_pulse_s)
            process = self._find(one.victim)
            if process is None or self._over:
                continue
            with suppress(psutil.NoSuchProcess):  # it ended in this moment by itself
                self.struck.append(self._hit(number, one, process))
                if one.victim == "supervisor" and self.struck[-1].killed:
                    self._resume()

    def _resume(self) -> None:
        self.supervisor.kill()  # it is dead: this reaps it, and closes our ends of its pipes
        self._dead.append(self.supervisor)
        self.supervisor = host(self._folder, self._environment, again=True)

    def _journalled(self, kind: str) -> bool:
        """Wait for the first document of a kind; False if the session ends before."""
        path = self._folder / "session.journal"
        while not path.exists() and not self._over:
            self._pause(POLL_S)
        if self._over:
            return False
        reader = JournalReader(path, frozenset({kind}))
        try:
            while not self._over:
                if reader.read():
                    return True
                self._pause(POLL_S)
        finally:
            reader.close()
        return False

    def _await_pulse(self, into_s: float) -> None:
        end_ns = self._clock.now_ns() + int(PULSE_WAIT_S * 1e9)
        was = True  # a pulse that is on already may end too soon
        while self._clock.now_ns() < end_ns and not self._over:
            high = self._level()
            if high and not was:
                self._pause(into_s)
                return
            was = high
            self._clock.sleep_until_ns(self._clock.now_ns() + 2_000_000)

    def _find(self, victim: str) -> psutil.Process | None:
        """Return the process that is the victim now; wait for one that is being started again."""
        if victim == "supervisor":
            return None if self._over else psutil.Process(self.supervisor.process.pid)
        end_ns = self._clock.now_ns() + int(BACK_S * 1e9)
        while self._clock.now_ns() < end_ns and not self._over:
            for process in below(self.supervisor.process.pid):
                if name_of(process) == victim:
                    return process
            self._pause(POLL_S)
        return None

    def _hit(self, number: int, one: Strike, process: psutil.Process) -> Struck:
        if one.how == "kill":
            at_ns = self._clock.now_ns()
            process.send_signal(signal.SIGKILL)
            while _lives(process) and self._clock.now_ns() < at_ns + GONE_NS:
                self._clock.sleep_until_ns(self._clock.now_ns() + 500_000)
            return Struck(number, one.victim, one.how, process.pid, at_ns, self._clock.now_ns(), killed=True)
        at_ns = self._clock.now_ns()
        process.send_signal(signal.SIGSTOP)
        end_ns = at_ns + int(one.frozen_s * 1e9)
        lives = True
        try:
            while lives and self._clock.now_ns() < end_ns:
                self._clock.sleep_until_ns(min(end_ns, self._clock.now_ns() + int(POLL_S * 1e9)))
                lives = _lives(process)
        finally:
            if lives:
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGCONT)  # psutil compares the start time: never another process
        return Struck(number, one.victim, one.how, process.pid, at_ns, self._clock.now_ns(), killed=not lives)

    def wait_end(self, limit_ns: int) -> int | None:
        """Wait until the session is over; return its exit code, None if it does not end."""
        while not self._over and self._clock.now_ns() < limit_ns:
            self._pause(POLL_S)
        return self.supervisor.exit_code


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
