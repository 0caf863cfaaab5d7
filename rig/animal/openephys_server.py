"""A server of the Open Ephys ZMQ Interface wire: PUB for data, REP for heartbeats, faults that can be switched on.

The animal sends its blocks through it; nothing that listens can tell it from the GUI. The data socket belongs to the
thread that calls `send`, the heartbeat socket to a thread of its own. It never waits for a listener.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from rig.animal.openephys_faults import BLOCK_SAMPLES, Faults, Timetable
from rig.animal.openephys_ports import Conflict, Ports
from rig.animal.openephys_templates import data_template, spike_template, ttl_template
from rig.animal.openephys_voltage import PEAK_UV, Voltage
from rig.animal.openephys_wire import DATA_ENVELOPE, EVENT_ENVELOPE, TTL, Style, spike_waveform
from rig.animal.wire import Block
from rig.clock import Clock

__all__ = ["BLOCK_SAMPLES", "Faults", "OpenEphysServer", "Quirks", "Sent"]

DEFERRED_SAMPLES = 100  # spikes of a block's last 100 samples come with the next block
OVERFLOW_NEEDS_SAMPLES = 200  # at this length or below, the Spike Detector's overflow buffer is unused: they are lost
COUNTER_MODULO = 1 << 20
SPIKE_NODE = 103
EVENT_NODE = 100
THRESHOLD_UV = -60.0
STREAM = "ProbeA-AP"
FOREIGN_STREAM = "プローブA"
LEAST_BLOCK, LONGEST_BLOCK = 256, 1024  # samples, where hardware makes the blocks vary
JITTER_S = 0.008
LATE_EVERY_S = 20.0
LATE_S = 0.5

Message = tuple[bytes, bytes, bytes]


@dataclass
class Sent:
    """What the server has put on the wire so far."""

    messages: int = 0
    dropped: int = 0
    spikes: int = 0
    spikes_lost: int = 0
    edges: int = 0


@dataclass
class Quirks:
    """What a healthy real system does to a careless reader: blocks of varying length, jittered, now and then late."""

    rng: np.random.Generator

    def block_samples(self) -> int:
        """Return the length of the next block."""
        return int(self.rng.integers(LEAST_BLOCK, LONGEST_BLOCK))

    def jitter_ns(self) -> int:
        """Return how long the next block is held up."""
        return int(self.rng.uniform(0, JITTER_S) * 1e9)

    def late(self, block_s: float) -> bool:
        """Whether the next blocks come 500 ms late, in a burst; every 20 s in the mean."""
        return bool(self.rng.random() < block_s / LATE_EVERY_S)


@dataclass
class _Run:
    """Numbering since the last start of acquisition."""

    message_num: int = 0
    word: int = 0
    deferred: list[tuple[int, int]] = field(default_factory=list)  # (unit, sample), not yet sent


class OpenEphysServer:
    """Serves one stream on `port` (data) and `port + 1` (heartbeat); call `close` to end it.

    `units` are names like "E01#0": electrode and sorted id. Of `channels` continuous channels the first counts samples
    and the others are flat, unless `voltage` makes them. Without a `stream` it is called ProbeA-AP. `switches` are
    names of openephys_faults.SWITCHES, thrown by the device's time. Raises WireError where a port is taken,
    UnknownSwitch for a wrong name.
    """

    def __init__(
        self,
        units: tuple[str, ...],
        clock: Clock,
        port: int = 5556,
        stream: str | None = None,
        rate_hz: float = 30_000.0,
        style: Style = "1.0",
        faults: Faults | None = None,
        channels: int = 1,
        switches: Sequence[str] = (),
        quirks: Quirks | None = None,
        voltage: Voltage | None = None,
    ) -> None:
        self.faults = Faults() if faults is None else faults
        self.sent = Sent()
        self.offset = 0
        self.thrown: list[tuple[str, int]] = []  # switches thrown so far, with the device sample
        self._timetable = Timetable(switches)
        self._timetable.start(self.faults)
        always = self._timetable.always
        style = "0.6" if "style_0_6" in always else style
        foreign = quirks is not None or "non_ascii" in always
        stream = stream or (FOREIGN_STREAM if foreign else STREAM)
        self._clock, self._rate_hz, self._port = clock, rate_hz, port
        self._quirks, self._voltage = quirks, voltage
        self._length = self.faults.block_samples if quirks is None else quirks.block_samples()
        shape = spike_waveform(PEAK_UV)
        self._waveform = shape.astype("<f4").tobytes()
        who = [_electrode(name) for name in units]
        self._spikes = [
            spike_template(stream, e, k, (THRESHOLD_UV,), (shape.shape[0], shape.shape[1]), style) for e, k in who
        ]
        self._edge = ttl_template(stream, EVENT_NODE, style)
        name = "カナル{}" if foreign else "CH{}"
        self._channels = [data_template(stream, c, name.format(c + 1), rate_hz, style) for c in range(channels)]
        self._run = _Run()
        self._held: list[Message] = []
        self._first: int | None = None  # first sample of the first block
        self._back_at: int | None = None  # sample at which a GUI that died is back
        conflict: Conflict = "heartbeat" if "port_conflict_heartbeat" in always else "none"
        conflict = "data" if "port_conflict_data" in always else conflict
        self._ports = Ports(port, self._muted, conflict)

    @property
    def block_samples(self) -> int:
        """Length of the next block, samples."""
        return self.faults.block_samples if self._quirks is None else self._length

    def _muted(self) -> bool:
        return self.faults.mute_heartbeat

    # --- faults -------------------------------------------------------------------------------------------------------

    def _throw(self, block: Block) -> None:
        """Throw the switches that are due, and do at once what is done once."""
        first = self._first = block.first_sample if self._first is None else self._first
        names = self._timetable.apply(self.faults, (block.first_sample - first) / self._rate_hz)
        self.thrown += [(name, block.first_sample) for name in names]
        faults = self.faults
        if self._quirks is not None and self._quirks.late(block.num_samples / self._rate_hz):
            faults.hold_blocks = faults.hold_blocks or round(LATE_S * self._rate_hz / block.num_samples)
        if faults.rebind:
            faults.rebind = False
            self._ports.close()
            self._port += 2
            self._ports = Ports(self._port, self._muted)
        if faults.back_jump:
            self.offset = min(self.offset + faults.back_jump, block.first_sample)  # no sample before 0
            faults.back_jump = 0
            self._run.deferred = []
        if faults.restart != "none":
            self.offset = block.first_sample if faults.restart == "reset" else self.offset
            faults.restart = "none"
            self._run = _Run(word=self._run.word)

    def _away(self, block: Block) -> bool:
        """Whether the GUI is dead; brings it back when its time is over."""
        if self._back_at is None:
            return False
        if block.first_sample < self._back_at:
            return True
        self._back_at = None
        self._run = _Run(word=self._run.word)
        self._ports = Ports(self._port, self._muted)
        return False

    def _lose(self, block: Block) -> None:
        """Drop a block that the GUI never handled: only the lines change."""
        self._run.deferred = []
        for line, state, _ in block.edges:
            self._set_line(line, state)

    # --- blocks -------------------------------------------------------------------------------------------------------

    def send(self, block: Block) -> None:
        """Put one block on the wire: spikes, then TTL edges, then the continuous channels."""
        self._throw(block)
        if self._away(block) or self.faults.freeze:
            self._lose(block)
            return
        if self._quirks is not None:
            self._length = self._quirks.block_samples()
            self._clock.sleep_until_ns(self._clock.now_ns() + self._quirks.jitter_ns())
        timestamp_ms = self._clock.utc_ns() // 1_000_000 + self.faults.clock_step_ms
        nodes = (SPIKE_NODE, SPIKE_NODE + 1) if self.faults.twin_node else (SPIKE_NODE,)
        due = self._spikes_due(block)
        self.sent.spikes += len(due)
        for unit, sample in due:
            for node in nodes:
                header = self._spikes[unit].fill((self._next(), node, sample - self.offset, timestamp_ms))
                self._put((EVENT_ENVELOPE, header, self._waveform))
        for line, state, sample in block.edges:
            self._set_line(line, state)
            self.sent.edges += 1
            header = self._edge.fill((self._next(), sample - self.offset, timestamp_ms))
            self._put((EVENT_ENVELOPE, header, TTL.pack(line, state, self._run.word)))
        self._send_channels(block, timestamp_ms)
        self._release(block)

    def _send_channels(self, block: Block, timestamp_ms: int) -> None:
        first, count = block.first_sample - self.offset, block.num_samples
        if self._voltage is not None:
            volts = self._voltage.block(block.first_sample, count, block.spike_unit, block.spike_sample)
            payloads = [row.astype("<f4").tobytes() for row in volts]
        else:
            counter = (np.arange(first, first + count) % COUNTER_MODULO).astype("<f4").tobytes()
            payloads = [counter] + [bytes(4 * count)] * (len(self._channels) - 1)
        for template, payload in zip(self._channels, payloads, strict=True):
            header = template.fill((self._next(), count, first, 4 * count, timestamp_ms))
            self._put((DATA_ENVELOPE, header, payload))

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

    def _set_line(self, line: int, state: int) -> None:
        self._run.word = self._run.word | 1 << line if state else self._run.word & ~(1 << line)

    def _next(self) -> int:
        self._run.message_num += 1
        return self._run.message_num

    def _put(self, message: Message) -> None:
        """Queue one numbered message, or lose it as the faults say."""
        if self.faults.drop_tail or self.faults.drop_messages > 0:
            self.faults.drop_messages = max(0, self.faults.drop_messages - 1)
            self.sent.dropped += 1
            return
        self._held.append(message)

    def _release(self, block: Block) -> None:
        """Send what is queued, unless this block is to be kept back."""
        if self.faults.leave_s > 0 and self._held:
            half = len(self._held) // 2
            self._ports.send(self._held[:half])
            self._ports.break_off(self._held[half])
            self._back_at = block.first_sample + round(self.faults.leave_s * self._rate_hz)
            self.faults.leave_s = 0.0
            self._held = []
            return
        if self.faults.hold_blocks > 0:
            self.faults.hold_blocks -= 1
            return
        self._ports.send(self._held)
        self.sent.messages += len(self._held)
        self._held = []

    def close(self) -> None:
        """Close both sockets and end the heartbeat thread."""
        self._ports.close()


def _electrode(unit: str) -> tuple[str, int]:
    """Split a unit's name into electrode and sorted id."""
    electrode, mark, number = unit.rpartition("#")
    if not mark or not number.isdecimal():
        raise ValueError(f"unit {unit!r} is not named electrode#number; name it like E01#0")
    return electrode, int(number)
