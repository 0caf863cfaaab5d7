"""Parts of the report's page: what the session is (simulated, made from another one, cut), and what interrupted it."""

from html import escape

import numpy as np

from rig.report.data import Session
from rig.report.history import History
from rig.report.html import as_table, counted, minutes, moment

MOST_ROWS = 100
SIMULATED = "<b>Simulated:</b> what was recorded here is the simulated animal."


def banners(session: Session) -> str:
    """Say what a session is that was not recorded as it stands; nothing of one that was."""
    said = [SIMULATED] if session.simulated else []
    for name, origin in session.origins.items():
        of = f"session <b>{escape(origin['session'])}</b>"
        made = f"journal sha256 {escape(origin['journal_sha256'])}; made {moment(origin['made_utc_ns'])}"
        how = "; ".join(f"{escape(k.replace('_', ' '))}: {escape(v)}" for k, v in sorted(origin["how"].items()))
        told = f"{made}; {how}" if how else made
        if name == "derived_from":
            said.append(
                f"<b>Units sorted offline:</b> made from {of} ({told}). Spikes and responses were made anew, all else "
                "is as recorded; the session itself was steered by its own responses, not by these."
            )
        elif name == "replay_of":
            said.append(
                f"<b>Replayed traffic</b> of {of} ({told}). The animal saw nothing of this: its spikes are those of "
                "that session."
            )
        else:
            said.append(f"<b>Cut:</b> the beginning of {of}, not all of it ({told}).")
    return "".join(f'<p class="verdict warn">{words}</p>' for words in said)


def images_time(history: History) -> str:
    """Return how long images were shown, and from the first to the last."""
    shown, span = minutes(history.on_screen_s * 1e9), minutes(history.span_s * 1e9)
    return f"images on the screen for {shown} min, {span} min from the first to the last"


def end_words(session: Session, history: History) -> str:
    """Say how the session ended, and whether its journal is whole."""
    lost = history.lost_entries
    # A reason that names a phase counts as the files do, from 0; here people read.
    reason = "its last phase ended: " + r.split(": ", 1)[1] if _names_a_phase(r := session.stop_reason) else r
    if lost:
        entries = counted(lost, "entry of its journal is", "entries of its journal are")
        ended = f"; it was closed: {escape(reason)}" if session.closed_in_order else "; it did not end in order"
        return f"The session is <b>damaged: {entries} lost</b>{ended}."
    words = f"ended in order: {escape(reason)}" if session.closed_in_order else "<b>did not end in order</b>"
    return f"The session {words}."


def _names_a_phase(reason: str) -> bool:
    words = reason.split(" ")
    return len(words) > 3 and words[0] == "phase" and words[1].isdecimal() and words[2] == "ended:"


def interruptions(history: History) -> str:
    """Return the section "Interruptions and repeats"."""
    out = "<h2>Interruptions and repeats</h2>"
    found, unrecorded, repeats = history.interruptions, history.unrecorded, history.repeats
    if not found:
        out += "<p>Nothing interrupted the session.</p>"
    else:
        rows = [
            [
                minutes(one.at_s * 1e9) if np.isfinite(one.at_s) else "?",
                escape(one.what),
                escape(one.detail),
                escape(one.done),
                "" if one.dark_s is None else f"{one.dark_s:.1f} s",
            ]
            for one in found[:MOST_ROWS]
        ]
        head = ["at (min:s)", "what", "what is known", "what was done", "no image for"]
        out += as_table(head, rows, frozenset({0, 4}))
        if len(found) > MOST_ROWS:
            out += f"<p>And {len(found) - MOST_ROWS:,} more; all are in session.h5.</p>"
    if repeats.presentations:
        out += (
            f"<p>{counted(repeats.slots, 'planned image')} had no usable response at first and "
            f"{'was' if repeats.slots == 1 else 'were'} shown again, in {repeats.presentations:,} more "
            f"{'presentation' if repeats.presentations == 1 else 'presentations'}: {repeats.usable:,} got "
            f"a usable response by that, {repeats.slots - repeats.usable:,} did not.</p>"
        )
    else:
        out += "<p>No image was shown again for want of a usable response.</p>"
    if repeats.missing:
        out += f"<p>{counted(repeats.missing, 'planned image')} stayed without a usable response: told as missing.</p>"
    if unrecorded:
        out += f"<p><b>{may_have_been_seen(len(unrecorded))}</b> Their flips are not known, and none are made up.</p>"
        rows = [
            [str(u.presentation), str(u.trial), escape(u.stimulus_id), escape(u.reason), _numbers(u.again)]
            for u in unrecorded[:MOST_ROWS]
        ]
        out += as_table(["number", "trial", "image", "what is known", "shown again as"], rows, frozenset({0, 1}))
    return out


def may_have_been_seen(number: int) -> str:
    """Say how many images have no record."""
    return counted(number, "image", "images") + " may have been seen but " + ("was" if number == 1 else "were") + (
        " not recorded."
    )


def _numbers(presentations: tuple[int, ...]) -> str:
    return ", ".join(map(str, presentations)) or "not shown again"
