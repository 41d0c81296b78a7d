"""Reinforcement learning from scratch with the demonstrations in every batch; there is no base policy.

Paper: RLPD, "Efficient Online Reinforcement Learning with Offline Data", arXiv 2302.02948: SAC whose batches are half
demonstrations (symmetric sampling), with layer normalisation in the critics. What this harness keeps equal for all
methods stays equal: the number of critics, gradient steps per decision, and that a decision is E control steps. So the
RL action is one environment action, (A,) in [-1, 1], that is held for a decision, or one per control step, (E, A), with
which it learnt far less on tuning seeds; published RLPD decides at every control step, with ten critics and 20 gradient
steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from bench.config import option
from bench.policies import ActionPolicy
from bench.pretraining import Trainer
from bench.steering import frozen
from bench.types import Agent, Arrays, Demos, Dims, FloatArray, Group, PolicyInputs, Progress

paper = "RLPD, arXiv 2302.02948"
profiles = ("smoke", "standard", "paper")


@dataclass(frozen=True)
class Config:
    """The demonstrations' share, and the shape of an action."""

    profiles: ClassVar[dict[str, dict[str, Any]]] = {"paper": {"action": "free"}}
    demo_share: float = option(
        0.5, "share of every batch that comes from demonstrations", low=0.0, high=0.99,
        search={"space": "rl", "low": 0.0, "high": 0.75},
    )  # fmt: skip
    action: str = option(
        "held", "one environment action for each control step of a decision, or one that is held",
        choices=("free", "held"), search={"space": "rl", "choices": ("free", "held")},
    )  # fmt: skip


def pretrain(demos: Demos, config: Config, trainer: Trainer) -> ActionPolicy:
    """Nothing is trained: only the scales of the agent's features come from the demonstrations."""
    return trainer.no_policy()


def agent(config: Config, dims: Dims) -> Agent:
    """One group, the actions of a decision, with target entropy minus their number."""
    steps = dims.execute if config.action == "free" else 1

    def inputs(action: Arrays, noise: Arrays, progress: Progress) -> PolicyInputs:
        given = action["action"].reshape(-1, steps, dims.action)
        z = np.zeros((len(given), dims.chunk, dims.action), np.float32)
        z[:, : dims.execute] = given
        return z, np.zeros(len(z), np.float32), noise["eps"]

    def encode(z: FloatArray) -> FloatArray:
        taken = z[:, : dims.execute]
        nearest = taken if config.action == "free" else taken.mean(axis=1)
        return np.clip(nearest.reshape(len(z), -1), -1.0, 1.0).astype(np.float32)

    group = Group("action", steps * dims.action, -1.0, 1.0, -float(steps * dims.action))
    return Agent((group,), inputs, frozen, encode, {"demo_fraction": config.demo_share})
