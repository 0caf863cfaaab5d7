"""The bench of optimisers: its statistics on hand-made numbers, its neurons and noise, and tiny real runs."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from typer.testing import CliRunner

from models.evolution_bench import contestants, deep
from models.evolution_bench.contestants import PEERS, SEARCH, build, lacking
from models.evolution_bench.noise import DRIFT_S, Stream, drift, measured, poisson_quantile
from models.evolution_bench.populations import compact_outputs, fused, neuron
from models.evolution_bench.run import run
from models.evolution_bench.units import contrast_of, draw, natural_images
from models.truth_v4 import CompactModel, centred, recorded_counts, recorded_images
from rig.bench.evolve import Checkpoint, generator_settings
from rig.bench.evolve_statistics import above_natural, by_unit, interval, presentations_to_best, ratio, strength
from rig.bench.evolve_summary import summary
from rig.cli import app
from rig.clock import FakeClock
from rig.config.evolution_bench import OURS, BenchRun, BenchUnit
from rig.config.reading import ConfigError
from stimuli.generators.generator import normal_prior
from stimuli.search.optimiser import Scores

ROOT = Path(__file__).parent.parent

# --- statistics -------------------------------------------------------------------------------------------------------


def test_a_ratio_is_the_geometric_mean_over_units() -> None:
    found = ratio({"a": 2.0, "b": 8.0, "c": 4.0}, {"a": 1.0, "b": 2.0, "c": 2.0})
    assert found.ratio == pytest.approx((2 * 4 * 2) ** (1 / 3))
    assert found.median == pytest.approx(2)
    assert found.low is not None
    assert found.high is not None
    assert 2 - 1e-9 <= found.low <= found.ratio <= found.high <= 4 + 1e-9
    assert found.units == 3


def test_units_without_a_logarithm_are_named_and_counted_by_the_median() -> None:
    ours = {"a": 3.0, "b": 3.0, "c": -1.0, "d": -1.0, "only here": 5.0}
    theirs = {"a": 1.0, "b": -2.0, "c": 2.0, "d": 0.0, "only there": 5.0}
    found = ratio(ours, theirs)
    assert (found.only_a, found.only_b, found.neither) == (("b",), ("c",), ("d",))
    assert found.ratio == pytest.approx(3.0)
    assert (found.units, found.wins, found.compared) == (1, 2, 4)
    assert found.median == pytest.approx(3.0)  # of -inf, log 3, inf
    assert found.low is None  # one unit has no interval
    assert ratio({"a": 1.0, "b": 1.0}, {"a": -1.0, "b": 0.0}).figures()["median"] == "inf"
    nobody = ratio({"a": -1.0}, {"a": -1.0})
    assert (nobody.ratio, nobody.median, nobody.units) == (None, None, 0)


def test_the_interval_is_that_of_the_mean() -> None:
    values = np.random.default_rng(0).normal(1.0, 2.0, 400)
    low, high = interval(values)
    assert low is not None
    assert high is not None
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.02)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.05)


def test_rates_count_from_the_natural_mean_and_up_to_the_saturation() -> None:
    assert above_natural(10.0, 2.0, 4.0, saturated=False) == 8.0
    assert above_natural(10.0, 2.0, 4.0, saturated=True) == 4.0
    assert above_natural(1.0, 2.0, 4.0, saturated=True) == -1.0
    units = {"a": {"natural_mean": 2.0, "natural_best": 4.0}, "b": {"natural_mean": 1.0, "natural_best": 2.0}}
    rows = [{"unit": "a", "x": 4.0}, {"unit": "a", "x": 8.0}, {"unit": "b", "x": 1.5}, {"unit": "b", "x": None}]
    values = by_unit(rows, units, "x")
    assert values == {"a": 4.0, "b": 0.5}
    assert strength(values, units) == pytest.approx((2.0 + 0.5) / 2)


def test_presentations_until_ninety_percent_of_the_best_end() -> None:
    curves = {"fast": [(40, 5.0), (80, 9.3), (120, 11.0)], "slow": [(40, 1.0), (80, 2.0), (120, 3.0)]}
    assert presentations_to_best(curves, natural_mean=1.0) == {"fast": 120, "slow": None}
    assert presentations_to_best(curves, natural_mean=-50.0) == {"fast": 40, "slow": None}


UNITS = [
    {"name": n, "natural_mean": 1.0, "natural_best": 3.0, "natural_rates": [], "models": None, "remarks": r}
    for n, r in (("a", []), ("b", []), ("c", ["odd"]))
]


def row(unit: str, optimiser: str, best: float, center: float | None, seed: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "unit": unit, "generator": "dct", "noise": "poisson", "optimiser": optimiser, "seed": seed, "disturbed": False,
        "true_best": best, "true_center": center, "best_shown": best, "update_ms": 1.0,
        "curve": [(40, best, center)], "key": f"{unit}{optimiser}{seed}{more}", **more,
    }  # fmt: skip


def test_ours_meets_the_best_of_the_others_by_its_better_rule() -> None:
    rows = [row(u, OURS, 5.0, 1.0) for u in "abc"]  # its own centre is no second chance
    rows += [row(u, "good", 1.5, 3.0) for u in "abc"] + [row(u, "bad", 2.0, None) for u in "abc"]
    found = summary([*rows, row("a", "good", 99.0, 99.0, seed=1)], UNITS, "dct")
    versus = found["versus"]["poisson"]
    assert (versus["peer"], versus["nominates"], versus["seeds"]) == ("good", "the centre of its search", 1)
    assert versus["ratio"]["ratio"] == pytest.approx(2.0)
    assert versus["saturated"]["ratio"] == pytest.approx(3.5 / 2)
    assert found["ratio_vs_best_peer"]["poisson"]["ratio"] == pytest.approx(2.0)
    assert found["beats_best_natural"] == {"poisson": 1.0}
    assert "c: odd" in found["unusual"]


def test_disturbed_runs_are_paired_with_undisturbed_ones() -> None:
    rows = [row(u, OURS, 5.0, None) for u in "abc"] + [row(u, OURS, 4.8, None, disturbed=True) for u in "abc"]
    line = summary(rows, UNITS, "dct")["disturbed"][0]
    assert line["median"] == pytest.approx(3.8 / 4)
    assert line["median_low"] == pytest.approx(3.8 / 4)


# --- noise ------------------------------------------------------------------------------------------------------------


def test_counts_are_poisson_and_follow_their_draw() -> None:
    rng = np.random.default_rng(1)
    uniform, rates = rng.random(2000), rng.uniform(0, 12, 2000)
    rates[:50] = 0.0
    expected = stats.poisson.ppf(uniform, np.maximum(rates, 1e-12))
    np.testing.assert_array_equal(poisson_quantile(uniform, rates), expected)


def test_gain_noise_is_the_published_one() -> None:
    uniform = stats.norm.cdf([-3.0, 0.0, 1.0])
    np.testing.assert_allclose(measured(np.full(3, 4.0), uniform, "gain0.5"), [0.0, 4.0, 6.0], atol=1e-9)
    np.testing.assert_array_equal(measured(np.arange(3.0), uniform, "none"), np.arange(3.0))


def test_the_disturbance_is_the_stated_one_and_the_same_for_everybody() -> None:
    outcomes = Stream((1, 2), disturbed=True).outcomes(20_000)
    assert outcomes.dropped.mean() == pytest.approx(0.2, abs=0.01)
    assert outcomes.late.mean() == pytest.approx(0.1, abs=0.01)
    assert not (outcomes.dropped & outcomes.late).any()
    again = Stream((1, 2), disturbed=True)
    first, second = again.outcomes(7000), again.outcomes(13_000)
    np.testing.assert_array_equal(np.concatenate([first.gain, second.gain]), outcomes.gain)
    np.testing.assert_allclose(drift(np.array([0.0, DRIFT_S, 2 * DRIFT_S]), True), [1.0, 0.5, 1.0])
    np.testing.assert_allclose(drift(np.array([0.0, DRIFT_S]), False), [0.5, 1.0])
    assert (Stream((1, 2), disturbed=False).outcomes(100).gain == 1).all()


# --- neurons ----------------------------------------------------------------------------------------------------------


def test_folding_the_normalisation_changes_no_output() -> None:
    torch.manual_seed(0)
    model = CompactModel((6, 5, 3, 4, 3)).eval()
    for k in range(5):
        norm = model.layers[f"layer{k}_bn"]
        torch.nn.init.uniform_(norm.running_mean, -1, 1)  # type: ignore[arg-type]
        torch.nn.init.uniform_(norm.running_var, 0.5, 2)  # type: ignore[arg-type]
    frames = np.random.default_rng(0).integers(0, 256, (11, 112, 112, 3), np.uint8)
    with torch.inference_mode():
        plain = model(centred(frames)).numpy()
    np.testing.assert_allclose(compact_outputs(fused(model), frames), plain, rtol=1e-4, atol=1e-4)


def test_v1_units_prefer_some_natural_images_and_deep_units_have_the_stated_mean() -> None:
    images = natural_images(None, 40)
    assert 0.15 < contrast_of(images) < 0.3
    for unit in draw("v1", 3, None, images):
        assert 0.3 < unit.natural_mean < unit.natural_best < 12
        assert unit.natural_rates[-1] == unit.natural_best
    if said := deep.missing():
        pytest.skip(said)
    for unit in draw("deep", 2, None, images):
        assert neuron(unit)(images).mean() == pytest.approx(2.4, abs=1e-6)
        assert unit.natural_best > 3.5


def test_v4_units_have_their_recorded_rates_or_the_stated_mean(tmp_path: Path) -> None:
    folder = Path(os.environ.get("STIMLOOP_DATA", Path(__file__).parents[2] / "shared" / "data")) / "v4"
    if not (folder / "compact_models").exists():
        pytest.skip(f"no compact V4 models at {folder}; set STIMLOOP_DATA to the folder that holds v4/")
    images = recorded_images(folder, "190923", 60)
    unit = draw("v4", 1, folder / "compact_models", images)[0]
    assert unit.name == "v4/190923-0"
    counts = recorded_counts(folder, "190923")[0, :60]
    assert unit.natural_mean == pytest.approx(counts.mean(), rel=0.25)
    alone = tmp_path / "compact"
    for part in ("models_torch", "nums_filters"):
        (alone / part).mkdir(parents=True)
        name = "compact_model_190923_neuron0" + (".pt" if part == "models_torch" else ".npy")
        (alone / part / name).write_bytes((folder / "compact_models" / part / name).read_bytes())
    unit = draw("v4", 1, alone, images)[0]
    assert (unit.a, unit.natural_mean) == (1.3, pytest.approx(2.4, abs=1e-4))
    with pytest.raises(ConfigError, match=r"1 compact models in its models_torch/, 2 asked for; lower --units"):
        draw("v4", 2, alone, images)


def test_natural_images_of_a_zip_file(tmp_path: Path) -> None:
    archive = tmp_path / "pictures.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for k in range(3):
            path = tmp_path / f"{k}.png"
            Image.fromarray(np.full((30, 40, 3), 50 * k, np.uint8)).save(path)
            file.write(path, f"folder/{k}.png")
    assert natural_images(archive, 3)[:, 0, 0, 0].tolist() == [0, 50, 100]
    with pytest.raises(ConfigError, match="3 pictures, 4 asked for; lower --natural"):
        natural_images(archive, 4)
    (tmp_path / "no.zip").write_bytes(b"text")
    with pytest.raises(ConfigError, match="give a zip file"):
        natural_images(tmp_path / "no.zip", 1)


# --- contestants ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PEERS)
def test_foreign_optimisers_climb_from_the_prior_and_repeat_themselves(name: str) -> None:
    if wrong := lacking([name]):
        pytest.skip(wrong[0])
    prior = normal_prior(30, 2.0)
    direction = np.random.default_rng(0).standard_normal(30)

    def climb() -> tuple[list[float], np.ndarray[Any, Any], float]:
        contestant = build(name, prior, 800, np.random.default_rng(5))
        lengths, asked, best = [], None, -np.inf
        for _ in range(20):
            asked = contestant.ask()
            values = asked.codes @ direction
            lengths.append(float(np.linalg.norm(asked.codes, axis=1).mean()))
            contestant.tell(Scores.of(asked.code_ids, values))
            best = max(best, float(values.max()))
        assert contestant.nominate(1)[0].estimate == pytest.approx(best)
        assert asked is not None
        assert contestant.center is not None
        return lengths, asked.codes, float(contestant.center @ direction)

    lengths, codes, center = climb()
    # The full CMA of nevergrad takes first steps that are 12 % shorter than those it was given.
    assert lengths[0] == pytest.approx(prior.norm, rel=0.15)
    assert center > 5 * float(np.linalg.norm(direction))
    np.testing.assert_array_equal(climb()[1], codes)


def test_foreign_optimisers_refuse_a_missing_score() -> None:
    if wrong := lacking(["pycma_diagonal"]):
        pytest.skip(wrong[0])
    contestant = build("pycma_diagonal", normal_prior(5), 400, np.random.default_rng(0))
    asked = contestant.ask()
    with pytest.raises(ValueError, match="one score for each code"):
        contestant.tell(Scores.of(asked.code_ids, np.full(40, np.nan)))


def test_who_cannot_take_part_is_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(contestants.PEER_PACKAGES, "pycma", "no_such_package")
    said = lacking([*SEARCH, "pycma_diagonal", "simplex"])
    assert said[0].startswith("pycma_diagonal needs the package no_such_package")
    assert "pip install" in said[0]
    assert said[1].startswith("no optimiser 'simplex'; there are: noise_aware")


# --- runs -------------------------------------------------------------------------------------------------------------


def v1_run(**more: Any) -> BenchRun:
    unit = BenchUnit(name="v1/3", population="v1", number=3, natural_mean=1, natural_best=4, natural_rates=(1.0, 4.0))
    settings = generator_settings("dct:frequencies=4", 0.3)
    given: dict[str, Any] = {"noise": "poisson", "optimiser": "xdream_actmax", "seed": 0, "presentations": 400}
    return BenchRun(unit=unit, generator=settings, label="dct", **(given | more))


def test_a_run_repeats_itself_and_is_judged_by_true_rates() -> None:
    first, again = (run(v1_run(), FakeClock().now_ns) for _ in range(2))
    assert first == again
    assert first["presentations"] == 400
    assert first["images"] == 40 + 9 * 30  # ten are kept in each generation
    assert first["true_best"] <= first["best_shown"]
    assert first["estimate"] > first["true_best"]  # a lucky count chose it
    assert [point[0] for point in first["curve"]] == list(range(40, 401, 40))
    clean = run(v1_run(noise="none"), FakeClock().now_ns)
    assert clean["true_best"] == clean["best_shown"] == pytest.approx(clean["estimate"])
    assert clean["true_best"] > clean["curve"][0][1]
    assert run(v1_run(seed=1), FakeClock().now_ns)["true_best"] != first["true_best"]


def test_ours_pays_for_references_and_what_it_measures_again() -> None:
    found = run(v1_run(optimiser=OURS), FakeClock().now_ns)
    assert found["presentations"] <= 400
    assert found["references"] == pytest.approx(0.15 * found["presentations"], abs=2)
    assert found["images"] < found["presentations"] - found["references"]  # some of them more than once
    assert found["images"] > 250
    assert run(v1_run(optimiser=OURS, reference_share=0.0), FakeClock().now_ns)["references"] == 0


def test_a_disturbed_run_has_as_many_usable_presentations() -> None:
    found = run(v1_run(disturbed=True), FakeClock().now_ns)
    assert 360 <= found["usable"] <= 400
    assert found["presentations"] == pytest.approx(found["usable"] / 0.8, rel=0.1)


def arguments(tmp_path: Path) -> list[str]:
    return [
        "bench", "evolve", "--units", "2", "--seeds", "1", "--noise", "poisson", "--presentations", "160",
        "--natural", "20", "--generators", "dct:frequencies=4", "--peers", "none", "--optimisers",
        "xdream_actmax,sphere_cma", "--out", str(tmp_path / "out"),
    ]  # fmt: skip


def evolve(tmp_path: Path, *more: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, [*arguments(tmp_path), *more])
    return done.exit_code, done.output


def test_the_command_writes_rows_and_figures_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    code, said = evolve(tmp_path, "--json", str(tmp_path / "found.json"))
    assert code == 0, said
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["complete"]
    assert found["runs"] == "4 of 4"
    wanted = {"unit", "generator", "noise", "optimiser", "seed", "presentations", "true_best", "update_ms"}
    assert all(wanted <= set(r) for r in found["rows"])
    assert {r["presentations"] for r in found["rows"]} <= {160, 121, 122}  # the sphere shows 41 at a time
    assert found["ratio_vs_best_peer"] == {}  # ours did not take part
    assert (tmp_path / "out" / "curves-dct-frequencies-4.png").stat().st_size > 10_000

    code, said = evolve(tmp_path)
    assert code == 2
    assert "add --resume to go on with it" in " ".join(said.split())
    rows = tmp_path / "out" / "rows.jsonl"
    whole = rows.read_text().splitlines(keepends=True)
    rows.write_text("".join(whole[:-1]) + whole[-1][:50])  # killed while it wrote
    code, said = evolve(tmp_path, "--resume", "--json", str(tmp_path / "again.json"))
    assert code == 0, said
    assert "4 runs, 3 of them done before" in said
    again = json.loads((tmp_path / "again.json").read_text())

    assert untimed(again["rows"]) == untimed(found["rows"])


def untimed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows in the order of their keys, without what differs between any two runs."""
    return sorted(({k: v for k, v in r.items() if k != "update_ms"} for r in rows), key=lambda r: str(r["key"]))


@pytest.mark.slow
def test_several_processes_find_the_same_as_one(tmp_path: Path) -> None:
    code, said = evolve(tmp_path, "--json", str(tmp_path / "one.json"))
    assert code == 0, said
    more = ["--out", str(tmp_path / "two"), "--workers", "2", "--json", str(tmp_path / "two.json")]
    # In a process of its own: what Python keeps beside a pool of processes ends with it.
    command = [sys.executable, "-m", "rig.cli", *arguments(tmp_path), *more]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / f"{name}.json").read_text())["rows"] for name in ("one", "two"))
    assert untimed(one) == untimed(two)


def test_the_command_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    for wrong, expected in (
        (("--optimisers", "simplex"), "no optimiser 'simplex'"),
        (("--noise", "pink"), "pink; there are: none, poisson"),
        (("--generators", "dct:frequences=4"), "frequences"),
        (("--generators", "deepsim:weights=nowhere.pt"), "--generators deepsim:weights=nowhere.pt: "),
        (("--populations", "v4"), "needs --population PATH"),
    ):
        code, said = evolve(tmp_path, *wrong)
        assert code == 2, said
        assert expected in " ".join(said.replace("│", " ").split())


def test_a_checkpoint_of_another_bench_is_refused(tmp_path: Path) -> None:
    Checkpoint(tmp_path, {"natural images": "x", "scales": {}}, resume=False)
    with pytest.raises(ConfigError, match="was made with other natural images; choose another --out"):
        Checkpoint(tmp_path, {"natural images": "y", "scales": {}}, resume=True)


def test_update_times_are_measured_for_each(tmp_path: Path) -> None:
    code, said = evolve(tmp_path, "--updates", "--json", str(tmp_path / "times.json"))
    assert code == 0, said
    rows = json.loads((tmp_path / "times.json").read_text())["rows"]
    assert [r["optimiser"] for r in rows] == ["xdream_actmax", "sphere_cma"]
    assert all(0 < r["update_ms"] < 2000 and r["latent"] == 4096 for r in rows)
