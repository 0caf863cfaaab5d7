"""Baselines: the first responses of a session are subtracted with one common mean, and none is lost by waiting."""

import numpy as np
import pytest

from rig.config.reading import parse
from rig.messages import Fault, Proposal, Slot
from rig.responses.windows import WindowFold
from stimuli.spec import Blank, Stimulus
from tests.test_windows import COUNTS, Device, device

EVERY = 9000  # samples from one onset to the next


def plan(d: Device, slots: int, tail_from: int, number: int = 0) -> None:
    """Let the model propose images."""
    d.take(
        Proposal(
            proposal=number,
            phase=0,
            agent="evolve",
            generation=number,
            model_version="0",
            stimuli=(Stimulus(id="s", spec=Blank()),),
            plan=tuple(Slot(stimulus=0, role="candidate") for _ in range(slots)),
            tail_from=tail_from,
            final=False,
            fallback=(0,),
            frames=np.empty((0, 1, 1, 3), np.uint8),
            latents=np.empty((0, 0), np.float32),
        )
    )


def present(d: Device, first: int, last: int, early: tuple[int, ...] = (), complete: bool = True) -> None:
    """Show presentations with two spikes in the response window, and one in the early window of those in `early`."""
    for k in range(first, last):
        edge = 90_000 + EVERY * k
        d.clock(edge, edge + EVERY)
        d.show(k, edge, complete)
        d.edge(edge)
        d.spikes("a#0", [edge + 100] * (k in early) + [edge + 2000, edge + 3000])
        d.advance(edge + EVERY - 1)


def made_of(d: Device) -> list[int | None]:
    return [r.baseline_n for r in d.responses]


def test_the_first_generation_is_compared_with_one_baseline() -> None:
    d = device(baseline="block")
    plan(d, slots=40, tail_from=34)
    present(d, 0, 9, early=(0, 4))
    assert d.responses == []
    assert d.fold.waiting == 0  # their data are in
    present(d, 9, 10)
    assert [r.presentation for r in d.responses] == list(range(10))
    assert made_of(d) == [10] * 10
    # two early spikes in ten windows of 40 ms are 0.5 spikes in a window of 100 ms
    assert [float(r.baseline[0]) for r in d.responses] == pytest.approx([0.5] * 10)
    assert [float(r.rate_hz[0]) for r in d.responses] == pytest.approx([15.0] * 10)  # all equal: no rank by noise
    present(d, 10, 12, early=(11,))
    assert made_of(d)[10:] == [11, 12]
    assert [float(r.baseline[0]) for r in d.responses[10:]] == pytest.approx([5 / 11, 7.5 / 12])


def test_a_pool_holds_the_last_presentations_and_says_how_many() -> None:
    d = device(baseline="block, pool: 4")
    plan(d, slots=40, tail_from=40)
    present(d, 0, 8, early=(0,))
    assert made_of(d) == [4] * 8
    assert [float(r.baseline[0]) for r in d.responses] == pytest.approx([0.625] * 4 + [0.0] * 4)


def test_a_small_first_batch_waits_for_its_own_main_part_only() -> None:
    d = device(baseline="block")
    plan(d, slots=6, tail_from=3)
    present(d, 0, 2, early=(0,))
    assert d.responses == []
    present(d, 2, 3)  # now the model can go on: it gets what there is
    assert made_of(d) == [3] * 3
    present(d, 3, 5)
    assert made_of(d) == [3, 3, 3, 4, 5]


def test_what_is_unusable_waits_in_its_place_and_no_longer_than_twenty_presentations() -> None:
    d = device(baseline="block")
    plan(d, slots=60, tail_from=60)
    present(d, 0, 1)
    present(d, 1, 19, complete=False)
    assert d.responses == []
    present(d, 19, 21)
    assert [r.presentation for r in d.responses] == list(range(21))
    assert [r.usable for r in d.responses] == [True] + [False] * 18 + [True] * 2
    assert made_of(d) == [2, *[None] * 18, 2, 3]
    assert [bool(np.isnan(r.rate_hz).all()) for r in d.responses] == [not r.usable for r in d.responses]


def test_the_end_of_the_session_and_the_next_proposal_let_everything_go() -> None:
    d = device(baseline="block")
    plan(d, slots=40, tail_from=40)
    present(d, 0, 3)
    d.tick(5, closing=True)
    assert [(r.usable, r.baseline_n) for r in d.responses] == [(True, 3)] * 3
    d = device(baseline="block")
    plan(d, slots=40, tail_from=40)
    present(d, 0, 3)
    plan(d, slots=40, tail_from=40, number=1)
    assert made_of(d) == [3] * 3


def test_nothing_waits_for_a_guest_or_for_another_kind_of_baseline() -> None:
    guest = device(baseline="block")  # a guest makes no proposals
    present(guest, 0, 3)
    assert made_of(guest) == [1, 2, 3]
    for kind, presentations in (("pre", 1), ("none", None)):
        d = device(baseline=kind)
        plan(d, slots=40, tail_from=40)
        present(d, 0, 1, early=(0,))
        assert made_of(d) == [presentations]
        assert d.responses[0].baseline[0] == (2.5 if kind == "pre" else 0.0)


def test_folding_again_gives_the_same_responses_at_the_same_entries() -> None:
    def once() -> list[str]:
        d, out = device(baseline="block"), []
        plan(d, slots=40, tail_from=20)
        for k in range(15):
            present(d, k, k + 1, early=(0, 3, 12))
            new = d.responses[len(out) :]
            out += [f"{d.seq} {r.presentation} {r.baseline} {r.rate_hz} {r.baseline_n}" for r in new]
        return out

    assert once() == once()
    assert len(once()) == 15


# --- windows of frames and bins ---------------------------------------------------------------------------------------


def bins(window_s: str, baseline: str, period: int, value: float = 1.0, rows: int = 400) -> Device:
    """Return a device that has sent bins of `period` samples, and 20 images at 20 phases of them."""
    text = COUNTS % ("0", baseline) + "limits: {max_flicker_hz: 20}\n"
    d = Device(WindowFold(parse(text.replace("[0.05, 0.15]", window_s).replace("off_s: 0.3", "off_s: 0.9"))))
    d.units(0, 0, "a#0", "b#0")
    d.advance(0)
    d.clock(0, rows * period)
    d.frames(0, rows, value, period)
    for k in range(20):
        edge = 90_000 + (30_000 + 251) * k
        d.show(k, edge)
        d.edge(edge)
    d.advance(rows * period)
    d.tick(1)
    return d


def test_a_window_that_is_no_whole_number_of_bins_gives_the_same_for_every_phase() -> None:
    d = bins("[0.05, 0.45]", "pre, window_s: [-0.4, 0]", 5000)  # 2.4 bins of 1/6 s: two or three of them
    assert len(d.responses) == 20
    assert all(r.usable for r in d.responses)
    assert np.array([r.count for r in d.responses]) == pytest.approx(np.tile([2.4, 4.8], (20, 1)))
    assert np.array([r.rate_hz for r in d.responses]) == pytest.approx(0.0, abs=1e-12)
    assert d.faults == []


def test_windows_of_whole_bins_are_plain_sums() -> None:
    d = bins("[0.1, 0.6]", "none", 5000, value=3.0)
    assert [r.count.tolist() for r in d.responses] == [[9.0, 18.0]] * 20


@pytest.mark.parametrize(
    ("window_s", "baseline", "words"),
    [
        ("[0.05, 0.15]", "none", "responses.window_s (0.05 to 0.15 s) is 100 ms long, and a bin lasts 167 ms"),
        (
            "[0.05, 0.45]",
            "block, window_s: [-0.01, 0.03]",
            "responses.baseline.window_s (-0.01 to 0.03 s) is 40 ms long, and a bin lasts 167 ms",
        ),
    ],
)
def test_a_window_shorter_than_two_bins_is_refused_and_said_once(window_s: str, baseline: str, words: str) -> None:
    d = bins(window_s, baseline, 5000)
    (fault,) = [f for f in d.out if isinstance(f, Fault)]
    assert fault.what == "window too short"
    assert words in fault.detail
    assert "lengthen it to 2 bins, 0.333 s, or more" in fault.detail
    assert [r.usable for r in d.responses] == [False] * 20
    assert all(words in r.reason for r in d.responses)
    assert all(np.isnan(r.count).all() and np.isnan(r.rate_hz).all() for r in d.responses)


def test_a_window_of_just_two_bins_is_not_refused() -> None:
    d = bins("[0.1, 0.43333]", "none", 5000)
    assert d.faults == []
    assert all(r.usable for r in d.responses)


def test_spikes_have_no_shortest_window() -> None:
    d = device(baseline="block, window_s: [-0.001, 0.001]")
    present(d, 0, 1)
    assert [r.usable for r in d.responses] == [True]
