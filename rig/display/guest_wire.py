"""What a guest rig says to stimloop: requests, checked; docs/wires/guest.md is their description.

Pure: bytes in, requests out. A guest is another program that displays the images (MonkeyLogic, Psychtoolbox, PLDAPS,
one's own PsychoPy script). Each request is one frame of JSON; each reply is one frame of JSON, followed by raw image
frames where it brings a trial. Used by `rig.display.guest`.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

PROTOCOL = 1
MAX_REQUEST_BYTES = 64 << 10
Nanoseconds = Annotated[int, Field(ge=-(2**62), le=2**62)]


class BadRequest(ValueError):
    """A request that stimloop cannot take: the guest's fault; the message says what and how to mend it."""


class Request(BaseModel):
    """What every request carries: who asks, and the round trip of the request before (guest's clock, ns)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)
    guest: str = Field(min_length=1, max_length=64, description="Identity of this start of the guest program.")
    sent_ns: Nanoseconds | None = Field(default=None, description="Guest's clock before the request before was sent.")
    host_ns: Nanoseconds | None = Field(default=None, description="`host_ns` of the reply to it.")
    got_ns: Nanoseconds | None = Field(default=None, description="Guest's clock after that reply came.")


class Hello(Request):
    """The first request of a guest."""

    say: Literal["hello"]
    protocol: Literal[1]
    program: str = Field(max_length=200, description="Name and version, for the log.")
    refresh_hz: float = Field(ge=20, le=500)
    places: bool = Field(default=False, description="Whether it draws each image at the `rect_px` that comes with it.")


class Next(Request):
    """Asks for the next trial."""

    say: Literal["next"]


class Shown(Request):
    """One image of the trial was shown; times are those of the guest's clock after the flips, ns."""

    say: Literal["shown"]
    presentation: int = Field(ge=0, le=2**53)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="Over the bytes that were drawn.")
    onset_ns: Nanoseconds
    offset_ns: Nanoseconds
    late_flips: int = Field(default=0, ge=0, le=10**6)
    dropped_frames: int = Field(default=0, ge=0, le=10**6)
    complete: bool = True


class Over(Request):
    """The trial has ended; what of it was not shown is planned again."""

    say: Literal["over"]
    trial: int = Field(ge=0, le=2**53)
    reason: str = Field(default="", max_length=200, description='Why it was cut short, for example "fixation broken".')


class Bye(Request):
    """The guest ends: nothing more will be shown."""

    say: Literal["bye"]
    reason: str = Field(default="", max_length=200)


AnyRequest = Annotated[Hello | Next | Shown | Over | Bye, Field(discriminator="say")]
_ADAPTER: TypeAdapter[Request] = TypeAdapter(AnyRequest)


def parse(frames: list[bytes]) -> Request:
    """Return the request in `frames`; raises BadRequest and nothing else."""
    if len(frames) != 1 or len(frames[0]) > MAX_REQUEST_BYTES:
        raise BadRequest(f"a request is one frame of JSON, {MAX_REQUEST_BYTES} bytes at most; see docs/wires/guest.md")
    try:
        return _ADAPTER.validate_python(json.loads(frames[0]))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"])
        raise BadRequest(f"{where or 'request'}: {first['msg']}; see docs/wires/guest.md") from error
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"not JSON: {type(error).__name__}; see docs/wires/guest.md") from error


def reply(header: dict[str, Any], frames: tuple[bytes, ...] = ()) -> list[bytes]:
    """Return the frames of a reply."""
    return [json.dumps(header).encode(), *frames]
