"""`stimloop why`: prints where a shown image comes from, as a tree, or writes it as JSON.

The answers are made by `rig.why.origin`; here the journal is read and words are put to them.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.tree import Tree

from rig.messages import RATE_UNITS
from rig.why.derived import explain
from rig.why.origin import Build, NotInLog, NotRecorded

FILE_WIDTH = 160  # columns where the tree does not go to a terminal
MANY = 6  # names or numbers that are listed; of more only how many there are


# --- words ------------------------------------------------------------------------------------------------------------


def some(items: Iterable[object]) -> str:
    """List the first few of some things, and how many more there are."""
    words = [str(item) for item in items]
    more = f" and {len(words) - MANY} more" if len(words) > MANY else ""
    return ", ".join(words[:MANY]) + more


def response_words(answer: dict[str, Any] | None, unit: str | None) -> str:
    """Say what a response was: of the unit that counts, else the mean over units."""
    if answer is None:
        return "no response in the log"
    if not answer["usable"]:
        return f"not usable: {answer['reason']} (presentation {answer['presentation']})"
    rates, measure = answer["rate_hz"], RATE_UNITS[answer["measure"]]
    known = [r for r in rates.values() if r is not None]
    if unit is not None:
        rate = rates.get(unit)
        words = f"{unit}: " + ("no value" if rate is None else f"{rate:.2f} {measure}")
    else:
        words = f"mean of {len(known)} units: {fmean(known):.2f} {measure}" if known else "no value of any unit"
    return f"{words} (presentation {answer['presentation']}, journal entry {answer['journal_entry']})"


def _spec_words(node: dict[str, Any]) -> str:
    spec = dict(node["spec"])
    kind = spec.pop("type")
    if kind == "bank":
        return f"picture {spec['name']!r} of the image bank {spec['bank']!r}"
    if kind == "blank":
        return "blank: the background alone"
    if kind == "latent":
        return f"decoded by generator {spec['generator']}"
    return f"{kind}: " + ", ".join(f"{k} {v:g}" for k, v in spec.items())


def _add_making(tree: Tree, node: dict[str, Any]) -> None:
    if node["how"]:
        figures = ", ".join(f"{k.replace('_', ' ')} {v:g}" for k, v in node["figures"].items())
        tree.add(escape(f"made by {node['how']}" + (f" ({figures})" if figures else "")))
    if "latent" in node:
        latent = node["latent"]
        first = ", ".join(f"{x:.4f}" for x in latent["first"])
        tree.add(escape(f"latent code: {latent['size']} numbers, norm {latent['norm']:.4f}, begins {first} ..."))
        tree.add(f"sha256 of the latent code {latent['sha256']}")


def _add_ancestors(tree: Tree, found: dict[str, Any], name: str, depth: int, printed: set[str]) -> None:
    """Add the parents of a stimulus, to `depth` generations (-1: all); each ancestor is described once."""
    unit = found["asked_by"]["unit"]
    for parent in found["stimuli"][name].get("parents", []):
        parent_name = parent["stimulus_id"]
        node = found["stimuli"][parent_name]
        place = "" if parent["rank"] is None else f", rank {parent['rank']} of {parent['of']} of its generation"
        reason = f", chosen for {response_words(parent['response'], unit)}{place}"
        branch = tree.add(escape(f"parent {parent_name}{'' if lacking(found) else reason}"))
        if parent_name in printed:
            branch.add("described above")
        elif "missing" in node:
            branch.add(escape(node["missing"]))
        else:
            printed.add(parent_name)
            branch.add(f"first proposed in generation {node['generation'] + 1} (proposal {node['first_proposal']})")
            _add_making(branch, node)
            if node["parents"] and depth == 1:
                branch.add("its parents: --depth shows more generations")
            elif depth != 1:
                _add_ancestors(branch, found, parent_name, depth - 1, printed)


def _add_line(tree: Tree, found: dict[str, Any], name: str) -> None:
    """Add, for each generation back to the first, how many ancestors there are and why they were chosen."""
    nodes, unit = found["stimuli"], found["asked_by"]["unit"]
    scores: dict[str, list[float]] = defaultdict(list)
    for node in nodes.values():
        for parent in node.get("parents", []):
            answer = parent["response"]
            rate = None if answer is None or unit is None else answer["rate_hz"].get(unit)
            if rate is not None:
                scores[parent["stimulus_id"]].append(rate)
    generations: dict[int, list[str]] = defaultdict(list)
    for ancestor, node in nodes.items():
        if ancestor != name and "missing" not in node:
            generations[node["generation"]].append(ancestor)
    if not generations:
        return
    branch = tree.add(f"{len(nodes) - 1} ancestors in all, by the generation in which each was new")
    for generation in sorted(generations, reverse=True):
        names = generations[generation]
        rates = [r for n in names for r in scores[n]]
        mean = f", chosen for {fmean(rates):.2f} on average ({len(rates)} responses)" if rates else ""
        start = " = initial population" if all(not nodes[n]["parents"] for n in names) else ""
        branch.add(escape(f"generation {generation + 1}{start}: {some(names)}{mean}"))


def tree_of(found: dict[str, Any], depth: int) -> Tree:
    """Return what `Provenance.explain` found as a tree; ancestors to `depth` generations, 0 for all."""
    shown, asked, session = found["presentation"], found["asked_by"], found["session"]
    name = shown["stimulus_id"]
    simulated = ", simulated animal" if session["simulated"] else ""
    derived = found.get("derived")
    of = session["name"] if derived is None else f"{derived['session']} (recorded as {derived['from']}, sorted again)"
    tree = Tree(escape(f"presentation {shown['number']} of session {of}{simulated}: {name}, a {shown['role']}"))
    screen = tree.add(f"on the screen in trial {shown['trial']}, place {shown['position_in_trial']}")
    where = shown["place"]
    right, up = where["center_deg"]
    screen.add(f"{where['size_deg']:g} degrees at ({right:g}, {up:g}) degrees (right, up) from the screen's centre")
    screen.add(f"sha256 of the frame {shown['frame_sha256']}")
    if shown["frame_again"]:
        screen.add(escape(f"latent code decoded again: {shown['frame_again']}"))
    if shown["refused"] or not shown["complete"]:
        screen.add(escape(f"not as planned: {shown['refused'] or 'cut short'}"))
    _add_asked(tree, asked, session)
    _add_response(tree, found)
    node = found["stimuli"][name]
    image = tree.add(escape(f"the image: {_spec_words(node)}"))
    image.add(f"first proposed in generation {node['generation'] + 1} (proposal {node['first_proposal']})")
    image.add(f"shown in presentations {some(node['presentations'])}")
    _add_making(image, node)
    if node.get("generator"):
        image.add(escape("generator: " + ", ".join(f"{k} {v}" for k, v in node["generator"].items())))
    if "random" in node:
        image.add(escape(f"random numbers of its phase: {node['random']}"))
    _add_ancestors(image, found, name, depth if depth > 0 else -1, {name})
    _add_line(tree, found, name)
    return tree


def lacking(found: dict[str, Any]) -> str:
    """Return why the session that a derived one was made from cannot be asked; "" where there is nothing to ask."""
    return str(found["derived"]["lacking"]) if "derived" in found else ""


def _add_response(tree: Tree, found: dict[str, Any]) -> None:
    derived, unit = found.get("derived"), found["asked_by"]["unit"]
    if lacking(found):
        tree.add(escape(f"by whose responses it was chosen and what the agent was told is not known: {lacking(found)}"))
    else:
        online = "response" if derived is None else "response of the units of then"
        answer = tree.add(escape(f"{online}: {response_words(found['response'], unit)}"))
        answer.add(escape(used_words(found["used"], found["presentation"]["role"])))
    if derived is not None:
        after = tree.add(escape(f"response of the units sorted offline: {response_words(derived['response'], None)}"))
        if derived["response"] is not None and derived["response"]["usable"]:
            rates = derived["response"]["rate_hz"].items()
            after.add(escape(some(f"{u} {'no value' if r is None else f'{r:.2f}'}" for u, r in rates)))
        after.add("made after the session: nothing was chosen by it")


def _add_asked(tree: Tree, asked: dict[str, Any], session: dict[str, Any]) -> None:
    for_unit = f" for unit {asked['unit']}" if asked["unit"] else ""
    place = f"phase {asked['phase'] + 1}, generation {asked['generation'] + 1}"
    words = f"asked by agent {asked['agent']}{for_unit}, {place}"
    branch = tree.add(escape(words))
    slot = "" if asked["slot"] < 0 else f", slot {asked['slot']}"
    branch.add(f"proposal {asked['proposal']} (journal entry {asked['journal_entry']}), {asked['part']}{slot}")
    branch.add(f"sha256 of the agent's state {asked['agent_state_sha256']}")
    changes = " with local changes" if session["local_changes"] else ""
    program = f"program {session['program']}" if session["program"] not in (None, "absent") else ""
    commit = f"commit {session['commit']}{changes}" if session["commit"] else ""
    version = ", ".join(one for one in (program, commit) if one) or "program version unknown (not installed, no git)"
    branch.add(escape(f"{version}, seed {session['seed']}"))


def used_words(used: dict[str, Any], role: str) -> str:
    """Say what a response was used for."""
    if not used["told_to_agent"]:
        return f"not told to the agent: {used['why_not']}"
    if used["as_missing"]:
        return "told to the agent as missing: no value of it was used"
    if role != "candidate":
        return "told to the agent; it enters its report, never the choice of parents"
    if used["next_proposal"] is None:
        return "told to the agent; no proposal follows in its phase"
    children = used["children"]
    parent_of = f"parent of {len(children)} new images there: {some(children)}" if children else "parent of none there"
    return f"told to the agent before proposal {used['next_proposal']}; {parent_of}"


# --- the command ------------------------------------------------------------------------------------------------------


def add_why(app: typer.Typer, generators: Callable[[], Build]) -> None:
    """Add the command to `app`; `generators()` imports and returns what makes a generator when it is needed."""

    @app.command()
    def why(
        folder: Annotated[Path, typer.Argument(metavar="SESSION", help="Session folder.")],
        what: Annotated[
            str, typer.Argument(metavar="PRESENTATION", help="Number of a presentation (80 or p80), or a stimulus id.")
        ],
        depth: Annotated[
            int, typer.Option("--depth", min=0, help="Generations of ancestors that are described; 0 for all.")
        ] = 2,
        original: Annotated[
            Path | None, typer.Option("--original", help="Folder of the session that a derived one was made from.")
        ] = None,
        json_file: Annotated[Path | None, typer.Option("--json", help="Write everything to this file.")] = None,
    ) -> None:
        """Tell where a shown image comes from, back to the initial population, and what its response was used for.

        Example: stimloop why sessions/2026-11-21-demo 412 --json why-412.json
        """
        console, errors = Console(), Console(stderr=True)
        if not console.is_terminal:
            console = Console(width=FILE_WIDTH)
        try:
            answer, numbers = explain(folder, what, original, generators())
            if json_file is not None:
                json_file.write_text(json.dumps(answer, indent=2) + "\n", encoding="utf-8")
        except NotRecorded as known:
            console.print(escape(str(known)), highlight=False, soft_wrap=True)
            return
        except (NotInLog, OSError) as error:
            errors.print(f"[bold red]error[/] {escape(str(error))}", highlight=False, soft_wrap=True)
            raise typer.Exit(2) from error
        console.print(tree_of(answer, depth), highlight=False)
        if len(numbers) > 1:
            also = f"{what} was also shown in presentations {some(numbers[1:])}"
            console.print(also, highlight=False, soft_wrap=True)
