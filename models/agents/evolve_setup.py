"""Makes the evolve agent of a phase: its targets, groups by place, references, start codes, optimisers.

Called by the builder.
"""

import base64
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from models.agents.carried import Carried, place_for, references_of, units_of
from models.agents.evolution import Evolution
from models.agents.evolve import Evolve, Group
from models.agents.references import references
from models.agents.types import F32
from models.generators.factory import build_generator
from rig.config.evolution import NaturalStart, SavedCodes, SavedStart
from rig.config.generators import AnyGenerator
from rig.config.phases import EvolvePhase
from rig.config.targets import Target
from stimuli.bank import Bank
from stimuli.generators.generator import Generator
from stimuli.search.drift import Drift
from stimuli.search.factory import build_optimiser
from stimuli.spec import BankImage, Place

NATURAL = "natural"
Shape = Callable[[Place | None], tuple[int, int]]  # height and width, pixels, of images at a place


def build_evolve(
    phase: EvolvePhase,
    phase_index: int,
    seed: int,
    units: tuple[str, ...],
    shape: Shape,
    background: int,
    banks: Mapping[str, Bank],
    carried: Sequence[Carried],
    place: Place | None,
    usual: Place,
) -> Evolve:
    """Return the agent; arguments as for `models.agents.builder.build`.

    `place`: where the phase's images lie, None: `usual`, what the config's `stimulus` says. Each target has an
    optimiser with a random stream of its own, so that what one does changes nothing for another.
    """
    where = f"phases.{phase_index}"
    targets = phase.objectives(units_of(carried))
    if not targets:
        raise ValueError(f"{where}.units: proposed, but no phase before it proposed a unit; name the units instead")
    if unknown := sorted({name for t in targets for name in t.named} - set(units)):
        raise ValueError(f"{where}.unit: {unknown[0]!r} is not among the scored units {list(units)}")
    by_place: dict[Place | None, list[Target]] = {}
    for target in targets:
        # As mapped: around the field of the one unit that a target is about, where it was found; else where all lie.
        alone = target.unit if phase.place == "mapped" and target.minus is None else None
        own = None if alone is None else place_for(carried, alone)
        by_place.setdefault(_place(target, own or place, usual), []).append(target)
    rng = np.random.default_rng([seed, phase_index])
    # References of a place come once in a round of all places' batches: drift is told from round to round.
    window = max(50.0, float(phase.per_generation(len(targets))))
    groups = []
    for its, of in by_place.items():
        generator = build_generator(phase.generator, *shape(its), background)
        evolutions = []
        for target in of:
            number = targets.index(target)
            prefix = f"p{phase_index}" if len(targets) == 1 else f"p{phase_index}-t{number}"
            stream = np.random.default_rng([seed, phase_index, number])
            start = _start(phase, where, target, units, generator, banks, carried, shape(its))
            optimiser = build_optimiser(phase.optimiser.settings(), generator.prior, stream, start)
            drift = Drift(window) if phase.correct_drift else None
            evolutions.append(Evolution(target, prefix, optimiser, generator, its, drift))
        count = phase.reference_count(len(of))
        names = banks[NATURAL].names
        if phase.references is not None and count > len(names):
            raise ValueError(f"{where}.references: {count}, but the natural bank has {len(names)} pictures")
        shown = references(count, of, units, carried, (NATURAL, names), its, rng)
        groups.append(Group(its, generator, tuple(evolutions), shown))
    return Evolve(phase, tuple(groups), units, rng)


def _place(target: Target, place: Place | None, usual: Place) -> Place | None:
    """Return where a target's images lie: as it says, else as the phase."""
    its = target.place or place
    if target.size_deg is None:
        return its
    return Place(center_deg=(its or usual).center_deg, size_deg=target.size_deg)


def _start(
    phase: EvolvePhase,
    where: str,
    target: Target,
    units: tuple[str, ...],
    generator: Generator,
    banks: Mapping[str, Bank],
    carried: Sequence[Carried],
    shape: tuple[int, int],
) -> F32 | None:
    if isinstance(phase.start, SavedStart):
        return saved_codes(phase.start, where, target, generator, phase.generator)
    if isinstance(phase.start, NaturalStart):
        return _encoded(phase.start, where, target, units, generator, banks, carried, shape)
    return None


def _encoded(
    start: NaturalStart,
    where: str,
    target: Target,
    units: tuple[str, ...],
    generator: Generator,
    banks: Mapping[str, Bank],
    carried: Sequence[Carried],
    shape: tuple[int, int],
) -> F32:
    """Return codes of the best measured pictures, best first; of the natural bank's first ones without any."""
    encode = getattr(generator, "encode", None)
    if encode is None:
        raise ValueError(f"{where}.start: {generator.name} cannot turn pictures into codes; leave start out, or choose "
                         "a generator that can (docs/generators.md)")  # fmt: skip
    known = [(target.sign * float(target.value(m.rate_hz, units)), m.stimulus.spec) for m in references_of(carried)]
    best = [spec for value, spec in sorted(known, key=lambda pair: -pair[0])
            if np.isfinite(value) and isinstance(spec, BankImage) and spec.bank in banks]  # fmt: skip
    specs = best or [BankImage(bank=NATURAL, name=name) for name in banks[NATURAL].names]
    frames = [banks[spec.bank].image(spec.name, *shape) for spec in specs[: start.images]]
    codes: F32 = encode(np.stack(frames))
    return codes


def saved_codes(
    start: SavedStart, where: str, target: Target, generator: Generator, settings: AnyGenerator
) -> F32:
    """Return the codes (n, latent) that the config holds of another session; raises ValueError if they do not fit."""
    named = [one for one in start.codes if one.target == (start.target or target.title)]
    saved = named or (list(start.codes) if start.target is None and len(start.codes) == 1 else [])
    if not saved:
        there = ", ".join(one.target for one in start.codes) or "none; the config was not read by this program's run"
        raise ValueError(f"{where}.start: {start.session} has no evolution of {start.target or target.title!r} "
                         f"(it has: {there}); name it with start.target")  # fmt: skip
    if saved[0].size != generator.latent_size or not _made_by(saved[0], generator, settings):
        raise ValueError(
            f"{where}.start: the codes of {start.session} are of {saved[0].generator} ({saved[0].size} numbers), this "
            f"phase's generator is {generator.name} ({generator.latent_size}), with other weights or settings; use the "
            "same generator"
        )
    flat = np.frombuffer(base64.b64decode(saved[0].float32_base64), "<f4").astype(np.float32)
    return flat.reshape(-1, saved[0].size)[: start.images]


def _made_by(codes: SavedCodes, generator: Generator, settings: AnyGenerator) -> bool:
    """Return whether codes mean the same to `generator`, of `settings`: it may differ in size and contrast of frames.

    A generator's name holds a hash of all that decides a frame. So with that day's frames it has that day's name.
    """
    if codes.generator.rsplit("-", 1)[0] != generator.name.rsplit("-", 1)[0]:
        return False
    if codes.frame_px is None or codes.background is None:  # filled in by an earlier version
        return True
    same = settings.model_copy(update={"contrast": codes.contrast})
    try:
        return build_generator(same, *codes.frame_px, codes.background).name == codes.generator
    except ValueError:
        return False
