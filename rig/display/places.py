"""Where things are drawn: the squares of images, the photodiode patch, and the visual angles of the images' pixels."""

from collections import OrderedDict
from dataclasses import dataclass, field
from math import radians

import numpy as np
import numpy.typing as npt

from rig.config.places import angles_of, fixation_of, named, patch_of, rect_of, usual
from rig.config.screen import Display
from rig.config.session import Config
from stimuli.geometry import Rect
from stimuli.limits import Spot
from stimuli.spec import Place

F64 = npt.NDArray[np.float64]
KEPT = 16  # squares whose angles are in memory: those that evolutions take in turn


@dataclass(frozen=True, eq=False)
class Square:
    """Where the images of one place lie."""

    place: Place
    rect: Rect
    angles: tuple[F64, F64]
    """Azimuth and elevation of its pixels, degrees, each (y, x)."""

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of its frames, pixels."""
        return self.rect.height, self.rect.width

    @property
    def spot(self) -> Spot:
        """What the limit of flashes must know of it."""
        return Spot(self.rect, radians(self.place.size_deg) ** 2)


@dataclass(frozen=True)
class Places:
    """The geometry of a session."""

    display: Display
    usual: Square
    """Where images lie whose proposal names no place: as `stimulus` in the config says."""
    patch: Rect | None
    fixation: Rect | None
    _kept: OrderedDict[Place, Square] = field(default_factory=OrderedDict, compare=False)

    @property
    def rect(self) -> Rect:
        """Pixels of the usual square."""
        return self.usual.rect

    @property
    def angles(self) -> tuple[F64, F64]:
        """Angles of the usual square."""
        return self.usual.angles

    def at(self, place: Place | None) -> Square:
        """Return the square of a proposal's place; raises ValueError where none may be drawn there."""
        if place is None or place == self.usual.place:
            return self.usual
        if place not in self._kept:
            rect = rect_of(self.display, place)
            self._kept[place] = Square(place, rect, angles_of(self.display, rect))
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(place)
        return self._kept[place]

    def all_named(self, config: Config) -> tuple[Square, ...]:
        """Return the squares of all places that the config names, the usual one first."""
        return tuple(dict.fromkeys((self.usual, *(self.at(place) for place in named(config.phases)))))

    def hidden(self, square: Square) -> bool:
        """Return whether the fixation point hides pixels of images there."""
        return self.fixation is not None and self.fixation.overlaps(square.rect)


def places(config: Config) -> Places:
    """Return the geometry of a session; raises ValueError where something does not fit on the screen."""
    display, place = config.display, usual(config.stimulus)
    rect = rect_of(display, place, "stimulus")
    return Places(display, Square(place, rect, angles_of(display, rect)), patch_of(display), fixation_of(display))
