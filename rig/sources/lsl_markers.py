"""The account of an LSL source of markers: texts or numbers that another program sent, logged and never interpreted.

Pure. A dying outlet is known to send an empty or torn marker: what is no text is refused.
"""

from collections.abc import Sequence
from typing import Any

from rig.config.sources import LslMarkerSource
from rig.messages import Document, Marker
from rig.sources.columns import Faults
from rig.sources.lsl_stamps import StampCheck
from rig.sources.lsl_streams import Described, Progress, Pulled, whole_us

LONGEST = 4096
ANY_AGE_S = 3600.0  # a late marker is still a marker
SHOWN = 40


class MarkerReader:
    """One run of markers."""

    def __init__(self, source: LslMarkerSource, streams: Sequence[Described], faults: Faults) -> None:
        """`streams`: the one stream, of text or numbers."""
        (stream,) = streams
        # Markers are irregular: there may be none for hours.
        self.progress = Progress(watermark=0, ready=True)
        self._source, self._faults = source, faults
        done = "logged without a time"
        self._check = StampCheck(f"{source.name}, {stream.name}", ANY_AGE_S, faults, in_order=False, done=done)
        self._taken: list[tuple[int | None, int, str]] = []

    def take(self, stream: int, pulled: Pulled) -> None:
        """Take markers."""
        verdicts = self._check.judge(pulled)
        for row, at, verdict in zip(pulled.rows, whole_us(pulled.stamp_s).tolist(), verdicts, strict=True):
            text = marker_text(row)
            if text is None:
                detail = f"{self._source.name}: a marker {b'|'.join(map(_raw, row))[:SHOWN]!r} that is no text"
                self._faults.note("garbage marker", detail, "refused; outlets that end are known to send such")
                continue
            if len(text) > LONGEST:
                detail = f"{self._source.name}: a marker of {len(text)} characters"
                self._faults.note("marker too long", detail, f"cut to {LONGEST}")
            sample = None if verdict == "wrong" else at
            self._taken.append((sample, pulled.arrival_ns, text[:LONGEST]))
            self.progress.received += 1
            if sample is not None:
                self.progress.watermark = max(self.progress.watermark or 0, sample + 1)

    def harvest(self, run: int, now_ns: int | None) -> list[Document]:
        """Return the markers since the last call."""
        taken, self._taken = self._taken, []
        return [
            Marker(source=self._source.name, run=run, sample=sample, arrival_host_ns=arrival_ns, text=text)
            for sample, arrival_ns, text in taken
        ]


def _raw(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def marker_text(row: Sequence[Any]) -> str | None:
    """Return the text of a marker row, its channels joined by tabs; None if it is empty or no text."""
    try:
        texts = [v.decode("utf-8") if isinstance(v, bytes) else f"{float(v):.15g}" for v in row]
    except UnicodeDecodeError:
        return None
    text = "\t".join(texts)
    if not text.strip() or not all(c.isprintable() or c in "\t\n\r" for c in text):
        return None
    return text
