"""The parameters and buffers that `bench.sac_kernel` works on, as views of the networks that Stable-Baselines3 made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bench import sac_kernel
from bench.compiled import MISH, RELU, SILU, TANH
from bench.flat import Flat, settings, zeros
from bench.sac_kernel import Groups, Settings, Shape, Work
from bench.types import FloatArray

if TYPE_CHECKING:
    from bench.rl import Engine, RLConfig

ACTIVATIONS = {"relu": RELU, "mish": MISH, "silu": SILU, "tanh": TANH}
ALIGNED = 16  # numbers to a cache line, where every layer begins


class Losses(NamedTuple):
    """What an update leaves for the log, until the next one."""

    error: Tensor  # Q − target, (K, B)
    temperatures: Tensor  # (G,)
    log_prob: Tensor  # (B, G); where a group has a prior, the divergence from it
    best: Tensor  # smallest Q of the chosen actions, (B,)


def shape(widths: Sequence[int], norm: bool, activation: str) -> tuple[Shape, int]:
    """Networks of these widths, from inputs to outputs, and how many numbers each has."""
    starts, last = [0], len(widths) - 2
    for n, (i, o) in enumerate(pairwise(widths)):
        numbers = i * o + (3 * o if norm and n < last else o)
        starts.append(starts[-1] + -(-numbers // ALIGNED) * ALIGNED)
    sizes, begins, units = (np.array(x, np.int64) for x in (widths, starts[:-1], [0, *accumulate(widths[1:-1])]))
    return Shape(sizes, begins, units, norm, ACTIVATIONS[activation]), starts[-1]


def hidden(net: Shape) -> int:
    """Hidden units of a network."""
    return int(net.widths[1:-1].sum())


def layers(net: Shape, numbers: Tensor) -> list[list[Tensor]]:
    """The numbers (K, P) cut into layers: weights (K, I, O), biases, gains and shifts (K, 1, O)."""
    found, last = [], len(net.starts) - 1
    for n, start in enumerate(net.starts):
        i, o = net.widths[n : n + 2]
        vectors = start + i * o + o * np.arange(3 if net.norm and n < last else 1)
        weight = numbers[:, start : start + i * o].view(len(numbers), int(i), int(o))
        found.append([weight, *(numbers[:, None, v : v + o] for v in vectors)])
    return found


def ensemble(net: Shape, numbers: Tensor) -> list[Tensor]:
    """The numbers (K, P) as the parameters of `nets.ensemble_mlp` are."""
    return [x for layer in layers(net, numbers) for x in layer]


def actor(net: Shape, numbers: Tensor) -> list[Tensor]:
    """The numbers (1, P) as the parameters of Stable-Baselines3's actor: (O, I), (O,), …, then its two heads."""
    *others, last = [[weight[0].T, bias[0, 0]] for weight, bias in layers(net, numbers)]
    heads = zip(*(x.chunk(2) for x in last), strict=True)
    return [x for layer in (*others, *heads) for x in layer]


def bounds(config: RLConfig, priors: Tensor) -> tuple[float, float]:
    """Between which values the target critics can be right; priors (D,), 0 where an action has none.

    Returns lie in [0, 1]. With the entropy in the target critics hold soft values: less the divergence from a prior,
    which is a cost, so only 1 bounds them, or plus an entropy, which may be of either sign, so nothing does.
    """
    inf = math.inf
    if not config.bounded_value:
        return -inf, inf
    if not config.entropy_in_target:
        return 0.0, 1.0
    return (-inf, 1.0) if bool((priors > 0).all()) else (-inf, inf)


class Update:
    """The compiled update of an engine; owns its parameters' memory from then on."""

    def __init__(self, engine: Engine) -> None:
        config, features, actions = engine.config, engine.replay.features, engine.replay.actions
        self.actor_shape, size = shape((features, *config.actor, 2 * actions), False, config.activation)
        optimiser = engine.actor.optimizer
        self.actor = Flat(1, size, partial(actor, self.actor_shape), engine.actor.parameters(), optimiser)
        widths = (features + actions, *config.critic, 1)
        self.critic_shape, size = shape(widths, config.critic_norm, config.activation)
        views, members = partial(ensemble, self.critic_shape), config.critics
        self.critics = Flat(members, size, views, engine.critic.parameters(), engine.critic.optimizer)
        self.targets = Flat(members, size, views, engine.critic_target.parameters())
        self.temperatures = Flat(1, len(engine.groups), list, [engine.log_temperatures], engine.temperature_optimiser)
        tensors = (engine.group_of, engine.priors, engine.target_entropies)
        self.groups = Groups(*(x.numpy() for x in tensors))
        low, high = bounds(config, engine.priors)
        self.settings = Settings(
            discount=config.discount, polyak=config.polyak, low=low, high=high,
            entropy_in_target=config.entropy_in_target, adam=settings(optimiser),
        )  # fmt: skip
        self._resize(config.batch)

    def bind(self) -> None:
        """Take over the optimisers' state after it was replaced."""
        for flat in (self.actor, self.critics, self.temperatures):
            flat.bind()

    def _resize(self, size: int) -> None:
        """Buffers for batches of this size."""
        features, actions, members = int(self.actor_shape.widths[0]), len(self.groups.of), len(self.critics.values)
        groups, widths = len(self.groups.entropies), [*self.actor_shape.widths, *self.critic_shape.widths]

        self.work = Work(
            actor_tape=zeros(4, 2 * size * hidden(self.actor_shape)),
            critic_tapes=zeros(members, 4, size * hidden(self.critic_shape)),
            observed=zeros(2 * size, features), outputs=zeros(2 * size, 2, actions), action=zeros(2 * size, actions),
            deviation=zeros(2 * size, actions), log_prob=zeros(2 * size, groups),
            inputs=zeros(size, features + actions), values=zeros(members, size), error=zeros(members, size),
            target=zeros(size), best=zeros(size), smallest=np.zeros(size, np.int64),
            rows=np.stack([np.arange(size, dtype=np.int64)] * 2), grad=zeros(2 * size * actions),
            scratch=zeros(2, size * int(max(widths))), slope=zeros(size, actions),
            by_actor=zeros(self.actor.values.shape[1]), by_critic=zeros(self.critics.values.shape[1]),
            by_temperature=zeros(groups), temperatures=zeros(groups),
        )  # fmt: skip
        work = [torch.from_numpy(getattr(self.work, name)) for name in Losses._fields]
        self.losses = Losses(*work)._replace(log_prob=torch.from_numpy(self.work.log_prob[:size]))

    def __call__(self, rows: Tensor, noise: Tensor) -> Losses:
        """One gradient step of everything on transitions (B, row), with noise (2B, D) for actions now and after."""
        if len(rows) != len(self.work.best):
            self._resize(len(rows))
        sac_kernel.update(
            self.actor_shape, self.critic_shape, self.actor.trained, self.critics.trained, self.targets.trained.values,
            self.temperatures.trained, self.groups, self.settings, rows.numpy(), noise.numpy(), self.work,
        )  # fmt: skip
        return self.losses

    def act(self, features: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mean and deviation (B, D) for features (B, F). May be called from several threads."""
        net = self.actor_shape
        x, outputs = zeros(*features.shape), zeros(len(features), int(net.widths[-1]))
        tape = zeros(4, len(features) * hidden(net))
        x[:] = features
        sac_kernel.act(net, self.actor.trained.values[0], tape, x, outputs)
        mean, log_std = np.split(outputs, 2, axis=1)
        return mean, np.exp(np.clip(log_std, sac_kernel.LOG_STD_LOW, sac_kernel.LOG_STD_HIGH))
