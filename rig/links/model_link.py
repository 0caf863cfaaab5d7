"""Whether the model server on another computer is there; part of the recorder.

It says at least twice a second what it has taken of the log; so it is away when nothing was heard for 5 s, be it that
the link is cut, the process has ended, or it is stopped and its sockets still take what is sent.

The session goes on without it: the log says since when it is away and when it came back, and the supervisor waits for
it before the first image.
"""

from collections.abc import Callable

from rig.clock import Clock
from rig.links.bus import Hub
from rig.messages import Document, Fault

SILENT_NS = 5_000_000_000


class ModelLink:
    """Says when the model server is away and when it is back."""

    def __init__(self, hub: Hub, clock: Clock, submit: Callable[[Document], None]) -> None:
        self._hub, self._clock, self._submit = hub, clock, submit
        self.there = False
        self._last_ns: int | None = None  # when it was last heard; None: never yet

    def heard(self) -> None:
        """Take note that the model server has said something."""
        now = self._clock.now_ns()
        if not self.there and self._last_ns is not None:
            away_s = (now - self._last_ns) * 1e-9
            detail = f"it was away for {away_s:.1f} s"
            done = "it gets the log from where it stands and goes on"
            self._submit(Fault(what="model server back", detail=detail, done=done, since_host_ns=self._last_ns))
        self.there, self._last_ns = True, now

    def watch(self) -> None:
        """Look how long it has been silent; to be called after what came was taken."""
        if not self.there or self._last_ns is None or self._clock.now_ns() - self._last_ns < SILENT_NS:
            return
        self.there = False
        where = self._hub.remote_endpoint
        detail = f"nothing was heard of it on {where} for {SILENT_NS // 10**9} s: it is stuck or gone, or the link cut"
        done = "the session goes on with what is declared for late proposals, and waits for it"
        self._submit(Fault(what="model server away", detail=detail, done=done, since_host_ns=self._last_ns))
