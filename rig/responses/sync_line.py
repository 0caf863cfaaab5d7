"""Clock pairs from the barcodes that this host sends on a TTL line which the scored device records as well.

Pure; part of the response fold (`rig.responses.windows`). `rig.outputs.sync` makes the barcodes and says when the first
edge of each went out; the device's `EdgeBlock`s say at which sample it came in. A number that both know is one moment
on both clocks, without any guess about delays of messages: the pair is journalled as a `ClockSample` by barcode.
"""

from collections import OrderedDict

import numpy as np

from rig.clocks.barcodes import Barcode, BarcodeFormat, host_pairs, read_barcodes
from rig.config.session import Config
from rig.messages import BarcodeSent, ClockSample, EdgeBlock
from rig.responses.fault_batch import FaultBatch

MOST_SENT = 64  # numbers kept that the device has not shown yet: some minutes of them
UNREAD = "barcode not read"


class SyncLine:
    """Reads the barcodes on one line of the scored device and pairs them with those that were sent."""

    def __init__(self, config: Config, source: str, faults: FaultBatch) -> None:
        """Read the line of `config.sync`, if there is one; what cannot be read is added to `faults`."""
        self._line = None if config.sync is None else config.sync.line
        self._source, self._faults = source, faults
        self._form = BarcodeFormat()
        self._sent: OrderedDict[int, BarcodeSent] = OrderedDict()
        self._edges: list[tuple[int, int]] = []  # sample, state
        self._waiting: OrderedDict[int, int] = OrderedDict()  # number, sample: read before its BarcodeSent came
        self._unread = 0
        self._cut = True  # what comes first in a run may be the rest of a barcode

    def new_run(self) -> None:
        """Forget the samples of a run that is over."""
        self._edges.clear()
        self._waiting.clear()
        self._cut = True

    def take(self, block: EdgeBlock) -> None:
        """Take edges; those of other lines are ignored."""
        if self._line is not None:
            mine = block.line == self._line
            self._edges += zip(block.sample[mine].tolist(), block.state[mine].tolist(), strict=True)

    def sent(self, sent: BarcodeSent) -> None:
        """Take note of a barcode that went out."""
        self._sent[sent.number] = sent
        while len(self._sent) > MOST_SENT:
            self._sent.popitem(last=False)

    def pairs(self, run: int, watermark: int | None, rate_hz: float) -> list[ClockSample]:
        """Return the pairs that are complete: all edges before sample `watermark` have come, at `rate_hz`."""
        if self._line is None or watermark is None or rate_hz <= 0:
            return []
        self._edges.sort()
        # A code is read when it must have ended; the next one begins later than that (config: sync.every_s).
        length = int((self._form.length_s + self._form.wrapper_s) * rate_hz)
        while self._edges and self._edges[0][0] + length < watermark:
            end = self._edges[0][0] + length
            code = [edge for edge in self._edges if edge[0] < end]
            del self._edges[: len(code)]
            self._read(code, rate_hz)
        return self._matched(run, rate_hz)

    def _read(self, code: list[tuple[int, int]], rate_hz: float) -> None:
        columns = np.array(code, dtype=np.int64)
        read = read_barcodes(columns[:, 0], columns[:, 1], rate_hz, self._form)
        for barcode in read.barcodes:
            self._waiting[barcode.value] = barcode.sample
        while len(self._waiting) > MOST_SENT:
            self._waiting.popitem(last=False)
        cut, self._cut = self._cut, False
        if not read.barcodes and not cut:
            self._unread += 1
            what = f"{len(code)} edges on line {self._line} from sample {code[0][0]} on are no barcode"
            detail = f"{self._source}: {what}; {self._unread} so far"
            self._faults.add(UNREAD, detail, "it gives no clock pair; the map goes on")

    def _matched(self, run: int, rate_hz: float) -> list[ClockSample]:
        out: list[ClockSample] = []
        for number in [n for n in self._waiting if n in self._sent]:
            sent, sample = self._sent.pop(number), self._waiting.pop(number)
            doubt_ns = sent.uncertainty_ns + int(1e9 / rate_hz) + 1
            made = {number: sent.sent_host_ns}
            out += host_pairs([Barcode(number, sample)], made, self._source, run, doubt_ns)
        return out
