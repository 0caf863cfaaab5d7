"""The section of a revisit phase: which units of another day were found again, and what its images do to them now.

Correlations and tests are those that the agent stated (table model/updates). Where the session also made images of its
own, those of both days are compared. Used by `rig.report.page`.
"""

from html import escape

import numpy as np

from rig.report import inception
from rig.report.confirmation import fixed
from rig.report.data import Session
from rig.report.evolution import subtracted
from rig.report.first_minutes import REJECTED, Report, last_report, of_unit
from rig.report.html import as_table, counted
from rig.report.inception import MEI, Draw, Images
from rig.similarity import energy_correlation, pixel_correlation


def section(session: Session, phase: int, draw: Draw) -> str:
    """Return the section's HTML."""
    report = last_report(session, phase)
    if "pairs" not in report:
        return "<p>The phase ended before the units were compared.</p>"
    images: Images = {}
    for unit, kind, stimulus in fixed(session, phase):
        images.setdefault(unit, {})[kind] = stimulus
    out = _matches(session, phase, report)
    if not images:
        return out + "<p>No image of that day was shown: no unit was verified.</p>"
    out += inception.shown_back(session, phase, images, report, draw)
    return out + _then_and_now(session, phase, report, images) + _of_both_days(session, phase, images)


def _matches(session: Session, phase: int, report: Report) -> str:
    settings = session.config["phases"][phase]
    taken = settings["taken"]
    rows = []
    for before, today in settings["units"].items():
        one = of_unit(report, today)
        reasons = [name[len(REJECTED) :] for name in one if name.startswith(REJECTED)]
        verdict = "no: " + escape("; ".join(reasons)) if reasons else "<b>yes</b>"
        digits = {"similarity": ".2f", "q_match": ".3f"}
        figures = [f"{one[name]:{how}}" if name in one else "" for name, how in digits.items()]
        rows.append([escape(before), escape(today), *figures, verdict])
    made = dict.fromkeys(image["unit"] for image in taken["images"])
    lost = [unit for unit in made if unit not in settings["units"]]
    words = (
        f"<p><b>{int(report['verified'])} of {counted(int(report['pairs']), 'unit')} verified</b> to be those of "
        f"session {escape(taken['session'])}. Which is which was given by the user's table; mean responses to "
        f"{counted(len(taken['shared']), 'image')} that were held out that day verify it (today "
        f"{counted(settings['shared_repeats'], 'presentation')} of each). Correlations between units "
        f"that are not the same: median {report.get('null_median', np.nan):.2f}, 95 % below "
        f"{report.get('null_high', np.nan):.2f}. A unit is verified if its q is at most {settings['chance']:g} and no "
        "other combination with it is as alike. None of these images, nor anything made of them, is tested below.</p>"
    )
    if lost:
        words += (
            f"<p>In no pair, and so without their images: {escape(', '.join(lost))}, of that day's units.</p>"
        )
    head = ["unit that day", "unit today", "correlation", "q", "verified"]
    return "<h3>Units of both days</h3>" + words + as_table(head, rows, frozenset({2, 3}))


def _then_and_now(session: Session, phase: int, report: Report, images: Images) -> str:
    digits = 1 if session.measure == "spikes" else 3
    settings, rows = session.config["phases"][phase], []
    before = {(settings["units"].get(one["unit"]), one["kind"]): one for one in settings["taken"]["images"]}

    def words(mean: float, error: float | None, repeats: float) -> str:
        spread = "" if error is None or not np.isfinite(error) else f" ± {error:.{digits}f}"
        return f"{mean:.{digits}f}{spread} ({int(repeats)})"

    for unit, of in images.items():
        one = of_unit(report, unit)
        for kind in of:
            if f"{kind}_before" in one and kind in one:
                name = inception.KINDS.get(kind, kind)
                then = before[unit, kind]
                now = words(one[kind], one.get(f"{kind}_se"), one.get(f"{kind}_n", 0))
                that_day = words(one[f"{kind}_before"], then["error_hz"], then["presentations"])
                rows.append([escape(unit), escape(name), that_day, now])
    table = as_table(["unit", "image", "that day", "today"], rows, frozenset({2, 3}))
    return (
        f"<details><summary>Responses of both days</summary><p>Mean ± standard error (repeats), {session.rate_unit}"
        f"{subtracted(session)}.</p>{table}</details>"
    )


def _of_both_days(session: Session, phase: int, images: Images) -> str:
    """Compare the most exciting images of both days, where this session made some for the same units."""
    today: dict[str, str] = {}
    for number, agent in sorted(session.agents.items()):
        if agent == "inception" and number != phase:
            today |= {unit: stimulus for unit, kind, stimulus in fixed(session, number) if kind == MEI}
    frames = {
        unit: (session.picture(of[MEI]), session.picture(today[unit]))
        for unit, of in images.items()
        if MEI in of and unit in today
    }
    known = {unit: (a, b) for unit, (a, b) in frames.items() if a is not None and b is not None and a.shape == b.shape}
    if not known:
        return ""
    rows, others = [], []
    for unit, (before, now) in known.items():
        own = pixel_correlation(before, now), energy_correlation(before, now)
        rows.append([escape(unit), *(f"{value:.2f}" for value in own)])
        for other, (_, its) in known.items():
            if other != unit:
                others.append((pixel_correlation(before, its), energy_correlation(before, its)))
    words = "<p>Most exciting images of that day beside those that this session's own model made of the same units."
    if others:
        median = np.nanmedian(np.array(others), axis=0)
        words += (
            f" Beside those of other units: median {median[0]:.2f} and {median[1]:.2f} over "
            f"{counted(len(others), 'pair')}."
        )
    words += (
        " Energy: correlation of local orientation energy, which a shift of bars by half a period does not change, as "
        "it changes nothing for a complex cell.</p>"
    )
    table = as_table(["unit", "pixels, r", "energy, r"], rows, frozenset({1, 2}))
    return "<h3>Images of both days</h3>" + words + table
