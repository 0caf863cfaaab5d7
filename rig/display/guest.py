"""The guest rig as a process, `python -m rig.display.guest`: another program displays; stimloop plans, checks and logs.

Takes the place of `rig.display.session` where the config has a part `guest`; docs/wires/guest.md describes its socket,
a REP. It opens no window and imports no PsychoPy. What is answered is in `rig.display.guest_rig`.
"""

import argparse
import sys
from pathlib import Path

import zmq

from rig.clock import Clock, HostClock
from rig.config.reading import ConfigError, load
from rig.display.frames import FrameMaker
from rig.display.guest_rig import GuestRig
from rig.display.places import places
from rig.display.programme import WANTS
from rig.links.bus import said
from rig.links.curve import Door
from rig.links.keys import KeysError, server_keys
from rig.links.peer import Peer
from rig.messages import Fault
from rig.provenance import process_started
from rig.supervision.child import Stop, fail, say, shield
from stimuli.bank import folder_bank
from stimuli.tiles import built_in_banks

NAME = "rig"
WAIT_MS = 5
MOST_WAITING = 100  # requests that wait to be answered; a guest has one
FLUSH_S = 5.0
LAST_FLUSH_S = 20.0  # long enough for a recorder that is being restarted


def _serve(
    rig: GuestRig, socket: "zmq.Socket[bytes]", door: Door | None, line: Peer, clock: Clock, stop: Stop
) -> str:
    """Answer until the session ends; return why it did."""
    end_ns: int | None = None
    poller, refused = zmq.Poller(), 0
    for each in (socket,) if door is None else door.sockets:
        poller.register(each, zmq.POLLIN)
    while not stop:
        for entry in line.poll(0):
            rig.take(entry)
        ready = dict(poller.poll(WAIT_MS))
        for why in () if door is None else door.guard():
            refused += 1
            if said(refused):
                detail = f"guest: {why}; {refused} so far"
                line.send(Fault(what="connection refused", detail=detail, done="it was not let in"))
        if socket in ready:
            frames = socket.recv_multipart()
            socket.send_multipart(rig.answer(frames, clock.now_ns()))
        rig.watch()
        if rig.ended is not None:
            end_ns = clock.now_ns() + int(FLUSH_S * 1e9) if end_ns is None else end_ns
            if rig.told_end or clock.now_ns() > end_ns:
                return rig.ended
    return "the supervisor is gone" if stop.orphaned else "stopped by the supervisor"


def main(arguments: list[str] | None = None) -> int:
    """Process entry: `python -m rig.display.guest --folder SESSION --endpoint tcp://127.0.0.1:PORT`."""
    parser = argparse.ArgumentParser(prog="rig.display.guest")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--endpoint", required=True)
    options = parser.parse_args(arguments)
    stop, clock = Stop(), HostClock()
    try:
        config, _ = load(options.folder / "config.yaml")
        if config.guest is None:
            return fail(f"{NAME}: the config has no part `guest`", "add it, or let stimloop display by itself")
        where = places(config)
        banks = {name: folder_bank(path) for name, path in config.banks.items()}
    except (ConfigError, OSError, ValueError) as error:
        return fail(f"{NAME}: {error}", "mend config.yaml as the message says")
    banks |= built_in_banks(float(config.display.background), config.natural_contrast)
    display = config.display
    frames = FrameMaker(where, display.background, display.gamma, config.limits, banks)
    endpoint = f"tcp://{config.guest.bind}:{config.guest.port}"
    try:
        door = None if config.guest.keys is None else Door(zmq.REP, server_keys(config.guest.keys, "guest"))
    except KeysError as error:
        return fail(f"{NAME}: guest: {error}", "as the message says")
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.REP) if door is None else door.socket
    socket.setsockopt(zmq.LINGER, 200)
    socket.setsockopt(zmq.MAXMSGSIZE, 1 << 20)  # a little too large a request is answered with what is wrong
    socket.setsockopt(zmq.RCVHWM, MOST_WAITING)
    line = Peer(NAME, options.endpoint, WANTS, clock)
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        line.close()
        door.close() if door is not None else socket.close()
        return fail(f"{NAME}: {endpoint} cannot be opened for the guest: {error}", "choose another guest.port or bind")
    try:
        line.send(process_started(NAME, clock, {"rig": "guest", "endpoint": endpoint}))
        say(ready={"endpoint": endpoint})
        rig = GuestRig(config, where, frames, line, clock, stop)
        rig.close(_serve(rig, socket, door, line, clock, stop))
        with stop.pulse.busy(LAST_FLUSH_S + 1):
            flushed = line.flush(0.5 if stop.orphaned else LAST_FLUSH_S)
        if not flushed:
            return fail(f"{NAME}: {line.unacked} documents were not journalled", "look for the recorder's own message")
        return 0
    finally:
        door.close() if door is not None else socket.close()
        line.close()


if __name__ == "__main__":
    shield()
    sys.exit(main())
