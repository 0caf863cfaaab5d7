"""Units sorted offline: the Phy folder read and checked, joined by sample number, and a session made anew with them."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from pynwb import NWBHDF5IO

from rig.clock import FakeClock
from rig.config.reading import load
from rig.encoding import encode, encode_entry
from rig.export.csv_tables import write_csv
from rig.export.nwb import write_nwb
from rig.export.session_file import opened
from rig.export.times import Clocks
from rig.messages import Continuity, Document, Presented, Proposal, Response, SessionStart, SessionStop, SpikeBlock
from rig.recording.journal import JournalWriter, read_all
from rig.report.page import write as write_report
from rig.units.importing import Imported, Options, import_units
from rig.units.joining import check, lag_of, matches, stretches, to_samples
from rig.units.phy import UnitsError
from rig.units.phy import load as load_phy
from rig.view.h5 import build
from tests.paper_session import Made, paper_session
from tests.phy_folder import I64, write_phy

ROOT = Path(__file__).parent.parent
STIMLOOP = [sys.executable, "-m", "rig.cli"]
GROUPS = {3: "good", 8: "good", 11: "mua", 20: "noise"}
ONLINE = {3: "E01#0", 8: "E02#0", 11: "E03#0", 20: "E04#0"}
RATE_HZ = 30_000.0
WHOLE = 3_000_000  # samples, longer than any of these sessions


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return paper_session(tmp_path_factory.mktemp("paper") / "recorded", generations=1)


@pytest.fixture
def phy(made: Made, tmp_path: Path) -> Path:
    """The sorting of a recording that began before the session and ended after it."""
    write_phy(tmp_path / "phy", {c: made.spikes[u] for c, u in ONLINE.items()}, GROUPS, (100_000, WHOLE))
    return tmp_path / "phy"


def documents(folder: Path, kind: type) -> list:  # type: ignore[type-arg]
    return [e.document for e in read_all(folder / "session.journal") if isinstance(e.document, kind)]


def importing(phy: Path, made: Made, out: Path, **options: object) -> Imported:
    return import_units(phy, made.folder, out, replace(Options(), **options), FakeClock())  # type: ignore[arg-type]


# --- the session that comes out ---------------------------------------------------------------------------------------


def test_responses_are_counted_anew_in_the_sorted_spikes(made: Made, tmp_path: Path) -> None:
    found = write_phy(tmp_path / "phy", {c: made.spikes[u] for c, u in ONLINE.items()}, GROUPS, (100_000, WHOLE))
    result = importing(tmp_path / "phy", made, tmp_path / "out")
    before, after = documents(made.folder, Response), documents(tmp_path / "out", Response)
    assert [r.presentation for r in after] == [r.presentation for r in before]
    assert result.responses == len(before) > 20
    different = 0
    for old, new in zip(before, after, strict=True):
        assert new.units == ("phy3", "phy8")
        assert (new.onset_sample, new.usable, new.onset_source) == (old.onset_sample, old.usable, old.onset_source)
        low, high = new.window_start_sample, new.window_end_sample
        expected = [np.count_nonzero((found[c] >= low) & (found[c] < high)) for c in (3, 8)]
        assert new.count.tolist() == expected
        different += new.count.tolist() != old.count.tolist()
    assert different, "a sorter that misses and invents spikes must change some counts"


def test_what_was_shown_and_proposed_stays_and_the_start_says_where_it_comes_from(
    made: Made, phy: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    importing(phy, made, out)
    for kind in (Presented, Proposal):
        assert [encode(d) for d in documents(out, kind)] == [encode(d) for d in documents(made.folder, kind)]
    (start,) = documents(out, SessionStart)
    origin = start.derived_from
    assert origin.session == made.folder.name
    assert origin.journal_sha256 == hashlib.sha256((made.folder / "session.journal").read_bytes()).hexdigest()
    assert origin.how["sha256 of spike_times.npy"] == hashlib.sha256((phy / "spike_times.npy").read_bytes()).hexdigest()
    config, _ = load(out / "config.yaml")
    assert config.responses.units == ("phy3", "phy8")
    assert config.phases[1].unit == "phy3", "the evolution's unit is the cluster that fires with it"  # type: ignore[union-attr]
    (stop,) = documents(out, SessionStop)
    assert stop.responses == len(documents(out, Response))
    seqs = [e.envelope.seq for e in read_all(out / "session.journal")]
    assert seqs == list(range(1, len(seqs) + 1))
    assert {u for b in documents(out, SpikeBlock) for u in b.units} == {"phy3", "phy8"}


def test_where_nothing_was_recorded_responses_are_missing_and_not_zero(made: Made, tmp_path: Path) -> None:
    shown = [r for r in documents(made.folder, Response) if r.usable]
    middle = shown[len(shown) // 2].onset_sample
    write_phy(tmp_path / "phy", {c: made.spikes[u] for c, u in ONLINE.items()}, GROUPS, (middle, WHOLE))
    importing(tmp_path / "phy", made, tmp_path / "out")
    after = documents(tmp_path / "out", Response)
    for r in after:
        if r.onset_sample < middle - 0.2 * RATE_HZ:
            assert not r.usable
            assert np.isnan(r.count).all()
        elif r.onset_sample > middle + RATE_HZ:
            assert r.usable
    assert 0 < sum(r.usable for r in after) < len(after)


def test_groups_are_chosen_and_several_runs_are_not_guessed(made: Made, phy: Path, tmp_path: Path) -> None:
    result = importing(phy, made, tmp_path / "both", groups=("good", "mua"))
    assert list(result.units) == ["phy3", "phy8", "phy11"]
    assert {(m.online, m.cluster) for m in result.matches} == {("E01#0", 3), ("E02#0", 8), ("E03#0", 11)}
    with pytest.raises(UnitsError, match="--run 1: the session has 1 acquisition runs, 0 to 0"):
        importing(phy, made, tmp_path / "runs", runs=(0, 1))
    with pytest.raises(UnitsError, match="none of its 4 clusters is in group best"):
        importing(phy, made, tmp_path / "best", groups=("best",))
    assert not (tmp_path / "runs").exists()


@pytest.fixture(scope="module")
def two(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The same session, whose receiver was started again in the middle: the device and its counter ran on."""
    log = read_all(made.folder / "session.journal")
    folder = tmp_path_factory.mktemp("restarted") / "two"
    folder.mkdir()
    writer = JournalWriter(folder / "session.journal", "two")
    for k, entry in enumerate(log):
        document = entry.document
        if k > len(log) // 2 and getattr(document, "source", None) == "probe" and hasattr(document, "run"):
            document = document.model_copy(update={"run": document.run + 1})
        writer.append(entry.envelope.seq, encode_entry(entry.envelope, encode(document)))
    writer.close()
    return replace(made, folder=folder)


def boundary(session: Made) -> int:
    """Return the sample at which the session's second run began."""
    return min(d.watermark_sample for d in documents(session.folder, Continuity) if d.run == 2)


def test_one_recording_of_a_device_that_ran_through_is_of_both_runs(two: Made, phy: Path, tmp_path: Path) -> None:
    result = importing(phy, two, tmp_path / "all")
    assert result.left_out == []
    after = documents(tmp_path / "all", Response)
    usable = {run: sum(r.usable for r in after if r.run == run) for run in (1, 2)}
    assert min(usable.values()) > 10
    assert sum(usable.values()) > len(after) - 4, "all but those during the restart"
    named = importing(phy, two, tmp_path / "named", runs=(0, 1))
    assert (named.usable, named.units) == (result.usable, result.units)
    (start,) = documents(tmp_path / "all", SessionStart)
    assert start.derived_from.how["runs sorted"] == "0,1"
    assert start.derived_from.how["phase 1 chose its images by"] == "E01#0, here phy3"


def test_a_run_that_was_not_sorted_has_no_units_and_is_warned_of(two: Made, phy: Path, tmp_path: Path) -> None:
    for name, options in {"named": {"runs": (0,)}, "told": {}}.items():
        if name == "told":  # the recording ended before the second run
            shutil.rmtree(phy)
            trains = {c: two.spikes[u] for c, u in ONLINE.items()}
            write_phy(phy, trains, GROUPS, (100_000, boundary(two) - 103_000))
        result = importing(phy, two, tmp_path / name, **options)
        after = documents(tmp_path / name, Response)
        assert sum(r.usable for r in after if r.run == 1) > 10
        assert {bool(np.isnan(r.count).all()) for r in after if r.run == 2} == {True}
        (words,) = result.left_out
        said = re.match(r"(\d+) of (\d+) presentations have no sorted units: run 1 \(of 0 to 1\) was not sorted", words)
        assert said is not None, words
        assert abs(int(said[1]) - sum(r.run == 2 for r in after)) <= 2
        assert int(said[2]) == len(after)


def test_a_run_that_the_spikes_do_not_prove_is_left_out_with_the_reason(
    two: Made, phy: Path, tmp_path: Path
) -> None:
    edge = boundary(two)
    rng = np.random.default_rng(4)
    trains = {}
    for cluster, unit in ONLINE.items():  # the counter began anew with the second run, and counted the same numbers
        true = two.spikes[unit]
        other = np.sort(rng.integers(edge, two.end_sample, int(np.sum(true >= edge))))
        trains[cluster] = np.concatenate([true[true < edge], other])
    shutil.rmtree(phy)
    write_phy(phy, trains, GROUPS, (100_000, WHOLE))
    result = importing(phy, two, tmp_path / "out")
    (words,) = result.left_out
    assert "run 1 (of 0 to 1) was not sorted: the sorted spikes and those that came online have nothing" in words
    assert {bool(np.isnan(r.count).all()) for r in documents(tmp_path / "out", Response) if r.run == 2} == {True}
    with pytest.raises(UnitsError, match="nothing in common"):
        importing(phy, two, tmp_path / "both", runs=(0, 1))


def test_report_and_tables_say_who_chose_the_images(made: Made, phy: Path, tmp_path: Path) -> None:
    importing(phy, made, tmp_path / "sorted")
    build(tmp_path / "sorted")
    text = write_report(tmp_path / "sorted").read_text()
    assert "Its images were chosen online by E01#0 of session recorded; these rates are of the units sorted" in text
    assert "of the responses rest on complete data" not in text
    with opened(tmp_path / "sorted", print) as view:
        (tmp_path / "csv").mkdir()
        write_csv(view, Clocks(view), tmp_path / "csv")
    assert "sorted again offline; recorded as recorded." in (tmp_path / "csv" / "README.md").read_text()


def test_recordings_of_one_run_are_both_of_it(made: Made, phy: Path, tmp_path: Path) -> None:
    """The recording was stopped and started again while acquisition went on."""
    numbers = np.load(phy / "sample_numbers.npy")
    (phy / "sample_numbers.npy").unlink()
    half = len(numbers) // 2
    files = tuple(phy / f"{k}.npy" for k in (0, 1))
    for file, part in zip(files, (numbers[:half], numbers[half:]), strict=True):
        np.save(file, part)
    assert importing(phy, made, tmp_path / "out", numbers=files).usable > 20


def test_an_nwb_file_says_when_each_sorted_unit_was_observed(two: Made, phy: Path, tmp_path: Path) -> None:
    importing(phy, two, tmp_path / "half", runs=(0,))
    build(tmp_path / "half")
    with opened(tmp_path / "half", print) as view:
        path = write_nwb(view, tmp_path / "out", overwrite=False)
    with NWBHDF5IO(str(path), "r") as io:
        nwb = io.read()
        shown, units = nwb.intervals["presentations"], nwb.units
        columns = list(nwb.processing["misc"]["response_units"]["unit_name"].data[:])
        missing = seen = 0
        for k, name in enumerate(units["unit_name"].data[:]):
            intervals = units["obs_intervals"][k]
            assert len(intervals)
            for row in range(len(shown)):
                start, stop = shown["window_start_time"][row], shown["window_stop_time"][row]
                if not np.isfinite(start):
                    continue
                inside = bool(((intervals[:, 0] <= start) & (intervals[:, 1] >= stop)).any())
                absent = bool(np.isnan(shown["count"][row][columns.index(name)]))
                assert inside != absent, (name, row)
                missing, seen = missing + absent, seen + inside
        assert missing > 20 < seen


# --- a wrong offset ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("off", [-90_000, -150, 45, 3_000, 1_234_567])
def test_a_wrong_offset_is_refused_with_the_right_one(made: Made, phy: Path, tmp_path: Path, off: int) -> None:
    (phy / "sample_numbers.npy").unlink()
    with pytest.raises(UnitsError, match="do not lie where the session's do") as caught:
        importing(phy, made, tmp_path / "out", offset=100_000 + off)
    (said,) = re.findall(r"change the offset by ([+-]\d+) samples", str(caught.value))
    assert abs(int(said) + off) <= 6, "the sorter's own jitter"
    assert not (tmp_path / "out").exists()
    importing(phy, made, tmp_path / "out", offset=100_000)


def test_nothing_is_guessed_where_nothing_tells_the_offset(made: Made, phy: Path, tmp_path: Path) -> None:
    with pytest.raises(UnitsError, match="both say where the recording began"):
        importing(phy, made, tmp_path / "out", offset=0)
    (phy / "sample_numbers.npy").unlink()
    with pytest.raises(UnitsError, match="nothing tells which sample"):
        importing(phy, made, tmp_path / "out")


def test_the_sorting_of_another_recording_is_refused(made: Made, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    foreign = {c: np.sort(rng.integers(400_000, made.end_sample, 300)) for c in ONLINE}
    write_phy(tmp_path / "phy", foreign, GROUPS, (100_000, WHOLE))
    with pytest.raises(UnitsError, match="have nothing in common"):
        importing(tmp_path / "phy", made, tmp_path / "out")
    with pytest.raises(UnitsError, match="--same E01#0=CLUSTER"):
        importing(tmp_path / "phy", made, tmp_path / "out", checked=False)
    assert importing(tmp_path / "phy", made, tmp_path / "out", checked=False, same={"E01#0": 8}).responses


def test_firing_to_the_same_images_is_no_coincidence() -> None:
    rng = np.random.default_rng(0)
    onsets = np.arange(300) * 6_000
    one, other = (np.sort((onsets[:, None] + rng.normal(2_000, 300, (300, 4))).ravel()).astype(np.int64) for _ in "ab")
    with pytest.raises(UnitsError, match="have nothing in common"):
        check(one, other, RATE_HZ)
    assert matches({"E01#0": one}, {1: other}, RATE_HZ) == []
    shared = np.sort(np.concatenate([other, one[::2] + 7]))
    lag, sure = lag_of(one, shared, RATE_HZ)
    assert abs(lag - 7) <= 1
    assert sure > 8
    check(one, shared, RATE_HZ)


def test_samples_are_joined_over_holes_in_the_recording() -> None:
    numbers = np.concatenate([np.arange(1_000, 1_500), np.arange(2_000, 2_100)])
    parts = stretches(5, numbers, 0)
    times = np.array([0, 499, 500, 599])
    run, sample = to_samples(times, parts)
    assert sample.tolist() == [1_000, 1_499, 2_000, 2_099]
    assert run.tolist() == [5, 5, 5, 5]
    with pytest.raises(UnitsError, match="sample 600 of the sorted file, which has 600"):
        to_samples(np.array([600]), parts)
    with pytest.raises(UnitsError, match="goes back from 1499 to 1000"):
        stretches(5, np.concatenate([np.arange(1_000, 1_500), np.arange(1_000, 1_100)]), 0)


# --- bad folders ------------------------------------------------------------------------------------------------------


def _pickled(folder: Path) -> None:
    np.save(folder / "spike_times.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no times": (lambda f: (f / "spike_times.npy").unlink(), "holds no spike_times.npy"),
    "pickled": (_pickled, r"spike_times.npy: cannot be read .*Python objects"),
    "torn": (lambda f: (f / "spike_times.npy").write_bytes(b"\x93NUMPY\x01"), "spike_times.npy: cannot be read"),
    "floats": (lambda f: np.save(f / "spike_times.npy", np.zeros(5)), "must be a column of whole numbers"),
    "negative": (lambda f: np.save(f / "spike_times.npy", np.array([-1, 2])), "cannot be spike times"),
    "lengths": (lambda f: np.save(f / "spike_clusters.npy", np.zeros(3, np.int32)), "times and 3 cluster numbers"),
    "no groups": (lambda f: (f / "cluster_group.tsv").unlink(), "nothing says which clusters are good"),
    "no number": (lambda f: (f / "cluster_group.tsv").write_text("cluster_id\tgroup\nx\tgood\n"), "line 2: 'x' is no"),
    "code": (lambda f: (f / "params.py").write_text("sample_rate = __import__('os').getpid()"), "not a number"),
    "no rate": (lambda f: (f / "params.py").unlink(), "give --sample-rate"),
    "another rate": (lambda f: (f / "params.py").write_text("sample_rate = 25000."), "25000 samples/s, the session's"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_folder_is_refused_by_name_and_nothing_is_left(case: str, made: Made, phy: Path, tmp_path: Path) -> None:
    spoil, words = BAD[case]
    spoil(phy)
    with pytest.raises(UnitsError, match=words):
        importing(phy, made, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_times_out_of_order_are_refused(phy: Path) -> None:
    times = np.load(phy / "spike_times.npy")
    np.save(phy / "spike_times.npy", times[::-1])
    with pytest.raises(UnitsError, match="not in order of time"):
        load_phy(phy)


def test_the_curators_word_goes_before_the_sorters(phy: Path) -> None:
    (phy / "cluster_group.tsv").write_text("cluster_id\tgroup\n3\tmua\n")
    (phy / "cluster_KSLabel.tsv").write_text("cluster_id\tKSLabel\n3\tgood\n8\tgood\n11\tmua\n20\tmua\n")
    assert load_phy(phy).group == {3: "mua", 8: "good", 11: "mua", 20: "mua"}
    (phy / "spike_clusters.npy").rename(phy / "spike_templates.npy")  # Kilosort's own output, never seen by Phy
    assert load_phy(phy).chosen(("good",)) == [8]


# --- the command ------------------------------------------------------------------------------------------------------


def stimloop(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*STIMLOOP, *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=200,
        env={**os.environ, "COLUMNS": "160"},
    )  # fmt: skip


def test_the_command_makes_a_session_that_verifies(made: Made, phy: Path, tmp_path: Path) -> None:
    session = tmp_path / "recorded"
    shutil.copytree(made.folder, session)
    done = stimloop("units", "import", phy, session)
    assert done.returncode == 0, done.stdout + done.stderr
    out = tmp_path / "recorded-sorted"
    assert "E01#0" in done.stdout
    with h5py.File(out / "session.h5") as file:
        assert file["responses/units"].asstr()[:].tolist() == ["phy3", "phy8"]
        assert json.loads(file.attrs["config"])["responses"]["units"] == ["phy3", "phy8"]
    done = stimloop("replay", out, "--verify")
    assert done.returncode == 0, done.stdout + done.stderr
    with pytest.raises(UnitsError, match="already there"):
        importing(phy, made, out)


def test_gaps_of_the_session_stay_gaps(tmp_path: Path) -> None:
    made = paper_session(tmp_path / "lossy", generations=1, lose=(3.0, 6.1))
    trains: dict[int, I64] = {c: made.spikes[u] for c, u in ONLINE.items()}
    write_phy(tmp_path / "phy", trains, GROUPS, (100_000, WHOLE))
    importing(tmp_path / "phy", made, tmp_path / "out")

    def lost(folder: Path) -> list[Document]:
        return [g for d in documents(folder, Continuity) for g in d.gaps if g.messages]

    assert lost(tmp_path / "out") == lost(made.folder)
    assert lost(made.folder)
