"""The tables of `session.h5` that hold what the devices said and were told, and the responses made of it.

Part of `rig.view.tables`. No I/O, no HDF5.
"""

from rig.view.columns import (
    ARRIVAL,
    DEVICE,
    HOST,
    NO_TIME,
    PROPOSAL,
    RECEIPT,
    ROLE,
    RUN,
    SEQ,
    SLOT,
    SOURCE,
    Column,
    Schema,
    host,
    number,
    sample,
    text,
)

NAN = float("nan")

DEVICE_SCHEMAS: tuple[Schema, ...] = (
    Schema(
        "responses",
        "One row per presentation: what the units did in its response window",
        (
            SEQ,
            number("presentation", "Number of the presentation"),
            PROPOSAL,
            SLOT,
            ROLE,
            text("stimulus_id", "Identity of the image"),
            text("source", "Device that was scored"),
            number("run", "Acquisition run whose samples the windows count in, -1 if unknown", -1),
            text("clock", "Name of the clock of onset_sample and of the window"),
            Column("usable", "bool", "1", "Whether the response counts"),
            text("reason", 'Why it does not count, "" if it does'),
            Column("curable", "bool", "1", "Whether showing the image again may cure that"),
            text("onset_source", "photodiode, flip (plus measured lag) or none"),
            sample("onset_sample", "Onset of the image", NO_TIME),
            host("onset_host_ns", "The same onset, mapped to the host clock", NO_TIME),
            host("onset_uncertainty_ns", "Bound on the error of onset_sample, as time, 99 %", NO_TIME),
            host("onset_host_uncertainty_ns", "Bound on the error of onset_host_ns, 99 %", NO_TIME),
            host("flip_to_edge_ns", "Photodiode edge (mapped to the host clock) minus flip stamp", NO_TIME),
            sample("window_start_sample", "First sample of the response window", NO_TIME),
            sample("window_end_sample", "First sample after the response window", NO_TIME),
            Column("coverage", "f8", "1", "Fraction of response and baseline window known to be complete, 0 to 1"),
            number("lost_messages", "Messages of the device missing in the windows"),
            text("measure", "What count sums: spikes, counts, deconvolved (events, dF/F), or dff: a mean dF/F"),
            text("behaviour", "Mean of each behaviour channel from onset to window end", "JSON"),
            Column("count", "f8", "as in measure", "Sum over the window; dff: mean", per_unit=True),
            number("baseline_n", "Presentations that baseline averages, -1 where nothing is subtracted", -1),
            Column("baseline", "f8", "as in measure", "What the baseline expects count to be", per_unit=True),
            Column("rate_hz", "f8", "per s", "(count - baseline) / window length; dff: no length", per_unit=True),
        ),
    ),
    Schema(
        "sources",
        "One row per device",
        (text("name", "Name of the device in the config"),),
    ),
    Schema(
        "units",
        "One row per unit (sorted unit, multi-unit channel or region of interest) of a device",
        (text("name", "Name of the unit, as the device gives it"), SOURCE),
    ),
    Schema(
        "spikes",
        "One row per spike, in order of arrival",
        (number("unit", "Row of /units", kind="i4"), sample("sample", "When it was"), ARRIVAL, RUN, SOURCE),
    ),
    Schema(
        "edges",
        "One row per edge on a digital input of a device, in order of arrival",
        (
            number("line", "Input line, from 0", kind="u1"),
            number("state", "1 rising, 0 falling", kind="u1"),
            sample("sample", "When it was"),
            ARRIVAL,
            RUN,
            SOURCE,
        ),
    ),
    Schema(
        "continuity",
        "How complete a device's data are: one row at each change, and about one a second",
        (
            RECEIPT,
            text("state", "connecting, online, streaming, stalled or offline"),
            Column("sample_rate_hz", "f8", "samples/s", "Nominal rate that the device states"),
            sample("watermark_sample", "Every event before it was delivered, or lies in a gap"),
            number("messages", "Messages received in this run so far"),
            number("lost_messages", "Messages known to be lost in this run so far"),
            RUN,
            SOURCE,
        ),
    ),
    Schema(
        "continuity/gaps",
        "One row per stretch of a device's samples that may miss data",
        (
            RECEIPT,
            sample("first_sample", "First sample of the gap"),
            sample("end_sample", "First sample after the gap"),
            number("messages", "Messages missing in it, 0 where unknown"),
            RUN,
            SOURCE,
        ),
    ),
    Schema(
        "unit_lists",
        "One row per list of units that a device sent; its units stand in /unit_lists/units",
        (
            SEQ,
            SOURCE,
            RUN,
            number("list_number", "Number of the list in the run; blocks of traces name it"),
            sample("from_sample", "From when on the list holds"),
            text("measure", "What one value of a unit is: spikes, counts or fluorescence"),
            number("first", "First row of the list in /unit_lists/units"),
            number("count", "Number of its units"),
        ),
    ),
    Schema(
        "unit_lists/units",
        "One row per unit of each list, in the list's order",
        (
            number("unit", "Row of /units", kind="i4"),
            Column("scan_offset_s", "f8", "s", "When within a frame the unit is scanned; 0 where all at once"),
        ),
    ),
    Schema(
        "traces",
        "One row per stretch of frames or bins of one device, run and unit list; its data in the group named in path",
        (SOURCE, RUN, number("list_number", "The list of units, see /unit_lists"), text("path", "Group in this file")),
    ),
    Schema(
        "behaviour",
        "One row per stretch of behaviour of one device, run and set of channels; its data in the group named in path",
        (SOURCE, RUN, text("channels", "Names of the channels", "JSON"), text("path", "Group in this file")),
    ),
    Schema(
        "markers",
        "One row per text that a device or another program sent",
        (SEQ, SOURCE, RUN, sample("sample", "When it was", NO_TIME), ARRIVAL, text("text", "The marker")),
    ),
    Schema(
        "clocks",
        "One row per raw pair of a device's sample counter and the host clock",
        (
            Column("device_sample", "f8", "device sample", "The device's side of the pair", DEVICE),
            host("pair_host_ns", "The host's side: of arrival, of the middle of the round trip, or of the edge"),
            text("method", "arrival (late by an unknown delay), round_trip, edge or barcode"),
            Column("round_trip_ns", "i8", "ns", "Time from request to reply, for round_trip", HOST, NO_TIME),
            Column("uncertainty_ns", "i8", "ns", "Bound on the error, for edge and barcode", HOST, NO_TIME),
            RUN,
            SOURCE,
        ),
    ),
    Schema(
        "barcodes",
        "One row per barcode that this host sent on a line; what devices made of them is in /clocks",
        (
            SEQ,
            text("output", "Name of the output in the config"),
            number("number", "Number that was sent"),
            host("sent_host_ns", "When its first edge went out"),
            Column("uncertainty_ns", "i8", "ns", "Bound on the error of that", HOST),
        ),
    ),
    Schema(
        "outputs/requests",
        "One row per reward, marker or message that was to be put out",
        (
            SEQ,
            RECEIPT,
            text("request", "Identity of the request"),
            text("output", "Name of the output in the config"),
            text("what", "reward, marker or message"),
            text("text", "Marker or message"),
            Column("duration_s", "f8", "s", "Length of the reward pulse", missing=NAN),
            host("event_host_ns", "What the marker marks", NO_TIME),
            number("trial", "Trial it belongs to, -1 for none", -1),
            number("presentation", "Presentation it belongs to, -1 for none", -1),
        ),
    ),
    Schema(
        "outputs/done",
        "One row per request that was confirmed or refused; a request without one was not confirmed",
        (
            SEQ,
            RECEIPT,
            text("request", "Identity of the request, see /outputs/requests"),
            text("output", "Name of the output in the config"),
            text("what", "reward, marker or message"),
            Column("done", "bool", "1", "Whether it was put out"),
            text("reason", 'Why it was refused or not confirmed, "" if done'),
            host("started_host_ns", "Before the device was told", NO_TIME),
            host("confirmed_host_ns", "When the device or watchdog had confirmed it", NO_TIME),
            Column("duration_s", "f8", "s", "Length of the pulse as it was timed", missing=NAN),
            text("timed_by", "device, watchdog or none"),
            Column("volume_ul", "f8", "uL", "Volume of this reward by calibration", missing=NAN),
            Column("session_volume_ul", "f8", "uL", "All rewards of the session so far", missing=NAN),
        ),
    ),
)

RESPONSE_UNITS = Column("units", "text", "text", "Name of each column of count, baseline and rate_hz")

# Columns of the groups below /traces and /behaviour. Their rows are frames, bins or samples; see `rig.view.sheets`.
FRAME = number("frame", "The device's own counter; a hole in it is a lost frame")
BEGAN = sample("sample", "When the frame, bin or sample began")
UNIT_NAMES = text("units", "Name of each column of values and neuropil")
SCAN_OFFSET = Column("scan_offset_s", "f8", "s", "When within a frame each unit is scanned")
VALUES = Column("values", "f4", "as the device gives it", "Fluorescence or counts, axes (row, unit); NaN: none")
NEUROPIL = Column("neuropil", "f4", "as the device gives it", "Raw fluorescence around each unit, axes (row, unit)")
MOTION = Column("motion", "f4", "um or pixels", "Motion of each frame, axes (row, xyz); NaN: not sent")
CHANNELS = text("channels", "Name of each column of values, with its unit")
BEHAVIOUR = Column("values", "f8", "as in channels", "Behaviour, axes (row, channel); NaN: the device saw nothing")
