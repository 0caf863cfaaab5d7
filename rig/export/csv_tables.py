"""`stimloop export --csv`: tables for a spreadsheet, R or pandas, with a page that says what each column is.

Times are seconds since the session's start; an empty cell is a value that is not known. Rows are written in stretches.
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rig.export.interruptions import derived, happened, replayed
from rig.export.presentations import PER_UNIT, Field, Presentations
from rig.export.session_file import SessionView
from rig.export.times import Clocks
from rig.export.trials import trial_fields
from rig.messages import RATE_UNITS
from rig.view.columns import NO_TIME

ROWS_AT_ONCE = 256
LONG_VALUES = 20_000_000  # presentations times units above which the long table is left out

HEAD = """# Tables of session {name}

{simulated}Made by `stimloop export --csv` from the session's log. Times are in seconds since the start of the session
({start}); spikes and windows were mapped by the two-sided refit of the device's clock. An empty cell is
a value that is not known. `1` as a unit means a count, an index or true/false.
{origin}"""


def _cell(value: Any) -> Any:
    """Return a value as it stands in a cell: floats in full, nothing for what is not known."""
    if isinstance(value, float | np.floating):
        return "" if np.isnan(value) else repr(float(value))
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, int | np.integer):
        return "" if value == NO_TIME else int(value)
    return value


def _write(path: Path, names: Sequence[str], rows: Iterator[Sequence[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for row in rows:
            writer.writerow([_cell(value) for value in row])


def _rows(fields: Sequence[Field]) -> Iterator[Sequence[Any]]:
    yield from zip(*(f.values for f in fields), strict=True)


def _start_utc(view: SessionView) -> str:
    return str(np.datetime64(int(view.attributes["start_utc_ns"]), "ns").astype("datetime64[ms]")) + "Z"


def fault_fields(view: SessionView, clocks: Clocks) -> list[Field]:
    """Return the columns of the faults, in order of the log."""
    seq = view.column("faults/seq")
    said, since = (view.column(f"faults/{c}") for c in ("receipt_host_ns", "since_host_ns"))
    touched = [text.strip("[]").replace(",", " ") for text in view.texts("faults/presentations")]
    return [
        Field("time", "s", "When the log received it", clocks.host.seconds(said, seq)),
        Field("sender", "", "Process that said so", view.texts("faults/sender")),
        Field("what", "", "Short name", view.texts("faults/what")),
        Field("detail", "", "What happened", view.texts("faults/detail")),
        Field("done", "", "What the program did about it", view.texts("faults/done")),
        Field("since_time", "s", "Since when, where known", clocks.host.seconds(since, seq)),
        Field("presentations", "", "Presentations it touches, where known", touched),
    ]


def unit_fields(view: SessionView) -> list[Field]:
    """Return the columns of the units: every unit or ROI that a device delivered."""
    count = len(view.texts("units/name"))
    spikes = np.zeros(count, np.int64)
    for part in view.stretches("spikes", ("unit",)):
        spikes += np.bincount(part["unit"], minlength=count)
    source = view.column("units/source")
    recording = view.config.get("recording", {})
    area = str(view.config.get("subject", {}).get("area", ""))
    names = [view.sources[k] for k in source]
    scored = set(view.texts("responses/units"))
    return [
        Field("unit", "", "Name, as the device gives it", view.texts("units/name")),
        Field("source", "", "Device", names),
        Field("area", "", "Brain area from the config", [recording.get(n, {}).get("area") or area for n in names]),
        Field("spikes", "1", "Spikes in the log", spikes),
        Field("scored", "1", "Whether responses hold it", [n in scored for n in view.texts("units/name")]),
    ]


def write_csv(view: SessionView, clocks: Clocks, folder: Path) -> list[str]:
    """Write the tables and their dictionary into `folder`; return notes for the user."""
    shown = Presentations(view, clocks)
    timed = [
        Field("start_time", "s", "Onset: the photodiode's edge, else flip stamp plus measured lag", shown.onset_s),
        Field("stop_time", "s", "Offset", shown.stop_s),
    ]
    tables = {
        "presentations": ("One row per image that was on the screen", [*timed, *shown.fields()]),
        "trials": ("One row per trial", trial_fields(view, clocks, shown)),
        "faults": ("One row for everything that was lost, late or wrong", fault_fields(view, clocks)),
        "units": ("One row per unit or region of interest", unit_fields(view)),
    }
    page = [
        HEAD.format(
            name=view.name,
            start=_start_utc(view),
            origin="".join(f"\n{words}\n" for words in [*replayed(view), *derived(view), *happened(view, shown)]),
            simulated="**Simulated: no animal was recorded.** " if view.simulated else "",
        )
    ]
    for name, (what, fields) in tables.items():
        _write(folder / f"{name}.csv", [f.name for f in fields], _rows(fields))
        page.append(f"\n## {name}.csv\n\n{what}.\n\n| column | unit | meaning |\n|---|---|---|\n")
        page += [f"| {f.name} | {f.unit or 'text'} | {f.description} |\n" for f in fields]
    notes = _write_responses(shown, folder, page)
    (folder / "README.md").write_text("".join(page), encoding="utf-8")
    return notes


def _write_responses(shown: Presentations, folder: Path, page: list[str]) -> list[str]:
    number, usable = shown.of_shown("presentation"), shown.of_response("usable", False)
    stimulus = shown.texts_of_shown("stimulus_id")
    measures = sorted({m for m in shown.texts_of_response("measure", "") if m})
    unit = ", ".join(RATE_UNITS[m] for m in measures) or "none"

    def wide() -> Iterator[Sequence[Any]]:
        for first in range(0, len(shown), ROWS_AT_ONCE):
            rates = shown.per_unit("rate_hz", slice(first, first + ROWS_AT_ONCE))
            for k, row in enumerate(rates, start=first):
                yield [number[k], stimulus[k], usable[k], *row]

    def long() -> Iterator[Sequence[Any]]:
        for first in range(0, len(shown), ROWS_AT_ONCE):
            rows = slice(first, first + ROWS_AT_ONCE)
            values = [shown.per_unit(column, rows) for column in PER_UNIT]
            for k in range(len(values[0])):
                for u, name in enumerate(shown.units):
                    yield [number[first + k], name, usable[first + k], *(v[k, u] for v in values)]

    _write(folder / "responses_wide.csv", ["presentation", "stimulus_id", "usable", *shown.units], wide())
    page.append(
        f"\n## responses_wide.csv\n\nOne row per presentation, one column per unit: its response less baseline, "
        f"{unit}. Empty where the unit was not scored or the response does not count.\n"
    )
    if len(shown) * len(shown.units) > LONG_VALUES:
        return [f"responses_long.csv left out: it would have {len(shown) * len(shown.units):,} rows; use --nwb"]
    _write(folder / "responses_long.csv", ["presentation", "unit", "usable", *PER_UNIT], long())
    page.append(
        "\n## responses_long.csv\n\nOne row per presentation and unit.\n\n| column | unit | meaning |\n|---|---|---|\n"
        "| presentation | 1 | Number of the presentation |\n| unit | text | Name of the unit |\n"
        "| usable | 1 | Whether the response counts |\n"
        "| count | as measure says | Sum over the response window; dff: mean |\n"
        "| baseline | as count | What the baseline expects count to be |\n"
        f"| rate_hz | {unit} | (count - baseline) / window length; dff: count - baseline |\n"
    )
    return []
