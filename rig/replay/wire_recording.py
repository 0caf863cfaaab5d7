"""A recorded session as a replay over the wire needs it: tapes of its devices, what its rig said, its responses.

Read by `rig.replay.wire`; refuses, with reason and cure, what cannot be sent again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rig.config.session import Config
from rig.config.sources import AnySource, OpenEphysSource, SpikesWireSource, TracesWireSource
from rig.encoding import BadDocument
from rig.messages import (
    ClockSample,
    Continuity,
    Document,
    EdgeBlock,
    Entry,
    Fault,
    ProcessStarted,
    Response,
    SessionStart,
    SpikeBlock,
    TraceBlock,
    UnitList,
)
from rig.replay.records import Log, ReplayError
from rig.replay.stand_in import Recorded
from rig.replay.wire_tape import NotReplayable, Tape, openephys_tape
from rig.replay.wire_tape_zmq import BridgeTape, zmq_tape

TAPED = (SpikeBlock, TraceBlock, UnitList, EdgeBlock, ClockSample, Continuity)
COMPARED = (Response, Fault)


@dataclass(frozen=True)
class Recording:
    """A recorded session as it is needed here."""

    folder: Path
    start: SessionStart
    config: Config
    recorded: Recorded
    tapes: dict[str, Tape | BridgeTape]
    responses: list[Document]  # and faults
    rate_hz: float  # samples per s of the scored device
    last_ns: int  # host time of the last entry
    whole: bool  # closed in order
    restarted: bool  # the scored device's source was started again on the way

    @property
    def first_ns(self) -> int:
        """Host time of the first message of a device."""
        return min(int(tape.due_host_ns[0]) for tape in self.tapes.values())

    @property
    def tape_end_ns(self) -> int:
        """Host time of the last message of the device that ended first."""
        return min(int(tape.due_host_ns[-1]) for tape in self.tapes.values())


def load(folder: Path) -> Recording:
    """Read a session and make the tapes of its devices. Raises ReplayError where that cannot be done, with the cure."""
    log = Log(folder / "session.journal")
    entries = _decoded(log)
    first = next(entries, None)
    if first is None:
        raise ReplayError(f"{log.path} holds no record; there is nothing to replay")
    if not isinstance(first.document, SessionStart):
        raise ReplayError(f"{log.path} does not begin with a SessionStart; nothing can be replayed from it")
    config = _refused(folder, first.document)
    sources = frozenset(s.name for s in config.sources)
    recorded, devices, compared, boots = Recorded(sources), list[Entry](), list[Document](), set[str]()
    rate_hz, last_ns, starts = 0.0, 0, 0
    for entry in entries:
        document, last_ns = entry.document, entry.envelope.receipt_host_ns
        recorded.take(entry)
        if isinstance(document, TAPED):
            devices.append(entry)
        elif isinstance(document, COMPARED):
            compared.append(document)
            if entry.envelope.sender in sources:  # what it says of its device's clock
                devices.append(entry)
        elif isinstance(document, ProcessStarted):
            boots.add(document.boot_id)
            starts += document.name == config.neural.name
        if isinstance(document, Continuity) and document.source == config.neural.name:
            rate_hz = document.sample_rate_hz or rate_hz
    if len(boots) > 1:
        raise ReplayError(f"{folder} goes on over a reboot, so it has no one host clock; replay it with --verify")
    try:
        tapes = {source.name: _tape(devices, source) for source in sorted(config.sources, key=lambda s: s.name)}
    except NotReplayable as error:
        raise ReplayError(f"{folder}: {error}") from error
    return Recording(
        folder, first.document, config, recorded, tapes, compared, rate_hz, last_ns, log.closed, starts > 1
    )


def _tape(devices: list[Entry], source: AnySource) -> Tape | BridgeTape:
    if isinstance(source, SpikesWireSource):
        return zmq_tape(devices, source.name, "spikes")
    if isinstance(source, TracesWireSource):
        return zmq_tape(devices, source.name, "traces")
    return openephys_tape(devices, source.name)


def _decoded(log: Log) -> Iterator[Entry]:
    for record in log:
        try:
            yield record.entry
        except BadDocument as error:
            raise ReplayError(
                f"{log.path}: entry {record.seq} cannot be read by this version of the program ({error}); replay it "
                "with the version that recorded it"
            ) from error


def _refused(folder: Path, start: SessionStart) -> Config:
    """Return the session's config; raises ReplayError for one whose traffic cannot be sent again."""
    if start.derived_from is not None:
        raise ReplayError(
            f"{folder} was derived from {start.derived_from.session} by units sorted offline, and its spikes never "
            "came over a wire; replay that session"
        )
    config = Config.model_validate(start.config)
    for source in config.sources:
        if isinstance(source, SpikesWireSource | TracesWireSource):
            continue
        if not isinstance(source, OpenEphysSource):
            raise ReplayError(
                f"{folder}: the source {source.name!r} is of type {source.type}; only Open Ephys traffic (type "
                "openephys) and the open wires (spikes_zmq, traces_zmq) can be sent again: use --verify"
            )
        if source.multiunit is not None:
            raise ReplayError(
                f"{folder}: the units of {source.name!r} were found in its voltage (multiunit), which no journal "
                "keeps, so it cannot be sent again: use --verify"
            )
    return config
