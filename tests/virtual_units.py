"""Units on paper for the tests of `map` and `screen`: a V1 population on a part of the screen, and units without use.

No process, no clock: an agent's batches are drawn, seen by the population, and answered with Poisson spikes.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from models.agents.types import Agent, Batch, Told
from models.truth import V1, Gabor
from stimuli.bank import Bank
from stimuli.geometry import image_rect, pixel_angles
from stimuli.render import render
from stimuli.spec import Place

F64 = npt.NDArray[np.float64]

SCREEN = (200, 150), 40.0, 30.0  # size_px, width_cm, distance_cm: coarse pixels, quick to draw
BACKGROUND = 128
WINDOW_S = 0.1
ON_S, OFF_S, PER_TRIAL, PAUSE_S = 0.1, 0.1, 10, 0.3  # the rhythm of configs/demo.yaml
DEAD_HZ, UNTUNED_HZ, RARE_HZ = 6.0, 30.0, 0.1


def rect_of(place: Place) -> tuple[F64, F64]:
    """Return azimuth and elevation of the pixels of images at a place."""
    size, width, distance = SCREEN
    return pixel_angles(image_rect(size, width, distance, place.size_deg, place.center_deg), size, width, distance)


def scattered(count: int, reach_deg: float, rng: np.random.Generator) -> tuple[Gabor, ...]:
    """Return cells with centres within `reach_deg` of the screen's centre along each axis; sorts alternate."""
    cells = []
    for k in range(count):
        frequency = float(rng.uniform(0.2, 0.4))
        right, up = rng.uniform(-reach_deg, reach_deg, 2)
        cells.append(
            Gabor(
                azimuth_deg=float(right),
                elevation_deg=float(up),
                sigma_deg=0.35 / frequency,
                cycles_per_deg=frequency,
                orientation_deg=float(rng.uniform(0, 180)),
                phase_deg=float(rng.uniform(0, 360)),
                complex_cell=k % 2 == 1,
                baseline_hz=float(rng.uniform(3, 8)),
                max_hz=float(rng.uniform(70, 110)),
            )
        )
    return tuple(cells)


class Subject:
    """A population that sees the whole screen: good cells, then a dead, an untuned and a rarely firing unit."""

    useless = ("dead", "untuned", "rare")

    def __init__(self, cells: tuple[Gabor, ...], banks: dict[str, Bank], rng: np.random.Generator) -> None:
        """Look with `cells`; spikes are drawn from `rng`."""
        size, width, distance = SCREEN
        self._rect = image_rect(size, width, distance, 44.0, (0.0, 0.0))
        self._angles = pixel_angles(self._rect, size, width, distance)
        self._population = V1(cells, *self._angles)
        self._banks, self._rng = banks, rng
        self.cells = cells
        self.units = (*self._population.units, *self.useless)
        self.presentations = 0

    @property
    def seconds(self) -> float:
        """Session time so far by the rhythm of configs/demo.yaml, s."""
        return self.presentations * (ON_S + OFF_S) + self.presentations / PER_TRIAL * PAUSE_S

    def rates(self, batch: Batch, stimulus: int) -> F64:
        """Return the noise-free rates (unit,) to a stimulus of a batch."""
        spec = batch.stimuli[stimulus].spec
        seen = np.full((self._rect.height, self._rect.width, 3), BACKGROUND, np.uint8)
        if spec.type != "blank":
            assert batch.place is not None
            size, width, distance = SCREEN
            rect = image_rect(size, width, distance, batch.place.size_deg, batch.place.center_deg)
            top, left = rect.top - self._rect.top, rect.left - self._rect.left
            frame = render(spec, rect_of(batch.place), BACKGROUND, self._banks)  # type: ignore[arg-type]
            seen[top : top + rect.height, left : left + rect.width] = frame
        of_cells = self._population.rate_hz(seen.astype(np.float32) / 255)
        return np.concatenate([of_cells, [DEAD_HZ, UNTUNED_HZ if spec.type != "blank" else DEAD_HZ, RARE_HZ]])

    def answer(self, batch: Batch, proposal: int, course: Callable[[F64], F64] | None = None) -> list[Told]:
        """Return what is told of a batch; `course` makes a time course (unit, bin) of expected counts from rates."""
        rates = {k: self.rates(batch, k) for k in {slot.stimulus for slot in batch.plan}}
        out = []
        for k, slot in enumerate(batch.plan):
            self.presentations += 1
            hz = rates[slot.stimulus]
            psth = None if course is None else self._rng.poisson(course(hz)).astype(np.float32)
            counted = self._rng.poisson(hz * WINDOW_S) / WINDOW_S
            out.append(Told(proposal, k, slot.role, batch.stimuli[slot.stimulus].id, counted, psth))
        return out


def run(agent: Agent, subject: Subject, first: int = 0, course: Callable[[F64], F64] | None = None) -> int:
    """Run a phase as the server does: tails are told with the main part that follows. Return proposals made."""
    number, late = first, list[Told]()
    while True:
        work = agent.ask()
        while not work.step():
            pass
        batch = work.result()
        told = subject.answer(batch, number, course)
        number += 1
        agent.tell([*late, *told[: batch.tail_from]])
        late = told[batch.tail_from :]
        if agent.finished() is not None:
            agent.tell(late)
            return number
