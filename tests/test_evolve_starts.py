"""Where an evolution starts: natural images as codes, and codes of another day's session. Codes must look like them."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt
import pytest
import yaml

from models.agents import Batch, build_from_config
from models.agents.carried import Carried, Measured
from models.agents.evolve import Evolve
from models.server import WANTS, ModelServer
from models.truth import build
from rig.bench.long_session import LongSession
from rig.config.reading import load, parse
from rig.display.places import places
from rig.messages import Proposal, Response
from rig.recording.journal import read_all
from rig.replay.session import verify_session
from rig.report.page import write
from rig.saved_evolution import evolutions, with_saved
from rig.similarity import compare
from stimuli.bank import natural_bank
from stimuli.spec import BankImage, LatentImage, Stimulus
from tests.test_replay import made, make

ROOT = Path(__file__).parent.parent
U8 = npt.NDArray[np.uint8]
UNITS = ("u0", "u1")
CONFIG = """
seed: 5
sources: [{{type: openephys, photodiode_line: null}}]
responses: {{units: [u0, u1], baseline: {{kind: none}}}}
display: {{size_px: [200, 160], width_cm: 40, distance_cm: 57}}
stimulus: {{size_deg: 14}}
phases: [{{agent: evolve, {target}, references: 0, optimiser: {{type: xdream, preset: plos2020, population: 10}},
  start: {{type: natural, images: {images}}}, generator: {generator}}}]
"""
DCT = "{type: dct, frequencies: 10}"
NETWORK = pytest.param(
    "{type: natural}",
    marks=pytest.mark.skipif(
        find_spec("efficientnet_lite_pytorch") is None, reason="pictures to codes of `natural` need the extra train"
    ),
    id="natural",
)
BOTH = [pytest.param(DCT, id="dct"), NETWORK]
SLOWLY = pytest.param(*NETWORK.values, marks=[*NETWORK.marks, pytest.mark.slow], id="natural")
SESSIONS = [pytest.param(DCT, id="dct"), SLOWLY]
SHOWN = ("astronaut-face", "coffee-cup", "flower-petals", "chelsea-eye", "china-pagoda", "rocket-tower")


def first_batch(target: str, images: int, generator: str, rates: list[tuple[float, float]] | None = None) -> Batch:
    """Return the first generation of an evolution from pictures; `rates` (u0, u1) were measured of SHOWN."""
    carried: tuple[Carried, ...] = ()
    if rates is not None:
        known = [
            Measured(Stimulus(id=f"natural-{n}", spec=BankImage(bank="natural", name=n)), np.array(r), np.full(2, 5))
            for n, r in zip(SHOWN, rates, strict=True)
        ]
        carried = (Carried(0, "present", references=tuple(known)),)
    agent = build_from_config(parse(CONFIG.format(target=target, images=images, generator=generator)))(0, carried)
    assert isinstance(agent, Evolve)
    work = agent.ask()
    while not work.step():
        pass
    return work.result()


def frames_of(batch: Batch, prefix: str = "p0-") -> list[U8]:
    """Return the frames of the first generation, in the order of its codes."""
    own = [s for s in batch.stimuli if s.id.startswith(prefix) and isinstance(s.spec, LatentImage)]
    return [batch.frames[s.spec.row] for s in sorted(own, key=lambda s: s.id) if isinstance(s.spec, LatentImage)]


def alike(a: U8, b: U8) -> float:
    """Return the correlation of the grey levels of two frames."""
    return float(np.corrcoef(a.mean(axis=2).ravel(), b.mean(axis=2).ravel())[0, 1])


def pictures(names: tuple[str, ...], shape: tuple[int, ...]) -> list[U8]:
    bank = natural_bank()
    return [bank.image(name, *shape[:2]) for name in names]


RATES = [(1.0, 9.0), (8.0, 1.0), (3.0, 5.0), (9.0, 2.0), (2.0, 3.0), (float("nan"), 4.0)]


@pytest.mark.parametrize("generator", BOTH)
@pytest.mark.parametrize(
    ("target", "best"),
    [("unit: u0", ("chelsea-eye", "coffee-cup", "flower-petals")),
     ("targets: [{unit: u1, suppress: true}]", ("coffee-cup", "chelsea-eye", "china-pagoda"))],
)  # fmt: skip
def test_it_starts_from_codes_that_look_like_the_best_pictures(
    generator: str, target: str, best: tuple[str, ...]
) -> None:
    frames = frames_of(first_batch(target, 3, generator, RATES))
    assert len(frames) == 10
    wanted = pictures(best, frames[0].shape)
    every = np.array([[alike(f, p) for p in wanted] for f in frames])
    own = np.diag(every)
    # Over all 36 pictures of the bank: median 0.85 (dct, 10 frequencies) and 0.83 (natural); grass and brick are worst.
    assert own.min() > 0.6, own
    assert (every[:3].argmax(axis=1) == np.arange(3)).all()
    assert every[3:].max() < own.min()  # random codes fill up the rest


def test_without_measurements_it_starts_from_the_bank_s_first_pictures() -> None:
    frames = frames_of(first_batch("unit: u0", 4, DCT))
    wanted = pictures(natural_bank().names[:4], frames[0].shape)
    assert min(alike(f, p) for f, p in zip(frames, wanted, strict=False)) > 0.4


def test_each_target_starts_from_its_own_best_and_at_its_own_size() -> None:
    batch = first_batch("targets: [{unit: u0}, {unit: u1}]", 2, DCT, RATES)
    for prefix, best in (("p0-t0-", ("chelsea-eye", "coffee-cup")), ("p0-t1-", ("astronaut-face", "flower-petals"))):
        frames = frames_of(batch, prefix)
        assert min(alike(f, p) for f, p in zip(frames, pictures(best, frames[0].shape), strict=False)) > 0.6
    small = first_batch("targets: [{unit: u0, size_deg: 7}]", 2, DCT, RATES)
    frame = frames_of(small)[0]
    assert frame.shape[0] < 0.6 * frames_of(batch, "p0-t0-")[0].shape[0]
    assert alike(frame, pictures(("chelsea-eye",), frame.shape)[0]) > 0.6


def test_a_generator_without_a_way_back_is_named() -> None:
    with pytest.raises(ValueError, match=r"phases\.0: start: natural, .* gabors cannot turn pictures into codes"):
        first_batch("unit: u0", 2, "{type: gabors}")


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_can_begin(path: Path) -> None:
    config, _ = load(path)
    first = build_from_config(config)(0)  # raises where, for example, more pictures are asked for than there are
    assert first.finished() is None


# --- whole sessions ---------------------------------------------------------------------------------------------------

PRESENT = {"agent": "present", "images": ["natural"], "count": 12, "repeats": 2, "blanks": 1}
EVOLVE = {
    "agent": "evolve", "unit": "E03#0", "generations": 2, "references": 2, "blanks": 1,
    "optimiser": {"type": "xdream", "preset": "plos2020", "population": 10},
}  # fmt: skip


@pytest.mark.parametrize("generator", SESSIONS)
def test_a_session_begins_with_what_it_measured_and_replays(generator: str, tmp_path: Path) -> None:
    start = {"type": "natural", "images": 3}
    evolve = {**EVOLVE, "generator": yaml.safe_load(generator), "start": start}
    journal = made(tmp_path / "session", [PRESENT, evolve], 1.0)
    documents = [e.document for e in read_all(journal)]
    shown: dict[str, list[float]] = {}
    first = next(d.proposal for d in documents if isinstance(d, Proposal) and d.phase == 1)
    for one in documents:
        if isinstance(one, Response) and one.usable and one.proposal < first and one.role != "blank":
            shown.setdefault(one.stimulus_id, []).append(float(one.rate_hz[one.units.index("E03#0")]))
    best = sorted(shown, key=lambda name: -np.mean(shown[name]))[:3]
    proposal = next(d for d in documents if isinstance(d, Proposal) and d.phase == 1)
    rows = {s.id: s.spec.row for s in proposal.stimuli if isinstance(s.spec, LatentImage)}
    frames = [np.asarray(proposal.frames)[rows[f"p1-g000-c{k:02d}"]] for k in range(3)]
    wanted = pictures(tuple(name.removeprefix("natural-") for name in best), frames[0].shape)
    assert np.mean([alike(f, p) for f, p in zip(frames, wanted, strict=True)]) > 0.6
    outcome = verify_session(journal, make, WANTS, frames=True)
    assert (outcome.verdict.different, outcome.verdict.missing) == ([], [])


def day(folder: Path, seed: int, start: Path | None, generator: str) -> Path:
    """Record a short session of the same simulated animal; with `start`, from that session's codes."""
    raw = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    evolve = {**EVOLVE, "generations": 3, "generator": yaml.safe_load(generator)}
    if start is not None:
        evolve["start"] = {"type": "saved", "session": str(start), "images": 4}
    raw |= {"phases": [evolve], "seed": seed, "stimulus": {"size_deg": 4}}
    text = yaml.safe_dump(raw)
    config, text = with_saved(parse(text), text)
    server = ModelServer(build_from_config(config), 1, config.presentation.repeats_of_unusable)
    neurons = build(config.animal, *places(config).angles)
    return LongSession(folder, config, text, server, WANTS, neurons, seed).run(0.8)


@pytest.mark.parametrize("generator", SESSIONS)
def test_the_next_day_begins_with_the_images_of_the_day_before(generator: str, tmp_path: Path) -> None:
    day(tmp_path / "monday", 1, None, generator)
    (monday,) = evolutions(tmp_path / "monday")
    journal = day(tmp_path / "tuesday", 2, tmp_path / "monday", generator)
    (tuesday,) = evolutions(tmp_path / "tuesday")
    best = monday.best(4)
    for image, other in zip(best, tuesday.first(4), strict=True):
        assert image.frame is not None
        assert np.array_equal(image.code, other.code)
        assert np.array_equal(image.frame, other.frame)
    (found,) = compare([monday], [tuesday])
    assert found.start.codes is not None
    shutil.rmtree(tmp_path / "monday")  # what was taken stands in the session's own log
    outcome = verify_session(journal, make, WANTS, frames=True)
    assert (outcome.verdict.different, outcome.verdict.missing) == ([], [])
    page = write(tmp_path / "tuesday").read_text(encoding="utf-8")
    assert f"begun with codes of {tmp_path / 'monday'}" in page
    assert "Nothing is claimed of these images" in page
    with h5py.File(tmp_path / "tuesday" / "session.h5") as file:
        codes = json.loads(file.attrs["config"])["phases"][0]["start"]["codes"]
    assert codes[0]["stimulus_ids"] == [image.stimulus_id for image in best]
