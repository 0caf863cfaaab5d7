"""What a config says about animal, experiment and devices, what it lacks for an archive, and the report's head."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from rig.config.reading import load, parse
from rig.config.session import Config
from rig.config.subject import Subject, lacking
from rig.preflight.machine import metadata
from rig.report.page import write
from rig.view.h5 import build
from tests.rich_session import METADATA, Rich
from tests.synthetic_session import write_journal

ROOT = Path(__file__).parent.parent
RICH = METADATA.replace("GAMMA", "1.8")


def missing(config: Config) -> list[str]:
    return lacking(config.model_dump(mode="json"))


def test_a_config_that_says_all_lacks_nothing() -> None:
    assert missing(parse(RICH)) == []
    assert metadata(parse(RICH)).status == "ok"


@pytest.mark.parametrize(
    ("said", "instead", "lacks"),
    [
        ("species: Macaca mulatta", "species: monkey", "subject.species (Latin binomial)"),
        ("age: P7Y", 'age: ""', "subject.age (or date_of_birth)"),
        ("sex: F", "sex: U", "subject.sex"),
        ('protocol: "1234-26"', 'protocol: ""', "experiment.protocol"),
        ("indicator: GCaMP6f", 'indicator: ""', "recording.scope.indicator"),
        ('probe: "Utah array"', 'probe: ""', "recording.probe.probe"),
    ],
)
def test_what_is_not_said_is_named_and_refuses_no_session(said: str, instead: str, lacks: str) -> None:
    assert RICH.count(said) == 1
    config = parse(RICH.replace(said, instead))
    assert missing(config) == [lacks]
    result = metadata(config)
    assert (result.status, result.message) == ("warn", f"exports will lack: {lacks}")


def test_a_birthday_stands_for_an_age_and_yaml_may_read_it_as_a_date() -> None:
    config = parse(RICH.replace("age: P7Y", "date_of_birth: 2019-02-28"))
    assert config.subject.date_of_birth == "2019-02-28"
    assert missing(config) == []


def test_a_simulated_animal_needs_no_particulars() -> None:
    config, _ = load(ROOT / "configs" / "demo.yaml")
    assert lacking(config.model_dump(mode="json"), simulated=True) == []
    assert metadata(config).status == "ok"


@pytest.mark.parametrize("age", ["P90D", "P7Y", "P1Y6M", "P12W", "P90DT12H", "P7.5Y"])
def test_ages_are_durations(age: str) -> None:
    assert Subject(age=age).age == age


@pytest.mark.parametrize("age", ["P", "PT", "90D", "P90", "7 years", "P-7D"])
def test_what_is_no_duration_is_no_age(age: str) -> None:
    with pytest.raises(ValidationError, match="no ISO 8601 duration"):
        Subject(age=age)


def test_the_report_names_who_did_it_under_which_protocol(tmp_path: Path) -> None:
    write_journal(tmp_path, list(Rich(generations=1, candidates=3, seconds=5).entries()))
    build(tmp_path)
    page = write(tmp_path).read_text(encoding="utf-8")
    assert "Doe, Jane; Roe, Richard; Vision Lab; University of Nowhere · protocol 1234-26" in page
