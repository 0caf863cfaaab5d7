"""The fixation window: held only where the gaze was seen inside all the time; a break is told with its time."""

import numpy as np
import pytest

from rig.config.outputs import Fixation
from rig.messages import BehaviourBlock, ClockSample, Continuity, ProcessStarted
from rig.responses.fixation import GazeWindow
from rig.responses.gaze_lately import GazeLately

HOST0 = 7_000_000_000
RATE = 1e6  # us of the sender's clock
PERIOD_US = 8_000
MS = 1_000_000
S = 1_000_000_000
NOWHERE = (float("nan"), float("nan"))


def host(t_s: float) -> int:
    return HOST0 + round(t_s * 1e9)


class Eye:
    """Feeds a gaze window with 125 samples/s: inside, but in the stretches (start, end, x, y) given."""

    def __init__(self, *stretches: tuple[float, float, tuple[float, float]], max_gap_s: float = 0.1) -> None:
        self.window = GazeWindow(
            Fixation(source="eye", center_deg=(1.0, -1.0), radius_deg=2.0, max_gap_s=max_gap_s)
        )
        self.stretches = stretches
        self.run = 3
        self.shift_s = 0  # of the host clock
        self.at = 0

    def gaze(self, t_s: float) -> tuple[float, float]:
        return next((xy for start, end, xy in self.stretches if start <= t_s < end), (1.5, -1.5))

    def until(self, t_s: float, pairs: bool = True, source: str = "eye") -> None:
        """Send 40 ms at a time, as a source does: rows, a clock pair every 200 ms, the watermark."""
        while self.at < t_s * RATE:
            rows = np.arange(self.at, self.at + 40_000, PERIOD_US)
            values = np.array([(4.0, *self.gaze(r / RATE)) for r in rows])
            self.window.take(
                BehaviourBlock(
                    source=source,
                    run=self.run,
                    channels=("pupil_mm", "gaze_x_deg", "gaze_y_deg"),
                    sample=rows,
                    arrival_host_ns=rows,
                    values=values,
                )
            )
            if pairs and self.at % 200_000 == 0:
                self.window.take(
                    ClockSample(
                        source=source,
                        run=self.run,
                        device_sample=self.at,
                        pair_host_ns=host(self.at / RATE + self.shift_s),
                        method="round_trip",
                        round_trip_ns=100_000,
                    )
                )
            self.at += 40_000
            self.window.take(
                Continuity(
                    source=source,
                    run=self.run,
                    state="streaming",
                    sample_rate_hz=RATE,
                    watermark_sample=self.at,
                    messages=1,
                    lost_messages=0,
                )
            )


def test_a_tracker_s_own_units_become_degrees_by_gain_and_offset() -> None:
    # Pixels of a 1280 x 720 camera, rows counted downwards; the window (1, -1) +- 2 degrees is at (673.3, 393.3).
    camera = {"gain": (0.03, -0.03), "offset_deg": (-19.2, 10.8)}
    eye = Eye((0.0, 2.0, (673.3, 393.3)), (2.0, 2.4, (673.3 + 70, 393.3)), (2.4, 9.0, (673.3, 393.3 + 66)))
    eye.window = GazeWindow(Fixation(source="eye", center_deg=(1.0, -1.0), radius_deg=2.0, **camera))
    eye.until(4.0)
    assert eye.window.verdict(host(1.0), host(1.9)) == ("held", None)
    assert eye.window.verdict(host(1.9), host(2.2))[0] == "broken"
    assert eye.window.verdict(host(2.5), host(2.9)) == ("held", None)
    plain = Eye((0.0, 9.0, (673.3, 393.3)))
    plain.until(4.0)
    assert plain.window.verdict(host(1.0), host(1.9))[0] == "broken"


def test_a_gaze_inside_is_held_and_since_when_is_told() -> None:
    eye = Eye((2.0, 2.4, (9.0, 0.0)))
    eye.until(3.0)
    assert eye.window.verdict(host(2.5), host(2.9)) == ("held", None)
    since = eye.window.held_since(host(3.0))
    assert since == pytest.approx(host(2.4), abs=9 * MS)


def test_a_break_is_told_with_its_time_as_soon_as_it_is_seen() -> None:
    eye = Eye((2.2, 2.6, (9.0, 0.0)))
    eye.until(2.15)
    assert eye.window.verdict(host(2.1), host(2.5)) == ("open", None)
    eye.until(2.3)
    what, when = eye.window.verdict(host(2.1), host(2.5))
    assert what == "broken"
    assert when == pytest.approx(host(2.2), abs=9 * MS)
    assert eye.window.held_since(host(2.3)) is None
    assert eye.window.verdict(host(1.6), host(2.15)) == ("held", None)  # completed before the break


def test_a_window_that_begins_outside_is_broken_at_its_start() -> None:
    eye = Eye((1.9, 2.0, (9.0, 0.0)))
    eye.until(3.0)
    start = host(1.996)
    assert eye.window.verdict(start, host(2.5)) == ("broken", start)
    assert eye.window.verdict(host(2.004), host(2.5)) == ("held", None)


@pytest.mark.parametrize(("blink_s", "verdict"), [(0.07, "held"), (0.15, "missing")])
def test_a_short_blink_is_bridged_and_a_long_one_is_missing(blink_s: float, verdict: str) -> None:
    eye = Eye((2.2, 2.2 + blink_s, NOWHERE))
    eye.until(3.0)
    what, when = eye.window.verdict(host(2.1), host(2.5))
    assert what == verdict
    assert when is None if verdict == "held" else when == pytest.approx(host(2.2), abs=9 * MS)


def test_a_blink_at_the_onset_counts_whole() -> None:
    eye = Eye((2.0, 2.15, NOWHERE))
    eye.until(3.0)
    assert eye.window.verdict(host(2.12), host(2.5))[0] == "missing"
    assert eye.window.verdict(host(2.16), host(2.5))[0] == "held"


def test_a_window_without_any_gaze_is_missing_however_short() -> None:
    eye = Eye((2.2, 2.28, NOWHERE))
    eye.until(3.0)
    assert eye.window.verdict(host(2.21), host(2.27))[0] == "missing"
    assert eye.window.verdict(host(2.15), host(2.21))[0] == "held"


def test_without_a_clock_or_data_it_is_open_and_nothing_is_held() -> None:
    eye = Eye()
    eye.until(3.0, pairs=False)
    assert eye.window.verdict(host(2.1), host(2.5)) == ("open", None)
    assert eye.window.held_since(host(3.0)) is None
    other = Eye()
    other.until(3.0, source="other")
    assert other.window.verdict(host(2.1), host(2.5)) == ("open", None)


def test_old_gaze_is_not_held() -> None:
    eye = Eye()
    eye.until(3.0)
    assert eye.window.held_since(host(3.2)) is not None
    assert eye.window.held_since(host(3.3)) is None


def test_a_new_run_starts_without_gaze_and_the_old_one_is_refused() -> None:
    eye = Eye()
    eye.until(2.0)
    eye.run, eye.at = 4, 2_000_000
    eye.until(4.0)
    assert eye.window.verdict(host(1.5), host(1.9))[0] == "missing"
    assert eye.window.verdict(host(2.2), host(2.9))[0] == "held"
    eye.run, eye.at = 3, 4_000_000
    eye.until(5.0)
    assert eye.window.verdict(host(4.2), host(4.9)) == ("open", None)


def test_memory_ends_and_what_is_forgotten_is_missing() -> None:
    eye = Eye()
    eye.until(150.0)
    assert eye.window.verdict(host(100.0), host(100.2))[0] == "held"
    assert eye.window.verdict(host(20.0), host(20.2))[0] == "missing"
    assert eye.window.held_since(host(150.0)) is not None


# --- a restart of the computer ----------------------------------------------------------------------------------------


def started(boot: str, name: str = "recorder") -> ProcessStarted:
    return ProcessStarted(name=name, pid=1, boot_id=boot, start_host_ns=1, start_utc_ns=2, notes={})


@pytest.mark.parametrize("boots", [("a", "b"), ("b", "a")])
@pytest.mark.parametrize(("run", "shift_s"), [(3, -5), (2, -5), (4, 5000)], ids=["same run", "earlier", "later"])
def test_after_a_restart_of_the_computer_the_gaze_is_followed_from_nothing(
    boots: tuple[str, str], run: int, shift_s: int
) -> None:
    eye = Eye()
    eye.window.take(started(boots[0]))
    eye.until(3.0)
    assert eye.window.held_since(host(3.0)) is not None
    eye.window.take(started(boots[0]))  # the recorder was killed: the host clock goes on
    eye.window.take(started("gpu machine", "model"))
    assert eye.window.held_since(host(3.0)) is not None
    eye.window.take(started(boots[1]))
    assert eye.window.held_since(host(3.0)) is None
    assert eye.window.verdict(host(1.0), host(2.0)) == ("open", None)
    eye.run, eye.at, eye.shift_s = run, 0, shift_s
    eye.until(3.0)
    since = eye.window.held_since(host(3.0 + shift_s))
    assert since == pytest.approx(host(shift_s), abs=9 * MS)
    assert eye.window.verdict(host(1.0 + shift_s), host(2.0 + shift_s)) == ("held", None)


def test_where_the_gaze_was_lately_is_not_told_of_the_boot_before() -> None:
    lately = GazeLately(Fixation(source="eye", center_deg=(1.0, -1.0), radius_deg=2.0))
    lately.take(started("a"))
    rows = BehaviourBlock(
        source="eye", run=3, channels=("gaze_x_deg", "gaze_y_deg"), sample=np.array([1]),
        arrival_host_ns=np.array([host(5000)]), values=np.array([[1.0, -1.0]]),
    )  # fmt: skip
    lately.take(rows)
    assert lately.words(host(5000)).startswith("gaze at (1.0, -1.0) deg")
    lately.take(started("a"))
    assert lately.words(host(5000)).startswith("gaze at")
    lately.take(started("b"))
    assert lately.words(host(1)).startswith("gaze not seen")
    lately.take(rows.model_copy(update={"arrival_host_ns": np.array([host(1)])}))
    assert lately.words(host(1)).startswith("gaze at")
