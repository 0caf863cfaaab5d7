"""The part `storage` of a session's config: how much room the disk of the session must keep."""

from pydantic import Field

from rig.config.part import Part


class Storage(Part):
    """Where the session stops showing images before its disk is full."""

    reserve_gb: float = Field(
        default=1.0,
        ge=0,
        le=10_000,
        description="Free space on the session's disk, GB, below which nothing is shown until there is more.",
    )

    @property
    def reserve_bytes(self) -> int:
        """The reserve in bytes."""
        return int(self.reserve_gb * 1e9)
