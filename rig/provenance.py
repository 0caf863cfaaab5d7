"""What a session file must say about the program, the machine and each process start."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rig.child import boot_id
from rig.clock import Clock
from rig.config import Config
from rig.messages import (
    ProcessStarted,
    SessionStart,
)

LIBRARIES = (
    "stimloop", "psychopy", "torch", "numpy", "scipy", "pyzmq", "pylsl", "h5py", "pydantic", "mss", "scikit-image",
    "scikit-learn",
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
    """Return the first document of a session."""
    head, dirty = commit()
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
    )


def process_started(name: str, clock: Clock, notes: dict[str, str]) -> ProcessStarted:
    """Return the first document of a process."""
    return ProcessStarted(
        name=name,
        pid=os.getpid(),
        boot_id=boot_id(),
        start_host_ns=clock.now_ns(),
        start_utc_ns=clock.utc_ns(),
        notes=notes,
    )
