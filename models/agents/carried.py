"""What one phase leaves to those after it: where images should lie, which units are good, which images won.

An agent says it in `leaves()`; the server keeps it in its state, and so in its snapshots, and gives the facts of all
earlier phases to the builder of the next one. Everything in it follows from the log: a replay finds the same.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from rig.config.targets import Target
from stimuli.spec import Place, Stimulus

PLACED = re.compile(r"@(usual|-?[\d.e+-]+_-?[\d.e+-]+_[\d.e+-]+deg)$")  # the end of an identity by `placed_id`
LONGEST_STEM = 50

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Measured:
    """An image that was shown whatever the responses (a reference), and what each scored unit did to it."""

    stimulus: Stimulus
    rate_hz: F64
    """(unit,) mean over its usable presentations, in the order of the scored units; NaN where there was none."""
    presentations: npt.NDArray[np.int64]
    """(unit,) how many the mean is over."""
    place: Place | None = None
    """Where it lay; None: where the config's `stimulus` says."""


@dataclass(frozen=True)
class Nominated:
    """An image on which a phase would bet, chosen without a look at the responses to come."""

    target: str
    """Title of the objective that it was made for, one of `Carried.targets`."""
    source: str
    """What it is: "evolved" or "start"; of an inception phase the kind: "mei" or a control."""
    stimulus: Stimulus
    generator: str
    code: F32
    """(latent,)"""
    frame: U8
    """(y, x, rgb) as it was shown, before the gamma table."""
    estimate: float
    """Estimated score of the target, spikes/s; NaN where nothing is known of it (a start image)."""
    error: float
    """Standard error of that."""
    measurements: int
    """Usable presentations behind it."""
    place: Place | None = None
    """Where it was shown; None: where the config's `stimulus` says."""


@dataclass(frozen=True)
class EvolutionEnd:
    """Where one evolution stood when its phase ended."""

    target: str
    generator: str
    codes: F32
    """(n, latent) the newest population, best estimate first."""
    scores: F64
    """(n,) their estimated scores, NaN where none."""
    center: F32 | None
    """(latent,) the optimiser's search mean, if it has one."""


@dataclass(frozen=True)
class Screened:
    """What a screen measured of all scored units, for those who watch some of them later."""

    units: tuple[str, ...]
    """In the order of the responses."""
    reliability: F64
    """(unit,) of the mean rates of its references, 0 to 1; NaN where too little was measured."""
    blank_hz: F64
    """(unit,) mean rate to blanks."""


class Leaves(TypedDict, total=False):
    """What an agent may leave: any of the fields of `Carried`."""

    place: Place | None
    fields: dict[str, Place]
    places: dict[str, Place]
    units: tuple[str, ...]
    window_s: tuple[float, float] | None
    locked_s: tuple[float, float] | None
    screened: Screened | None
    targets: tuple[Target, ...]
    images: tuple[Nominated, ...]
    references: tuple[Measured, ...]
    ends: tuple[EvolutionEnd, ...]


@dataclass(frozen=True)
class Carried:
    """What a finished phase left; a phase whose agent failed leaves nothing."""

    phase: int
    """Index of the phase that left it."""
    agent: str
    """Its agent, as the config names it."""
    place: Place | None = None
    """Where images of later phases should lie."""
    fields: dict[str, Place] = field(default_factory=dict)
    """Receptive fields that it found: centre and diameter (4 sigma) of each unit that has one, by name."""
    places: dict[str, Place] = field(default_factory=dict)
    """Where images for one unit alone should lie, by name."""
    units: tuple[str, ...] = ()
    """Units that it proposes, the best first."""
    window_s: tuple[float, float] | None = None
    """Response window that it found, s from the onset."""
    locked_s: tuple[float, float] | None = None
    """Response window of all phases after it, s from the onset; None: as before it."""
    screened: Screened | None = None
    targets: tuple[Target, ...] = ()
    """Objectives that it evolved images for."""
    images: tuple[Nominated, ...] = ()
    """For each target and source, the best bet first."""
    references: tuple[Measured, ...] = ()
    ends: tuple[EvolutionEnd, ...] = ()

    def state(self) -> dict[str, Any]:
        """Return arrays and JSON-able values."""
        return {
            "phase": self.phase,
            "agent": self.agent,
            "place": _place_state(self.place),
            "fields": {name: _place_state(one) for name, one in self.fields.items()},
            "places": {name: _place_state(one) for name, one in self.places.items()},
            "units": list(self.units),
            "window_s": None if self.window_s is None else list(self.window_s),
            "locked_s": None if self.locked_s is None else list(self.locked_s),
            "screened": None if self.screened is None else {**vars(self.screened), "units": list(self.screened.units)},
            "targets": [target.model_dump(mode="json") for target in self.targets],
            "images": [
                {**vars(n), "stimulus": n.stimulus.model_dump(mode="json"), "place": _place_state(n.place)}
                for n in self.images
            ],
            "references": [
                {**vars(m), "stimulus": m.stimulus.model_dump(mode="json"), "place": _place_state(m.place)}
                for m in self.references
            ],
            "ends": [dict(vars(e)) for e in self.ends],
        }

    @staticmethod
    def restored(state: dict[str, Any]) -> "Carried":
        """Return what `state` was taken of."""
        return Carried(
            phase=state["phase"],
            agent=state["agent"],
            place=_place(state["place"]),
            fields={name: Place.model_validate(one) for name, one in state["fields"].items()},
            places={name: Place.model_validate(one) for name, one in state["places"].items()},
            units=tuple(state["units"]),
            window_s=_span(state["window_s"]),
            locked_s=_span(state["locked_s"]),
            screened=None if (s := state["screened"]) is None else Screened(**{**s, "units": tuple(s["units"])}),
            targets=tuple(Target.model_validate(t) for t in state["targets"]),
            images=tuple(
                Nominated(**{**n, "stimulus": Stimulus.model_validate(n["stimulus"]), "place": _place(n["place"])})
                for n in state["images"]
            ),
            references=tuple(
                Measured(**{**m, "stimulus": Stimulus.model_validate(m["stimulus"]), "place": _place(m["place"])})
                for m in state["references"]
            ),
            ends=tuple(EvolutionEnd(**e) for e in state["ends"]),
        )


def _place_state(place: Place | None) -> dict[str, Any] | None:
    return None if place is None else place.model_dump(mode="json")


def _place(state: dict[str, Any] | None) -> Place | None:
    return None if state is None else Place.model_validate(state)


def _span(state: list[float] | None) -> tuple[float, float] | None:
    return None if state is None else (state[0], state[1])


def placed_id(name: str, place: Place | None, unless: Place | None) -> str:
    """Return the identity of the image `name`, which lay at `unless`, at `place`: elsewhere it is another image."""
    if place == unless:
        return name
    where = "usual"
    if place is not None:
        x, y = place.center_deg
        where = f"{x:g}_{y:g}_{place.size_deg:g}deg"
    stem = PLACED.sub("", name)
    if len(stem) > LONGEST_STEM:  # names of a folder may differ at their ends only
        stem = f"{stem[: LONGEST_STEM - 9]}~{sha256(stem.encode()).hexdigest()[:8]}"
    return f"{stem}@{where}"


# --- what later phases ask --------------------------------------------------------------------------------------------


def place_of(carried: Sequence[Carried]) -> Place | None:
    """Return the newest place that a phase left, None if none did."""
    return next((c.place for c in reversed(carried) if c.place is not None), None)


def place_for(carried: Sequence[Carried], unit: str) -> Place | None:
    """Return the newest place for images of one unit, None if no phase found its receptive field."""
    return next((c.places[unit] for c in reversed(carried) if unit in c.places), None)


def fields_of(carried: Sequence[Carried]) -> dict[str, Place] | None:
    """Return the receptive fields that the newest phase that mapped found, by unit; None if none mapped."""
    return next((c.fields for c in reversed(carried) if c.agent == "map"), None)


def units_of(carried: Sequence[Carried]) -> tuple[str, ...]:
    """Return the units that the newest phase with a proposal left, the best first; () if none did."""
    return next((c.units for c in reversed(carried) if c.units), ())


def window_of(carried: Sequence[Carried]) -> tuple[float, float] | None:
    """Return the newest response window that a phase left, s; None if none did."""
    return next((c.window_s for c in reversed(carried) if c.window_s is not None), None)


def locked_of(carried: Sequence[Carried]) -> tuple[float, float] | None:
    """Return the response window that the newest phase with one has locked, s; None if none did."""
    return next((c.locked_s for c in reversed(carried) if c.locked_s is not None), None)


def references_of(carried: Sequence[Carried]) -> tuple[Measured, ...]:
    """Return every reference that was measured, over all phases: means are pooled by number of presentations.

    The same picture at two places is two images.
    """
    pooled: dict[tuple[str, Place | None], Measured] = {}
    for one in (m for c in carried for m in c.references):
        key = one.stimulus.id, one.place
        pooled[key] = _pool(pooled[key], one) if key in pooled else one
    return tuple(pooled.values())


def _pool(a: Measured, b: Measured) -> Measured:
    total = a.presentations + b.presentations
    summed = np.nan_to_num(a.rate_hz) * a.presentations + np.nan_to_num(b.rate_hz) * b.presentations
    return Measured(b.stimulus, np.where(total > 0, summed / np.maximum(total, 1), np.nan), total, b.place)
