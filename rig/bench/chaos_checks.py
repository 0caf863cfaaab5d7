"""What must be true of a session in which processes were killed and frozen: pure checks over its journal.

Used by `rig.bench.chaos`. Each returns the violations in words, [] where there are none; docs/chaos.md says what each
means to an experimenter.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rig.encoding import encode
from rig.links.witness import Notes, digest
from rig.messages import (
    Document,
    Entry,
    Fault,
    OutputDone,
    OutputRequest,
    PhaseEnded,
    Presented,
    ProcessStarted,
    Proposal,
    Response,
    SessionStop,
    TrialIntent,
    kind_of,
)
from rig.responses.windows import NEVER_SHOWN

LOW_WITHIN_NS = 100_000_000
MODEL_BACK_NS = 5_000_000_000
BEFORE_NS = 500_000_000  # an image that was on so long before a strike may have lost its data by it
AFTER_NS = 8_000_000_000  # a struck process is back, and its data flow again, within this
MARGIN_NS = 60_000_000  # of an edge that the animal saw to the flip that made it
NAMED_BY = NEVER_SHOWN | {"announced and not recorded"}  # faults that account for an announced presentation
D = TypeVar("D", bound=Document)
SOURCES = frozenset({"source", "receiver"})


@dataclass(frozen=True)
class Struck:
    """One process that was killed or frozen."""

    number: int
    victim: str
    how: str
    """kill or freeze."""
    pid: int
    at_host_ns: int
    end_host_ns: int
    """When a frozen one was let go; of one that did not live on when it was gone (the kernel may take a while)."""
    killed: bool
    """Whether it did not live on: always for a kill; of frozen ones those that the supervisor killed meanwhile."""

    def __str__(self) -> str:
        gone_ms = (self.end_host_ns - self.at_host_ns) / 1e6
        frozen = f", gone after {gone_ms:.1f} ms" if self.how == "kill" else f" for {gone_ms / 1e3:.1f} s"
        more = " and killed by the supervisor" if self.how == "freeze" and self.killed else ""
        return f"#{self.number} {self.how} {self.victim} (pid {self.pid}) at {self.at_host_ns} ns{frozen}{more}"


def _all(entries: Iterable[Entry], kind: type[D]) -> list[D]:
    return [e.document for e in entries if isinstance(e.document, kind)]


# --- (a) acknowledged means journalled --------------------------------------------------------------------------------


def acknowledged(entries: Sequence[Entry], notes: Notes) -> list[str]:
    """Return the documents that a process holds as acknowledged and that the journal has not, or has otherwise."""
    said: dict[tuple[str, int], str] = {}
    caused: dict[tuple[str, int, int], str] = {}
    twice: list[str] = []
    for entry in entries:
        e, content = entry.envelope, digest(encode(entry.document))
        if (e.process, e.sender_seq) in said:
            twice.append(f"document {e.sender_seq} of {e.process} is in the journal twice (entry {e.seq})")
        said[e.process, e.sender_seq] = content
        if e.cause_seq is not None and e.cause_index is not None:
            caused[e.sender, e.cause_seq, e.cause_index] = content
    bad = []
    for one in notes.acknowledged:
        found = said.get((one.process, one.n))
        if found is None and one.cause is not None:  # a restarted fold said again what was journalled before
            found = caused.get((one.process.rpartition("-")[0], *one.cause))
        if one.refused or found == one.sha256:
            continue
        lacks = "is not in the journal" if found is None else "is in the journal with another content"
        bad.append(f"document {one.n} of {one.process} was acknowledged and {lacks}")
    return twice + bad


# --- (c) every requested stimulus has one response, and few are shown twice -------------------------------------------


@dataclass(frozen=True)
class Slots:
    """What became of the planned presentations."""

    slots: int
    never_usable: tuple[str, ...]
    """Those that ended without a usable response, with the reasons."""
    violations: tuple[str, ...]


def slots(entries: Sequence[Entry]) -> Slots:
    """Check that each slot of each proposal has exactly one usable response, or a reason why it has none."""
    responses: defaultdict[tuple[int, int], list[Response]] = defaultdict(list)
    answered: Counter[int] = Counter()
    for r in _all(entries, Response):
        responses[r.proposal, r.slot].append(r)
        answered[r.presentation] += 1
    violations, never, count = [], [], 0
    for p in _all(entries, Proposal):
        for slot in range(len(p.plan)):
            count += 1
            where, own = f"proposal {p.proposal}, slot {slot}", responses.get((p.proposal, slot), [])
            usable = sum(r.usable for r in own)
            if usable > 1:
                numbers = ", ".join(str(r.presentation) for r in own if r.usable)
                violations.append(f"{where} has {usable} usable responses (presentations {numbers})")
            if not own:
                violations.append(f"{where} has no response")
            elif not usable and all(r.reason for r in own):
                never.append(f"{where}: " + "; ".join(r.reason for r in own))
            elif not usable:
                violations.append(f"{where} has neither a usable response nor a reason")
    return Slots(count, tuple(never), (*violations, *_unaccounted(entries, answered)))


def _unaccounted(entries: Sequence[Entry], answered: Counter[int]) -> list[str]:
    """Return what is wrong with the account of announced and shown presentations."""
    shown = Counter(d.presentation for d in _all(entries, Presented))
    announced = {n for d in _all(entries, TrialIntent) for n in d.presentations}
    named = {n for d in _all(entries, Fault) if d.what in NAMED_BY for n in d.presentations}
    out = [f"presentation {n} was journalled {k} times" for n, k in sorted(shown.items()) if k > 1]
    wrong = sorted(n for n in set(shown) | set(answered) if answered[n] != 1)
    out += [f"presentation {n} has {answered[n]} responses" for n in wrong]
    lost = sorted(announced - set(shown) - named)
    return [*out, *(f"presentation {n} was announced, and neither shown nor named" for n in lost)]


@dataclass(frozen=True)
class Repeat:
    """A presentation that reached the screen and was shown again."""

    host_ns: int
    what: str


def repeats(entries: Sequence[Entry], rising_host_ns: Sequence[int], strikes: Sequence[Struck]) -> list[Repeat]:
    """Return what was shown again though the gap of a dead source did not touch it.

    `rising_host_ns`: when the animal saw the patch become white. Such an edge that no Presented explains is an image
    that was on the screen and whose record died with the rig. A slot that was shown again after an unusable response
    counts as well, unless a source or its receiver was struck about then: that is a loss, with its reason.
    """
    presented = _all(entries, Presented)
    flips = [p.onset_flip_host_ns for p in presented]
    unrecorded = [edge for edge in rising_host_ns if all(abs(edge - flip) > MARGIN_NS for flip in flips)]
    out = [Repeat(edge, "an image was on the screen and has no record") for edge in unrecorded]
    responses = {r.presentation: r for r in _all(entries, Response)}
    by_slot: defaultdict[tuple[int, int], list[Presented]] = defaultdict(list)
    for p in presented:
        if p.slot >= 0:
            by_slot[p.proposal, p.slot].append(p)
    for (proposal, slot), shown in by_slot.items():
        for p in shown[:-1]:
            response = responses.get(p.presentation)
            if response is None or response.usable:
                why = "although its response was usable"
            elif _touched(p.onset_flip_host_ns, strikes) or "onset is known to" in response.reason:
                continue  # the data of the time were lost, or the simulated eye missed the image
            else:
                why = f"because {response.reason}"
            what = f"presentation {p.presentation} (proposal {proposal}, slot {slot}) was shown again {why}"
            out.append(Repeat(p.onset_flip_host_ns, what))
    return sorted(out, key=lambda one: one.host_ns)


def _touched(host_ns: int, strikes: Sequence[Struck]) -> bool:
    """Return whether a source or its receiver was struck about then."""
    return any(s.victim in SOURCES and s.at_host_ns - BEFORE_NS <= host_ns <= s.end_host_ns + AFTER_NS for s in strikes)


def at_most_one_each(found: Sequence[Repeat], strikes: Sequence[Struck]) -> tuple[dict[int, int], list[str]]:
    """Lay each repeat to the strike that it goes with; return repeats per strike number, and the violations."""
    count: Counter[int] = Counter()
    bad = []
    for one in found:
        near = [s for s in strikes if s.at_host_ns - BEFORE_NS <= one.host_ns <= s.end_host_ns + AFTER_NS]
        # The one that struck it while it was on the screen, else the last one before.
        near.sort(key=lambda s: (not s.at_host_ns - BEFORE_NS <= one.host_ns <= s.end_host_ns, -s.at_host_ns))
        free = [s for s in near if not count[s.number]]
        if not near:
            bad.append(f"{one.what}, and nothing was struck then (at {one.host_ns} ns)")
        elif not free:
            bad.append(f"{one.what}: a second repeat for {near[0]}")
        else:
            count[free[0].number] += 1
    return dict(count), bad


# --- (d) nothing was decided otherwise --------------------------------------------------------------------------------


def generations(entries: Sequence[Entry]) -> list[tuple[int, int, int, str]]:
    """Return (proposal, phase, generation, hash of everything that it shows) of all proposals, in their order."""
    out = []
    for p in _all(entries, Proposal):
        of = hashlib.sha256(p.latents.tobytes() + p.frames.tobytes())
        for stimulus in p.stimuli:
            of.update(stimulus.model_dump_json().encode())
        of.update(repr([(s.stimulus, s.role) for s in p.plan]).encode())
        out.append((p.proposal, p.phase, p.generation, of.hexdigest()))
    return out


def same_generations(entries: Sequence[Entry], undisturbed: Sequence[Entry]) -> list[str]:
    """Compare what was proposed with the undisturbed run."""
    mine, other = generations(entries), generations(undisturbed)
    for a, b in zip(mine, other, strict=False):
        if a != b:
            return [f"proposal {a[0]} (generation {a[2] + 1}) differs from the undisturbed run; later ones follow it"]
    if len(mine) != len(other):
        return [f"{len(mine)} proposals, {len(other)} in the undisturbed run"]
    return [] if mine else ["there is no proposal to compare"]


def complete(entries: Sequence[Entry]) -> list[str]:
    """Check that the session reached its end: the last phase ended, and the log was closed in order."""
    out = []
    if not entries or not isinstance(entries[-1].document, SessionStop):
        last = kind_of(entries[-1].document) if entries else "nothing"
        out.append(f"the log ends with {last} and not with SessionStop")
    if not any(d.last for d in _all(entries, PhaseEnded)):
        out.append("the last phase did not end")
    seqs = [e.envelope.seq for e in entries]
    if seqs != list(range(1, len(seqs) + 1)):
        out.append("the journal has holes")
    return out


# --- (e) the valve, (f) the model server ------------------------------------------------------------------------------


def line_low(changes: Sequence[tuple[int, int]], strikes: Sequence[Struck]) -> tuple[list[float], list[str]]:
    """Return how long the line stayed high after each strike in a pulse, ms, and the violations.

    Counted from when a killed process was gone, and from when a frozen one was stopped.
    `changes`: (level, host ns) as an observer saw them, in order.
    """
    after_ms, bad = [], []
    for strike in strikes:
        before = [level for level, t in changes if t <= strike.at_host_ns]
        if not before or before[-1] == 0:
            continue
        low = next((t for level, t in changes if t > strike.at_host_ns and level == 0), None)
        # A process that was killed in the middle of a disk write is there until the write is done.
        fell_ns = strike.end_host_ns if strike.how == "kill" else strike.at_host_ns
        if low is not None:
            after_ms.append(max(low - fell_ns, 0) / 1e6)
        if low is None or low - fell_ns > LOW_WITHIN_NS:
            long = "for good" if low is None else f"for {(low - fell_ns) / 1e6:.0f} ms"
            bad.append(f"the reward line stayed high {long} after {strike}")
    return after_ms, bad


def rewards(entries: Sequence[Entry], changes: Sequence[tuple[int, int]]) -> list[str]:
    """Check that no reward was given twice: one answer to a request at most, and no more pulses than requests."""
    asked = [d.request for d in _all(entries, OutputRequest) if d.what == "reward"]
    answers = Counter(d.request for d in _all(entries, OutputDone))
    out = [f"reward {name} was answered {n} times" for name, n in sorted(answers.items()) if n > 1]
    out += [f"reward {name} was asked for {n} times" for name, n in sorted(Counter(asked).items()) if n > 1]
    pulses = sum(level for level, _ in changes)
    if pulses > len(asked):
        out.append(f"the line was high {pulses} times for {len(asked)} rewards that were asked for")
    return out


def model_back(entries: Sequence[Entry], notes: Notes, strikes: Sequence[Struck]) -> tuple[list[float], list[str]]:
    """Return the time from each kill of the model server to the first entry of the log that the next one took, s."""
    starts = sorted(
        (e.document.start_host_ns, e.envelope.process)
        for e in entries
        if isinstance(e.document, ProcessStarted) and e.document.name == "model"
    )
    took, bad = [], []
    for strike in strikes:
        if strike.victim != "model" or strike.how != "kill":
            continue
        first = next((notes.first_taken_host_ns.get(p) for t, p in starts if t > strike.at_host_ns), None)
        if first is None:
            continue  # the next one was struck before it had taken anything, or the session had ended
        took.append((first - strike.at_host_ns) * 1e-9)
        if first - strike.at_host_ns > MODEL_BACK_NS:
            bad.append(f"the model server took its first document {took[-1]:.1f} s after {strike}")
    return took, bad
