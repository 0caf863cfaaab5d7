"""Puts off the import of libraries that another library asks for and that we never use.

`import psychopy.visual` brings pandas, SciPy's splines and an HTTP client, for calibrations, tables and fonts of its
own. A window uses none of them, and they are half of the import and 90 MB. Used by `rig.display.window`.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any


class _AtFirstUse(ModuleType):
    """Stands for a module until something in it is asked for."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), name)


@contextmanager
def at_first_use(*names: str) -> Iterator[None]:
    """Have whoever imports one of these modules in the body get it once something in it is asked for, and not before.

    Outside the body they are imported as usual. A missing one is an ImportError at its first use. Of none may a part be
    imported in the body (`import pandas.api`): Python would load that part twice.
    """
    stands = [_AtFirstUse(name) for name in names if name not in sys.modules]
    sys.modules.update((module.__name__, module) for module in stands)
    try:
        yield
    finally:
        for module in stands:
            if sys.modules.get(module.__name__) is module:
                del sys.modules[module.__name__]
