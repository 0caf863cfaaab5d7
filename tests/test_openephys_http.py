"""The GUI's HTTP interface: the fake's bodies against a real GUI's, the client against the fake and against others."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import pytest

from rig.animal.openephys_http import GuiHttp, GuiState, Output, answer, body
from rig.animal.wire import WireError
from rig.clock import FakeClock, HostClock
from rig.links.ports import free_port
from rig.messages import Fault, Marker
from rig.sources.columns import Faults
from rig.sources.openephys_gui import GuiDiary
from rig.sources.openephys_http import GuiError, GuiWatch, ModeChange, mode, request, send_message
from tests.collector import openephys_data

OUTPUTS = (Output("ZMQ Interface", 5556), Output("ZMQ Interface", 5558, empty_mask=True))


def state(**fields: Any) -> GuiState:
    return GuiState("ProbeA-AP", 17, 30_000.0, OUTPUTS, **fields)


@pytest.fixture
def gui() -> Iterator[tuple[GuiState, int]]:
    port = free_port(2)
    served = GuiHttp(state(), port)
    yield served.state, port
    served.close()


def captured() -> list[list[Any]]:
    with openephys_data("main_events_5558.msgpack").open("rb") as file:
        records = list(msgpack.Unpacker(file, raw=False, strict_map_key=False))[1:]
    return [r for r in records if r[1] == "http"]


# --- the fake's answers -----------------------------------------------------------------------------------------------


def test_status_message_and_recording_answer_as_the_real_gui_did_byte_for_byte() -> None:
    gui = state(mode="IDLE", folder="/data/rig", session="2026-11-21_03-35-44")
    compared = 0
    for _, _, call, sent, status, reply, _ in captured():
        method, path = call.split()
        if path not in ("/api/status", "/api/message", "/api/recording") or status != 200:
            continue
        if path == "/api/recording":  # the real one counted when it stopped as well: its numbers are given
            gui.experiments = json.loads(reply)["record_nodes"][0]["experiment_number"]
            gui.recordings = json.loads(reply)["record_nodes"][0]["recording_number"]
        got = answer(gui, method, path, sent or b"")
        assert got == (status, reply.encode() if isinstance(reply, str) else reply), call
        compared += 1
    assert compared >= 10


def test_the_processor_list_has_the_real_one_s_layout() -> None:
    real = next(json.loads(r[5]) for r in captured() if r[2] == "GET /api/processors")
    fake = json.loads(answer(state(), "GET", "/api/processors", b"")[1])
    assert [p["name"] for p in fake["processors"]] == [p["name"] for p in real["processors"]]
    assert [p["id"] for p in fake["processors"]] == [p["id"] for p in real["processors"]]
    assert [p["predecessor"] for p in fake["processors"]] == [p["predecessor"] for p in real["processors"]]
    for one, other in zip(fake["processors"], real["processors"], strict=True):
        assert one.keys() == other.keys()
        assert one["streams"][0].keys() == other["streams"][0].keys()
    raw = next(r[5] for r in captured() if r[2] == "GET /api/processors")
    assert body(real) == (raw.encode() if isinstance(raw, str) else raw)


def test_bad_json_and_unknown_processors_are_refused() -> None:
    assert answer(state(), "PUT", "/api/status", b"{bad")[0] == 400
    assert answer(state(), "GET", "/api/processors/999", b"")[0] == 404
    assert answer(state(), "GET", "/elsewhere", b"")[0] == 404
    assert json.loads(answer(state(), "GET", "/api/processors/104/parameters/data_port", b"")[1])["value"] == "5556"


def test_an_unknown_mode_changes_nothing_and_recordings_are_counted() -> None:
    gui = state(mode="IDLE")
    assert answer(gui, "PUT", "/api/status", b'{"mode":"DANCE"}') == (200, b'{"mode":"IDLE"}')
    for wanted in ("RECORD", "ACQUIRE", "RECORD", "IDLE", "RECORD"):
        gui.set_mode(wanted)
    assert (gui.experiments, gui.recordings) == (2, 0)


def test_messages_are_saved_only_by_a_recording() -> None:
    gui = state(mode="IDLE")
    gui.take_message("before")
    gui.set_mode("RECORD")
    gui.take_message("x" * 600)
    gui.set_mode("ACQUIRE")
    gui.take_message("not recording")
    assert gui.recorded == ["before", "x" * 512]


def test_the_xml_lists_the_excluded_channels() -> None:
    info = json.loads(answer(state(), "GET", "/api/config", b"")[1])["info"]
    masks = [line.split('MaskChannels="')[1].split('"')[0] for line in info.splitlines() if "MaskChannels" in line]
    assert masks == ["", "", "", "", "", ",".join(map(str, range(17)))]


def test_a_taken_port_is_named(gui: tuple[GuiState, int]) -> None:
    with pytest.raises(WireError, match=f"port {gui[1]} .*HTTP"):
        GuiHttp(state(), gui[1])


# --- the client -------------------------------------------------------------------------------------------------------


def wait(done: Callable[[], object], within_s: float = 60.0) -> None:
    clock, pause = HostClock(), threading.Event()
    end = clock.now_ns() + int(within_s * 1e9)
    while not done():
        assert clock.now_ns() < end, "not within the time-out"
        pause.wait(0.02)


def test_a_message_arrives_and_a_long_one_is_refused(gui: tuple[GuiState, int]) -> None:
    served, port = gui
    send_message("127.0.0.1", port, "trial 1 \u00e9t\u00e9")
    assert served.messages == ["trial 1 \u00e9t\u00e9"]
    with pytest.raises(GuiError, match="513 characters"):
        send_message("127.0.0.1", port, "x" * 513)
    assert len(served.messages) == 1


def test_nobody_there_is_an_error_with_a_cure() -> None:
    port = free_port(2)
    with pytest.raises(GuiError, match=f"127.0.0.1:{port}") as raised:
        mode("127.0.0.1", port)
    assert "http_port" in raised.value.cure


def test_a_frozen_gui_is_an_error_within_the_time_out(gui: tuple[GuiState, int]) -> None:
    gui[0].hung = True
    with pytest.raises(GuiError, match="does not answer"):
        mode("127.0.0.1", gui[1], timeout_s=0.2)


HTML = b"HTTP/1.0 200 OK\r\n\r\n"


@pytest.mark.parametrize("reply", [b"SSH-2.0-x\r\n", HTML + b"hello", HTML + b"{}", b""])
def test_another_server_on_the_port_is_an_error(reply: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(GuiError):
            mode("127.0.0.1", listener.getsockname()[1])
        thread.join()


def test_an_error_status_is_an_error(gui: tuple[GuiState, int]) -> None:
    with pytest.raises(GuiError, match="404"):
        request("127.0.0.1", gui[1], "GET", "/api/nothing")


def test_the_watch_sees_recording_start_and_stop_and_where_it_goes(gui: tuple[GuiState, int]) -> None:
    served, port = gui
    watch = GuiWatch("127.0.0.1", port, HostClock())
    try:
        wait(lambda: watch.mode == "ACQUIRE")
        served.set_mode("RECORD")
        wait(lambda: watch.mode == "RECORD")
        assert "/data/fake" in watch.about()["recording"]
        assert "104 ZMQ Interface" in watch.about()["processors"]
        served.set_mode("IDLE")
        wait(lambda: watch.mode == "IDLE")
        served.hung = True
        wait(lambda: watch.mode is None)
        assert watch.problem
        assert watch.reached_host_ns is not None
        served.hung = False
        wait(lambda: watch.mode == "IDLE")
        steps = [(c.before, c.after) for c in watch.changes()]
        assert steps == [
            (None, "ACQUIRE"), ("ACQUIRE", "RECORD"), ("RECORD", "IDLE"), ("IDLE", None), (None, "IDLE")
        ]  # fmt: skip
        assert watch.changes() == []
    finally:
        watch.close()


# --- what goes into the log -------------------------------------------------------------------------------------------


class Told:
    """What a watch would show, given by the test."""

    def __init__(self, *changes: ModeChange, asked: int = 1, reached: int | None = 1) -> None:
        self.reached_host_ns, self.asked, self.problem, self.cure = reached, asked, "no answer on h:1", "start it"
        self._changes = list(changes)

    def about(self) -> dict[str, str]:
        return {"mode": "RECORD", "recording": "/data/m1 [a]", "processors": "100 File Reader"}

    def changes(self) -> list[ModeChange]:
        return self._changes


@pytest.mark.parametrize(
    ("before", "after", "fault"),
    [
        (None, "ACQUIRE", None),
        ("ACQUIRE", "RECORD", None),
        ("RECORD", "ACQUIRE", "recording stopped"),
        ("RECORD", "IDLE", "acquisition stopped"),
        ("ACQUIRE", "IDLE", "acquisition stopped"),
        (None, "IDLE", "acquisition not started"),
        ("ACQUIRE", None, "GUI control lost"),
        ("IDLE", "ACQUIRE", None),
    ],
)
def test_each_change_of_mode_and_what_it_means(before: str | None, after: str | None, fault: str | None) -> None:
    faults = Faults()
    markers = GuiDiary("probe").take(Told(ModeChange(before, after, 5)), 7, faults)
    found = [d for d in faults.due(10) if isinstance(d, Fault)]
    assert [f.what for f in found] == ([fault] if fault else [])
    assert len(markers) == (after is not None)
    for marker in markers:
        assert isinstance(marker, Marker)
        assert (marker.run, marker.arrival_host_ns) == (7, 5)
        assert str(after) in marker.text
        assert "/data/m1" in marker.text
        assert "100 File Reader" in marker.text
    if fault == "acquisition stopped":
        assert ("recording" in found[0].detail) == (before == "RECORD")


def test_a_gui_without_http_is_said_once() -> None:
    faults, diary, clock = Faults(), GuiDiary("probe"), FakeClock()
    for asked in range(1, 9):
        clock.advance_ns(2_000_000_000)
        diary.take(Told(asked=asked, reached=None), 1, faults)
        said = [f for f in faults.due(clock.now_ns()) if isinstance(f, Fault)]
        assert [f.what for f in said] == (["GUI control not reached"] if asked == 3 else [])
        assert all("start it" in f.detail for f in said)
