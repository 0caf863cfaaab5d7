"""Fluorescence, binned counts and behaviour in an NWB file, streamed from `session.h5` while the file is written."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from hdmf.common import DynamicTableRegion
from pynwb import NWBFile, TimeSeries
from pynwb.behavior import BehavioralTimeSeries, EyeTracking, PupilTracking, SpatialSeries
from pynwb.ophys import (
    Fluorescence,
    ImageSegmentation,
    OpticalChannel,
    PlaneSegmentation,
    RoiResponseSeries,
)

from rig.export.nwb_tables import columns, streamed, timing
from rig.export.presentations import Field
from rig.export.session_file import SessionView
from rig.export.times import BootsInOrder, Clocks

F64 = npt.NDArray[np.float64]
NO_MASK = np.dtype([("x", "u4"), ("y", "u4"), ("weight", "f4")])
# The end of a channel's name is its unit: what NWB calls it, and the factor to it.
UNITS = {
    "_deg": ("degrees", 1.0),
    "_mm": ("meters", 1e-3),
    "_cm": ("meters", 1e-2),
    "_um": ("meters", 1e-6),
    "_cm_s": ("m/s", 1e-2),
    "_m_s": ("m/s", 1.0),
    "_mm_s": ("m/s", 1e-3),
    "_deg_s": ("degrees/s", 1.0),
    "_px": ("pixels", 1.0),
    "_mm2": ("m^2", 1e-6),
    "_v": ("volts", 1.0),
    "_hz": ("Hz", 1.0),
}


def unit_of(channel: str) -> tuple[str, float]:
    """Return (unit, factor to it) of a behaviour channel by the end of its name; the longest end that fits."""
    ends = [end for end in UNITS if channel.lower().endswith(end)]
    return UNITS[max(ends, key=len)] if ends else ("a.u.", 1.0)


def reader(dataset: Any, column: int | list[int] | None = None) -> Callable[[int, int], npt.NDArray[Any]]:
    """Return a function that reads rows of a dataset, all its columns or some."""

    def read(first: int, end: int) -> npt.NDArray[Any]:
        return np.asarray(dataset[first:end] if column is None else dataset[first:end, column])

    return read


def _times(view: SessionView, clocks: Clocks, path: str, boots: BootsInOrder) -> F64:
    """Return the session times of the rows of a sheet."""
    group = view.file[path]
    sample, arrival = group["sample"][:], group["arrival_host_ns"][:]
    source = np.full(len(sample), view.sources.index(str(group.attrs["source"])), np.int64)
    run = np.full(len(sample), int(group.attrs["run"]), np.int64)
    return clocks.of_rows(source, run, sample, arrival, clocks.boots(arrival, boots))


def _measures(view: SessionView) -> dict[tuple[int, int, int], str]:
    names = ("source", "run", "list_number")
    keys = zip(*(view.column(f"unit_lists/{n}").tolist() for n in names), strict=True)
    return dict(zip(keys, view.texts("unit_lists/measure"), strict=True))


def imaging_sources(view: SessionView) -> list[int]:
    """Return the devices that sent fluorescence or counts: their units are no spiking units."""
    return sorted({int(s) for s in view.column("traces/source")})


def add_traces(nwb: NWBFile, view: SessionView, clocks: Clocks) -> set[str]:
    """Add fluorescence and binned counts; return the modalities that the file got: "ophys", "ecephys"."""
    measures, found = _measures(view), set()
    rois: dict[int, PlaneSegmentation] = {}
    stretches = zip(
        *(view.column(f"traces/{c}").tolist() for c in ("source", "run", "list_number")),
        view.texts("traces/path"),
        strict=True,
    )
    for source, run, number, path in stretches:
        group = view.file[path]
        name = path.removeprefix("/traces/")
        times = _times(view, clocks, path, BootsInOrder(clocks.host))
        order = timing(times)
        if measures.get((source, run, number), "fluorescence") == "counts":
            found.add("ecephys")
            module = nwb.processing.get("ecephys") or nwb.create_processing_module("ecephys", "Binned spike counts")
            module.add(_counts(group, name, order))
            continue
        found.add("ophys")
        if source not in rois:
            rois[source] = _segmentation(nwb, view, source)
        _add_fluorescence(nwb, view, rois[source], source, group, name, order)
    return found


def _counts(group: Any, name: str, order: dict[str, Any]) -> TimeSeries:
    data = group["values"]
    units = ", ".join(group["units"].asstr()[:])
    return TimeSeries(
        name=f"counts_{name}",
        description=f"Spike counts in bins, one column per unit; a bin begins at its time. Columns: {units}",
        data=streamed(data.shape, data.dtype, reader(data)),
        unit="counts",
        **order,
    )


def _segmentation(nwb: NWBFile, view: SessionView, source: int) -> PlaneSegmentation:
    """Add the imaging plane and the table of ROIs of a device."""
    device = view.sources[source]
    said = view.config.get("recording", {}).get(device, {})
    area = said.get("area") or view.config.get("subject", {}).get("area") or "unknown"
    depth = said.get("depth_um")
    parts = [said.get("plane"), f"{depth:g} um below the pia" if depth is not None else "", said.get("lens")]
    unknown = [f"{what} not given (NaN)" for what, key in (("excitation", "excitation_nm"), ("emission", "emission_nm"))
               if said.get(key) is None]  # fmt: skip
    channel = OpticalChannel(
        name=f"{device}_channel",
        description=f"Emission of {said.get('indicator') or 'the indicator'}",
        emission_lambda=float(said.get("emission_nm") or np.nan),
    )
    plane = nwb.create_imaging_plane(
        name=f"{device}_plane",
        optical_channel=channel,
        description="; ".join([p for p in parts if p] + unknown) or f"plane that {device} images",
        device=nwb.devices[device],
        excitation_lambda=float(said.get("excitation_nm") or np.nan),
        indicator=said.get("indicator") or "unknown",
        location=area,
        imaging_rate=said.get("imaging_hz"),
    )
    module = nwb.processing.get("ophys") or nwb.create_processing_module("ophys", "Regions of interest, traces")
    rows = np.flatnonzero(view.column("units/source") == source)
    names = view.texts("units/name")
    none = np.zeros(len(rows), NO_MASK)
    fields = [
        Field("pixel_mask", "", "The log holds no masks: one pixel of weight 0 stands for each", none,
              np.arange(1, len(rows) + 1, dtype=np.uint64)),
        Field("roi_name", "", "Name of the region, as the device gives it", [names[k] for k in rows]),
    ]  # fmt: skip
    segmentation = PlaneSegmentation(
        name=f"{device}_rois",
        description=f"Regions of interest that {device} sent; their masks stay with the imaging program",
        imaging_plane=plane,
        columns=columns(fields),
    )
    if "ImageSegmentation" not in module.data_interfaces:
        module.add(ImageSegmentation())
    module["ImageSegmentation"].add_plane_segmentation(segmentation)
    return segmentation


def _add_fluorescence(
    nwb: NWBFile,
    view: SessionView,
    rois: PlaneSegmentation,
    source: int,
    group: Any,
    name: str,
    order: dict[str, Any],
) -> None:
    module = nwb.processing["ophys"]
    if "Fluorescence" not in module.data_interfaces:
        module.add(Fluorescence())
    row_of = {str(n): k for k, n in enumerate(rois["roi_name"].data)}
    region = [row_of.get(str(unit), 0) for unit in group["units"].asstr()[:]]
    offsets = group["scan_offset_s"][:]
    scanned = f"a region is scanned up to {np.nanmax(offsets):.4g} s after it" if np.nanmax(offsets) > 0 else "at it"
    what = {"values": "Raw fluorescence", "neuropil": "Raw fluorescence around each region"}
    for part, said in what.items():
        if part not in group:
            continue
        data = group[part]
        module["Fluorescence"].add_roi_response_series(
            RoiResponseSeries(
                name=f"{'raw' if part == 'values' else part}_{name}",
                description=f"{said}, as the device sent it. The time is when the frame began; {scanned}",
                data=streamed(data.shape, data.dtype, reader(data)),
                rois=DynamicTableRegion(
                    name="rois", description="Region of each column", data=region, table=rois
                ),
                unit="a.u.",
                **{k: v[: data.shape[0]] if k == "timestamps" else v for k, v in order.items()},
            )
        )
    if "motion" in group:
        module.add(
            TimeSeries(
                name=f"motion_{name}",
                description="Motion of each frame, columns x, y, z, as the device sent it (um or pixels)",
                data=streamed(group["motion"].shape, group["motion"].dtype, reader(group["motion"])),
                unit="um or pixels",
                **order,
            )
        )


def add_behaviour(nwb: NWBFile, view: SessionView, clocks: Clocks) -> bool:
    """Add gaze, pupil, running and whatever else was sent; return whether there was any."""
    paths = view.texts("behaviour/path")
    if not paths:
        return False
    module = nwb.create_processing_module("behavior", "Behaviour, as the devices sent it")
    for path, listed in zip(paths, view.texts("behaviour/channels"), strict=True):
        group, channels = view.file[path], json.loads(listed)
        name = path.removeprefix("/behaviour/")
        order = timing(_times(view, clocks, path, BootsInOrder(clocks.host)))
        left = list(channels)
        for x in channels:
            y = x.replace("_x_", "_y_") if "_x_" in x else ""
            if "gaze" in x and y in left and y != x:
                left.remove(x)
                left.remove(y)
                _into(module, EyeTracking, _gaze(group, name, channels, (x, y), order))
        for channel in left:
            kind = PupilTracking if "pupil" in channel else BehavioralTimeSeries
            _into(module, kind, _channel(group, name, channels, channel, order))
    return True


def _into(module: Any, kind: type[Any], series: Any) -> None:
    """Add a series to the module's container of a kind."""
    if kind.__name__ not in module.data_interfaces:
        module.add(kind())
    container = module[kind.__name__]
    (container.add_spatial_series if kind is EyeTracking else container.add_timeseries)(series)


def _gaze(
    group: Any, name: str, channels: list[str], pair: tuple[str, str], order: dict[str, Any]
) -> SpatialSeries:
    unit, factor = unit_of(pair[0])
    at, data = [channels.index(c) for c in pair], group["values"]

    def read(first: int, end: int) -> npt.NDArray[Any]:
        return np.asarray(data[first:end][:, at])

    return SpatialSeries(
        name=f"{pair[0].replace('_x_', '_')}_{name}",
        description=f"Gaze, columns {pair[0]} and {pair[1]}; NaN where the eye was not seen",
        data=streamed((data.shape[0], 2), data.dtype, read),
        reference_frame="centre of the screen; x to the right, y up (see gates.fixation in the config for a scaling)",
        unit=unit,
        conversion=factor,
        **order,
    )


def _channel(group: Any, name: str, channels: list[str], channel: str, order: dict[str, Any]) -> TimeSeries:
    unit, factor = unit_of(channel)
    data = group["values"]
    return TimeSeries(
        name=f"{channel}_{name}",
        description=f"{channel}, as the device sent it; NaN where it saw nothing",
        data=streamed((data.shape[0],), data.dtype, reader(data, channels.index(channel))),
        unit=unit,
        conversion=factor,
        **order,
    )

