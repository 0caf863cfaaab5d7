"""Why no message comes from an Open Ephys GUI: looks around once and names the likely cause and its cure.

Called by the sources of Open Ephys before they give up, and by `stimloop check`. Takes about a second.

The ZMQ Interface takes its data port P and, for heartbeats, P + 1. Where one of them is taken its editor shows P + 2,
but the plugin never binds again what failed: with P + 1 taken it sends data on P + 2 and has no heartbeat at all; with
P taken it sends nothing anywhere and answers heartbeats on P + 1.
"""

import socket
from dataclasses import dataclass

import zmq

from rig.sources.openephys_http import GuiError, data_ports, mode
from rig.sources.openephys_parse import CURE_PORT, Refusal, heartbeat_request, parse, who_replied
from rig.sources.sockets import request_socket

PROBE_MS = 300
LISTEN_MS = 400  # some blocks, at any buffer size of the GUI
ZMQ_INTERFACE = "ZMQ Interface"
CURE_START = "start acquisition in the Open Ephys GUI (the play button)"
OWN_PORTS = "give each plugin instance ports of its own (it takes two, one after the other)"


def listening(host: str, port: int) -> bool:
    """Whether a program accepts connections there."""
    try:
        with socket.create_connection((host, port), PROBE_MS / 1000):
            return True
    except OSError:
        return False


def who_answers(host: str, port: int) -> str | None:
    """Name the plugin that answers requests on a port, None if nobody does."""
    with request_socket(f"tcp://{host}:{port}") as req:
        if not req.poll(PROBE_MS // 2, zmq.POLLOUT):
            return None
        req.send(heartbeat_request("stimloop", "probe"))
        return who_replied(req.recv()) if req.poll(PROBE_MS // 2) else None


def who_publishes(host: str, port: int, wait_ms: int = LISTEN_MS) -> str | None:
    """Name the plugin whose messages come from a port, None if none comes within `wait_ms`."""
    sub: zmq.Socket[bytes]
    with zmq.Context.instance().socket(zmq.SUB) as sub:
        sub.setsockopt(zmq.LINGER, 0)
        sub.subscribe(b"")
        sub.connect(f"tcp://{host}:{port}")
        if not sub.poll(wait_ms):
            return None
        said = parse(sub.recv_multipart())
    if isinstance(said, Refusal):
        return said.plugin or "an unknown program"
    return ZMQ_INTERFACE


@dataclass(frozen=True)
class Seen:
    """What was found around a data port."""

    host: str
    port: int
    heartbeat: str | None  # who answers on port + 1
    mode: str | None  # of the GUI; None if it was not asked or did not answer
    ports: tuple[int, ...] | None  # data ports of the GUI's ZMQ Interfaces as their editors show them; None: not known
    asked_http: int | None = None  # port on which the GUI was asked

    @property
    def gui(self) -> str:
        """What the GUI says, in words."""
        if self.asked_http is None:
            return "the GUI was not asked for its mode (http_port is null)"
        if self.mode is None:
            return f"no GUI answers on HTTP port {self.asked_http}"
        return f"the GUI says {self.mode}"


def _look(host: str, port: int, heartbeat: str | None, http_port: int | None) -> Seen:
    gui_mode, ports = None, None
    if http_port is not None:
        try:
            gui_mode = mode(host, http_port, PROBE_MS / 1000)
            ports = tuple(data_ports(host, http_port, ZMQ_INTERFACE))
        except GuiError:
            pass
    return Seen(host, port, heartbeat or who_answers(host, port + 1), gui_mode, ports, http_port)


def diagnose(
    host: str, port: int, heartbeat: str | None, waited_s: float, http_port: int | None = None
) -> tuple[str, str]:
    """Find out why no message came from host:port; return reason and cure.

    `heartbeat`: who answers them, if that is known already; `http_port`: of the GUI's HTTP server, None not to ask.
    """
    seen = _look(host, port, heartbeat, http_port)
    answered = f"heartbeats on {port + 1} are answered by {seen.heartbeat}"
    heard = f"{answered if seen.heartbeat else f'no heartbeat reply on {port + 1}'}; {seen.gui}"
    cause, cure = _silent(seen) if listening(host, port) else _nothing_there(seen)
    return f"no message from Open Ephys on {host}:{port} in {waited_s:g} s: {cause} ({heard})", cure


def _nothing_there(seen: Seen) -> tuple[str, str]:
    """Nobody listens on the data port."""
    host, port = seen.host, seen.port
    if seen.heartbeat == ZMQ_INTERFACE:
        return (
            f"nothing listens on {host}:{port}, though the plugin answers heartbeats: port {port} was taken when it "
            "bound it, so that it sends its data nowhere",
            f"free port {port} and insert the plugin again, or set another data port in the plugin and the same in "
            f"the source's config; {OWN_PORTS}",
        )
    if who_publishes(host, port + 2) == ZMQ_INTERFACE and seen.heartbeat is None:
        holder = "another program holds it" if listening(host, port + 1) else "the program that held it has ended"
        return (
            f"nothing listens on {host}:{port}, and a ZMQ Interface sends on {port + 2}: port {port + 1} was taken "
            f"when it bound its heartbeat ({holder}), so it moved its data and has no heartbeat",
            f"free port {port + 1} and insert the plugin again; or set another data port in the plugin and the same "
            f"in the source's config; or use port {port + 2} as it is, without heartbeats",
        )
    if port > 2 and not listening(host, port + 1) and who_answers(host, port - 1) == ZMQ_INTERFACE:
        return (
            f"nothing listens on {host}:{port}; a ZMQ Interface answers heartbeats on {port - 1}: it belongs to data "
            f"port {port - 2}, and where its editor shows {port}, port {port - 2} was taken and its data go nowhere",
            f"set port: {port - 2} in the source's config; if no data come from there, free that port and insert the "
            f"plugin again, or set a data port that is free in the plugin",
        )
    if seen.ports is not None:
        return _other_ports(seen, seen.ports)
    return (
        f"nothing listens on {host}:{port}; the GUI is not there, or it has no ZMQ Interface on this port",
        "start the GUI with a ZMQ Interface (or the animal), or correct host and port in the source's config",
    )


def _other_ports(seen: Seen, ports: tuple[int, ...]) -> tuple[str, str]:
    """Nobody listens; the GUI is there and says on which ports its plugins are."""
    where = f"nothing listens on {seen.host}:{seen.port}"
    if not ports:
        return (
            f"{where}: the GUI has no ZMQ Interface in its signal chain",
            f"put a ZMQ Interface with data port {seen.port} into the signal chain, behind the Spike Detector",
        )
    listed = ", ".join(map(str, ports))
    if seen.port in ports:
        return (
            f"{where}, though the GUI's ZMQ Interface shows that data port: it did not get it",
            f"take the plugin out and insert it again; {OWN_PORTS}",
        )
    return (
        f"{where}: the GUI's ZMQ Interface is on data port {listed}",
        f"set port: {ports[0]} in the source's config, or data port {seen.port} in the plugin",
    )


def _silent(seen: Seen) -> tuple[str, str]:
    """Somebody listens on the data port and no message comes."""
    host, port = seen.host, seen.port
    answer = who_answers(host, port)
    if answer == "Network Events" or seen.heartbeat == "Network Events":
        taken = port if answer == "Network Events" else port + 1
        return f"the Network Events plugin answers on {taken} (it says NotHandled), not the ZMQ Interface", CURE_PORT
    if answer is not None:
        return (
            f"{host}:{port} answers requests ({answer}), it publishes nothing: a heartbeat port",
            f"the data port is usually {port - 1}: correct it in the source's config",
        )
    if seen.mode == "IDLE":
        return "the GUI is idle", CURE_START
    if seen.mode is not None and seen.heartbeat == ZMQ_INTERFACE:
        return (
            f"the plugin answers heartbeats and sends no data while the GUI acquires: port {port} was taken by "
            "another program when it bound it, so that it sends its data nowhere",
            f"free port {port} and insert the plugin again, or set another data port in the plugin and the same in "
            f"the source's config; {OWN_PORTS}. If nothing else holds it: select a channel in the plugin's mask",
        )
    if seen.heartbeat == ZMQ_INTERFACE:
        return (
            "acquisition has not been started, or another program holds the data port",
            f"{CURE_START}; if it runs: free port {port} and insert the plugin again, or set another data port in "
            "the plugin and the same in the source's config",
        )
    return (
        f"something listens on {host}:{port} that is no ZMQ Interface as far as can be seen",
        f"{CURE_START}; if it runs, the port belongs to another program: {OWN_PORTS}, and write it into the "
        "source's config",
    )
