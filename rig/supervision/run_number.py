"""Numbers of acquisition runs: they grow over a whole session, also over restarts of a source and of the computer.

A run is numbered by the UTC of its start, in tenths of a second. Host time would begin at zero with each boot, and
whoever follows a device would take its data for old ones. UTC may be set back while a session goes on: the supervisor
ties it to the host clock once (`run_zero`) and hands that to its children; one that goes on with a session looks up
what its journal holds.
"""

import os
from pathlib import Path

from rig.clock import Clock
from rig.messages import Continuity
from rig.recording.journal import read_all

RUN_NS = 100_000_000
ZERO = "STIMLOOP_RUN_ZERO"  # in the environment of a child: what to add to its host clock, ns


def run_number(clock: Clock, after: int = -1) -> int:
    """Return the number of a run that begins now, larger than `after`: the last one that the caller knows of."""
    zero = os.environ.get(ZERO)
    now_ns = clock.utc_ns() if zero is None else clock.now_ns() + int(zero)
    return max(after + 1, now_ns // RUN_NS)


def run_zero(journal: Path, clock: Clock) -> int:
    """Return what makes UTC of the host clock, ns; more where the journal, if there is one, holds a later run."""
    zero = clock.utc_ns() - clock.now_ns()
    if not journal.exists():
        return zero
    kinds = frozenset({"continuity"})
    runs = [e.document.run for e in read_all(journal, kinds) if isinstance(e.document, Continuity)]
    return max(zero, (max(runs, default=-1) + 1) * RUN_NS - clock.now_ns())
