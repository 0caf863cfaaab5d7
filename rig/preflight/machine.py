"""Checks that need no device: geometry, pictures, disk, real-time priority, and that the output ports are there."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rig.clock import Clock
from rig.config.outputs import AnyOutput, OpenEphysMessages, ParallelOutput, Reward, SerialOutput
from rig.config.session import Config
from rig.config.subject import Subject, lacking
from rig.preflight.result import Result
from rig.progress import planned

DISK_WARN_MB_S = 20.0
WRITTEN = 8 << 20  # bytes written to see how fast the disk is
BASE_GB = 0.1
MOST_OPENED = 500  # pictures of each folder
IMAGE_GB = 0.5e-3  # what one presentation takes in the log at most: its frame, its spikes and its share of the rest


def geometry(config: Config) -> Result:
    """See whether images and patch fit on the screen."""
    from rig.display.places import places

    try:
        where = places(config)
        squares = where.all_named(config)
    except ValueError as error:
        return Result("geometry", "fail", str(error), "change stimulus.size_deg, center_deg or the display's sizes")
    rects = [square.rect for square in squares]
    said = "; ".join(f"{rect.width} x {rect.height} px, centre row {rect.center_row:.0f}" for rect in rects)
    if hidden := sum(where.hidden(square) for square in squares):
        said += f"; the fixation point is drawn over images at {hidden} of {len(squares)} places"
    return Result("geometry", "ok", f"images are {said}")


def banks(config: Config) -> Result:
    """See whether the pictures of the config's own folders can be read: an even choice of large ones."""
    from stimuli.bank import folder_bank

    opened = there = 0
    for name, path in config.banks.items():
        try:
            bank = folder_bank(path)
            some = bank.names[:: -(-len(bank.names) // MOST_OPENED)]
            for picture in some:
                bank.image(picture, 8, 8)
        except (OSError, ValueError) as error:
            return Result("image banks", "fail", f"{name}: {error}", "correct the folder under banks: in the config")
        opened, there = opened + len(some), there + len(bank.names)
    own = f"{len(config.banks)} own ({opened} of {there} pictures opened)" if config.banks else "none of your own"
    return Result("image banks", "ok", f"{own}, and the shipped photographs")


def animal(config: Config) -> Iterator[Result]:
    """See whether the files that a simulated animal is made of are there; a real one needs none."""
    simulation = config.animal
    wanted = (
        ("animal.weights", simulation.weights, Path.is_file, "the file of the published model of mouse V1"),
        ("animal.models", simulation.models, Path.is_dir, "the folder of the published models of V4"),
        ("animal.recorded", simulation.recorded, Path.is_dir, "the folder of recorded averages and images"),
    )
    for place, path, there, what in wanted:
        if path is not None and not there(path):
            said = f"{place}: {path} is not there, {what}; `stimloop demo` and `stimloop animal` cannot start without"
            cure = (
                f"give {place} your own copy of it (docs/simulated_cells.md), by a path from the folder in which you "
                "start the command"
            )
            yield Result("simulated animal", "warn", said, cure)


def metadata(config: Config) -> Result:
    """See whether an export of the session would have what an archive asks for; recording needs none of it."""
    missing = lacking(config.model_dump(mode="json"), simulated=config.subject.id == Subject().id)
    if not missing:
        return Result("metadata", "ok", "exports will have what DANDI asks for")
    said = f"exports will lack: {', '.join(missing)}"
    return Result("metadata", "warn", said, "add them to the config (docs/export.md); recording needs none of it")


def disk(config: Config, clock: Clock) -> Iterator[Result]:
    """See whether the session fits on the disk of this folder, and how fast that is."""
    folder = Path.cwd()
    free_gb = shutil.disk_usage(folder).free / 1e9
    need_gb = BASE_GB + planned(config) * IMAGE_GB
    said = f"{free_gb:.1f} GB free, about {need_gb:.1f} GB needed"
    yield Result("disk space", "ok" if free_gb >= need_gb else "fail", said, "free space on this disk")
    data = os.urandom(WRITTEN)
    start_ns = clock.now_ns()
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        said = f"cannot write in {folder}: {error.strerror}"
        yield Result("disk speed", "fail", said, "start in a folder you may write to")
        return
    speed = WRITTEN / 1e6 / max((clock.now_ns() - start_ns) * 1e-9, 1e-6)
    said = f"{speed:.0f} MB/s to the platter"
    yield Result(
        "disk speed", "ok" if speed > DISK_WARN_MB_S else "warn", said, "use a local disk, not a network share"
    )


def realtime(config: Config) -> Result:
    """See whether the rig would be granted real-time priority; this process runs on as before."""
    from rig import priority

    if not config.processes.realtime:
        return Result("priority", "warn", "real-time priority is switched off", "set processes.realtime: true")
    granted, said = priority.permitted()
    cure = "allow it: a line 'USER - rtprio 20' in /etc/security/limits.d/stimloop.conf, then log in again"
    return Result("priority", "ok" if granted else "warn", said, cure)


def outputs(config: Config) -> Iterator[Result]:
    """See whether the ports of the outputs are there and may be used; nothing is put out, no valve is opened."""
    for output in config.outputs:
        yield _output(output)
    if config.reward is not None:
        yield _reward(config.reward, config)


def _output(output: AnyOutput) -> Result:
    name = f"output {output.name}"
    if isinstance(output, SerialOutput | ParallelOutput):
        if os.name == "nt":
            return Result(name, "warn", f"{output.port}: not looked at on Windows", "try it with a print output beside")
        path = Path(output.port)
        if not path.exists():
            cure = "plug the device in, or correct `port`; the system's ports are listed by `ls /dev/tty* /dev/par*`"
            return Result(name, "fail", f"there is no port {output.port}", cure)
        if not os.access(path, os.R_OK | os.W_OK):
            cure = "add the user to the port's group (dialout or lp) and log in again"
            return Result(name, "fail", f"{output.port} may not be read and written", cure)
        simulated = " (an ordinary file: simulated)" if path.is_file() else ""
        return Result(name, "ok", f"{output.port} is there{simulated}")
    if isinstance(output, OpenEphysMessages):
        from rig.sources.openephys_http import GuiError, mode

        try:
            said = mode(output.host, output.http_port)
        except GuiError as error:
            return Result(name, "fail", error.reason, error.cure)
        return Result(name, "ok", f"the GUI on {output.host}:{output.http_port} says {said}")
    return Result(name, "ok", f"of type {output.type}: needs no port")


def _reward(reward: Reward, config: Config) -> Result:
    """Say what the limits allow, against what the session would give if every trial were rewarded."""
    rhythm = config.presentation
    trials = -(-planned(config) // rhythm.images_per_trial)
    each_ul = reward.pulse_s * reward.ul_per_s
    wanted_ml = trials * each_ul * 1e-3
    trial_s = rhythm.images_per_trial * rhythm.on_s + (rhythm.images_per_trial - 1) * rhythm.off_s
    per_min = 60 / (trial_s + max(rhythm.inter_trial_s, rhythm.off_s))
    open_s = per_min * reward.pulse_s
    most = "" if reward.after == "trial" else "at most "
    said = (
        f"{each_ul:.0f} uL a pulse; {most}{per_min:.1f} trials a minute, {open_s:.2g} s open (limit "
        f"{reward.max_per_minute_s:g} s); {most}{trials} trials, {wanted_ml:.1f} mL (limit "
        f"{reward.max_session_ml:g} mL)"
    )
    problems, cures = [], []
    # The limit of a minute counts only where the session lasts so long.
    if min(open_s, trials * reward.pulse_s) > reward.max_per_minute_s + 1e-9:
        given = int(reward.max_per_minute_s / reward.pulse_s + 1e-9)
        problems.append(f"only {given} of {per_min:.1f} trials a minute can be rewarded")
        cures.append(
            f"shorten reward.pulse_s to {reward.max_per_minute_s / per_min:.3g} s, lengthen "
            "presentation.inter_trial_s, or raise max_per_minute_s"
        )
    if wanted_ml > reward.max_session_ml:
        last = int(reward.max_session_ml * 1e3 / each_ul + 1e-9)
        problems.append(f"rewards end after trial {last} of {trials}")
        cures.append("shorten the session or the pulse, or raise max_session_ml")
    if problems:
        return Result("reward", "warn", "; ".join([*problems, said]), "; ".join(cures))
    return Result("reward", "ok", said)
