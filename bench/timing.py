"""Timing in turns: each variant beside its baseline in one process, and clocks that say where time goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np


@dataclass(frozen=True)
class Rate:
    """Units per second, and how many times the baseline's that is: medians and quartiles over the turns."""

    name: str
    per_second: float
    low: float  # lower quartile
    high: float  # upper quartile
    ratio: float  # paired, turn by turn
    ratio_low: float
    ratio_high: float


def in_turns(
    variants: Mapping[str, Callable[[], int]], turns: int, seconds: float,
    clock: Callable[[], float] = time.process_time,
) -> list[Rate]:  # fmt: skip
    """Rates of the variants, each called again and again for `seconds` by the clock in each of the turns.

    A call returns how many units it did. The first variant is the baseline. Every variant is called once before.
    """
    for work in variants.values():
        work()
    samples = np.array([[_rate(work, seconds, clock) for work in variants.values()] for _ in range(turns)])
    rows = zip(variants, _quartiles(samples), _quartiles(samples / samples[:, :1]), strict=True)
    return [Rate(name, r[1], r[0], r[2], q[1], q[0], q[2]) for name, r, q in rows]


def _rate(work: Callable[[], int], seconds: float, clock: Callable[[], float]) -> float:
    begun, units = clock(), 0
    while (spent := clock() - begun) < seconds:
        units += work()
    return units / spent


def _quartiles(samples: np.ndarray[Any, Any]) -> list[list[float]]:
    """(turns, variants) → for each variant lower quartile, median, upper quartile."""
    found: list[list[float]] = np.quantile(samples, [0.25, 0.5, 0.75], axis=0).T.tolist()
    return found


class Clock:
    """Seconds by label. The time of a label inside another is taken off it."""

    def __init__(self, rest: str) -> None:
        """`rest`: the label of what no other label counts."""
        self.seconds: dict[str, float] = defaultdict(float)
        self._running = [rest]
        self._since = time.perf_counter()

    def start(self) -> None:
        """Forget what was counted."""
        self.seconds.clear()
        self._since = time.perf_counter()

    def stop(self) -> dict[str, float]:
        """Seconds by label so far."""
        self._switch()
        return dict(self.seconds)

    def _switch(self) -> None:
        now = time.perf_counter()
        self.seconds[self._running[-1]] += now - self._since
        self._since = now

    def enter(self, name: str) -> None:
        """From here on count under the name, until `leave`."""
        self._switch()
        self._running.append(name)

    def leave(self) -> None:
        """Count again under the name before."""
        self._switch()
        self._running.pop()

    def watch(self, owner: Any, method: str, name: str) -> Any:
        """A patch, to be entered or started, that counts every call of the method under the name."""
        inner = getattr(owner, method)

        def timed(*args: Any, **options: Any) -> Any:
            self.enter(name)
            try:
                return inner(*args, **options)
            finally:
                self.leave()

        return mock.patch.object(owner, method, timed)
