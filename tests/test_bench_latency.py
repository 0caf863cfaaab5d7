"""The latency self-test: its fold on documents with known times, and a short real session."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from rich.console import Console

from rig.bench.latency import OUTPUT, SOURCE, STAGES, Loops, latency, session_config
from rig.clock import HostClock
from rig.messages import (
    Document,
    EdgeBlock,
    Entry,
    Envelope,
    Marker,
    OutputDone,
    Presented,
    ProcessStarted,
    SessionStop,
    SpikeBlock,
)
from rig.recording.journal import read_all

MS = 1_000_000


def entry(document: Document, receipt_ns: int = 1) -> Entry:
    return Entry(
        Envelope(seq=1, receipt_host_ns=receipt_ns, sender="probe", process="probe-1", sender_seq=1), document
    )


def edge(arrival_ns: int, line: int = 0, state: int = 1, source: str = "probe") -> EdgeBlock:
    return EdgeBlock(
        source=source,
        run=0,
        line=np.array([line], np.uint8),
        state=np.array([state], np.uint8),
        sample=np.array([arrival_ns // 33_333], np.int64),
        arrival_host_ns=np.array([arrival_ns], np.int64),
    )


def shown(number: int, flip_ns: int) -> Presented:
    return Presented(
        presentation=number,
        trial=0,
        position_in_trial=number,
        proposal=0,
        slot=number,
        role="candidate",
        stimulus_id="s",
        previous_stimulus_id=None,
        frame_sha256="0" * 64,
        due_host_ns=flip_ns,
        onset_flip_host_ns=flip_ns,
        offset_flip_host_ns=flip_ns + 100 * MS,
        flips_host_ns=np.array([flip_ns, flip_ns + 100 * MS], np.int64),
        late_flips=0,
        dropped_frames=0,
        image_row_px=0,
        patch_row_px=0,
        complete=True,
    )


def test_each_stage_is_timed_from_its_own_event() -> None:
    loops = Loops("probe", 0, 200 * MS, 0)
    notes = {"renderer": "a card", "priority": "SCHED_FIFO 10"}
    started = ProcessStarted(name="rig", pid=1, boot_id="b", start_host_ns=0, start_utc_ns=0, notes=notes)
    assert loops.take(entry(started), 0) is None
    for k in range(10):
        flip = (1000 + 200 * k) * MS
        arrived = flip + (20 + k) * MS
        request = loops.take(entry(edge(arrived), arrived + 10 * MS), arrived + 12 * MS)
        assert request is not None
        assert request.output == OUTPUT
        done = OutputDone(
            request=request.request, output=OUTPUT, what="marker", done=True,
            started_host_ns=arrived + 15 * MS, confirmed_host_ns=arrived + 16 * MS,
        )  # fmt: skip
        loops.take(entry(done), arrived + 18 * MS)
        loops.take(entry(shown(k, flip)), flip + 110 * MS)
    rows = {row["stage"]: row for row in loops.rows()}
    assert list(rows) == [stage for stages in STAGES.values() for stage in stages]
    arrival = rows["flip_to_source"]
    assert (arrival["n"], arrival["first_ms"], arrival["median_ms"], arrival["max_ms"]) == (10, 20, 24.5, 29)
    assert rows["flip_to_journal"]["median_ms"] == 34.5
    assert rows["edge_to_routed"]["max_ms"] == 12
    assert rows["edge_to_output_begun"]["median_ms"] == 15
    assert rows["edge_to_output_done"]["p99_ms"] == 16
    assert rows["spike_to_routed"]["n"] == 0
    assert rows["spike_to_routed"]["median_ms"] is None
    assert (loops.renderer, loops.priority) == ("a card", "SCHED_FIFO 10")


def test_other_lines_sources_and_lost_edges_are_not_timed() -> None:
    loops = Loops("probe", 0, 200 * MS, 0)
    for other in (edge(5 * MS, line=1), edge(5 * MS, state=0), edge(5 * MS, source="scope")):
        assert loops.take(entry(other), 6 * MS) is None
    loops.take(entry(shown(0, 0)), 110 * MS)
    loops.take(entry(edge(450 * MS)), 451 * MS)  # 250 ms after a flip whose own edge was lost
    loops.take(entry(shown(1, 200 * MS)), 452 * MS)
    failed = OutputDone(request=f"{OUTPUT}-1", output=OUTPUT, what="marker", done=False, reason="cable")
    loops.take(entry(failed), 453 * MS)
    assert {row["stage"]: row["n"] for row in loops.rows() if row["n"]} == {"edge_to_routed": 1}


def test_spikes_are_timed_from_the_newest_of_a_block() -> None:
    loops = Loops("probe", None, 0, since_ns=1)
    n = np.array([1, 2], np.int64)
    block = SpikeBlock(
        source="probe", run=0, units=("a",), unit=np.zeros(2, np.uint16), sample=n, arrival_host_ns=n * MS
    )
    loops.take(entry(block, receipt_ns=0), 9000 * MS)  # from the log, at the start
    loops.take(entry(block), 5 * MS)
    assert next(row for row in loops.rows() if row["stage"] == "spike_to_routed")["median_ms"] == 3


def test_a_rig_s_own_devices_and_screen_are_kept() -> None:
    text = Path(__file__).parent.parent.joinpath("configs", "evolve.yaml").read_text(encoding="utf-8")
    mine, _ = session_config(text, 1.0)
    demo, _ = session_config(None, 1.0)
    assert mine.name == demo.name == "bench-latency"
    assert [o.name for o in mine.outputs] == [OUTPUT]
    assert mine.sources[0].type == "openephys"
    assert mine.reward is None


@pytest.mark.display
@pytest.mark.timeout(400)
def test_a_short_session_measures_both_loops_and_files_the_figures(tmp_path: Path, private_screen: str) -> None:
    figures = latency(0.11, tmp_path, HostClock(), Console(quiet=True))
    rows = {row["stage"]: row for row in figures["rows"]}
    for stage in ("flip_to_light", "flip_to_source", "flip_to_journal", "edge_to_routed", "edge_to_output_done"):
        assert rows[stage]["n"] >= 20, stage
        assert rows[stage]["median_ms"] <= rows[stage]["p99_ms"] <= rows[stage]["max_ms"]
    assert rows["spike_to_routed"]["n"] > 20
    medians = [rows[stage]["median_ms"] for stage in STAGES["photodiode"]]
    assert medians == sorted(medians)
    assert 0 < rows["edge_to_routed"]["median_ms"] < rows["edge_to_output_done"]["median_ms"] < 500
    assert figures["devices"] == "simulated"
    assert "llvmpipe" in figures["gpu"] or figures["gpu"] != "unknown"
    folder = Path(figures["session"])
    log = read_all(folder / "session.journal", frozenset({"marker", "session_stop"}))
    (marker,) = [e.document for e in log if isinstance(e.document, Marker)]
    assert isinstance(log[-1].document, SessionStop)
    filed = json.loads(marker.text)
    assert marker.source == SOURCE
    assert filed["rows"] == figures["rows"]
    with h5py.File(folder / "session.h5", "r") as file:
        texts = [t.decode() if isinstance(t, bytes) else t for t in file["markers/text"][:]]
    assert texts == [marker.text]
