"""Where the images of a phase lie, as a config says it: a place, `mapped`, or nothing."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag

from stimuli.spec import Place


def _kind_of_place(value: Any) -> str:
    return "mapped" if isinstance(value, str) else "given"


Placing = Annotated[
    Annotated[Place, Tag("given")] | Annotated[Literal["mapped"], Tag("mapped")], Discriminator(_kind_of_place)
]
PLACE = "Where its images lie: center_deg and size_deg; mapped: as an earlier phase found; null: as `stimulus` says."
