"""Presentations that a trial announced, and what becomes of them: recorded, never shown, or nobody knows.

Pure; part of the view's fold (`rig.view.fold`). What was on the screen when its process died has no record of its
flips: it may have been seen, and none are made up for it.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from rig.messages import Fault, Proposal, Role, TrialIntent

# Faults that name announced presentations: of the first ones no image was on the screen, of the others nobody knows.
NEVER_SHOWN = frozenset({"trial cut short", "window lost"})
MAYBE_SHOWN = frozenset({"rig restarted", "announced and not recorded"})
UNRECORDED = "shown perhaps, not recorded: the rig died"


class _Planned(NamedTuple):
    trial: int
    position: int
    proposal: int
    slot: int
    start_host_ns: int  # of the trial


class Announced:
    """The presentations that nothing has accounted for yet."""

    def __init__(self) -> None:
        """Start without any."""
        self._open: dict[int, _Planned] = {}
        self._plans: dict[int, tuple[tuple[str, Role], ...]] = {}  # stimulus and role of each slot of a proposal

    def proposed(self, proposal: Proposal) -> None:
        """Take note of what the slots of a proposal hold."""
        ids = [stimulus.id for stimulus in proposal.stimuli]
        self._plans[proposal.proposal] = tuple(
            (ids[slot.stimulus] if slot.stimulus < len(ids) else "", slot.role) for slot in proposal.plan
        )

    def trial(self, intent: TrialIntent) -> None:
        """Take note of what a trial is to show."""
        planned = zip(intent.presentations, intent.proposals, intent.slots, strict=False)
        for k, (presentation, proposal, slot) in enumerate(planned):
            self._open[presentation] = _Planned(intent.trial, k, proposal, slot, intent.start_host_ns)

    def recorded(self, presentation: int) -> None:
        """Take note that the record of a presentation has come."""
        self._open.pop(presentation, None)

    def lost(self, fault: Fault) -> Iterator[dict[str, Any]]:
        """Yield rows of `unrecorded` (without seq, phase and generation) for what a fault says is lost."""
        if fault.what not in NEVER_SHOWN | MAYBE_SHOWN:
            return
        for presentation in fault.presentations:
            planned = self._open.pop(presentation, None)
            if planned is None or fault.what in NEVER_SHOWN:
                continue
            plan = self._plans.get(planned.proposal, ())
            name, role = plan[planned.slot] if 0 <= planned.slot < len(plan) else ("", "fallback")
            yield {
                "presentation": presentation,
                "trial": planned.trial,
                "position_in_trial": planned.position,
                "proposal": planned.proposal,
                "slot": planned.slot,
                "role": role,
                "stimulus_id": name,
                "trial_start_host_ns": planned.start_host_ns,
                "complete": False,
                "reason": UNRECORDED,
            }
