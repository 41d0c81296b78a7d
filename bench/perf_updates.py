"""Gradient steps of the agent beside what they are measured against: SB3's SAC, the published structure, the limit.

The published structure is that of TMRL's public agent code, written afresh: K critics as a Python list of modules with
LayerNorm and Mish, an actor with Mish, one temperature per action group with an optimiser step of its own, Adam one
parameter at a time, and the targets moved one parameter at a time. Widths, critics and activation are equal in a case.
The limit is the bare matrix products of an update, of the same shapes, by torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3 import SAC
from stable_baselines3.common.logger import Logger
from torch import Tensor, nn
from torch.nn import functional

from bench import nets, seeding
from bench.kernels import product
from bench.rl import Engine, RLConfig
from bench.timing import Rate, in_turns
from bench.types import Group

ROWS = 2000  # transitions in the buffers


def mlp(inputs: int, hidden: tuple[int, ...], outputs: int, norm: bool) -> nn.Sequential:
    """Linear, LayerNorm if asked, Mish; ends in a linear layer."""
    layers: list[nn.Module] = []
    for i, o in pairwise((inputs, *hidden)):
        layers += [nn.Linear(i, o), *([nn.LayerNorm(o)] if norm else []), nn.Mish()]
    return nn.Sequential(*layers, nn.Linear(hidden[-1], outputs))


class PublishedSAC:
    """One update at a time on a batch that is handed in."""

    def __init__(
        self, features: int, sizes: tuple[int, ...], actor: tuple[int, ...] = (256,) * 4,
        critic: tuple[int, ...] = (256,) * 3, critics: int = 5, learning_rate: float = 3e-4,
    ) -> None:  # fmt: skip
        self.sizes, actions = sizes, sum(sizes)
        self.actor = mlp(features, actor, 2 * actions, norm=False)
        self.critics = nn.ModuleList(mlp(features + actions, critic, 1, norm=True) for _ in range(critics))
        self.targets = nn.ModuleList(mlp(features + actions, critic, 1, norm=True) for _ in range(critics))
        self.targets.load_state_dict(self.critics.state_dict())
        self.log_temperatures = [torch.zeros(1, requires_grad=True) for _ in sizes]

        def adam(parameters: list[Tensor]) -> torch.optim.Optimizer:
            return torch.optim.Adam(parameters, lr=learning_rate, foreach=False)

        self.actor_adam = adam(list(self.actor.parameters()))
        self.critic_adam = adam(list(self.critics.parameters()))
        self.temperature_adams = [adam([t]) for t in self.log_temperatures]

    def chosen(self, features: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Actions (B, D) and one log-probability (B, 1) per group."""
        mean, log_std = self.actor(features).chunk(2, dim=1)
        log_std = log_std.clamp(-20, 2)
        draw = torch.randn_like(mean)
        action = torch.tanh(mean + log_std.exp() * draw)
        density = -0.5 * draw.square() - log_std - 0.5 * math.log(2 * math.pi) - torch.log(1 - action.square() + 1e-6)
        return action, [part.sum(1, keepdim=True) for part in density.split(self.sizes, dim=1)]

    @staticmethod
    def value(critics: nn.ModuleList, features: Tensor, actions: Tensor) -> Tensor:
        """(K, B, 1)."""
        inputs = torch.cat([features, actions], dim=1)
        return torch.stack([critic(inputs) for critic in critics])

    def update(self, batch: tuple[Tensor, Tensor, Tensor, Tensor, Tensor], discount: float, polyak: float) -> None:
        """features (B, F), actions (B, D), features after (B, F), terminated (B, 1), rewards (B, 1)."""
        features, actions, after, dones, rewards = batch
        with torch.no_grad():
            following, _ = self.chosen(after)
            best = self.value(self.targets, after, following).amin(0)
            target = rewards + (1 - dones) * discount * best
        q = self.value(self.critics, features, actions)
        loss = 0.5 * sum(functional.mse_loss(each, target) for each in q)
        assert isinstance(loss, Tensor)
        step(self.critic_adam, loss)
        chosen, log_probs = self.chosen(features)
        best = self.value(self.critics, features, chosen).amin(0)
        pairs = list(zip(self.log_temperatures, log_probs, strict=True))
        entropy = torch.stack([t.detach().exp() * p for t, p in pairs]).sum(0)
        step(self.actor_adam, (entropy - best).mean())
        for (t, p), size, adam in zip(pairs, self.sizes, self.temperature_adams, strict=True):
            step(adam, -(t.exp() * (p.detach() - size)).mean())
        with torch.no_grad():
            for source, goal in zip(self.critics.parameters(), self.targets.parameters(), strict=True):
                goal.copy_(goal * (1 - polyak) + source * polyak)


def step(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    """Gradients, then one step."""
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()


def products(features: int, actions: int, config: RLConfig) -> list[tuple[Tensor, Tensor]]:
    """The pairs of matrices that an update has to multiply."""
    batch, pairs = config.batch, list[tuple[Tensor, Tensor]]()

    def add(times: int, *shape: int) -> None:
        rows, inner, columns = shape
        pairs.extend([(torch.randn(rows, inner), torch.randn(inner, columns))] * times)

    for n, (i, o) in enumerate(pairwise((features, *config.actor, 2 * actions))):
        add(2, batch, i, o)  # forward, now and after
        add(1, i, batch, o)  # gradients of the weights
        add(int(n > 0), batch, o, i)  # and of the inputs
    for n, (i, o) in enumerate(pairwise((features + actions, *config.critic, 1))):
        add(3 * config.critics, batch, i, o)  # targets, values, values of the chosen actions
        add(config.critics, i, batch, o)
        add(config.critics * int(n > 0), batch, o, i)
        add(1, batch, o, i if n else actions)  # down to the action, for the actor: each row by its smallest critic
    return pairs


class _Spaces(gymnasium.Env):  # type: ignore[type-arg]
    """Only spaces, for Stable-Baselines3."""

    def __init__(self, features: int, actions: int) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (features,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1, 1, (actions,), np.float32)


def stable_baselines3(features: int, actions: int, config: RLConfig, rows: dict[str, Any]) -> SAC:
    """Its SAC with the same settings, but for layer normalisation, which it does not have."""
    with seeding.fence(0):
        model = SAC(
            "MlpPolicy", _Spaces(features, actions), ent_coef="auto", buffer_size=ROWS, device="cpu",
            policy_kwargs={
                "net_arch": {"pi": list(config.actor), "qf": list(config.critic)}, "n_critics": config.critics,
                "activation_fn": nets.ACTIVATIONS[config.activation],
            },
        )  # fmt: skip
    model.set_logger(Logger(None, []))
    assert model.replay_buffer is not None
    for i in range(ROWS):
        model.replay_buffer.add(
            rows["now"][i], rows["after"][i], rows["action"][i], rows["reward"][i], rows["done"][i], [{}]
        )
    return model


def _case(features: int, sizes: tuple[int, ...], config: RLConfig, published: bool) -> dict[str, Callable[[], int]]:
    """The ways of one case; the first is what ours is measured against."""
    rng, actions = np.random.default_rng(0), sum(sizes)
    block = 4  # updates at a call: more, and the slowest way outlasts its turn
    rows: dict[str, Any] = {
        "now": rng.standard_normal((ROWS, features), np.float32),
        "after": rng.standard_normal((ROWS, features), np.float32),
        "action": rng.uniform(-1, 1, (ROWS, actions)).astype(np.float32),
        "reward": rng.random(ROWS).astype(np.float32), "done": rng.random(ROWS) < 0.1,
    }  # fmt: skip
    engine = Engine(features, tuple(Group(str(i), n, -1.0, 1.0, -float(n)) for i, n in enumerate(sizes)), config, 0)
    engine.remember(rows["now"], rows["after"], rows["action"], rows["reward"], rows["done"])
    theirs, pairs = stable_baselines3(features, actions, config, rows), products(features, actions, config)
    other = PublishedSAC(features, sizes, config.actor, config.critic, config.critics)

    def by_sb3() -> int:
        with seeding.fence(0):
            theirs.train(block, config.batch)
        return block

    def as_published() -> int:
        assert theirs.replay_buffer is not None
        with seeding.fence(0):
            for _ in range(block):
                now, action, after, done, reward = theirs.replay_buffer.sample(config.batch)[:5]
                other.update((now, action, after, done, reward), config.discount, config.polyak)
        return block

    def ours() -> int:
        engine.learn_from_buffer(block)
        return block

    def limit() -> int:
        with torch.inference_mode():
            for x, y in pairs * block:
                product(x, y)
        return block

    first = {"published structure": as_published} if published else {"Stable-Baselines3": by_sb3}
    return first | {"ours": ours, "matrix products alone": limit}


def updates(turns: int, seconds: float, say: Callable[[str], None]) -> dict[str, list[Rate]]:
    """Gradient steps per second of CPU time: three cases against Stable-Baselines3, one against the published code."""
    wide, small = (256, 256, 256), (128, 128)
    textbook = RLConfig(actor=wide, critic=wide, critic_norm=False, entropy_in_target=True, bounded_value=False,
                        decisions=ROWS, envs=1)  # fmt: skip
    quick = RLConfig(actor=small, critic=small, batch=128, decisions=ROWS, envs=1)
    as_public = RLConfig(actor=(256,) * 4, critic=wide, critics=5, activation="mish", decisions=ROWS, envs=1)
    many = RLConfig(**{**vars(textbook), "critics": 5})
    cases = {
        "batch 256, 3 × 256, 2 critics, ReLU, 38 actions": (30, (38,), textbook, False),
        "the same with 5 critics": (30, (38,), many, False),
        "quick profile: batch 128, 2 × 128, LayerNorm (SB3 without), 2 actions": (20, (2,), quick, False),
        "published: batch 256, 5 critics, LayerNorm, Mish, 3 groups": (30, (7, 1, 30), as_public, True),
    }  # fmt: skip
    found = {}
    for name, case in cases.items():
        say(f"gradient steps: {name}")
        found[name] = in_turns(_case(*case), turns, seconds)
    return found
