"""Replay over the wire: a recorded session's device traffic and its rig's documents on real sockets again.

Source, recorder and model server run unchanged, as the processes that they are, on the host clock of the recorded
session (`rig.clock.ReplayTime`). The devices are played by `rig.animal.replayed`, which is started by name as an animal
is; the rig's documents come from here (`rig.replay.stand_in`). What comes out is a session like any other, whose
SessionStart says that it is a replay and of which journal, and a comparison of its responses with the recorded ones.
Called by `stimloop replay --wire`.
"""

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from rig.clock import Clock, ReplayTime
from rig.links.peer import Peer
from rig.links.ports import free_port
from rig.messages import (
    Continuity,
    Document,
    Entry,
    Fault,
    Origin,
)
from rig.provenance import REPLAY_OF, process_started
from rig.recording.journal import read_all
from rig.replay.records import ReplayError
from rig.replay.stand_in import StandIn
from rig.replay.wire_compare import Compared, compare
from rig.replay.wire_recording import COMPARED, Recording, load
from rig.replay.wire_tape_zmq import BridgeTape
from rig.supervision.processes import Child, SessionFailed, wait_ready
from rig.timing import drain_s

WANTS = frozenset({"proposal", "model_updated", "phase_ended", "continuity"})
EARLY_NS = 120_000_000_000  # recorder and model server start so long before the first message, by the replayed clock
SOURCES_NS = 2_500_000_000  # and the sources: a source gives up after 4 s without a message
SLACK_NS = 50_000_000  # the clock may run ahead of the next document of the rig by this
CREEP = 10  # while it stands for a proposal it goes on by a tenth of real time, in case that hangs on a moment more,
CREEP_NS = 1_000_000_000  # at most by this
GIVE_UP_NS = 120_000_000_000  # real time; a proposal that has not come then will not
AHEAD_NS = 400_000_000  # and by this of what the recorder journalled last from every device
LAST_WORDS_NS = 3_000_000_000
LINGER_NS = 3_000_000_000  # after the last entry of a recording that was not closed in order
STOP_S = 10.0
PLAYED = "rig.animal.replayed"


@dataclass
class WireResult:
    """What a replay over the wire found."""

    folder: Path
    responses: Compared
    decisions: dict[str, int]  # identical ones, by kind
    different: list[str]
    missing: list[str]
    real_s: float
    recorded_s: float
    held_s: float  # replayed time stood still so long because a proposal came later than it did live
    faults: list[str]  # kinds of faults that came more often than in the recording

    @property
    def agrees(self) -> bool:
        """Whether every decision came again and every difference between responses is explained."""
        return self.responses.agrees and not self.different and not self.missing


# --- preparing --------------------------------------------------------------------------------------------------------


def _wired(recording: Recording) -> tuple[str, dict[str, int]]:
    """Return the recorded config with its devices on free ports of this computer, as text, and the ports."""
    ports: dict[str, int] = {}
    config: dict[str, Any] = json.loads(json.dumps(recording.start.config))
    for source in config["sources"]:
        ports[source["name"]] = source["port"] = free_port(2)
        source["host"] = "127.0.0.1"
        if "http_port" in source:
            source["http_port"] = None
    head = f"# Replay over the wire of {recording.start.session}: its config, with the devices on this computer.\n"
    return head + yaml.safe_dump(config, sort_keys=False, allow_unicode=True), ports


def _write_tape(path: Path, recording: Recording, ports: dict[str, int]) -> None:
    """Write the tape; the format is described in rig/animal/tape_file.py."""
    devices: list[dict[str, Any]] = []
    arrays: dict[str, npt.NDArray[Any]] = {}
    for k, source in enumerate(recording.config.sources):
        tape = recording.tapes[source.name]
        if isinstance(tape, BridgeTape):
            devices.append({"wire": tape.wire, "name": source.name, "port": ports[source.name], "stream": "",
                            "units": [], "rate_hz": tape.rate_hz, "runs": list(tape.runs),
                            "present": tape.clock.present})  # fmt: skip
            for name in ("due_host_ns", "message_end", "frame_end", "content"):
                arrays[f"{k}_{name}"] = getattr(tape, name)
            clock = tape.clock
            arrays |= {f"{k}_clock_run": clock.run, f"{k}_clock_host_ns": clock.host_ns,
                       f"{k}_clock_sample": clock.sample, f"{k}_mute_ns": clock.mute_ns,
                       f"{k}_told": clock.told}  # fmt: skip
            continue
        stream = getattr(source, "stream", None) or "ProbeA-AP"
        devices.append({"wire": "openephys", "name": source.name, "port": ports[source.name], "stream": stream,
                        "units": list(tape.units)})  # fmt: skip
        for name in ("due_host_ns", "kind", "number", "sample", "a", "b"):
            arrays[f"{k}_{name}"] = getattr(tape, name)
    head = json.dumps({"version": 1, "devices": devices}).encode()
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, head=np.frombuffer(head, dtype=np.uint8), **arrays)


def _prepare(recording: Recording, out: Path, text: str, speed: float, clock: Clock) -> None:
    """Make the new session's folder. Raises ReplayError if it is there."""
    try:
        (out / "logs").mkdir(parents=True)
    except FileExistsError as error:
        raise ReplayError(f"{out} is already there; give another folder with --out") from error
    (out / "config.yaml").write_text(text, encoding="utf-8")
    with (recording.folder / "session.journal").open("rb") as journal:
        digest = hashlib.file_digest(journal, "sha256").hexdigest()
    origin = Origin(
        session=recording.start.session,
        journal_sha256=digest,
        made_utc_ns=clock.utc_ns(),
        how={"replay": "over the wire", "speed": f"{speed:g} x" if speed else "as fast as possible"},
    )
    (out / REPLAY_OF).write_text(origin.model_dump_json(), encoding="utf-8")


# --- running ----------------------------------------------------------------------------------------------------------


class WireReplay:
    """The processes of one replay over the wire, and what is said to them."""

    def __init__(
        self, recording: Recording, out: Path, scratch: Path, clock: Clock, say: Callable[[str], None]
    ) -> None:
        """`scratch`: folder for tape and clock; `clock`: the real one; `say` gets lines for the user."""
        self._recording, self._out, self._scratch, self._clock, self._say = recording, out, scratch, clock, say
        self._children: dict[str, Child] = {}
        self._told_ns = 0
        self._heard: dict[str, int] = {}  # source: replayed host time at which its newest Continuity was journalled
        self.held_ns = 0
        self._waiting_since_ns: int | None = None
        self._stood_ns = 0  # for how long it has stood for the proposal that it stands for now, real time
        self._tape_over_ns: int | None = None  # real time at which the clock was first allowed to its end

    def _start(self, name: str, module: str, *arguments: str) -> Child:
        clock = ReplayTime.environment(self._scratch / "clock")  # the recorded session's host clock is theirs
        child = Child(name, ["-m", module, *arguments], self._out / "logs" / f"{name}.log", clock)
        self._children[name] = child
        return child

    def run(self, speed: float) -> StandIn:
        """Run the session again from its first to its last message; return what was compared on the way.

        Raises SessionFailed if a process cannot start or dies.
        """
        recording = self._recording
        first_ns = recording.first_ns
        with ExitStack() as stack:
            time = ReplayTime.make(self._scratch / "clock")
            stack.callback(time.close)
            time.set(first_ns - EARLY_NS, 1.0)
            stack.callback(self._end_all)
            folder = ("--folder", str(self._out))
            simulated = ["--simulated"] if recording.start.simulated else []
            recorder = self._start("recorder", "rig.recording.recorder", *folder, *simulated)
            wait_ready([recorder], self._clock)
            assert recorder.ready is not None  # noqa: S101 - just waited for
            endpoint = str(recorder.ready["endpoint"])
            model = self._start("model", "models", *folder, "--endpoint", endpoint)
            peers = self._peers(endpoint, time, stack)
            wait_ready([model], self._clock)
            time.set(first_ns - SOURCES_NS, 1.0)
            player = self._player(speed)
            for name in recording.tapes:
                self._start(name, "rig.sources", *folder, "--endpoint", endpoint, "--name", name)
            stand_in = self._play(player, peers, time)
            self._finish(player, peers)
        return stand_in

    def _peers(self, endpoint: str, time: ReplayTime, stack: ExitStack) -> "_Peers":
        recorded = self._recording.recorded
        lines = {}
        for name in sorted(recorded.senders | {"rig"}):
            wants = WANTS if name == "rig" else frozenset[str]()
            lines[name] = Peer(name, endpoint, wants, time)
            stack.callback(lines[name].close)
            notes = {"stands in for": f"{name} of {self._recording.start.session}"}
            lines[name].send(process_started(name, time, notes))
        return _Peers(lines, StandIn(recorded, lines))

    def _player(self, speed: float) -> Child:
        files = ("--tape", str(self._scratch / "tape.npz"), "--clock", str(self._scratch / "clock"))
        player = self._start("devices", PLAYED, *files, "--speed", f"{speed:g}")
        wait_ready([player], self._clock)
        return player

    def _play(self, player: Child, peers: "_Peers", time: ReplayTime) -> StandIn:
        """Let the recorded time pass, as fast as everybody follows."""
        recording, stand_in = self._recording, peers.stand_in
        recorder = self._children["recorder"]
        end_ns = recording.last_ns + int(drain_s(recording.config) * 1e9 if recording.whole else LINGER_NS)
        while True:
            self._look()
            for entry in peers.poll(0.001):
                if isinstance(entry.document, Continuity):
                    self._heard[entry.document.source] = entry.envelope.receipt_host_ns
                elif different := stand_in.take(entry):
                    self._say(different)
            now = time.now_ns()
            stand_in.step(now)
            self._wait_for_model(stand_in, now)
            done = "drained" in recorder.notes and recording.whole and stand_in.decided
            if stand_in.over and (done or now >= end_ns):
                return stand_in
            self._allow(player, stand_in)

    def _wait_for_model(self, stand_in: StandIn, now_ns: int) -> None:
        """Add up for how long the clock stood still because a proposal was late."""
        real_ns = self._clock.now_ns()
        if self._waiting_since_ns is not None:
            self.held_ns += real_ns - self._waiting_since_ns
            self._stood_ns += real_ns - self._waiting_since_ns
            if self._stood_ns > GIVE_UP_NS:
                raise SessionFailed(_no_proposal(stand_in))
        else:
            self._stood_ns = 0
        self._waiting_since_ns = real_ns if stand_in.waits(now_ns) else None

    def _allow(self, player: Child, stand_in: StandIn) -> None:
        """Say how far the clock may go."""
        heard = [self._heard.get(name, self._recording.first_ns) for name in self._recording.tapes]
        through_ns = min(heard) + AHEAD_NS
        if stand_in.next_due_ns is not None:
            creep_ns = min(self._stood_ns // CREEP, CREEP_NS)
            through_ns = min(through_ns, stand_in.next_due_ns + SLACK_NS + creep_ns)
        if (tape_end_ns := self._recording.tape_end_ns) <= through_ns and self._last_words():
            through_ns = tape_end_ns  # beyond it the devices would seem silent
        if through_ns > self._told_ns:
            self._told_ns = through_ns
            player.say(f"through {through_ns}")

    def _last_words(self) -> bool:
        """Whether what the tape's last messages cause may still be on its way: for some real time after its end."""
        now_ns = self._clock.now_ns()
        self._tape_over_ns = self._tape_over_ns or now_ns
        return now_ns < self._tape_over_ns + LAST_WORDS_NS

    def _look(self) -> None:
        for child in self._children.values():
            child.update()
            if child.failed is not None or child.exit_code is not None:
                raise SessionFailed(child.why())

    def _finish(self, player: Child, peers: "_Peers") -> None:
        """End the session in order."""
        player.say("free")
        peers.flush()
        names = [*self._recording.tapes, "model"]
        for name in names:
            self._children[name].say("stop")
        for name in [*names, "recorder"]:
            child = self._children.pop(name)
            if not child.end(STOP_S) or child.exit_code != 0:
                raise SessionFailed(child.why())

    def _end_all(self) -> None:
        for child in reversed([*self._children.values()]):
            child.end(STOP_S if child.name == "devices" else 1.0)
        self._children.clear()


@dataclass
class _Peers:
    """Our ends of the bus: one for each process that we stand in for."""

    lines: dict[str, Peer]
    stand_in: StandIn

    def poll(self, timeout_s: float) -> list[Entry]:
        """Exchange what is due; return what came to the rig."""
        for name, line in self.lines.items():
            if name != "rig":
                line.poll(0.0)
        return self.lines["rig"].poll(timeout_s)

    def flush(self) -> None:
        """Wait until all is journalled. Raises SessionFailed."""
        for name, line in self.lines.items():
            if not line.flush(STOP_S):
                raise SessionFailed(f"{line.unacked} documents of {name} were not journalled\n  cure: see the logs")


def _no_proposal(stand_in: StandIn) -> str:
    found = "; ".join([*stand_in.different[:3], *stand_in.missing()])
    return (
        f"the recording goes on with a proposal that the model server has not made in {GIVE_UP_NS * 1e-9:g} s ({found})"
        "\n  cure: replay with the program that recorded it; --verify shows where this one decides otherwise"
    )


def new_faults(recorded: list[Document], replayed: list[Document]) -> list[str]:
    """Return which kinds of faults a replay has more often than its recording, with both numbers."""
    before, after = (Counter(d.what for d in log if isinstance(d, Fault)) for log in (recorded, replayed))
    return [f"{what} ({after[what]}, recorded {before[what]})" for what in sorted(after) if after[what] > before[what]]


def replay_over_wire(
    folder: Path, out: Path, speed: float, clock: Clock, say: Callable[[str], None] = lambda line: None
) -> WireResult:
    """Replay the session in `folder` into the new folder `out`.

    `speed`: 1 is the original timing, N is N times as fast, 0 as fast as every process follows. `say` is told at once
    of every decision that differs. Raises ReplayError for a session that cannot be replayed so, SessionFailed if a
    process of the replay fails.
    """
    recording = load(folder)
    text, ports = _wired(recording)
    _prepare(recording, out, text, speed, clock)
    started_ns = clock.now_ns()
    with tempfile.TemporaryDirectory(prefix="stimloop-wire-") as scratch:
        _write_tape(Path(scratch) / "tape.npz", recording, ports)
        replay = WireReplay(recording, out, Path(scratch), clock, say)
        stand_in = replay.run(speed)
    kinds = frozenset(t.model_fields["kind"].default for t in COMPARED)
    documents = [entry.document for entry in read_all(out / "session.journal", kinds)]
    return WireResult(
        folder=out,
        responses=compare(
            recording.responses, documents, recording.rate_hz, recording.whole, recording.restarted
        ),
        decisions=dict(stand_in.identical),
        different=stand_in.different,
        missing=stand_in.missing() if recording.whole else [],
        real_s=(clock.now_ns() - started_ns) * 1e-9,
        recorded_s=(recording.last_ns - recording.first_ns) * 1e-9,
        held_s=replay.held_ns * 1e-9,
        faults=new_faults(recording.responses, documents),
    )
