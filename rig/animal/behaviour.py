"""The animal's behaviour: where it looks, its pupil, how fast it runs; and the LSL outlet that an eye tracker would be.

`Stretches` and `Body` are pure given their generators. `BehaviourOutlet` runs beside whichever wire the animal has, in
a thread of its own, and files every look away and every blink in the truth folder. The eye follows the same stretches
(it makes its own copy from the same seed), so an animal that looks away really does not see the image.
"""

import math
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pylsl

from rig.clock import Clock
from rig.config.sources import BehaviourSimulation

F64 = npt.NDArray[np.float64]
CHANNELS = ("gaze_x_deg", "gaze_y_deg", "pupil_mm", "running_cm_s")
UNITS = ("degrees", "degrees", "millimeters", "cm/s")
AWAY_DEG = (5.0, 12.0)
AWAY_S = (0.3, 1.0)
BLINK_S = (0.1, 0.3)
LEAST_PAUSE_S = 0.5  # between two stretches of one kind
FIXATION_TAU_S = 0.05
PUPIL_MM, PUPIL_SD_MM, PUPIL_TAU_S = 4.0, 0.3, 2.0
RUNNING_CM_S, RUNNING_SD_CM_S, RUNNING_TAU_S = 3.0, 6.0, 3.0
PUSH_NS = 8_000_000  # trackers hand over their samples a few milliseconds late


@dataclass(frozen=True)
class Stretch:
    """From `start_ns` to before `end_ns` (host) the gaze is `away_deg` (right, up) from the fixation point."""

    start_ns: int
    end_ns: int
    away_deg: tuple[float, float] = (0.0, 0.0)


class Stretches:
    """Stretches of one kind in order of time, `per_min` on average; ask for times that never go back."""

    def __init__(
        self, per_min: float, long_s: tuple[float, float], away_deg: tuple[float, float], start_ns: int, seed: int
    ) -> None:
        """`long_s` and `away_deg`: least and most. The same `seed` gives the same stretches."""
        self.begun: list[Stretch] = []  # those that `at` has come to; whoever reads them empties the list
        self._per_min, self._long_s, self._away_deg = per_min, long_s, away_deg
        self._rng = np.random.default_rng(seed)
        self._next = self._after(start_ns)
        self._present: Stretch | None = None

    def at(self, host_ns: int) -> Stretch | None:
        """Return the stretch that `host_ns` lies in."""
        while self._next is not None and self._next.start_ns <= host_ns:
            self._present = self._next
            self.begun.append(self._next)
            self._next = self._after(self._next.end_ns)
        inside = self._present is not None and host_ns < self._present.end_ns
        return self._present if inside else None

    def _after(self, host_ns: int) -> Stretch | None:
        if self._per_min == 0:
            return None
        start_ns = host_ns + int((LEAST_PAUSE_S + self._rng.exponential(60.0 / self._per_min)) * 1e9)
        end_ns = start_ns + int(self._rng.uniform(*self._long_s) * 1e9)
        angle, far = self._rng.uniform(0, 2 * math.pi), self._rng.uniform(*self._away_deg)
        return Stretch(start_ns, end_ns, (far * math.cos(angle), far * math.sin(angle)))


@dataclass(frozen=True)
class Schedule:
    """When an animal looks away and when it blinks: the same for everybody who asks, from the same seeds."""

    settings: BehaviourSimulation
    start_ns: int
    seeds: tuple[int, int, int]  # looks away, blinks, everything that is noise

    def breaks(self) -> Stretches:
        """Return the looks away from the fixation point."""
        return Stretches(self.settings.breaks_per_min, AWAY_S, AWAY_DEG, self.start_ns, self.seeds[0])

    def blinks(self) -> Stretches:
        """Return the blinks."""
        return Stretches(self.settings.missing_per_min, BLINK_S, (0.0, 0.0), self.start_ns, self.seeds[1])


def schedule(settings: BehaviourSimulation, start_ns: int, seed: np.random.SeedSequence) -> Schedule:
    """Draw the seeds of an animal's behaviour from `start_ns` (host) on."""
    one, two, three = (int(s.generate_state(1)[0]) for s in seed.spawn(3))
    return Schedule(settings, start_ns, (one, two, three))


class Body:
    """Samples of the behaviour at a fixed rate."""

    def __init__(self, plan: Schedule) -> None:
        """Start before the first sample, which is taken at the schedule's start."""
        self.breaks, self.blinks = plan.breaks(), plan.blinks()
        self._start_ns, self._period_ns = plan.start_ns, 1e9 / plan.settings.rate_hz
        self._taken = 0
        self._rng = np.random.default_rng(plan.seeds[2])
        dt_s = 1 / plan.settings.rate_hz
        self._keep = np.exp(-dt_s / np.array([FIXATION_TAU_S, FIXATION_TAU_S, PUPIL_TAU_S, RUNNING_TAU_S]))
        self._sd = np.array([plan.settings.gaze_sd_deg, plan.settings.gaze_sd_deg, PUPIL_SD_MM, RUNNING_SD_CM_S])
        self._middle = np.array([0.0, 0.0, PUPIL_MM, RUNNING_CM_S])
        self._state = self._sd * self._rng.normal(size=4)

    def until(self, host_ns: int) -> tuple[list[int], F64]:
        """Return host times (row,) and values (row, channel) of all new samples up to `host_ns`; NaN is not seen.

        Channels are gaze right and up in degrees, pupil in mm, running in cm/s.
        """
        times: list[int] = []
        rows: list[F64] = []
        while (at_ns := self._start_ns + round(self._taken * self._period_ns)) <= host_ns:
            times.append(at_ns)
            rows.append(self._sample(at_ns))
            self._taken += 1
        return times, np.array(rows).reshape(len(rows), 4)

    def _sample(self, at_ns: int) -> F64:
        # Ornstein-Uhlenbeck: each channel forgets with its own time constant and keeps its spread.
        step = self._rng.normal(size=4)
        self._state = self._keep * self._state + self._sd * np.sqrt(1 - self._keep**2) * step
        values: F64 = self._middle + self._state
        values[2:] = np.maximum(values[2:], 0.0)
        if (away := self.breaks.at(at_ns)) is not None:
            values[:2] += away.away_deg
        if self.blinks.at(at_ns) is not None:
            values[:3] = np.nan  # running is measured at the wheel
        return values

    def begun(self) -> Iterator[tuple[str, Stretch]]:
        """Return what began since the last call, as kind of event and stretch."""
        for kind, stretches in (("gaze_break", self.breaks), ("gaze_missing", self.blinks)):
            while stretches.begun:
                yield kind, stretches.begun.pop(0)


class Follower:
    """For the eye: where the gaze is by the same schedule, without the scatter of fixation."""

    def __init__(self, plan: Schedule, px_per_cm: float, distance_cm: float) -> None:
        """Pixels of the screen and the eye's distance turn degrees into pixels."""
        self._breaks, self._blinks = plan.breaks(), plan.blinks()
        self._distance_px = px_per_cm * distance_cm

    def __call__(self, host_ns: int) -> tuple[int, int, bool]:
        """Return how far the gaze is from the fixation point, pixels right and down, and whether the lid is closed."""
        away, closed = self._breaks.at(host_ns), self._blinks.at(host_ns) is not None
        if away is None:
            return 0, 0, closed
        right, up = (round(self._distance_px * math.tan(math.radians(d))) for d in away.away_deg)
        return right, -up, closed


class BehaviourOutlet:
    """Sends the behaviour as one LSL stream; `start` and `close` its thread."""

    def __init__(self, plan: Schedule, clock: Clock, file: Callable[..., None]) -> None:
        """`file(kind, **fields)` takes what the truth folder shall hold; it is called from the thread."""
        self._body = Body(plan)
        self._clock, self._file = clock, file
        settings = plan.settings
        source_id = f"stimloop-animal-behaviour-{uuid.uuid4().hex}"
        info = pylsl.StreamInfo(settings.stream, "Gaze", 4, settings.rate_hz, pylsl.cf_double64, source_id)
        info.desc().append_child_value("device", "simulated animal")
        channels = info.desc().append_child("channels")
        for label, unit in zip(CHANNELS, UNITS, strict=True):
            channel = channels.append_child("channel")
            channel.append_child_value("label", label)
            channel.append_child_value("unit", unit)
        self._outlet = pylsl.StreamOutlet(info)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="behaviour", daemon=True)

    def start(self) -> None:
        """Start sending."""
        self._thread.start()

    def close(self) -> None:
        """End the thread and the stream."""
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join()
        del self._outlet

    def _serve(self) -> None:
        due_ns = self._clock.now_ns()
        while not self._closing.is_set():
            times, values = self._body.until(self._clock.now_ns())
            if times:
                # LSL's clock is the host's monotonic clock in seconds; a stamp says when its sample was taken.
                self._outlet.push_chunk(values, [t * 1e-9 for t in times])
            for kind, stretch in self._body.begun():
                self._file(kind, start_ns=stretch.start_ns, end_ns=stretch.end_ns, away_deg=list(stretch.away_deg))
            due_ns = max(due_ns + PUSH_NS, self._clock.now_ns())
            self._clock.sleep_until_ns(due_ns)
