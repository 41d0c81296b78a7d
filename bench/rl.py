"""The one RL engine: Stable-Baselines3's SAC with a temperature per action group, a fast update and exact resume.

SAC: arXiv 1801.01290 and 1812.05905. With one group, two critics without norm, entropy in the target and unbounded
values an update equals Stable-Baselines3's own to rounding (tested). Differences are options: the minimum is over any
number of critics, which may have layer normalisation (RLPD, arXiv 2302.02948); entropy may be left out of the critic's
target, as in the public code of TMRL; part of every batch may come from demonstrations.

`bounded_value` clips what the target critics say to the returns that can be: success pays 1 and ends the episode, all
else pays 0 (the idea is Hindsight Experience Replay's, arXiv 1707.01495, section 4.1). Without it values of states from
which success is never seen, which a time limit does not end, drift upwards: to 3 on the arm's task, where success fell
from 0.57 to 0.23; with it success rose. Where the target has an entropy bonus, values are no returns and not clipped.

The update is compiled as a whole, with its gradients written out (bench.sac, bench.sac_kernel).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium import spaces
from safetensors.torch import save_file
from stable_baselines3 import SAC
from stable_baselines3.sac.policies import SACPolicy
from torch import Tensor, nn

from bench import nets, seeding
from bench.config import option
from bench.pretraining import load_optimiser, optimiser_tensors
from bench.replay import Replay
from bench.store import write_atomic
from bench.types import FloatArray, Group, InputError

if TYPE_CHECKING:
    from bench.sac import Losses


@dataclass(frozen=True)
class RLConfig:
    """Budget and settings of fine-tuning; the same for every method."""

    decisions: int = option(20_000, "budget", unit="decisions, all environments together", low=1)
    envs: int = option(8, "environments stepped together", low=1, high=1024)
    random_decisions: int = option(800, "random decisions before learning", unit="decisions", low=0)
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
    temperature: float = option(0.1, "initial entropy temperature of every action group", low=1e-8, high=100.0,
        search={"space": "rl", "low": 1e-3, "high": 1.0, "log": True})  # fmt: skip
    entropy_in_target: bool = option(False, "entropy bonus in the critics' target (SAC); off: as in TMRL's public code")
    bounded_value: bool = option(
        True,
        "keep values in the critics' targets within [0, 1], as success pays 1 and ends; nothing bounds them with an "
        "entropy bonus in the target, and only 1 with a divergence from a prior",
    )
    demo_fraction: float = option(0.0, "share of every batch that comes from demonstrations", low=0.0, high=0.99)
    buffer: int = option(1_000_000, "replay buffer", unit="transitions", low=1)


class CriticEnsemble(nn.Module):
    """K Q-functions side by side; takes the place of Stable-Baselines3's list of networks."""

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
            buffer_size=1,  # `Replay` takes its place
            _init_setup_model=False,
            policy_kwargs={
                "engine": config, "net_arch": {"pi": list(config.actor), "qf": list(config.critic)},
                "activation_fn": nets.ACTIVATIONS[config.activation],
            },
        )  # fmt: skip
        self.config, self.groups, self.seed_root = config, groups, seed
        size = sum(g.size for g in groups)
        self.observation_space = spaces.Box(-np.inf, np.inf, (features,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (size,), np.float32)
        self.n_envs = config.envs
        with seeding.fence(seeding.child(seed, "init")):
            self._setup_model()
        rounds = max(1, min(config.buffer, config.decisions + config.envs) // config.envs)
        self.replay = Replay(rounds * config.envs, features, size)
        self.group_of = torch.cat([torch.full((g.size,), i) for i, g in enumerate(groups)])
        self.target_entropies = torch.tensor([g.target_entropy for g in groups])
        self.priors = torch.cat([torch.full((g.size,), g.prior or 0.0) for g in groups])  # (D,); 0: entropy counts
        self._begin_at(self.priors)
        self.log_temperatures = torch.full((len(groups),), float(np.log(config.temperature)))
        self.temperature_optimiser = torch.optim.Adam([self.log_temperatures], lr=config.learning_rate)
        self.demonstrations: Replay | None = None
        from bench.sac import Update  # Numba takes half a second, and most commands build no engine

        self._update = Update(self)

    @torch.no_grad()
    def _begin_at(self, priors: Tensor) -> None:
        """Let the actor begin at the priors (D,) of the groups that have one."""
        kept = priors > 0
        for head, bias in ((self.actor.mu, torch.zeros_like(priors)), (self.actor.log_std, priors.log())):
            head.weight[kept], head.bias[kept] = 0.0, bias[kept]  # type: ignore[index, union-attr, operator]

    @property
    def updates(self) -> int:
        """Gradient steps so far."""
        return self._n_updates

    def sample(self, features: FloatArray, draws: Sequence[np.random.Generator] = ()) -> FloatArray:
        """Actions (B, D) in [-1, 1] for features (B, F), row b drawn from generator b; the mode without generators."""
        mean, deviation = self._update.act(features)
        if draws:
            rows = np.stack([rng.standard_normal(mean.shape[1], np.float32) for rng in draws])
            mean = mean + deviation * rows
        return np.tanh(mean)

    def explore(self, rows: int, rng: np.random.Generator) -> FloatArray:
        """Actions (rows, D) before learning: uniform, but from their prior in groups that have one."""
        size = self.replay.actions
        actions: FloatArray = rng.uniform(-1, 1, (rows, size)).astype(np.float32)
        if not self.priors.any():
            return actions
        drawn = np.tanh(self.priors.numpy() * rng.standard_normal((rows, size), np.float32))
        return np.where(self.priors.numpy() > 0, drawn, actions)

    def remember(
        self, features: FloatArray, after: FloatArray, action: FloatArray, reward: FloatArray, terminated: Any
    ) -> None:
        """Store one round: features (B, F) before and after, action (B, D), reward (B,), terminated (B,) bool."""
        self.replay.add(features, action, after, reward, terminated)

    def add_demonstrations(
        self, features: FloatArray, after: FloatArray, action: FloatArray, reward: FloatArray, terminated: Any
    ) -> None:
        """Transitions, (N, F), (N, F), (N, D), (N,), (N,), that `demo_fraction` of every batch is drawn from."""
        self.demonstrations = Replay(len(reward), self.replay.features, self.replay.actions)
        self.demonstrations.add(features, action, after, reward, terminated)

    def _batch(self, size: int, draws: torch.Generator) -> Tensor:
        """Rows (size, row) of the replay buffer and, for their share, of the demonstrations."""
        demos = round(size * self.config.demo_fraction)
        if not demos:
            return self.replay.sample(size, draws)
        if self.demonstrations is None:
            raise InputError("rl.demo_fraction is above 0, but the engine was given no demonstrations")
        return torch.cat([self.replay.sample(size - demos, draws), self.demonstrations.sample(demos, draws)])

    def learn_from_buffer(self, gradient_steps: int) -> dict[str, float]:
        """That many updates; returns the losses of the last. Draws are seeded by the number of updates so far."""
        return self.train(gradient_steps, self.config.batch)

    @torch.inference_mode()
    def train(self, gradient_steps: int, batch_size: int = 256) -> dict[str, float]:  # type: ignore[override]
        """`gradient_steps` updates on batches of `batch_size`."""
        draws = torch.Generator().manual_seed(seeding.child(self.seed_root, "learn", self._n_updates))
        losses: Losses | None = None
        for _ in range(gradient_steps):
            rows = self._batch(batch_size, draws)
            losses = self.update(rows, torch.randn((2 * batch_size, self.replay.actions), generator=draws))
        self._n_updates += gradient_steps
        return self._log(losses) if losses else {}

    @staticmethod
    def _log(last: Losses) -> dict[str, float]:
        error, temperatures, log_prob, best = last
        log = {
            "critic_loss": 0.5 * error.square().mean(1).sum(), "q": best.mean(), "alpha": temperatures[0],
            "actor_loss": (log_prob @ temperatures - best).mean(), "entropy": -log_prob.sum(1).mean(),
        }  # fmt: skip
        return {k: float(v) for k, v in log.items()}

    def update(self, rows: Tensor, noise: Tensor) -> Losses:
        """One gradient step of everything on transitions (B, row), with noise (2B, D) for actions now and after.

        Losses, in Stable-Baselines3's order: −log α_g (log π_g + H̄_g) for the temperatures, ½ Σ_k (Q_k(s, a) − y)² for
        the critics with y = r + γ (1 − end) (V − α · log π(a')) and V = min_k Q̄_k(s', a'), within [0, 1] if bounded,
        α · log π − min_k Q_k(s, ã) for the actor. For groups with a prior its divergence stands in place of log π.
        """
        return self._update(rows, noise)

    def get_state(self) -> dict[str, Tensor]:
        """Everything an exact continuation needs, as named tensors."""
        tensors = {f"policy.{k}": v for k, v in self.policy.state_dict().items()}
        for name, optimiser in self._optimisers().items():
            tensors |= optimiser_tensors(optimiser, name)
        replay = self.replay
        counters = torch.tensor([replay.place, self._n_updates])
        return tensors | {
            "replay": replay.rows[: replay.filled], "log_temperatures": self.log_temperatures, "counters": counters
        }  # fmt: skip

    def set_state(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `get_state`."""
        self.policy.load_state_dict({k[7:]: v for k, v in tensors.items() if k.startswith("policy.")})
        for name, optimiser in self._optimisers().items():
            load_optimiser(optimiser, dict(tensors), name)
        self._update.bind()
        self.replay.filled = len(tensors["replay"])
        self.replay.rows[: self.replay.filled] = tensors["replay"]
        self.replay.place, self._n_updates = (int(x) for x in tensors["counters"])
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
