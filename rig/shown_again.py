"""Which response to a planned presentation counts, and which images are shown again: one rule for rig and model.

An image whose response is not usable is shown again inside the same proposal, so that a killed process or a lost
message changes no decision: the agent is told once, with the response that is final. The rig's planner
(`rig.display.trial`) and the model server's fold (`models.server`) both feed an object of this class with the
journalled Responses, in their order, and so agree without a word, also after a restart. Pure.
"""

from typing import Any, Literal

from rig.messages import Response

Verdict = Literal["final", "again", "known"]


class ShownAgain:
    """Book of the planned presentations that have no final response yet.

    The first usable response to a slot is final. One that is not usable is final where `repeats` others of the same
    slot were not usable before it, or where showing the image again cannot cure it; else the slot is shown again.
    """

    def __init__(self, repeats: int) -> None:
        """Show a slot at most `repeats` times again (the config's presentation.repeats_of_unusable)."""
        self._repeats = repeats
        # proposal -> its slots without a final response -> presentations of it that were not usable
        self._open: dict[int, dict[int, list[int]]] = {}

    def planned(self, proposal: int, slots: int) -> None:
        """Open the `slots` slots of a proposal; once for each proposal, before any response to it."""
        self._open[proposal] = {slot: [] for slot in range(slots)}

    def waits(self, proposal: int) -> bool:
        """Return whether a slot of the proposal has no final response yet."""
        return proposal in self._open

    def take(self, response: Response) -> Verdict:
        """Return what a response means: final, to be shown again, or nothing ("known").

        Nothing follows from a response to a fallback, to a slot that has its final response, from one that was taken
        before, or to a proposal that was never opened.
        """
        slots = self._open.get(response.proposal, {})
        unusable = slots.get(response.slot)
        if unusable is None or response.presentation in unusable:
            return "known"
        if not response.usable and response.curable and len(unusable) < self._repeats:
            unusable.append(response.presentation)
            return "again"
        del slots[response.slot]
        if not slots:
            del self._open[response.proposal]
        return "final"

    def state(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return {str(p): {str(k): list(shown) for k, shown in slots.items()} for p, slots in self._open.items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state."""
        self._open = {int(p): {int(k): list(shown) for k, shown in slots.items()} for p, slots in state.items()}
