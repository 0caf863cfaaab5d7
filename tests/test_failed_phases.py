"""A session in which an agent failed says so where it ends, also when its recorder was restarted in between."""

from pathlib import Path

from rig.failed_phases import FailedPhases
from rig.messages import AGENT_FAILED, Fault, SessionStop
from rig.recording.journal import read_all
from tests.test_bus import Bench, fault

DETAIL = "phase 1, evolve, at entry 34 (response): IndexError: no such unit"


def test_the_words_by_hand() -> None:
    failed = FailedPhases()
    failed.take(fault(1))
    assert failed.ended("complete") == "complete"
    failed.take(Fault(what=AGENT_FAILED, detail=DETAIL, done="the next begins"))
    assert failed.ended("complete") == f"complete; but an agent failed: {DETAIL}"
    failed.take(Fault(what=AGENT_FAILED, detail="phase 2, no agent, at its beginning", done="none"))
    assert failed.ended("complete") == f"complete; but agents failed in 2 phases, first: {DETAIL}"


def test_a_recorder_that_was_restarted_ends_the_log_with_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.recorder.submit(Fault(what=AGENT_FAILED, detail=DETAIL, done="the next begins"))
    bench.turn(turns=3)
    bench.kill()
    Bench(tmp_path).recorder.close("stopped by the supervisor")
    last = read_all(tmp_path / "session.journal")[-1].document
    assert isinstance(last, SessionStop)
    assert last.reason == f"stopped by the supervisor; but an agent failed: {DETAIL}"
