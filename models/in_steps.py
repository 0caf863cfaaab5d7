"""Long computations in steps: generators that yield wherever whoever runs them may do something else first."""

from collections.abc import Generator
from typing import TypeVar

Kind = TypeVar("Kind")


def at_once(steps: Generator[None, None, Kind]) -> Kind:
    """Do all the steps and return what they lead to."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: Kind = end.value
            return found
