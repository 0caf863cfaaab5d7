"""Events in an NWB file: flips, TTL edges, markers, rewards and other outputs, faults, what is known of each."""

import numpy as np
from pynwb import NWBFile

from rig.export.csv_tables import fault_fields
from rig.export.nwb_tables import events
from rig.export.presentations import Field, Presentations
from rig.export.session_file import SessionView
from rig.export.times import Clocks
from rig.view.columns import NO_TIME


def add_events(nwb: NWBFile, view: SessionView, clocks: Clocks, shown: Presentations) -> None:
    """Add every kind of event of which the session has one."""
    _edges(nwb, view, clocks)
    _flips(nwb, view, clocks, shown)
    _markers(nwb, view, clocks)
    _outputs(nwb, view, clocks)
    _barcodes(nwb, view, clocks)
    _pauses(nwb, view, clocks)
    if view.rows("faults"):
        time, *rest = fault_fields(view, clocks)
        what = "Everything that was lost, late or wrong, and what the program did about it, by time of receipt"
        nwb.add_events_table(events("faults", what, "stimloop", time.values, _told(rest)))


def _told(fields: list[Field]) -> list[Field]:
    """Return the fields without those of which nothing is known."""
    return [f for f in fields if not (isinstance(f.values, np.ndarray) and f.values.dtype.kind == "f"
                                      and np.isnan(f.values).all())]  # fmt: skip


def _edges(nwb: NWBFile, view: SessionView, clocks: Clocks) -> None:
    if not view.rows("edges"):
        return
    names = ("source", "run", "sample", "arrival_host_ns", "line", "state")
    column = {n: view.column(f"edges/{n}") for n in names}
    times = clocks.of_rows(column["source"], column["run"], column["sample"], column["arrival_host_ns"])
    photodiode = {s["name"]: s.get("photodiode_line") for s in view.config["sources"]}
    sources = [view.sources[k] for k in column["source"]]
    lit = np.array([photodiode.get(s) == line for s, line in zip(sources, column["line"].tolist(), strict=True)])
    fields = [
        Field("line", "1", "Digital input, from 0", column["line"]),
        Field("state", "1", "1 rising, 0 falling", column["state"]),
        Field("photodiode", "1", "Whether this is the photodiode's line", lit),
        Field("source", "", "Device", sources),
        Field("sample", "device sample", "Raw sample of the edge", column["sample"]),
    ]
    what = "Edges on the digital inputs of the devices; times through the two-sided clock refit"
    nwb.add_events_table(events("ttl_edges", what, "acquisition systems", times, fields))


def _flips(nwb: NWBFile, view: SessionView, clocks: Clocks, shown: Presentations) -> None:
    if not view.rows("flips"):
        return
    number, host = view.column("flips/presentation"), view.column("flips/flip_host_ns")
    seq_of = dict(zip(shown.of_shown("presentation").tolist(), shown.of_shown("seq").tolist(), strict=True))
    seq = np.array([seq_of.get(n, 0) for n in number.tolist()])
    fields = [Field("presentation", "1", "Presentation during which it was", number)]
    what = "Stamps after the screen's flips, from onset to offset of each presentation; light comes display.lag_s later"
    nwb.add_events_table(events("flips", what, "stimloop", clocks.host.seconds(host, seq), fields))


def _markers(nwb: NWBFile, view: SessionView, clocks: Clocks) -> None:
    if not view.rows("markers"):
        return
    names = ("source", "run", "sample", "arrival_host_ns")
    column = {n: view.column(f"markers/{n}") for n in names}
    times = clocks.of_rows(column["source"], column["run"], column["sample"], column["arrival_host_ns"])
    fields = [
        Field("text", "", "The marker, as it came", view.texts("markers/text")),
        Field("source", "", "Device or program that sent it", [view.sources[k] for k in column["source"]]),
        Field("stamped", "1", "Whether its sender gave a time; else this is its arrival", column["sample"] != NO_TIME),
    ]
    what = "Texts that devices and other programs sent"
    nwb.add_events_table(events("markers", what, "devices", times, fields))


def _barcodes(nwb: NWBFile, view: SessionView, clocks: Clocks) -> None:
    if not view.rows("barcodes"):
        return
    times = clocks.host.seconds(view.column("barcodes/sent_host_ns"), view.column("barcodes/seq"))
    fields = [
        Field("number", "1", "Number that was sent", view.column("barcodes/number")),
        Field("output", "", "Output of the config", view.texts("barcodes/output")),
        Field("uncertainty_s", "s", "Bound on the error of the time", view.column("barcodes/uncertainty_ns") / 1e9),
    ]
    what = "Barcodes that this computer sent on a line to the devices; the time is that of the first edge"
    nwb.add_events_table(events("barcodes", what, "stimloop", times, fields))


def _pauses(nwb: NWBFile, view: SessionView, clocks: Clocks) -> None:
    if not view.rows("pauses"):
        return
    seq = view.column("pauses/seq")
    fields = [
        Field("paused", "1", "Whether nothing more was shown from here on; False: it goes on",
              view.column("pauses/paused")),
        Field("reason", "", "Why, and what cures it", view.texts("pauses/reason")),
        Field("since_time", "s", "Since when the reason held",
              clocks.host.seconds(view.column("pauses/since_host_ns"), seq)),
    ]  # fmt: skip
    what = "Whenever the session was told to hold between trials, and whenever that was lifted"
    times = clocks.host.seconds(view.column("pauses/receipt_host_ns"), seq)
    nwb.add_events_table(events("pauses", what, "stimloop", times, fields))


def _outputs(nwb: NWBFile, view: SessionView, clocks: Clocks) -> None:
    """Add rewards, markers and messages that were asked for, with what became of each."""
    if not view.rows("outputs/requests"):
        return
    host = clocks.host
    done = {r: k for k, r in enumerate(view.texts("outputs/done/request"))}
    at = np.array([done.get(r, -1) for r in view.texts("outputs/requests/request")], dtype=np.int64)
    there = at >= 0
    count = len(at)

    def answer(column: str, missing: float) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
        out = np.full(count, missing, dtype=np.float64)
        out[there] = view.column(f"outputs/done/{column}")[at[there]]
        return out

    def texts(column: str, missing: str) -> list[str]:
        known = view.texts(f"outputs/done/{column}")
        return [known[k] if k >= 0 else missing for k in at]

    stamps = {}
    for name in ("started_host_ns", "confirmed_host_ns"):
        stamp = np.full(count, NO_TIME, np.int64)
        stamp[there] = view.column(f"outputs/done/{name}")[at[there]]
        seq = np.zeros(count, np.int64)
        seq[there] = view.column("outputs/done/seq")[at[there]]
        stamps[name] = host.seconds(stamp, seq)
    asked = host.seconds(view.column("outputs/requests/receipt_host_ns"), view.column("outputs/requests/seq"))
    times = np.where(np.isfinite(stamps["started_host_ns"]), stamps["started_host_ns"], asked)
    fields = [
        Field("what", "", "reward, marker or message", view.texts("outputs/requests/what")),
        Field("output", "", "Output of the config", view.texts("outputs/requests/output")),
        Field("text", "", "Marker or message", view.texts("outputs/requests/text")),
        Field("done", "1", "Whether it is known to have been put out", answer("done", 0.0) > 0),
        Field("reason", "", "Why not", texts("reason", "no answer in the log")),
        Field("pulse_s", "s", "Length of the pulse as it was timed", answer("duration_s", np.nan)),
        Field("timed_by", "", "device, watchdog or none", texts("timed_by", "none")),
        Field("volume_ul", "uL", "Volume by calibration", answer("volume_ul", np.nan)),
        Field("asked_time", "s", "When it was asked for", asked),
        Field("confirmed_time", "s", "When the device or watchdog had confirmed it", stamps["confirmed_host_ns"]),
        Field("trial", "1", "Trial, -1 for none", view.column("outputs/requests/trial")),
        Field("presentation", "1", "Presentation, -1 for none", view.column("outputs/requests/presentation")),
    ]
    what = "Rewards, markers and messages; the time is when the device was told, or the request if it was not"
    nwb.add_events_table(events("outputs", what, "stimloop", times, _told(fields)))
