"""Control steps per second: of one simulator in every way the suite offers, and of several at once on all cores."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice

import numpy as np
from stable_baselines3.common.vec_env import SubprocVecEnv

from bench import registry
from bench.executor import single_threaded
from bench.plan import default_jobs
from bench.steering import execute_all
from bench.timing import Rate, in_turns
from bench.types import BenchEnv, Task


def environments(
    suites: list[str], simulators: int, turns: int, seconds: float, say: Callable[[str], None]
) -> dict[str, list[Rate]]:
    """Per second of CPU time of one core: the simulator's own step first, then the suite's ways to the same.

    Of each suite the first `simulators`.
    """
    found = {}
    for suite in suites:
        for name, ways in islice(getattr(registry.suites()[suite], "speeds", tuple)(), simulators):
            say(f"environment steps: {name}")
            found[name] = in_turns(ways, turns, seconds)
    return found


def make(task_id: str, index: int, stepping: str) -> BenchEnv:
    """An environment of the task; a function of this module, so that a fresh process can call it."""
    task = registry.task(task_id)
    return registry.suite_of(task).make(task, index, stepping)


@contextmanager
def in_processes(task: Task, count: int) -> Iterator[Callable[[], int]]:
    """So many environments with the simulator's own step, each in a process, by Stable-Baselines3's SubprocVecEnv."""
    makers = [partial(make, task.id, i, "stock") for i in range(count)]
    with single_threaded():
        envs = SubprocVecEnv(makers, start_method="spawn")  # type: ignore[arg-type]
    envs.reset()
    rng = np.random.default_rng(0)
    size = envs.action_space.shape or ()

    def run() -> int:
        for _ in range(8):
            envs.step(rng.uniform(-1, 1, (count, *size)).astype(np.float32))
        return 8 * count

    try:
        yield run
    finally:
        envs.close()


def in_threads(envs: list[BenchEnv], execute: int, threads: ThreadPoolExecutor | None) -> Callable[[], int]:
    """The environments in this process, in chunks of `execute` control steps."""
    for env in envs:
        env.reset()
    rng, count = np.random.default_rng(0), len(envs)

    def run() -> int:
        chunks = rng.uniform(-1, 1, (count, execute, *envs[0].action_space.shape)).astype(np.float32)
        done = execute_all(envs, chunks, threads)
        for env, steps in zip(envs, done, strict=True):
            if steps.terminated or steps.truncated:
                env.reset()
        return sum(steps.count for steps in done)

    return run


def side_by_side(
    tasks: tuple[str, ...], count: int, execute: dict[str, int], turns: int, seconds: float, say: Callable[[str], None]
) -> dict[str, list[Rate]]:
    """Per second of wall time, on all cores, resets included, for `count` environments and chunks of `execute`."""
    found = {}
    for name in tasks:
        say(f"{count} environments side by side: {name}")
        task, cores = registry.task(name), default_jobs()
        with in_processes(task, count) as stock, ThreadPoolExecutor(cores) as threads:
            ways = {"stock in SubprocVecEnv": stock}
            for stepping in ("strict", "fast"):
                envs = [make(task.id, i, stepping) for i in range(count)]
                ways[stepping] = in_threads(envs, execute[name], None)
                ways[f"{stepping}, {cores} threads"] = in_threads(envs, execute[name], threads)
            found[name] = in_turns(ways, turns, seconds, time.perf_counter)
    return found
