"""The fast products against torch's own, and their repeatability, on which exact resume rests."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bench import compiled, kernels, nets
from bench.sac import ACTIVATIONS

SHAPES = [(4, 16, 8), (256, 256, 256), (128, 128, 128), (256, 69, 256)]  # small, and large enough for oneDNN


@pytest.fixture(params=[False, True], ids=["mkl", "onednn"])
def onednn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "ONEDNN", request.param)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize("shape", SHAPES)
def test_linear_equals_torch_in_value_and_gradient(shape: tuple[int, int, int]) -> None:
    rows, inputs, outputs = shape
    ours, theirs = kernels.Linear(inputs, outputs), nn.Linear(inputs, outputs)
    theirs.load_state_dict(ours.state_dict())
    found, expected = [], []
    for layer, into in ((ours, found), (theirs, expected)):
        x = draw(rows // 2, 2, inputs).requires_grad_(True)
        y = layer(x)
        (y * draw(rows // 2, 2, outputs)).sum().backward()
        into += [y.detach(), x.grad, layer.weight.grad, layer.bias.grad]
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize("shape", SHAPES)
def test_ensemble_equals_its_members(shape: tuple[int, int, int]) -> None:
    rows, inputs, outputs = shape
    layer, x = nets.EnsembleLinear(3, inputs, outputs), draw(3, rows, inputs)
    gradients = []
    for y in (layer(x), torch.baddbmm(layer.bias, x, layer.weight)):
        gradients.append(torch.autograd.grad((y * draw(3, rows, outputs)).sum(), [layer.weight, layer.bias]))
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-3)


@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize("shape", SHAPES)
def test_product_is_the_same_bits_wherever_its_operands_lie(shape: tuple[int, int, int]) -> None:
    rows, inputs, outputs = shape
    x, y, bias = draw(rows, inputs), draw(inputs, outputs), draw(outputs)
    first = kernels.product(x, y, bias)
    for shift in (1, 3, 8):
        moved = torch.empty(x.numel() + shift)[shift:].view_as(x).copy_(x)
        assert torch.equal(first, kernels.product(moved, y, bias))
    assert torch.allclose(first, x @ y + bias, atol=1e-4)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations_equal_torch_far_from_zero_too(kind: str) -> None:
    x = torch.cat([torch.linspace(-100, 100, 4001), torch.linspace(-3, 3, 4000), torch.linspace(-1e-3, 1e-3, 100)])
    x.requires_grad_(True)
    expected = nets.ACTIVATIONS[kind]()(x)
    (slope,) = torch.autograd.grad(expected.sum(), x)
    found, by = x.detach().clone()[None], torch.empty(1, len(x))
    compiled.activate(ACTIVATIONS[kind], found.numpy(), by.numpy(), 0)
    assert torch.allclose(found[0], expected, rtol=1e-5, atol=1e-7)
    assert torch.allclose(by[0], slope, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_what_is_no_number_stays_none(kind: str) -> None:
    x = torch.full((1, 40), torch.nan)
    compiled.activate(ACTIVATIONS[kind], x.numpy(), torch.empty(1, 40).numpy(), 0)
    assert bool(x.isnan().all())


@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("shape", [(1, 1, 1), (8, 5, 3), *SHAPES])
def test_compiled_product_equals_torch(shape: tuple[int, int, int], turned: tuple[bool, bool]) -> None:
    rows, inputs, outputs = shape
    x, y = draw(rows, inputs), draw(inputs, outputs)
    found = torch.full((rows, outputs), torch.nan)  # what was there does not matter
    stored = [(m.T.contiguous() if t else m).numpy() for m, t in zip((x, y), turned, strict=True)]
    compiled.product(stored[0], turned[0], stored[1], turned[1], found.numpy())
    assert torch.allclose(found, x @ y, atol=1e-4)
