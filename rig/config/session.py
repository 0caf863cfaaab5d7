"""The config of a session as a whole, and what must agree between its parts.

Read by `rig.config.reading`; the recorder puts the file verbatim into the log.
"""

from collections.abc import Iterator
from itertools import chain
from math import floor
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from rig.config import first_minutes, places, revisit
from rig.config.animal import Simulation
from rig.config.control import ControlPhase
from rig.config.inception import MOST_FRAME_BYTES, InceptionPhase, LoopPhase
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
from rig.config.phases import AnyPhase, ConfirmPhase, EvolvePhase, PresentPhase
from rig.config.processes import Processes
from rig.config.revisit import RevisitPhase
from rig.config.scoring import Responses
from rig.config.screen import Display, Limits, Presentation, StimulusPlace
from rig.config.sources import (
    AnySource,
    LslBehaviourSource,
    LslCalciumSource,
    LslCountSource,
    LslNeural,
    NeuralSource,
    TracesWireSource,
)
from rig.config.storage import Storage
from rig.config.subject import Experiment, Recording, Subject
from stimuli.spec import Place

PROPOSES_UNITS = ("screen",)  # agents that leave units for the phases after them
FINDS_PLACES = ("map", "screen")  # agents that leave a place for the phases after them
LEAST_CONTRAST = 0.02  # RMS; with less, images around the background are as good as none
SPIKES_AFTER_S = 1.0  # no spike of a neuron answers an image so long after the next one came


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
        """RMS contrast of the natural pictures: that of the first generator, so that neither side wins by contrast.

        Generators whose images stay as decoded have none of their own.
        """
        asked = (p.generator.contrast for p in self.phases if isinstance(p, EvolvePhase))
        return next((contrast for contrast in asked if contrast is not None), 0.25)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        spikes = not isinstance(self.sources[0], TracesWireSource | LslCalciumSource | LslCountSource)
        phases = (self._phase_mistakes(), first_minutes.mistakes(self.phases, self.responses, self.banks, spikes))
        found = (self._device_mistakes(), *phases, self._rhythm_mistakes(), self._place_mistakes())
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
        for name in sorted(set(self.banks) & {"natural", "gratings", "tiles"}):
            yield f"banks.{name}: this name stands for a built-in bank; choose another"
        for k, phase in enumerate(self.phases):
            if isinstance(phase, EvolvePhase):
                yield from self._target_mistakes(f"phases.{k}", phase, self.phases[:k])
            if isinstance(phase, ConfirmPhase) and not any(isinstance(p, EvolvePhase) for p in self.phases[:k]):
                yield f"phases.{k}: confirm shows what an evolve phase before it found; put one before it"
            if isinstance(phase, EvolvePhase):
                yield from self._contrast_mistakes(f"phases.{k}.generator", phase.generator.contrast or 0.0)
            if isinstance(phase, InceptionPhase):
                highest = max(phase.contrast, *phase.contrast_tuning, 0.0)
                yield from self._loop_mistakes(f"phases.{k}", phase, ("units", phase.units), highest)
            if isinstance(phase, ControlPhase):
                yield from self._loop_mistakes(f"phases.{k}", phase, ("sites", phase.sites), phase.contrast or 0.0)
                for title, wanted in phase.targets.items():
                    yield from self._unit_mistakes(f"phases.{k}.targets.{title}", tuple(wanted))
            if isinstance(phase, RevisitPhase):
                banks = ("natural", "tiles", *self.banks)
                yield from revisit.mistakes(phase, f"phases.{k}", self.responses.units, banks)
            if isinstance(phase, PresentPhase):
                known = ["natural", "gratings", *self.banks]
                for bank in set(phase.images) - set(known):
                    yield f"phases.{k}.images: no bank {bank!r}; choose from {', '.join(known)} or add it to banks"

    def _loop_mistakes(
        self, where: str, phase: InceptionPhase | ControlPhase, units: tuple[str, tuple[str, ...]], contrast: float
    ) -> Iterator[str]:
        if phase.fits_counts and self.responses.baseline.kind != "none":
            yield (
                f"{where}.encoder.training.loss: poisson is for counts, and responses.baseline subtracts from them; "
                "set responses.baseline to {kind: none}, or the loss to gaussian"
            )
        calcium = getattr(self.sources[0], "calcium", None)
        if phase.fits_counts and calcium is not None and calcium.measure == "dff":
            yield f"{where}.encoder.training.loss: poisson is for counts, and dF/F falls below 0; set it to gaussian"
        known = ["natural", "tiles", *self.banks]
        for bank in [name for name in phase.images if name not in known]:
            yield f"{where}.images: no bank {bank!r}; choose from {', '.join(known)} or add it to banks"
        yield from self._unit_mistakes(f"{where}.{units[0]}", units[1])
        yield from self._contrast_mistakes(where, contrast)
        try:
            its = phase.place if isinstance(phase.place, Place) else places.usual(self.stimulus)
            rect = places.rect_of(self.display, its)
        except ValueError:
            return  # said where places are checked
        images = phase.made_images(len(self.responses.units))
        if (size := images * rect.height * rect.width * 3) > MOST_FRAME_BYTES:
            yield (
                f"{where}: {images} images of {rect.height} x {rect.width} pixels are {size >> 20} MB in each block "
                f"that is shown back, and {MOST_FRAME_BYTES >> 20} MB can be; make fewer or smaller images"
            )

    @property
    def _most_contrast(self) -> float:
        """RMS contrast (sd / 127.5) that images can surely have around the background."""
        return 0.75 * min(self.display.background, 255 - self.display.background) / 127.5

    def _contrast_mistakes(self, where: str, contrast: float) -> Iterator[str]:
        """Yield an RMS contrast that is out of reach; a background without room for any is said once, elsewhere."""
        if contrast >= self._most_contrast >= LEAST_CONTRAST:
            yield (
                f"{where}.contrast: {contrast:g} cannot be reached around background {self.display.background}; "
                f"use less than {floor(100 * self._most_contrast) / 100:.2f}"
            )

    def _unit_mistakes(self, where: str, names: tuple[str, ...]) -> Iterator[str]:
        for name in [name for name in names if name not in self.responses.units]:
            units = ", ".join(self.responses.units)
            yield f"{where}: {name!r} is not in responses.units ({units}); add it or choose another"

    def _target_mistakes(self, where: str, phase: EvolvePhase, before: tuple[AnyPhase, ...]) -> Iterator[str]:
        if phase.units == "proposed" and not any(p.agent in PROPOSES_UNITS for p in before):
            agents = " or ".join(PROPOSES_UNITS)
            yield f"{where}.units: proposed, but no phase before it proposes units; put {agents} before it"
        part = "unit" if phase.unit is not None else "targets" if phase.targets else "units"
        for name in dict.fromkeys(u for target in phase.objectives() for u in target.named):
            if name not in self.responses.units:
                units = ", ".join(self.responses.units)
                yield f"{where}.{part}: {name!r} is not in responses.units ({units}); add it or choose another"
        for target in phase.objectives():
            its = target.place or (phase.place if isinstance(phase.place, Place) else places.usual(self.stimulus))
            if target.size_deg is not None:
                its = its.model_copy(update={"size_deg": target.size_deg})
            if target.place is not None or target.size_deg is not None:
                try:
                    places.rect_of(self.display, its, "place")
                except ValueError as error:
                    yield f"{where}.targets: {target.title}: {error}"

    def _rhythm_mistakes(self) -> Iterator[str]:
        rhythm, display = self.presentation, self.display
        period_s = rhythm.on_s + rhythm.off_s
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
        yield from self.window_mistakes(self.responses.window_s)
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

    def window_mistakes(self, window_s: tuple[float, float]) -> Iterator[str]:
        """Yield what is wrong with a response window, s from the onset, in the rhythm of this config."""
        rhythm, baseline, neural = self.presentation, self.responses.baseline, self.sources[0]
        period_s = rhythm.on_s + rhythm.off_s
        # Fluorescence may be summed far into the next images; a guest has a rhythm of its own.
        free = self.guest is not None or isinstance(neural, TracesWireSource | LslCalciumSource)
        next_s = period_s if rhythm.images_per_trial > 1 else rhythm.on_s + rhythm.inter_trial_s
        if not free and window_s[1] > next_s + SPIKES_AFTER_S:
            yield (
                f"responses.window_s: it ends {window_s[1]:g} s after the onset, more than "
                f"{SPIKES_AFTER_S:g} s after the next image came ({next_s:.3g} s): such spikes are not of this image; "
                "the values are seconds, end it earlier"
            )
        if baseline.kind != "none" and period_s + baseline.window_s[0] < window_s[1] - 1e-9:
            yield (
                f"responses.baseline: it begins {period_s + baseline.window_s[0]:.3g} s after the onset before, "
                f"inside that image's response window (to {window_s[1]:g} s), and would subtract the "
                "response; lengthen presentation.off_s, move the window, or choose kind: none"
            )

    def _place_mistakes(self) -> Iterator[str]:
        display, low, high = self.display, *self.limits.mean_level
        around_grey = [
            f"phases.{k}"
            for k, phase in enumerate(self.phases)
            if isinstance(phase, LoopPhase) or (isinstance(phase, EvolvePhase) and phase.generator.contrast is not None)
        ]
        if not 0 <= low < high <= 255:
            yield f"limits.mean_level: {low:g} to {high:g}; give the lower level first, both within 0 to 255"
        elif around_grey and self._most_contrast < LEAST_CONTRAST:
            yield (
                f"display.background: {display.background} leaves no room for images that are darker and lighter than "
                f"it, as those of {', '.join(around_grey)} are; choose a grey near 128"
            )
        elif not low <= display.background <= high:
            yield (
                f"display.background: {display.background} is outside limits.mean_level ({low:g} to {high:g}), so that "
                "no blank could be shown; change one of them"
            )
        yield from places.mistakes(display, self.stimulus)
        for k, phase in enumerate(self.phases):
            wanted = getattr(phase, "place", None)
            if wanted == "mapped" and not any(earlier.agent in FINDS_PLACES for earlier in self.phases[:k]):
                agents = " or ".join(FINDS_PLACES)
                yield f"phases.{k}.place: mapped, but no phase before it finds a place; put {agents} before it"
            if isinstance(wanted, Place):
                try:
                    places.rect_of(display, wanted, "place")
                except ValueError as error:
                    yield f"phases.{k}.place: {error}"
