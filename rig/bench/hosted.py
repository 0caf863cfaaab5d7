"""A session whose supervisor is a process of its own, so that a bench can look at it and its children from outside.

`python -m rig.bench.hosted FOLDER` is that process: it runs the session of the folder (its config.yaml) to its end.
With `--resume` it goes on with one whose supervisor died, as `stimloop run --resume` does, but with the animal that
still runs.
"""

import os
import signal
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil
from rich.console import Console

from rig.clock import HostClock
from rig.config.reading import load
from rig.messages import PhaseEnded, SessionStop
from rig.recording.journal import read_all
from rig.supervision.child import fail, say
from rig.supervision.processes import Child, SessionFailed
from rig.supervision.resume import resumable, wait_free
from rig.supervision.runs import run_session

# What a module of `python -m` is called in the figures; any other is called by its last word.
NAMES = {
    "rig.bench.hosted": "supervisor",
    "rig.cli": "animal",
    "rig.display.session": "rig",
    "models": "model",
    "rig.view.h5": "view",
    "rig.sources": "source",
    "rig.sources.openephys_receiver": "receiver",
}


def host(folder: Path, environment: Mapping[str, str] | None = None, again: bool = False) -> Child:
    """Start the supervisor of the session in `folder`, or start it `again` after it died.

    `environment` is added to its own and its children's.
    """
    (folder / "logs").mkdir(exist_ok=True)
    arguments = ["-m", "rig.bench.hosted", str(folder), *(["--resume"] if again else [])]
    return Child("supervisor", arguments, folder / "logs" / "supervisor.log", environment)


def below(pid: int) -> list[psutil.Process]:
    """Return everything that a process has started, directly or not, and that still runs."""
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def name_of(process: psutil.Process) -> str | None:
    """Return what a process of the session is called; None if it is no `python -m` or has just ended."""
    with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        words = process.cmdline()
        if "-m" in words[:-1]:
            module = words[words.index("-m") + 1]
            return NAMES.get(module, module.rpartition(".")[2])
    return None


def end(child: Child) -> list[str]:
    """End what is left of a session, by process ids: the supervisor and whatever it had started; return its names."""
    found = below(child.process.pid) if child.exit_code is None else []
    child.kill()
    left = []
    for process in {p.pid: p for p in [*found, *child.left_behind()]}.values():
        left.append(name_of(process) or f"process {process.pid}")
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(found, timeout=2.0)
    return left


def _over(folder: Path) -> bool:
    """Whether a session came to its end although its supervisor had died."""
    entries = read_all(folder / "session.journal", frozenset({"phase_ended", "session_stop"}))
    ended = any(isinstance(e.document, PhaseEnded) and e.document.last for e in entries)
    return ended and isinstance(entries[-1].document, SessionStop)


def _end_with_the_bench() -> None:
    """End the session in order when the bench is gone, which holds the other end of stdin."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main(folder: Path, again: bool) -> int:
    """Be the supervisor of the session in `folder`; exit code 0 if it came to its end."""
    threading.Thread(target=_end_with_the_bench, name="stdin", daemon=True).start()
    config, _ = load(folder / "config.yaml")
    clock, console = HostClock(), Console(stderr=True)
    try:
        if again:
            wait_free(folder, config, clock, console)
            if _over(folder):
                return 0
            resumable(folder)
        reason = run_session(folder, config, True, clock, console)
    except (SessionFailed, OSError) as error:
        return fail(str(error), f"see {folder / 'logs'}")
    say(note=reason)
    return 0 if reason == "complete" else 3


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), "--resume" in sys.argv))
