"""A source of one's own, whole: spikes as UDP datagrams from a microcontroller or a program that cannot do more.

The example of docs/add-a-source.md. A datagram is text: "NUMBER THROUGH UNIT:SAMPLE UNIT:SAMPLE ...", numbered from 1,
at least ten a second; THROUGH is the sample before which every spike has been sent. UDP loses datagrams, so the number
matters: a hole in it becomes a gap, and the presentations that it touches are shown again.
"""

import re
import socket
from collections.abc import Callable
from typing import Literal

from pydantic import Field

from rig.clock import Clock
from rig.config.part import Part
from rig.config.sources import SourceName
from rig.links.peer import Peer
from rig.messages import Continuity, Document, Gap
from rig.sources.columns import ClockPairs, Columns, Faults
from rig.sources.stopping import Stopping
from rig.supervision import child
from rig.supervision.run_number import run_number

PERIOD_S = 0.025  # documents go out 40 times a second
SILENT_NS = 500_000_000
FIRST_NS = 4_000_000_000
DATAGRAM = re.compile(rb"(\d{1,15}) (\d{1,15})((?: [\w#]{1,64}:\d{1,15})*)")


class UdpSource(Part):
    """What the config says about it; in the program this class stands in rig/config/sources.py."""

    type: Literal["udp_spikes"] = "udp_spikes"
    name: SourceName = "udp"
    port: int = Field(ge=1, le=65535, description="UDP port on which the datagrams come, on this computer.")
    rate_hz: float = Field(gt=0, le=1e9, description="Samples per second of the device's counter, Hz.")


class UdpSpikes:
    """The source's loop: datagrams in, documents out."""

    def __init__(
        self, source: UdpSource, peer: Peer, clock: Clock, stop: Stopping, say: Callable[..., None] = child.say
    ) -> None:
        """Start without data; `run` does the rest."""
        self._source, self._peer, self._clock, self._stop, self._say = source, peer, clock, stop, say
        self._start_ns = clock.now_ns()
        self._run = run_number(clock)  # new to the session even after a restart of this process
        self._columns, self._pairs = Columns(source.name), ClockPairs(source.name)
        self._faults = Faults()
        self._number = self._messages = self._lost = self._watermark = 0
        self._gaps: list[Gap] = []
        self._last_ns: int | None = None
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def run(self) -> int:
        """Serve until stopped; return the process's exit code."""
        due_ns, ready = self._start_ns, False
        try:
            self._socket.bind(("127.0.0.1", self._source.port))
            while not self._stop:
                self._receive(due_ns)
                self._send()
                if not ready and self._messages:
                    ready = True
                    self._say(ready={"source": self._source.name})
                elif not ready and self._clock.now_ns() > self._start_ns + FIRST_NS:
                    reason = f"{self._source.name}: no datagram on UDP port {self._source.port}"
                    self._say(failed=reason, cure="start the sender, or correct `port` in the source's config")
                    return 2
                due_ns += int(PERIOD_S * 1e9)
            return 0
        except OSError as error:
            reason = f"{self._source.name}: UDP port {self._source.port}: {error.strerror}"
            self._say(failed=reason, cure="end the program that holds it, or choose another `port`")
            return 2
        finally:
            self._socket.close()

    def _receive(self, until_ns: int) -> None:
        """Take datagrams until a host time; the bus is served in between."""
        while (rest_ns := until_ns - self._clock.now_ns()) > 0:
            self._socket.settimeout(rest_ns * 1e-9)
            try:
                raw = self._socket.recv(65_535)
            except TimeoutError:
                break
            self._take(raw, self._clock.now_ns())  # stamped at once
        self._peer.poll(0)

    def _take(self, raw: bytes, arrival_ns: int) -> None:
        """Account for one datagram; what cannot be right is refused and said."""
        name, found = self._source.name, DATAGRAM.fullmatch(raw)
        if found is None:
            self._faults.note("message refused", f"{name}: {raw[:40]!r} is no datagram of spikes", "not used")
            return
        number, through = int(found[1]), int(found[2])
        if number <= self._number or through < self._watermark:  # sample numbers mean other moments from here on
            self._faults.note("device restarted", f"{name}: datagram {number} after {self._number}", "a new run")
            self._send()
            self._run, self._pairs = self._run + 1, ClockPairs(name)
            self._number = self._messages = self._lost = self._watermark = 0
        lost = number - self._number - 1 if self._messages else 0
        if lost or not self._messages:  # what came before the first one is not known either
            self._gaps.append(Gap(first_sample=self._watermark, end_sample=through, messages=lost))
        if lost:
            self._lost += lost
            done = "marked as a gap; responses that need it are scored missing"
            self._faults.note("messages lost", f"{name}: {lost} before datagram {number}", done, self._last_ns)
        for spike in found[3].decode().split():
            unit, sample = spike.rsplit(":", 1)
            self._columns.spike(unit, int(sample), arrival_ns)
        self._pairs.offer(through, arrival_ns, self._source.rate_hz)
        self._number, self._watermark, self._last_ns = number, through, arrival_ns
        self._messages += 1

    def _send(self) -> None:
        """Send the data, then how far they are complete: always in this order."""
        now_ns = self._clock.now_ns()
        streaming = self._last_ns is not None and now_ns - self._last_ns < SILENT_NS
        gaps, self._gaps = tuple(self._gaps), []
        documents: list[Document] = [
            *self._columns.take(self._run),
            *self._pairs.take(self._run, now_ns),
            *self._faults.due(now_ns),
            Continuity(
                source=self._source.name,
                run=self._run,
                state="streaming" if streaming else "connecting" if self._last_ns is None else "stalled",
                sample_rate_hz=self._source.rate_hz,
                watermark_sample=self._watermark,
                messages=self._messages,
                lost_messages=self._lost,
                gaps=gaps,
            ),
        ]
        for document in documents:
            self._peer.send(document)
