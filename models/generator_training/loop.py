"""Trains the decoder on patches, with checkpoints from which it goes on exactly.

Called by `stimloop train-generator`. The patches drawn in step k depend on the seed and k alone. Time is an argument.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.generator_training.codes import EARLY_BLOCK, LOSS_BLOCKS, Codes, channel_statistics, measure, rescale
from models.generator_training.features import LAST_BLOCK, Features
from models.generator_training.losses import (
    CRITIC_BLOCKS,
    Critics,
    Statistics,
    adversarial_loss,
    critics_loss,
    feature_loss,
    image_loss,
    standardised,
    texture_loss,
)
from models.generators.natural_decoder import NaturalDecoder

U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Settings:
    """What decides a training run, with the patches."""

    latent: int = 512
    widths: tuple[int, int, int, int] = (192, 96, 32, 16)
    batch: int = 12
    sampled: int = 4
    """Codes of each batch that belong to no photograph: drawn from the prior, or mixed from two photographs' codes."""
    rate: float = 1.5e-3
    critics_rate: float = 1e-3
    image_weight: float = 1.0
    feature_weight: float = 1.0
    texture_weight: float = 1.0
    code_weight: float = 0.3
    adversarial_weight: float = 0.05
    feature_from: int = 400
    """Step from which features are compared; levels alone come first, at a third of the time per picture."""
    sampled_from: int = 850
    """Step from which codes of no photograph are drawn."""
    adversarial_from: int = 1800
    """Step from which the adversarial loss counts: with a decoder that draws too little yet it does harm."""
    critics_head_start: int = 250
    """Steps by which the critics begin to learn before they are listened to."""
    averaging: float = 0.995
    """Decay of the moving average of the weights, which is what is shipped."""
    half_precision: bool = False
    """The decoder computes in bfloat16 while training: a third faster on processors that have it."""
    code_patches: int = 5_000
    """Patches from which the code is computed: components from three quarters, scale from the rest."""
    seed: int = 1


class Training:
    """Decoder, its moving average, critics and their optimisers, at some step."""

    def __init__(self, settings: Settings, codes: Codes, statistics: Statistics) -> None:
        """Start from the inverse of the code's components."""
        self.settings, self.codes, self.statistics = settings, codes, statistics
        torch.manual_seed(settings.seed)
        self.decoder = _new_decoder(settings, codes)
        self.average = _new_decoder(settings, codes)
        self.average.load_state_dict(self.decoder.state_dict())
        self.critics = Critics({block: len(statistics[block][0]) for block in CRITIC_BLOCKS})
        drawing = [p for p in self.decoder.parameters() if p.requires_grad]
        self.optimiser = torch.optim.Adam(drawing, lr=settings.rate, betas=(0.8, 0.99))
        self.critics_optimiser = torch.optim.Adam(
            self.critics.parameters(), lr=settings.critics_rate, betas=(0.5, 0.99)
        )
        self.step, self.seconds = 0, 0.0
        self.exchange: Callable[[list[Tensor]], None] | None = None
        """Averages gradients in place with other processes that take the same step on other patches."""

    def update(self, patches: U8, encoder: Features, rng: np.random.Generator, pace: float) -> dict[str, float]:
        """Take one step on patches (n, y, x, rgb); `pace` scales the learning rates. Returns the losses."""
        s = self.settings
        levels = torch.from_numpy(patches).permute(0, 3, 1, 2).float() / 255
        featured, sampled = self.step >= s.feature_from, s.sampled if self.step >= s.sampled_from else 0
        with torch.no_grad():
            raw = encoder(levels, LOSS_BLOCKS)
            codes = self.codes.encode(self.codes.components(levels, raw))
            codes = torch.cat([codes, sampled_codes(codes, sampled, rng)])
        with torch.autocast("cpu", torch.bfloat16, enabled=bool(s.half_precision)):
            drawn = self.decoder.unbounded(codes).float()
        n = len(patches)
        losses = {"image": image_loss(drawn[:n], levels)}
        total = s.image_weight * losses["image"]
        if not featured:
            self._descend(self.optimiser, total, self.decoder, s.rate * pace)
        else:
            real = standardised(raw, self.statistics)
            bounded = drawn.clamp(0, 1)
            seen_raw = encoder(bounded, LOSS_BLOCKS)
            seen = standardised(seen_raw, self.statistics)
            own = {block: x[:n] for block, x in seen.items()}
            losses["feature"], losses["texture"] = feature_loss(own, real), texture_loss(own, real)
            # clipped levels have no gradient of their own
            total = total + s.feature_weight * losses["feature"] + (drawn - bounded).abs().mean()
            total = total + s.texture_weight * losses["texture"]
            if sampled:
                found = self.codes.components(bounded[n:], {block: x[n:] for block, x in seen_raw.items()})
                losses["code"] = (found - self.codes.expected(codes[n:])).abs().mean()
                total = total + s.code_weight * losses["code"]
            self._with_critics(total, real, seen, losses, pace)
        self._average()
        self.step += 1
        return {name: float(loss.detach()) for name, loss in losses.items()}

    def _with_critics(
        self, total: Tensor, real: dict[int, Tensor], seen: dict[int, Tensor], losses: dict[str, Tensor], pace: float
    ) -> None:
        """Lower `total` and the adversarial loss, then the critics' own; before their time, `total` alone."""
        s = self.settings
        judged = {block: seen[block] for block in CRITIC_BLOCKS}
        if s.adversarial_weight > 0 and self.step >= s.adversarial_from:
            self.critics.requires_grad_(False)
            losses["adversarial"] = adversarial_loss(self.critics(judged))
            self.critics.requires_grad_(True)
            ramp = min(1.0, (self.step - s.adversarial_from + 1) / 200)
            total = total + ramp * s.adversarial_weight * losses["adversarial"]
        self._descend(self.optimiser, total, self.decoder, s.rate * pace)
        if s.adversarial_weight > 0 and self.step >= s.adversarial_from - s.critics_head_start:
            photographs = self.critics({block: real[block] for block in CRITIC_BLOCKS})
            pictures = self.critics({block: x.detach() for block, x in judged.items()})
            losses["critics"] = critics_loss(photographs, pictures)
            self._descend(self.critics_optimiser, losses["critics"], self.critics, s.critics_rate * pace)

    def _descend(self, optimiser: torch.optim.Optimizer, loss: Tensor, network: nn.Module, rate: float) -> None:
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (self.step + 1) / 50)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.exchange is not None:
            self.exchange([p.grad for p in network.parameters() if p.grad is not None])
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()

    def _average(self) -> None:
        decay = min(self.settings.averaging, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for kept, now in zip(self.average.parameters(), self.decoder.parameters(), strict=True):
                if now.requires_grad:
                    kept.lerp_(now, 1 - decay)

    def save(self, path: Path) -> None:
        """Write a checkpoint: torch file of tensors and plain numbers, replaced at once."""
        partial = path.with_suffix(".part")
        torch.save({
            "settings": {**asdict(self.settings), "widths": list(self.settings.widths)},
            "statistics": {block: list(pair) for block, pair in self.statistics.items()},
            "codes": self.codes.state_dict(),
            "decoder": self.decoder.state_dict(), "average": self.average.state_dict(),
            "critics": self.critics.state_dict(), "optimiser": self.optimiser.state_dict(),
            "critics_optimiser": self.critics_optimiser.state_dict(), "step": self.step, "seconds": self.seconds,
        }, partial)
        partial.replace(path)


def load_training(path: Path, **changes: Any) -> Training:
    """Return the training of a checkpoint; `changes` replace settings (not those of the code or the network)."""
    kept = torch.load(path, weights_only=True)
    names = {field.name for field in fields(Settings)}
    known = {key: value for key, value in kept["settings"].items() if key in names}
    settings = Settings(**{**known, "widths": tuple(known["widths"]), **changes})
    codes = Codes(settings.latent, len(kept["codes"]["feature_mean"]))
    codes.load_state_dict(kept["codes"])
    out = Training(settings, codes, {int(block): (pair[0], pair[1]) for block, pair in kept["statistics"].items()})
    for part in ("decoder", "average", "critics", "optimiser", "critics_optimiser"):
        getattr(out, part).load_state_dict(kept[part])
    out.step, out.seconds = kept["step"], kept["seconds"]
    return out


def _new_decoder(settings: Settings, codes: Codes) -> NaturalDecoder:
    decoder = NaturalDecoder(settings.latent, len(codes.feature_mean), settings.widths)
    with torch.no_grad():
        decoder.components.weight.copy_(codes.restore.T)
        decoder.components.bias.copy_(codes.mean)
        decoder.last.weight.mul_(0.1)  # the first pictures are the coarse ones of the code
        if decoder.last.bias is not None:
            decoder.last.bias.zero_()
    decoder.components.requires_grad_(False)  # no linear map from the code restores its components better
    return decoder


def sampled_codes(codes: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    """Return codes of no photograph, as an evolution meets them: half from the prior, half crossed from two of `codes`.

    A cross takes each value from one of two parents, as genetic algorithms do.
    """
    prior = count // 2
    drawn = torch.from_numpy(rng.standard_normal((prior, codes.shape[1]), dtype=np.float32))
    first, second = rng.integers(len(codes), size=(2, count - prior))
    chosen = torch.from_numpy(rng.random((count - prior, codes.shape[1])) < 0.5)
    return torch.cat([drawn, torch.where(chosen, codes[first], codes[second])])


def begin(patches: U8, encoder: Features, settings: Settings) -> Training:
    """Measure the code on patches (n, y, x, rgb) and return a training at step 0."""
    rng = np.random.default_rng([settings.seed, 0])
    chosen = np.sort(rng.permutation(len(patches))[: settings.code_patches])
    batches = [
        torch.from_numpy(patches[part]).permute(0, 3, 1, 2).float() / 255
        for part in np.array_split(chosen, min(len(chosen), max(4, len(chosen) // 32)))
    ]
    few = batches[: max(1, 640 // 32)]
    with torch.no_grad():
        statistics = channel_statistics((encoder(batch, LOSS_BLOCKS) for batch in few), LOSS_BLOCKS)
    fresh = max(1, len(batches) // 4)  # not seen by `measure`: they set the scale of the code's values
    codes = measure(batches[fresh:], encoder, statistics, settings.latent, settings.seed)
    with torch.no_grad():
        rows = [codes.components(batch, encoder(batch, (EARLY_BLOCK, LAST_BLOCK))) for batch in batches[:fresh]]
        rescale(codes, codes.encode(torch.cat(rows)))
    return Training(settings, codes, statistics)


def train(
    training: Training,
    patches: U8,
    encoder: Features,
    *,
    images: int | None,
    seconds: float | None,
    now: Callable[[], float],
    checkpoint: Path | None,
    checkpoint_s: float,
    say: Callable[[str], None],
    rank: int = 0,
) -> None:
    """Train until `images` patches were seen or `seconds` of training time were used, earlier runs included.

    `now` returns seconds on any steady clock; a checkpoint is written every `checkpoint_s` seconds and at the end.
    Processes that average their gradients have different `rank`; only the first writes checkpoints.
    Over the last 40 % of the budget the learning rates fall to a twentieth.
    """
    s = training.settings
    last = saved = now()
    means: dict[str, float] = {}
    while True:
        done = max(
            0.0 if images is None else training.step * s.batch / images,
            0.0 if seconds is None else training.seconds / seconds,
        )
        if done >= 1:
            break
        rng = np.random.default_rng([s.seed, 1 + rank, training.step])
        chosen = np.sort(rng.integers(len(patches), size=s.batch))
        losses = training.update(patches[chosen], encoder, rng, min(1.0, max(0.05, (1 - done) / 0.4)))
        for name, loss in losses.items():
            means[name] = 0.98 * means.get(name, loss) + 0.02 * loss
        time = now()
        training.seconds += time - last
        last = time
        if training.exchange is not None:  # all processes stop after the same step
            shared = torch.tensor([training.seconds], dtype=torch.float64)
            training.exchange([shared])
            training.seconds = float(shared)
        if training.step % 20 == 0:
            line = " ".join(f"{name} {value:.4f}" for name, value in means.items())
            say(f"step {training.step} images {training.step * s.batch} minutes {training.seconds / 60:.1f} {line}")
        if checkpoint is not None and time - saved > checkpoint_s:
            training.save(checkpoint)
            saved = time
    if checkpoint is not None:
        training.save(checkpoint)
