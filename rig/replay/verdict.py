"""What a replay found: how many decisions came out the same, and in words which did not."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Verdict:
    """What a replay found, by kind of document."""

    identical: Counter[str] = field(default_factory=Counter)
    different: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """Decisions that the journal has and replay does not make, or the other way round."""

    @property
    def agrees(self) -> bool:
        """Whether every journalled decision came out the same, and none was missing or new."""
        return not self.different and not self.missing

    @property
    def decisions(self) -> int:
        """Number of decisions compared."""
        return sum(self.identical.values()) + len(self.different) + len(self.missing)

    def add(self, other: "Verdict") -> None:
        """Take over what was found elsewhere."""
        self.identical.update(other.identical)
        self.different += other.different
        self.missing += other.missing

    def plain(self) -> dict[str, Any]:
        """Return it as JSON-able values."""
        return {"identical": dict(self.identical), "different": self.different, "missing": self.missing}

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> "Verdict":
        """Undo `plain`."""
        return cls(Counter(values["identical"]), list(values["different"]), list(values["missing"]))
