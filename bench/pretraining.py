"""The one pretraining loop: every method's networks are trained here, with exact resume.

A method calls `trainer.flow(…)` for its policy, or `trainer.fit(…)` for a network of its own. All random numbers of
step k come from generators seeded by (seed, purpose, k): a resumed run needs no random state, and a method that adds a
draw of its own does not shift the draws of the others.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bench import kernels, nets, policies, seeding
from bench.config import option
from bench.store import write_atomic
from bench.types import Demos, Dims, InputError, Stopped, Task

CHECKPOINT_SECONDS = 10.0
AHEAD = 16  # batches prepared at a time: after a gradient step the caches are cold, and one takes five times as long

Batch = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]  # for `FlowPolicy.loss`
Move = Callable[[int], Tensor | float]  # takes one gradient step and returns the loss before it


@dataclass(frozen=True)
class PretrainConfig:
    """Budget and optimiser of pretraining; the same for every method."""

    steps: int = option(20_000, "gradient steps of the policy", unit="gradient steps", low=1)
    batch: int = option(256, "samples in a batch", low=1)
    learning_rate: float = option(1e-3, "AdamW's peak learning rate", low=0.0, high=1.0)
    schedule: str = option("cosine", "learning rate after 2 % warm-up", choices=("cosine", "constant"))
    beta1: float = option(0.95, "AdamW's first-moment decay", low=0.0, high=1.0)
    weight_decay: float = option(1e-6, "AdamW's weight decay", low=0.0, high=1.0)
    device: str = option("cpu", "where to train", choices=("cpu", "cuda"))


def dims_of(task: Task, demos: Demos, config: nets.PolicyConfig) -> Dims:
    """The sizes that follow from the demonstrations."""
    widths = {k: int(np.prod(demos.observations[k].shape[1:])) for k in (*task.state_keys, *task.context_keys)}
    return Dims(
        state=sum(widths[k] for k in task.state_keys),
        context=sum(widths[k] for k in task.context_keys),
        action=demos.actions.shape[1],
        chunk=config.chunk,
        context_keys={k: widths[k] for k in task.context_keys},
        execute=config.execute,
    )


def position_entries(task: Task, demos: Demos) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Which entries of s and of c are positions."""
    found = []
    for keys in (task.state_keys, task.context_keys):
        entries: list[int] = []
        start = 0
        for key in keys:
            width = int(np.prod(demos.observations[key].shape[1:]))
            entries += range(start, start + width) if key in task.position_keys else ()
            start += width
        found.append(tuple(entries))
    return found[0], found[1]


def chunk_table(ends: np.ndarray[Any, Any], chunk: int) -> tuple[Tensor, Tensor]:
    """Rows of the chunk that starts at each step: (N, H) int64, held at the episode's end, and weights (N, H)."""
    starts = np.concatenate([[0], ends[:-1]])
    last = np.repeat(ends, ends - starts) - 1
    index = np.arange(int(ends[-1]))[:, None] + np.arange(chunk)
    weight = (index <= last[:, None]).astype(np.float32)
    return torch.from_numpy(np.minimum(index, last[:, None])), torch.from_numpy(weight)


class Trainer:
    """What a method's `pretrain` is given: data, budget, seed, and loops that checkpoint, resume and stop cleanly."""

    def __init__(
        self, task: Task, demos: Demos, policy: nets.PolicyConfig, config: PretrainConfig, seed: int, folder: Path,
        progress: Callable[[float, str], None] = lambda share, text: None, stop: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        task = nets.split(task, policy)
        self.task, self.demos, self.policy_config, self.config, self.seed = task, demos, policy, config, seed
        self.folder, self.progress, self.stop = folder, progress, stop
        self.dims = dims_of(task, demos, policy)
        self.device = torch.device(config.device)
        self.s, self.c, self.a = (
            torch.from_numpy(x).to(self.device)
            for x in (demos.vector(task.state_keys), demos.vector(task.context_keys), demos.actions)
        )
        self.positions = position_entries(task, demos)
        index, weight = chunk_table(demos.ends, policy.chunk)
        self.index = index.to(self.device)
        self.inputs = torch.cat([self.s, self.c, weight.to(self.device)], dim=1)  # side by side: one gather a batch
        self.weight = self.inputs[:, self.dims.state + self.dims.context :]
        self.gradient_steps = 0
        self.seconds = 0.0  # of training, over all resumptions

    def generator(self, purpose: str, step: int) -> torch.Generator:
        """The generator of one step for one purpose."""
        return torch.Generator().manual_seed(seeding.child(self.seed, purpose, step))

    def fit(
        self, name: str, module: nn.Module, loss: Callable[[int], Tensor], steps: int, learning_rate: float
    ) -> None:
        """Minimise `loss(step)` over the module's parameters; goes on from the checkpoint if there is one.

        Raises Stopped when asked to stop, after the checkpoint is written.
        """

        def by_autograd(optimiser: torch.optim.Optimizer) -> Move:
            parameters = optimiser.param_groups[0]["params"]

            def move(step: int) -> Tensor:
                value = loss(step)
                release(parameters)
                value.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                return value.detach()

            return move

        self._minimise(name, module, by_autograd, steps, learning_rate)

    def _minimise(
        self, name: str, module: nn.Module, mover: Callable[[torch.optim.Optimizer], Move], steps: int,
        learning_rate: float,
    ) -> None:  # fmt: skip
        """`fit` by the gradient steps that `mover` makes with the optimiser. Raises Stopped as it does."""
        optimiser = torch.optim.AdamW(
            module.parameters(), lr=learning_rate, betas=(self.config.beta1, 0.999),
            weight_decay=self.config.weight_decay, fused=True,
        )  # fmt: skip
        path = self.folder / f"{name}.safetensors"
        start, spent = restore(path, module, optimiser) if path.exists() else (0, 0.0)
        move = mover(optimiser)
        begun = saved = time.monotonic()
        for step in range(start, steps):
            optimiser.param_groups[0]["lr"] = learning_rate * self._rate(step, steps)
            value = move(step)
            stopping = step % 20 == 0 and self.stop()
            if stopping or time.monotonic() - saved > CHECKPOINT_SECONDS:
                saved = time.monotonic()
                checkpoint(path, module, optimiser, step + 1, spent + saved - begun)
            if stopping:
                raise Stopped
            if step % 100 == 0:
                self.progress(step / steps, f"{name} loss {float(value):.3f}")
        seconds = spent + time.monotonic() - begun
        if start < steps:
            checkpoint(path, module, optimiser, steps, seconds)
        self.seconds += seconds
        self.gradient_steps += steps
        module.requires_grad_(False)

    def _rate(self, step: int, steps: int) -> float:
        warm = min(1.0, (step + 1) / max(1, steps // 50))
        if self.config.schedule == "constant":
            return warm
        return warm * 0.5 * (1 + math.cos(math.pi * step / steps))

    def flow(
        self, noise: nets.ContextNoise | None = None, sigma: Callable[[torch.Generator, int], Tensor] | None = None,
        target_std: Tensor | None = None,
    ) -> policies.FlowPolicy:  # fmt: skip
        """Train the conditional flow and return it frozen.

        `noise` and `sigma(generator, batch) → (B,)` noise the context; `target_std` (N, H, A), in normalised
        action units, perturbs the targets (posterior behaviour cloning). With neither this is behaviour cloning.
        """
        policy = policies.build(self.dims, self.policy_config, self.positions, noise, seeding.child(self.seed, "init"))
        policy.fit_normaliser(self.s, self.c, self.a)
        policy.to(self.device)
        actions = (self.a - policy.a_mean) / policy.a_std
        sizes = [self.dims.state, self.dims.context, self.dims.chunk]

        def draw(step: int) -> tuple[Tensor | None, ...]:
            more = level = eps = None
            rows, z, tau = self._draws(step)
            if target_std is not None:
                more = torch.randn(z.shape, generator=self.generator("target", step))
            if noise is not None and sigma is not None:
                draws = self.generator("context", step)
                level = sigma(draws, len(rows))
                eps = torch.randn((len(rows), self.dims.context), generator=draws)
            return rows, z, tau, more, level, eps

        def prepare(first: int) -> Batch:
            """The batches of AHEAD steps, one after the other."""
            drawn = zip(*(draw(step) for step in range(first, first + AHEAD)), strict=True)
            rows, z, tau, more, level, eps = (
                None if column[0] is None else torch.cat(column).to(self.device) for column in drawn  # type: ignore[arg-type]
            )  # fmt: skip
            assert rows is not None and z is not None and tau is not None
            s, c, weight = torch.split_with_sizes(self.inputs.index_select(0, rows), sizes, dim=1)
            chunk = actions.index_select(0, self.index.index_select(0, rows).view(-1)).view_as(z)
            if target_std is not None and more is not None:
                chunk = torch.addcmul(chunk, target_std.index_select(0, rows), more)
            return s, c, chunk, weight, z, tau, level, eps

        slower = kernels.onednn(self.config.batch * self.policy_config.width**2)
        compiled = self.device.type == "cpu" and isinstance(policy.net, nets.ResidualMLP) and not slower
        (self._compiled_flow if compiled else self._traced_flow)(policy, prepare)
        return policy.eval()

    def _traced_flow(self, policy: policies.FlowPolicy, prepare: Callable[[int], Batch]) -> None:
        """Train by autograd on the batches that `prepare` makes for AHEAD steps."""
        batch = self._cut(prepare)
        loss = one_graph(policy, self._cut(prepare)(0)) if self.device.type == "cuda" else policy.loss
        self.fit("flow", policy, lambda step: loss(*batch(step)), self.config.steps, self.config.learning_rate)

    def _compiled_flow(self, policy: policies.FlowPolicy, prepare: Callable[[int], Batch]) -> None:
        """The same by compiled code, in two thirds of the time where MKL is the fastest there is."""
        from bench import flow  # Numba takes half a second, and most commands train nothing

        batch, net = self._cut(lambda first: flow.samples(policy, *prepare(first))), policy.net
        assert isinstance(net, nets.ResidualMLP)

        def mover(optimiser: torch.optim.Optimizer) -> Move:
            descent = flow.Descent(net, optimiser, self.config.batch)
            return lambda step: descent(flow.Samples(*batch(step)))

        self._minimise("flow", policy, mover, self.config.steps, self.config.learning_rate)
        flow.unshare(net)

    def _cut(self, prepare: Callable[[int], Sequence[Any]]) -> Callable[[int], tuple[Any, ...]]:
        """The batch of a step out of what `prepare(first)` makes for AHEAD steps."""
        ready: dict[int, tuple[Any, ...]] = {}
        size = self.config.batch

        def batch(step: int) -> tuple[Any, ...]:
            if step not in ready:
                first = step - step % AHEAD  # where a batch lies may change its last bits
                whole = prepare(first)
                for k in range(AHEAD):
                    ready[first + k] = tuple(None if x is None else x[k * size : (k + 1) * size] for x in whole)
            return ready.pop(step)

        return batch

    def no_policy(self) -> policies.ActionPolicy:
        """For a method without a base policy: its z is the chunk of environment actions."""
        policy = policies.ActionPolicy(self.dims, self.policy_config, self.positions)
        policy.fit_normaliser(self.s, self.c, self.a)
        return policy.eval()

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rows (B,), z (B, H, A) and τ (B,) of a step; equal for all methods under one seed."""
        rows, z, tau = self._draws(step)
        return rows.to(self.device), z.to(self.device), tau.to(self.device)

    def _draws(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """`batch` before it goes to the device."""
        draws, size = self.generator("batch", step), self.config.batch
        rows = torch.randint(len(self.index), (size,), generator=draws)
        z = torch.randn((size, self.dims.chunk, self.dims.action), generator=draws)
        return rows, z, torch.rand((size,), generator=draws)


def one_graph(policy: policies.FlowPolicy, sample: tuple[Any, ...]) -> Callable[..., Tensor]:
    """The policy's loss, with fused kernels in a CUDA graph each way: a small network otherwise waits on launches.

    Tried on `sample`; the loss as it is, with a warning, where torch cannot compile it.
    """
    torch.compiler.reset()  # graphs of the policies before, which count towards torch's limit
    parameters = list(policy.parameters())
    loss: Callable[..., Tensor] = torch.compile(policy.loss, fullgraph=True, dynamic=False, mode="reduce-overhead")
    try:
        for _ in range(3):  # torch runs the kernels, then records them, then replays
            loss(*sample).backward()  # type: ignore[no-untyped-call]
            release(parameters)
    except RuntimeError as error:
        release(parameters)
        reason = str(error).strip().partition("\n")[0]
        warnings.warn(f"pretraining goes on kernel by kernel, slower: torch cannot compile ({reason})", stacklevel=2)
        return policy.loss
    return loss


def release(parameters: list[nn.Parameter]) -> None:
    """Let go of the gradients, in an eighth of the time of `zero_grad`."""
    for parameter in parameters:
        parameter.grad = None


def checkpoint(path: Path, module: nn.Module, optimiser: torch.optim.Optimizer, step: int, seconds: float) -> None:
    """Weights, optimiser state, step and time spent in one safetensors file, atomically."""
    tensors = {f"module.{k}": v for k, v in module.state_dict().items()}
    tensors |= optimiser_tensors(optimiser, "optimiser") | {"step": torch.tensor(step)}
    tensors["seconds"] = torch.tensor(seconds, dtype=torch.float64)
    plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, lambda p: save_file(plain, p))


def restore(path: Path, module: nn.Module, optimiser: torch.optim.Optimizer) -> tuple[int, float]:
    """Load what `checkpoint` wrote; returns the steps done and the seconds they took."""
    tensors = load_checkpoint(path)
    prefix = "module."
    module.load_state_dict({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})
    load_optimiser(optimiser, tensors, "optimiser")
    return int(tensors["step"]), float(tensors["seconds"])


def load_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint. Raises InputError if the file is damaged."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: damaged checkpoint ({error}); remove it and run again from the start") from None


def optimiser_tensors(optimiser: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """The per-parameter state of an Adam optimiser as named tensors."""
    state = optimiser.state_dict()["state"]
    return {f"{prefix}.{i}.{k}": torch.as_tensor(v) for i, entry in state.items() for k, v in entry.items()}


def load_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor], prefix: str) -> None:
    """The inverse of `optimiser_tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(prefix + "."):
            index, key = name[len(prefix) + 1 :].split(".", 1)
            state.setdefault(int(index), {})[key] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
