"""How responses are measured: units, windows, baseline, and what makes a response unusable."""

from typing import Literal, Self

from pydantic import Field, model_validator

from rig.config.part import Part

FARTHEST_S = 10.0  # from the onset to the end of any window


class Baseline(Part):
    """What is subtracted from a response."""

    kind: Literal["none", "pre", "block"] = Field(
        default="block",
        description="none; pre: own window before onset; block: own early window pooled over the last presentations.",
    )
    window_s: tuple[float, float] = Field(default=(-0.01, 0.03), description="Baseline window from image onset, s.")
    pool: int = Field(default=50, ge=1, le=2000, description="Presentations pooled for kind block.")


class Psth(Part):
    """A time course of each response, for latencies (agent screen). Spikes only."""

    window_s: tuple[float, float] = Field(default=(-0.05, 0.2), description="First and last edge from onset, s.")
    bin_s: float = Field(default=0.01, ge=0.001, le=0.1, description="Length of a bin, s.")

    @property
    def bins(self) -> int:
        """Number of bins."""
        return round((self.window_s[1] - self.window_s[0]) / self.bin_s)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        length = self.window_s[1] - self.window_s[0]
        if length <= 0 or max(map(abs, self.window_s)) > 2:
            raise ValueError(
                f"psth.window_s goes from {self.window_s[0]:g} to {self.window_s[1]:g}; these are seconds from the "
                "onset, at most 2, in this order"
            )
        if abs(length / self.bin_s - self.bins) > 1e-6 or self.bins > 400:
            raise ValueError(
                f"psth.window_s is {length:g} s long, which is not a whole number of at most 400 bins of "
                f"{self.bin_s:g} s; change one of them"
            )
        return self


class Responses(Part):
    """How a response is measured."""

    units: tuple[str, ...] = Field(min_length=1, description="Units to score, as the source names them.")
    window_s: tuple[float, float] = Field(default=(0.05, 0.15), description="Response window from image onset, s.")
    baseline: Baseline = Baseline()
    psth: Psth | None = Field(default=None, description="Time course of each response; null: none.")
    min_coverage: float = Field(default=1.0, gt=0, le=1, description="Smallest covered fraction of a usable response.")
    max_onset_uncertainty_s: float = Field(
        default=0.03, gt=0, le=10, description="Largest stated uncertainty of the onset of a usable response, s."
    )
    edge_tolerance_s: float = Field(
        default=0.04, gt=0, le=0.2, description="Largest distance of a photodiode edge from its flip, s."
    )
    timeout_s: float = Field(default=2.0, gt=0.1, le=10, description="Without data for this long it is missing, s.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name, (start, end) in {"window_s": self.window_s, "baseline.window_s": self.baseline.window_s}.items():
            if end <= start:
                raise ValueError(f"{name} must end after it starts, and goes from {start:g} to {end:g} s; swap the two")
            if max(abs(start), abs(end)) > FARTHEST_S:
                raise ValueError(
                    f"{name} goes from {start:g} to {end:g}; these are seconds from the onset, at most {FARTHEST_S:g}: "
                    "0.05, not 50"
                )
        if len(set(self.units)) != len(self.units):
            raise ValueError("units names a unit twice; remove one")
        return self
