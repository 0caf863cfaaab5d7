"""The config file of a session: every field with its unit, unknown keys refused, one clear error per mistake.

Read by `stimloop run`, `animal`, `check` and the benches; the recorder puts it verbatim into the log.
"""

from collections.abc import Iterator
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from rig.config.outputs import (
    AnyOutput,
    Gates,
    Guest,
    ParallelOutput,
    PrintOutput,
    Reward,
    SerialOutput,
    Sync,
    onset_line,
)
from rig.config.part import Part
from rig.config.processes import Processes
from rig.config.sources import (
    AnySource,
    BehaviourSimulation,
    CalciumSimulation,
    LslBehaviourSource,
    LslCalciumSource,
    LslNeural,
    NeuralSource,
    TracesWireSource,
    WireFaults,
)
from rig.config.storage import Storage
from rig.config.subject import Experiment, Recording, Subject
from stimuli import geometry

FARTHEST_S = 10.0  # from the onset to the end of any window
SPIKES_AFTER_S = 1.0  # no spike of a neuron answers an image so long after the next one came


class ConfigError(ValueError):
    """A config file the user must mend; the message names the file, the field and the cure."""


class Patch(Part):
    """The square in a screen corner that the photodiode looks at: white while an image is on."""

    corner: Literal["bottom_right", "bottom_left", "top_right", "top_left"] = "bottom_right"
    size_px: int = Field(default=32, ge=4, le=400, description="Side of the square, pixels.")


class FixationPoint(Part):
    """A small square that the animal looks at, on from the first flip to the last, drawn over everything else."""

    center_deg: tuple[float, float] = Field(default=(0.0, 0.0), description="Its place (right, up), degrees.")
    size_deg: float = Field(default=0.3, gt=0.02, le=5, description="Its side, degrees.")
    level: int = Field(default=255, ge=0, le=255, description="Its grey level, 0-255, after the gamma table.")


class Display(Part):
    """The stimulus screen and where the animal's eye is."""

    size_px: tuple[int, int] = Field(default=(800, 600), description="Window width and height, pixels.")
    fullscreen: bool = False
    screen: int = Field(default=0, ge=0, description="Index of the screen.")
    refresh_hz: float = Field(default=60.0, ge=20, le=500, description="Refresh rate of the screen, Hz.")
    vsync: bool = Field(default=False, description="true: flips wait for the screen; false: frames are paced by clock.")
    width_cm: float = Field(default=40.0, gt=1, description="Width of the visible window, cm.")
    distance_cm: float = Field(default=30.0, gt=1, description="Eye to the nearest point of the screen, cm.")
    background: int = Field(default=128, ge=0, le=255, description="Grey level whenever no image is shown, 0-255.")
    gamma: float = Field(default=1.0, gt=0.2, lt=5, description="Display gamma undone in software; 1 = no table.")
    scanout_s: float = Field(default=0.0, ge=0, lt=0.05, description="Time to scan out all rows, s; 0 if virtual.")
    lag_s: float = Field(
        default=0.0, ge=0, lt=0.2, description="Measured lag from flip stamp to light, s; used without photodiode."
    )
    luminance_cd_m2: tuple[float, float, float] | None = Field(
        default=None, description="Luminance as measured of level 0, the background and 255, cd/m^2."
    )
    patch: Patch | None = Field(default=Patch(), description="null where no photodiode is mounted.")
    fixation_point: FixationPoint | None = Field(
        default=None, description="null for none; where it lies over the image it hides those pixels."
    )


class StimulusPlace(Part):
    """Where and how large images are shown."""

    size_deg: float = Field(default=10.0, gt=0.1, le=120, description="Side of the image, degrees of visual angle.")
    center_deg: tuple[float, float] = Field(
        default=(0.0, 0.0), description="Image centre (right, up) from the screen centre, degrees."
    )


class Limits(Part):
    """Hard limits that every frame must pass before it may reach the screen."""

    mean_level: tuple[float, float] = Field(
        default=(20.0, 235.0), description="Lowest and highest allowed mean grey level of a frame, 0-255."
    )
    max_rms_contrast: float = Field(default=0.75, gt=0, le=2, description="Largest sd / 127.5 of a frame.")
    max_flicker_hz: float = Field(default=20.0, gt=0, le=60, description="Largest rate of image onsets, Hz.")
    max_flash_hz: float = Field(
        default=3.0, ge=0, le=60, description="Most flashes in any second (large changes of mean luminance), Hz."
    )


class Presentation(Part):
    """The rhythm of a trial."""

    on_s: float = Field(default=0.1, gt=0, le=10, description="Image on, s.")
    off_s: float = Field(default=0.1, ge=0, le=10, description="Background between images, s.")
    images_per_trial: int = Field(default=10, ge=1, le=200, description="Presentations in one trial.")
    inter_trial_s: float = Field(default=0.3, ge=0.05, le=60, description="Background between trials, s.")
    repeats_of_unusable: int = Field(
        default=2, ge=0, le=20, description="How often an image without a usable response is shown again at once."
    )
    most_fallback_s: float = Field(
        default=120, gt=0, le=86400, description="Fallback images for at most this long, then background, s."
    )


class Baseline(Part):
    """What is subtracted from a response."""

    kind: Literal["none", "pre", "block"] = Field(
        default="block",
        description="none; pre: own window before onset; block: own early window pooled over the last presentations.",
    )
    window_s: tuple[float, float] = Field(default=(-0.01, 0.03), description="Baseline window from image onset, s.")
    pool: int = Field(default=50, ge=1, le=2000, description="Presentations pooled for kind block.")


class Responses(Part):
    """How a response is measured."""

    units: tuple[str, ...] = Field(min_length=1, description="Units to score, as the source names them.")
    window_s: tuple[float, float] = Field(default=(0.05, 0.15), description="Response window from image onset, s.")
    baseline: Baseline = Baseline()
    min_coverage: float = Field(default=1.0, gt=0, le=1, description="Smallest covered fraction of a usable response.")
    max_onset_uncertainty_s: float = Field(
        default=0.03, gt=0, le=10, description="Largest stated uncertainty of the onset of a usable response, s."
    )
    edge_tolerance_s: float = Field(
        default=0.04, gt=0, le=0.2, description="Largest distance of a photodiode edge from its flip, s."
    )
    timeout_s: float = Field(default=2.0, gt=0.1, le=10, description="Without data for this long it is missing, s.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name, (start, end) in {"window_s": self.window_s, "baseline.window_s": self.baseline.window_s}.items():
            if end <= start:
                raise ValueError(f"{name} must end after it starts, and goes from {start:g} to {end:g} s; swap the two")
            if max(abs(start), abs(end)) > FARTHEST_S:
                raise ValueError(
                    f"{name} goes from {start:g} to {end:g}; these are seconds from the onset, at most {FARTHEST_S:g}: "
                    "0.05, not 50"
                )
        if len(set(self.units)) != len(self.units):
            raise ValueError("units names a unit twice; remove one")
        return self


class DctGenerator(Part):
    """Images as weighted colour cosine patterns with a 1/f amplitude: needs no weights."""

    type: Literal["dct"] = "dct"
    frequencies: int = Field(default=10, ge=2, le=64, description="Cosine frequencies along each axis.")
    falloff: float = Field(default=0.75, ge=0, le=3, description="Amplitude falls as 1 / frequency ** falloff.")
    contrast: float = Field(default=0.3, gt=0, le=1, description="RMS contrast of every image, sd / 127.5.")


class PresentPhase(Part):
    """Show a fixed set, blocked and randomised, with repeats."""

    agent: Literal["present"] = "present"
    images: tuple[str, ...] = Field(
        default=("natural",), min_length=1, description="Image banks: natural, gratings, or names of `banks`."
    )
    count: int = Field(default=20, ge=1, description="Images taken from the banks.")
    repeats: int = Field(default=5, ge=1, description="Presentations of each image.")
    blanks: int = Field(default=2, ge=0, description="Blank presentations in each repeat.")


class EvolvePhase(Part):
    """Evolve images for one unit with the XDream genetic algorithm."""

    agent: Literal["evolve"] = "evolve"
    unit: str = Field(description="The unit whose response is maximised; one of responses.units.")
    preset: Literal["plos2020", "actmax", "invivo"] = Field(
        default="invivo", description="Published settings of the algorithm."
    )
    generations: int = Field(default=20, ge=1, le=2000, description="Generations until the phase ends.")
    references: int = Field(default=6, ge=0, le=200, description="Natural images in the tail of each generation.")
    reshows: int = Field(
        default=2, ge=0, le=40, description="Best images of the generation before, shown again in the tail."
    )
    blanks: int = Field(default=2, ge=0, le=40, description="Blanks in each generation.")
    generator: DctGenerator = DctGenerator()


AnyPhase = Annotated[PresentPhase | EvolvePhase, Field(discriminator="agent")]


class Simulation(Part):
    """What `stimloop animal` simulates; the controller never reads this part."""

    population: Literal["v1", "v4"] = Field(
        default="v1", description="v1: built in; v4: published compact models from `models`."
    )
    models: Path | None = Field(default=None, description="Folder of compact models, for population v4.")
    recorded: Path | None = Field(
        default=None, description="Folder with recorded averages and images, to fit the rates (v4)."
    )
    session: str | None = Field(default=None, description="Recording session whose neurons are taken (v4).")
    neurons: int = Field(default=8, ge=1, le=20_000, description="Number of simulated neurons.")
    seed: int = Field(default=0, ge=0)
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
        nuisances = ("gain_drift", "adaptation", "carry_over", "artefacts", "saccades", "blinks")
        if self.noise == "none" and (on := [name for name in nuisances if getattr(self, name)]):
            raise ValueError(
                f"noise none means that a response depends on the image alone, and {on[0]} would change it; remove "
                f"{on[0]}, or choose poisson"
            )
        return self


class Config(Part):
    """One session."""

    name: str = Field(
        default="session", pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,60}$", description="Part of the folder's name."
    )
    seed: int = Field(default=0, ge=0, description="Seed of every random draw of the session.")
    subject: Subject = Subject()
    experiment: Experiment = Experiment()
    recording: dict[str, Recording] = Field(default={}, description="Name of a device in sources: what it is.")
    display: Display = Display()
    stimulus: StimulusPlace = StimulusPlace()
    limits: Limits = Limits()
    presentation: Presentation = Presentation()
    sources: tuple[AnySource, ...] = Field(min_length=1, description="Devices; the first one is scored.")
    responses: Responses
    gates: Gates = Gates()
    outputs: tuple[AnyOutput, ...] = ()
    reward: Reward | None = None
    sync: Sync | None = None
    guest: Guest | None = None
    banks: dict[str, Path] = Field(default={}, description="Own image banks: name and folder of pictures.")
    phases: tuple[AnyPhase, ...] = Field(min_length=1, description="What the session does, in this order.")
    processes: Processes = Processes()
    storage: Storage = Storage()
    animal: Simulation = Simulation()

    @property
    def natural_contrast(self) -> float:
        """RMS contrast of the natural pictures: that of the first generator, so that neither side wins by contrast."""
        return next((p.generator.contrast for p in self.phases if isinstance(p, EvolvePhase)), 0.25)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        found = (self._device_mistakes(), self._phase_mistakes(), self._rhythm_mistakes(), self._place_mistakes())
        if mistakes := list(chain(*found)):
            raise ValueError("\n".join(mistakes))
        return self

    @property
    def neural(self) -> NeuralSource:
        """The source that is scored: the first one."""
        first = self.sources[0]
        assert isinstance(first, NeuralSource)  # noqa: S101 - checked below
        return first

    def _device_mistakes(self) -> Iterator[str]:
        names = ["recorder", "rig", "model", "view", "outputs", *(s.name for s in self.sources)]
        for name in sorted({n for n in names if names.count(n) > 1}):
            yield f"sources: the name {name!r} is used twice; give each device its own"
        if not isinstance(self.sources[0], NeuralSource):
            yield f"sources.0: {self.sources[0].type} cannot be scored; put the neurons' source first"
        for name in sorted(set(self.recording) - {s.name for s in self.sources}):
            known = ", ".join(s.name for s in self.sources)
            yield f"recording.{name}: no device has this name (there are: {known}); use the name it has in sources"
        behaviour = {s.name: s for s in self.sources if isinstance(s, LslBehaviourSource)}
        fixation, criteria = self.gates.fixation, self.gates.criteria
        wanted = [("gates.fixation", fixation.source, {fixation.x, fixation.y})] if fixation is not None else []
        wanted += [(f"gates.criteria.{k}", c.source, {c.channel}) for k, c in enumerate(criteria)]
        for place, name, channels in wanted:
            if name not in behaviour:
                known = ", ".join(behaviour) or "none"
                yield f"{place}.source: {name!r} is no behaviour source (there are: {known}); add it to sources"
            elif behaviour[name].channels and (missing := channels - set(behaviour[name].channels)):
                known = ", ".join(behaviour[name].channels)
                yield f"{place}: {name} has no channel {min(missing)!r} (it has: {known}); correct one of them"
        point = self.display.fixation_point
        if fixation is not None and point is not None and fixation.center_deg != point.center_deg:
            yield (
                f"gates.fixation.center_deg: {list(fixation.center_deg)} is not where display.fixation_point is, "
                f"{list(point.center_deg)}; give both the same place"
            )
        yield from self._output_mistakes()

    def _output_mistakes(self) -> Iterator[str]:
        outputs = [o.name for o in self.outputs]
        for name in sorted({n for n in outputs if outputs.count(n) > 1}):
            yield f"outputs: the name {name!r} is used twice; give each output its own"
        for k, output in enumerate(self.outputs):
            if isinstance(output, SerialOutput) and output.onset and output.mode == "device":
                yield f"outputs.{k}.onset: a device that times its own pulses gives no onsets; use mode: rts"
            if self.guest is not None and onset_line(output):
                yield f"outputs.{k}.onset: a guest displays, and only its program knows its flips; remove it"
        ports = [o.port for o in self.outputs if isinstance(o, SerialOutput | ParallelOutput)]
        for port in sorted({p for p in ports if ports.count(p) > 1}):
            yield f"outputs: the port {port!r} is used twice, and a watchdog needs its own; use another port"
        yield from self._sync_mistakes()
        if self.reward is None:
            return
        if self.guest is not None:
            yield "reward: a guest displays and gives its own rewards; remove reward, or guest"
        chosen = next((o for o in self.outputs if o.name == self.reward.output), None)
        if not isinstance(chosen, PrintOutput | SerialOutput | ParallelOutput):
            yield f"reward.output: {self.reward.output!r} is no output with a line; add a serial or parallel one"
        elif onset_line(chosen):
            yield f"reward.output: {chosen.name!r} is raised with each image (onset: true); give reward another output"
        if self.reward.pulse_s > self.reward.max_pulse_s:
            yield f"reward.pulse_s: {self.reward.pulse_s:g} s is over max_pulse_s {self.reward.max_pulse_s:g} s"
        if self.reward.after == "fixation" and self.gates.fixation is None:
            yield "reward.after: fixation needs gates.fixation; add it, or choose trial"

    def _sync_mistakes(self) -> Iterator[str]:
        if self.sync is None:
            return
        chosen = next((o for o in self.outputs if o.name == self.sync.output), None)
        held = isinstance(chosen, ParallelOutput) or (isinstance(chosen, SerialOutput) and chosen.mode == "rts")
        if chosen is None or not held:
            cure = "add a parallel output, or a serial one in mode rts"
            yield f"sync.output: {self.sync.output!r} is no held line; {cure}"
        elif onset_line(chosen) or (self.reward is not None and self.reward.output == chosen.name):
            yield f"sync.output: {chosen.name!r} is used for images or rewards; give the barcodes a line of their own"
        first = self.sources[0]
        if not isinstance(first, NeuralSource):
            return
        if isinstance(first, LslNeural) and first.edges is None:
            yield f"sync: {first.name} has no stream of TTL edges, so no barcode could be read; give {first.name}.edges"
        elif self.sync.line == first.photodiode_line:
            yield f"sync.line: {self.sync.line} is the photodiode's line of {first.name}; use another"

    def _phase_mistakes(self) -> Iterator[str]:
        for name in sorted(set(self.banks) & {"natural", "gratings"}):
            yield f"banks.{name}: this name stands for a built-in bank; choose another"
        for k, phase in enumerate(self.phases):
            if isinstance(phase, EvolvePhase) and phase.unit not in self.responses.units:
                units = ", ".join(self.responses.units)
                yield f"phases.{k}.unit: {phase.unit!r} is not in responses.units ({units}); add it or choose another"
            span = min(self.display.background, 255 - self.display.background)
            if isinstance(phase, EvolvePhase) and phase.generator.contrast * 127.5 >= 0.75 * span:
                yield (
                    f"phases.{k}.generator.contrast: {phase.generator.contrast:g} cannot be reached around background "
                    f"{self.display.background}; use less than {0.75 * span / 127.5:.2f}"
                )
            if isinstance(phase, PresentPhase):
                known = ["natural", "gratings", *self.banks]
                for bank in set(phase.images) - set(known):
                    yield f"phases.{k}.images: no bank {bank!r}; choose from {', '.join(known)} or add it to banks"

    def _rhythm_mistakes(self) -> Iterator[str]:
        rhythm, display = self.presentation, self.display
        baseline, period_s = self.responses.baseline, rhythm.on_s + rhythm.off_s
        neural = self.sources[0]
        lit = isinstance(neural, NeuralSource) and neural.photodiode_line is not None
        photodiode = lit and display.patch is not None
        if photodiode and rhythm.off_s == 0 and rhythm.images_per_trial > 1:
            yield (
                "presentation.off_s: 0 leaves the photodiode patch white between images, so that no onset can be seen; "
                "give it a frame or more, or set photodiode_line of the source to null"
            )
        if photodiode and self.responses.edge_tolerance_s >= period_s / 2:
            yield (
                f"responses.edge_tolerance_s: {self.responses.edge_tolerance_s:g} s reaches to the edge of the next "
                f"image; use less than half of on_s + off_s, {period_s / 2:.3g} s"
            )
        # Fluorescence may be summed far into the next images; a guest has a rhythm of its own.
        free = self.guest is not None or isinstance(neural, TracesWireSource | LslCalciumSource)
        next_s = period_s if rhythm.images_per_trial > 1 else rhythm.on_s + rhythm.inter_trial_s
        if not free and self.responses.window_s[1] > next_s + SPIKES_AFTER_S:
            yield (
                f"responses.window_s: it ends {self.responses.window_s[1]:g} s after the onset, more than "
                f"{SPIKES_AFTER_S:g} s after the next image came ({next_s:.3g} s): such spikes are not of this image; "
                "the values are seconds, end it earlier"
            )
        if baseline.kind != "none" and period_s + baseline.window_s[0] < self.responses.window_s[1] - 1e-9:
            yield (
                f"responses.baseline: it begins {period_s + baseline.window_s[0]:.3g} s after the onset before, "
                f"inside that image's response window (to {self.responses.window_s[1]:g} s), and would subtract the "
                "response; lengthen presentation.off_s, move the window, or choose kind: none"
            )
        rate_hz = 1 / (rhythm.on_s + rhythm.off_s)
        if rate_hz > self.limits.max_flicker_hz:
            yield (
                f"presentation: {rate_hz:.1f} images/s exceed limits.max_flicker_hz {self.limits.max_flicker_hz:g}; "
                "lengthen on_s or off_s, or raise the limit knowingly"
            )
        for name, value, least in (("on_s", rhythm.on_s, 1), ("off_s", rhythm.off_s, 0)):
            frames = value * display.refresh_hz
            if abs(frames - round(frames)) > 0.05 or round(frames) < least:
                yield (
                    f"presentation.{name}: {value:g} s is {frames:.2f} frames at {display.refresh_hz:g} Hz; "
                    f"use a whole number of frames, for example {max(least, round(frames)) / display.refresh_hz:.4f}"
                )

    def _place_mistakes(self) -> Iterator[str]:
        display, low, high = self.display, *self.limits.mean_level
        if not 0 <= low < high <= 255:
            yield f"limits.mean_level: {low:g} to {high:g}; give the lower level first, both within 0 to 255"
        elif not low <= display.background <= high:
            yield (
                f"display.background: {display.background} is outside limits.mean_level ({low:g} to {high:g}), so that "
                "no blank could be shown; change one of them"
            )
        try:
            image = geometry.image_rect(
                display.size_px, display.width_cm, display.distance_cm, self.stimulus.size_deg, self.stimulus.center_deg
            )
            if display.patch is None:
                return
            patch = geometry.patch_rect(display.size_px, display.patch.corner, display.patch.size_px)
        except ValueError as error:
            yield f"stimulus, display: {error}"
            return
        point = display.fixation_point
        if point is not None and patch.overlaps(
            geometry.image_rect(
                display.size_px, display.width_cm, display.distance_cm, point.size_deg, point.center_deg
            )
        ):
            yield "display.fixation_point: it covers part of the photodiode patch; move one of them"
        if image.overlaps(patch):
            yield (
                f"stimulus: the image (columns {image.left} to {image.right}, rows {image.top} to {image.bottom}) "
                f"covers the photodiode patch in the {display.patch.corner.replace('_', ' ')} corner; "
                "reduce stimulus.size_deg or display.patch.size_px, or move one of them"
            )


class _OneOfEach(yaml.SafeLoader):
    """YAML as usual, but a key given twice is a mistake and not a silent last-one-wins."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # refused below
            if key.value in seen:
                twice = f"the key {key.value!r} is given twice; keep one"
                raise yaml.constructor.ConstructorError(None, None, twice, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _keys(part: type[Part]) -> set[str]:
    """Return the names of the fields of `part` and of everything derived from it."""
    return set(part.model_fields).union(*(_keys(p) for p in part.__subclasses__()))


def _explain(e: ErrorDetails) -> str:
    """Say what is wrong in one line: the field as it stands in the file, the reason, the cure."""
    # Loc also holds the tag of a source or an agent, which is no key of the file.
    loc = [p for k, p in enumerate(e["loc"]) if not (k == 2 and e["loc"][0] in ("sources", "phases", "outputs"))]
    where = ".".join(str(p) for p in loc)
    message, context = e["msg"].removeprefix("Value error, "), e.get("ctx", {})
    match e["type"]:
        case "extra_forbidden":
            key, known = str(loc[-1]), _keys(Part)
            near = get_close_matches(key, known, n=1)
            cure = f"did you mean {near[0]!r}?" if near else "remove it or check its spelling"
            message = "no key of this part; check where it belongs" if key in known else f"unknown key; {cure}"
        case "missing":
            message = "missing; add it, as the files in configs/ do"
        case "union_tag_invalid":
            message = f"{context['tag']!r} is no {context['discriminator']}; choose one of {context['expected_tags']}"
        case "union_tag_not_found":
            message = f"{context['discriminator']} is missing; it says which kind this is"
        case "too_short":
            message = "empty; give at least one"
        case "value_error":
            pass
        case _:
            reason = message[0].lower() + message[1:].replace("tuple", "list")
            message = f"{reason}, not {shorten(repr(e['input']), 60)}"
    return f"{where}: {message}" if where else message


def parse(text: str, place: str = "config") -> Config:
    """Validate the text of a config file; raises ConfigError with one line per mistake, naming `place` and field."""
    try:
        raw = yaml.load(text, Loader=_OneOfEach)  # noqa: S506 a SafeLoader
    except yaml.YAMLError as error:
        reason = " ".join(str(error).replace('in "<unicode string>", ', "at ").split())
        raise ConfigError(f"{place}: not YAML: {reason}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{place}: empty or not a mapping; start from one of the files in configs/")
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        # A list whose elements are wrong counts as too short as well: the element's own mistake says it all.
        inside = {e["loc"][:k] for e in error.errors() for k in range(1, len(e["loc"]))}
        found = [e for e in error.errors() if not (e["type"] == "too_short" and e["loc"] in inside)]
        lines = [line for e in found for line in _explain(e).split("\n")]
        raise ConfigError("\n".join(f"{place}: {line}" for line in lines)) from error


def load(path: Path) -> tuple[Config, str]:
    """Read and validate a config file; return it with its verbatim text. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        cure = "give the path of a YAML file such as configs/demo.yaml"
        raise ConfigError(f"{path}: cannot be read: {error}; {cure}") from error
    return parse(text, str(path)), text
