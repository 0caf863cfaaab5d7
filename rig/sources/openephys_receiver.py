"""The receiving process of the Open Ephys source: takes messages off the socket, stamps them, hands them on.

Started by `openephys_sockets.Receiver`, which holds its pipes. It does nothing else, so that nothing the source does
(parsing, documents, a garbage collection, a debugger, a stop of the whole process) can keep it from receiving: the GUI
queues 1,000 messages for a slow listener, 27 ms at 384 channels, and drops the rest in silence. Decision 0010 has the
reasons and the figures. It loads neither numpy nor the documents, and ends when the pipe to it closes.

What nobody needs is left behind here: voltage, except of the channels asked for, and waveforms.
"""

import argparse
import os
import re
import sys
import threading

import zmq

from rig import priority
from rig.clock import Clock, HostClock
from rig.sources.openephys_batches import (
    DATA_MESSAGE,
    EVENT_MESSAGE,
    MOST_BYTES,
    MOST_FRAMES,
    SIGN_OF_LIFE_S,
    Batch,
    pack,
)
from rig.sources.sockets import Subscription
from rig.supervision import child

MESSAGE_OVERHEAD = 200  # bytes of Python around a message
AT_ONCE = 256  # messages received between two chances for the writer
BATCH_BYTES = 1 << 20
BATCH_EVERY_S = 0.005  # a fifth of the period in which the source sends documents
KEPT_PAYLOAD = 16  # bytes; that of a TTL event is 10
PRIORITY = 1  # the lowest real-time one: above all ordinary processes, below the rig and the animal
_CHANNEL = re.compile(rb'"channel_num": ?(\d+)')


class Waiting:
    """What was received and not yet handed on, within a budget of bytes; what goes beyond it is dropped and counted."""

    def __init__(self, budget_bytes: int, channels: frozenset[int], clock: Clock) -> None:
        """Start empty; the voltage of `channels` is kept."""
        self.dropped = 0
        self._since_ns: int | None = None
        self._budget = budget_bytes
        self._channels = channels
        self._clock = clock
        self._lock = threading.Lock()
        self._batches = [Batch()]
        self._bytes = 0
        self.came = threading.Event()

    def receive(self, sub: "zmq.Socket[bytes]") -> bool:
        """Take up to AT_ONCE messages off the socket; return whether there may be more."""
        with self._lock:
            for _ in range(AT_ONCE):
                try:
                    first = sub.recv(zmq.NOBLOCK)
                except zmq.Again:
                    return False
                self._message(sub, first)
                self.came.set()
        return True

    def _message(self, sub: "zmq.Socket[bytes]", first: bytes) -> None:
        arrival_ns = self._clock.now_ns()
        frames = [first]
        while sub.getsockopt(zmq.RCVMORE):
            frames.append(sub.recv())
        size = len(frames[-1])
        kind = min(len(frames), MOST_FRAMES)
        if kind == 3 and first == b"DATA\x00":
            kind = DATA_MESSAGE
            frames = [frames[1], frames[2] if self._wanted(frames[1]) else b""]
        elif kind == 3 and first == b"EVENT\x00":
            kind = EVENT_MESSAGE
            frames = [frames[1], frames[2] if size <= KEPT_PAYLOAD else b""]
        else:
            frames = frames[:kind]
        cost = sum(map(len, frames)) + MESSAGE_OVERHEAD
        if self._bytes + cost > self._budget or cost > MOST_BYTES:
            self.dropped += 1
            self._since_ns = self._since_ns or arrival_ns
            return
        batch = self._batches[-1]
        if batch.bytes > BATCH_BYTES:
            batch = Batch()
            self._batches.append(batch)
        batch.arrivals.append(arrival_ns)
        batch.kinds.append(kind)
        batch.sizes.append(size)
        batch.frames += frames
        batch.bytes += cost
        self._bytes += cost

    def _wanted(self, header: bytes) -> bool:
        if not self._channels:
            return False
        found = _CHANNEL.search(header)
        return found is not None and int(found.group(1)) in self._channels

    def take(self) -> tuple[Batch, int, int | None]:
        """Return the oldest batch, the messages dropped so far, and since when some were dropped after the last call.

        The batch counts against the budget until `written` is called.
        """
        with self._lock:
            batch = self._batches.pop(0)
            if not self._batches:
                self._batches.append(Batch())
                self.came.clear()
            since, self._since_ns = self._since_ns, None
            return batch, self.dropped, since

    def written(self, batch: Batch) -> None:
        """Free the place of a batch that the source has taken."""
        with self._lock:
            self._bytes -= batch.bytes


def _write(waiting: Waiting, end: threading.Event) -> None:
    """Hand on batch after batch until the end (thread body); waits as long as the source does not read.

    Where nothing comes, an empty batch says that this process lives: the source cannot tell otherwise.
    """
    try:
        while not end.is_set():
            waiting.came.wait(SIGN_OF_LIFE_S)
            batch, dropped, since_ns = waiting.take()
            view = memoryview(pack(batch, dropped, since_ns))
            while view:
                view = view[os.write(1, view) :]
            waiting.written(batch)
            end.wait(BATCH_EVERY_S)
    except OSError:  # the source is gone
        end.set()


def _until_closed(end: threading.Event) -> None:
    """End when the source closes our stdin or is gone (thread body)."""
    while os.read(0, 4096):
        pass
    end.set()


def main() -> int:
    """Receive until the pipe closes."""
    arguments = argparse.ArgumentParser(description="The receiving process of the Open Ephys source.")
    arguments.add_argument("--endpoint", required=True)
    arguments.add_argument("--budget", type=int, required=True, help="bytes that may wait")
    arguments.add_argument("--channels", default="", help="channels whose voltage is kept, as 0,1,2")
    arguments.add_argument("--ordinary", action="store_true", help="ask for no real-time priority")
    options = arguments.parse_args()
    end = threading.Event()
    threading.Thread(target=_until_closed, args=(end,), name="stdin", daemon=True).start()
    os.write(1, (priority.fifo(PRIORITY, not options.ordinary) + "\n").encode())
    channels = frozenset(int(c) for c in options.channels.split(",") if c)
    waiting = Waiting(options.budget, channels, HostClock())
    threading.Thread(target=_write, args=(waiting, end), name="write", daemon=True).start()
    with zmq.Context() as context:
        # Never slower: what a GUI that is back sends meanwhile is lost.
        subscription = Subscription(context, options.endpoint, MOST_BYTES, slower=False)

        def drain() -> None:
            while not end.is_set() and waiting.receive(subscription.sub):
                pass

        while not end.is_set():
            subscription.wait(50, drain)
        subscription.close()
    return 0


if __name__ == "__main__":
    child.shield()
    sys.exit(main())
