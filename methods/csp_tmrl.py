"""Timestep-modulated reinforcement learning: the agent chooses z and the context's noise level σ, and ε or not.

Paper: TMRL, arXiv 2605.12236. The base policy is csp's. π(z, σ ∣ s) is the paper's agent; the public code lets the
agent choose ε as well, which at high σ amounts to writing a context of its own: `learn_eps`. What the choice of σ is
worth shows against two controls, σ drawn at random and σ held: `sigma`. Ours gathers what an untrained agent chooses
around the σ that is best before RL: `start` and `exponent`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from scipy.special import ndtr

from bench.config import option
from bench.steering import encode_z, frozen, steer_z, z_group
from bench.types import Agent, Arrays, Dims, FloatArray, Group, InputError, PolicyInputs, Progress
from methods import csp

paper = "CSP + TMRL, arXiv 2605.12236"
pretrain = csp.pretrain


@dataclass(frozen=True)
class Config(csp.Pretraining):
    """csp's pretraining, and what the agent may choose."""

    profiles: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": csp.Pretraining.profiles["paper"] | {"start": 0.5, "exponent": 1.0, "learn_eps": True}
    }
    sigma: str = option(
        "agent", "σ is chosen by the agent, drawn from U(0, sigma_bound) for every decision, or sigma_bound throughout",
        choices=("agent", "random", "constant"),
    )  # fmt: skip
    sigma_bound: float = option(
        1.0, "largest σ", low=0.0, high=1.0,
        search={"space": "noise", "low": 0.1, "high": 1.0, "axis": "level"},
    )  # fmt: skip
    start: float | None = option(
        None, "σ where the agent begins, at most sigma_bound; auto: the best in Success@1 on the selection states",
        low=0.0, high=1.0, search={"space": "schedule", "low": 0.0, "high": 1.0, "axis": "level"},
    )  # fmt: skip
    exponent: float = option(
        3.0, "σ leaves `start` with the agent's choice to this power: 1 evenly, more keeps random choices near it",
        low=1.0, high=10.0, search={"space": "schedule", "low": 1.0, "high": 5.0},
    )  # fmt: skip
    learn_eps: bool = option(
        False,
        "the agent chooses ε (public code); off: ε is drawn (paper)",
        search={"space": "noise", "choices": (True, False)},
    )
    eps_bound: float = option(
        1.5, "ε lies in [−bound, bound] if learned", unit="deviations", low=0.0, high=10.0,
        search={"space": "noise", "low": 0.5, "high": 3.0, "when": {"learn_eps": (True,)}},
    )  # fmt: skip


def chosen_sigma(config: Config, choice: FloatArray, progress: Progress) -> FloatArray:
    """σ (B,) of the agent's choice (B,) in [-1, 1]: 0 at −1, `start` in the middle, `sigma_bound` at 1."""
    start = min(progress.base_sigma if config.start is None else config.start, config.sigma_bound)
    share = np.sign(choice) * np.abs(choice) ** config.exponent
    return np.asarray(np.interp(share, (-1.0, 0.0, 1.0), (0.0, start, config.sigma_bound)), np.float32)


def agent(config: Config, dims: Dims) -> Agent:
    """Groups z and, where they are the agent's, σ and ε, with target entropies −A, −1 and −C."""
    groups = [z_group(config, dims)]
    if config.sigma == "agent":
        groups.append(Group("sigma", 1, -1.0, 1.0, -1.0))
    if config.learn_eps:
        groups.append(Group("eps", dims.context, -config.eps_bound, config.eps_bound, -float(dims.context)))

    def inputs(action: Arrays, noise: Arrays, progress: Progress) -> PolicyInputs:
        eps = action["eps"] if config.learn_eps else noise["eps"]
        return steer_z(action["z"], dims, config), sigma(action, noise, progress), eps

    def sigma(action: Arrays, noise: Arrays, progress: Progress) -> FloatArray:
        if config.sigma == "agent":
            return chosen_sigma(config, action["sigma"][:, 0], progress)
        share = np.ones(len(action["z"]))
        if config.sigma == "random":  # the agent chose z, so the z drawn for it serves no other purpose
            share = ndtr(noise["z"].reshape(len(share), -1)[:, 0])
        return np.asarray(config.sigma_bound * share, np.float32)

    def encode(z: FloatArray) -> FloatArray:
        """Demonstrations are repeated without noise: σ = 0, and ε = 0 where it is learned."""
        if config.sigma != "agent":
            raise InputError(f"csp_tmrl.sigma = {config.sigma} noises demonstrations: leave rl.demo_fraction at 0")
        least = np.full((len(z), 1), -1.0)
        eps = np.zeros((len(z), dims.context if config.learn_eps else 0))
        action: FloatArray = np.concatenate([encode_z(z, config), least, eps], axis=1).astype(np.float32)
        return action

    selects = config.sigma == "agent" and config.start is None
    return Agent(tuple(groups), inputs, frozen, encode, selects_sigma=selects)
