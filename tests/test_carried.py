"""What a phase leaves reaches the later ones: in the fold, its hash, a snapshot's file, and a second fold."""

from pathlib import Path

import numpy as np

from models.agents.carried import (
    Carried,
    EvolutionEnd,
    Leaves,
    Measured,
    Nominated,
    place_of,
    placed_id,
    references_of,
    units_of,
    window_of,
)
from models.server import ModelServer, state_hash
from models.snapshot import Snapshot, Snapshots
from rig.encoding import encode
from rig.messages import PhaseEnded, Proposal
from stimuli.spec import BankImage, LatentImage, Place, Stimulus
from tests.test_server import MAIN, TAIL, Log, Recording

REFERENCE = Stimulus(id="ref-face", spec=BankImage(bank="natural", name="face"))
EVOLVED = Stimulus(id="p0-g003-c01", spec=LatentImage(generator="dct-1", row=1), parents=("p0-g002-c00",), how="bred")


def everything() -> Carried:
    code = np.arange(6, dtype=np.float32)
    image = Nominated(
        "u1", "evolved", EVOLVED, "dct-1", code, np.full((4, 5, 3), 7, np.uint8), 30.5, 2.5, 9,
        Place(center_deg=(1.0, -2.0), size_deg=3.0),
    )  # fmt: skip
    start = Nominated("u1", "start", EVOLVED, "dct-1", code, np.zeros((4, 5, 3), np.uint8), np.nan, np.nan, 0)
    return Carried(
        phase=2,
        agent="evolve",
        place=Place(center_deg=(0.5, 0.0), size_deg=2.0),
        units=("u1", "u0"),
        window_s=(0.05, 0.15),
        images=(image, start),
        references=(Measured(REFERENCE, np.array([4.0, np.nan]), np.array([3, 0])),),
        ends=(EvolutionEnd("u1", "dct-1", code[None], np.array([np.nan]), None),),
    )


class Leaving(Recording):
    """An agent that leaves everything there is."""

    def leaves(self) -> Leaves:
        made = everything()
        return {
            "place": made.place, "units": (f"u{len(self.told)}",), "images": made.images, "ends": made.ends,
            "references": made.references,
        }  # fmt: skip


class Kept:
    """Makes agents and keeps what they were given."""

    def __init__(self) -> None:
        self.given: list[tuple[Carried, ...]] = []

    def __call__(self, _: int, carried: tuple[Carried, ...]) -> Leaving:
        self.given.append(carried)
        return Leaving()


def session(phases: int = 3) -> tuple[Log, Kept]:
    log, kept = Log(phases), Kept()
    log.server = ModelServer(kept, phases, 2)
    log.start()
    for k in range(3 * phases):
        log.work()
        for slot in range(MAIN + TAIL):
            log.respond(k, slot)
    return log, kept


def test_facts_and_their_state_say_the_same() -> None:
    one = everything()
    again = Carried.restored(one.state())
    assert state_hash(again.state()) == state_hash(one.state())
    assert (again.place, again.units, again.window_s) == (one.place, one.units, one.window_s)
    assert again.images[0].stimulus == EVOLVED
    assert again.images[0].place == Place(center_deg=(1.0, -2.0), size_deg=3.0)
    assert again.images[1].place is None
    assert again.images[0].code.dtype == np.float32
    assert again.references[0].presentations.tolist() == [3, 0]


def test_each_phase_is_given_what_all_earlier_ones_left() -> None:
    log, kept = session()
    assert [[(c.phase, c.agent, c.units) for c in given] for given in kept.given] == [
        [],
        [(0, "leaving", ("u15",))],
        [(0, "leaving", ("u15",)), (1, "leaving", ("u15",))],
    ]
    assert len(log.server.carried) == 3
    assert log.kinds(PhaseEnded)[-1].last


def test_a_version_names_the_facts_that_its_agent_was_given() -> None:
    log, _ = session(2)
    of_phase = {p.phase: p.model_version for p in reversed(log.kinds(Proposal))}
    fresh = Leaving()
    fresh.generation = 0  # as each agent stood when its first proposal was made
    assert of_phase[0] == state_hash(fresh.state())
    assert of_phase[1] != of_phase[0]


def test_a_fold_restored_in_a_later_phase_builds_its_agent_from_the_same_facts(tmp_path: Path) -> None:
    log, _ = session()
    at = next(k for k, e in enumerate(log.entries) if isinstance(e.document, Proposal) and e.document.phase == 2) - 1
    never = ModelServer(Kept(), 3, 2)
    for entry in log.entries[:at]:
        never.handle(entry)
    snapshots = Snapshots(tmp_path, "session", "program")
    read = snapshots.read(snapshots.write(Snapshot(log.entries[at - 1].envelope, never.state())))
    kept = Kept()
    restored = ModelServer(kept, 3, 2)
    restored.restore(read.state)
    assert state_hash(restored.state()) == state_hash(never.state())
    (given,) = kept.given
    assert state_hash([c.state() for c in given]) == state_hash([c.state() for c in never.carried])
    for entry in log.entries[at:]:
        assert [encode(d) for d in restored.handle(entry)] == [encode(d) for d in never.handle(entry)]


def test_the_newest_fact_counts_and_references_are_pooled_by_presentations() -> None:
    early = Carried(0, "map", place=Place(center_deg=(0.0, 0.0), size_deg=1.0), window_s=(0.0, 0.1), units=("u9",))
    seen = Carried(1, "screen", references=(Measured(REFERENCE, np.array([8.0, 5.0]), np.array([1, 2])),))
    late = everything()
    assert place_of((early, seen, late)) == late.place
    assert place_of((early, seen)) == early.place
    assert units_of((early, seen)) == ("u9",)
    assert window_of((early, seen, late)) == (0.05, 0.15)
    assert (place_of(()), units_of(()), window_of((seen,))) == (None, (), None)
    (pooled,) = references_of((early, seen, late))
    assert pooled.rate_hz.tolist() == [5.0, 5.0]  # (8 + 3 x 4) / 4; the second unit has no new value
    assert pooled.presentations.tolist() == [4, 2]


def test_an_image_elsewhere_on_the_screen_has_another_identity_and_no_two_share_one() -> None:
    here, there = Place(center_deg=(2.0, -2.5), size_deg=4.0), Place(center_deg=(0.0, 0.0), size_deg=3.0)
    assert placed_id("natural-x", here, here) == "natural-x"
    assert placed_id("natural-x", None, None) == "natural-x"
    assert placed_id("natural-x", here, None) == "natural-x@2_-2.5_4deg"
    assert placed_id("natural-x@2_-2.5_4deg", there, here) == "natural-x@0_0_3deg"
    assert placed_id("natural-x", None, here) == "natural-x@usual"  # measured elsewhere: another image
    assert placed_id("natural-x@usual", here, None) == "natural-x@2_-2.5_4deg"
    names = ["mine-face@2x.png", "mine-face@3x.png", f"mine-{'x' * 60}1.png", f"mine-{'x' * 60}2.png"]
    placed = [placed_id(name, here, None) for name in names]
    assert len(set(placed)) == 4
    assert max(map(len, placed)) <= 80
    assert placed_id(placed[2], there, here).split("@")[0] == placed[2].split("@")[0]
