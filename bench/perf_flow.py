"""The flow by compiled code beside torch: chunks while acting, gradient steps of pretraining."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from bench import flow, nets, policies
from bench.pretraining import one_graph
from bench.timing import Rate, in_turns
from bench.types import Dims

BATCH = 256  # of pretraining, by default
QUICK = nets.PolicyConfig(euler_steps=3)  # the quick profile's network
MAZE = Dims(state=4, context=2, action=2, chunk=QUICK.chunk, context_keys={"goal": 2}, execute=QUICK.execute)


def flows(turns: int, seconds: float, say: Callable[[str], None]) -> dict[str, list[Rate]]:
    """Per second of CPU time, torch first: chunks for that many rows, and gradient steps."""
    found = {}
    for rows in (1, 8, 32, 256):
        say(f"the flow: acting, {rows} rows")
        found[f"chunks while acting, {rows} rows"] = in_turns(acting(rows), turns, seconds)
    say("the flow: gradient steps")
    found[f"gradient steps of {BATCH} samples"] = in_turns(training(), turns, seconds)
    if torch.cuda.is_available():
        say("the flow: gradient steps on the GPU")
        on_gpu = in_turns(graphs(torch.device("cuda")), turns, seconds, time.perf_counter)
        found[f"gradient steps of {BATCH} samples on {torch.cuda.get_device_name()}"] = on_gpu
    return found


def policy() -> policies.FlowPolicy:
    """With noise in its context, and fresh weights."""
    noise = nets.ContextNoise((1.0, 0.5), (True, True))
    return policies.build(MAZE, QUICK, ((), ()), noise, seed=0)


def draw(rows: int) -> list[Tensor]:
    """s, c, z, σ and ε."""
    draws = torch.Generator().manual_seed(0)
    shapes = (rows, MAZE.state), (rows, MAZE.context), (rows, MAZE.chunk, MAZE.action), (rows,), (rows, MAZE.context)
    return [torch.rand(shape, generator=draws) for shape in shapes]


def acting(rows: int) -> dict[str, Callable[[], int]]:
    """Rows that both ways act for, at a call."""
    acts, (s, c, z, sigma, eps) = policy().requires_grad_(False), draw(rows)
    assert isinstance(acts.net, nets.ResidualMLP)
    integration = flow.Integration(acts.net, QUICK.euler_steps)

    def by_torch() -> int:
        with torch.inference_mode():
            acts.integrate(s, c, z, sigma, eps)
        return rows

    def compiled() -> int:
        with torch.inference_mode():
            integration(z, acts.noised(s, c, sigma, eps), sigma)
        return rows

    return {"torch": by_torch, "compiled": compiled}


def graphs(device: torch.device) -> dict[str, Callable[[], int]]:
    """Ten gradient steps at a call, kernel by kernel and as one graph."""

    def steps(graph: bool) -> Callable[[], int]:
        trained = policy().to(device)
        s, c, z, sigma, eps = (x.to(device) for x in draw(BATCH))
        sample = s, c, z.flip(0), torch.ones(BATCH, MAZE.chunk, device=device), z, sigma, sigma, eps
        optimiser = torch.optim.AdamW(trained.parameters(), fused=True)
        loss = one_graph(trained, sample) if graph else trained.loss

        def ten() -> int:
            for _ in range(10):
                value = loss(*sample)
                optimiser.zero_grad()
                value.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
            value.item()  # waits for the GPU
            return 10

        return ten

    return {"torch": steps(False), "one graph": steps(True)}


def training() -> dict[str, Callable[[], int]]:
    """One gradient step at a call."""
    traced, other, (s, c, z, sigma, eps) = policy(), policy(), draw(BATCH)
    a, weight = z.flip(0), torch.ones(BATCH, MAZE.chunk)
    optimiser, second = (torch.optim.AdamW(p.parameters(), fused=True) for p in (traced, other))
    assert isinstance(other.net, nets.ResidualMLP)
    descent = flow.Descent(other.net, second, BATCH)
    samples = flow.samples(other, s, c, a, weight, z, sigma, sigma, eps)

    def by_torch() -> int:
        loss = traced.loss(s, c, a, weight, z, sigma, sigma, eps)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        return 1

    def compiled() -> int:
        descent(samples)
        return 1

    return {"torch": by_torch, "compiled": compiled}
