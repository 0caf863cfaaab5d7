"""`stimloop bench loss`: its sums on made-up journals, and short rows with all real processes."""

import signal

import numpy as np
import pytest

from rig.animal.openephys_faults import SWITCHES
from rig.bench.loss import CHANNELS, STALLS_S, Row, loss, measure, rows
from rig.bench.loss_account import Truth, account, read
from rig.clock import HostClock
from rig.messages import (
    Continuity,
    Document,
    Entry,
    Envelope,
    Fault,
    Gap,
    Response,
    SpikeBlock,
)
from rig.supervision.processes import SessionFailed

UNITS = ("E000#0", "E001#0")
S = 1_000_000_000


def journal(*documents: Document) -> list[Entry]:
    return [
        Entry(Envelope(seq=k, receipt_host_ns=k * S, sender="p", process="p-1", sender_seq=k), d)
        for k, d in enumerate(documents, 1)
    ]


def spikes(run: int, *pairs: tuple[int, int], at_s: float = 1.0) -> SpikeBlock:
    return SpikeBlock(
        source="probe",
        run=run,
        units=UNITS,
        unit=np.array([u for u, _ in pairs], np.uint16),
        sample=np.array([s for _, s in pairs], np.int64),
        arrival_host_ns=np.full(len(pairs), int(at_s * S), np.int64),
    )


def gap(run: int, first: int, end: int) -> Continuity:
    return Continuity(
        source="probe", run=run, state="streaming", sample_rate_hz=30_000.0, watermark_sample=end, messages=1,
        lost_messages=1, gaps=(Gap(first_sample=first, end_sample=end, messages=1),),
    )  # fmt: skip


TOLD = Fault(what="messages lost", detail="d", done="d", since_host_ns=S)


def truth(*rows: tuple[int, int, int, float]) -> Truth:
    """Rows (unit, sample, epoch, sent at s)."""
    columns = np.array([(u, s, e, int(t * S)) for u, s, e, t in rows], np.int64).T
    return Truth(*columns)


SENT = truth((0, 100, 0, 1.0), (1, 100, 0, 1.0), (0, 250, 0, 2.0), (1, 300, 0, 3.0))


def sums(sent: Truth, *documents: Document) -> tuple[int, int, bool, int]:
    got = account(sent, 0, read(journal(*documents), UNITS))
    return got["sent"], got["lost"], got["lost_declared"], got["undeclared"]


def test_all_received() -> None:
    assert sums(SENT, spikes(5, (0, 100), (1, 100), (0, 250), (1, 300))) == (4, 0, True, 0)


def test_lost_and_not_told() -> None:
    assert sums(SENT, spikes(5, (0, 100), (1, 100), (1, 300))) == (4, 1, False, 1)


def test_lost_in_a_gap_with_a_fault() -> None:
    assert sums(SENT, spikes(5, (0, 100), (1, 100), (1, 300)), gap(5, 200, 260), TOLD) == (4, 1, True, 0)


def test_a_gap_elsewhere_excuses_nothing() -> None:
    assert sums(SENT, spikes(5, (0, 100), (1, 100), (1, 300)), gap(5, 251, 260), TOLD) == (4, 1, False, 1)


def test_a_gap_without_a_fault_is_silence() -> None:
    assert sums(SENT, spikes(5, (0, 100), (1, 100), (1, 300)), gap(5, 200, 260)) == (4, 1, False, 0)


def test_a_gap_of_another_run_excuses_nothing() -> None:
    sent = truth((0, 100, 0, 1.0), (1, 140, 0, 1.1), (0, 120, 0, 1.2), (0, 150, 1, 5.0), (1, 120, 1, 5.1))
    documents = (spikes(5, (0, 100), (1, 140), at_s=1.1), spikes(6, (0, 150), (1, 120), at_s=5.1))
    assert sums(sent, *documents, gap(6, 119, 121), TOLD) == (5, 1, False, 1)
    assert sums(sent, *documents, gap(5, 119, 121), TOLD) == (5, 1, True, 0)


def test_the_gap_before_a_run_excuses_nothing_of_the_run_before() -> None:
    """With sample numbers that go on, "nothing before sample 300 in run 6" says nothing about run 5."""
    sent = truth((0, 100, 0, 1.0), (1, 120, 0, 1.2), (0, 140, 0, 1.4), (0, 300, 0, 5.0))
    documents = (spikes(5, (0, 100), (0, 140), at_s=1.5), spikes(6, (0, 300), at_s=5.0))
    assert sums(sent, *documents, gap(6, 0, 290), TOLD) == (4, 1, False, 1)


def test_spikes_before_the_start_do_not_count() -> None:
    got = account(SENT, int(1.5 * S), read(journal(spikes(5, (0, 250), (1, 300))), UNITS))
    assert (got["sent"], got["lost"]) == (2, 0)


def response(count: tuple[float, float], start: int, end: int) -> Response:
    two = np.array(count)
    return Response(
        presentation=0, proposal=0, slot=0, role="candidate", stimulus_id="s", source="probe", run=5, usable=True,
        reason="", onset_source="flip", onset_sample=0, onset_host_ns=0, onset_uncertainty_ns=0,
        onset_host_uncertainty_ns=0, flip_to_edge_ns=None, window_start_sample=start, window_end_sample=end,
        coverage=1.0, units=UNITS, count=two, baseline=two * 0, rate_hz=two,
    )  # fmt: skip


@pytest.mark.parametrize(("count", "wrong"), [((1.0, 1.0), 0), ((1.0, 0.0), 1), ((2.0, 1.0), 1)])
def test_counts_of_usable_responses_are_compared_with_the_truth(count: tuple[float, float], wrong: int) -> None:
    got = account(SENT, 0, read(journal(spikes(5, (0, 100), (1, 100)), response(count, 90, 250)), UNITS))
    assert (got["usable"], got["wrong"]) == (1, wrong)


def test_rows_cover_the_stalls_and_every_switch() -> None:
    every = rows()
    assert {r.fault for r in every} == {"none", *SWITCHES}
    for rate in (2_000, 20_000):
        stalls = {(r.stalled, r.stall_s) for r in every if r.spikes_per_s == rate and r.channels == CHANNELS}
        wanted = {(who, s) for who in ("source", "recorder and model") for s in STALLS_S}
        assert wanted | {("nobody", 0.0), ("receiver", 1.0)} == stalls


def test_an_unknown_row_is_named() -> None:
    from rich.console import Console

    with pytest.raises(SessionFailed, match="no row is called 'dorp'; choose from back_jump"):
        loss(1.0, "dorp", HostClock(), Console())


stops = pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="this system cannot stop a process")


@stops
def test_a_stopped_source_loses_nothing() -> None:
    got = measure(Row(16, 500, stall_s=0.6, stalled="source"), 2.0, HostClock())
    assert got["sent"] > 500
    assert (got["lost"], got["undeclared"], got["repeated"], got["wrong"]) == (0, 0, 0, 0)
    assert got["age_ms_p99"] > 300  # it was stopped


def test_dropped_messages_are_lost_declared_and_score_nothing_wrongly() -> None:
    got = measure(Row(16, 500, fault="drop"), 3.0, HostClock())
    assert got["lost"] > 0
    assert got["received"] == got["sent"] - got["lost"]
    assert got["lost_declared"]
    assert "messages lost" in got["told"]
    assert 0 < got["usable"] < got["presentations"]
    assert got["wrong"] == 0


def test_a_session_that_cannot_start_names_its_cause() -> None:
    got = measure(Row(16, 500, fault="port_conflict_data"), 1.0, HostClock())
    assert (got["received"], got["lost"], got["undeclared"]) == (0, got["sent"], 0)
    assert "nothing listens" in got["told"]
