"""The fit of an encoder in resumable steps, each short enough to be taken between trials.

One `step` computes one slice of a batch (with `slice: null`, one whole optimiser step), or one slice of the held-out
images. Everything that decides the next step is in `state()`: weights, the best ones so far, Adam's moments, gradients
of an unfinished batch, the generator; restored, the fit goes on bit for bit on the same machine and number of threads.

Adam on the summed loss times sqrt(presentations / batch) plus regularisers; after an epoch the held-out images are
scored (mean correlation over units); a plateau takes the best weights back and lowers the rate (Willeke et al. 2022).
With `averaging` running means of the weights are scored and kept (Polyak and Juditsky 1992): good at the end of every
epoch, at a rate that is still high, as it must be where presentations keep coming.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.encoders.averaging import RunningMeans
from models.encoders.cores import Backbone, Pixels
from models.encoders.frozen import FrozenFeatures
from models.encoders.network import Network
from models.encoders.preparing import check, keep_points_inside, loss, prepare, trained_parameters
from models.encoders.readouts import Point
from models.encoders.recordings import Recording
from models.encoders.scoring import Correlations
from models.encoders.weights import Arrays, take_weights, weights_of
from rig.config.encoders import Training

I64 = npt.NDArray[np.int64]

SCORED_AT_ONCE = 64  # held-out presentations, or images of a frozen core, in one step where `slice` does not say


@dataclass(frozen=True)
class Job:
    """One slice: presentations of one session that are computed together."""

    session: str
    rows: I64
    batch: int
    """Presentations of the whole batch; 0: a slice of held-out presentations."""
    last: bool
    """Whether the optimiser steps after it."""


@dataclass(frozen=True)
class Progress:
    """Where a fit stands."""

    steps: int
    epoch: int
    rate: float
    best: float
    """Held-out correlation, mean over units, of the best weights so far; NaN before the first score."""
    newest: float
    """The same of the newest weights that were scored."""
    loss: float
    """Mean loss of a presentation and unit, without regularisers, in the newest finished epoch; NaN before."""
    finished: str | None
    """Why it ended, or None."""


def progress_of(state: Mapping[str, Any]) -> Progress:
    """Return where a fit stood whose `state` this is."""
    best, newest, mean_loss = (float(value) for value in state["scores"][:3])
    steps, epoch, rate = int(state["steps"]), int(state["epoch"]), float(state["rate"])
    return Progress(steps, epoch, rate, best, newest, mean_loss, state["finished"])


def best_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return, of a fit's `state`, that of its network with the best weights so far."""
    network: dict[str, Any] = state["network"]
    return {**network, "weights": state["best_weights"] or network["weights"]}


class Fit:
    """Trains a network, which is its own until `finish`."""

    def __init__(
        self,
        network: Network,
        recordings: Mapping[str, Recording],
        training: Training,
        seed: int,
        fresh: Sequence[str] | None = None,
    ) -> None:
        """Train `network` on `recordings` by session. Raises ValueError.

        `fresh`: sessions whose scales, biases and means of gaze and behaviour are set from the data (None: all); leave
        out those that were trained before.
        """
        self.network, self.training = network, training
        self.recordings = dict(recordings)
        core = network.core
        untuned = isinstance(core, Pixels) or (isinstance(core, Backbone) and not core.tuned)
        self.frozen = training.readouts_only or untuned
        self._features = FrozenFeatures(core, self.recordings, training.slice or SCORED_AT_ONCE)
        for session, recording in self.recordings.items():
            check(network, session, recording, training)
            if fresh is None or session in fresh:
                prepare(network, session, recording, slice(None))
        self._rng = np.random.default_rng(seed)
        self._optimiser = self._adam()
        self.steps = self.epoch = self._at = 0
        self._finished: str | None = None
        self._jobs: list[Job] = []
        self._order = self._rng.bit_generator.state
        self._best_weights: Arrays = {}
        self._means = RunningMeans(training.averaging)
        self._begin()

    # --- what callers ask ---------------------------------------------------------------------------------------------

    @property
    def progress(self) -> Progress:
        """Return where it stands."""
        return Progress(self.steps, self.epoch, self._rate, self._best, self._newest, self._loss, self._finished)

    def step(self) -> bool:
        """Do one slice of work; return True when the fit has ended."""
        if self._finished is not None:
            return True
        self.steps += 1
        if self.frozen and self._features.step():
            return False
        job = self._jobs[self._at]
        self._at += 1
        if job.batch:
            self._train(job)
        else:
            self._score(job)
        if self._at == len(self._jobs):
            self._next_part()
        return self._finished is not None

    def finish(self) -> Network:
        """Return the network with the best weights, ready for use; also before the fit has ended."""
        if self._best_weights:
            take_weights(self.network, self._best_weights)
        self._finished = self._finished or "stopped"
        return self.network.eval().requires_grad_(False)

    def extend(self, recordings: Mapping[str, Recording]) -> None:
        """Go on with more presentations, at the first rate: from the best weights so far. Raises ValueError.

        With `averaging` from the weights as they are, for their means are what counts. Images that there were keep
        their place and stay trained on or held out.
        """
        for session, recording in recordings.items():
            old = self.recordings.get(session)
            if old is None:
                raise ValueError(f"session {session!r} is not being fitted")
            check(self.network, session, recording, self.training)
            count = len(old.images)
            if len(recording.images) < count or not np.array_equal(recording.held_out[:count], old.held_out):
                raise ValueError(f"session {session}: held-out images are chosen once; give the earlier images first")
            self.recordings[session] = recording
        self._means.take_out_of(self.network)
        if self._best_weights and not self.training.averaging:
            take_weights(self.network, self._best_weights)
        self._begin()

    def change_units(
        self, session: str, units: Sequence[str], recording: Recording, seed: int, cortex: Tensor | None = None
    ) -> None:
        """Let a session have these units and these responses; known units keep rows and moments, the others are fresh.

        Goes on as `extend`. Raises ValueError.
        """
        if self._best_weights:
            take_weights(self.network, self._best_weights)
        moments, before = self._moments(), {f"sessions.{session}.{n}" for n in self.network.of(session).rows()}
        kept = self.network.change_units(session, units, seed, cortex)
        for name in before & set(moments):
            for key in ("exp_avg", "exp_avg_sq"):
                old = moments[name][key]
                moments[name][key] = torch.stack([old[k] if k is not None else torch.zeros_like(old[0]) for k in kept])
        check(self.network, session, recording, self.training)
        self.recordings[session] = recording
        fresh = [row for row, k in enumerate(kept) if k is None]
        if fresh:
            prepare(self.network, session, recording, fresh)
        self._optimiser = self._adam()
        self._take_moments(moments)
        self._best_weights = {}
        self._means.begin()
        self._begin()

    def state(self) -> dict[str, Any]:
        """Return everything that decides what comes next, but the recordings."""
        gradients = {n: p.grad.numpy().copy() for n, p in self.network.named_parameters() if p.grad is not None}
        return {
            "network": self.network.state(),
            "best_weights": {name: array.copy() for name, array in self._best_weights.items()},
            "means": self._means.state(),
            "moments": {n: {k: t.numpy().copy() for k, t in m.items()} for n, m in self._moments().items()},
            "gradients": gradients,
            "rng": copy.deepcopy(self._rng.bit_generator.state),
            "order": copy.deepcopy(self._order),
            "steps": self.steps,
            "epoch": self.epoch,
            "at": self._at,
            "scoring": self._scoring,
            "rate": self._rate,
            "decays": self._decays,
            "misses": self._misses,
            "scores": [self._best, self._newest, self._loss, *self._sum],
            "sums": {session: c.sums.copy() for session, c in self._correlations.items()},
            "features": dict(self._features.done),
            "finished": self._finished,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state of a fit of the same architecture, recordings and training."""
        self.network.restore(state["network"])
        self._features = FrozenFeatures(self.network.core, self.recordings, self.training.slice or SCORED_AT_ONCE)
        self._features.redo(state["features"])
        self._optimiser = self._adam()
        self._take_moments(
            {n: {k: torch.from_numpy(np.array(a)) for k, a in m.items()} for n, m in state["moments"].items()}
        )
        parameters = dict(self.network.named_parameters())
        for name, gradient in state["gradients"].items():
            parameters[name].grad = torch.from_numpy(np.array(gradient))
        self._best_weights = {name: np.array(array) for name, array in state["best_weights"].items()}
        self._means.restore(state["means"])
        self._scoring, self._order = bool(state["scoring"]), state["order"]
        self._rng.bit_generator.state = self._order
        self._jobs = self._held_out_jobs() if self._scoring else self._epoch_jobs()
        self._rng.bit_generator.state = state["rng"]
        self.steps, self.epoch, self._at = int(state["steps"]), int(state["epoch"]), int(state["at"])
        self._rate, self._decays, self._misses = float(state["rate"]), int(state["decays"]), int(state["misses"])
        self._best, self._newest, self._loss, *self._sum = (float(v) for v in state["scores"])
        for session, sums in state["sums"].items():
            self._correlations[session].sums = np.array(sums)
        self._finished = state["finished"]
        self._set_rate()

    # --- parts of an epoch --------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Score what there is, then train from the first rate on."""
        self._rate, self._decays, self._misses, self.epoch = self.training.rate, 0, 0, 0
        self._best = self._newest = self._loss = float("nan")
        self._sum = [0.0, 0.0]
        self._finished = None
        self._optimiser.zero_grad(set_to_none=True)
        self._set_rate()
        self._start_scoring()

    def _start_scoring(self) -> None:
        self._scoring, self._at, self._jobs = True, 0, self._held_out_jobs()
        self._means.put_into(self.network)
        self._correlations = {s: Correlations(len(self.network.of(s).units)) for s in self.recordings}

    def _start_epoch(self) -> None:
        self._scoring, self._at, self._sum = False, 0, [0.0, 0.0]
        self._order = copy.deepcopy(self._rng.bit_generator.state)
        self._jobs = self._epoch_jobs()
        self.epoch += 1

    def _next_part(self) -> None:
        if not self._scoring:
            self._loss = self._sum[0] / max(self._sum[1], 1)
            self._start_scoring()
            return
        self._newest = float(np.mean(np.concatenate([c.values() for c in self._correlations.values()])))
        if np.isnan(self._best) or self._newest > self._best + self.training.tolerance:
            self._best, self._misses, self._best_weights = self._newest, 0, weights_of(self.network)
        else:
            self._misses += 1
        self._means.take_out_of(self.network)
        self._after_score()

    def _after_score(self) -> None:
        """Lower the rate after a plateau, end after the last one, or begin an epoch."""
        training = self.training
        if self._misses >= training.patience:
            take_weights(self.network, self._best_weights)
            self._means.begin()
            if self._decays == training.decays:
                self._finished = "no better score"
                return
            self._decays += 1
            self._misses = 0
            self._rate = max(self._rate * training.decay, training.smallest_rate)
            self._set_rate()
        if self.epoch == training.most_epochs:
            take_weights(self.network, self._best_weights)
            self._means.begin()
            self._finished = "most_epochs"
            return
        self._start_epoch()

    def _epoch_jobs(self) -> list[Job]:
        """Return all training presentations once, in batches of one session each, in random order."""
        batches: list[list[Job]] = []
        size = self.training.batch
        part = self.training.slice or size
        for session, recording in self.recordings.items():
            rows = self._rng.permutation(recording.training_rows)
            for k in range(0, len(rows), size):
                batch = rows[k : k + size]
                if len(batch) < 2 <= len(rows):
                    continue  # a single presentation has no variance to normalise by; another order gives it its turn
                slices = [batch[j : j + part] for j in range(0, len(batch), part)]
                if len(slices) > 1 and len(slices[-1]) < 2:
                    slices[-2:] = [np.concatenate(slices[-2:])]
                batches.append([Job(session, s, len(batch), s is slices[-1]) for s in slices])
        return [job for k in self._rng.permutation(len(batches)) for job in batches[int(k)]]

    def _held_out_jobs(self) -> list[Job]:
        size = self.training.slice or SCORED_AT_ONCE
        return [
            Job(session, rows[k : k + size], 0, False)
            for session, rows in ((s, r.scoring_rows) for s, r in self.recordings.items())
            for k in range(0, len(rows), size)
        ]

    # --- single slices ------------------------------------------------------------------------------------------------

    def _train(self, job: Job) -> None:
        network, training, recording = self.network, self.training, self.recordings[job.session]
        network.train()
        if self.frozen or training.fixed_norms:
            network.core.eval()
        predicted = self._predicted(job, noise=True)
        scale = network.of(job.session).scale
        found, count = loss(predicted / scale, torch.from_numpy(recording.responses[job.rows]) / scale, training.loss)
        total = found * (len(recording.training_rows) / job.batch) ** 0.5
        self._sum[0] += float(found.detach())
        self._sum[1] += count
        if job.last:
            total = total + training.readout_l1 * network.of(job.session).readout.penalty()
            if not self.frozen:
                total = total + network.core.penalty(training.laplacian, training.sparsity)
        total.backward()
        network.eval()
        if not job.last:
            return
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        keep_points_inside(network, job.session)
        self._means.add(network)

    def _score(self, job: Job) -> None:
        with torch.inference_mode():
            predicted = self._predicted(job, noise=False)
        self._correlations[job.session].add(predicted.numpy(), self.recordings[job.session].responses[job.rows])

    def _predicted(self, job: Job, noise: bool) -> Tensor:
        """Return the network's responses (row, unit) to the presentations of a slice."""
        recording, network = self.recordings[job.session], self.network
        images, back = np.unique(recording.shown[job.rows], return_inverse=True)
        gaze, behaviour = (
            None if values is None else torch.from_numpy(values[job.rows].astype(np.float32))
            for values in (recording.gaze, recording.behaviour)
        )
        if self.frozen:
            features = self._features.of(job.session, recording.shown[job.rows])
        else:
            features = network.core(recording.images[torch.from_numpy(images)])[torch.from_numpy(back)]
        drawn = None
        if noise and isinstance(network.of(job.session).readout, Point):
            shape = (len(job.rows), len(network.of(job.session).units), 2)
            drawn = torch.from_numpy(self._rng.standard_normal(shape, dtype=np.float32))
        return network.responses_to(features, job.session, None, gaze, behaviour, drawn)

    # --- the optimiser ------------------------------------------------------------------------------------------------

    def _adam(self) -> torch.optim.Adam:
        self._trained = trained_parameters(self.network, self.frozen)
        for parameter in self._trained.values():
            parameter.requires_grad_(True)
        return torch.optim.Adam(list(self._trained.values()), lr=self.training.rate, foreach=False)

    def _set_rate(self) -> None:
        for group in self._optimiser.param_groups:
            group["lr"] = self._rate

    def _moments(self) -> dict[str, dict[str, Tensor]]:
        """Return Adam's moments and step counts by the parameter's name; {} for parameters without a step."""
        return {n: dict(self._optimiser.state[p]) for n, p in self._trained.items() if p in self._optimiser.state}

    def _take_moments(self, moments: Mapping[str, Mapping[str, Tensor]]) -> None:
        for name, values in moments.items():
            self._optimiser.state[self._trained[name]] = dict(values)
