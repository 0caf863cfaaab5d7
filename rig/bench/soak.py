"""The figures of `stimloop bench soak`: what each process of a long session takes in memory and time.

One evolution session with all parts (screen, animal, source, recorder, model server, outputs with a reward line, view)
runs for a given time; every 10 s the memory of each process is read. The slope is that of Theil and Sen (the median of
the slopes of all pairs), which single steps do not move, over the samples after the first five minutes: until then
libraries load and buffers fill.
"""

import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml
from rich.console import Console
from scipy.stats import theilslopes

from rig.animal.valve import make_register
from rig.bench.display import lengthened_demo
from rig.bench.hosted import below, end, host, name_of
from rig.clock import Clock
from rig.demo import any_screen
from rig.links.ports import free_port
from rig.messages import Fault, Presented, Proposal
from rig.recording.journal import JournalReader
from rig.supervision.processes import Child, SessionFailed
from rig.supervision.runs import new_folder, simulated_animal

EVERY_S = 10.0
SETTLED_S = 300.0
LIMIT_FACTOR, LIMIT_S = 1.5, 120.0  # a session that takes longer than this hangs
LEAST_FOR_SLOPE = 4  # samples
KINDS = frozenset({"presented", "fault", "proposal"})
MB = 1e6


@dataclass
class Sample:
    """The memory and CPU time of one process at one moment."""

    at_s: float
    own_mb: float
    """Memory that is this process's alone (USS)."""
    resident_mb: float
    """With what it shares with others (RSS)."""
    cpu_s: float


@dataclass
class Watched:
    """All samples by process; a process that was started again goes on under its name."""

    samples: defaultdict[str, list[Sample]] = field(default_factory=lambda: defaultdict(list))
    pids: defaultdict[str, set[int]] = field(default_factory=lambda: defaultdict(set))

    def look(self, processes: Sequence[psutil.Process], at_s: float) -> None:
        """Read all processes now."""
        for process in processes:
            name = name_of(process)
            if name is None:
                continue
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                memory, times = process.memory_full_info(), process.cpu_times()
                sample = Sample(at_s, memory.uss / MB, memory.rss / MB, times.user + times.system)
                self.samples[name].append(sample)
                self.pids[name].add(process.pid)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row for each process."""
        return [row(name, samples, len(self.pids[name])) for name, samples in sorted(self.samples.items())]


def row(name: str, samples: Sequence[Sample], starts: int = 1) -> dict[str, Any]:
    """Return memory at the first and last sample, its slope once settled, and the share of one core.

    `mb_per_h` is None with fewer than four samples after `from_s`, where a run of less than ten minutes settles in half
    of its time.
    """
    first, last = samples[0], samples[-1]
    settled_s = min(SETTLED_S, (first.at_s + last.at_s) / 2)
    late = [s for s in samples if s.at_s >= settled_s]
    slope = None
    if len(late) >= LEAST_FOR_SLOPE:
        slope = round(float(theilslopes([s.own_mb for s in late], [s.at_s / 3600 for s in late]).slope), 2)
    seconds = last.at_s - first.at_s
    share = round((last.cpu_s - first.cpu_s) / seconds, 3) if seconds > 0 and starts == 1 else None
    return {
        "process": name,
        "mb_start": round(first.own_mb, 1),
        "mb_end": round(last.own_mb, 1),
        "mb_per_h": slope,
        "cpu_share": share,
        "rss_mb_end": round(last.resident_mb, 1),
        "samples": len(samples),
        "from_s": round(settled_s),
        "starts": starts,
    }


def soak(minutes: float, sessions: Path, clock: Clock, console: Console) -> dict[str, Any]:
    """Run a session of `minutes` and return the figures. Raises SessionFailed."""
    config, text = lengthened_demo("bench-soak", minutes, burn=False)
    raw = yaml.safe_load(text)
    with any_screen(config) as display, ExitStack() as stack:
        folder = new_folder(sessions, config.name, "", clock)
        register = make_register(folder.parent / f"{folder.name}-port")
        raw["sources"][0]["port"] = free_port(4)
        raw["outputs"] = [{"type": "parallel", "name": "valve", "port": str(register)}]
        raw["reward"] = {
            "output": "valve", "pulse_s": 0.1, "max_pulse_s": 0.3, "ul_per_s": 40, "max_per_minute_s": 20,
            "max_session_ml": 1000,
        }  # fmt: skip
        (folder / "config.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
        console.print(f"session {folder}, screen {display}; the animal is [bold]simulated[/]", highlight=False)
        stack.enter_context(simulated_animal(folder, clock))
        supervisor = host(folder)
        stack.callback(end, supervisor)
        watched, seconds = _watch(supervisor, minutes, clock)
        if supervisor.exit_code != 0:
            raise SessionFailed(f"the session did not end in order: {supervisor.why()}")
    figures = {"session": str(folder), "seconds": round(seconds, 1), **log_figures(folder)}
    return {**figures, **export_figures(folder, clock), "rows": watched.rows()}


def _watch(supervisor: Child, minutes: float, clock: Clock) -> tuple[Watched, float]:
    """Sample until the session is over; return the samples and its length, s. Raises SessionFailed."""
    watched, start_ns = Watched(), clock.now_ns()
    limit_ns = start_ns + int((minutes * 60 * LIMIT_FACTOR + LIMIT_S) * 1e9)
    me, due_ns = psutil.Process(), start_ns + int(EVERY_S * 1e9)
    while supervisor.exit_code is None:
        now_ns = clock.now_ns()
        if now_ns > limit_ns:
            ran_s = (now_ns - start_ns) * 1e-9
            raise SessionFailed(f"the session did not end within {ran_s:.0f} s\n  cure: see its logs folder")
        if now_ns >= due_ns:
            due_ns += int(EVERY_S * 1e9)
            # The animal is our own child; a screen of our own is no `python -m` and is left out.
            watched.look([*me.children(), *below(supervisor.process.pid)], (now_ns - start_ns) * 1e-9)
        clock.sleep_until_ns(now_ns + 50_000_000)
    return watched, (clock.now_ns() - start_ns) * 1e-9


def log_figures(folder: Path) -> dict[str, Any]:
    """Return what the log of a session says about itself, and the sizes of its files."""
    late = flips = shown = proposals = 0
    faults: Counter[str] = Counter()
    reader = JournalReader(folder / "session.journal", KINDS)
    while entries := reader.read(final=True):
        for document in (e.document for e in entries):
            if isinstance(document, Presented):
                shown, late, flips = shown + 1, late + document.late_flips, flips + len(document.flips_host_ns)
            elif isinstance(document, Fault):
                faults[document.what] += 1
            elif isinstance(document, Proposal):
                proposals += 1
    reader.close()
    return {
        "presentations": shown,
        "generations": proposals,
        "late_flips": late,
        "flips": flips,
        "faults": dict(faults.most_common()),
        "journal_mb": round((folder / "session.journal").stat().st_size / MB, 1),
        "hdf5_mb": round((folder / "session.h5").stat().st_size / MB, 1),
    }


def export_figures(folder: Path, clock: Clock) -> dict[str, Any]:
    """Export the session as NWB in a process of its own; return its time, the largest memory it took, and the size."""
    out = folder.parent / f"{folder.name}-export"
    command = [sys.executable, "-m", "rig.cli", "export", str(folder), "--nwb", "--out", str(out)]
    start_ns, peak = clock.now_ns(), 0.0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        while process.poll() is None:
            with suppress(psutil.NoSuchProcess):
                peak = max(peak, psutil.Process(process.pid).memory_info().rss / MB)
            clock.sleep_until_ns(clock.now_ns() + 100_000_000)
        seconds = (clock.now_ns() - start_ns) * 1e-9
        said = "" if process.stdout is None else process.stdout.read()
    if process.returncode != 0:
        return {"nwb_s": None, "nwb_failed": said.strip()}
    size = sum(path.stat().st_size for path in out.rglob("*.nwb"))
    return {"nwb_s": round(seconds, 1), "nwb_mb": round(size / MB, 1), "nwb_rss_mb_max": round(peak, 1)}
