"""Why no message comes from an Open Ephys GUI: looks around once and names the likely cause and its cure.

Called by `rig.sources.openephys` before it gives up. Takes up to a second.
"""

import http.client
import socket

import zmq

from rig.sources.openephys_parse import CURE_PORT, heartbeat_request, who_replied
from rig.sources.openephys_sockets import request_socket

PROBE_MS = 300
GUI_HTTP_PORT = 37497


def _listening(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), PROBE_MS / 1000):
            return True
    except OSError:
        return False


def _answer(host: str, port: int) -> str | None:
    """Name the plugin that answers requests on a port, None if nobody does."""
    with request_socket(f"tcp://{host}:{port}") as req:
        if not req.poll(PROBE_MS // 2, zmq.POLLOUT):
            return None
        req.send(heartbeat_request("stimloop", "probe"))
        return who_replied(req.recv()) if req.poll(PROBE_MS // 2) else None


def _gui_mode(host: str) -> str | None:
    """Return what the GUI's HTTP server says it is doing ("IDLE", "ACQUIRE", "RECORD"), None if it does not answer."""
    connection = http.client.HTTPConnection(host, GUI_HTTP_PORT, timeout=PROBE_MS / 1000)
    try:
        connection.request("GET", "/api/status")
        body = connection.getresponse().read(1000)
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return next((mode for mode in ("IDLE", "ACQUIRE", "RECORD") if f'"{mode}"'.encode() in body), None)


def diagnose(host: str, port: int, heartbeat: str | None, waited_s: float) -> tuple[str, str]:
    """Find out why no message came from host:port; return reason and cure. `heartbeat`: who answers them."""
    where = f"{host}:{port}"
    heartbeat = heartbeat or _answer(host, port + 1)
    beats = (
        f"heartbeats on {port + 1} are answered by {heartbeat}" if heartbeat else f"no heartbeat reply on {port + 1}"
    )
    reason = f"no message from Open Ephys on {where} in {waited_s:g} s; {beats}"
    if not _listening(host, port):
        if heartbeat == "ZMQ Interface":
            cure = (
                f"port {port} was taken when the GUI bound it, so the plugin answers heartbeats but sends no data: "
                f"free the port or set another data port in the plugin, and the same port in the source's config"
            )
        else:
            cure = "start the GUI with a ZMQ Interface (or the animal), or correct host and port in the source's config"
        return f"{reason}; nothing listens on {where}", cure
    answer = _answer(host, port)
    if answer == "Network Events" or heartbeat == "Network Events":
        return f"{reason}; the Network Events plugin answers, not the ZMQ Interface", CURE_PORT
    if answer is not None:
        cure = f"{port} is a heartbeat port; the data port is usually {port - 1}: correct it in the source's config"
        return f"{reason}; {where} answers requests ({answer}), it publishes nothing", cure
    mode = _gui_mode(host)
    if mode == "IDLE":
        return f"{reason}; the GUI says it is idle", "start acquisition in the Open Ephys GUI (the play button)"
    if heartbeat is None:
        cure = (
            "start acquisition in the GUI; if it runs, the port belongs to another program, or the plugin's second "
            "port was taken: give each plugin instance ports of its own"
        )
        return f"{reason}; something listens on {where}", cure
    cure = (
        "start acquisition in the GUI, and select at least one channel in the plugin; if it runs, another program "
        "holds the port: set another data port in the plugin and the same in the source's config"
    )
    return f"{reason}; the GUI's mode is {mode or 'not known'}", cure
