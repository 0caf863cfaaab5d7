"""`stimloop demo`: the whole loop against the simulated animal, and what the animal's truth says about it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from rich.console import Console

from rig.clock import Clock
from rig.compare import Compared, compare, onset_figures
from rig.config.phases import EvolvePhase
from rig.config.session import Config
from rig.display.guest_rig import SAID_BYE
from rig.display.virtual import virtual_screen
from rig.messages import StopRequested
from rig.recording.journal import read_all
from rig.supervision.runs import new_folder, run_session, simulated_animal


@contextmanager
def any_screen(config: Config) -> Iterator[str]:
    """Use the screen of DISPLAY where there is one, else a private virtual screen. Raises NoScreen."""
    given = os.environ.get("DISPLAY")
    private = not given and os.name != "nt"
    size_px = config.display.size_px
    with virtual_screen(size_px) if private else nullcontext(given) as display:
        yield display or ""


def simulated_session(
    config: Config, text: str, sessions: Path, clock: Clock, console: Console
) -> tuple[Path, Compared]:
    """Run one session with the simulated animal; return its folder and the comparison with the truth."""
    with any_screen(config) as display:
        folder = new_folder(sessions, config.name, text, clock)
        console.print(f"session {folder}, screen {display}; the animal is [bold]simulated[/]", highlight=False)
        with simulated_animal(folder, clock) as truth:
            run_session(folder, config, True, clock, console)
    return folder, compare(folder, truth)


def run_demo(config: Config, text: str, sessions: Path, clock: Clock, console: Console) -> tuple[Path, bool]:
    """Run the demo; print what the truth says; return the session folder and whether the goals were reached."""
    folder, compared = simulated_session(config, text, sessions, clock, console)
    figures = onset_figures(compared)
    names = ("presentations", "accounted_for", "usable")
    console.print(", ".join(f"{figures[name]} {name.replace('_', ' ')}" for name in names))
    ok = 0 < figures["presentations"] == figures["accounted_for"]
    if config.guest is not None and (reason := _why_ended(folder)).startswith(SAID_BYE):
        # The guest decides how long it goes on: what the phases had as their goals was not to be reached.
        console.print(f"{reason}; the goals of the config are not judged", highlight=False, soft_wrap=True)
        _say_files(folder, console)
        return folder, figures["presentations"] == figures["accounted_for"]
    for k, phase in enumerate(config.phases):
        if isinstance(phase, EvolvePhase) and phase.unit is None:
            console.print(f"phase {k + 1}: its goals are judged for a single unit only; see the report")
        elif isinstance(phase, EvolvePhase):
            ok &= _evolution(compared, phase, k, console)
    _say_files(folder, console)
    return folder, ok


def _why_ended(folder: Path) -> str:
    entries = read_all(folder / "session.journal", frozenset({"stop_requested"}))
    return next((e.document.reason for e in entries if isinstance(e.document, StopRequested)), "")


def _say_files(folder: Path, console: Console) -> None:
    console.print(f"log     {folder / 'session.journal'}\ndata    {folder / 'session.h5'}", soft_wrap=True)


def _evolution(compared: Compared, phase: EvolvePhase, number: int, console: Console) -> bool:
    assert phase.unit is not None  # noqa: S101 - seen by the caller
    generations = compared.generations(number)
    if phase.unit not in compared.units or not generations:
        known = ", ".join(compared.units)
        console.print(f"phase {number + 1}: {phase.unit} has no truth here; the animal's units are {known}")
        return False
    first_hz = compared.mean_rate(phase.unit, "candidate", number, generations[0])
    last_hz = compared.mean_rate(phase.unit, "candidate", number, generations[-1])
    blank_hz = compared.mean_rate(phase.unit, "blank", number)
    name, best_hz = compared.best_image(phase.unit, "reference", number)
    console.print(
        f"true (noise-free) response of {phase.unit}: mean of generation {generations[0] + 1} {first_hz:.1f}, of "
        f"generation {generations[-1] + 1} {last_hz:.1f} spikes/s ({last_hz / first_hz:.2f}x); truly best of the "
        f"references {name} {best_hz:.1f}; blank screen {blank_hz:.1f} (spontaneous rate included)",
        highlight=False,
        soft_wrap=True,
    )
    return last_hz >= 2 * first_hz and last_hz > best_hz
