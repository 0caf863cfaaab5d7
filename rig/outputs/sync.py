"""Sends barcodes on an output line, so that a device which records the line shares moments with the host's clock.

`BarcodeSender` is a thread of the outputs process with a line of its own: levels change at their times by the host
clock, whatever the process does besides. It stamps the first edge of each barcode before and after the write; a
barcode whose levels came late is not announced, for no device could be trusted to have read it.
"""

import queue
import threading

from rig.clock import Clock
from rig.clocks.barcodes import BarcodeFormat, signal
from rig.config.outputs import ParallelOutput, SerialOutput, Sync
from rig.messages import BarcodeSent, Document, Fault
from rig.outputs.lines import HeldLine, held_line, open_line

LATE_SHARE = 0.5  # of the reader's tolerance: the device's own stamps take the rest
FIRST_NS = 500_000_000
SENDER = "sync line"


class BarcodeSender:
    """The barcodes of one line, numbered by the host clock's seconds, so that no number comes twice in a boot."""

    def __init__(self, sync: Sync, output: SerialOutput | ParallelOutput, clock: Clock) -> None:
        """Open the line, low, and begin. Raises OutputError."""
        self._sync, self._clock = sync, clock
        self._form = BarcodeFormat()
        rts, line = (True, 0) if isinstance(output, SerialOutput) else (False, output.line)
        fd, kind = open_line(output.port, rts)
        self._line: HeldLine = held_line(fd, kind, line)
        self._stop = threading.Event()
        self._said: queue.SimpleQueue[Document] = queue.SimpleQueue()
        self._late = 0
        self._thread = threading.Thread(target=self._run, name="barcodes", daemon=True)
        self._thread.start()

    def documents(self) -> list[Document]:
        """Return what happened since the last call, to be journalled."""
        out: list[Document] = []
        while not self._said.empty():
            out.append(self._said.get())
        return out

    def close(self) -> None:
        """End after the level that is on; the line is low."""
        self._stop.set()
        self._thread.join(1.0)
        self._line.set(False)

    def _run(self) -> None:
        due_ns = self._clock.now_ns() + FIRST_NS
        try:
            while not self._stop.is_set():
                self._wait(due_ns)
                if not self._stop.is_set():
                    self._send(self._clock.now_ns() // 1_000_000_000 % (1 << self._form.bits))
                due_ns += int(self._sync.every_s * 1e9)
        except OSError as error:
            detail = f"{self._sync.output}: {error.strerror}"
            self._said.put(Fault(what=SENDER, detail=detail, done="no more barcodes are sent in this session"))

    def _wait(self, due_ns: int) -> None:
        while not self._stop.is_set() and (rest_ns := due_ns - self._clock.now_ns()) > 0:
            if rest_ns > 50_000_000:
                self._stop.wait(rest_ns * 1e-9 - 0.04)
            else:
                self._clock.sleep_until_ns(due_ns)

    def _send(self, number: int) -> None:
        """Send one barcode; announce it if every level came in time."""
        allowed_ns = int(self._form.tolerance * self._form.wrapper_s * LATE_SHARE * 1e9)
        before = self._clock.now_ns()
        due_ns, first, late_ns, after = before, True, 0, before
        for level, length_s in signal(number, self._form):
            if not first:
                self._clock.sleep_until_ns(due_ns)
                late_ns = max(late_ns, self._clock.now_ns() - due_ns)
            self._line.set(bool(level))
            if first:
                after, first = self._clock.now_ns(), False
            due_ns += int(length_s * 1e9)
        self._clock.sleep_until_ns(due_ns)
        if late_ns > allowed_ns:
            self._late += 1
            if self._late in (1, 10, 100, 1000):
                detail = f"a level of barcode {number} came {late_ns * 1e-6:.1f} ms late; {self._late} barcodes so far"
                self._said.put(Fault(what=SENDER, detail=detail, done="such a barcode gives no clock pair"))
            return
        doubt_ns = (after - before) // 2 + 1 + int(self._sync.delay_s * 1e9)
        self._said.put(
            BarcodeSent(
                output=self._sync.output, number=number, sent_host_ns=(before + after) // 2, uncertainty_ns=doubt_ns
            )
        )
