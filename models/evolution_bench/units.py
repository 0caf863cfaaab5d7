"""Draws the units of a bench and measures how they answer the natural images; finds those images.

A V4 unit's scale a and offset b are fitted to its recorded averages where the folder has them; without, and for deep
units, a = 1.3 and b gives a mean of 2.4 counts on the natural images (`models.truth_v4`).
"""

import io
import re
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from models.evolution_bench.populations import neuron, raw_output
from models.truth_v4 import (
    DEFAULT_MEAN_COUNT,
    DEFAULT_SCALE,
    fit_rate,
    offset_for_mean,
    recorded_counts,
    recorded_images,
)
from rig.config.evolution_bench import SIDE, BenchUnit, Population
from rig.config.reading import ConfigError
from stimuli.bank import natural_bank
from stimuli.limits import frame_levels

F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]

FIT_IMAGES = 400
REFERENCES = 8
NATURAL_SEED = 400
SUFFIXES = (".jpg", ".jpeg", ".png")


def natural_images(archive: Path | None, count: int) -> U8:
    """Return `count` natural images (image, 112, 112, rgb), from a zip file or else crops of the shipped bank.

    Of a zip, images at even steps through the sorted names; raises ConfigError if it has fewer than `count`. Crops of
    the bank are drawn with a fixed seed: place, size (half to whole) and mirror image.
    """
    if archive is None:
        return _bank_crops(count)
    try:
        with zipfile.ZipFile(archive) as file:
            names = sorted(
                (n for n in file.namelist() if n.lower().endswith(SUFFIXES) and "__MACOSX" not in n),
                key=lambda n: n.rpartition("/")[2],
            )
            if len(names) < count:
                raise ConfigError(f"--images {archive}: {len(names)} pictures, {count} asked for; lower --natural")
            chosen = [names[k] for k in np.linspace(0, len(names) - 1, count).round().astype(int)]
            return np.stack([_square(Image.open(io.BytesIO(file.read(n))).convert("RGB")) for n in chosen])
    except (OSError, zipfile.BadZipFile, UnidentifiedImageError) as error:
        raise ConfigError(f"--images {archive}: {error}; give a zip file of JPEG or PNG pictures") from error


def _square(picture: Image.Image) -> U8:
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    cut = picture.crop((left, top, left + side, top + side))
    if side != SIDE:
        cut = cut.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(cut, dtype=np.uint8)


def _bank_crops(count: int) -> U8:
    rng = np.random.default_rng(NATURAL_SEED)
    bank = natural_bank()
    out = np.empty((count, SIDE, SIDE, 3), np.uint8)
    for k in range(count):
        whole = Image.fromarray(bank.image(bank.names[k % len(bank.names)], 2 * SIDE, 2 * SIDE))
        side = int(rng.integers(SIDE, 2 * SIDE + 1))
        left, top = (int(rng.integers(0, 2 * SIDE - side + 1)) for _ in range(2))
        cut = whole.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        frame = np.asarray(cut, dtype=np.uint8)
        out[k] = frame[:, ::-1] if rng.random() < 0.5 else frame
    return out


def contrast_of(images: U8) -> float:
    """Return the median RMS contrast (sd / 127.5) of images: what generators with a fixed contrast are matched to."""
    return float(np.median([frame_levels(image)[1] for image in images]))


def draw(population: Population, count: int, models: Path | None, images: U8) -> list[BenchUnit]:
    """Return the first `count` units of a population, with their answers to `images`; raises ConfigError."""
    if population == "v4":
        units = _v4(models, count)
    else:
        units = [BenchUnit(name=f"{population}/{k}", population=population, number=k) for k in range(count)]
    return [_characterised(unit, images) for unit in units]


def _v4(models: Path | None, count: int) -> list[BenchUnit]:
    """Return compact models, taken from the sessions of the folder in turn."""
    if models is None:
        raise ConfigError("population v4 needs --population PATH, the folder with models_torch/ and nums_filters/")
    pattern = re.compile(r"compact_model_(\w+)_neuron(\d+)\.pt$")
    found = sorted(
        (int(m[2]), m[1]) for p in (models / "models_torch").glob("*.pt") if (m := pattern.search(p.name)) is not None
    )
    if len(found) < count:
        raise ConfigError(
            f"--population {models}: {len(found)} compact models in its models_torch/, {count} asked for; "
            "lower --units, or give the folder that holds models_torch/ and nums_filters/"
        )
    return [
        BenchUnit(name=f"v4/{session}-{number}", population="v4", number=number, models=models, session=session)
        for number, session in found[:count]
    ]


def _characterised(unit: BenchUnit, images: U8) -> BenchUnit:
    """Return the unit with scale, offset and its answers to natural images (image, y, x, rgb)."""
    try:
        unit = unit.model_copy(update=_operating_point(unit, images))
        rates = neuron(unit)(images)
    except ConfigError as error:
        raise ConfigError(f"unit {unit.name}: {str(error).removeprefix('animal.models: ')}") from error
    mean, best = float(rates.mean()), float(rates.max())
    remarks = list(unit.remarks)
    if best - mean < 0.05 * max(mean, 0.1):
        remarks.append("hardly distinguishes natural images")
    steps = np.linspace(0, len(rates) - 1, REFERENCES).round().astype(int)
    update = {
        "natural_mean": mean,
        "natural_best": best,
        "natural_rates": tuple(float(r) for r in np.sort(rates)[steps]),
        "remarks": tuple(remarks),
    }
    return unit.model_copy(update=update)


def _operating_point(unit: BenchUnit, images: U8) -> dict[str, object]:
    if unit.population == "v1":
        return {}
    fitted = _fitted(unit) if unit.population == "v4" else None
    if fitted is not None:
        a, b = fitted
        return {"a": a, "b": b, "remarks": () if a > 0 else ("the model runs against the recording: a is negative",)}
    raw = raw_output(unit)(images)
    center, spread = 0.0, 1.0
    if unit.population == "deep":  # of an arbitrary scale; a compact model's is counts
        center, spread = float(raw.mean()), float(raw.std())
        if spread < 1e-9:
            raise ConfigError("its output is the same for all natural images; choose another --layer")
    b = offset_for_mean((raw - center) / spread, DEFAULT_SCALE, DEFAULT_MEAN_COUNT)
    return {"a": DEFAULT_SCALE, "b": b, "center": center, "spread": spread}


def _fitted(unit: BenchUnit) -> tuple[float, float] | None:
    """Return a and b of a compact model from recorded averages in its folder or the one above; None without any."""
    if unit.models is None or unit.session is None:
        return None
    for folder in (unit.models, unit.models.parent):
        averages = folder / "responses_averaged" / f"responses_{unit.session}.npy"
        if averages.exists() and (folder / "images" / f"images_{unit.session}.zip").exists():
            counts = recorded_counts(folder, unit.session)
            pictures = recorded_images(folder, unit.session, FIT_IMAGES)
            return fit_rate(raw_output(unit)(pictures), counts[unit.number, : len(pictures)])
    return None
