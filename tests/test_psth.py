"""Time courses of responses: bins count what the window counts, and are absent where the data are not complete."""

import numpy as np

from models.agents.builder import build_from_config
from models.server import ModelServer
from rig.config.reading import parse
from rig.encoding import decode, encode
from rig.messages import Gap, Response, SessionStart
from rig.responses.windows import WindowFold
from rig.timing import window_end_s
from tests.test_server import Log
from tests.test_windows import HOST0, RATE, Device, ns

CONFIG = """
sources: [{type: openephys, photodiode_line: null}]
responses:
  units: ["a#0", "b#0"]
  window_s: [0.05, 0.15]
  baseline: {kind: none}
  psth: {window_s: [-0.05, 0.2], bin_s: 0.01}
phases: [{agent: screen, count: 3, repeats: 4, blanks: 1}]
"""
ONSET = 2 * RATE


def device(text: str = CONFIG) -> Device:
    made = Device(WindowFold(parse(text)))
    made.clock(0, 4 * RATE)
    return made


def shown(one: Device, gaps: tuple[Gap, ...] = ()) -> Response:
    rng = np.random.default_rng(0)
    one.advance(RATE)
    one.spikes("a#0", sorted(rng.integers(ONSET - 2000, ONSET + 8000, 300).tolist()))
    one.spikes("b#0", [ONSET + 3 * 300, ONSET + 4 * 300 - 1, ONSET + 4 * 300])  # 30 ms, just before 40 ms, 40 ms
    one.show(0, ONSET)
    one.advance(4 * RATE, gaps)
    return next(d for d in one.out if isinstance(d, Response))


def test_bins_count_what_the_window_counts() -> None:
    response = shown(device())
    assert response.usable, response.reason
    assert response.onset_sample == ONSET, HOST0
    assert response.psth is not None
    assert response.psth.shape == (2, 25)
    assert response.psth[0, 10:20].sum() == response.count[0] > 50
    assert response.psth[1].tolist() == [0] * 8 + [2, 1] + [0] * 15  # a bin begins with its first sample


def test_a_gap_outside_the_window_costs_the_time_course_only() -> None:
    gap = Gap(first_sample=ONSET + 5400, end_sample=ONSET + 5700, messages=1)  # 180 to 190 ms
    response = shown(device(), (gap,))
    assert response.usable, response.reason
    assert response.psth is None


def test_without_the_setting_responses_are_as_before() -> None:
    config = parse(CONFIG.replace("  psth: {window_s: [-0.05, 0.2], bin_s: 0.01}\n", ""))
    assert config.responses.psth is None
    assert window_end_s(config) == 0.15
    assert window_end_s(parse(CONFIG)) == 0.2


def test_a_time_course_survives_the_wire_and_reaches_the_agent() -> None:
    response = shown(device())
    again = decode(encode(response))
    assert isinstance(again, Response)
    assert again.psth is not None
    assert response.psth is not None
    assert np.array_equal(again.psth, response.psth)

    config = parse(CONFIG)
    log = Log()
    log.server = ModelServer(build_from_config(config), 1, 2)
    start = SessionStart(
        simulated=True, session="s", config_yaml="", config=config.model_dump(mode="json"), versions={}, commit=None,
        dirty=None, start_host_ns=ns(0), start_utc_ns=0,
    )  # fmt: skip
    log.put(start)
    work = log.server.work
    assert work is not None
    while not work.step():
        pass
    log.put(log.server.work_done(), "model")
    _, _, tail_from, plan = log.server.state()["current"]
    for slot, (role, name) in enumerate(plan):
        update = {"presentation": slot, "slot": slot, "role": role, "stimulus_id": name}
        log.put(response.model_copy(update=update), "recorder")
    state = log.server.state()
    assert len(state["courses"]) == len(plan) - tail_from > 0  # the tail is told with the next main part
    told = state["agent"]["courses"]
    assert told["number"].sum() == 2 * tail_from  # of both units
    restored = ModelServer(build_from_config(config), 1, 2)
    restored.restore(state)
    assert np.array_equal(restored.state()["agent"]["courses"]["count"], told["count"])
