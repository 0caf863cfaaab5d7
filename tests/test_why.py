"""`stimloop why`: the tree of a shown image, from a log that the real fold made."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from models.generators.factory import build_generator
from rig.clock import FakeClock
from rig.config.reading import parse
from rig.config.session import Config
from rig.encoding import encode, encode_entry
from rig.messages import Document, Entry, Envelope, Fault, Presented, Proposal, Response, TrialIntent
from rig.recording.journal import JournalWriter
from rig.units.importing import Options, import_units
from rig.why.derived import explain, read
from rig.why.origin import NotInLog, NotRecorded, Provenance
from rig.why.tree import tree_of
from stimuli.spec import LatentImage
from tests.paper_session import paper_session
from tests.phy_folder import write_phy
from tests.test_snapshot import EVOLVE, PRESENT, config_text, fold, response, session_start

LOST = {(1, 3): 1, (2, 5): 9}  # slots whose first response, or all of whose responses, are not usable


def presented(proposal: Proposal, slot: int, number: int) -> Presented:
    stimulus = proposal.stimuli[proposal.fallback[0] if slot < 0 else proposal.plan[slot].stimulus]
    spec = stimulus.spec
    frame = proposal.frames[spec.row].tobytes() if isinstance(spec, LatentImage) else stimulus.id.encode()
    return Presented(
        presentation=number, trial=number // 5, position_in_trial=number % 5, proposal=proposal.proposal, slot=slot,
        role="fallback" if slot < 0 else proposal.plan[slot].role, stimulus_id=stimulus.id, previous_stimulus_id=None,
        frame_sha256=hashlib.sha256(frame).hexdigest(), due_host_ns=0, onset_flip_host_ns=0, offset_flip_host_ns=1,
        flips_host_ns=np.zeros(2, np.int64), late_flips=0, dropped_frames=0, image_row_px=0, patch_row_px=0,
        complete=True,
    )  # fmt: skip


def make_log(config: Config) -> list[Entry]:
    """Return the log of a session, with presentations, an image that is shown again, and a fallback."""
    server, log, numbers = fold(config), list[Entry](), iter(range(10**6))

    def put(document: Document) -> None:
        n = len(log) + 1
        log.append(Entry(Envelope(seq=n, receipt_host_ns=n, sender="x", process="x", sender_seq=n), document))
        for caused in server.handle(log[-1]):
            put(caused)

    def show(proposal: Proposal, slot: int, usable: bool = True) -> None:
        number = next(numbers)
        put(presented(proposal, slot, number))
        if slot >= 0:
            put(response(proposal, slot, number, usable))

    put(session_start(config))
    while server.work is not None:
        while not server.work.step():
            pass
        put(server.work_done())
        proposal = next(e.document for e in reversed(log) if isinstance(e.document, Proposal))
        for slot in range(len(proposal.plan)):
            again = LOST.get((proposal.proposal, slot), 0)
            for _ in range(min(again, 2)):
                show(proposal, slot, usable=False)
            show(proposal, slot, usable=again < 9)
        if proposal.proposal == 0:
            show(proposal, -1)
    return log


@pytest.fixture(scope="module")
def log() -> list[Entry]:
    return make_log(parse(config_text(EVOLVE)))


@pytest.fixture(scope="module")
def found(log: list[Entry]) -> Provenance:
    out = Provenance(build_generator)
    for entry in log:
        out.apply(entry)
    return out


def first(log: list[Entry], **fields: Any) -> Presented:
    shown = (e.document for e in log if isinstance(e.document, Presented))
    return next(p for p in shown if all(getattr(p, k) == v for k, v in fields.items()))


def proposals(log: list[Entry]) -> list[Proposal]:
    return [e.document for e in log if isinstance(e.document, Proposal)]


def test_a_child_is_traced_to_the_initial_population_with_the_scores_that_chose_its_parents(
    log: list[Entry], found: Provenance
) -> None:
    _, second, third = proposals(log)
    child = next(s for s in third.stimuli if s.id.startswith("p0-g002") and s.parents)
    slot = next(k for k, s in enumerate(third.plan) if third.stimuli[s.stimulus] == child and s.role == "candidate")
    answer = found.explain(first(log, proposal=2, slot=slot).presentation)
    node = answer["stimuli"][child.id]
    assert node["how"] == "crossover and mutation"
    genes, own = node["figures"]["genes"], node["figures"]["from_first_parent"]
    assert genes == third.latents.shape[1]
    assert 0 < own < genes
    assert [p["stimulus_id"] for p in node["parents"]] == list(child.parents)
    responses = {e.document.presentation: e.document for e in log if isinstance(e.document, Response)}
    for parent in node["parents"]:
        name = parent["stimulus_id"]
        shown = [(second.stimuli[s.stimulus].id, s.role) for s in second.plan]
        own_slot = shown.index((name, "candidate"))
        rates = [r for r in responses.values() if (r.proposal, r.slot) == (1, own_slot) and r.usable]
        assert parent["response"]["presentation"] == rates[0].presentation
        assert parent["response"]["rate_hz"]["u1"] == float(rates[0].rate_hz[1])
        assert 1 <= parent["rank"] <= parent["of"] == 40
    roots = [n for n in answer["stimuli"].values() if not n["parents"]]
    assert roots
    assert {n["generation"] for n in roots} == {0}
    assert {n["how"] for n in roots} == {"start code"}
    assert all(p["stimulus_id"] in answer["stimuli"] for n in answer["stimuli"].values() for p in n["parents"])


def test_latent_frame_and_state_are_those_of_the_log(log: list[Entry], found: Provenance) -> None:
    proposal = proposals(log)[1]
    shown = first(log, proposal=1, slot=0, role=proposal.plan[0].role)
    stimulus = proposal.stimuli[proposal.plan[0].stimulus]
    assert isinstance(stimulus.spec, LatentImage)
    answer = found.explain(shown.presentation)
    code = proposal.latents[stimulus.spec.row]
    latent = answer["stimuli"][stimulus.id]["latent"]
    assert latent["sha256"] == hashlib.sha256(code.tobytes()).hexdigest()
    assert latent["norm"] == pytest.approx(float(np.linalg.norm(code)))
    assert latent["first"] == [float(x) for x in code[:5]]
    assert answer["presentation"]["frame_sha256"] == hashlib.sha256(
        proposal.frames[stimulus.spec.row].tobytes()
    ).hexdigest()
    assert answer["presentation"]["frame_again"] == "identical"
    assert answer["asked_by"]["agent_state_sha256"] == proposal.model_version
    assert answer["stimuli"][stimulus.id]["random"] == "numpy default_rng([0, 0, 0])"
    assert answer["stimuli"][stimulus.id]["generator"]["frequencies"] == 4


def test_another_frame_than_the_generator_makes_is_noticed(log: list[Entry]) -> None:
    shown = first(log, proposal=1, slot=0)
    out = Provenance(build_generator)
    for entry in log:
        changed = entry.document is shown
        out.apply(Entry(entry.envelope, shown.model_copy(update={"frame_sha256": "0" * 64})) if changed else entry)
    assert out.explain(shown.presentation)["presentation"]["frame_again"] == "different"


def test_what_a_response_was_used_for(log: list[Entry], found: Provenance) -> None:
    one, two, _ = proposals(log)
    children = [s for s in two.stimuli if s.id.startswith("p0-g001")]
    parent = children[-1].parents[0]
    slot = next(k for k, s in enumerate(one.plan) if one.stimuli[s.stimulus].id == parent)
    used = found.explain(first(log, proposal=0, slot=slot).presentation)["used"]
    assert used["told_to_agent"]
    assert used["next_proposal"] == 1
    assert used["children"] == [s.id for s in children if parent in s.parents]
    tail = found.explain(first(log, proposal=0, role="reference").presentation)
    assert tail["used"]["told_to_agent"]
    assert tail["used"]["children"] == []
    name = tail["presentation"]["stimulus_id"]
    assert tail["stimuli"][name]["spec"]["type"] == "bank"
    fallback = found.explain(first(log, slot=-1).presentation)
    assert not fallback["used"]["told_to_agent"]
    assert "fallback" in fallback["used"]["why_not"]


def test_an_image_that_was_shown_again_names_its_repeat(log: list[Entry], found: Provenance) -> None:
    lost = first(log, proposal=1, slot=3).presentation
    used = found.explain(lost)["used"]
    assert not used["told_to_agent"]
    assert used["why_not"] == f"not usable; the image was shown again as presentation {lost + 1}"
    assert found.explain(lost + 1)["used"]["told_to_agent"]
    given_up = first(log, proposal=2, slot=5).presentation + 2
    used = found.explain(given_up)["used"]
    assert used["told_to_agent"]
    assert used["as_missing"]


def test_by_stimulus_id_and_what_is_not_there(found: Provenance) -> None:
    assert found.presentations_of("p0-g000-c00")[0] < 40
    with pytest.raises(NotInLog, match=r"no presentation 99999 in this session; there are: 0 to \d+"):
        found.explain(99999)
    with pytest.raises(NotInLog, match="no stimulus 'x' in this session; its stimuli have names such as p0-"):
        found.presentations_of("x")
    with pytest.raises(NotInLog, match="SessionStart"):
        Provenance().explain(0)


def test_a_session_that_shows_a_fixed_set_is_traced_too() -> None:
    log = make_log(parse(config_text(PRESENT)))
    out = Provenance(build_generator)
    for entry in log:
        out.apply(entry)
    answer = out.explain(0)
    assert answer["asked_by"]["agent"] == "present"
    assert answer["asked_by"]["unit"] is None
    assert "mean of 2 units" in text_of(answer)


def text_of(answer: dict[str, Any], depth: int = 2) -> str:
    out = StringIO()
    Console(width=300, file=out).print(tree_of(answer, depth))
    return out.getvalue()


def test_the_tree_describes_each_ancestor_once(log: list[Entry], found: Provenance) -> None:
    shown = [e.document for e in log if isinstance(e.document, Presented) and e.document.proposal == 2]
    name = next(p.stimulus_id for p in shown if p.stimulus_id.startswith("p0-g002"))
    answer = found.explain(found.presentations_of(name)[0])
    text = text_of(answer, depth=0)
    for ancestor, node in answer["stimuli"].items():
        assert ancestor in text
        assert text.count(node["latent"]["sha256"]) == 1
    assert "= initial population" in text
    assert text_of(answer, depth=1).count("sha256 of the latent code") == 1 + len(answer["stimuli"][name]["parents"])


def test_a_version_that_is_not_known_is_said_in_words(found: Provenance) -> None:
    answer = found.explain(0)
    answer["session"] |= {"program": "absent", "commit": None, "local_changes": None}
    assert "program version unknown (not installed, no git), seed 0" in text_of(answer)


# --- derived sessions -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recorded session, and beside it the same with sorted units."""
    folder = tmp_path_factory.mktemp("sessions")
    made = paper_session(folder / "recorded", generations=2)
    trains = {3: made.spikes["E01#0"], 8: made.spikes["E02#0"]}
    write_phy(folder / "phy", trains, {3: "good", 8: "good"}, (100_000, 3_000_000))
    import_units(folder / "phy", folder / "recorded", folder / "sorted", Options(), FakeClock())
    return folder


def test_a_derived_session_tells_what_happened_and_the_sorted_response_beside_it(sessions: Path) -> None:
    recorded, _ = explain(sessions / "recorded", "p1-g001-c03", None)
    answer, numbers = explain(sessions / "sorted", "p1-g001-c03", None)
    assert {k: v for k, v in answer.items() if k != "derived"} == recorded
    assert answer["asked_by"]["unit"] == "E01#0"
    assert answer["used"]["told_to_agent"]
    after = answer["derived"]["response"]
    assert set(after["rate_hz"]) == {"phy3", "phy8"}
    assert after["presentation"] == numbers[0] == recorded["presentation"]["number"]
    text = text_of(answer)
    assert "of session sorted (recorded as recorded, sorted again)" in text
    assert "asked by agent evolve for unit E01#0" in text
    assert re.search(r"parent \S+, chosen for E01#0: ", text)
    assert "for unit phy" not in text
    assert "chosen for phy" not in text
    assert re.search(r"response of the units sorted offline: .*\n.*phy3 [\d.-]+, phy8", text)


def test_without_the_recorded_session_nothing_is_made_up(sessions: Path, tmp_path: Path) -> None:
    shutil.copytree(sessions / "sorted", tmp_path / "sorted")
    answer, _ = explain(tmp_path / "sorted", "p1-g001-c03", None)
    text = text_of(answer)
    assert "is not known: session recorded is not there" in text
    assert answer["used"] is None
    assert answer["response"] is None
    assert not re.search("chosen for|told to the agent|for unit", text)
    assert "response of the units sorted offline" in text
    given, _ = explain(tmp_path / "sorted", "p1-g001-c03", sessions / "recorded")
    assert given["asked_by"]["unit"] == "E01#0"
    with pytest.raises(NotInLog, match="was not made from another session"):
        explain(sessions / "recorded", "0", sessions / "sorted")
    other, _ = explain(tmp_path / "sorted", "0", sessions / "sorted")
    assert "is not the journal that this session was made from" in other["derived"]["lacking"]


def test_the_command(log: list[Entry], tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path / "session.journal", "s")
    for entry in log:
        writer.append(entry.envelope.seq, encode_entry(entry.envelope, encode(entry.document)))
    writer.close()
    assert read(tmp_path).explain(3) == json.loads(json.dumps(read(tmp_path).explain(3)))

    def run(*words: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "rig.cli", "why", str(tmp_path), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    done = run("p0-g000-c00", "--json", str(tmp_path / "why.json"))
    assert done.returncode == 0, done.stderr
    answer = json.loads((tmp_path / "why.json").read_text())
    assert answer["presentation"]["stimulus_id"] == "p0-g000-c00"
    assert answer["presentation"]["frame_sha256"] in done.stdout
    wrong = run("4711")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error no presentation 4711 in this session; there are: 0 to")


# --- announced and not recorded ---------------------------------------------------------------------------------------


def test_what_is_known_of_an_image_that_the_rig_did_not_live_to_record(log: list[Entry]) -> None:
    found, shown = Provenance(), [e.document for e in log if isinstance(e.document, Presented)]
    last, lost = shown[-1], shown[-1].presentation + 1
    trial = TrialIntent(
        trial=9, presentations=(lost, lost + 1, lost + 2), proposals=(last.proposal,) * 3, slots=(last.slot,) * 3,
        start_host_ns=0,
    )  # fmt: skip
    rig, cut = (
        Fault(what=what, detail="", done="", presentations=(lost + k,))
        for k, what in enumerate(("rig restarted", "trial cut short"))
    )
    again = last.model_copy(update={"presentation": lost + 3})
    more = [Entry(Envelope(seq=10**6, receipt_host_ns=0, sender="x", process="x", sender_seq=0), d)
            for d in (trial, rig, cut, again)]  # fmt: skip
    for entry in [*log, *more]:
        found.apply(entry)
    with pytest.raises(NotRecorded, match="shown perhaps, and not recorded: the rig died") as known:
        found.explain(lost)
    assert "announced for trial 9" in str(known.value)
    assert last.stimulus_id in str(known.value)
    assert f"shown again as presentation {lost + 3}" in str(known.value)
    with pytest.raises(NotRecorded, match="was never shown"):
        found.explain(lost + 1)
    with pytest.raises(NotRecorded, match="the log ends before"):
        found.explain(lost + 2)
