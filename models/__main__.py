"""The model server's process: `python -m models --folder SESSION --endpoint tcp://127.0.0.1:PORT`.

The edge around the pure fold of `models.server`: it takes entries from the bus, steps the background work within a
time budget between two looks at the log, and sends what the fold emits. Config and identity of the session come from
the log; after a restart the newest good snapshot and the entries after it give back what the fold knew. It never
touches screen or device sockets.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

os.environ.update(OMP_DYNAMIC="FALSE", MKL_DYNAMIC="FALSE")  # before torch: sums must not depend on the load


from models.agents import build_from_config
from models.agents.carried import Carried
from models.agents.types import Work
from models.server import WANTS, ModelServer, Said
from models.snapshot import Snapshot, Snapshots, program_identity, session_identity, usable
from rig.clock import Clock, HostClock
from rig.config.generators import NetworkGenerator
from rig.config.inception import LoopPhase
from rig.config.phases import EvolvePhase, PresentPhase
from rig.config.places import usual
from rig.config.revisit import RevisitPhase
from rig.config.session import Config
from rig.links.peer import Peer
from rig.messages import (
    Entry,
    Envelope,
    Fault,
    ProcessStarted,
    Proposal,
    SessionStart,
    kind_of,
)
from rig.priority import step_back
from rig.provenance import process_started
from rig.supervision.child import Stop, fail, say, shield

if TYPE_CHECKING:
    from models.fine_tuning import FineTuning

NAME = "model"
STARTS = frozenset({"session_start", "process_started"})
EMITS = frozenset({"proposal", "model_updated", "phase_ended", "fault"})
POLL_S = 0.02
Read = Callable[[frozenset[str], int], Iterator[Entry]]  # entries of some kinds, after one: the log as it comes


class Asked(Protocol):
    """What is asked in every round whether to stop: `rig.supervision.child.Stop`, or `models.remote.Watch`."""

    def __bool__(self) -> bool:
        """Whether to stop."""
        ...


class Stopped(Exception):
    """The supervisor wants the end before the server was there."""


class CannotBegin(ValueError):
    """A phase of the config could not begin; the message says which and why."""


# --- the start, first or again ----------------------------------------------------------------------------------------


def _entries(peer: Peer, stop: Asked) -> Iterator[Entry]:
    """Yield the log as it comes; raises Stopped."""
    while not stop:
        yield from peer.poll(POLL_S)
    raise Stopped


def _introduce(peer: Peer, stop: Asked, clock: Clock) -> tuple[SessionStart, int]:
    """Say that this process has started; return the session's first document and the seq of its own."""
    peer.send(process_started(NAME, clock, {"priority": step_back()}))
    start: SessionStart | None = None
    for entry in _entries(peer, stop):
        if isinstance(entry.document, SessionStart):
            start = entry.document
        elif isinstance(entry.document, ProcessStarted) and entry.envelope.process == peer.process:
            break
    if start is None:
        raise ValueError("the log does not begin with a SessionStart")
    return start, entry.envelope.seq


def _set_torch(config: Config) -> None:
    networks = (isinstance(p, EvolvePhase) and isinstance(p.generator, NetworkGenerator) for p in config.phases)
    if any(networks) or any(isinstance(p, LoopPhase) for p in config.phases):
        import torch  # 2 s that only these need; with as many threads as replay takes

        torch.set_num_threads(config.processes.torch_threads)
        torch.use_deterministic_algorithms(True)


def _server(config: Config) -> ModelServer:
    _set_torch(config)
    repeats = config.presentation.repeats_of_unusable
    return ModelServer(build_from_config(config), len(config.phases), repeats)


def begins(config: Config) -> None:
    """Raise CannotBegin for phases of fixed pictures or networks that lack one, also where they come later.

    A later phase is built when the one before it ends: then the animal is in front of the screen.
    """
    # The place of `stimulus` and all units stand for what earlier phases will find, as in `models.warmup`.
    found = Carried(phase=0, agent="check", place=usual(config.stimulus), units=config.responses.units)
    try:
        build = build_from_config(config)
        for k, phase in enumerate(config.phases):
            if isinstance(phase, PresentPhase | LoopPhase | RevisitPhase):
                build(k, (found,))
    except (ValueError, OSError) as error:
        raise CannotBegin(str(error)) from error


def restored(
    config: Config, read: Read, snapshots: Snapshots, before_seq: int, refused: Callable[[Path, str], None]
) -> tuple[ModelServer, int, str]:
    """Return the fold as the newest good snapshot has it, the entry that it stands at, and which snapshot that was.

    `read` gives the log, which holds this start's own entry at `before_seq`; `refused` is told of every snapshot that
    cannot be used. Without a good one the fold begins anew, before the first entry; raises CannotBegin then.
    """
    for path, snapshot in usable(snapshots, before_seq):
        if isinstance(snapshot, Snapshot):
            server = _server(config)
            server.restore(snapshot.state)
            seq, why = snapshot.envelope.seq, _lost(snapshot.envelope, server.said, read, before_seq)
            if not why:
                return server, seq, f"{path.name}, entry {seq}"
            why = f"{path.name}: {why}"
        else:
            why = str(snapshot)
        refused(path, why)
    _set_torch(config)  # what is computed while the phases are tried out stays in memory
    begins(config)
    return _server(config), 0, "none: the log from its beginning"


def _lost(stands_at: Envelope, said: Sequence[Said], read: Read, before_seq: int) -> str:
    """Return what the log lacks of the entry that a snapshot stands at and of what was `said` by then, "" if nothing.

    A power loss may take what was said and leave the entry that caused it: whoever goes on would never say it again.
    """
    missing, there = dict.fromkeys(said), False
    # Always the same kinds: entries of an earlier question may still be on their way here.
    for entry in read(WANTS | STARTS | EMITS, min([stands_at.seq, *(s.cause_seq for s in said)]) - 1):
        envelope = entry.envelope
        there = there or envelope == stands_at
        if envelope.seq >= stands_at.seq and not there:
            return f"entry {stands_at.seq} of the log is not the one that it was made after"
        if envelope.sender == NAME and envelope.cause_seq is not None and envelope.cause_index is not None:
            missing.pop(Said(kind_of(entry.document), envelope.cause_seq, envelope.cause_index), None)
        if (there and not missing) or envelope.seq >= before_seq:
            break
    lost = next(iter(missing), None)
    return "" if lost is None else f"the log has lost the {lost.kind} that entry {lost.cause_seq} caused"


def _resume(config: Config, peer: Peer, stop: Asked, snapshots: Snapshots, before_seq: int) -> tuple[ModelServer, str]:
    """Return the fold as the newest good snapshot has it, and the peer's log set to go on after it.

    Every snapshot that cannot be used is named in a Fault and set aside.
    """

    def read(wants: frozenset[str], last_seq: int) -> Iterator[Entry]:
        peer.follow(wants, last_seq)
        return _entries(peer, stop)

    def refused(path: Path, why: str) -> None:
        done = "set aside; an older snapshot or the log from its beginning is used"
        peer.send(Fault(what="snapshot refused", detail=why, done=done))
        with suppress(OSError):  # a folder that cannot be written: it will be named again
            snapshots.set_aside(path)

    server, seq, name = restored(config, read, snapshots, before_seq, refused)
    peer.follow(WANTS | STARTS, seq)
    return server, name


# --- the loop ---------------------------------------------------------------------------------------------------------


def _work(server: ModelServer, work: Work, peer: Peer, clock: Clock, budget_s: float) -> bool:
    """Step the work that the fold asked for, for at most the budget; at its end send WorkDone and return True.

    A step that raises ends it too: taken again after a restart it would raise again, until the session is given up.
    Where nothing was proposed yet it is raised: whoever starts the session hears it at once.
    """
    end_ns = clock.now_ns() + int(budget_s * 1e9)
    finished = False
    try:
        while not finished and clock.now_ns() < end_ns:
            finished = work.step()
        done = server.work_done() if finished else None
    except MemoryError:
        raise  # the machine's state, as in the fold
    except Exception as error:
        if not server.proposed:
            raise
        done = server.work_failed(error)
    if done is not None:
        peer.send(done, server.work_cause)
    return done is not None


class Edge:
    """The loop around the fold."""

    def __init__(
        self, config: Config, server: ModelServer, peer: Peer, clock: Clock, snapshots: Snapshots, encoders: Path
    ) -> None:
        """Feed `server` from `peer`; keep its state in `snapshots`, and trained cores in the folder `encoders`."""
        self._config, self._server, self._peer, self._clock = config, server, peer, clock
        self._snapshots, self._encoders = snapshots, encoders
        self._last: Envelope | None = None  # of the last entry that the fold was given
        self._due = False  # whether a proposal was made since the last snapshot
        self._unsaved = False  # whether it was said that snapshots cannot be written
        self.caught_up = False
        self.submitted = -1  # number of the last work whose WorkDone was sent

    @property
    def computing(self) -> bool:
        """Whether work that was asked for is not finished."""
        return self._server.work is not None and self.submitted != self._server.work_number

    def take(self, timeout_s: float) -> None:
        """Give the fold what the log has; send what it emits."""
        for entry in self._peer.poll(timeout_s):
            if kind_of(entry.document) not in WANTS:
                self.caught_up = self.caught_up or entry.envelope.process == self._peer.process
                continue
            self._last = entry.envelope
            for index, document in enumerate(self._server.handle(entry)):
                self._due = self._due or isinstance(document, Proposal)
                self._peer.send(document, (entry.envelope.seq, index))

    def compute(self) -> None:
        """Work for a moment on what the fold asked for."""
        work = self._server.work
        if work is not None and _work(self._server, work, self._peer, self._clock, self._config.processes.work_step_s):
            self.submitted = self._server.work_number

    def save(self) -> None:
        """Write a snapshot after each proposal, while the images of it are shown.

        Only when everything that the fold emitted is journalled: a restart goes on after the snapshot's entry and would
        never say it again.
        """
        if not self._due or self._last is None or self._peer.unacked:
            return
        self._due = False
        try:
            self._snapshots.write(Snapshot(self._last, self._server.state()))
            self._keep_cores()
        except OSError as error:
            if not self._unsaved:
                done = "none: a restarted model server will read the log from an older one, or from its beginning"
                self._peer.send(Fault(what="snapshot not written", detail=str(error), done=done))
            self._unsaved = True

    def _keep_cores(self) -> None:
        """Write the cores of networks that were trained to their end, once for each phase."""
        if (found := self._server.trains) is None:
            return
        path = self._encoders / f"phase{found[0] + 1}.safetensors"
        if not path.exists() and (cores := found[1].cores()) is not None:
            from models.encoders.core_files import write_cores  # torch: loaded by such an agent

            write_cores(path, cores)


def _fine_tuning(config: Config, clock: Clock) -> "FineTuning":
    from models.fine_tuning import FineTuning  # torch: 2 s of a restart that needs it only here

    return FineTuning(config.processes.torch_threads, clock.now_ns)


def _loop(
    edge: Edge, peer: Peer, stop: Asked, resumed: str, begin: "Callable[[], FineTuning] | None"
) -> "FineTuning | None":
    """Serve until told to stop; once ready, also compute what `begin` makes, if anything, and return it."""
    burn: FineTuning | None = None
    ready, unread = False, 0
    while not stop:
        edge.take(0.0 if edge.computing or burn is not None else POLL_S)
        if edge.computing:
            edge.compute()
        elif burn is not None:
            burn.step()
        edge.save()
        if not ready and edge.caught_up and not edge.computing:
            ready = True
            say(ready={"torch": "torch" in sys.modules, "snapshot": resumed})
            burn = None if begin is None else begin()
        if peer.refused > unread:
            unread = peer.refused
            peer.send(Fault(what="document refused", detail="by the recorder, from the model", done="none"))
    return burn


def take_part(
    peer: Peer, stop: Asked, clock: Clock, folder: Callable[[SessionStart], Path], mended: Callable[[Config], Config]
) -> None:
    """Take part in the session of `peer` until told to stop; raises Stopped if that comes before the server is there.

    `folder` says where its snapshots go; `mended` is given the session's config and returns the one to use here.
    """
    start, own_seq = _introduce(peer, stop, clock)
    config, session = mended(Config.model_validate(start.config)), session_identity(start)
    snapshots = Snapshots(folder(start) / "snapshots", session, program_identity())
    server, resumed = _resume(config, peer, stop, snapshots, own_seq)
    edge = Edge(config, server, peer, clock, snapshots, folder(start) / "encoders")
    burn = _loop(edge, peer, stop, resumed, partial(_fine_tuning, config, clock) if config.processes.burn else None)
    if burn is not None:
        burn.write(folder(start))


def main(arguments: list[str] | None = None) -> int:
    """Process entry."""
    parser = argparse.ArgumentParser(prog="models")
    parser.add_argument("--folder", type=Path, required=True, help="session folder; snapshots are kept in it")
    parser.add_argument("--endpoint", required=True)
    options = parser.parse_args(arguments)
    stop, clock = Stop(), HostClock()
    peer = Peer(NAME, options.endpoint, STARTS, clock)
    try:
        take_part(peer, stop, clock, lambda _: options.folder, lambda config: config)
        if not peer.flush(2.0):
            return fail(f"{peer.unacked} documents were not taken by the recorder", "see the recorder's log")
    except Stopped:
        return 0
    except CannotBegin as error:
        return fail(str(error), "mend the config as it says; `stimloop check` tells it beforehand")
    finally:
        peer.close()
    return 0


if __name__ == "__main__":
    shield()
    sys.exit(main())
