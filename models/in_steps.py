"""Long computations in steps: generators that yield wherever whoever runs them may do something else first."""

from collections.abc import Generator, Iterator
from typing import Generic, TypeVar

Kind = TypeVar("Kind")


class Stepping(Generic[Kind]):
    """The steps of a computation in a for loop; `end` is what they led to, when it is over."""

    end: Kind

    def __init__(self, steps: Generator[None, None, Kind]) -> None:
        """Take `steps` when somebody iterates."""
        self._steps = steps

    def __iter__(self) -> Iterator[None]:
        """Yield after each step."""
        self.end = yield from self._steps


def at_once(steps: Generator[None, None, Kind]) -> Kind:
    """Do all the steps and return what they lead to."""
    every = Stepping(steps)
    for _ in every:
        pass
    return every.end
