"""A power loss takes the end of the journal and leaves the snapshots: a session that goes on decides the same.

The journal is a real one, cut wherever it can be; the model side is what `python -m models` runs, without its process.
"""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.__main__ import restored
from models.server import WANTS, ModelServer
from models.snapshot import Snapshot, Snapshots, session_identity
from rig.config.reading import parse
from rig.config.session import Config
from rig.encoding import encode, encode_entry
from rig.messages import (
    Document,
    Entry,
    Envelope,
    ModelUpdated,
    PhaseEnded,
    ProcessStarted,
    Proposal,
    Response,
    WorkDone,
    kind_of,
)
from rig.recording.journal import JournalReader, JournalWriter, read_all
from rig.shown_again import ShownAgain
from tests.test_snapshot import config_text, fold, response, session_start

EVOLVE = "{agent: evolve, unit: u1, generations: 4, references: 2, reshows: 1, blanks: 1, generator: {frequencies: 4}}"
DECISIONS = (Proposal, ModelUpdated, PhaseEnded)
MODEL = (*DECISIONS, WorkDone)


class Rest:
    """What is left of a session, from a log on: everybody but the model begins anew with what the log holds."""

    def __init__(self, config: Config, log: list[Entry]) -> None:
        self.log = list(log)
        self.said = {(e.envelope.cause_seq, e.envelope.cause_index) for e in log if e.envelope.sender == "model"}
        self.shown = self.looked_at = 0
        self.again = ShownAgain(config.presentation.repeats_of_unusable)
        self.slots: dict[tuple[int, int], Proposal] = {}  # without a final response, in order

    def put(self, document: Document, sender: str, cause: tuple[int, int] | None = None) -> None:
        """Journal a document; as the recorder, once only what a fold says again."""
        if cause is not None and cause in self.said:
            return
        self.said |= {cause} if cause is not None else set()
        n = len(self.log) + 1
        seq, index = cause or (None, None)
        envelope = Envelope(
            seq=n, receipt_host_ns=n, sender=sender, process=sender, sender_seq=n, cause_seq=seq, cause_index=index
        )
        self.log.append(Entry(envelope, document))

    def go_on(self, server: ModelServer, read: int) -> list[list[bytes]]:
        """Go on with the fold that has read `read` entries until nothing more happens; return all decisions."""
        while True:
            for entry in self.log[read:]:
                read = entry.envelope.seq
                if kind_of(entry.document) in WANTS:
                    for index, document in enumerate(server.handle(entry)):
                        if isinstance(document, Proposal) and (read, index) not in self.said:
                            self.answer()  # meanwhile the tail before it goes on
                        self.put(document, "model", (read, index))
            if read < len(self.log):
                continue
            if server.work is not None and server.work_cause not in self.said:
                while not server.work.step():
                    pass
                self.put(server.work_done(), "model", server.work_cause)
            elif not self.answer():
                return decisions(self.log)

    def answer(self) -> bool:
        """Journal the response to the next slot without a final one, as the log has it; False if there is none."""
        for document in (e.document for e in self.log[self.looked_at :]):
            if isinstance(document, Proposal):
                self.again.planned(document.proposal, len(document.plan))
                self.slots.update({(document.proposal, k): document for k in range(len(document.plan))})
            elif isinstance(document, Response):
                self.shown += 1
                if self.again.take(document) == "final":
                    del self.slots[document.proposal, document.slot]
        self.looked_at = len(self.log)
        if not self.slots:
            return False
        (_, slot), proposal = next(iter(self.slots.items()))
        self.put(response(proposal, slot, self.shown + 1), "recorder")
        return True


def decisions(log: list[Entry]) -> list[list[bytes]]:
    return [encode(d) for kind in DECISIONS for e in log if isinstance(d := e.document, kind)]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Config, list[Entry]]:
    """Return the folder of a whole session, its config and its log."""
    folder, config = tmp_path_factory.mktemp("session"), parse(config_text(EVOLVE))
    rest = Rest(config, [])
    rest.put(session_start(config), "recorder")
    rest.go_on(fold(config), 0)
    writer = JournalWriter(folder / "session.journal", "s")
    for entry in rest.log:
        writer.append(entry.envelope.seq, encode_entry(entry.envelope, encode(entry.document)))
    writer.close()
    return folder, config, rest.log


def kept(folder: Path, config: Config) -> Snapshots:
    return Snapshots(folder, session_identity(session_start(config)), "program")


def write_snapshots(config: Config, log: list[Entry], late: int, folder: Path) -> Snapshots:
    """Write them as a session does: after each proposal, when `late` more entries have been handled."""
    snapshots, server, due = kept(folder, config), fold(config), -1
    for entry in (e for e in log if kind_of(e.document) in WANTS):
        if any(isinstance(d, Proposal) for d in server.handle(entry)):
            due = late
        if due == 0:
            snapshots.write(Snapshot(entry.envelope, copy.deepcopy(server.state())))
        due -= 1
    return snapshots


def cuts(folder: Path, log: list[Entry]) -> Iterator[tuple[int, int, bool]]:
    """Yield the size of a cut journal, the entry at the cut, and whether that is torn.

    After every entry of the last generation, and inside each record of the model.
    """
    reader = JournalReader(folder / "session.journal")
    offsets = {seq: offset for seq, offset, _ in reader.records(final=True)}
    reader.close()
    ends = {seq: offsets.get(seq + 1, (folder / "session.journal").stat().st_size) for seq in offsets if seq}
    first = [e.envelope.seq for e in log if isinstance(e.document, WorkDone)][-2]
    for entry in log[first - 2 :]:
        seq = entry.envelope.seq
        yield ends[seq], seq, False
        if isinstance(entry.document, MODEL):
            yield from ((at, seq, True) for at in (offsets[seq] + 3, (offsets[seq] + ends[seq]) // 2, ends[seq] - 1))


@pytest.mark.parametrize("late", [0, 1])
def test_a_cut_journal_with_all_snapshots_goes_on_to_the_same_decisions(
    late: int, session: tuple[Path, Config, list[Entry]], tmp_path: Path
) -> None:
    folder, config, log = session
    snapshots = write_snapshots(config, log, late, tmp_path)
    whole, undisturbed = (folder / "session.journal").read_bytes(), decisions(log)
    assert len([d for d in log if isinstance(d.document, Proposal)]) == 4
    cut, used, refusals = tmp_path / "session.journal", 0, list[str]()
    for size, at_seq, inside in cuts(folder, log):
        left = log[:at_seq]
        if inside:
            cut.write_bytes(whole[:size])
            left = read_all(cut)
            assert len(left) == at_seq - 1
        rest = Rest(config, left)
        rest.put(
            ProcessStarted(name="model", pid=1, boot_id="b", start_host_ns=1, start_utc_ns=1, notes={}), "model"
        )

        def read(wants: frozenset[str], after: int, log: list[Entry] = rest.log) -> Iterator[Entry]:
            return (e for e in log if e.envelope.seq > after and kind_of(e.document) in wants)

        server, at, _ = restored(config, read, snapshots, len(rest.log), lambda _, why: refusals.append(why))
        used += at > 0
        assert rest.go_on(server, at) == undisturbed, (at_seq, inside)
    assert used > 50
    assert any("has lost the proposal that entry" in why for why in refusals)
    assert any("which the log has lost" in why for why in refusals)
