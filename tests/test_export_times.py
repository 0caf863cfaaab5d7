"""Seconds since the session's start: across boots of the computer and steps of a device's clock."""

from pathlib import Path

import numpy as np

from rig.export.session_file import SessionView, opened
from rig.export.times import BootsInOrder, Clocks, HostTime
from rig.messages import ClockSample, Continuity, Document, Entry, Envelope, ProcessStarted, SessionStart, SpikeBlock
from rig.view.columns import NO_TIME
from rig.view.h5 import build
from tests.synthetic_session import START_NS, UTC_NS, Synthetic, write_journal

S = 1_000_000_000


def write(folder: Path, documents: list[Document]) -> None:
    start = next(e.document for e in Synthetic().entries() if isinstance(e.document, SessionStart))
    entries = [
        Entry(Envelope(seq=k, receipt_host_ns=0, sender="probe", process="p", sender_seq=k), d)
        for k, d in enumerate([start, *documents], start=1)
    ]
    write_journal(folder, entries)
    build(folder)


def begun(boot: str, host_ns: int, at_s: float) -> ProcessStarted:
    utc = UTC_NS + round(at_s * S)
    return ProcessStarted(name="recorder", pid=1, boot_id=boot, start_host_ns=host_ns, start_utc_ns=utc, notes={})


def pairs(first_sample: int, first_host_ns: int, rate_hz: float, seconds: int, run: int = 1) -> list[Document]:
    out: list[Document] = [
        Continuity(
            source="probe", run=run, state="streaming", sample_rate_hz=30_000, watermark_sample=first_sample,
            messages=0, lost_messages=0,
        )
    ]  # fmt: skip
    for k in range(seconds):
        sample = first_sample + rate_hz * k
        pair = {"device_sample": sample, "pair_host_ns": first_host_ns + k * S, "uncertainty_ns": 1000}
        out.append(ClockSample(source="probe", run=run, method="edge", **pair))
    return out


def spikes(sample: list[int], arrival_ns: list[int], run: int = 1) -> SpikeBlock:
    return SpikeBlock(
        source="probe", run=run, units=("E01#0",), unit=np.zeros(len(sample), np.uint16),
        sample=np.array(sample), arrival_host_ns=np.array(arrival_ns),
    )  # fmt: skip


def spike_times(view: SessionView) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    part = next(view.stretches("spikes", ("source", "run", "sample", "arrival_host_ns")))
    return Clocks(view).of_rows(part["source"], part["run"], part["sample"], part["arrival_host_ns"])


def test_a_reboot_goes_on_in_utc_and_its_samples_use_its_own_pairs(tmp_path: Path) -> None:
    again = 50 * S  # the monotonic clock began anew
    documents = [
        begun("one", START_NS, 0.0),
        *pairs(1000, START_NS + S, 30_003.0, 60),
        spikes([1000 + 300_030], [START_NS + 11 * S + 5_000_000]),
        begun("two", again, 3600.0),
        *pairs(1000, again + S, 29_997.0, 60),
        spikes([1000 + 299_970], [again + 11 * S + 5_000_000]),
    ]
    write(tmp_path, documents)
    with opened(tmp_path, print) as view:
        assert [round(b.at_s, 6) for b in HostTime(view).boots] == [0, 3600]
        np.testing.assert_allclose(spike_times(view), [11.0, 3611.0], atol=1e-4)
        host = HostTime(view)
        np.testing.assert_allclose(host.seconds([again + S, NO_TIME], np.array([10**6, 10**6])), [3601.0, np.nan])


def test_boots_are_told_apart_by_a_fall_or_by_a_range_of_their_own(tmp_path: Path) -> None:
    write(tmp_path, [begun("one", START_NS, 0.0), begun("two", START_NS * 3, 90.0), begun("three", 5 * S, 99.0)])
    with opened(tmp_path, print) as view:
        times = HostTime(view)
    rows = [START_NS, START_NS + 3 * S, START_NS + 2 * S, NO_TIME, 3 * START_NS + S, 3 * START_NS, 6 * S, 7 * S]
    whole = BootsInOrder(times).take(np.array(rows)).tolist()
    assert whole == [0, 0, 0, 0, 1, 1, 2, 2]
    in_parts = BootsInOrder(times)
    assert [in_parts.take(np.array([row]))[0] for row in rows] == whole


def test_after_a_step_of_the_host_clock_each_side_has_its_own_line(tmp_path: Path) -> None:
    step = 2 * S
    documents = [
        begun("one", START_NS, 0.0),
        *pairs(0, START_NS, 30_000.0, 60),
        *pairs(30_000 * 60, START_NS + 60 * S + step, 30_000.0, 60)[1:],
        spikes([30_000 * 30, 30_000 * 90], [START_NS + 30 * S, START_NS + 90 * S + step]),
    ]
    write(tmp_path, documents)
    with opened(tmp_path, print) as view:
        np.testing.assert_allclose(spike_times(view), [30.0, 92.0], atol=1e-3)


def test_too_few_pairs_and_none_at_all_are_said_and_not_hidden(tmp_path: Path) -> None:
    documents = [
        begun("one", START_NS, 0.0),
        *pairs(0, START_NS + S, 30_000.0, 2),
        spikes([15_000], [START_NS + 2 * S]),
        spikes([15_000], [START_NS + 7 * S], run=2),
    ]
    write(tmp_path, documents)
    with opened(tmp_path, print) as view:
        clocks = Clocks(view)
        assert [d.how for d in clocks.devices.values()] == ["nominal rate through one pair: too few pairs for a fit"]
        np.testing.assert_allclose(spike_times(view), [1.5, 7.0], atol=1e-6)


def test_times_rise_with_samples_over_the_whole_session(tmp_path: Path) -> None:
    write_journal(tmp_path, list(Synthetic(generations=6).entries()))
    build(tmp_path)
    with opened(tmp_path, print) as view:
        clocks = Clocks(view)
        device = clocks.devices[0, 1, 0]
        samples = np.arange(0, 30_000 * 60, 7)
        assert (np.diff(device.seconds(samples)) > 0).all()
