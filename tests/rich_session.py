"""A made-up session with everything that an export must carry: spikes, a microscope, an eye tracker, rewards, markers.

Built on tests.synthetic_session; nothing in it was ever recorded.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rig.config.reading import parse
from rig.messages import (
    BehaviourBlock,
    ClockSample,
    Continuity,
    Document,
    Entry,
    Marker,
    OutputDone,
    OutputRequest,
    Presented,
    Response,
    SessionStart,
    SessionStop,
    SpikeBlock,
    TraceBlock,
    UnitList,
)
from tests.synthetic_session import START_NS, Synthetic

METADATA = """\
name: synthetic
subject: {id: "monkey/7 (blue)", species: Macaca mulatta, sex: F, age: P7Y, strain: none, weight_g: 8200,
          area: V4, description: a made-up monkey}
experiment:
  experimenter: ["Doe, Jane", "Roe, Richard"]
  lab: Vision Lab
  institution: University of Nowhere
  protocol: "1234-26"
  description: A made-up experiment
  keywords: [V4]
recording:
  probe: {device: Open Ephys, probe: "Utah array", filters: 300-6000 Hz, reference: skull screw,
          model: Acquisition Board, manufacturer: Open Ephys, electrodes: {E01: [1, 2, 3]}}
  scope: {device: two-photon microscope, area: V1, indicator: GCaMP6f, excitation_nm: 920, emission_nm: 520,
          imaging_hz: 30, depth_um: 200, plane: layer 2/3, lens: 16x}
display: {gamma: GAMMA, luminance_cd_m2: [0.1, 40, 80]}
sources:
  - {type: openephys, name: probe}
  - {type: traces_zmq, name: scope, port: 5999}
  - {type: lsl_behaviour, name: eye, stream: eye}
  - {type: lsl_markers, name: notes, stream: notes}
outputs: [{type: print, name: valve}]
reward: {output: valve, ul_per_s: 80, max_session_ml: 10}
responses: {units: ["E01#0", "E02#0", "E03#0"]}
phases:
  - {agent: present, images: [natural], count: 6, repeats: 3}
  - {agent: evolve, unit: "E01#0", generations: 3, generator: {type: dct, frequencies: 6}}
"""
FRAME_TICKS = 33_333  # us ticks of the microscope
ROIS = ("r0", "r1", "r2")


@dataclass
class Rich(Synthetic):
    """The session; `seconds` of microscope and eye tracker beside its spikes."""

    kind: str = "both"
    generations: int = 3
    candidates: int = 6
    real: bool = True
    seconds: int = 30

    def __post_init__(self) -> None:
        super().__post_init__()
        self.text = METADATA.replace("GAMMA", str(self.gamma))
        self.config = parse(self.text)

    def entries(self) -> Iterator[Entry]:
        for entry in super().entries():
            if isinstance(entry.document, SessionStart):
                yield Entry(entry.envelope, entry.document.model_copy(update={"simulated": not self.real}))
            elif isinstance(entry.document, SessionStop):
                envelope = entry.envelope
                self._seq -= 1
                for document in self._others():
                    yield self._entry(getattr(document, "source", "outputs"), document)
                self._seq += 1
                yield Entry(envelope.model_copy(update={"seq": self._seq}), entry.document)
            else:
                yield entry

    def _device(self, shown: Presented, drive: float) -> Iterator[Entry]:
        """Deliver no spike of a gap, as a device of which a message is lost."""
        entries = list(super()._device(shown, drive))
        gaps = [g for e in entries if isinstance(e.document, Continuity) for g in e.document.gaps]
        for entry in entries:
            d = entry.document
            if isinstance(d, SpikeBlock) and gaps:
                came = (d.sample < gaps[0].first_sample) | (d.sample >= gaps[0].end_sample)
                columns = {c: getattr(d, c)[came] for c in ("unit", "sample", "arrival_host_ns")}
                entry = Entry(entry.envelope, d.model_copy(update=columns))
            if isinstance(d, Response) and d.onset_sample is not None:
                entry = Entry(entry.envelope, d.model_copy(update={"run": self._run}))
            yield entry

    def _others(self) -> Iterator[Document]:
        rng = np.random.default_rng(3)
        scope = {"source": "scope", "run": 1}
        yield UnitList(
            **scope, list_number=0, from_sample=0, units=ROIS, scan_offset_s=np.array([0, 0.01, 0.02]),
            measure="fluorescence",
        )  # fmt: skip
        for second in range(self.seconds):
            at = START_NS + 10**9 * second
            for source in ("scope", "eye"):
                drift = round(second * 20)  # 20 us a second: 20 ppm
                yield ClockSample(
                    source=source, run=1, device_sample=float(10**6 * second + drift), pair_host_ns=at,
                    method="round_trip", round_trip_ns=200_000,
                )  # fmt: skip
                state = {"state": "streaming", "sample_rate_hz": 1e6, "messages": second, "lost_messages": 0}
                yield Continuity(source=source, run=1, watermark_sample=10**6 * second, **state)
            frame = np.arange(30 * second, 30 * (second + 1), dtype=np.int64)
            columns = {"sample": frame * FRAME_TICKS, "arrival_host_ns": START_NS + frame * FRAME_TICKS * 1000}
            values = rng.random((30, len(ROIS)), dtype=np.float32) * 100
            extra = {"neuropil": values / 3, "motion": values}
            yield TraceBlock(**scope, list_number=0, frame=frame, **columns, values=values, **extra)
            channels = ("gaze_x_deg", "gaze_y_deg", "pupil_mm", "running_cm_s")
            scatter = columns["sample"] + rng.integers(0, 300, 30)
            seen = rng.random((30, 4)) - 0.5
            seen[3] = np.nan  # a blink
            yield BehaviourBlock(
                source="eye", run=1, channels=channels, values=seen, sample=np.sort(scatter),
                arrival_host_ns=columns["arrival_host_ns"],
            )  # fmt: skip
        yield Marker(source="notes", run=1, sample=None, arrival_host_ns=START_NS + 10**9, text="the animal is awake")
        yield Marker(source="notes", run=1, sample=None, arrival_host_ns=START_NS + 2 * 10**9, text="drop by hand")
        for k in range(3):
            told = START_NS + (k + 5) * 10**9
            yield OutputRequest(request=f"r{k}", output="valve", what="reward", duration_s=0.05, trial=k)
            if k < 2:
                yield OutputDone(
                    request=f"r{k}", output="valve", what="reward", done=k == 0, reason="" if k == 0 else "daily limit",
                    started_host_ns=told, confirmed_host_ns=told + 10**6, duration_s=0.0501, timed_by="watchdog",
                    volume_ul=4.0,
                )  # fmt: skip
