"""Makes the agent of a phase from the config: the one place that knows which agents, banks and generators exist.

Used by the model server and by replay; the same config and seed give the same agent. Opens no picture: only the
names of the banks' pictures are needed to choose.
"""

from collections.abc import Callable, Mapping

import numpy as np

from models.agents.evolve import Evolve
from models.agents.present import Present
from models.agents.types import F64, Agent
from rig.config.phases import EvolvePhase, PresentPhase
from rig.config.session import Config
from stimuli.bank import Bank, folder_bank, natural_bank
from stimuli.generators import DctGenerator
from stimuli.geometry import image_rect, pixel_angles
from stimuli.spec import BankImage, Grating, Stimulus

AnyPhase = PresentPhase | EvolvePhase

GRATINGS = "gratings"
NATURAL = "natural"
ORIENTATIONS_DEG = (0.0, 22.5, 45.0, 67.5, 90.0, 112.5, 135.0, 157.5)
CYCLES_PER_IMAGE = (4.0, 2.0, 8.0)  # coarse to fine, the middle first: a short set then has all orientations of one
MAX_ID = 80  # of Stimulus.id


def build_from_config(config: Config) -> Callable[[int], Agent]:
    """Return a function that makes the agent of phase number k of `config`."""
    display, place = config.display, config.stimulus
    rect = image_rect(display.size_px, display.width_cm, display.distance_cm, place.size_deg, place.center_deg)
    angles = pixel_angles(rect, display.size_px, display.width_cm, display.distance_cm)
    banks = {NATURAL: natural_bank(), **{name: folder_bank(path, name) for name, path in config.banks.items()}}

    def make(phase_index: int) -> Agent:
        phase = config.phases[phase_index]
        return build(phase, phase_index, config.seed, config.responses.units, angles, display.background, banks)

    return make


def build(
    phase: AnyPhase,
    phase_index: int,
    seed: int,
    units: tuple[str, ...],
    angles: tuple[F64, F64],
    background: int,
    banks: Mapping[str, Bank],
) -> Agent:
    """Return the agent of a phase.

    `seed` and `phase_index` start its random generator; `units` are the scored units in the order of the responses;
    `angles` are azimuth and elevation of the image's pixels, degrees, each (y, x), which fix the frames' shape and
    the gratings; `background` is the grey level around the image; `banks` by name, "natural" among them for references.
    """
    rng = np.random.default_rng([seed, phase_index])
    height, width = angles[0].shape
    if isinstance(phase, PresentPhase):
        stimuli = _fixed_set(phase, phase_index, banks, angles, rng)
        return Present(stimuli, phase.repeats, phase.blanks, len(units), (height, width), rng)
    if phase.unit not in units:
        raise ValueError(f"phases.{phase_index}.unit: {phase.unit!r} is not among the scored units {list(units)}")
    settings = phase.generator
    generator = DctGenerator(height, width, settings.frequencies, settings.falloff, settings.contrast, background)
    names = banks[NATURAL].names
    if phase.references > len(names):
        raise ValueError(
            f"phases.{phase_index}.references: {phase.references}, but the natural bank has {len(names)} pictures"
        )
    chosen = sorted(rng.choice(len(names), phase.references, replace=False).tolist())
    references = tuple(Stimulus(id=f"ref-{names[k]}", spec=BankImage(bank=NATURAL, name=names[k])) for k in chosen)
    return Evolve(phase, phase_index, units.index(phase.unit), len(units), generator, references, rng)


def gratings(angles: tuple[F64, F64]) -> list[Stimulus]:
    """Return gratings of 8 orientations, 3 frequencies and 2 opposite phases that fit the image, coarse set first."""
    size_deg = float(angles[0].max() - angles[0].min())
    out = []
    for phase_deg in (0.0, 180.0):
        for cycles in CYCLES_PER_IMAGE:
            frequency = round(cycles / size_deg, 4)
            for orientation in ORIENTATIONS_DEG:
                spec = Grating(orientation_deg=orientation, cycles_per_deg=frequency, phase_deg=phase_deg, contrast=1.0)
                out.append(Stimulus(id=f"grating-o{orientation:05.1f}-f{frequency:g}-p{phase_deg:03.0f}", spec=spec))
    return out


def _bank_stimuli(bank: str, names: tuple[str, ...]) -> list[Stimulus]:
    out = []
    for name in names:
        identity = f"{bank}-{name}"
        if len(identity) > MAX_ID:
            raise ValueError(f"image bank {bank!r}: {name!r} is longer than {MAX_ID - len(bank) - 1} letters")
        out.append(Stimulus(id=identity, spec=BankImage(bank=bank, name=name)))
    return out


def _fixed_set(
    phase: PresentPhase,
    phase_index: int,
    banks: Mapping[str, Bank],
    angles: tuple[F64, F64],
    rng: np.random.Generator,
) -> tuple[Stimulus, ...]:
    """Take `phase.count` stimuli from the banks in turn; pictures of a bank at random, gratings in their order."""
    pools: list[list[Stimulus]] = []
    for name in dict.fromkeys(phase.images):
        if name == GRATINGS:
            pools.append(gratings(angles))
        elif name in banks:
            pool = _bank_stimuli(name, banks[name].names)
            pools.append([pool[k] for k in rng.permutation(len(pool))])
        else:
            raise ValueError(
                f"phases.{phase_index}.images: no image bank named {name!r}; "
                f"use {GRATINGS}, {', '.join(sorted(banks))}, or add a folder under banks"
            )
    available = sum(len(pool) for pool in pools)
    if phase.count > available:
        raise ValueError(
            f"phases.{phase_index}.count: {phase.count}, but {', '.join(phase.images)} have {available} images together"
        )
    chosen: list[Stimulus] = []
    while len(chosen) < phase.count:
        for pool in pools:
            if pool and len(chosen) < phase.count:
                chosen.append(pool.pop(0))
    return tuple(chosen)
