"""Agents: what to show next. `build` makes the agent of a phase; the contract is in `models.agents.types`."""

from models.agents.builder import build, build_from_config
from models.agents.types import Agent, Batch, Told, Work

__all__ = ["Agent", "Batch", "Told", "Work", "build", "build_from_config"]
