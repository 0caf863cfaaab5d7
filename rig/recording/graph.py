"""A graph of objects as JSON and arrays, and back: what a snapshot of the response fold is made of.

Pure: no I/O, and nothing that is read is ever run. Only classes that the caller lists are taken or made; a function, a
method or an object of any other class is refused. An object that is held in two places is one object again. Floats are
exact, NaN and the infinities included; arrays keep dtype, shape, values and whether they may be written.

Taking a state has two parts, since the loop that owns it must not stand still for long: `Encoder.take` copies whatever
can change, and is quick; `Encoder.pieces` then goes through frozen objects (documents, frozen dataclasses), whose
fields and arrays nobody writes to, and may run in another thread.

Form: plain values (None, bool, int, float, str) stand for themselves; everything else is a row of the table `objects`
and is referred to as [number of the row]. A row is [shape, values] for an instance (`shapes`: class, names of its
fields), else [name of the type, ...].
"""

import json
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

Array = npt.NDArray[Any]
PLAIN = frozenset({type(None), bool, int, float, str})
CONTAINERS: dict[str, type] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
DTYPES = frozenset({"|b1", "|u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f4", "<f8"})
UNFINISHED = object()
LARGE_BYTES = 1 << 16
A_PIECE = 200  # rows of the table that are turned into JSON at once: well below a millisecond of work


class GraphError(ValueError):
    """A state that cannot be taken, or a text that is no state; the message names what."""


def frozen(kind: type) -> bool:
    """Return whether instances of a class never change: documents and frozen dataclasses."""
    if issubclass(kind, BaseModel):
        return bool(kind.model_config.get("frozen"))
    return is_dataclass(kind) and bool(kind.__dataclass_params__.frozen)  # type: ignore[attr-defined]


def class_name(kind: type) -> str:
    """Return the name under which a class is listed."""
    return f"{kind.__module__}.{kind.__qualname__}"


def parts_of(model: BaseModel, name: str = "") -> Iterator[tuple[str, BaseModel]]:
    """Yield a model and all models within it, each with its place: how parts of a config are referred to."""
    yield name, model
    for field in type(model).model_fields:
        yield from _parts(getattr(model, field), f"{name}.{field}")


def _parts(value: Any, name: str) -> Iterator[tuple[str, BaseModel]]:
    if isinstance(value, BaseModel):
        yield from parts_of(value, name)
    elif isinstance(value, tuple | list):
        for k, item in enumerate(value):
            yield from _parts(item, f"{name}.{k}")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _parts(item, f"{name}.{key}")


Size = tuple[str, tuple[int, ...]]  # dtype and shape


class Room:
    """Memory for copies of large arrays, got beforehand: to get new memory takes far longer than to copy."""

    def __init__(self, sizes: list[Size]) -> None:
        """Get it."""
        self._free: dict[Size, list[Array]] = {}
        for dtype, shape in sizes:
            self._free.setdefault((dtype, shape), []).append(np.full(shape, 1, dtype))  # written to, or it is not there

    def copy(self, value: Array) -> Array:
        """Return a copy."""
        free = self._free.get((value.dtype.str, value.shape))
        if not free:
            return value.copy()
        made = free.pop()
        np.copyto(made, value)
        return made


class Encoder:
    """Takes one graph."""

    def __init__(
        self,
        classes: Mapping[str, type],
        given: Mapping[str, BaseModel],
        room: Room | None = None,
        rehearse: bool = False,
    ) -> None:
        """Take instances of `classes` (by `class_name`); `given` (by place) is not taken, only referred to.

        Copies of large arrays go to `room`. With `rehearse` nothing is copied: that only says their `sizes`.
        """
        self._room, self._rehearse = room or Room([]), rehearse
        self.sizes: list[Size] = []
        self._classes = {kind: name for name, kind in classes.items()}
        self._frozen = frozenset(kind for kind in self._classes if frozen(kind))
        self._given = {id(model): place for place, model in given.items()}
        self._numbers: dict[int, int] = {}  # id of an object, number of its row
        self._alive: list[Any] = list(given.values())  # an id names an object only while that exists
        self._rows: list[Any] = []
        self._later: deque[tuple[int, Any]] = deque()
        self._shapes: dict[tuple[str, ...], int] = {}
        self._is_later = False
        self._lengths: dict[str, int] = {}
        self._arrays: dict[str, list[Array]] = {}

    def take(self, root: object) -> None:
        """Take a graph as it is now: what can change is copied. Raises GraphError."""
        self._value(root)

    def pieces(self, pause: Callable[[], object] = lambda: None) -> Iterator[str]:
        """Yield the state as JSON, piece by piece; `pause()` is called between pieces. Raises GraphError.

        From here on the graph may go on changing. `arrays` is complete when this has ended.
        """
        self._is_later = True
        while self._later:
            for _ in range(min(len(self._later), A_PIECE)):
                number, value = self._later.popleft()
                self._rows[number] = self._instance(value)
            pause()
        yield '{"objects":['
        for first in range(0, len(self._rows), A_PIECE):
            piece = json.dumps(self._rows[first : first + A_PIECE], separators=(",", ":"))[1:-1]
            yield ("," if first else "") + piece
            pause()
        yield '],"shapes":' + json.dumps(list(self._shapes)) + "}"

    def arrays(self) -> dict[str, Array]:
        """Return the values of all arrays, by dtype: those of one after those of the other."""
        return {dtype: np.concatenate([a.ravel() for a in some]) for dtype, some in self._arrays.items()}

    def _value(self, value: Any) -> Any:
        if type(value) in PLAIN:
            return value
        number = self._numbers.get(id(value))
        if number is None:
            number = self._numbers[id(value)] = len(self._rows)
            self._alive.append(value)
            self._rows.append(None)
            if type(value) in self._frozen and id(value) not in self._given and not self._is_later:
                self._later.append((number, value))
            else:
                self._rows[number] = self._row(value)
        return [number]

    def _row(self, value: Any) -> list[Any]:
        kind = type(value)
        if (place := self._given.get(id(value))) is not None:
            return ["given", place]
        if kind is tuple or kind is frozenset:
            return [kind.__name__, self._values(value)]
        if kind is np.ndarray:
            return self._array(value)
        if kind is dict or kind is OrderedDict:
            flat = [part for item in value.items() for part in item]
            return ["dict" if kind is dict else "ordered", self._values(flat)]
        if isinstance(value, np.generic) and value.dtype.str in DTYPES:
            return ["scalar", value.dtype.str, value.tobytes().hex()]
        if self._is_later and kind not in self._frozen:
            raise GraphError(f"a frozen object holds a {class_name(kind)}, which can change")
        if kind is list or kind is set:
            return [kind.__name__, self._values(value)]
        if kind is deque:
            return ["deque", self._values(value), value.maxlen]
        return self._instance(value)

    def _values(self, values: Any) -> list[Any]:
        if PLAIN.issuperset(map(type, values)):
            return list(values)
        return [self._value(value) for value in values]

    def _array(self, value: Array) -> list[Any]:
        dtype = value.dtype.str
        if dtype not in DTYPES or not value.flags.c_contiguous:
            raise GraphError(f"an array of dtype {dtype}, contiguous: {value.flags.c_contiguous}")
        first = self._lengths.get(dtype, 0)
        self._lengths[dtype] = first + value.size
        # What a frozen object holds is not written to (tests/test_fold_snapshot.py), and need not be copied.
        kept = value
        if value.flags.writeable and not self._is_later:
            if value.nbytes >= LARGE_BYTES:
                self.sizes.append((dtype, value.shape))
            kept = value if self._rehearse else self._room.copy(value)
        self._arrays.setdefault(dtype, []).append(kept)
        return ["array", dtype, list(value.shape), first, bool(value.flags.writeable)]

    def _instance(self, value: Any) -> list[Any]:
        name = self._classes.get(type(value))
        if name is None:
            raise GraphError(f"a {class_name(type(value))} is not among the classes of a state")
        shape = self._shapes.setdefault((name, *value.__dict__), len(self._shapes))
        return [shape, self._values(value.__dict__.values())]


class _Decoder:
    """Makes one graph."""

    def __init__(
        self, state: Any, arrays: Mapping[str, Array], classes: Mapping[str, type], given: Mapping[str, BaseModel]
    ) -> None:
        self._rows, self._arrays, self._classes, self._given = state["objects"], arrays, classes, given
        self._shapes = [(classes[name], tuple(map(str, names))) for name, *names in state["shapes"]]
        for kind, names in self._shapes:
            if is_dataclass(kind) and {f.name for f in fields(kind)} != set(names):
                raise GraphError(f"{class_name(kind)} has other fields")
        self._made: dict[int, Any] = {}

    def value(self, value: Any) -> Any:
        if type(value) is not list:
            return value
        (number,) = value
        if number not in self._made:
            self._made[number] = UNFINISHED
            self._made[number] = self._object(number, *self._rows[number])
        if self._made[number] is UNFINISHED:
            raise GraphError("something that cannot change holds itself")
        return self._made[number]

    def _object(self, number: int, what: Any, *rest: Any) -> Any:
        if what == "array":
            return self._array(*rest)
        if what == "given":
            return self._given[rest[0]]
        if what == "scalar":
            return np.frombuffer(bytes.fromhex(rest[1]), _dtype(rest[0]))[0]
        made: Any
        if what in ("dict", "ordered"):
            made = self._made[number] = {} if what == "dict" else OrderedDict()
            flat = [self.value(item) for item in rest[0]]
            made.update(zip(flat[::2], flat[1::2], strict=True))
            return made
        if what == "deque":
            made = self._made[number] = deque(maxlen=rest[1])
            made.extend(self.value(item) for item in rest[0])
            return made
        if what == "list":
            made = self._made[number] = []
            made.extend(self.value(item) for item in rest[0])
            return made
        if what in CONTAINERS:
            return CONTAINERS[what](self.value(item) for item in rest[0])
        kind, names = self._shapes[what]
        return self._instance(number, kind, names, rest[0])

    def _instance(self, number: int, kind: type, names: tuple[str, ...], values: list[Any]) -> Any:
        if issubclass(kind, BaseModel):  # a document is checked as any document is
            return kind.model_validate(dict(zip(names, map(self.value, values), strict=True)))
        made = self._made[number] = object.__new__(kind)
        made.__dict__.update(zip(names, map(self.value, values), strict=True))
        return made

    def _array(self, dtype: str, shape: list[int], first: int, writeable: bool) -> Array:
        size = int(np.prod(shape, dtype=np.int64))
        flat = self._arrays[dtype]
        if flat.dtype != _dtype(dtype) or min([0, first, *shape]) < 0 or first + size > len(flat):
            raise GraphError("an array lies beyond its data")
        made = flat[first : first + size].reshape(shape).copy()
        made.flags.writeable = writeable
        return made


def _dtype(name: str) -> np.dtype[Any]:
    if name not in DTYPES:
        raise GraphError(f"dtype {name!r:.20} is in no state")
    return np.dtype(name)


def decode(
    text: str | bytes, arrays: Mapping[str, Array], classes: Mapping[str, type], given: Mapping[str, BaseModel]
) -> Any:
    """Return the root of the graph of which `Encoder.pieces` and `arrays` were taken. Raises GraphError."""
    try:
        return _Decoder(json.loads(text), arrays, classes, given).value([0])
    except GraphError:
        raise
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError, OverflowError) as error:
        raise GraphError(f"no state: {type(error).__name__}: {str(error)[:120]}") from error
