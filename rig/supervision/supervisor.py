"""The supervisor: starts all children of a session, restarts those that die, and ends them in order.

It touches no data. Before the session has begun, a child that cannot start ends it with its reason and its cure. Later
a child that dies, or stands still for longer than it may, is killed, reaped and started again; the recorder writes
that into the log. One that dies too often, Ctrl-C and SIGTERM end the session in order: the rig finishes its image, the
last responses come in, then every file is closed.
"""

import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from rig.clock import Clock
from rig.config.session import Config
from rig.messages import Fault
from rig.recording.journal import last_whole_seq, read_all
from rig.supervision.liveness import Pulses
from rig.supervision.picture import Picture
from rig.supervision.post import Post
from rig.supervision.processes import POLL_S, Child, SessionFailed
from rig.supervision.restarts import Restarts
from rig.supervision.run_number import ZERO, run_zero
from rig.supervision.session_lock import SessionLock
from rig.supervision.starting import READY_S, busy_now, cure
from rig.timing import drain_s

STOP_S = 8.0
RIG_FLUSH_S = 20.0
RECORDER_STOP_S = 60.0  # it may fall now, and its successor reads the journal before it can close it
VIEW_STOP_S = 600.0  # one that had to begin again reads the whole journal; one that stands still is found earlier
LEFT_S = 5.0  # what killed children had started ends by itself, or is killed, well within this
MODEL_READY = "model server ready"  # what the recorder notes of one on another computer
STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}


class Supervisor:
    """Runs the children of one session."""

    def __init__(
        self,
        folder: Path,
        config: Config,
        simulated: bool,
        clock: Clock,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Run the session whose folder holds `config.yaml`; `simulated`: against the simulated animal.

        `tell` is given one line for the user whenever a child was restarted.
        """
        self._folder, self._config, self._simulated, self._clock, self._tell = folder, config, simulated, clock, tell
        self._pulses = Pulses(6 + len(config.sources))
        self._run_zero = run_zero(folder / "session.journal", clock)
        self._posts: dict[str, Post] = {}
        self._reason = ""  # why the session ends, where that is not the rig's own affair
        self._stop_signals = 0
        self._started = self._ending = False
        self._failures: list[str] = []
        self._lock: SessionLock | None = None
        self._said_to_rig: tuple[Child | None, str] = (None, "")
        self._words: dict[int, str] = {}  # what the recorder is to journal, and has not yet
        self._numbered = 0
        self._heard_by: tuple[Child | None, set[int]] = (None, set())
        self.endpoint: str | None = None  # of the recorder, None before it is ready
        (folder / "logs").mkdir(exist_ok=True)

    # --- start --------------------------------------------------------------------------------------------------------

    def run(self, watch: Callable[[], None]) -> str:
        """Run the session to its end; a thread calls `watch()` about 20 times a second. Returns why it ended.

        Raises SessionFailed, after everything has been closed in order, when a child could not start or go on, or when
        another process runs this session; what `watch` raised last is raised in the end as well.
        """
        self._lock = SessionLock(self._folder)
        before = {s: signal.signal(s, self._signal) for s in STOP_SIGNALS}
        picture = Picture(watch, self._tell)
        self._tell = picture.tell
        try:
            self._start_all()
            picture.watching = True
            reason = self._until_end()
        finally:
            self._ending = picture.watching = True
            try:
                self._end_all()
            finally:
                for post in self._posts.values():
                    post.finish()
                self._clear()
                picture.close()
                self._pulses.close()
                self._lock.close()
                for s, handler in before.items():
                    signal.signal(s, handler)
        if self._failures:
            raise SessionFailed("\n".join(self._failures))
        if picture.error is not None:
            raise picture.error
        return reason

    def _start_all(self) -> None:
        longest = self._config.processes.longest_busy_s
        simulated = ["--simulated"] * self._simulated
        recorder = self._add("recorder", longest.recorder, "rig.recording.recorder", *simulated)
        self._wait()
        assert recorder.child is not None and recorder.child.ready is not None  # noqa: S101, PT018 - just waited for
        self.endpoint = str(recorder.child.ready["endpoint"])
        endpoint = ("--endpoint", self.endpoint)
        recorder.arguments += endpoint  # a restarted one is found where the first one was
        display = "rig.display.session" if self._config.guest is None else "rig.display.guest"
        self._add("rig", longest.rig, display, *endpoint)
        if self._config.processes.model_server is None:
            self._add("model", longest.model, "models", *endpoint)
        if self._config.outputs:
            self._add("outputs", longest.outputs, "rig.outputs", *endpoint)
        for source in self._config.sources:
            self._add(source.name, longest.source, "rig.sources", *endpoint, "--name", source.name)
        self._add("view", longest.view, "rig.view.h5")
        self._wait()
        if (server := self._config.processes.model_server) is not None:
            self._tell(f"waiting for the model server on {server.bind} (stimloop model, docs/remote.md)")
            self._wait(lambda: MODEL_READY in self._recorder_notes())
        self._started = True

    def _recorder_notes(self) -> set[str]:
        child = self._posts["recorder"].child
        return set() if child is None else child.notes

    def _add(self, name: str, longest_s: float, module: str, *extra: str) -> Post:
        arguments = ["-m", module, "--folder", str(self._folder), *extra]
        restarts = Restarts(self._config.processes.restarts_per_minute)
        log = self._folder / "logs" / f"{name}.log"
        slot, environment = len(self._posts), {ZERO: str(self._run_zero)}
        post = Post(name, arguments, log, longest_s, restarts, self._pulses, slot, self._clock, environment)
        self._posts[name] = post
        self._fill(post)
        return post

    def _fill(self, post: Post) -> None:
        """Start a child, and name it where whoever resumes the session after our death finds it."""
        post.fill()
        assert self._lock is not None  # noqa: S101 - taken before anything is started
        self._lock.write([(p.name, p.child) for p in self._posts.values() if p.child is not None])

    def _wait(self, more: Callable[[], bool] = lambda: True) -> None:
        """Wait until all children are ready and `more()`; raises SessionFailed for one that cannot start."""
        patience_ns = self._clock.now_ns() + int(READY_S * 1e9)
        while True:
            for post in self._posts.values():
                now = self._clock.now_ns()
                if (why := post.look(now)) and post.child is not None:
                    self._fell_at_start(post, post.child, why, now)
                elif post.child is None and post.free(now):
                    self._fill(post)
            if self._stop_signals:
                raise SessionFailed("stopped before all processes were ready")
            if all(post.ready for post in self._posts.values()) and more():
                return
            if self._clock.now_ns() > patience_ns and (late := [p.name for p in self._posts.values() if not p.ready]):
                patience_ns += int(READY_S * 1e9)
                self._tell(f"still waiting for {', '.join(late)}" + (f"; {crowd}" if (crowd := busy_now()) else ""))
            self._nap()

    def _fell_at_start(self, post: Post, child: Child, why: str, now_ns: int) -> None:
        """Start a child again that was killed, or stood still after it was ready; raises SessionFailed for any other.

        What a child says itself, or one that never comes up, is a reason and no accident: whoever waits hears it at
        once. In a session that goes on the others take a while, and meanwhile one may be struck.
        """
        struck = child.exit_code == -signal.SIGKILL or (child.exit_code is None and child.ready is not None)
        due_ns = post.restarts.died(now_ns) if struck and child.failed is None else None
        if due_ns is None or not post.vacate(now_ns, due_ns):
            ended = child.exit_code is not None or child.failed is not None
            raise SessionFailed(child.why() if ended else f"{post.name} {why}\n  cure: {cure(post.log, busy_now())}")
        done = "killed, reaped and started again before the first trial"
        self._journal_fault("process restarted", f"{post.name} {why}", done, post.since_ns)
        self._tell(f"{post.name} {why}: {done}")

    def _nap(self) -> None:
        self._clock.sleep_until_ns(self._clock.now_ns() + int(POLL_S * 1e9))

    def _signal(self, number: int, frame: FrameType | None) -> None:
        self._stop_signals += 1

    # --- while it runs ------------------------------------------------------------------------------------------------

    def _until_end(self) -> str:
        rig = self._posts["rig"]
        while True:
            self._tend()
            if self._stop_signals:
                return "stopped by the user"
            if self._failures and self._reason:
                raise SessionFailed(self._failures.pop())
            if rig.over:
                return "complete"
            self._nap()

    def _tend(self) -> None:
        """Look at every child; fill the posts that are free; pass on what is to be said."""
        for post in self._posts.values():
            now = self._clock.now_ns()
            if post.over:
                continue
            if post.child is not None:
                while post.child.tells:
                    self._tell(f"{post.name}: {post.child.tells.pop(0)}")
                if why := post.look(now):
                    self._fell(post, why, now)
            elif post.free(now):
                self._fill(post)
            if post.stopping and post.ready:
                post.stop(self._reason)  # said again to one that came back meanwhile
        self._say_go()
        self._pass_on()

    def _say_go(self) -> None:
        """Tell the rig whether trials may begin: once all are ready, and not while a device's source is away."""
        rig = self._posts["rig"].child
        there = self._started and all(self._posts[s.name].ready for s in self._config.sources)
        said = (rig, "go" if there else "hold")
        if rig is not None and not self._ending and said != self._said_to_rig:
            rig.say(said[1])
            self._said_to_rig = said

    def _fell(self, post: Post, why: str, now_ns: int) -> None:
        """Decide what the death, or the stand-still, of a child means."""
        child = post.child
        assert child is not None  # noqa: S101 - the caller looked
        if child.exit_code == 0 and (post.stopping or post.name == "rig"):
            post.finish()
            return
        if post.stopping and not self._owes_a_file(post):
            self._journal_fault("process ended badly", f"{post.name} {why} while it ended", "nothing", post.since_ns)
            post.finish()
            return
        since_ns, final = post.since_ns, post.name in ("rig", "recorder") and child.failed is not None
        due_ns = None if final else post.restarts.died(now_ns)
        if not post.vacate(now_ns, due_ns or 0):
            why, due_ns, final = f"{why}; it {child.how_ended()}", None, True
        if due_ns is None:
            self._give_up(post, child, why, final)
            return
        wait_s = (due_ns - now_ns) * 1e-9
        done = "killed, reaped and started again" + (f" after {wait_s:.1f} s" if wait_s else " at once")
        if post.name in {s.name for s in self._config.sources}:
            done += "; no trial begins before its device is heard again"
        detail = f"{post.name} {why}"
        detail += f" ({post.restarts.lately} times within a minute)" if post.restarts.lately > 1 else ""
        self._journal_fault("process restarted", detail, done, since_ns)
        self._tell(f"{detail}: {done}")

    def _give_up(self, post: Post, child: Child, why: str, final: bool) -> None:
        """End the session, or go on without the view, which can be made again from the journal."""
        post.over = True
        reason = child.why() if child.failed is not None or child.exit_code is not None else f"{post.name} {why}"
        if not final:
            often = f"{post.name} was restarted {post.restarts.lately - 1} times within a minute, and then: "
            reason = often + reason
        self._failures.append(reason)
        if post.name == "view":
            done = "not started again; stimloop recover makes session.h5 from the journal"
            self._journal_fault("view given up", f"view {why}", done, post.since_ns)
            self._tell(f"view {why}: {done}")
        else:
            self._reason = reason.split("\n")[0]

    def _owes_a_file(self, post: Post) -> bool:
        """Whether a child that died while it ended must come back: its file is not closed yet."""
        if post.name == "view":
            return not (self._folder / "session.h5").exists() or (self._folder / "session.h5.part").exists()
        return post.name == "recorder" and not self._closed()

    def _closed(self) -> bool:
        """Whether the journal was closed in order by a recorder that was then killed before it had ended."""
        journal = self._folder / "session.journal"
        stops = read_all(journal, frozenset({"session_stop"}))
        return bool(stops) and stops[-1].envelope.seq == last_whole_seq(journal)

    # --- what the supervisor itself has to say ------------------------------------------------------------------------

    def _journal_fault(self, what: str, detail: str, done: str, since_ns: int) -> None:
        """Have the recorder journal a fault: the supervisor is no peer of the bus."""
        self._numbered += 1
        self._words[self._numbered] = Fault(
            what=what, detail=detail, done=done, since_host_ns=since_ns
        ).model_dump_json()

    def _pass_on(self) -> None:
        """Give the recorder what it has not journalled yet; to one that came back, all of it again."""
        recorder = self._posts["recorder"].child
        if recorder is None or recorder.ready is None:
            return
        if self._heard_by[0] is not recorder:
            self._heard_by = (recorder, set())
        for number in recorder.journalled:
            self._words.pop(number, None)
        for number, text in self._words.items():
            if number not in self._heard_by[1]:
                self._heard_by[1].add(number)
                recorder.say(f"journal {number} {text}")

    # --- the end ------------------------------------------------------------------------------------------------------

    def _end_all(self) -> None:
        """End the children in the order that loses nothing; those that are still needed are restarted meanwhile."""
        posts = self._posts
        if not self._started:  # nothing was shown: no order to keep, and the user waits for the reason
            for post in posts.values():
                post.stop()
        if "rig" in posts:
            rhythm = self._config.presentation
            # It finishes the image on the screen, and waits for a recorder that is being restarted.
            self._end({"rig"}, STOP_S + RIG_FLUSH_S * self._started + rhythm.on_s + rhythm.off_s)
            recorder = posts["recorder"]
            if self._started:
                self._until(lambda: recorder.over or _drained(recorder), drain_s(self._config))
        self._end(set(posts) - {"rig", "recorder", "view"}, STOP_S)
        starting_s = READY_S * (not posts["recorder"].ready)
        self._end({"recorder"} & set(posts), RECORDER_STOP_S if self._started else STOP_S + starting_s)
        self._end({"view"} & set(posts), VIEW_STOP_S)

    def _end(self, names: set[str], timeout_s: float) -> None:
        """Tell the children of these posts to end, wait for them, and kill those that do not."""
        posts = [self._posts[name] for name in names if not self._posts[name].over]
        for post in posts:
            post.stop(self._reason)
            if post.child is None and not self._owes_a_file(post):
                post.over = True  # it was about to be started again, for nothing now
        self._until(lambda: all(post.over for post in posts), timeout_s)
        for post in posts:
            if not post.over and not post.finish() and post.last is not None:
                if post.name in ("recorder", "view") or not self._started:
                    self._failures.append(post.last.why())

    def _until(self, done: Callable[[], bool], timeout_s: float) -> None:
        """Tend the children until `done()` or the time is over."""
        end_ns = self._clock.now_ns() + int(timeout_s * 1e9)
        while not done() and self._clock.now_ns() < end_ns:
            if self._started:
                self._tend()
            else:
                self._reap()
            self._nap()

    def _reap(self) -> None:
        """Take note of who has ended, where the session did not begin."""
        for post in self._posts.values():
            if post.child is not None and post.child.exit_code is not None:
                post.finish()

    def _clear(self) -> None:
        """See to it that nothing which the children had started outlives the session."""
        end_ns = self._clock.now_ns() + int(LEFT_S * 1e9)
        while not all([post.deserted(self._clock.now_ns()) for post in self._posts.values()]):  # noqa: C419 - each one
            if self._clock.now_ns() > end_ns:
                return
            self._nap()


def _drained(recorder: Post) -> bool:
    return recorder.child is not None and "drained" in recorder.child.notes
