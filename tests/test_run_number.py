"""Runs are numbered so that later ones have larger numbers, also after a restart of a source or of the computer."""

from pathlib import Path

import pytest

from rig.clock import FakeClock
from rig.encoding import encode, encode_entry
from rig.messages import Continuity, Envelope
from rig.recording.journal import JournalWriter
from rig.supervision.run_number import RUN_NS, ZERO, run_number, run_zero

UTC_NS = 1_795_000_000_000_000_000


class Computer(FakeClock):
    """A clock whose host time began with this boot, and whose UTC may be wrong."""

    def __init__(self, since_boot_ns: int, utc_ns: int) -> None:
        super().__init__(since_boot_ns)
        self.zero = utc_ns - since_boot_ns

    def utc_ns(self) -> int:
        return self.now_ns() + self.zero


def test_a_boot_later_has_a_larger_number_although_its_host_clock_reads_less() -> None:
    before = run_number(Computer(5_000 * 10**9, UTC_NS))
    after = run_number(Computer(60 * 10**9, UTC_NS + 90 * 10**9))
    assert after == before + 900


def test_a_run_that_begins_at_once_is_another() -> None:
    clock = Computer(10**9, UTC_NS)
    first = run_number(clock)
    assert run_number(clock, first) == first + 1
    clock.advance_ns(10 * RUN_NS)
    assert run_number(clock, first) == first + 10


def test_utc_that_is_set_back_in_a_session_changes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock = Computer(10**9, UTC_NS)
    monkeypatch.setenv(ZERO, str(run_zero(tmp_path / "session.journal", clock)))
    first = run_number(clock)
    clock.zero -= 3600 * 10**9
    clock.advance_ns(RUN_NS)
    assert run_number(clock) == first + 1


@pytest.mark.parametrize("set_back_s", [0, 3600])
def test_a_session_that_goes_on_never_reuses_a_number(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, set_back_s: int
) -> None:
    journal = tmp_path / "session.journal"
    last = run_number(Computer(5_000 * 10**9, UTC_NS))
    writer = JournalWriter(journal, "s")
    for seq, run in enumerate((last, last - 5), 1):
        envelope = Envelope(seq=seq, receipt_host_ns=1, sender="probe", process="p", sender_seq=seq)
        document = Continuity(
            source="probe", run=run, state="streaming", sample_rate_hz=1, watermark_sample=0, messages=1,
            lost_messages=0,
        )  # fmt: skip
        writer.append(seq, encode_entry(envelope, encode(document)))
    writer.close()
    clock = Computer(60 * 10**9, UTC_NS + (600 - set_back_s) * 10**9)  # the battery of its clock is empty
    monkeypatch.setenv(ZERO, str(run_zero(journal, clock)))
    assert run_number(clock) == (last + 6000 if not set_back_s else last + 1)
