"""An evolution of several targets as the report draws it: for each target the session as if it were about that alone.

Used by `rig.report.page`, `rig.report.figures` (through the sessions that this makes) and `rig.report.confirmation`.
"""

import copy

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from rig.config.phases import EvolvePhase
from rig.config.targets import Target
from rig.report.data import Session

F64 = npt.NDArray[np.float64]


def targets_of(session: Session, phase: int) -> tuple[Target, ...]:
    """Return the objectives of an evolve phase; units that it was proposed are taken from the logged scores."""
    phases = session.config.get("phases", [])
    if not 0 <= phase < len(phases) or phases[phase].get("agent") != "evolve":
        return ()
    try:
        said = EvolvePhase.model_validate(phases[phase])
    except ValidationError:  # of another version of the program: its report is then about the first unit
        return ()
    if said.units != "proposed":
        return said.objectives()
    here = session.column("model/scores/phase") == phase
    proposed = dict.fromkeys(np.array(session.texts("model/scores/target"))[here].tolist())
    units = dict.fromkeys(name.split(" at ")[0] for name in proposed)
    return said.objectives(tuple(name for name in units if name in session.units))


def values(session: Session, target: Target) -> F64:
    """Return the target's value of each presentation, NaN where there is none."""
    if unknown := [name for name in target.named if name not in session.units]:
        raise ValueError(f"{target.title}: {unknown[0]!r} is not among the scored units")
    return target.value(session.rate_hz, tuple(session.units))


def about(session: Session, phase: int, target: Target, number: int) -> Session:
    """Return the session as if phase number `phase` evolved for this target alone, its target number `number`.

    Images of its other targets are left out, and references that lay elsewhere or had another size: to a neuron these
    are other images. Its rates are the target's values, as the neurons gave them; `aim` says what is better.
    """
    out = copy.copy(session)
    here = session.phase == phase
    ids = session.stimulus_id.astype(str)
    own = here & np.char.startswith(ids, f"p{phase}-t{number}-")
    other = here & np.char.startswith(ids, f"p{phase}-t") & ~own
    if own.any():
        place = np.nan_to_num(session.place)
        other |= here & (session.role == "reference") & (place != place[np.flatnonzero(own)[0]]).any(axis=1)
    out.usable = session.usable & ~other
    out.aim = target.sign
    if target.unit is not None and target.minus is None:
        name, out.rate_hz = target.unit, session.rate_hz.copy()
    else:
        name = target.title
        out.units = [*session.units, name]
        out.rate_hz = np.column_stack([session.rate_hz, values(session, target)])
    out.rate_hz[other] = np.nan
    phases = [dict(p) for p in session.config["phases"]]
    phases[phase] |= {"unit": name}
    out.config = {**session.config, "phases": phases}
    return out


def each_target(session: Session, phase: int) -> list[tuple[str, str, Session]]:
    """Return for each target of an evolution a part of file names, its title, and the session about it alone."""
    targets = targets_of(session, phase)
    named = len(targets) == 1 and targets[0].unit is not None and targets[0].minus is None and not targets[0].suppress
    if not targets or (named and session.config["phases"][phase].get("unit") == targets[0].unit):
        return [("", "", session)]
    return [(f"_t{k}", t.title, about(session, phase, t, k)) for k, t in enumerate(targets)]
