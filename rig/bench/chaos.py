"""The figures of `stimloop bench chaos`: sessions whose processes are killed and frozen, and what they lost by it.

Sessions of `rig.bench.chaos_session` follow each other, all of one config and one seed, until enough was struck; one
without any strike is run before, to compare with. What must be true of each is in `rig.bench.chaos_checks`, and that a
fresh process decides the same from the log is asked of `stimloop replay --verify`. docs/chaos.md explains the figures.
"""

import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from rig.animal.truth_log import read as read_truth
from rig.bench import chaos_checks as checks
from rig.bench.chaos_session import CONFIG, PULSE_S, Ran, plan, run
from rig.clock import Clock
from rig.config.reading import parse
from rig.demo import any_screen
from rig.links.witness import read_notes
from rig.messages import Entry, Presented
from rig.recording.journal import read_all
from rig.report.data import open_session
from rig.supervision.processes import SessionFailed

GENERATIONS = 5
STRIKES = 8  # in one session
MOST_SESSIONS_PER_STRIKE = 0.5  # a session that ends before it was struck must not keep the bench going for ever
VERIFY_S = 120.0


@dataclass
class Judged:
    """What the checks say of one session."""

    ran: Ran
    figures: dict[str, Any]
    line_low_ms: list[float] = field(default_factory=list)
    model_back_s: list[float] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)


def judge(ran: Ran, undisturbed: list[Entry] | None) -> Judged:
    """Check one session; `undisturbed` is the log of the one that nothing was done to, None for that one itself."""
    entries = read_all(ran.folder / "session.journal")
    notes, truth = read_notes(ran.witness), read_truth(ran.truth)
    found: dict[str, list[str]] = {}
    ended = f"the session did not end by itself within {ran.seconds:.0f} s" if ran.exit_code is None else ran.said
    found["end"] = [*([ended] if ran.exit_code != 0 else []), *checks.complete(entries)]
    found["end"] += [f"{name} still ran when the session was over" for name in ran.left]
    found["session.h5"] = view(ran.folder, entries)
    found["acknowledged"] = checks.acknowledged(entries, notes)
    found["replay"] = verify(ran.folder)
    slots = checks.slots(entries)
    found["slots"] = list(slots.violations)
    rising = truth.edge_host_ns[truth.edge_state == 1].tolist()
    repeats = checks.repeats(entries, rising, ran.struck)
    _, found["repeats"] = checks.at_most_one_each(repeats, ran.struck)
    if undisturbed is not None:
        found["generations"] = checks.same_generations(entries, undisturbed)
    low_ms, found["reward line"] = checks.line_low(ran.changes, ran.struck)
    found["rewards"] = checks.rewards(entries, ran.changes)
    back_s, found["model back"] = checks.model_back(entries, notes, ran.struck)
    figures = {
        "session": ran.folder.name,
        "strikes": len(ran.struck),
        "kills": sum(s.how == "kill" for s in ran.struck),
        "seconds": round(ran.seconds, 1),
        "acknowledged": len(notes.acknowledged),
        "slots": slots.slots,
        "never_usable": len(slots.never_usable),
        "repeats": len(repeats),
        "in_pulse": len(low_ms),
        "violations": sum(map(len, found.values())),
    }
    violations = [f"{name}: {line}" for name, lines in found.items() for line in lines]
    return Judged(ran, figures, low_ms, back_s, violations)


def view(folder: Path, entries: Sequence[Entry]) -> list[str]:
    """Compare what `session.h5` holds with the log that it was made from."""
    path = folder / "session.h5"
    if not path.exists():
        return ["there is none"]
    with open_session(path) as file:
        held, closed = file.presentation.tolist(), file.closed_in_order
    shown = [e.document.presentation for e in entries if isinstance(e.document, Presented)]
    out = [] if held == shown else [f"it holds {len(held)} presentations, not the {len(shown)} of the journal"]
    return out if closed else [*out, "it says that the session was not closed in order"]


def verify(folder: Path) -> list[str]:
    """Fold the log again in a fresh process; return what it says if any decision differs or is missing."""
    command = [sys.executable, "-m", "rig.cli", "replay", str(folder), "--verify"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=VERIFY_S, check=False)
    except subprocess.TimeoutExpired:
        return [f"stimloop replay --verify was not done after {VERIFY_S:.0f} s"]
    return [] if done.returncode == 0 else [f"stimloop replay --verify: {(done.stderr or done.stdout).strip()}"]


def chaos(kills: int, seed: int, sessions: Path, clock: Clock, console: Console) -> dict[str, Any]:
    """Strike until `kills` strikes were made (kills and freezes together); return the figures. Raises SessionFailed.

    The session that is in no way disturbed must be without violation itself; else nothing can be compared with it.
    """
    console.print(f"seed {seed}: the same seed strikes the same processes in the same order", highlight=False)
    names = {"seed": seed, "generations": GENERATIONS, "port": 1, "register": "port", "pulse": PULSE_S}
    with any_screen(parse(CONFIG.format(**names))):
        calm = judge(run(sessions, seed, GENERATIONS, (), clock), None)
        _say(calm, console)
        if calm.violations:
            raise SessionFailed("the session without any strike is not in order:\n" + "\n".join(calm.violations))
        undisturbed = read_all(calm.ran.folder / "session.journal")
        judged: list[Judged] = []
        most = 2 + int(kills * MOST_SESSIONS_PER_STRIKE)
        while len(judged) < most and (left := kills - sum(len(j.ran.struck) for j in judged)) > 0:
            strikes = plan(np.random.default_rng([seed, len(judged)]), min(STRIKES, left))
            judged.append(judge(run(sessions, seed, GENERATIONS, strikes, clock), undisturbed))
            _say(judged[-1], console)
    return figures_of(judged, seed)


def figures_of(judged: list[Judged], seed: int) -> dict[str, Any]:
    """Return the figures of all sessions."""
    struck = [s for j in judged for s in j.ran.struck]
    low_ms = [x for j in judged for x in j.line_low_ms]
    back_s = [x for j in judged for x in j.model_back_s]
    return {
        "seed": seed,
        "sessions": len(judged),
        "strikes": len(struck),
        "kills": sum(s.how == "kill" for s in struck),
        "freezes": sum(s.how == "freeze" for s in struck),
        "frozen_and_killed": sum(s.how == "freeze" and s.killed for s in struck),
        **{f"struck_{name}": n for name, n in sorted(Counter(s.victim for s in struck).items())},
        "acknowledged": sum(j.figures["acknowledged"] for j in judged),
        "slots": sum(j.figures["slots"] for j in judged),
        "never_usable": sum(j.figures["never_usable"] for j in judged),
        "repeats": sum(j.figures["repeats"] for j in judged),
        "in_pulse": len(low_ms),
        "line_low_ms_max": round(max(low_ms), 1) if low_ms else None,
        "model_back_s": [round(x, 2) for x in sorted(back_s)],
        "violations": [f"{j.ran.folder} (seed {seed}): {line}" for j in judged for line in j.violations],
        "rows": [j.figures for j in judged],
    }


def _say(judged: Judged, console: Console) -> None:
    line = "  ".join(f"{k}={v}" for k, v in judged.figures.items())
    console.print(line, highlight=False, soft_wrap=True, markup=False)
    if judged.violations:
        what = "\n".join(f"    {s}" for s in judged.ran.struck)
        console.print(f"  struck in {judged.ran.folder}:\n{what}", highlight=False, soft_wrap=True, markup=False)
        for violation in judged.violations:
            console.print(f"  VIOLATED {violation}", highlight=False, soft_wrap=True, markup=False)
