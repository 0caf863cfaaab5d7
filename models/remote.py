"""The model server on another computer than the rig: the same one, over an encrypted link, session after session.

Run by `stimloop model`; docs/remote.md. It takes nothing from the other end but documents: config and log come over the
link; of the paths that stand in them only those of weights are opened here (generators, `encoder.start`).
"""

import platform
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from models.__main__ import NAME, STARTS, take_part
from models.snapshot import session_identity
from rig.clock import Clock
from rig.config.session import Config
from rig.links.keys import ClientKeys
from rig.links.peer import NotWelcome, Peer
from rig.messages import SessionStart
from rig.provenance import program
from rig.supervision.liveness import Pulse


class NoBank(ValueError):
    """The session shows pictures of a bank that was not given here; the message says which and how to give it."""


class Watch:
    """In place of a supervisor's word: never says stop (a signal does), and says what becomes of the link."""

    def __init__(self, news: Callable[[], list[str]], say: Callable[[str], None]) -> None:
        """Ask `news()` in every round of the loop and `say` it."""
        self._news, self._say = news, say
        self.pulse = Pulse()

    def __bool__(self) -> bool:
        """Say what is new; never the end."""
        for line in self._news():
            self._say(line)
        return False


def snapshot_folder(root: Path, start: SessionStart) -> Path:
    """Return the folder of one session in `root`; its name is made of letters, whatever the session's may be."""
    name = re.sub(r"[^A-Za-z0-9_-]", "_", start.session)[:60]
    return root / f"{name}-{session_identity(start)[:8]}"


def local_banks(config: Config, banks: Mapping[str, Path]) -> Config:
    """Return the config with the banks of this computer in place of paths of another one; raises NoBank."""
    for name in config.banks:
        if name not in banks:
            raise NoBank(
                f"the session shows pictures of the bank {name!r}; copy its folder here and give --bank {name}=FOLDER"
            )
    return config.model_copy(update={"banks": {name: banks[name] for name in config.banks}})


def serve(
    endpoint: str,
    keys: ClientKeys,
    snapshots: Path,
    banks: Mapping[str, Path],
    clock: Clock,
    say: Callable[[str], None],
) -> None:
    """Serve one session after another, connecting again for ever.

    `say` is given a line whenever something changes. Raises NotWelcome where the other end runs another version,
    NoBank, and NotPrivate.
    """
    while True:
        say(f"connecting to {endpoint} as {keys.name}, stimloop {program()} on {platform.node()}")
        peer = Peer(NAME, endpoint, STARTS, clock, keys=keys, program=program())

        def folder(start: SessionStart) -> Path:
            say(f"session {start.session}")
            return snapshot_folder(snapshots, start)

        try:
            take_part(peer, Watch(peer.news, say), clock, folder, lambda config: local_banks(config, banks))
        except NotWelcome as error:
            if error.code == "version":
                raise
            say(f"not this session any more: {error}")
        finally:
            peer.close()
