"""`stimloop bench agreement`: how far the best images of two networks agree, trained apart on the same simulated units.

Each network sees one half of the photographs, begins from weights of its own, and is fitted to what units of the V1
twin answer to them, without noise. The two share units and architecture, and nothing else.
"""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from models.encoders.network import Network
from models.encoders.readouts import Point
from models.encoders.recordings import Recording
from models.encoders.training import Fit
from models.encoders.weights import write_state
from models.synthesis.engine import synthesise
from models.synthesis.objectives import Maximise
from models.synthesis.starts import draw
from models.synthesis_bench.comparing import Images, between_models, between_starts, median
from models.synthesis_bench.run import Say, load, models_agree, ready
from rig.config.encoders import Architecture, Training
from rig.config.reading import ConfigError
from rig.config.synthesis import AgreementBench

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]

SESSION = "twin"
AT_ONCE = 16
HELD_OUT = 0.1  # of each half: for the score, and to stop
COARSE_PX, WINDOW_PX = 3.0, 2.0  # sd of what is taken off a picture, and of the window in which contrast counts
ARCHITECTURE = Architecture.model_validate(
    {
        "core": {"type": "separable", "channels": 16, "layers": 3, "first_kernel_px": 9, "kernel_px": 7},
        "readout": {"type": "point", "start_sigma": 0.1},
    }
)
TRAINING = Training(batch=32, patience=3, decays=0, laplacian=0.1, readout_l1=0.001)
STAGES = ((0.01, 0.6), (0.003, 0.25), (0.001, 0.15))  # rates, and the share of the epochs at each


@dataclass(frozen=True)
class Simulated:
    """What was shown to the simulated units, and what they answered."""

    pictures: Tensor
    """(picture, 1, y, x), standardised by the twin's eye."""
    photograph: npt.NDArray[np.int64]
    """(picture,): the photograph that it was cut from."""
    responses: F32
    """(picture, unit), without noise, in response sds."""


def bench(
    asked: AgreementBench, wall_ns: Callable[[], int], processor_ns: Callable[[], int], say: Say
) -> dict[str, Any]:
    """Return figures and a row for each unit. Raises ConfigError."""
    device = ready(asked, say)
    twin = load(asked.weights, "--weights", asked).to(device)
    rng = np.random.default_rng(asked.seed)
    if asked.units > len(twin.units):
        raise ConfigError(f"--units {asked.units}: the model has {len(twin.units)} units")
    units = tuple(int(k) for k in np.sort(rng.choice(len(twin.units), asked.units, replace=False)))
    data = answered(twin, units, *cut(photographs(asked.images, asked.photographs, rng), twin))
    halves = np.array_split(rng.permutation(int(data.photograph.max()) + 1), 2)
    made, figures = [], []
    for number, half in enumerate(halves):
        say(f"network {number + 1}: {np.isin(data.photograph, half).sum()} pictures of {len(half)} photographs")
        began = processor_ns()
        network, epochs = trained(data, half, tuple(twin.units[k] for k in units), twin, asked, number, say)
        if asked.out is not None:
            asked.out.mkdir(parents=True, exist_ok=True)
            write_state(asked.out / f"network_{number + 1}.safetensors", network.state())
        spent_s = (processor_ns() - began) * 1e-9
        score = heard(network, data, halves[1 - number])
        figures.append({"epochs": epochs, "processor_s": round(spent_s, 1), "score_by_unit": score})
        made.append(images_of(network.to(device), tuple(range(len(units))), asked, rng))
    say("the twin's own images")
    truth = images_of(twin, units, asked, rng)
    return compared(made, truth, figures)


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


def photographs(folder: Path, most: int, rng: np.random.Generator) -> U8:
    """Return different pictures (n, y, x, rgb) of one size from the zip files in `folder`. Raises ConfigError."""
    found: dict[bytes, U8] = {}
    for path in sorted(folder.glob("*.zip")):
        try:
            with zipfile.ZipFile(path) as archive:
                for name in sorted(n for n in archive.namelist() if n.lower().endswith((".jpg", ".png"))):
                    picture = np.asarray(Image.open(BytesIO(archive.read(name))).convert("RGB"))
                    found.setdefault(picture.tobytes(), picture)
        except (OSError, zipfile.BadZipFile) as error:
            raise ConfigError(f"--images {path}: cannot be read ({error})") from error
    sizes = {picture.shape for picture in found.values()}
    if len(found) < 100 or len(sizes) > 1:
        raise ConfigError(
            f"--images {folder}: {len(found)} pictures of {len(sizes)} sizes in its zip files; give the folder of"
            " images_*.zip (docs/synthesis.md), pictures of one size, 100 of them at least"
        )
    whole = np.stack(list(found.values()))
    return whole[rng.permutation(len(whole))[:most]]


def cut(pictures: U8, twin: Network) -> tuple[Tensor, npt.NDArray[np.int64]]:
    """Return what the twin's eye sees of the top and the bottom of each photograph, and which photograph it is."""
    _, rows, columns, _ = pictures.shape
    height = min(rows, round(columns * twin.eye.height / twin.eye.width))
    parts = [twin.eye.see(pictures[:, top : top + height]) for top in (0, rows - height)]
    return torch.cat(parts), np.tile(np.arange(len(pictures)), 2)


@torch.inference_mode()
def answered(
    twin: Network, units: tuple[int, ...], pictures: Tensor, photograph: npt.NDArray[np.int64]
) -> Simulated:
    """Return what the units answer to the pictures."""
    device = next(twin.parameters()).device
    wanted = torch.tensor(units, device=device)
    parts = [
        twin.rates(pictures[k : k + AT_ONCE].to(device), wanted).cpu() for k in range(0, len(pictures), AT_ONCE)
    ]
    return Simulated(pictures, photograph, torch.cat(parts).clamp_min(0).numpy())


def trained(
    data: Simulated,
    half: npt.NDArray[np.int64],
    units: tuple[str, ...],
    twin: Network,
    asked: AgreementBench,
    number: int,
    say: Callable[[str], None],
) -> tuple[Network, int]:
    """Fit a network to the pictures of half of the photographs; return it, and how many epochs that took."""
    mine = np.flatnonzero(np.isin(data.photograph, half))
    held_out = np.isin(data.photograph[mine], half[: round(len(half) * HELD_OUT)])
    seed = 2 * asked.seed + number
    network = Network(ARCHITECTURE, twin.eye, {SESSION: units}, seed)
    pictures, responses = data.pictures[mine].clone(), data.responses[mine]
    place(network, pictures[~held_out], responses[~held_out])
    recording = Recording(pictures, np.arange(len(mine)), responses, held_out)
    epochs = 0
    for stage, (rate, share) in enumerate(STAGES):
        training = TRAINING.model_copy(update={"rate": rate, "most_epochs": max(1, round(share * asked.epochs))})
        fit = Fit(network, {SESSION: recording}, training, seed + stage, fresh=() if stage else None)
        while not fit.step():
            pass
        network, epochs = fit.finish(), epochs + fit.progress.epoch
        say(f"epoch {epochs}: held-out correlation {fit.progress.best:.3f}")
    return network, epochs


def place(network: Network, pictures: Tensor, responses: F32) -> None:
    """Put each unit's point where pictures go best with its responses: from far away no gradient finds it.

    Two maps are added: contrast of the response-weighted average of pictures, for units that know light from dark, and
    the correlation of responses with local contrast, for those that do not; each relative to its usual deviation.
    """
    readout = network.of(SESSION).readout
    if not isinstance(readout, Point):
        raise TypeError(f"a point readout is needed, not {type(readout).__name__}")
    x = pictures[:, 0].numpy()
    fine = x - ndimage.gaussian_filter(x, (0, COARSE_PX, COARSE_PX))
    window = (0, WINDOW_PX, WINDOW_PX)
    energy = np.sqrt(ndimage.gaussian_filter(fine**2, window))
    weights = (responses - responses.mean(0)).T / len(x)
    light, contrast = (np.einsum("un,nyx->uyx", weights, v / v.std(0)) for v in (fine, energy - energy.mean(0)))
    rows, columns = readout.shape[1:]
    top, left = ((size - of) // 2 for size, of in zip(x.shape[1:], (rows, columns), strict=True))
    found = np.zeros((len(weights), rows * columns))
    for seen in (np.sqrt(ndimage.gaussian_filter(light**2, window)), contrast):
        flat = seen[:, top : top + rows, left : left + columns].reshape(len(seen), -1)
        away = flat - np.median(flat, axis=1, keepdims=True)
        found += away / np.median(np.abs(away), axis=1, keepdims=True)
    best = found.argmax(1)
    y, across = np.divmod(best, columns)
    at = np.stack([across / (columns - 1), y / (rows - 1)], 1) * 2 - 1
    with torch.no_grad():
        readout.mu.copy_(torch.from_numpy(at))


@torch.inference_mode()
def heard(network: Network, data: Simulated, photographs: npt.NDArray[np.int64]) -> list[float]:
    """Return each unit's correlation of prediction and response over pictures of photographs not trained on."""
    rows = np.flatnonzero(np.isin(data.photograph, photographs))
    parts = [network.rates(data.pictures[rows[k : k + AT_ONCE]]) for k in range(0, len(rows), AT_ONCE)]
    predicted, true = torch.cat(parts).double().numpy(), data.responses[rows].astype(np.float64)
    predicted, true = (v - v.mean(0) for v in (predicted, true))
    spread = np.sqrt((predicted**2).sum(0) * (true**2).sum(0))
    return [float(r) for r in (predicted * true).sum(0) / np.where(spread > 0, spread, np.inf)]


def images_of(encoder: Network, columns: tuple[int, ...], asked: AgreementBench, rng: np.random.Generator) -> Images:
    """Return the images of units, from starts drawn anew."""
    starts = draw(asked.starts, len(columns), encoder.eye, asked.settings, rng)
    device = next(encoder.parameters()).device
    return Images(encoder, columns, synthesise(encoder, Maximise(columns), starts, asked.settings, device))
