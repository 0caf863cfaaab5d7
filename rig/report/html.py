"""Words, numbers and tables of the report's page."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from rig.view.columns import NO_TIME


def bound(values_ns: npt.NDArray[np.int64]) -> str:
    """Return median and largest of some bounds, ms."""
    known = values_ns[values_ns != NO_TIME] / 1e6
    return f"{np.median(known):.2f} / {known.max():.2f} ms" if len(known) else "not known"


def as_table(head: list[str], rows: list[list[str]], numbers: frozenset[int] = frozenset()) -> str:
    """Return a table of cells that are HTML already; `numbers` are the columns to align right."""

    def cells(row: list[str], tag: str) -> str:
        return "".join(f"<{tag}{' class=n' if k in numbers else ''}>{c}</{tag}>" for k, c in enumerate(row))

    body = "".join(f"<tr>{cells(r, 'td')}</tr>" for r in rows)
    return f"<table><tr>{cells(head, 'th')}</tr>{body}</table>"


def counted(number: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def estimate(figures: Mapping[str, float], name: str) -> str:
    """Return a figure, with its interval where NAME_low and NAME_high are known; "" where there is no such figure."""
    if name not in figures:
        return ""
    said = f"{figures[name]:.2f}"
    if f"{name}_low" in figures and f"{name}_high" in figures:
        said += f" ({figures[f'{name}_low']:.2f} to {figures[f'{name}_high']:.2f})"
    return said


def minutes(ns: float) -> str:
    """Return a length of time as min:s."""
    seconds = round(ns / 1e9)
    return f"{seconds // 60}:{seconds % 60:02d}"


def moment(utc_ns: int) -> str:
    """Return a moment to the minute; numpy and not datetime, which could read a clock."""
    return str(np.datetime64(utc_ns, "ns").astype("datetime64[m]")).replace("T", " ") + " UTC"
