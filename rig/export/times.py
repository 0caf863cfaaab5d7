"""Every time of an export is in seconds since the session's start: from host stamps, and from samples of devices.

Samples go through the offline two-sided refit of the device's clock (`rig.clocks.clockfit`), evaluated every 5 s and
joined by straight lines: one rising function per acquisition run, so that two samples never change their order. Host
times of different boots are told apart by the journal's process starts, which know UTC.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from rig.clocks.clockfit import NODE_NS, Run, TwoSidedMap, online_of
from rig.export.session_file import SessionView
from rig.messages import ClockSample
from rig.view.columns import NO_TIME

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
BEYOND_S = 3600.0  # the first and last line of a run are followed so far beyond its pairs
FALLS_BY_NS = 10_000_000_000  # host times that fall by more than any delay: the computer was started anew


@dataclass(frozen=True)
class Boot:
    """One boot of the session computer: from which entry on, and what its clock says at which time of the session."""

    first_seq: int
    first_host_ns: int
    at_s: float


class HostTime:
    """Host times of a session as seconds since its start."""

    def __init__(self, view: SessionView) -> None:
        """Read the boots of the session."""
        start_utc = int(view.attributes["start_utc_ns"])
        self.boots = [Boot(0, int(view.attributes["start_host_ns"]), 0.0)]
        columns = ("seq", "start_host_ns", "start_utc_ns")
        names, boots = view.texts("processes/name"), view.texts("processes/boot_id")
        rows = zip(names, boots, *(view.column(f"processes/{c}") for c in columns), strict=True)
        last = None
        for name, boot, seq, host, utc in rows:
            if name != "recorder":  # a model server may run on another computer
                continue
            if last is not None and boot != last:
                self.boots.append(Boot(int(seq), int(host), (int(utc) - start_utc) / 1e9))
            last = boot

    def seconds(self, host_ns: npt.NDArray[Any] | Sequence[int], seq: npt.NDArray[Any] | None = None) -> F64:
        """Return session times, s, NaN for an unknown one. `seq` are the entries' numbers; else rows are in order."""
        host = np.asarray(host_ns, dtype=np.int64)
        known = host != NO_TIME
        boot = np.zeros(len(host), np.int64) if len(self.boots) == 1 else self.boot_of(host, seq)
        first = np.array([b.first_host_ns for b in self.boots], dtype=np.int64)
        at = np.array([b.at_s for b in self.boots])
        out: F64 = np.where(known, (np.where(known, host, 0) - first[boot]) / 1e9 + at[boot], np.nan)
        return out

    def boot_of(self, host: I64, seq: npt.NDArray[Any] | None = None) -> I64:
        """Return the boot of each row: by its entry; or, for all rows of a table in order, by the host time alone."""
        if seq is None:
            return BootsInOrder(self).take(host)
        starts = np.array([b.first_seq for b in self.boots])
        return np.asarray(np.maximum(np.searchsorted(starts, seq, side="right") - 1, 0))


class BootsInOrder:
    """The boots of the rows of a table that has no entry numbers, taken in order, stretch by stretch."""

    def __init__(self, times: HostTime) -> None:
        """Begin in the first boot."""
        self._boots = times.boots
        self._boot = 0
        self._highest = NO_TIME

    def take(self, host_ns: npt.NDArray[Any]) -> I64:
        """Return the boot of each row: the clock falls in a new boot, or is where only a later boot's clock was."""
        host = np.asarray(host_ns, dtype=np.int64)
        out = np.full(len(host), self._boot, np.int64)
        at = 0
        while at < len(host):
            so_far = np.maximum.accumulate(np.concatenate([[self._highest], host[at:]]))
            if self._boot + 1 == len(self._boots):
                self._highest = int(so_far[-1])
                break
            following = self._boots[self._boot + 1].first_host_ns
            new = (so_far[:-1] > NO_TIME) & (host[at:] < np.maximum(so_far[:-1], NO_TIME + FALLS_BY_NS) - FALLS_BY_NS)
            new |= (so_far[:-1] < following) & (so_far[:-1] > NO_TIME) & (host[at:] >= following)
            new &= host[at:] != NO_TIME
            if not new.any():
                self._highest = int(so_far[-1])
                break
            at += int(np.argmax(new))
            self._boot += 1
            self._highest = int(host[at])
            out[at:] = self._boot
        return out


@dataclass
class DeviceTime:
    """Samples of one device in one run (and boot) as session seconds; one stretch more for each step of a clock."""

    source: int
    run: int
    boot: int
    how: str  # two-sided refit, or what stands for it
    starts_host_ns: list[int] = field(default_factory=list)  # of the stretches after the first
    sample: list[F64] = field(default_factory=list)  # of each stretch: knots, rising
    session_s: list[F64] = field(default_factory=list)
    uncertainty_s: list[F64] = field(default_factory=list)

    def seconds(self, sample: npt.NDArray[Any], near_host_ns: npt.NDArray[Any] | None = None) -> F64:
        """Return session times of samples, s. After a step a sample needs to know about when it was."""
        at = np.asarray(sample, dtype=np.float64)
        if len(self.sample) == 1 or near_host_ns is None:
            return np.asarray(np.interp(at, self.sample[0], self.session_s[0]))
        stretch = np.searchsorted(np.array(self.starts_host_ns), near_host_ns, side="right")
        out = np.empty(len(at))
        for k in np.unique(stretch):
            here = stretch == k
            out[here] = np.interp(at[here], self.sample[k], self.session_s[k])
        return out


class Clocks:
    """All times of a session."""

    def __init__(self, view: SessionView) -> None:
        """Fit the clock of each device, run and boot that has pairs."""
        self.host = HostTime(view)
        self._rates = [view.rate_hz(k) for k in range(len(view.sources))]
        self.devices: dict[tuple[int, int, int], DeviceTime] = {}
        names = ("device_sample", "pair_host_ns", "round_trip_ns", "uncertainty_ns", "run", "source")
        column = {n: view.column(f"clocks/{n}") for n in names}
        methods = np.array(view.texts("clocks/method"), dtype=object)
        boots = np.zeros(len(methods), np.int64)
        if len(self.host.boots) > 1:
            boots = self.host.boot_of(column["pair_host_ns"])
        keys = np.stack([column["source"].astype(np.int64), column["run"].astype(np.int64), boots], axis=1)
        for source, run, boot in np.unique(keys, axis=0).tolist():
            here = np.flatnonzero((keys == (source, run, boot)).all(axis=1))
            rows = zip(*(column[n][here].tolist() for n in names[:4]), methods[here].tolist(), strict=True)
            pairs = [_pair(view.sources[source], run, *row) for row in rows]
            self.devices[source, run, boot] = self._fit(source, run, boot, pairs)

    def _fit(self, source: int, run: int, boot: int, pairs: list[ClockSample]) -> DeviceTime:
        rate = self._rates[source]
        online = online_of(Run(pairs[0].source, run, rate, pairs))
        fitted = TwoSidedMap(online.kept, online.steps_host_ns, rate or None)
        out = DeviceTime(source, run, boot, "two-sided refit", list(online.steps_host_ns))
        hosts = [p.pair_host_ns for p in online.kept]
        edges = [min(hosts), *online.steps_host_ns, max(hosts) + 1] if hosts else []
        for first, end in pairwise(edges):
            known = []
            for node in range(first // NODE_NS, (end - 1) // NODE_NS + 1):
                middle = min(max(node * NODE_NS + NODE_NS // 2, first), end - 1)
                line = fitted.line(middle)
                if line is not None:
                    x = (middle - line.host0 - line.at) / line.slope
                    known.append((line.sample0 + x, middle, line.slope, line.uncertainty_ns(x)))
            if not known:
                return self._nominal(source, run, boot, pairs)
            self._stretch(out, boot, known)
        return out if out.sample else self._nominal(source, run, boot, pairs)

    def _stretch(self, out: DeviceTime, boot: int, known: list[tuple[float, int, float, float]]) -> None:
        rising = [known[0]]
        rising += [k for before, k in pairwise(known) if k[0] > before[0] and k[1] > before[1]]
        at = self._at([k[1] for k in rising], boot)
        sample = np.array([k[0] for k in rising])
        doubt = np.array([k[3] for k in rising]) / 1e9
        ahead, behind = (BEYOND_S * 1e9 / rising[end][2] for end in (-1, 0))
        out.sample.append(np.concatenate([[sample[0] - behind], sample, [sample[-1] + ahead]]))
        out.session_s.append(np.concatenate([[at[0] - BEYOND_S], at, [at[-1] + BEYOND_S]]))
        out.uncertainty_s.append(np.concatenate([[np.nan], doubt, [np.nan]]))

    def _at(self, host_ns: npt.NDArray[Any] | list[int], boot: int) -> F64:
        known = self.host.boots[boot]
        return (np.asarray(host_ns, dtype=np.int64) - known.first_host_ns) / 1e9 + known.at_s

    def _nominal(self, source: int, run: int, boot: int, pairs: list[ClockSample]) -> DeviceTime:
        """Return the line of the nominal rate through the pair that came with the least delay."""
        rate = self._rates[source] or 1e9
        best = min(pairs, key=lambda p: p.pair_host_ns - p.device_sample / rate * 1e9)
        at = float(self._at([best.pair_host_ns], boot)[0])
        out = DeviceTime(source, run, boot, "nominal rate through one pair: too few pairs for a fit")
        out.sample.append(best.device_sample + np.array([-BEYOND_S, 0.0, BEYOND_S]) * rate)
        out.session_s.append(at + np.array([-BEYOND_S, 0.0, BEYOND_S]))
        out.uncertainty_s.append(np.full(3, np.nan))
        return out

    def resolution_s(self) -> float:
        """Return the longest sample period of the devices, s; 1 us where none states a rate."""
        return max((1 / rate for rate in self._rates if rate > 0), default=1e-6)

    def boots(self, arrival_host_ns: npt.NDArray[Any], state: "BootsInOrder | None" = None) -> I64:
        """Return the boot of each row of a table, in the table's order; `state` where it comes in stretches."""
        if len(self.host.boots) == 1:
            return np.zeros(len(arrival_host_ns), np.int64)
        return (state or BootsInOrder(self.host)).take(arrival_host_ns)

    def of_rows(
        self,
        source: npt.NDArray[Any],
        run: npt.NDArray[Any],
        sample: npt.NDArray[Any],
        arrival_host_ns: npt.NDArray[Any],
        boots: I64 | None = None,
    ) -> F64:
        """Return session times of rows of one table, in the table's order: by sample, or by arrival without one."""
        boots = self.boots(arrival_host_ns) if boots is None else boots
        out = np.empty(len(sample))
        keys = ((boots << 8) + np.asarray(source, np.int64) << 40) + np.asarray(run, np.int64)
        for key in np.unique(keys).tolist():
            here = slice(None) if keys[0] == keys[-1] == key and (keys == key).all() else np.flatnonzero(keys == key)
            boot, device, of_run = key >> 48, (key >> 40) & 255, key & 0xFF_FFFF_FFFF
            arrival, counted = arrival_host_ns[here], sample[here]
            if (counted == NO_TIME).any() or (device, of_run, boot) not in self.devices:
                times = self._at(arrival, boot)
                known = (counted != NO_TIME) & ((device, of_run, boot) in self.devices)
                if known.any():
                    times[known] = self.devices[device, of_run, boot].seconds(counted[known], arrival[known])
            else:
                times = self.devices[device, of_run, boot].seconds(counted, arrival)
            out[here] = times
        return out


def _pair(
    source: str, run: int, sample: float, host_ns: int, round_trip_ns: int, uncertainty_ns: int, method: str
) -> ClockSample:
    known: dict[str, Any] = {"round_trip_ns": round_trip_ns, "uncertainty_ns": uncertainty_ns}
    known = {name: value for name, value in known.items() if value != NO_TIME}
    pair = {"source": source, "run": run, "device_sample": sample, "pair_host_ns": host_ns, "method": method}
    return ClockSample.model_validate(pair | known)
