"""`stimloop recover`: makes session.h5 anew from a session's journal and says in words what was found there."""

from pathlib import Path

from rig.recording.journal import JournalError, last_whole_seq
from rig.view.h5 import Built, rebuild


def recover(folder: Path) -> list[str]:
    """Rebuild folder/session.h5; return what to tell the user, line by line.

    Raises JournalError for a file that is no journal, NoRoom, and OSError where the folder cannot be written.
    """
    journal = folder / "session.journal"
    if last_whole_seq(journal) == 0:
        raise JournalError(f"{journal} holds no whole entry: it is empty, or no journal of stimloop")
    return words(rebuild(folder))


def words(built: Built) -> list[str]:
    """Return what was found in a journal, for a person."""
    lines = [f"rebuilt {built.path} from {built.entries:,} entries"]
    if built.missing:
        lines.append(
            f"missing: {built.missing:,} of {built.last_seq:,} entries are lost to damage; the table `faults` of "
            'session.h5 names each place (sender "view")'
        )
    if built.damaged_bytes:
        lines.append(
            f"damaged: {built.damaged_bytes:,} bytes of the journal are no whole record (a torn end, or the disk)"
        )
    if built.unreadable:
        lines.append(f"unreadable: {built.unreadable:,} records; a newer stimloop may have written them")
    if built.recorders > 1:
        lines.append(f"the recorder was started {built.recorders} times in this session")
    if not built.closed_in_order:
        lines.append("the session was not closed in order: the log ends without SessionStop")
    if len(lines) == 1:
        lines.append("nothing is missing or damaged")
    return lines
