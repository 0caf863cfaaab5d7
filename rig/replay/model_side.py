"""What replay needs of the models, as protocols: `rig.cli`, the composition root, fills them in.

`rig` never imports `models`; everything that learns or chooses comes in through `ModelSide`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rig.config.session import Config
from rig.config.targets import Target
from rig.messages import Document, Entry, WorkDone
from stimuli.geometry import Rect
from stimuli.spec import AnySpec, Place

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]
Marks = npt.NDArray[np.bool_]


class Work(Protocol):
    """Background work of the model server, as far as it is stepped."""

    def step(self) -> bool:
        """Do some; return True when finished."""
        ...


class LiveFold(Protocol):
    """The model server's fold with what its edge needs; `models.server.ModelServer` is one."""

    work_number: int
    work_cause: tuple[int, int]

    @property
    def work(self) -> Work | None:
        """Return the work that was asked for."""
        ...

    def handle(self, entry: Entry) -> list[Document]:
        """Take one entry; return the documents it causes."""
        ...

    def work_done(self) -> WorkDone:
        """Describe the finished work."""
        ...


class Neurons(Protocol):
    """A ground-truth population; `models.truth.Population` is one."""

    @property
    def units(self) -> tuple[str, ...]:
        """Return the unit names."""
        ...

    def rate_hz(self, image: F32) -> F64:
        """Return the noise-free rates (unit,) for `image` (y, x, 3), linear light 0 to 1."""
        ...


class TwinWorth(Protocol):
    """What a twin is worth; `models.twin.Worth` is one."""

    @property
    def features(self) -> str: ...  # noqa: D102
    @property
    def images(self) -> int: ...  # noqa: D102
    @property
    def trials(self) -> int: ...  # noqa: D102
    @property
    def held_out_r(self) -> float: ...  # noqa: D102
    @property
    def ceiling_r(self) -> float: ...  # noqa: D102
    @property
    def later_r(self) -> float: ...  # noqa: D102
    @property
    def held_out_ci(self) -> tuple[float, float]: ...  # noqa: D102
    @property
    def ceiling_ci(self) -> tuple[float, float]: ...  # noqa: D102
    @property
    def later_ci(self) -> tuple[float, float]: ...  # noqa: D102

    def warnings(self) -> list[str]:
        """Return in words what must not be forgotten."""
        ...


class TwinNeuron(Protocol):
    """A stand-in neuron; `models.twin.Twin` is one."""

    @property
    def worth(self) -> TwinWorth:
        """Return what it is worth."""
        ...

    def rate_hz(self, pictures: U8) -> F64:
        """Return predicted responses (n,) to reduced pictures."""
        ...


class AgainstTwin(Protocol):
    """One generation of an evolution against a twin; `models.what_if.Generation` is one."""

    @property
    def mean(self) -> float: ...  # noqa: D102
    @property
    def best(self) -> float: ...  # noqa: D102
    @property
    def best_code(self) -> F32: ...  # noqa: D102
    @property
    def best_frame(self) -> U8: ...  # noqa: D102
    @property
    def unknown(self) -> float: ...  # noqa: D102


class Evolving(Protocol):
    """One evolution of a phase; `models.what_if.Evolving` is one."""

    @property
    def target(self) -> Target: ...  # noqa: D102
    @property
    def prefix(self) -> str: ...  # noqa: D102
    @property
    def place(self) -> Place | None: ...  # noqa: D102


BestHz = Callable[[Config, "Neurons", str, Rect, float], float | None]
"""The best that a unit can do: `models.truth_best.best_hz`."""
Picture = Callable[[AnySpec, Place | None], U8]
Twins = Mapping[tuple[str, Place | None], Any]


@dataclass(frozen=True)
class WhatIf:
    """What a counterfactual takes from the models."""

    reduced: Callable[[U8], U8]
    """Frames (n, y, x, rgb) as a twin sees them."""
    fit: Callable[[U8, I64, F64, Marks, int], TwinNeuron]
    """A twin from pictures (image, ...), and of each trial its image, rate, and whether nobody chose it; a seed.

    Raises ValueError.
    """
    wants: frozenset[str]
    """Kinds of documents that `facts` takes."""
    facts: Callable[[Config, Iterable[Entry], int], Any]
    """What the phases before a number left, by a config and the log's entries; only the models look inside."""
    facts_in_words: Callable[[Any], list[str]]
    """What is in them that an evolution may use."""
    evolving: Callable[[Config, int, Any], Sequence[Evolving]]
    """The evolutions of a config's phase, given such facts. Raises ValueError where it could not begin."""
    would_show: Callable[[Config, int, F32, F64, int, int], F32]
    """Next codes of the optimiser of a config's phase, told codes and scores of a generation (its number, the
    target's)."""
    decode: Callable[[Config, int, F32, Place | None], U8]
    """Frames of codes at a place, by the generator of a config's phase."""
    closed_loop: Callable[[Config, int, Any, Twins, Picture, int, int | None], Mapping[str, Sequence[AgainstTwin]]]
    """A phase against twins, by the prefix of each evolution's images: config, phase, facts, twins by unit and place,
    pictures of specs, number of the repeat, most generations."""


@dataclass(frozen=True)
class ModelSide:
    """Everything that replay and its bench take from the models."""

    wants: frozenset[str]
    """Kinds of documents that the model server's fold handles."""
    server: Callable[[Config], LiveFold]
    """A fresh fold, with the libraries' threads set as for the live one."""
    neurons: Callable[[Config], Neurons]
    """The simulated population that the config's `animal` describes."""
    best_hz: BestHz
    """Rate to the best image of a contrast that covers given pixels, for a unit of such a population."""
    what_if: Callable[[], WhatIf]
    """Imports and returns what a counterfactual takes."""
