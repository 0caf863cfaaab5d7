"""From what the eye saw to firing rates, in a thread of its own so that the eye never waits for the neurons.

The eye hands in edges and images; the cortex asks the population for the rate of each image; the amplifier takes both
out in order of time, once it is certain that nothing earlier can still come.
"""

import hashlib
import threading
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from stimuli.spec import Place

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
REMEMBERED = 4096  # rates of images seen before are not computed again


class Population(Protocol):
    """Ground-truth neurons: what they would fire, without noise, to an image that stays."""

    @property
    def units(self) -> tuple[str, ...]:
        """Return the unit names, electrode#number."""
        ...

    @property
    def receptive_fields(self) -> tuple[Place, ...]:
        """Return where each cell sees."""
        ...

    def rate_hz(self, image: F32) -> F64:
        """Return the rates (unit,), spikes/s, for `image` (y, x, 3), linear light 0 to 1."""
        ...


@dataclass(frozen=True)
class Edge:
    """The photodiode patch changed at `host_ns`, after `earliest_ns` (the poll before)."""

    host_ns: int
    earliest_ns: int
    state: int


@dataclass(frozen=True)
class RetinalImage:
    """New pixels where the eye looks, first seen at `host_ns`; the ones before were still there at `earliest_ns`."""

    host_ns: int
    earliest_ns: int
    raw: bytes  # rows of blue, green, red, unused
    size: tuple[int, int]  # rows, columns
    patch_on: bool


@dataclass(frozen=True)
class Evaluated:
    """A retinal image with the rates it drives."""

    host_ns: int
    earliest_ns: int
    sha256: str  # over its bytes (y, x, rgb)
    patch_on: bool
    rates_hz: F64


class Cortex:
    """Evaluates images in order; `start` and `close` its thread."""

    def __init__(self, population: Population, gamma: float) -> None:
        self._population = population
        # The screen holds drive levels; the eye sees light. A display of this gamma makes light from levels.
        self._light = ((np.arange(256) / 255.0) ** gamma).astype(np.float32)
        self._known: OrderedDict[str, F64] = OrderedDict()
        self._changed = threading.Condition()
        self._waiting: deque[RetinalImage] = deque()
        self._evaluated: deque[Evaluated] = deque()
        self._edges: deque[Edge] = deque()
        self._edges_until_ns = 0
        self._images_until_ns = 0
        self._closing = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._evaluate_all, name="cortex", daemon=True)

    def start(self) -> None:
        """Start the thread that computes rates."""
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    # --- the eye's side ---

    def edge(self, edge: Edge) -> None:
        """Take an edge of the photodiode."""
        with self._changed:
            self._edges.append(edge)

    def see(self, image: RetinalImage) -> None:
        """Take a new retinal image."""
        with self._changed:
            self._waiting.append(image)
            self._changed.notify_all()

    def looked(self, edges_until_ns: int, images_until_ns: int) -> None:
        """Take note that every edge and image up to these times has been handed in."""
        with self._changed:
            self._edges_until_ns = edges_until_ns
            self._images_until_ns = images_until_ns
            self._changed.notify_all()

    # --- the thread ---

    def _evaluate_all(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closing:
                    self._changed.wait()
                if self._closing:
                    return
                image = self._waiting[0]
            try:
                evaluated = self._evaluate(image)
            except Exception as error:  # noqa: BLE001  # handed to the amplifier, which ends the animal with it
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return
            with self._changed:
                self._evaluated.append(evaluated)
                self._waiting.popleft()
                self._changed.notify_all()

    def _evaluate(self, image: RetinalImage) -> Evaluated:
        pixels = np.frombuffer(image.raw, dtype=np.uint8).reshape(*image.size, 4)
        rgb = np.ascontiguousarray(pixels[:, :, 2::-1])
        digest = hashlib.sha256(rgb.tobytes()).hexdigest()
        rates = self._known.get(digest)
        if rates is None:
            rates = self._population.rate_hz(self._light[rgb])
            if rates.shape != (len(self._population.units),) or not np.all(np.isfinite(rates)) or np.any(rates < 0):
                raise ValueError(f"the population gave rates {rates} for {len(self._population.units)} units")
            self._known[digest] = rates
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return Evaluated(image.host_ns, image.earliest_ns, digest, image.patch_on, rates)

    # --- the amplifier's side ---

    def collect(
        self, edges_until_ns: int, images_until_ns: int, timeout_s: float
    ) -> tuple[list[Edge], list[Evaluated]] | None:
        """Take all edges before `edges_until_ns` and images up to `images_until_ns`, in order.

        None if, after `timeout_s`, earlier ones could still come. Raises what the population raised.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._complete(edges_until_ns, images_until_ns), timeout_s):
                return None
            if self._error is not None:
                raise self._error
            edges, images = [], []
            while self._edges and self._edges[0].host_ns < edges_until_ns:
                edges.append(self._edges.popleft())
            while self._evaluated and self._evaluated[0].host_ns <= images_until_ns:
                images.append(self._evaluated.popleft())
            return edges, images

    def _complete(self, edges_until_ns: int, images_until_ns: int) -> bool:
        if self._error is not None:
            return True
        if self._edges_until_ns < edges_until_ns or self._images_until_ns < images_until_ns:
            return False
        return not self._waiting or self._waiting[0].host_ns > images_until_ns
