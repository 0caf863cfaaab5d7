"""`stimloop export --nwb`: a session as one NWB 2 file, named as DANDI and BIDS name such files.

Everything large is streamed from `session.h5`; the file appears under its name only when it is complete.
"""

import os
import re
import tempfile
from pathlib import Path

from pynwb import NWBHDF5IO

from rig.export.nwb_events import add_events
from rig.export.nwb_session import add_provenance, head
from rig.export.nwb_stimuli import add_presentations, add_stimuli, add_trials
from rig.export.nwb_traces import add_behaviour, add_traces, imaging_sources
from rig.export.nwb_units import add_units
from rig.export.presentations import Presentations
from rig.export.session_file import ExportError, SessionView
from rig.export.times import Clocks


def entity(text: str) -> str:
    """Return a text as the value of a BIDS entity: letters, digits and hyphens only. Raises ExportError."""
    plain = re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")
    if not plain:
        raise ExportError(f"{text!r} has no letter or digit to name a file by; set subject.id in the config")
    return plain


def file_path(view: SessionView, modalities: set[str], out: Path) -> Path:
    """Return out/sub-<id>/sub-<id>_ses-<id>_<modalities>.nwb."""
    subject = entity(str(view.config.get("subject", {}).get("id", "unknown")))
    name = f"sub-{subject}_ses-{entity(view.name)}_{'+'.join(sorted(modalities))}.nwb"
    return out / f"sub-{subject}" / name


def modalities_of(view: SessionView) -> set[str]:
    """Return what the file will hold, in DANDI's words."""
    found = {"image"} if view.rows("stimuli/frames") else set()
    measures = set(view.texts("unit_lists/measure"))
    found |= {"ophys"} if "fluorescence" in measures else set()
    imaging = set(imaging_sources(view))
    spiking = any(int(s) not in imaging for s in view.column("units/source"))
    found |= {"ecephys"} if spiking or "counts" in measures else set()
    found |= {"behavior"} if view.rows("behaviour") else set()
    return found or {"image"}


def write_nwb(view: SessionView, out: Path, overwrite: bool) -> Path:
    """Write the session below `out`; return the file's path. Raises ExportError if it is there, OSError."""
    path = file_path(view, modalities_of(view), out)
    if path.exists() and not overwrite:
        raise ExportError(f"{path} is there already; use --overwrite to replace it, or another --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    sha256 = view.journal_sha256()
    clocks = Clocks(view)
    shown = Presentations(view, clocks)
    nwb = head(view, sha256, shown)
    imaging = set(imaging_sources(view))
    spiking = [k for k in range(len(view.sources)) if k not in imaging]
    with tempfile.TemporaryDirectory(prefix=".stimloop-export-", dir=path.parent) as folder:
        add_units(nwb, view, clocks, spiking, Path(folder))
        add_traces(nwb, view, clocks)
        add_behaviour(nwb, view, clocks)
        add_stimuli(nwb, view, shown)
        add_presentations(nwb, view, shown)
        add_trials(nwb, view, clocks, shown)
        add_events(nwb, view, clocks, shown)
        add_provenance(nwb, view, clocks, shown, sha256)
        part = Path(folder) / path.name
        with NWBHDF5IO(str(part), mode="w") as file:
            file.write(nwb)
        os.replace(part, path)
    return path
