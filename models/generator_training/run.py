"""`stimloop train-generator`, from a folder of pictures to a weights file; `rig.cli` joins it with the command line.

Everything of a run lies in its work folder: `train.npy` and `held_out.npy` (patches), `checkpoint.pt`, and contact
sheets. A killed run goes on from its checkpoint.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch.multiprocessing.spawn import start_processes

from models.generator_training.features import Features
from models.generator_training.figures import Figures, measure_figures
from models.generator_training.loop import U8, Settings, begin, load_training, train
from models.generator_training.pictures import read_list, write_patches
from models.generator_training.sheets import write_sheets
from models.generator_training.weights_file import write_weights
from models.generator_training.workers import join
from rig.clock import HostClock
from rig.config.generator_training import TrainingOrder

CHECKPOINT = "checkpoint.pt"
CHECKPOINT_S = 120.0
STATISTICS_PATCHES = 2000


class CannotTrain(ValueError):
    """The run cannot start; says why and what to do."""


def follow(order: TrainingOrder, say: Callable[[str], None]) -> None:
    """Do all of it: patches and code (not when resuming), training, weights file and pictures."""
    Features()  # says at once if its packages are missing
    if not order.resume:
        if (order.work / CHECKPOINT).exists():
            raise CannotTrain(f"{order.work} holds a checkpoint; go on with --resume, or give another --work")
        prepare(order, say)
    go_on(order)
    figures = finish(order)
    say(f"wrote {order.out}; pictures and figures.json in {order.work}")
    say(f"held-out pictures come back with {figures.psnr_db:.1f} dB, feature correlation {figures.feature_correlation}")


def prepare(order: TrainingOrder, say: Callable[[str], None]) -> None:
    """Cut the patches and measure the code: everything before the first step."""
    order.work.mkdir(parents=True, exist_ok=True)
    pictures = read_list(order.pictures, order.listing, order.patches_each, order.held_out)
    say(f"{len(pictures)} pictures, {sum(picture.held_out for picture in pictures)} of them held out")
    used = write_patches(pictures, order.work, order.seed)
    say(" ".join(f"{name} {count}" for name, count in used["all"].items()))
    (order.work / "patches.json").write_text(json.dumps(used, indent=1))
    torch.set_num_threads(order.threads)
    training = begin(_patches(order.work, "train"), Features(), _settings(order))
    training.save(order.work / CHECKPOINT)
    say("the code of the patches is measured")


def go_on(order: TrainingOrder) -> None:
    """Train from the checkpoint until the budget is used up."""
    if not (order.work / CHECKPOINT).exists():
        raise CannotTrain(f"{order.work} holds no {CHECKPOINT}; start without --resume")
    meeting = order.work / "meeting"
    meeting.unlink(missing_ok=True)
    if order.processes == 1:
        _work(0, order, meeting)
    else:
        start_processes(_work, (order, meeting), order.processes, start_method="spawn")  # type: ignore[no-untyped-call]


def finish(order: TrainingOrder) -> Figures:
    """Write weights, contact sheets and figures of the newest checkpoint."""
    training = load_training(order.work / CHECKPOINT)
    encoder = Features()
    patches, held_out = _patches(order.work, "train"), _patches(order.work, "held_out")
    rng = np.random.default_rng([order.seed, 99])
    chosen = np.sort(rng.permutation(len(patches))[:STATISTICS_PATCHES])
    write_weights(training, patches[chosen], encoder, order.out)
    figures = measure_figures(order.out, held_out, encoder)
    (order.work / "figures.json").write_text(json.dumps({**asdict(figures), "steps": training.step}, indent=1))
    write_sheets(order.out, held_out, order.work, order.seed)
    return figures


def _work(rank: int, order: TrainingOrder, meeting: Path) -> None:
    torch.set_num_threads(order.threads)
    training = load_training(order.work / CHECKPOINT, **_changeable(order))
    training.exchange = join(rank, order.processes, meeting)
    clock = HostClock()
    train(
        training,
        _patches(order.work, "train"),
        Features(),
        images=order.images,
        seconds=None if order.minutes is None else order.minutes * 60,
        now=lambda: clock.now_ns() / 1e9,
        checkpoint=order.work / CHECKPOINT if rank == 0 else None,
        checkpoint_s=CHECKPOINT_S,
        say=_say if rank == 0 else _silent,
        rank=rank,
    )


def _settings(order: TrainingOrder) -> Settings:
    return Settings(latent=order.latent, batch=order.batch, half_precision=order.half_precision, seed=order.seed)


def _changeable(order: TrainingOrder) -> dict[str, object]:
    """Return the settings that may change between runs; code and network are fixed by the checkpoint."""
    return {"batch": order.batch, "half_precision": order.half_precision}


def _patches(work: Path, part: str) -> U8:
    out: U8 = np.load(work / f"{part}.npy", mmap_mode="r")
    return out


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


def _silent(line: str) -> None:
    del line
