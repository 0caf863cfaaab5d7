"""The part of a session's config that says where a model server on another computer connects; docs/remote.md."""

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from rig.config.part import Part
from rig.links.loopback import is_loopback, split_endpoint

NEW_KEYS = "make keys with `stimloop keys new keys` and give keys: keys/server"


class RemoteModelServer(Part):
    """The model server runs on another computer (`stimloop model`); this one waits for it instead of starting one."""

    bind: str = Field(description="Address of this computer that it connects to, tcp://ADDRESS:PORT.")
    keys: Path = Field(description="Folder of the server's keys; the link is always encrypted.")

    @model_validator(mode="before")
    @classmethod
    def _protected(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("keys") is None:
            raise ValueError(f"keys is missing, and a link to another computer needs them; {NEW_KEYS}")
        return given

    @field_validator("bind")
    @classmethod
    def _an_address(cls, bind: str) -> str:
        split_endpoint(bind)
        return bind


def guest_mistake(bind: str, keys: Path | None) -> str | None:
    """Say what is wrong with the address at which a guest rig is waited for; None if nothing is."""
    if keys is None and not is_loopback(bind):
        return f"bind {bind} lies outside this computer and there are no keys; {NEW_KEYS}, or bind 127.0.0.1"
    return None
