"""A server of the Open Ephys ZMQ Interface wire: PUB for data, REP for heartbeats, faults that tests can switch on.

The animal sends its blocks through it; nothing that listens can tell it from the GUI. The data socket belongs to the
thread that calls `send`, the heartbeat socket to a thread of its own. It never waits for a listener.
"""

import threading
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import zmq

from rig.animal.openephys_wire import (
    Style,
    data_frames,
    heartbeat_reply,
    spike_frames,
    spike_waveform,
    ttl_frames,
)
from rig.animal.wire import Block, WireError
from rig.clock import Clock

BLOCK_SAMPLES = 696  # 1024 frames of the GUI's 44.1 kHz audio clock at 30 kHz: 23.2 ms
DEFERRED_SAMPLES = 100  # spikes of a block's last 100 samples come with the next block
OVERFLOW_NEEDS_SAMPLES = 200  # at this length or below, the Spike Detector's overflow buffer is unused: they are lost
COUNTER_MODULO = 1 << 20
SPIKE_NODE = 103
EVENT_NODE = 100
THRESHOLD_UV = -60.0
PEAK_UV = -120.0
HEARTBEAT_POLL_MS = 100
FAREWELL_MS = 200  # how long a closing PUB may take to hand its last messages to the network


@dataclass
class Faults:
    """What goes wrong; set by tests while the server runs, read before each block. Counts are used up."""

    drop_messages: int = 0  # the next k messages are numbered and never sent
    drop_tail: bool = False  # while True every message is numbered and never sent: a lost tail shows no gap
    freeze: bool = False  # while True blocks are lost unnumbered, as when the GUI hangs; heartbeats go on
    mute_heartbeat: bool = False  # while True heartbeats stay unanswered; data go on
    restart: Literal["none", "keep", "reset"] = "none"  # once: message_num from 1; samples go on or begin at 0
    twin_node: bool = False  # a second processor sends spikes under the same stream and electrode names
    block_samples: int = BLOCK_SAMPLES  # length of the next blocks; 200 or less lose spikes as the GUI does
    hold_blocks: int = 0  # the next k blocks are kept back and come in one burst with the block after them


@dataclass
class Sent:
    """What the server has put on the wire so far."""

    messages: int = 0
    dropped: int = 0
    spikes: int = 0
    spikes_lost: int = 0
    edges: int = 0


@dataclass
class _Run:
    """Numbering since the last start of acquisition."""

    message_num: int = 0
    word: int = 0
    deferred: list[tuple[int, int]] = field(default_factory=list)  # (unit, sample), not yet sent


class OpenEphysServer:
    """Serves one stream on `port` (data) and `port + 1` (heartbeat); call `close` to end it.

    `units` are names like "E01#0": electrode and sorted id.
    """

    def __init__(
        self,
        units: tuple[str, ...],
        clock: Clock,
        port: int = 5556,
        stream: str = "ProbeA-AP",
        rate_hz: float = 30_000.0,
        style: Style = "1.0",
        faults: Faults | None = None,
    ) -> None:
        self.faults = Faults() if faults is None else faults
        self.sent = Sent()
        self.offset = 0
        self._names = [_electrode(name) for name in units]
        self._clock, self._stream, self._rate_hz, self._style = clock, stream, rate_hz, style
        self._waveform = spike_waveform(PEAK_UV)
        self._run = _Run()
        self._held: list[list[bytes]] = []
        self._context = zmq.Context()
        self._heartbeat = self._bind(zmq.REP, port + 1, linger_ms=0)
        # The GUI sets no high-water mark, so neither do we: 1000 messages per listener, the rest is lost in silence.
        self._data = self._bind(zmq.PUB, port, linger_ms=FAREWELL_MS)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._answer, name="heartbeat", daemon=True)
        self._thread.start()

    @property
    def block_samples(self) -> int:
        """Length of the next block, samples."""
        return self.faults.block_samples

    def _bind(self, kind: int, port: int, linger_ms: int) -> "zmq.Socket[bytes]":
        socket: zmq.Socket[bytes] = self._context.socket(kind)
        socket.linger = linger_ms
        try:
            socket.bind(f"tcp://*:{port}")
        except zmq.ZMQError as error:
            socket.close()
            self._context.destroy(linger=0)
            what = "data" if kind == zmq.PUB else "heartbeat"
            raise WireError(
                f"port {port} ({what} of the Open Ephys wire) cannot be opened: {error.strerror}",
                "end the program that holds it (another animal, an Open Ephys GUI), or give the source of type"
                " openephys another `port`; the wire takes that port and the next one",
            ) from error
        return socket

    def _answer(self) -> None:
        """Answer heartbeats until closing (thread body)."""
        while not self._closing.is_set():
            if not self._heartbeat.poll(HEARTBEAT_POLL_MS):
                continue
            if self.faults.mute_heartbeat:
                self._closing.wait(HEARTBEAT_POLL_MS / 1000)  # the request stays unread until the fault is lifted
                continue
            self._heartbeat.send(heartbeat_reply(self._heartbeat.recv()))
        self._heartbeat.close()

    def send(self, block: Block) -> None:
        """Put one block on the wire: spikes, then TTL edges, then the counting channel."""
        if self.faults.restart != "none":
            self.offset = block.first_sample if self.faults.restart == "reset" else self.offset
            self.faults.restart = "none"
            self._run = _Run(word=self._run.word)
        if self.faults.freeze:
            self._run.deferred = []
            for line, state, _ in block.edges:
                self._set_line(line, state)
            return
        timestamp_ms = self._clock.utc_ns() // 1_000_000
        for unit, sample in self._spikes_due(block):
            self._send_spike(unit, sample, timestamp_ms)
        for line, state, sample in block.edges:
            self._set_line(line, state)
            self.sent.edges += 1
            self._put(
                ttl_frames(
                    self._next(), self._stream, EVENT_NODE, sample - self.offset, line, state, self._run.word,
                    timestamp_ms, self._style,
                )
            )  # fmt: skip
        first = block.first_sample - self.offset
        counter = (np.arange(first, first + block.num_samples) % COUNTER_MODULO).astype(np.float32)
        self._put(
            data_frames(self._next(), self._stream, 0, "CH1", first, self._rate_hz, counter, timestamp_ms, self._style)
        )
        self._release()

    def _spikes_due(self, block: Block) -> list[tuple[int, int]]:
        """Return (unit, sample) to send with this block, grouped per electrode; keep the late ones for the next."""
        everything = self._run.deferred + list(zip(block.spike_unit.tolist(), block.spike_sample.tolist(), strict=True))
        limit = block.first_sample + block.num_samples - DEFERRED_SAMPLES
        due = [s for s in everything if s[1] < limit]
        late = [s for s in everything if s[1] >= limit]
        if block.num_samples <= OVERFLOW_NEEDS_SAMPLES:
            self.sent.spikes_lost += len(late)
            late = []
        self._run.deferred = late
        return sorted(due)

    def _send_spike(self, unit: int, sample: int, timestamp_ms: int) -> None:
        electrode, sorted_id = self._names[unit]
        nodes = (SPIKE_NODE, SPIKE_NODE + 1) if self.faults.twin_node else (SPIKE_NODE,)
        self.sent.spikes += 1
        for node in nodes:
            self._put(
                spike_frames(
                    self._next(), self._stream, node, electrode, sample - self.offset, sorted_id, (THRESHOLD_UV,),
                    self._waveform, timestamp_ms, self._style,
                )
            )  # fmt: skip

    def _set_line(self, line: int, state: int) -> None:
        self._run.word = self._run.word | 1 << line if state else self._run.word & ~(1 << line)

    def _next(self) -> int:
        self._run.message_num += 1
        return self._run.message_num

    def _put(self, frames: list[bytes]) -> None:
        """Queue one numbered message, or lose it as the faults say."""
        if self.faults.drop_tail or self.faults.drop_messages > 0:
            self.faults.drop_messages = max(0, self.faults.drop_messages - 1)
            self.sent.dropped += 1
            return
        self._held.append(frames)

    def _release(self) -> None:
        """Send what is queued, unless this block is to be kept back."""
        if self.faults.hold_blocks > 0:
            self.faults.hold_blocks -= 1
            return
        for frames in self._held:
            self._data.send_multipart(frames, copy=True)
        self.sent.messages += len(self._held)
        self._held = []

    def close(self) -> None:
        """Close both sockets and end the heartbeat thread."""
        self._closing.set()
        self._thread.join()
        self._data.close()
        self._context.term()


def _electrode(unit: str) -> tuple[str, int]:
    """Split a unit's name into electrode and sorted id."""
    electrode, mark, number = unit.rpartition("#")
    if not mark or not number.isdecimal():
        raise ValueError(f"unit {unit!r} is not named electrode#number; name it like E01#0")
    return electrode, int(number)
