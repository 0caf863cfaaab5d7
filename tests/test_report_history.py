"""The report's section of interruptions: what died, what was resumed, what may have been seen and was not recorded."""

from pathlib import Path

import pytest

from rig.messages import (
    Document,
    Entry,
    Envelope,
    Fault,
    Origin,
    Presented,
    ProcessStarted,
    Response,
    SessionStart,
    SessionStop,
    TrialIntent,
)
from rig.report.data import open_session
from rig.report.history import History
from rig.report.page import write
from tests.synthetic_session import Synthetic
from tests.test_report import made, page, with_document
from tests.test_report_sections import one_line

S = 1_000_000_000
AWAY_S = 300


@pytest.fixture(scope="module")
def whole() -> list[Entry]:
    return list(Synthetic(kind="evolve", generations=3).entries())


def renumbered(entries: list[Entry]) -> list[Entry]:
    return [with_document(e, e.document, seq=k) for k, e in enumerate(entries, 1)]


def broken(whole: list[Entry]) -> tuple[list[Entry], list[Presented]]:
    """Return a session whose rig and supervisor died in a trial and that was resumed; and what was not recorded.

    Five presentations have no record; their slots are shown later under numbers of their own. After the resume the
    computer's clock counts from another zero.
    """
    shown = [e for e in whole if isinstance(e.document, Presented) and e.document.slot >= 0]
    at = whole.index(shown[len(shown) // 2])
    now, boot_ns = whole[at].envelope.receipt_host_ns, 9_000_000_000_000
    same = [e.document for e in whole[at:] if isinstance(e.document, Presented) and e.document.slot >= 0]
    same = [p for p in same if p.proposal == same[0].proposal][:5]
    lost = [p.model_copy(update={"presentation": 9000 + k}) for k, p in enumerate(same)]
    numbers = tuple(p.presentation for p in lost)
    first = next(e.document for e in whole if isinstance(e.document, ProcessStarted) and e.document.name == "recorder")

    def entry(document: Document, receipt_ns: int, process: str = "x", sender: str = "recorder") -> Entry:
        return Entry(
            Envelope(seq=1, receipt_host_ns=receipt_ns, sender=sender, process=process, sender_seq=1), document
        )

    before = [
        TrialIntent(trial=900, presentations=numbers, proposals=tuple(p.proposal for p in lost),
                    slots=tuple(p.slot for p in lost), start_host_ns=now),
        Fault(what="the supervisor is gone", detail="killed", done="closed"),
        Fault(what="announced and not recorded", detail="5", done="", presentations=numbers),
        SessionStop(reason="the supervisor is gone", presentations=0, responses=0, usable=0, faults=0),
    ]  # fmt: skip
    started = first.model_copy(
        update={
            "boot_id": "another", "start_host_ns": boot_ns,
            "start_utc_ns": first.start_utc_ns + (now - first.start_host_ns) + AWAY_S * S,
        }
    )  # fmt: skip
    after = [Fault(what="journal damaged", detail="its last record was torn", done=""), started]
    middle = [entry(d, now) for d in before] + [entry(d, boot_ns, "y") for d in after]
    shift = boot_ns - now
    later = []
    for e in whole[at:]:
        d = e.document
        if isinstance(d, Presented):
            moved = ("due_host_ns", "onset_flip_host_ns", "offset_flip_host_ns", "flips_host_ns")
            d = d.model_copy(update={name: getattr(d, name) + shift for name in moved})
        later.append(with_document(e, d, receipt_host_ns=e.envelope.receipt_host_ns + shift))
    return renumbered([*whole[:at], *middle, *later]), lost


def test_a_broken_session_tells_what_was_seen_and_when_it_went_on(whole: list[Entry], tmp_path: Path) -> None:
    entries, lost = broken(whole)
    # numbers grow in a session: what was shown later has larger ones than what was lost
    again = {(p.proposal, p.slot) for p in lost}
    entries = [
        with_document(e, e.document.model_copy(update={"presentation": e.document.presentation + 10_000}))
        if isinstance(e.document, Presented | Response) and (e.document.proposal, e.document.slot) in again
        else e
        for e in entries
    ]
    folder = made(tmp_path / "s", entries)
    write(folder)
    words = one_line(page(folder).words)
    assert "5 images may have been seen but were not recorded" in words
    assert "shown perhaps, not recorded: the rig died" in words
    assert "the supervisor is gone" in words
    assert f"resumed {AWAY_S // 60}:00 min after its last entry" in words
    assert "restart or resume" not in words  # it is in the figure
    with open_session(folder / "session.h5") as session:
        history = History(session)
        assert [u.presentation for u in history.unrecorded] == [p.presentation for p in lost]
        assert [u.stimulus_id for u in history.unrecorded] == [p.stimulus_id for p in lost]
        assert all(len(u.again) == 1 for u in history.unrecorded)
        resumed = next(one for one in history.interruptions if one.what == "session resumed")
        assert resumed.detail == "it had ended: the supervisor is gone"
        assert history.span_s == pytest.approx(AWAY_S + history.on_screen_s, rel=0.6)
        assert history.on_screen_s < history.span_s - AWAY_S
        (mark,) = history.marks(0)
        assert 1 < mark < 3.5
        assert any(one.dark_s and one.dark_s > AWAY_S for one in history.interruptions)


def test_a_killed_session_counts_its_last_images(whole: list[Entry], tmp_path: Path) -> None:
    intent = TrialIntent(trial=900, presentations=(9000, 9001), proposals=(0, 0), slots=(0, 1), start_host_ns=0)
    cut = Fault(what="trial cut short", detail="", done="", presentations=(9001,))
    last = whole[-1]
    entries = renumbered([*whole[:-2], with_document(last, intent), with_document(last, cut)])
    with open_session(made(tmp_path / "s", entries) / "session.h5") as session:
        (one,) = History(session).unrecorded
        assert (one.presentation, one.reason) == (9000, "shown perhaps, not recorded: the log ends before")


def test_a_whole_session_says_that_nothing_interrupted_it(whole: list[Entry], tmp_path: Path) -> None:
    quiet = renumbered([e for e in whole if not isinstance(e.document, Fault)])
    folder = made(tmp_path / "s", quiet)
    write(folder)
    words = one_line(page(folder).words)
    assert "Nothing interrupted the session." in words
    assert "may have been seen" not in words
    assert "Cut:" not in words


def test_lost_entries_stand_in_the_headline(whole: list[Entry], tmp_path: Path) -> None:
    entries = [*whole[:10], *whole[13:30]]
    folder = made(tmp_path / "s", entries)
    write(folder)
    words = one_line(page(folder).words)
    assert "damaged: 3 entries of its journal are lost" in words
    assert "ended in order" not in words


def test_a_session_that_was_made_from_another_says_so(whole: list[Entry], tmp_path: Path) -> None:
    start = whole[0].document
    assert isinstance(start, SessionStart)
    how = {"sorter": "x"}
    origin = Origin(session="2026-01-02-v4", journal_sha256="ab" * 32, made_utc_ns=1_790_000_000 * S, how=how)
    expected = {
        "derived_from": "Units sorted offline: made from session 2026-01-02-v4",
        "replay_of": "Replayed traffic of session 2026-01-02-v4",
        "cut_from": "Cut: the beginning of session 2026-01-02-v4",
    }
    for name, words in expected.items():
        changed = [with_document(whole[0], start.model_copy(update={name: origin})), *whole[1:6]]
        folder = made(tmp_path / name, changed)
        write(folder)
        said = one_line(page(folder).words)
        assert words in said
        assert "ab" * 32 in said
        assert "sorter: x" in said
        assert [w for w in expected.values() if w in said] == [words]


def test_repeats_are_counted_with_their_outcome(whole: list[Entry], tmp_path: Path) -> None:
    answers = [e for e in whole if isinstance(e.document, Response) and e.document.slot >= 0 and e.document.usable]
    first = answers[0].document
    assert isinstance(first, Response)
    presented = [e for e in whole if isinstance(e.document, Presented)]
    shown = next(e for e in presented if e.document.presentation == first.presentation)
    again = shown.document.model_copy(update={"presentation": 9000})
    more = first.model_copy(update={"presentation": 9000})
    bad = first.model_copy(update={"usable": False, "reason": "data lost"})
    entries = [with_document(e, bad) if e is answers[0] else e for e in whole]
    at = entries.index(shown) + 5
    entries = renumbered(
        [*entries[:at], with_document(shown, again), *entries[at:-1], with_document(answers[0], more), entries[-1]]
    )
    with open_session(made(tmp_path / "s", entries) / "session.h5") as session:
        repeats = History(session).repeats
    others = {(e.document.proposal, e.document.slot) for e in whole if isinstance(e.document, Response)
              and e.document.slot >= 0 and not e.document.usable}  # fmt: skip
    assert (repeats.presentations, repeats.slots, repeats.usable) == (1, 1, 1)
    assert repeats.missing == len(others)
