"""The model server's fold: agents are told in proposal order, work counts only when its WorkDone is back in the log."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from models.__main__ import _work
from models.agents.carried import Leaves
from models.agents.types import Batch, Told
from models.server import ModelServer, batch_hash, state_hash
from rig.clock import FakeClock
from rig.encoding import encode
from rig.messages import (
    Document,
    Entry,
    Envelope,
    Fault,
    ImageScore,
    ModelUpdated,
    PhaseEnded,
    Presented,
    Proposal,
    Response,
    SessionStart,
    Slot,
    WorkDone,
)
from rig.replay.verify import verify
from stimuli.spec import Blank, Stimulus

MAIN, TAIL = 3, 2


@dataclass
class Counting:
    """A work of three steps that makes a batch of blanks."""

    agent: "Recording"
    steps: int = 0

    def step(self) -> bool:
        self.steps += 1
        return self.steps >= 3

    def peek(self) -> Batch:
        generation = self.agent.generation + 1
        stimuli = tuple(Stimulus(id=f"g{generation}-{k}", spec=Blank()) for k in range(MAIN + TAIL))
        plan = tuple(Slot(stimulus=k, role="candidate" if k < MAIN else "reference") for k in range(MAIN + TAIL))
        empty = np.zeros((0, 2, 2, 3), np.uint8)
        return Batch(
            generation, stimuli, plan, MAIN, (0,), empty, np.zeros((0, 1), np.float32), generation == self.agent.last
        )

    def result(self) -> Batch:
        batch = self.peek()
        self.agent.generation += 1
        return batch


@dataclass
class Recording:
    """An agent that keeps what it was told."""

    last: int = 2
    generation: int = -1
    told: list[Told] = field(default_factory=list)

    def ask(self) -> Counting:
        return Counting(self)

    def tell(self, told: Sequence[Told]) -> None:
        self.told += told

    def report(self) -> dict[str, float]:
        return {"mean": float(len(self.told))}

    def finished(self) -> str | None:
        return "all shown" if self.generation >= self.last else None

    def scored(self) -> tuple[ImageScore, ...]:
        return ()

    def leaves(self) -> Leaves:
        return {"units": (f"u{len(self.told)}",), "window_s": (0.05, 0.2)}

    def state(self) -> dict[str, Any]:
        told = [[t.proposal, t.slot, t.role, t.stimulus_id, t.rate_hz] for t in self.told]
        return {"generation": self.generation, "told": told}

    def restore(self, state: dict[str, Any]) -> None:
        self.generation, self.told = state["generation"], [Told(*row) for row in state["told"]]


class Log:
    """Feeds a server and keeps the journal it would make."""

    def __init__(self, phases: int = 1, repeats: int = 2) -> None:
        self.agents: list[Recording] = []

        def build(*_: object) -> Recording:
            self.agents.append(Recording())
            return self.agents[-1]

        self.server = ModelServer(build, phases, repeats)
        self.entries: list[Entry] = []

    def put(self, document: Document, sender: str = "rig", cause: tuple[int, int] | None = None) -> None:
        seq = len(self.entries) + 1
        envelope = Envelope(
            seq=seq,
            receipt_host_ns=seq,
            sender=sender,
            process=sender,
            sender_seq=seq,
            cause_seq=None if cause is None else cause[0],
            cause_index=None if cause is None else cause[1],
        )
        self.entries.append(Entry(envelope, document))
        for index, caused in enumerate(self.server.handle(self.entries[-1])):
            self.put(caused, "model", (seq, index))

    def start(self) -> None:
        config = {"sources": [{"type": "openephys"}], "responses": {"units": ["a"]}, "phases": [{"agent": "present"}]}
        self.put(
            SessionStart(
                simulated=True, session="s",
                config_yaml="",
                config=config,
                versions={},
                commit=None,
                dirty=None,
                start_host_ns=0,
                start_utc_ns=0,
            )
        )

    def work(self) -> None:
        assert self.server.work is not None
        while not self.server.work.step():
            pass
        self.put(self.server.work_done(), "model", self.server.work_cause)

    def respond(
        self, proposal: int, slot: int, rate: float = 1.0, usable: bool = True, shown: int = 0, curable: bool = True
    ) -> None:
        """Journal the response to the showing number `shown` of a slot."""
        one = np.array([rate], dtype=np.float64)
        self.put(
            Response(
                presentation=proposal * 100 + slot * 10 + shown,
                proposal=proposal,
                slot=slot,
                role="candidate",
                stimulus_id=f"g{proposal}-{slot}",
                source="probe",
                usable=usable,
                reason="" if usable else "lost",
                curable=curable,
                onset_source="none",
                onset_sample=None,
                onset_host_ns=None,
                onset_uncertainty_ns=None,
                onset_host_uncertainty_ns=None,
                flip_to_edge_ns=None,
                coverage=1.0,
                units=("a",),
                count=one,
                baseline=one * 0,
                rate_hz=one,
            ),
            "x",
        )

    def kinds(self, kind: type) -> list[Any]:
        return [e.document for e in self.entries if isinstance(e.document, kind)]


def run(log: Log, proposals: int, order: Sequence[int] = range(MAIN + TAIL)) -> None:
    log.start()
    for k in range(proposals):
        log.work()
        for slot in order:
            log.respond(k, slot, rate=10.0 * k + slot)


def test_the_next_batch_is_asked_for_when_the_main_part_is_answered() -> None:
    log = Log()
    log.start()
    log.work()
    assert [p.proposal for p in log.kinds(Proposal)] == [0]
    for slot in range(MAIN - 1):
        log.respond(0, slot)
        assert log.server.work is None
    log.respond(0, MAIN - 1)
    assert log.server.work is not None
    log.work()
    assert [p.proposal for p in log.kinds(Proposal)] == [0, 1]
    assert not log.kinds(Proposal)[1].final


def test_agents_are_told_in_proposal_order_and_every_slot_once() -> None:
    log = Log()
    run(log, 3, order=[2, 0, 1, 4, 3])
    rows = [(t.proposal, t.slot) for t in log.agents[0].told]
    assert rows == [(p, s) for p in range(3) for s in range(MAIN + TAIL)]
    assert [p.final for p in log.kinds(Proposal)] == [False, False, True]
    (ended,) = log.kinds(PhaseEnded)
    assert ended.last
    assert len(log.kinds(ModelUpdated)) == 4


@pytest.mark.parametrize(("repeats", "curable", "needed"), [(0, True, 1), (2, True, 3), (2, False, 1)])
def test_a_response_that_stays_unusable_is_told_as_missing_once(repeats: int, curable: bool, needed: int) -> None:
    log = Log(repeats=repeats)
    log.start()
    log.work()
    log.respond(0, 1, usable=False, curable=curable)
    log.respond(0, 0)
    log.respond(0, 2)
    for shown in range(1, needed):
        assert log.agents[0].told == []  # it is being shown again
        assert log.server.work is None
        log.respond(0, 1, usable=False, shown=shown)
    assert [t.rate_hz is None for t in log.agents[0].told] == [False, True, False]
    log.respond(0, 1, shown=9)
    assert len(log.agents[0].told) == MAIN


def test_an_image_that_was_shown_again_is_told_once_with_its_usable_response() -> None:
    log = Log()
    log.start()
    log.work()
    log.respond(0, 1, usable=False)
    log.respond(0, 1, usable=False)  # the same presentation again: no news
    for slot in (0, 2):
        log.respond(0, slot)
    log.respond(0, 1, rate=7, shown=1)
    log.respond(0, 1, rate=8, shown=2)
    rates = [t.rate_hz for t in log.agents[0].told]
    assert [None if r is None else float(r[0]) for r in rates] == [1, 7, 1]


def test_the_next_main_part_waits_for_the_tail_before_it() -> None:
    log = Log()
    log.start()
    log.work()
    for slot in range(MAIN + 1):
        log.respond(0, slot)
    log.respond(0, MAIN + 1, usable=False)
    log.work()
    for slot in range(MAIN):
        log.respond(1, slot)
    assert [(t.proposal, t.slot) for t in log.agents[0].told] == [(0, 0), (0, 1), (0, 2)]
    assert log.server.work is None
    log.respond(0, MAIN + 1, shown=1)
    assert [(t.proposal, t.slot) for t in log.agents[0].told][MAIN:] == [(0, 3), (0, 4), (1, 0), (1, 1), (1, 2)]
    assert log.server.work is not None


def test_a_repeated_response_changes_nothing() -> None:
    log = Log()
    log.start()
    log.work()
    log.respond(0, 0, rate=1)
    log.respond(0, 0, rate=99)
    log.respond(0, 1)
    log.respond(0, 2)
    told = log.agents[0].told[0].rate_hz
    assert told is not None
    assert told[0] == 1


def test_phases_follow_each_other() -> None:
    log = Log(phases=2)
    log.start()
    for k in range(6):
        log.work()
        for slot in range(MAIN + TAIL):
            log.respond(k, slot)
    assert [(p.phase, p.generation) for p in log.kinds(Proposal)] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert [p.last for p in log.kinds(PhaseEnded)] == [False, True]


def test_a_stale_work_done_is_ignored_and_a_wrong_one_is_a_fault() -> None:
    log = Log()
    log.start()
    log.work()
    log.put(WorkDone(work=0, steps=3, data_through_seq=1, sha256="0"), "model")
    assert len(log.kinds(Proposal)) == 1
    for slot in range(MAIN):
        log.respond(0, slot)
    log.put(WorkDone(work=1, steps=3, data_through_seq=1, sha256="0"), "model")
    assert [f.what for f in log.kinds(Fault)] == ["work not reproducible"]
    assert len(log.kinds(Proposal)) == 2


def test_a_fresh_fold_over_the_log_gives_identical_documents() -> None:
    log = Log()
    run(log, 3)
    again = Log()
    emitted = [d for e in log.entries for d in again.server.handle(e)]
    caused = [e for e in log.entries if e.envelope.sender == "model" and e.envelope.cause_index != 1000]
    assert [encode(d) for d in emitted] == [encode(e.document) for e in caused]
    assert len(emitted) == 3 + 4 + 1

    def make(_: SessionStart) -> ModelServer:
        return ModelServer(lambda *_: Recording(), 1, 2)

    wants = frozenset({"session_start", "response", "work_done"})
    verdict = verify(log.entries, make, wants)
    assert verdict.agrees
    assert verdict.identical == {"proposal": 3, "model_updated": 4, "phase_ended": 1}


class Failing(Recording):
    """An agent that raises in one of its calls, from its second generation on."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def _raise(self, where: str) -> None:
        if where == self.where and self.generation >= 1:
            raise IndexError(f"at {object()!r}: no such unit")

    def tell(self, told: Sequence[Told]) -> None:
        self._raise("tell")
        super().tell(told)

    def ask(self) -> Counting:
        self._raise("ask")
        return super().ask()

    def state(self) -> dict[str, Any]:
        self._raise("state")
        return super().state()


@pytest.mark.parametrize("where", ["tell", "ask", "state"])
@pytest.mark.parametrize("phases", [1, 2])
def test_an_agent_that_raises_ends_its_phase_and_neither_the_server_nor_a_replay(where: str, phases: int) -> None:
    def server() -> ModelServer:
        return ModelServer(lambda k, _: Recording() if k else Failing(where), phases, 2)

    log = Log(phases)
    log.server = server()
    log.start()
    for k in range(5):
        if log.server.work is not None:
            log.work()
        for slot in range(MAIN + TAIL):
            log.respond(k, slot)
    (fault,) = log.kinds(Fault)
    assert fault.what == "agent failed"
    assert "phase 1, failing, at entry" in fault.detail
    assert "IndexError: at <object object at 0x...>: no such unit" in fault.detail
    ended = [(p.phase, p.last) for p in log.kinds(PhaseEnded)]
    if phases == 1:
        assert "fallback images" in fault.done
        assert ended == []  # the session is not ended by it
        assert log.server.work is None
    else:
        assert ended[0] == (0, False)
        assert {p.phase for p in log.kinds(Proposal)} == {0, 1}  # the next phase went on
    again, restored = server(), server()
    emitted = [d for e in log.entries for d in again.handle(e)]
    caused = [e for e in log.entries if e.envelope.sender == "model" and e.envelope.cause_index != 1000]
    assert [encode(d) for d in emitted] == [encode(e.document) for e in caused]
    restored.restore(again.state())
    assert state_hash(restored.state()) == state_hash(again.state())


class Breaking(Recording):
    """An agent whose work raises in its second step, from the second batch on; and only when it runs live."""

    live = True

    def ask(self) -> Counting:
        return Broken(self) if self.generation >= 0 else Counting(self)


class Broken(Counting):
    def step(self) -> bool:
        if Breaking.live and self.steps == 1:
            raise RuntimeError(f"{object()!r}: the decoder gave NaN")
        return super().step()


class Outbox:
    """Keeps what the edge sends."""

    def __init__(self) -> None:
        self.sent: list[tuple[Document, tuple[int, int] | None]] = []

    def send(self, document: Document, cause: tuple[int, int] | None = None) -> None:
        self.sent.append((document, cause))


def test_a_work_that_raises_ends_its_phase_and_neither_the_process_nor_a_replay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def server() -> ModelServer:
        return ModelServer(lambda k, _: Recording() if k else Breaking(), 2, 2)

    log, outbox = Log(2), Outbox()
    log.server = server()
    log.start()
    for k in range(4):
        while log.server.work is not None:
            assert _work(log.server, log.server.work, outbox, FakeClock(), 1.0)  # type: ignore[arg-type]
            log.put(outbox.sent[-1][0], "model", outbox.sent[-1][1])
        for slot in range(MAIN + TAIL):
            log.respond(k, slot)
    (fault,) = log.kinds(Fault)
    assert (fault.what, fault.done.split("; ")[1]) == ("agent failed", "the next begins")
    assert "phase 1, breaking, at work 1: RuntimeError: <object object at 0x...>: the decoder gave NaN" in fault.detail
    assert [(p.phase, p.generation) for p in log.kinds(Proposal)] == [(0, 0), (1, 0), (1, 1), (1, 2)]
    assert log.server.state()["answers"] == []  # the rest of the first proposal waits for nobody
    monkeypatch.setattr(Breaking, "live", False)  # a replay computes nothing of it, on whatever machine it is
    again = server()
    emitted = [d for e in log.entries for d in again.handle(e)]
    caused = [e for e in log.entries if e.envelope.sender == "model" and e.envelope.cause_index != 1000]
    assert [encode(d) for d in emitted] == [encode(e.document) for e in caused]


def test_a_work_that_raises_before_anything_was_proposed_is_raised() -> None:
    log = Log()
    log.server = ModelServer(lambda *_: Breaking(generation=0), 1, 2)
    log.start()
    assert log.server.work is not None
    with pytest.raises(RuntimeError, match="gave NaN"):
        _work(log.server, log.server.work, Outbox(), FakeClock(), 1.0)  # type: ignore[arg-type]


def test_what_raises_at_the_session_s_beginning_is_raised() -> None:
    def build(*_: object) -> Recording:
        raise ValueError("no bank of this name")

    log = Log()
    log.server = ModelServer(build, 1, 2)
    with pytest.raises(ValueError, match="no bank"):
        log.start()


def test_verify_names_what_differs_and_what_is_missing() -> None:
    log = Log()
    run(log, 3)

    def other(_: SessionStart) -> ModelServer:
        return ModelServer(lambda *_: Recording(last=1), 1, 2)

    verdict = verify(log.entries, other, frozenset({"session_start", "response", "work_done"}))
    assert not verdict.agrees
    assert any("proposal" in line for line in verdict.missing)


def test_hashes_see_every_part() -> None:
    state = {"a": np.arange(3), "b": [1, {"c": np.float64(2)}]}
    changed = {"a": np.arange(3), "b": [1, {"c": np.float64(2.5)}]}
    assert state_hash(state) == state_hash({"b": state["b"], "a": state["a"]})
    assert state_hash(state) != state_hash(changed)
    assert state_hash({"a": np.arange(3)}) != state_hash({"a": np.arange(3).astype(np.int32)})
    batch = Counting(Recording()).peek()
    assert batch_hash(batch) != batch_hash(Counting(Recording(generation=1)).peek())


def test_verify_cannot_agree_with_what_was_not_compared() -> None:
    log = Log()
    run(log, 3)
    wants = frozenset({"session_start", "response", "work_done"})

    def make(_: SessionStart) -> ModelServer:
        return ModelServer(lambda *_: Recording(), 1, 2)

    def changed(entries: list[Entry]) -> list[str]:
        return verify(entries, make, wants).different

    assert changed(log.entries) == []
    free = [
        Entry(e.envelope.model_copy(update={"cause_seq": None, "cause_index": None}), e.document) for e in log.entries
    ]
    assert sum("names no cause" in line for line in changed(free)) == 3 + 4 + 1
    proposal = next(e for e in log.entries if isinstance(e.document, Proposal))
    other = Entry(proposal.envelope, proposal.document.model_copy(update={"generation": 99}))
    assert any("caused it twice" in line for line in changed([*log.entries, other]))
    shown = Presented(
        presentation=0,
        trial=0,
        position_in_trial=0,
        proposal=0,
        slot=0,
        role="candidate",
        stimulus_id="g0-1",  # slot 0 is g0-0
        previous_stimulus_id=None,
        frame_sha256="0",
        due_host_ns=0,
        onset_flip_host_ns=0,
        offset_flip_host_ns=0,
        flips_host_ns=np.zeros(2, np.int64),
        late_flips=0,
        dropped_frames=0,
        image_row_px=0,
        patch_row_px=0,
        complete=True,
    )
    envelope = log.entries[-1].envelope.model_copy(update={"sender": "rig", "cause_seq": None, "cause_index": None})
    for name, message in (("g0-1", "the stimulus that was planned"), ("g0-0", "the frame that was prepared")):
        wrong = Entry(envelope, shown.model_copy(update={"stimulus_id": name}))
        assert any(message in line for line in changed([*log.entries, wrong]))
