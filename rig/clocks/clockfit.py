"""The clocks of a session looked at afterwards: a two-sided map from the journal, against the one that was used online.

Called by `stimloop clocks`; pure: it gets journal entries and returns figures. Offline a moment has pairs on both
sides, so nothing is extrapolated: each stretch of the run is fitted from 30 s before to 30 s after it. The pairs, the
kinds of line and their stated uncertainty are those of the online map (docs/clocks.md).
"""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from rig.clocks.barcodes import Barcode, BarcodeFormat, line_edges, read_barcodes, shared
from rig.clocks.clocklines import KINDS, RATE_CHANGE_PER_S, Kind, Line, Pair, best_line, own_line, with_levelled
from rig.clocks.clockmap import ClockMap, as_pair
from rig.messages import ClockSample, Continuity, EdgeBlock, Entry, Presented, SessionStart

KINDS_NEEDED = frozenset({"clock_sample", "continuity", "edge_block", "presented", "session_start"})
HALF_WINDOW_NS = 30_000_000_000
NODE_NS = 5_000_000_000  # neighbouring moments share one fit
CHECK_EVERY_NS = 1_000_000_000
EARLY_NS, LATE_NS = 5_000_000, 100_000_000  # an edge of the photodiode comes within this of its flip


@dataclass
class Run:
    """What a journal says about the clock of one source in one run."""

    source: str
    run: int
    rate_hz: float = 0.0
    pairs: list[ClockSample] = field(default_factory=list)
    edges: list[EdgeBlock] = field(default_factory=list)


def runs_of(entries: Iterable[Entry]) -> list[Run]:
    """Return the runs of all sources in a journal, in order of their first entry."""
    runs: dict[tuple[str, int], Run] = {}
    for entry in entries:
        document = entry.document
        if not isinstance(document, ClockSample | Continuity | EdgeBlock):
            continue
        run = runs.setdefault((document.source, document.run), Run(document.source, document.run))
        if isinstance(document, ClockSample):
            run.pairs.append(document)
        elif isinstance(document, EdgeBlock):
            run.edges.append(document)
        else:
            run.rate_hz = document.sample_rate_hz or run.rate_hz
    return list(runs.values())


class TwoSidedMap:
    """Sample to host time from pairs before and after the moment; none from beyond a step of a clock."""

    def __init__(
        self, pairs: Iterable[ClockSample], steps_host_ns: Iterable[int] = (), nominal_hz: float | None = None
    ) -> None:
        """Take the pairs of one run, in journal order, the host times at which a clock stepped and the stated rate."""
        self._nominal_hz = nominal_hz
        self._kinds: dict[Kind, list[Pair]] = {kind: [] for kind in KINDS}
        self._steps = sorted(steps_host_ns)
        for sample in pairs:
            kind, pair = as_pair(sample)
            known = self._kinds[kind]
            if known and pair.host_ns <= known[-1].host_ns:
                continue  # sent again
            between_steps = known and self.stretch(pair.host_ns) == self.stretch(known[-1].host_ns)
            if between_steps and pair.sample <= known[-1].sample:
                continue
            known.append(pair)
        self._hosts = {kind: [p.host_ns for p in known] for kind, known in self._kinds.items()}
        self._lines: dict[tuple[int, int], Line | None] = {}

    def stretch(self, host_ns: int) -> int:
        """Return how many steps of a clock came before a moment."""
        return bisect_right(self._steps, host_ns)

    def line(self, near_host_ns: int) -> Line | None:
        """Return the line around a moment of host time; None where there are too few pairs."""
        key = self.stretch(near_host_ns), near_host_ns // NODE_NS
        if key not in self._lines:
            self._lines[key] = self._fit(*key)
        return self._lines[key]

    def to_host_ns(self, device_sample: float, near_host_ns: int) -> tuple[int, int] | None:
        """Return host time of a sample and the bound on its error, ns; None where there are too few pairs.

        `near_host_ns` is about when it was (to some seconds): after a step a sample alone does not name a moment.
        """
        line = self.line(near_host_ns)
        if line is None:
            return None
        x = device_sample - line.sample0
        return line.host0 + round(line.host_ns(x)), round(line.uncertainty_ns(x))

    def _fit(self, stretch: int, node: int) -> Line | None:
        middle = node * NODE_NS + NODE_NS // 2
        first, end = middle - HALF_WINDOW_NS, middle + HALF_WINDOW_NS
        if stretch > 0:
            first = max(first, self._steps[stretch - 1])
        if stretch < len(self._steps):
            end = min(end, self._steps[stretch])
        near: dict[Kind, Sequence[Pair]] = {}
        for kind, hosts in self._hosts.items():
            near[kind] = self._kinds[kind][bisect_left(hosts, first) : bisect_left(hosts, end)]
        at = min((p for known in near.values() for p in known), key=lambda p: abs(p.host_ns - middle), default=None)
        lines = [line for kind in KINDS if (line := own_line(kind, near[kind], self._nominal_hz)) is not None]
        return None if at is None else best_line(with_levelled(lines, near["exact"]), at.sample)


def mean_rate(offline: TwoSidedMap, hosts_ns: Sequence[int]) -> tuple[float, float] | None:
    """Return the mean rate over the longest stretch of `hosts_ns` without a step, samples/s, and its bound (99 %).

    The bound is relative. Over a long stretch the rate is told by its two ends, over a short one by a line through it.
    """
    stretches: dict[int, list[int]] = {}
    for host in sorted(hosts_ns):
        stretches.setdefault(offline.stretch(host), []).append(host)
    longest = max(stretches.values(), key=lambda hosts: hosts[-1] - hosts[0], default=[])
    if not longest:
        return None
    first, last = longest[0], longest[-1]
    middle = offline.line((first + last) // 2)
    found = []
    if middle is not None:
        # A rate that changes within the stretch is not that of its middle.
        changed = RATE_CHANGE_PER_S * max(last - first, 0) * 1e-9 / 2
        found.append((1e9 / middle.slope, middle.slope_uncertainty() + changed))
    before, after = offline.line(first), offline.line(last)
    if before is not None and after is not None and before is not after:
        x = before.x_at(first - before.host0), after.x_at(last - after.host0)
        samples = after.sample0 + x[1] - before.sample0 - x[0]
        doubt_ns = before.uncertainty_ns(x[0]) + after.uncertainty_ns(x[1])
        found.append((samples * 1e9 / (last - first), doubt_ns / (last - first)))
    return min(found, key=lambda one: one[1], default=None)


@dataclass
class Online:
    """What the online map did in a run."""

    kept: list[ClockSample] = field(default_factory=list)
    steps_host_ns: list[int] = field(default_factory=list)
    warnings: list[tuple[str, str]] = field(default_factory=list)
    checks: list[tuple[float, int, int, int]] = field(default_factory=list)
    """About once a second: the newest pair's sample and host time, the map's host time and its bound, ns."""


def online_of(run: Run) -> Online:
    """Feed the online map with a run's pairs as the recorder did; note what it said and which pairs it believed."""
    clockmap, out = ClockMap(run.rate_hz or None), Online()
    disputed: list[ClockSample] = []
    due_ns: int | None = None
    for pair in run.pairs:
        steps = len(clockmap.steps_host_ns)
        believed = clockmap.take(pair)
        out.warnings += clockmap.warnings()
        if len(clockmap.steps_host_ns) > steps:
            disputed = [p for p in (*disputed, pair) if p.pair_host_ns >= clockmap.steps_host_ns[-1]]
            late = [p for p in out.kept if p.pair_host_ns >= clockmap.steps_host_ns[-1]]
            out.kept = [*out.kept[: len(out.kept) - len(late)], *sorted([*late, *disputed], key=_by_host)]
            disputed = []
        elif believed:
            out.kept.append(pair)
        else:
            disputed.append(pair)
            continue
        mapped = clockmap.to_host_ns(pair.device_sample)
        if mapped is not None and (due_ns is None or pair.pair_host_ns >= due_ns):
            # By addition, so that pairs that come about once a second are all looked at.
            due_ns = max((due_ns or pair.pair_host_ns) + CHECK_EVERY_NS, pair.pair_host_ns)
            out.checks.append((pair.device_sample, pair.pair_host_ns, *mapped))
    out.steps_host_ns = clockmap.steps_host_ns
    return out


def _by_host(pair: ClockSample) -> int:
    return pair.pair_host_ns


def figures(run: Run) -> dict[str, Any]:
    """Return the row of `stimloop clocks` for one source and run; None for what the pairs cannot tell."""
    online = online_of(run)
    offline = TwoSidedMap(online.kept, online.steps_host_ns, run.rate_hz or None)
    methods = Counter(p.method for p in run.pairs)
    row: dict[str, Any] = {"source": run.source, "run": run.run, "pairs": dict(methods), "sample_rate_hz": run.rate_hz}
    hosts = [p.pair_host_ns for p in run.pairs]
    row["seconds"] = round((max(hosts) - min(hosts)) * 1e-9, 3) if hosts else 0.0
    lines = [line for _, host, _, _ in online.checks if (line := offline.line(host)) is not None]
    rates = np.array([1e9 / line.slope for line in lines])
    ppm = (rates / run.rate_hz - 1) * 1e6 if run.rate_hz and len(rates) else None
    mean = mean_rate(offline, [host for _, host, _, _ in online.checks]) if ppm is not None else None
    apart, stated = [], []
    for sample, host, mapped, bound in online.checks:
        refitted = offline.to_host_ns(sample, host)
        stated.append(bound)
        if refitted is not None:
            apart.append(abs(mapped - refitted[0]))
    row |= {
        "drift_ppm": None if mean is None else round((mean[0] / run.rate_hz - 1) * 1e6, 3),
        "drift_known_to_ppm": None if mean is None else round(mean[1] * 1e6, 3),
        "drift_range_ppm": None if ppm is None else round(float(np.ptp(ppm)), 3),
        "residual_ms": _ms(max((line.residual_ns for line in lines), default=None)),
        "stated_ms_max": _ms(max(stated, default=None)),
        "stated_ms_p50": _ms(np.percentile(stated, 50) if stated else None),
        "online_offline_ms_p50": _ms(np.percentile(apart, 50) if apart else None),
        "online_offline_ms_p99": _ms(np.percentile(apart, 99) if apart else None),
        "online_offline_ms_max": _ms(max(apart, default=None)),
        "checks": len(apart),
        "steps": len(online.steps_host_ns),
        "warnings": [f"{what}: {detail}" for what, detail in online.warnings],
    }
    return row


def _ms(ns: "float | np.floating[Any] | None") -> float | None:
    return None if ns is None else round(float(ns) * 1e-6, 5)


def _line_on_host(run: Run, line: int) -> list[tuple[int, int, int]]:
    """Return (sample, state, host ns by the two-sided map) of the edges of a line, samples ascending."""
    online = online_of(run)
    offline = TwoSidedMap(online.kept, online.steps_host_ns, run.rate_hz or None)
    rows = []
    for sample, state, arrival in zip(*(column.tolist() for column in line_edges(run.edges, line)), strict=True):
        mapped = offline.to_host_ns(sample, arrival)
        if mapped is not None:
            rows.append((sample, state, mapped[0]))
    return rows


def photodiode_lags(runs: Sequence[Run], entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """Return, for each run of the scored source with a photodiode, the lag from flip stamp to light.

    Its median is the display's lag plus what is constantly wrong with the clock map: the two cannot be told apart, so
    flips give no pairs. But the lag of a display does not drift: a change within the session is the map's error.
    """
    flips, line, scored = [], None, ""
    for entry in entries:
        document = entry.document
        if isinstance(document, Presented) and document.complete:
            flips.append(document.onset_flip_host_ns)
        elif isinstance(document, SessionStart):
            source = document.config["sources"][0]
            line, scored = source.get("photodiode_line"), source["name"]
    rows = []
    for run in runs:
        if run.source != scored or line is None:
            continue
        edges = [host for _, state, host in _line_on_host(run, line) if state == 1]
        found = ((flip, bisect_left(edges, flip - EARLY_NS)) for flip in sorted(flips))
        lags = np.array([edges[k] - flip for flip, k in found if k < len(edges) and edges[k] <= flip + LATE_NS])
        if len(lags):
            quarter = max(1, len(lags) // 4)
            rows.append(
                {
                    "source": run.source,
                    "run": run.run,
                    "photodiode_edges": len(lags),
                    "lag_ms_p50": _ms(np.median(lags)),
                    "lag_ms_spread_p99": _ms(np.percentile(np.abs(lags - np.median(lags)), 99)),
                    "lag_ms_change": _ms(np.median(lags[-quarter:]) - np.median(lags[:quarter])),
                }
            )
    return rows


def compare_barcodes(runs: Sequence[Run], line: int, form: BarcodeFormat) -> list[dict[str, Any]]:
    """Return, for each two sources that recorded the same barcodes on `line`, how far their clock maps are apart.

    Each barcode is one moment; the two-sided maps of both sources say when it was on the host.
    """
    seen: dict[str, list[Barcode]] = {}
    for run in runs:
        edges = _line_on_host(run, line)
        if not edges or not run.rate_hz:
            continue
        sample, state, _ = (np.array(column, dtype=np.int64) for column in zip(*edges, strict=True))
        host_of = {at: host for at, _, host in edges}
        read = read_barcodes(sample, state, run.rate_hz, form).barcodes
        # `shared` pairs samples; here each barcode stands for the host time that its source's map gives it.
        seen.setdefault(run.source, []).extend(Barcode(code.value, host_of[code.sample]) for code in read)
    rows = []
    for a, b in combinations(sorted(seen), 2):
        apart = np.array([host_b - host_a for host_a, host_b in shared(seen[a], seen[b])], dtype=np.float64)
        if len(apart):
            rows.append(
                {
                    "sources": [a, b],
                    "barcodes": len(apart),
                    "apart_ms_p50": _ms(np.percentile(apart, 50)),
                    "apart_ms_spread_p99": _ms(np.percentile(np.abs(apart - np.median(apart)), 99)),
                }
            )
    return rows
