"""The NWB export: read back with pynwb and compared with the session; judged by the real nwbinspector."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pynwb
import pytest
from pynwb import NWBHDF5IO

from rig.export.nwb import entity, file_path, write_nwb
from rig.export.session_file import ExportError, opened
from rig.messages import BarcodeSent, Entry, Envelope, Fault, Origin, Pause, Presented, TraceBlock, UnitList
from rig.view.h5 import build
from tests.rich_session import ROIS, Rich
from tests.synthetic_session import RATE_HZ, START_NS, Synthetic, write_journal

HOST_TIMES = ("due_host_ns", "onset_flip_host_ns", "offset_flip_host_ns", "flips_host_ns")


def heard(text: str) -> None:
    """Stand for the terminal."""


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rich")
    write_journal(folder, list(Rich().entries()))
    build(folder)
    return folder


@pytest.fixture(scope="module")
def file(session: Path) -> Path:
    with opened(session, heard) as view:
        return write_nwb(view, session / "out", overwrite=False)


def test_the_file_is_named_as_dandi_names_files_and_holds_by_schema(file: Path) -> None:
    assert file.parent.name == "sub-monkey-7-blue"
    assert file.name == "sub-monkey-7-blue_ses-2026-09-22-synthetic_behavior+ecephys+image+ophys.nwb"
    assert pynwb.validate(path=str(file)) == []
    assert sorted(p.name for p in file.parent.iterdir()) == [file.name], "nothing but the file is left"


def test_spike_counts_in_each_window_are_those_of_the_responses(session: Path, file: Path) -> None:
    with NWBHDF5IO(str(file), "r") as io, h5py.File(session / "session.h5", "r") as view:
        nwb = io.read()
        shown, units = nwb.intervals["presentations"], nwb.units
        of = {str(n): units["spike_times"][k] for k, n in enumerate(units["unit_name"].data[:])}
        columns = nwb.processing["misc"]["response_units"]["unit_name"].data[:]
        expected = dict(zip(view["responses/presentation"][:], view["responses/count"][:], strict=True))
        checked = 0
        for k in range(len(shown)):
            counts = expected[shown["presentation"][k]]
            np.testing.assert_array_equal(shown["count"][k], counts)
            if not shown["usable"][k]:
                assert shown["reason"][k]
                continue
            window = shown["window_start_time"][k], shown["window_stop_time"][k]
            for name, count in zip(columns, counts, strict=True):
                first, end = np.searchsorted(of[str(name)], window)
                assert end - first == count
                checked += 1
        assert checked > 100
        assert sum(len(t) for t in of.values()) == len(view["spikes/sample"])
        raw = np.sort(np.concatenate([units["spike_sample"][k] for k in range(len(units))]))
        np.testing.assert_array_equal(raw, np.sort(view["spikes/sample"][:]))


def test_times_are_on_the_hosts_clock_by_the_refit(file: Path) -> None:
    with NWBHDF5IO(str(file), "r") as io:
        nwb = io.read()
        for k in range(len(nwb.units)):
            times, samples = nwb.units["spike_times"][k], nwb.units["spike_sample"][k]
            assert (np.diff(times) >= 0).all()
            # The synthetic device drifts by 40 ppm and its messages come 1 ms late at least (docs/clocks.md).
            truth = samples / (RATE_HZ * (1 + 40e-6))
            assert np.abs(times - truth).max() < 3e-3
        shown = nwb.intervals["presentations"]
        onset, flip = shown["start_time"].data[:], shown["flip_time"].data[:]
        assert (np.diff(onset) > 0).all()
        assert np.abs(onset - flip - 0.003).max() < 4e-3, "light comes about 3 ms after the flip's stamp"
        assert nwb.units.resolution == pytest.approx(1 / RATE_HZ)


def test_frames_are_those_that_were_drawn(session: Path, file: Path) -> None:
    with NWBHDF5IO(str(file), "r") as io, h5py.File(session / "session.h5", "r") as view:
        nwb = io.read()
        template, series = nwb.stimulus_template["frames"], nwb.stimulus["presentations"]
        shas = view["stimuli/frames/frame_sha256"].asstr()[:]
        assert len(template.order_of_images.data) == len(shas)
        for k, sha in enumerate(shas):
            image = template.order_of_images.data[k].data[:]
            frame = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image
            assert hashlib.sha256(np.ascontiguousarray(frame).tobytes()).hexdigest() == sha
        shown = nwb.intervals["presentations"]
        np.testing.assert_array_equal(series.data[:], shown["image_index"].data[:])
        np.testing.assert_array_equal(series.timestamps[:], shown["start_time"].data[:])
        assert [shas[k] for k in series.data[:]] == list(shown["frame_sha256"].data[:])


def test_traces_behaviour_and_events_are_there(session: Path, file: Path) -> None:
    with NWBHDF5IO(str(file), "r") as io, h5py.File(session / "session.h5", "r") as view:
        nwb = io.read()
        raw = nwb.processing["ophys"]["Fluorescence"]["raw_scope_run1_list0"]
        np.testing.assert_array_equal(raw.data[:], view["traces/scope_run1_list0/values"][:])
        assert list(raw.rois.to_dataframe()["roi_name"]) == list(ROIS)
        np.testing.assert_array_equal(
            nwb.processing["ophys"]["Fluorescence"]["neuropil_scope_run1_list0"].data[:],
            view["traces/scope_run1_list0/neuropil"][:],
        )
        plane = nwb.imaging_planes["scope_plane"]
        assert (plane.indicator, plane.excitation_lambda, plane.location) == ("GCaMP6f", 920.0, "V1")
        behavior = nwb.processing["behavior"]
        gaze = behavior["EyeTracking"]["gaze_deg_eye_run1_set0"]
        np.testing.assert_array_equal(gaze.data[:], view["behaviour/eye_run1_set0/values"][:, :2])
        assert (gaze.unit, len(gaze.timestamps)) == ("degrees", 900)
        running = behavior["BehavioralTimeSeries"]["running_cm_s_eye_run1_set0"]
        assert (running.unit, running.conversion) == ("m/s", 0.01)
        assert behavior["PupilTracking"]["pupil_mm_eye_run1_set0"].conversion == 0.001
        # 20 ppm fast: its 20th second is 20.0004 s of ticks.
        ticks = view["behaviour/eye_run1_set0/sample"][600]
        assert gaze.timestamps[600] == pytest.approx(ticks / 1e6 / (1 + 20e-6), abs=2e-4)

        outputs = nwb.events["outputs"].to_dataframe()
        assert list(outputs["done"]) == [True, False, False]
        assert list(outputs["reason"])[1:] == ["daily limit", "no answer in the log"]
        assert outputs["timestamp"][0] == pytest.approx(5.0)
        assert list(nwb.events["markers"]["text"].data[:]) == ["the animal is awake", "drop by hand"]
        assert len(nwb.events["faults"]) == len(view["faults/seq"])
        edges = nwb.events["ttl_edges"]
        assert len(edges) == len(view["edges/sample"])
        assert edges["photodiode"].data[:].all()
        assert len(nwb.events["flips"]) == len(view["flips/flip_host_ns"])


def test_gaps_are_left_out_of_the_observed_time(session: Path, file: Path) -> None:
    with NWBHDF5IO(str(file), "r") as io, h5py.File(session / "session.h5", "r") as view:
        nwb = io.read()
        gaps = view["continuity/gaps"]
        assert len(gaps["first_sample"]) == 1
        intervals = nwb.units["obs_intervals"][0]
        assert len(intervals) == 2
        lost = (gaps["end_sample"][0] - gaps["first_sample"][0]) / RATE_HZ
        assert intervals[1, 0] - intervals[0, 1] == pytest.approx(lost, rel=1e-3)
        times = nwb.units["spike_times"][1]
        assert intervals[0, 0] <= times[0]
        assert times[-1] <= intervals[1, 1]


def test_where_everything_comes_from_is_in_the_file(session: Path, file: Path) -> None:
    with NWBHDF5IO(str(file), "r") as io, h5py.File(session / "session.h5", "r") as view:
        nwb = io.read()
        misc = nwb.processing["misc"]
        rows = misc["provenance"].to_dataframe().set_index("key")["value"]
        digest = hashlib.sha256((session / "session.journal").read_bytes()).hexdigest()
        assert rows["journal_sha256"] == digest
        assert rows["commit"] == "0" * 40
        assert rows["config.subject.id"] == "monkey/7 (blue)"
        assert rows["config.display.luminance_cd_m2"] == "0.1, 40.0, 80.0"
        assert nwb.scratch["config_yaml"].data == view.attrs["config_yaml"]
        stimuli = misc["stimuli"].to_dataframe().set_index("stimulus_id")
        parents = dict(zip(view["stimuli/stimulus_id"].asstr()[:], view["stimuli/parents"].asstr()[:], strict=True))
        assert any(json.loads(p) for p in parents.values())
        for stimulus, row in stimuli.iterrows():
            assert list(row["parents"]) == json.loads(parents[str(stimulus)])
        size = int(stimuli["latent_size"].max())
        codes = view[f"stimuli/latents/codes_{size}"][:]
        np.testing.assert_array_equal(misc[f"latents_{size}"]["code"].data[:], codes)
        assert len(misc["clock_pairs"]) == len(view["clocks/run"])
        assert set(misc["clock_model"]["how"].data[:]) == {"two-sided refit"}
        s = nwb.subject
        assert (s.subject_id, s.species, s.sex, s.age, s.weight) == (
            "monkey-7 (blue)", "Macaca mulatta", "F", "P7Y", "8.2 kg",
        )  # fmt: skip
        assert (nwb.protocol, nwb.institution, list(nwb.experimenter)) == (
            "1234-26", "University of Nowhere", ["Doe, Jane", "Roe, Richard"],
        )  # fmt: skip
        assert nwb.electrodes["reference"][0] == "skull screw"


INSPECT = """
import json, sys
from nwbinspector import inspect_nwbfile
found = inspect_nwbfile(nwbfile_path=sys.argv[1])
print(json.dumps([(m.importance.name, m.check_function_name, m.location or m.object_name, m.message) for m in found]))
"""


def inspected(path: Path) -> list[tuple[str, str, str, str]]:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", INSPECT, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [tuple(row) for row in json.loads(done.stdout.splitlines()[-1])]


def test_nwbinspector_finds_nothing_to_mend(file: Path) -> None:
    found = inspected(file)
    grave = [m for m in found if m[0] != "BEST_PRACTICE_SUGGESTION"]
    assert grave == [], "docs/export.md lists what cannot be met"
    assert {m[1] for m in found} <= {"check_single_row", "check_column_binary_capability"}, found


def test_a_simulated_session_says_so_plainly(tmp_path: Path) -> None:
    write_journal(tmp_path, list(Synthetic(generations=1, candidates=3).entries()))
    said: list[str] = []
    with opened(tmp_path, said.append) as view:
        assert "session.h5 is missing" in said[0]
        path = write_nwb(view, tmp_path / "out", overwrite=False)
    assert not (tmp_path / "session.h5").exists(), "an export never writes into the session"
    with NWBHDF5IO(str(path), "r") as io:
        nwb = io.read()
        assert nwb.session_description.startswith("SIMULATED: no animal was recorded")
        assert nwb.subject.description.startswith("SIMULATED")
        assert "simulated" in list(nwb.keywords[:])


def test_what_nwbinspector_says_of_a_simulated_session_is_in_the_docs(tmp_path: Path) -> None:
    write_journal(tmp_path, list(Synthetic(kind="both", generations=2, candidates=4).entries()))
    with opened(tmp_path, heard) as view:
        path = write_nwb(view, tmp_path / "out", overwrite=False)
    found = inspected(path)
    # Its gap holds spikes (a gap says that some may be missing): docs/export.md.
    met = {m[1] for m in found if m[0] != "BEST_PRACTICE_SUGGESTION"}
    assert met == {"check_subject_species_form", "check_spike_times_not_in_unobserved_interval"}
    assert not any(m[0] in ("CRITICAL", "ERROR", "PYNWB_VALIDATION") for m in found)


def test_a_session_that_was_made_from_another_says_so(tmp_path: Path) -> None:
    entries = list(Synthetic(generations=1, candidates=3).entries())
    origin = Origin(session="2026-01-01-before", journal_sha256="ab" * 32, made_utc_ns=5, how={"clusters": "good"})
    start = entries[0].document.model_copy(update={"derived_from": origin})
    write_journal(tmp_path, [Entry(entries[0].envelope, start), *entries[1:]])
    with opened(tmp_path, heard) as view:
        path = write_nwb(view, tmp_path / "out", overwrite=False)
    with NWBHDF5IO(str(path), "r") as io:
        nwb = io.read()
        assert nwb.session_description.endswith("sorted again offline; recorded as 2026-01-01-before.")
        assert "offline sorter" in nwb.units.description
        rows = nwb.processing["misc"]["provenance"].to_dataframe().set_index("key")["value"]
        assert rows["derived_from.journal_sha256"] == "ab" * 32
        assert rows["derived_from.how.clusters"] == "good"


def test_binned_counts_are_no_spikes_and_no_fluorescence(tmp_path: Path) -> None:
    start = next(iter(Synthetic().entries())).document
    counts = {"source": "probe", "run": 1, "list_number": 0}
    units = UnitList(
        **counts, from_sample=0, units=("a", "b"), scan_offset_s=np.zeros(2), measure="counts"
    )
    values = np.arange(40, dtype=np.float32).reshape(20, 2)
    bins = np.arange(20, dtype=np.int64)
    arrival = START_NS + bins * 10**7
    block = TraceBlock(**counts, frame=bins, sample=bins * 10_000, arrival_host_ns=arrival, values=values)
    documents = [start, units, block]
    envelopes = [
        Envelope(seq=k, receipt_host_ns=START_NS, sender="probe", process="p", sender_seq=k) for k in (1, 2, 3)
    ]
    write_journal(tmp_path, [Entry(e, d) for e, d in zip(envelopes, documents, strict=True)])
    with opened(tmp_path, heard) as view:
        path = write_nwb(view, tmp_path / "out", overwrite=False)
    assert path.name.endswith("_ecephys.nwb")
    with NWBHDF5IO(str(path), "r") as io:
        nwb = io.read()
        series = nwb.processing["ecephys"]["counts_probe_run1_list0"]
        np.testing.assert_array_equal(series.data[:], values)
        assert (series.unit, nwb.units, "ophys" in nwb.processing) == ("counts", None, False)
        assert "Columns: a, b" in series.description


@pytest.mark.parametrize("kwargs", [{"silent": True}, {"stops": False}])
def test_a_session_without_data_or_without_an_end_is_exported(tmp_path: Path, kwargs: dict[str, bool]) -> None:
    write_journal(tmp_path, list(Synthetic(generations=1, candidates=3, **kwargs).entries()))
    with opened(tmp_path, heard) as view:
        path = write_nwb(view, tmp_path / "out", overwrite=False)
    with NWBHDF5IO(str(path), "r") as io:
        nwb = io.read()
        usable = nwb.intervals["presentations"]["usable"].data[:]
        assert usable.any() != kwargs.get("silent", False)
        assert (nwb.units is None) == kwargs.get("silent", False)


def test_a_journal_that_is_nearly_empty_is_exported(tmp_path: Path) -> None:
    entries = list(Synthetic().entries())
    write_journal(tmp_path, entries[:2])
    with opened(tmp_path, heard) as view:
        path = write_nwb(view, tmp_path / "out", overwrite=False)
    with NWBHDF5IO(str(path), "r") as io:
        nwb = io.read()
        assert nwb.session_id == "2026-09-22-synthetic"
        assert nwb.trials is None
        assert len(nwb.stimulus_template) == 0


def test_an_export_that_is_there_is_replaced_only_when_told(session: Path, file: Path) -> None:
    before = file.read_bytes()
    with opened(session, heard) as view:
        with pytest.raises(ExportError, match=r"is there already; use --overwrite"):
            write_nwb(view, session / "out", overwrite=False)
        assert file.read_bytes() == before
        assert write_nwb(view, session / "out", overwrite=True) == file


def test_an_identity_that_names_no_file_is_refused(session: Path) -> None:
    assert entity("A/..\\b c#1") == "A-b-c-1"
    with pytest.raises(ExportError, match=r"set subject\.id"):
        entity("../..")
    with opened(session, heard) as view:
        view.config["subject"]["id"] = "../../etc/passwd"
        path = file_path(view, {"image"}, session)
        assert path.parent.parent == session
        assert path.parent.name == "sub-etc-passwd"


def test_interruptions_are_told_and_repeats_are_numbered(tmp_path: Path) -> None:
    entries = list(Synthetic(generations=1, candidates=4).entries())
    stop, shown = entries[-1], [e.document for e in entries if isinstance(e.document, Presented)]
    last = shown[-1].presentation
    again = shown[0].model_copy(update={"presentation": last + 1})
    again = again.model_copy(update={n: getattr(shown[-1], n) + 10**9 for n in HOST_TIMES})
    added = [
        again,
        Fault(what="process restarted", detail="probe failed: killed", done="started again"),
        BarcodeSent(output="line", number=7, sent_host_ns=START_NS + 10**9, uncertainty_ns=1000),
        Pause(paused=True, reason="disk full", since_host_ns=START_NS + 2 * 10**9),
        Pause(paused=False, reason="disk full", since_host_ns=START_NS + 2 * 10**9),
    ]
    envelope, first = stop.envelope, stop.envelope.seq
    extra = [
        Entry(envelope.model_copy(update={"seq": first + k, "sender": "x", "sender_seq": k + 1}), d)
        for k, d in enumerate(added)
    ]
    closing = Entry(envelope.model_copy(update={"seq": first + len(added)}), stop.document)
    write_journal(tmp_path, [*entries[:-1], *extra, closing])
    with opened(tmp_path, heard) as view:
        path = write_nwb(view, tmp_path / "out", overwrite=False)
    with NWBHDF5IO(str(path), "r") as io:
        nwb = io.read()
        table = nwb.intervals["presentations"]
        rows = dict(zip(table["presentation"].data[:].tolist(), zip(table["attempt"].data[:].tolist(),
                    table["repeat_of"].data[:].tolist(), strict=True), strict=True))  # fmt: skip
        assert rows[last + 1] == (2, shown[0].presentation)
        assert {v for k, v in rows.items() if k != last + 1} == {(1, -1)}
        text = nwb.session_description
        assert "Data gaps: 1 stretches of a device's data were lost (1 messages)." in text
        assert "Restarts: 1 times a process died and was started again (probe 1)." in text
        assert "Repeats: 1 presentations show an image again" in text
        assert "Resumes" not in text
        assert nwb.events["barcodes"]["number"].data[:].tolist() == [7]
        assert nwb.events["pauses"]["paused"].data[:].tolist() == [True, False]
        assert list(nwb.events["pauses"]["reason"].data[:]) == ["disk full"] * 2
