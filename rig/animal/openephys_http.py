"""A server of the Open Ephys GUI's HTTP interface: mode, messages, recording, processors, config, latency, cpu.

Used by `rig.animal.fake_openephys` and by the animal; bodies are what GUI 1.0.1 sent (compact JSON, keys in order of
the alphabet). It changes nothing but its own `mode`: whoever sends the data looks at it. Binds loopback only.
"""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote
from xml.sax.saxutils import quoteattr

from rig.animal.wire import WireError

MODES = ("IDLE", "ACQUIRE", "RECORD")
LONGEST_MESSAGE = 512  # characters that a record node keeps
READER, RECORD_NODE, FILTER, DETECTOR, FIRST_OUTPUT = 100, 101, 102, 103, 104
LARGEST_BODY = 1 << 20
LATENCY_MS = 0.25  # what each processor is said to take


@dataclass(frozen=True)
class Output:
    """A plugin of the signal chain that sends data: its name and port, and whether its channel mask is empty."""

    plugin: str
    data_port: int
    empty_mask: bool = False


@dataclass
class GuiState:
    """What the GUI is and does. `mode` is changed by PUT /api/status, everything else by the owner."""

    stream: str
    channels: int
    rate_hz: float
    outputs: tuple[Output, ...]
    mode: str = "ACQUIRE"
    folder: str = "/data/fake"
    session: str = "2026-01-01_12-00-00"
    experiments: int = 0
    recordings: int = 0
    hung: bool = False  # while True no request is answered, as when the GUI is frozen
    messages: list[str] = field(default_factory=list)  # what PUT /api/message brought, in order
    recorded: list[str] = field(default_factory=list)  # of these, what a record node would have saved
    queued: list[str] = field(default_factory=list)  # came while idle: handled when acquisition starts

    def set_mode(self, mode: str) -> None:
        """Go to a mode; an unknown one changes nothing, as in the GUI. RECORD from IDLE begins an experiment."""
        if mode not in MODES or mode == self.mode:
            return
        if mode == "RECORD":
            if self.mode == "IDLE" or not self.experiments:
                self.experiments, self.recordings = self.experiments + 1, 0
            else:
                self.recordings += 1
            self.recorded += self.queued
        self.queued = []
        self.mode = mode

    def take_message(self, text: str) -> None:
        """Keep a broadcast message."""
        text = text[:LONGEST_MESSAGE]
        self.messages.append(text)
        if self.mode != "ACQUIRE":  # acquiring without recording, nobody saves it
            (self.recorded if self.mode == "RECORD" else self.queued).append(text)

    # --- what is asked for ---

    def recording(self) -> dict[str, Any]:
        """Return the body of /api/recording."""
        node = {
            "experiment_number": self.experiments,
            "is_synchronized": True,
            "node_id": RECORD_NODE,
            "parent_directory": self.folder,
            "record_engine": "BINARY",
            "recording_number": self.recordings,
        }
        return {
            "append_text": "",
            "base_text": self.session,
            "default_record_engine": "BINARY",
            "parent_directory": self.folder,
            "prepend_text": "",
            "record_nodes": [node],
        }

    def processors(self) -> list[dict[str, Any]]:
        """Return the signal chain as /api/processors lists it."""
        chain = [
            (READER, "File Reader", None, []),
            (RECORD_NODE, "Record Node", FIRST_OUTPUT + len(self.outputs) - 1, [("directory", "Path", self.folder)]),
            (FILTER, "Bandpass Filter", READER, [("threads", "Categorical", "1")]),
            (DETECTOR, "Spike Detector", FILTER, []),
        ]
        before = DETECTOR
        for k, output in enumerate(self.outputs):
            port = [("data_port", "Integer", str(output.data_port))]
            chain.append((FIRST_OUTPUT + k, output.plugin, before, port))
            before = FIRST_OUTPUT + k
        stream = {
            "channel_count": self.channels,
            "name": self.stream,
            "parameters": [{"name": "channels", "type": "Mask Channels", "value": "[Array]"}],
            "sample_rate": self.rate_hz,
            "source_id": READER,
        }
        return [
            {
                "id": number,
                "name": name,
                "parameters": [{"name": n, "type": t, "value": v} for n, t, v in parameters],
                "predecessor": previous,
                "streams": [stream],
            }
            for number, name, previous, parameters in chain
        ]

    def config_xml(self) -> str:
        """Return the XML of /api/config; MaskChannels lists the excluded channels, as in the GUI."""
        lines = ['<?xml version="1.0" encoding="UTF-8"?>', '<SETTINGS><SIGNALCHAIN index="0">']
        for k, processor in enumerate(self.processors()):
            output = self.outputs[k - 4] if k >= 4 else None
            masked = ",".join(map(str, range(self.channels))) if output is not None and output.empty_mask else ""
            lines.append(
                f'<PROCESSOR name={quoteattr(processor["name"])} nodeId="{processor["id"]}">'
                f'<STREAM name={quoteattr(self.stream)} channel_count="{self.channels}">'
                f"<PARAMETERS MaskChannels={quoteattr(masked)}/></STREAM></PROCESSOR>"
            )
        return "\n".join([*lines, "</SIGNALCHAIN></SETTINGS>"])


def body(value: Any) -> bytes:
    """Return JSON as the GUI writes it."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


Answer = tuple[int, bytes]


def _get(state: GuiState, parts: list[str]) -> Answer | None:
    """Answer GET /api/<parts>; None for a page that does not exist."""
    match parts:
        case ["status"]:
            return 200, body({"mode": state.mode})
        case ["recording"]:
            return 200, body(state.recording())
        case ["processors"]:
            return 200, body({"processors": state.processors()})
        case ["processors", number, *rest]:
            return _processor(state, number, rest)
        case ["config"]:
            return 200, body({"info": state.config_xml()})
        case ["latency"]:
            each = [{"latency": LATENCY_MS, "name": state.stream}]
            listed = [{"id": p["id"], "name": p["name"], "streams": each} for p in state.processors()]
            return 200, body({"processors": listed})
        case ["cpu"]:
            return 200, body({"usage": 0.05})
    return None


def _processor(state: GuiState, number: str, rest: list[str]) -> Answer | None:
    found = next((p for p in state.processors() if str(p["id"]) == number), None)
    if found is None:
        return 404, f"No processor with id {number}".encode()
    match rest:
        case []:
            return 200, body(found)
        case ["parameters"]:
            return 200, body({"parameters": found["parameters"]})
        case ["parameters", name]:
            parameter = next((p for p in found["parameters"] if p["name"] == name), None)
            return (404, b"No such parameter") if parameter is None else (200, body(parameter))
    return None


def _put(state: GuiState, parts: list[str], sent: dict[str, Any]) -> Answer | None:
    """Answer PUT /api/<parts>."""
    match parts:
        case ["status"]:
            state.set_mode(str(sent.get("mode", "")))
            return 200, body({"mode": state.mode})
        case ["message"]:
            state.take_message(str(sent.get("text", "")))
            return 200, body({"mode": state.mode})
        case ["recording"] | ["recording", _]:
            state.folder = str(sent.get("parent_directory", state.folder))
            state.session = str(sent.get("base_text", state.session))
            return 200, body(state.recording())
    return None


def answer(state: GuiState, method: str, path: str, sent: bytes) -> Answer:
    """Return status and body for one request. Pure but for what it changes in `state`."""
    parts = [unquote(part) for part in path.split("?")[0].strip("/").split("/")]
    said: Answer | None = None
    if parts[:1] == ["api"]:
        if method == "GET":
            said = _get(state, parts[1:])
        else:
            try:
                values = json.loads(sent)
            except ValueError as error:
                return 400, f"parse error: {error}".encode()
            said = _put(state, parts[1:], values if isinstance(values, dict) else {})
    return (404, b"") if said is None else said


class GuiHttp:
    """Serves `state` on 127.0.0.1:`port` in threads of its own; `close` ends it."""

    def __init__(self, state: GuiState, port: int) -> None:
        self.state = state
        self._lock = threading.Lock()
        self._closing = threading.Event()
        try:
            self._server = _Server(("127.0.0.1", port), _request_class(self._answer))
        except OSError as error:
            raise WireError(
                f"port {port} (HTTP server of the Open Ephys GUI) cannot be opened: {error.strerror}",
                "end the program that holds it (another animal, an Open Ephys GUI), or give another http_port",
            ) from error
        self._thread = threading.Thread(target=lambda: self._server.serve_forever(0.05), name="gui http", daemon=True)
        self._thread.start()

    def _answer(self, method: str, path: str, sent: bytes) -> Answer | None:
        while self.state.hung:
            if self._closing.wait(0.05):
                return None
        with self._lock:
            return answer(self.state, method, path, sent)

    def close(self) -> None:
        """Stop serving."""
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = True  # close() leaves no thread behind

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that went away while it was answered is no news."""


def _request_class(respond: Callable[[str, str, bytes], Answer | None]) -> type[BaseHTTPRequestHandler]:
    class Request(BaseHTTPRequestHandler):
        timeout = 5.0

        def _respond(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            said = respond(self.command, self.path, self.rfile.read(min(length, LARGEST_BODY)))
            if said is None:
                self.close_connection = True
                return
            status, text = said
            self.send_response(status)
            self.send_header("Content-Type", "application/json" if status == 200 else "text/plain")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def do_GET(self) -> None:
            self._respond()

        def do_PUT(self) -> None:
            self._respond()

        def log_message(self, format: str, *values: object) -> None:  # noqa: A002
            pass

    return Request
