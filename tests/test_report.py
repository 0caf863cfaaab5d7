"""The report: every figure and sentence from session.h5, one page that needs nothing else, honest about no data."""

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from rig.clocks.clockfit import figures, runs_of
from rig.messages import (
    ClockSample,
    Entry,
    Envelope,
    Fault,
    ProcessStarted,
    Response,
    SessionStart,
    SpikeBlock,
)
from rig.report.data import NotASession, open_session
from rig.report.figures import best_stimulus, mean_sem, raster_groups
from rig.report.page import write
from rig.view.h5 import build
from tests.synthetic_session import Synthetic, write_journal


def made(folder: Path, entries: list[Entry]) -> Path:
    """Return a folder whose session.h5 has been made from the entries, and which has no journal."""
    folder.mkdir(exist_ok=True)
    journal = write_journal(folder, entries)
    build(folder)
    journal.unlink()  # the report may read the view only
    return folder


def with_document(entry: Entry, document: object, **envelope: object) -> Entry:
    return Entry(Envelope(**entry.envelope.model_dump() | envelope), document)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def session() -> Synthetic:
    return Synthetic(kind="both", generations=5)


@pytest.fixture(scope="module")
def entries(session: Synthetic) -> list[Entry]:
    return list(session.entries())


@pytest.fixture(scope="module")
def folder(entries: list[Entry], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = made(tmp_path_factory.mktemp("report") / "both", entries)
    assert write(out) == out / "report.html"
    return out


class Links(HTMLParser):
    """Collects what a page would load, its words, and tags that are left open."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.words = ""
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "data", "action", "poster")]
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words += data + " "


def page(folder: Path) -> Links:
    links = Links()
    links.feed((folder / "report.html").read_text(encoding="utf-8"))
    assert links.open == []
    return links


def test_the_page_loads_nothing_from_outside(folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    loads = page(folder).loads
    assert len(loads) > 8
    assert all(link.startswith("data:image/png;base64,") for link in loads)
    assert "<script" not in text
    assert "@import" not in text
    assert "url(" not in text


def test_the_figures_are_files_too_and_not_empty(folder: Path) -> None:
    names = {p.stem for p in (folder / "figures").glob("*.png")}
    assert names == {
        "tuning_0", "raster_0", "evolution_1", "best_images_1", "raster_1", "onset", "lateness", "clock",
    }  # fmt: skip
    for path in (folder / "figures").glob("*.png"):
        pixels = np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB"))
        assert min(pixels.shape[:2]) > 300, path.name
        assert (pixels < 250).any(axis=2).mean() > 0.01, path.name


def test_the_verdict_counts_what_the_session_held(folder: Path, entries: list[Entry]) -> None:
    shown = [e.document for e in entries if e.document.kind == "presented"]  # type: ignore[attr-defined]
    usable = sum(isinstance(e.document, Response) and e.document.usable for e in entries)
    faults = sum(isinstance(e.document, Fault) for e in entries)
    late, flips = sum(p.late_flips for p in shown), sum(len(p.flips_host_ns) for p in shown)
    words = page(folder).words
    assert 0 < usable < len(shown)
    assert late > 0
    assert f"{len(shown)} presentations · {usable} usable ({usable / len(shown):.1%}) · {faults} faults" in words
    assert f"{late} late flips of {flips:,}" in words
    assert "ended in order: finished" in words
    assert "Subject nobody, synthetic data, V0 · 2026-09-21 14:13 UTC" in words


def test_faults_and_missing_responses_are_told_in_words(folder: Path) -> None:
    words = page(folder).words
    for text in (
        "messages lost",
        "photodiode edge missing",
        "the response it touches is scored missing",
        "not usable: only 80.0% of its windows is covered by complete data",
        "photodiode edge",
        "flip stamp and measured lag",
    ):
        assert text in words


def test_the_clock_statement_gives_the_drift(tmp_path: Path) -> None:
    long = list(Synthetic(kind="present", generations=120).entries())
    folder = made(tmp_path / "long", long)
    write(folder)
    words = page(folder).words
    said = r"probe, run 1, counted ([\d.]+) ppm faster than by the host clock, known to ±([\d.]+) ppm \(99 %; 840 pairs"
    found = re.search(said, words)
    assert found
    assert float(found[1]) == pytest.approx(40, abs=1)  # 40 ppm were put in
    assert "smallest message delay" in words
    assert "by arrival: the quickest message of each stretch" in words
    with open_session(folder / "session.h5") as session:
        (drift,) = session.drifts
        row = figures(runs_of(long)[0])
        told = (row["drift_ppm"], row["drift_known_to_ppm"])  # what `stimloop clocks` says
        assert (drift.ppm, drift.known_to_ppm) == told
        assert float(found[1]) == pytest.approx(drift.ppm, abs=0.51)
        assert float(found[2]) == pytest.approx(drift.known_to_ppm, abs=0.51)
        assert drift.known_to_ppm > 2  # arrivals cannot show how the smallest delay changed
        assert drift.source == "probe"
        fall_ms = drift.offset_ms[0] - drift.offset_ms[-1]
        assert fall_ms == pytest.approx(40e-6 * 60e3 * drift.minutes[-1], abs=2)


def test_round_trips_are_not_captioned_as_messages(tmp_path: Path) -> None:
    """The same pairs as round trips: the drift of `stimloop clocks`, and no word of the smallest delay."""
    asked = []
    for entry in Synthetic(kind="present", generations=60).entries():
        if isinstance(entry.document, ClockSample):
            update = {"method": "round_trip", "round_trip_ns": 8_000_000}
            entry = with_document(entry, entry.document.model_copy(update=update))
        asked.append(entry)
    folder = made(tmp_path / "asked", asked)
    write(folder)
    words = page(folder).words
    assert "by round trip: the shortest one of each stretch" in words
    assert "at most half the round trip" in words
    assert "smallest message delay" not in words
    with open_session(folder / "session.h5") as session:
        (drift,) = session.drifts
        assert drift.ppm == figures(runs_of(asked)[0])["drift_ppm"]


def test_the_config_is_there_verbatim_and_harmless(entries: list[Entry], tmp_path: Path) -> None:
    start = entries[0].document
    assert isinstance(start, SessionStart)
    nasty = start.config_yaml + '# <script>alert(1)</script> & "quotes"\n'
    renamed = start.model_copy(update={"config_yaml": nasty, "session": "a<b>"})
    folder = made(tmp_path / "s", [with_document(entries[0], renamed), *entries[1:60]])
    text = write(folder).read_text(encoding="utf-8")
    assert "<script" not in text
    assert nasty in page(folder).words
    assert "a<b>" in page(folder).words


def test_the_tuning_table_gives_mean_and_error_of_each_image(folder: Path, entries: list[Entry]) -> None:
    answers = [e.document for e in entries if isinstance(e.document, Response) and e.document.proposal < 5]
    words = page(folder).words
    for name in {r.stimulus_id for r in answers if r.role == "reference"}:
        rates = np.array([r.rate_hz for r in answers if r.stimulus_id == name and r.usable])
        mean, sem = rates.mean(axis=0), rates.std(axis=0, ddof=1) / len(rates) ** 0.5
        cells = "  ".join(f"{m:.1f} ± {e:.1f}" for m, e in zip(mean, sem, strict=True))
        assert re.sub(r"\s+", " ", f"{name} {len(rates)} {cells}") in re.sub(r"\s+", " ", words)


def test_spikes_around_the_onset_are_those_that_were_counted(folder: Path) -> None:
    with open_session(folder / "session.h5") as session, h5py.File(folder / "session.h5") as file:
        rows = np.flatnonzero(session.usable)
        for k, unit in enumerate(session.units):
            trains = session.spikes_around(unit, rows, (0.05, 0.15))
            assert [len(t) for t in trains] == file["responses/count"][:][rows, k].tolist()


def test_equal_samples_of_another_acquisition_run_are_left_out(entries: list[Entry], tmp_path: Path) -> None:
    block = max((e for e in entries if isinstance(e.document, SpikeBlock)), key=lambda e: len(e.document.unit))
    later = entries[-1].envelope.receipt_host_ns + 60_000_000_000
    again = block.document.model_copy(
        update={"run": 2, "arrival_host_ns": block.document.arrival_host_ns + 600_000_000_000}
    )
    doubled = [*entries, with_document(block, again, seq=len(entries) + 1, receipt_host_ns=later)]
    with open_session(made(tmp_path / "two", doubled) / "session.h5") as two:
        rows = np.flatnonzero(two.usable)
        trains = two.spikes_around("E01#0", rows, (0.05, 0.15))
    with h5py.File(tmp_path / "two" / "session.h5") as file:
        assert len(file["spikes/unit"]) == sum(
            len(e.document.unit) for e in doubled if isinstance(e.document, SpikeBlock)
        )
        assert [len(t) for t in trains] == file["responses/count"][:][rows, 0].tolist()


def test_the_evolution_is_judged_by_fresh_presentations(folder: Path) -> None:
    with open_session(folder / "session.h5") as session:
        unit, groups = raster_groups(session, 1)
        assert session.units[unit] == "E01#0"
        assert len(groups) == 2
        assert set(session.role[groups[0].rows]) == {"reshow"}
        assert set(session.stimulus_id[groups[1].rows]) == {groups[1].picture}
        best = best_stimulus(session, 1, unit, "reference")
        assert best is not None
        assert best[0] == groups[1].picture
        names = set(session.stimulus_id[(session.phase == 1) & (session.role == "reference")])
        means = {i: np.mean(session.rates(unit, phase=1, stimulus=i)) for i in names}
        assert best[1] == pytest.approx(max(means.values()))
        _, fixed = raster_groups(session, 0)
        assert [g.title for g in fixed] == ["best image", "weakest image"]


def test_the_picture_of_a_stimulus_is_its_drawn_frame(folder: Path, session: Synthetic) -> None:
    import hashlib

    with open_session(folder / "session.h5") as view:
        for name in ("p1-g002-c03", "ref-camera-whole", "blank"):
            pixels = view.picture(name)
            assert pixels is not None
            assert hashlib.sha256(pixels.tobytes()).hexdigest() == session.drawn[name]
        assert view.picture("never shown") is None


@pytest.mark.parametrize("kind", ["present", "evolve"])
def test_a_session_without_responses_says_so(kind: str, tmp_path: Path) -> None:
    folder = made(tmp_path / kind, list(Synthetic(kind=kind, generations=2, silent=True).entries()))
    write(folder)
    words = page(folder).words
    assert "No usable response in this phase" in words
    assert "No response is usable." in words
    assert "no complete data from probe" in words
    assert {p.stem for p in (folder / "figures").glob("*.png")} == {"lateness"}


def test_a_session_that_only_began_has_a_report(entries: list[Entry], tmp_path: Path) -> None:
    folder = made(tmp_path / "begun", [e for e in entries[:5] if isinstance(e.document, SessionStart | ProcessStarted)])
    write(folder)
    words = page(folder).words
    assert "No image was shown" in words
    assert "did not end in order" in words


def test_a_killed_session_is_told_apart(tmp_path: Path) -> None:
    folder = made(tmp_path / "killed", list(Synthetic(generations=2, stops=False).entries()))
    write(folder)
    assert "did not end in order" in page(folder).words


def test_the_view_is_made_where_it_is_absent_and_old_figures_go(entries: list[Entry], tmp_path: Path) -> None:
    write_journal(tmp_path, entries)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "old.png").write_bytes(b"")
    write(tmp_path)
    assert (tmp_path / "session.h5").exists()
    assert not (tmp_path / "figures" / "old.png").exists()


def test_another_file_is_refused_with_a_cure(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "session.h5", "w") as file:
        file.attrs["format"] = "something else"
    with pytest.raises(NotASession, match="stimloop recover"):
        write(tmp_path)


def test_mean_and_error() -> None:
    assert mean_sem(np.array([1.0, 3.0])) == (2.0, 1.0)
    assert mean_sem(np.array([4.0]))[0] == 4
    assert all(np.isnan(mean_sem(np.empty(0))))
