"""What `stimloop train-generator` is asked for: the command line fills it in, the training follows it."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TrainingOrder:
    """One run of the training of a generator."""

    pictures: Path
    listing: Path | None
    work: Path
    """Folder for patches, checkpoint, contact sheets and figures."""
    out: Path
    """The weights file."""
    patches_each: int
    held_out: float
    latent: int
    batch: int
    images: int | None
    """Patches after which each process stops."""
    minutes: float | None
    seed: int
    processes: int
    threads: int
    half_precision: bool
    resume: bool
