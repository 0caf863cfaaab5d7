"""The recorder in its process: its loop, its disk, and the supervisor at the other end of the pipes.

Called by `rig.recording.recorder`; it knows no document but the supervisor's faults.
"""

from contextlib import suppress
from typing import TYPE_CHECKING

from rig.clock import Clock
from rig.config.session import Config
from rig.links.bus import Hub
from rig.links.keys import ServerKeys
from rig.messages import Fault
from rig.recording.journal import JournalError
from rig.recording.storage import Disk
from rig.supervision.child import Stop, say
from rig.timing import drain_s

if TYPE_CHECKING:
    from rig.recording.recorder import Recorder

LAST_WORDS_NS = 300_000_000
BIND_NS = 4_000_000_000


def bound(endpoint: str, remote: tuple[str, ServerKeys] | None, clock: Clock) -> Hub:
    """Bind the recorder's sockets; a restarted recorder waits until its dead predecessor's port is free."""
    end_ns = clock.now_ns() + BIND_NS
    while True:
        try:
            return Hub(endpoint, remote)
        except OSError:
            if clock.now_ns() > end_ns:
                raise
            clock.sleep_until_ns(clock.now_ns() + BIND_NS // 20)


class Service:
    """Runs a recorder until its session ends."""

    def __init__(self, recorder: "Recorder", config: Config, clock: Clock, stop: Stop) -> None:
        """Serve with `recorder`; the process said ready."""
        self._recorder, self._clock, self._stop = recorder, clock, stop
        self._drain_ns = int(drain_s(config) * 1e9)
        self._reserve_bytes = config.storage.reserve_bytes
        self._disk = Disk(recorder.journal, clock)
        self._said_drained, self._said_model, self._said_full = False, False, ""
        self._told: list[int] = []  # what the supervisor has to say and is not in the journal yet

    def run(self) -> int:
        """Serve until told to stop, then until everything is accounted for. Raises JournalError."""
        recorder, clock, stop = self._recorder, self._clock, self._stop
        try:
            while not stop:
                self._step()
            # What peers sent last is still on its way; without a supervisor also the responses to the last images.
            if stop.orphaned:
                detail = "stimloop run ended without a word: it was killed, or its terminal or computer was"
                done = "the screen goes grey, the last responses are taken, the journal is closed; run --resume goes on"
                recorder.submit(Fault(what="the supervisor is gone", detail=detail, done=done))
            end_ns = clock.now_ns() + (self._drain_ns if stop.orphaned else LAST_WORDS_NS)
            least_ns = clock.now_ns() + LAST_WORDS_NS
            while clock.now_ns() < end_ns and not (recorder.drained and clock.now_ns() > least_ns):
                stop.pulse.beat()
                self._step()
        except JournalError:
            self._disk.end()
            with suppress(JournalError):  # of a disk that fails, what it said first is the reason
                recorder.abandon()
            raise
        self._disk.end()
        reason = recorder.stop_requested or "stopped"
        recorder.close("the supervisor is gone" if stop.orphaned else stop.reason or reason)
        return 0

    def _step(self) -> None:
        recorder = self._recorder
        recorder.step(0.02)
        free = self._disk.look()
        if free is not None:
            recorder.watch_room(free)
            self._save(free)
        self._say()
        if recorder.full:
            return
        for number, text in self._stop.told():
            recorder.submit(Fault.model_validate_json(text))
            self._told.append(number)
        while self._told and not recorder.full:
            say(journalled=self._told.pop(0))

    def _save(self, free: int) -> None:
        """Take a snapshot of the fold if one is due; `free` bytes are free, and the journal goes first."""
        recorder, now, snapshots = self._recorder, self._clock.now_ns(), self._recorder.snapshots
        if why := snapshots.failure():
            done = "none: a recorder that is killed will fold more of the journal again"
            recorder.submit(Fault(what="snapshot not written", detail=why, done=done))
        due = snapshots.due(now) and free >= self._reserve_bytes // 2
        if due and (stand := recorder.stand()) is not None:
            snapshots.keep(*stand, now)

    def _say(self) -> None:
        """Tell the supervisor what it waits for, and what the experimenter must know."""
        recorder = self._recorder
        if recorder.full != self._said_full:
            self._said_full = recorder.full
            say(tell=f"the session waits: {recorder.full}" if recorder.full else "the journal takes documents again")
        if not self._said_model and recorder.link is not None and recorder.link.there and recorder.proposals:
            self._said_model = True
            say(note="model server ready")
        if recorder.drained and not self._said_drained:
            self._said_drained = True
            say(note="drained")
