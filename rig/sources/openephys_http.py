"""The Open Ephys GUI's HTTP server: what it is doing, where it records, and messages for its recording.

`GuiWatch` asks once a second in a thread of its own, so that a frozen GUI holds nobody up; the sources of Open Ephys
and the diagnosis use it, `send_message` is for the outputs process. Nothing here starts or stops the GUI.
"""

import http.client
import json
import threading
from dataclasses import dataclass
from typing import Any

from rig.clock import Clock

GUI_HTTP_PORT = 37497
PERIOD_S = 1.0
TIMEOUT_S = 0.5
LARGEST_REPLY = 8 << 20
LONGEST_MESSAGE = 512  # characters; the GUI cuts longer ones in silence
MODES = ("IDLE", "ACQUIRE", "RECORD")
CLOSE_S = 3.0
WRONG_PORT = "set http_port of the source to the port of the GUI's HTTP server, or to null"


class GuiError(OSError):
    """The GUI's HTTP server did not do what was asked; `cure` says what to do."""

    def __init__(self, reason: str, cure: str) -> None:
        super().__init__(reason)
        self.reason, self.cure = reason, cure


def _cure(host: str, port: int) -> str:
    return (
        f"see that the GUI runs on {host} and that its HTTP server is on (File > HTTP Server, port {port}), or set "
        "http_port of the source to null to go without it"
    )


def request(host: str, port: int, method: str, path: str, body: Any = None, timeout_s: float = TIMEOUT_S) -> Any:
    """Ask the GUI and return its answer (JSON); raises GuiError. `timeout_s` holds for each step of the exchange."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    where = f"{host}:{port}{path}"
    try:
        data = None if body is None else json.dumps(body).encode()
        connection.request(method, path, data, {"Content-Type": "application/json"} if data is not None else {})
        reply = connection.getresponse()
        text = reply.read(LARGEST_REPLY)
    except (OSError, http.client.HTTPException) as error:
        raise GuiError(f"the Open Ephys GUI does not answer on {where}: {error}", _cure(host, port)) from error
    finally:
        connection.close()
    if reply.status != http.client.OK:
        raise GuiError(f"{where} answered {reply.status}: {text[:200]!r}", _cure(host, port))
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = f"{where} answered {text[:60]!r}, which is not JSON: this is not the Open Ephys GUI"
        raise GuiError(reason, WRONG_PORT) from error


def mode(host: str, port: int = GUI_HTTP_PORT, timeout_s: float = TIMEOUT_S) -> str:
    """Return what the GUI is doing: "IDLE", "ACQUIRE" or "RECORD". Raises GuiError."""
    said = request(host, port, "GET", "/api/status", timeout_s=timeout_s)
    found = said.get("mode") if isinstance(said, dict) else None
    if found not in MODES:
        reason = f"{host}:{port}/api/status answered {str(said)[:60]!r} without a mode: this is not the Open Ephys GUI"
        raise GuiError(reason, WRONG_PORT)
    return str(found)


def send_message(host: str, port: int, text: str) -> None:
    """Send a text to the GUI's record nodes, which save it while they record; raises GuiError.

    An ordered label, never a time: its sample number lies tens of ms early in the recording. A longer text than 512
    characters is refused, since the GUI would cut it.
    """
    if len(text) > LONGEST_MESSAGE:
        raise GuiError(f"a message of {len(text)} characters; the GUI keeps {LONGEST_MESSAGE}", "shorten it")
    request(host, port, "PUT", "/api/message", {"text": text})


def _recording(host: str, port: int) -> str:
    said = request(host, port, "GET", "/api/recording")
    nodes = said.get("record_nodes", []) if isinstance(said, dict) else []
    parts = [
        f"node {node.get('node_id')}: {node.get('parent_directory')}, experiment {node.get('experiment_number')}, "
        f"recording {node.get('recording_number')} ({node.get('record_engine')})"
        for node in nodes
        if isinstance(node, dict)
    ]
    if not parts:
        return "no record node"
    name = "".join(str(said.get(key, "")) for key in ("prepend_text", "base_text", "append_text"))
    return f"{said.get('parent_directory', '')} [{name}]; " + "; ".join(parts)


def _listed(host: str, port: int) -> list[dict[str, Any]]:
    said = request(host, port, "GET", "/api/processors")
    each = said.get("processors", []) if isinstance(said, dict) else []
    return [p for p in each if isinstance(p, dict)]


def _processors(host: str, port: int) -> str:
    return ", ".join(f"{p.get('id')} {p.get('name')}" for p in _listed(host, port)) or "none"


def data_ports(host: str, port: int, plugin: str) -> list[int]:
    """Return the data ports that the GUI's plugins of that name show, bound or not; raises GuiError."""
    mine = [p for p in _listed(host, port) if p.get("name") == plugin]
    each = [q for p in mine for q in p.get("parameters", []) if isinstance(q, dict) and q.get("name") == "data_port"]
    return [int(q["value"]) for q in each if str(q.get("value")).isdecimal()]


@dataclass(frozen=True)
class ModeChange:
    """The GUI went from one mode to another; None where it was not reached before or is not any more."""

    before: str | None
    after: str | None
    host_ns: int


class GuiWatch:
    """Asks the GUI once a second what it does. Attributes may be read from any thread.

    mode: "IDLE", "ACQUIRE", "RECORD", None while it does not answer. reached_host_ns: when it last answered, None if
    never. problem: why the last try failed, "" if it did not. asked: how many answers or failures there were.
    """

    def __init__(self, host: str, port: int, clock: Clock) -> None:
        """Start asking `host`:`port`."""
        self.mode: str | None = None
        self.reached_host_ns: int | None = None
        self.problem = ""
        self.cure = ""
        self.asked = 0
        self._host, self._port, self._clock = host, port, clock
        self._about: dict[str, str] = {}
        self._changes: list[ModeChange] = []
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="gui watch", daemon=True)
        self._thread.start()

    def about(self) -> dict[str, str]:
        """Return what is known of the GUI, in words: "mode", "recording" (path, nodes), "processors"."""
        with self._lock:
            return dict(self._about) | ({"mode": self.mode} if self.mode is not None else {})

    def changes(self) -> list[ModeChange]:
        """Return the changes of mode since the last call, in their order; the first answer is one of them."""
        with self._lock:
            changes, self._changes = self._changes, []
        return changes

    def _watch(self) -> None:
        while not self._end.is_set():
            self._ask()
            self._end.wait(PERIOD_S)

    def _ask(self) -> None:
        now = None
        about: dict[str, str] = {}
        try:
            now = mode(self._host, self._port)
            self.reached_host_ns = self._clock.now_ns()
            self.problem = self.cure = ""
            if now != self.mode or not self._about:  # a new recording has a new path
                about = {
                    "recording": _recording(self._host, self._port),
                    "processors": _processors(self._host, self._port),
                }
        except GuiError as error:
            self.problem, self.cure = error.reason, error.cure
        with self._lock:
            if now != self.mode:
                self._changes.append(ModeChange(self.mode, now, self._clock.now_ns()))
            self._about.update(about)
            self.mode = now
            self.asked += 1

    def close(self) -> None:
        """End the thread; takes as long as the request that is on its way, at most about 2 s."""
        self._end.set()
        self._thread.join(CLOSE_S)
