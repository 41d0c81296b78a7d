"""Networks: normaliser with Fourier features, velocity nets (residual MLP or transformer), batched ensembles.

Notation as in the methods' papers: s (B, S), c (B, C), chunk a (B, H, A), flow time τ with x_τ = (1 − τ) a + τ z,
context noise level σ in [0, 1] with c̃ = √ᾱ(σ) c + √(1 − ᾱ(σ)) ε.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench import kernels
from bench.config import option
from bench.types import Dims, InputError, Task

SIGMA_FEATURES = 8


@dataclass(frozen=True)
class PolicyConfig:
    """The base policy's network and chunking; the same for every method."""

    chunk: int = option(8, "H: length of an action chunk", unit="control steps", low=1, high=256)
    execute: int = option(
        8, "E: control steps of a chunk that are executed (one decision)", unit="control steps", low=1
    )
    architecture: str = option("mlp", "network of the flow", choices=("mlp", "transformer"))
    width: int = option(256, "width of the network", low=8, high=4096)
    blocks: int = option(3, "residual blocks or transformer layers", low=1, high=64)
    heads: int = option(4, "attention heads (transformer)", low=1, high=64)
    fourier: int = option(0, "octaves of Fourier features of positions; 0: none", low=0, high=16)
    context: str = option(
        "task", "c: what the task names so, or every observation, as published on pointmaze; s is then empty",
        choices=("task", "observation"),
    )  # fmt: skip
    normalise: bool = option(True, "scale s and c to mean 0 and deviation 1; off: raw values, as published")
    euler_steps: int = option(10, "integration steps from noise to action", low=1, high=1000)


def split(task: Task, config: PolicyConfig) -> Task:
    """The task with its observations divided into s and c as the policy gets them."""
    return task.split((*task.state_keys, *task.context_keys)) if config.context == "observation" else task


class ContextNoise(nn.Module):
    """How σ noises the context: ᾱ on an even grid over [0, 1], which entries of c are noised, in which space."""

    _alpha_bar: Tensor
    _mask: Tensor

    def __init__(self, alpha_bar: tuple[float, ...], mask: tuple[bool, ...], raw: bool = False) -> None:
        """`alpha_bar`: ᾱ(0) = 1 first; `mask` (C,); `raw`: noise the raw values instead of the normalised ones."""
        super().__init__()
        self.alpha_bar, self.mask, self.raw = alpha_bar, mask, raw
        self.register_buffer("_alpha_bar", torch.tensor(alpha_bar), persistent=False)
        self.register_buffer("_mask", torch.tensor(mask, dtype=torch.bool), persistent=False)

    def corrupt(self, c: Tensor, sigma: Tensor, eps: Tensor) -> Tensor:
        """c (B, C), σ (B,), ε (B, C) → c̃ (B, C); entries outside the mask pass unchanged (TMRL, forward diffusion)."""
        table = self._alpha_bar
        position = sigma.clamp(0, 1) * (len(table) - 1)
        low = position.floor().long().clamp(max=len(table) - 2)
        alpha = torch.lerp(table[low], table[low + 1], position - low)[:, None]
        noised = alpha.sqrt() * c + (1 - alpha).sqrt() * eps
        return torch.where(self._mask, noised, c)


def time_features(t: Tensor, size: int = 16) -> Tensor:
    """Sinusoidal embedding of τ: (B,) → (B, size)."""
    frequency = torch.exp(torch.linspace(0.0, math.log(100.0), size // 2, device=t.device))
    angle = t[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def flow_times(steps: int) -> Tensor:
    """τ = 1/n, 2/n, …, 1, at which Euler's n steps ask for the velocity."""
    return torch.arange(1, steps + 1) / steps


def sigma_features(sigma: Tensor) -> Tensor:
    """(B,) → (B, SIGMA_FEATURES); exactly 0 at σ = 0, so that a network told σ ≡ 0 is the network without σ."""
    k = torch.arange(1, SIGMA_FEATURES, device=sigma.device)
    return torch.cat([sigma[:, None], torch.sin(sigma[:, None] * k * (math.pi / 2))], dim=1)


def zeroed(layer: nn.Linear) -> nn.Linear:
    """The layer with all parameters 0."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class VelocityNet(nn.Module):
    """v_θ(x, τ, cond, σ): what τ, s, c̃ and σ say adds up to one drive; `forward(x, drive)` is the subclass's."""

    embed_tau: nn.Module
    embed_cond: nn.Module
    embed_sigma: nn.Module

    def time(self, tau: Tensor) -> Tensor:
        """(B,) → (B, width)."""
        return self.embed_tau(time_features(tau))  # type: ignore[no-any-return]

    def condition(self, cond: Tensor, sigma: Tensor | None) -> Tensor:
        """What does not change along the flow: (B, F), (B,) or None → (B, width)."""
        h: Tensor = self.embed_cond(cond)
        return h if sigma is None else h + self.embed_sigma(sigma_features(sigma))


class ResidualMLP(VelocityNet):
    """The chunk is flattened; pre-normalised residual blocks."""

    def __init__(self, dims: Dims, cond: int, config: PolicyConfig) -> None:
        super().__init__()
        size, width = dims.chunk * dims.action, config.width
        self.embed_x: nn.Linear = kernels.Linear(size, width)
        self.embed_tau: nn.Linear = kernels.Linear(16, width)
        self.embed_cond: nn.Linear = kernels.Linear(cond, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), kernels.Linear(width, width), nn.SiLU(), kernels.Linear(width, width))
            for _ in range(config.blocks)
        )
        self.head = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), kernels.Linear(width, size))
        self.embed_sigma: nn.Linear = zeroed(kernels.Linear(SIGMA_FEATURES, width, bias=False))

    @property
    def first(self) -> list[nn.Linear]:
        """The layers whose sum enters the first block."""
        return [self.embed_x, self.embed_tau, self.embed_cond, self.embed_sigma]

    @staticmethod
    def inputs(x: Tensor, tau: Tensor, cond: Tensor, sigma: Tensor | None) -> Tensor:
        """What those layers get, side by side: (B, H, A), (B,), (B, F), (B,) → (B, I). Without σ as with σ = 0."""
        level = torch.zeros_like(tau) if sigma is None else sigma
        return torch.cat([x.flatten(1), time_features(tau), cond, sigma_features(level)], dim=1)

    def forward(self, x: Tensor, drive: Tensor) -> Tensor:
        """x (B, H, A), time + condition (B, width) → velocity (B, H, A)."""
        h = self.embed_x(x.flatten(1)) + drive
        for block in self.blocks:
            h = h + block(h)
        out: Tensor = self.head(h)
        return out.view_as(x)


class TransformerBlock(nn.Module):
    """Self-attention over the chunk with adaptive layer norms (AdaLN) driven by the condition."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.qkv, self.out = kernels.Linear(width, 3 * width), kernels.Linear(width, width)
        self.mlp = nn.Sequential(kernels.Linear(width, 4 * width), nn.GELU(), kernels.Linear(4 * width, width))
        self.modulate = zeroed(kernels.Linear(width, 6 * width))

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        """h (B, H, width), condition (B, width) → (B, H, width)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulate(condition)[:, None].chunk(6, dim=-1)
        b, t, width = h.shape
        normed = self.norms[0](h) * (1 + scale1) + shift1
        q, k, v = self.qkv(normed).view(b, t, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, width)
        h = h + gate1 * self.out(mixed)
        out: Tensor = h + gate2 * self.mlp(self.norms[1](h) * (1 + scale2) + shift2)
        return out


class Transformer(VelocityNet):
    """One token per control step, as published for TMRL."""

    def __init__(self, dims: Dims, cond: int, config: PolicyConfig) -> None:
        super().__init__()
        if config.width % config.heads:
            raise InputError(f"policy.width = {config.width} must be a multiple of policy.heads = {config.heads}")
        self.embed_x = kernels.Linear(dims.action, config.width)
        self.position = nn.Parameter(torch.randn(dims.chunk, config.width) * 0.02)
        self.embed_tau = kernels.Linear(16, config.width)
        self.embed_cond = nn.Sequential(
            kernels.Linear(cond, config.width), nn.SiLU(), kernels.Linear(config.width, config.width)
        )
        self.blocks = nn.ModuleList(TransformerBlock(config.width, config.heads) for _ in range(config.blocks))
        self.head = zeroed(kernels.Linear(config.width, dims.action))
        self.embed_sigma = zeroed(kernels.Linear(SIGMA_FEATURES, config.width, bias=False))

    def forward(self, x: Tensor, drive: Tensor) -> Tensor:
        """x (B, H, A), time + condition (B, width) → velocity (B, H, A)."""
        drive = functional.silu(drive)
        h = self.embed_x(x) + self.position
        for block in self.blocks:
            h = block(h, drive)
        out: Tensor = self.head(h)
        return out


ARCHITECTURES: dict[str, Callable[[Dims, int, PolicyConfig], VelocityNet]] = {
    "mlp": ResidualMLP,
    "transformer": Transformer,
}


class Features(nn.Module):
    """Normalised vector followed by sines and cosines of its position entries."""

    mean: Tensor
    std: Tensor
    _positions: Tensor

    def __init__(self, size: int, positions: tuple[int, ...], octaves: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))
        self.register_buffer("_positions", torch.tensor(positions, dtype=torch.int64), persistent=False)
        self.octaves = octaves if positions else 0
        self.size = size + 2 * octaves * len(positions)

    def fit(self, data: Tensor) -> None:
        """Take mean and deviation from the rows of data (N, D); entries that never change keep deviation 1."""
        if not data.numel():
            return
        self.mean.copy_(data.mean(0))
        std = data.std(0)
        self.std.copy_(torch.where(std > 1e-6, std, torch.ones_like(std)))

    def normalise(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std

    def expand(self, x: Tensor) -> Tensor:
        """Normalised (B, D) → (B, size); wavelengths 4, 2, 1, … deviations."""
        if not self.octaves:
            return x
        octave = 2.0 ** torch.arange(self.octaves, device=x.device) * (math.pi / 2)
        angle = (x.index_select(1, self._positions)[:, :, None] * octave).flatten(1)
        return torch.cat([x, angle.sin(), angle.cos()], dim=1)


class EnsembleLinear(nn.Module):
    """K linear layers as one batched product: (K, B, I) → (K, B, O)."""

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)  # nn.Linear's own initialisation, so that the members are K ordinary layers
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        if not kernels.large(x[0], self.weight[0]):
            return torch.baddbmm(self.bias, x, self.weight)
        members = zip(x.unbind(), self.weight.unbind(), self.bias[:, 0].unbind(), strict=True)
        return torch.stack([kernels.affine(rows, weight, bias) for rows, weight, bias in members])


class EnsembleNorm(nn.Module):
    """Layer normalisation with a gain and a shift for each of K members: (K, B, W) → (K, B, W)."""

    def __init__(self, members: int, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(members, 1, width))
        self.shift = nn.Parameter(torch.zeros(members, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:]) * self.gain + self.shift


ACTIVATIONS: Mapping[str, type[nn.Module]] = {"relu": nn.ReLU, "mish": nn.Mish, "silu": nn.SiLU, "tanh": nn.Tanh}


def ensemble_mlp(
    members: int, inputs: int, hidden: tuple[int, ...], outputs: int, activation: str = "relu", norm: bool = False
) -> nn.Sequential:
    """K MLPs as one module: (K, B, inputs) → (K, B, outputs)."""
    layers: list[nn.Module] = []
    sizes = [inputs, *hidden]
    for i, o in pairwise(sizes):
        layers.append(EnsembleLinear(members, i, o))
        if norm:
            layers.append(EnsembleNorm(members, o))
        layers.append(ACTIVATIONS[activation]())
    return nn.Sequential(*layers, EnsembleLinear(members, sizes[-1], outputs))
