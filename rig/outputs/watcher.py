"""The process around a pulser or a guardian: descriptors, waiting, and what happens when a partner is gone.

Whoever sees the other fail lowers the line, kills the other if it still has its end of the socket (it may be stopped
and not dead, and would go on later), lowers the line again, and ends. The owner then starts a new pair.
"""

import argparse
import gc
import os
import select
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from rig import priority
from rig.clock import Clock, HostClock
from rig.outputs import records as r
from rig.outputs.lines import HeldLine, held_line
from rig.supervision.child import shield

LAST_WAIT_S = 0.05


class Role(Protocol):
    """A pulser or a guardian."""

    def owner_said(self, told: r.Told) -> None:
        """Take a record of the owner."""
        ...

    def partner_said(self, told: r.Told) -> None:
        """Take a record of the other watcher."""
        ...

    def tick(self) -> bool:
        """Do what is due; return whether the other has failed."""
        ...

    def due_ns(self) -> int | None:
        """Return when something is due."""
        ...

    def end(self) -> None:
        """Lower the line for good."""
        ...


def serve(make: Callable[[HeldLine, r.Tell, r.Tell, Clock], Role]) -> int:
    """Be one of the two watchers until the owner or the other one is gone; return the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True, help="the open port")
    parser.add_argument("--kind", choices=["rts", "parport", "register"], required=True)
    parser.add_argument("--line", type=int, required=True)
    parser.add_argument("--partner", type=int, required=True, help="this end of the socket to the other watcher")
    parser.add_argument("--ordinary", action="store_true", help="ask for no real-time priority")
    options = parser.parse_args()
    shield()
    clock = HostClock(spin_ns=0)
    line = held_line(options.fd, options.kind, options.line)
    owner, owner_out, partner = r.Mailbox(0), r.Mailbox(1), r.Mailbox(options.partner)
    role = make(line, owner_out.tell, partner.tell, clock)
    priority.fifo(r.WATCHER_PRIORITY, not options.ordinary)
    gc.collect()
    gc.freeze()
    gc.disable()
    partner.tell(r.WHO, os.getpid())
    owner_out.tell(r.BEGAN, os.getpid())
    other: list[int] = []
    try:
        failed = _turn(role, owner, partner, clock, other)
    finally:
        line.set(False)
    role.end()
    if partner.open and other:
        # A partner that failed is killed at once; one whose owner is gone gets a moment to see that itself.
        if failed:
            _kill(other[0])
        _wait_closed(partner, clock)
        if partner.open:
            _kill(other[0])
            _wait_closed(partner, clock)
    line.set(False)
    return 1 if failed else 0


def _turn(role: Role, owner: r.Mailbox, partner: r.Mailbox, clock: Clock, other: list[int]) -> bool:
    """Serve until somebody is gone; return whether the partner failed. Its process id is put into `other`."""
    while True:
        due = role.due_ns()
        wait_s = None if due is None else max(due - clock.now_ns(), 0) * 1e-9
        select.select([owner.fd, partner.fd], [], [], wait_s)
        # What has come is read before silence is judged: a watcher that slept itself must not blame the other.
        for told in partner.read():
            if told.kind == r.WHO:
                other.append(told.number)
            else:
                role.partner_said(told)
        for told in owner.read():
            role.owner_said(told)
        if not partner.open:
            return True
        if not owner.open:
            return False
        if role.tick():
            return True


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _wait_closed(partner: r.Mailbox, clock: Clock) -> None:
    """Wait until the other has ended: the system closes its end of the socket."""
    end_ns = clock.now_ns() + int(LAST_WAIT_S * 1e9)
    while partner.open and (rest_ns := end_ns - clock.now_ns()) > 0:
        select.select([partner.fd], [], [], rest_ns * 1e-9)
        partner.read()
