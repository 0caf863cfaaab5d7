"""Networks that learn what simulated units answer: first to photographs, then to pictures near their own images."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from models.encoders.encoder import Encoder
from models.encoders.ensemble import Ensemble
from models.encoders.network import Network
from models.encoders.readouts import Point
from models.encoders.recordings import Recording
from models.encoders.training import Fit
from models.synthesis.engine import PROCESSOR, synthesise
from models.synthesis.objectives import Maximise
from models.synthesis.starts import draw
from models.synthesis_bench.comparing import Images
from models.synthesis_bench.pictures import AT_ONCE, F32, PATTERN, Simulated, answers, near
from rig.config.encoders import Architecture, Training
from rig.config.synthesis import AgreementBench

SESSION = "twin"
HELD_OUT = 0.1  # of each half, and of each network's own pictures: for the score, and to stop
COARSE_PX, WINDOW_PX = 3.0, 2.0  # sd of what is taken off a picture, and of the window in which contrast counts
TRAINING = Training(loss="gaussian", batch=32, patience=3, decays=0, laplacian=0.1, readout_l1=0.001)  # no noise here
STAGES = ((0.01, 0.6), (0.003, 0.25), (0.001, 0.15))  # rates, and the share of the epochs at each
ROUND = ((0.002, 4), (0.0005, 2))  # rates and epochs with a network's own pictures
NEAR = 20  # pictures near each of a network's own images


def architecture(filters: int, layers: int) -> Architecture:
    """Return what the networks are made of: a separable core as the twin's, of this size, and a point readout.

    Without padding: units look at the middle of the pictures (`models.synthesis_bench.window`).
    """
    core = {"type": "separable", "channels": filters, "layers": layers, "first_kernel_px": 9, "kernel_px": 7,
            "padded": False}  # fmt: skip
    return Architecture.model_validate({"core": core, "readout": {"type": "point", "start_sigma": 0.1}})


class Learners:
    """Networks with cores of their own, which see the same pictures; what they predict is their mean."""

    def __init__(
        self, twin: Network, data: Simulated, held_out: npt.NDArray[np.int64], asked: AgreementBench, number: int,
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        """Take what one side was shown and answered; `held_out`: photographs that only score; `number`: 0 or 1."""
        self._twin, self._asked, self._say = twin, asked, say
        self._held_out = np.isin(data.photograph, held_out)
        self._pictures, self._responses = data.pictures, data.responses
        self._pieces = data.photograph != PATTERN
        self._rng = np.random.default_rng([asked.seed, number])
        self._seeds = [2 * asked.seed + number + 1000 * k for k in range(asked.members)]
        made = architecture(asked.filters, asked.layers)
        self.members = [Network(made, twin.eye, {SESSION: twin.units}, seed) for seed in self._seeds]
        self.epochs = 0

    @property
    def encoder(self) -> Encoder:
        """Return the network, or their mean."""
        return self.members[0] if len(self.members) == 1 else Ensemble(self.members)

    def learn(self) -> None:
        """Learn the photographs, then as many rounds of own pictures as were asked for."""
        asked, shown = self._asked, ~self._held_out & self._pieces
        for member in self.members:
            place(member, self._pictures[shown], self._responses[shown])
        stages = [(rate, max(1, round(share * asked.epochs))) for rate, share in STAGES]
        self._fit(self._recording(np.arange(len(self._pictures))), stages, fresh=True)
        for number in range(asked.rounds):
            self._round(number + 1)

    def _round(self, number: int) -> None:
        """Make images, show them and pictures near them to the units, and learn these with as many earlier ones."""
        asked = self._asked
        made = images_of(self.encoder, tuple(range(asked.units)), asked, self._rng)
        self._say(f"round {number}: own images drive the units to {self._driven(made):.2f} of what is predicted")
        frames = made.found.frames.reshape(-1, *made.found.frames.shape[2:])
        pictures = self._twin.eye.see(near(frames, NEAR, self._rng))
        earlier = self._rng.permutation(len(self._pictures))[: len(pictures)]
        alone = self._rng.random(len(frames)) < HELD_OUT  # with all pictures near it
        chosen = np.concatenate([earlier, len(self._pictures) + np.arange(len(pictures))])
        self._pictures = torch.cat([self._pictures, pictures])
        self._responses = np.concatenate([self._responses, answers(self._twin, pictures)])
        self._held_out = np.concatenate([self._held_out, np.tile(alone, NEAR + 1)])
        self._fit(self._recording(chosen), ROUND, fresh=False)

    def _recording(self, rows: npt.NDArray[np.int64]) -> Recording:
        return Recording(self._pictures[rows], np.arange(len(rows)), self._responses[rows], self._held_out[rows])

    def _fit(self, recording: Recording, stages: Sequence[tuple[float, int]], fresh: bool) -> None:
        for k, seed in enumerate(self._seeds):
            for stage, (rate, epochs) in enumerate(stages):
                training = TRAINING.model_copy(update={"rate": rate, "most_epochs": epochs})
                begins = fresh and stage == 0
                fit = Fit(self.members[k], {SESSION: recording}, training, seed + stage, None if begins else ())
                while not fit.step():
                    pass
                self.members[k] = fit.finish()
                self.epochs += fit.progress.epoch
                self._say(f"epoch {self.epochs}: held-out correlation {fit.progress.best:.3f}")

    def _driven(self, made: Images) -> float:
        own = made.found.rates[range(len(made.columns)), made.found.best, 0]
        pictures = self._twin.eye.see(made.best)
        true = answers(self._twin, pictures).diagonal()
        return float(np.median(true / own))


def place(network: Network, pictures: Tensor, responses: F32) -> None:
    """Put each unit's point where pictures go best with its responses: from far away no gradient finds it.

    Two maps are added: contrast of the response-weighted average of pictures, for units that know light from dark, and
    the correlation of responses with local contrast, for those that do not; each relative to its usual deviation.
    """
    readout = network.of(SESSION).readout
    if not isinstance(readout, Point):
        raise TypeError(f"a point readout is needed, not {type(readout).__name__}")
    x = pictures[:, 0].numpy()
    fine = x - ndimage.gaussian_filter(x, (0, COARSE_PX, COARSE_PX))
    window = (0, WINDOW_PX, WINDOW_PX)
    energy = np.sqrt(ndimage.gaussian_filter(fine**2, window))
    weights = (responses - responses.mean(0)).T / len(x)
    light, contrast = (np.einsum("un,nyx->uyx", weights, v / v.std(0)) for v in (fine, energy - energy.mean(0)))
    rows, columns = readout.shape[1:]
    top, left = ((size - of) // 2 for size, of in zip(x.shape[1:], (rows, columns), strict=True))
    found = np.zeros((len(weights), rows * columns))
    for seen in (np.sqrt(ndimage.gaussian_filter(light**2, window)), contrast):
        flat = seen[:, top : top + rows, left : left + columns].reshape(len(seen), -1)
        away = flat - np.median(flat, axis=1, keepdims=True)
        found += away / np.median(np.abs(away), axis=1, keepdims=True)
    best = found.argmax(1)
    y, across = np.divmod(best, columns)
    at = np.stack([across / (columns - 1), y / (rows - 1)], 1) * 2 - 1
    with torch.no_grad():
        readout.mu.copy_(torch.from_numpy(at))


@torch.inference_mode()
def heard(network: Encoder, data: Simulated, photographs: npt.NDArray[np.int64]) -> list[float]:
    """Return each unit's correlation of prediction and response over pictures of photographs not trained on."""
    rows = np.flatnonzero(np.isin(data.photograph, photographs))
    parts = [network.rates(data.pictures[rows[k : k + AT_ONCE]]) for k in range(0, len(rows), AT_ONCE)]
    predicted, true = torch.cat(parts).double().numpy(), data.responses[rows].astype(np.float64)
    predicted, true = (v - v.mean(0) for v in (predicted, true))
    spread = np.sqrt((predicted**2).sum(0) * (true**2).sum(0))
    return [float(r) for r in (predicted * true).sum(0) / np.where(spread > 0, spread, np.inf)]


def images_of(
    encoder: Encoder,
    columns: tuple[int, ...],
    asked: AgreementBench,
    rng: np.random.Generator,
    device: torch.device = PROCESSOR,
) -> Images:
    """Return the images of units, from starts drawn anew; `device`: where the encoder is."""
    starts = draw(asked.starts, len(columns), encoder.eye, asked.settings, rng)
    found = synthesise(encoder, Maximise(columns), starts, asked.settings, device)
    return Images(encoder, columns, found, device)
