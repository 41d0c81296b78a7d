"""The one RL engine: Stable-Baselines3's SAC with a temperature per action group, fused critics and exact resume.

SAC: arXiv 1801.01290 and 1812.05905. With one group, two critics and entropy in the target an update equals
Stable-Baselines3's own to rounding (tested). Differences are options: the minimum is over any number of critics, which
may have layer normalisation (RLPD, arXiv 2302.02948); entropy may be left out of the critic's target, as in the public
code of TMRL; part of every batch may come from demonstrations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from safetensors.torch import save_file
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.sac.policies import SACPolicy
from torch import Tensor, nn
from torch.nn import functional

from bench import nets, seeding
from bench.config import option
from bench.pretraining import load_optimiser, optimiser_tensors
from bench.store import write_atomic
from bench.types import FloatArray, Group, InputError


@dataclass(frozen=True)
class RLConfig:
    """Budget and settings of fine-tuning; the same for every method."""

    decisions: int = option(20_000, "budget", unit="decisions, all environments together", low=1)
    envs: int = option(8, "environments stepped together", low=1, high=1024)
    random_decisions: int = option(800, "uniform random decisions before learning", unit="decisions", low=0)
    updates_per_decision: float = option(1.0, "gradient steps per decision", low=0.0, high=100.0,
        search={"space": "rl", "low": 0.25, "high": 2.0, "log": True})  # fmt: skip
    batch: int = option(256, "transitions in a batch", low=2)
    discount: float = option(0.99, "discount per decision", low=0.0, high=1.0,
        search={"space": "rl", "low": 0.95, "high": 0.999})  # fmt: skip
    polyak: float = option(0.005, "rate of the target critics", low=0.0, high=1.0)
    learning_rate: float = option(3e-4, "Adam's learning rate", low=0.0, high=1.0,
        search={"space": "rl", "low": 1e-4, "high": 1e-3, "log": True})  # fmt: skip
    actor: tuple[int, ...] = option((256, 256), "hidden widths of the actor", low=1)
    critic: tuple[int, ...] = option((256, 256), "hidden widths of each critic", low=1)
    critics: int = option(2, "critics; the minimum over all is used", low=1, high=100)
    critic_norm: bool = option(True, "layer normalisation in the critics")
    activation: str = option("relu", "activation of actor and critics", choices=tuple(nets.ACTIVATIONS))
    temperature: float = option(0.005, "initial entropy temperature of every action group", low=1e-8, high=100.0,
        search={"space": "rl", "low": 1e-3, "high": 0.1, "log": True})  # fmt: skip
    entropy_in_target: bool = option(True, "entropy bonus in the critics' target (SAC); off: as in TMRL's public code")
    demo_fraction: float = option(0.0, "share of every batch that comes from demonstrations", low=0.0, high=0.99)
    buffer: int = option(1_000_000, "replay buffer", unit="transitions", low=1)


class CriticEnsemble(nn.Module):
    """K Q-functions as one batched product; takes the place of Stable-Baselines3's list of networks."""

    optimizer: torch.optim.Optimizer

    def __init__(self, features: int, actions: int, config: RLConfig) -> None:
        super().__init__()
        self.members = config.critics
        self.q = nets.ensemble_mlp(
            config.critics, features + actions, config.critic, 1, config.activation, config.critic_norm
        )

    def forward(self, features: Tensor, actions: Tensor) -> Tensor:
        """(B, F), (B, D) → (K, B, 1)."""
        inputs = torch.cat([features, actions], dim=1)
        out: Tensor = self.q(inputs.expand(self.members, -1, -1))
        return out

    def set_training_mode(self, mode: bool) -> None:
        self.train(mode)


class EnginePolicy(SACPolicy):
    """Stable-Baselines3's SAC policy with the fused critics."""

    def __init__(self, *args: Any, engine: RLConfig, **kwargs: Any) -> None:
        self.engine = engine
        super().__init__(*args, **kwargs)

    def make_critic(self, features_extractor: Any = None) -> CriticEnsemble:  # type: ignore[override]
        features, actions = self.observation_space.shape, self.action_space.shape
        assert features is not None and actions is not None
        return CriticEnsemble(features[0], actions[0], self.engine)


class Engine(SAC):
    """SAC over features (F,) and actions in [-1, 1]^D, with the update rewritten for groups and speed.

    Acting and learning draw from generators of `seed` and the number of rounds and updates so far, so the engine's
    state is weights, optimisers, replay buffer and two counters.
    """

    def __init__(self, features: int, groups: tuple[Group, ...], config: RLConfig, seed: int) -> None:
        super().__init__(
            EnginePolicy, None, learning_rate=config.learning_rate, batch_size=config.batch, tau=config.polyak,  # type: ignore[arg-type]
            gamma=config.discount, target_entropy=0.0, ent_coef=config.temperature, device="cpu",
            buffer_size=min(config.buffer, config.decisions + config.envs),
            _init_setup_model=False,
            replay_buffer_kwargs={"handle_timeout_termination": False},
            policy_kwargs={
                "engine": config, "net_arch": {"pi": list(config.actor), "qf": list(config.critic)},
                "activation_fn": nets.ACTIVATIONS[config.activation], "optimizer_kwargs": {"fused": True},
            },
        )  # fmt: skip
        self.config, self.groups, self.seed_root = config, groups, seed
        size = sum(g.size for g in groups)
        self.observation_space = spaces.Box(-np.inf, np.inf, (features,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (size,), np.float32)
        self.n_envs = config.envs
        with seeding.fence(seeding.child(seed, "init")):
            self._setup_model()
        self.group_of = torch.cat([torch.full((g.size,), i) for i, g in enumerate(groups)])
        self.target_entropies = torch.tensor([g.target_entropy for g in groups])
        initial = torch.full((len(groups),), float(np.log(config.temperature)))
        self.log_temperatures = initial.requires_grad_(True)
        self.temperature_optimiser = torch.optim.Adam([self.log_temperatures], lr=config.learning_rate)
        self.demonstrations: ReplayBuffer | None = None

    @property
    def updates(self) -> int:
        """Gradient steps so far."""
        return self._n_updates

    def sample(self, features: FloatArray, rng: np.random.Generator | None) -> FloatArray:
        """Actions (B, D) in [-1, 1] for features (B, F); the mode without a generator."""
        with torch.inference_mode():
            mean, log_std, _ = self.actor.get_action_dist_params(torch.from_numpy(features))
            if rng is not None:
                mean = mean + log_std.exp() * torch.from_numpy(rng.standard_normal(mean.shape, np.float32))
            return torch.tanh(mean).numpy()

    def remember(
        self, features: FloatArray, after: FloatArray, action: FloatArray, reward: FloatArray, terminated: Any
    ) -> None:
        """Store one round: features (B, F) before and after, action (B, D), reward (B,), terminated (B,) bool."""
        assert self.replay_buffer is not None
        self.replay_buffer.add(features, after, action, reward, terminated, [{}] * len(reward))

    def add_demonstrations(
        self, features: FloatArray, after: FloatArray, action: FloatArray, reward: FloatArray, terminated: Any
    ) -> None:
        """Transitions, (N, F), (N, F), (N, D), (N,), (N,), that `demo_fraction` of every batch is drawn from."""
        self.demonstrations = ReplayBuffer(
            len(reward), self.observation_space, self.action_space, "cpu", 1, handle_timeout_termination=False
        )
        for row in zip(features, after, action, reward, terminated, strict=True):
            obs, after_row, action_row, reward_row, done = (np.asarray(x)[None] for x in row)
            self.demonstrations.add(obs, after_row, action_row, reward_row, done, [{}])

    def _batch(self, size: int) -> list[Tensor]:
        assert self.replay_buffer is not None
        demos = round(size * self.config.demo_fraction)
        if not demos:
            return list(self.replay_buffer.sample(size)[:5])
        if self.demonstrations is None:
            raise InputError("rl.demo_fraction is above 0, but the engine was given no demonstrations")
        parts = zip(self.replay_buffer.sample(size - demos)[:5], self.demonstrations.sample(demos)[:5], strict=True)
        return [torch.cat(pair) for pair in parts]

    def learn_from_buffer(self, gradient_steps: int) -> dict[str, float]:
        """That many updates; returns the losses of the last. Draws are seeded by the number of updates so far."""
        with seeding.fence(seeding.child(self.seed_root, "learn", self._n_updates)):
            return self.train(gradient_steps, self.config.batch)

    def train(self, gradient_steps: int, batch_size: int = 256) -> dict[str, float]:  # type: ignore[override]
        """Stable-Baselines3's update order: temperatures, critics, actor, targets."""
        log: dict[str, Tensor] = {}
        for _ in range(gradient_steps):
            features, actions, after, dones, rewards = self._batch(batch_size)
            chosen, log_prob = self._chosen(features)
            temperatures = self.log_temperatures.detach().exp()
            excess = (log_prob.detach() + self.target_entropies).mean(0)
            self._step(self.temperature_optimiser, -(self.log_temperatures * excess).sum())
            with torch.no_grad():
                following, following_log_prob = self._chosen(after)
                value = self.critic_target(after, following).amin(0)  # type: ignore[attr-defined]
                if self.config.entropy_in_target:
                    value = value - following_log_prob @ temperatures[:, None]
                target = rewards + (1 - dones) * self.gamma * value
            q = self.critic(features, actions)
            critic_loss = 0.5 * functional.mse_loss(q, target.expand_as(q), reduction="none").mean((1, 2)).sum()  # type: ignore[attr-defined]
            self._step(self.critic.optimizer, critic_loss)
            self.critic.requires_grad_(False)
            best = self.critic(features, chosen).amin(0)  # type: ignore[attr-defined]
            actor_loss = (log_prob @ temperatures[:, None] - best).mean()
            self._step(self.actor.optimizer, actor_loss)
            self.critic.requires_grad_(True)
            with torch.no_grad():
                torch._foreach_lerp_(self._targets, self._sources, self.tau)
            log = {"critic_loss": critic_loss.detach(), "actor_loss": actor_loss.detach(), "q": best.detach().mean(),
                   "alpha": temperatures[0], "entropy": -log_prob.detach().sum(1).mean()}  # fmt: skip
        self._n_updates += gradient_steps
        return {k: float(v) for k, v in log.items()}

    @staticmethod
    def _step(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    def _create_aliases(self) -> None:
        super()._create_aliases()
        self._sources: list[Tensor] = list(self.critic.parameters())
        self._targets: list[Tensor] = list(self.critic_target.parameters())
        self.critic_target.requires_grad_(False)

    def _chosen(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Reparametrised actions (B, D) and log-probabilities per group (B, G)."""
        mean, log_std, _ = self.actor.get_action_dist_params(features)
        draw = torch.randn_like(mean)
        action = torch.tanh(mean + log_std.exp() * draw)
        log_prob = -0.5 * draw.square() - log_std - 0.5 * np.log(2 * np.pi) - torch.log(1 - action.square() + 1e-6)
        if len(self.groups) == 1:
            return action, log_prob.sum(1, keepdim=True)
        grouped = torch.zeros(len(mean), len(self.groups)).index_add(1, self.group_of, log_prob)
        return action, grouped

    def get_state(self) -> dict[str, Tensor]:
        """Everything an exact continuation needs, as named tensors."""
        buffer = self.replay_buffer
        assert buffer is not None
        filled = buffer.buffer_size if buffer.full else buffer.pos
        tensors = {f"policy.{k}": v for k, v in self.policy.state_dict().items()}
        for name, optimiser in self._optimisers().items():
            tensors |= optimiser_tensors(optimiser, name)
        for name in ("observations", "next_observations", "actions", "rewards", "dones"):
            tensors[f"buffer.{name}"] = torch.from_numpy(getattr(buffer, name)[:filled])
        counters = torch.tensor([buffer.pos, int(buffer.full), self._n_updates])
        return tensors | {"log_temperatures": self.log_temperatures, "counters": counters}

    def set_state(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `get_state`."""
        buffer = self.replay_buffer
        assert buffer is not None
        self.policy.load_state_dict({k[7:]: v for k, v in tensors.items() if k.startswith("policy.")})
        for name, optimiser in self._optimisers().items():
            load_optimiser(optimiser, dict(tensors), name)
        for name in ("observations", "next_observations", "actions", "rewards", "dones"):
            saved = tensors[f"buffer.{name}"].numpy()
            getattr(buffer, name)[: len(saved)] = saved
        buffer.pos, full, self._n_updates = (int(x) for x in tensors["counters"])
        buffer.full = bool(full)
        with torch.no_grad():
            self.log_temperatures.copy_(tensors["log_temperatures"])

    def _optimisers(self) -> dict[str, torch.optim.Optimizer]:
        return {"actor_adam": self.actor.optimizer, "critic_adam": self.critic.optimizer,
                "temperature_adam": self.temperature_optimiser}  # fmt: skip

    def save_agent(self, path: Path) -> None:
        """Actor, critics and temperatures as safetensors."""
        tensors = {k: v for k, v in self.get_state().items() if k.startswith("policy.") or k == "log_temperatures"}
        save_tensors(path, tensors)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Safetensors, atomically."""
    plain = {k: v.detach().contiguous().clone() for k, v in tensors.items()}
    write_atomic(path, lambda p: save_file(plain, p))


def with_options(config: RLConfig, options: Mapping[str, Any]) -> RLConfig:
    """The configuration with the options that a method is defined by."""
    return dataclasses.replace(config, **options)
