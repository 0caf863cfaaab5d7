"""Real messages for `rig.bench.fuzz` to spoil: one document of every kind, and what each wire carries.

Documents are made from their own descriptions, so that a new kind is fuzzed without a word here.
"""

import json
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import numpy as np
from pydantic import BaseModel, ValidationError

from rig.encoding import encode
from rig.messages import DOCUMENT_TYPES, Axes

TEXTS = ("0" * 64, "a", "E01#0", "2026-01-01")
WHOLE = (1, 0, 3)


def _value(kind: Any, texts: tuple[str, ...], whole: int) -> Any:
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Annotated:
        axes = [a for a in inside[1:] if isinstance(a, Axes)]
        if axes:
            sizes = {"unit": 1, "channel": 1, "rgb": 3, "xyz": 3}
            return np.full([sizes.get(n, 2) for n in axes[0].axes], whole, axes[0].dtype)
        return _value(inside[0], texts, whole)
    if origin is Literal:
        return inside[0]
    if origin in (Union, UnionType):
        return None if type(None) in inside else _value(inside[0], texts, whole)
    if origin is tuple:
        many = inside[:1] if inside[-1] is Ellipsis else inside
        return tuple(_value(k, texts, whole) for k in many)
    if origin is dict:
        return {}
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return _made(kind, texts, whole)
    return {int: whole, float: 1.0, str: texts[0], bool: True}[kind]


def _made(kind: type[BaseModel], texts: tuple[str, ...], whole: int) -> Any:
    fields = {}
    for name, field in kind.model_fields.items():
        given = [m for m in field.metadata if isinstance(m, Axes)]
        fields[name] = _value(Annotated[field.annotation, *given] if given else field.annotation, texts, whole)
    return kind(**fields)


def documents() -> list[list[bytes]]:
    """Return a document of every kind, encoded; of kinds whose values hang together, the first that is accepted."""
    out = []
    for kind in DOCUMENT_TYPES.values():
        for texts, whole in ((t, w) for w in WHOLE for t in zip(TEXTS, strict=False)):
            try:
                out.append(encode(_made(kind, texts, whole)))
                break
            except (ValidationError, ValueError):
                continue
    return out


def bus() -> list[list[bytes]]:
    """Return what peers say to the recorder, but for their documents."""
    hello = {
        "op": "hello", "name": "probe", "process": "probe-1", "last_seq": 0, "wants": ["tick", "fault"],
        "first_unacked": 1, "protocol": 1, "program": "", "session": "",
    }  # fmt: skip
    return [[json.dumps(hello).encode()], [json.dumps({"op": "got", "seq": 1}).encode()]]


def guest() -> list[list[bytes]]:
    """Return what a guest rig says."""
    who = {"guest": "g1", "sent_ns": 1, "host_ns": 2, "got_ns": 3}
    said: tuple[dict[str, Any], ...] = (
        {"say": "hello", "protocol": 1, "program": "p", "refresh_hz": 60},
        {"say": "next"},
        {"say": "shown", "presentation": 0, "sha256": "0" * 64, "onset_ns": 5, "offset_ns": 9},
        {"say": "over", "trial": 0, "reason": "x"},
    )
    return [[json.dumps({**who, **words}).encode()] for words in said]


def spikes() -> list[list[bytes]]:
    """Return a message of the spikes wire."""
    head = {
        "wire": "spikes", "version": 1, "run": "r1", "number": 1, "rate_hz": 30_000, "list": 0, "units": ["A", "B"],
        "through": 1000, "edges": [[0, 1, 990]], "gaps": [[10, 20]],
    }  # fmt: skip
    return [[json.dumps(head).encode(), np.array([[0, 900], [1, 950]], dtype="<i8").tobytes()]]


def traces() -> list[list[bytes]]:
    """Return messages of the traces wire."""
    units = {
        "wire": "traces", "version": 1, "kind": "units", "run": "r1", "number": 1, "rate_hz": 30_000, "list": 3,
        "units": ["A", "B", "C"],
    }  # fmt: skip
    frames = {
        "wire": "traces", "version": 1, "kind": "frames", "run": "r1", "number": 2, "rate_hz": 30_000, "list": 3,
        "rois": 3, "through": 3000, "frames": [[5, 1000], [6, 2000]], "motion": [[0.5, -1, 0], [0, 0, 0.25]],
    }  # fmt: skip
    values = np.arange(6, dtype="<f4").tobytes()
    offsets = np.zeros(3, "<f8").tobytes()
    head = json.dumps(frames).encode()
    return [[json.dumps(units).encode(), offsets], [head, values], [head, values, values]]
