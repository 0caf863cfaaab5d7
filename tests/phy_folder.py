"""A folder as Kilosort and Phy leave it, made from known spikes: a sorter with stated misses and inventions."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]


def write_phy(
    folder: Path,
    spikes: dict[int, I64],
    groups: dict[int, str],
    recording: tuple[int, int],
    *,
    seed: int = 0,
    missed: float = 0.1,
    invented_hz: float = 0.5,
    jitter: int = 6,
    rate_hz: float = 30_000.0,
) -> dict[int, I64]:
    """Sort `spikes` (cluster: device samples) badly and write the folder; return what the sorter found.

    `recording`: first device sample of the recording and how many samples it has. A share `missed` is not found, the
    time of each is off by up to `jitter` samples, and `invented_hz` spikes/s of each cluster were never there.
    """
    rng = np.random.default_rng(seed)
    first, length = recording
    found: dict[int, I64] = {}
    for cluster, true in spikes.items():
        inside = true[(true >= first + jitter) & (true < first + length - jitter)]
        kept = inside[rng.random(len(inside)) >= missed]
        moved = kept + rng.integers(-jitter, jitter + 1, len(kept))
        invented = rng.integers(first, first + length, rng.poisson(invented_hz * length / rate_hz))
        found[cluster] = np.sort(np.concatenate([moved, invented]))
    folder.mkdir(parents=True)
    time = np.concatenate(list(found.values())) - first
    cluster_of = np.repeat(list(found), [len(t) for t in found.values()])
    order = np.argsort(time, kind="stable")
    np.save(folder / "spike_times.npy", time[order].astype(np.uint64)[:, None])
    np.save(folder / "spike_clusters.npy", cluster_of[order].astype(np.int32))
    np.save(folder / "sample_numbers.npy", np.arange(first, first + length, dtype=np.int64))
    rows = "".join(f"{c}\t{g}\n" for c, g in groups.items())
    (folder / "cluster_group.tsv").write_text("cluster_id\tgroup\n" + rows, encoding="utf-8")
    (folder / "params.py").write_text(
        "dat_path = r'continuous.dat'\nn_channels_dat = 384\ndtype = 'int16'\noffset = 0\n"
        f"sample_rate = {rate_hz}\nhp_filtered = False\n",
        encoding="utf-8",
    )
    return found
