"""The report of a session: figures as PNG files and one HTML page that needs nothing else.

`write(folder)` reads folder/session.h5 only (made from the journal first where it is absent or older) and writes
folder/figures/*.png and folder/report.html. Called by `stimloop report` and `stimloop run`.
"""

import base64
import io
import re
from collections.abc import Callable, Set
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imsave

from rig.report import confirmation, control, evolution, figures, first_minutes, inception, revisit
from rig.report.data import RewardRow, Session, open_session
from rig.report.derived import chosen_online, coverage_words
from rig.report.figures import bound_words, mean_sem
from rig.report.history import History
from rig.report.html import as_table, bound, counted, minutes, moment
from rig.report.sections import banners, end_words, images_time, interruptions, may_have_been_seen
from rig.report.targets import each_target
from rig.report.traces import traces
from rig.view.columns import NO_TIME
from rig.view.h5 import brought_up_to_date

MOST_IMAGES = 40
MOST_UNITS = 8

REWARDS = {
    "given": "given as asked",
    "refused": "refused",
    "uncertain": "cut short or not confirmed",
    "unanswered": "never answered",
}

CSS = """
body { font: 16px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; color: #222; background: #fff;
       max-width: 62rem; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; margin: 0; } h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem; border-bottom: 1px solid #ddd; }
p.facts { color: #555; margin: .2rem 0 1rem; }
p.verdict { font-size: 1.1rem; padding: .7rem 1rem; border-left: .35rem solid #009E73; background: #f2faf7; }
p.verdict.warn { border-color: #D55E00; background: #fdf5ef; }
figure { margin: 1rem 0; } figure img { max-width: 100%; height: auto; }
figcaption { color: #555; font-size: .92rem; max-width: 52rem; }
div.row { display: flex; flex-wrap: wrap; gap: 1rem; } div.row figure { flex: 1 1 18rem; max-width: 29rem; }
table { border-collapse: collapse; margin: .8rem 0; font-size: .93rem; }
th, td { text-align: left; padding: .28rem .9rem .28rem 0; border-bottom: 1px solid #e4e4e4; vertical-align: middle; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; } td.n { white-space: nowrap; }
td img { width: 56px; height: 56px; image-rendering: auto; display: block; }
pre { background: #f6f6f6; padding: 1rem; overflow-x: auto; font-size: .85rem; }
summary { cursor: pointer; font-weight: 600; margin-top: 1.5rem; }
"""


def write(folder: Path) -> Path:
    """Write the figures and folder/report.html; return the path of the page."""
    brought_up_to_date(folder)
    with open_session(folder / "session.h5") as session, figures.with_style():
        page = _Page(session, folder / "figures").html()
    out = folder / "report.html"
    out.write_text(page, encoding="utf-8")
    return out


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


_METHODS = {"arrival": "arrival", "round_trip": "round trip", "edge": "shared edge", "barcode": "barcode"}
_CLOCK_CAPTIONS = {
    "arrival": "by arrival: the quickest message of each stretch",
    "round_trip": "by round trip: the shortest one of each stretch",
    "edge": "by shared edge: the best known one of each stretch",
    "barcode": "by barcode: the best known one of each stretch",
}


def _constant_error(methods: Set[str]) -> str:
    """Return what is constantly wrong with lags by the clock map of the scored source, from the kinds of its pairs."""
    if methods & {"edge", "barcode"}:
        return "This holds the error that all shared edges have in common (at most their stated uncertainty)."
    if "round_trip" in methods:
        return "This holds the lopsidedness of the way to the device and back (at most half the round trip)."
    return "This holds the device's smallest message delay, which arrivals alone cannot show (commonly about 1 ms)."


def _clock_caption(methods: Set[str]) -> str:
    """Return the caption of the clock figure for the kinds of pairs that are drawn in it."""
    drawn = "; ".join(_CLOCK_CAPTIONS[m] for m in sorted(methods))
    return f"Host clock minus the device's nominal time, {drawn}."


def _most_frequent(rewards: list[RewardRow], most: int = 2) -> list[str]:
    """Return the most frequent reasons with their counts; those that differ in numbers only are counted together."""
    alike: dict[str, list[str]] = {}
    for row in rewards:
        if row.reason:
            alike.setdefault(re.sub(r"[0-9.]+", "#", row.reason), []).append(row.reason)
    return [f"{len(same)} x {same[-1]}" for same in sorted(alike.values(), key=len, reverse=True)[:most]]


class _Page:
    """The page of one session."""

    def __init__(self, session: Session, folder: Path) -> None:
        """Figures go into `folder`; those of an older report are replaced."""
        self.session, self.folder, self.history = session, folder, History(session)
        folder.mkdir(exist_ok=True)
        for old in folder.glob("*.png"):
            old.unlink()

    def html(self) -> str:
        """Return the whole page."""
        parts = [self._head(), *(self._phase(p) for p in sorted(set(self.session.phase.tolist()) - {-1}))]
        parts += [self._usable(), interruptions(self.history), self._reward(), self._timing()]
        parts += [self._faults(), self._fold()]
        title = escape(self.session.name or "session")
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            f'<meta name="viewport" content="width=device-width"><style>{CSS}</style></head>\n<body>\n'
            + "\n".join(parts)
            + "\n</body></html>\n"
        )

    def _figure(self, name: str, figure: Figure | None, caption: str) -> str:
        if figure is None:
            return ""
        memory = io.BytesIO()
        figure.savefig(memory, format="png")
        (self.folder / f"{name}.png").write_bytes(memory.getvalue())
        text = escape(caption)
        return f'<figure><img src="{_uri(memory.getvalue())}" alt="{text}"><figcaption>{text}</figcaption></figure>'

    # --- sections

    def _head(self) -> str:
        s = self.session
        date = moment(s.start_utc_ns) if s.start_utc_ns != NO_TIME else "date not in the log"
        who = ", ".join(escape(v) for k in ("id", "species", "area") if (v := str(s.subject.get(k, ""))))
        said = s.config.get("experiment", {})
        people = [*said.get("experimenter", ()), *(said.get(k, "") for k in ("lab", "institution"))]
        facts = ["; ".join(p for p in people if p), f"protocol {said['protocol']}" if said.get("protocol") else ""]
        experiment = " · ".join(escape(fact) for fact in facts if fact)
        shown, usable, late = len(s.presentation), int(s.usable.sum()), int(s.late_flips.sum())
        share = f" ({usable / shown:.1%})" if shown else ""
        verdict = [
            counted(shown, "presentation"),
            f"{usable:,} usable{share}",
            counted(len(s.faults), "fault"),
            f"{counted(late, 'late flip')} of {s.flips:,}",
        ]
        if unrecorded := len(self.history.unrecorded):
            verdict.append(may_have_been_seen(unrecorded).rstrip("."))
        good = s.closed_in_order and shown > 0 and usable >= 0.95 * shown and not s.faults and not late
        return (
            f"<h1>{escape(s.name or 'session without a name')}</h1>"
            f'<p class="facts">Subject {who or "not named"} · {date} · '
            f"{images_time(self.history)}{'<br>' + experiment if experiment else ''}</p>"
            f"{banners(s)}"
            f'<p class="verdict{"" if good else " warn"}"><b>{" · ".join(verdict)}</b><br>'
            f"{end_words(s, self.history)}</p>"
        )

    def _phase(self, phase: int) -> str:
        s = self.session
        agent, unit = s.agents.get(phase, "not known"), s.unit_of(phase)
        here = s.phase == phase
        several = [of for _, of, _ in each_target(s, phase) if of]
        evolves = bool((here & (s.role == "candidate")).any()) and agent != "present"
        name = ", ".join(several) or (s.units[unit] if s.units else "no unit")
        title = f"Phase {phase + 1}: {escape(agent)}" + (f" for {escape(name)}" if evolves else "")
        title = f"Phase {phase + 1}: confirmation" if agent == "confirm" else title
        blanks = int((here & (s.role == "blank")).sum())
        images = len(set(s.stimulus_id[here & (s.role != "blank")]))
        facts = f"{counted(int(here.sum()), 'presentation')}: {counted(images, 'image')}, {counted(blanks, 'blank')}"
        fallback = int((here & (s.role == "fallback")).sum())
        if fallback:
            facts += f"; {fallback} of them fallbacks, because the next proposal was late"
        out = f'<h2 id="phase-{phase + 1}">{title}</h2><p class="facts">{facts}.</p>'
        if not (here & s.usable).any():
            return (
                out + "<p>No usable response in this phase: nothing can be said about the neurons. See below why.</p>"
            )
        if agent == "confirm":
            return out + confirmation.section(s, phase, self._thumbnail, self._figure)
        if agent == "control":
            return out + control.section(s, phase, self._figure)
        if agent == "inception":
            return out + inception.section(s, phase, self._figure)
        if agent == "revisit":
            return out + revisit.section(s, phase, self._figure)
        if agent == "map":
            return out + first_minutes.mapping(s, phase, self._figure)  # each frame came once: no raster of one
        if not evolves:
            best, words = first_minutes.best_unit(s, phase) if agent == "screen" else (s, "")
            out += first_minutes.screening(s, phase) if agent == "screen" else ""
            return out + self._tuning(phase) + words + self._raster(phase, "", best)
        out += evolution.claimed(s, phase)
        marks, online = self.history.marks(phase), chosen_online(s, phase)
        for part, of, about in each_target(s, phase):
            out += evolution.section(part, of, about, phase, self._figure, marks, online)
            out += self._raster(phase, part, about) if about.about(phase) in ("", *s.units) else ""
        return out

    def _raster(self, phase: int, part: str, session: Session) -> str:
        if self.session.measure != "spikes":
            caption = (
                "Mean ± standard error of the trace around the image onset, from the values as they came (less "
                "neuropil where configured), as a change from before the onset; counts as they are. Scores differ: "
                "they track a baseline."
            )
            drawn = self._figure(f"traces_{phase}{part}", traces(session, phase), caption)
            return drawn or "<p>No trace is drawn: no values around these onsets.</p>"
        return self._figure(
            f"raster_{phase}{part}",
            figures.raster(session, phase),
            f"Spikes around the image onset, and their rate in bins of {figures.BIN_S * 1e3:.0f} ms. Onsets are "
            "photodiode edges where there is one. The best and the weakest of a set are those of these very "
            "presentations: chance alone parts them too.",
        )

    def _tuning(self, phase: int) -> str:
        s = self.session
        here = s.usable & (s.phase == phase) & (s.role != "blank")
        ids = [str(i) for i in np.unique(s.stimulus_id[here])]
        if not ids:
            return "<p>Only blanks have a usable response.</p>"
        mean = np.array([[mean_sem(s.rates(u, phase=phase, stimulus=i)) for u in range(len(s.units))] for i in ids])
        spread = np.nan_to_num(mean[:, :, 0].max(axis=0) - mean[:, :, 0].min(axis=0), nan=-1.0)
        units = sorted(np.argsort(-spread, kind="stable")[:MOST_UNITS].tolist())
        order = np.argsort(-np.nan_to_num(mean[:, units, 0]).mean(axis=1), kind="stable")
        rows = []
        for k in order[:MOST_IMAGES]:
            count = int((here & (s.stimulus_id == ids[k])).sum())
            rates = [self._with_error(*mean[k, u]) for u in units]
            rows.append([self._thumbnail(ids[k]), escape(ids[k]), str(count), *rates])
        blank = [mean_sem(s.rates(u, phase=phase, role="blank")) for u in units]
        if np.isfinite(blank[0][0]):
            count = int((s.usable & (s.phase == phase) & (s.role == "blank")).sum())
            rows.append(["", "blank screen", str(count), *(self._with_error(*b) for b in blank)])
        left_out = []
        if len(ids) > MOST_IMAGES:
            left_out.append(f"the {MOST_IMAGES} strongest of {len(ids)} images")
        if len(s.units) > MOST_UNITS:
            left_out.append(f"the {MOST_UNITS} units that differ most between images, of {len(s.units)}")
        note = f"<p>Shown: {' and '.join(left_out)}; all are in session.h5.</p>" if left_out else ""
        head = ["", "image", "usable", *(escape(s.units[u]) for u in units)]
        curves = self._figure(
            f"tuning_{phase}",
            figures.tuning(s, phase, units),
            f"Mean rate of each image in the response window{evolution.subtracted(s)}, ± standard error; images ranked "
            "for each unit. Ranking itself makes the curves fall, also without tuning.",
        )
        table = as_table(head, rows, frozenset(range(2, 3 + len(units))))
        of = f"Rates in {s.rate_unit}{evolution.subtracted(s)}, mean ± standard error"
        return f"{curves}<details><summary>All images</summary><p>{of}.</p>{table}{note}</details>"

    def _with_error(self, mean: float, error: float) -> str:
        digits = 1 if self.session.measure == "spikes" else 3
        return f"{mean:.{digits}f} ± {error:.{digits}f}" if np.isfinite(error) else f"{mean:.{digits}f}"

    def _thumbnail(self, stimulus: str) -> str:
        pixels = self.session.picture(stimulus)
        if pixels is None:
            return "no frame"
        step = max(1, min(pixels.shape[:2]) // 112)
        memory = io.BytesIO()
        imsave(memory, np.ascontiguousarray(pixels[::step, ::step]), format="png")
        return f'<img src="{_uri(memory.getvalue())}" alt="{escape(stimulus)}">'

    def _usable(self) -> str:
        s = self.session
        shown = len(s.presentation)
        out = "<h2>Responses</h2>"
        if not shown:
            return out + "<p>No image was shown.</p>"
        alike: dict[str, list[str]] = {}  # reasons that differ in their numbers only are counted together
        for reason in s.reason[~s.usable]:
            alike.setdefault(re.sub(r"[0-9.]+", "#", reason), []).append(str(reason) or "no reason given")
        rows = [["usable", f"{int(s.usable.sum()):,}", f"{s.usable.mean():.1%}"]]
        for same in sorted(alike.values(), key=len, reverse=True):
            words = same[0] + (" (and alike)" if len(set(same)) > 1 else "")
            rows.append([f"not usable: {escape(words)}", f"{len(same):,}", f"{len(same) / shown:.1%}"])
        if not s.usable.any():
            out += "<p><b>No response is usable.</b> Look at the faults below and at the device.</p>"
        covered = s.coverage[s.answered & s.complete]
        if len(covered):
            full = float(np.mean(covered == 1))
            out += f"<p>{coverage_words(full, float(covered.mean()))}"
            left_out = self._not_shown()
            out += f" Left out here: {left_out}.</p>" if left_out else "</p>"
        return out + as_table(["", "presentations", "share"], rows, frozenset({1, 2}))

    def _not_shown(self) -> str:
        """Count the presentations that were incomplete on the screen, whatever the data."""
        refused, cut = int(self.session.refused.sum()), int((~self.session.complete & ~self.session.refused).sum())
        words = []
        if refused:
            words.append(f"{counted(refused, 'presentation')} of background in place of a frame that was refused")
        if cut:
            words.append(f"{counted(cut, 'presentation')} cut short or drawn otherwise than asked")
        return " and ".join(words)

    def _reward(self) -> str:
        limits = self.session.config.get("reward")
        if not limits:
            return ""
        rewards = self.session.rewards()
        rows = []
        for what, name in REWARDS.items():
            chosen = [r for r in rewards if r.what == what]
            volume = f"{sum(r.volume_ul for r in chosen) / 1000:.3f}"
            rows.append([name, f"{len(chosen):,}", volume, "; ".join(escape(w) for w in _most_frequent(chosen))])
        total = sum(r.volume_ul for r in rewards) / 1000
        return (
            f"<h2>Reward</h2><p>{counted(len(rewards), 'reward')} asked for, <b>{total:.3f} mL</b> of at most "
            f"{limits['max_session_ml']:g} mL, by the calibration of {limits['ul_per_s']:g} uL per s of open valve. "
            f"Limits: {limits['max_pulse_s']:g} s in a pulse, {limits['max_per_minute_s']:g} s in any minute.</p>"
            + as_table(["", "rewards", "mL", "most frequent reasons"], rows, frozenset({1, 2}))
        )

    def _timing(self) -> str:
        s = self.session
        if not len(s.presentation):
            return ""
        drawn: list[tuple[str, Callable[[Session], Figure | None], str]] = [
            (
                "onset",
                figures.onset,
                "From the flip stamp to the light on the photodiode, device time mapped to the host clock. "
                + _constant_error(s.clock_methods),
            ),
            (
                "lateness",
                figures.lateness,
                "Onset flips against the times planned for them. The count above is of all flips.",
            ),
            ("clock", figures.clock, _clock_caption({d.method for d in s.drifts})),
        ]
        out = "<h2>Timing</h2>"
        out += '<div class="row">' + "".join(self._figure(n, make(s), caption) for n, make, caption in drawn) + "</div>"
        rows = []
        taken = {"photodiode": "photodiode edge", "flip": "flip stamp and measured lag", "none": "none"}
        for source, name in taken.items():
            chosen = s.answered & (s.onset_source == source)
            if chosen.any():
                bounds = [bound(values[chosen]) for values in (s.uncertainty_ns, s.host_uncertainty_ns)]
                rows.append([name, f"{int(chosen.sum()):,}", *bounds])
        heads = ["onset taken from", "presentations", "uncertainty in device time", "uncertainty on the host clock"]
        out += as_table(heads, rows, frozenset({1, 2, 3}))
        out += "<p>Uncertainties are 99 % bounds, median / largest. Responses are counted in device time.</p>"
        drifts = [
            f"Device {escape(d.source)}, run {d.run}, counted {abs(d.ppm):.0f} ppm "
            f"{'faster' if d.ppm > 0 else 'slower'} than by the host clock, known to ±{bound_words(d.known_to_ppm)} "
            f"ppm (99 %; {counted(sum(d.methods.values()), 'pair')} by {' and '.join(_METHODS[m] for m in d.methods)} "
            f"over {d.minutes[-1]:.1f} min)."
            for d in s.drifts
        ]
        words = drifts or ["The log has too few clock pairs, or over too short a time, to state the drift of a device."]
        if s.runs_without_drift:
            words.append(f"Without a drift: {escape('; '.join(s.runs_without_drift))}.")
        dropped = counted(int(s.dropped_frames.sum()), "dropped frame")
        words.append(f"{dropped}; {self._not_shown() or 'no presentation cut short'}.")
        return out + f"<p>{' '.join(words)} All times are on the host's monotonic clock; samples on their device's.</p>"

    def _faults(self) -> str:
        s = self.session
        out = "<h2>Faults</h2>"
        if not s.faults:
            return out + "<p>None.</p>"
        first = {f.what: f for f in reversed(s.faults)}
        rows = []
        for what in dict.fromkeys(f.what for f in s.faults):
            f, count = first[what], sum(g.what == what for g in s.faults)
            when = minutes(f.receipt_host_ns - s.start_host_ns) if s.start_host_ns != NO_TIME else "?"
            cells = (what, str(count), when, f.sender, f.detail, f.done)
            rows.append([escape(c) for c in cells])
        head = ["what", "times", "first at (min:s)", "said by", "for example", "what was done"]
        return out + as_table(head, rows, frozenset({1, 2}))

    def _fold(self) -> str:
        s = self.session
        commit = (
            f"commit {s.commit}{' with local changes' if s.dirty == 'true' else ''}" if s.commit else "no git commit"
        )
        made = ", ".join(f"{k} {v}" for k, v in s.versions.items())
        return (
            f"<details><summary>Config, verbatim</summary><pre>{escape(s.config_yaml)}</pre></details>"
            f"<details><summary>Versions</summary><p>{escape(commit)}; {escape(made)}</p></details>"
        )
