"""What a check of `rig.preflight` says."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Result:
    """The outcome of one check; `remedy` is the cure wherever the status is not "ok"."""

    name: str
    status: Status
    message: str
    remedy: str = ""
