"""One update of SAC with its gradients written out, compiled as a whole (`update`); `act` serves in environments.

Networks of a few small layers spend most of an update between the arithmetic: in autograd's graph, in the dispatch of
operations, and in passes over memory that could be one. Sizes are arguments, so one compilation serves all settings.

Matrices lie in memory by rows. The tape (4, B · hidden units) of a network run on B rows holds, hidden layer after
hidden layer, what the way back needs: the outputs (B, W), the slopes of the activation (B, W), and with layer
normalisation the normalised entries (B, W) and each row's 1 / deviation (B,).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from bench.compiled import (
    Adam,
    Array,
    F,
    Integers,
    Trained,
    activate,
    adam,
    compiled,
    copy,
    entry,
    exp,
    normalise,
    part,
    product,
    reordered,
    tanh,
    through_norm,
)

LOG_STD_LOW, LOG_STD_HIGH = F(-20), F(2)  # Stable-Baselines3's bounds of the actor's log deviation
HALF_LOG_2PI = F(0.5 * np.log(2 * np.pi))
SQUASHED = F(1e-6)  # Stable-Baselines3's: keeps the logarithm of 1 − action² finite


class Shape(NamedTuple):
    """Networks of L layers. A layer's numbers begin with its weights (I, O); biases (O,), gains and shifts follow."""

    widths: Integers  # (L + 1,) of inputs, hidden layers and outputs
    starts: Integers  # (L,) where each layer's numbers begin
    units: Integers  # (L,) hidden units before each layer's own
    norm: bool
    activation: int


class Groups(NamedTuple):
    """The action's D entries in G groups."""

    of: Integers  # (D,) the group of each entry
    priors: Array  # (D,) deviations, 0 where entropy counts
    entropies: Array  # (G,) targets


class Settings(NamedTuple):
    discount: float
    polyak: float
    low: float  # bounds of the values in the critics' target
    high: float
    entropy_in_target: bool
    adam: Adam


class Work(NamedTuple):
    """Buffers for batches of B transitions, with F features."""

    actor_tape: Array  # (4, 2B · hidden units)
    critic_tapes: Array  # (K, 4, B · hidden units)
    observed: Array  # (2B, F) features now, then features after
    outputs: Array  # (2B, 2, D) mean and log deviation
    action: Array  # (2B, D)
    deviation: Array  # (2B, D)
    log_prob: Array  # (2B, G)
    inputs: Array  # (B, F + D) of the critics
    values: Array  # (K, B) of the critics
    error: Array  # (K, B) Q − target
    target: Array  # (B,)
    best: Array  # (B,) smallest value of the chosen actions
    smallest: Integers  # (B,) whose it is
    rows: Integers  # (2, B) all rows, and some
    grad: Array  # (2BD,) by the outputs of a network
    scratch: Array  # (2, B · largest width)
    slope: Array  # (B, D) of the mean value by the action
    by_actor: Array  # (P,) the gradient by an actor's parameters
    by_critic: Array  # (P,)
    by_temperature: Array  # (G,) by the logarithms of the temperatures
    temperatures: Array  # (G,)


@compiled
def forward(net: Shape, values: Array, tape: Array, x: Array, out: Array) -> None:
    """x (B, I) → out (B, O) by the network of values (P,), and what the way back needs on the tape."""
    rows, last = len(x), len(net.widths) - 2
    for n in range(last):
        i, o, t = net.widths[n], net.widths[n + 1], rows * net.units[n]
        begin = net.starts[n] + i * o
        bias, gain, shift = values[begin : begin + o], values[begin + o :], values[begin + 2 * o :]
        y, slope, normed = part(tape[0], t, rows, o), part(tape[1], t, rows, o), part(tape[2], t, rows, o)
        product(x, False, part(values, net.starts[n], i, o), False, y)
        for r in range(rows):
            for j in range(o):
                y[r, j] += bias[j]
            if net.norm:
                normalise(y, r, gain, shift, normed, tape[3, t:], y)
            activate(net.activation, y, slope, r)
        x = y
    i, o = net.widths[last], net.widths[last + 1]
    product(x, False, part(values, net.starts[last], i, o), False, out)
    bias = values[net.starts[last] + i * o :]
    for r in range(rows):
        for j in range(o):
            out[r, j] += bias[j]


@entry
def act(net: Shape, values: Array, tape: Array, x: Array, out: Array) -> None:
    """`forward` for the agent in its environments."""
    forward(net, values, tape, x, out)


@reordered
def through(
    net: Shape, n: int, values: Array, tape: Array, rows: int, chosen: Integers, grad: Array, gradient: Array
) -> None:
    """Back through activation and norm of hidden layer n: grad (M, O) by its outputs becomes that by its products.

    Row m belongs to row `chosen[m]` of the tape. Biases, gains and shifts get their entries in the gradient (P,).
    """
    i, o, t = net.widths[n], net.widths[n + 1], rows * net.units[n]
    begin = net.starts[n] + i * o
    slope, normed, inverse = part(tape[1], t, rows, o), part(tape[2], t, rows, o), tape[3, t:]
    gain = values[begin + o :]
    by_bias, by_gain, by_shift = gradient[begin:], gradient[begin + o :], gradient[begin + 2 * o :]
    for j in range(3 * o if net.norm else o):
        gradient[begin + j] = F(0)
    for m in range(len(chosen)):
        r = chosen[m]
        for j in range(o):
            grad[m, j] *= slope[r, j]
        if net.norm:
            through_norm(grad, m, normed, r, inverse, gain, by_gain, by_shift)
        for j in range(o):
            by_bias[j] += grad[m, j]


@compiled
def weight_gradient(
    net: Shape, values: Array, tape: Array, rows: int, chosen: Integers, x: Array, grad: Array, scratch: Array,
    gradient: Array,
) -> None:  # fmt: skip
    """The gradient (P,) by the parameters, from that by the outputs (M, O) of the first M rows, whose inputs are x."""
    size, last = len(chosen), len(net.widths) - 2
    for n in range(last, -1, -1):
        i, o, start = net.widths[n], net.widths[n + 1], net.starts[n]
        if n < last:
            through(net, n, values, tape, rows, chosen, grad, gradient)
        else:
            by_bias = gradient[start + i * o : start + i * o + o]
            by_bias[:] = F(0)
            for m in range(size):
                for j in range(o):
                    by_bias[j] += grad[m, j]
        inputs = x if n == 0 else part(tape[0], rows * net.units[n - 1], size, i)
        product(inputs, True, grad, False, part(gradient, start, i, o))
        if n:
            back = part(scratch[n % 2], 0, size, i)
            product(grad, False, part(values, start, i, o), True, back)
            grad = back


@compiled
def input_gradient(
    net: Shape, values: Array, tape: Array, rows: int, chosen: Integers, grad: Array, scratch: Array, unused: Array,
    first: int,
) -> Array:  # fmt: skip
    """The gradient (M, I − first) by the inputs from `first` on, from that by the outputs (M, O) of the chosen rows."""
    last = len(net.widths) - 2
    for n in range(last, -1, -1):
        o, lead = net.widths[n + 1], 0 if n else first
        i = net.widths[n] - lead
        if n < last:
            through(net, n, values, tape, rows, chosen, grad, unused)
        back = part(scratch[n % 2], 0, len(chosen), i)
        product(grad, False, part(values, net.starts[n] + lead * o, i, o), True, back)
        grad = back
    return grad


@compiled
def clamped(log_std: Any) -> Any:
    return min(max(log_std, LOG_STD_LOW), LOG_STD_HIGH)


@compiled
def choose(groups: Groups, noise: Array, work: Work) -> None:
    """Actions tanh(mean + deviation · noise) and the log-probability of each group.

    For groups with a prior KL(N(mean, deviation²) ‖ N(0, prior²)) takes its place, in nats.
    """
    outputs, action, deviation = work.outputs, work.action, work.deviation
    work.log_prob[:] = F(0)
    for r in range(len(outputs)):
        for j in range(len(groups.of)):
            deviation[r, j] = exp(clamped(outputs[r, 1, j]))
            action[r, j] = tanh(outputs[r, 0, j] + deviation[r, j] * noise[r, j])
        for j in range(len(groups.of)):
            log_std, prior = clamped(outputs[r, 1, j]), groups.priors[j]
            if prior > F(0):
                square = deviation[r, j] * deviation[r, j] + outputs[r, 0, j] * outputs[r, 0, j]
                entry = math.log(prior) - log_std + square / (F(2) * prior * prior) - F(0.5)
            else:
                squashed = math.log(F(1) - action[r, j] * action[r, j] + SQUASHED)
                entry = -F(0.5) * noise[r, j] * noise[r, j] - log_std - HALF_LOG_2PI - squashed
            work.log_prob[r, groups.of[j]] += entry


@compiled
def find_target(critic: Shape, values: Array, settings: Settings, rows: Array, work: Work) -> None:
    """target (B,) = r + γ (1 − end) (V − α · log π(a')) with V the smallest of the K critics' `values` (K, P)."""
    size, features, actions = len(rows), work.observed.shape[1], work.action.shape[1]
    copy(work.observed[size:], 0, work.inputs, 0, features)
    copy(work.action[size:], 0, work.inputs, features, actions)
    for k in range(len(values)):
        forward(critic, values[k], work.critic_tapes[k], work.inputs, work.values[k].reshape((size, 1)))
    for r in range(size):
        value = work.values[0, r]
        for k in range(1, len(values)):
            value = min(value, work.values[k, r])
        value = min(max(value, F(settings.low)), F(settings.high))
        if settings.entropy_in_target:
            for g in range(len(work.temperatures)):
                value -= work.temperatures[g] * work.log_prob[size + r, g]
        reward, terminated = rows[r, -2], rows[r, -1]
        work.target[r] = reward + (F(1) - terminated) * F(settings.discount) * value


@compiled
def move_critics(critic: Shape, trained: Trained, targets: Array, settings: Settings, rows: Array, work: Work) -> None:
    """A step of every critic down ½ mean (Q(s, a) − target)², and of the target critics towards them."""
    size, polyak = len(rows), F(settings.polyak)
    copy(rows, 0, work.inputs, 0, work.inputs.shape[1])
    grad, share = part(work.grad, 0, size, 1), F(1) / F(size)
    trained.steps[0] += F(1)
    for k in range(len(targets)):
        values, goals, tape, error = trained.values[k], targets[k], work.critic_tapes[k], work.error[k]
        forward(critic, values, tape, work.inputs, error.reshape((size, 1)))
        for r in range(size):
            error[r] -= work.target[r]
            grad[r, 0] = error[r] * share
        weight_gradient(critic, values, tape, size, work.rows[0], work.inputs, grad, work.scratch, work.by_critic)
        adam(trained, k, work.by_critic, settings.adam)
        for p in range(len(values)):
            goals[p] += polyak * (values[p] - goals[p])


@compiled
def value_slope(critic: Shape, values: Array, work: Work) -> None:
    """The smallest value of the chosen actions, and the slope of its mean: each row by the critic whose value it is."""
    size, features, actions = len(work.best), work.observed.shape[1], work.action.shape[1]
    copy(work.observed, 0, work.inputs, 0, features)
    copy(work.action, 0, work.inputs, features, actions)
    for k in range(len(values)):
        forward(critic, values[k], work.critic_tapes[k], work.inputs, work.values[k].reshape((size, 1)))
    for r in range(size):
        work.best[r], work.smallest[r] = work.values[0, r], 0
        for k in range(1, len(values)):
            if work.values[k, r] < work.best[r]:
                work.best[r], work.smallest[r] = work.values[k, r], k
    for k in range(len(values)):
        count = 0
        for r in range(size):
            if work.smallest[r] == k:
                work.rows[1, count] = r
                count += 1
        if count:
            chosen, grad = work.rows[1, :count], part(work.grad, 0, count, 1)
            grad[:] = F(1) / F(size)
            found = input_gradient(
                critic, values[k], work.critic_tapes[k], size, chosen, grad, work.scratch, work.by_critic, features
            )
            for m in range(count):
                for j in range(actions):
                    work.slope[chosen[m], j] = found[m, j]


@compiled
def actor_gradient(groups: Groups, noise: Array, work: Work, grad: Array) -> None:
    """grad (B, 2, D): the gradient of mean(α · log π − Q) by the actor's mean and log deviation."""
    size, actions = work.slope.shape
    for r in range(size):
        for j in range(actions):
            weight, prior = work.temperatures[groups.of[j]] / F(size), groups.priors[j]
            entropy = F(0) if prior > F(0) else weight
            a, deviation, raw = work.action[r, j], work.deviation[r, j], work.outputs[r, 1, j]
            square = F(1) - a * a
            by_mean = (F(2) * entropy * a / (square + SQUASHED) - work.slope[r, j]) * square
            by_log_std = by_mean * deviation * noise[r, j] - entropy
            if prior > F(0):
                scaled = weight / (prior * prior)
                by_mean += scaled * work.outputs[r, 0, j]
                by_log_std += scaled * deviation * deviation - weight
            grad[r, 0, j] = by_mean
            grad[r, 1, j] = F(0) if raw < LOG_STD_LOW or raw > LOG_STD_HIGH else by_log_std


@compiled
def move_actor(actor: Shape, trained: Trained, temperature: Trained, groups: Groups, settings: Settings, noise: Array,
               work: Work) -> None:  # fmt: skip
    """A step of the actor down mean(α · log π − Q), and of log α down −log α (log π + target entropy)."""
    size, actions = work.slope.shape
    grad = part(work.grad, 0, size, 2 * actions)
    actor_gradient(groups, noise, work, grad.reshape((size, 2, actions)))
    tape, values, x = work.actor_tape, trained.values[0], work.observed[:size]
    weight_gradient(actor, values, tape, 2 * size, work.rows[0], x, grad, work.scratch, work.by_actor)
    trained.steps[0] += F(1)
    adam(trained, 0, work.by_actor, settings.adam)
    for g in range(len(work.temperatures)):
        total = F(0)
        for r in range(size):
            total += work.log_prob[r, g] + groups.entropies[g]
        work.by_temperature[g] = -total / F(size)
    temperature.steps[0] += F(1)
    adam(temperature, 0, work.by_temperature, settings.adam)


@entry
def update(
    actor: Shape, critic: Shape, actor_trained: Trained, critic_trained: Trained, targets: Array, temperature: Trained,
    groups: Groups, settings: Settings, rows: Array, noise: Array, work: Work,
) -> None:  # fmt: skip
    """One step of everything on transitions (B, row), with noise (2B, D) for actions now and after."""
    size, features = len(rows), work.observed.shape[1]
    copy(rows, 0, work.observed[:size], 0, features)
    copy(rows, features + len(groups.of), work.observed[size:], 0, features)
    for g in range(len(work.temperatures)):
        work.temperatures[g] = math.exp(temperature.values[0, g])
    outputs = work.outputs.reshape((2 * size, -1))
    forward(actor, actor_trained.values[0], work.actor_tape, work.observed, outputs)
    choose(groups, noise, work)
    find_target(critic, targets, settings, rows, work)
    move_critics(critic, critic_trained, targets, settings, rows, work)
    value_slope(critic, critic_trained.values, work)
    move_actor(actor, actor_trained, temperature, groups, settings, noise, work)
