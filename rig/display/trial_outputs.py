"""What the rig asks for around its trials: a fixation before one, then markers, trial labels and the reward.

Part of `rig.display.loop`, called between trials only. It asks; the outputs process executes and keeps the limits. The
gaze comes through the log like everything else and is judged by `rig.responses.fixation`.
"""

from collections.abc import Sequence
from typing import NamedTuple

from rig.clock import Clock
from rig.config.outputs import LslMarkerOutput, OpenEphysMessages, PrintOutput
from rig.config.session import Config
from rig.display.show import Sender
from rig.display.trial import TrialPlan
from rig.messages import Document, Fault, OutputRequest, Presented
from rig.responses.fixation import GazeWindow
from rig.responses.gaze_lately import GazeLately

GAZE_WANTS = frozenset({"behaviour_block", "clock_sample", "continuity"})  # what `take` needs with a fixation gate
LONG_WAIT_NS = 30_000_000_000  # a person should know by then that nothing is shown, and why
JUDGE_NS = 1_000_000_000  # a reward that comes later than this after its trial teaches the wrong thing


class Judged(NamedTuple):
    """A trial whose fixation is to be judged: its gaze data are still on their way."""

    trial: int
    start_ns: int
    end_ns: int


class TrialOutputs:
    """Asks for what the config wants around each trial.

    Parameters
    ----------
    config
        Its parts `outputs`, `reward` and `gates` are used.
    sender
        The bus.
    clock
        Time.
    """

    def __init__(self, config: Config, sender: Sender, clock: Clock) -> None:
        fixation = config.gates.fixation
        self._sender = sender
        self._clock = clock
        self._reward = config.reward
        self._gaze = None if fixation is None else GazeWindow(fixation)
        self._lately = None if fixation is None else GazeLately(fixation)
        self._waits_since_ns: int | None = None
        self._wait_said = False
        self._acquire_ns = 0 if fixation is None else int(fixation.acquire_s * 1e9)
        said = [o.name for o in config.outputs if isinstance(o, PrintOutput) and o.onset]
        self._markers = [o.name for o in config.outputs if isinstance(o, LslMarkerOutput)]
        self._onsets = self._markers + said
        self._labels = [o.name for o in config.outputs if isinstance(o, OpenEphysMessages)]
        self._judged: list[Judged] = []

    @property
    def gated(self) -> bool:
        """Whether a trial waits for a fixation."""
        return self._gaze is not None

    def take(self, document: Document) -> None:
        """Take a document of the gaze's source; others are ignored."""
        if self._gaze is not None and self._lately is not None:
            self._gaze.take(document)
            self._lately.take(document)

    def acquired(self) -> bool:
        """Return whether the gaze has been inside its window for `acquire_s`; True without a fixation gate.

        Asked once a frame while a trial waits; a wait of 30 s becomes one Fault.
        """
        if self._gaze is None:
            return True
        now = self._clock.now_ns()
        since = self._gaze.held_since(now)
        if since is not None and now - since >= self._acquire_ns:
            self._waits_since_ns, self._wait_said = None, False
            return True
        if self._waits_since_ns is None:
            self._waits_since_ns = now
        if now - self._waits_since_ns >= LONG_WAIT_NS and not self._wait_said and self._lately is not None:
            self._wait_said = True
            detail = f"the next trial waits for fixation for 30 s now; in the last 2 s: {self._lately.words(now)}"
            done = "nothing is shown; waiting. See gates.fixation, the tracker's calibration, and the fixation point"
            self._sender.send(Fault(what="no fixation", detail=detail, done=done, since_host_ns=self._waits_since_ns))
        return False

    def trial_begins(self, plan: TrialPlan, start_ns: int) -> None:
        """Name the trial that is about to be shown."""
        first, last = plan.presentations[0], plan.presentations[-1]
        text = f"trial={plan.trial} presentations={first}-{last}"
        for name in self._labels:
            self._ask(f"trial-{plan.trial}-{name}", name, "message", text, plan.trial, start_ns)
        for name in self._markers:
            self._ask(f"trial-{plan.trial}-{name}", name, "marker", text, plan.trial, start_ns)

    def trial_over(self, plan: TrialPlan, shown: Sequence[Presented]) -> None:
        """Mark the onsets of what was shown, and ask for the reward of a whole trial or begin to judge it."""
        for presented in shown:
            text = f"onset presentation={presented.presentation} stimulus={presented.stimulus_id}"
            for name in self._onsets:
                identity = f"onset-{presented.presentation}-{name}"
                onset_ns = presented.onset_flip_host_ns
                self._ask(identity, name, "marker", text, plan.trial, onset_ns, presented.presentation)
        # A trial that the program cut short earns nothing; one with a refused frame does: the animal did its part.
        if self._reward is None or len(shown) < len(plan.images):
            return
        if self._reward.after == "trial":
            self._give(plan.trial)
        else:
            start_ns, end_ns = shown[0].onset_flip_host_ns, shown[-1].offset_flip_host_ns
            self._judged.append(Judged(plan.trial, start_ns, end_ns))

    def step(self) -> None:
        """Judge what can be judged by now; called once a frame between trials."""
        if self._gaze is None or not self._judged:
            return
        trial, start_ns, end_ns = self._judged[0]
        verdict, _ = self._gaze.verdict(start_ns, end_ns)
        late = self._clock.now_ns() - end_ns > JUDGE_NS
        if verdict == "open" and not late:
            return
        self._judged.pop(0)
        if verdict == "held" and not late:
            self._give(trial)
        elif verdict != "broken":
            why = "its gaze was not seen" if verdict == "missing" else "its gaze data came more than 1 s late"
            detail = f"trial {trial}: {why}, so that nobody knows whether the fixation was held"
            self._sender.send(Fault(what="reward withheld", detail=detail, done="no reward for this trial"))

    def _give(self, trial: int) -> None:
        if self._reward is not None:
            request = OutputRequest(
                request=f"trial-{trial}-reward",
                output=self._reward.output,
                what="reward",
                duration_s=self._reward.pulse_s,
                trial=trial,
            )
            self._sender.send(request)

    def _ask(
        self, identity: str, output: str, what: str, text: str, trial: int, at_ns: int, presentation: int | None = None
    ) -> None:
        self._sender.send(
            OutputRequest(
                request=identity,
                output=output,
                what="message" if what == "message" else "marker",
                text=text,
                event_host_ns=at_ns,
                trial=trial,
                presentation=presentation,
            )
        )
