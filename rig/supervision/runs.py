"""Starting and following a session from a terminal; used by `stimloop run`, the demo and the benches."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.live import Live

from rig.clock import Clock
from rig.config.session import Config
from rig.failed_phases import FailedPhases
from rig.progress import JournalTail, Progress
from rig.supervision.processes import Child, SessionFailed, wait_ready
from rig.supervision.supervisor import Supervisor


def new_folder(sessions: Path, name: str, config_text: str, clock: Clock) -> Path:
    """Make `sessions/<date>-<name>` (with -2, -3 ... if it is taken) with the config in it. Raises OSError."""
    today = datetime.fromtimestamp(clock.utc_ns() / 1e9).astimezone().date()
    for k in range(1, 1000):
        folder = sessions / (f"{today.isoformat()}-{name}" + (f"-{k}" if k > 1 else ""))
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        (folder / "config.yaml").write_text(config_text, encoding="utf-8")
        return folder
    raise OSError(f"{sessions} already holds 999 sessions named {name} of today; choose another name in the config")


def run_session(folder: Path, config: Config, simulated: bool, clock: Clock, console: Console) -> str:
    """Run the session of `folder` to its end, showing its progress; return why it ended. Raises SessionFailed.

    `simulated` goes into the log: whether the simulated animal is what is recorded.
    """
    progress, tail, failed = Progress(config), JournalTail(folder / "session.journal"), FailedPhases()
    live = Live(console=console, refresh_per_second=4) if console.is_terminal else None
    printed = ""

    def watch() -> None:
        nonlocal printed
        entries = tail.read()
        for entry in entries:
            progress.apply(entry)
            failed.take(entry.document)
        if not entries:
            return
        if live is not None:
            live.update(progress.render())
        elif progress.place != printed:
            printed = progress.place
            console.print(progress.line(), highlight=False, soft_wrap=True)

    def tell(line: str) -> None:
        console.print(line, style="yellow", highlight=False, soft_wrap=True)

    devices = ", ".join(s.name for s in config.sources)
    console.print(f"starting recorder, rig, model, view and {devices} ...", highlight=False, soft_wrap=True)
    try:
        if live is not None:
            live.start()
        return failed.ended(Supervisor(folder, config, simulated, clock, tell).run(watch))
    finally:
        if live is not None:
            live.stop()
        else:
            console.print(progress.line(), highlight=False, soft_wrap=True)
        tail.close()


@contextmanager
def simulated_animal(folder: Path, clock: Clock) -> Iterator[Path]:
    """Run `stimloop animal` with the folder's config beside the session; yields its truth folder.

    Raises SessionFailed with its reason if it cannot start or did not last.
    """
    taken = sum(1 for _ in folder.parent.glob(f"{folder.name}-truth*"))  # more than none where a session is resumed
    truth = folder.parent / (f"{folder.name}-truth" + (f"-{taken + 1}" if taken else ""))
    (folder / "logs").mkdir(exist_ok=True)
    arguments = ["-m", "rig.cli", "animal", str(folder / "config.yaml"), "--truth", str(truth)]
    animal = Child("animal", arguments, folder / "logs" / "animal.log")
    try:
        wait_ready([animal], clock)
        yield truth
        if animal.exit_code is not None:
            raise SessionFailed(animal.why())
    finally:
        animal.end(10.0)
