"""The journal: what was appended is read back, whatever happens to the file."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rig.encoding import encode, encode_entry
from rig.messages import (
    Envelope,
    Tick,
)
from rig.progress import JournalTail
from rig.recording.journal import JournalError, JournalReader, JournalWriter, read_all
from rig.recording.records import SMALLEST, record


def body(seq: int) -> bytes:
    envelope = Envelope(seq=seq, receipt_host_ns=seq * 10, sender="test", process="test-1", sender_seq=seq)
    return encode_entry(envelope, encode(Tick(tick_host_ns=seq)))


def written(path: Path, n: int) -> list[int]:
    writer = JournalWriter(path, "test")
    offsets = [writer.append(seq, body(seq)) for seq in range(1, n + 1)]
    writer.close()
    return offsets


def seqs(path: Path) -> list[int]:
    return [e.envelope.seq for e in read_all(path)]


def test_entries_come_back_in_order(tmp_path: Path) -> None:
    written(tmp_path / "j", 50)
    entries = read_all(tmp_path / "j")
    assert [e.envelope.seq for e in entries] == list(range(1, 51))
    assert entries[6].document == Tick(tick_host_ns=7)


def test_a_cut_at_any_byte_keeps_every_whole_record(tmp_path: Path) -> None:
    offsets = written(tmp_path / "j", 30)
    data = (tmp_path / "j").read_bytes()
    ends = [*offsets[1:], len(data)]
    rng = np.random.default_rng(3)
    for cut in rng.integers(offsets[0], len(data), 200):
        torn = tmp_path / "torn"
        torn.write_bytes(data[:cut])
        whole = sum(end <= int(cut) for end in ends)
        assert len(seqs(torn)) == whole
        writer = JournalWriter(torn, "test")
        assert writer.last_seq == whole
        writer.append(whole + 1, body(whole + 1))
        writer.close()
        assert seqs(torn) == list(range(1, whole + 2))


def test_a_flipped_byte_costs_one_record_at_most(tmp_path: Path) -> None:
    offsets = written(tmp_path / "j", 30)
    data = (tmp_path / "j").read_bytes()
    rng = np.random.default_rng(4)
    for at in rng.integers(0, len(data), 300):
        broken = bytearray(data)
        broken[at] ^= 1 << int(rng.integers(8))
        (tmp_path / "broken").write_bytes(broken)
        assert len(seqs(tmp_path / "broken")) == (30 if at < offsets[0] else 29)  # or the header
        writer = JournalWriter(tmp_path / "broken", "test")
        writer.append(31, body(31))
        writer.close()
        assert seqs(tmp_path / "broken")[-1] == 31


def test_a_reader_follows_a_growing_file_and_a_half_record_waits(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path / "j", "test")
    reader = JournalReader(tmp_path / "j")
    assert reader.read() == []
    writer.append(1, body(1))
    assert [e.envelope.seq for e in reader.read()] == [1]
    whole = record(2, body(2))
    with (tmp_path / "j").open("ab") as other:
        other.write(whole[:25])
        other.flush()
        assert reader.read() == []
        other.write(whole[25:])
    assert [e.envelope.seq for e in reader.read()] == [2]
    assert reader.damaged_bytes == 0
    reader.close()
    writer.close()


def test_a_large_file_is_read_in_pieces(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path / "j", "test")
    for seq in range(1, 40_001):
        writer.append(seq, body(seq))
    assert writer.read_body(written_offset := writer.append(40_001, body(40_001))) == body(40_001)
    assert written_offset > 4 << 20
    writer.close()
    assert len(seqs(tmp_path / "j")) == 40_001


def test_a_second_writer_is_told_who_has_the_file(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path / "j", "test")
    with pytest.raises(JournalError, match="in use by another process"):
        JournalWriter(tmp_path / "j", "test")
    writer.close()
    JournalWriter(tmp_path / "j", "test").close()


def test_a_foreign_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    other = record(0, b'{"format": "stimloop journal", "version": 99}')
    (tmp_path / "j").write_bytes(other)
    with pytest.raises(JournalError, match="use a newer stimloop"):
        JournalWriter(tmp_path / "j", "test")
    assert (tmp_path / "j").read_bytes() == other
    (tmp_path / "notes").write_bytes(b"my notes of the last ten sessions")
    with pytest.raises(JournalError, match="not a journal"):
        JournalWriter(tmp_path / "notes", "test")
    assert (tmp_path / "notes").read_bytes().startswith(b"my notes")


WRITER = """
import sys
from pathlib import Path
from rig.recording.journal import JournalWriter
from tests.test_journal import body
writer = JournalWriter(Path(sys.argv[1]), "test")
seq = 0
while True:
    seq += 1
    writer.append(seq, body(seq))
    print(seq, flush=True)
"""


def test_what_was_appended_survives_kill_9(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "j")], stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent
    )
    assert process.stdout is not None
    with process.stdout:
        seen = [int(process.stdout.readline()) for _ in range(500)]
        os.kill(process.pid, signal.SIGKILL)
        seen += [int(line) for line in process.stdout.read().split(b"\n")[:-1] if line]
    process.wait()
    assert seqs(tmp_path / "j")[: len(seen)] == seen


def test_a_reader_of_some_kinds_skips_the_rest(tmp_path: Path) -> None:
    written(tmp_path / "j", 5)
    assert len(read_all(tmp_path / "j", frozenset({"tick"}))) == 5
    assert read_all(tmp_path / "j", frozenset({"fault"})) == []


@pytest.mark.parametrize("megabytes", [6, 40])
@pytest.mark.timeout(100)
def test_a_reader_waits_for_a_torn_record_of_any_size_and_then_goes_on(megabytes: int, tmp_path: Path) -> None:
    path = tmp_path / "session.journal"
    writer = JournalWriter(path, "test")
    tail, reader = JournalTail(path), JournalReader(path)
    writer.append(1, body(1))
    large = record(2, bytes(megabytes << 20))
    with path.open("ab") as other:
        for part in (large[:100], large[100:-50]):
            other.write(part)
            other.flush()
            tail.read()
            reader.read()
            assert reader.last_seq == 1
            assert reader.read() == []
        other.write(large[-50:] + record(3, body(3)))
    assert [e.envelope.seq for e in reader.read()] == [3]
    assert [e.envelope.seq for e in tail.read()] == [3]
    assert reader.last_seq == 3
    assert reader.damaged_bytes == 0
    with path.open("ab") as other:  # torn, and a restarted writer takes it back
        other.write(record(4, bytes(megabytes << 20))[:-1])
    assert reader.read() == []
    writer.close()
    writer = JournalWriter(path, "test")
    writer.append(4, body(4))
    assert [e.envelope.seq for e in reader.read()] == [4]
    for each in (tail, reader, writer):
        each.close()


def test_a_record_inside_of_a_damaged_one_hides_no_good_one(tmp_path: Path) -> None:
    path = tmp_path / "j"
    for inner_seq, last in ((10**8, 40), (30, 40), (10**8, 4)):
        path.unlink(missing_ok=True)
        writer, offsets = JournalWriter(path, "test"), list[int]()
        for seq in range(1, last + 1):
            inner = record(inner_seq, body(inner_seq)) if seq == 4 else b""
            offsets.append(writer.append(seq, bytes(5000) + inner + bytes(5000) if inner else body(seq)))
        writer.close()
        data = bytearray(path.read_bytes())
        data[offsets[3] + 5] ^= 1  # the length in its head
        path.write_bytes(data)
        assert seqs(path) == [1, 2, 3, *range(5, last + 1)]
        again = JournalWriter(path, "test")
        assert again.last_seq == (last if last > 4 else 3)
        again.close()


def test_no_entry_is_as_small_as_the_smallest_record() -> None:
    envelope = Envelope(seq=1, receipt_host_ns=0, sender="a", process="a-0", sender_seq=1)
    assert len(record(1, encode_entry(envelope, encode(Tick(tick_host_ns=0))))) > SMALLEST


def test_a_disk_that_fails_altogether_is_a_journal_error_with_its_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(number: int) -> object:
        def failing(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        return failing

    writer = JournalWriter(tmp_path / "j", "test")
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fails(errno.EIO))
        patch.setattr(os, "ftruncate", fails(errno.EROFS))
        with pytest.raises(JournalError, match=r"Read-only file system, and what .* look after this disk"):
            writer.append(1, body(1))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fails(errno.EIO))
        with pytest.raises(JournalError, match=r"did not take it: .*; look after this disk"):
            writer.close()
    JournalWriter(tmp_path / "j", "test").close()  # closed all the same: its lock is free
