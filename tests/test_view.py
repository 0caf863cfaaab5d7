"""The view of a session in HDF5: complete, described, equal however it was made, honest about holes."""

import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from rig.clock import FakeClock, HostClock
from rig.encoding import encode, encode_entry
from rig.messages import (
    DOCUMENT_TYPES,
    BehaviourBlock,
    Document,
    Entry,
    Envelope,
    Presented,
    Response,
    SessionStart,
    SpikeBlock,
    StimulusPrepared,
    TraceBlock,
    UnitList,
    kind_of,
)
from rig.recording.journal import JournalWriter
from rig.recording.records import record
from rig.view.fold import ViewFold
from rig.view.h5 import build, follow
from rig.view.session_file import SessionFile
from rig.view.tables import SCHEMAS
from stimuli.render import gamma_table
from tests.synthetic_session import Synthetic, other_devices, write_journal

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def entries() -> list[Entry]:
    return list(Synthetic(kind="both", generations=3).entries())


@pytest.fixture(scope="module")
def built(entries: list[Entry], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("session")
    write_journal(folder, entries)
    return build(folder)


def contents(path: Path) -> dict[str, Any]:
    """Everything in the file: attributes of all objects, and data of all datasets as bytes with dtype and shape."""
    found: dict[str, Any] = {}
    with h5py.File(path) as file:

        def visit(name: str, item: Any) -> None:
            found[f"{name} attributes"] = {k: str(v) for k, v in item.attrs.items()}
            if isinstance(item, h5py.Dataset):
                data = item[()]
                raw = [bytes(x) for x in data.ravel()] if data.dtype == object else data.tobytes()
                found[name] = (str(data.dtype), data.shape, raw)

        visit("/", file)
        file.visititems(visit)
    return found


def after(entry: Entry, document: Document) -> Entry:
    """The next entry, with another document."""
    return Entry(Envelope(**entry.envelope.model_dump() | {"seq": entry.envelope.seq + 1}), document)


def fold(entries: list[Entry], path: Path) -> Path:
    out = SessionFile(path.with_suffix(".part"))
    for entry in entries:
        out.fold.apply(entry)
    out.close(path)
    return path


def faults(path: Path, sender: str = "view") -> list[tuple[str, str]]:
    with h5py.File(path) as file:
        group = file["faults"]
        rows = zip(group["sender"].asstr()[:], group["what"].asstr()[:], group["detail"].asstr()[:], strict=True)
        return [(what, detail) for who, what, detail in rows if who == sender]


# --- what stands in the file


def test_every_dataset_says_what_it_is(built: Path) -> None:
    seen = 0

    def visit(name: str, item: Any) -> None:
        nonlocal seen
        assert len(item.attrs["description"]) > 5, name
        if not isinstance(item, h5py.Dataset):
            return
        seen += 1
        unit = item.attrs["unit"]
        assert unit, name
        if name.endswith("_ns") or unit in ("ns", "device sample"):
            clock = item.attrs["clock"]
            assert clock == (
                "device probe" if unit == "device sample" else "utc" if "utc" in name else "host monotonic"
            )
            assert unit == ("ns" if name.endswith("_ns") else "device sample"), name
        else:
            assert "sample" not in name.split("/")[-1] or name.endswith("_hz"), name
            assert "clock" not in item.attrs, name
        if name.endswith("_hz"):
            assert unit in ("per s", "samples/s")

    with h5py.File(built) as file:
        file.visititems(visit)
        assert seen > 100
        assert "host monotonic" in file.attrs["clock_statement"]


def test_the_file_carries_the_session_verbatim(built: Path, entries: list[Entry]) -> None:
    start = entries[0].document
    assert isinstance(start, SessionStart)
    with h5py.File(built) as file:
        assert file.attrs["config_yaml"] == start.config_yaml
        assert json.loads(file.attrs["config"]) == start.config
        assert json.loads(file.attrs["versions"]) == start.versions
        assert json.loads(file.attrs["subject"])["id"] == "nobody"
        assert (file.attrs["session"], file.attrs["commit"], file.attrs["dirty"]) == (
            start.session,
            start.commit,
            "false",
        )
        assert file.attrs["closed_in_order"]
        assert file.attrs["last_seq"] == len(entries)
        assert file.attrs["format_version"] == 3


def test_each_presentation_is_there_with_frame_flips_onset_and_rates(built: Path, entries: list[Entry]) -> None:
    shown = [e.document for e in entries if isinstance(e.document, Presented)]
    answers = {e.document.presentation: e.document for e in entries if isinstance(e.document, Response)}
    with h5py.File(built) as file:
        table, flips, responses, frames = (file[n] for n in ("presentations", "flips", "responses", "stimuli/frames"))
        images = frames["images_32x32"][:]
        assert len(shown) == len(table["presentation"]) == len(responses["presentation"])
        row_of = {int(p): k for k, p in enumerate(responses["presentation"])}
        for k, p in enumerate(shown):
            frame = int(table["frame"][k])
            assert frames["frame_sha256"].asstr()[frame] == p.frame_sha256 == table["frame_sha256"].asstr()[k]
            assert hashlib.sha256(images[frames["row"][frame]].tobytes()).hexdigest() == p.frame_sha256
            first = int(table["flips_first"][k])
            np.testing.assert_array_equal(
                flips["flip_host_ns"][first : first + table["flips_count"][k]], p.flips_host_ns
            )
            r, row = answers[p.presentation], row_of[p.presentation]
            np.testing.assert_array_equal(responses["rate_hz"][row], r.rate_hz)
            assert responses["coverage"][row] == r.coverage
            assert responses["onset_sample"][row] == r.onset_sample
            assert responses["onset_host_ns"][row] == r.onset_host_ns
            assert responses["onset_source"].asstr()[row] == r.onset_source
            assert responses["clock"].asstr()[row] == "device probe"
            assert bool(responses["usable"][row]) == r.usable
        assert tuple(responses["units"].asstr()[:]) == ("E01#0", "E02#0", "E03#0")


def test_frames_are_the_drawn_ones_and_each_is_there_once(built: Path, entries: list[Entry]) -> None:
    proposal = next(e.document for e in entries if kind_of(e.document) == "proposal" and len(e.document.frames))
    with h5py.File(built) as file:
        frames, stimuli = file["stimuli/frames"], file["stimuli"]
        shas = frames["frame_sha256"].asstr()[:]
        assert len(set(shas)) == len(shas) == len(frames["images_32x32"])
        ids = list(frames["stimulus_id"].asstr()[:])
        row = ids.index(proposal.stimuli[2].id)
        drawn = gamma_table(1.8)[proposal.frames[2]]
        assert not np.array_equal(drawn, proposal.frames[2])
        np.testing.assert_array_equal(frames["images_32x32"][frames["row"][row]], drawn)
        at = list(stimuli["stimulus_id"].asstr()[:]).index(proposal.stimuli[2].id)
        codes = stimuli[f"latents/codes_{stimuli['latent_size'][at]}"]
        np.testing.assert_array_equal(codes[stimuli["latent_row"][at]], proposal.latents[2])
        assert json.loads(stimuli["spec"].asstr()[at])["type"] == "latent"
        parents = [json.loads(p) for p in stimuli["parents"].asstr()[:]]
        known = set(stimuli["stimulus_id"].asstr()[:])
        assert any(parents)
        assert all(name in known for names in parents for name in names)


def test_spikes_and_edges_are_those_of_the_blocks(built: Path, entries: list[Entry]) -> None:
    blocks = [e.document for e in entries if isinstance(e.document, SpikeBlock)]
    with h5py.File(built) as file:
        np.testing.assert_array_equal(file["spikes/sample"][:], np.concatenate([b.sample for b in blocks]))
        names = file["units/name"].asstr()[:][file["spikes/unit"][:]]
        assert names.tolist() == [b.units[k] for b in blocks for k in b.unit]
        edges = [e.document for e in entries if kind_of(e.document) == "edge_block"]
        assert len(file["edges/sample"]) == sum(len(b.line) for b in edges)
        assert len(file["clocks/device_sample"]) == sum(kind_of(e.document) == "clock_sample" for e in entries)
        assert file["continuity/gaps/messages"][:].tolist() == [1]
        reports = [e.document for e in entries if kind_of(e.document) == "continuity"]
        assert 1 < len(file["continuity/state"]) < len(reports)  # thinned, but each change is there at once
        lost = next(r for r in reports if r.lost_messages)
        at = file["continuity/lost_messages"][:].tolist().index(1)
        assert file["continuity/watermark_sample"][at] == lost.watermark_sample


def test_no_kind_of_document_is_left_out() -> None:
    assert set(ViewFold()._fold) == set(DOCUMENT_TYPES.values())


# Fields that are filed under another name or in another table.
ELSEWHERE = {
    "presented": {"flips_host_ns"},
    "response": {"units", "psth"},  # time courses: the table of spikes holds what they count
    "trial_intent": {"proposals", "slots"},
    "proposal": {"plan", "frames", "latents"},
    "stimulus_prepared": {"frame"},
    "spike_block": {"units"},
    "edge_block": set(),
    "unit_list": {"units", "scan_offset_s"},
    "trace_block": {"frame", "sample", "arrival_host_ns", "values", "neuropil", "motion"},
    "behaviour_block": {"sample", "arrival_host_ns", "values"},
    "marker": set(),
    "barcode_sent": set(),
    "output_request": set(),
    "output_done": set(),
    "clock_sample": set(),
    "continuity": {"gaps"},
    "fault": set(),
    "pause": set(),
    "model_updated": {"scores"},
    "work_done": set(),
    "phase_ended": {"window_s"},
    "process_started": set(),
}
TABLE = {
    "presented": "presentations",
    "response": "responses",
    "trial_intent": "trials",
    "proposal": "model/proposals",
    "stimulus_prepared": "stimuli/prepared",
    "spike_block": "spikes",
    "edge_block": "edges",
    "unit_list": "unit_lists",
    "trace_block": "traces",
    "behaviour_block": "behaviour",
    "marker": "markers",
    "barcode_sent": "barcodes",
    "output_request": "outputs/requests",
    "output_done": "outputs/done",
    "clock_sample": "clocks",
    "continuity": "continuity",
    "fault": "faults",
    "pause": "pauses",
    "model_updated": "model/updates",
    "work_done": "model/work",
    "phase_ended": "model/phases",
    "process_started": "processes",
}


@pytest.mark.parametrize("kind", TABLE)
def test_no_field_of_a_document_is_left_out(kind: str) -> None:
    columns = {c.name for s in SCHEMAS if s.path == TABLE[kind] for c in s.columns}
    fields = set(DOCUMENT_TYPES[kind].model_fields) - {"kind", "version"} - ELSEWHERE[kind]
    assert fields <= columns


def test_the_tables_cover_all_kinds_that_have_one() -> None:
    attributes_only = {"session_start", "session_stop", "stop_requested", "tick"}
    assert set(TABLE) == set(DOCUMENT_TYPES) - attributes_only


# --- rebuilt equals live


@pytest.mark.parametrize("seed", range(4))
def test_the_file_is_the_same_wherever_it_was_flushed(
    seed: int, entries: list[Entry], built: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(seed)
    out = SessionFile(tmp_path / "session.h5.part")
    for entry in entries:
        out.fold.apply(entry)
        if rng.random() < (0.02, 0.1, 0.5, 1.0)[seed]:
            out.write()
    out.close(tmp_path / "session.h5")
    assert contents(tmp_path / "session.h5") == contents(built)


def test_build_takes_entries_up_to_a_number(entries: list[Entry], tmp_path: Path) -> None:
    write_journal(tmp_path, entries)
    path = build(tmp_path, until=200)
    assert contents(path) == contents(fold(entries[:200], tmp_path / "other.h5"))
    with h5py.File(path) as file:
        assert not file.attrs["closed_in_order"]


def test_a_torn_journal_gives_what_it_holds(entries: list[Entry], tmp_path: Path) -> None:
    path = write_journal(tmp_path, entries[:100])
    path.write_bytes(path.read_bytes()[:-30])
    assert contents(build(tmp_path)) == contents(fold(entries[:99], tmp_path / "other.h5"))


def test_a_damaged_record_is_named(entries: list[Entry], tmp_path: Path) -> None:
    path = write_journal(tmp_path, entries)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    found = faults(build(tmp_path))
    assert found[0][0] == "journal entries missing"
    assert len(faults(build(tmp_path), "probe")) > 0


def test_a_failed_build_leaves_the_old_file(entries: list[Entry], tmp_path: Path) -> None:
    write_journal(tmp_path, entries[:50])
    before = build(tmp_path).read_bytes()
    (tmp_path / "session.journal").unlink()
    with pytest.raises(FileNotFoundError):
        build(tmp_path)
    assert (tmp_path / "session.h5").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["session.h5"]


# --- holes are said


def upto(entries: list[Entry], kind: str) -> list[Entry]:
    return entries[: next(k for k, e in enumerate(entries) if kind_of(e.document) == kind) + 1]


def latent_session() -> list[Entry]:
    return upto(list(Synthetic(generations=1).entries()), "proposal")


@pytest.mark.parametrize(
    ("given", "hole"),
    [("right frame", None), ("no frame", "and none was sent"), ("wrong frame", "has another sha256")],
)
def test_a_frame_that_is_not_the_proposed_one(given: str, hole: str | None, tmp_path: Path) -> None:
    entries = latent_session()
    proposal = entries[-1].document
    right = np.full((32, 32, 3), 9, np.uint8)  # what the rig drew is not what was proposed
    sent = {"right frame": right, "no frame": None, "wrong frame": right + np.uint8(1)}[given]
    sha = hashlib.sha256(right.tobytes()).hexdigest()
    name = proposal.stimuli[0].id
    entries.append(after(entries[-1], StimulusPrepared(stimulus_id=name, proposal=0, frame_sha256=sha, frame=sent)))
    path = fold(entries, tmp_path / "session.h5")
    found = faults(path)
    with h5py.File(path) as file:
        stored = file["stimuli/frames/frame_sha256"].asstr()[:].tolist()
        if hole is None:
            assert (found, stored) == ([], [sha])
            np.testing.assert_array_equal(file["stimuli/frames/images_32x32"][0], right)
        else:
            assert stored == []
            assert [w for w, _ in found] == ["frame missing"]
            assert hole in found[0][1]
            assert name in found[0][1]


def test_an_image_that_was_never_prepared_is_a_hole(tmp_path: Path) -> None:
    whole = list(Synthetic(generations=1).entries())
    shown = next(e for e in whole if isinstance(e.document, Presented))
    entries = latent_session()
    path = fold([*entries, after(entries[-1], shown.document)], tmp_path / "session.h5")
    assert [w for w, _ in faults(path)] == ["frame missing"]
    with h5py.File(path) as file:
        assert file["presentations/frame"][0] == -1
        assert json.loads(file["faults/presentations"].asstr()[0]) == [0]


def test_contradicting_columns_are_a_hole_and_no_crash(tmp_path: Path) -> None:
    entries = latent_session()
    n = np.zeros(3, np.int64)  # made unchecked: an older program may have let such blocks into a journal
    for unit, units in ((np.array([0, 1], np.uint16), ("a", "b")), (np.array([0, 1, 7], np.uint16), ("a", "b"))):
        bad = SpikeBlock.model_construct(source="probe", run=1, units=units, unit=unit, sample=n, arrival_host_ns=n)
        entries.append(after(entries[-1], bad))
    good = SpikeBlock(source="probe", run=1, units=("b",), unit=np.zeros(3, np.uint16), sample=n, arrival_host_ns=n)
    path = fold([*entries, after(entries[-1], good)], tmp_path / "session.h5")
    assert [w for w, _ in faults(path)] == ["document not understood"] * 2
    with h5py.File(path) as file:
        assert {len(file["spikes"][c]) for c in file["spikes"]} == {3}
        assert file["units/name"].asstr()[:][file["spikes/unit"][:]].tolist() == ["b"] * 3


def test_a_stop_that_counts_otherwise_is_a_hole(entries: list[Entry], tmp_path: Path) -> None:
    last = next(k for k, e in enumerate(entries) if isinstance(e.document, Presented))
    found = [w for w, _ in faults(fold(entries[:last] + entries[last + 1 :], tmp_path / "session.h5"))]
    assert "presentations missing" in found
    assert "journal entries missing" in found


def test_units_that_the_config_does_not_name_get_a_column(tmp_path: Path) -> None:
    whole = list(Synthetic(generations=1).entries())
    part = upto(whole, "response")
    first = part[-1].document
    other = first.model_dump() | {"units": ("new", "E02#0"), "presentation": 1}
    other |= {name: np.array([7.0, 8.0]) for name in ("count", "baseline", "rate_hz")}
    path = fold([*part, after(part[-1], Response(**other))], tmp_path / "session.h5")
    with h5py.File(path) as file:
        assert file["responses/units"].asstr()[:].tolist() == ["E01#0", "E02#0", "E03#0", "new"]
        np.testing.assert_array_equal(file["responses/count"][0], [*first.count, np.nan])
        np.testing.assert_array_equal(file["responses/count"][1], [np.nan, 8, np.nan, 7])


def with_other_devices(documents: list[Document]) -> list[Entry]:
    entries = latent_session()
    for document in documents:
        entries.append(after(entries[-1], document))
    return entries


def of_type(documents: list[Document], kind: type[Document], source: str = "scope") -> list[Any]:
    return [d for d in documents if isinstance(d, kind) and d.source == source]


def test_traces_are_matrices_one_group_per_unit_list(tmp_path: Path) -> None:
    documents = other_devices()
    path = fold(with_other_devices(documents), tmp_path / "session.h5")
    first, second, other = of_type(documents, TraceBlock)
    assert faults(path) == []
    with h5py.File(path) as file:
        assert file["traces/path"].asstr()[:].tolist() == ["/traces/scope_run2_list0", "/traces/scope_run2_list1"]
        group = file[file["traces/path"].asstr()[0]]
        assert dict(group.attrs) | {"description": ""} == {
            "source": "scope",
            "run": 2,
            "list_number": 0,
            "description": "",
        }
        for name in ("frame", "sample", "arrival_host_ns", "values"):
            both = np.concatenate([getattr(first, name), getattr(second, name)])
            np.testing.assert_array_equal(group[name][:], both)
            assert group[name].dtype == both.dtype
        for name in ("neuropil", "motion"):  # not sent with the first block
            assert np.isnan(group[name][:3]).all()
            np.testing.assert_array_equal(group[name][3:], getattr(second, name))
        assert group["units"].asstr()[:].tolist() == ["r0", "r1"]
        np.testing.assert_array_equal(group["scan_offset_s"][:], documents[0].scan_offset_s)
        assert group["sample"].attrs["clock"] == "device scope"
        assert file["traces/scope_run2_list1/values"][:].tolist() == other.values.tolist()
        assert "neuropil" not in file["traces/scope_run2_list1"]


def test_unit_lists_name_the_units_in_order(tmp_path: Path) -> None:
    path = fold(with_other_devices(other_devices()), tmp_path / "session.h5")
    with h5py.File(path) as file:
        lists, rows = file["unit_lists"], file["unit_lists/units"]
        names = file["units/name"].asstr()[:]
        assert (lists["list_number"][:].tolist(), lists["from_sample"][:].tolist()) == ([0, 1], [0, 9000])
        for k, want in enumerate((["r0", "r1"], ["r1"])):
            at = slice(lists["first"][k], lists["first"][k] + lists["count"][k])
            assert names[rows["unit"][at]].tolist() == want
        assert rows["scan_offset_s"][:].tolist() == [0.0, 0.03, 0.0]


def test_behaviour_markers_outputs_and_pairs_are_filed(tmp_path: Path) -> None:
    documents = other_devices()
    path = fold(with_other_devices(documents), tmp_path / "session.h5")
    gaze = of_type(documents, BehaviourBlock, "eye")[:2]
    nothing = np.iinfo(np.int64).min
    with h5py.File(path) as file:
        first, second = file["behaviour/path"].asstr()[:]
        np.testing.assert_array_equal(file[first]["values"][:], np.concatenate([g.values for g in gaze]))
        assert file[first]["channels"].asstr()[:].tolist() == ["gaze_x_deg", "pupil_mm"]
        assert np.isnan(file[second]["values"][:]).tolist() == [[True]]
        assert file["markers/text"].asstr()[:].tolist() == ["the animal is awake", "x"]
        assert file["markers/sample"][:].tolist() == [nothing, 77]
        requests, done = file["outputs/requests"], file["outputs/done"]
        assert requests["trial"][:].tolist() == [3, -1]
        assert requests["event_host_ns"][0] == nothing
        assert done["reason"].asstr()[:].tolist() == ["", "nobody listens"]
        np.testing.assert_array_equal(done["session_volume_ul"][:], [12.0, np.nan])
        assert file["clocks/method"].asstr()[:].tolist() == ["round_trip", "edge"]
        assert file["clocks/device_sample"][:].tolist() == [4.5, 5.0]
        assert file["clocks/uncertainty_ns"][:].tolist() == [nothing, 40]
        assert "column source" in file["clocks/device_sample"].attrs["clock"]  # several devices now


def test_each_new_table_says_what_it_is(tmp_path: Path) -> None:
    path = fold(with_other_devices(other_devices()), tmp_path / "session.h5")
    seen = []

    def visit(name: str, item: Any) -> None:
        assert len(item.attrs["description"]) > 5, name
        if isinstance(item, h5py.Dataset):
            seen.append(name)
            assert item.attrs["unit"], name
            assert ("clock" in item.attrs) == (item.attrs["unit"] in ("ns", "device sample")), name

    with h5py.File(path) as file:
        file.visititems(visit)
    assert "traces/scope_run2_list0/motion" in seen


def test_traces_and_behaviour_are_the_same_wherever_they_were_flushed(tmp_path: Path) -> None:
    entries = with_other_devices(other_devices(blocks=5))
    whole = fold(entries, tmp_path / "whole.h5")
    out = SessionFile(tmp_path / "parts.part")
    for entry in entries:
        out.fold.apply(entry)
        out.write()
    out.close(tmp_path / "parts.h5")
    assert contents(tmp_path / "parts.h5") == contents(whole)


def test_traces_without_their_unit_list_are_kept_and_said(tmp_path: Path) -> None:
    documents = [d for d in other_devices() if not isinstance(d, UnitList)]
    path = fold(with_other_devices(documents), tmp_path / "session.h5")
    assert [w for w, _ in faults(path)] == ["unit list missing"] * 2
    with h5py.File(path) as file:
        assert len(file["traces/scope_run2_list0/values"]) == 6
        assert file["traces/scope_run2_list0/units"].asstr()[:].tolist() == ["", ""]


def test_a_device_whose_name_is_a_path_does_not_reach_other_groups(tmp_path: Path) -> None:
    evil = other_devices()[-2].model_copy(update={"source": "../presentations"})
    path = fold(with_other_devices([evil]), tmp_path / "session.h5")
    assert [w for w, _ in faults(path)] == ["document not understood"]


def test_ten_thousand_traces_take_little_memory_until_they_are_written(tmp_path: Path) -> None:
    units = tuple(f"roi{k}" for k in range(10_000))
    out = SessionFile(tmp_path / "wide.part")
    for entry in with_other_devices(other_devices(rows=3, units=units, blocks=4)):
        out.fold.apply(entry)
    assert 4 * 3 * 10_000 * 4 < out.fold.devices.pending_bytes < 10 * 3 * 10_000 * 4
    out.write()
    assert out.fold.devices.pending_bytes == 0
    out.close(tmp_path / "wide.h5")
    with h5py.File(tmp_path / "wide.h5") as file:
        assert file["traces/scope_run2_list0/values"].shape == (12, 10_000)


# --- the process


class StopAfter:
    """A stop that comes after a number of looks; `on_look` is called at each."""

    def __init__(self, looks: int, on_look: Any = None) -> None:
        self.looks, self.on_look = looks, on_look

    def __bool__(self) -> bool:
        if self.on_look is not None:
            self.on_look(self.looks)
        self.looks -= 1
        return self.looks < 0

    def wait(self, timeout_s: float) -> bool:
        return False


def test_a_journal_that_is_cut_behind_the_reader_is_read_again(entries: list[Entry], tmp_path: Path) -> None:
    """The recorder dies in mid-write, and its next start cuts the torn record that the view has begun to read."""
    path = write_journal(tmp_path, entries[:20])

    def body(k: int) -> bytes:
        return encode_entry(entries[k].envelope, encode(entries[k].document))

    def look(left: int) -> None:
        if left == 4:
            with path.open("ab") as file:
                file.write(record(21, b"another document" * 50)[:-20])
        if left == 2:
            writer = JournalWriter(path, "synthetic")
            for k in range(20, len(entries)):
                writer.append(k + 1, body(k))
            writer.close()

    follow(tmp_path, StopAfter(5, look), FakeClock())  # type: ignore[arg-type]
    assert contents(tmp_path / "session.h5") == contents(fold(entries, tmp_path / "other.h5"))


def test_the_end_of_a_killed_session_is_waited_for_and_then_filed(entries: list[Entry], tmp_path: Path) -> None:
    write_journal(tmp_path, entries[:100])
    follow(tmp_path, StopAfter(3), FakeClock())  # type: ignore[arg-type]
    assert contents(tmp_path / "session.h5") == contents(fold(entries[:100], tmp_path / "other.h5"))
    assert not (tmp_path / "session.h5.part").exists()


def start(folder: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "rig.view.h5", "--folder", str(folder), "--endpoint", "tcp://127.0.0.1:1"]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline()).keys() == {"ready"}
    return process


def wait_for(path: Path) -> None:
    clock = HostClock()
    end = clock.now_ns() + 20_000_000_000
    while not path.exists():
        assert clock.now_ns() < end, f"{path.name} did not appear"
        clock.sleep_until_ns(clock.now_ns() + 20_000_000)


def test_the_process_follows_a_growing_journal_survives_a_kill_and_ends_when_told(
    entries: list[Entry], built: Path, tmp_path: Path
) -> None:
    first = start(tmp_path)  # before there is a journal
    write_journal(tmp_path, entries[:150])
    wait_for(tmp_path / "session.h5.part")
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=200)
    assert not (tmp_path / "session.h5").exists()

    second = start(tmp_path)
    writer = JournalWriter(tmp_path / "session.journal", "synthetic")
    for entry in entries[150:]:
        writer.append(entry.envelope.seq, encode_entry(entry.envelope, encode(entry.document)))
    out, _ = second.communicate("stop\n", timeout=200)
    writer.close()
    assert (second.returncode, out) == (0, "")
    assert contents(tmp_path / "session.h5") == contents(built)
    assert not (tmp_path / "session.h5.part").exists()


def test_the_process_ends_when_the_session_never_began(tmp_path: Path) -> None:
    process = start(tmp_path)
    process.communicate("stop\n", timeout=200)
    assert process.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_the_process_says_what_is_wrong_with_its_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rig.view.h5", "--folder", str(tmp_path / "none")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=200)
    assert done.returncode == 2
    assert json.loads(done.stdout)["cure"]


def test_the_process_loads_no_torch_and_no_display() -> None:
    heavy = ("torch", "psychopy", "zmq", "pylsl", "matplotlib")
    command = [sys.executable, "-c", f"import sys, rig.view.h5; print([m for m in {heavy} if m in sys.modules])"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=True)
    assert done.stdout.strip() == "[]"
