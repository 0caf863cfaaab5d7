"""Barcodes on TTL lines: written, recorded by devices with clocks of their own, damaged, and read."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rig.clocks.barcodes import Barcode, BarcodeFormat, host_pairs, line_edges, read_barcodes, shared, signal
from rig.clocks.clockmap import ClockMap
from rig.messages import EdgeBlock

RATE = 30_000.0
FORM = BarcodeFormat()


def edges(values: list[int], rate_hz: float = RATE, start_s: float = 1.0) -> list[tuple[int, int]]:
    """Return (sample, state) of barcodes sent every 5 s, as a device of this true rate records them."""
    out = []
    for k, value in enumerate(values):
        t, level = start_s + k * 5.0, 0
        for state, duration in [*signal(value, FORM), (0, 0.0)]:
            if state != level:
                out.append((int(t * rate_hz), state))
                level = state
            t += duration
    return out


def read(rows: list[tuple[int, int]], rate_hz: float = RATE) -> tuple[list[Barcode], int]:
    sample, state = (np.array(c, dtype=np.int64) for c in zip(*sorted(rows), strict=True))
    got = read_barcodes(sample, state, rate_hz, FORM)
    return list(got.barcodes), got.refused


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2**37 - 1), min_size=1, max_size=4), st.floats(-200e-6, 200e-6), st.floats(0.5, 50.0))
def test_what_is_sent_is_read_on_a_clock_that_drifts(values: list[int], drift: float, start_s: float) -> None:
    barcodes, refused = read(edges(values, RATE * (1 + drift), start_s))
    assert [b.value for b in barcodes] == values
    assert [b.sample for b in barcodes] == [int((start_s + 5 * k) * RATE * (1 + drift)) for k in range(len(values))]
    assert refused == 0


def test_the_signal_is_that_of_ttl_barcoder() -> None:
    """Its documented layout: high-low-high, bits from the least significant one, low-high-low."""
    wrapped = [(1, 0.01), (0, 0.01), (1, 0.01)], [(0, 0.01), (1, 0.01), (0, 0.01)]
    levels = signal(0b1, BarcodeFormat(bits=3))
    assert levels == [*wrapped[0], (1, 0.035), (0, 0.035), (0, 0.035), *wrapped[1]]


def test_glitches_are_taken_out() -> None:
    rng, rows = np.random.default_rng(0), edges([123_456_789, 2**37 - 1, 0])
    occupied = np.array([s for s, _ in rows])
    clean = list(rows)
    for s in rng.integers(0, int(12 * RATE), 400).tolist():
        if np.abs(occupied - s).min() > 0.006 * RATE:
            level = next((state for at, state in reversed(clean) if at <= s), 0)
            rows += [(s, 1 - level), (s + int(rng.integers(1, 90)), level)]
            occupied = np.append(occupied, s)
    assert len(rows) > len(clean) + 400
    barcodes, _ = read(rows)
    assert [b.value for b in barcodes] == [123_456_789, 2**37 - 1, 0]


def test_a_lost_edge_costs_its_barcode_and_is_counted() -> None:
    """Whichever edge is lost: never a wrong number, and the others are read."""
    values = [98_765_432_101, 7, 2**36 + 5]
    rows = edges(values)
    first, last = (next(i for i, (s, _) in enumerate(rows) if s >= start * RATE) for start in (6.0, 11.0))
    refusals = 0
    for k in range(first, last):
        barcodes, refused = read(rows[:k] + rows[k + 1 :])
        assert [b.value for b in barcodes] == [values[0], values[2]]
        refusals += refused
    assert refusals >= last - first - 3  # without one of its first three edges it does not look like a beginning


def test_a_flipper_or_a_photodiode_line_holds_no_barcodes() -> None:
    rng = np.random.default_rng(1)
    at = np.cumsum(rng.integers(int(0.01 * RATE), int(0.2 * RATE), 5000))
    got = read_barcodes(at, np.arange(5000, dtype=np.int64) % 2 ^ 1, RATE, FORM)
    assert got.barcodes == ()
    assert read_barcodes(np.zeros(0, np.int64), np.zeros(0, np.int64), RATE, FORM).refused == 0


def block(rows: list[tuple[int, int]], line: int) -> EdgeBlock:
    n = len(rows)
    return EdgeBlock(
        source="probe",
        run=0,
        line=np.full(n, line, np.uint8),
        state=np.array([state for _, state in rows], np.uint8),
        sample=np.array([s for s, _ in rows], np.int64),
        arrival_host_ns=np.zeros(n, np.int64),
    )


def test_edges_of_one_line_come_sorted_out_of_blocks() -> None:
    rows = edges([5, 6])
    sample, state, arrival = line_edges([block(rows[40:], 2), block(rows, 1), block(rows[:40], 2)], 2)
    assert list(zip(sample.tolist(), state.tolist(), strict=True)) == rows
    assert arrival.tolist() == [0] * len(rows)
    assert len(line_edges([], 2)[0]) == 0


def test_two_devices_are_tied_by_the_numbers_that_both_saw_once() -> None:
    a = [Barcode(1, 100), Barcode(2, 200), Barcode(9, 250), Barcode(3, 300), Barcode(9, 350)]
    b = [Barcode(3, 3000), Barcode(2, 2000), Barcode(4, 4000), Barcode(9, 2600)]
    assert shared(a, b) == [(200, 2000), (300, 3000)]


def test_barcodes_that_the_host_made_give_a_map_exact_to_a_sample() -> None:
    rng, host0 = np.random.default_rng(2), 10**15
    values = rng.integers(0, 2**37, 30).tolist()
    made = {value: host0 + (1 + 5 * k) * 10**9 for k, value in enumerate(values)}
    barcodes, _ = read(edges(values, RATE * (1 + 40e-6)))
    clockmap = ClockMap(RATE)
    for pair in host_pairs(barcodes, made, "probe", 0, 43_000):
        clockmap.take(pair)
    mapped = clockmap.to_host_ns(100 * RATE * (1 + 40e-6))
    assert mapped is not None
    assert abs(mapped[0] - host0 - 100 * 10**9) < 1e9 / RATE
    assert mapped[1] < 150_000


@pytest.mark.parametrize(
    ("wrong", "says"), [({"bits": 0}, "1-62 bits"), ({"shortest_s": 0.01}, "glitches"), ({"bit_s": 0.001}, "too short")]
)
def test_a_format_that_could_not_be_read_is_refused(wrong: dict[str, float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        BarcodeFormat(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="does not fit"):
        signal(2**37, FORM)
