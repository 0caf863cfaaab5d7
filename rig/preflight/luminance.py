"""The pictures of a session: are they within the limits of a frame, and can an order of them make too many flashes.

The pictures are those that the model's warm-up names, drawn by the session's own `rig.display.frames.FrameMaker`;
flashes are counted by the limit that refuses frames in a session (`stimuli.limits`).
"""

from math import ceil
from typing import Any

import numpy as np

from rig.config.session import Config
from rig.display.frames import FrameMaker
from rig.display.places import places
from rig.messages import Proposal
from rig.preflight.result import Result
from stimuli.bank import folder_bank
from stimuli.limits import FLASH_AREA_SR, FLASH_STEP, SECOND_NS, FlashLimit, Light, Spot
from stimuli.spec import Blank, Place, Stimulus
from stimuli.tiles import built_in_banks

MOST_PICTURES = 400  # a second or two of drawing; of more pictures an even choice is drawn
NAMED = 6
IN_A_ROW = 2  # a set is shown in blocks: a picture may end one and begin the next
ROUNDS = 200  # presentations of the random order, at least
REFUSED_FAIL = 0.02
SEED = 20261121
GENERATED = "generated image"


def luminance(config: Config, figures: dict[str, Any]) -> Result:
    """Judge the pictures in the figures of `models.warmup`."""
    try:
        frames = _frame_maker(config)
    except (OSError, ValueError) as error:
        return Result("luminance", "fail", f"not looked at: {error}", "see geometry and image banks")
    levels, refused, left = _levels(frames, figures)
    grey = frames.grey.luminance
    if refused:
        some = "; ".join(f"{name}: {why}" for name, why in list(refused.items())[:2])
        named = ", ".join(list(refused)[:NAMED])
        said = f"{len(refused)} of {len(levels) + len(refused)} images would be refused: {named}"
        cure = "take them out of the bank, or widen limits.mean_level or max_rms_contrast knowingly"
        return Result("luminance", "fail", f"{said} ({some})", cure)
    low, high = min(levels, key=levels.__getitem__), max(levels, key=levels.__getitem__)
    said = (
        f"{len(levels)} images of {levels[low]:.2f} ({low}) to {levels[high]:.2f} ({high}) of white, background "
        f"{grey:.2f}" + (f"; {left} more were not drawn" if left else "")
    )
    spot = max((square.spot for square in places(config).all_named(config)), key=lambda spot: spot.area_sr)
    if spot.area_sr < FLASH_AREA_SR:
        return Result("luminance", "ok", f"{said}; the image is too small to be a large flash")
    if config.guest is not None:
        return Result("luminance", "ok", f"{said}; the guest sets the rhythm")
    return _flashes(config, levels, grey, spot, said)


def _frame_maker(config: Config) -> FrameMaker:
    banks = {name: folder_bank(path) for name, path in config.banks.items()}
    background = config.display.background
    banks |= built_in_banks(float(background), config.natural_contrast)
    return FrameMaker(places(config), background, config.display.gamma, config.limits, banks)


def _levels(frames: FrameMaker, figures: dict[str, Any]) -> tuple[dict[str, float], dict[str, str], int]:
    """Return the luminance of each picture, why those that are refused are, and how many were not drawn."""
    given = {
        (s["id"], repr(phase.get("place"))): (Stimulus.model_validate(s), _place(phase.get("place")))
        for phase in figures["phases"]
        for s in phase["stimuli"]
    }
    stimuli = [one for one in given.values() if not isinstance(one[0].spec, Blank)]
    chosen = [stimuli[k] for k in np.unique(np.linspace(0, len(stimuli) - 1, MOST_PICTURES).astype(int)) if stimuli]
    levels = {"blank": frames.grey.luminance}
    refused: dict[str, str] = {}
    for stimulus, place in chosen:
        made = frames.make(_bare(stimulus, place), stimulus)
        if made.refused:
            refused[stimulus.id] = made.refused
        else:
            levels[stimulus.id] = made.luminance
    for k, phase in enumerate(figures["phases"]):
        levels |= {f"{GENERATED} {k + 1}.{n}": level for n, level in enumerate(phase["generated_luminance"])}
    return levels, refused, len(stimuli) - len(chosen)


def _place(place: dict[str, Any] | None) -> Place | None:
    return None if place is None else Place.model_validate(place)


def _bare(stimulus: Stimulus, place: Place | None) -> Proposal:
    """Return a proposal that holds nothing but a stimulus which needs no frame of it."""
    return Proposal(
        proposal=0, phase=0, agent="check", generation=0, model_version="", stimuli=(stimulus,), plan=(), tail_from=1,
        final=True, fallback=(), frames=np.empty((0, 1, 1, 3), np.uint8), latents=np.empty((0, 0), np.float32),
        place=place,
    )  # fmt: skip


# --- flashes ----------------------------------------------------------------------------------------------------------


def _flashes(config: Config, levels: dict[str, float], grey: float, spot: Spot, said: str) -> Result:
    """Try the orders with the most flashes, and a random one, at the rhythm of the config."""
    limits, names = config.limits, list(levels)
    values = np.array([levels[name] for name in names])
    count = min(len(names) * IN_A_ROW, ceil(1 / (config.presentation.on_s + config.presentation.off_s)) + 2)
    orders = [[float(values[k]) for k in order[:count]] for order in _orders(values, grey)]
    tried = [_refused(config, order, grey, spot) for order in orders]
    worst = min((found.index(True) for found in tried if True in found), default=None)
    if worst is None:
        told = f"{said}; not even their worst orders make more than {limits.max_flash_hz:g} flashes/s"
        return Result("luminance", "ok", told)
    rng = np.random.default_rng(SEED)
    rounds = ceil(ROUNDS / len(names))
    random = [float(values[k]) for _ in range(rounds) for k in rng.permutation(len(names))]
    refused = float(np.mean(_refused(config, random, grey, spot)))
    off = np.abs(values - grey)
    strong = [names[k] for k in np.argsort(-off) if off[k] >= FLASH_STEP and not names[k].startswith(GENERATED)]
    strong = strong or [names[int(np.argmax(values))], names[int(np.argmin(values))]]
    some = ", ".join(f"{name} ({levels[name]:.2f})" for name in strong[:NAMED])
    some += f" and {len(strong) - NAMED} more" if len(strong) > NAMED else ""
    cure = (
        f"take these out of the bank or give them the background's mean: {some}; lengthen presentation.off_s, or raise "
        "limits.max_flash_hz knowingly"
    )
    told = (
        f"{said}; in the worst order image {worst + 1} would make more than {limits.max_flash_hz:g} flashes/s, "
        f"in a random order {refused:.1%} of the presentations: the background is shown instead"
    )
    return Result("luminance", "fail" if refused > REFUSED_FAIL else "warn", told, cure)


def _orders(values: np.ndarray, grey: float) -> list[list[int]]:
    """Return orders with the most flashes: farthest from grey first, and high and low in turn, each side first."""
    far, low, high = (np.repeat(np.argsort(by), IN_A_ROW).tolist() for by in (-np.abs(values - grey), values, -values))
    turns = [[k for pair in zip(a, b, strict=True) for k in pair] for a, b in ((high, low), (low, high))]
    return [far, *turns]


def _timed(config: Config, presentation: int) -> tuple[int, int]:
    """Return onset and offset, ns, of a presentation in the rhythm of the config."""
    rhythm = config.presentation
    trial, place = divmod(presentation, rhythm.images_per_trial)
    period_s = rhythm.on_s + rhythm.off_s
    trial_s = (rhythm.images_per_trial - 1) * period_s + rhythm.on_s + max(rhythm.inter_trial_s, rhythm.off_s)
    start_s = trial * trial_s + place * period_s
    return SECOND_NS + round(start_s * SECOND_NS), SECOND_NS + round((start_s + rhythm.on_s) * SECOND_NS)


def _refused(config: Config, values: list[float], grey: float, spot: Spot) -> list[bool]:
    """Return for each presentation whether its frame is refused; the background is shown instead, as in a session."""
    limit, out = FlashLimit(grey, config.limits.max_flash_hz), list[bool]()
    for k, level in enumerate(values):
        onset_ns, offset_ns = _timed(config, k)
        planned = [Light(onset_ns, level, spot)]
        if config.presentation.off_s or (k + 1) % config.presentation.images_per_trial == 0:
            planned.append(limit.cleared(offset_ns))
        out.append(bool(limit.refusal(planned, level)))
        limit.shown(Light(onset_ns, grey if out[-1] else level, spot))
        if len(planned) > 1:
            limit.shown(planned[1])
    return out
