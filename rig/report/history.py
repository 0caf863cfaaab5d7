"""What interrupted a session: deaths, hangs, resumes, holes in data and journal, images not recorded or shown again.

Read from session.h5 for the report's section "Interruptions and repeats" and for the marks on the evolution curve.
"""

import re
from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from rig.report.data import F64, I64, FaultRow, Session
from rig.view.announced import MAYBE_SHOWN, NEVER_SHOWN
from rig.view.columns import NO_TIME

RESUMED = "session resumed"
HOLE = "journal entries missing"
# Faults that interrupt a session, besides pauses and resumes.
INTERRUPT = frozenset(
    {
        "process restarted", "receiver died", "data gap", "acquisition restarted", "computer restarted",
        "the supervisor is gone", "journal damaged", HOLE, "model server away", "late proposal", "view given up",
        "disk nearly full", "journal full", *MAYBE_SHOWN, *NEVER_SHOWN,
    }
)  # fmt: skip
MARKED = frozenset({RESUMED, "process restarted", "rig restarted", "computer restarted"})
WORTH_S = 2.0  # a screen without images for less than this, besides the time between trials, is not told


@dataclass(frozen=True)
class Interruption:
    """Something that interrupted the session; times in s since its start, across reboots by UTC."""

    at_s: float
    what: str
    detail: str
    done: str
    dark_s: float | None  # how long no image was shown around it, None where that is no longer than usual


@dataclass(frozen=True)
class Unrecorded:
    """An image that may have been seen and has no record of its flips."""

    presentation: int
    trial: int
    stimulus_id: str
    reason: str
    again: tuple[int, ...]  # presentations in which its slot was shown later


@dataclass(frozen=True)
class Repeats:
    """Slots of proposals that were shown more than once, and what came of them."""

    presentations: int  # beyond the first of their slot
    slots: int
    usable: int  # slots that have a usable response in the end
    missing: int  # slots that have none, shown again or not: told to the agent as missing


class History:
    """The course of one session."""

    def __init__(self, session: Session) -> None:
        """Read it from an open session."""
        self._session = s = session
        names = s.texts("processes/name")
        rows = [k for k, name in enumerate(names) if name == "recorder"]
        self._starts = {
            c: s.column(f"processes/{c}")[rows]
            for c in ("seq", "start_host_ns", "start_utc_ns", "previous_seq", "previous_receipt_host_ns")
        }
        ahead = self._starts["start_utc_ns"] - self._starts["start_host_ns"]
        # A journal is never without the start of a recorder, a damaged one may be.
        self._since: list[int] = (self._starts["previous_seq"] + 1).tolist() if len(rows) else [0]
        self._ahead: list[int] = ahead.tolist() if len(rows) else [s.start_utc_ns - s.start_host_ns]
        seq = s.column("presentations/seq")
        self._onset_s = self._elapsed(seq, s.onset_flip_host_ns)
        self._offset_s = self._elapsed(seq, s.offset_flip_host_ns)

    def _boot(self, seq: int) -> int:
        return max(bisect_right(self._since, seq) - 1, 0)

    def _elapsed_s(self, seq: int, host_ns: int) -> float:
        if self._session.start_utc_ns == NO_TIME:
            return float("nan")
        return (host_ns + self._ahead[self._boot(seq)] - self._session.start_utc_ns) * 1e-9

    def _elapsed(self, seq: I64, host_ns: I64) -> F64:
        pairs = zip(seq.tolist(), host_ns.tolist(), strict=True)
        return np.array([self._elapsed_s(at, host) for at, host in pairs], dtype=np.float64)

    # --- times --------------------------------------------------------------------------------------------------------

    @property
    def on_screen_s(self) -> float:
        """For how long an image was on the screen."""
        return float(np.sum(self._offset_s - self._onset_s))

    @property
    def span_s(self) -> float:
        """From the first image to the last."""
        return float(np.max(self._offset_s) - np.min(self._onset_s)) if len(self._onset_s) else 0.0

    def _dark_s(self, at_s: float) -> float | None:
        before, after = self._offset_s[self._offset_s <= at_s], self._onset_s[self._onset_s >= at_s]
        if not len(before) or not len(after):
            return None
        usual = float(self._session.config.get("presentation", {}).get("inter_trial_s", 0.3))
        dark = float(after.min() - before.max())
        return dark if dark > usual + WORTH_S else None

    # --- what happened ------------------------------------------------------------------------------------------------

    @cached_property
    def interruptions(self) -> list[Interruption]:
        """Everything that interrupted the session, in order."""
        s = self._session
        found = [
            self._row(f.seq, f.receipt_host_ns, f.what, f.detail, f.done) for f in s.faults if f.what in INTERRUPT
        ]
        pauses = zip(
            s.column("pauses/seq").tolist(), s.column("pauses/receipt_host_ns").tolist(),
            s.column("pauses/paused").tolist(), s.texts("pauses/reason"), strict=True,
        )  # fmt: skip
        for seq, receipt, paused, reason in pauses:
            done = "nothing more is shown until that is over" if paused else "images go on"
            found.append(self._row(seq, receipt, "session paused" if paused else "pause over", reason, done))
        found = sorted([*found, *self._resumes()], key=lambda one: one.at_s)
        # Of one dark screen the first cause tells the length.
        return [
            replace(one, dark_s=None) if k and one.dark_s == found[k - 1].dark_s else one for k, one in enumerate(found)
        ]

    def _row(self, seq: int, receipt_ns: int, what: str, detail: str, done: str) -> Interruption:
        at_s = self._elapsed_s(seq, receipt_ns)
        return Interruption(at_s, what, detail, done, self._dark_s(at_s))

    def _resumes(self) -> list[Interruption]:
        """Return the starts of a recorder that no supervisor had restarted: `stimloop run --resume`."""
        s, starts = self._session, self._starts
        stops = dict(zip(s.column("stops/seq").tolist(), s.texts("stops/reason"), strict=True))
        found = []
        for k in range(1, len(starts["seq"])):
            seq, until = self._since[k], self._since[k + 1] if k + 1 < len(self._since) else None
            if any(_restarted_recorder(f) and f.seq > seq and (until is None or f.seq < until) for f in s.faults):
                continue
            at_s = self._elapsed_s(seq, int(starts["start_host_ns"][k]))
            away_s = at_s - self._elapsed_s(seq - 1, int(starts["previous_receipt_host_ns"][k]))
            ended = [reason for at, reason in stops.items() if self._since[k - 1] < at < seq]
            how = f"it had ended: {ended[-1]}" if ended else "its journal had not been closed: killed, or power lost"
            minutes, seconds = divmod(round(away_s), 60)
            done = f"resumed {minutes}:{seconds:02d} min after its last entry"
            found.append(Interruption(at_s, RESUMED, how, done, self._dark_s(at_s)))
        return found

    @property
    def lost_entries(self) -> int:
        """How many entries of the journal cannot be read."""
        ends = (re.findall(r"\d+", f.detail) for f in self._session.faults if f.what == HOLE and f.sender == "view")
        return sum(int(to) - int(after) - 1 for after, to in ends)

    def marks(self, phase: int) -> list[float]:
        """Return where on the axis of generations (from 1) of a phase a restart or resume fell."""
        s = self._session
        here = np.flatnonzero((s.phase == phase) & (s.generation >= 0))
        out = []
        for at_s in (one.at_s for one in self.interruptions if one.what in MARKED):
            later = here[self._onset_s[here] >= at_s]
            if not len(later) or (self._onset_s[here] >= at_s).all():
                continue
            generation = s.generation[later[0]]
            same = here[s.generation[here] == generation]
            out.append(float(generation + 0.5 + np.mean(self._onset_s[same] < at_s)))
        return sorted(set(out))

    # --- images -------------------------------------------------------------------------------------------------------

    @cached_property
    def unrecorded(self) -> list[Unrecorded]:
        """Images that were announced, and may have been on the screen when the process that showed them died."""
        s = self._session
        table = {c: s.column(f"unrecorded/{c}").tolist() for c in ("presentation", "trial", "proposal", "slot")}
        told = zip(*table.values(), s.texts("unrecorded/stimulus_id"), s.texts("unrecorded/reason"), strict=True)
        found = [Unrecorded(p, t, name, why, self._again(p, q, slot)) for p, t, q, slot, name, why in told]
        if not s.closed_in_order:  # nobody has said what became of the last ones
            named = {p for f in s.faults if f.what in NEVER_SHOWN for p in f.presentations}
            known = {*s.presentation.tolist(), *table["presentation"], *named}
            plan = [s.column(f"trial_plan/{c}").tolist() for c in ("presentation", "trial", "proposal", "slot")]
            why = "shown perhaps, not recorded: the log ends before"
            found += [
                Unrecorded(p, t, "", why, self._again(p, q, slot))
                for p, t, q, slot in zip(*plan, strict=True)
                if p not in known
            ]
        return found

    def _again(self, presentation: int, proposal: int, slot: int) -> tuple[int, ...]:
        s = self._session
        same = (s.proposal == proposal) & (s.slot == slot) & (s.presentation > presentation) & (slot >= 0)
        return tuple(s.presentation[same].tolist())

    @cached_property
    def repeats(self) -> Repeats:
        """What was shown again, and with what result."""
        s = self._session
        of_slot: dict[tuple[int, int], list[bool]] = {}
        order = np.argsort(s.presentation, kind="stable")
        for k in order[(s.slot[order] >= 0) & s.answered[order]].tolist():
            of_slot.setdefault((int(s.proposal[k]), int(s.slot[k])), []).append(bool(s.usable[k]))
        again = [shown for shown in of_slot.values() if len(shown) > 1]
        missing = sum(not any(shown) for shown in of_slot.values())
        return Repeats(sum(len(a) - 1 for a in again), len(again), sum(any(a) for a in again), missing)


def _restarted_recorder(fault: FaultRow) -> bool:
    return fault.what == "process restarted" and fault.detail.startswith("recorder ")
