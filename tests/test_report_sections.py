"""Sections of the report that only some sessions have: rewards, refused frames, traces; and the axes of figures."""

from pathlib import Path

import numpy as np
import pytest

from rig.messages import (
    Document,
    Entry,
    Envelope,
    OutputDone,
    OutputRequest,
    Presented,
    Response,
    SessionStart,
    TraceBlock,
    UnitList,
)
from rig.report.data import open_session
from rig.report.figures import around_s, raster, raster_groups
from rig.report.page import write
from rig.report.traces import traces
from tests.synthetic_session import RATE_HZ, Synthetic
from tests.test_report import made, page, with_document


def added(entries: list[Entry], documents: list[Document]) -> list[Entry]:
    """Return the entries, and the documents behind them."""
    seq, now = entries[-1].envelope.seq, entries[-1].envelope.receipt_host_ns
    return entries + [
        Entry(Envelope(seq=seq + k, receipt_host_ns=now, sender="x", process="x", sender_seq=k), document)
        for k, document in enumerate(documents, 1)
    ]


def configured(entries: list[Entry], **parts: object) -> list[Entry]:
    """Return the entries of a session whose config has other parts."""
    start = entries[0].document
    assert isinstance(start, SessionStart)
    return [with_document(entries[0], start.model_copy(update={"config": start.config | parts})), *entries[1:]]


def present() -> list[Entry]:
    return list(Synthetic(kind="present", generations=3).entries())


def one_line(words: str) -> str:
    return " ".join(words.split())


# --- rewards ----------------------------------------------------------------------------------------------------------


def test_rewards_are_told_with_volume_limits_and_what_was_refused(tmp_path: Path) -> None:
    reward = {"output": "valve", "ul_per_s": 40, "max_pulse_s": 0.3, "max_per_minute_s": 4.0, "max_session_ml": 20}
    documents: list[Document] = []
    for k in range(12):
        documents.append(OutputRequest(request=f"r{k}", output="valve", what="reward", duration_s=0.1))
        told = {"done": True, "volume_ul": 4.0, "started_host_ns": 7}
        if k in (5, 6, 7):
            told = {"done": False, "reason": f"refused: {k}.1 s were given"}
        if k == 8:
            told = {"done": False, "volume_ul": 2.0, "started_host_ns": 7, "reason": "cut short: it heard nothing"}
        if k < 11:
            documents.append(OutputDone(request=f"r{k}", output="valve", what="reward", **told))
    documents.append(OutputRequest(request="m", output="valve", what="marker"))
    write(made(tmp_path / "s", added(configured(present(), reward=reward), documents)))
    words = one_line(page(tmp_path / "s").words)
    assert "12 rewards asked for, 0.030 mL of at most 20 mL" in words
    assert "Limits: 0.3 s in a pulse, 4 s in any minute." in words
    assert "given as asked 7 0.028" in words
    assert "refused 3 0.000 3 x refused: 7.1 s were given" in words
    assert "cut short or not confirmed 1 0.002 1 x cut short: it heard nothing" in words
    assert "never answered 1 0.000" in words


def test_a_session_without_reward_has_no_such_section(tmp_path: Path) -> None:
    write(made(tmp_path / "s", present()))
    assert "Reward" not in page(tmp_path / "s").words


# --- refused frames ---------------------------------------------------------------------------------------------------


def test_refused_frames_are_said_apart_from_complete_data(tmp_path: Path) -> None:
    entries = []
    for e in present():
        d = e.document
        if isinstance(d, Presented) and d.presentation in (2, 3, 4):
            d = d.model_copy(update={"complete": False, "refused": "" if d.presentation == 4 else "too bright"})
        if isinstance(d, Response) and d.presentation in (2, 3, 4):
            why = "presentation was cut short" if d.presentation == 4 else "its frame was refused: too bright"
            d = d.model_copy(update={"usable": False, "reason": why, "coverage": 0.0, "rate_hz": d.rate_hz * np.nan})
        entries.append(with_document(e, d))
    write(made(tmp_path / "s", entries))
    words = one_line(page(tmp_path / "s").words)
    shown = sum(isinstance(e.document, Presented) for e in entries)
    full = shown - 3 - 1  # one has a gap
    assert f"complete in the windows of {full / (shown - 3):.1%} of the presentations" in words
    left_out = (
        "2 presentations of background in place of a frame that was refused and "
        "1 presentation cut short or drawn otherwise than asked"
    )
    assert f"Left out here: {left_out}." in words
    assert "not usable: its frame was refused: too bright 2" in words


# --- traces -----------------------------------------------------------------------------------------------------------

FRAME_S = 0.05


def traced(frames: bool = True) -> list[Entry]:
    """Return a session of an imaging device: unit 0 rises by a tenth from 0.1 to 0.2 s after each onset."""
    entries, onsets = [], []
    for e in present():
        d = e.document
        if isinstance(d, Response):
            d = d.model_copy(update={"run": 1, "measure": "dff"})
            onsets.append(d.onset_sample)
        entries.append(with_document(e, d))
    step = round(FRAME_S * RATE_HZ)
    sample = np.arange(min(onsets) - 40 * step, max(onsets) + 40 * step, step)
    since = np.array([min(((s - o) / RATE_HZ for o in onsets if s >= o), default=-1.0) for s in sample])
    values = np.full((len(sample), 3), 200.0, np.float32)
    values[(since >= 0.1) & (since < 0.2), 0] += 20
    units = ("E01#0", "E02#0", "E03#0")
    listed = UnitList(source="probe", run=1, list_number=0, from_sample=0, units=units, scan_offset_s=np.zeros(3),
                      measure="fluorescence")  # fmt: skip
    block = TraceBlock(source="probe", run=1, list_number=0, frame=np.arange(len(sample)), sample=sample,
                       arrival_host_ns=sample, values=values)  # fmt: skip
    return added(entries, [listed, block]) if frames else entries


def test_a_source_of_traces_has_its_mean_trace_drawn(tmp_path: Path) -> None:
    folder = made(tmp_path / "s", traced())
    write(folder)
    assert {p.stem for p in (folder / "figures").glob("*_0.png")} == {"tuning_0", "traces_0"}
    with open_session(folder / "session.h5") as session:
        unit, groups = raster_groups(session, 0)
        assert session.units[unit] == "E01#0"
        figure = traces(session, 0)
    assert figure is not None
    drawn = [axes.lines[0] for axes in figure.axes if "time from image onset (ms)" in axes.get_xlabel()]
    assert len(drawn) == len(groups) == 2
    for line in drawn:
        times, mean = (np.asarray(v, float) for v in line.get_data())
        inside, early = (times > 110) & (times < 190), (times > 0) & (times < 90)
        assert inside.any()
        assert early.any()
        # The rise of the image before it lies in the time before the onset, of which it is a fraction: 0.1 less 3 %.
        assert mean[inside].mean() - mean[early].mean() == pytest.approx(0.097, abs=0.005)
    assert [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()] == ["E01#0\n(dF/F)"]


def test_without_traces_in_the_log_the_report_says_why_there_is_no_figure(tmp_path: Path) -> None:
    folder = made(tmp_path / "s", traced(frames=False))
    write(folder)
    assert {p.stem for p in (folder / "figures").glob("*_0.png")} == {"tuning_0"}
    assert "No trace is drawn" in page(folder).words


# --- axes -------------------------------------------------------------------------------------------------------------


def test_the_time_axis_holds_the_whole_response_window(tmp_path: Path) -> None:
    responses = {"units": ["E01#0", "E02#0", "E03#0"], "window_s": [0.1, 0.75],
                 "baseline": {"kind": "pre", "window_s": [-0.4, 0.0]}}  # fmt: skip
    folder = made(tmp_path / "s", configured(present(), responses=responses))
    with open_session(folder / "session.h5") as session:
        assert around_s(session, 0) == pytest.approx((-0.45, 0.8))
        figure = raster(session, 0)
    assert figure is not None
    for axes in figure.axes:
        if axes.get_xlabel():
            assert axes.get_xlim() == pytest.approx((-450, 800))
            assert len(axes.patches[0].get_data().values) == 125, "a bin for each 10 ms, to the end"
