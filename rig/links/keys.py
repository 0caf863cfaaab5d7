"""Keys of the links between computers: made by `stimloop keys new`, read by whoever opens such a link.

A link is protected by CURVE (zmq): both ends prove who they are, everything between them is encrypted. One folder per
end. `server/` stays on the rig's computer: server.key_secret, server.key, and in allowed/ the public key of every
client that may connect. `NAME/` goes to the other computer: NAME.key_secret, NAME.key, server.key. What a client may
be is the first part of its name: `model`, `model-gpu2`, `guest`. Nothing here opens a socket.
"""

import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import zmq
import zmq.auth

SERVER = "server"
ROLES = ("model", "guest")
_NAME = re.compile(rf"({'|'.join(ROLES)})(-[a-z0-9_]{{1,30}})?")


class KeysError(ValueError):
    """Keys that cannot be made or used; the message names the file and the cure."""


@dataclass(frozen=True)
class ServerKeys:
    """What the end that binds needs; keys are 40 bytes of z85 text."""

    folder: Path
    public: bytes
    secret: bytes = field(repr=False)
    allowed: dict[bytes, str]  # public key of a client -> its name


@dataclass(frozen=True)
class ClientKeys:
    """What the end that connects needs; keys are 40 bytes of z85 text."""

    name: str
    public: bytes
    secret: bytes = field(repr=False)
    server: bytes


def make(folder: Path, client: str) -> list[Path]:
    """Make the server's pair, unless `folder` has one, and a pair for `client`; return the folders that were made.

    Raises KeysError for a name that is none or is taken, and OSError.
    """
    if not _NAME.fullmatch(client):
        raise KeysError(f"{client!r} is no name of a client; use {' or '.join(ROLES)}, or for a second one model-gpu2")
    server, own = folder / SERVER, folder / client
    if own.exists() or (server / "allowed" / f"{client}.key").exists():
        raise KeysError(f"{folder} has keys for {client}; choose another name, or remove {own} and its key in allowed/")
    made = []
    if not server.exists():
        _pair(server, SERVER)
        (server / "allowed").mkdir(mode=0o700)
        made.append(server)
    elif not (server / f"{SERVER}.key").exists():
        raise KeysError(f"{server} holds no {SERVER}.key; choose another folder")
    _pair(own, client)
    shutil.copyfile(own / f"{client}.key", server / "allowed" / f"{client}.key")
    shutil.copyfile(server / f"{SERVER}.key", own / f"{SERVER}.key")
    return [*made, own]


def _pair(folder: Path, name: str) -> None:
    folder.mkdir(parents=True, mode=0o700)  # nobody else can look in, also while the files are being written
    _, secret = zmq.auth.create_certificates(folder, name)
    Path(secret).chmod(0o600)


def server_keys(folder: Path, role: str) -> ServerKeys:
    """Read the server's keys and those of its clients with `role`; raises KeysError."""
    if not (folder / f"{SERVER}.key_secret").exists():
        inside = folder / SERVER
        if (inside / f"{SERVER}.key_secret").exists():
            raise KeysError(f"{folder}: give the folder of the server's end, {inside}")
        raise KeysError(f"{folder} holds no {SERVER}.key_secret; make keys with `stimloop keys new FOLDER`")
    public, secret = _secret(folder / f"{SERVER}.key_secret")
    allowed = {}
    for path in sorted((folder / "allowed").glob("*.key")):
        if path.stem.split("-")[0] == role:
            allowed[_public(path)] = path.stem
    if not allowed:
        cure = f"`stimloop keys new {folder.parent} --client {role}`"
        raise KeysError(f"{folder / 'allowed'} lists no key of a {role}; make one with {cure}")
    return ServerKeys(folder, public, secret, allowed)


def client_keys(folder: Path) -> ClientKeys:
    """Read a client's keys; raises KeysError."""
    secrets = [p for p in sorted(folder.glob("*.key_secret")) if p.stem != SERVER]
    if len(secrets) != 1:
        raise KeysError(
            f"{folder} holds {len(secrets)} client keys (*.key_secret), one is wanted; copy the folder that "
            "`stimloop keys new` made for this computer, for example keys/model"
        )
    if not (folder / f"{SERVER}.key").exists():
        raise KeysError(f"{folder} holds no {SERVER}.key; copy the whole folder that `stimloop keys new` made")
    public, secret = _secret(secrets[0])
    return ClientKeys(secrets[0].stem, public, secret, _public(folder / f"{SERVER}.key"))


def _public(path: Path) -> bytes:
    try:
        public, _ = zmq.auth.load_certificate(path)
        zmq.utils.z85.decode(public)
    except (ValueError, OSError, KeyError) as error:
        raise KeysError(f"{path} is no key: {error}; copy it again from where it was made") from error
    if len(public) != 40:
        raise KeysError(f"{path} is no key: {len(public)} characters, not 40; copy it again from where it was made")
    return public


def _secret(path: Path) -> tuple[bytes, bytes]:
    if problem := readable_by_others(path):
        raise KeysError(problem)
    public = _public(path)
    _, secret = zmq.auth.load_certificate(path)
    try:
        belongs = secret is not None and zmq.curve_public(secret) == public
    except (ValueError, zmq.ZMQError):
        belongs = False
    if secret is None or not belongs:
        raise KeysError(f"{path}: its secret and its public key do not belong together; make new keys")
    return public, secret


def readable_by_others(path: Path) -> str:
    """Say what is wrong where other users of the computer can read a secret; "" if they cannot, or on Windows."""
    mode = path.stat().st_mode & 0o777
    if os.name == "nt" or not mode & 0o077:
        return ""
    return (
        f"{path} can be read by other users of this computer (mode {mode:o}); if they may have seen it make new keys, "
        f"else: chmod 600 {path}"
    )


def listing(folder: Path) -> list[str]:
    """Say in lines what keys lie in `folder` and below it, and what is wrong with them. No secret is shown."""
    lines = []
    for path in sorted(folder.rglob("*.key_secret")):
        lines.append(f"{path.parent}: secret key of {path.stem}, public key {_public(path).decode()}")
        if problem := readable_by_others(path):
            lines.append(f"  WRONG: {problem}")
    listed = sorted(folder.rglob("allowed/*.key"))
    lines += [f"{p.parent}: {p.stem} may connect, public key {_public(p).decode()}" for p in listed]
    return lines
