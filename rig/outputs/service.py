"""What the outputs process does with the log: executes each request once, keeps the limits, says what became of it.

The limits hold here, whoever asks. After a restart it reads the log first: what was given counts, and a reward that
was asked for before, and may or may not have been given, is never given again. It reads no device data.
"""

from collections import deque
from collections.abc import Mapping
from typing import Protocol

from rig.clock import Clock
from rig.config.outputs import Reward
from rig.messages import Document, Entry, Fault, OutputDone, OutputRequest, ProcessStarted, StopRequested
from rig.outputs.allowance import Allowance
from rig.outputs.devices import Device, Job, Marks, Outcome, Valve
from rig.outputs.refusals import Refusals

WANTS = frozenset({"output_request", "output_done", "process_started", "stop_requested"})
NOT_REPEATED = "not repeated: it was asked for before the outputs process started"
LOOK_NS = 10_000_000  # at the other processes, while a pulse is on
TOO_LATE_NS = 1_000_000_000  # a reward that comes later than this rewards something else


class Line(Protocol):
    """What is needed of the bus; `rig.links.peer.Peer` is one."""

    process: str

    def send(self, document: Document) -> None:
        """Send without blocking."""
        ...


class Others(Protocol):
    """What is needed of `rig.outputs.company.Company`."""

    def meet(self) -> bool:
        """Look who is there; return whether nobody is away who is needed."""
        ...

    def excuse(self, pid: int) -> None:
        """Do not miss this one from now on."""
        ...

    def missing(self) -> int | None:
        """Return one that is gone."""
        ...


class Outputs:
    """Executes requests on devices.

    Parameters
    ----------
    devices
        By the output's name in the config.
    valve
        The output that gives rewards, None without `reward` in the config.
    reward
        The limits, None without.
    marks
        Outputs that get a marker for each reward.
    line
        The bus.
    others
        The session's other processes.
    clock
        Time.
    """

    def __init__(
        self,
        devices: Mapping[str, Device],
        valve: Valve | None,
        reward: Reward | None,
        marks: tuple[Marks, ...],
        line: Line,
        others: Others,
        clock: Clock,
    ) -> None:
        self._devices = devices
        self._valve = valve
        self._reward = reward
        self._marks = marks
        self._allowance = None if reward is None else Allowance(reward)
        self._refusals = Refusals()
        self._line = line
        self._others = others
        self._clock = clock
        self._answered: set[str] = set()
        self._before: dict[str, OutputRequest] = {}  # asked before this start, not yet seen answered
        self._caught_up = False
        self._rewards: deque[tuple[Job, int]] = deque()  # and when the recorder had the request
        self._open = False  # a reward is being given
        self._rig_pid: int | None = None
        self._boot: str | None = None
        self._look_ns = 0

    @property
    def busy(self) -> bool:
        """Whether a reward is being given or waits for one that is."""
        return self._open or bool(self._rewards)

    def take(self, entry: Entry) -> None:
        """Take one entry of the log."""
        document, own = entry.document, entry.envelope.process == self._line.process
        if isinstance(document, ProcessStarted):
            if document.name == "rig":
                self._rig_pid = document.pid
            elif document.name == "recorder":
                if self._boot not in (None, document.boot_id) and self._allowance is not None:
                    self._allowance.new_boot(document.start_host_ns)
                self._boot = document.boot_id
            if own:
                self._catch_up()
        elif isinstance(document, StopRequested):
            if self._rig_pid is not None:
                self._others.excuse(self._rig_pid)  # it ends in order; the others go on until the supervisor says stop
        elif isinstance(document, OutputDone):
            self._answered.add(document.request)
            if not own and self._allowance is not None and document.volume_ul is not None:
                self._allowance.logged(document.volume_ul, document.started_host_ns)
        elif isinstance(document, OutputRequest) and document.request not in self._answered:
            if self._caught_up:
                self._answered.add(document.request)
                self._execute(document, entry.envelope.receipt_host_ns)
            else:
                self._before[document.request] = document

    def _catch_up(self) -> None:
        """Everything up to this start has been read: answer what an earlier start left open, without repeating it."""
        self._caught_up = True
        for request in self._before.values():
            if request.request in self._answered:
                continue
            self._answered.add(request.request)
            open_s, reason = 0.0, NOT_REPEATED
            if request.what == "reward" and self._reward is not None and request.output == self._reward.output:
                # Never more than the limit: what was refused then or now was not given.
                open_s = min(request.duration_s or self._reward.pulse_s, self._reward.max_pulse_s)
                reason += "; it may have been given and counts in full"
            self._finished(Outcome(request, False, reason, None, None, open_s, measured=False))
        self._before.clear()

    def _execute(self, request: OutputRequest, receipt_host_ns: int) -> None:
        device = self._devices.get(request.output)
        if device is None:
            self._refuse(request, f"there is no output {request.output!r}")
        elif request.what not in device.takes:
            self._refuse(request, f"{request.output} takes no {request.what}")
        elif request.what == "reward":
            self._queue_reward(request, receipt_host_ns)
        else:
            device.begin(Job(request, 0))

    def _queue_reward(self, request: OutputRequest, receipt_host_ns: int) -> None:
        if self._reward is None or request.output != self._reward.output:
            self._refuse(request, f"{request.output} is not reward.output of the config")
            return
        length_s = self._reward.pulse_s if request.duration_s is None else request.duration_s
        self._rewards.append((Job(request, round(length_s * 1e9)), receipt_host_ns))

    def step(self, stopping: bool = False, orphaned: bool = False) -> None:
        """Begin what waits, end what must end, say what has ended; call it every few ms while `busy`.

        Nothing is begun when the session is `stopping`; when it is `orphaned`, what is on ends at once.
        """
        if self._open and self._valve is not None:
            self._watch(self._valve, stopping, orphaned)
        for device in self._devices.values():
            for outcome in device.poll():
                if outcome.request.what == "reward":
                    self._open = False
                self._finished(outcome)
        if self._rewards and not self._open and self._valve is not None and self._allowance is not None:
            self._reward_next(*self._rewards.popleft(), self._valve, self._allowance, stopping)
        self._say_refused()

    def close(self) -> None:
        """Say what was kept to be said with more of its kind; call it when nothing is done any more."""
        self._say_refused(everything=True)

    def _reward_next(self, job: Job, asked_ns: int, valve: Valve, allowance: Allowance, stopping: bool) -> None:
        if stopping:
            self._refuse(job.request, "the session has ended")
            return
        now = self._clock.now_ns()
        if now - asked_ns > TOO_LATE_NS:
            self._refuse(job.request, f"it would come {(now - asked_ns) * 1e-9:.1f} s after it was asked for")
            return
        limit, why = allowance.refusal(job.length_ns * 1e-9, now)
        if limit:
            self._answer(Outcome(job.request, False, f"refused: {why}"))
            self._refusals.add(limit, f"{job.request.output}, {job.request.request}: {why}", now)
            return
        if not self._others.meet():  # somebody was killed and is not back: it waits, until it would be too late
            self._rewards.appendleft((job, asked_ns))
            return
        self._open = True
        valve.begin(job)

    def _say_refused(self, everything: bool = False) -> None:
        for fault in self._refusals.due(self._clock.now_ns(), everything):
            self._line.send(fault)

    def _watch(self, valve: Valve, stopping: bool, orphaned: bool) -> None:
        if orphaned:
            valve.cut("the supervisor is gone")
            return
        now = self._clock.now_ns()
        if stopping or now - self._look_ns < LOOK_NS:
            return
        self._look_ns = now
        missing = self._others.missing()
        if missing is not None:
            valve.cut(f"process {missing} of the session does not run any more")

    def _refuse(self, request: OutputRequest, why: str) -> None:
        self._finished(Outcome(request, False, f"refused: {why}"))

    def _finished(self, outcome: Outcome) -> None:
        """Count and say what became of a request; what was not done as asked is a fault as well."""
        self._answer(outcome)
        request, reward = outcome.request, outcome.request.what == "reward"
        if not outcome.done:
            what = "reward not as asked" if reward else "output failed"
            done = "it is not tried again"
            detail = f"{request.output}, {request.request}: {outcome.reason}"
            self._line.send(Fault(what=what, detail=detail, done=done))
        elif reward and outcome.started_host_ns is not None:
            for marks in self._marks:
                marks.mark(f"reward request={request.request} open_s={outcome.open_s:.6f}", outcome.started_host_ns)

    def _answer(self, outcome: Outcome) -> None:
        """Count what was given and say what became of a request."""
        request = outcome.request
        volume: float | None = None
        if request.what == "reward" and self._allowance is not None and outcome.open_s > 0:
            volume = self._allowance.volume_ul(outcome.open_s)
            self._allowance.given(outcome.open_s, outcome.started_host_ns or self._clock.now_ns())
        reward = request.what == "reward"
        self._line.send(
            OutputDone(
                request=request.request,
                output=request.output,
                what=request.what,
                done=outcome.done,
                reason=outcome.reason,
                started_host_ns=outcome.started_host_ns,
                confirmed_host_ns=outcome.confirmed_host_ns,
                duration_s=outcome.open_s if reward and outcome.measured else None,
                timed_by=outcome.timed_by,
                volume_ul=volume,
                session_volume_ul=self._allowance.session_ul if reward and self._allowance is not None else None,
            )
        )
