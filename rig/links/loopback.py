"""Which addresses lie inside this computer: whatever else is bound or connected needs keys.

Pure; used by the config and by every socket that the program opens for its own documents.
"""

import re
from ipaddress import ip_address

_ENDPOINT = re.compile(r"tcp://(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):(\d{1,5})")


class NotPrivate(ValueError):
    """An address outside this computer without keys; the message names it and the cure."""


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """Return (host, port) of `tcp://HOST:PORT`; raises ValueError with the form that is wanted."""
    found = _ENDPOINT.fullmatch(endpoint)
    if found is None or int(found.group(2)) > 65535:
        raise ValueError(f"{endpoint!r} is no address; write tcp://ADDRESS:PORT, for example tcp://10.0.0.5:5600")
    return found.group(1).strip("[]"), int(found.group(2))


def is_loopback(host: str) -> bool:
    """Whether nobody outside this computer can reach `host` (an address or a name); names other than localhost: no."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def require_loopback(endpoint: str, what: str, cure: str) -> None:
    """Raise NotPrivate if `endpoint` lies outside this computer."""
    host, _ = split_endpoint(endpoint)
    if not is_loopback(host):
        raise NotPrivate(f"{what}: {endpoint} lies outside this computer and no keys are given; {cure}")
