"""What a source's loop is given by the process that it runs in."""

from collections.abc import Callable
from typing import Protocol

Say = Callable[..., None]  # one status line for the supervisor, as `rig.supervision.child.say`


class Stopping(Protocol):
    """Whether to end; `rig.supervision.child.Stop` is one."""

    def __bool__(self) -> bool:
        """Return True once the source must end."""
        ...
