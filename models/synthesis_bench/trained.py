"""`stimloop bench agreement`: how far the best images of two networks agree, trained apart on the same simulated units.

Each network (or mean of networks) sees one half of the photographs, begins from weights of its own, and is fitted to
what units of the V1 twin answer to them, without noise; then, if asked, to what they answer to pictures near its own
images, round by round. The two share units and architecture, and nothing else.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.encoders.eye import Eye
from models.encoders.network import Network
from models.encoders.weights import write_state
from models.synthesis_bench.comparing import Images, between_models, between_starts, median
from models.synthesis_bench.fitting import HELD_OUT, Learners, heard, images_of
from models.synthesis_bench.pictures import PATTERN, U8, Simulated, answers, cut, patterns, photographs
from models.synthesis_bench.run import Say, load, models_agree, ready
from models.synthesis_bench.window import window
from rig.config.reading import ConfigError
from rig.config.synthesis import AgreementBench


def bench(
    asked: AgreementBench, wall_ns: Callable[[], int], processor_ns: Callable[[], int], say: Say
) -> dict[str, Any]:
    """Return figures and a row for each unit. Raises ConfigError."""
    device = ready(asked, say)
    whole = load(asked.weights, "--weights", asked)
    rng = np.random.default_rng(asked.seed)
    try:
        twin = window(whole, _drawn(asked, whole, rng))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"--weights {asked.weights}: {error}") from error
    say(f"its units see {twin.eye.height} x {twin.eye.width} of {whole.eye.height} x {whole.eye.width} pixels")
    asked = _as_strong(asked, twin.eye, whole.eye)
    twin = twin.to(device)
    shown = photographs(asked.images, asked.photographs, rng)
    halves = np.array_split(rng.permutation(len(shown)), 2)
    data = _answered(twin, shown, asked, rng)
    imaged = tuple(range(asked.units))
    made, figures = [], []
    for number, half in enumerate(halves):
        mine = np.isin(data.photograph, half)
        mine[np.flatnonzero(data.photograph == PATTERN)[number::2]] = True
        say(f"network {number + 1}: {mine.sum()} pictures, {np.isin(data.photograph, half).sum()} of photographs")
        began = processor_ns()
        learners = Learners(twin, data.part(mine), half[: round(len(half) * HELD_OUT)], asked, number, say)
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
    truth = images_of(twin, imaged, asked, rng, device)
    return compared(made, truth, figures)


def _as_strong(asked: AgreementBench, part: Eye, whole: Eye) -> AgreementBench:
    """Return `asked` with the contrast that gives a part of the picture as much energy as the whole would have."""
    share = part.height * part.width / (whole.height * whole.width)
    contrast = min(1.0, asked.settings.contrast / share**0.5)
    return asked.model_copy(update={"settings": asked.settings.model_copy(update={"contrast": contrast})})


def _answered(twin: Network, shown: U8, asked: AgreementBench, rng: np.random.Generator) -> Simulated:
    """Return what is shown to the units of both sides, and their answers; makes their answers' sds 1."""
    pieces, photograph = cut(shown, twin.eye, asked.pieces, rng)
    pictures = torch.cat([pieces, patterns(twin.eye, asked.patterns, asked.settings.contrast, rng)])
    found = answers(twin, pictures)
    sd = found[: len(pieces)].std(0)
    if silent := [name for name, one in zip(twin.units, sd, strict=True) if not one > 0]:
        raise ConfigError(f"--units: {silent[0]} answers alike to all photographs; take another --seed")
    twin.of(twin.session).scale.div_(torch.from_numpy(sd).to(next(twin.parameters()).device))
    number = np.concatenate([photograph, np.full(len(pictures) - len(pieces), PATTERN)])
    return Simulated(pictures, number, found / sd)


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
