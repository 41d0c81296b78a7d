"""Matrix products, MLPs with their gradients written out, and Adam, in as few and as fast calls as the CPU allows.

For updates of small networks that run a million times: recording and walking autograd's graph, and the Python around
each parameter, cost more than the arithmetic (batch 128, widths 128: 2.5 ms an update, 0.9 ms of it products).
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# From this many multiplications on, oneDNN's product is the faster one on an AMD core with AVX-512: 245 GFLOP/s against
# 117 of MKL (256 × 256 × 256), but 10 µs more a call. On Intel's, MKL has 145, oneDNN 112 to 146. Chosen by the maker,
# and never by a clock: equal inputs give equal bits.
LARGE = 1_500_000


def _intel() -> bool:
    """Whether an Intel made this processor."""
    described = Path("/proc/cpuinfo")
    return "Intel" in (described.read_text() if described.exists() else platform.processor())


ONEDNN = (
    torch._C._has_mkldnn
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    and not (torch.backends.mkl.is_available() and _intel())  # type: ignore[no-untyped-call]
)


def large(x: Tensor, y: Tensor) -> bool:
    """Whether oneDNN's product of x (M, I) and y (I, O) is the faster one."""
    return ONEDNN and x.shape[0] * y.numel() >= LARGE and x.device.type == "cpu" and x.dtype == torch.float32


def product(x: Tensor, y: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (M, I) @ y (I, O) + bias (O,), on the CPU and outside autograd."""
    if large(x, y):
        out: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, y.T, bias, "none", [], "")
        return out
    return torch.mm(x, y) if bias is None else torch.addmm(bias, x, y)


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        inputs = product(grad, weight.T) if ctx.needs_input_grad[0] else None
        return inputs, product(x.T, grad), grad.sum(0)


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`product` with autograd."""
    if not torch.is_grad_enabled():
        return product(x, weight, bias)
    out: Tensor = _Affine.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return out


class Linear(nn.Linear):
    """nn.Linear, with `product` where that is faster: large batches on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, I) → (…, O)."""
        rows = x if x.dim() == 2 else x.reshape(-1, self.in_features)
        if self.bias is None or not large(rows, self.weight):
            return super().forward(x)
        return affine(rows, self.weight.T, self.bias).view(*x.shape[:-1], self.out_features)


class Activation(NamedTuple):
    """y = forward(x) with what backward(gradient of y, saved) needs; both may overwrite their first argument."""

    forward: Callable[[Tensor], tuple[Tensor, tuple[Tensor, ...]]]
    backward: Callable[..., Tensor]


def _relu(x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    y = x.relu_()
    return y, (y,)


def _relu_backward(grad: Tensor, y: Tensor) -> Tensor:
    out: Tensor = torch.ops.aten.threshold_backward.grad_input(grad, y, 0, grad_input=grad)
    return out


def _tanh(x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    y = x.tanh_()
    return y, (y,)


def _silu(x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    return torch.nn.functional.silu(x), (x,)


def _mish(x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    from bench.mish import kernel  # Numba takes half a second, and few settings ask for Mish

    slope = torch.empty_like(x)
    kernel(x.view(-1).numpy(), slope.view(-1).numpy())
    return x, (slope,)


ACTIVATIONS: Mapping[str, Activation] = {
    "relu": Activation(_relu, _relu_backward),
    "mish": Activation(_mish, lambda grad, slope: grad.mul_(slope)),
    "silu": Activation(_silu, lambda grad, x: torch.ops.aten.silu_backward(grad, x)),
    "tanh": Activation(_tanh, lambda grad, y: torch.ops.aten.tanh_backward(grad, y)),
}


class Layer(NamedTuple):
    """x W + b, then layer normalisation if there is a gain, then the activation if it is hidden."""

    weight: Tensor  # (I, O), a view of the parameter
    bias: Tensor  # (O,)
    gain: Tensor | None = None  # (O,)
    shift: Tensor | None = None  # (O,)


class Saved(NamedTuple):
    """What the backward pass of one layer needs."""

    inputs: Tensor  # (B, I)
    active: tuple[Tensor, ...] = ()  # of the activation
    normed: tuple[Tensor, ...] = ()  # layer norm's input, mean and 1 / deviation


class MLP:
    """Hidden layers and a linear last one, over tensors that someone else owns; call inside inference mode."""

    def __init__(self, layers: Sequence[Layer], activation: str) -> None:
        self.layers, self.activation = list(layers), ACTIVATIONS[activation]

    def forward(self, x: Tensor, tape: list[Saved] | None = None) -> Tensor:
        """(B, I) → (B, O); with a tape `backward` may follow."""
        for layer in self.layers[:-1]:
            inputs, normed = x, tuple[Tensor, ...]()
            x = product(x, layer.weight, layer.bias)
            if layer.gain is not None:
                before = x
                x, *moments = torch.native_layer_norm(before, [before.shape[1]], layer.gain, layer.shift, 1e-5)
                normed = (before, *moments)
            x, active = self.activation.forward(x)
            if tape is not None:
                tape.append(Saved(inputs, active, normed))
        if tape is not None:
            tape.append(Saved(x))
        last = self.layers[-1]
        return product(x, last.weight, last.bias)

    def weight_gradients(self, grad: Tensor, tape: list[Saved]) -> list[Tensor]:
        """Gradient (B, O) of the outputs → those of weights, biases, gains and shifts, layer after layer."""
        found: list[Tensor] = []
        for n in range(len(self.layers) - 1, -1, -1):
            layer, saved, own = self.layers[n], tape[n], list[Tensor]()
            if n < len(self.layers) - 1:
                grad, *own = self._through(grad, layer, saved, True)
            stored = layer.weight.is_contiguous()  # the gradient is laid out as the parameter is
            weight = product(saved.inputs.T, grad) if stored else product(grad.T, saved.inputs)
            found = [weight, grad.sum(0), *own, *found]
            if n:
                grad = product(grad, layer.weight.T)
        return found

    def input_gradient(self, grad: Tensor, tape: list[Saved], start: int = 0) -> Tensor:
        """Gradient (B, O) of the outputs → that of the input's entries from `start` on, (B, I − start)."""
        for n in range(len(self.layers) - 1, -1, -1):
            layer = self.layers[n]
            if n < len(self.layers) - 1:
                grad = self._through(grad, layer, tape[n], False)[0]
            grad = product(grad, (layer.weight if n else layer.weight[start:]).T)
        return grad

    def _through(self, grad: Tensor, layer: Layer, saved: Saved, weights: bool) -> list[Tensor]:
        """Back through activation and norm: the gradient, then those of gain and shift if wanted."""
        grad = self.activation.backward(grad, *saved.active)
        if layer.gain is None:
            return [grad]
        before, mean, scale = saved.normed
        out = torch.ops.aten.native_layer_norm_backward(
            grad, before, [before.shape[1]], mean, scale, layer.gain, layer.shift, [True, weights, weights]
        )
        return list(out) if weights else [out[0]]


@dataclass
class Adam:
    """Steps of torch's fused Adam optimisers on gradients that are handed in: their kernel and state, all in one call.

    The optimisers must share their settings and have stepped as often. `views` cuts the parameters, and in the same
    way their state, into the tensors that the gradients belong to.
    """

    optimisers: Sequence[torch.optim.Optimizer]
    views: Callable[[list[Tensor]], list[Tensor]] = list

    def __post_init__(self) -> None:
        self.bind()

    def bind(self) -> None:
        """Take the optimisers' state, after it was replaced; create what is missing."""
        parameters, first, second = [], [], []
        self.count: Tensor | None = None
        for parameter, state in self._states():
            if not state:
                state |= {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(parameter.detach()),
                          "exp_avg_sq": torch.zeros_like(parameter.detach())}  # fmt: skip
            self.count = state["step"] = state["step"] if self.count is None else self.count
            parameters.append(parameter.detach())
            first.append(state["exp_avg"])
            second.append(state["exp_avg_sq"])
        self.parameters, self.first, self.second = (self.views(each) for each in (parameters, first, second))

    def _states(self) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                yield from zip(group["params"], map(optimiser.state.__getitem__, group["params"]), strict=True)

    def step(self, gradients: list[Tensor]) -> None:
        """One step; the gradients, contiguous as their parameters are, in the order of `views`."""
        group = self.optimisers[0].param_groups[0]
        assert self.count is not None
        self.count.add_(1.0)
        torch._fused_adam_(
            self.parameters, gradients, self.first, self.second, [], [self.count] * len(gradients),
            lr=group["lr"], beta1=group["betas"][0], beta2=group["betas"][1], weight_decay=group["weight_decay"],
            eps=group["eps"], amsgrad=False, maximize=False, grad_scale=None, found_inf=None,
        )  # fmt: skip
