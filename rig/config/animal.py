"""The simulated animal of a config; the controller never reads this part."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from rig.config.part import Part
from rig.config.sources import BehaviourSimulation, CalciumSimulation, WireFaults


class ReceptiveField(Part):
    """Where the simulated cells see: at fixed angles, wherever images are shown."""

    center_deg: tuple[float, float] = Field(
        default=(0.0, 0.0), description="Centre of all receptive fields (right, up) from the screen's centre, degrees."
    )
    size_deg: float = Field(
        default=10.0, gt=0.1, le=60, description="Side of an image that would hold a cell (v4: that it sees), degrees."
    )
    scatter_deg: float | None = Field(
        default=None, ge=0, le=40,
        description="Their centres lie up to this far from it along each axis, degrees; null: 0.15 of size_deg.",
    )  # fmt: skip


# Fields that only one population takes.
_BELONGS = {"mix": "mixed", "weights": "twin", "numbers": "twin", "response_sd_hz": "twin"}
CellKind = Literal["simple", "complex", "curved", "both_parts", "surround"]


class Simulation(Part):
    """What `stimloop animal` simulates; the controller never reads this part."""

    population: Literal["v1", "v4", "mixed", "twin"] = Field(
        default="v1",
        description="v1: built-in Gabor cells; mixed: built-in cells of the kinds of `mix`; v4: published compact "
        "models from `models`; twin: a published model of mouse V1 from `weights`.",
    )
    mix: tuple[CellKind, ...] = Field(
        default=("simple", "complex", "curved", "both_parts", "surround"), min_length=1,
        description="Kinds that the cells of population mixed take in turn. simple, complex: Gabors; curved: bars that "
        "bend; both_parts: two Gabors, both needed; surround: a Gabor that its surround suppresses or facilitates.",
    )  # fmt: skip
    models: Path | None = Field(default=None, description="Folder of compact models, for population v4.")
    recorded: Path | None = Field(
        default=None, description="Folder with recorded averages and images, to fit the rates (v4)."
    )
    session: str | None = Field(default=None, description="Recording session whose neurons are taken (v4).")
    weights: Path | None = Field(
        default=None, description="File of the published model (SENSORIUM 2022, CNN), for population twin."
    )
    numbers: tuple[int, ...] | None = Field(
        default=None, min_length=1,
        description="Which neurons of the twin, 0 the first, as many as `neurons`; null: drawn with `seed` from those "
        "that look into the image.",
    )  # fmt: skip
    response_sd_hz: float = Field(
        default=30.0, gt=0, le=1000, description="Rate of the twin's neurons where it says one response sd, spikes/s."
    )
    neurons: int = Field(default=8, ge=1, le=20_000, description="Number of simulated neurons.")
    seed: int = Field(default=0, ge=0)
    receptive_field: ReceptiveField | None = Field(
        default=None, description="Where the cells see; null: within the image of `stimulus`."
    )
    useless: dict[str, Literal["constant", "untuned"]] = Field(
        default={},
        description="Unit name: constant fires at 6 spikes/s whatever is shown, untuned at 30 at any image.",
    )
    wire: Literal[
        "openephys", "openephys_events", "lsl", "lsl_counts", "lsl_calcium", "spikes_zmq", "traces_zmq"
    ] = "openephys"
    wire_faults: WireFaults = WireFaults()
    calcium: CalciumSimulation = CalciumSimulation()
    behaviour: BehaviourSimulation | None = None
    sync_port: Path | None = Field(
        default=None, description="File that is the simulated parallel port of sync.output; its device sees the line."
    )
    noise: Literal["none", "poisson", "overdispersed"] = "poisson"
    latency_s: float = Field(default=0.05, ge=0, le=0.3, description="From light to firing rate, s.")
    clock_ppm: float = Field(default=40.0, ge=-500, le=500, description="Drift of the device's clock, ppm.")
    clock_wander_ppm: float = Field(default=5.0, ge=0, le=100, description="Slow wander (20 min period) of it, ppm.")
    gain_drift: float = Field(default=0.0, ge=0, le=1, description="Slow gain drift, relative sd over 10 min.")
    dies: dict[str, float] = Field(default={}, description="Unit name: time after start at which it falls silent, s.")
    saccades: bool = Field(default=False, description="Small gaze jumps of the simulated eye.")
    blinks: bool = Field(default=False, description="The simulated eye closes now and then.")
    adaptation: bool = Field(default=False, description="Responses fall with recent activity.")
    carry_over: float = Field(
        default=0.0, ge=0, le=1, description="Fraction of the previous image's drive in the next response."
    )
    artefacts: bool = Field(default=False, description="Common-mode artefacts: spikes on all units at once.")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.population == "v4" and self.models is None:
            raise ValueError("population v4 needs models: give the folder of your copy of the compact models")
        if self.population == "twin":
            self._twin()
        for name, population in _BELONGS.items():
            if self.population != population and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is for population {population}, this is {self.population}; leave it out")
        nuisances = ("gain_drift", "adaptation", "carry_over", "artefacts", "saccades", "blinks")
        if self.noise == "none" and (on := [name for name in nuisances if getattr(self, name)]):
            raise ValueError(
                f"noise none means that a response depends on the image alone, and {on[0]} would change it; remove "
                f"{on[0]}, or choose poisson"
            )
        return self

    def _twin(self) -> None:
        if self.weights is None:
            raise ValueError("population twin needs weights: give the file of your copy of the published model")
        if self.numbers is not None and (
            len(self.numbers) != self.neurons or len(set(self.numbers)) != self.neurons or min(self.numbers) < 0
        ):
            raise ValueError(f"numbers must be {self.neurons} different ones (`neurons`), none below 0")
        if self.receptive_field is not None and self.receptive_field.scatter_deg is not None:
            raise ValueError("receptive_field.scatter_deg: the twin's neurons lie where they lie; leave it out")
