"""Configs: the shipped ones are valid and explained; each mistake gets the message that mends it."""

import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

import rig.config
from rig.config.part import Part
from rig.config.reading import ConfigError, load, parse
from rig.config.session import Config

ROOT = Path(__file__).parent.parent
SHIPPED = sorted((ROOT / "configs").glob("*.yaml"))
BAD = sorted((ROOT / "tests" / "bad_configs").glob("*.yaml"))
SMALLEST = 'sources: [{type: openephys}]\nresponses: {units: ["a"]}\nphases: [{agent: present}]\n'


# Every module, so that the list of parts is the same whichever tests were collected before this one.
for _module in pkgutil.iter_modules(rig.config.__path__, "rig.config."):
    importlib.import_module(_module.name)


def all_parts(part: type[BaseModel] = Part) -> set[type[BaseModel]]:
    return {part}.union(*(all_parts(p) for p in part.__subclasses__()))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_config_is_valid_and_kept_verbatim(path: Path) -> None:
    config, text = load(path)
    assert text == path.read_text(encoding="utf-8")
    assert config.name == path.stem


def test_the_shipped_configs_are_there() -> None:
    assert {"demo", "evolve", "present", "lsl", "v4"} <= {p.stem for p in SHIPPED}


def test_the_demo_config_shows_every_field_of_what_it_uses() -> None:
    def shown(given: object, model: BaseModel, at: str) -> None:
        assert isinstance(given, dict)
        # Of these, demo.yaml has no use; the other shipped configs show them.
        unused = {"banks", "age", "models", "recorded", "session", "multiunit", "gates", "outputs", "reward", "guest"}
        unused |= {"mix", "weights", "numbers", "response_sd_hz"}
        unused |= {"wire_faults", "calcium", "behaviour", "sync", "sync_port", "model_server"}
        unused |= {"experiment", "recording", "luminance_cd_m2"}
        unused |= {"units", "targets", "most_units", "sizes_deg", "start", "stop"}
        unused |= {"date_of_birth", "strain", "genotype", "weight_g", "description"}
        assert set(type(model).model_fields) - set(given) <= unused, at
        for name, value in given.items():
            field = getattr(model, name)
            if isinstance(field, BaseModel):
                shown(value, field, f"{at}.{name}")
            if isinstance(field, tuple) and field and isinstance(field[0], BaseModel):
                for k, one in enumerate(field):
                    shown(value[k], one, f"{at}.{name}.{k}")

    config, text = load(ROOT / "configs" / "demo.yaml")
    shown(yaml.safe_load(text), config, "demo")


def test_each_line_of_the_demo_config_with_a_value_is_explained() -> None:
    lines = (ROOT / "configs" / "demo.yaml").read_text(encoding="utf-8").splitlines()
    # `type: ...` and `agent: ...` lines and the heads of sections may stand without a comment of their own.
    plain = re.compile(r'[\s-]*[a-z_]+: ("[^"]*"|[^#"])+$')
    head = re.compile(r"\s*[a-z]+:$")
    unexplained = [x for x in lines if plain.match(x) and not head.match(x) and "units:" not in x]
    assert unexplained == ["name: demo"] or unexplained == []


@pytest.mark.parametrize("path", BAD, ids=lambda p: p.stem)
def test_bad_config_is_refused_with_place_and_cure(path: Path) -> None:
    expected = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# expect: ")
    with pytest.raises(ConfigError) as error:
        load(path)
    lines = str(error.value).splitlines()
    assert all(line.startswith(f"{path}: ") for line in lines)
    assert any(expected in line for line in lines)
    assert len(lines) == (2 if path.stem == "two_mistakes" else 1), "one mistake, one line"


def test_a_missing_file_is_a_config_error_with_a_cure(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml: cannot be read: .*give the path of a YAML file"):
        load(tmp_path / "nothing.yaml")


def test_a_file_that_is_no_text_is_a_config_error(tmp_path: Path) -> None:
    path = tmp_path / "picture.yaml"
    path.write_bytes(b"\x89PNG\r\n\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(path)


@pytest.mark.parametrize(
    ("on_s", "off_s", "refresh_hz"),
    [(0.1, 0.1, 60), (0.0167, 0.0333, 60), (0.0083333, 0.1, 120), (0.2, 0.0, 75), (0.1, 0.1, 59.94)],
)
def test_durations_of_whole_frames_are_accepted(on_s: float, off_s: float, refresh_hz: float) -> None:
    config = parse(
        SMALLEST.replace('["a"]', '["a"], baseline: {kind: none}').replace("ephys", "ephys, photodiode_line: null")
        + f"presentation: {{on_s: {on_s}, off_s: {off_s}}}\ndisplay: {{refresh_hz: {refresh_hz}}}\n"
        + "limits: {max_flicker_hz: 60}\n"
    )
    assert config.presentation.on_s == on_s


def test_a_screen_without_photodiode_may_be_covered_by_the_image() -> None:
    # 300 px at 7.5 px/cm and 30 cm: a 60 degree image is 260 px wide and reaches the patch of 32 px.
    place = "stimulus: {size_deg: 60}\ndisplay: {size_px: [300, 300], PATCHwidth_cm: 40}\n"
    with pytest.raises(ConfigError, match="covers the photodiode patch"):
        parse(SMALLEST + place.replace("PATCH", ""))
    assert parse(SMALLEST + place.replace("PATCH", "patch: null, ")).display.patch is None


@pytest.mark.parametrize("part", sorted(all_parts() - {Part}, key=lambda p: p.__name__), ids=lambda p: p.__name__)
def test_every_number_has_a_description_and_names_its_unit(part: type[BaseModel]) -> None:
    """A float is a quantity: its name ends in a unit, or its description says what the number is."""
    units = {"_s", "_hz", "_px", "_deg", "_cm", "_mb", "_ppm", "_ml", "_sd", "_dff", "_per_min", "_per_h", "_gb"}
    said = re.compile(r"\d|[Gg]amma|grey level|relative|[Ff]raction|sd|contrast|frequency")
    for name, field in part.model_fields.items():
        if field.annotation not in (float, tuple[float, float], int):
            continue
        if name in {"seed"}:
            continue
        assert field.description, f"{part.__name__}.{name} needs a description"
        if field.annotation is not int and not any(name.endswith(u) for u in units):
            assert said.search(field.description), f"{part.__name__}.{name}: {field.description!r} names no unit"


def test_a_config_survives_its_own_json() -> None:
    """The log holds the validated config as JSON; it must read back equal."""
    for path in SHIPPED:
        config, _ = load(path)
        assert Config.model_validate_json(config.model_dump_json()) == config
