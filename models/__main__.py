"""The model server's process: `python -m models --folder SESSION --endpoint tcp://127.0.0.1:PORT`.

The edge around the pure fold of `models.server`: it takes entries from the bus, steps the background work within a
time budget between two looks at the log, and sends what the fold emits. It never touches screen or device sockets.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.update(OMP_DYNAMIC="FALSE", MKL_DYNAMIC="FALSE")  # before torch: sums must not depend on the load

import psutil
import torch

from models.agents import build_from_config
from models.agents.types import Work
from models.server import WANTS, ModelServer
from rig.bus import Peer
from rig.child import Stop, fail, say, shield
from rig.clock import Clock, HostClock
from rig.config import Config, load
from rig.messages import (
    Fault,
)
from rig.provenance import process_started

NAME = "model"


class Burn:
    """Endless torch work (a small convolution net in training), to show that computing never disturbs the screen."""

    def __init__(self) -> None:
        """Build the net."""
        generator = torch.Generator().manual_seed(0)
        self._images = torch.rand((16, 3, 64, 64), generator=generator)
        self._net = torch.nn.Sequential(
            torch.nn.Conv2d(3, 32, 5), torch.nn.ReLU(), torch.nn.Conv2d(32, 32, 5), torch.nn.ReLU()
        )
        self._optimiser = torch.optim.SGD(self._net.parameters(), lr=1e-4)

    def step(self) -> None:
        """Take one training step (about 30 ms on one core)."""
        self._optimiser.zero_grad()
        loss = self._net(self._images).square().mean()
        loss.backward()
        self._optimiser.step()


def _lower_priority() -> str:
    """Let the screen and the devices go first; return what was done."""
    try:
        process = psutil.Process()
        process.nice(getattr(psutil, "BELOW_NORMAL_PRIORITY_CLASS", 10))
    except (psutil.AccessDenied, OSError) as error:
        return f"normal ({error})"
    return "below normal"


def _work(server: ModelServer, work: Work, peer: Peer, clock: Clock, budget_s: float) -> bool:
    """Step the work that the fold asked for, for at most the budget; when finished send WorkDone and return True."""
    end_ns = clock.now_ns() + int(budget_s * 1e9)
    finished = False
    while not finished and clock.now_ns() < end_ns:
        finished = work.step()
    if finished:
        peer.send(server.work_done(), server.work_cause)
    return finished


def _loop(config: Config, peer: Peer, clock: Clock, stop: Stop) -> None:
    server = ModelServer(build_from_config(config), len(config.phases))
    burn = Burn() if config.processes.burn else None
    submitted, ready, unread = -1, False, 0
    while not stop:
        busy = burn is not None or (server.work is not None and submitted != server.work_number)
        for entry in peer.poll(0.0 if busy else 0.02):
            for index, document in enumerate(server.handle(entry)):
                peer.send(document, (entry.envelope.seq, index))
        if server.work is not None and submitted != server.work_number:
            if _work(server, server.work, peer, clock, config.processes.work_step_s):
                submitted = server.work_number
        elif burn is not None:
            burn.step()
        if submitted >= 0 and not ready:
            ready = True
            say(ready={"threads": torch.get_num_threads()})
        if peer.refused > unread:
            unread = peer.refused
            peer.send(Fault(what="document refused", detail="by the recorder, from the model", done="none"))


def main(arguments: list[str] | None = None) -> int:
    """Process entry."""
    parser = argparse.ArgumentParser(prog="models")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--endpoint", required=True)
    options = parser.parse_args(arguments)
    stop, clock = Stop(), HostClock()
    config, _ = load(options.folder / "config.yaml")
    torch.set_num_threads(config.processes.torch_threads)
    torch.use_deterministic_algorithms(True)
    notes = {"torch threads": str(torch.get_num_threads()), "priority": _lower_priority()}
    peer = Peer(NAME, options.endpoint, WANTS, clock)
    peer.send(process_started(NAME, clock, notes))
    try:
        _loop(config, peer, clock, stop)
        if not peer.flush(2.0):
            return fail(f"{peer.unacked} documents were not taken by the recorder", "see the recorder's log")
    finally:
        peer.close()
    return 0


if __name__ == "__main__":
    shield()
    sys.exit(main())
