"""The flow's residual MLP, compiled: `integrate` to act; `forward_pass`, `backward_pass` and AdamW's `step` to train.

What τ, the condition and σ say is added to what x says before the first block, so the four first layers are one product
of all inputs side by side with all their weights. Between two products one pass over each row does the rest.

With N blocks of width W, the numbers of a network are, one after the other: the first weights (I, W) and, of the layers
that have them, biases (W,); for each block gains and shifts of its norm, (W,) each, weights (W, W) and biases (W,),
twice; gains and shifts of the last norm, weights (W, O) and biases (O,). Matrices lie in memory by rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from bench.compiled import (
    SILU,
    Adam,
    Array,
    F,
    Trained,
    activate,
    adam,
    compiled,
    entry,
    normalise,
    part,
    product,
    reordered,
    through_norm,
)


class Sizes(NamedTuple):
    """How wide a network is, and how deep."""

    inputs: int
    width: int
    blocks: int
    outputs: int
    biases: int  # vectors that are added to the first product


class Tape(NamedTuple):
    """What B rows leave: for the way back at S = N + 1 stages, the blocks and the head; S = 1 where there is none."""

    stream: Array  # (B, W) what the blocks add up to
    added: Array  # (B, W) by the last product to the stream
    bias: Array  # (W,) to be added with it
    normed: Array  # (S, B, W)
    inverse: Array  # (S, B) 1 / deviation
    into: Array  # (S, B, W) of a block's first product; of the head's: its activation
    active: Array  # (S, B, W) activations of the blocks
    slope: Array  # (S, B, W) of the activations


class Gradients(NamedTuple):
    """Of the loss on B rows."""

    stream: Array  # (B, W)
    inner: Array  # (2, B, W) inside a block
    outputs: Array  # (B, O); before `backward_pass` the outputs themselves
    numbers: Array  # (P,)


@compiled
def block(net: Sizes, n: int) -> int:
    """Where block n's numbers begin; n = N: the head's."""
    return (net.inputs + net.biases) * net.width + n * (2 * net.width + 2 * (net.width + 1) * net.width)


@compiled
def forward(net: Sizes, values: Array, x: Array, tape: Tape, out: Array) -> None:
    """x (B, I) → out (B, O) by the network of values (P,), and the tape."""
    w, rows, bias = net.width, len(x), tape.bias
    product(x, False, part(values, 0, net.inputs, w), False, tape.added)
    bias[:] = F(0)
    for k in range(net.biases):
        for j in range(w):
            bias[j] += values[(net.inputs + k) * w + j]
    tape.stream[:] = F(0)
    for n in range(net.blocks + 1):
        start, stage, last = block(net, n), n % len(tape.into), n == net.blocks
        gain, shift, into, slope = values[start:], values[start + w :], tape.into[stage], tape.slope[stage]
        for r in range(rows):
            for j in range(w):
                tape.stream[r, j] += tape.added[r, j] + bias[j]
            normalise(tape.stream, r, gain, shift, tape.normed[stage], tape.inverse[stage], into)
            if last:
                activate(SILU, into, slope, r)
        start += 2 * w
        if last:
            break
        active = tape.active[stage]
        product(into, False, part(values, start, w, w), False, active)
        start += w * w
        for r in range(rows):
            for j in range(w):
                active[r, j] += values[start + j]
            activate(SILU, active, slope, r)
        product(active, False, part(values, start + w, w, w), False, tape.added)
        for j in range(w):
            bias[j] = values[start + w + w * w + j]
    product(into, False, part(values, start, w, net.outputs), False, out)
    start += w * net.outputs
    for r in range(rows):
        for j in range(net.outputs):
            out[r, j] += values[start + j]


@entry
def forward_pass(net: Sizes, values: Array, x: Array, tape: Tape, out: Array) -> None:
    """`forward` for pretraining."""
    forward(net, values, x, tape, out)


@entry
def integrate(net: Sizes, values: Array, times: Array, inputs: Array, x: Array, tape: Tape, out: Array) -> None:
    """x (B, O) at τ = 1 becomes what it is at 0, by Euler's steps with the velocity out (B, O).

    The features (n, T) of τ = 1/n, 2/n, …, 1, and x itself, are put where they belong in the inputs (B, I).
    """
    share = F(1) / F(len(times))
    for k in range(len(times) - 1, -1, -1):
        for r in range(len(x)):
            for j in range(net.outputs):
                inputs[r, j] = x[r, j]
            for j in range(times.shape[1]):
                inputs[r, net.outputs + j] = times[k, j]
        forward(net, values, inputs, tape, out)
        for r in range(len(x)):
            for j in range(net.outputs):
                x[r, j] -= share * out[r, j]


@reordered
def column_sums(x: Array, out: Array) -> None:
    """x (B, W) → the first W entries of out."""
    for j in range(x.shape[1]):
        out[j] = F(0)
    for r in range(len(x)):
        for j in range(x.shape[1]):
            out[j] += x[r, j]


@reordered
def loss_and_slope(target: Array, weight: Array, out: Array) -> Any:
    """Mean square of out − target (B, H · A) with weights (B, H); out (B, H · A) becomes the gradient by it."""
    rows, steps = weight.shape
    size = out.shape[1] // steps
    total = loss = F(0)
    for r in range(rows):
        for h in range(steps):
            total += weight[r, h]
    share = F(1) / (total * F(size))
    for r in range(rows):
        for h in range(steps):
            each = weight[r, h] * share
            for j in range(h * size, (h + 1) * size):
                d = out[r, j] - target[r, j]
                loss += each * d * d
                out[r, j] = F(2) * each * d
    return loss


@entry
def backward_pass(
    net: Sizes, values: Array, x: Array, target: Array, weight: Array, tape: Tape, grads: Gradients
) -> Any:
    """The flow matching loss ‖v − (z − a)‖², the mean over steps by their weights (B, H), and its gradients.

    v is what `forward_pass` left in grads.outputs for x (B, I), z − a the target (B, H · A), values (P,) the network.
    """
    w, gradient, grad, inner = net.width, grads.numbers, grads.stream, grads.inner
    loss = loss_and_slope(target, weight, grads.outputs)
    start = block(net, net.blocks)
    gradient[start : start + 2 * w] = F(0)
    weights = start + 2 * w
    column_sums(grads.outputs, gradient[weights + w * net.outputs :])
    product(tape.into[net.blocks], True, grads.outputs, False, part(gradient, weights, w, net.outputs))
    product(grads.outputs, False, part(values, weights, w, net.outputs), True, grad)
    for r in range(len(x)):
        for j in range(w):
            grad[r, j] *= tape.slope[net.blocks, r, j]
        through_norm(grad, r, tape.normed[net.blocks], r, tape.inverse[net.blocks], values[start:], gradient[start:],
                     gradient[start + w :])  # fmt: skip
    for n in range(net.blocks - 1, -1, -1):
        start = block(net, n)
        gradient[start : start + 2 * w] = F(0)
        first, second = start + 2 * w, start + 3 * w + w * w
        column_sums(grad, gradient[second + w * w :])
        product(tape.active[n], True, grad, False, part(gradient, second, w, w))
        product(grad, False, part(values, second, w, w), True, inner[0])
        for r in range(len(x)):
            for j in range(w):
                inner[0, r, j] *= tape.slope[n, r, j]
        column_sums(inner[0], gradient[first + w * w :])
        product(tape.into[n], True, inner[0], False, part(gradient, first, w, w))
        product(inner[0], False, part(values, first, w, w), True, inner[1])
        for r in range(len(x)):
            through_norm(inner[1], r, tape.normed[n], r, tape.inverse[n], values[start:], gradient[start:],
                         gradient[start + w :])  # fmt: skip
            for j in range(w):
                grad[r, j] += inner[1, r, j]
    for k in range(net.biases):
        column_sums(grad, gradient[(net.inputs + k) * w :])
    product(x, True, grad, False, part(gradient, 0, net.inputs, w))
    return loss


@entry
def step(net: Trained, gradient: Array, settings: Adam) -> None:
    """AdamW's step of the one network along its gradient (P,)."""
    net.steps[0] += F(1)
    adam(net, 0, gradient, settings)
