"""What can go wrong on the Open Ephys wire, by name: every fault switch of the fake server and when it is thrown.

Pure. `Faults` is the state that the server reads before each block; tests and programs set its fields. `Timetable`
throws named switches by the device's own time: those of `animal.wire_faults.switches`, of `stimloop fake openephys` and
of `stimloop bench loss`. docs/fake_openephys.md describes each for users.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

BLOCK_SAMPLES = 696  # 1024 frames of the GUI's 44.1 kHz audio clock at 30 kHz: 23.2 ms
SHORT_BLOCK = 174  # 256 frames: the Spike Detector loses what lies in the last 100 samples
DROPPED = 40
BACK_JUMP = 60_000
CLOCK_STEP_MS = 3_600_000
LATE_S = 0.5
AWAY_S = 2.0
FIRST_S = 5.0
EVERY_S = 5.0


@dataclass
class Faults:
    """What goes wrong; may be set while the server runs, is read before each block. Counts are used up."""

    drop_messages: int = 0  # the next k messages are numbered and never sent
    drop_tail: bool = False  # while True every message is numbered and never sent: a lost tail shows no gap
    freeze: bool = False  # while True blocks are lost unnumbered, as when the GUI hangs; heartbeats go on
    mute_heartbeat: bool = False  # while True heartbeats stay unanswered; data go on
    restart: Literal["none", "keep", "reset"] = "none"  # once: message_num from 1; samples go on or begin at 0
    back_jump: int = 0  # once: sample numbers go back by so many within the acquisition, as in a looping file
    twin_node: bool = False  # a second processor sends spikes under the same stream and electrode names
    block_samples: int = BLOCK_SAMPLES  # length of the next blocks; 200 or less lose spikes as the GUI does
    hold_blocks: int = 0  # the next k blocks are kept back and come in one burst with the block after them
    clock_step_ms: int = 0  # the GUI computer's wall clock is off by so much: only `timestamp` shows it
    rebind: bool = False  # once: both sockets close and come back two ports higher, for good
    leave_s: float = 0.0  # once: the GUI dies with LINGER 0 in the middle of a message, and is back after so long


@dataclass(frozen=True)
class Switch:
    """One named fault. `seconds` is how long it lasts; None: it holds from the start of the server on."""

    words: str
    seconds: float | None
    on: Callable[[Faults], None] = lambda _: None
    off: Callable[[Faults], None] = lambda _: None
    again: bool = True  # whether it may be thrown a second time


def _set(**fields: object) -> Callable[[Faults], None]:
    def apply(faults: Faults) -> None:
        for name, value in fields.items():
            setattr(faults, name, value)

    return apply


def _late(faults: Faults) -> None:
    faults.hold_blocks = round(LATE_S * 30_000 / faults.block_samples)


SWITCHES: dict[str, Switch] = {
    "drop": Switch(f"{DROPPED} messages are lost", 0.0, _set(drop_messages=DROPPED)),
    "drop_tail": Switch(
        "1 s of messages is lost, numbered", 1.0, _set(drop_tail=True), _set(drop_tail=False)
    ),
    "freeze": Switch(
        "no data for 1 s while heartbeats go on; the device loses these samples", 1.0, _set(freeze=True),
        _set(freeze=False),
    ),
    "mute_heartbeat": Switch(
        "no heartbeat replies for 8 s while data go on", 8.0, _set(mute_heartbeat=True), _set(mute_heartbeat=False)
    ),
    "restart_keep": Switch("acquisition restarts, sample numbers go on", 0.0, _set(restart="keep")),
    "restart_reset": Switch("acquisition restarts, sample numbers begin at 0", 0.0, _set(restart="reset")),
    "back_jump": Switch("sample numbers go back by 2 s within the acquisition", 0.0, _set(back_jump=BACK_JUMP)),
    "rebind": Switch("the plugin moves two ports up, for good", 0.0, _set(rebind=True), again=False),
    "clock_step": Switch("the wall clock steps by an hour", 0.0, _set(clock_step_ms=CLOCK_STEP_MS), again=False),
    "late_block": Switch("blocks are held for 500 ms, then come in a burst", 0.0, _late),
    "exit_mid_message": Switch("the GUI dies in the middle of a message, back after 2 s", 0.0, _set(leave_s=AWAY_S)),
    "port_conflict_heartbeat": Switch("port P + 1 was taken: data on P + 2, no heartbeat at all", None),
    "port_conflict_data": Switch("port P was taken: data nowhere, heartbeats on P + 1", None),
    "short_blocks": Switch("blocks of 174 samples lose spikes", None, _set(block_samples=SHORT_BLOCK)),
    "duplicate_stream": Switch("a second processor sends under the same stream and names", None, _set(twin_node=True)),
    "non_ascii": Switch("names that are not ASCII: truncated headers", None),
    "style_0_6": Switch("JSON as GUI 0.6 writes it", None),
}  # fmt: skip


class UnknownSwitch(ValueError):
    """A name that is no switch of this wire; the message lists those that are."""


@dataclass(frozen=True)
class Thrown:
    """One switch of a timetable: its name and when it is thrown, s after the first block; None: see `Timetable`."""

    name: str
    at_s: float | None


def read_switch(text: str) -> Thrown:
    """Read "name" or "name@seconds"; raises UnknownSwitch."""
    name, mark, when = text.partition("@")
    if name not in SWITCHES:
        known = ", ".join(SWITCHES)
        raise UnknownSwitch(f"{name!r} is no fault switch of the Open Ephys wire; choose from {known}")
    if not mark:
        return Thrown(name, None)
    try:
        at_s = float(when)
    except ValueError:
        at_s = -1.0
    if not 0 <= at_s < 1e6 or SWITCHES[name].seconds is None:
        raise UnknownSwitch(f"{text!r}: write seconds after @, and only for switches that are thrown while it runs")
    return Thrown(name, at_s)


class Timetable:
    """Throws switches by the device's time.

    "name@seconds" is thrown once at that time. Names alone take turns: the first after 5 s, the next 5 s later, and so
    on round and round, each for as long as it lasts. Switches without a duration hold from the start on.
    """

    def __init__(self, names: Sequence[str]) -> None:
        """Plan `names`; raises UnknownSwitch."""
        thrown = [read_switch(name) for name in names]
        self.always = frozenset(t.name for t in thrown if SWITCHES[t.name].seconds is None)
        self._turns = [t.name for t in thrown if t.at_s is None and t.name not in self.always]
        self._once = sorted((t.at_s, t.name) for t in thrown if t.at_s is not None)
        self._next_turn = 0
        self._offs: list[tuple[float, str]] = []
        self._spent: set[str] = set()

    def start(self, faults: Faults) -> None:
        """Throw what holds from the start on."""
        for name in sorted(self.always):
            SWITCHES[name].on(faults)

    def apply(self, faults: Faults, elapsed_s: float) -> list[str]:
        """Throw what is due and take back what is over; return the names of what was thrown."""
        for end_s, name in [o for o in self._offs if o[0] <= elapsed_s]:
            SWITCHES[name].off(faults)
            self._offs.remove((end_s, name))
        thrown = []
        while self._once and self._once[0][0] <= elapsed_s:
            thrown.append(self._once.pop(0)[1])
        while self._turns and FIRST_S + self._next_turn * EVERY_S <= elapsed_s:
            thrown.append(self._turns[self._next_turn % len(self._turns)])
            self._next_turn += 1
        thrown = [name for name in thrown if name not in self._spent]
        for name in thrown:
            switch = SWITCHES[name]
            switch.on(faults)
            if not switch.again:
                self._spent.add(name)
            if switch.seconds:
                self._offs.append((elapsed_s + switch.seconds, name))
        return thrown
