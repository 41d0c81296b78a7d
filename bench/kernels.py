"""Matrix products as fast as the CPU allows, and linear layers of them, with gradients."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

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


def onednn(multiplications: int) -> bool:
    """Whether oneDNN's product of two matrices is the faster one on this processor."""
    return ONEDNN and multiplications >= LARGE


def large(x: Tensor, y: Tensor) -> bool:
    """The same for x (M, I) and y (I, O)."""
    return onednn(x.shape[0] * y.numel()) and x.device.type == "cpu" and x.dtype == torch.float32


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
