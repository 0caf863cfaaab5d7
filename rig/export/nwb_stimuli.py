"""What was shown, in an NWB file: each frame once, an index of presentations, presentation and trial tables."""

from typing import Any

import numpy as np
import numpy.typing as npt
from pynwb import NWBFile
from pynwb.base import ImageReferences, Images
from pynwb.epoch import TimeIntervals
from pynwb.image import GrayscaleImage, IndexSeries, RGBImage

from rig.export.nwb_tables import Streamed, columns, streamed
from rig.export.presentations import PER_UNIT, Field, Presentations
from rig.export.session_file import SessionView
from rig.export.times import Clocks
from rig.export.trials import trial_fields

RESPONSES = {
    "count": "Response of each unit: sum over its window (dff: mean); columns as in the table response_units",
    "baseline": "What the baseline expects count to be, per unit",
    "rate_hz": "(count - baseline) / window length, per unit; dff: count - baseline",
}


def add_stimuli(nwb: NWBFile, view: SessionView, shown: Presentations) -> None:
    """Add frames as a template and the presentations of it as an index series."""
    shas, ids = view.texts("stimuli/frames/frame_sha256"), view.texts("stimuli/frames/stimulus_id")
    frames = shown.of_shown("frame")
    seen = np.flatnonzero(frames >= 0)
    if not len(shas):
        return
    images = [_image(view, k, sha, stimulus) for k, (sha, stimulus) in enumerate(zip(shas, ids, strict=True))]
    template = Images(
        name="frames",
        description="Each different frame as it was drawn: 8 bit, after limits and gamma table, axes (y from the top, "
        "x, rgb). A grey frame is stored with one channel.",
        images=images,
        order_of_images=ImageReferences(name="order_of_images", data=images),
    )
    nwb.add_stimulus_template(template)
    if len(seen):
        nwb.add_stimulus(
            IndexSeries(
                name="presentations",
                description="Image shown at each onset; durations and all else in the intervals table presentations",
                data=frames[seen].astype(np.uint32),
                indexed_images=template,
                timestamps=shown.onset_s[seen],
                unit="N/A",
            )
        )


def _image(view: SessionView, row: int, sha: str, stimulus: str) -> Any:
    frame = view.frame(row)
    grey = bool((frame[..., :1] == frame).all())

    def read(first: int, end: int) -> npt.NDArray[Any]:
        again = view.frame(row)[first:end]
        return again[..., 0] if grey else again

    shape = frame.shape[:2] if grey else frame.shape
    kind = GrayscaleImage if grey else RGBImage
    data = Streamed(shape, np.uint8, read)
    return kind(name=f"frame_{row:05d}", description=f"{stimulus}, sha256 of (y, x, rgb) {sha}", data=data)


def add_presentations(nwb: NWBFile, view: SessionView, shown: Presentations) -> None:
    """Add the table of presentations with the response of every unit."""
    if not len(shown):
        return
    fields = [
        Field("start_time", "s", "Onset: the photodiode's edge, else flip stamp plus measured lag", shown.onset_s),
        Field("stop_time", "s", "Offset", shown.stop_s),
        *shown.fields(),
    ]
    if shown.units:
        for column in PER_UNIT:

            def read(first: int, end: int, column: str = column) -> npt.NDArray[Any]:
                return shown.per_unit(column, slice(first, end))

            values = streamed((len(shown), len(shown.units)), np.float64, read)
            fields.append(Field(column, "", RESPONSES[column], values))
    nwb.add_time_intervals(
        TimeIntervals(
            name="presentations",
            description="One row per image that was on the screen, with the response that it evoked",
            columns=columns(fields),
        )
    )


def add_trials(nwb: NWBFile, view: SessionView, clocks: Clocks, shown: Presentations) -> None:
    """Add the trials."""
    fields = trial_fields(view, clocks, shown)
    if len(fields[0].values):
        nwb.trials = TimeIntervals(
            name="trials", description="Trials: runs of images between two pauses", columns=columns(fields)
        )
