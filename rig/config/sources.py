"""The devices of a config: how each is reached and what it delivers; part of `rig.config.session`.

A neural source may be the first one of `sources`, the one that is scored; it then may carry the photodiode on one of
its TTL lines. Behaviour and markers are logged beside it.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rig.config.part import Part

SourceName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,30}$", description="Name of the device in the log.")]
Host = Annotated[str, Field(description="Computer on which the device's program runs.")]
PhotodiodeLine = Annotated[
    int | None, Field(ge=0, le=63, description="0-based TTL line of the photodiode, null if none.")
]
MaxAge = Annotated[
    float, Field(gt=0.05, le=60, description="Data older than this on arrival are a fault and not scored, s.")
]
StreamName = Annotated[str, Field(min_length=1)]
ByteBudget = Annotated[
    float, Field(gt=1, description="Largest memory for unread messages, MB; over it is a fault.")
]


class Multiunit(Part):
    """Own threshold on the continuous channels: multi-unit activity without the GUI's Spike Detector."""

    channels: tuple[int, ...] = Field(min_length=1, description="0-based continuous channels; unit 'MUA<channel>'.")
    threshold_sd: float = Field(default=-4.0, ge=-20, le=20, description="Threshold in noise sd (median / 0.6745).")
    band_hz: tuple[float, float] | None = Field(
        default=(300.0, 6000.0), description="Band-pass before the threshold, Hz; null if the stream is filtered."
    )
    dead_time_s: float = Field(
        default=0.0015, gt=0, le=0.02, description="Shortest time between crossings, s; filters ring for 1 ms."
    )

    @model_validator(mode="after")
    def _possible(self) -> "Multiunit":
        if self.band_hz is not None and not 0 < self.band_hz[0] < self.band_hz[1]:
            low, high = self.band_hz
            raise ValueError(f"band_hz goes from {low:g} to {high:g} Hz; give the lower end first")
        if abs(self.threshold_sd) < 2:
            raise ValueError(f"threshold_sd {self.threshold_sd:g} lies in the noise; use -4 or so")
        if any(c < 0 for c in self.channels) or len(set(self.channels)) != len(self.channels):
            raise ValueError("channels are 0-based numbers, each once; correct the list")
        return self


class OpenEphysSource(Part):
    """Open Ephys GUI through its ZMQ Interface plugin (0.3.0 or later)."""

    type: Literal["openephys"] = "openephys"
    name: SourceName = "probe"
    host: Host = "127.0.0.1"
    port: int = Field(default=5556, ge=1, le=65534, description="Data port of the plugin; heartbeat is the next one.")
    http_port: int | None = Field(
        default=37497, ge=1, le=65535, description="Port of the GUI's HTTP server, null to leave it alone."
    )
    stream: str | None = Field(default=None, description="Pinned stream name; null takes the first one seen.")
    photodiode_line: PhotodiodeLine = 0
    multiunit: Multiunit | None = None
    byte_budget_mb: ByteBudget = 512.0


class OpenEphysEventsSource(Part):
    """Open Ephys GUI through its Event Broadcaster plugin (JSON): no message numbers, so losses cannot be counted."""

    type: Literal["openephys_events"] = "openephys_events"
    name: SourceName = "probe"
    host: Host = "127.0.0.1"
    port: int = Field(default=5557, ge=1, le=65535, description="Port of the plugin.")
    http_port: int | None = Field(default=37497, ge=1, le=65535, description="Port of the GUI's HTTP server, or null.")
    stream: str | None = Field(default=None, description="Pinned stream name; null takes the first one seen.")
    photodiode_line: PhotodiodeLine = 0
    byte_budget_mb: ByteBudget = 512.0


class SpikesWireSource(Part):
    """The open spikes wire over ZMQ (docs/wires/spikes.md): bridges from Plexon, Blackrock, Intan, TDT, SpikeGLX."""

    type: Literal["spikes_zmq"] = "spikes_zmq"
    name: SourceName = "spikes"
    host: Host = "127.0.0.1"
    port: int = Field(ge=1, le=65534, description="Data port of the bridge; its clock port is the next one.")
    photodiode_line: PhotodiodeLine = 0
    byte_budget_mb: ByteBudget = 512.0


class Calcium(Part):
    """From raw fluorescence to responses."""

    neuropil: float = Field(default=0.7, ge=0, le=1.5, description="Fraction of the neuropil that is subtracted.")
    baseline_percentile: float = Field(default=20.0, ge=0, le=50, description="Percentile that tracks F0.")
    baseline_window_s: float = Field(
        default=60.0, ge=5, le=600, description="Time over which F0 is tracked, s; there is none in its first twelfth."
    )
    tau_s: float = Field(default=0.7, gt=0.05, le=5, description="Decay of the indicator, s (AR(1)).")
    lag_s: float = Field(
        default=0.5, ge=0, le=3, description="Fixed lag of the deconvolution, s; responses wait for it."
    )
    measure: Literal["deconvolved", "dff"] = Field(default="deconvolved", description="What a response sums.")


class TracesWireSource(Part):
    """The open traces wire over ZMQ (docs/wires/traces.md): ScanImage, CaImAn/OnACID, suite2p."""

    type: Literal["traces_zmq"] = "traces_zmq"
    name: SourceName = "scope"
    host: Host = "127.0.0.1"
    port: int = Field(ge=1, le=65534, description="Data port of the bridge; its clock port is the next one.")
    photodiode_line: PhotodiodeLine = 0
    calcium: Calcium = Calcium()
    byte_budget_mb: ByteBudget = 512.0


def _each_its_own(**streams: str | None) -> None:
    """Raise ValueError where two fields name the same LSL stream."""
    named: dict[str, str] = {}
    for place, name in streams.items():
        if name is not None and name in named:
            raise ValueError(f"{named[name]} and {place} are both {name!r}; give each LSL stream its own name")
        if name is not None:
            named[name] = place


class LslNeural(Part):
    """What LSL streams with neurons share."""

    edges: StreamName | None = Field(default=None, description="Name of the LSL stream with TTL edges, null if none.")
    photodiode_line: PhotodiodeLine = 0
    max_age_s: MaxAge = 2.0

    @model_validator(mode="after")
    def _streams(self) -> Self:
        """Refuse one stream for two purposes."""
        _each_its_own(**{p: getattr(self, p) for p in ("stream", "neuropil", "edges") if hasattr(self, p)})
        return self


class LslSpikeSource(LslNeural):
    """An LSL stream of spike events: channels (unit index, device sample); a marker stream may carry the photodiode."""

    type: Literal["lsl_spikes"] = "lsl_spikes"
    name: SourceName = "lsl"
    stream: StreamName = Field(description="Name of the LSL stream with the spikes.")


class LslCountSource(LslNeural):
    """An LSL stream of binned spike counts, one channel per unit; samples are us of the sender's clock."""

    type: Literal["lsl_counts"] = "lsl_counts"
    name: SourceName = "lsl"
    stream: StreamName = Field(description="Name of the LSL stream with the counts.")


class LslCalciumSource(LslNeural):
    """An LSL stream of fluorescence, one channel per ROI; samples are us of the sender's clock."""

    type: Literal["lsl_calcium"] = "lsl_calcium"
    name: SourceName = "scope"
    stream: StreamName = Field(description="Name of the LSL stream with the fluorescence.")
    neuropil: StreamName | None = Field(default=None, description="Name of the LSL stream with neuropil, null if none.")
    calcium: Calcium = Calcium(neuropil=0.0)

    @model_validator(mode="after")
    def _neuropil(self) -> Self:
        if self.neuropil is None and self.calcium.neuropil > 0:
            raise ValueError(
                f"calcium.neuropil is {self.calcium.neuropil:g}, and no stream of neuropil is named; name it in "
                "neuropil, or set calcium.neuropil to 0"
            )
        return self


class LslBehaviourSource(Part):
    """An LSL stream of behaviour: gaze, pupil, running."""

    type: Literal["lsl_behaviour"] = "lsl_behaviour"
    name: SourceName = "behaviour"
    stream: StreamName = Field(description="Name of the LSL stream.")
    channels: dict[str, str] = Field(
        default={},
        description="Own name (with its unit): label of the channel in the stream; empty takes all by their labels.",
    )
    max_age_s: MaxAge = 2.0


class LslMarkerSource(Part):
    """An LSL stream of text markers: logged."""

    type: Literal["lsl_markers"] = "lsl_markers"
    name: SourceName = "markers"
    stream: StreamName = Field(description="Name of the LSL stream.")


NeuralSource = (
    OpenEphysSource
    | OpenEphysEventsSource
    | SpikesWireSource
    | TracesWireSource
    | LslSpikeSource
    | LslCountSource
    | LslCalciumSource
)
OtherSource = LslBehaviourSource | LslMarkerSource
AnySource = Annotated[NeuralSource | OtherSource, Field(discriminator="type")]


class WireFaults(Part):
    """Faults that the simulated device is to show, for rehearsals and benches."""

    quirks: bool = Field(default=False, description="Everything a healthy device does to a careless reader.")
    switches: tuple[str, ...] = Field(default=(), description="Fault switches; docs/fake_openephys.md, docs/wires.")


class CalciumSimulation(Part):
    """The simulated microscope."""

    frame_hz: float = Field(default=30.0, gt=1, le=500, description="Frames per s.")
    tau_s: float = Field(default=0.7, gt=0.05, le=5, description="Decay of the indicator, s.")
    spike_dff: float = Field(default=0.3, gt=0, le=5, description="dF/F of one spike.")
    noise_dff: float = Field(default=0.1, ge=0, le=5, description="Noise of one frame, sd of dF/F.")
    neuropil: float = Field(default=0.7, ge=0, le=1.5, description="Fraction of the neuropil in each ROI's signal.")
    bleaching_per_h: float = Field(default=0.1, ge=0, le=1, description="Fraction of F0 lost in an hour.")


class BehaviourSimulation(Part):
    """The simulated animal's behaviour, sent over LSL."""

    stream: str = Field(default="behaviour", description="Name of the LSL stream.")
    rate_hz: float = Field(default=120.0, ge=10, le=2000, description="Samples per s.")
    gaze_sd_deg: float = Field(default=0.2, ge=0, le=5, description="Fixational scatter of the gaze, degrees.")
    breaks_per_min: float = Field(default=4.0, ge=0, le=120, description="Looks away from the fixation point.")
    missing_per_min: float = Field(default=2.0, ge=0, le=120, description="Blinks: gaze and pupil are not seen.")

    @model_validator(mode="after")
    def _named(self) -> "BehaviourSimulation":
        if not self.stream:
            raise ValueError("stream is empty; give the LSL stream a name")
        return self
