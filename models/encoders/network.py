"""An encoder of our own: eye, shared core, a readout for each recording session, gaze, behaviour, output.

    rate = scale · gain(behaviour) · f( readout( core(x), shift(gaze) ) ),

f: ELU + 1, softplus, or nothing. `models.encoders.training` fits it, one optimiser step at a time.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.encoders.cores import build_core
from models.encoders.encoder import Seen
from models.encoders.eye import Eye
from models.encoders.readouts import Point, Readout, build_readout, rows_of
from models.encoders.weights import digest_of, take_weights, weights_of
from rig.config.encoders import Architecture

SESSION = re.compile(r"[A-Za-z0-9_-]+")  # what torch takes as the name of a part
SHIFTER_HIDDEN = 5  # gaze: 2-5-5-2 (Walker 2019)
ROUNDING = 1e-3  # of a feature: a point on one may take a trace of its neighbour
GAIN_HIDDEN = 10  # behaviour: 10 hidden (Walker 2019)


class Session(nn.Module):
    """What belongs to one recording session: its units' readout, response scale, gaze shift and gain."""

    def __init__(self, architecture: Architecture, readout: Readout, units: Sequence[str]) -> None:
        super().__init__()
        if len(set(units)) != len(units):
            raise ValueError("an encoder's units need names of their own; one occurs twice")
        self.units = tuple(units)
        self.readout = readout
        self.register_buffer("scale", torch.ones(len(units)))
        self.shift = Shift() if architecture.gaze else None
        self.gain = Gain(architecture.behaviours, len(units)) if architecture.behaviours else None

    scale: Tensor

    def rows(self) -> dict[str, Tensor]:
        """Return parameters and buffers with one row for each unit, by name."""
        found: dict[str, Tensor] = {f"readout.{name}": rows for name, rows in rows_of(self.readout)}
        return found | {"scale": self.scale} | ({"gain.weight": self.gain.weight} if self.gain else {})


class Gain(nn.Module):
    """Gain of each unit, exp(g(behaviour) - g(mean)): 1 at the mean behaviour, and everywhere before training."""

    def __init__(self, behaviours: int, units: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(behaviours))
        self.register_buffer("sd", torch.ones(behaviours))
        self.hidden = nn.Sequential(nn.Linear(behaviours, GAIN_HIDDEN), nn.ReLU())
        self.weight = nn.Parameter(torch.zeros(units, GAIN_HIDDEN))

    mean: Tensor
    sd: Tensor

    def forward(self, behaviour: Tensor, units: Tensor | None) -> Tensor:
        """Return gains (n, unit) for behaviour (n, variable)."""
        weight = self.weight if units is None else self.weight[units]
        x = (behaviour - self.mean) / self.sd
        return torch.exp((self.hidden(x) - self.hidden(torch.zeros_like(x[:1]))) @ weight.T)


class Shift(nn.Module):
    """Shift of all points with gaze, in units of half the features' extent; none at the mean gaze (2-5-5-2, tanh)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("sd", torch.ones(2))
        h = SHIFTER_HIDDEN
        self.layers = nn.Sequential(
            nn.Linear(2, h), nn.Tanh(), nn.Linear(h, h), nn.Tanh(), nn.Linear(h, 2), nn.Tanh()
        )

    mean: Tensor
    sd: Tensor

    def forward(self, gaze: Tensor) -> Tensor:
        """Return shifts (n, 2) for gaze (n, 2)."""
        x = (gaze - self.mean) / self.sd
        found: Tensor = self.layers(x) - self.layers(torch.zeros_like(x[:1]))
        return found


class Network(nn.Module):
    """Core and readouts; offers what `models.encoders.encoder.Encoder` asks for, for its current session."""

    def __init__(
        self,
        architecture: Architecture,
        eye: Eye,
        sessions: Mapping[str, Sequence[str]],
        seed: int = 0,
        cortex: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Make fresh weights from `seed`, in evaluation mode, without gradients. Raises ValueError.

        `sessions`: the units of each recording; the last one is the current one. `cortex`: where the cells of each
        lie, (unit, 2), -1 to 1, for points that are predicted from it.
        """
        super().__init__()
        if not sessions:
            raise ValueError("an encoder needs the units of at least one session")
        if bad := [key for key in sessions if not SESSION.fullmatch(key)]:
            raise ValueError(f"session {bad[0]!r}: use letters, digits, - and _ for an encoder's sessions")
        self.architecture, self._eye = architecture, eye
        if architecture.predicts_points and set(cortex or {}) != set(sessions):
            raise ValueError("readout {type: point, cortex: true} needs the cortical positions of all units")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.core = build_core(architecture.core, eye)
            self.sessions = nn.ModuleDict(
                {key: self._fresh(units, (cortex or {}).get(key)) for key, units in sessions.items()}
            )
        self.session = next(reversed(list(sessions)))
        self.eval().requires_grad_(False)

    @property
    def units(self) -> tuple[str, ...]:
        """Return the current session's units."""
        return self.of(self.session).units

    @property
    def eye(self) -> Eye:
        """Return the eye."""
        return self._eye

    @property
    def name(self) -> str:
        """Return core, readout and a hash over architecture, eye, units and weights."""
        return f"{self.architecture.core.type}+{self.architecture.readout.type}-{digest_of(self, self._head())}"

    def of(self, session: str) -> Session:
        """Return the part of a session. Raises ValueError."""
        if session not in self.sessions:
            raise ValueError(f"session {session!r} is none of this encoder's: {', '.join(self.sessions)}")
        found = self.sessions[session]
        if not isinstance(found, Session):
            raise TypeError(f"session {session!r} is a {type(found).__name__}")
        return found

    def rates(self, x: Tensor, units: Tensor | None = None) -> Tensor:
        """Return mean responses (n, unit) of the current session, at the mean gaze and behaviour."""
        return self.responses(x, self.session, units)

    def responses(
        self,
        x: Tensor,
        session: str,
        units: Tensor | None = None,
        gaze: Tensor | None = None,
        behaviour: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Return mean responses (n, unit) for inputs (n, channels, y, x).

        `gaze` (n, 2) and `behaviour` (n, variable): as recorded; None: at their means in training. `noise` (n, unit,
        2): standard normal, draws the points of a point readout; None: at their means.
        """
        return self.responses_to(self.core(x), session, units, gaze, behaviour, noise)

    def responses_to(
        self,
        features: Tensor,
        session: str,
        units: Tensor | None = None,
        gaze: Tensor | None = None,
        behaviour: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """As `responses`, for the core's features (n, k, y, x)."""
        part = self.of(session)
        shift = None
        if gaze is not None:
            if part.shift is None:
                raise ValueError("this encoder has no gaze shifter; set gaze: true in its architecture")
            shift = part.shift(gaze)
        rate = self.output(part.readout(features, units, shift, noise))
        if behaviour is not None:
            if part.gain is None:
                raise ValueError("this encoder has no behaviour gain; set behaviours in its architecture")
            rate = rate * part.gain(behaviour, units)
        return rate * (part.scale if units is None else part.scale[units])

    def seen(self, unit: int) -> Seen:
        """Return the pixels that can change the unit's response: the field of the features around its point."""
        eye, field, readout = self._eye, self.core.field, self.of(self.session).readout
        if field is None or not isinstance(readout, Point):
            return Seen(0, eye.height, 0, eye.width)
        with torch.inference_mode():
            x, y = readout.points(torch.tensor([unit]))[0].clamp(-1, 1).tolist()  # beyond the border: taken at it
        (y0, y1), (x0, x1) = (
            _span(at, size, field.start, field.step, field.size, pixels)
            for at, size, pixels in ((y, self.core.shape[1], eye.height), (x, self.core.shape[2], eye.width))
        )
        return Seen(y0, y1, x0, x1)

    def add_session(self, session: str, units: Sequence[str], seed: int, cortex: Tensor | None = None) -> None:
        """Add a recording with fresh readout rows on the shared core; it becomes the current one. Raises ValueError."""
        if session in self.sessions or not SESSION.fullmatch(session):
            raise ValueError(f"session {session!r}: give a name of its own, of letters, digits, - and _")
        if self.architecture.predicts_points and cortex is None:
            raise ValueError(f"session {session}: give the cortical positions of all its units")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.sessions[session] = self._fresh(units, cortex).eval().requires_grad_(False)
        self.session = session

    def change_units(
        self, session: str, units: Sequence[str], seed: int, cortex: Tensor | None = None
    ) -> tuple[int | None, ...]:
        """Let a session have these units: rows of known ones stay to the bit, new ones are fresh, the others go.

        `cortex` (unit, 2): of all units, where points are predicted from it. Returns the old row of each unit.
        """
        old = self.of(session)
        at = {unit: k for k, unit in enumerate(old.units)}
        kept = tuple(at.get(unit) for unit in units)
        if self.architecture.predicts_points and cortex is None:
            raise ValueError(f"session {session}: give the cortical positions of all its units")
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            new = self._fresh(units, cortex)
            rows, before = new.rows(), old.rows()
            shared = {n: t for n, t in old.state_dict().items() if n not in before and n != "readout.cortex"}
            new.load_state_dict(shared, strict=False)
            for name, tensor in rows.items():
                for row, source in enumerate(kept):
                    if source is not None:
                        tensor[row] = before[name][source]
        self.sessions[session] = new.eval().requires_grad_(False)
        return kept

    def state(self) -> dict[str, Any]:
        """Return settings, units and weights: JSON-able values and float arrays."""
        return {**self._head(), "session": self.session, "weights": weights_of(self)}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state: same architecture and eye; its sessions and units become this encoder's."""
        mine = self._head()
        for key in ("architecture", "eye"):
            if state[key] != mine[key]:
                raise ValueError(f"encoder: this state has {key} {state[key]}, the encoder {mine[key]}")
        with torch.random.fork_rng(devices=[]):
            self.sessions = nn.ModuleDict({key: self._fresh(units) for key, units in state["units"].items()})
        take_weights(self, state["weights"])
        self.session = str(state["session"])
        self.eval().requires_grad_(False)

    def _fresh(self, units: Sequence[str], cortex: Tensor | None = None) -> Session:
        readout = build_readout(self.architecture.readout, self.core.shape, len(units), cortex)
        return Session(self.architecture, readout, units)

    def _head(self) -> dict[str, Any]:
        eye = self._eye
        return {
            "kind": "network",
            "architecture": self.architecture.model_dump(mode="json"),
            "eye": [*eye.shape, list(eye.mean), list(eye.sd)],
            "units": {key: list(self.of(key).units) for key in self.sessions},
        }

    def output(self, drive: Tensor) -> Tensor:
        """Return rates for a readout's drive, before the units' scale."""
        if self.architecture.output == "elu_plus_one":
            return nn.functional.elu(drive) + 1
        if self.architecture.output == "softplus":
            return nn.functional.softplus(drive)
        return drive


def linear_nonlinear(eye: Eye, units: Sequence[str], output: str = "softplus", seed: int = 0) -> Network:
    """Return a linear-nonlinear encoder: a weight for each pixel, then `output`; see `fill_full` for given weights."""
    architecture = Architecture.model_validate(
        {"core": {"type": "pixels"}, "readout": {"type": "full"}, "output": output}
    )
    return Network(architecture, eye, {"session": units}, seed)


def fill_full(network: Network, weights: npt.NDArray[np.floating], bias: npt.NDArray[np.floating]) -> None:
    """Give a full readout of the current session weights (unit, feature) and biases (unit,), as of a ridge.

    Features are the core's, `network.core(x).flatten(1)`: in the order channel, y, x. With `output: none` the encoder
    is then the ridge's prediction; `models.readouts.streaming` gives its weights as (feature, unit).
    """
    readout = network.of(network.session).readout
    with torch.no_grad():
        for name, values in (("weight", weights), ("bias", bias)):
            parameter = dict(rows_of(readout)).get(name)
            if parameter is None or parameter.shape != values.shape:
                wanted = "no such parameter" if parameter is None else tuple(parameter.shape)
                raise ValueError(f"readout: {name} of shape {values.shape}; this encoder takes {wanted}")
            parameter.copy_(torch.from_numpy(np.array(values, dtype=np.float32)))


def _span(at: float, size: int, start: int, step: int, width: int, pixels: int) -> tuple[int, int]:
    """Return first and last + 1 pixel that the two features around `at` (-1 to 1 over `size` of them) see."""
    place = (at + 1) / 2 * (size - 1)
    low, high = int(np.floor(place - ROUNDING)), int(np.ceil(place + ROUNDING))
    return max(start + step * low, 0), min(start + step * high + width, pixels)
