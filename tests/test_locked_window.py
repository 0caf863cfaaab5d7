"""A response window that a screen locks: measured from then on, the same after a restart and in a replay."""

from pathlib import Path

import pytest

from models.agents import build_from_config
from models.server import WANTS, ModelServer
from rig.config.reading import ConfigError, parse
from rig.encoding import BadDocument, decode, encode
from rig.messages import ModelUpdated, PhaseEnded, Presented, Proposal, Response, SessionStart, WorkDone
from rig.recording.journal import read_all
from rig.replay.verify import Fold, verify
from rig.responses.windows import WindowFold
from tests.paper_session import RATE_HZ, paper_session
from tests.test_windows import RATE, Device

FOLD = """
sources: [{type: openephys, photodiode_line: null}]
responses: {units: ["a#0"], window_s: [0.05, 0.15], baseline: {kind: %s, window_s: [-0.02, 0.02], pool: 1}}
phases: [{agent: present}]
"""
PHASES = """
name: paper
seed: 3
display: {{size_px: [400, 300], refresh_hz: 60, width_cm: 30}}
stimulus: {{size_deg: 6}}
presentation: {{on_s: 0.1, off_s: 0.1, images_per_trial: 10, inter_trial_s: 0.3}}
sources: [{{type: openephys, name: probe, http_port: null, photodiode_line: {line}}}]
responses:
  units: ["E01#0", "E02#0", "E03#0", "E04#0"]
  window_s: [0.09, 0.18]
  baseline: {{kind: block, window_s: BASELINE}}
  psth: {{window_s: [-0.05, 0.2], bin_s: 0.01}}
phases:
- {{agent: screen, count: 20, repeats: 6, blanks: 1, least_driven_hz: 0, lock_window: true}}
- {{agent: present, images: [natural], count: 4, repeats: {generations}, blanks: 1}}
"""


def lock(window_s: tuple[float, float]) -> PhaseEnded:
    return PhaseEnded(phase=0, reason="locked", last=False, window_s=window_s)


@pytest.mark.parametrize("baseline", ["none", "pre", "block"])
def test_what_is_recorded_after_the_lock_is_measured_in_the_new_window(baseline: str) -> None:
    d = Device(WindowFold(parse(FOLD % baseline)))
    d.advance(0)
    d.clock(0, 6 * RATE)
    first, second = 2 * RATE, 4 * RATE
    d.show(0, first)
    d.take(lock((0.08, 0.13)))  # while the first one waits for its data
    d.show(1, second)
    early = [-300, 0, 300, 500]  # in the baseline window of 40 ms: 4, of 100 ms then 10, of 50 ms 5
    late = [1500, 2399, 2400, 3899, 3900, 4499]  # 50 to 150 ms: 6 of them, 80 to 130 ms: 2
    for onset in (first, second):
        d.spikes("a#0", [onset + s for s in (*early, *late)])
    d.advance(6 * RATE)
    one, two = d.responses
    assert [one.count[0], two.count[0]] == [6, 2]
    assert (two.window_start_sample, two.window_end_sample) == (second + 2400, second + 3900)
    expected = [0, 0] if baseline == "none" else [10, 5]
    assert [one.baseline[0], two.baseline[0]] == expected
    assert one.rate_hz[0] == pytest.approx((6 - expected[0]) / 0.1)
    assert two.rate_hz[0] == pytest.approx((2 - expected[1]) / 0.05)


def test_a_pooled_baseline_fits_the_window_that_it_is_subtracted_from() -> None:
    d = Device(WindowFold(parse((FOLD % "block").replace("pool: 1", "pool: 2"))))
    d.advance(0)
    d.clock(0, 6 * RATE)
    for number, onset in enumerate((2 * RATE, 4 * RATE)):
        d.show(number, onset)
        d.spikes("a#0", [onset, onset + 10])
        d.advance(onset + RATE)
        d.take(lock((0.05, 0.1)))
    one, two = d.responses
    assert (one.baseline[0], two.baseline[0]) == (5, 2.5)  # 50 spikes/s for 100 and for 50 ms, of two presentations
    assert two.baseline_n == 2


def test_a_window_that_ends_late_is_waited_for() -> None:
    d = Device(WindowFold(parse(FOLD % "none")))
    d.advance(0)
    d.clock(0, 6 * RATE)
    d.take(lock((0.1, 0.5)))
    d.show(0, 2 * RATE)
    d.spikes("a#0", [2 * RATE + 14_000])
    d.advance(2 * RATE + 15_000)
    assert d.responses == []
    d.advance(3 * RATE)
    assert d.responses[0].count[0] == 1


def test_other_phases_change_nothing_and_a_wild_window_is_no_document() -> None:
    d = Device(WindowFold(parse(FOLD % "none")))
    d.advance(0)
    d.clock(0, 6 * RATE)
    d.take(PhaseEnded(phase=0, reason="over", last=False))
    d.show(0, 2 * RATE)
    d.advance(3 * RATE)
    assert d.responses[0].window_end_sample == 2 * RATE + 4500
    d.take(lock((0.08, 0.13)))
    d.take(PhaseEnded(phase=1, reason="over", last=False))  # says no window: the locked one stays
    d.show(1, 4 * RATE)
    d.advance(6 * RATE)
    assert d.responses[1].window_end_sample == 4 * RATE + 3900
    header = encode(lock((0.1, 0.2)))[0].replace(b"[0.1,0.2]", b"[0.2,0.1]")
    with pytest.raises(BadDocument, match="window_s goes from"):
        decode([header])


def test_without_time_courses_there_is_nothing_to_lock() -> None:
    text = PHASES.format(line="0", generations=2).replace("BASELINE", "[-0.02, 0.02]")
    without = "\n".join(line for line in text.splitlines() if "psth" not in line)
    with pytest.raises(ConfigError, match=r"phases.0.lock_window: .*add responses.psth, or leave lock_window out"):
        parse(without)


def server(start: SessionStart) -> Fold:
    config = parse(start.config_yaml)
    return ModelServer(build_from_config(config), len(config.phases), config.presentation.repeats_of_unusable)


def test_a_session_goes_on_with_the_window_that_its_screen_found(tmp_path: Path) -> None:
    made = paper_session(tmp_path / "s", 2, config=PHASES.replace("BASELINE", "[-0.02, 0.02]"))
    entries = read_all(made.folder / "session.journal")
    at = next(k for k, e in enumerate(entries) if isinstance(e.document, PhaseEnded))
    ended = entries[at].document
    assert isinstance(ended, PhaseEnded)
    assert ended.window_s is not None
    assert 0.05 <= ended.window_s[0] <= 0.08  # answers last from 50 to 150 ms, in blocks of 23 ms
    assert 0.14 <= ended.window_s[1] <= 0.18
    assert "the response window is locked at" in ended.reason
    # Every response says in its samples which window it is of, and counts what was fired in it.
    lengths = {False: set[int](), True: set[int]()}
    shown = {e.document.presentation: k > at for k, e in enumerate(entries) if isinstance(e.document, Presented)}
    for response in (e.document for e in entries if isinstance(e.document, Response)):
        assert response.usable, response.reason
        assert response.window_start_sample is not None
        assert response.window_end_sample is not None
        start, end = response.window_start_sample, response.window_end_sample
        lengths[shown[response.presentation]].add(end - start)
        spikes = made.spikes["E01#0"]
        assert response.count[0] == ((spikes >= start) & (spikes < end)).sum()
    found = round((ended.window_s[1] - ended.window_s[0]) * RATE_HZ)
    assert lengths == {False: {2700}, True: {found}}
    # The work that judges is journalled, and is no proposal.
    proposals = sum(isinstance(e.document, Proposal) for e in entries)
    assert sum(isinstance(e.document, WorkDone) for e in entries) == proposals + 1
    updates = [e.document for e in entries[:at] if isinstance(e.document, ModelUpdated)]
    assert updates[-1].report["window_locked"] == 1
    verdict = verify(entries, server, WANTS)
    assert (verdict.different, verdict.missing) == ([], [])


def test_a_window_that_the_baseline_would_spoil_is_not_locked(tmp_path: Path) -> None:
    made = paper_session(tmp_path / "s", 1, config=PHASES.replace("BASELINE", "[-0.02, 0.08]"))
    entries = read_all(made.folder / "session.journal")
    ended = next(e.document for e in entries if isinstance(e.document, PhaseEnded))
    assert ended.window_s is None
    assert "is not locked: responses.baseline.window_s, -20 to 80 ms, holds the beginning of the answer" in ended.reason
    responses = [e.document for e in entries if isinstance(e.document, Response)]
    spans = {(r.window_end_sample or 0) - (r.window_start_sample or 0) for r in responses}
    assert spans == {2700}
