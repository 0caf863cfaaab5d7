"""What a session file must say about the program, the machine and each process start."""

import hashlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rig.clock import REPLAY_VARIABLE, Clock, replayed
from rig.config.session import Config
from rig.links.witness import VARIABLE
from rig.messages import (
    Origin,
    ProcessStarted,
    SessionStart,
)
from rig.supervision.child import boot_id

LIBRARIES = (
    "stimloop", "psychopy", "torch", "numpy", "scipy", "pyzmq", "pylsl", "h5py", "pydantic", "mss", "scikit-image",
    "scikit-learn", "onnxruntime",
)  # fmt: skip

REPLAY_OF = "replay_of.json"  # in the folder of a session that is fed with the traffic of a recorded one

HERE = Path(__file__).parent.parent
# Whatever decides what the model server's fold makes of the log.
DECIDING = (
    "models/**/*.py", "stimuli/**/*.py", "rig/shown_again.py", "rig/messages.py", "rig/documents/*.py",
    "rig/config/*.py",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Return versions of Python, the program and its libraries ("absent" where not installed)."""
    out = {"python": platform.python_version(), "platform": platform.platform()}
    for name in LIBRARIES:
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            out[name] = "absent"
    return out


def program_identity(deciding: tuple[str, ...] = DECIDING) -> str:
    """Return a hash over program text: by default over what decides what the model server's fold makes of a log."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in deciding for path in HERE.glob(pattern)):
        digest.update(f"{path.relative_to(HERE).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def program() -> str:
    """Return version and identity of this program: what both ends of a link between computers must share."""
    try:
        number = version("stimloop")
    except PackageNotFoundError:
        number = "not installed"
    return f"{number} ({program_identity()[:12]})"


def commit() -> tuple[str | None, bool | None]:
    """Return (git commit, whether the checkout had local changes), or (None, None) outside a checkout."""
    here = Path(__file__).parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, timeout=5)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "HEAD")
    status = git("status", "--porcelain") if head is not None else None
    return head, None if status is None else bool(status)


def session_start(folder: Path, config: Config, text: str, simulated: bool, clock: Clock) -> SessionStart:
    """Return the first document of a session; of a replay if its folder says so."""
    head, dirty = commit()
    recorded = folder / REPLAY_OF
    return SessionStart(
        session=folder.name,
        simulated=simulated,
        config_yaml=text,
        config=config.model_dump(mode="json"),
        versions=versions(),
        commit=head,
        dirty=dirty,
        start_host_ns=clock.now_ns(),
        start_utc_ns=clock.utc_ns(),
        replay_of=Origin.model_validate_json(recorded.read_bytes()) if recorded.exists() else None,
    )


def process_started(name: str, clock: Clock, notes: dict[str, str]) -> ProcessStarted:
    """Return the first document of a process."""
    if replayed() is not None:
        notes = notes | {"clock": f"of a replay ({os.environ[REPLAY_VARIABLE]})"}
    return ProcessStarted(
        name=name,
        pid=os.getpid(),
        boot_id=boot_id(),
        start_host_ns=clock.now_ns(),
        start_utc_ns=clock.utc_ns(),
        notes=notes | ({} if (folder := os.environ.get(VARIABLE)) is None else {"witness": folder}),
    )
