"""Pretraining and acting by compiled code against torch."""

from __future__ import annotations

import dataclasses
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_methods import FAST_POSTERIOR, SMALL, inputs, toy_demos, train

from bench import kernels, nets
from bench.flat import zeros
from bench.flow import Descent, Integration, Samples, unshare
from bench.policies import FlowPolicy
from bench.pretraining import PretrainConfig, Trainer, one_graph
from bench.types import Stopped
from methods import bc, csp, posterior_bc

OPTIONS = {posterior_bc: FAST_POSTERIOR}
WIDE = dataclasses.replace(SMALL, blocks=3, width=40, fourier=2)


@pytest.mark.parametrize("method", [bc, csp, posterior_bc])
@pytest.mark.parametrize("net, batch", [(SMALL, 33), (WIDE, 32)])
def test_compiled_steps_equal_autograd(
    method: ModuleType, net: nets.PolicyConfig, batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In weights and in Adam's moments, which a gradient of the wrong size would change."""
    budget = PretrainConfig(steps=12, batch=batch, weight_decay=0.3, learning_rate=3e-3)
    options = OPTIONS.get(method, {})
    train(method, tmp_path / "compiled", net, budget, **options)
    train(method, tmp_path / "start", net, dataclasses.replace(budget, learning_rate=0.0), **options)
    monkeypatch.setattr(Trainer, "_compiled_flow", Trainer._traced_flow)
    train(method, tmp_path / "traced", net, budget, **options)
    found, start, traced = (load_file(tmp_path / name / "flow.safetensors") for name in ("compiled", "start", "traced"))
    for name, expected in traced.items():
        if name == "seconds":
            continue
        scale = float(expected.abs().max())
        assert torch.allclose(found[name], expected, rtol=1e-3, atol=1e-3 * scale), name
        if name.startswith("module.net.") and (method is csp or "embed_sigma" not in name):
            assert not torch.allclose(start[name], expected, rtol=1e-3, atol=1e-3 * scale), name


@pytest.fixture
def traced_sample(tmp_path: Path) -> tuple[FlowPolicy, list[torch.Tensor]]:
    """A smoothed policy that can still learn, and arguments of its loss, each other row past its episode's end."""
    policy = train(csp, tmp_path).requires_grad_(True)
    s, c, z, tau, eps = (torch.from_numpy(x) for x in inputs(policy, batch=8, sigma=0.3))
    weight = torch.ones(z.shape[:2])
    weight[::2, -1] = 0
    return policy, [s, c, z.flip(0), weight, z, tau, tau, eps]


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for a CPU with g++, which is not installed")
def test_the_graph_for_a_gpu_has_the_gradients_of_autograd(
    traced_sample: tuple[FlowPolicy, list[torch.Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled for a CPU, where torch fuses the kernels as well."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    policy, sample = traced_sample
    parameters = dict(policy.named_parameters())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="pretraining goes on")
        loss = one_graph(policy, tuple(sample))
    assert loss != policy.loss and all(p.grad is None for p in parameters.values())
    value = policy.loss(*sample)
    expected = dict(zip(parameters, torch.autograd.grad(value, list(parameters.values())), strict=True))
    found = loss(*sample)
    found.backward()
    torch.testing.assert_close(found, value)
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.grad, expected[name], msg=name)


@pytest.mark.parametrize("architecture", ["mlp", "transformer"])
@pytest.mark.parametrize("raw", [False, True])
def test_nothing_in_the_loss_stays_on_another_device(
    traced_sample: tuple[FlowPolicy, list[torch.Tensor]], architecture: str, raw: bool
) -> None:
    """A tensor left on the CPU would fail on a GPU, or keep torch from recording a CUDA graph."""
    trained, sample = traced_sample
    net = dataclasses.replace(SMALL, architecture=architecture, fourier=2)
    entries = tuple(range(trained.dims.state)), tuple(range(trained.dims.context))
    noise = nets.ContextNoise((1.0, 0.5), (True,) * trained.dims.context, raw)
    policy = FlowPolicy(trained.dims, net, entries, noise).to("meta")
    policy.loss(*(x.to("meta") for x in sample)).backward()
    assert all(p.grad is not None for p in policy.parameters())


def test_what_torch_cannot_compile_is_trained_as_it_is(
    traced_sample: tuple[FlowPolicy, list[torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(loss: object, **options: object) -> Callable[..., torch.Tensor]:
        def call(*sample: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no compiler\nand a long trace")

        return call

    policy, sample = traced_sample
    monkeypatch.setattr(torch, "compile", broken)
    with pytest.warns(UserWarning, match=r"cannot compile \(no compiler\)$"):
        loss = one_graph(policy, tuple(sample))
    assert loss == policy.loss


def test_stopped_among_prepared_batches_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    task, demos = toy_demos()
    stops = iter([False, True])  # asked at steps 0 and 20

    def trained(folder: Path, **options: object) -> dict[str, torch.Tensor]:
        trainer = Trainer(task, demos, SMALL, PretrainConfig(steps=40, batch=32), 3, folder, **options)  # type: ignore[arg-type]
        csp.pretrain(demos, csp.Config(), trainer)
        return {k: v for k, v in load_file(folder / "flow.safetensors").items() if k != "seconds"}

    unbroken = trained(tmp_path / "a")
    with pytest.raises(Stopped):
        trained(tmp_path / "b", stop=lambda: next(stops))
    for name, value in trained(tmp_path / "b").items():
        assert torch.equal(value, unbroken[name]), name


def test_a_trained_policy_owns_its_memory(tmp_path: Path) -> None:
    policy = train(bc, tmp_path)
    parameters = list(policy.parameters())
    assert all(p.is_contiguous() for p in parameters)
    assert len({p.untyped_storage().data_ptr() for p in parameters}) == len(parameters)


@pytest.mark.parametrize("method", [bc, csp])
@pytest.mark.parametrize("rows", [1, 7, 300])
def test_compiled_acting_equals_torch_also_after_the_weights_change(
    method: ModuleType, rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = train(method, tmp_path, WIDE)
    given = inputs(policy, rows, 0.4)
    found = [policy.act(*given)]
    with torch.no_grad():
        policy.net.embed_cond.weight.mul_(2.0)
    found.append(policy.act(*given))
    monkeypatch.setattr(FlowPolicy, "_compiled", lambda self, rows: None)
    expected = [policy.act(*given)]
    with torch.no_grad():
        policy.net.embed_cond.weight.mul_(0.5)
    expected.insert(0, policy.act(*given))
    for one, other in zip(found, expected, strict=True):
        assert np.allclose(one, other, atol=1e-5)
    assert not np.allclose(*expected, atol=1e-3)


@pytest.fixture
def always_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "ONEDNN", True)
    monkeypatch.setattr(kernels, "LARGE", 1)
    monkeypatch.setattr(Trainer, "_compiled_flow", None)


@pytest.mark.usefixtures("always_onednn")
def test_torch_does_what_its_products_make_faster(tmp_path: Path) -> None:
    policy = train(csp, tmp_path)
    policy.act(*inputs(policy))
    assert policy._integration is None


def test_acting_copies_the_weights_again_after_training(tmp_path: Path) -> None:
    """Also where the new memory begins at the old address."""
    net = train(bc, tmp_path).net
    assert isinstance(net, nets.ResidualMLP)
    before = Integration(net, 3).stamp
    Descent(net, torch.optim.AdamW(net.parameters()), batch=8)
    unshare(net)
    after = Integration(net, 3).stamp
    assert all(version != earlier for (_, version), (_, earlier) in zip(after, before, strict=True))


def test_sizes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """Compiled code would read and write beside them."""
    policy = train(bc, tmp_path)
    s, c, z, sigma, eps = inputs(policy)
    with pytest.raises(ValueError, match="shape"):
        policy.act(s, c, z[:, 1:], sigma, eps)
    assert isinstance(policy.net, nets.ResidualMLP)
    descent = Descent(policy.net, torch.optim.AdamW(policy.net.parameters()), batch=8)
    for rows, columns in ((7, descent.sizes.inputs), (8, descent.sizes.inputs - 1)):
        with pytest.raises(ValueError, match="shape"):
            descent(Samples(zeros(rows, columns), zeros(rows, descent.sizes.outputs), zeros(rows, 4)))
    fitting = zeros(8, descent.sizes.inputs), zeros(8, descent.sizes.outputs)
    with pytest.raises(ValueError, match="shape"):
        descent(Samples(*fitting, zeros(9, 4)))
