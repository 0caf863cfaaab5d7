"""How long an update takes in a long session: random responses, kernels and ridges as many as a tuned readout has."""

from collections.abc import Callable
from typing import Any

import numpy as np

from models.readouts.kernels import Kernel
from models.readouts.learning import Tuned
from models.readouts.streaming import StreamingReadout

WIDTH = 200  # numbers per image: rows of kernels are not timed, they are there before the responses
REPEATS = 11


def time_updates(units: int, trials: int, batches: tuple[int, ...], now_ns: Callable[[], int]) -> list[dict[str, Any]]:
    """Return the median time of an update that ends at `trials`, ms, for each size of batch."""
    rng, how = np.random.default_rng(0), Tuned()
    names = [f"unit{k:03d}" for k in range(units)]
    shares = np.array_split(np.arange(units), how.kernels)
    ridges = how.ridges[: how.kept_ridges]
    rows = []
    for batch in batches:
        before = trials - REPEATS * batch
        features = rng.standard_normal((trials, WIDTH))
        responses = rng.standard_normal((trials, units))
        readouts = [StreamingReadout(Kernel("gaussian", WIDTH), WIDTH, ridges) for _ in shares]
        times = []
        for start, stop in [(0, before)] + [(k, k + batch) for k in range(before, trials, batch)]:
            spent = 0
            for readout, share in zip(readouts, shares, strict=True):
                kernel = readout.kernel_rows(features[start:stop])
                begun = now_ns()
                readout.learn(features[start:stop], kernel, [names[u] for u in share], responses[start:stop, share])
                readout.readout.solve()
                spent += now_ns() - begun
            times.append(spent / 1e6)
        rows.append({"units": units, "trials": trials, "batch": batch, "update_ms": float(np.median(times[1:]))})
    return rows
