"""Endless fine-tuning of an encoder's core, slice by slice, for `stimloop bench display`: computing that never stops.

The core is that of SENSORIUM 2022 (64 filters, 4 layers, 36 x 64 pixels), the heaviest that this program fits between
trials; the steps are those of `models.encoders.training`. Pictures and counts are noise: nothing is learnt.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.encoders.eye import Eye
from models.encoders.network import Network
from models.encoders.recordings import Recording
from models.encoders.training import Fit
from rig.config.encoders import Architecture, Training

SESSION, UNITS, IMAGES = "noise", 32, 64
HELD_OUT = 8  # images
FILE = "core_steps.json"  # in the session's folder, at its end


class FineTuning:
    """`step()` for ever; `write` says how many steps that were."""

    def __init__(self, threads: int, now_ns: Callable[[], int]) -> None:
        """Build the network and its data; `threads` as for the agents."""
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(True)
        rng = np.random.default_rng(0)
        eye = Eye(36, 64)
        self.network = Network(Architecture(), eye, {SESSION: [f"u{k}" for k in range(UNITS)]}, seed=0)
        pictures = torch.from_numpy(rng.standard_normal((IMAGES, *eye.shape), dtype=np.float32))
        counts = rng.poisson(1.0, (IMAGES, UNITS)).astype(np.float32)
        recording = Recording(pictures, np.arange(IMAGES), counts, np.arange(IMAGES) < HELD_OUT)
        self._data = {SESSION: recording}
        self._training = Training(batch=8, slice=2, fixed_norms=True, most_epochs=10_000, patience=100)
        self._now_ns = now_ns
        self._times_ms: list[float] = []
        self._fit = Fit(self.network, self._data, self._training, seed=0)

    def step(self) -> None:
        """Compute one slice; behind the last one of a fit the next fit begins."""
        begin_ns = self._now_ns()
        if self._fit.step():
            self._fit = Fit(self._fit.finish(), self._data, self._training, seed=0, fresh=())
        self._times_ms.append((self._now_ns() - begin_ns) * 1e-6)

    def figures(self) -> dict[str, Any]:
        """Return how many steps were taken, and how long they took."""
        times = self._times_ms or [float("nan")]
        return {"core_steps": len(self._times_ms), "core_step_ms_p50": round(float(np.median(times)), 1)}

    def write(self, folder: Path) -> None:
        """Leave the figures in a session's folder."""
        (folder / FILE).write_text(json.dumps(self.figures()), encoding="utf-8")
