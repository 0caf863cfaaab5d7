"""`stimloop export --csv` and `--images`, read back and compared with the log; and what the command refuses."""

import csv
import hashlib
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from rig.cli import app
from rig.export.images import file_name
from rig.messages import Presented, Response
from rig.view.h5 import build
from tests.rich_session import Rich
from tests.synthetic_session import Synthetic, write_journal

ENTRIES = list(Rich().entries())


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def said(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["export", *words])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    write_journal(folder, ENTRIES)
    build(folder)
    before = {p: p.read_bytes() for p in folder.iterdir()}
    text = said(str(folder), "--csv", "--images", "--out", str(folder.parent / "tables_out"))
    assert "contact sheets" in text
    assert {p: p.read_bytes() for p in folder.iterdir()} == before, "an export never changes the session"
    return folder


@pytest.fixture
def out(session: Path) -> Path:
    return session.parent / "tables_out" / "2026-09-22-synthetic"


def test_the_tables_hold_what_the_log_holds(session: Path, out: Path) -> None:
    shown = {e.document.presentation: e.document for e in ENTRIES if isinstance(e.document, Presented)}
    answers = {e.document.presentation: e.document for e in ENTRIES if isinstance(e.document, Response)}
    table = rows(out / "csv" / "presentations.csv")
    assert sorted(int(r["presentation"]) for r in table) == sorted(shown)
    starts = [float(r["start_time"]) for r in table]
    assert starts == sorted(starts)
    for row in table:
        p, r = shown[int(row["presentation"])], answers[int(row["presentation"])]
        assert (row["stimulus_id"], row["role"], row["frame_sha256"]) == (p.stimulus_id, p.role, p.frame_sha256)
        assert (row["usable"], row["reason"]) == (str(r.usable).lower(), r.reason)
        assert int(row["onset_sample"]) == r.onset_sample
    wide = {int(r["presentation"]): r for r in rows(out / "csv" / "responses_wide.csv")}
    long = rows(out / "csv" / "responses_long.csv")
    assert len(long) == len(shown) * 3
    for row in long:
        r = answers[int(row["presentation"])]
        k = r.units.index(row["unit"])
        if not r.usable:
            assert (row["count"], row["rate_hz"], wide[r.presentation][row["unit"]]) == ("", "", "")
            continue
        assert float(row["count"]) == r.count[k]
        assert float(row["rate_hz"]) == r.rate_hz[k] == float(wide[r.presentation][row["unit"]])
    trials = rows(out / "csv" / "trials.csv")
    assert sum(int(t["shown"]) for t in trials) == len(shown)
    assert sum(int(t["usable"]) for t in trials) == sum(r.usable for r in answers.values())
    units = {r["unit"]: int(r["spikes"]) for r in rows(out / "csv" / "units.csv")}
    with h5py.File(session / "session.h5", "r") as view:
        assert sum(units.values()) == len(view["spikes/unit"])
        assert len(rows(out / "csv" / "faults.csv")) == len(view["faults/seq"])


def test_each_column_is_explained(out: Path) -> None:
    page = (out / "csv" / "README.md").read_text(encoding="utf-8")
    for path in (out / "csv").glob("*.csv"):
        section = page.split(f"## {path.name}\n", 1)[1].split("\n## ", 1)[0]
        if path.name == "responses_wide.csv":
            continue
        with path.open(encoding="utf-8", newline="") as file:
            for column in next(csv.reader(file)):
                assert f"\n| {column} | " in section, (path.name, column)


def test_the_pictures_have_the_pixels_that_were_shown(out: Path) -> None:
    shown = {e.document.frame_sha256 for e in ENTRIES if isinstance(e.document, Presented)}
    index = rows(out / "images" / "index.csv")
    assert {r["sha256"] for r in index} == shown
    for row in index:
        pixels = np.asarray(Image.open(out / "images" / row["file"]))
        assert hashlib.sha256(pixels.tobytes()).hexdigest() == row["sha256"]
        assert row["file"].endswith(f"_{row['sha256'][:12]}.png")
    total = sum(isinstance(e.document, Presented) for e in ENTRIES)
    assert sum(int(r["presentations"]) for r in index) == total
    sheet = np.asarray(Image.open(out / "images" / "contact_sheet_01.png"))
    first = np.asarray(Image.open(out / "images" / index[0]["file"]).convert("RGB"))
    cell = sheet[:120, :120]
    assert np.ptp(cell) > 50, "the first cell shows a picture"
    assert abs(float(cell[20:100, 20:100].mean()) - float(first.mean())) < 25


def test_any_identity_makes_a_safe_file_name() -> None:
    assert re.fullmatch(r"[A-Za-z0-9._-]+", file_name("../a b/ü\n\0", "0" * 64))
    assert len(file_name("x" * 500, "0" * 64)) < 120


def test_what_cannot_be_exported_is_said_with_its_cure(tmp_path: Path) -> None:
    assert "choose what to export" in said(str(tmp_path), code=2)
    assert "holds no session.journal" in said(str(tmp_path / "none"), "--csv", code=2)
    (tmp_path / "session.journal").write_bytes(b"")
    assert "holds no whole entry" in said(str(tmp_path), "--csv", code=2)
    (tmp_path / "session.journal").unlink()
    write_journal(tmp_path, [e for e in Synthetic(generations=1).entries() if e.envelope.seq > 1])
    assert "SessionStart, is lost" in said(str(tmp_path), "--nwb", "--out", str(tmp_path / "o"), code=2)


def test_a_damaged_or_old_view_is_made_anew_from_the_journal(tmp_path: Path) -> None:
    entries = list(Synthetic(generations=2, candidates=4).entries())
    write_journal(tmp_path, entries)
    out = tmp_path / "out"
    (tmp_path / "session.h5").write_bytes(b"no HDF5")
    assert "is damaged, of an older program or older than its journal" in said(
        str(tmp_path), "--csv", "--out", str(out)
    ).replace("\n", "")
    assert (tmp_path / "session.h5").read_bytes() == b"no HDF5"
    shown = sum(isinstance(e.document, Presented) for e in entries)
    assert len(rows(next(out.glob("*/csv/presentations.csv")))) == shown

    build(tmp_path, until=len(entries) // 2)
    assert "is there already; use --overwrite" in said(str(tmp_path), "--csv", "--out", str(out), code=2)
    assert "older than its journal" in said(str(tmp_path), "--csv", "--out", str(out), "--overwrite")
    assert len(rows(next(out.glob("*/csv/presentations.csv")))) == shown


def test_a_damaged_frame_is_not_exported(session: Path, tmp_path: Path) -> None:
    for name in ("session.h5", "session.journal"):
        (tmp_path / name).write_bytes((session / name).read_bytes())
    with h5py.File(tmp_path / "session.h5", "r+") as view:
        images = next(d for n, d in view["stimuli/frames"].items() if n.startswith("images_"))
        images[0, 0, 0, 0] = images[0, 0, 0, 0] ^ 255
    text = said(str(tmp_path), "--images", "--out", str(tmp_path / "out"), code=2)
    assert "is damaged in session.h5; run stimloop recover" in text
