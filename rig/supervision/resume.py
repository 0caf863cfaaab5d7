"""`stimloop run --resume SESSION`: a session that was broken off goes on in its own folder and its own journal.

The recorder takes the journal up where it ends, every other process reads from it what was done; nothing is copied and
nothing is decided here but whether it may go on.
"""

from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
from rich.console import Console

from rig.clock import Clock
from rig.config.reading import parse
from rig.config.session import Config
from rig.demo import any_screen
from rig.messages import PhaseEnded, SessionStart
from rig.recording.journal import in_use, read_all
from rig.supervision.processes import KILL_S, SessionFailed
from rig.supervision.runs import run_session, simulated_animal
from rig.supervision.session_lock import SessionLock, Started, still_running
from rig.timing import drain_s

LOOK_NS = 200_000_000
CLOSING_S = 5.0  # beyond what the last responses take


def resumable(folder: Path) -> tuple[Config, bool]:
    """Return the config of a session that may go on, and whether it is simulated.

    Raises SessionFailed with reason and cure where it may not, ConfigError where its config cannot be read any more.
    """
    journal = folder / "session.journal"
    if not journal.exists():
        cure = "give the folder of a session, for example sessions/2026-11-21-demo"
        raise SessionFailed(f"{folder} holds no session.journal\n  cure: {cure}")
    entries = read_all(journal, frozenset({"session_start", "phase_ended"}))
    start = next((e.document for e in entries if isinstance(e.document, SessionStart)), None)
    if start is None:
        raise SessionFailed(f"{journal} does not say which session it is\n  cure: start a new session with its config")
    if any((start.derived_from, start.replay_of, start.cut_from)):
        raise SessionFailed(f"{folder} was made from another session, not recorded\n  cure: resume the one it is from")
    ended = [e.document for e in entries if isinstance(e.document, PhaseEnded) and e.document.last]
    if ended:
        why = f"its last phase ended: {ended[-1].reason}"
        raise SessionFailed(f"{folder} is complete ({why})\n  cure: start a new session: stimloop run CONFIG")
    place = folder / "config.yaml"
    if not place.exists():
        place.write_text(start.config_yaml, encoding="utf-8")
    if place.read_text(encoding="utf-8") != start.config_yaml:
        cure = "put back what `stimloop journal --kind session_start` prints as config_yaml, or start a new session"
        raise SessionFailed(f"{place} was changed since the session began\n  cure: {cure}")
    return parse(start.config_yaml, str(place)), start.simulated


def wait_free(folder: Path, config: Config, clock: Clock, console: Console) -> None:
    """Wait until nothing of the session runs any more and nobody writes its journal; raises SessionFailed.

    After a kill of the supervisor its recorder still takes the last responses and closes the journal by itself. What
    cannot see that the supervisor is gone, or does not end for another reason, is killed.
    """
    lock = SessionLock(folder)
    try:
        journal, end_ns = folder / "session.journal", clock.now_ns() + int((drain_s(config) + CLOSING_S) * 1e9)
        _end_left(lock.left, end_ns, clock, console)
        said = False
        while in_use(journal):
            if not said:
                said = True
                console.print("another process writes this session's journal; waiting for its end", soft_wrap=True)
            if clock.now_ns() > end_ns:
                cure = "end the session that runs in this folder (Ctrl-C in its terminal) first"
                raise SessionFailed(f"{journal} is in use by another process\n  cure: {cure}")
            clock.sleep_until_ns(clock.now_ns() + LOOK_NS)
    finally:
        lock.close()


def _end_left(left: list[Started], end_ns: int, clock: Clock, console: Console) -> None:
    """Wait until `end_ns` for the end of what a dead supervisor had started; kill what is stopped, or still there."""
    said = False
    while found := still_running(left):
        late, killed = clock.now_ns() > end_ns, []
        for name, process in found.values():
            with suppress(psutil.NoSuchProcess):
                if late or process.status() == psutil.STATUS_STOPPED:
                    process.kill()
                    killed.append(process)
                    console.print(f"killed what was left of the session: {name}, process {process.pid}", soft_wrap=True)
        _, held = psutil.wait_procs(killed, KILL_S)
        if held:
            numbers = ", ".join(str(process.pid) for process in held)
            cure = "see which disk or device it waits for, or start the computer again"
            raise SessionFailed(f"the system does not let process {numbers} of this session end\n  cure: {cure}")
        if not (said or killed):
            said = True
            console.print("processes of this session are still ending; waiting for them", soft_wrap=True)
        clock.sleep_until_ns(clock.now_ns() + LOOK_NS)


def resume(folder: Path, clock: Clock, console: Console) -> str:
    """Go on with the session of `folder` to its end; return why it ended. Raises SessionFailed, ConfigError, OSError.

    A simulated session gets a simulated animal again, with a truth folder of its own.
    """
    config, simulated = resumable(folder)
    wait_free(folder, config, clock, console)
    resumable(folder)  # it may have come to its end meanwhile
    with ExitStack() as around:
        if simulated:
            around.enter_context(any_screen(config))
            around.enter_context(simulated_animal(folder, clock))
        console.print(f"session folder [bold]{folder}[/] goes on", soft_wrap=True)
        return run_session(folder, config, simulated, clock, console)
