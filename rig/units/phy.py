"""A folder of Phy or Kilosort: sorted spikes, checked before anything is done with them.

Read by `rig.units.importing`. Nothing in the folder is executed or unpickled: `params.py` is read as text. Every
mistake is one UnitsError that names the file and the cure.
"""

import ast
import csv
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
MOST_SAMPLE = 1 << 53  # a larger counter is garbage
MOST_TABLE_BYTES = 64 << 20
MOST_PARAMS_BYTES = 1 << 20
TABLES = ("cluster_group.tsv", "cluster_info.tsv", "cluster_KSLabel.tsv")  # the curator's word first
LABELS = {"cluster_group.tsv": "group", "cluster_info.tsv": "group", "cluster_KSLabel.tsv": "KSLabel"}


class UnitsError(ValueError):
    """Sorted units that cannot be imported; the message names file, reason and cure."""


@dataclass(frozen=True)
class Sorted:
    """What a folder holds."""

    folder: Path
    time: I64  # (spike,) index of the sample in the sorted file, ascending
    cluster: I64  # (spike,)
    group: dict[int, str]  # cluster: good, mua, noise, unsorted ...
    sample_rate_hz: float | None  # as params.py states it
    sha256: dict[str, str]  # file name: hash

    def chosen(self, groups: tuple[str, ...]) -> list[int]:
        """Return the clusters of the groups that have spikes; raises UnitsError if there are none."""
        there = set(np.unique(self.cluster).tolist())
        found = sorted(c for c in there if self.group.get(c, "unsorted") in groups)
        if not found:
            known = sorted({self.group.get(c, "unsorted") for c in there})
            raise UnitsError(
                f"{self.folder}: none of its {len(there)} clusters is in group {' or '.join(groups)}; its groups are "
                f"{', '.join(known)}: choose with --groups"
            )
        return found


def load_array(path: Path, what: str) -> I64:
    """Return a .npy file of integers (n,) or (n, 1) as int64; raises UnitsError."""
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)  # sample numbers of an hour are a gigabyte
    except (OSError, ValueError, EOFError) as error:
        raise UnitsError(f"{path}: cannot be read as {what}: {error}; export the folder again from Phy") from error
    if not isinstance(values, np.ndarray):
        raise UnitsError(f"{path}: an archive of arrays, not one array of {what}; give the .npy file")
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise UnitsError(
            f"{path}: shape {values.shape} of {values.dtype}, but {what} must be a column of whole numbers; "
            "export the folder again from Phy"
        )
    if values.size and not 0 <= int(values.min()) <= int(values.max()) < MOST_SAMPLE:
        raise UnitsError(f"{path}: values from {values.min()} to {values.max()} cannot be {what}")
    return np.asarray(values, dtype=np.int64)


def load(folder: Path) -> Sorted:
    """Read a folder; raises UnitsError."""
    if not folder.is_dir():
        raise UnitsError(f"{folder} is no folder; give the one that Kilosort wrote and Phy saved to")
    times, clusters = folder / "spike_times.npy", folder / "spike_clusters.npy"
    if not clusters.exists():  # Kilosort's own output, never opened in Phy
        clusters = folder / "spike_templates.npy"
    for path in (times, clusters):
        if not path.exists():
            raise UnitsError(f"{folder} holds no {path.name}; give the folder that Kilosort wrote and Phy saved to")
    time, cluster = load_array(times, "spike times in samples"), load_array(clusters, "cluster numbers")
    if len(time) != len(cluster):
        raise UnitsError(
            f"{folder}: {len(time)} spike times and {len(cluster)} cluster numbers; the files are not of one sorting: "
            "save again in Phy"
        )
    if not len(time):
        raise UnitsError(f"{folder}: {times.name} holds no spike; there is nothing to import")
    if np.any(np.diff(time) < 0):
        first = int(np.flatnonzero(np.diff(time) < 0)[0])
        where = f"spike {first + 1} comes before spike {first}"
        raise UnitsError(f"{times}: not in order of time: {where}; save again in Phy")
    used = [times, clusters, *(folder / n for n in (*TABLES, "params.py") if (folder / n).exists())]
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in used}
    return Sorted(folder, time, cluster, _groups(folder), _sample_rate(folder / "params.py"), hashes)


def _groups(folder: Path) -> dict[int, str]:
    """Return the group of each cluster: the curator's where there is one, else the sorter's."""
    out: dict[int, str] = {}
    found = False
    for name in TABLES:
        path = folder / name
        if not path.exists():
            continue
        found = True
        for cluster, label in _table(path, LABELS[name]).items():
            if out.get(cluster, "unsorted") == "unsorted" and label:
                out[cluster] = label
    if not found:
        tables = ", ".join(TABLES)
        raise UnitsError(f"{folder} holds none of {tables}, so nothing says which clusters are good; save in Phy")
    return out


def _table(path: Path, label: str) -> dict[int, str]:
    """Return cluster and label of each row of a table; the label is lower case, "" where there is none."""
    if path.stat().st_size > MOST_TABLE_BYTES:
        raise UnitsError(f"{path} has {path.stat().st_size / 1e6:.0f} MB; no table of clusters is so large")
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines(), delimiter="\t"))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UnitsError(f"{path}: not a table of tab-separated text: {error}; save again in Phy") from error
    out = {}
    for number, row in enumerate(rows, 2):
        name = row.get("cluster_id") or row.get("id")
        if name is None or not name.strip().isdecimal():
            cure = "the first line must name cluster_id, the others give a number"
            raise UnitsError(f"{path}, line {number}: {name!r} is no cluster number; {cure}")
        out[int(name)] = (row.get(label) or "").strip().lower()
    return out


def _sample_rate(path: Path) -> float | None:
    """Return `sample_rate` of a params.py, which is read as text and never run; None where it is not stated."""
    if not path.exists():
        return None
    if path.stat().st_size > MOST_PARAMS_BYTES:
        raise UnitsError(f"{path} has {path.stat().st_size / 1e6:.0f} MB; that is no params.py of Phy")
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        name, equals, value = line.partition("=")
        if name.strip() != "sample_rate" or not equals:
            continue
        try:
            rate = ast.literal_eval(value.split("#")[0].strip())
        except (ValueError, SyntaxError) as error:
            raise UnitsError(f"{path}: sample_rate is {value.strip()!r}, not a number; give --sample-rate") from error
        if type(rate) not in (int, float) or not 1 <= rate <= 1e6:
            raise UnitsError(f"{path}: sample_rate is {rate!r}, not a rate in Hz; give --sample-rate")
        return float(rate)
    return None
