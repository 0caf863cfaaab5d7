"""How the log goes out to the peers: routing is tailing.

Each peer has a cursor in the journal and a credit, so that a slow, restarted or late one needs no second mechanism.
Owned by the recorder, in its one thread; it decides no order and writes nothing.
"""

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from rig.encoding import BadDocument, unpack
from rig.links.bus import Got, Hello, Hub
from rig.recording.journal import DamagedRecord, JournalWriter
from rig.recording.log_index import LogIndex, Selector

CREDIT_ENTRIES = 400
CREDIT_BYTES = 64 << 20
CACHE_BYTES = 64 << 20
SILENT_NS = 60_000_000_000  # peers say twice a second that they are there


@dataclass
class Client:
    """What is known of one connected peer."""

    process: str
    wants: Selector
    cursor: int  # last entry looked at for this peer
    sent: int  # last entry sent to this peer
    heard_ns: int  # when it last said something, host clock
    in_flight: deque[tuple[int, int]] = field(default_factory=deque)  # (seq, bytes) not yet taken by the peer
    in_flight_bytes: int = 0
    journalled: bool = False  # whether anything of this start of it was
    replaced: str = ""  # the process start that had its name before


class Routes:
    """All connected peers, and the entries that most of them are about to ask for."""

    def __init__(self, hub: Hub, index: LogIndex) -> None:
        """Send through `hub` what `index` knows."""
        self._hub, self._index = hub, index
        self._clients: dict[str, Client] = {}
        self._cache: OrderedDict[int, list[bytes]] = OrderedDict()
        self._cache_bytes = 0

    def hello(self, message: Hello, now_ns: int) -> None:
        """Take a peer in, or back: it gets the log from where it says."""
        before = self._clients.get(message.name)
        client = Client(message.process, Selector(message.wants), message.last_seq, message.last_seq, now_ns)
        if before is not None:
            same = before.process == message.process
            client.journalled = same and before.journalled
            client.replaced = before.replaced if same else before.process
        self._clients[message.name] = client

    def forget_silent(self, now_ns: int) -> None:
        """Forget every peer that has said nothing for a minute; one that is there after all is asked for its hello."""
        for name in [name for name, client in self._clients.items() if now_ns - client.heard_ns > SILENT_NS]:
            del self._clients[name]
        self._hub.keep(self._clients.keys())

    def client(self, name: str) -> Client | None:
        """Return what is known of a peer, None if it has not said hello."""
        return self._clients.get(name)

    def got(self, message: Got) -> None:
        """Give a peer credit for what it has taken."""
        client = self._clients[message.name]
        while client.in_flight and client.in_flight[0][0] <= message.seq:
            client.in_flight_bytes -= client.in_flight.popleft()[1]

    def full(self, why: str) -> None:
        """Tell all peers that nothing can be journalled."""
        for name in self._clients:
            self._hub.full(name, why)

    def remember(self, seq: int, parts: list[bytes]) -> None:
        """Keep the newest entries at hand."""
        self._cache[seq] = parts
        self._cache_bytes += sum(map(len, parts))
        while self._cache_bytes > CACHE_BYTES and len(self._cache) > 1:
            _, old = self._cache.popitem(last=False)
            self._cache_bytes -= sum(map(len, old))

    def pump(self, journal: JournalWriter, damaged: Callable[[int, str], None]) -> None:
        """Send every peer the entries it wants and has credit for.

        `damaged(seq, why)` is told of an entry that the journal does not hold whole any more; nobody gets it.
        """
        for name in list(self._clients):
            client = self._clients[name]
            while len(client.in_flight) < CREDIT_ENTRIES and client.in_flight_bytes < CREDIT_BYTES:
                seq = self._index.after(client.cursor, client.wants)
                if seq is None:
                    client.cursor = max(client.cursor, len(self._index))
                    break
                client.cursor = seq
                try:
                    parts = self._cache.get(seq) or unpack(journal.read_body(self._index.offset(seq)))
                except (DamagedRecord, BadDocument) as error:
                    self._index.drop(seq)
                    damaged(seq, str(error))
                    continue
                if not self._hub.entry(name, client.sent, parts):
                    del self._clients[name]  # it says hello when it is back
                    break
                size = sum(map(len, parts))
                client.sent = seq
                client.in_flight.append((seq, size))
                client.in_flight_bytes += size
