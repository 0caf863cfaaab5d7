"""What `stimloop bench refit` computes: a recorded session streamed image by image into the online readouts."""

from pathlib import Path

from pydantic import Field

from rig.config.part import Part


class RefitBench(Part):
    """Everything that decides the bench's figures."""

    data: Path = Field(description="Folder with images/ and responses_averaged/ or responses_raw/.")
    session: str = Field(min_length=1, description="Recording session, as in images_SESSION.zip.")
    splits: int = Field(default=5, ge=1, le=50, description="Splits into training and held-out images.")
    held_out: float = Field(default=0.25, gt=0, lt=0.9, description="Fraction of distinct images, never learned.")
    batch: int = Field(default=10, ge=1, le=200, description="Presentations of one update.")
    curve: tuple[int, ...] = Field(
        default=(25, 50, 100, 200, 300, 480, 900),
        min_length=1,
        description="Numbers of training images at which the kernels are tuned and the score is taken.",
    )
    seed: int = Field(default=0, ge=0, description="Of the first split; the next ones follow.")
    features: Path | None = Field(default=None, description="Folder that keeps the network's features; None: nowhere.")
