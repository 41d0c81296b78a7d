"""Reinforcement learning from scratch with the demonstrations in every batch; there is no base policy.

Paper: RLPD, "Efficient Online Reinforcement Learning with Offline Data", arXiv 2302.02948: SAC whose batches are half
demonstrations (symmetric sampling), with layer normalisation in the critics. What this harness keeps equal for all
methods stays equal: the number of critics, gradient steps per decision, and that a decision is E control steps. So the
RL action is one environment action, (A,), that is held for a decision, or one per control step, (E, A), with which it
learnt far less on tuning seeds; published RLPD decides at every control step, with ten critics and 20 gradient steps.
The agent's range may be wider than the action space, to which actions are clipped: it then begins with larger ones, as
an agent does whose noise z may reach into the tails.
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
    action_bound: float = option(
        1.0, "the agent's range of an action entry, of which 1 is the action space's half range; clipped to that",
        low=0.1, high=10.0, search={"space": "rl", "low": 1.0, "high": 6.0},
    )  # fmt: skip
    demo_share: float = option(
        0.5, "share of every batch that comes from demonstrations", low=0.0, high=0.99,
        search={"space": "rl", "low": 0.0, "high": 0.75},
    )  # fmt: skip
    action: str = option(
        "held", "one environment action for each control step of a decision, or one that is held",
        choices=("free", "held"), search={"space": "rl", "choices": ("free", "held")},
    )  # fmt: skip


def pretrain(demos: Demos, config: Config, trainer: Trainer) -> ActionPolicy:
    """Nothing is trained: only the scales of the agent's features, if any, come from the demonstrations."""
    return trainer.no_policy()


def agent(config: Config, dims: Dims) -> Agent:
    """One group, the actions of a decision, with target entropy minus their number."""
    steps = dims.execute if config.action == "free" else 1

    def inputs(action: Arrays, noise: Arrays, progress: Progress) -> PolicyInputs:
        given = action["action"].reshape(-1, steps, dims.action)
        z = np.zeros((len(given), dims.chunk, dims.action), np.float32)
        z[:, : dims.execute] = np.clip(given, -1.0, 1.0)
        return z, np.zeros(len(z), np.float32), noise["eps"]

    def encode(z: FloatArray) -> FloatArray:
        taken = z[:, : dims.execute]
        nearest = taken if config.action == "free" else taken.mean(axis=1)
        return np.clip(nearest.reshape(len(z), -1) / config.action_bound, -1.0, 1.0).astype(np.float32)

    size = steps * dims.action
    group = Group("action", size, -config.action_bound, config.action_bound, -float(size))
    return Agent((group,), inputs, frozen, encode, {"demo_fraction": config.demo_share})
