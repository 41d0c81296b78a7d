"""What all stages share: how a worker talks to its parent, and the environments a worker keeps."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

from bench import registry
from bench.types import BenchEnv, Stopped


@dataclass(frozen=True)
class Reporter:
    """`progress(share in [0, 1], text, success rate or None)` and `stop()`, True once the run should stop."""

    progress: Callable[[float, str, float | None], None] = lambda share, text, success: None
    stop: Callable[[], bool] = lambda: False
    threads: ThreadPoolExecutor | None = None  # to step environments side by side; None: one core is all there is

    def check(self) -> None:
        """Raises Stopped if the run should stop."""
        if self.stop():
            raise Stopped


@cache
def environment(task_id: str, role: str, index: int, stepping: str = "strict") -> BenchEnv:
    """An environment kept for the life of the worker: some take seconds to build. Every use resets or restores it."""
    task = registry.task(task_id)
    return registry.suite_of(task).make(task, seed=index, stepping=stepping)


def environments(task_id: str, role: str, count: int, stepping: str) -> list[BenchEnv]:
    """`count` environments for a role ("train" or "evaluate"); the roles never share one."""
    return [environment(task_id, role, i, stepping) for i in range(count)]
