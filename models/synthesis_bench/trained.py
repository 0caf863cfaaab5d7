"""`stimloop bench agreement`: how far the best images of two networks agree, trained apart on the same simulated units.

Each network (or mean of networks) sees one half of the photographs, begins from weights of its own, and is fitted to
what units of the V1 twin answer to them, without noise; then, if asked, to what they answer to pictures near its own
images, round by round. The two share units and architecture, and nothing else.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from models.encoders.network import Network
from models.encoders.weights import write_state
from models.synthesis_bench.comparing import Images, between_models, between_starts, median
from models.synthesis_bench.fitting import Learners, heard, images_of
from models.synthesis_bench.pictures import Simulated, answers, cut, photographs
from models.synthesis_bench.run import Say, load, models_agree, ready
from rig.config.reading import ConfigError
from rig.config.synthesis import AgreementBench


def bench(
    asked: AgreementBench, wall_ns: Callable[[], int], processor_ns: Callable[[], int], say: Say
) -> dict[str, Any]:
    """Return figures and a row for each unit. Raises ConfigError."""
    device = ready(asked, say)
    twin = load(asked.weights, "--weights", asked).to(device)
    rng = np.random.default_rng(asked.seed)
    units = _drawn(asked, twin, rng)
    pictures, photograph = cut(photographs(asked.images, asked.photographs, rng), twin)
    data = Simulated(pictures, photograph, answers(twin, units, pictures))
    halves = np.array_split(rng.permutation(int(photograph.max()) + 1), 2)
    imaged = tuple(range(asked.units))
    made, figures = [], []
    for number, half in enumerate(halves):
        say(f"network {number + 1}: {np.isin(photograph, half).sum()} pictures of {len(half)} photographs")
        began = processor_ns()
        learners = Learners(twin, units, data, half, asked, number, say)
        learners.learn()
        if asked.out is not None:
            _keep(learners, asked.out, number)
        spent_s = (processor_ns() - began) * 1e-9
        score = heard(learners.encoder, data, halves[1 - number])
        figures.append({"epochs": learners.epochs, "processor_s": round(spent_s, 1), "score_by_unit": score})
        for member in learners.members:
            member.to(device)
        made.append(images_of(learners.encoder, imaged, asked, rng, device))
    say("the twin's own images")
    truth = images_of(twin, units[: asked.units], asked, rng, device)
    return compared(made, truth, figures)


def _drawn(asked: AgreementBench, twin: Network, rng: np.random.Generator) -> tuple[int, ...]:
    """Return the twin's columns: first the units that images are made for, then those only learned."""
    total, learned = len(twin.units), asked.learned or asked.units
    if max(learned, asked.units) > total:
        raise ConfigError(f"--units {asked.units}, --learned {learned}: the model has {total} units")
    imaged = np.sort(rng.choice(total, asked.units, replace=False))
    others = np.random.default_rng([asked.seed, 1]).permutation(np.setdiff1d(np.arange(total), imaged))
    return tuple(int(k) for k in (*imaged, *others[: learned - asked.units]))


def _keep(learners: Learners, folder: Path, number: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for k, member in enumerate(learners.members):
        name = f"network_{number + 1}" + (f"_{k + 1}" if len(learners.members) > 1 else "")
        write_state(folder / f"{name}.safetensors", member.state())


def compared(made: list[Images], truth: Images, fits: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what two networks' images have in common, within the masks of the first's, and with the twin's own."""
    masks = made[0].masks()
    rows = between_models(made[0], made[1], masks)
    with_truth = [between_models(truth, images, truth.masks()) for images in made]
    starts = [between_starts(images, masks) for images in (*made, truth)]
    for k, row in enumerate(rows):
        row["multimodal"] = [kind[k]["multimodal"] for kind in starts]
        row["between_starts"] = [round(kind[k]["agreement"], 4) for kind in starts]
        row["with_truth"] = [round(one[k]["agreement"], 4) for one in with_truth]
        row["share_of_truth"] = [round(one[k]["share_first"], 4) for one in with_truth]
        row["score"] = [round(fit["score_by_unit"][k], 4) for fit in fits]
    alone = [row for row in rows if not any(row["multimodal"])]
    return {
        **models_agree(rows),
        "agreement_unimodal": median(alone, "agreement") if alone else None,
        "unimodal_units": len(alone),
        "agreement_with_truth": [median(one, "agreement") for one in with_truth],
        "share_of_truth": [median(one, "share_first") for one in with_truth],
        "agreement_between_starts": [median(kind, "agreement") for kind in starts],
        "score_median": [float(np.median(fit.pop("score_by_unit"))) for fit in fits],
        "fits": fits,
    }
