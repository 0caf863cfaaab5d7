"""Images elsewhere and of other sizes than `stimulus` says: config, agents, frames, screen, guest, log and replay."""

import hashlib
import subprocess
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
import yaml

from models.agents import build_from_config
from models.agents.carried import Carried
from models.server import ModelServer, batch_hash
from models.truth import Gabor, Scattered, build_for, draw_cells
from rig.animal.eye import Eye
from rig.animal.process import look_rects
from rig.animal.truth_log import read as read_truth
from rig.bench.long_session import LongSession
from rig.clock import FakeClock
from rig.config.field import field_rect, in_field, receptive_field
from rig.config.places import angles_of, rect_of, usual
from rig.config.reading import ConfigError, parse
from rig.display.places import places
from rig.encoding import decode_entry, encode, encode_entry
from rig.links.ports import free_port
from rig.messages import Entry, Envelope, Fault, Presented, Proposal, StimulusPrepared
from rig.recording.journal import read_all
from rig.replay.frames import FramesCheck
from rig.replay.records import Record
from rig.replay.session import verify_session
from rig.replay.verdict import Verdict
from rig.view.h5 import build as build_view
from stimuli.geometry import Rect, image_rect
from stimuli.render import render
from stimuli.spec import BankImage, Blank, Grating, LatentImage, Place
from tests.test_animal import Brain, Paper
from tests.test_end_to_end import STIMLOOP
from tests.test_guest import Room
from tests.test_replay import WANTS, make
from tests.test_session import MS, Bench, FakeScreen, proposal

ROOT = Path(__file__).parent.parent
RIGHT = Place(center_deg=(6.0, 3.0), size_deg=5.0)
SMALL = Place(center_deg=(-7.5, -4.0), size_deg=2.5)
BASE = 'sources: [{type: openephys}]\nresponses: {units: ["a", "b"]}\n'


def config_of(*phases: str, more: str = "") -> str:
    return BASE + more + "phases: [" + ", ".join(phases) + "]\n"


# --- the config -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("{center_deg: [5, 3], size_deg: 60}", "phases.0.place: an image of 60.0 degrees"),
        ("{center_deg: [5, 3], size_deg: 60}", "reduce place.size_deg, move place.center_deg inwards"),
        ("{center_deg: [31.5, -24], size_deg: 2}", "covers the photodiode patch in the bottom right corner"),
        ("{center_deg: [5, 3]}", "phases.0.place.size_deg: missing"),
        ("mapped", "phases.0.place: mapped, but no phase before it finds a place; put map or screen before it"),
        ("found", "phases.0.place: input should be 'mapped'"),
    ],
)
def test_a_place_that_cannot_be_is_refused_with_its_phase(place: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(config_of(f"{{agent: present, place: {place}}}"))
    assert message in str(error.value)
    assert "\n" not in str(error.value), "one mistake, one line"


def test_a_place_that_fits_is_kept() -> None:
    config = parse(config_of("{agent: present, place: {center_deg: [6, 3], size_deg: 5}}", "{agent: present}"))
    assert [phase.place for phase in config.phases] == [RIGHT, None]  # type: ignore[union-attr]
    where = places(config)
    assert [square.place for square in where.all_named(config)] == [where.usual.place, RIGHT]
    assert where.at(None) is where.at(usual(config.stimulus)) is where.usual
    square = where.at(RIGHT)
    display = config.display
    assert square.rect == image_rect(display.size_px, display.width_cm, display.distance_cm, 5.0, (6.0, 3.0))
    azimuth, elevation = square.angles
    assert azimuth.shape == elevation.shape == square.shape
    assert (azimuth.mean(), elevation.mean()) == pytest.approx(RIGHT.center_deg, abs=0.1)
    with pytest.raises(ValueError, match=r"reduce place\.size_deg, move place\.center_deg inwards"):
        where.at(Place(center_deg=(60.0, 0.0), size_deg=4.0))


# --- the agents -------------------------------------------------------------------------------------------------------


def first_batch(text: str, phase: int = 0, carried: tuple[Carried, ...] = ()) -> Any:
    work = build_from_config(parse(text))(phase, carried).ask()
    while not work.step():
        pass
    return work.result()


def test_frames_and_gratings_of_a_phase_are_made_for_its_place() -> None:
    there = "place: {center_deg: [6, 3], size_deg: 5}"
    shown = first_batch(config_of(f"{{agent: present, images: [gratings], count: 3, {there}}}"))
    assert shown.place == RIGHT
    (frequency,) = {s.spec.cycles_per_deg for s in shown.stimuli if isinstance(s.spec, Grating)}
    assert frequency == pytest.approx(4 / 5, rel=0.05), "four cycles in the image, however large it is"
    config = parse(config_of(f"{{agent: evolve, unit: a, {there}}}"))
    evolved = first_batch(config_of(f"{{agent: evolve, unit: a, {there}}}"))
    rect = rect_of(config.display, RIGHT)
    assert evolved.place == RIGHT
    assert evolved.frames.shape[1:] == (rect.height, rect.width, 3)
    assert first_batch(config_of("{agent: evolve, unit: a}")).place is None


def test_a_batch_with_a_place_has_a_hash_of_its_own_and_one_without_that_of_before() -> None:
    text = config_of("{agent: present, count: 3}")
    plain, placed = first_batch(text), first_batch(config_of(
        "{agent: present, count: 3, place: {center_deg: [6, 3], size_deg: 5}}"
    ))  # fmt: skip
    assert plain.stimuli == placed.stimuli
    assert batch_hash(plain) != batch_hash(placed)


def test_mapped_is_what_an_earlier_phase_left_and_an_error_where_none_did() -> None:
    text = config_of("{agent: map}", "{agent: present, place: mapped}")
    carried = (Carried(phase=0, agent="map", place=SMALL),)
    assert first_batch(text, 1, carried).place == SMALL
    with pytest.raises(ValueError, match=r"phases\.1\.place: mapped, but no phase before it found a place"):
        build_from_config(parse(text))(1, (Carried(phase=0, agent="map"),))


# --- the rig ----------------------------------------------------------------------------------------------------------


def placed_proposal(number: int, bench: Bench | Room, place: Place, **more: Any) -> Proposal:
    """Return a proposal of blanks, gratings and latent images for a place."""
    square = bench.where.at(place)
    made = proposal(number, bench.config, **more)
    frames = np.random.default_rng(number).integers(60, 190, (len(made.plan), *square.shape, 3), dtype=np.uint8)
    return made.model_copy(update={"place": place, "frames": frames})


def drawn_at(screen: FakeScreen) -> dict[str, Rect]:
    return {sha: screen.drawn_at[texture] for texture, sha in screen.held.items()}


def test_a_trial_may_hold_images_of_two_places() -> None:
    bench = Bench(images=6)
    for number, place in enumerate((RIGHT, SMALL)):
        made = placed_proposal(number, bench, place, slots=3)
        bench.line.give(bench.start_ns, made)
    bench.run(2500)
    shown = bench.presented[:6]
    assert [p.proposal for p in shown] == [0, 0, 0, 1, 1, 1]
    assert {p.trial for p in shown} == {0}
    rects = [bench.where.at(place).rect for place in (RIGHT, SMALL)]
    assert [p.image_row_px for p in shown] == [rects[0].center_row] * 3 + [rects[1].center_row] * 3
    assert all(p.complete and p.late_flips == 0 for p in shown)
    sent = {d.frame_sha256: d for _, d in bench.line.sent if isinstance(d, StimulusPrepared)}
    for p in shown:
        rect = rects[p.proposal]
        assert drawn_at(bench.screen)[p.frame_sha256] == rect
        frame = sent[p.frame_sha256].frame
        if frame is not None:
            assert frame.shape == (rect.height, rect.width, 3)
            assert hashlib.sha256(frame.tobytes()).hexdigest() == p.frame_sha256


def test_fallback_images_keep_their_place() -> None:
    bench = Bench()
    bench.line.give(bench.start_ns, placed_proposal(0, bench, SMALL, slots=3))
    bench.run(4000)
    late = [p for p in bench.presented if p.role == "fallback"]
    assert late
    assert {p.image_row_px for p in late} == {bench.where.at(SMALL).rect.center_row}


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (Place(center_deg=(12.0, 0.0), size_deg=9.0), "its place: an image of 9.0 degrees at (12.0, 0.0)"),
        (Place(center_deg=(12.0, -8.5), size_deg=2.0), "covers the photodiode patch"),
    ],
)
def test_a_place_where_nothing_may_be_drawn_is_refused_and_named(place: Place, message: str) -> None:
    bench = Bench()
    made = proposal(0, bench.config).model_copy(update={"place": place})
    bench.line.give(bench.start_ns, made)
    bench.run(1500)
    (fault,) = bench.line.of(Fault)
    assert (fault.what, fault.done) == ("bad proposal", "refused; nothing of it is shown")
    assert message in fault.detail
    assert not bench.presented


def test_frames_of_another_shape_than_the_place_are_refused() -> None:
    bench = Bench()
    bench.line.give(bench.start_ns, proposal(0, bench.config).model_copy(update={"place": SMALL}))
    bench.run(1000)
    (fault,) = bench.line.of(Fault)
    assert "the image square is" in fault.detail


def test_images_under_the_fixation_point_are_said_once_for_each_place() -> None:
    text = (
        'sources: [{type: openephys}]\nresponses: {units: ["E01#0"]}\nphases: [{agent: present}]\n'
        "display: {size_px: [320, 240], width_cm: 16, distance_cm: 30, fixation_point: {center_deg: [6, 3]}}\n"
        "stimulus: {size_deg: 2}\npresentation: {images_per_trial: 3}\nprocesses: {realtime: false}\n"
    )
    bench = Bench(text)
    for number, place in enumerate((RIGHT, SMALL, RIGHT)):
        bench.line.give(bench.start_ns, placed_proposal(number, bench, place, slots=3))
    bench.run(3000)
    assert [f.detail for f in bench.line.of(Fault) if f.what == "fixation point over image"] == [
        "images of 5 degrees at (6, 3) lie under the fixation point"
    ]


# --- a guest ----------------------------------------------------------------------------------------------------------


def guest_with(**said: Any) -> tuple[Room, Proposal]:
    room = Room()
    answer, _ = room.ask(say="hello", protocol=1, program="test", refresh_hz=60, **said)
    assert answer["ok"]
    for _ in range(30):
        room.clock.advance_ns(50 * MS)
        room.ask(say="next")
    made = placed_proposal(0, room, SMALL, slots=3, final=True)
    room.give(made)
    return room, made


def test_a_guest_is_told_where_each_image_lies() -> None:
    room, _ = guest_with(places=True)
    answer, frames = room.ask(say="next")
    rect = room.where.at(SMALL).rect
    corners = [rect.left, rect.top, rect.right, rect.bottom]
    assert [i["rect_px"] for i in answer["images"]] == [corners] * 3
    assert [i["shape"] for i in answer["images"]] == [[rect.height, rect.width, 3]] * 3
    number = answer["images"][0]["presentation"]
    start = room.now()
    room.clock.advance_ns(100 * MS)
    digest = hashlib.sha256(frames[0]).hexdigest()
    said, _ = room.ask(say="shown", presentation=number, sha256=digest, onset_ns=start, offset_ns=room.now())
    assert said["ok"], said
    (shown,) = room.line.of(Presented)
    assert shown.image_row_px == rect.center_row


def test_a_guest_that_draws_at_one_place_only_is_not_given_others() -> None:
    room, _ = guest_with()
    answer, frames = room.ask(say="next")
    assert answer["stop"] == "the guest does not draw images at other places"
    assert not frames
    (fault,) = room.line.of(Fault)
    assert fault.what == "guest places"
    assert '"places": true in hello' in fault.done


# --- the simulated animal ---------------------------------------------------------------------------------------------

ANIMAL = "animal: {neurons: 6, seed: 3, receptive_field: {center_deg: [8, 2], size_deg: 6, scatter_deg: 3}}\n"


def test_without_other_places_the_animal_is_as_it_was() -> None:
    config = parse(config_of("{agent: present}"))
    image = rect_of(config.display, usual(config.stimulus))
    assert receptive_field(config) is None
    assert look_rects(config)[0] == field_rect(config) == image
    angles = angles_of(config.display, image)
    rng = np.random.default_rng(np.random.SeedSequence([0, 1]))
    assert build_for(config).cells == draw_cells(8, *angles, rng)  # type: ignore[attr-defined]


def test_cells_see_at_fixed_angles_wherever_the_image_lies() -> None:
    config = parse(config_of("{agent: present}", more=ANIMAL))
    population, field = build_for(config), field_rect(config)
    assert isinstance(population, Scattered)
    where = places(config)
    fields = population.receptive_fields
    offsets = np.array([f.center_deg for f in fields]) - np.array([8.0, 2.0])
    assert np.abs(offsets).max() <= 3
    assert np.ptp(offsets, axis=0).min() > 1, "scattered"
    assert all(2 <= f.size_deg <= 4.3 for f in fields)  # 4 sigma of 0.35 / (0.2 to 0.4 cycles/degree / 0.6)

    def rates(place: Place, its: Gabor) -> npt.NDArray[np.float64]:
        square = where.at(place)
        spec = Grating(
            orientation_deg=its.orientation_deg, cycles_per_deg=its.cycles_per_deg, phase_deg=its.phase_deg
        )
        frame = render(spec, square.angles, 128, {})
        seen = in_field(frame, square.rect, field, 128)
        return population.rate_hz((seen / np.float32(255)).astype(np.float32))

    grey = population.rate_hz(np.full((field.height, field.width, 3), 128 / 255, np.float32))
    for k, cell in enumerate(fields):
        over = Place(center_deg=cell.center_deg, size_deg=1.3 * cell.size_deg)
        x, y = cell.center_deg
        beside = Place(center_deg=(x - 12.0, y), size_deg=1.3 * cell.size_deg)
        its = population.parts[k].cell.cells[0]  # type: ignore[attr-defined]
        assert rates(over, its)[k] > grey[k] + 0.6 * its.max_hz, f"cell {k} answers to what lies in its field"
        assert rates(beside, its)[k] == pytest.approx(grey[k], abs=0.1), "and to nothing beside it"


def test_the_field_ends_at_the_screen_and_never_lies_beside_it() -> None:
    near = ANIMAL.replace("[8, 2]", "[30, 22]")
    config = parse(config_of("{agent: present}", more=near))
    field = field_rect(config)
    assert (field.right, field.top) == (800, 0)
    assert build_for(config).rate_hz(np.full((field.height, field.width, 3), 0.5, np.float32)).shape == (6,)
    beside = parse(config_of("{agent: present}", more=ANIMAL.replace("[8, 2]", "[50, 2]")))
    with pytest.raises(ConfigError, match=r"receptive_field\.center_deg: \[50\.0, 2\.0\] lies beside the screen"):
        look_rects(beside)


def test_a_phase_elsewhere_makes_the_animal_see_the_field_of_its_cells() -> None:
    config = parse(config_of("{agent: present, place: {center_deg: [6, 3], size_deg: 5}}"))
    image = rect_of(config.display, usual(config.stimulus))
    field = field_rect(config)
    assert field.left < image.left
    assert field.right > image.right
    before = build_for(parse(config_of("{agent: present}"))).receptive_fields
    now = build_for(config).receptive_fields
    for a, b in zip(before, now, strict=True):
        assert a.center_deg == pytest.approx(b.center_deg, abs=0.1)
        assert a.size_deg == pytest.approx(b.size_deg, rel=0.02)


def test_the_eye_sees_no_patch_and_grey_beside_the_screen() -> None:
    paper, brain, clock = Paper(), Brain(), FakeClock(10**9)
    width, height = paper.size_px
    patch = Rect(width - 8, height - 8, 8, 8)
    look = Rect(width - 20, height - 16, 20, 16)
    eye = Eye(paper, look, patch, brain, clock, np.random.default_rng(0), surround=77, follow=lambda _: (6, 0, False))
    paper.fill(look, 30)
    paper.fill(patch, 255)
    for _ in range(60):
        clock.advance_ns(MS)
        eye.look()
    seen = np.frombuffer(brain.images[-1].raw, np.uint8).reshape(16, 20, 4)[..., 0]
    wanted = np.full((16, 20), 30)
    wanted[8:, 6:14] = 77  # the patch, six pixels to the left since the gaze went right
    wanted[:, 14:] = 77  # beside the screen
    assert np.array_equal(seen, wanted)


# --- the log, the view and replay -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated session whose two phases show their images at two places, a third at the usual one."""
    raw = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    here = {"center_deg": [6, 3], "size_deg": 3}
    there = {"center_deg": [-4, -2], "size_deg": 2}
    gratings = {"agent": "present", "images": ["gratings", "natural"], "count": 4, "repeats": 1, "blanks": 1}
    few = {"agent": "evolve", "unit": "E03#0", "generations": 1, "references": 2, "reshows": 1, "blanks": 1}
    raw |= {"phases": [{**gratings, "place": here}, {**few, "place": there}, gratings], "stimulus": {"size_deg": 4}}
    raw["animal"]["receptive_field"] = {"center_deg": [5, 2], "size_deg": 4}
    text = yaml.safe_dump(raw)
    config = parse(text)
    server = ModelServer(build_from_config(config), len(config.phases), config.presentation.repeats_of_unusable)
    folder = tmp_path_factory.mktemp("placed") / "session"
    return LongSession(folder, config, text, server, WANTS, build_for(config), 1).run(1.0)


def test_a_session_at_several_places_is_replayed_with_its_frames(journal: Path) -> None:
    outcome = verify_session(journal, make, WANTS, frames=True)
    assert (outcome.verdict.different, outcome.verdict.missing) == ([], [])
    shown = [e.document for e in read_all(journal) if isinstance(e.document, Presented)]
    assert outcome.verdict.identical["presented frame"] == len(shown) > 30
    assert len({p.image_row_px for p in shown}) == 3


@pytest.mark.parametrize("change", ["place", "row"])
def test_a_presentation_at_another_place_than_its_proposals_is_found(journal: Path, change: str) -> None:
    entries = read_all(journal)
    verdict = Verdict()
    start = entries[0].document
    check = FramesCheck(start, verdict)  # type: ignore[arg-type]
    for entry in entries:
        document = entry.document
        if isinstance(document, Proposal) and document.phase == 0 and change == "place":
            document = document.model_copy(update={"place": Place(center_deg=(6.0, -3.0), size_deg=3.0)})
        if isinstance(document, Presented) and document.presentation == 2 and change == "row":
            document = document.model_copy(update={"image_row_px": document.image_row_px + 40})
        check.take(Record.of(Entry(entry.envelope, document)))
    found = [line for line in verdict.different if "lies on row" in line]
    assert found if change == "place" else len(found) == len(verdict.different) == 1


def test_the_view_says_where_each_image_lay_and_holds_frames_of_each_shape(journal: Path) -> None:
    with h5py.File(build_view(journal.parent)) as view:
        shown = view["presentations"]
        rows = zip(*(shown[c][:] for c in ("phase", "center_x_deg", "center_y_deg", "size_deg", "frame")), strict=True)
        wanted = {0: (6.0, 3.0, 3.0), 1: (-4.0, -2.0, 2.0), 2: (0.0, 0.0, 4.0)}
        seen = set()
        for phase, *place, frame in rows:
            assert tuple(place) == wanted[int(phase)]
            height, width = (int(view[f"stimuli/frames/{c}"][frame]) for c in ("height", "width"))
            assert view[f"stimuli/frames/images_{height}x{width}"].shape[1:] == (height, width, 3)
            seen.add((int(phase), height, width))
        assert {phase for phase, _, _ in seen} == {0, 1, 2}
        assert len({shape for _, *shape in map(list, seen) for shape in [tuple(shape)]}) == 3


def test_a_proposal_of_before_there_were_places_is_read() -> None:
    made = Proposal(
        proposal=0, phase=0, agent="a", generation=0, model_version="v", stimuli=(), plan=(), tail_from=1, final=True,
        fallback=(), frames=np.empty((0, 1, 1, 3), np.uint8), latents=np.empty((0, 0), np.float32),
    )  # fmt: skip
    header, *arrays = encode(made)
    older = header.replace(b',"place":null', b"")
    assert older != header
    envelope = Envelope(seq=1, receipt_host_ns=0, sender="model", process="m-1", sender_seq=1)
    assert decode_entry(encode_entry(envelope, [older, *arrays])).document.place is None  # type: ignore[union-attr]
    placed = made.model_copy(update={"place": SMALL})
    again = decode_entry(encode_entry(envelope, encode(placed))).document
    assert isinstance(again, Proposal)
    assert again.place == SMALL


def test_every_kind_of_image_is_drawn_for_its_place() -> None:
    bench = Bench()
    for place in (None, RIGHT, SMALL):
        made = proposal(0, bench.config) if place is None else placed_proposal(0, bench, place)
        shape = (*bench.where.at(place).shape, 3)
        kinds = set()
        for stimulus in made.stimuli:
            frame = bench.frames.make(made, stimulus)
            assert not frame.refused
            assert frame.frame.shape == shape
            assert frame.square.rect == bench.where.at(place).rect
            kinds.add(type(stimulus.spec))
        assert kinds == {Blank, Grating, LatentImage}
    assert BankImage not in kinds


# --- a live session ---------------------------------------------------------------------------------------------------


@pytest.mark.display
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_live_session_at_two_places(tmp_path: Path, private_screen: str) -> None:
    """Real processes and a real screen: cells lie where the second phase shows, and answer there alone."""
    raw = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    raw["sources"][0]["port"] = free_port(2)
    gratings = {"agent": "present", "images": ["gratings"], "count": 8, "repeats": 3, "blanks": 2}
    beside, over = {"center_deg": [-9, -3], "size_deg": 5}, {"center_deg": [8, 3], "size_deg": 7}
    raw["phases"] = [{**gratings, "place": beside}, {**gratings, "place": over}]
    raw["animal"]["receptive_field"] = {"center_deg": [8, 3], "size_deg": 7, "scatter_deg": 0.5}
    config = tmp_path / "places.yaml"
    config.write_text(yaml.safe_dump(raw))
    command = [*STIMLOOP, "demo", "--config", str(config), "--sessions", str(tmp_path / "sessions")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    (folder,) = [p for p in (tmp_path / "sessions").iterdir() if (p / "session.journal").exists()]
    documents = [e.document for e in read_all(folder / "session.journal")]
    shown = {d.presentation: d for d in documents if isinstance(d, Presented)}
    assert len(shown) >= 60, done.stdout + done.stderr
    assert sum(p.late_flips for p in shown.values()) == 0
    outcome = verify_session(folder / "session.journal", make, WANTS, frames=True)
    assert (outcome.verdict.different, outcome.verdict.missing) == ([], [])
    assert outcome.verdict.identical["presented frame"] == len(shown)
    truth = read_truth(next(p.parent for p in (tmp_path / "sessions").rglob("truth.json")))
    assert all(abs(c.center_deg[0] - 8) <= 0.5 and abs(c.center_deg[1] - 3) <= 0.5 for c in truth.receptive_fields)
    phase_of = {d.proposal: d.phase for d in documents if isinstance(d, Proposal)}
    second_ns = min(p.onset_flip_host_ns for p in shown.values() if phase_of[p.proposal] == 1)
    grey = truth.rates[0]
    above = np.abs(truth.rates - grey).max(axis=1)  # (image,) of any cell, noise-free
    second = truth.image_host_ns > second_ns - 50 * MS
    assert above[second].max() > 30, "gratings over the receptive fields drive the cells"
    assert above[~second].max() < 1, "those beside them do not"
