"""Frozen base policies: what they all share, the conditional flow, and the policy that does as it is told.

Notation as in `bench.nets`. A method with a policy of another kind derives it from `BasePolicy` in its own file and
has `load(folder)` there.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bench import config as cfg
from bench import kernels, seeding
from bench.nets import ARCHITECTURES, ContextNoise, Features, PolicyConfig, ResidualMLP, flow_times
from bench.store import read_json, write_atomic, write_json
from bench.types import Dims, FloatArray, InputError

if TYPE_CHECKING:
    from bench.flow import Integration

Positions = tuple[tuple[int, ...], tuple[int, ...]]  # entries of s and of c that are positions


class BasePolicy(nn.Module):
    """Scales of s, c and actions, features for the agent, files. A subclass adds `act` and `invert`."""

    kind = ""
    a_mean: Tensor
    a_std: Tensor

    def __init__(self, dims: Dims, config: PolicyConfig, positions: Positions) -> None:
        super().__init__()
        self.dims, self.config, self.positions = dims, config, positions
        self.s_features = Features(dims.state, positions[0], config.fourier)
        self.c_features = Features(dims.context, positions[1], config.fourier)
        self.register_buffer("a_mean", torch.zeros(dims.action))
        self.register_buffer("a_std", torch.ones(dims.action))

    @property
    def latent(self) -> tuple[int, ...]:
        """The shape of one z: (H, A)."""
        return self.dims.chunk, self.dims.action

    @property
    def takes_sigma(self) -> bool:
        """Whether the network was trained on noised contexts."""
        return False

    @property
    def width(self) -> int:
        """F, numbers of `conditions`."""
        return self.s_features.size + self.c_features.size

    def fit_normaliser(self, s: Tensor, c: Tensor, a: Tensor) -> None:
        """Take the scales from demonstrations s (N, S), c (N, C), a (N, A)."""
        if self.config.normalise:
            self.s_features.fit(s)
            self.c_features.fit(c)
        self.a_mean.copy_(a.mean(0))
        self.a_std.copy_(a.std(0).clamp_min(1e-3))

    def conditions(self, s: Tensor, c: Tensor) -> Tensor:
        """(B, S), (B, C) → (B, F): normalised, with Fourier features."""
        return self._joined(s, self.c_features.normalise(c))

    def _joined(self, s: Tensor, context: Tensor) -> Tensor:
        """(B, S), normalised context (B, C) → (B, F)."""
        return torch.cat([self.s_features.expand(self.s_features.normalise(s)), self.c_features.expand(context)], dim=1)

    @torch.inference_mode()
    def features(self, s: FloatArray, c: FloatArray) -> FloatArray:
        """What the RL agent sees: (B, S), (B, C) → (B, F) float32."""
        return self.conditions(*self._tensors(s, c)).cpu().numpy()

    def act(self, s: FloatArray, c: FloatArray, z: FloatArray, sigma: FloatArray, eps: FloatArray) -> FloatArray:
        """(B, S), (B, C), z (B, *latent), σ (B,), ε (B, C) → chunk (B, H, A) within [-1, 1]."""
        raise NotImplementedError

    def invert(self, s: FloatArray, c: FloatArray, chunk: FloatArray) -> FloatArray:
        """(B, S), (B, C), chunk (B, H, A) → the z (B, *latent) from which `act` gives it, or comes nearest."""
        raise NotImplementedError

    def _tensors(self, *arrays: FloatArray) -> list[Tensor]:
        device = self.a_mean.device
        return [torch.as_tensor(np.asarray(a, np.float32), device=device) for a in arrays]

    def save(self, folder: Path) -> None:
        """Write policy.safetensors and policy.json."""
        write_json(folder / "policy.json", self.spec())
        state = {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
        write_atomic(folder / "policy.safetensors", lambda p: save_file(state, p))

    def spec(self) -> dict[str, Any]:
        """Everything but the weights, ready for JSON."""
        dims = {**vars(self.dims), "context_keys": dict(self.dims.context_keys)}
        return {"kind": self.kind, "dims": dims, "config": cfg.as_dict(self.config), "positions": self.positions}

    def restore(self, folder: Path) -> None:
        """Take the weights in the folder and freeze. Raises InputError if they do not fit."""
        try:
            self.load_state_dict(load_file(folder / "policy.safetensors"))
        except Exception as error:
            raise InputError(f"{folder / 'policy.safetensors'}: not a policy of this shape ({error})") from None
        self.eval().requires_grad_(False)


class FlowPolicy(BasePolicy):
    """A conditional flow over action chunks; satisfies `bench.types.Policy`."""

    kind = "flow"

    def __init__(
        self, dims: Dims, config: PolicyConfig, positions: Positions, noise: ContextNoise | None = None
    ) -> None:  # fmt: skip
        """`noise`: None for a network without σ."""
        super().__init__(dims, config, positions)
        self.noise = noise
        self.net = ARCHITECTURES[config.architecture](dims, self.width, config)
        self._integration: Integration | None = None

    @property
    def takes_sigma(self) -> bool:
        return self.noise is not None

    def noised(self, s: Tensor, c: Tensor, sigma: Tensor | None, eps: Tensor | None) -> Tensor:
        """`conditions` with the context noised: (B, S), (B, C), (B,), (B, C) → (B, F)."""
        if self.noise is None or sigma is None or eps is None:
            context = self.c_features.normalise(c)
        elif self.noise.raw:
            context = self.c_features.normalise(self.noise.corrupt(c, sigma, eps))
        else:
            context = self.noise.corrupt(self.c_features.normalise(c), sigma, eps)
        return self._joined(s, context)

    def encode(self, s: Tensor, c: Tensor, sigma: Tensor | None, eps: Tensor | None) -> Tensor:
        """(B, S), (B, C), (B,), (B, C) → the network's condition (B, width), with the context noised."""
        condition: Tensor = self.net.condition(self.noised(s, c, sigma, eps), sigma if self.takes_sigma else None)
        return condition

    def loss(
        self, s: Tensor, c: Tensor, a: Tensor, weight: Tensor, z: Tensor, tau: Tensor,
        sigma: Tensor | None = None, eps: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Conditional flow matching ‖v_θ(x_τ, τ, s, c̃, σ) − (z − a)‖² over the valid steps of the chunks.

        a, z (B, H, A) in normalised units, weight (B, H) is 0 after the end of an episode, τ (B,).
        """
        x = torch.lerp(a, z, tau[:, None, None])
        error = self.net(x, self.net.time(tau) + self.encode(s, c, sigma, eps)) - (z - a)
        mean: Tensor = (error.square().mean(2) * weight).sum() / weight.sum()
        return mean

    @torch.inference_mode()
    def act(self, s: FloatArray, c: FloatArray, z: FloatArray, sigma: FloatArray, eps: FloatArray) -> FloatArray:
        """(B, S), (B, C), z (B, H, A), σ (B,), ε (B, C) → chunk (B, H, A) within [-1, 1], by Euler from τ = 1 to 0."""
        s_t, c_t, x, sigma_t, eps_t = self._tensors(s, c, z, sigma, eps)
        if (integration := self._compiled(len(x))) is not None:
            x = integration(x, self.noised(s_t, c_t, sigma_t, eps_t), sigma_t if self.takes_sigma else None)
        else:
            x = self.integrate(s_t, c_t, x, sigma_t, eps_t)
        return (x * self.a_std + self.a_mean).clamp(-1, 1).cpu().numpy()

    def integrate(self, s: Tensor, c: Tensor, x: Tensor, sigma: Tensor, eps: Tensor) -> Tensor:
        """(B, S), (B, C), x (B, H, A) at τ = 1, σ (B,), ε (B, C) → x at τ = 0, by torch."""
        condition, steps = self.encode(s, c, sigma, eps), self.config.euler_steps
        for time in reversed(self._times()):
            x = x.sub(self.net(x, time + condition), alpha=1 / steps)
        return x

    def _compiled(self, rows: int) -> Integration | None:
        """Compiled code for that many rows; None where there is none or torch is the faster."""
        slower = kernels.onednn(rows * self.config.width**2)
        if slower or not isinstance(self.net, ResidualMLP) or self.a_mean.device.type != "cpu":
            return None
        from bench import flow  # Numba takes half a second, and most commands act with no policy

        if self._integration is None or not self._integration.current():
            self._integration = flow.Integration(self.net, self.config.euler_steps)
        return self._integration

    @torch.inference_mode()
    def invert(self, s: FloatArray, c: FloatArray, chunk: FloatArray, iterations: int = 5) -> FloatArray:
        """The z (B, H, A) from which `act` without context noise gives the chunk (B, H, A): Euler's steps reversed.

        Each step x' = x − v(x, τ)/n is solved for x by fixed-point iteration.
        """
        s_t, c_t, a = self._tensors(s, c, chunk)
        clean = torch.zeros(len(a), device=a.device)
        condition = self.encode(s_t, c_t, clean, torch.zeros_like(c_t))
        x, steps = (a - self.a_mean) / self.a_std, self.config.euler_steps
        for time in self._times():
            after, drive = x, time + condition
            for _ in range(iterations):
                x = after.add(self.net(x, drive), alpha=1 / steps)
        return x.cpu().numpy()

    def _times(self) -> tuple[Tensor, ...]:
        """Embeddings (width,) of τ = 1/n, 2/n, …, 1: once for all rows, 20 µs a call instead of 20 µs a step."""
        return self.net.time(flow_times(self.config.euler_steps).to(self.a_mean.device)).unbind()

    def spec(self) -> dict[str, Any]:
        """Everything but the weights, ready for JSON."""
        noise = None
        if self.noise is not None:
            noise = {"alpha_bar": self.noise.alpha_bar, "mask": self.noise.mask, "raw": self.noise.raw}
        return super().spec() | {"noise": noise}


class ActionPolicy(BasePolicy):
    """No policy at all: z is the chunk of environment actions itself. Its scales serve the agent's features."""

    kind = "actions"

    def act(self, s: FloatArray, c: FloatArray, z: FloatArray, sigma: FloatArray, eps: FloatArray) -> FloatArray:
        """z (B, H, A) within [-1, 1]."""
        return np.clip(z, -1.0, 1.0)

    def invert(self, s: FloatArray, c: FloatArray, chunk: FloatArray) -> FloatArray:
        """The chunk (B, H, A)."""
        return chunk


def build(
    dims: Dims, config: PolicyConfig, positions: Positions, noise: ContextNoise | None, seed: int
) -> FlowPolicy:  # fmt: skip
    """A freshly initialised flow; equal seeds give equal weights, with or without noise."""
    with seeding.fence(seed):
        return FlowPolicy(dims, config, positions, noise)


def read(folder: Path) -> tuple[dict[str, Any], Dims, PolicyConfig, Positions]:
    """What `spec` wrote, whole and in parts. Raises InputError if the file is missing, broken or does not fit."""
    spec = read_json(folder / "policy.json")
    config = cfg.from_dict(PolicyConfig, spec["config"], str(folder / "policy.json"))
    return spec, Dims(**spec["dims"]), config, (tuple(spec["positions"][0]), tuple(spec["positions"][1]))


def load(folder: Path, euler_steps: int | None = None) -> BasePolicy:
    """The frozen policy in the folder. Raises InputError if a file is missing, broken or does not fit."""
    spec, dims, config, positions = read(folder)
    policy: BasePolicy
    kind = spec.get("kind", FlowPolicy.kind)
    if kind == ActionPolicy.kind:
        policy = ActionPolicy(dims, config, positions)
    elif kind != FlowPolicy.kind:
        raise InputError(f"{folder}: a policy of kind {kind!r}, which its method's `load(folder)` has to read")
    else:
        noise = spec["noise"]
        if noise is not None:
            noise = ContextNoise(tuple(noise["alpha_bar"]), tuple(noise["mask"]), noise["raw"])
        config = replace(config, euler_steps=euler_steps or config.euler_steps)
        policy = build(dims, config, positions, noise, seed=0)
    policy.restore(folder)
    return policy
