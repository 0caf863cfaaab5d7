"""The section on a confirmation block: what fresh repeats say of images that were fixed before. Used by the page.

Everything here is of presentations with the role "confirmation", whatever earlier phases measured.
"""

from collections.abc import Callable
from html import escape

import numpy as np

from rig.config.targets import Target
from rig.confirmation import Claim, Repeats, claims
from rig.report.data import Session
from rig.report.evolution import Draw, compared
from rig.report.html import as_table, counted
from rig.report.targets import targets_of, values

SOURCES = {"evolved": "evolved", "reference": "best reference before", "start": "of the first generation"}
LEVEL = 0.05  # of p, at which two images are told apart
CAPTION = (
    "The images that were compared and the rates of their fresh repeats (dots, in the order of showing), mean ± "
    "standard error beside them. The claim is about the first evolved image and the first reference. References are "
    "natural pictures, the best by all that earlier phases had measured."
)


def fixed(session: Session, phase: int) -> list[tuple[str, str, str]]:
    """Return (target, source, stimulus) of every image that a confirmation shows, in the order they were fixed."""
    here = session.column("model/scores/phase") == phase
    if not here.any():
        return []
    # The newest report has all of them in that order; earlier ones only those that had been shown by then.
    seq = session.column("model/scores/seq")
    here &= seq == seq[here].max()
    columns = [np.array(session.texts(f"model/scores/{c}"))[here] for c in ("target", "source", "stimulus_id")]
    return list(dict.fromkeys(zip(*(c.tolist() for c in columns), strict=True)))


def objectives(session: Session, phase: int) -> dict[str, Target]:
    """Return the targets of all phases before a confirmation, by the titles that it may give them."""
    out: dict[str, Target] = {}
    for earlier in range(phase):
        for target in targets_of(session, earlier):
            out |= {target.title: target, f"{target.title}, phase {earlier + 1}": target}
    return out


def repeats(session: Session, phase: int) -> list[Repeats]:
    """Return every image with its scores, from the confirmation presentations of a phase."""
    by_title = objectives(session, phase)
    shown = session.usable & (session.phase == phase) & (session.role == "confirmation")
    out = []
    for title, source, stimulus in fixed(session, phase):
        if title in by_title:
            scores = values(session, by_title[title])[shown & (session.stimulus_id == stimulus)]
            out.append(Repeats(title, source, stimulus, scores[np.isfinite(scores)]))
    return out


def section(session: Session, phase: int, thumbnail: Callable[[str], str], draw: Draw) -> str:
    """Return the section's HTML; `thumbnail` makes the picture of a stimulus, `draw` a figure with name and caption."""
    found = repeats(session, phase)
    if not found:
        return "<p>The log does not say which images were confirmed for what.</p>"
    digits = 1 if session.measure == "spikes" else 3
    by_title = objectives(session, phase)
    claimed = {c.target: c for c in claims(found)}
    parts = [_summary(list(claimed.values()), by_title)]
    blanks = session.usable & (session.phase == phase) & (session.role == "blank")
    titles = [title for title in by_title if any(one.target == title for one in found)]
    for k, title in enumerate(titles):
        of = [one for one in found if one.target == title]
        blank = values(session, by_title[title])[blanks]
        mean = float(np.nanmean(blank)) if np.isfinite(blank).any() else np.nan
        words = ""
        if title in claimed:
            good = outcome(claimed[title], by_title[title]) == "confirmed"
            said = escape(in_words(claimed[title], session.rate_unit, digits, by_title[title]))
            words = f'<p class="verdict{"" if good else " warn"}">{said}</p>'
        drawn = compared(session, title.removeprefix("suppress "), of, mean)
        figure = draw(f"confirmed_{phase}_t{k}", drawn, CAPTION if not k else "")
        parts.append(f"<h3>{escape(title)}</h3>{words}{figure}")
    rows = [
        [
            thumbnail(one.stimulus_id),
            escape(one.target),
            SOURCES.get(one.source, one.source),
            escape(one.stimulus_id),
            str(len(one.scores)),
            f"{one.mean:.{digits}f}" + (f" ± {one.error:.{digits}f}" if np.isfinite(one.error) else ""),
        ]
        for title in titles
        for source in SOURCES
        for one in found
        if (one.target, one.source) == (title, source)
    ]
    table = as_table(["", "target", "what", "image", "repeats", f"mean ± s.e.m., {session.rate_unit}"], rows,
                     frozenset({4, 5}))  # fmt: skip
    return (
        "<p>These images were fixed from earlier phases, before any presentation of this one: the claims and p-values "
        f"use these presentations only. The first of each kind is what a claim is about.</p>{''.join(parts)}"
        f"<details><summary>All images that were shown</summary>{table}</details>"
        "<p>p: two-sided, random sign flips of the differences between the k-th repeats of both images; corrected for "
        "the number of targets (Holm). It speaks of these two images and these units in this session.</p>"
    )


def _summary(found: list[Claim], by_title: dict[str, Target]) -> str:
    if len(found) < 2:
        return ""
    good = [c for c in found if outcome(c, by_title[c.target]) == "confirmed"]
    return (
        f"<p><b>Confirmed for {len(good)} of {len(found)} targets</b>: the evolved image gave more than the best "
        "reference (less, where a unit was suppressed).</p>"
    )


def outcome(claim: Claim, target: Target) -> str:
    """Return "confirmed", "reversed" (told apart, but against what was aimed at), "open", or "unknown" without a p."""
    if np.isnan(claim.p_corrected):
        return "unknown"
    if claim.p_corrected >= LEVEL:
        return "open"
    return "confirmed" if claim.difference * target.sign > 0 else "reversed"


def in_words(claim: Claim, unit: str, digits: int, target: Target) -> str:
    """Say what was found for one target."""
    evolved, reference = claim.evolved, claim.reference

    def mean(one: Repeats) -> str:
        return f"{one.mean:.{digits}f} ± {one.error:.{digits}f}"

    said = (
        f"The evolved image {evolved.stimulus_id} gave {mean(evolved)} {unit} "
        f"({counted(len(evolved.scores), 'repeat')}), the reference that was best before, {reference.stimulus_id}, "
        f"{mean(reference)} ({counted(len(reference.scores), 'repeat')}): difference {claim.difference:+.{digits}f} ± "
        f"{claim.error:.{digits}f}, "
    )
    found = outcome(claim, target)
    if found == "unknown":
        return said + "too few pairs of repeats for a p-value. Nothing is claimed."
    said += f"p = {claim.p_corrected:.2g} (corrected). "
    aim = "less" if target.suppress else "more"
    return {
        "confirmed": f"Confirmed: {said}It gave {aim}, as was aimed at.",
        "reversed": f"Against the aim: {said}It was to give {aim}, and gave {'more' if target.suppress else 'less'}.",
        "open": f"Not confirmed: {said}At the 5 % level the two are not told apart.",
    }[found]
