"""`stimloop check`: what makes responses worthless though every device runs: traces, gaze, and pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rig.config.session import Config
from rig.messages import BehaviourBlock, ClockSample, Continuity, Document, TraceBlock, UnitList
from rig.preflight.calcium import traces
from rig.preflight.gaze import gaze
from rig.preflight.luminance import luminance
from rig.preflight.result import Result
from rig.preflight.sources import Heard
from stimuli.spec import BankImage, Blank, Stimulus

S = 1_000_000_000
UNITS = ("R1", "R2")
TICKS = 1e6  # ticks/s of the microscope


def config(**parts: Any) -> Config:
    given: dict[str, Any] = {
        "sources": [{"type": "traces_zmq", "name": "scope", "port": 5570, "calcium": {"neuropil": 0.7}}],
        "responses": {"units": list(UNITS), "window_s": (0.05, 0.75), "baseline": {"window_s": (-0.2, 0.05)}},
        "presentation": {"on_s": 0.5, "off_s": 1.0},
        "phases": [{"agent": "present", "count": 5}],
    }
    return Config.model_validate(given | parts)


def heard(*documents: Document) -> Heard:
    out = Heard()
    out.documents = [(51 * S, str(getattr(d, "source")), d) for d in documents]  # noqa: B009 - not all kinds have one
    return out


def done(source: str = "scope", rate_hz: float = TICKS) -> Continuity:
    return Continuity(
        source=source, run=1, state="streaming", sample_rate_hz=rate_hz, watermark_sample=6_000_000, messages=1,
        lost_messages=0,
    )  # fmt: skip


def scope(
    frame_hz: float = 30.0, level: float = 100.0, neuropil: float | None = 50.0, lost: tuple[int, ...] = (),
    units: tuple[str, ...] = UNITS, each: int = 5,
) -> Heard:  # fmt: skip
    """Six seconds of a microscope: constant fluorescence with a little noise, in blocks of `each` frames."""
    rng = np.random.default_rng(3)
    listed = UnitList(
        source="scope", run=1, list_number=0, from_sample=0, units=units, scan_offset_s=np.zeros(len(units)),
        measure="fluorescence",
    )  # fmt: skip
    frames = np.array([n for n in range(round(6 * frame_hz)) if n not in lost], np.int64)
    blocks = []
    for start in range(0, len(frames), each):
        some = frames[start : start + each]
        values = (level + rng.normal(size=(len(some), len(units)))).astype(np.float32)
        blocks.append(
            TraceBlock(
                source="scope", run=1, list_number=0, frame=some, sample=np.rint(some * TICKS / frame_hz).astype(int),
                arrival_host_ns=some, values=values,
                neuropil=None if neuropil is None else np.full_like(values, neuropil),
            )
        )  # fmt: skip
    return heard(listed, *blocks, done())


def of_scope(found: Heard, settings: Config | None = None) -> dict[str, Result]:
    return {r.name.removeprefix("source scope "): r for r in traces("scope", settings or config(), found)}


def calcium(**settings: Any) -> Any:
    return [{"type": "traces_zmq", "name": "scope", "port": 5570, "calcium": settings}]


# --- traces -----------------------------------------------------------------------------------------------------------


def test_sound_traces_say_how_many_frames_make_a_response() -> None:
    found = of_scope(scope())
    assert {name: r.status for name, r in found.items()} == {"traces": "ok", "windows": "ok", "indicator": "ok"}
    said = found["windows"].message
    assert said == "30 frames/s: 21.0 frames in responses.window_s, 7.5 frames in responses.baseline.window_s"
    assert "0.70 s is 1 tau (0.7 s)" in found["indicator"].message


@pytest.mark.parametrize("each", [1, 5])
def test_fewer_than_two_frames_in_a_window_fail(each: int) -> None:
    found = of_scope(scope(frame_hz=5, each=each))["windows"]  # a baseline of 0.25 s
    assert found.status == "fail"
    assert "1.2 frames in responses.baseline.window_s" in found.message
    assert "make responses.baseline.window_s at least 0.4 s" in found.remedy
    both = config(responses={"units": list(UNITS), "window_s": (0.05, 0.2), "baseline": {"window_s": (-0.2, 0.05)}})
    assert "responses.window_s and responses.baseline.window_s" in of_scope(scope(frame_hz=5), both)["windows"].remedy
    none = config(responses={"units": list(UNITS), "window_s": (0.05, 0.75), "baseline": {"kind": "none"}})
    assert of_scope(scope(frame_hz=5), none)["windows"].status == "ok"


def test_neuropil_that_is_not_sent_although_it_is_to_be_subtracted() -> None:
    found = of_scope(scope(neuropil=None))["traces"]
    assert found.status == "warn"
    assert "scope sends no neuropil" in found.message
    assert "calcium.neuropil: 0 of source scope" in found.remedy
    assert of_scope(scope(neuropil=None), config(sources=calcium(neuropil=0)))["traces"].status == "ok"


def test_a_baseline_that_is_not_positive_fails() -> None:
    found = of_scope(scope(level=30.0, neuropil=50.0))["traces"]  # 30 - 0.7 * 50 < 0
    assert found.status == "fail"
    assert "baseline not positive after neuropil subtraction for 2 units" in found.message
    assert "raw fluorescence" in found.remedy


def test_lost_frames_and_unknown_units_are_passed_on() -> None:
    lost = of_scope(scope(lost=(50, 51)))["traces"]
    assert (lost.status, lost.message) == ("warn", "2 frames lost before frame 52")
    gone = of_scope(scope(units=("R1", "Q2")))["traces"]
    assert gone.status == "fail"
    assert "R2" in gone.message


def test_no_frame_at_all() -> None:
    assert of_scope(heard(done()))["traces"].status == "fail"


@pytest.mark.parametrize(("off_s", "status"), [(2.0, "ok"), (0.5, "warn"), (0.1, "fail")])
def test_dff_of_one_image_reaches_into_the_next(off_s: float, status: str) -> None:
    baseline = {"window_s": (-0.1, 0.05)}
    settings = config(
        sources=calcium(measure="dff", tau_s=0.7), presentation={"on_s": 0.3, "off_s": off_s},
        responses={"units": list(UNITS), "window_s": (0.05, 0.3 if off_s < 0.2 else 0.7), "baseline": baseline},
    )  # fmt: skip
    found = of_scope(scope(), settings)["indicator"]
    assert found.status == status, found
    assert f"{np.exp(-(0.3 + off_s) / 0.7):.0%} of an image's dF/F is left" in found.message
    if status != "ok":
        assert "set presentation.off_s to 0.9 s" in found.remedy  # 0.7 ln 5 - 0.3 = 0.83
        assert "deconvolved" in found.remedy


def test_a_window_for_spikes_is_short_for_an_indicator() -> None:
    spikes = config(responses={"units": list(UNITS), "window_s": (0.05, 0.15), "baseline": {"kind": "none"}})
    found = of_scope(scope(), spikes)["indicator"]
    assert found.status == "warn"
    assert "0.10 s is 0.14 tau" in found.message
    assert "0.35 s or more" in found.remedy


def test_another_source_is_not_judged_as_the_scored_one() -> None:
    assert list(traces("other", config(), scope())) == []


# --- gaze -------------------------------------------------------------------------------------------------------------


def looked(values: np.ndarray, **fixation: Any) -> Result:
    settings = config(
        sources=[*calcium(neuropil=0), {"type": "lsl_behaviour", "name": "eye", "stream": "eye"}],
        gates={"fixation": {"source": "eye", **fixation}},
    )
    rows = len(values)
    block = BehaviourBlock(
        source="eye", run=1, channels=("gaze_x_deg", "gaze_y_deg"), sample=np.arange(rows),
        arrival_host_ns=np.arange(rows), values=values,
    )  # fmt: skip
    pair = ClockSample(source="eye", run=1, device_sample=0.0, pair_host_ns=1)
    (result,) = gaze("eye", settings, heard(pair, block))
    return result


def eye(center: tuple[float, float], sd: float, missing: int = 0) -> np.ndarray:
    values = np.random.default_rng(5).normal(size=(500, 2)) * sd + np.array(center)
    values[:missing] = np.nan
    return values


def test_the_gaze_is_described() -> None:
    found = looked(eye((0.1, -0.2), 0.3, missing=50))
    assert found.status == "ok"
    assert "100% within 2 degrees of (0, 0), 10% missing" in found.message
    assert "90 % within 1 x " in found.message or "90 % within 0.9" in found.message


def test_pixels_are_no_degrees_until_gain_and_offset_are_given() -> None:
    pixels = eye((412, 300), 5.0)
    found = looked(pixels)
    assert found.status == "fail"
    assert "median (412, 300): these are not degrees; 0% inside the window" in found.message
    assert "gain" in found.remedy
    given = looked(pixels, gain=(0.05, -0.05), offset_deg=(-20.6, 15.0))
    assert given.status == "ok", given


def test_fractions_of_the_screen_lie_in_any_window_and_are_a_warning() -> None:
    found = looked(eye((0.5, 0.5), 0.05))
    assert found.status == "warn"
    assert "fractions of the screen" in found.message
    assert "100% within" in found.message


@pytest.mark.parametrize(
    ("values", "status", "words"),
    [
        (eye((0, 0), 0.3, missing=500), "fail", "not one of 500 rows"),
        (eye((0, 0), 0.3, missing=300), "warn", "60% missing"),
        (eye((10, 0), 0.3), "warn", "0% within"),
        (np.full((500, 2), -1.0), "warn", "never moves"),
    ],
    ids=["none", "often missing", "elsewhere", "frozen"],
)
def test_what_can_be_wrong_with_the_gaze(values: np.ndarray, status: str, words: str) -> None:
    found = looked(values)
    assert found.status == status
    assert words in found.message
    assert len(found.remedy) > 20


def test_a_source_without_a_gate_is_not_judged() -> None:
    assert list(gaze("scope", config(), scope())) == []


# --- pictures ---------------------------------------------------------------------------------------------------------


def flat(folder: Path, **levels: int) -> list[Stimulus]:
    """Uniform pictures, and their stimuli."""
    for name, level in levels.items():
        Image.new("RGB", (64, 64), (level,) * 3).save(folder / f"{name}.png")
    return [Stimulus(id=f"mine-{n}.png", spec=BankImage(bank="mine", name=f"{n}.png")) for n in levels]


def pictures(folder: Path, levels: dict[str, int], generated: tuple[float, ...] = (), **parts: Any) -> Result:
    stimuli = [*flat(folder, **levels), Stimulus(id="blank", spec=Blank())]
    phase = {"stimuli": [s.model_dump(mode="json") for s in stimuli], "generated_luminance": list(generated)}
    figures = {"phases": [phase]}
    fast = {"presentation": {"on_s": 0.1, "off_s": 0.1}, "banks": {"mine": folder}, "sources": calcium(neuropil=0)}
    responses = {"units": list(UNITS), "window_s": (0.05, 0.15), "baseline": {"kind": "none"}}
    return luminance(config(**{**fast, "responses": responses, **parts}), figures)


def test_pictures_with_the_background_s_mean_cannot_flash(tmp_path: Path) -> None:
    found = pictures(tmp_path, levels={"a": 120, "b": 136})
    assert found.status == "ok"
    assert "0.47 (mine-a.png) to 0.53 (mine-b.png) of white, background 0.50" in found.message
    assert "not even their worst orders make more than 3 flashes/s" in found.message


def test_bright_pictures_are_named(tmp_path: Path) -> None:
    found = pictures(tmp_path, levels={"snow": 220, "ice": 200, "sea": 190, "night": 30})
    assert found.status == "fail", found
    assert "more than 3 flashes/s" in found.message
    assert "mine-night.png (0.12), mine-snow.png (0.86), mine-ice.png (0.78)" in found.remedy
    assert "blank" not in found.remedy
    slow = pictures(tmp_path, levels={"snow": 220}, presentation={"on_s": 0.1, "off_s": 0.3})
    assert slow.status == "ok", slow


def test_two_flashing_pictures_among_many_are_a_warning(tmp_path: Path) -> None:
    many = {f"p{k}": 124 + k % 8 for k in range(40)}
    found = pictures(tmp_path, levels={**many, "snow": 220, "night": 30})
    assert found.status == "warn", found
    assert "in the worst order image 4" in found.message
    one = pictures(tmp_path, levels={**many, "snow": 220})
    assert one.status == "ok", "it can end one block and begin the next, which makes two flashes"


def test_a_small_step_on_either_side_flashes_only_between_pictures(tmp_path: Path) -> None:
    rhythm = {"on_s": 0.1, "off_s": 0.0}  # from one picture to the next
    levels = {"a": 110, "b": 112, "c": 144, "d": 146}  # within 0.1 of the background, and farther from each other
    dark = {"patch": None}
    found = pictures(tmp_path, levels=levels, presentation=rhythm, display=dark)
    assert found.status in ("warn", "fail"), found
    assert pictures(tmp_path, levels={"a": 110, "b": 112}, presentation=rhythm, display=dark).status == "ok"


def test_a_picture_beyond_the_limits_of_a_frame_is_named(tmp_path: Path) -> None:
    found = pictures(tmp_path, levels={"black": 2, "grey": 128})
    assert found.status == "fail"
    assert "mine-black.png: mean level 2.0 is outside limits.mean_level 20 to 235" in found.message


def test_generated_images_count_and_small_ones_are_no_large_flash(tmp_path: Path) -> None:
    levels = {"a": 126}
    assert pictures(tmp_path, generated=(0.7,) * 20, levels=levels).status == "fail"
    small = pictures(tmp_path, generated=(0.7,) * 20, levels=levels, stimulus={"size_deg": 4.0})
    assert small.status == "ok"
    assert "too small" in small.message
