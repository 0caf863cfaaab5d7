"""The model server's core: a pure fold over the session's log, `handle(entry) -> [document]`.

Run live by `models.__main__` and in replay by `rig.replay`, from the same entries, with the same outcome: it reads no
clock and does no I/O. Background work is stepped by whoever runs the fold; its result counts only when the journalled
WorkDone comes back, in order, and a replay takes the same steps to its end.
"""

import hashlib
import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from models.agents.carried import Carried
from models.agents.types import F32, F64, Agent, Batch, Told, Trains, Work
from models.agents.watch import Watch
from models.asked import Asked
from rig.messages import (
    AGENT_FAILED,
    Document,
    Entry,
    Fault,
    ModelUpdated,
    PhaseEnded,
    Proposal,
    Response,
    SessionStart,
    WorkDone,
    kind_of,
)
from rig.shown_again import ShownAgain

WANTS = frozenset({"session_start", "response", "work_done"})
Build = Callable[[int, tuple[Carried, ...]], Agent]  # of a phase, by its index and what the phases before it left
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
    if batch.place is not None:  # without one the hash is that of logs from before there were places
        digest.update(batch.place.model_dump_json().encode())
    return digest.hexdigest()


def _words(error: Exception) -> str:
    """Return what was raised, as a replay says it too."""
    return re.sub(r"0x[0-9a-f]+", "0x...", f"{type(error).__name__}: {error}")[:200]


class Said(NamedTuple):
    """A document of the fold, as the log names it: its kind, and the entry and place by which it was caused."""

    kind: str
    cause_seq: int
    cause_index: int


class ModelServer:
    """Tells agents what the units did, in proposal order, and turns what they ask for into proposals.

    An agent is told of a slot once, with its final response (`rig.shown_again`), and of the tail of a proposal together
    with the main part of the next one, never before both are complete: what it knows then does not depend on when
    responses came, in which order, or how often an image had to be shown.
    """

    def __init__(self, build: Build, phases: int, repeats: int) -> None:
        """`build(k, carried)` makes the agent of phase k, of `phases` in all, from what earlier phases left.

        `repeats`: how often a slot without a usable response is shown again (presentation.repeats_of_unusable).
        """
        self._build = build
        self._phases = phases
        self._phase = -1
        self.carried: tuple[Carried, ...] = ()
        """What each ended phase left, in their order."""
        self._carried_hash: tuple[int, str] | None = None  # number of facts, and their hash
        self._agent: Agent | None = None
        self._proposals = 0
        self._current: Asked | None = None
        self._told_main = False
        self._previous: Asked | None = None
        self._again = ShownAgain(repeats)
        self._answers: dict[tuple[int, int], F64 | None] = {}  # rates of final responses that were not told yet
        self._courses: dict[tuple[int, int], tuple[F32, F64]] = {}  # their time courses and baselines, if there are any
        self._through = 0
        self._watch = Watch()
        self.said: tuple[Said, ...] = ()
        """The newest proposal and all that was emitted after it: a log without one of these never had this state."""
        self.work: Work | None = None
        self.work_number = -1
        self.work_cause: tuple[int, int] = (0, WORK_INDEX)

    def handle(self, entry: Entry) -> list[Document]:
        """Take one entry of the log; return the documents it causes.

        An agent that raises at it ends its phase, here and not in the process, so that a replay says the same. What
        raises at the session's first document is a mistake in its set-up, and is raised.
        """
        self._through = entry.envelope.seq
        try:
            caused = self._take(entry.document)
        except MemoryError:
            raise  # the machine's state, not the document's: a replay would not see it
        except Exception as error:
            if isinstance(entry.document, SessionStart):
                raise
            caused = self._failed(f"entry {entry.envelope.seq} ({kind_of(entry.document)})", _words(error))
        for index, document in enumerate(caused):
            before = () if isinstance(document, Proposal) else self.said
            self.said = (*before, Said(kind_of(document), self._through, index))
        return caused

    def _take(self, document: Document) -> list[Document]:
        if isinstance(document, SessionStart):
            return self._next_phase()
        if isinstance(document, WorkDone):
            return self._take_work(document)
        if isinstance(document, Response) and self._again.take(document) == "final":
            if all(a is None or a.proposal != document.proposal for a in (self._current, self._previous)):
                return []  # of an agent that failed: nobody waits for it
            rate_hz = document.rate_hz if document.usable else None
            self._answers[document.proposal, document.slot] = rate_hz
            if rate_hz is not None and document.psth is not None:
                self._courses[document.proposal, document.slot] = document.psth, document.baseline
            return self._progress()
        return []

    def state(self) -> dict[str, Any]:
        """Return the whole state: arrays and JSON-able values; a work in progress is not in it, but that it was asked.

        An agent does not change between `ask` and the result of the work, so that the same work can be asked for again.
        """
        return {
            "phase": self._phase,
            "carried": [left.state() for left in self.carried],
            "agent": None if self._agent is None else self._agent.state(),
            "proposals": self._proposals,
            "current": None if self._current is None else self._current.state(),
            "previous": None if self._previous is None else self._previous.state(),
            "told_main": self._told_main,
            "again": self._again.state(),
            "answers": [[*key, rate_hz] for key, rate_hz in self._answers.items()],
            "courses": [[*key, psth, baseline] for key, (psth, baseline) in self._courses.items()],
            "watch": self._watch.state(),
            "through": self._through,
            "said": [list(said) for said in self.said],
            "asked": self.work is not None,
            "work_number": self.work_number,
            "work_cause": list(self.work_cause),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over the state of a fold over the same session; a work that was asked for begins anew."""
        self._phase = state["phase"]
        self.carried, self._carried_hash = tuple(Carried.restored(left) for left in state["carried"]), None
        self._agent = None
        if state["agent"] is not None:
            self._agent = self._build(self._phase, self.carried)
            self._agent.restore(state["agent"])
        self._proposals = state["proposals"]
        self._current = None if state["current"] is None else Asked.restored(state["current"])
        self._previous = None if state["previous"] is None else Asked.restored(state["previous"])
        self._told_main = state["told_main"]
        self._again.restore(state["again"])
        self._answers = {(proposal, slot): rate_hz for proposal, slot, rate_hz in state["answers"]}
        self._courses = {(proposal, slot): (psth, base) for proposal, slot, psth, base in state["courses"]}
        self._watch = Watch(self.carried)
        self._watch.restore(state["watch"])
        self._through = state["through"]
        self.said = tuple(Said(*said) for said in state["said"])
        self.work_number = state["work_number"]
        self.work_cause = (state["work_cause"][0], state["work_cause"][1])
        self.work = self._agent.ask() if state["asked"] and self._agent is not None else None

    @property
    def proposed(self) -> bool:
        """Whether anything was proposed in this session."""
        return self._proposals > 0

    def work_failed(self, error: Exception) -> WorkDone:
        """Describe a work whose step raised; the edge sends this, and the phase ends when it comes back."""
        if self.work is None:
            raise RuntimeError("no work was asked for")
        through = self.work_cause[0]
        return WorkDone(
            work=self.work_number, steps=self.work.steps, data_through_seq=through, sha256="", error=_words(error)
        )

    @property
    def trains(self) -> tuple[int, Trains] | None:
        """The phase that runs, from 0, and its agent, if that trains networks for another day."""
        return (self._phase, self._agent) if isinstance(self._agent, Trains) else None

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
        self._watch = self._watch.following(self.carried)
        self._agent = self._build(self._phase, self.carried)
        self._current = self._previous = None
        self._ask()
        return []

    def _failed(self, where: str, words: str) -> list[Document]:
        """Go on without the agent that raised: nobody knows what its state is worth.

        The next phase begins; where there is none the session is not ended, but nothing is proposed any more: the rig
        shows the fallback images for a while, then grey, until somebody looks.
        """
        out: list[Document] = []
        while True:
            last = self._phase + 1 >= self._phases
            name = "no agent" if self._agent is None else type(self._agent).__name__.lower()
            after = "no phase follows: fallback images are shown, then grey" if last else "the next begins"
            detail = f"phase {self._phase + 1}, {name}, at {where}: {words}"
            out.append(Fault(what=AGENT_FAILED, detail=detail, done=f"it is asked for nothing more; {after}"))
            self._agent = self.work = self._current = self._previous = None
            self._answers.clear()
            self._courses.clear()
            if last:
                return out
            out.append(PhaseEnded(phase=self._phase, reason=f"its agent failed: {words}", last=False))
            try:
                return [*out, *self._next_phase()]
            except MemoryError:
                raise
            except Exception as another:  # noqa: BLE001 - as in `handle`
                where, words = "its beginning", _words(another)

    def _ask(self) -> None:
        if self._agent is not None:
            self.work = self._agent.ask()
            self.work_number += 1
            self.work_cause = (self._through, WORK_INDEX)

    def _take_work(self, done: WorkDone) -> list[Document]:
        if self.work is None or self._agent is None or done.work != self.work_number:
            return []
        if done.error:  # nothing is computed here: what raised live may take minutes, or raise no more
            return self._failed(f"work {done.work}", done.error)
        while not self.work.step():  # live it is finished; a replay of changed data may need other steps
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
        if not batch.plan:
            return [*self._progress(), *faults]
        proposal = self._proposal(batch)
        self._previous, self._current, self._told_main = self._current, Asked.of(proposal), False
        self._again.planned(proposal.proposal, len(proposal.plan))
        self._proposals += 1
        return [proposal, *faults]  # the proposal keeps its identity also where a restart finds a difference

    def _version(self) -> str:
        """Return the hash of all that decides what the agent does: its state, and what earlier phases left to it."""
        assert self._agent is not None  # noqa: S101 - only called while a phase runs
        state = self._agent.state()
        if not self.carried:
            return state_hash(state)
        if self._carried_hash is None or self._carried_hash[0] != len(self.carried):
            self._carried_hash = len(self.carried), state_hash([left.state() for left in self.carried])
        return state_hash([state, self._carried_hash[1]])

    def _proposal(self, batch: Batch) -> Proposal:
        assert self._agent is not None  # noqa: S101 - only called while a phase runs
        return Proposal(
            proposal=self._proposals,
            phase=self._phase,
            agent=type(self._agent).__name__.lower(),
            generation=batch.generation,
            model_version=self._version(),
            stimuli=batch.stimuli,
            plan=batch.plan,
            tail_from=batch.tail_from,
            final=batch.final,
            fallback=batch.fallback,
            frames=batch.frames,
            latents=batch.latents,
            place=batch.place,
        )

    def _answered(self, asked: Asked, start: int, end: int) -> bool:
        return all((asked.proposal, k) in self._answers for k in range(start, end))

    def _rows(self, asked: Asked, start: int, end: int) -> list[Told]:
        rows = []
        for k in range(start, end):
            role, name = asked.plan[k]
            key = asked.proposal, k
            psth, baseline = self._courses.pop(key, (None, None))
            rows.append(Told(*key, role, name, self._answers.pop(key), psth, baseline))
        return rows

    def _progress(self) -> list[Document]:
        """Tell the agent whatever became complete, and ask for the next batch or end the phase."""
        agent, current, before = self._agent, self._current, self._previous
        if agent is None or current is None:
            return []
        out: list[Document] = []
        end = len(current.plan)
        if not self._told_main and self._answered(current, 0, current.tail_from):
            tail = (before, before.tail_from, len(before.plan)) if before is not None else None
            if tail is not None and not self._answered(*tail):
                return []  # an image of the tail before is being shown again
            self._told_main, self._previous = True, None
            late = [] if tail is None else self._rows(*tail)
            out += self._told(current, [*late, *self._rows(current, 0, current.tail_from)])
            if agent.finished() is None:
                self._ask()
        if self._told_main and self.work is None and self._answered(current, current.tail_from, end):
            out += self._told(current, self._rows(current, current.tail_from, end))
            out += self._end_phase(agent.finished() or "all of its images were shown")
        return out

    def _told(self, asked: Asked, rows: list[Told]) -> list[Document]:
        """Tell the agent; return what it says then, and which watched units have changed."""
        assert self._agent is not None  # noqa: S101 - only called while a phase runs
        self._agent.tell(rows)
        self._watch.take(rows)
        done = "nothing: it stays in the experiment; look at its isolation, and at the report"
        news = [Fault(what="unit changed", detail=words, done=done) for words in self._watch.news()]
        return [self._updated(asked), *news]

    def _updated(self, asked: Asked) -> ModelUpdated:
        assert self._agent is not None  # noqa: S101 - only called while a phase runs
        return ModelUpdated(
            phase=self._phase,
            generation=asked.generation,
            model_version=self._version(),
            report=self._agent.report() | self._watch.report(),
            scores=self._agent.scored(),
        )

    def _end_phase(self, reason: str) -> list[Document]:
        last, locked_s = self._phase + 1 >= self._phases, None
        if self._agent is not None:
            name, left = type(self._agent).__name__.lower(), self._agent.leaves()
            self.carried = (*self.carried, Carried(self._phase, name, **left))
            locked_s = left.get("locked_s")
        self._current = self._previous = None
        ended = PhaseEnded(phase=self._phase, reason=reason, last=last, window_s=locked_s)
        self._agent = None
        if last:
            return [ended]
        try:
            return [ended, *self._next_phase()]
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - as in `handle`; what this phase found is said all the same
            return [ended, *self._failed("its beginning", _words(error))]
