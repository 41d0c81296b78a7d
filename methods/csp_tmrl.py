"""Timestep-modulated reinforcement learning: the agent chooses z and the context's noise level σ, and ε or not.

Paper: TMRL, arXiv 2605.12236. The base policy is csp's. π(z, σ ∣ s) is the paper's agent; the public code lets the
agent choose ε as well, which at high σ amounts to writing a context of its own: `learn_eps`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bench.config import option
from bench.steering import encode_z, frozen, steer_z, z_group
from bench.types import Agent, Arrays, Dims, FloatArray, Group, PolicyInputs, Progress
from methods import csp

paper = "CSP + TMRL, arXiv 2605.12236"
pretrain = csp.pretrain


@dataclass(frozen=True)
class Config(csp.Pretraining):
    """csp's pretraining, and what the agent may choose."""

    sigma_bound: float = option(
        1.0, "largest σ the agent may choose", low=0.0, high=1.0,
        search={"space": "noise", "low": 0.1, "high": 1.0, "axis": "level"},
    )  # fmt: skip
    learn_eps: bool = option(
        True,
        "the agent chooses ε (public code); off: ε is drawn (paper)",
        search={"space": "noise", "choices": (True, False)},
    )
    eps_bound: float = option(
        1.5, "ε lies in [−bound, bound] if learned", unit="deviations", low=0.0, high=10.0,
        search={"space": "noise", "low": 0.5, "high": 3.0, "when": {"learn_eps": (True,)}},
    )  # fmt: skip


def agent(config: Config, dims: Dims) -> Agent:
    """Groups z, σ and, if learned, ε, with target entropies −A, −1 and −C."""
    groups = [z_group(config, dims), Group("sigma", 1, 0.0, config.sigma_bound, -1.0)]
    if config.learn_eps:
        groups.append(Group("eps", dims.context, -config.eps_bound, config.eps_bound, -float(dims.context)))

    def inputs(action: Arrays, noise: Arrays, progress: Progress) -> PolicyInputs:
        eps = action["eps"] if config.learn_eps else noise["eps"]
        return steer_z(action["z"], dims, config), action["sigma"][:, 0], eps

    def encode(z: FloatArray) -> FloatArray:
        """Demonstrations are repeated without noise: σ = 0, and ε = 0 where it is learned."""
        sigma, eps = np.full((len(z), 1), -1.0), np.zeros((len(z), dims.context if config.learn_eps else 0))
        action: FloatArray = np.concatenate([encode_z(z, config), sigma, eps], axis=1).astype(np.float32)
        return action

    return Agent(tuple(groups), inputs, frozen, encode)
