"""A flow's residual MLP run and trained by compiled code: the memory that `bench.flow_kernel` works on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bench import flow_kernel
from bench.compiled import Array
from bench.flat import Flat, settings, zeros
from bench.flow_kernel import Gradients, Sizes, Tape
from bench.nets import ResidualMLP, flow_times, time_features
from bench.policies import FlowPolicy


class Samples(NamedTuple):
    """Of one batch or several, one after the other."""

    inputs: Array  # (B, I) what `ResidualMLP.inputs` puts side by side
    target: Array  # (B, H · A) of the velocity
    weight: Array  # (B, H)


def samples(
    policy: FlowPolicy, s: Tensor, c: Tensor, a: Tensor, weight: Tensor, z: Tensor, tau: Tensor, sigma: Tensor | None,
    eps: Tensor | None,
) -> Samples:  # fmt: skip
    """From the arguments of `FlowPolicy.loss`."""
    assert isinstance(policy.net, ResidualMLP)
    x, told = torch.lerp(a, z, tau[:, None, None]), sigma if policy.takes_sigma else None
    inputs = policy.net.inputs(x, tau, policy.noised(s, c, sigma, eps), told)
    return Samples(inputs.numpy(), (z - a).flatten(1).numpy(), weight.contiguous().numpy())


def parameters(net: ResidualMLP) -> list[Tensor]:
    """Those that `views` gives memory."""
    weights = [layer.weight for layer in net.first]
    biases = [layer.bias for layer in net.first if layer.bias is not None]
    return [*weights, *biases, *net.blocks.parameters(), *net.head.parameters()]


def views(net: ResidualMLP, numbers: Tensor) -> list[Tensor]:
    """The numbers (1, P) as `parameters` are shaped, in the order that `bench.flow_kernel` reads them."""
    found, start = [], 0
    for parameter in parameters(net):
        cut = numbers[0, start : start + parameter.numel()]
        start += parameter.numel()
        found.append(cut if parameter.dim() == 1 else cut.view(parameter.shape[1], parameter.shape[0]).T)
    return found


def sizes(net: ResidualMLP) -> Sizes:
    """As `bench.flow_kernel` gets them."""
    biases = sum(layer.bias is not None for layer in net.first)
    inputs = sum(layer.in_features for layer in net.first)
    return Sizes(inputs, net.embed_x.out_features, len(net.blocks), net.embed_x.in_features, biases)


def tape(stages: int, rows: int, width: int) -> Tape:
    """Memory for that many stages and rows, in one piece: an allocation takes as long as a small row."""
    each, flat = stages * rows, zeros((4 * stages + 2) * rows + 1, width)
    normed, into, active, slope = flat[: 4 * each].reshape(4, stages, rows, width)
    stream, added = flat[4 * each : -1].reshape(2, rows, width)
    return Tape(stream, added, flat[-1], normed, zeros(stages, rows), into, active, slope)


class Integration:
    """Euler's steps from noise to chunk, with a copy of a network's weights as they are now."""

    def __init__(self, net: ResidualMLP, steps: int) -> None:
        self.sizes, self.owned = sizes(net), parameters(net)
        numbers = torch.empty(1, sum(p.numel() for p in self.owned))
        for parameter, view in zip(self.owned, views(net, numbers), strict=True):
            view.copy_(parameter)
        self.values, self.stamp = numbers[0].numpy(), self._stamp()
        self.times = time_features(flow_times(steps)).numpy()

    def __call__(self, x: Tensor, cond: Tensor, sigma: Tensor | None) -> Tensor:
        """x (B, H, A) at τ = 1, condition (B, F), σ (B,) or None → x at τ = 0. May be called from several threads."""
        inputs = ResidualMLP.inputs(x, torch.zeros(len(x)), cond, sigma)
        found = x.flatten(1).clone(memory_format=torch.contiguous_format)
        expect(found, len(x), self.sizes.outputs)
        expect(inputs, len(x), self.sizes.inputs)
        flow_kernel.integrate(
            self.sizes, self.values, self.times, inputs.numpy(), found.numpy(), tape(1, len(x), self.sizes.width),
            zeros(*found.shape),
        )  # fmt: skip
        return found.view_as(x)

    def current(self) -> bool:
        """Whether the network's weights are still those."""
        return self.stamp == self._stamp()

    def _stamp(self) -> list[tuple[int, int]]:
        return [(p.data_ptr(), p._version) for p in self.owned]


class Descent:
    """Gradient steps of a flow's network; owns its parameters' memory until `unshare`, and nobody may act before."""

    def __init__(self, net: ResidualMLP, optimiser: torch.optim.Optimizer, batch: int) -> None:
        """`batch`: samples in every step."""
        self.sizes, self.optimiser, owned = sizes(net), optimiser, parameters(net)
        size = sum(p.numel() for p in owned)
        self.flat = Flat(1, size, lambda numbers: views(net, numbers), owned, optimiser)
        _, width, blocks, outputs, _ = self.sizes
        self.tape = tape(blocks + 1, batch, width)
        self.gradients = Gradients(
            stream=zeros(batch, width), inner=zeros(2, batch, width), outputs=zeros(batch, outputs), numbers=zeros(size)
        )

    def __call__(self, samples: Samples) -> float:
        """One step on a batch; returns the loss before it."""
        self.forward(samples)
        loss = self.backward(samples)
        self.step()
        return loss

    def forward(self, samples: Samples) -> None:
        """Outputs for a batch, kept for `backward`. Raises ValueError if a size is not the network's or the batch's."""
        batch, outputs = self.gradients.outputs.shape
        expect(samples.inputs, batch, self.sizes.inputs)
        expect(samples.target, batch, outputs)
        expect(samples.weight, batch, *samples.weight.shape[1:])
        values = self.flat.trained.values[0]
        flow_kernel.forward_pass(self.sizes, values, samples.inputs, self.tape, self.gradients.outputs)

    def backward(self, samples: Samples) -> float:
        """The loss of the batch that `forward` saw; keeps its gradient for `step`."""
        return float(
            flow_kernel.backward_pass(self.sizes, self.flat.trained.values[0], *samples, self.tape, self.gradients)
        )

    def step(self) -> None:
        """Move the parameters, at the optimiser's learning rate."""
        flow_kernel.step(self.flat.trained, self.gradients.numbers, settings(self.optimiser))


def unshare(net: ResidualMLP) -> None:
    """Give the parameters memory of their own."""
    for parameter in net.parameters():
        parameter.data = parameter.detach().clone(memory_format=torch.contiguous_format)
        torch.autograd.graph.increment_version(parameter)  # a step does not: compiled code writes past torch


def expect(x: Tensor | Array, *shape: int) -> None:
    """Raises ValueError if x has another shape: compiled code would read and write beside it."""
    if x.shape != shape:
        raise ValueError(f"got numbers of shape {tuple(x.shape)} where {shape} is needed")
