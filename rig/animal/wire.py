"""What the animal's amplifier hands to a wire: one block of device samples, and what every wire must do with it."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]


class WireError(Exception):
    """A wire cannot be served; `reason` says what and where, `cure` what to do."""

    def __init__(self, reason: str, cure: str) -> None:
        super().__init__(f"{reason}; {cure}")
        self.reason = reason
        self.cure = cure


@dataclass(frozen=True)
class Block:
    """What happened in `num_samples` device samples from `first_sample` on."""

    first_sample: int
    num_samples: int
    spike_unit: I64  # (spike,), index into the population's units
    spike_sample: I64  # (spike,), device sample, ascending
    edges: tuple[tuple[int, int, int], ...]  # (line, state, device sample), ascending


class Wire(Protocol):
    """One way out of the animal."""

    @property
    def offset(self) -> int:
        """Device sample that the wire calls 0."""
        ...

    @property
    def block_samples(self) -> int: ...  # noqa: D102
    def send(self, block: Block) -> None: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102
