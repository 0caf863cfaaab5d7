"""The model server's core: a pure fold over the session's log, `handle(entry) -> [document]`.

Run live by `models.__main__` and in replay by `rig.replay`, from the same entries, with the same outcome: it reads no
clock and does no I/O. Background work is stepped by whoever runs the fold; its result counts only when the journalled
WorkDone comes back, in order, and a replay takes the steps that were taken live.
"""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from models.agents.types import Agent, Batch, Told, Work
from rig.messages import (
    Document,
    Entry,
    Fault,
    ModelUpdated,
    PhaseEnded,
    Proposal,
    Response,
    SessionStart,
    WorkDone,
)

WANTS = frozenset({"session_start", "response", "work_done"})
WORK_INDEX = 1000  # cause index of a WorkDone: one work at most is asked for by one entry


def state_hash(state: Any) -> str:
    """Return a hash of an agent's state (nested dicts and lists of arrays and JSON-able values)."""
    digest = hashlib.sha256()

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            digest.update(value.tobytes())
            return [value.dtype.str, list(value.shape)]
        if isinstance(value, np.generic):
            return value.item()
        raise TypeError(f"state holds a {type(value).__name__}")

    digest.update(json.dumps(state, default=plain, sort_keys=True).encode())
    return digest.hexdigest()


def batch_hash(batch: Batch) -> str:
    """Return a hash of everything that a batch says and shows."""
    digest = hashlib.sha256(batch.frames.tobytes() + batch.latents.tobytes())
    for stimulus in batch.stimuli:
        digest.update(stimulus.model_dump_json().encode())
    plan = [(s.stimulus, s.role) for s in batch.plan]
    digest.update(json.dumps([batch.generation, plan, batch.tail_from, batch.fallback, batch.final]).encode())
    return digest.hexdigest()


class ModelServer:
    """Tells agents what the units did, in proposal order, and turns what they ask for into proposals."""

    def __init__(self, build: Callable[[int], Agent], phases: int) -> None:
        """`build(k)` makes the agent of phase k, of `phases` in all."""
        self._build = build
        self._phases = phases
        self._phase = -1
        self._agent: Agent | None = None
        self._proposals = 0
        self._current: Proposal | None = None
        self._told_main = False
        self._previous: Proposal | None = None
        self._answers: dict[tuple[int, int], Response] = {}
        self._through = 0
        self.work: Work | None = None
        self.work_number = -1
        self.work_cause: tuple[int, int] = (0, WORK_INDEX)

    def handle(self, entry: Entry) -> list[Document]:
        """Take one entry of the log; return the documents it causes."""
        self._through = entry.envelope.seq
        document = entry.document
        if isinstance(document, SessionStart):
            return self._next_phase()
        if isinstance(document, WorkDone):
            return self._take_work(document)
        if isinstance(document, Response) and document.slot >= 0:
            self._answers.setdefault((document.proposal, document.slot), document)
            return self._progress()
        return []

    def work_done(self) -> WorkDone:
        """Describe the finished work; the edge sends this, and the result counts when it comes back."""
        if self.work is None:
            raise RuntimeError("no work was asked for")
        return WorkDone(
            work=self.work_number,
            steps=self.work.steps,
            data_through_seq=self.work_cause[0],
            sha256=batch_hash(self.work.peek()),
        )

    # --- inside the fold ----------------------------------------------------------------------------------------------

    def _next_phase(self) -> list[Document]:
        self._phase += 1
        self._agent = self._build(self._phase)
        self._current = self._previous = None
        self._ask()
        return []

    def _ask(self) -> None:
        if self._agent is not None:
            self.work = self._agent.ask()
            self.work_number += 1
            self.work_cause = (self._through, WORK_INDEX)

    def _take_work(self, done: WorkDone) -> list[Document]:
        if self.work is None or self._agent is None or done.work != self.work_number:
            return []
        while self.work.steps < done.steps and not self.work.step():
            pass
        batch = self.work.result()
        self.work = None
        faults: list[Document] = []
        if batch_hash(batch) != done.sha256:
            faults.append(
                Fault(
                    what="work not reproducible",
                    detail=f"work {done.work} gave another result after {done.steps} steps than the journal says",
                    done="the result of this run is used",
                )
            )
        self._previous, self._current, self._told_main = self._current, self._proposal(batch), False
        self._proposals += 1
        return [self._current, *faults]  # the proposal keeps its identity also where a restart finds a difference

    def _proposal(self, batch: Batch) -> Proposal:
        assert self._agent is not None  # noqa: S101 - only called while a phase runs
        return Proposal(
            proposal=self._proposals,
            phase=self._phase,
            agent=type(self._agent).__name__.lower(),
            generation=batch.generation,
            model_version=state_hash(self._agent.state()),
            stimuli=batch.stimuli,
            plan=batch.plan,
            tail_from=batch.tail_from,
            final=batch.final,
            fallback=batch.fallback,
            frames=batch.frames,
            latents=batch.latents,
        )

    def _answered(self, proposal: Proposal, start: int, end: int) -> bool:
        return all((proposal.proposal, k) in self._answers for k in range(start, end))

    def _rows(self, proposal: Proposal, start: int, end: int) -> list[Told]:
        rows = []
        for k in range(start, end):
            answer = self._answers.pop((proposal.proposal, k), None)
            slot = proposal.plan[k]
            rate = answer.rate_hz if answer is not None and answer.usable else None
            rows.append(Told(proposal.proposal, k, slot.role, proposal.stimuli[slot.stimulus].id, rate))
        return rows

    def _progress(self) -> list[Document]:
        """Tell the agent whatever became complete, and ask for the next batch or end the phase."""
        agent, current = self._agent, self._current
        if agent is None or current is None:
            return []
        out: list[Document] = []
        end = len(current.plan)
        if not self._told_main and self._answered(current, 0, current.tail_from):
            self._told_main = True
            before = self._previous
            late = self._rows(before, before.tail_from, len(before.plan)) if before is not None else []
            agent.tell([*late, *self._rows(current, 0, current.tail_from)])
            out.append(self._updated(current))
            if agent.finished() is None:
                self._ask()
        if self._told_main and self.work is None and self._answered(current, current.tail_from, end):
            agent.tell(self._rows(current, current.tail_from, end))
            out.append(self._updated(current))
            out += self._end_phase(agent.finished() or "all of its images were shown")
        return out

    def _updated(self, proposal: Proposal) -> ModelUpdated:
        assert self._agent is not None  # noqa: S101 - only called while a phase runs
        return ModelUpdated(
            phase=self._phase,
            generation=proposal.generation,
            model_version=state_hash(self._agent.state()),
            report=self._agent.report(),
        )

    def _end_phase(self, reason: str) -> list[Document]:
        last = self._phase + 1 >= self._phases
        self._current = self._previous = None
        ended = PhaseEnded(phase=self._phase, reason=reason, last=last)
        if last:
            self._agent = None
            return [ended]
        return [ended, *self._next_phase()]
