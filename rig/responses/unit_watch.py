"""Watches over the units of the scored source: which are there, which are gone, which may be dead.

Pure; part of the response fold (`rig.responses.windows`). A unit that a UnitList no longer names is missing from then
on; that is decided where values are counted, and said here. A unit without a spike for far longer than its own rate
explains may be dead or may have nothing to say: that is said, and its zeros count.

The rule for silence: with n >= 20 spikes in this run and the mean rate r between the first and the last of them, a
silence of t seconds has the Poisson probability exp(-r t). It is a fault if that is below 1e-6, and, since real units
burst and pause with the stimuli, if t is also longer than twice the unit's longest silence in this run and at least 10
images were shown in it. Time in gaps does not count.
"""

import math
from collections.abc import Iterable, Set
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np

from rig.messages import SpikeBlock, UnitList
from rig.responses.device_data import DeviceData
from rig.responses.fault_batch import FaultBatch

UNSEEN_AFTER = 10  # responses after which a unit without a single spike is a fault
SETTLE_S = 60.0  # before a source has been heard for so long, every unit is new
LEAST_SPIKES = 20
SILENCE = -math.log(1e-6)  # expected spikes in a silence of p = 1e-6
TIMES_LONGEST = 2.0
LEAST_SHOWN = 10
NAMED = 30


@dataclass
class _Firing:
    """When a unit fired in this run; samples without those in gaps."""

    spikes: int = 0
    first: int = 0
    last: int = 0
    longest: int = 0  # silence between two spikes
    shown: int = 0  # images of the session when it last fired
    silent: bool = False

    def add(self, sample: int, shown: int) -> None:
        """Take a spike; `shown` images came before it."""
        self.shown = shown
        if self.spikes == 0:
            self.first = self.last = sample
        self.spikes += 1
        self.longest = max(self.longest, sample - self.last)
        self.first, self.last = min(self.first, sample), max(self.last, sample)


def _named(units: Iterable[str]) -> str:
    names = sorted(units)
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


class UnitWatch:
    """Knows the units of one source through all its runs."""

    def __init__(self, source: str, scored: tuple[str, ...], faults: FaultBatch) -> None:
        """Watch over `source`, of which the units `scored` are scored; what is wrong is added to `faults`."""
        self._source, self._scored, self._faults = source, scored, faults
        self.seen: set[str] = set()
        self._is_scored = frozenset(scored)
        self._listed: frozenset[str] | None = None  # units of the newest UnitList
        self._ever_listed: set[str] = set()
        self._unseen_said = False
        self._shown = 0
        self._heard: tuple[int, int] | None = None  # run, first watermark
        self._settled = False
        self._firing: dict[str, _Firing] = {}

    def new_run(self) -> None:
        """Forget the rates of the run that is over."""
        self._firing.clear()

    def shown(self) -> None:
        """Count an image."""
        self._shown += 1

    # --- lists --------------------------------------------------------------------------------------------------------

    def listed(self, units: UnitList) -> None:
        """Take a list of units; say what is gone and what is new."""
        before, now = self._listed, frozenset(units.units)
        self._listed = now
        where = f"from sample {units.from_sample} on"
        if before is None:
            self._say_not_sent(self._is_scored - now, now, f"{self._source} does not list")
        elif gone := before - now:
            hit = gone & self._is_scored
            done = f"scored missing, not zero, from then on: {_named(hit)}" if hit else "logged; none of them is scored"
            self._faults.add("units gone", f"{self._source} no longer has {_named(gone)} {where}", done)
        if before is None:
            self._ever_listed |= now
            return
        if new := now - before:
            back = new & self._ever_listed
            words = f"has again {_named(back)}" if back else ""
            words += " and " if back and new - back else ""
            words += f"has for the first time {_named(new - back)}" if new - back else ""
            scored = new & self._is_scored
            done = f"scored again: {_named(scored)}" if scored else "logged; responses.units names none of them"
            self._faults.add("new units", f"{self._source} {words} {where}", done)
        self._ever_listed |= now

    def unseen(self, responses: int) -> None:
        """Say once which scored units were never sent: most often a name that is not quite right."""
        if self._unseen_said or responses < UNSEEN_AFTER or self._listed is not None:
            return
        self._say_not_sent(self._is_scored - self.seen, self.seen, f"{self._source} sent no spike of")

    def _say_not_sent(self, missing: Set[str], there: Set[str], words: str) -> None:
        if not missing:
            return
        self._unseen_said = True
        near = {u: get_close_matches(u, sorted(there), 1) for u in sorted(missing)}
        hints = ", ".join(f"{u!r}" + (f" (perhaps {m[0]!r})" if m else "") for u, m in near.items())
        self._faults.add(
            "unit never seen",
            f"{words} {hints}; it sends {_named(there) or 'none'}",
            "these units are scored missing, not zero, until they come; correct responses.units",
        )

    # --- spikes -------------------------------------------------------------------------------------------------------

    def fired(self, block: SpikeBlock, device: DeviceData) -> None:
        """Take note of which units fired, and when."""
        there = set(block.units)
        if self._settled and self._listed is None and (new := there - self.seen):
            self._faults.add(
                "new units",
                f"{self._source} sent the first spikes of {_named(new)}",
                "logged; only responses.units are scored",
            )
        self.seen |= there
        if not len(block.sample):
            return
        firing = [self._firing.setdefault(u, _Firing()) if u in self._is_scored else None for u in block.units]
        order = np.lexsort((block.sample, block.unit))
        sample = block.sample[order] - device.lost_samples
        for k, at in zip(block.unit[order].tolist(), sample.tolist(), strict=True):
            if (one := firing[k]) is not None:
                if one.silent:
                    self._fires_again(block.units[k], one, at, device.rate_hz)
                one.add(at, self._shown)

    def _fires_again(self, name: str, firing: _Firing, sample: int, rate_hz: float) -> None:
        firing.silent = False
        silence_s = (sample - firing.last) / rate_hz
        self._faults.add("unit fires again", f"{name} after {silence_s:.1f} s of silence", "nothing")

    def look(self, device: DeviceData) -> None:
        """Look for units that have fallen silent, up to the device's watermark; about once a second."""
        if device.watermark is None or device.rate_hz <= 0:
            return
        if self._heard is None or self._heard[0] != device.run:
            self._heard = (device.run, device.watermark)
        self._settled = self._settled or device.watermark - self._heard[1] > SETTLE_S * device.rate_hz
        now = device.watermark - device.lost_samples
        for name, firing in self._firing.items():
            there = self._listed is None or name in self._listed
            silent = now - firing.last
            if firing.silent or not there or firing.spikes < LEAST_SPIKES or firing.last == firing.first:
                continue
            if self._shown < firing.shown + LEAST_SHOWN:
                continue
            rate = (firing.spikes - 1) / (firing.last - firing.first)  # per sample
            if silent * rate > SILENCE and silent > TIMES_LONGEST * firing.longest:
                firing.silent = True
                hz = rate * device.rate_hz
                self._faults.add(
                    "unit silent",
                    f"{name} has not fired for {silent / device.rate_hz:.1f} s, after {hz:.2f} spikes/s and never more "
                    f"than {firing.longest / device.rate_hz:.1f} s of silence: it may be dead or its contact lost",
                    "its zeros count; remove it from responses.units if it is dead",
                )
