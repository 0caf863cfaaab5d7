"""The simulated Open Ephys GUI: its data plugins and its HTTP server joined, so that IDLE stops the data.

A wire like its parts; used by `rig.animal.fake_openephys` and by the animal where the config gives an HTTP port.
"""

from rig.animal.event_broadcaster import EventBroadcaster
from rig.animal.openephys_http import GuiHttp, GuiState, Output
from rig.animal.openephys_server import STREAM, OpenEphysServer
from rig.animal.wire import Block, WireError


class Gui:
    """One stream through a ZMQ Interface, an Event Broadcaster or both; `http` says whether it acquires.

    While the mode is IDLE blocks are dropped, as by a GUI whose user pressed stop; then numbering starts again.
    """

    def __init__(
        self, data: OpenEphysServer | None, events: EventBroadcaster | None = None, http: GuiHttp | None = None
    ) -> None:
        if data is None and events is None:
            raise ValueError("a GUI without a plugin that sends: give data or events")
        self.data, self.events, self.http = data, events, http
        self._idle = False

    @property
    def block_samples(self) -> int:
        """Length of the next block, samples."""
        if self.data is not None:
            return self.data.block_samples
        assert self.events is not None  # noqa: S101 - one of them is there
        return self.events.block_samples

    @property
    def offset(self) -> int:
        """Device sample that the wire calls 0."""
        return self.data.offset if self.data is not None else 0

    def send(self, block: Block) -> None:
        """Put one block on the wires, unless the GUI is idle."""
        if self.http is not None and self.http.state.mode == "IDLE":
            self._idle = True
            return
        if self.data is not None:
            if self._idle and self.data.faults.restart == "none":
                self.data.faults.restart = "keep"
            self.data.send(block)
        if self.events is not None:
            self.events.offset = self.offset
            self.events.send(block)
        self._idle = False

    def close(self) -> None:
        """Close all of them."""
        for part in (self.http, self.events, self.data):
            if part is not None:
                part.close()


def with_http(plugin: OpenEphysServer | EventBroadcaster, port: int, http_port: int | None, rate_hz: float) -> Gui:
    """Join a plugin on `port` with its GUI's HTTP server; closes it and raises WireError if that port is taken."""
    data = plugin if isinstance(plugin, OpenEphysServer) else None
    events = plugin if isinstance(plugin, EventBroadcaster) else None
    output = Output("ZMQ Interface" if data is not None else "Event Broadcaster", port)
    try:
        http = open_http(http_port, STREAM, rate_hz, 1, (output,))
    except WireError:
        plugin.close()
        raise
    return Gui(data, events, http)


def open_http(
    port: int | None, stream: str, rate_hz: float, channels: int, outputs: tuple[Output, ...]
) -> GuiHttp | None:
    """Open the HTTP server of a GUI that acquires; None without a port. Raises WireError if it is taken."""
    return None if port is None else GuiHttp(GuiState(stream, channels, rate_hz, outputs), port)
