"""What the clock port of a recorded bridge answers in a replay: from the journalled pairs of its runs.

Pure. Called by `wire_tape_zmq`. A pair is wrong by half of its round trip at most; a straight line through the pairs of
some seconds around is better than any of them, and the answers of a replay, whose clock may stand still while it asks,
are stated to be exact. So the line is put on the tape and not the pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from rig.messages import ClockSample
from rig.replay.wire_tape import NotReplayable

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
HostOf = Callable[[float], int]

BESIDE = 8  # pairs on either side of one that its line goes through: 2 s each at four pairs a second
FLOOR_NS = 20_000.0  # stamps are not better than this
SILENT_NS = 1_500_000_000  # pairs come four times a second; a bridge that is silent is told after 2 s
EDGE_NS = 200_000_000  # how long before its last pair, and after the next, a silence may begin and end
NEVER_NS = 1 << 62


@dataclass(frozen=True)
class ClockTape:
    """What the clock port says; columns of host time in ns of the recording."""

    run: I64  # (knot,), index of the run
    host_ns: I64  # (knot,)
    sample: F64  # (knot,), where the device's counter was then
    present: bool  # whether that is the sample of now; false: only the newest that there is
    mute_ns: I64  # (silence, 2), from when to when nobody answered
    told: I64  # (change, 3): from this host time on the newest message is of this run and has this number

    def host_of(self, run: int, rate_hz: float) -> HostOf | None:
        """Return the function from a sample of a run to its host time, ns; None where nothing tells it."""
        mine = self.run == run
        host, sample = self.host_ns[mine], self.sample[mine]
        if not len(host):
            return None
        period = 1e9 / rate_hz

        def at(asked: float) -> int:
            k = min(max(int(np.searchsorted(sample, asked)), 1), len(sample) - 1) if len(sample) > 1 else 0
            if not sample[0] <= asked <= sample[-1] or k == 0:
                k = 0 if asked < sample[0] else len(sample) - 1
                return int(host[k]) + round((asked - float(sample[k])) * period)
            share = (asked - float(sample[k - 1])) / float(sample[k] - sample[k - 1])
            return int(host[k - 1]) + round(share * float(host[k] - host[k - 1]))

        return at

    def with_told(self, told: list[tuple[int, int, int]]) -> "ClockTape":
        """Return it with what is said of the newest message: (from host ns, run, number)."""
        return replace(self, told=np.array(sorted(told), dtype=np.int64).reshape(-1, 3))


def clock_tape(source: str, runs: list[tuple[list[ClockSample], float, int]], silences: list[int]) -> ClockTape:
    """Return the answers for runs of (pairs, rate in Hz, end in host ns); `silences`: when the log told of one.

    Raises NotReplayable where the log does not tell answers from arrivals of messages.
    """
    asked = any(p.method == "round_trip" for pairs, _, _ in runs for p in pairs)
    arrivals = [p for pairs, _, _ in runs for p in pairs if p.method == "arrival"]
    if not asked and silences and arrivals and arrivals[0].pair_host_ns < min(silences) - SILENT_NS:
        raise NotReplayable(
            f"{source}: its bridge told the newest sample instead of the time (present: false) and was silent for a "
            "while, and the journal does not tell its answers from the arrivals of messages: use --verify"
        )
    method = "round_trip" if asked else "arrival"
    answers = asked or not silences  # arrivals without a complaint are answers, else they are those of messages
    run: list[I64] = []
    host: list[I64] = []
    sample: list[F64] = []
    mute: list[tuple[int, int]] = []
    begin_ns = 0
    for k, (pairs, rate_hz, end_ns) in enumerate(runs):
        mine = [p for p in pairs if p.method == method] if answers else []
        knots = _line(mine, rate_hz)
        run.append(np.full(len(knots[0]), k, dtype=np.int64))
        host.append(knots[0])
        sample.append(knots[1])
        end_ns = NEVER_NS if k == len(runs) - 1 else end_ns
        mute += _silences([p.pair_host_ns for p in mine], begin_ns, end_ns, silences)
        begin_ns = end_ns
    return ClockTape(
        run=np.concatenate(run),
        host_ns=np.concatenate(host),
        sample=np.concatenate(sample),
        present=asked or not answers,
        mute_ns=np.array(mute, dtype=np.int64).reshape(-1, 2),
        told=np.empty((0, 3), dtype=np.int64),
    )


def _silences(at_ns: list[int], begin_ns: int, end_ns: int, silences: list[int]) -> list[tuple[int, int]]:
    """Return from when to when nobody answered in a run: where the log says so and no pair says otherwise."""
    if not at_ns:
        return [(begin_ns, end_ns)]
    bounds = [begin_ns, *at_ns, end_ns]
    out = []
    for one, other in pairwise(bounds):
        if other - one > SILENT_NS and any(one < told <= other + SILENT_NS for told in silences):
            out.append((one + EDGE_NS * (one > begin_ns), other - EDGE_NS * (other < end_ns)))
    return out


def _line(pairs: list[ClockSample], rate_hz: float) -> tuple[I64, F64]:
    """Return host time and sample of the knots of a line near the pairs, both ascending strictly."""
    ascending: list[ClockSample] = []
    for pair in pairs:
        before = ascending[-1] if ascending else None
        if before is None or (pair.pair_host_ns > before.pair_host_ns and pair.device_sample > before.device_sample):
            ascending.append(pair)
    host = np.array([p.pair_host_ns for p in ascending], dtype=np.int64)
    sample = np.array([p.device_sample for p in ascending], dtype=np.float64)
    if len(host) < 3 or ascending[0].method != "round_trip":
        return host, sample
    # Only what is off the nominal rate is smoothed: small numbers, for which a double is exact enough.
    x = (host - host[0]).astype(np.float64)
    off = (sample - sample[0]) - x * (rate_hz * 1e-9)
    trip = np.array([p.round_trip_ns or 0 for p in ascending], dtype=np.float64)
    weight = 1 / (trip + FLOOR_NS) ** 2
    out = np.empty_like(sample)
    for k in range(len(x)):
        near = slice(max(k - BESIDE, 0), k + BESIDE + 1)
        w, dx, y = weight[near] / weight[near].sum(), x[near] - x[k], off[near]
        middle, level = float(w @ dx), float(w @ y)
        spread = float(w @ (dx - middle) ** 2)
        slope = float(w @ ((dx - middle) * (y - level))) / spread if spread > 0 else 0.0
        out[k] = level - slope * middle
    smooth = sample[0] + x * (rate_hz * 1e-9) + out
    rising = np.concatenate([[True], np.diff(np.maximum.accumulate(smooth)) > 0])
    return host[rising], smooth[rising]
