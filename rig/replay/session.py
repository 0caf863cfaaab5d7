"""Verify a whole session with two cores: its response windows in a process of their own, the rest here.

Called by `stimloop replay --verify` and `stimloop bench replay`.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rig.messages import SessionStart
from rig.provenance import commit, versions
from rig.replay.frames import FramesCheck
from rig.replay.records import Log, Record, ReplayError, session_start
from rig.replay.screen import ScreenCheck
from rig.replay.verdict import Verdict
from rig.replay.verify import Beside, Fold, Part, is_derived, run_parts
from rig.supervision.processes import ONE_THREAD


@dataclass(frozen=True)
class Outcome:
    """What `stimloop replay --verify` has to say of a session."""

    verdict: Verdict
    proposals: int
    """Proposals in the journal."""
    incomplete: tuple[str, ...]
    """What is missing from the log, in words; () for a session that was closed in order."""
    derived: bool
    """Responses were made anew from another session: only they were compared."""
    starts: dict[str, int]
    """Process starts in the journal, by process; more than one where a process was restarted."""
    other_program: str
    """How the program that recorded the session differs from this one, in words; "" where no difference is known."""


class _Counting:
    """Counts what the words of the outcome need."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self.starts: Counter[str] = Counter()

    def take(self, record: Record) -> None:
        self.kinds[record.kind] += 1
        if record.kind == "process_started":
            self.starts[record.envelope.sender] += 1

    def finish(self, closed: bool) -> None:
        """Nothing is owed at the end."""


def verify_session(
    path: Path, make_model: Callable[[SessionStart], Fold], wants: frozenset[str], frames: bool
) -> Outcome:
    """Fold the journal at `path` again and compare; with `frames` also make every frame again.

    `make_model(start)` builds a fresh model fold that takes the kinds in `wants`. Raises ReplayError where nothing can
    be replayed.
    """
    start = session_start(path)
    verdict, counting, log = Verdict(), _Counting(), Log(path)
    derived = is_derived(start)
    parts: list[Part] = [counting, ScreenCheck(verdict)]
    with _windows(path) as windows:
        with ExitStack() as unfinished:
            unfinished.callback(windows.kill)
            if not derived:
                parts.append(Beside("model", make_model(start), wants, verdict))
            if frames:
                parts.append(FramesCheck(start, verdict))
            run_parts(log, parts, log)
            unfinished.pop_all()
        said, _ = windows.communicate()
    found = _read(said, windows.returncode)
    log.unreadable = max(log.unreadable, found[1])
    verdict.add(found[0])
    return Outcome(
        verdict, counting.kinds["proposal"], tuple(log.incomplete()), derived, dict(counting.starts), _program(start)
    )


def _program(start: SessionStart) -> str:
    """Say how the recording program differs from this one: decisions are the same only by the same program."""
    now, then = versions(), start.versions
    parts = [f"{name} {then[name]}, now {now[name]}" for name in now if name in then and then[name] != now[name]]
    head, dirty = commit()
    if start.commit != head:
        parts.insert(0, f"commit {(start.commit or 'unknown')[:12]}, now {(head or 'unknown')[:12]}")
    elif start.dirty or dirty:
        parts.insert(0, "the program's files had local changes")
    return f"recorded with another program: {'; '.join(parts)}" if parts else ""


def _windows(path: Path) -> "subprocess.Popen[bytes]":
    """Start the process that folds the response windows, with the threads that the recorder had."""
    root = str(Path(__file__).parent.parent.parent)
    found = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-m", "rig.replay", str(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**os.environ, **ONE_THREAD, "PYTHONPATH": found},
    )


def _read(said: bytes, code: int) -> tuple[Verdict, int]:
    try:
        values = json.loads(said)
    except ValueError:
        raise ReplayError(f"the process that folds the responses again ended with code {code}; see above") from None
    if "error" in values:
        raise ReplayError(values["error"])
    return Verdict.from_plain(values), int(values["unreadable"])
