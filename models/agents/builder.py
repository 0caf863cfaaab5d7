"""Makes the agent of a phase from the config: the one place that knows which agents, banks and generators exist.

Used by the model server and by replay; the same config and seed give the same agent. Opens no picture: only the
names of the banks' pictures are needed to choose.
"""

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from models.agents.carried import Carried, fields_of, locked_of, place_of
from models.agents.confirm import Confirm, fixed_set
from models.agents.evolve_setup import NATURAL, Shape, build_evolve
from models.agents.map import Map
from models.agents.present import Present
from models.agents.screen import Screen, Timing
from models.agents.types import F64, Agent
from rig.config.control import ControlPhase
from rig.config.inception import InceptionPhase
from rig.config.phases import ConfirmPhase, EvolvePhase, MapPhase, PresentPhase, ScreenPhase
from rig.config.places import angles_of, rect_of, usual
from rig.config.revisit import RevisitPhase
from rig.config.session import Config
from stimuli.bank import Bank, folder_bank, natural_bank
from stimuli.spec import BankImage, Grating, Place, Stimulus
from stimuli.tiles import built_in_banks

AnyPhase = PresentPhase | EvolvePhase | ConfirmPhase

GRATINGS = "gratings"
ORIENTATIONS_DEG = (0.0, 22.5, 45.0, 67.5, 90.0, 112.5, 135.0, 157.5)
CYCLES_PER_IMAGE = (4.0, 2.0, 8.0)  # coarse to fine, the middle first: a short set then has all orientations of one
MAX_ID = 80  # of Stimulus.id


class Build(Protocol):
    """Makes the agents of one config."""

    def __call__(self, phase_index: int, carried: tuple[Carried, ...] = ()) -> Agent:
        """Return the agent of a phase, given what the phases before it left."""
        ...


def build_from_config(config: Config) -> Build:
    """Return a function that makes the agent of phase number k of `config` from what the phases before it left."""
    display = config.display
    banks = {NATURAL: natural_bank(), **{name: folder_bank(path, name) for name, path in config.banks.items()}}

    def make(phase_index: int, carried: tuple[Carried, ...] = ()) -> Agent:
        phase, units = config.phases[phase_index], config.responses.units
        place = placed(phase, phase_index, carried)
        here = usual(config.stimulus) if place is None else place
        angles = angles_of(display, rect_of(display, here))
        if isinstance(phase, MapPhase | ScreenPhase):
            rng = np.random.default_rng([config.seed, phase_index])
            if isinstance(phase, MapPhase):
                return Map(phase, phase_index, units, here, display.background, shape(here), refusal, rng)
            stimuli = _fixed_set(phase, phase_index, banks, angles, rng)
            fields, psth = fields_of(carried), config.responses.psth
            window_s = locked_of(carried) or config.responses.window_s
            timing = None if psth is None else Timing(psth, window_s, lambda found_s: _refused(config, found_s))
            return Screen(phase, phase_index, stimuli, units, shape(here), rng, place, here, fields, timing)
        if isinstance(phase, RevisitPhase):
            from models.agents.revisit_setup import build_revisit  # as rare as inception phases

            rng = np.random.default_rng([config.seed, phase_index])
            return build_revisit(phase, phase_index, units, shape(here), rng, place)
        if isinstance(phase, InceptionPhase | ControlPhase):
            return inception(phase, phase_index, shape(here), place)
        return build(phase, phase_index, config.seed, units, angles, display.background, banks, carried, place, shape)

    def inception(
        phase: InceptionPhase | ControlPhase, phase_index: int, its_shape: tuple[int, int], place: Place | None
    ) -> Agent:
        from models.agents.control import Control  # torch: 2 s that only these need
        from models.agents.inception_setup import build_inception

        drawn = {**banks, **built_in_banks(float(display.background), config.natural_contrast)}  # as the rig draws them
        rng = np.random.default_rng([config.seed, phase_index])
        if unknown := [name for name in phase.images if name not in drawn]:
            raise ValueError(f"phases.{phase_index}.images: no image bank named {unknown[0]!r}")
        pools = [_bank_stimuli(name, drawn[name].names) for name in phase.images]
        pools = [[pool[k] for k in rng.permutation(len(pool))] for pool in pools]
        units, grey = config.responses.units, display.background
        loop_phase = phase.loop() if isinstance(phase, ControlPhase) else phase
        loop = build_inception(loop_phase, phase_index, units, its_shape, grey, drawn, pools, rng, place)
        return Control(phase, loop) if isinstance(phase, ControlPhase) else loop

    def shape(its: Place | None) -> tuple[int, int]:
        rect = rect_of(display, usual(config.stimulus) if its is None else its)
        return rect.height, rect.width

    def refusal(its: Place) -> str:
        try:
            rect_of(display, its)
        except ValueError as error:
            return str(error)
        return ""

    return make


def _refused(config: Config, window_s: tuple[float, float]) -> str:
    """Return why responses could not be measured in a window that was found in the session, "" if they can."""
    why, base = [*config.window_mistakes(window_s)], config.responses.baseline
    if base.kind != "none" and base.window_s[0] < window_s[1] and window_s[0] < base.window_s[1] - 1e-9:
        span = f"{base.window_s[0] * 1e3:.0f} to {base.window_s[1] * 1e3:.0f} ms"
        why.append(f"responses.baseline.window_s, {span}, holds the beginning of the answer; end it earlier")
    return "; ".join(why)


def placed(
    phase: AnyPhase | MapPhase | ScreenPhase | InceptionPhase | ControlPhase | RevisitPhase,
    phase_index: int,
    carried: tuple[Carried, ...],
) -> Place | None:
    """Return where the images of a phase lie; None: where the config's `stimulus` says.

    Raises ValueError where they are to lie as mapped, and no earlier phase found a place.
    """
    wanted = getattr(phase, "place", None)
    if wanted != "mapped":
        return wanted
    found = place_of(carried)
    if found is None:
        raise ValueError(
            f"phases.{phase_index}.place: mapped, but no phase before it found a place; see why in the report, or give "
            "center_deg and size_deg"
        )
    return found


def build(
    phase: AnyPhase,
    phase_index: int,
    seed: int,
    units: tuple[str, ...],
    angles: tuple[F64, F64],
    background: int,
    banks: Mapping[str, Bank],
    carried: tuple[Carried, ...] = (),
    place: Place | None = None,
    shape: Shape | None = None,
) -> Agent:
    """Return the agent of a phase.

    `seed` and `phase_index` start its random generator; `units` are the scored units in the order of the responses;
    `angles` are azimuth and elevation of the image's pixels, degrees, each (y, x), which fix the frames' shape and
    the gratings; `background` is the grey level around the image; `banks` by name, "natural" among them for references;
    `carried`: what earlier phases left, in their order; `place`: where the images lie that `angles` are of; `shape`
    gives height and width of images at other places (None: there are none).
    """
    rng = np.random.default_rng([seed, phase_index])
    height, width = angles[0].shape
    if isinstance(phase, PresentPhase):
        stimuli = _fixed_set(phase, phase_index, banks, angles, rng)
        return Present(stimuli, phase.repeats, phase.blanks, len(units), (height, width), rng, place)
    if isinstance(phase, ConfirmPhase):
        chosen = fixed_set(phase, f"phases.{phase_index}", units, carried)
        return Confirm(chosen, phase, units, (height, width), rng)
    return build_evolve(
        phase, phase_index, seed, units, shape or _only(angles), background, banks, carried, place, usual_place(angles)
    )


def usual_place(angles: tuple[F64, F64]) -> Place:
    """Return the place of the pixels `angles` (azimuth and elevation, each (y, x)), degrees."""
    azimuth, elevation = angles
    center = (float(azimuth.max() + azimuth.min()) / 2, float(elevation.max() + elevation.min()) / 2)
    return Place(center_deg=center, size_deg=float(azimuth.max() - azimuth.min()))


def _only(angles: tuple[F64, F64]) -> Shape:
    height, width = angles[0].shape
    return lambda _: (height, width)


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
    phase: PresentPhase | ScreenPhase,
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
