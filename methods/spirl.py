"""Skills from demonstrations: a latent space of action chunks with a learned prior, which the agent stays close to.

Paper: SPiRL, "Accelerating Reinforcement Learning with Learned Skill Priors", arXiv 2010.11944. A variational
autoencoder of chunks, q(k ∣ a) and p(a ∣ k), and a prior p(k ∣ s, c) are trained together (section 3.2):
‖a − â‖² + β KL(q ‖ N(0, I)) + KL(⌊q⌋ ‖ p(k ∣ s, c)), where ⌊·⌋ stops the gradient. SAC then chooses skills, with the
divergence from the prior in place of the entropy (section 3.3), its weight tuned to a target divergence.

The agent's z is the skill in the prior's own coordinates, k = μ(s, c) + σ(s, c) z, where the prior is N(0, I): the
divergence between normals is the same there. So z ~ N(0, I) is the policy before reinforcement. z = b tanh(u) is
bounded; near 0, where the prior lies, u is z / b, and the divergence is taken of u from N(0, 1 / b²).
Published skills last 10 control steps and are executed whole; here they are the harness's chunks, of which E steps are
executed. Encoder, decoder and prior are MLPs (published: an LSTM decoder).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench import kernels, policies, seeding
from bench.config import option
from bench.nets import PolicyConfig
from bench.pretraining import Trainer
from bench.steering import frozen
from bench.types import Agent, Arrays, Demos, Dims, FloatArray, Group, PolicyInputs, Progress

paper = "SPiRL, arXiv 2010.11944"
profiles = ("smoke", "standard", "paper")
LOG_STD = -5.0, 2.0  # bounds of log deviations


@dataclass(frozen=True)
class Config:
    """The skill space, and how close the agent stays to the prior."""

    skill: int = option(10, "dimensions of a skill", low=1, high=256, stage="pretrain")
    beta: float = option(
        5e-4, "β: weight of KL(q ‖ N(0, I)) against the squared error of the chunk", low=0.0, high=10.0,
        stage="pretrain", search={"space": "noise", "low": 1e-4, "high": 1e-1, "log": True},
    )  # fmt: skip
    bound: float = option(3.0, "z lies in [−bound, bound]", unit="deviations of the prior", low=0.1, high=10.0)
    divergence: float = option(
        1.0, "divergence from the prior that is aimed at", unit="nats per decision", low=0.0, high=100.0,
        search={"space": "rl", "low": 0.1, "high": 10.0, "log": True},
    )  # fmt: skip


class SkillPolicy(policies.BasePolicy):
    """z (B, K) in the prior's coordinates → chunk."""

    kind = "skills"

    def __init__(self, dims: Dims, config: PolicyConfig, positions: policies.Positions, skill: int) -> None:
        super().__init__(dims, config, positions)
        self.skill, size = skill, dims.chunk * dims.action
        self.encoder = mlp(size, config, 2 * skill)
        self.decoder = mlp(skill, config, size)
        self.prior = mlp(self.width, config, 2 * skill)

    @property
    def latent(self) -> tuple[int, ...]:
        return (self.skill,)

    def losses(self, condition: Tensor, chunk: Tensor, weight: Tensor, noise: Tensor, beta: float) -> Tensor:
        """The three terms summed: condition (B, F), chunk (B, H, A) normalised, weight (B, H), noise (B, K)."""
        mean, log_std = gaussian(self.encoder(chunk.flatten(1)))
        decoded = self.decoder(mean + log_std.exp() * noise).view_as(chunk)
        error = ((decoded - chunk).square().mean(2) * weight).sum() / weight.sum()
        start = divergence(mean, log_std, torch.zeros_like(mean), torch.zeros_like(mean))
        prior = divergence(mean.detach(), log_std.detach(), *gaussian(self.prior(condition)))
        return error + beta * start + prior  # type: ignore[no-any-return]

    @torch.inference_mode()
    def act(self, s: FloatArray, c: FloatArray, z: FloatArray, sigma: FloatArray, eps: FloatArray) -> FloatArray:
        """(B, S), (B, C), z (B, K) → chunk (B, H, A) within [-1, 1]; σ and ε have no part in it."""
        s_t, c_t, z_t = self._tensors(s, c, z)
        mean, log_std = gaussian(self.prior(self.conditions(s_t, c_t)))
        chunk = self.decoder(mean + log_std.exp() * z_t).view(-1, self.dims.chunk, self.dims.action)
        out: FloatArray = (chunk * self.a_std + self.a_mean).clamp(-1, 1).cpu().numpy()
        return out

    @torch.inference_mode()
    def invert(self, s: FloatArray, c: FloatArray, chunk: FloatArray) -> FloatArray:
        """(B, S), (B, C), (B, H, A) → z (B, K): the encoder's mean in the prior's coordinates."""
        s_t, c_t, a = self._tensors(s, c, chunk)
        mean, log_std = gaussian(self.prior(self.conditions(s_t, c_t)))
        skill, _ = gaussian(self.encoder(((a - self.a_mean) / self.a_std).flatten(1)))
        return ((skill - mean) / log_std.exp()).cpu().numpy()

    def spec(self) -> dict[str, Any]:
        return super().spec() | {"skill": self.skill}


def mlp(inputs: int, config: PolicyConfig, outputs: int) -> nn.Sequential:
    """As many hidden layers of the policy's width as it has blocks."""
    sizes = [inputs, *[config.width] * config.blocks]
    layers: list[nn.Module] = []
    for i, o in pairwise(sizes):
        layers += [kernels.Linear(i, o), nn.LayerNorm(o), nn.SiLU()]
    return nn.Sequential(*layers, kernels.Linear(sizes[-1], outputs))


def gaussian(outputs: Tensor) -> Sequence[Tensor]:
    """(B, 2K) → mean and log deviation (B, K)."""
    mean, log_std = outputs.chunk(2, dim=1)
    return mean, log_std.clamp(*LOG_STD)


def divergence(mean: Tensor, log_std: Tensor, other: Tensor, other_log_std: Tensor) -> Tensor:
    """KL of the normals (mean, log deviation), all (B, K), summed over K and averaged over B, in nats."""
    ratio = (log_std - other_log_std).exp().square()
    terms = other_log_std - log_std + 0.5 * (ratio + ((mean - other) / other_log_std.exp()).square() - 1)
    return terms.sum(1).mean()


def pretrain(demos: Demos, config: Config, trainer: Trainer) -> SkillPolicy:
    """Encoder, decoder and prior on the chunks of the demonstrations."""
    with seeding.fence(seeding.child(trainer.seed, "init")):
        policy = SkillPolicy(trainer.dims, trainer.policy_config, trainer.positions, config.skill)
    policy.fit_normaliser(trainer.s, trainer.c, trainer.a)
    policy.to(trainer.device)
    actions = (trainer.a - policy.a_mean) / policy.a_std
    conditions = policy.conditions(trainer.s, trainer.c)

    def loss(step: int) -> Tensor:
        rows = trainer.batch(step)[0]
        noise = torch.randn((len(rows), config.skill), generator=trainer.generator("skill", step)).to(trainer.device)
        chunk = actions[trainer.index[rows]]
        return policy.losses(conditions[rows], chunk, trainer.weight[rows], noise, config.beta)

    trainer.fit("skills", policy, loss, trainer.config.steps, trainer.config.learning_rate)
    return policy.eval()


def load(folder: Path) -> SkillPolicy:
    """The frozen policy in the folder. Raises InputError if a file is missing, broken or does not fit."""
    spec, dims, config, positions = policies.read(folder)
    policy = SkillPolicy(dims, config, positions, int(spec["skill"]))
    policy.restore(folder)
    return policy


def agent(config: Config, dims: Dims) -> Agent:
    """One group, z, kept close to the prior."""

    def inputs(action: Arrays, noise: Arrays, progress: Progress) -> PolicyInputs:
        return action["z"], np.zeros(len(action["z"]), np.float32), noise["eps"]

    def encode(z: FloatArray) -> FloatArray:
        return np.clip(z / config.bound, -1.0, 1.0).astype(np.float32)

    group = Group("z", config.skill, -config.bound, config.bound, -config.divergence, prior=1 / config.bound)
    return Agent((group,), inputs, frozen, encode, {"entropy_in_target": True})
