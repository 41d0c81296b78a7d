"""Context-smoothed pretraining: the context is noised by forward diffusion and the policy is told the noise level σ.

Paper: TMRL, arXiv 2605.12236, context-smoothed pretraining. c̃ = √ᾱ(σ) c + √(1 − ᾱ(σ)) ε, ε ~ N(0, I); the flow is
trained as v_θ(x_τ, τ, s, c̃, σ) → z − a with σ drawn per sample. σ → 0 is precise imitation p(a ∣ c); where the schedule
ends in pure noise, σ → 1 is the marginal p(a). One set of weights holds the whole spectrum; σ ≡ 0 is behaviour cloning.

Published: 100 steps of linear β from 1e-4 to 0.02, so ᾱ(1) = 0.364, on raw coordinates. During fine-tuning the agent
steers z (DSRL) while σ follows a schedule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from bench.config import option
from bench.nets import ContextNoise
from bench.policies import FlowPolicy
from bench.pretraining import Trainer
from bench.steering import SteeringConfig, encode_z, frozen, steer_z, z_group
from bench.types import Agent, Arrays, Demos, Dims, PolicyInputs, Progress

paper = "CSP (TMRL, arXiv 2605.12236) with DSRL steering"
GRID = 101  # points of ᾱ over σ in [0, 1]: the published T = 100 steps
PUBLISHED_END = 0.364


@dataclass(frozen=True)
class Pretraining(SteeringConfig):
    """How the context is noised in pretraining."""

    profiles: ClassVar[dict[str, dict[str, Any]]] = {"paper": {"sigma_training": "uniform", "raw": True}}
    noise: str = option(
        "linear_beta", "shape of ᾱ over σ: published linear β, squared cosine, or linear in σ",
        choices=("linear_beta", "cosine", "linear"), stage="pretrain",
        search={"space": "noise", "choices": ("linear_beta", "cosine", "linear")},
    )  # fmt: skip
    end: float = option(
        PUBLISHED_END, "ᾱ(1): share of the context's variance left at σ = 1; 0 is pure noise", low=0.0, high=1.0,
        stage="pretrain", search={"space": "noise", "low": 1e-3, "high": 0.6, "log": True, "axis": "level"},
    )  # fmt: skip
    sigma_training: str = option(
        "mixed", "distribution of σ in training: U(0, 1) as published, mixed with σ = 0, or always 0",
        choices=("uniform", "mixed", "zero"), stage="pretrain",
        search={"space": "noise", "choices": ("uniform", "mixed")},
    )  # fmt: skip
    clean: float = option(
        0.5, "share of samples with σ = 0 when sigma_training is mixed", low=0.0, high=1.0, stage="pretrain"
    )
    noised: tuple[str, ...] = option(
        (), "context keys that are noised; empty: all", stage="pretrain", context_keys=True,
        search={"space": "noise", "choices": "context"},
    )  # fmt: skip
    raw: bool = option(False, "noise raw coordinates, as published, instead of normalised ones", stage="pretrain")


@dataclass(frozen=True)
class Config(Pretraining):
    """Pretraining, and the schedule of σ during fine-tuning."""

    schedule: str = option(
        "constant", "σ during fine-tuning", choices=("constant", "linear", "cosine", "exponential", "success"),
        search={"space": "schedule", "choices": ("constant", "linear", "cosine", "exponential", "success"),
                "axis": "schedule"},
    )  # fmt: skip
    start: float | None = option(
        None, "σ at the start; auto: the one with the best Success@1 on the selection states", low=0.0, high=1.0,
        search={"space": "schedule", "low": 0.0, "high": 1.0, "axis": "level"},
    )  # fmt: skip
    stop: float = option(
        0.0, "σ at the end of a schedule", low=0.0, high=1.0,
        search={"space": "schedule", "low": 0.0, "high": 0.5,
                "when": {"schedule": ("linear", "cosine", "exponential", "success")}},
    )  # fmt: skip
    length: float = option(
        0.5, "length of a schedule", unit="share of the decisions", low=0.01, high=1.0,
        search={"space": "schedule", "low": 0.1, "high": 1.0,
                "when": {"schedule": ("linear", "cosine", "exponential")}},
    )  # fmt: skip


def alpha_bar(shape: str, end: float) -> tuple[float, ...]:
    """ᾱ on GRID even points of σ, from exactly 1 to `end`."""
    sigma = np.linspace(0.0, 1.0, GRID)
    if shape == "linear_beta":
        beta = np.linspace(1e-4, 0.02, GRID - 1)
        decay = np.concatenate([[0.0], np.cumsum(np.log1p(-beta))])
        table = np.exp(decay / decay[-1] * math.log(max(end, 1e-6)))
    elif shape == "cosine":
        table = end + (1 - end) * np.cos(sigma * math.pi / 2) ** 2
    else:
        table = 1 - (1 - end) * sigma
    table[0], table[-1] = 1.0, end
    return tuple(float(x) for x in table)


def context_noise(config: Pretraining, dims: Dims) -> ContextNoise:
    """The noise of the configuration; entries of the keys in `noised`, or all."""
    mask = [not config.noised or key in config.noised for key, n in dims.context_keys.items() for _ in range(n)]
    return ContextNoise(alpha_bar(config.noise, config.end), tuple(mask), config.raw)


def pretrain(demos: Demos, config: Pretraining, trainer: Trainer) -> FlowPolicy:
    """The conditional flow with σ drawn per sample and the context noised by it."""

    def sigma(draws: torch.Generator, batch: int) -> Tensor:
        level = torch.rand((batch,), generator=draws)
        if config.sigma_training == "zero":
            return torch.zeros_like(level)
        if config.sigma_training == "mixed":
            keep = torch.rand((batch,), generator=draws) >= config.clean
            return level * keep
        return level

    return trainer.flow(context_noise(config, trainer.dims), sigma)


def scheduled_sigma(config: Config, progress: Progress) -> float:
    """σ of the schedule at this point of fine-tuning."""
    start = progress.base_sigma if config.start is None else config.start
    x = min(1.0, progress.fraction / config.length)
    if config.schedule == "constant":
        return start
    if config.schedule == "success":
        x = progress.success
    elif config.schedule == "cosine":
        x = 0.5 - 0.5 * math.cos(math.pi * x)
    elif config.schedule == "exponential":
        x = (1 - math.exp(-5 * x)) / (1 - math.exp(-5))
    return start + (config.stop - start) * x


def agent(config: Config, dims: Dims) -> Agent:
    """The agent controls z; σ follows the schedule; ε is drawn afresh for every decision."""

    def inputs(action: Arrays, noise: Arrays, progress: Progress) -> PolicyInputs:
        sigma = np.full(len(action["z"]), scheduled_sigma(config, progress), np.float32)
        return steer_z(action["z"], dims, config), sigma, noise["eps"]

    groups, selects = (z_group(config, dims),), config.start is None
    return Agent(groups, inputs, frozen, lambda z: encode_z(z, config), selects_sigma=selects)
