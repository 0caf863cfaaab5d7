"""Why no data come from an Open Ephys GUI: every conflict of the reference on real sockets, named with its cure.

The players are what the real plugins leave behind: a ZMQ Interface whose data or heartbeat port was taken, other
plugins on the port, a GUI that is idle, absent, or on other ports.
"""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
import zmq

from rig.animal.openephys_http import GuiHttp, GuiState, Output
from rig.animal.openephys_wire import data_frames, heartbeat_reply
from rig.sources.openephys_diagnosis import diagnose, who_publishes

STREAM = "ProbeA-AP"


def free_block(count: int = 6) -> int:
    """Return the first of `count` free ports in a row."""
    while True:
        with ExitStack() as stack:
            first = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            try:
                for k in range(1, count):
                    stack.enter_context(socket.create_server(("127.0.0.1", first + k)))
            except (OSError, OverflowError):
                continue
            return int(first)


@contextmanager
def player(kind: int, port: int, turn: Callable[["zmq.Socket[bytes]"], None]) -> Iterator[None]:
    """Bind a socket of `kind` on `port` in a thread that calls `turn` again and again."""
    end, bound = threading.Event(), threading.Event()

    def play() -> None:
        with zmq.Context() as context, context.socket(kind) as one:
            one.setsockopt(zmq.LINGER, 0)
            one.bind(f"tcp://127.0.0.1:{port}")
            bound.set()
            while not end.is_set():
                turn(one)

    thread = threading.Thread(target=play, name="player")
    thread.start()
    assert bound.wait(60)
    try:
        yield
    finally:
        end.set()
        thread.join()


def answers(reply: Callable[[bytes], bytes]) -> Callable[["zmq.Socket[bytes]"], None]:
    def turn(one: "zmq.Socket[bytes]") -> None:
        if one.poll(20):
            one.send(reply(one.recv()))

    return turn


def sends(frames: list[bytes]) -> Callable[["zmq.Socket[bytes]"], None]:
    pause = threading.Event()

    def turn(one: "zmq.Socket[bytes]") -> None:
        one.send_multipart(frames)
        pause.wait(0.01)

    return turn


def silent(one: "zmq.Socket[bytes]") -> None:
    threading.Event().wait(0.02)


DATA = data_frames(1, STREAM, 0, "CH1", 0, 30_000.0, np.zeros(8, np.float32), 1)
HEARTBEAT = answers(heartbeat_reply)


@contextmanager
def http(mode: str, *ports: int) -> Iterator[int]:
    port = free_block(1)
    outputs = tuple(Output("ZMQ Interface", p) for p in ports)
    server = GuiHttp(GuiState(STREAM, 16, 30_000.0, outputs, mode=mode), port)
    try:
        yield port
    finally:
        server.close()


def expect(port: int, http_port: int | None, reason: tuple[str, ...], cure: tuple[str, ...]) -> None:
    said, advice = diagnose("127.0.0.1", port, None, 3.0, http_port)
    for words, text in ((reason, said), (cure, advice)):
        for word in words:
            assert word in text, (word, text)
    assert f"127.0.0.1:{port}" in said


def test_the_heartbeat_port_was_taken_so_the_data_went_two_ports_up() -> None:
    port = free_block()
    with socket.create_server(("127.0.0.1", port + 1)), player(zmq.PUB, port + 2, sends(DATA)):
        expect(
            port, None,
            (f"sends on {port + 2}", f"port {port + 1} was taken", "another program holds it", "no heartbeat"),
            (f"free port {port + 1}", f"port {port + 2}"),
        )  # fmt: skip


def test_the_same_after_the_other_program_has_ended() -> None:
    port = free_block()
    with player(zmq.PUB, port + 2, sends(DATA)):
        expect(port, None, (f"port {port + 1} was taken", "the program that held it has ended"), ("insert",))


@pytest.mark.parametrize("still_there", [True, False])
def test_the_data_port_was_taken_so_the_data_go_nowhere(still_there: bool) -> None:
    port = free_block()
    with ExitStack() as stack:
        stack.enter_context(player(zmq.REP, port + 1, HEARTBEAT))
        if still_there:
            stack.enter_context(socket.create_server(("127.0.0.1", port)))
        gui = stack.enter_context(http("ACQUIRE", port + 2))
        expect(port, gui, (f"port {port} was taken", "ZMQ Interface", "the GUI says ACQUIRE"), (f"free port {port}",))


def test_the_port_that_the_editor_shows_after_its_data_port_was_taken() -> None:
    port = free_block()
    with player(zmq.REP, port + 1, HEARTBEAT), http("ACQUIRE", port + 2) as gui:
        expect(
            port + 2, gui, (f"heartbeats on {port + 1}", f"port {port} was taken"), (f"set port: {port}", "insert")
        )


def test_network_events_holds_the_port() -> None:
    port = free_block()
    with player(zmq.REP, port, answers(lambda _: b"NotHandled")):
        expect(port, None, ("Network Events", f"on {port}", "NotHandled"), ("port of its own",))


def test_network_events_holds_the_heartbeat_port() -> None:
    port = free_block()
    with player(zmq.PUB, port, silent), player(zmq.REP, port + 1, answers(lambda _: b"NotHandled")):
        expect(port, None, ("Network Events", f"on {port + 1}"), ("port of its own",))


def test_an_idle_gui_is_no_fault_of_the_ports() -> None:
    port = free_block()
    with player(zmq.PUB, port, silent), player(zmq.REP, port + 1, HEARTBEAT), http("IDLE", port) as gui:
        expect(port, gui, ("the GUI is idle", "the GUI says IDLE"), ("start acquisition",))


def test_without_http_idle_and_taken_cannot_be_told_apart_and_both_cures_are_given() -> None:
    port = free_block()
    with player(zmq.PUB, port, silent), player(zmq.REP, port + 1, HEARTBEAT):
        expect(port, None, ("answered by ZMQ Interface", "http_port is null"), ("start acquisition", "free port"))


def test_no_gui_at_all() -> None:
    port = free_block()
    expect(port, port + 5, ("nothing listens", f"no GUI answers on HTTP port {port + 5}"), ("start the GUI",))


def test_a_gui_on_another_port_is_named_with_that_port() -> None:
    port = free_block()
    with http("ACQUIRE", port + 4) as gui:
        expect(port, gui, (f"data port {port + 4}",), (f"set port: {port + 4}",))


def test_a_gui_without_the_plugin() -> None:
    port = free_block()
    with http("ACQUIRE") as gui:
        expect(port, gui, ("no ZMQ Interface in its signal chain",), ("Spike Detector",))


def test_a_heartbeat_port_in_the_config() -> None:
    port = free_block()
    with player(zmq.REP, port, HEARTBEAT):
        expect(port, None, ("publishes nothing",), (str(port - 1),))


def test_something_else_on_the_port() -> None:
    port = free_block()
    with socket.create_server(("127.0.0.1", port)):
        expect(port, None, ("no ZMQ Interface as far as can be seen",), ("another program",))


@pytest.mark.parametrize(
    ("frames", "name"),
    [
        (DATA, "ZMQ Interface"),
        ([b"\x01\x00", b"{}"], "Event Broadcaster"),
        ([b"DATA\x00", b'{"message_no": 1}', b""], "old ZMQ Interface"),
        ([b"hello"], "an unknown program"),
    ],
)
def test_who_publishes_is_told_by_the_first_message(frames: list[bytes], name: str) -> None:
    port = free_block()
    with player(zmq.PUB, port, sends(frames)):
        assert who_publishes("127.0.0.1", port, 2000) == name


def test_nobody_publishes() -> None:
    port = free_block()
    with player(zmq.PUB, port, silent):
        assert who_publishes("127.0.0.1", port, 200) is None
