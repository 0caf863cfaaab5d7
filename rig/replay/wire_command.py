"""What `stimloop replay SESSION --wire` prints and how it ends; the work is done in `rig.replay.wire`."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from rig.clock import HostClock
from rig.replay.records import ReplayError
from rig.replay.wire import WireResult, replay_over_wire
from rig.supervision.processes import SessionFailed

FASTEST = 20.0  # times; faster than that processes cannot keep the order of real time: --speed max does not try to
MOST_LINES = 20


def parse_speed(text: str) -> float:
    """Return the speed that a user wrote: a number of times, or 0 for max. Raises ReplayError."""
    if text == "max":
        return 0.0
    try:
        speed = float(text.removesuffix("x"))
    except ValueError as error:
        raise ReplayError(f"--speed {text!r} is no speed; give 1, 4, 0.5 or max") from error
    if not 0.1 <= speed <= FASTEST:
        raise ReplayError(f"--speed {text}: give 0.1 to {FASTEST:g} times, or max")
    return speed


def replay_wire(folder: Path, out: Path | None, speed: str, console: Console, errors: Console) -> tuple[bool, Path]:
    """Replay over the wire and say what was found; return whether all agrees and the new folder. Raises ReplayError."""
    target = out or _free(folder)
    times = parse_speed(speed)

    def say(line: str) -> None:
        errors.print(f"[yellow]differs[/] {line}", highlight=False, soft_wrap=True)

    how = f"{times:g} x" if times else "as fast as every process follows"
    console.print(f"replaying {folder} over the wire into {target}, {how} ...", highlight=False, soft_wrap=True)
    try:
        result = replay_over_wire(folder, target, times, HostClock(), say)
    except SessionFailed as error:
        raise ReplayError(str(error)) from error
    _print(result, console, errors)
    return result.agrees, result.folder


def _free(folder: Path) -> Path:
    name = folder.resolve().name
    for k in range(1, 1000):
        target = folder.resolve().parent / (f"{name}-wire" + (f"-{k}" if k > 1 else ""))
        if not target.exists():
            return target
    raise ReplayError(f"{folder.parent} already holds 999 replays of {name}; give a folder with --out")


def _print(result: WireResult, console: Console, errors: Console) -> None:
    found = result.responses
    table = Table("", "number", box=None)
    for kind, n in sorted(result.decisions.items()):
        table.add_row(f"{kind} identical", str(n))
    table.add_row("response identical", str(found.identical))
    table.add_row("response by a photodiode's edge", str(found.by_edge))
    table.add_row("response different, within its onset's stated bound", str(found.flip_within))
    table.add_row("response different in its baseline, which pools those", str(found.pooled))
    table.add_row("response different otherwise", str(len(found.unexplained)))
    if found.restarts:
        table.add_row("response not usable in either, for another reason", str(found.restarts))
    if found.cut_off:
        table.add_row("response not compared: one of the sessions ended before its data", str(found.cut_off))
    console.print(table)
    if found.restarts:
        console.print(
            "another reason: the recording's source was started again, which is replayed as a new acquisition of the "
            "device; what touches that is missing in both and counted in neither",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    lines = [*result.different, *result.missing, *found.unexplained]
    for line in lines[:MOST_LINES]:
        errors.print(line, highlight=False, soft_wrap=True)
    if len(lines) > MOST_LINES:
        errors.print(f"and {len(lines) - MOST_LINES} more")
    if result.faults:
        console.print(f"faults that the recording has not: {'; '.join(result.faults)}", highlight=False, soft_wrap=True)
    speed = result.recorded_s / result.real_s
    console.print(
        f"{result.recorded_s:.1f} s of recording in {result.real_s:.1f} s, start and end of the processes included "
        f"({speed:.1f} x); the clock waited {result.held_s:.2f} s for proposals; "
        f"log {result.folder / 'session.journal'}",
        highlight=False,
        soft_wrap=True,
    )
