"""The truth folder: what the simulated animal really saw and did. Written by the animal, read by benches and reports.

The controller never reads it. Three files, all append-only, a torn last record is ignored:

* `truth.json`: units, clock parameters, latency and smoothing, and where each cell sees; written once.
* `events.jsonl`: one JSON object per line: photodiode edges, retinal images with their noise-free rates, restarts of
  the wire's sample count, looks away and blinks (`gaze_break`, `gaze_missing`), notes.
* `spikes.npys`: numpy arrays (spike, [unit, sample]) int64, one after the other.

Times are host monotonic ns; samples are true device samples.
"""

import io
import json
import math
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rig.animal.cortex import Edge, Evaluated
from rig.animal.device_clock import DeviceClock
from stimuli.spec import Place

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]
VERSION = 1


class TruthError(ValueError):
    """A truth folder that cannot be written or read; says what to do."""


class TruthLog:
    """Writes a truth folder; the folder must be new or empty."""

    def __init__(
        self,
        folder: Path,
        units: Sequence[str],
        device: DeviceClock,
        latency_s: float,
        smoothing_s: float,
        receptive_fields: Sequence[Place] = (),
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise TruthError(f"truth folder {folder} is not empty; name a new one, another run's truth stays as it is")
        head = {
            "version": VERSION,
            "units": list(units),
            "latency_s": latency_s,
            "smoothing_s": smoothing_s,
            "device": asdict(device),
            "receptive_fields": [place.model_dump(mode="json") for place in receptive_fields],
        }
        (folder / "truth.json").write_text(json.dumps(head, indent=2) + "\n", encoding="utf-8")
        self._lock = threading.Lock()  # the behaviour files its events from a thread of its own
        self._events = (folder / "events.jsonl").open("a", encoding="utf-8")
        self._spikes = (folder / "spikes.npys").open("ab")
        self._unit: list[I64] = []
        self._sample: list[I64] = []

    def edge(self, edge: Edge, sample: int) -> None:
        """File an edge of the photodiode and the device sample it was stamped with."""
        self.event("edge", host_ns=edge.host_ns, earliest_ns=edge.earliest_ns, state=edge.state, sample=sample)

    def image(self, image: Evaluated) -> None:
        """File a retinal image with its noise-free rates."""
        self.event(
            "image",
            host_ns=image.host_ns,
            earliest_ns=image.earliest_ns,
            sha256=image.sha256,
            patch_on=image.patch_on,
            rates_hz=image.rates_hz.tolist(),
        )

    def spikes(self, unit: I64, sample: I64) -> None:
        """File spikes: index of the unit and device sample."""
        self._unit.append(unit)
        self._sample.append(sample)

    def event(self, kind: str, **fields: Any) -> None:
        """File anything else that a reader may want, as one line."""
        with self._lock:
            self._events.write(json.dumps({"kind": kind, **fields}) + "\n")

    def flush(self) -> None:
        """Hand everything filed so far to the operating system."""
        if self._unit:
            pairs = np.stack([np.concatenate(self._unit), np.concatenate(self._sample)], axis=1)
            np.save(self._spikes, pairs)
            self._unit, self._sample = [], []
        self._spikes.flush()
        with self._lock:
            self._events.flush()

    def close(self) -> None:
        """Flush and close the files."""
        self.flush()
        self._events.close()
        self._spikes.close()


@dataclass(frozen=True)
class Truth:
    """A truth folder in memory. Edges, images and spikes are in order of time."""

    units: tuple[str, ...]
    device: DeviceClock
    latency_s: float
    smoothing_s: float
    edge_host_ns: I64  # (edge,) true time of the poll that saw it
    edge_earliest_ns: I64  # (edge,) the poll before: the patch changed between the two
    edge_state: U8
    edge_sample: I64
    image_host_ns: I64  # (image,) when the eye first saw these pixels
    image_earliest_ns: I64  # (image,) when it last saw the ones before
    image_sha256: tuple[str, ...]
    image_patch_on: npt.NDArray[np.bool_]
    rates: F64  # (image, unit) noise-free, spikes/s
    spike_unit: I64
    spike_sample: I64
    run_first_sample: I64  # (run,) true device sample from which on ...
    run_offset: I64  # ... the wire's samples are smaller by this much
    notes: tuple[dict[str, Any], ...] = field(default=())
    receptive_fields: tuple[Place, ...] = ()
    """Of each unit: centre and size, degrees (`models.truth.Population`); () in the truth of older versions."""

    def onset_ns(self, near_ns: int, tolerance_s: float = 0.04) -> int | None:
        """Return the true host time of the rising edge nearest to `near_ns`, None if there is none within tolerance."""
        rising = self.edge_host_ns[self.edge_state == 1]
        if not len(rising):
            return None
        nearest = int(rising[np.argmin(np.abs(rising - near_ns))])
        return nearest if abs(nearest - near_ns) <= tolerance_s * 1e9 else None

    def counts(self, start_sample: float, end_sample: float) -> I64:
        """Return how many spikes each unit (unit,) truly fired in [start, end) of true device samples."""
        low, high = np.searchsorted(self.spike_sample, [start_sample, end_sample])
        return np.bincount(self.spike_unit[low:high], minlength=len(self.units)).astype(np.int64)

    def mean_rate_hz(self, onset_ns: int, window_s: tuple[float, float]) -> F64:
        """Return the noise-free mean rate (unit,), spikes/s, in a window from `onset_ns`.

        It follows what the eye saw, with latency and smoothing, without noise, gain drift, adaptation, carry-over or
        death: the mean that repeated presentations of the same images converge to.
        """
        start = onset_ns + window_s[0] * 1e9
        end = onset_ns + window_s[1] * 1e9
        mean: F64 = (self._integral(end) - self._integral(start)) / ((end - start) * 1e-9)
        return mean

    def _integral(self, at_ns: float) -> F64:
        """Integrate the smoothed rates (unit,) from the first image to `at_ns`, in spikes."""
        starts, smooth, spikes = self._filtered
        k = int(np.searchsorted(starts, at_ns, side="right")) - 1
        if k < 0:
            return np.zeros(len(self.units))
        dt_s = (at_ns - starts[k]) * 1e-9
        since, _ = _settling(self.rates[k], smooth[k], dt_s, self.smoothing_s)
        total: F64 = spikes[k] + since
        return total

    @cached_property
    def _filtered(self) -> tuple[F64, F64, F64]:
        """Per image: time it takes effect, smoothed rates there, and spikes expected before it."""
        starts: F64 = self.image_host_ns + np.float64(self.latency_s * 1e9)
        smooth, spikes = np.zeros_like(self.rates), np.zeros_like(self.rates)
        for k in range(1, len(starts)):
            dt_s = (starts[k] - starts[k - 1]) * 1e-9
            done, state = _settling(self.rates[k - 1], smooth[k - 1], dt_s, self.smoothing_s)
            spikes[k], smooth[k] = spikes[k - 1] + done, state
        return starts, smooth, spikes


def _settling(target: F64, state: F64, dt_s: float, tau_s: float) -> tuple[F64, F64]:
    """Integrate a rate that settles from `state` to `target` for `dt_s`; return spikes and the state then."""
    if tau_s == 0:
        return target * dt_s, target
    left = math.exp(-dt_s / tau_s)
    return target * dt_s + (state - target) * tau_s * (1 - left), target + (state - target) * left


def _lines(path: Path) -> list[dict[str, Any]]:
    """Read whole lines; a torn last one is left out."""
    whole = path.read_bytes().rpartition(b"\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def _spike_chunks(path: Path) -> I64:
    """Read the arrays of a spike file (spike, [unit, sample]); a torn last one is left out."""
    raw = io.BytesIO(path.read_bytes())
    chunks = [np.zeros((0, 2), dtype=np.int64)]
    while raw.tell() < len(raw.getbuffer()):
        try:
            chunks.append(np.load(raw, allow_pickle=False))
        except (ValueError, EOFError):
            break
    return np.concatenate(chunks)


def read(folder: Path) -> Truth:
    """Read a truth folder, also one that is still being written. Raises TruthError."""
    try:
        head = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
        events = _lines(folder / "events.jsonl")
        spikes = _spike_chunks(folder / "spikes.npys")
    except OSError as error:
        raise TruthError(f"{folder} is no truth folder: {error}; give the one that `stimloop animal` wrote") from error
    if head["version"] != VERSION:
        found = head["version"]
        raise TruthError(f"{folder} has version {found}, this program reads {VERSION}; use the program that wrote it")
    edges = [e for e in events if e["kind"] == "edge"]
    images = [e for e in events if e["kind"] == "image"]
    runs = [e for e in events if e["kind"] == "run"]
    units = tuple(head["units"])
    order = np.argsort(spikes[:, 1], kind="stable")

    def column(rows: list[dict[str, Any]], name: str) -> I64:
        return np.array([r[name] for r in rows], dtype=np.int64)

    return Truth(
        units=units,
        device=DeviceClock(**head["device"]),
        latency_s=head["latency_s"],
        smoothing_s=head["smoothing_s"],
        edge_host_ns=column(edges, "host_ns"),
        edge_earliest_ns=column(edges, "earliest_ns"),
        edge_state=column(edges, "state").astype(np.uint8),
        edge_sample=column(edges, "sample"),
        image_host_ns=column(images, "host_ns"),
        image_earliest_ns=column(images, "earliest_ns"),
        image_sha256=tuple(e["sha256"] for e in images),
        image_patch_on=column(images, "patch_on").astype(bool),
        rates=np.array([e["rates_hz"] for e in images], dtype=np.float64).reshape(len(images), len(units)),
        spike_unit=spikes[order, 0],
        spike_sample=spikes[order, 1],
        run_first_sample=column(runs, "sample"),
        run_offset=column(runs, "offset"),
        notes=tuple(e for e in events if e["kind"] not in ("edge", "image", "run")),
        receptive_fields=tuple(Place.model_validate(place) for place in head.get("receptive_fields", [])),
    )
