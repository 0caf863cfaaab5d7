"""Which phases ended because their agent failed: a session's end says so. Used by recorder and terminal; pure."""

from rig.messages import AGENT_FAILED, Document, Fault


class FailedPhases:
    """Takes note of the faults of the model server's fold."""

    def __init__(self) -> None:
        """Begin with none."""
        self._details: list[str] = []

    def take(self, document: Document) -> None:
        """Take one document of the log."""
        if isinstance(document, Fault) and document.what == AGENT_FAILED:
            self._details.append(document.detail)

    def ended(self, reason: str) -> str:
        """Return why a session ended, `reason`, and which phases did not do what they were to do."""
        if not self._details:
            return reason
        often = "an agent failed" if len(self._details) == 1 else f"agents failed in {len(self._details)} phases, first"
        return f"{reason}; but {often}: {self._details[0]}"
