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
OUTCOMES = {
    "confirmed": "confirmed", "reversed": "against the aim", "open": "not confirmed", "unknown": "too few pairs",
    "unfinished": "broken off: no claim",
}  # fmt: skip
LEVEL = 0.05  # of p, at which two images are told apart
CAPTION = (
    "The images that were compared and the rates of their fresh repeats (dots, in the order of showing), mean ± "
    "standard error beside them. The claim is about the first evolved image and the first reference. References are "
    "the pictures of the session's reference set that were best by all that earlier phases had measured: not the best "
    "there can be."
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
    planned = broken_off(session, phase)
    parts = [_summary(list(claimed.values()), by_title, digits, planned)]
    blanks = session.usable & (session.phase == phase) & (session.role == "blank")
    titles = [title for title in by_title if any(one.target == title for one in found)]
    for k, title in enumerate(titles):
        of = [one for one in found if one.target == title]
        blank = values(session, by_title[title])[blanks]
        mean = float(np.nanmean(blank)) if np.isfinite(blank).any() else np.nan
        words = ""
        if title in claimed:
            one, target = claimed[title], by_title[title]
            good = outcome(one, target, planned) == "confirmed"
            said = in_words(one, session.rate_unit, digits, target, planned)
            said += "" if planned else strongest(one, of, target, session.rate_unit, digits)
            words = f'<p class="verdict{"" if good else " warn"}">{escape(said)}</p>'
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


def broken_off(session: Session, phase: int) -> int | None:
    """Return how many repeats were planned of a confirmation that did not come to its end, None of one that did."""
    if phase in session.column("model/phases/phase"):
        return None
    return int(session.config["phases"][phase]["repeats"])


def _summary(found: list[Claim], by_title: dict[str, Target], digits: int, planned: int | None) -> str:
    """Return how many targets were confirmed, and all of them side by side; nothing for a single one."""
    if len(found) < 2:
        return ""
    ends = [outcome(c, by_title[c.target], planned) for c in found]
    rows = [
        [
            escape(c.target),
            *(f"{one.mean:.{digits}f} ± {one.error:.{digits}f}" for one in (c.evolved, c.reference)),
            f"{c.difference:+.{digits}f} ± {c.error:.{digits}f}",
            "" if planned is not None or np.isnan(c.p_corrected) else f"{c.p_corrected:.2g}",
            OUTCOMES[end],
        ]
        for c, end in zip(found, ends, strict=True)
    ]
    head = ["target", "evolved", "reference", "difference", "p (corrected)", ""]
    table = as_table(head, rows, frozenset(range(1, 5)))
    return (
        f"<p><b>Confirmed for {ends.count('confirmed')} of {len(found)} targets</b>: the evolved image gave more than "
        f"the reference that was best before (less, where a unit was suppressed).</p>{table}"
    )


def outcome(claim: Claim, target: Target, planned: int | None = None) -> str:
    """Return "confirmed", "reversed" (told apart, but against what was aimed at), "open", or "unknown" without a p.

    "unfinished" where it was broken off, of `planned` repeats: who looks and then ends it decides what p becomes.
    """
    if planned is not None:
        return "unfinished"
    if np.isnan(claim.p_corrected):
        return "unknown"
    if claim.p_corrected >= LEVEL:
        return "open"
    return "confirmed" if claim.difference * target.sign > 0 else "reversed"


def strongest(claim: Claim, shown: list[Repeats], target: Target, unit: str, digits: int) -> str:
    """Say which reference of the block gave more than the one of the claim (less, if suppressed); "" if none did."""
    others = [one for one in shown if one.source == "reference" and len(one.scores)]
    best = max(others, key=lambda one: target.sign * one.mean, default=claim.reference)
    if not target.sign * (best.mean - claim.reference.mean) > 0:
        return ""
    apart = claim.evolved.mean - best.mean
    return (
        f" Another reference of this block, {best.stimulus_id}, gave {'less' if target.suppress else 'more'}: "
        f"{best.mean:.{digits}f} ± {best.error:.{digits}f} {unit}; the evolved image differs from it by "
        f"{apart:+.{digits}f}. It is picked by these presentations, which flatters it, so no p is given."
    )


def in_words(claim: Claim, unit: str, digits: int, target: Target, planned: int | None = None) -> str:
    """Say what was found for one target; `planned` as `outcome` takes it."""
    evolved, reference = claim.evolved, claim.reference

    def mean(one: Repeats) -> str:
        return f"{one.mean:.{digits}f} ± {one.error:.{digits}f}"

    said = (
        f"The evolved image {evolved.stimulus_id} gave {mean(evolved)} {unit} "
        f"({counted(len(evolved.scores), 'repeat')}), the reference that was best before, {reference.stimulus_id}, "
        f"{mean(reference)} ({counted(len(reference.scores), 'repeat')}): difference {claim.difference:+.{digits}f} ± "
        f"{claim.error:.{digits}f}, "
    )
    found = outcome(claim, target, planned)
    if found == "unfinished":
        return (
            f"Nothing is claimed: the block was broken off before its {planned} repeats. {said.removesuffix(', ')}. A "
            "block that may be ended after a look at it has no p-value; show it again, whole."
        )
    if found == "unknown":
        return said + "too few pairs of repeats for a p-value. Nothing is claimed."
    said += f"p = {claim.p_corrected:.2g} (corrected). "
    aim = "less" if target.suppress else "more"
    return {
        "confirmed": f"Confirmed: {said}It gave {aim}, as was aimed at.",
        "reversed": f"Against the aim: {said}It was to give {aim}, and gave {'more' if target.suppress else 'less'}.",
        "open": f"Not confirmed: {said}At the 5 % level the two are not told apart.",
    }[found]
