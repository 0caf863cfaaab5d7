"""Counterfactual: what another optimiser, seed or generator would have done with this session.

Two questions with two kinds of answers. *One step*: told exactly what the recorded agent was told, what would the other
one have shown next, generation by generation? That uses recorded responses only, and goes no further than one step:
the neuron never saw the other images. *Closed loop*: both agents evolve from the start against twins, models fitted to
this session, one for each unit, with the same noise. That goes as far as one likes, and is worth what the twins are
worth. Every agent is given what the phases before the evolution left: units, places, references.

Called by `stimloop replay SESSION --counterfactual OTHER.yaml`. It reads the journal and writes elsewhere. The models
come in through `WhatIf`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rig.config.phases import EvolvePhase
from rig.config.reading import ConfigError, parse
from rig.config.session import Config
from rig.encoding import BadDocument
from rig.messages import RATE_UNITS, Entry
from rig.replay.counterfactual_phase import RECORDED, Agent, Comparison
from rig.replay.model_side import WhatIf
from rig.replay.recorded import read
from rig.replay.records import Log, ReplayError, config_of, session_start
from rig.saved_evolution import with_saved

MAY_CHANGE = ("seed", "phases", "name")


@dataclass(frozen=True)
class Alternative:
    """Another config for the same session."""

    name: str
    config: Config


def alternative(path: Path, recorded: Config) -> Alternative:
    """Read a user's overrides; raises ReplayError with one clear message for anything wrong in them."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ReplayError(f"{path}: cannot be read as YAML: {error}") from error
    if not isinstance(raw, dict) or not raw:
        raise ReplayError(f"{path}: give `seed` or `phases` as in a config file, whatever is to be different")
    wrong = [str(key) for key in raw if key not in MAY_CHANGE]
    if wrong:
        raise ReplayError(
            f"{path}: {wrong[0]}: cannot be different in a counterfactual, the responses were recorded with the "
            f"session's own; only {' and '.join(MAY_CHANGE[:2])} can"
        )
    try:
        text = yaml.safe_dump({**recorded.model_dump(mode="json"), **raw})
        config, _ = with_saved(parse(text), text)
    except ConfigError as error:
        raise ReplayError(f"{path}: {error}") from error
    if config.model_copy(update={"name": recorded.name}) == recorded:
        raise ReplayError(f"{path}: it says nothing that differs from the session's own config")
    return Alternative(str(raw.get("name", path.stem)), config)


def folder_name(path: Path, files: Sequence[Path]) -> str:
    """Return the folder that a comparison goes to, by the names of its alternatives. Raises ReplayError."""
    recorded = config_of(session_start(path))
    return "-".join(alternative(file, recorded).name for file in files)


def evolutions(config: Config) -> list[tuple[int, EvolvePhase]]:
    """Return the phases that evolve, with their numbers."""
    return [(k, p) for k, p in enumerate(config.phases) if isinstance(p, EvolvePhase)]


def _pairs(recorded: Config, other: Alternative) -> dict[int, int]:
    """Return, for each evolve phase of the session, the other's, in order."""
    own, theirs = evolutions(recorded), evolutions(other.config)
    if len(own) != len(theirs):
        raise ReplayError(
            f"{other.name}: has {len(theirs)} evolve phases, the session has {len(own)}; give one for each, in order"
        )
    return {a[0]: b[0] for a, b in zip(own, theirs, strict=True)}


def counterfactual(
    path: Path,
    files: Sequence[Path],
    models: WhatIf,
    repeats: int,
    most: int | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Answer both questions for the session whose journal is `path`; return the figures, JSON-able but for frames.

    `files` are the alternatives, `repeats` the runs of each agent against the twins, `most` the generations of each
    (None: as the configs say); `say` hears of progress. Raises ReplayError.
    """
    if repeats < 2:
        raise ReplayError("--repeats: two or more runs of each agent are needed to tell an agent from its luck")
    start = session_start(path)
    own = config_of(start)
    if not evolutions(own):
        raise ReplayError("no phase of this session chose its images by responses: it has no evolve phase")
    others = [alternative(file, own) for file in files]
    names = [RECORDED, *(o.name for o in others)]
    if len(set(names)) != len(names):
        raise ReplayError(f"two alternatives have the same name ({', '.join(names)}); give each a name of its own")
    pairs = {RECORDED: {k: k for k, _ in evolutions(own)}, **{o.name: _pairs(own, o) for o in others}}
    configs = {RECORDED: own, **{o.name: o.config for o in others}}
    session = read(path, models.reduced)
    left_out, given, out = not_run(own), list[str](), list[dict[str, Any]]()
    for phase, _ in evolutions(own):
        if not session.phases.get(phase):
            left_out.append(f"phase {phase + 1}: nothing of it is in the log")
            continue
        if phase:
            say(f"phase {phase + 1}: what the phases before it left is made again from the log")
        facts = models.facts(own, _entries(path, models.wants), phase)
        given += [f"phase {phase + 1}: {words}" for words in models.facts_in_words(facts)]
        agents = {name: Agent(name, config, pairs[name][phase]) for name, config in configs.items()}
        found, without = Comparison(session, phase, models, agents, facts, say).answers(repeats, most)
        out += found
        left_out += without
    for words in left_out:
        say(f"left out: {words}")
    if not out:
        raise ReplayError(f"nothing is left to compare: {'; '.join(left_out)}")
    return {
        "session": path.parent.name,
        "simulated": start.simulated,
        "unit_of_rates": RATE_UNITS[session.measure],
        "given": given,
        "left_out": left_out,
        "phases": out,
    }


def not_run(config: Config) -> list[str]:
    """Say which phases of a session no agent runs again, and why."""
    why = {
        "present": "shows a fixed set whatever the responses",
        "confirm": "shows images that were fixed before; another agent's images were never shown to the neuron",
        "map": "what it found is given to every agent as recorded",
        "screen": "what it found is given to every agent as recorded",
    }
    return [
        f"phase {k + 1} ({phase.agent}): {why.get(phase.agent, 'only evolve phases are run again')}"
        for k, phase in enumerate(config.phases)
        if not isinstance(phase, EvolvePhase)
    ]


def _entries(path: Path, wants: frozenset[str]) -> Iterator[Entry]:
    for record in Log(path):
        if record.kind in wants:
            try:
                yield record.entry
            except BadDocument:
                continue  # an unreadable record was left out live as well
