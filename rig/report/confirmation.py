"""The section on a confirmation block: what fresh repeats say of images that were fixed before. Used by the page.

Everything here is of presentations with the role "confirmation", whatever earlier phases measured.
"""

from collections.abc import Callable
from html import escape

import numpy as np

from rig.config.targets import Target
from rig.confirmation import Claim, Repeats, claims
from rig.report.data import Session
from rig.report.html import as_table, counted
from rig.report.targets import targets_of, values

SOURCES = {"evolved": "evolved", "reference": "best reference before", "start": "of the first generation"}


def fixed(session: Session, phase: int) -> list[tuple[str, str, str]]:
    """Return (target, source, stimulus) of every image that a confirmation shows, in the order they were fixed."""
    here = session.column("model/scores/phase") == phase
    columns = [np.array(session.texts(f"model/scores/{c}"))[here] for c in ("target", "source", "stimulus_id")]
    return list(dict.fromkeys(zip(*(c.tolist() for c in columns), strict=True)))


def repeats(session: Session, phase: int) -> list[Repeats]:
    """Return every image with its scores, from the confirmation presentations of a phase."""
    by_title: dict[str, Target] = {}
    for earlier in range(phase):
        for target in targets_of(session, earlier):
            by_title |= {target.title: target, f"{target.title}, phase {earlier + 1}": target}
    shown = session.usable & (session.phase == phase) & (session.role == "confirmation")
    out = []
    for title, source, stimulus in fixed(session, phase):
        if title in by_title:
            scores = values(session, by_title[title])[shown & (session.stimulus_id == stimulus)]
            out.append(Repeats(title, source, stimulus, scores[np.isfinite(scores)]))
    return out


def section(session: Session, phase: int, thumbnail: Callable[[str], str]) -> str:
    """Return the section's HTML; `thumbnail` makes the picture of a stimulus."""
    found = repeats(session, phase)
    if not found:
        return "<p>The log does not say which images were confirmed for what.</p>"
    digits = 1 if session.measure == "spikes" else 3
    words = "".join(f"<p><b>{escape(in_words(c, session.rate_unit, digits))}</b></p>" for c in claims(found))
    rows = [
        [
            thumbnail(one.stimulus_id),
            escape(one.target),
            SOURCES.get(one.source, one.source),
            escape(one.stimulus_id),
            str(len(one.scores)),
            f"{one.mean:.{digits}f}" + (f" ± {one.error:.{digits}f}" if np.isfinite(one.error) else ""),
        ]
        for one in found
    ]
    table = as_table(["", "target", "what", "image", "repeats", f"mean ± s.e.m., {session.rate_unit}"], rows,
                     frozenset({4, 5}))  # fmt: skip
    return (
        "<p>These images were fixed from earlier phases, before any presentation of this one: the claims and p-values "
        "use these presentations only. The first of each kind is what a claim is about.</p>"
        f"{words}{table}"
        "<p>p: two-sided, random sign flips of the differences between the k-th repeats of both images; corrected for "
        "the number of targets (Holm). It speaks of these two images and these units in this session.</p>"
    )


def in_words(claim: Claim, unit: str, digits: int) -> str:
    """Say what was found for one target."""
    evolved, reference = claim.evolved, claim.reference

    def mean(one: Repeats) -> str:
        return f"{one.mean:.{digits}f} ± {one.error:.{digits}f}"

    said = (
        f"{claim.target}: the evolved image {evolved.stimulus_id} gave {mean(evolved)} {unit} "
        f"({counted(len(evolved.scores), 'repeat')}), the reference that was best before, {reference.stimulus_id}, "
        f"{mean(reference)} ({counted(len(reference.scores), 'repeat')}): difference {claim.difference:+.{digits}f} ± "
        f"{claim.error:.{digits}f}, "
    )
    if np.isnan(claim.p_corrected):
        return said + "too few pairs of repeats for a p-value."
    told = "told apart" if claim.p_corrected < 0.05 else "not told apart"
    return said + f"p = {claim.p_corrected:.2g} (corrected): {told} at the 5 % level."
