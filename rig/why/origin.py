"""Where a shown image comes from: a fold over the journal that answers it for any presentation.

Fed by `stimloop why` (`rig.why.tree` prints what it finds). Pure: it keeps of each stimulus what made it, of each
presentation what was shown and what the response to it was used for, and no picture.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rig.config.generators import AnyGenerator
from rig.config.phases import EvolvePhase
from rig.config.places import rect_of, usual
from rig.config.session import Config
from rig.config.targets import Target
from rig.messages import Entry, Fault, ModelUpdated, Presented, Proposal, Response, SessionStart, TrialIntent
from rig.shown_again import ShownAgain, Verdict
from rig.view.announced import MAYBE_SHOWN, NEVER_SHOWN
from stimuli.generators import Generator
from stimuli.render import gamma_table
from stimuli.spec import LatentImage, Place, Stimulus

KINDS = frozenset({"session_start", "proposal", "presented", "response", "trial_intent", "fault", "model_updated"})
EVOLVED = re.compile(r"p([0-9]+)-(?:t([0-9]+)-)?(?:g|bet)")  # an evolved image: phase, and target if there are several
FIRST_VALUES = 5  # of a latent code that are given
Key = tuple[int, int]  # proposal and slot
Build = Callable[[AnyGenerator, int, int, int], Generator]  # settings, height, width, background


class NotInLog(ValueError):
    """Something that was asked for and is not in the log; the message says what there is instead."""


class NotRecorded(NotInLog):
    """A presentation that was announced and has no record; the message says all that is known of it."""


@dataclass(frozen=True)
class Origin:
    """A stimulus and the proposal that named it first."""

    stimulus: Stimulus
    proposal: int
    latent: npt.NDArray[np.float32] | None


@dataclass(frozen=True)
class Asked:
    """A proposal without its pictures."""

    seq: int
    phase: int
    agent: str
    generation: int
    model_version: str
    tail_from: int
    plan: tuple[tuple[str, str], ...]
    """Role and stimulus id of each slot."""
    place: Place | None
    """Where its images lie; None: where the config's `stimulus` says."""


@dataclass
class Provenance:
    """What the log says about every image; `build` makes the generators that decode their codes again."""

    build: Build | None = None
    start: SessionStart | None = None
    config: Config | None = None
    origins: dict[str, Origin] = field(default_factory=dict)
    asked: dict[int, Asked] = field(default_factory=dict)
    shown: dict[int, Presented] = field(default_factory=dict)
    answers: dict[int, tuple[int, Response]] = field(default_factory=dict)  # presentation -> journal entry, response
    verdicts: dict[int, Verdict] = field(default_factory=dict)
    final: dict[Key, int] = field(default_factory=dict)  # slot -> presentation whose response was told to the agent
    showings: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    announced: dict[int, tuple[int, Key]] = field(default_factory=dict)  # presentation -> trial and slot
    accounts: dict[int, str] = field(default_factory=dict)  # presentation -> fault that says what became of it
    titles: dict[Key, str] = field(default_factory=dict)  # phase and number of a target -> its title
    _again: ShownAgain = field(default_factory=lambda: ShownAgain(0))

    def apply(self, entry: Entry) -> None:
        """Take one entry of the journal; entries in their order, those of other kinds than KINDS may be left out."""
        document = entry.document
        if isinstance(document, SessionStart):
            self.start, self.config = document, Config.model_validate(document.config)
            self._again = ShownAgain(self.config.presentation.repeats_of_unusable)
        elif isinstance(document, Proposal):
            self._proposal(entry.envelope.seq, document)
        elif isinstance(document, TrialIntent):
            for number, *key in zip(document.presentations, document.proposals, document.slots, strict=False):
                self.announced[number] = (document.trial, (key[0], key[1]))
        elif isinstance(document, Fault):
            if document.what in MAYBE_SHOWN | NEVER_SHOWN:
                self.accounts |= {n: document.what for n in document.presentations if n not in self.accounts}
        elif isinstance(document, ModelUpdated):
            for score in document.scores:
                if (found := EVOLVED.match(score.stimulus_id)) and int(found[1]) == document.phase:
                    self.titles[document.phase, int(found[2] or 0)] = score.target
        elif isinstance(document, Presented):
            self.shown[document.presentation] = document
            self.showings[document.stimulus_id].append(document.presentation)
        elif isinstance(document, Response):
            self.answers[document.presentation] = (entry.envelope.seq, document)
            self.verdicts[document.presentation] = verdict = self._again.take(document)
            if verdict == "final":
                self.final[document.proposal, document.slot] = document.presentation

    def _proposal(self, seq: int, d: Proposal) -> None:
        plan = tuple((slot.role, d.stimuli[slot.stimulus].id) for slot in d.plan)
        self.asked[d.proposal] = Asked(
            seq, d.phase, d.agent, d.generation, d.model_version, d.tail_from, plan, d.place
        )
        self._again.planned(d.proposal, len(d.plan))
        for stimulus in d.stimuli:
            if stimulus.id not in self.origins:
                spec = stimulus.spec
                latent = d.latents[spec.row].copy() if isinstance(spec, LatentImage) else None
                self.origins[stimulus.id] = Origin(stimulus, d.proposal, latent)

    # --- questions ----------------------------------------------------------------------------------------------------

    def explain(self, presentation: int) -> dict[str, Any]:
        """Return all that led to a presentation and what became of it, as JSON-able values.

        `stimuli` holds its stimulus and every ancestor of it, each once. Raises NotInLog.
        """
        if self.start is None or self.config is None:
            raise NotInLog("the journal does not begin with a SessionStart; nothing can be traced in it")
        shown = self.shown.get(presentation)
        if shown is None and presentation in self.announced:
            raise NotRecorded(self._not_recorded(presentation))
        if shown is None:
            there = f"{min(self.shown)} to {max(self.shown)}" if self.shown else "none"
            raise NotInLog(f"no presentation {presentation} in this session; there are: {there}")
        if shown.proposal not in self.asked:
            raise NotInLog(f"presentation {presentation}: its proposal {shown.proposal} is not in the journal")
        asked = self.asked[shown.proposal]
        lineage = self._lineage(shown.stimulus_id)
        return {
            "session": self._session(self.start),
            "presentation": {
                "number": presentation,
                "trial": shown.trial,
                "position_in_trial": shown.position_in_trial,
                "role": shown.role,
                "stimulus_id": shown.stimulus_id,
                "frame_sha256": shown.frame_sha256,
                "complete": shown.complete,
                "refused": shown.refused,
                "place": self._place(shown.proposal).model_dump(mode="json"),
                "frame_again": self._frame_again(shown),
            },
            "asked_by": self._asked_by(shown.proposal, asked, shown.slot, shown.stimulus_id),
            "response": self._answer(presentation),
            "used": self._used(shown, asked),
            "stimuli": {name: self._stimulus(name) for name in lineage},
        }

    def _not_recorded(self, presentation: int) -> str:
        trial, (proposal, slot) = self.announced[presentation]
        account = self.accounts.get(presentation)
        if account in NEVER_SHOWN:
            known = f"was never shown ({account})"
        else:
            why = f"the rig died ({account})" if account else "the log ends before"
            known = f"was shown perhaps, and not recorded: {why}; its flips are not known"
        plan = self.asked[proposal].plan if proposal in self.asked else ()
        image = f"{plan[slot][1]}, a {plan[slot][0]}" if 0 <= slot < len(plan) else "a fallback or not in the log"
        again = [n for n in sorted(self.shown) if n > presentation and slot >= 0 and self._key(n) == (proposal, slot)]
        then = f"shown again as presentation {again[0]}: ask for that" if again else "not shown again"
        return (
            f"presentation {presentation} was announced for trial {trial} and {known}. "
            f"Its image (proposal {proposal}, slot {slot}): {image}; {then}"
        )

    def presentations_of(self, stimulus_id: str) -> list[int]:
        """Return the presentations of a stimulus. Raises NotInLog."""
        if found := self.showings.get(stimulus_id):
            return found
        if stimulus_id in self.origins:
            raise NotInLog(f"stimulus {stimulus_id!r} was proposed, and never shown")
        examples = ", ".join(list(self.showings)[:3]) or "none"
        raise NotInLog(f"no stimulus {stimulus_id!r} in this session; its stimuli have names such as {examples}")

    # --- answers ------------------------------------------------------------------------------------------------------

    def _session(self, start: SessionStart) -> dict[str, Any]:
        return {
            "name": start.session,
            "simulated": start.simulated,
            "seed": start.config.get("seed"),
            "program": start.versions.get("stimloop"),
            "commit": start.commit,
            "local_changes": start.dirty,
        }

    def _objectives(self, phase: int) -> tuple[Target, ...]:
        """Return what a phase evolves images for; () where it is for all units, or for none that is known yet."""
        found = self.config.phases[phase] if self.config is not None else None
        if not isinstance(found, EvolvePhase):
            return ()
        titles = [self.titles[key] for key in sorted(self.titles) if key[0] == phase]
        units = dict.fromkeys(title.split(" at ")[0] for title in titles)  # those that it was proposed
        return found.objectives(tuple(units) if found.units == "proposed" else ())

    def _unit(self, phase: int, stimulus: str) -> str | None:
        """Return the unit for which an image was evolved, here or in a phase before; None if for others, or for all."""
        found = EVOLVED.match(stimulus)
        own = self._target_of(int(found[1]), stimulus) if found else None
        objectives = self._objectives(phase)
        target = own or (objectives[0] if len(objectives) == 1 else None)
        return target.unit if target is not None and target.minus is None else None

    def _target_of(self, phase: int, stimulus: str) -> Target | None:
        """Return the target that an evolved image was made for: with several its number is in the identity."""
        objectives = self._objectives(phase)
        numbered = re.match(rf"p{phase}-t([0-9]+)-", stimulus)
        number = int(numbered[1]) if numbered else 0
        return objectives[number] if number < len(objectives) else None

    def _asked_by(self, number: int, asked: Asked, slot: int, stimulus: str) -> dict[str, Any]:
        part = "fallback" if slot < 0 else "main" if slot < asked.tail_from else "tail"
        return {
            "proposal": number,
            "journal_entry": asked.seq,
            "slot": slot,
            "part": part,
            "phase": asked.phase,
            "agent": asked.agent,
            "unit": self._unit(asked.phase, stimulus),
            "targets": [target.title for target in self._objectives(asked.phase)],
            "generation": asked.generation,
            "agent_state_sha256": asked.model_version,
        }

    def _answer(self, presentation: int) -> dict[str, Any] | None:
        if presentation not in self.answers:
            return None
        seq, d = self.answers[presentation]
        rates = {u: float(r) if np.isfinite(r) else None for u, r in zip(d.units, d.rate_hz, strict=True)}
        return {
            "presentation": presentation,
            "journal_entry": seq,
            "usable": d.usable,
            "reason": d.reason,
            "measure": d.measure,
            "rate_hz": rates,
            "onset_source": d.onset_source,
            "coverage": d.coverage,
        }

    def _used(self, shown: Presented, asked: Asked) -> dict[str, Any]:
        """Return what the response to a presentation was used for."""
        verdict = self.verdicts.get(shown.presentation)
        key, name = (shown.proposal, shown.slot), shown.stimulus_id
        out: dict[str, Any] = {"told_to_agent": False, "why_not": "", "next_proposal": None, "children": []}
        if shown.slot < 0:
            return out | {"why_not": "a fallback, shown because the next proposal was late: agents are not told of it"}
        if verdict is None:
            return out | {"why_not": "the log holds no response to it"}
        if verdict == "again":
            again = [n for n in self.showings[name] if n > shown.presentation and self._key(n) == key]
            then = f"shown again as presentation {again[0]}" if again else "to be shown again; the log ends before"
            return out | {"why_not": f"not usable; the image was {then}"}
        if verdict == "known":
            return out | {"why_not": f"presentation {self.final.get(key)} of the same slot already had a response"}
        following = self._neighbour(shown.proposal, 1)
        scored = shown.role == "candidate" and shown.slot < asked.tail_from
        children = [n for n, o in self.origins.items() if o.proposal == following and name in o.stimulus.parents]
        return out | {
            "told_to_agent": True,
            "as_missing": not self.answers[shown.presentation][1].usable,
            "next_proposal": following,
            "children": children if scored else [],
        }

    def _neighbour(self, proposal: int, step: int) -> int | None:
        """Return the next proposal (`step` 1) or the one before (-1) of the same phase and place, None without one.

        Images of several places or sizes take turns: the proposal between is another evolution's.
        """
        own = self.asked[proposal]
        alike = [n for n, one in self.asked.items() if (one.phase, one.place) == (own.phase, own.place)]
        beyond = [n for n in alike if (n - proposal) * step > 0]
        return min(beyond, key=lambda n: abs(n - proposal), default=None)

    def _key(self, presentation: int) -> Key:
        return self.shown[presentation].proposal, self.shown[presentation].slot

    def _lineage(self, name: str) -> list[str]:
        """Return a stimulus and all its ancestors, the nearest first."""
        found = {name: None}
        row = [name]
        while row:
            row = list(dict.fromkeys(p for n in row for p in self._parents(n) if p not in found))
            found |= dict.fromkeys(row)
        return list(found)

    def _parents(self, name: str) -> tuple[str, ...]:
        return self.origins[name].stimulus.parents if name in self.origins else ()

    def _stimulus(self, name: str) -> dict[str, Any]:
        origin = self.origins.get(name)
        if origin is None:
            return {"missing": "it is not in the journal"}
        asked, spec = self.asked[origin.proposal], origin.stimulus.spec
        out: dict[str, Any] = {
            "spec": spec.model_dump(mode="json", exclude={"row"}),
            "how": origin.stimulus.how,
            "figures": origin.stimulus.figures,
            "phase": asked.phase,
            "generation": asked.generation,
            "first_proposal": origin.proposal,
            "presentations": list(self.showings.get(name, [])),
            "parents": [self._parent(p, origin.proposal) for p in origin.stimulus.parents],
        }
        if origin.latent is not None:
            out["latent"] = {
                "size": len(origin.latent),
                "norm": float(np.linalg.norm(origin.latent.astype(np.float64))),
                "first": [float(x) for x in origin.latent[:FIRST_VALUES]],
                "sha256": hashlib.sha256(origin.latent.tobytes()).hexdigest(),
            }
            out["generator"] = self._generator_settings(asked.phase)
            target, seed = self._target_of(asked.phase, name), self.config.seed if self.config else "?"
            number = self._objectives(asked.phase).index(target) if target is not None else "its target's number"
            out["random"] = f"numpy default_rng([{seed}, {asked.phase}, {number}])"
        return out

    def _parent(self, name: str, proposal: int) -> dict[str, Any]:
        """Return a parent with the score for which it was chosen: its final response in the proposal before."""
        number = self._neighbour(proposal, -1)
        out: dict[str, Any] = {"stimulus_id": name, "response": None, "rank": None, "of": None}
        if number is None:
            return out
        before = self.asked[number]
        target = self._target_of(before.phase, name)
        scores: dict[str, float] = {}
        for slot, (role, stimulus) in enumerate(before.plan[: before.tail_from]):
            used = self.final.get((number, slot))
            if role != "candidate" or used is None:
                continue
            response = self.answers[used][1]
            if stimulus == name:
                out["response"] = self._answer(used)
            if response.usable and target is not None and target == self._target_of(before.phase, stimulus):
                score = target.sign * float(target.value(response.rate_hz, response.units))
                scores |= {stimulus: score} if np.isfinite(score) else {}
        if name in scores:
            out |= {"rank": 1 + sum(s > scores[name] for s in scores.values()), "of": len(scores)}
        return out

    # --- the generator ------------------------------------------------------------------------------------------------

    def _generator_settings(self, phase: int) -> dict[str, Any]:
        found = self.config.phases[phase] if self.config is not None else None
        return found.generator.model_dump(mode="json") if isinstance(found, EvolvePhase) else {}

    def _place(self, proposal: int) -> Place:
        """Return where the images of a proposal lie."""
        assert self.config is not None  # noqa: S101 - of a log that begins with its config
        return self.asked[proposal].place or usual(self.config.stimulus)

    def _frame_again(self, shown: Presented) -> str | None:
        """Decode the latent code again and compare: "identical", "different", why not, or None for other stimuli."""
        origin, config = self.origins.get(shown.stimulus_id), self.config
        if origin is None or origin.latent is None or config is None:
            return None
        if shown.refused:
            return "not compared: the background was shown in its place"
        phase, display = config.phases[self.asked[origin.proposal].phase], config.display
        if not isinstance(phase, EvolvePhase) or not isinstance(origin.stimulus.spec, LatentImage):
            return "not compared: this version does not know its generator"
        rect = rect_of(display, self._place(shown.proposal))
        if self.build is None:
            return "not compared: no generators at hand"
        try:
            made = self.build(phase.generator, rect.height, rect.width, display.background)
        except ValueError as error:
            return f"not compared: {error}"
        if made.name != origin.stimulus.spec.generator:
            return f"not compared: this version's generator is {made.name}, not {origin.stimulus.spec.generator}"
        frame = gamma_table(display.gamma)[made.decode(origin.latent[None])[0]]
        same = hashlib.sha256(np.ascontiguousarray(frame).tobytes()).hexdigest() == shown.frame_sha256
        return "identical" if same else "different"
