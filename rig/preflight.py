"""`stimloop check`: looks, before the animal is there, whether everything a session needs is in place.

Each check gives a status, what was seen, and for anything but "ok" its cure. First version: geometry, screen and its
pacing, priority, disk, sources, banks. It opens the real window and the real sockets, one after the other.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from rig.clock import Clock
from rig.config import Config
from rig.config_sources import OpenEphysSource
from rig.progress import expected_s, planned

DISK_WARN_MB_S = 20.0
FLIPS = 60


@dataclass(frozen=True)
class Result:
    """The outcome of one check."""

    name: str
    status: Literal["ok", "warn", "fail"]
    message: str
    remedy: str = ""


def _geometry(config: Config, clock: Clock) -> Result:
    from rig.session import places

    try:
        rect = places(config).rect
    except ValueError as error:
        return Result("geometry", "fail", str(error), "change stimulus.size_deg, center_deg or the display's sizes")
    return Result("geometry", "ok", f"images are {rect.width} x {rect.height} px, centre row {rect.center_row:.0f}")


def _disk(config: Config, clock: Clock) -> Result:
    folder = Path.cwd()
    free_gb = shutil.disk_usage(folder).free / 1e9
    need_gb = 0.1 + planned(config) * 0.5e6 / 1e9
    if free_gb < need_gb:
        return Result(
            "disk", "fail", f"{free_gb:.1f} GB free, about {need_gb:.1f} GB needed", "free space on this disk"
        )
    data = os.urandom(8 << 20)
    start = clock.now_ns()
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return Result(
            "disk", "fail", f"cannot write in {folder}: {error.strerror}", "start in a folder you may write to"
        )
    speed = 8.4 / max((clock.now_ns() - start) / 1e9, 1e-6)
    status: Literal["ok", "warn"] = "ok" if speed > DISK_WARN_MB_S else "warn"
    return Result(
        "disk", status, f"{free_gb:.0f} GB free, {speed:.0f} MB/s to the platter", "use a local disk, not a share"
    )


def _priority(config: Config, clock: Clock) -> Result:
    from rig import priority

    if not config.processes.realtime:
        return Result("priority", "warn", "real-time priority is switched off", "set processes.realtime: true")
    said = priority.ask(True)
    granted = said.startswith(("SCHED_FIFO", "HIGH"))
    cure = "allow it: a line 'USER - rtprio 20' in /etc/security/limits.d/stimloop.conf, then log in again"
    return Result("priority", "ok" if granted else "warn", said, cure)


def _screen(config: Config, clock: Clock) -> Result:
    from rig.display import DisplayError, Window
    from rig.session import places

    cure = "log in on the rig's screen, or use a virtual one: xvfb-run -s '-screen 0 1280x1024x24' stimloop check ..."
    try:
        where = places(config)
        window = Window(config.display, where.rect, where.patch, 1, config.display.background, clock)
    except ValueError:
        return Result("screen", "fail", "not opened, since the geometry does not fit", "see geometry")
    except DisplayError as error:
        return Result("screen", "fail", str(error), f"{error.cure}; {cure}")
    try:
        stamps = []
        period_ns = 1e9 / config.display.refresh_hz
        due = clock.now_ns()
        for _ in range(FLIPS):
            if not config.display.vsync:
                due += round(period_ns)
                clock.sleep_until_ns(due)
            window.draw(None, False)
            stamps.append(window.flip())
    finally:
        window.close()
    intervals = np.diff(np.array(stamps, dtype=np.float64))[5:] / 1e6
    middle, spread = float(np.median(intervals)), float(np.std(intervals))
    said = f"{1e3 / middle:.2f} Hz, jitter {spread:.2f} ms (sd), config says {config.display.refresh_hz} Hz"
    if abs(middle - period_ns / 1e6) > 0.03 * period_ns / 1e6:
        return Result("screen", "fail", said, "set display.refresh_hz to what the screen does, or the screen to it")
    if spread > 1.5:
        return Result("screen", "warn", said, "close other programs; switch the desktop's compositor off")
    return Result("screen", "ok", said)


def _banks(config: Config, clock: Clock) -> Result:
    from stimuli.bank import folder_bank

    for name, path in config.banks.items():
        try:
            folder_bank(path)
        except (OSError, ValueError) as error:
            return Result("image banks", "fail", f"{name}: {error}", "correct the folder under banks: in the config")
    return Result("image banks", "ok", f"{len(config.banks)} own, and the shipped photographs")


def _sources(config: Config, clock: Clock) -> Iterator[Result]:
    from rig.sources.openephys import probe

    for source in config.sources:
        if isinstance(source, OpenEphysSource):
            reason, cure = probe(source, clock)
            where = f"{source.host}:{source.port}"
            yield Result(f"source {source.name}", "fail" if reason else "ok", reason or f"messages from {where}", cure)
        else:
            said, cure = "LSL sources are not checked yet", "look for the stream with the sender's own tools"
            yield Result(f"source {source.name}", "warn", said, cure)


def checks(config: Config, clock: Clock) -> Iterator[Result]:
    """Run all checks, one after the other, and yield their results as they come."""
    each: list[Callable[[Config, Clock], Result]] = [_geometry, _banks, _disk, _priority, _screen]
    for check in each:
        yield check(config, clock)
    yield from _sources(config, clock)
    length = planned(config)
    yield Result("plan", "ok", f"{length} presentations, about {expected_s(config, length) / 60:.1f} minutes")
