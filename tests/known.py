"""Results of made-up methods whose every number can be worked out by hand."""

from __future__ import annotations

import numpy as np

from bench import summary
from bench.summary import Result, Run, TaskResult

STEPS = np.array([0.0, 100.0, 200.0])


def result_of(method: str, curves: list[list[float]], task: str = "t/t", pretraining: float = 0.0) -> Result:
    """A method whose seeds 0, 1, … have these success rates after 0, 100 and 200 steps, in one start state."""
    runs = tuple(
        Run(seed, {axis: STEPS * (1 if axis == "control_steps" else 0.1) for axis in summary.AXES}, np.array([ys]),
            {"gradient_steps": pretraining})
        for seed, ys in enumerate(curves)
    )  # fmt: skip
    seeds = tuple(range(len(curves)))
    return summary._measured(Result(task, method, len(curves), seeds, runs=runs), 200.0)


def task_of(*results: Result) -> TaskResult:
    ordered = sorted(results, key=lambda r: -r.area.value if r.area else 0)
    return TaskResult(results[0].task, 200.0, tuple(ordered))


FAST = [[0.0, 0.8, 0.8], [0.0, 1.0, 1.0], [0.2, 0.8, 1.0]]  # areas 0.6, 0.75, 0.7
SLOW = [[0.0, 0.0, 0.4], [0.0, 0.2, 0.6], [0.0, 0.0, 0.2]]  # areas 0.1, 0.25, 0.05
