"""What happened to a session, one sentence each: data gaps, restarts, resumes, repeats, and where it comes from.

For the description of the session in NWB and CSV; the details stand in the tables.
"""

from collections import Counter

import numpy as np

from rig.export.presentations import Presentations
from rig.export.session_file import SessionView


def replayed(view: SessionView) -> list[str]:
    """Return what a session says that replays another one."""
    found = view.start.replay_of
    if found is None:
        return []
    return [f"REPLAY of the recorded traffic of {found.session}: nothing was recorded anew."]


def derived(view: SessionView) -> list[str]:
    """Return what a session says whose units were sorted offline."""
    found = view.start.derived_from
    if found is None:
        return []
    return [f"Its responses are of units that were sorted again offline; recorded as {found.session}."]


def happened(view: SessionView, shown: Presentations) -> list[str]:
    """Return a sentence for each kind of thing that interrupted the session."""
    out = []
    lost = view.column("continuity/gaps/messages")
    gaps = int(np.sum(lost > 0))
    if gaps:
        out.append(f"Data gaps: {gaps} stretches of a device's data were lost ({int(lost.sum())} messages).")
    again = {name: count - 1 for name, count in Counter(view.texts("processes/name")).items() if count > 1}
    told = Counter(view.texts("faults/what"))["process restarted"]
    died = Counter(detail.split(" ", 1)[0] for detail in _restarts(view))
    if told:
        words = ", ".join(f"{name} {count}" for name, count in sorted(died.items()))
        out.append(f"Restarts: {told} times a process died and was started again ({words}).")
    resumes = again.get("recorder", 0) - died["recorder"]  # a recorder that no supervisor had restarted
    if resumes > 0:
        out.append(f"Resumes: the session was broken off and went on {resumes} times (stimloop run --resume).")
    attempt, _ = shown.attempts()
    repeats = int(np.sum(attempt > 1))
    if repeats:
        out.append(f"Repeats: {repeats} presentations show an image again that had no usable response before.")
    return out


def _restarts(view: SessionView) -> list[str]:
    rows = zip(view.texts("faults/what"), view.texts("faults/detail"), strict=True)
    return [detail for what, detail in rows if what == "process restarted"]
