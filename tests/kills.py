"""A session run in processes of its own, followed through its journal, whose processes a test can kill and freeze."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import yaml

from rig.clock import HostClock
from rig.links.ports import free_port
from rig.messages import Entry, Fault, Presented, ProcessStarted
from rig.recording.journal import JournalReader

ROOT = Path(__file__).parent.parent
STIMLOOP = [sys.executable, "-m", "rig.cli"]
# How a child is found on its command line: the module after -m, and its first argument's end for sources.
MODULES = {
    "recorder": "rig.recording.recorder", "rig": "rig.display.session", "model": "models", "outputs": "rig.outputs",
    "view": "rig.view.h5", "probe": "rig.sources", "animal": "rig.cli",
}  # fmt: skip


def config_text(port: int | None = None, repeats: int = 4, register: Path | None = None, **more: object) -> str:
    """Return the YAML of a short session of natural images with the simulated animal; rewards on `register`."""
    raw: dict[str, object] = {
        "name": "kills",
        "seed": 3,
        "display": {"size_px": [400, 300], "refresh_hz": 60, "width_cm": 30},
        "presentation": {"on_s": 0.1, "off_s": 0.0667, "images_per_trial": 6, "inter_trial_s": 0.25},
        "sources": [{"type": "openephys", "name": "probe", "port": port or free_port(2), "http_port": None}],
        "responses": {"units": ["E01#0", "E02#0"]},
        "phases": [{"agent": "present", "images": ["natural"], "count": 8, "repeats": repeats, "blanks": 1}],
        "animal": {"neurons": 4},
        **more,
    }
    if register is not None:
        raw["outputs"] = [{"type": "parallel", "name": "valve", "port": str(register), "line": 2}]
        raw["reward"] = {
            "output": "valve", "pulse_s": 0.05, "ul_per_s": 40.0, "max_pulse_s": 0.1, "max_per_minute_s": 30.0,
            "max_session_ml": 20.0,
        }  # fmt: skip
    return yaml.safe_dump(raw)


class Run:
    """`stimloop demo` (or any other command of it) of one session, and what its journal says so far."""

    def __init__(self, base: Path, *words: str) -> None:
        """Start `stimloop WORDS`; `base` holds nothing but this session, and everything it starts names that folder."""
        self.base, self.entries = base, list[Entry]()
        self.output = base / "output.txt"
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [*STIMLOOP, *words], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
            )
        self._clock = HostClock(spin_ns=0)
        self._reader: JournalReader | None = None

    @property
    def folder(self) -> Path:
        """The session's folder."""
        (folder,) = {p.parent for p in self.base.glob("**/session.journal")}
        return folder

    def documents(self, kind: type) -> list:  # type: ignore[type-arg]
        """Return the documents of a kind that the journal holds so far."""
        return [e.document for e in self.entries if isinstance(e.document, kind)]

    def read(self) -> None:
        """Take what was journalled since."""
        if self._reader is None:
            if not list(self.base.glob("**/session.journal")):
                return
            self._reader = JournalReader(self.folder / "session.journal")
        self.entries += self._reader.read()

    def until(self, done: Callable[[], object], within_s: float = 120.0, alive: bool = True) -> None:
        """Follow the journal until `done()`."""
        end_ns = self._clock.now_ns() + int(within_s * 1e9)
        while not done():
            assert self._clock.now_ns() < end_ns, f"not within {within_s} s\n{self.said()}"
            assert not alive or self.process.poll() is None, f"ended before that\n{self.said()}"
            self._clock.sleep_until_ns(self._clock.now_ns() + 20_000_000)
            self.read()

    def shown(self) -> int:
        """Return how many presentations were journalled."""
        return len(self.documents(Presented))

    def more(self, count: int) -> None:
        """Wait for `count` more presentations."""
        least = self.shown() + count
        self.until(lambda: self.shown() >= least)

    def pid(self, name: str) -> int:
        """Return the process id of a child by its name in the session."""
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                words = process.cmdline()
            except psutil.Error:
                continue
            if "-m" in words and words[words.index("-m") + 1] == MODULES[name]:
                return process.pid
        raise AssertionError(f"no process {name}\n{self.said()}")

    def starts(self, name: str) -> int:
        """Return how often a child has said that it started; of the view, which is no peer, how often it was again."""
        if name == "view":
            return sum("view" in f.detail for f in self.documents(Fault) if f.what == "process restarted")
        return sum(p.name == name for p in self.documents(ProcessStarted))

    def kill(self, name: str) -> None:
        """Kill a child and wait until it is back."""
        before = self.starts(name)
        os.kill(self.pid(name), signal.SIGKILL)
        self.until(lambda: self.starts(name) > before)

    def said(self) -> str:
        """Return what the command and the children wrote."""
        logs = [f"--- {p.name}\n{p.read_text(errors='replace')[-1500:]}" for p in self.base.glob("**/logs/*.log")]
        return self.output.read_text(errors="replace") + "\n".join(logs)

    def end(self, within_s: float = 120.0) -> int:
        """Wait for the end of the command; return its exit code."""
        code = self.process.wait(within_s)
        self.read()
        return code

    def left(self) -> list[str]:
        """Return the command lines of the session's processes that still run."""
        out = []
        for process in psutil.process_iter(["cmdline"]):
            line = " ".join(process.info["cmdline"] or [])
            if str(self.base) in line:
                out.append(line)
        return out

    def put_down(self) -> None:
        """Kill whatever is left, after a test that failed."""
        if self.process.poll() is None:
            for process in psutil.Process(self.process.pid).children(recursive=True):
                process.kill()
            self.process.kill()
        self.process.wait()
        if self._reader is not None:
            self._reader.close()


def stimloop(*words: str) -> "subprocess.CompletedProcess[str]":
    """Run a command of stimloop to its end."""
    return subprocess.run([*STIMLOOP, *words], cwd=ROOT, capture_output=True, text=True, timeout=100)


def journalled(folder: Path, kind: str) -> list[dict[str, object]]:
    """Return what `stimloop journal` prints of a kind."""
    return [json.loads(line) for line in stimloop("journal", str(folder), "--kind", kind).stdout.splitlines()]
