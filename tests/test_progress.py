"""The terminal's picture of a session: folded from the log, right at every moment."""

from typing import TypeVar

import numpy as np
from rich.console import Console

from rig.config.reading import parse
from rig.messages import (
    BehaviourBlock,
    Document,
    Entry,
    Envelope,
    Fault,
    ModelUpdated,
    OutputDone,
    PhaseEnded,
    Presented,
    Proposal,
    Response,
    StopRequested,
    Tick,
    TrialIntent,
)
from rig.progress import Progress, expected_s, planned
from tests.synthetic_session import Synthetic

T = TypeVar("T")
CONFIG = """
sources: [{type: openephys}]
responses: {units: ["E01#0"]}
presentation: {on_s: 0.1, off_s: 0.1, images_per_trial: 10, inter_trial_s: 0.3}
phases:
- {agent: present, count: 8, repeats: 3, blanks: 2}
- {agent: evolve, unit: "E01#0", preset: invivo, generations: 4, references: 6, reshows: 2, blanks: 2}
"""


def text(progress: Progress) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(progress.render())
    return capture.get()


def test_the_plan_is_known_before_the_session() -> None:
    config = parse(CONFIG)
    # the first generation has nothing to show again
    assert planned(config) == 3 * 10 + 4 * 50 - 2
    assert expected_s(config, 100) == 100 * 0.2 + 10 * 0.3


def test_progress_counts_what_the_log_holds() -> None:
    session = Synthetic(kind="evolve", generations=3)
    entries = list(session.entries())
    progress = Progress(parse(CONFIG))
    for entry in entries:
        progress.apply(entry)
    kinds = [type(e.document).__name__ for e in entries]
    picture = text(progress)
    assert f"{kinds.count('Presented')} of 228" in picture
    assert f"of {kinds.count('Response')} responses usable" in picture
    faults = {e.document.what for e in entries if isinstance(e.document, Fault)}
    assert all(what in picture for what in faults)
    assert f"{kinds.count('Presented')} of 228 shown" in progress.line()


def test_what_is_shown_on_top_of_the_plan_is_told() -> None:
    log = Log()
    planned = int(log.row("presentations").split(",")[0].split(" of ")[1])
    for number in range(planned + 3):
        log.shown(number, (number + 1) * S)
    assert log.row("presentations").startswith(f"{planned} of {planned} and 3 more,")


def test_fallback_images_come_on_top_and_leave_the_time_as_it_was() -> None:
    log = Log()
    log.shown(0, S)
    before, left = log.row("presentations"), log.row("time left")
    fallback = documents(Presented)[0].model_copy(update={"proposal": 0, "slot": -1})
    for number in (1, 2):
        log.at(2 * S, fallback.model_copy(update={"presentation": number}))
    assert before.startswith("1 of ")
    assert " and 2 more," in log.row("presentations")
    assert log.row("time left") == left


def test_the_line_says_above_baseline_only_where_one_is_subtracted() -> None:
    assert "spikes/s above baseline: " in Log().progress.line()
    none = GATED.replace('"E04#0"]', '"E04#0"], baseline: {kind: none}')
    assert "; spikes/s: " in Log(none).progress.line()


def test_a_model_is_not_told_in_spikes_per_second() -> None:
    log = Log()
    log.at(S, documents(Proposal)[0].model_copy(update={"proposal": 0, "agent": "inception", "generation": 4}))
    log.shown(0, 2 * S)
    report = {"heldout_r": 0.5, "images_seen": 50.0}
    log.at(3 * S, ModelUpdated(phase=0, generation=4, model_version="v", report=report))
    assert log.row("result") == "held-out r 0.50 after 50 presentations"
    assert log.progress.line().startswith("inception block 5: 1 of ")
    assert "spikes/s" not in log.progress.line()


def test_the_end_of_a_phase_is_not_the_end_of_the_session() -> None:
    progress = Progress(parse(CONFIG))
    for seq, last in ((1, False), (2, True)):
        envelope = Envelope(seq=seq, receipt_host_ns=0, sender="model", process="m", sender_seq=seq)
        progress.apply(Entry(envelope, PhaseEnded(phase=seq - 1, reason=f"reason {seq}", last=last)))
        assert ("reason" in text(progress)) == last


# --- what goes wrong, while it does -----------------------------------------------------------------------------------

MS = 1_000_000
S = 1_000_000_000
GATED = """
sources: [{type: openephys}, {type: lsl_behaviour, name: eye, stream: e}]
responses: {units: ["E01#0", "E02#0", "E03#0", "E04#0"]}
presentation: {on_s: 0.1, off_s: 0.1, images_per_trial: 2, inter_trial_s: 0.5}
phases: [{agent: present, count: 8}]
gates: {fixation: {source: eye, center_deg: [6, 0], radius_deg: 2}}
outputs: [{type: print, name: valve}]
reward: {output: valve, ul_per_s: 40, max_session_ml: 20}
"""


class Log:
    """A log written by hand: documents at their times."""

    def __init__(self, config: str = GATED) -> None:
        self.progress = Progress(parse(config))
        self._seq = 0

    def at(self, host_ns: int, document: Document) -> None:
        self._seq += 1
        envelope = Envelope(seq=self._seq, receipt_host_ns=host_ns, sender="x", process="x", sender_seq=self._seq)
        self.progress.apply(Entry(envelope, document))

    def gaze(self, host_ns: int, x: float) -> None:
        block = BehaviourBlock(
            source="eye", run=0, channels=("gaze_x_deg", "gaze_y_deg"), sample=np.arange(3),
            arrival_host_ns=np.full(3, host_ns), values=np.array([[x, -0.2]] * 3),
        )  # fmt: skip
        self.at(host_ns, block)

    def shown(self, number: int, at_ns: int) -> None:
        self.at(at_ns, documents(Presented)[0].model_copy(update={
            "presentation": number, "proposal": 0, "slot": number, "offset_flip_host_ns": at_ns,
        }))  # fmt: skip

    def row(self, name: str) -> str:
        found = [line for line in text(self.progress).splitlines() if line.startswith(f"{name}  ")]
        return found[0][len(name) :].strip() if found else ""


def documents(kind: type[T]) -> list[T]:
    return [e.document for e in Synthetic(generations=1).entries() if isinstance(e.document, kind)]


def test_a_wait_for_fixation_is_told_while_it_lasts() -> None:
    log = Log()
    proposal = documents(Proposal)[0].model_copy(update={"proposal": 0})
    assert len(proposal.plan) > 4
    log.at(S, proposal)
    log.at(S, TrialIntent(trial=0, presentations=(0, 1), proposals=(0, 0), slots=(0, 1), start_host_ns=S))
    log.gaze(9 * S, 0.1)
    assert log.row("fixation") == "", "a trial is being shown"
    log.shown(0, 9 * S)
    log.shown(1, 10 * S)
    log.gaze(12 * S, 0.1)
    assert log.row("fixation") == "", "1.5 s after the trials' own pause are no wait yet"
    for k in range(10):
        log.gaze(46 * S + k * 150 * MS, 0.1)
    log.at(47 * S + 500 * MS, Tick(tick_host_ns=47 * S))
    assert log.row("fixation") == "waiting for fixation 37 s; gaze at (0.1, -0.2) deg, window (6, 0) r 2"
    assert "waiting for fixation 37 s" in log.progress.line()
    log.at(52 * S, Tick(tick_host_ns=52 * S))
    assert "waiting for fixation 42 s; gaze not seen" in log.row("fixation")
    log.at(53 * S, TrialIntent(trial=1, presentations=(2, 3), proposals=(0, 0), slots=(2, 3), start_host_ns=53 * S))
    log.at(60 * S, Tick(tick_host_ns=60 * S))
    assert log.row("fixation") == ""
    log.at(61 * S, Fault(what="rig restarted", detail="", done="", presentations=(2, 3)))
    assert log.row("fixation").startswith("waiting for fixation")
    log.at(62 * S, StopRequested(reason="stopped"))
    assert log.row("fixation") == ""


def test_without_anything_planned_or_without_a_gate_nobody_waits_for_fixation() -> None:
    log = Log()
    log.gaze(100 * S, 0.1)
    assert log.row("fixation") == ""
    ungated = Log(GATED.replace("gates: {fixation: {source: eye, center_deg: [6, 0], radius_deg: 2}}", ""))
    ungated.at(S, documents(Proposal)[0])
    ungated.at(100 * S, Tick(tick_host_ns=100 * S))
    assert ungated.row("fixation") == ""


def test_a_wait_for_the_model_server_is_told_and_images_that_fill_a_trial_are_none() -> None:
    log = Log()
    log.at(S, documents(Proposal)[0].model_copy(update={"proposal": 0}))
    log.at(2 * S, TrialIntent(trial=0, presentations=(0, 1), proposals=(0, 0), slots=(-1, 3), start_host_ns=2 * S))
    log.shown(0, 3 * S)
    log.shown(1, 4 * S)
    assert log.row("model") == ""
    log.at(5 * S, TrialIntent(trial=1, presentations=(2, 3), proposals=(0, 0), slots=(-1, -1), start_host_ns=5 * S))
    shown = documents(Presented)[0].model_copy(update={"proposal": 0, "slot": -1, "onset_flip_host_ns": 5 * S})
    log.at(6 * S, shown.model_copy(update={"presentation": 2}))
    log.at(7 * S, shown.model_copy(update={"presentation": 3}))
    log.at(40 * S, Tick(tick_host_ns=40 * S))
    assert log.row("model") == "waiting for the model server for 35 s: 2 fallback images shown"
    assert "waiting for the model server for 35 s" in log.progress.line()
    log.at(41 * S, Fault(what="fallback over", detail="", done=""))
    assert log.row("model").endswith("; no more of them: the screen is grey")
    log.at(42 * S, documents(Proposal)[0].model_copy(update={"proposal": 1}))
    assert log.row("model") == ""


def test_rewards_are_told_with_their_volume_and_limit() -> None:
    log = Log()
    assert log.row("reward") == "0, 0.000 mL of 20 mL"
    for k in range(36):
        done = OutputDone(request=f"r{k}", output="valve", what="reward", done=True, volume_ul=4.0,
                          session_volume_ul=4.0 * (k + 1))  # fmt: skip
        log.at(k * S, done)
    log.at(40 * S, OutputDone(request="m", output="valve", what="marker", done=True))
    assert log.row("reward") == "36, 0.144 mL of 20 mL"
    refused = OutputDone(request="r", output="valve", what="reward", done=False, reason="refused: limit",
                         session_volume_ul=144.0)  # fmt: skip
    log.at(41 * S, refused)
    assert log.row("reward") == "36, 0.144 mL of 20 mL; 1 not as asked"


def test_why_responses_are_unusable_and_over_what_a_mean_is() -> None:
    log = Log()
    (good, *_) = [r for r in documents(Response) if r.usable]
    bad = good.model_copy(update={"usable": False})
    reasons = ["gaze left after 0.03 s"] * 2 + ["ran"] * 1 + ["gaze left after 0.07 s"] * 3 + ["no data"] * 2
    log.at(0, good)
    assert log.row("not usable") == ""
    for reason in reasons:
        log.at(0, bad.model_copy(update={"reason": reason}))
    assert log.row("not usable") == "5 x gaze left after 0.07 s; 2 x no data; 1 for other reasons"
    log.at(0, documents(Proposal)[0].model_copy(update={"agent": "present", "proposal": 7}))
    log.at(0, documents(Presented)[0].model_copy(update={"proposal": 7}))
    report = {"mean": 5.0, "best": 9.0, "blank": 0.5}
    log.at(0, documents(ModelUpdated)[0].model_copy(update={"report": report}))
    assert log.row("response, spikes/s") == "mean over 4 units: all images 5.0, best image 9.0, blank 0.5"


def test_the_unit_of_a_response_is_known_before_the_first_one() -> None:
    scope = GATED.replace("{type: openephys}", "{type: traces_zmq, port: 5570}")
    assert "response, events/s (dF/F)" in text(Log(scope).progress)
    dff = scope.replace("port: 5570", "port: 5570, calcium: {measure: dff}")
    assert "response, dF/F" in text(Log(dff).progress)
    assert "response, spikes/s" in text(Log().progress)
