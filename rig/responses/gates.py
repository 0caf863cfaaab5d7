"""What the animal did while an image was on: gates that make a response unusable, and means of its behaviour.

Pure; part of the response fold (`rig.responses.windows`). Each behaviour source has its own device, run and clock map.
A presentation is judged afterwards, from its onset to the end of its response window: one that was completed before the
gaze left stays valid, one without gaze data is unusable.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np

from rig.clocks.clockmap import ClockMap
from rig.config.outputs import Criterion
from rig.config.session import Config
from rig.config.sources import LslBehaviourSource
from rig.messages import BehaviourBlock, ClockSample, Continuity, Gap
from rig.responses.fault_batch import FaultBatch
from rig.responses.fixation import GazeWindow, in_gaps

KEEP_S = 60.0  # as in rig.responses.fixation


@dataclass(frozen=True)
class Judged:
    """What is known of the animal during one presentation."""

    reason: str  # why its response is not usable; "" if it is
    behaviour: dict[str, float]  # mean of each channel that was seen


class BehaviourTrack:
    """Rows of one behaviour source, on its own clock."""

    def __init__(self, source: str) -> None:
        """Start without rows."""
        self.source = source
        self.clock = ClockMap()
        self.channels: set[str] = set()  # that were ever sent
        self.state = ""
        self._forget_all(-1)

    def _forget_all(self, run: int) -> None:
        self._run = run
        self._watermark: int | None = None
        self._blocks: deque[tuple[int, BehaviourBlock]] = deque()  # last sample, rows
        self._gaps: deque[Gap] = deque()

    def take(self, document: BehaviourBlock | ClockSample | Continuity) -> None:
        """Take a document of this source."""
        if document.run < self._run:
            return
        if document.run > self._run:
            self._forget_all(document.run)
        if isinstance(document, BehaviourBlock):
            self.channels.update(document.channels)
            if len(document.sample):
                self._blocks.append((int(document.sample.max()), document))
        elif isinstance(document, ClockSample):
            self.clock.take(document)
        else:
            self.state = document.state
            self.clock.nominal_hz = document.sample_rate_hz or self.clock.nominal_hz
            self._watermark = max(document.watermark_sample, self._watermark or document.watermark_sample)
            self._gaps.extend(document.gaps)
            self._forget()

    def _forget(self) -> None:
        period_ns = self.clock.ns_per_sample()
        if period_ns is None or self._watermark is None:
            return
        horizon = self._watermark - KEEP_S * 1e9 / period_ns
        while self._blocks and self._blocks[0][0] < horizon:
            self._blocks.popleft()
        while self._gaps and self._gaps[0].end_sample < horizon:
            self._gaps.popleft()

    def lost(self, start_host_ns: int, end_host_ns: int) -> bool:
        """Return whether data are missing, or came too old, in [start, end), host ns."""
        span = self.clock.to_sample(start_host_ns), self.clock.to_sample(end_host_ns)
        if span[0] is None or span[1] is None:
            return True
        return any(g.first_sample < span[1][0] and g.end_sample > span[0][0] for g in self._gaps)

    def complete_to(self, host_ns: int) -> bool:
        """Return whether everything up to a host time was delivered."""
        at = None if self._watermark is None else self.clock.to_host_ns(self._watermark)
        return at is not None and at[0] >= host_ns

    def means(self, start_host_ns: int, end_host_ns: int) -> dict[str, float]:
        """Return the mean of each channel in [start, end), host ns; without those that were not seen."""
        span = self.clock.to_sample(start_host_ns), self.clock.to_sample(end_host_ns)
        if span[0] is None or span[1] is None:
            return {}
        start, end = span[0][0], span[1][0]
        total: dict[str, tuple[float, int]] = {}
        for last, block in reversed(self._blocks):  # the newest ones are asked for
            if last < start:
                break
            inside = (block.sample >= start) & (block.sample < end) & ~in_gaps(block.sample, self._gaps)
            if not inside.any():
                continue
            rows = block.values[inside]
            seen = np.isfinite(rows)
            sums, counts = np.where(seen, rows, 0.0).sum(axis=0), seen.sum(axis=0)
            for name, one, n in zip(block.channels, sums.tolist(), counts.tolist(), strict=True):
                before, number = total.get(name, (0.0, 0))
                total[name] = (before + one, number + n)
        return {name: one / n for name, (one, n) in sorted(total.items()) if n}


class Gates:
    """Follows all behaviour sources of a session and judges presentations."""

    def __init__(self, config: Config, faults: FaultBatch) -> None:
        """Judge by `config.gates`; what is wrong with the sources is added to `faults`."""
        names = [s.name for s in config.sources if isinstance(s, LslBehaviourSource)]
        self._tracks = {name: BehaviourTrack(name) for name in names}
        self._fixation, self._criteria = config.gates.fixation, config.gates.criteria
        self._gaze = None if self._fixation is None else GazeWindow(self._fixation)
        self._timeout_s, self._faults = config.responses.timeout_s, faults
        self._checked: set[str] = set()

    def take(self, document: object) -> None:
        """Take any document; those of behaviour sources count."""
        if not isinstance(document, BehaviourBlock | ClockSample | Continuity):
            return
        track = self._tracks.get(document.source)
        if track is None:
            return
        track.take(document)
        if self._gaze is not None:
            self._gaze.take(document)
        if isinstance(document, BehaviourBlock) and track.source not in self._checked:
            self._checked.add(track.source)
            self._check_channels(track)

    def _check_channels(self, track: BehaviourTrack) -> None:
        """Say which channels the gates need and the source does not send."""
        wanted = {c.channel for c in self._criteria if c.source == track.source}
        if self._fixation is not None and self._fixation.source == track.source:
            wanted |= {self._fixation.x, self._fixation.y}
        if missing := sorted(wanted - track.channels):
            self._faults.add(
                "behaviour channel missing",
                f"{track.source} sends no {', '.join(missing)}; it sends {', '.join(sorted(track.channels))}",
                "no response is usable by these gates; name the channels in sources.channels or correct gates",
            )

    def clock_warnings(self) -> list[tuple[str, str, str]]:
        """Return (source, what, detail) of what the clocks of the sources have to say."""
        return [(t.source, *warning) for t in self._tracks.values() for warning in t.clock.warnings()]

    def judge(self, onset_host_ns: int, end_host_ns: int, overdue: bool = False) -> Judged | None:
        """Judge from onset to window end, host ns; None while data that are still expected have not come.

        With `overdue` nothing is waited for any more: a gate without its data makes the response unusable.
        """
        gated = {c.source for c in self._criteria} | ({self._fixation.source} if self._fixation is not None else set())
        late = [name for name, track in self._tracks.items() if not track.complete_to(end_host_ns)]
        # A source without a gate is waited for as long as it is alive; its means are nice to have.
        awaited = [name for name in late if name in gated or self._tracks[name].state == "streaming"]
        if awaited and not overdue:
            return None
        means = {name: track.means(onset_host_ns, end_host_ns) for name, track in self._tracks.items()}
        behaviour = {
            (name if len(means) == 1 else f"{source}.{name}"): mean
            for source, channels in means.items()
            for name, mean in channels.items()
        }
        if missing := sorted(gated & set(late)):
            reason = f"no complete data from {', '.join(missing)} within {self._timeout_s:g} s"
            return Judged(reason, behaviour)
        reasons = [self._judge_gaze(onset_host_ns, end_host_ns)]
        lost = sorted({c.source for c in self._criteria if self._tracks[c.source].lost(onset_host_ns, end_host_ns)})
        if lost:
            reasons.append(f"data of {', '.join(lost)} are missing or came too old in its window")
        reasons += [_judge_mean(c, means[c.source].get(c.channel)) for c in self._criteria]
        return Judged("; ".join(filter(None, reasons)), behaviour)

    def _judge_gaze(self, onset_host_ns: int, end_host_ns: int) -> str:
        """Return why the gaze makes a response unusable, "" if it does not."""
        if self._gaze is None or self._fixation is None:
            return ""
        verdict, at_ns = self._gaze.verdict(onset_host_ns, end_host_ns)
        when = "" if at_ns is None else f"{(at_ns - onset_host_ns) / 1e6:.0f} ms"
        if verdict == "held":
            return ""
        if verdict == "broken" and at_ns == onset_host_ns:
            return "the gaze was outside the fixation window at the onset"
        if verdict == "broken":
            return f"the gaze left the fixation window {when} after the onset"
        since = f"for more than {self._fixation.max_gap_s:g} s"
        if at_ns is None:
            return f"no gaze was seen {since}"
        if at_ns < onset_host_ns:
            return f"no gaze was seen {since}, from {(onset_host_ns - at_ns) / 1e6:.0f} ms before the onset on"
        return f"no gaze was seen {since}, from {when} after the onset on"


def _judge_mean(criterion: Criterion, mean: float | None) -> str:
    """Return why a criterion makes a response unusable, "" if it does not; `mean` is None if nothing was seen."""
    name = criterion.channel
    if mean is None:
        return f"{name} was not seen"
    if criterion.least is not None and mean < criterion.least:
        return f"mean {name} {mean:.3g} is below {criterion.least:g}"
    if criterion.most is not None and mean > criterion.most:
        return f"mean {name} {mean:.3g} is above {criterion.most:g}"
    return ""
