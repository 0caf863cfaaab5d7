"""Who is recorded, in which experiment and with what: what the log, the report and the exports say about the data.

Part of `rig.config.session`; nothing here changes what a session does. `lacking` says what an NWB file for DANDI would
miss.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from rig.config.part import Part

BINOMIAL = re.compile(r"[A-Z][a-z]+ [a-z]+( [a-z]+)?|https?://purl\.obolibrary\.org/obo/NCBITaxon_\d+")
# ISO 8601: years, months, weeks, days, then hours, minutes, seconds.
PART = r"(\d+(\.\d+)?{})?"
DAYS, HOURS = ("".join(map(PART.format, letters)) for letters in ("YMWD", "HMS"))
DURATION = re.compile(f"P(?=.){DAYS}(T(?=.){HOURS})?")
NAME = re.compile(r"[^,]+, [^,]+")
Wavelength = Annotated[float, Field(gt=200, lt=2000)]


class Subject(Part):
    """Who is recorded; copied into the log and the exports."""

    id: str = Field(default="simulated", min_length=1, description="Subject identifier.")
    species: str = Field(default="simulated animal", description="Latin binomial for a real animal.")
    sex: Literal["M", "F", "U", "O"] = "U"
    age: str = Field(default="", description="Age at the session, ISO 8601 duration, for example P90D or P7Y.")
    date_of_birth: Annotated[str, BeforeValidator(str)] = Field(  # YAML makes a date of it
        default="", description="Instead of the age: year-month-day."
    )
    strain: str = Field(default="", description="Strain, for example C57BL/6J.")
    genotype: str = Field(default="", description="Genotype, for example Slc17a7-IRES2-Cre/wt;Ai162/wt.")
    weight_g: float | None = Field(default=None, gt=0, le=1e6, description="Weight at the session, g.")
    description: str = Field(default="", description="Anything else about the animal.")
    area: str = Field(default="", description="Recorded brain area; recording.<source>.area where they differ.")

    @model_validator(mode="after")
    def _an_age(self) -> Self:
        if self.age and not DURATION.fullmatch(self.age):
            raise ValueError(f"age {self.age!r} is no ISO 8601 duration; write P90D for 90 days, P7Y for 7 years")
        if self.date_of_birth:
            try:
                born = str(np.datetime64(self.date_of_birth, "D")) == self.date_of_birth
            except ValueError:
                born = False
            if not born:
                raise ValueError(f"date_of_birth {self.date_of_birth!r} is no day; write it as 2025-03-31")
        return self


class Experiment(Part):
    """Who does the experiment, where and under which protocol; copied into the log and the exports."""

    experimenter: tuple[str, ...] = Field(default=(), description="Names, each 'Last, First'.")
    lab: str = ""
    institution: str = ""
    protocol: str = Field(default="", description="Number of the approved animal protocol.")
    description: str = Field(default="", description="What the experiment is about, in a sentence.")
    session_description: str = Field(default="", description="What was done in this session.")
    keywords: tuple[str, ...] = ()
    publications: tuple[str, ...] = Field(default=(), description="Publications, as 'doi: https://doi.org/...'.")
    surgery: str = ""
    virus: str = ""
    pharmacology: str = ""
    notes: str = ""

    @model_validator(mode="after")
    def _names(self) -> Self:
        for name in self.experimenter:
            if not NAME.fullmatch(name):
                raise ValueError(f"experimenter {name!r} is not 'Last, First'; write the family name first")
        return self


class Recording(Part):
    """What one device of `sources` records with and from where; copied into the log and the exports."""

    device: str = Field(default="", description="The instrument, for example 'Neuropixels 1.0' or '2p microscope'.")
    manufacturer: str = ""
    model: str = Field(default="", description="Model number or name.")
    serial_number: str = ""
    description: str = ""
    area: str = Field(default="", description="Recorded brain area (mouse: Allen acronym, VISp); else subject.area.")
    probe: str = Field(default="", description="Probe or array, for example 'Utah array, 96 channels, 1 mm'.")
    filters: str = Field(default="", description="Filters of the signal, for example '300-6000 Hz band-pass'.")
    reference: str = Field(default="", description="Reference electrode, for example 'skull screw'.")
    electrodes: dict[str, tuple[float, float, float]] = Field(
        default={},
        description="Electrode (the unit's name before '#'): x, y, z, um (posterior, inferior, right; as in NWB).",
    )
    indicator: str = Field(default="", description="Calcium indicator, for example GCaMP6f.")
    excitation_nm: Wavelength | None = Field(default=None, description="Excitation wavelength, nm.")
    emission_nm: Wavelength | None = Field(default=None, description="Emission wavelength, nm.")
    imaging_hz: float | None = Field(default=None, gt=0, le=1000, description="Frames (or volumes) per s.")
    plane: str = Field(default="", description="Imaged plane, for example 'layer 2/3, horizontal'.")
    depth_um: float | None = Field(default=None, ge=0, le=20_000, description="Depth below the pia, um.")
    lens: str = Field(default="", description="Objective, for example 'Nikon 16x, 0.8 NA'.")


def lacking(config: Mapping[str, Any], simulated: bool = False) -> list[str]:
    """Return the fields of a (dumped) config without which an NWB file is refused or reproached by DANDI's checks.

    `config` is what SessionStart holds; of a simulated session nothing is asked, since nobody publishes it.
    """
    if simulated:
        return []
    subject, experiment = config.get("subject", {}), config.get("experiment", {})
    out = []
    if not BINOMIAL.fullmatch(subject.get("species", "")):
        out.append("subject.species (Latin binomial)")
    if not subject.get("age") and not subject.get("date_of_birth"):
        out.append("subject.age (or date_of_birth)")
    if subject.get("sex", "U") == "U":
        out.append("subject.sex")
    names = ("experimenter", "institution", "lab", "protocol", "description", "keywords")
    out += [f"experiment.{name}" for name in names if not experiment.get(name)]
    recording = config.get("recording", {})
    for source in config.get("sources", ()):
        known, kind = recording.get(source["name"], {}), source["type"]
        if kind in ("lsl_behaviour", "lsl_markers"):
            continue
        wanted = ["device", *([] if subject.get("area") else ["area"])]
        imaging = kind in ("traces_zmq", "lsl_calcium")
        wanted += ["indicator", "excitation_nm", "emission_nm"] if imaging else ["probe"]
        out += [f"recording.{source['name']}.{name}" for name in wanted if not known.get(name)]
    return out
