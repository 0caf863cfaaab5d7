"""Rewards that a limit refuses: said at once, then together, none forgotten."""

from rig.config.outputs import Reward
from rig.messages import Fault, OutputDone
from rig.outputs.refusals import Refusals
from tests.test_outputs import MS, REWARD, Desk, S, ask


def test_the_first_is_said_at_once_and_the_others_once_a_minute_with_their_number() -> None:
    refusals = Refusals()
    said: list[tuple[int, Fault]] = []
    for k in range(31):  # one in 10 s, for five minutes
        refusals.add("max_per_minute_s", f"trial {k}", k * 10 * S)
        said += [(k, f) for f in refusals.due(k * 10 * S)]
    assert [k for k, _ in said] == [0, 6, 12, 18, 24, 30]
    assert said[1][1].detail == "6 more by max_per_minute_s, 7 in all; the last: trial 6"
    assert said[1][1].since_host_ns == 10 * S
    assert refusals.due(301 * S, everything=True) == []


def test_limits_are_told_apart_and_the_end_forgets_none() -> None:
    refusals = Refusals()
    refusals.add("a", "first a", 0)
    refusals.add("b", "first b", 1 * S)
    assert [f.detail for f in refusals.due(1 * S)] == ["first a", "first b"]
    refusals.add("a", "second a", 2 * S)
    assert refusals.due(3 * S) == []
    (rest,) = refusals.due(3 * S, everything=True)
    assert (rest.detail, rest.since_host_ns) == ("one more; the last: second a", 2 * S)
    assert refusals.due(200 * S, everything=True) == []


def test_a_session_over_its_limit_has_a_few_faults_and_an_answer_for_each_request() -> None:
    """As a reviewer found it: 16 near-identical faults, one for each trial."""
    desk = Desk(Reward(**REWARD.model_dump() | {"max_session_ml": 1.0})).start()
    for k in range(26):
        desk.take(ask(f"trial-{k}-reward"))
        desk.run(1500)
    desk.service.close()
    refused = [d for d in desk.wire.sent if isinstance(d, OutputDone) and not d.done]
    faults = [d for d in desk.wire.sent if isinstance(d, Fault)]
    assert len(desk.done) == 26
    assert len(refused) == 16
    assert all("max_per_minute_s" in d.reason for d in refused)
    assert [f.what for f in faults] == ["reward refused"] * 2
    assert "15 more by max_per_minute_s, 16 in all" in faults[1].detail
    assert faults[0].since_host_ns is not None
    assert faults[1].since_host_ns is not None
    assert abs(faults[1].since_host_ns - faults[0].since_host_ns - 1500 * MS) < 10 * MS
