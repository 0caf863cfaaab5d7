"""The account of an LSL source of behaviour: gaze, pupil, running; rows in, BehaviourBlocks out.

Pure. Samples are us of the sender's LSL clock. NaN means that the device saw nothing: a blink, a lost track.
"""

from collections.abc import Sequence

import numpy as np

from rig.config.sources import LslBehaviourSource
from rig.messages import BehaviourBlock, Document
from rig.sources.columns import Faults
from rig.sources.lsl_frames import FrameCount, counter_channel, silent_ns
from rig.sources.lsl_stamps import StampCheck
from rig.sources.lsl_streams import F64, I64, Described, Progress, Pulled, WrongStream, named, numbers, whole_us


class BehaviourReader:
    """One run of behaviour."""

    def __init__(self, source: LslBehaviourSource, streams: Sequence[Described], faults: Faults) -> None:
        """`streams`: the one stream; raises WrongStream if it lacks a channel that the config names."""
        (stream,) = streams
        numbers(stream)
        self._counter = counter_channel(stream)
        labels = named(stream)
        wanted = source.channels or {label: label for k, label in enumerate(labels) if k != self._counter}
        if missing := [label for label in wanted.values() if label not in labels]:
            reason = f"LSL stream {stream.name!r} has no channel {missing[0]!r}; its channels are {', '.join(labels)}"
            raise WrongStream(reason, "correct `channels` in the source's config: own name, then the stream's label")
        if not wanted:
            raise WrongStream(f"LSL stream {stream.name!r} has a counter and nothing else")
        self.progress = Progress(silent_ns=silent_ns(stream.rate_hz))
        self._source, self._faults, self._names = source, faults, tuple(wanted)
        self._columns = np.array([labels.index(label) for label in wanted.values()], dtype=np.int64)
        self._count = FrameCount(stream.rate_hz)
        self._check = StampCheck(f"{source.name}, {stream.name}", source.max_age_s, faults)
        self._sample: list[I64] = []
        self._arrival: list[I64] = []
        self._values: list[F64] = []

    def take(self, stream: int, pulled: Pulled) -> None:
        """Account for rows."""
        verdicts = self._check.judge(pulled)
        rows = np.asarray(pulled.rows, dtype=np.float64)
        counter = None if self._counter is None else rows[:, self._counter]
        numbered = self._count.take(whole_us(pulled.stamp_s), verdicts, counter)
        values = rows[numbered.index][:, self._columns]
        self._sample.append(numbered.sample)
        self._arrival.append(np.full(len(numbered.index), pulled.arrival_ns, dtype=np.int64))
        self._values.append(np.where(np.isfinite(values), values, np.nan))
        progress = self.progress
        progress.received += len(numbered.index)
        progress.lost += numbered.lost
        progress.gaps += numbered.gaps
        if numbered.lost:
            detail = f"{self._source.name}: {numbered.lost} rows lost before row {self._count.frame}"
            self._faults.note("rows lost", detail, "their stretch is marked as a gap", pulled.arrival_ns)
        if self._count.last_sample is not None:
            progress.watermark = self._count.last_sample + 1
            progress.ready = True

    def harvest(self, run: int, now_ns: int | None) -> list[Document]:
        """Return the rows since the last call."""
        sample = np.concatenate([np.zeros(0, np.int64), *self._sample])
        if not len(sample):
            return []
        block = BehaviourBlock(
            source=self._source.name,
            run=run,
            channels=self._names,
            sample=sample,
            arrival_host_ns=np.concatenate(self._arrival),
            values=np.concatenate(self._values),
        )
        self._sample, self._arrival, self._values = [], [], []
        return [block]
