"""What the GUI's HTTP server tells, as documents: a Marker for each change of mode, faults for what harms a session.

Pure; the sources of Open Ephys call `take` about once a second with their `rig.sources.openephys_http.GuiWatch`. The
log then says where the GUI recorded (path, experiment, recording), with which processors, and whether silence was the
user's wish (IDLE) or a fault.
"""

from collections.abc import Sequence
from typing import Protocol

from rig.messages import (
    Document,
    Marker,
)
from rig.sources.columns import Faults

UNREACHED_AFTER = 3  # failed tries, about 3 s: a GUI that is just starting is no fault
MARKER_LENGTH = 4096


class Change(Protocol):
    """A change of the GUI's mode; None is no answer."""

    @property
    def before(self) -> str | None: ...  # noqa: D102
    @property
    def after(self) -> str | None: ...  # noqa: D102
    @property
    def host_ns(self) -> int: ...  # noqa: D102


class Watched(Protocol):
    """What is read of a `GuiWatch`."""

    reached_host_ns: int | None
    asked: int
    problem: str
    cure: str

    def about(self) -> dict[str, str]: ...  # noqa: D102
    def changes(self) -> Sequence[Change]: ...  # noqa: D102


class GuiDiary:
    """Turns what one source's GUI does into documents."""

    def __init__(self, source: str) -> None:
        """Keep the diary of `source`."""
        self._source = source

    def take(self, watch: Watched, run: int, faults: Faults) -> list[Document]:
        """Return the Markers of all changes since the last call; note faults in `faults`."""
        markers: list[Document] = []
        for change in watch.changes():
            if change.after is not None:
                markers.append(self._marker(change, watch.about(), run))
            self._fault(change, faults, watch)
        if watch.reached_host_ns is None and watch.asked >= UNREACHED_AFTER:
            detail = f"{self._source}: {watch.problem}; {watch.cure}"
            done = "data are taken without it; an acquisition stopped by the user looks like a fault"
            faults.once("GUI control not reached", detail, done)
        return markers

    def _marker(self, change: Change, about: dict[str, str], run: int) -> Marker:
        before = f"{change.before} -> " if change.before is not None else ""
        parts = [f"Open Ephys GUI {before}{change.after}"]
        parts += [f"{key}: {about[key]}" for key in ("recording", "processors") if key in about]
        text = "; ".join(parts)[:MARKER_LENGTH]
        return Marker(source=self._source, run=run, sample=None, arrival_host_ns=change.host_ns, text=text)

    def _fault(self, change: Change, faults: Faults, watch: Watched) -> None:
        name, waiting = self._source, "waiting; press the play button of the GUI to go on"
        if change.after is None:
            detail = f"{name}: {watch.problem or 'the GUI did not answer in time'}"
            faults.note("GUI control lost", detail, "asked again once a second", change.host_ns)
        elif change.after == "IDLE" and change.before in ("ACQUIRE", "RECORD"):
            too = " and recording" if change.before == "RECORD" else ""
            detail = f"{name}: acquisition{too} was stopped by the user: the GUI says IDLE"
            faults.note("acquisition stopped", detail, waiting, change.host_ns)
        elif change.after == "IDLE":
            faults.note("acquisition not started", f"{name}: the GUI says IDLE", waiting, change.host_ns)
        elif change.before == "RECORD":
            detail = f"{name}: the GUI stopped recording and goes on acquiring"
            faults.note("recording stopped", detail, "responses are scored as before", change.host_ns)
