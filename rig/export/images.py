"""`stimloop export --images`: each different frame of a session as a lossless picture, an index, and contact sheets.

A PNG holds the frame as it was drawn, after limits and gamma table: its pixels have the sha256 that the log names.
"""

import csv
import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from rig.export.presentations import Presentations
from rig.export.session_file import ExportError, SessionView
from rig.export.times import Clocks

SHEET = (8, 10)  # columns and rows of a contact sheet
CELL_PX, LABEL_PX = 120, 26
PAPER, INK = 255, 0


def file_name(stimulus_id: str, sha256: str) -> str:
    """Return the name of a frame's picture: any identity becomes a safe name, and the hash keeps it unique."""
    name, digest = (re.sub(r"[^A-Za-z0-9._-]", "_", text) for text in (stimulus_id, sha256))
    return f"{name[:80]}_{digest[:12]}.png"


def write_images(view: SessionView, clocks: Clocks, folder: Path) -> int:
    """Write all frames, index.csv and contact sheets into `folder`; return the number of frames. Raises ExportError."""
    shas, ids = view.texts("stimuli/frames/frame_sha256"), view.texts("stimuli/frames/stimulus_id")
    names = [file_name(i, s) for i, s in zip(ids, shas, strict=True)]
    for row, (name, sha) in enumerate(zip(names, shas, strict=True)):
        frame = view.frame(row)
        if hashlib.sha256(frame.tobytes()).hexdigest() != sha:
            raise ExportError(f"frame {sha} of {ids[row]} is damaged in session.h5; run stimloop recover")
        Image.fromarray(frame).save(folder / name, optimize=False)
    _write_index(view, clocks, names, folder / "index.csv")
    for number, sheet in enumerate(_sheets(view, ids, shas), start=1):
        sheet.save(folder / f"contact_sheet_{number:02d}.png")
    return len(names)


def _write_index(view: SessionView, clocks: Clocks, names: list[str], path: Path) -> None:
    shown = Presentations(view, clocks)
    frames = shown.of_shown("frame")
    times, usable = np.zeros(len(names), np.int64), np.zeros(len(names), np.int64)
    there = frames >= 0
    np.add.at(times, frames[there], 1)
    np.add.at(usable, frames[there & shown.of_response("usable", False)], 1)
    places: dict[int, list[str]] = defaultdict(list)
    columns = zip(frames, *(shown.of_shown(c) for c in ("center_x_deg", "center_y_deg", "size_deg")), strict=True)
    for frame, x, y, size in columns:
        place = f"{x:g} {y:g} {size:g}"
        if frame >= 0 and place not in places[int(frame)]:
            places[int(frame)].append(place)
    drawn_for: dict[str, list[str]] = defaultdict(list)
    prepared = zip(view.texts("stimuli/prepared/stimulus_id"), view.texts("stimuli/prepared/frame_sha256"), strict=True)
    for stimulus, sha in prepared:
        if stimulus not in drawn_for[sha]:
            drawn_for[sha].append(stimulus)
    origin = (view.column(f"stimuli/{c}") for c in ("phase", "generation"))
    kinds = zip(view.texts("stimuli/type"), *origin, strict=True)
    made = dict(zip(view.texts("stimuli/stimulus_id"), kinds, strict=True))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["image_index", "file", "sha256", "stimulus_ids", "type", "phase", "generation", "height_px", "width_px",
             "places_deg", "presentations", "usable"]
        )  # fmt: skip
        pixels = [view.column(f"stimuli/frames/{c}") for c in ("height", "width")]
        first = view.texts("stimuli/frames/stimulus_id")
        for k, sha in enumerate(view.texts("stimuli/frames/frame_sha256")):
            what = made.get(first[k], ("", -1, -1))
            writer.writerow(
                [k, names[k], sha, " ".join(drawn_for[sha]), *what, pixels[0][k], pixels[1][k],
                 "; ".join(places[k]), times[k], usable[k]]
            )  # fmt: skip


def _sheets(view: SessionView, ids: list[str], shas: list[str]) -> Iterator[Image.Image]:
    across, down = SHEET
    for first in range(0, len(ids), across * down):
        count = min(across * down, len(ids) - first)
        rows = -(-count // across)
        sheet = Image.new("RGB", (across * CELL_PX, rows * (CELL_PX + LABEL_PX)), (PAPER,) * 3)
        pen = ImageDraw.Draw(sheet)
        for k in range(count):
            x, y = k % across * CELL_PX, k // across * (CELL_PX + LABEL_PX)
            picture = Image.fromarray(view.frame(first + k))
            scale = (CELL_PX - 8) / max(picture.size)
            picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
            sheet.paste(picture, (x + (CELL_PX - picture.width) // 2, y + (CELL_PX - picture.height) // 2))
            pen.text((x + 4, y + CELL_PX), ids[first + k][:18], fill=(INK,) * 3)
            pen.text((x + 4, y + CELL_PX + 12), shas[first + k][:12], fill=(INK,) * 3)
        yield sheet
