"""Hostile messages at every socket; `stimloop bench fuzz` is the same with more of them."""

from typing import Any

import numpy as np
import pytest

from rig.bench.fuzz import PARTS, SOCKETS, fuzz
from rig.bench.fuzz_messages import Mutator
from rig.bench.fuzz_samples import documents
from rig.encoding import MAX_HEADER_BYTES, BadDocument, decode, encode
from rig.links.bus_wire import MAX_FRAMES, Malformed, parse_incoming, parse_reply
from rig.links.peer import Peer, check_size
from rig.messages import DOCUMENT_TYPES, Fault, Tick

MESSAGES = 2000
GROWTH_MB = 60.0  # of the recorder: its cache of recent entries alone may take 64 MiB


@pytest.mark.parametrize("name", SOCKETS)
@pytest.mark.timeout(300)
def test_hostile_messages_are_refused_and_nothing_falls_over(name: str) -> None:
    (row,) = fuzz(MESSAGES, 3, name)["rows"]
    assert row["crashes"] == 0, row
    assert row["messages"] == MESSAGES
    assert row["rss_growth_mb"] < GROWTH_MB, row
    if name in PARTS:
        assert row["refused"] > MESSAGES / 10, row
    else:
        heard, sent = row["legitimate"].split(" of ")
        assert heard == sent, row
        assert row["faults"] > 0, row


def test_every_kind_of_document_is_fuzzed() -> None:
    assert {d.kind for d in map(decode, documents())} == set(DOCUMENT_TYPES)  # type: ignore[attr-defined]


def test_the_same_seed_makes_the_same_messages() -> None:
    a, b = (Mutator(documents(), np.random.default_rng(5)) for _ in range(2))
    assert [a.message() for _ in range(300)] == [b.message() for _ in range(300)]


@pytest.mark.parametrize(
    "head",
    [
        b'{"op":"doc","n":1e999,"cause":null}', b'{"op":"doc","n":-1,"cause":null}',
        b'{"op":"doc","n":9007199254740992,"cause":null}',
        b'{"op":"doc","n":1,"cause":[1,-1]}', b'{"op":"doc","n":true,"cause":null}',
        b'{"op":"got","seq":NaN}', b"[" * 100_000,
        b'{"op":"hello","name":"a","process":"a-1","last_seq":-5,"wants":[],"first_unacked":1}',
        b'{"op":"hello","name":"a","process":"a-1","last_seq":0,"wants":' + str(["x"] * 1000).replace("'", '"').encode()
        + b',"first_unacked":1}',
        b'{"op":"hello","name":"a","process":"\\u0000","last_seq":0,"wants":[],"first_unacked":1}',
    ],
)  # fmt: skip
def test_numbers_and_lists_of_a_head_are_bounded(head: bytes) -> None:
    assert isinstance(parse_incoming(b"a", [head]), Malformed)


@pytest.mark.parametrize("name", [b"", b"A", b"a b", b"\xff", b"a" * 60, b"../rig", b"rig\n"])
def test_names_of_peers_are_plain(name: bytes) -> None:
    assert isinstance(parse_incoming(name, [b'{"op":"got","seq":1}']), Malformed)


def test_too_many_frames_are_refused_by_both_ends() -> None:
    frames = [b'{"op":"doc","n":1,"cause":null}', *[b""] * MAX_FRAMES]
    assert isinstance(parse_incoming(b"a", frames), Malformed)
    assert parse_reply([b'{"op":"who"}', *[b""] * MAX_FRAMES]).op == "malformed"


@pytest.mark.parametrize(
    "change",
    [
        (b'"tick_host_ns":1', b'"tick_host_ns":99999999999999999999'),
        (b'"tick_host_ns":1', b'"tick_host_ns":1e300'),
        (b'"kind":"tick"', b'"kind":"ti\\u0000ck"'),
    ],
)
def test_what_neither_hdf5_nor_numpy_can_hold_is_no_document(change: tuple[bytes, bytes]) -> None:
    (header,) = encode(Tick(tick_host_ns=1))
    assert isinstance(decode([header]), Tick)
    with pytest.raises(BadDocument):
        decode([header.replace(*change)])


@pytest.mark.parametrize("text", ["a\0b", "\udc00"])
def test_a_text_that_no_file_can_hold_is_no_document(text: str) -> None:
    import json

    (header,) = encode(Fault(what="w", detail="DETAIL", done="d"))
    with pytest.raises(BadDocument):
        decode([header.replace(b'"DETAIL"', json.dumps(text).encode())])


def test_what_no_recorder_would_take_is_refused_where_it_is_sent() -> None:
    with pytest.raises(BadDocument, match="bytes"):
        check_size(encode(Fault(what="w", detail="x" * MAX_HEADER_BYTES, done="d")))


def test_unknown_peers_are_bounded(tmp_path: Any) -> None:
    """Ever new names, and ever new starts of one name, leave nothing behind in the recorder."""
    import json

    import zmq

    from tests.test_bus import Bench

    bench = Bench(tmp_path)
    with zmq.Context() as context:
        for k in range(300):
            with context.socket(zmq.DEALER) as raw:
                raw.setsockopt(zmq.LINGER, 200)
                raw.setsockopt(zmq.IDENTITY, b"probe" if k % 2 else f"n{k}".encode())
                raw.connect(bench.hub.endpoint)
                name = "probe" if k % 2 else f"n{k}"
                hello = {"op": "hello", "name": name, "process": f"{name}-{k:x}", "last_seq": 0,
                         "wants": [], "first_unacked": 1, "protocol": 1}  # fmt: skip
                raw.send(json.dumps(hello).encode())
                for _ in range(3):
                    bench.recorder.step(0.002)
    for _ in range(50):
        bench.recorder.step(0.005)
    assert len(bench.recorder._routes._clients) <= 40
    assert len(bench.recorder._index.acked) <= 45
    assert bench.recorder.malformed > 50
    honest = Peer("rig", bench.hub.endpoint, frozenset(), bench.recorder._clock)
    honest.send(Fault(what="test", detail="1", done="nothing"))
    bench.turn(honest, until=lambda _: honest.unacked == 0)
    honest.close()
    bench.recorder.close("test")
