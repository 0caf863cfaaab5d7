"""The journal: what was appended is read back, whatever happens to the file."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rig.encoding import encode, encode_entry
from rig.journal import JournalError, JournalReader, JournalWriter, read_all, record
from rig.messages import (
    Envelope,
    Tick,
)


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
from rig.journal import JournalWriter
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
