"""`stimloop units import`: a session once more, with the units that a sorter found offline.

Makes a new session folder. Its journal holds the documents of the recorded one in their order, but for the spikes of
the scored device, which are the sorted ones, and for what the recorder made of spikes: its responses are made anew by
the live WindowFold. What was shown, what the model proposed and what the other devices sent stays as it was. Report,
export and counterfactual replay then work on it as on any session. SessionStart names the session it was derived from.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from rig.clock import Clock
from rig.config.phases import EvolvePhase
from rig.config.session import Config
from rig.config.sources import LslSpikeSource, OpenEphysEventsSource, OpenEphysSource, SpikesWireSource
from rig.encoding import BadDocument
from rig.messages import (
    Continuity,
    Entry,
    Origin,
    SessionStart,
    SpikeBlock,
)
from rig.recording.journal import JournalReader
from rig.units.derived import Derived, SortedSpikes, not_recorded, unit_name
from rig.units.joining import Match, Stretch, matches, stretches, to_samples
from rig.units.phy import Sorted, UnitsError, load, load_array
from rig.units.placing import Placed, Recording, Seen, place

I64 = npt.NDArray[np.int64]
RATE_TOLERANCE = 1e-3
NUMBERS = "sample_numbers.npy"
NO_RUN = -1  # of a stretch whose run is not known yet
SPIKING = OpenEphysSource | OpenEphysEventsSource | SpikesWireSource | LslSpikeSource


@dataclass(frozen=True)
class Options:
    """What the user said.

    `numbers`: sample_numbers.npy of the recordings that were sorted, in the order in which they were joined;
    `offset`: instead, the device's number of the sorted file's first sample; `runs`: the acquisition run of each
    recording, or all runs of the only one, counted from 0 in the session; empty for those that the spikes prove;
    `same`: online unit to cluster, where they should not be told by coincidence; `checked`: refuse units
    that do not fire together with those of the session.
    """

    groups: tuple[str, ...] = ("good",)
    numbers: tuple[Path, ...] = ()
    offset: int | None = None
    runs: tuple[int, ...] = ()
    sample_rate_hz: float | None = None
    same: dict[str, int] = field(default_factory=dict)
    checked: bool = True


@dataclass(frozen=True)
class Imported:
    """What was made."""

    folder: Path
    units: dict[str, int]  # name: spikes in the session
    matches: list[Match]
    presentations: int
    responses: int
    usable: int
    left_out: list[str]  # in words: runs that were not sorted, with the presentations that lack units for that


@dataclass
class _Session:
    """What must be known of the recorded session before its journal is written anew."""

    start: SessionStart
    config: Config
    source: str
    rate_hz: float = 0.0
    runs: list[int] = field(default_factory=list)
    first: dict[int, int] = field(default_factory=dict)  # run: its first known watermark
    last: dict[int, int] = field(default_factory=dict)
    online: dict[int, dict[str, list[I64]]] = field(default_factory=dict)  # run: unit: samples


def _entries(path: Path) -> Iterator[Entry]:
    reader = JournalReader(path)
    try:
        while new := reader.read(final=True):
            yield from new
        if reader.bad_records:
            raise UnitsError(f"{path}: {reader.bad_records} records cannot be read by this version of the program")
    except BadDocument as error:
        raise UnitsError(f"{path}: {error}") from error
    finally:
        reader.close()


def _survey(folder: Path) -> _Session:
    """Read what the session says of the scored device. Raises UnitsError."""
    session: _Session | None = None
    for entry in _entries(folder / "session.journal"):
        document = entry.document
        if session is None:
            if not isinstance(document, SessionStart):
                raise UnitsError(f"{folder}: the journal does not begin with a SessionStart")
            config = Config.model_validate(document.config)
            if not isinstance(config.neural, SPIKING):
                raise UnitsError(
                    f"{folder}: its first source {config.neural.name!r} ({config.neural.type}) sends no spikes, so "
                    "spikes sorted offline have no place in it"
                )
            session = _Session(document, config, config.neural.name)
        elif isinstance(document, Continuity) and document.source == session.source:
            _note_run(session, document)
        elif isinstance(document, SpikeBlock) and document.source == session.source:
            trains = session.online.setdefault(document.run, {})
            for k, name in enumerate(document.units):
                trains.setdefault(name, []).append(document.sample[document.unit == k])
    if session is None or not session.runs:
        name = "device" if session is None else session.source
        raise UnitsError(f"{folder}: the journal holds no data of its {name}; there is nothing to join the spikes to")
    return session


def _note_run(session: _Session, document: Continuity) -> None:
    session.rate_hz = document.sample_rate_hz or session.rate_hz
    if document.watermark_sample > 0:
        if document.run not in session.first:
            session.runs.append(document.run)
            session.first[document.run] = document.watermark_sample
        session.last[document.run] = max(document.watermark_sample, session.last.get(document.run, 0))


# --- joining ----------------------------------------------------------------------------------------------------------


def _recordings(phy: Sorted, options: Options) -> list[Recording]:
    """Return where the sorted recordings lie in the sorted file and on the device's counter; refuses to guess."""
    files = options.numbers or ((phy.folder / NUMBERS,) if (phy.folder / NUMBERS).exists() else ())
    if (options.offset is not None) == bool(files):
        raise UnitsError(
            f"{phy.folder}: nothing tells which sample of the device the sorted file began with; give --sample-numbers "
            "with the recording's own sample_numbers.npy (it lies beside continuous.dat), or --offset-samples"
            if options.offset is None
            else f"--offset-samples and {files[0]} both say where the recording began; give one of them"
        )
    if options.offset is not None:
        return [[Stretch(NO_RUN, 0, options.offset, int(phy.time[-1]) + 1)]]
    out: list[Recording] = []
    for path in files:
        at = out[-1][-1].file_first + out[-1][-1].length if out else 0
        try:
            out.append(stretches(NO_RUN, load_array(path, "sample numbers"), at))
        except UnitsError as error:
            raise UnitsError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from error
    return out


def _place(phy: Sorted, clusters: list[int], session: _Session, options: Options) -> Placed:
    """Return which stretches of the sorted file are of which run. Raises UnitsError."""
    recordings = _recordings(phy, options)
    to_samples(phy.time, [part for one in recordings for part in one])  # none lies beyond its recording
    seen = []
    for k, run in enumerate(session.runs):
        trains = [t for blocks in session.online.get(run, {}).values() for t in blocks]
        online = np.sort(np.concatenate(trains)) if trains else np.zeros(0, dtype=np.int64)
        seen.append(Seen(run, k, session.first[run], session.last[run], online))
    chosen = phy.time[np.isin(phy.cluster, clusters)]
    return place(recordings, seen, chosen, options.runs, options.checked, session.rate_hz)


def _rate_agrees(phy: Sorted, session: _Session, stated_hz: float | None) -> None:
    rate = stated_hz or phy.sample_rate_hz
    if rate is None:
        raise UnitsError(f"{phy.folder} has no params.py with a sample_rate; give --sample-rate")
    if abs(rate / session.rate_hz - 1) > RATE_TOLERANCE:
        raise UnitsError(
            f"{phy.folder} was sorted at {rate:g} samples/s, the session's {session.source} counts "
            f"{session.rate_hz:g}; this is another recording or a resampled one, whose spikes cannot be joined by "
            "sample number"
        )


Trains = dict[int, dict[int, I64]]  # run: cluster: samples


def _trains(phy: Sorted, clusters: list[int], parts: list[Stretch]) -> Trains:
    out: Trains = {run: {} for run in sorted({p.run for p in parts})}
    for run, trains in out.items():
        mine = [p for p in parts if p.run == run]
        for c in clusters:
            time = phy.time[phy.cluster == c]
            held = [time[(time >= p.file_first) & (time < p.file_first + p.length)] for p in mine]
            trains[c] = np.sort(to_samples(np.concatenate(held), mine)[1])
    return out


def _match(session: _Session, trains: Trains) -> list[Match]:
    """Return which online units the sorter found again."""
    found: dict[str, Match] = {}
    for run, clusters in trains.items():
        online = {n: np.sort(np.concatenate(t)) for n, t in session.online.get(run, {}).items()}
        for match in matches(online, clusters, session.rate_hz):
            if match.online not in found or match.share > found[match.online].share:
                found[match.online] = match
    return [found[name] for name in sorted(found)]


def _config_for(session: _Session, clusters: list[int], matched: list[Match], same: dict[str, int]) -> Config:
    """Return the session's config with the sorted units scored, and evolved where their like was."""
    cluster_of = {m.online: m.cluster for m in matched} | same
    if wrong := sorted(set(same.values()) - set(clusters)):
        raise UnitsError(f"--same names cluster {wrong[0]}, which is not among those imported")
    config: dict[str, Any] = json.loads(json.dumps(session.start.config))
    config["responses"]["units"] = [unit_name(c) for c in clusters]
    for k, phase in enumerate(session.config.phases):
        if isinstance(phase, EvolvePhase):
            names = {online: unit_name(cluster) for online, cluster in cluster_of.items()}
            for unit in (u for target in phase.objectives() for u in target.named if u not in names):
                raise UnitsError(
                    f"phase {k + 1} of the session evolved images for {unit!r}, and no imported cluster fires "
                    f"together with it; name one with --same {unit}=CLUSTER"
                )
            config["phases"][k] = phase.renamed(names).model_dump(mode="json")
    return Config.model_validate(config)


# --- all of it -------------------------------------------------------------------------------------------------------


def _text(config: Config, session: _Session) -> str:
    head = f"# {session.start.session} with units sorted offline: its config, with those units scored.\n"
    return head + yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def import_units(phy_folder: Path, folder: Path, out: Path, options: Options, clock: Clock) -> Imported:
    """Make the session `out` from the one in `folder` with the sorted units of `phy_folder`. Raises UnitsError."""
    session = _survey(folder)
    phy = load(phy_folder)
    clusters = phy.chosen(options.groups)
    _rate_agrees(phy, session, options.sample_rate_hz)
    placed = _place(phy, clusters, session, options)
    trains = _trains(phy, clusters, placed.parts)
    matched = _match(session, trains)
    config = _config_for(session, clusters, matched, options.same)
    start = _start_of(out, folder, session, config, phy, options, placed, clock)
    try:
        out.mkdir(parents=True)
    except FileExistsError as error:
        raise UnitsError(f"{out} is already there; give another folder with --out") from error
    (out / "config.yaml").write_text(start.config_yaml, encoding="utf-8")
    spikes = {run: SortedSpikes(session.source, run, clusters, trains.get(run)) for run in session.runs}
    derived = Derived(out / "session.journal", start, config, spikes)
    try:
        for run in trains:
            last = session.last[run] + round(session.rate_hz)
            derived.not_recorded(run, not_recorded(placed.parts, run, session.first[run], last))
        for entry in _entries(folder / "session.journal"):
            derived.take(entry)
    finally:
        derived.close()
    ends = session.last
    counts = {unit_name(c): sum(int(np.searchsorted(t[c], ends[r])) for r, t in trains.items()) for c in clusters}
    left_out = _left_out(session, placed, derived)
    return Imported(out, counts, matched, derived.presentations, derived.responses, derived.usable, left_out)


def _left_out(session: _Session, placed: Placed, derived: Derived) -> list[str]:
    """Say for each run that was not sorted how many presentations have no sorted units, and why."""
    out = []
    for run, why in placed.left_out.items():
        which = f"run {session.runs.index(run)} (of 0 to {len(session.runs) - 1}) was not sorted"
        here, total = derived.shown_in[run], derived.presentations
        out.append(f"{here} of {total} presentations have no sorted units: {which}: {why}")
    return out


def _evolved_for(recorded: Config, derived: Config) -> dict[str, str]:
    """Return for which unit each phase chose its images, and as which it is scored now."""
    pairs = enumerate(zip(recorded.phases, derived.phases, strict=True))
    return {
        f"phase {k} chose its images by": f"{_named(old)}, here {_named(new)}"
        for k, (old, new) in pairs
        if isinstance(old, EvolvePhase) and isinstance(new, EvolvePhase)
    }


def _named(phase: EvolvePhase) -> str:
    return "; ".join(target.title for target in phase.objectives()) or "units proposed in the session"


def _start_of(
    out: Path, folder: Path, session: _Session, config: Config, phy: Sorted, options: Options,
    placed: Placed, clock: Clock,
) -> SessionStart:
    how = {
        "units": "sorted offline",
        "folder": phy.folder.name,
        "groups": ",".join(options.groups),
        "offset": "sample_numbers.npy" if options.offset is None else f"{options.offset} samples",
        "runs sorted": ",".join(str(k) for k, run in enumerate(session.runs) if run not in placed.left_out),
        "runs not sorted": ",".join(str(k) for k, run in enumerate(session.runs) if run in placed.left_out),
        **_evolved_for(session.config, config),
        "checked against the units seen online": str(options.checked),
        **{f"sha256 of {name}": digest for name, digest in phy.sha256.items()},
    }
    with (folder / "session.journal").open("rb") as journal:
        digest = hashlib.file_digest(journal, "sha256").hexdigest()
    origin = Origin(
        session=session.start.session,
        journal_sha256=digest,
        made_utc_ns=clock.utc_ns(),
        how=how,
    )
    return session.start.model_copy(
        update={
            "session": out.name,
            "config": config.model_dump(mode="json"),
            "config_yaml": _text(config, session),
            "derived_from": origin,
        }
    )
