"""Residual reinforcement learning: the agent adds a small correction to what the frozen cloned policy does.

Paper: "Residual Reinforcement Learning for Robot Control", arXiv 1812.03201, a = π_base(s, c) + δ, with a bound on δ
and off-policy learning as in "Policy Decorator", arXiv 2412.13630. The base policy is bc's; its noise z is drawn anew
for every decision. δ lies in [−bound, bound] of the action's range and the sum is clipped to the action space. A
decision has one δ, (A,), that is held for its E control steps, or, as published, one for each, (E, A), with which it
learnt less on tuning seeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from bench.config import option
from bench.steering import frozen
from bench.types import Agent, Arrays, Dims, FloatArray, Group, InputError, PolicyInputs, Progress
from methods import bc

paper = "residual RL on behaviour cloning, arXiv 1812.03201 and 2412.13630"
profiles = ("smoke", "standard", "paper")
pretrain = bc.pretrain


@dataclass(frozen=True)
class Config:
    """How far the agent may correct, and how often."""

    profiles: ClassVar[dict[str, dict[str, Any]]] = {"paper": {"correction": "free"}}
    correction_bound: float = option(
        0.2, "largest correction of an action entry, of which 1 is the action space's half range", low=0.0, high=10.0,
        search={"space": "rl", "low": 0.05, "high": 6.0, "log": True},
    )  # fmt: skip
    correction: str = option(
        "held", "one correction for each control step of a decision, or one that is held",
        choices=("free", "held"), search={"space": "rl", "choices": ("free", "held")},
    )  # fmt: skip


def agent(config: Config, dims: Dims) -> Agent:
    """One group, the corrections of a decision, with target entropy minus their number."""
    steps = dims.execute if config.correction == "free" else 1
    size = steps * dims.action

    def inputs(action: Arrays, noise: Arrays, progress: Progress) -> PolicyInputs:
        return noise["z"], np.zeros(len(noise["z"]), np.float32), noise["eps"]

    def correct(chunk: FloatArray, action: Arrays) -> FloatArray:
        """(B, H, A) → (B, H, A); only the steps that are executed change."""
        out = chunk.copy()
        delta = action["correction"].reshape(-1, steps, dims.action)
        out[:, : dims.execute] = np.clip(out[:, : dims.execute] + delta, -1.0, 1.0)
        return out

    def encode(z: FloatArray) -> FloatArray:
        raise InputError("rl.demo_fraction: a residual agent corrects what the policy does and cannot repeat a chunk")

    group = Group("correction", size, -config.correction_bound, config.correction_bound, -float(size))
    return Agent((group,), inputs, frozen, encode, correct=correct)
