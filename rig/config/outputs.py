"""What a session demands of the animal, what it puts out, and who displays: gates, outputs, reward, guest.

Part of `rig.config.session`.
"""

from math import isfinite
from pathlib import Path
from typing import Annotated, Literal, Self, TypeGuard

from pydantic import Field, model_validator

from rig.config.part import Part
from rig.config.remote import guest_mistake


class Fixation(Part):
    """The window in which the gaze must stay; judged from onset to the end of the response window."""

    source: str = Field(description="Name of the behaviour source.")
    x: str = Field(default="gaze_x_deg", description="Its channel with the horizontal gaze; see gain.")
    y: str = Field(default="gaze_y_deg", description="Its channel with the vertical gaze; see gain.")
    gain: tuple[float, float] = Field(
        default=(1.0, 1.0),
        description="Of x and y, degrees per unit of the channel: 1 for degrees, < 0 if it runs the other way.",
    )
    offset_deg: tuple[float, float] = Field(
        default=(0.0, 0.0), description="Of x and y, degrees: gaze = gain * channel + offset, right and up positive."
    )
    center_deg: tuple[float, float] = Field(default=(0.0, 0.0), description="Fixation point (right, up), degrees.")
    radius_deg: float = Field(default=2.0, gt=0, le=60, description="Radius of the window, degrees.")
    acquire_s: float = Field(default=0.2, ge=0, le=5, description="Gaze inside for so long before a trial, s.")
    max_gap_s: float = Field(default=0.1, gt=0, le=1, description="Longest stretch without gaze, s.")

    @model_validator(mode="after")
    def _a_gaze(self) -> Self:
        if not all(isfinite(n) for n in (*self.gain, *self.offset_deg)) or 0 in self.gain:
            raise ValueError(
                f"gain {list(self.gain)} and offset_deg {list(self.offset_deg)} lose the gaze: gaze = gain * channel + "
                "offset; give a gain other than 0 for each axis"
            )
        return self


class Criterion(Part):
    """A range in which the mean of a behaviour channel must lie for a response to be usable."""

    source: str = Field(description="Name of the behaviour source.")
    channel: str
    least: float | None = Field(default=None, description="Smallest usable mean, null for none.")
    most: float | None = Field(default=None, description="Largest usable mean, null for none.")

    @model_validator(mode="after")
    def _a_range(self) -> Self:
        if self.least is None and self.most is None:
            raise ValueError(f"{self.channel} has neither least nor most, so nothing is asked for; give one of them")
        if self.least is not None and self.most is not None and self.least > self.most:
            raise ValueError(f"{self.channel}: least {self.least:g} is over most {self.most:g}; swap the two")
        return self


class Gates(Part):
    """What the animal must do for a response to be usable."""

    fixation: Fixation | None = None
    criteria: tuple[Criterion, ...] = ()


class PrintOutput(Part):
    """Says in its log what a device would do: for trying out."""

    type: Literal["print"] = "print"
    name: str = Field(default="print", pattern=r"^[a-z][a-z0-9_]{0,30}$")
    onset: bool = Field(default=False, description="Say each image onset as well.")


class SerialOutput(Part):
    """A serial line: a device that times pulses itself (docs/outputs.md), or the port's own RTS line."""

    type: Literal["serial"] = "serial"
    name: str = Field(default="serial", pattern=r"^[a-z][a-z0-9_]{0,30}$")
    port: str = Field(description="Serial port, for example /dev/ttyACM0 or COM3.")
    baud: int = Field(default=115200, ge=1200, le=4_000_000, description="Bits per s.")
    mode: Literal["device", "rts"] = Field(default="device", description="device times pulses, or a watchdog (rts).")
    onset: bool = Field(default=False, description="The RTS line is high while an image is on; then no reward line.")


class ParallelOutput(Part):
    """A data line of a parallel port; a watchdog times and ends its pulses."""

    type: Literal["parallel"] = "parallel"
    name: str = Field(default="parallel", pattern=r"^[a-z][a-z0-9_]{0,30}$")
    port: str = Field(description="Parallel port, for example /dev/parport0; an ordinary file is a simulated one.")
    line: int = Field(default=0, ge=0, le=7, description="Data line, 0-7.")
    onset: bool = Field(default=False, description="The line is high while an image is on; then no reward line.")


class LslMarkerOutput(Part):
    """Markers as an LSL stream: image onsets with the time of their flip, trials, rewards."""

    type: Literal["lsl_markers"] = "lsl_markers"
    name: str = Field(default="markers", pattern=r"^[a-z][a-z0-9_]{0,30}$")
    stream: str = Field(default="stimloop", description="Name of the LSL stream that is made.")


class OpenEphysMessages(Part):
    """Trial numbers as messages into the Open Ephys GUI's own recording: labels, never timing."""

    type: Literal["openephys_messages"] = "openephys_messages"
    name: str = Field(default="gui", pattern=r"^[a-z][a-z0-9_]{0,30}$")
    host: str = "127.0.0.1"
    http_port: int = Field(default=37497, ge=1, le=65535, description="Port of the GUI's HTTP server.")


AnyOutput = Annotated[
    PrintOutput | SerialOutput | ParallelOutput | LslMarkerOutput | OpenEphysMessages, Field(discriminator="type")
]


def onset_line(output: AnyOutput) -> TypeGuard[SerialOutput | ParallelOutput]:
    """Return whether the output is a line that the rig raises with each image."""
    return isinstance(output, SerialOutput | ParallelOutput) and output.onset


class Reward(Part):
    """Reward pulses and their limits; nothing exceeds a limit, whatever asks for it."""

    output: str = Field(description="Name of the output with the valve.")
    after: Literal["trial", "fixation"] = Field(
        default="trial", description="After every trial, or only after one without a broken fixation."
    )
    pulse_s: float = Field(default=0.1, gt=0, le=5, description="Length of a pulse, s.")
    ul_per_s: float = Field(gt=0, le=10_000, description="Calibration: volume per second of open valve, uL/s.")
    max_pulse_s: float = Field(default=0.5, gt=0, le=5, description="No pulse is longer, s.")
    max_per_minute_s: float = Field(default=5.0, gt=0, le=60, description="Open time in any minute, s.")
    max_session_ml: float = Field(gt=0, le=1000, description="Volume in a session, mL.")


class Sync(Part):
    """Barcodes on an output line that the scored device records: they tie its clock to the host's (docs/clocks.md)."""

    output: str = Field(description="Name of the parallel output, or serial one with mode rts, that sends them.")
    line: int = Field(ge=0, le=255, description="TTL line of the scored source on which they arrive.")
    every_s: float = Field(default=5.0, ge=3, le=300, description="From one barcode to the next, s; each takes 1.3 s.")
    delay_s: float = Field(
        default=0.0001, ge=0, le=0.01, description="Bound on the line's own delay to the device, s; it is not measured."
    )


class Guest(Part):
    """Another program displays the images (docs/wires/guest.md); then stimloop opens no window."""

    bind: str = Field(default="127.0.0.1", description="Address to listen on; another computer needs this computer's.")
    port: int = Field(default=5590, ge=1, le=65535, description="Port on which the guest finds stimloop.")
    timeout_s: float = Field(default=30.0, gt=1, le=3600, description="Silence of the guest that is a fault, s.")
    keys: Path | None = Field(default=None, description="Folder of the server's keys: then the link is encrypted.")

    @model_validator(mode="after")
    def _protected(self) -> Self:
        if (mistake := guest_mistake(self.bind, self.keys)) is not None:
            raise ValueError(mistake)
        return self
