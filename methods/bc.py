"""Behaviour cloning, fine-tuned by steering the flow's noise.

Paper: DSRL, "Steering Your Diffusion Policy with Latent Space Reinforcement Learning", arXiv 2506.15799 (the SAC
variant): the policy stays frozen and the agent chooses z, the point on the flow at τ = 1. The policy is a conditional
flow with loss ‖v_θ(x_τ, τ, s, c) − (z − a)‖², x_τ = (1 − τ) a + τ z.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bench.policies import FlowPolicy
from bench.pretraining import Trainer
from bench.steering import SteeringConfig, encode_z, frozen, steer_z, z_group
from bench.types import Agent, Arrays, Demos, Dims, PolicyInputs, Progress

paper = "DSRL on behaviour cloning, arXiv 2506.15799"


@dataclass(frozen=True)
class Config(SteeringConfig):
    """How far the agent may steer."""


def pretrain(demos: Demos, config: Config, trainer: Trainer) -> FlowPolicy:
    """The conditional flow on the demonstrations as they are: c̃ = c, no σ."""
    return trainer.flow()


def agent(config: SteeringConfig, dims: Dims) -> Agent:
    """The agent controls z alone."""

    def inputs(action: Arrays, noise: Arrays, progress: Progress) -> PolicyInputs:
        return steer_z(action["z"], dims, config), np.zeros(len(action["z"]), np.float32), noise["eps"]

    return Agent((z_group(config, dims),), inputs, frozen, lambda z: encode_z(z, config))
