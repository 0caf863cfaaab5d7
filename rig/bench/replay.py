"""`stimloop bench replay`: how much faster than life a session of an hour is replayed, and in how much memory.

The session is made by `rig.bench.long_session`: a simulation without screen and sockets that leaves the documents of
an evolution of that length. One row verifies latents and decisions, one also makes every frame again.
"""

import tempfile
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import yaml
from threadpoolctl import threadpool_limits

from rig.bench.long_session import LongSession
from rig.clock import Clock
from rig.config.reading import parse
from rig.config.session import Config
from rig.messages import SessionStart, Tick
from rig.replay.model_side import LiveFold, ModelSide
from rig.replay.records import Log, config_of
from rig.replay.session import verify_session

_DEMO = Path(__file__).parent.parent.parent / "configs" / "demo.yaml"
LOOK_S = 0.2  # between two looks at the memory
STEADY_NS = 5_000_000_000  # ticks come once a second: a longer pause between two is no session time
MB = 1e6


def bench_config() -> tuple[Config, str]:
    """Return the demo's config with an evolution that is longer than any bench."""
    raw: dict[str, Any] = yaml.safe_load(_DEMO.read_text(encoding="utf-8"))
    raw["name"] = "bench-replay"
    raw["phases"][0]["generations"] = 2000
    text = yaml.safe_dump(raw)
    return parse(text), text


def make_session(folder: Path, minutes: float, models: ModelSide, seed: int = 1) -> Path:
    """Write a session of `minutes` into the new `folder`; return its journal."""
    config, text = bench_config()
    session = LongSession(folder, config, text, models.server(config), models.wants, models.neurons(config), seed)
    return session.run(minutes)


def session_s(journal: Path) -> float:
    """Return how long a session ran, s: its ticks, without the pauses in which no recorder was there."""
    ticks = [t for r in Log(journal) if r.kind == "tick" and isinstance(t := r.entry.document, Tick)]
    steps = [b.tick_host_ns - a.tick_host_ns for a, b in pairwise(ticks)]
    return sum(ns for ns in steps if 0 < ns < STEADY_NS) * 1e-9


class PeakMemory:
    """The largest memory of this process and its children together while the block runs, MB."""

    def __init__(self) -> None:
        self.mb = 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)

    def __enter__(self) -> "PeakMemory":
        """Begin to look."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End; `mb` holds the peak."""
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        own = psutil.Process()
        while True:
            total = 0
            for process in (own, *own.children(recursive=True)):
                try:
                    total += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.mb = max(self.mb, total / MB)
            if self._end.wait(LOOK_S):
                return


def replay(minutes: float, folder: Path | None, models: ModelSide, clock: Clock) -> dict[str, Any]:
    """Verify the session in `folder`, or a made one of `minutes`, without and with frames; return the figures.

    Raises ReplayError, OSError.
    """
    with tempfile.TemporaryDirectory() as scratch:
        journal = (folder / "session.journal") if folder is not None else None
        if journal is None:
            journal = make_session(Path(scratch) / "long", minutes, models)
        length_s = session_s(journal)
        rows = [_row(journal, length_s, frames, models, clock) for frames in (False, True)]
    return {
        "session_s": round(length_s, 1),
        "journal_mb": rows[0].pop("journal_mb"),
        "decisions": rows[0]["decisions"],
        "identical": all(row["identical"] for row in rows),
        "speed_x": rows[0]["speed_x"],
        "rows": rows,
    }


def _row(journal: Path, length_s: float, frames: bool, models: ModelSide, clock: Clock) -> dict[str, Any]:
    def make(start: SessionStart) -> LiveFold:
        return models.server(config_of(start))

    start_ns = clock.now_ns()
    with PeakMemory() as memory, threadpool_limits(1):
        outcome = verify_session(journal, make, models.wants, frames)
    took_s = (clock.now_ns() - start_ns) * 1e-9
    verdict = outcome.verdict
    row = {
        "frames": frames,
        "decisions": verdict.decisions,
        "identical": verdict.agrees and bool(verdict.identical),
        "different": len(verdict.different) + len(verdict.missing),
        "proposals": verdict.identical["proposal"],
        "responses": verdict.identical["response"],
        "frames_compared": verdict.identical["frame"],
        "seconds": round(took_s, 2),
        "speed_x": round(length_s / took_s, 1),
        "peak_mb": round(memory.mb),
    }
    return row if frames else {**row, "journal_mb": round(journal.stat().st_size / MB, 1)}
