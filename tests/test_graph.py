"""Object graphs as JSON and arrays: what comes back is what went in, and nothing else can come in."""

import json
import math
from collections import OrderedDict, defaultdict, deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rig.config.reading import parse
from rig.messages import Gap, Response, SpikeBlock
from rig.recording.graph import LARGE_BYTES, Encoder, GraphError, Room, class_name, decode, parts_of
from tests.test_messages import EXAMPLES

CONFIG = parse("""
sources: [{type: openephys, name: probe}, {type: lsl_behaviour, name: eye, stream: eye}]
responses: {units: ["a"]}
gates: {fixation: {source: eye, radius_deg: 2.0}}
phases: [{agent: present}]
""")


@dataclass(frozen=True)
class Fixed:
    values: Any
    name: str = ""


@dataclass
class Loose:
    items: Any = field(default_factory=list)


class Plain:
    def __init__(self) -> None:
        self.parts: list[Any] = []
        self.itself = self
        self.settings = CONFIG.gates.fixation


CLASSES = {class_name(kind): kind for kind in (Fixed, Loose, Plain, Gap, SpikeBlock, Response)}
GIVEN = dict(parts_of(CONFIG))


def again(value: Any) -> Any:
    """`value` as it comes back from JSON and arrays, in a holder as the codec wants a root that is no plain value."""
    encoder = Encoder(CLASSES, GIVEN)
    encoder.take([value])
    text = "".join(encoder.pieces())
    return decode(text, encoder.arrays(), CLASSES, GIVEN)[0]


plain = (
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats() | st.text(st.characters(codec="utf-8"))
)
hashable = st.recursive(plain, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=6)
values = st.recursive(
    hashable,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner)
        | st.dictionaries(hashable, inner, max_size=4)
        | st.dictionaries(hashable, inner, max_size=4).map(OrderedDict)
        | st.lists(inner, max_size=4).map(lambda some: deque(some, maxlen=7))
        | st.sets(hashable, max_size=4)
    ),
    max_leaves=20,
)


@given(values)
def test_values_come_back_exactly_with_their_types(value: Any) -> None:
    back = again(value)
    # repr tells 1, 1.0 and True apart and -0.0 from 0.0; the order of a dict and the maxlen of a deque count too.
    assert type(back) is type(value)
    assert ordered(back) == ordered(value)


def ordered(value: Any) -> str:
    if isinstance(value, set | frozenset):
        return f"{type(value).__name__}{sorted(ordered(item) for item in value)}"
    if isinstance(value, dict):
        return f"{type(value).__name__}{[(ordered(k), ordered(v)) for k, v in value.items()]}"
    if isinstance(value, list | tuple | deque):
        most = getattr(value, "maxlen", "")
        return f"{type(value).__name__}{most}{[ordered(item) for item in value]}"
    return repr(value)


@pytest.mark.parametrize("dtype", ["?", "u1", "i1", "u2", "i4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (4, 0, 2)])
def test_arrays_come_back_exactly(dtype: str, shape: tuple[int, ...]) -> None:
    size = math.prod(shape)
    array = np.random.default_rng(1).integers(0, 256, size * np.dtype(dtype).itemsize, np.uint8)
    given = (array % 2).astype("?").reshape(shape) if dtype == "?" else array.view(dtype).reshape(shape)
    read_only = given.copy()
    read_only.flags.writeable = False
    back, other = again([given, read_only])
    assert (back.dtype, back.shape, back.tobytes()) == (given.dtype, given.shape, given.tobytes())
    assert (back.flags.writeable, other.flags.writeable) == (True, False)
    assert other.tobytes() == given.tobytes()


def test_numpy_scalars_stay_numpy_scalars() -> None:
    some = [np.float64(0.1), np.int64(-3), np.float32("nan"), np.uint16(7), np.bool_(True)]
    for one, back in zip(some, again(some), strict=True):
        assert type(back) is type(one)
        assert back.tobytes() == one.tobytes()


def test_what_is_held_twice_is_one_object_again_and_cycles_close() -> None:
    shared, plain = Loose([1]), Plain()
    plain.parts = [shared, Fixed((shared.items, "x")), shared]
    back = again(plain)
    assert back.itself is back
    assert back.parts[0] is back.parts[2]
    assert back.settings is CONFIG.gates.fixation  # parts of the config are not copied
    array = np.arange(3)
    first, second = again((array, array))
    assert first is second


def test_documents_come_back_as_they_were() -> None:
    for document in EXAMPLES:
        if type(document) in CLASSES.values():
            back = again(document)
            assert type(back) is type(document)
            assert repr(back) == repr(document)


def test_a_state_is_that_of_the_moment_it_was_taken_at() -> None:
    """The fold goes on while a thread writes its state."""
    array, row = np.zeros(3), np.arange(4.0)
    state = {"array": array, "list": [1, 2], "set": {1}, "queue": deque([Fixed(row)]), "loose": Loose([3])}
    encoder = Encoder(CLASSES, GIVEN)
    encoder.take(state)
    array[:] = 7
    state["list"].append(3)  # type: ignore[attr-defined]
    state["set"].add(2)  # type: ignore[attr-defined]
    state["queue"].clear()  # type: ignore[attr-defined]
    state["loose"].items.append(4)  # type: ignore[attr-defined]
    back = decode("".join(encoder.pieces()), encoder.arrays(), CLASSES, GIVEN)
    assert back["array"].tolist() == [0, 0, 0]
    assert (back["list"], back["set"], back["loose"].items) == ([1, 2], {1}, [3])
    assert back["queue"][0].values.tolist() == row.tolist()


def test_large_arrays_are_copied_into_memory_that_was_got_before() -> None:
    """To get new memory while the fold waits would take longer than anything else."""
    large, small = np.arange(LARGE_BYTES, dtype=np.float64), np.arange(3)
    state = {"large": large, "small": small}
    rehearsal = Encoder(CLASSES, GIVEN, rehearse=True)
    rehearsal.take(state)
    assert rehearsal.sizes == [("<f8", large.shape)]
    room = Room(rehearsal.sizes)
    (memory,) = room._free[rehearsal.sizes[0]]
    for in_room in (True, False):  # without room there is new memory all the same
        encoder = Encoder(CLASSES, GIVEN, room)
        encoder.take(state)
        assert (encoder._arrays["<f8"][0] is memory) == in_room
        back = decode("".join(encoder.pieces()), encoder.arrays(), CLASSES, GIVEN)
        assert back["large"].tobytes() == large.tobytes()
        assert not np.shares_memory(encoder._arrays["<f8"][0], large)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: 1,
        [].append,
        Plain().__init__,
        object(),
        int,
        b"bytes",
        1j,
        defaultdict(list),
        np.array(["text"]),
        np.array([object()]),
        np.arange(6)[::2],
        CONFIG.model_copy().gates.model_copy(),  # a config, but not a part of the one that is given
        Fixed([1]),  # frozen, and yet it can change
        Fixed(Loose()),
    ],
    ids=lambda wrong: type(wrong).__name__,  # not an address: two test processes must agree on the names
)
def test_what_cannot_be_taken_is_refused(wrong: Any) -> None:
    with pytest.raises(GraphError):
        again([wrong])


@pytest.mark.parametrize(
    "rows",
    [
        [["builtins.eval", ["1"]]],
        [[0, [1]]],
        [["list", [[1]]], ["tuple", [[1]]]],  # a tuple that holds itself
        [["list", [[9]]]],
        [["list", [[-1, 2]]]],
        [["given", "nowhere"]],
        [["array", "|O", [1], 0, True]],
        [["array", "<f8", [3], 0, True]],
        [["array", "<f8", [-1], 0, True]],
        [["array", "<f8", [1], -1, True]],
        [["scalar", "|O", "00"]],
        [["list", [[k + 1]]] for k in range(100_000)],
        ["list"],
        [],
        {},
        None,
    ],
    ids=lambda rows: str(rows)[:40],
)
def test_text_that_is_no_state_is_refused(rows: Any) -> None:
    state = {"objects": rows, "shapes": []}
    with pytest.raises(GraphError):
        decode(json.dumps(state), {"<f8": np.zeros(2)}, CLASSES, GIVEN)


@pytest.mark.parametrize("shape", [["subprocess.Popen", "args"], [class_name(Fixed), "values"], [class_name(Fixed)]])
def test_classes_that_are_not_listed_and_other_fields_are_refused(shape: list[str]) -> None:
    text = json.dumps({"objects": [[0, ["ls"]]], "shapes": [shape]})
    with pytest.raises(GraphError):
        decode(text, {}, CLASSES, GIVEN)


def test_a_document_is_checked_as_any_document_is() -> None:
    names = ["first_sample", "end_sample", "messages"]
    gap = {"objects": [[0, ["early", 2, 3]]], "shapes": [[class_name(Gap), *names]]}
    with pytest.raises(GraphError):
        decode(json.dumps(gap), {}, CLASSES, GIVEN)
