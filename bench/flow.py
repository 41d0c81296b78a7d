"""The parameters and buffers that `bench.flow_kernel` works on, as views of a flow's residual MLP."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bench import flow_kernel
from bench.compiled import Array
from bench.flat import Flat, adam
from bench.flow_kernel import Sizes, Tape, Way
from bench.nets import ResidualMLP
from bench.policies import FlowPolicy


class Samples(NamedTuple):
    """Of one batch or several, one after the other."""

    inputs: Tensor  # (B, I) what `ResidualMLP.inputs` puts side by side
    target: Tensor  # (B, H · A) of the velocity
    weight: Tensor  # (B, H)


def samples(
    policy: FlowPolicy, s: Tensor, c: Tensor, a: Tensor, weight: Tensor, z: Tensor, tau: Tensor, sigma: Tensor | None,
    eps: Tensor | None,
) -> Samples:  # fmt: skip
    """From the arguments of `FlowPolicy.loss`."""
    assert isinstance(policy.net, ResidualMLP)
    x, told = torch.lerp(a, z, tau[:, None, None]), sigma if policy.takes_sigma else None
    inputs = policy.net.inputs(x, tau, policy.noised(s, c, sigma, eps), told)
    return Samples(inputs, (z - a).flatten(1), weight.contiguous())


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


class Descent:
    """Gradient steps of a flow; owns the memory of its parameters until `release`."""

    def __init__(self, policy: FlowPolicy, optimiser: torch.optim.Optimizer, batch: int) -> None:
        """`batch`: samples in every step."""
        net = policy.net
        assert isinstance(net, ResidualMLP)
        owned, first = parameters(net), net.first
        size = sum(p.numel() for p in owned)
        self.flat = Flat(1, size, lambda numbers: views(net, numbers), owned, optimiser)
        self.optimiser = optimiser
        width, outputs, blocks = net.embed_x.out_features, net.embed_x.in_features, len(net.blocks)
        biases = sum(layer.bias is not None for layer in first)
        self.sizes = Sizes(sum(layer.in_features for layer in first), width, blocks, outputs, biases)

        def zeros(*shape: int) -> Array:
            return torch.zeros(shape).numpy()  # torch aligns to cache lines

        stages, rows = blocks + 1, (batch, width)
        self.tape = Tape(
            stream=zeros(*rows), normed=zeros(stages, *rows), inverse=zeros(stages, batch), into=zeros(stages, *rows),
            active=zeros(blocks, *rows), slope=zeros(stages, *rows), added=zeros(*rows), bias=zeros(width),
        )  # fmt: skip
        self.way = Way(zeros(*rows), zeros(2, *rows), zeros(batch, outputs), zeros(size))

    def __call__(self, samples: Samples) -> float:
        """One step on a batch; returns the loss before it."""
        self.forward(samples)
        loss = self.backward(samples)
        self.step()
        return loss

    def forward(self, samples: Samples) -> None:
        """Outputs for a batch, kept for `backward`."""
        values, inputs = self.flat.trained.values[0], samples.inputs.numpy()
        flow_kernel.forward(self.sizes, values, inputs, self.tape, self.way.outputs)

    def backward(self, samples: Samples) -> float:
        """The loss of the batch that `forward` saw; keeps its gradient for `step`."""
        inputs, target, weight = (x.numpy() for x in samples)
        values = self.flat.trained.values[0]
        return float(flow_kernel.backward(self.sizes, values, inputs, target, weight, self.tape, self.way))

    def step(self) -> None:
        """Move the parameters, at the optimiser's learning rate."""
        flow_kernel.descend(self.flat.trained, self.way.gradient, adam(self.optimiser))


def release(policy: FlowPolicy) -> None:
    """Give the parameters memory of their own."""
    for parameter in policy.parameters():
        parameter.data = parameter.detach().clone(memory_format=torch.contiguous_format)
