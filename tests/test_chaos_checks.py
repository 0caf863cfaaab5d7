"""Each check of the chaos suite finds the fault that it is there for; without one it finds nothing."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rig.bench import chaos_checks as checks
from rig.bench.chaos_checks import Struck
from rig.bench.chaos_session import VICTIMS, plan
from rig.encoding import encode
from rig.links.witness import Acknowledged, Notes, Witness, digest, read_notes
from rig.messages import (
    Entry,
    OutputDone,
    OutputRequest,
    PhaseEnded,
    Presented,
    ProcessStarted,
    Proposal,
    Response,
    SessionStop,
)
from tests.synthetic_session import Synthetic

MS = 1_000_000
S = 1000 * MS


@pytest.fixture(scope="module")
def log() -> list[Entry]:
    return list(Synthetic(kind="evolve", generations=2).entries())


def edited(log: list[Entry], kind: type, number: int = 0, **changes: object) -> list[Entry]:
    """Return the log with one document changed."""
    seq = [e.envelope.seq for e in log if isinstance(e.document, kind)][number]
    return [Entry(e.envelope, e.document.model_copy(update=changes)) if e.envelope.seq == seq else e for e in log]


def without(log: list[Entry], gone: Callable[[Entry], bool]) -> list[Entry]:
    return [e for e in log if not gone(e)]


def struck(victim: str, at_s: float, number: int = 0, end_s: float | None = None, how: str = "kill") -> Struck:
    end_s = at_s if end_s is None else end_s
    return Struck(number, victim, how, 1, round(at_s * 1e9), round(end_s * 1e9), killed=True)


def shown(log: list[Entry]) -> list[Presented]:
    return [e.document for e in log if isinstance(e.document, Presented)]


def rising(log: list[Entry]) -> list[int]:
    return [p.onset_flip_host_ns + 4 * MS for p in shown(log)]


# --- (a) --------------------------------------------------------------------------------------------------------------


def held(log: list[Entry]) -> Notes:
    """Return what the processes hold as acknowledged when everything went well."""
    return Notes(
        tuple(
            Acknowledged(e.envelope.process, e.envelope.sender_seq, None, digest(encode(e.document)), refused=False)
            for e in log
        ),
        {},
    )


def test_what_was_acknowledged_is_in_the_journal(log: list[Entry]) -> None:
    assert checks.acknowledged(log, held(log)) == []


def test_a_document_that_is_missing_changed_or_there_twice_is_found(log: list[Entry]) -> None:
    gone = next(e.envelope.seq for e in log if isinstance(e.document, Presented))
    (line,) = checks.acknowledged(without(log, lambda e: e.envelope.seq == gone), held(log))
    assert "is not in the journal" in line
    (line,) = checks.acknowledged(edited(log, Presented, late_flips=77), held(log))
    assert "with another content" in line
    (line,) = checks.acknowledged([*log, log[-2]], held(log))
    assert "in the journal twice" in line


def test_what_a_restarted_fold_said_again_counts_by_its_cause(log: list[Entry]) -> None:
    cause = [{"cause_seq": e.envelope.seq, "cause_index": 0} for e in log]
    caused = [Entry(e.envelope.model_copy(update=c), e.document) for e, c in zip(log, cause, strict=True)]
    one = next(e for e in caused if isinstance(e.document, Proposal))
    content = digest(encode(one.document))
    again = Acknowledged(f"{one.envelope.sender}-ff", 3, (one.envelope.seq, 0), content, refused=False)
    assert checks.acknowledged(caused, Notes((again,), {})) == []
    other = Acknowledged(again.process, 3, (one.envelope.seq, 1), again.sha256, refused=False)
    assert len(checks.acknowledged(caused, Notes((other,), {}))) == 1


def test_the_witness_notes_what_was_acknowledged_and_is_silent_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = [json.dumps({"op": "doc", "n": 4, "cause": [7, 1]}).encode(), b"header", b"array"]
    silent = Witness("rig-1")
    silent.acknowledged(frames)
    silent.took(3, 5)
    silent.close()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("STIMLOOP_WITNESS", str(tmp_path))
    witness = Witness("rig-1")
    witness.acknowledged(frames)
    witness.took(3, 5)
    witness.took(4, 6)
    witness.close()
    with (tmp_path / "rig-1.jsonl").open("ab") as file:
        file.write(b'{"n": 5, "cau')  # killed while it wrote
    notes = read_notes(tmp_path)
    assert notes.acknowledged == (Acknowledged("rig-1", 4, (7, 1), digest([b"header", b"array"]), refused=False),)
    assert notes.first_taken_host_ns == {"rig-1": 5}


# --- (c) --------------------------------------------------------------------------------------------------------------


def test_every_slot_has_one_usable_response_or_a_reason(log: list[Entry]) -> None:
    found = checks.slots(log)
    assert found.violations == ()
    assert found.slots == sum(len(e.document.plan) for e in log if isinstance(e.document, Proposal))
    refused = edited(log, Response, 3, usable=False, reason="only 40.0% of its windows is covered by complete data")
    assert len(checks.slots(refused).never_usable) == len(found.never_usable) + 1
    assert checks.slots(refused).violations == ()


def test_a_slot_without_response_without_reason_or_with_two_is_found(log: list[Entry]) -> None:
    first = next(e for e in log if isinstance(e.document, Response))
    lost = checks.slots(without(log, lambda e: e is first)).violations
    assert any("has no response" in v for v in lost)
    assert any("has 0 responses" in v for v in lost)
    assert any("neither" in v for v in checks.slots(edited(log, Response, usable=False, reason="")).violations)
    twice = checks.slots([*log, first]).violations
    assert any("has 2 usable responses" in v for v in twice)
    assert any("has 2 responses" in v for v in twice)


def test_an_announced_presentation_that_nobody_accounts_for_is_found(log: list[Entry]) -> None:
    one = shown(log)[5].presentation
    lost = without(log, lambda e: isinstance(e.document, Presented | Response) and e.document.presentation == one)
    assert f"presentation {one} was announced, and neither shown nor named" in checks.slots(lost).violations


def test_nothing_is_shown_again_in_a_session_without_strikes(log: list[Entry]) -> None:
    assert checks.repeats(log, rising(log), []) == []


def repeated(log: list[Entry], usable: bool, reason: str) -> tuple[list[Entry], int]:
    """Show the slot of presentation 2 again, later; its first response is `usable` or not."""
    p = shown(log)[2]
    log = edited(log, Response, 2, usable=usable, reason=reason)
    again = p.model_copy(update={"presentation": 9000, "onset_flip_host_ns": p.onset_flip_host_ns + 3 * S})
    return [*log, Entry(log[-1].envelope, again)], p.onset_flip_host_ns


@pytest.mark.parametrize(
    ("usable", "reason", "victim", "expected"),
    [
        (True, "", "recorder", 1),
        (True, "", "source", 1),  # whatever was struck: it had been usable
        (False, "no complete data from probe within 2.0 s", "recorder", 1),
        (False, "no complete data from probe within 2.0 s", "source", 0),  # a loss, with its reason
        (False, "no complete data from probe within 2.0 s", "receiver", 0),
        (False, "presentation was cut short", "rig", 1),
    ],
)
def test_what_is_shown_again_counts_unless_a_source_lost_it(
    log: list[Entry], usable: bool, reason: str, victim: str, expected: int
) -> None:
    more, at_ns = repeated(log, usable, reason)
    found = checks.repeats(more, rising(more), [struck(victim, at_ns / 1e9 + 0.1)])
    assert len(found) == expected


def test_an_image_whose_record_died_with_the_rig_counts(log: list[Entry]) -> None:
    last = shown(log)[-1].onset_flip_host_ns
    (one,) = checks.repeats(log, [*rising(log), last + 2 * S], [])
    assert one.host_ns == last + 2 * S


def test_one_repeat_for_each_strike_is_allowed_and_no_more() -> None:
    strikes = [struck("rig", 10.0, 0), struck("rig", 20.0, 1), struck("view", 60.0, 2)]
    one, two, three = (checks.Repeat(round(t * 1e9), str(t)) for t in (9.9, 10.3, 20.1))
    assert checks.at_most_one_each([one, three], strikes) == ({0: 1, 1: 1}, [])
    _, (line,) = checks.at_most_one_each([one, two], strikes)
    assert "a second repeat for #0 kill rig" in line
    _, (line,) = checks.at_most_one_each([checks.Repeat(40 * S, "late")], strikes)
    assert "nothing was struck then" in line


# --- (d) --------------------------------------------------------------------------------------------------------------


def test_another_latent_frame_plan_or_a_missing_proposal_is_found(log: list[Entry]) -> None:
    assert checks.same_generations(log, log) == []
    p = [e.document for e in log if isinstance(e.document, Proposal)][1]
    frames = p.frames.copy()
    frames[0, 0, 0, 0] ^= 1
    for changes in ({"latents": p.latents + np.float32(1e-6)}, {"frames": frames}, {"plan": p.plan[::-1]}):
        (line,) = checks.same_generations(edited(log, Proposal, 1, **changes), log)
        assert line.startswith(f"proposal {p.proposal} ")
    (line,) = checks.same_generations(without(log, lambda e: e.document is p), log)
    assert "1 proposals, 2" in line
    assert checks.same_generations([], []) == ["there is no proposal to compare"]


def test_a_session_that_did_not_reach_its_end_is_found(log: list[Entry]) -> None:
    assert checks.complete(log) == []
    assert "not with SessionStop" in checks.complete(without(log, lambda e: isinstance(e.document, SessionStop)))[0]
    no_end = edited(log, PhaseEnded, last=False)
    assert checks.complete(no_end) == ["the last phase did not end"]
    assert checks.complete(without(log, lambda e: e.envelope.seq == 5)) == ["the journal has holes"]


# --- (e), (f) ---------------------------------------------------------------------------------------------------------


def test_a_line_that_stays_high_after_a_strike_is_found() -> None:
    strikes = [struck("rig", 1.0, 0), struck("view", 5.0, 1), struck("model", 9.0, 2)]
    changes = [(1, 900 * MS), (0, 1050 * MS), (1, 4900 * MS), (0, 5150 * MS), (1, 9200 * MS), (0, 9600 * MS)]
    after_ms, (line,) = checks.line_low(changes, strikes)
    assert after_ms == [50.0, 150.0]  # nothing was given at 9 s
    assert line.startswith("the reward line stayed high for 150 ms after #1")
    _, bad = checks.line_low(changes[:1], strikes[:1])
    assert bad[0].startswith("the reward line stayed high for good")


def test_a_reward_that_is_given_or_answered_twice_is_found(log: list[Entry]) -> None:
    asked = OutputRequest(request="trial-0-reward", output="valve", what="reward")
    done = OutputDone(request="trial-0-reward", output="valve", what="reward", done=True)
    once = [Entry(log[0].envelope, asked), Entry(log[0].envelope, done)]
    pulse = [(1, 5 * S), (0, 6 * S)]
    assert checks.rewards(once, pulse) == []
    assert checks.rewards([*once, once[1]], pulse) == ["reward trial-0-reward was answered 2 times"]
    assert checks.rewards([*once, once[0]], pulse) == ["reward trial-0-reward was asked for 2 times"]
    assert checks.rewards(once, [*pulse, (1, 7 * S)]) == ["the line was high 2 times for 1 rewards that were asked for"]


def test_a_model_server_that_is_back_late_is_found(log: list[Entry]) -> None:
    e = next(e for e in log if isinstance(e.document, ProcessStarted))

    def start(at_s: float, process: str) -> Entry:
        document = e.document.model_copy(update={"name": "model", "start_host_ns": round(at_s * 1e9)})
        return Entry(e.envelope.model_copy(update={"process": process}), document)

    started = [start(1.0, "model-1"), start(12.0, "model-2"), start(33.0, "model-3")]
    notes = Notes((), {"model-1": 2 * S, "model-2": 13 * S, "model-3": 36 * S})
    strikes = [struck("model", 10.0, 0), struck("model", 30.0, 1), struck("model", 40.0, 2), struck("rig", 5.0, 3)]
    back_s, (line,) = checks.model_back(started, notes, strikes)
    assert back_s == [3.0, 6.0]
    assert line.startswith("the model server took its first document 6.0 s after #1")


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_the_same_seed_plans_the_same_strikes_and_every_process_is_struck() -> None:
    strikes = plan(np.random.default_rng(3), 200)
    assert strikes == plan(np.random.default_rng(3), 200)
    assert strikes != plan(np.random.default_rng(4), 200)
    assert {s.victim for s in strikes} == set(VICTIMS)
    assert {s.how for s in strikes} == {"kill", "freeze"}
    assert {s.in_pulse for s in strikes} == {True, False}
