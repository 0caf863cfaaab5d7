"""What every part of the config shares."""

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    """One part of the config: frozen, unknown keys and not-a-number refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
