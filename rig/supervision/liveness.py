"""Signs of life: one counter for each child in shared memory, and how long a counter stands still.

The supervisor makes the block (`Pulses`) and hands each child its place by environment variable; the child advances its
counter (`Pulse`, through `rig.supervision.child.Stop`), and `Stillness` says when it has stood still for longer than
the child has declared. An exit code tells of a dead process; only this tells of one that lives and does nothing any
more.

The block has no name: it is gone with the last process that holds it, whoever is killed, and nobody needs to remove it.
"""

import mmap
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

VARIABLE = "STIMLOOP_PULSE"
WORDS = 8  # int64 per child: a cache line, so that no two children write to one
COUNT, LONGEST_NS, DECLARED_AT = range(3)
LOOK_AT_MOST_NS = 500_000_000


class Pulse:
    """One child's counter."""

    def __init__(self, words: "memoryview[int] | None" = None, slot: int = 0) -> None:
        """Advance the counter in `words` (int64), at `slot`; without them one that nobody watches."""
        self._words = memoryview(bytearray(WORDS * 8)).cast("q") if words is None else words
        self._at = slot * WORDS
        self._count = self._words[self._at]

    def beat(self) -> None:
        """Say that the loop goes on. About 0.1 us; no system call, nothing for the garbage collector."""
        self._count += 1
        self._words[self._at] = self._count

    @contextmanager
    def busy(self, longest_s: float) -> Iterator[None]:
        """Declare that the body may take up to `longest_s` without a beat; it beats before and after."""
        self._words[self._at + LONGEST_NS] = int(longest_s * 1e9)
        self.beat()
        self._words[self._at + DECLARED_AT] = self._count  # holds until the next beat
        try:
            yield
        finally:
            self.beat()


def own_pulse() -> Pulse:
    """Return this process's counter as its supervisor gave it; one that nobody watches if there is no supervisor."""
    given = os.environ.get(VARIABLE)
    if given is None:
        return Pulse()
    block, slots, slot = given.rsplit("/", 2)
    size = int(slots) * WORDS * 8
    if os.name == "nt":  # pragma: no cover - tested on Linux only
        shared = mmap.mmap(-1, size, tagname=block)  # type: ignore[call-arg,unused-ignore]
    else:
        shared = mmap.mmap(int(block), size)
    return Pulse(memoryview(shared).cast("q"), int(slot))


@dataclass(frozen=True)
class Sign:
    """What a child's counter says now."""

    count: int
    longest_ns: int | None = None
    """How long it may stand still, where the child has declared it for what it does now."""


class Pulses:
    """The supervisor's side: the block with the counters of all children."""

    def __init__(self, slots: int) -> None:
        """Make a block for `slots` children. Raises OSError."""
        self._slots, size = slots, slots * WORDS * 8
        self.inherited: tuple[int, ...] = ()  # descriptors that a child must inherit
        if os.name == "nt":  # pragma: no cover - tested on Linux only
            self._block = f"stimloop-{secrets.token_hex(8)}"
            self._shared = mmap.mmap(-1, size, tagname=self._block)  # type: ignore[call-arg,unused-ignore]
        else:
            if hasattr(os, "memfd_create"):
                fd = os.memfd_create("stimloop-pulses")
            else:  # pragma: no cover - macOS
                with tempfile.TemporaryFile() as file:
                    fd = os.dup(file.fileno())
            os.ftruncate(fd, size)
            self._block, self.inherited = str(fd), (fd,)
            self._shared = mmap.mmap(fd, size)
        self._words = memoryview(self._shared).cast("q")

    def environment(self, slot: int) -> dict[str, str]:
        """Return what the child of `slot` needs to find its counter."""
        return {VARIABLE: f"{self._block}/{self._slots}/{slot}"}

    def look(self, slot: int) -> Sign:
        """Read a child's counter."""
        at = slot * WORDS
        count, longest_ns, declared_at = self._words[at : at + 3]
        return Sign(count, longest_ns if declared_at == count and count else None)

    def close(self) -> None:
        """Let go of the block."""
        self._words.release()
        self._shared.close()
        for fd in self.inherited:
            os.close(fd)
        self.inherited = ()


class Stillness:
    """For how long a counter has stood still, as far as somebody looked. Pure: the time is an argument."""

    def __init__(self, now_ns: int, sign: Sign) -> None:
        """Begin at `now_ns` (host clock) with what the counter says then."""
        self._looked_ns = now_ns
        self._count = sign.count
        self.since_ns = now_ns  # host time at which it was last seen to advance
        self.still_ns = 0

    def look(self, now_ns: int, sign: Sign) -> int:
        """Take the counter at `now_ns`; return for how long it has stood still, ns.

        Time in which nobody looked (the supervisor itself was stopped, the machine slept) counts as half a second at
        most: who did not look cannot say that nothing moved.
        """
        if sign.count != self._count:
            self._count, self.since_ns, self.still_ns = sign.count, now_ns, 0
        else:
            self.still_ns += min(now_ns - self._looked_ns, LOOK_AT_MOST_NS)
        self._looked_ns = now_ns
        return self.still_ns
