"""The trials of a session: from the first onset to the last offset of their images."""

import numpy as np

from rig.export.presentations import Field, Presentations
from rig.export.session_file import SessionView
from rig.export.times import Clocks


def trial_fields(view: SessionView, clocks: Clocks, shown: Presentations) -> list[Field]:
    """Return the columns of the trials, by start; a trial without an image stands at its announcement."""
    seq, number = view.column("trials/seq"), view.column("trials/trial")
    announced = clocks.host.seconds(view.column("trials/start_host_ns"), seq)
    start, stop = announced.copy(), announced.copy()
    images, usable = np.zeros(len(number), np.int64), np.zeros(len(number), np.int64)
    row_of = {int(t): k for k, t in enumerate(number)}
    counts = shown.of_response("usable", False)
    for k, trial in enumerate(shown.of_shown("trial").tolist()):
        row = row_of.get(trial)
        if row is None:
            continue
        start[row] = min(start[row], shown.onset_s[k]) if images[row] else shown.onset_s[k]
        stop[row] = max(stop[row], shown.stop_s[k])
        images[row] += 1
        usable[row] += bool(counts[k])
    order = np.argsort(start, kind="stable")
    planned, first = view.column("trials/presentations"), view.column("trials/first_presentation")
    return [
        Field("start_time", "s", "Onset of its first image", start[order]),
        Field("stop_time", "s", "Offset of its last image", stop[order]),
        Field("trial", "1", "Number of the trial", number[order]),
        Field("announced_time", "s", "When the rig announced it, before its first flip", announced[order]),
        Field("first_presentation", "1", "Its first presentation, -1 if it had none", first[order]),
        Field("planned", "1", "Presentations it was to have", planned[order]),
        Field("shown", "1", "Presentations it had", images[order]),
        Field("usable", "1", "How many of their responses count", usable[order]),
    ]
