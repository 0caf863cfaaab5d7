"""How long the model takes: `python -m models.warmup CONFIG` makes real batches and prints one line of JSON.

Started by `stimloop check`. For each phase the agent of the config is built and asked as in a session; between two
batches it is told seeded made-up responses. Nothing is written and no socket opened.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.update(OMP_DYNAMIC="FALSE", MKL_DYNAMIC="FALSE")  # as the model server does

import numpy as np
import torch

from models.agents import Agent, Batch, Told, build_from_config
from models.agents.carried import Carried
from rig.clock import Clock, HostClock
from rig.config.places import usual
from rig.config.reading import load
from rig.config.session import FINDS_PLACES, Config
from stimuli.limits import mean_luminance
from stimuli.spec import LatentImage

BATCHES = 12
LONGEST_S = 4.0  # for one phase; fewer batches are made where they take long


def answers(batch: Batch, proposal: int, units: int, rng: np.random.Generator) -> list[Told]:
    """Return made-up outcomes for the whole plan of a batch."""
    return [
        Told(proposal, k, slot.role, batch.stimuli[slot.stimulus].id, rng.exponential(10.0, units))
        for k, slot in enumerate(batch.plan)
    ]


def time_phase(agent: Agent, units: int, clock: Clock, rng: np.random.Generator) -> dict[str, Any]:
    """Make batches of one agent and return figures.

    Times, s: the first batch, and percentiles of the others and of all steps. Of the first batch also the stimuli that
    the rig draws itself, and the mean luminance, 0-1, of each image that was generated.
    """
    steps, batches, tail = [], [], 0
    end_ns = clock.now_ns() + round(LONGEST_S * 1e9)
    for proposal in range(BATCHES):
        begin_ns = clock.now_ns()
        work = agent.ask()
        finished = False
        while not finished:
            start_ns = clock.now_ns()
            finished = work.step()
            steps.append((clock.now_ns() - start_ns) * 1e-9)
        batch = work.result()
        if not batch.plan:
            break  # a work that concluded the phase: nothing waits for it
        batches.append((clock.now_ns() - begin_ns) * 1e-9)
        if not proposal:
            first = batch
        tail = len(batch.plan) - batch.tail_from
        agent.tell(answers(batch, proposal, units, rng))
        if agent.finished() is not None or clock.now_ns() > end_ns:
            break
    later = batches[1:]
    return {
        "first_s": batches[0],
        "batches": len(later),
        "batch_p50_s": float(np.quantile(later, 0.5)) if later else 0.0,
        "batch_p99_s": float(np.quantile(later, 0.99)) if later else 0.0,
        "step_p50_s": float(np.quantile(steps, 0.5)),
        "step_p99_s": float(np.quantile(steps, 0.99)),
        "tail": tail,
        "place": None if first.place is None else first.place.model_dump(mode="json"),
        "stimuli": [s.model_dump(mode="json") for s in first.stimuli if not isinstance(s.spec, LatentImage)],
        "generated_luminance": [mean_luminance(frame) for frame in first.frames],
    }


def figures(config: Config, clock: Clock) -> dict[str, Any]:
    """Time all phases of a config."""
    begin_ns = clock.now_ns()
    torch.set_num_threads(config.processes.torch_threads)
    torch.use_deterministic_algorithms(True)
    build = build_from_config(config)
    rng = np.random.default_rng(config.seed)
    # What made-up responses cannot find: the place of `stimulus` and all units stand for what is to be found first.
    carried = [Carried(phase=0, agent="check", place=usual(config.stimulus), units=config.responses.units)]
    finds = any(phase.agent in FINDS_PLACES for phase in config.phases)
    start_s, units, phases = (clock.now_ns() - begin_ns) * 1e-9, len(config.responses.units), []
    for k, phase in enumerate(config.phases):
        begin_ns = clock.now_ns()
        agent = build(k, tuple(carried if finds else carried[1:]))
        start_s += (clock.now_ns() - begin_ns) * 1e-9
        phases.append({"phase": k, "agent": phase.agent, **time_phase(agent, units, clock, rng)})
        # What a map finds in made-up responses is of no use, and takes long to fit.
        left = Carried(k, phase.agent, **({} if phase.agent == "map" else agent.leaves()))
        # What was found in made-up responses stays out.
        found = replace(left, place=None, fields={}, places={}, units=(), window_s=None, locked_s=None, screened=None)
        carried.append(found)
    return {"start_s": start_s, "threads": torch.get_num_threads(), "phases": phases}


def main(arguments: list[str]) -> int:
    """Process entry."""
    try:
        config, _ = load(Path(arguments[0]))
        print(json.dumps(figures(config, HostClock())))  # noqa: T201 - the answer to who started it
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
