"""Networks that the inception agent trains while the session runs, behind each block for a fixed number of steps.

Training goes on with the presentations it has, and takes in what came since at the end of an epoch that was the best so
far. When to stop is decided by some of the training images (`validation`); the held-out images of the phase are for the
score alone. How many steps there are depends on the config and never on the computer's speed: a replay takes the same.
"""

import copy
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from models.encoders.core_files import Cores
from models.encoders.encoder import Encoder
from models.encoders.ensemble import Ensemble
from models.encoders.eye import Eye
from models.encoders.network import Network
from models.encoders.recordings import Recording
from models.encoders.resampled import Resampled, resampled
from models.encoders.training import Fit, Progress, best_of, progress_of
from models.encoders.weights import Arrays, take_weights, weights_of
from models.in_steps import at_once
from rig.config.encoders import NetworkEncoder

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Rows = Sequence[tuple[int, F64]]  # image, rates (unit,)

SESSION = "session"  # name of the one recording
FIRST = 200  # presentations before training begins: scales and biases are set from them
PREDICTED = 8  # pictures predicted in one step


class Networks:
    """Some networks in training. A work trains a copy; the agent takes the copy over when the work is taken.

    Between two works it only has the states of their fits: to go on with these takes all pictures that they are fitted
    to (`resumed`), which a restarted server must look at anew, and one that trains nothing any more never needs.
    """

    def __init__(
        self,
        config: NetworkEncoder,
        units: tuple[str, ...],
        eye: Eye,
        images: int,
        expected: int,
        seen: Callable[[int], F32],
        seed: int,
        start: Sequence[Arrays] = (),
    ) -> None:
        """`images` may be trained on, in `expected` presentations; `seen` returns one, (1, y, x), as the eye sees it.

        `start`: the weights of cores that the networks begin with, in turn. Raises ValueError where they do not fit.
        """
        self.config, self.units, self.eye, self._seen, self._seed = config, units, eye, seen, seed
        self.inner_eye = inner_eye(config, eye)
        self._images, self._least, self._start = images, min(FIRST, expected // 2), tuple(start)
        self._validates = _validating(config, images, seed)
        self._rows: list[tuple[int, F64]] = []
        self._states: list[dict[str, Any]] = []  # of each fit
        self._fits: list[Fit] = []  # the same fits while they go on, else []
        self._taken: list[int] = []  # of each fit: presentations that it has
        self._recordings: dict[int, Recording] = {}  # by number of presentations: only saves time
        self._encoder: Encoder | None = None
        self.bank_score = float("nan")  # median held-out correlation of the feature bank on the same presentations
        self._network(0)  # what cannot be built is refused here, and not in the session when training begins

    def copied(self) -> "Networks":
        """Return a copy that can be trained without a change to this one."""
        out = copy.copy(self)
        out.restore(self.state())
        return out

    @property
    def images(self) -> list[int]:
        """Return the images that it was told of."""
        return list(dict.fromkeys(image for image, _ in self._rows))

    def resumed(self) -> Generator[None, None, None]:
        """Yield after each fit that is made of its state again: then `learn` begins at once."""
        for k in range(len(self._fits), len(self._states)):
            self._fits.append(self._fit(k, self._states[k], self._taken[k]))
            yield

    def learn(self, rows: Rows) -> Generator[None, None, None]:
        """Yield after each step; take in presentations and train for as long as the config says."""
        at_once(self.resumed())
        self._rows += rows
        self._encoder = None
        if not self._fits:
            if not self._enough():
                return
            for k in range(self.config.members):
                self._fits.append(self._fit(k))
                self._taken.append(len(self._rows))
                yield
        for step in range(self.config.steps):
            self._step(step % len(self._fits))
            yield
            if self._over([fit.progress for fit in self._fits]):
                break
        self._states, self._fits = [fit.state() for fit in self._fits], []

    @property
    def finished(self) -> bool:
        """Whether training is at its end with all presentations that there are."""
        return self._over([progress_of(state) for state in self._states])

    def encoder(self) -> Encoder | None:
        """Return the networks with their best weights so far as one encoder; None before training began."""
        if self._encoder is None and self._states:
            members = self._trained()
            inside = members[0] if len(members) == 1 else Ensemble(members)
            self._encoder = inside if self.inner_eye == self.eye else Resampled(inside, self.eye)
        return self._encoder

    def predicted(self, images: Sequence[int]) -> Generator[None, None, F64 | None]:
        """Yield after each step; return the predicted rates (image, unit), None before training began."""
        encoder, parts = self.encoder(), []
        if encoder is None:
            return None
        for k in range(0, len(images), PREDICTED):
            with torch.inference_mode():
                x = torch.from_numpy(np.stack([self._seen(image) for image in images[k : k + PREDICTED]]))
                parts.append(encoder.rates(x).double().numpy())
            yield
        rates: F64 = np.concatenate(parts)
        return rates

    def cores(self) -> Cores | None:
        """Return the cores with their best weights so far; None before training began."""
        weights = [weights_of(one.core) for one in self._trained()]
        return Cores(self.config.architecture(), self.inner_eye, weights) if weights else None

    def report(self) -> dict[str, float]:
        """Return figures: epochs of each network since it last took presentations in, and its validation score."""
        out = {"bank_heldout_r": self.bank_score}
        for k, now in enumerate(map(progress_of, self._states), 1):
            out |= {f"network{k}_epochs": float(now.epoch), f"network{k}_validation_r": now.best}
        return out

    def state(self) -> dict[str, Any]:
        """Return everything that decides what comes next, but the images: arrays and JSON-able values."""
        return {
            "images": np.array([image for image, _ in self._rows], np.int64),
            "rates": np.stack([rates for _, rates in self._rows]) if self._rows else np.empty((0, len(self.units))),
            "taken": list(self._taken),
            "fits": list(self._states),
            "bank_score": self.bank_score,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a state of networks that were made with the same arguments."""
        rates = np.array(state["rates"], np.float64)
        self._rows = [(int(image), one) for image, one in zip(state["images"], rates, strict=True)]
        self._taken = [int(count) for count in state["taken"]]
        self._states, self._fits = list(state["fits"]), []
        self.bank_score, self._encoder = float(state["bank_score"]), None

    # --- inside -------------------------------------------------------------------------------------------------------

    def _over(self, each: Sequence[Progress]) -> bool:
        every = len(self._rows)
        return bool(each) and all(
            now.finished is not None and taken == every for now, taken in zip(each, self._taken, strict=True)
        )

    def _step(self, k: int) -> None:
        """Take one step of one network; at the end of its best epoch so far, take in what came since."""
        fit = self._fits[k]
        epoch = fit.progress.epoch
        fit.step()
        now = fit.progress
        best_epoch = now.epoch != epoch and now.newest >= now.best
        if self._taken[k] == len(self._rows) or not (best_epoch or now.finished is not None):
            return
        self._taken[k] = len(self._rows)
        fit.extend({SESSION: self._recording(k, self._taken[k])})

    def _trained(self) -> list[Network]:
        """Return the networks with their best weights so far."""
        members = []
        for state in self._states:
            network = Network(self.config.architecture(), self.inner_eye, {SESSION: self.units})
            network.restore(best_of(state))
            members.append(network)
        return members

    def _enough(self) -> bool:
        held = self._validates[:, [image for image, _ in self._rows]].sum(1)
        return len(self._rows) >= self._least and 2 <= held.min() <= held.max() < len(self._rows)

    def _fit(self, k: int, state: Mapping[str, Any] | None = None, count: int | None = None) -> Fit:
        recording = self._recording(k, len(self._rows) if count is None else count)
        fit = Fit(self._network(k), {SESSION: recording}, self.config.training, self._seed + k)
        if state is not None:
            fit.restore(dict(state))
        return fit

    def _network(self, k: int) -> Network:
        network = Network(self.config.architecture(), self.inner_eye, {SESSION: self.units}, self._seed + k)
        if self._start:
            take_weights(network.core, self._start[k % len(self._start)])
        return network

    def _recording(self, k: int, count: int) -> Recording:
        """Return the first `count` presentations, with the validation images of network `k`."""
        if count not in self._recordings:
            self._recordings = {n: self._recordings[n] for n in self._taken if n in self._recordings}
            self._recordings[count] = self._joined(count)
        images = list(dict.fromkeys(image for image, _ in self._rows[:count]))
        return replace(self._recordings[count], held_out=self._validates[k % len(self._validates), images])

    def _joined(self, count: int) -> Recording:
        rows = self._rows[:count]
        images = list(dict.fromkeys(image for image, _ in rows))
        at = {image: k for k, image in enumerate(images)}
        seen = torch.from_numpy(np.stack([self._seen(image) for image in images]))
        return Recording(
            resampled(seen, self.inner_eye),
            np.array([at[image] for image, _ in rows]),
            np.stack([rates for _, rates in rows]).astype(np.float32),
            np.zeros(len(images), np.bool_),
        )


def inner_eye(config: NetworkEncoder, eye: Eye) -> Eye:
    """Return the eye of the networks inside: that of the loop, `eye`, with fewer pixels where the config says so."""
    return replace(eye, height=config.side_px, width=config.side_px)


def _validating(config: NetworkEncoder, images: int, seed: int) -> npt.NDArray[np.bool_]:
    """Return (network, image): which images only say when to stop; one row where it is the same for all networks."""
    count = max(2, round(config.validation * images))
    order = np.random.default_rng(seed).permutation(images)
    rows = config.members if config.validation_of_each else 1
    return np.stack([np.isin(np.arange(images), np.roll(order, -k * count)[:count]) for k in range(rows)])
