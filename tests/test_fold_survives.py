"""The response fold over documents that it cannot take, and over a restart of the computer."""

from pathlib import Path

import numpy as np
import pytest

from rig.clock import HostClock
from rig.config.reading import parse
from rig.encoding import BadDocument, decode, encode
from rig.links.bus import Hub
from rig.messages import (
    ClockSample,
    Continuity,
    Document,
    EdgeBlock,
    Entry,
    Envelope,
    Fault,
    Gap,
    Presented,
    ProcessStarted,
    Response,
    SessionStart,
    SpikeBlock,
    Tick,
)
from rig.recording.journal import read_all
from rig.recording.recorder import Recorder
from rig.responses.windows import WindowFold
from tests.test_messages import EXAMPLES

CONFIG = """
sources: [{type: openephys, name: probe}]
responses: {units: ["E01#0"], baseline: {kind: none}}
phases: [{agent: present}]
"""
RATE_HZ = 30_000.0
MS = 1_000_000
FAR = 2**62


class Log:
    """Feeds a fold as the recorder does, and keeps the entries for a second one."""

    def __init__(self) -> None:
        self.fold = WindowFold(parse(CONFIG))
        self.entries: list[Entry] = []
        self.out: list[Document] = []

    def take(self, document: Document, sender: str = "probe") -> list[Document]:
        seq = len(self.entries) + 1
        envelope = Envelope(seq=seq, receipt_host_ns=1, sender=sender, process="p", sender_seq=seq)
        self.entries.append(Entry(envelope, document))
        said = self.fold.apply(self.entries[-1])
        self.out += said
        return said

    def run(self, base_ns: int, run: int, presentations: range, seconds: float = 4.0) -> None:
        """A device of 30 kHz for some seconds, and one image each 200 ms from the second second on."""
        number = iter(presentations)
        for k in range(int(seconds * 40)):
            at, first = base_ns + k * 25 * MS, k * 750
            arrival = np.full(2, at + 25 * MS, np.int64)
            self.take(ClockSample(source="probe", run=run, device_sample=first + 750.0, pair_host_ns=at + 25 * MS))
            spikes = np.array([first + 100, first + 400], np.int64)
            zero = np.zeros(2, np.uint16)
            common = {"source": "probe", "run": run, "arrival_host_ns": arrival}
            self.take(SpikeBlock(units=("E01#0",), unit=zero, sample=spikes, **common))
            if k % 8 == 0 and k >= 40 and (n := next(number, None)) is not None:
                line, state = np.zeros(2, np.uint8), np.array([1, 0], np.uint8)
                edges = np.array([first + 30, first + 3000], np.int64)
                self.take(EdgeBlock(line=line, state=state, sample=edges, **common))
                self.take(self.presented(n, at), "rig")
            self.take(self.continuity(run, first + 750))
            if k % 40 == 0:
                self.take(Tick(tick_host_ns=at), "recorder")

    def presented(self, number: int, onset_ns: int) -> Presented:
        shown = next(d for d in EXAMPLES if isinstance(d, Presented))
        flips = np.array([onset_ns, onset_ns + 100 * MS], np.int64)
        return shown.model_copy(
            update={
                "presentation": number, "due_host_ns": onset_ns, "onset_flip_host_ns": onset_ns, "complete": True,
                "offset_flip_host_ns": int(flips[1]), "flips_host_ns": flips, "refused": "",
            }
        )  # fmt: skip

    def continuity(self, run: int, watermark: int, **more: object) -> Continuity:
        fields = {"state": "streaming", "sample_rate_hz": RATE_HZ, "messages": 1, "lost_messages": 0, **more}
        return Continuity(source="probe", run=run, watermark_sample=watermark, **fields)  # type: ignore[arg-type]

    def close(self) -> None:
        self.take(Tick(tick_host_ns=0, closing=True), "recorder")

    def of(self, kind: type[Document]) -> list[Document]:
        return [d for d in self.out if isinstance(d, kind)]

    def answered(self) -> dict[int, bool]:
        responses = [d for d in self.out if isinstance(d, Response)]
        assert len({r.presentation for r in responses}) == len(responses)
        return {r.presentation: r.usable for r in responses}

    def again(self) -> list[Document]:
        """What a fresh fold says to the same entries."""
        fold = WindowFold(parse(CONFIG))
        return [d for e in self.entries for d in fold.apply(e)]


def same(a: list[Document], b: list[Document]) -> bool:
    return [encode(d) for d in a] == [encode(d) for d in b]


# --- a restart of the computer ----------------------------------------------------------------------------------------


def started(boot: str, name: str = "recorder") -> ProcessStarted:
    return ProcessStarted(name=name, pid=1, boot_id=boot, start_host_ns=1, start_utc_ns=2, notes={})


@pytest.mark.parametrize("earlier_s", [5, 5000], ids=["its clock reads less", "its clock reads more"])
def test_host_times_never_cross_a_restart_of_the_computer(earlier_s: int) -> None:
    log = Log()
    log.take(started("boot-1"), "recorder")
    log.run(1000 * 10**9, run=9000, presentations=range(0, 10))
    waiting = log.presented(10, 1004 * 10**9)
    log.take(waiting, "rig")
    before = log.answered()
    assert all(before[k] for k in range(8))
    said = log.take(started("boot-2"), "recorder")
    (gone,) = [d for d in said if isinstance(d, Response) and d.presentation == 10]
    assert (gone.usable, gone.reason) == (False, "the computer was restarted before its data were in")
    # Runs are numbered by the host's clock: after a restart the next one may have a smaller number.
    log.run(earlier_s * 10**9, run=earlier_s * 10, presentations=range(11, 21))
    log.close()
    after = log.answered()
    assert set(after) == set(range(21))
    assert all(after[k] for k in range(12, 18))
    assert "computer restarted" in [d.what for d in log.of(Fault)]  # type: ignore[attr-defined]
    onsets = {d.presentation: d.onset_host_ns for d in log.out if isinstance(d, Response) and d.usable}
    assert all(abs(onsets[k] - (earlier_s * 10**9 + (40 + 8 * (k - 11)) * 25 * MS)) < 20 * MS for k in range(12, 18))
    assert same(log.again(), log.out)


def test_a_restarted_process_or_another_machine_s_boot_changes_nothing() -> None:
    plain, other = Log(), Log()
    for log in (plain, other):
        log.take(started("boot-1"), "recorder")
        log.run(1000 * 10**9, run=9000, presentations=range(0, 5), seconds=2.5)
        if log is other:
            log.take(started("boot-1"), "recorder")  # the recorder was killed
            log.take(started("boot-of-the-gpu-machine", "model"), "model")
        log.run(1002 * 10**9 + 500 * MS, run=9001, presentations=range(5, 10), seconds=2.5)
        log.close()
    assert same(plain.of(Response), other.of(Response))


# --- documents that cannot be taken -----------------------------------------------------------------------------------


def poisons() -> list[tuple[str, Document]]:
    """Valid documents of a broken or hostile device."""
    log, base = Log(), 1002 * 10**9
    far = np.array([FAR, -FAR], np.int64)
    two = np.zeros(2, np.uint8)
    gap, wrong = (Gap(first_sample=-far, end_sample=far, messages=1) for far in (FAR, -FAR))
    return [
        ("a watermark beyond all samples", log.continuity(9000, FAR)),
        ("a watermark before all samples", log.continuity(9000, -FAR)),
        ("a rate that fits no sample", log.continuity(9000, 10**6, sample_rate_hz=1e-300)),
        ("the largest rate", log.continuity(9000, 10**6, sample_rate_hz=1e9)),
        ("a gap over everything", log.continuity(9000, 10**6, gaps=(gap,))),
        ("a gap the wrong way round", log.continuity(9000, 10**6, gaps=(wrong,))),
        ("edges beyond all samples", EdgeBlock(
            source="probe", run=9000, line=two, state=np.ones(2, np.uint8), sample=far, arrival_host_ns=far)),
        ("spikes beyond all samples", SpikeBlock(
            source="probe", run=9000, units=("E01#0",), unit=np.zeros(2, np.uint16), sample=far, arrival_host_ns=far)),
        ("a clock pair beyond all samples", ClockSample(
            source="probe", run=9000, device_sample=1e308, pair_host_ns=FAR)),
        ("a clock pair before all samples", ClockSample(
            source="probe", run=9000, device_sample=-1e308, pair_host_ns=-FAR, method="round_trip", round_trip_ns=0)),
        ("an image at the end of time", log.presented(90, 2**63 - 2 - 100 * MS)),
        ("an image before all time", log.presented(90, -FAR)),
        ("a tick at the end of time", Tick(tick_host_ns=2**63 - 1)),
        ("the last run there can be", log.continuity(2**63 - 1, 0)),
        ("an image whose rows lie nowhere", log.presented(90, base).model_copy(
            update={"patch_row_px": 1e308, "image_row_px": -1e308})),
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "poison"), poisons(), ids=[name for name, _ in poisons()])
def test_a_document_that_cannot_be_taken_ends_nothing_and_a_replay_says_the_same(name: str, poison: Document) -> None:
    log = Log()
    log.run(1000 * 10**9, run=9000, presentations=range(0, 8), seconds=3.0)
    log.take(poison, "rig" if isinstance(poison, Presented) else "probe")
    log.run(1003 * 10**9, run=9001, presentations=range(8, 16))  # the device is started again
    log.close()
    answered = log.answered()
    shown = {e.document.presentation for e in log.entries if isinstance(e.document, Presented)}
    assert set(answered) == shown  # exactly one response each, whatever came
    assert len(log.of(Fault)) < 60
    assert same(log.again(), log.out)


def test_some_of_them_do_raise_inside_the_fold() -> None:
    """Else the test above says nothing of what is left out."""
    raised = []
    for name, poison in poisons():
        log = Log()
        log.run(1000 * 10**9, run=9000, presentations=range(0, 8), seconds=3.0)
        log.take(poison, "probe")
        log.run(1003 * 10**9, run=9001, presentations=range(8, 16), seconds=2.0)
        log.close()
        raised += [name for d in log.of(Fault) if d.what == "document not understood"]  # type: ignore[attr-defined]
    assert len(set(raised)) >= 2, raised


def decodes(document: Document) -> bool:
    try:
        decode(encode(document))
    except BadDocument:
        return False
    return True


def test_a_recorder_lives_with_such_a_document_and_starts_again_with_it(tmp_path: Path) -> None:
    start = next(d for d in EXAMPLES if isinstance(d, SessionStart))
    readable = [poison for _, poison in poisons() if decodes(poison)]  # others the recorder does not even take
    assert len(readable) > 10
    path, said = tmp_path / "session.journal", list[list[str]]()
    for number in range(2):
        hub = Hub("tcp://127.0.0.1:0")
        recorder = Recorder(path, hub, parse(CONFIG), HostClock(), lambda: start)
        for document in (*(readable if number == 0 else ()), Tick(tick_host_ns=5)):
            recorder.submit(document)
        recorder.pump()
        said.append([e.document.what for e in read_all(path) if isinstance(e.document, Fault)])
        recorder.abandon()
    assert said[0] == said[1][: len(said[0])]
    there = [encode(e.document) for e in read_all(path)]
    assert all(encode(poison) in there for poison in readable)  # every one of them stays in the journal
