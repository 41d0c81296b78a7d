"""Posterior behaviour cloning: imitate the posterior over the demonstrator's action, not only its mean.

Paper: PostBC, arXiv 2512.16911. K networks are fitted on bootstrap resamples of whole demonstrations to predict the
chunk; their variance Var_k at (s, c) is the posterior spread. The flow is then trained on a + α ε_a,
ε_a ~ N(0, diag Var_k). Published: K = 10, three hidden layers of 512, α = 1. With α = 0 it is behaviour cloning.
Whole episodes are resampled: resampled single steps would make all members the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench import nets, seeding
from bench.config import option
from bench.policies import FlowPolicy
from bench.pretraining import Trainer
from bench.steering import SteeringConfig
from bench.types import Demos
from methods import bc

paper = "PostBC, arXiv 2512.16911, with DSRL steering"
agent = bc.agent


@dataclass(frozen=True)
class Config(SteeringConfig):
    """The ensemble that measures the posterior spread, and how much of it is imitated."""

    profiles: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": {"members": 3, "width": 32, "steps": 60},
        "quick": {"members": 5, "steps": 1000},
        "paper": {"width": 512, "steps": 20_000, "batch": 256},
    }
    alpha: float = option(
        1.0, "share of the posterior spread added to the targets", low=0.0, high=100.0, stage="pretrain",
        search={"space": "noise", "low": 0.25, "high": 16.0, "log": True, "axis": "level"},
    )  # fmt: skip
    members: int = option(10, "K: bootstrap networks", low=2, high=100, stage="pretrain")
    width: int = option(256, "width of their three hidden layers (published: 512)", low=8, stage="pretrain")
    steps: int = option(1500, "their training", unit="gradient steps", low=1, stage="pretrain")
    batch: int = option(128, "samples per member in a batch", low=1, stage="pretrain")
    learning_rate: float = option(1e-3, "AdamW's peak learning rate", low=0.0, high=1.0, stage="pretrain")


def pretrain(demos: Demos, config: Config, trainer: Trainer) -> FlowPolicy:
    """Fit the ensemble, then the flow on targets perturbed by its spread."""
    return trainer.flow(target_std=config.alpha * posterior_std(config, trainer))


def posterior_std(config: Config, trainer: Trainer) -> Tensor:
    """Deviation over the members of the predicted chunk at every step, (N, H, A) in normalised action units."""
    features = trainer.no_policy().to(trainer.device).conditions(trainer.s, trainer.c)
    target = ((trainer.a - trainer.a.mean(0)) / trainer.a.std(0).clamp_min(1e-3))[trainer.index].flatten(1)
    weight = trainer.weight.repeat_interleave(trainer.dims.action, dim=1)
    with seeding.fence(seeding.child(trainer.seed, "posterior", "init")):
        ensemble = nets.ensemble_mlp(config.members, features.shape[1], (config.width,) * 3, target.shape[1])
    ensemble.to(trainer.device)
    resamples = bootstrap(config.members, trainer)
    lengths = torch.tensor([len(rows) for rows in resamples])

    def loss(step: int) -> Tensor:
        draw = torch.rand((config.members, config.batch), generator=trainer.generator("posterior", step))
        picks = (draw * lengths[:, None]).long()
        rows = torch.stack([resample[pick] for resample, pick in zip(resamples, picks, strict=True)])
        error: Tensor = (ensemble(features[rows]) - target[rows]).square() * weight[rows]
        return error.sum() / weight[rows].sum() * config.members

    trainer.fit("posterior", ensemble, loss, config.steps, config.learning_rate)
    with torch.inference_mode():
        spread = [ensemble(part.expand(config.members, -1, -1)).std(0) for part in torch.split(features, 4096)]
    return torch.cat(spread).clone().view(len(features), trainer.dims.chunk, trainer.dims.action)


def bootstrap(members: int, trainer: Trainer) -> list[Tensor]:
    """For each member the rows of as many episodes as there are, drawn with replacement."""
    ends = torch.from_numpy(trainer.demos.ends)
    starts = torch.cat([torch.zeros(1, dtype=ends.dtype), ends[:-1]])
    resamples = []
    for k in range(members):
        draws = trainer.generator("bootstrap", k)
        chosen = torch.randint(len(ends), (len(ends),), generator=draws)
        resamples.append(torch.cat([torch.arange(int(starts[e]), int(ends[e])) for e in chosen]))
    return resamples
