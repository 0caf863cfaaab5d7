"""Barcodes on a TTL line: numbers that several devices record, which tie their clocks together.

Pure functions from the columns of EdgeBlocks to pairs of times; used by `rig.clocks.clockfit`, and by whoever makes
barcodes. The signal is the one of the `ttl-barcoder` package: high, low, high (10 ms each), the bits from the least
significant one (35 ms each, high = 1), low, high, low (10 ms each). That package's licence forbids commercial use, so
it is not used here. docs/clocks.md shows the signal.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rig.messages import ClockSample, EdgeBlock

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class BarcodeFormat:
    """Timing of the signal; the defaults are those of ttl-barcoder.

    `tolerance` is the largest error of an edge as a fraction of a wrapper pulse; what is shorter than `shortest_s` is
    a glitch and taken out.
    """

    bits: int = 37
    bit_s: float = 0.035
    wrapper_s: float = 0.010
    tolerance: float = 0.25
    shortest_s: float = 0.005

    def __post_init__(self) -> None:
        """Refuse what could not be read back. Raises ValueError."""
        if not 1 <= self.bits <= 62:
            raise ValueError(f"a barcode has 1-62 bits, not {self.bits}")
        if not 0 < self.shortest_s < self.wrapper_s * (1 - self.tolerance):
            raise ValueError(
                f"shortest_s is {self.shortest_s} s: pulses of {self.wrapper_s} s would be taken for glitches; use less"
            )
        if not self.bit_s > 2 * self.wrapper_s * self.tolerance:
            raise ValueError(f"bits of {self.bit_s} s are too short for wrapper pulses of {self.wrapper_s} s")

    @property
    def length_s(self) -> float:
        """From the first rising edge to the last falling one, s."""
        return 5 * self.wrapper_s + self.bits * self.bit_s


@dataclass(frozen=True)
class Barcode:
    """One barcode as a device recorded it: its number and the sample of its first edge."""

    value: int
    sample: int


@dataclass(frozen=True)
class Read:
    """All barcodes on a line, and how many beginnings of one could not be read (an edge lost, a glitch too long)."""

    barcodes: tuple[Barcode, ...]
    refused: int


def signal(value: int, form: BarcodeFormat) -> list[tuple[int, float]]:
    """Return the levels and durations, s, that send `value`; the line is low before and after. Raises ValueError."""
    if not 0 <= value < 1 << form.bits:
        raise ValueError(f"{value} does not fit into {form.bits} bits")
    wrapper = form.wrapper_s
    bits = [(value >> k & 1, form.bit_s) for k in range(form.bits)]
    return [(1, wrapper), (0, wrapper), (1, wrapper), *bits, (0, wrapper), (1, wrapper), (0, wrapper)]


def line_edges(blocks: Iterable[EdgeBlock], line: int) -> tuple[I64, I64, I64]:
    """Return samples (ascending), states and arrivals (host ns) of one line, from the blocks of one source and run."""
    chosen = [(b.sample[b.line == line], b.state[b.line == line], b.arrival_host_ns[b.line == line]) for b in blocks]
    if not chosen:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)
    sample, state, arrival = (np.concatenate(column).astype(np.int64) for column in zip(*chosen, strict=True))
    order = np.argsort(sample, kind="stable")
    return sample[order], state[order], arrival[order]


def _without_glitches(sample: I64, state: I64, shortest: float) -> tuple[list[int], list[int], list[int]]:
    """Take out pulses that are too short; return samples, states, and samples before which an edge was lost.

    Two edges in a row to the same level: the one between them is missing, and nobody knows where it was.
    """
    samples: list[int] = []
    states: list[int] = []
    lost: list[int] = []
    for s, level in zip(sample.tolist(), state.tolist(), strict=True):
        repeated = bool(states) and level == states[-1]
        if states and not repeated and s - samples[-1] < shortest:
            samples.pop()
            states.pop()
            continue
        if repeated:
            lost.append(s)
        samples.append(s)
        states.append(level)
    return samples, states, lost


def _decode(times: list[float], form: BarcodeFormat) -> int | None:
    """Return the number of a barcode whose edges, alternating from a rising one at 0, come at `times`, s; else None.

    Every edge must lie where the format can have one, and the six edges of the two wrappers must be there.
    """
    allowed = form.tolerance * form.wrapper_s
    data_s = 3 * form.wrapper_s
    end_s = data_s + form.bits * form.bit_s
    # Falling, rising; the data; the low level after them; the last pulse.
    expected = {1: form.wrapper_s, 2: 2 * form.wrapper_s}
    if any(abs(times[k] - due) > allowed for k, due in expected.items()):
        return None
    levels, at = [], 3
    for k in range(form.bits):
        start = data_s + k * form.bit_s
        if at < len(times) and abs(times[at] - start) <= allowed:
            at += 1
        levels.append(at % 2)  # after an odd number of edges the line is high
        if at < len(times) and times[at] < start + form.bit_s - allowed:
            return None  # an edge inside a bit
    if at < len(times) and abs(times[at] - end_s) <= allowed:
        at += 1
    trailer = times[at : at + 2]
    rises = at % 2 == 0 and len(trailer) == 2 and abs(trailer[0] - end_s - form.wrapper_s) <= allowed
    if not rises or abs(trailer[1] - end_s - 2 * form.wrapper_s) > allowed:
        return None
    return sum(level << k for k, level in enumerate(levels))


def read_barcodes(sample: I64, state: I64, rate_hz: float, form: BarcodeFormat) -> Read:
    """Find and decode all barcodes among a line's edges; `sample` ascends, `rate_hz` is the device's nominal rate."""
    samples, states, lost = _without_glitches(sample, state, form.shortest_s * rate_hz)
    allowed = form.tolerance * form.wrapper_s * rate_hz
    wrapper = form.wrapper_s * rate_hz
    barcodes: list[Barcode] = []
    refused, k = 0, 0
    while k + 2 < len(samples):
        first = samples[k]
        near = [abs(samples[k + i] - first - i * wrapper) <= allowed for i in (1, 2)]
        if states[k] != 1 or not all(near):
            k += 1
            continue
        end = first + form.length_s * rate_hz + allowed
        edges = [s for s in samples[k : k + form.bits + 6] if s <= end]
        value = _decode([(s - first) / rate_hz for s in edges], form)
        if value is None or bisect_right(lost, end) > bisect_right(lost, first):
            refused += 1
            k += 2  # the next rising edge may be a beginning
        else:
            barcodes.append(Barcode(value, first))
            k += len(edges)
    return Read(tuple(barcodes), refused)


def _once(barcodes: Iterable[Barcode]) -> dict[int, int]:
    """Return number -> sample of the barcodes that came once; one that came twice names no moment."""
    listed = list(barcodes)
    count = Counter(b.value for b in listed)
    return {b.value: b.sample for b in listed if count[b.value] == 1}


def shared(a: Iterable[Barcode], b: Iterable[Barcode]) -> list[tuple[int, int]]:
    """Return (sample of device a, sample of device b) of every barcode that both recorded, ascending in a."""
    in_a, in_b = _once(a), _once(b)
    return sorted((in_a[value], in_b[value]) for value in in_a.keys() & in_b.keys())


def host_pairs(
    barcodes: Iterable[Barcode], made_host_ns: Mapping[int, int], source: str, run: int, uncertainty_ns: int
) -> list[ClockSample]:
    """Return clock pairs of the barcodes that this host made, given the host time of each number's first edge.

    `uncertainty_ns` bounds the error of both stamps together: one device sample plus that of the host's.
    """
    return [
        ClockSample(
            source=source,
            run=run,
            device_sample=sample,
            pair_host_ns=made_host_ns[value],
            method="barcode",
            uncertainty_ns=uncertainty_ns,
        )
        for value, sample in sorted(_once(barcodes).items(), key=lambda item: item[1])
        if value in made_host_ns
    ]
