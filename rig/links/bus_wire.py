"""The heads of the bus's messages: what may stand in frame 0, checked.

Used by both ends, `rig.links.bus` and `rig.links.peer`.

Pure: bytes in, values out. Whatever comes is taken as hostile: sizes, counts, names and numbers are bounded, and
anything else becomes a `Malformed` (or `Reply` "malformed") that says why, never an exception.
"""

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from rig.encoding import MAX_ARRAYS

PROTOCOL = 1  # of the bus; a peer with another one is refused
MAX_HEAD_BYTES = 64 << 10
MOST_WAITING = 1000  # messages that a socket takes in before it is read; more stays with the sender
SAID_EACH, SAID_EVERY = 10, 1000  # so many faults of a kind are said one by one, later ones each so often
CURE = "make keys with `stimloop keys new FOLDER`"
MAX_FRAMES = MAX_ARRAYS + 3  # head, envelope, header, arrays

Count = Annotated[int, Field(ge=0, lt=2**53)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_.-]{0,40}$")]
Text = Annotated[str, Field(max_length=300, pattern=r"^[^\x00-\x1f]*$")]


def said(count: int) -> bool:
    """Whether fault number `count` of a kind is said."""
    return count <= SAID_EACH or count % SAID_EVERY == 0


def head_bytes(**fields: Any) -> bytes:
    """Return the frame with these fields."""
    return json.dumps(fields).encode()


class _Head(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class _Hello(_Head):
    op: Literal["hello"]
    name: Name
    process: Annotated[str, Field(pattern=r"^[a-z0-9_.-]{1,60}-[0-9a-f]{1,20}$")]
    last_seq: Count
    wants: list[Annotated[str, Field(max_length=60)]] = Field(max_length=100)
    first_unacked: Count
    protocol: Count = 0
    program: Text = ""
    session: Text = ""


class _Doc(_Head):
    op: Literal["doc"]
    n: Count
    cause: tuple[Count, Count] | None


class _Got(_Head):
    op: Literal["got"]
    seq: Count


class Reply(_Head):
    """What the recorder says; each op uses its own fields. "malformed": it could not be read, `why` says how."""

    op: Literal["welcome", "ack", "entry", "refused", "who", "no", "full", "malformed"]
    acked: Count = 0
    n: Count = 0
    prev: Count = 0
    session: Text = ""
    why: Annotated[str, Field(max_length=2000)] = ""
    code: Literal["version", "session", ""] = ""


_INCOMING: TypeAdapter[_Hello | _Doc | _Got] = TypeAdapter(
    Annotated[_Hello | _Doc | _Got, Field(discriminator="op")]
)
_NAME: TypeAdapter[str] = TypeAdapter(Name)


@dataclass(frozen=True)
class Hello:
    """A peer (re)introduces itself."""

    name: str
    process: str
    last_seq: int
    wants: frozenset[str]
    first_unacked: int
    protocol: int = PROTOCOL
    program: str = ""
    session: str = ""


@dataclass(frozen=True)
class Submitted:
    """A peer sends a document (still as frames)."""

    name: str
    n: int
    cause: tuple[int, int] | None
    frames: list[bytes]


@dataclass(frozen=True)
class Got:
    """A peer has taken all entries up to `seq`; name "": whatever is left of one whose name another has taken."""

    name: str
    seq: int


@dataclass(frozen=True)
class Malformed:
    """Bytes on the socket that are no message of this bus, or of somebody who may not speak there."""

    name: str
    why: str
    what: str = "malformed message"


Incoming = Hello | Submitted | Got | Malformed


def _why(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(p) for p in first["loc"])[:60]
    return f"{where or 'head'}: {first['msg'][:120]}"


def parse_incoming(identity: bytes, frames: list[bytes]) -> Incoming:
    """Turn one message of a peer into a value; anything malformed becomes `Malformed`, never an exception."""
    # ZMQ renames a connection whose name a restarted peer took over: what it still says is nobody's, and no fault.
    left_over = identity.startswith(b"\0")
    name = "" if left_over else identity[:60].decode("ascii", "replace")
    if not frames or len(frames) > MAX_FRAMES or len(frames[0]) > MAX_HEAD_BYTES:
        return Malformed(name, f"{len(frames)} frames, the first of {len(frames[0]) if frames else 0} bytes")
    try:
        if not left_over:
            _NAME.validate_python(name)
        head = _INCOMING.validate_json(frames[0])
    except ValidationError as error:
        return Malformed(name, _why(error))
    if left_over:
        return Got("", 0)
    if isinstance(head, _Doc):
        return Submitted(name, head.n, head.cause, frames[1:])
    if isinstance(head, _Got):
        return Got(name, head.seq)
    if head.name != name:
        return Malformed(name, "hello under another name")
    if head.process.rpartition("-")[0] != name:
        return Malformed(name, f"hello of {head.process}, which is no start of {name}")
    return Hello(
        name,
        head.process,
        head.last_seq,
        frozenset(head.wants),
        head.first_unacked,
        head.protocol,
        head.program,
        head.session,
    )


def parse_reply(frames: list[bytes]) -> Reply:
    """Turn one message of the recorder into a value; anything malformed has op "malformed", never an exception."""
    if not frames or len(frames) > MAX_FRAMES or len(frames[0]) > MAX_HEAD_BYTES:
        return Reply(op="malformed", why=f"{len(frames)} frames, the first of {len(frames[0]) if frames else 0} bytes")
    try:
        return Reply.model_validate_json(frames[0])
    except ValidationError as error:
        return Reply(op="malformed", why=_why(error))
