"""What was on the screen beside what was planned: each presentation the planned stimulus, with its prepared frame.

Part of `verify`. Only the newest proposals are kept: nothing older is shown.
"""

from collections import OrderedDict

from rig.messages import Presented, Proposal, StimulusPrepared
from rig.replay.records import Record
from rig.replay.verdict import Verdict

KEPT = 16  # proposals; a slot that is shown again is of the newest one or two


class ScreenCheck:
    """Follows proposals, prepared frames and presentations."""

    def __init__(self, verdict: Verdict) -> None:
        """Put findings into `verdict`."""
        self._verdict = verdict
        self._plans: OrderedDict[int, tuple[str, ...]] = OrderedDict()  # proposal -> stimulus of each slot
        self._prepared: dict[int, set[tuple[str, str]]] = {}  # proposal -> (stimulus, sha256)

    def take(self, record: Record) -> None:
        """Take the next record."""
        if record.kind not in ("proposal", "stimulus_prepared", "presented"):
            return
        document = record.entry.document
        if isinstance(document, Proposal):
            stimuli = document.stimuli
            plan = tuple(stimuli[s.stimulus].id if s.stimulus < len(stimuli) else "" for s in document.plan)
            self._plans[document.proposal] = plan
            while len(self._plans) > KEPT:
                old, _ = self._plans.popitem(last=False)
                self._prepared.pop(old, None)
        elif isinstance(document, StimulusPrepared):
            key = document.stimulus_id, document.frame_sha256
            self._prepared.setdefault(document.proposal, set()).add(key)
        elif isinstance(document, Presented):
            self._presented(document)

    def _presented(self, shown: Presented) -> None:
        plan, where = self._plans.get(shown.proposal), f"presentation {shown.presentation}"
        prepared = self._prepared.get(shown.proposal, set())
        if plan is None or shown.slot >= len(plan):
            self._verdict.different.append(f"{where}: its proposal is not in the journal")
        elif shown.slot >= 0 and plan[shown.slot] != shown.stimulus_id:
            self._verdict.different.append(f"{where} did not show the stimulus that was planned")
        elif (shown.stimulus_id, shown.frame_sha256) not in prepared:
            self._verdict.different.append(f"{where} did not show the frame that was prepared")
        else:
            self._verdict.identical["presented as planned"] += 1

    def finish(self, closed: bool) -> None:
        """Nothing is owed at the end."""
