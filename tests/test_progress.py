"""The terminal's picture of a session: folded from the log, right at every moment."""

from rich.console import Console

from rig.config import parse
from rig.messages import (
    Entry,
    Envelope,
    Fault,
    PhaseEnded,
)
from rig.progress import Progress, expected_s, planned
from tests.synthetic_session import Synthetic

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
    assert f"{kinds.count('Presented')}/228 shown" in progress.line()


def test_the_end_of_a_phase_is_not_the_end_of_the_session() -> None:
    progress = Progress(parse(CONFIG))
    for seq, last in ((1, False), (2, True)):
        envelope = Envelope(seq=seq, receipt_host_ns=0, sender="model", process="m", sender_seq=seq)
        progress.apply(Entry(envelope, PhaseEnded(phase=seq - 1, reason=f"reason {seq}", last=last)))
        assert ("reason" in text(progress)) == last
