"""Success curves against any axis of cost, with or without that of pretraining, per task and over all tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from bench import curve_stats, seeding, stats, summary
from bench.stats import Array
from bench.summary import Result, Run, TaskResult

POINTS = 60  # grid points of a curve if its seeds have more evaluation points together
BAND = replace(summary.SHARE, draws=500)  # 500 draws give the width within 4 %
ALL = "all tasks"


@dataclass(frozen=True)
class Axis:
    """What success is drawn against."""

    key: str
    label: str
    column: str
    before: bool = False  # what came before fine-tuning is added


AXES = (
    Axis("control_steps", "control steps", "control_steps"),
    Axis("control_steps_all", "control steps with the choice of σ", "control_steps", True),
    Axis("decisions", "decisions", "decisions"),
    Axis("gradient_steps", "gradient steps", "gradient_steps"),
    Axis("gradient_steps_all", "gradient steps with pretraining", "gradient_steps", True),
    Axis("wall_seconds", "wall seconds", "wall_seconds"),
    Axis("wall_seconds_all", "wall seconds with pretraining", "wall_seconds", True),
    Axis("robot_hours", "robot hours", "robot_hours"),
)


@dataclass(frozen=True)
class Curve:
    """Mean success of one method over an axis, up to where its shortest seed ends."""

    method: str
    x: Array  # (G,)
    mean: Array  # (G,)
    band: Array | None  # (2, G); None with one seed
    lines: tuple[tuple[Array, Array], ...] = ()  # per seed: x (P,), success (P,)


def points(run: Run, axis: Axis) -> tuple[Array, Array]:
    """A run's x (P,), increasing, and success (S, P); of points with equal x those that `summary.latest` keeps."""
    x = run.axes[axis.column]
    kept = summary.latest(x)
    offset = run.before.get(axis.column, 0.0) if axis.before else 0.0
    return x[kept] + offset, run.success[:, kept]


def drawable(result: Result, axis: Axis) -> bool:
    """Whether a seed has finished, and what came before fine-tuning is known of all that have."""
    return bool(result.runs) and all(np.isfinite(points(run, axis)[0]).all() for run in result.runs)


def undrawn(task: TaskResult, axis: Axis) -> list[str]:
    """Methods with a finished seed of which it is not known what came before."""
    return [result.method for result in task.results if result.runs and not drawable(result, axis)]


def curves(task: TaskResult, axis: Axis) -> list[Curve]:
    """One curve per method that can be drawn."""
    return [_curve(result, axis) for result in task.results if drawable(result, axis)]


def _curve(result: Result, axis: Axis) -> Curve:
    found = [points(run, axis) for run in result.runs]
    start, end = max(x[0] for x, _ in found), min(x[-1] for x, _ in found)
    lines = tuple((x, y.mean(axis=0)) for x, y in found)
    if start >= end:  # the seeds share no stretch of the axis, such as pretraining times far apart: point by point
        count = min(len(x) for x, _ in lines)
        place, height = (np.mean([line[i][:count] for line in lines], axis=0) for i in (0, 1))
        return Curve(result.method, place, height, None, lines)
    knots = np.unique(np.concatenate([[start, end], *[x for x, _ in found]]))
    grid = knots[(knots >= start) & (knots <= end)]
    if len(grid) > POINTS:
        grid = np.linspace(start, end, POINTS)
    values = _read(found, grid)
    rng = seeding.rng(0, "band", result.task, result.method)
    return Curve(result.method, grid, values.mean(axis=(0, 1)), _band([values], rng), lines)


def _read(found: Sequence[tuple[Array, Array]], grid: Array) -> Array:
    """Curves of the seeds at the grid, (R, S, G); means over start states where seeds differ in their number."""
    parts = [stats.on_grid(grid, x, y) for x, y in found]
    if len({part.shape for part in parts}) > 1:
        parts = [part.mean(axis=0, keepdims=True) for part in parts]
    return np.stack(parts)


def _band(strata: list[Array], rng: np.random.Generator) -> Array | None:
    """(2, G); Wilson's interval of the runs where all agree, so that t has no width; None with one seed."""
    if min(map(len, strata)) < 2:
        return None
    found = curve_stats.band(strata, rng, BAND)
    size = sum(map(len, strata))
    for g in np.flatnonzero(found[1] - found[0] < 1e-9):
        found[:, g] = stats.wilson(float(np.mean([s[..., g].mean() for s in strata])) * size, size)
    return found


def over_tasks(tasks: Sequence[TaskResult], axis: Axis) -> tuple[list[Curve], list[str]]:
    """Mean over tasks against the share of each task's cost, and the methods left out as they lack a task.

    1 is the cost of the costliest method on the task (median over its seeds), so that tasks of unequal cost count alike
    and methods stay comparable. A curve goes from where it has started on all tasks to where it ends on the first.
    """
    shown = [t for t in tasks if t.ranked]
    scales = {t.task: max((_end(r, axis) for r in t.results if drawable(r, axis)), default=1.0) for t in shown}
    found, lacking = [], []
    for method in dict.fromkeys(r.method for t in shown for r in t.results):
        own = [r for t in shown for r in t.results if r.method == method]
        if not all(drawable(r, axis) for r in own):
            lacking.append(method)
            continue
        runs = [[(x / scales[r.task], y) for x, y in (points(run, axis) for run in r.runs)] for r in own]
        start = max(x[0] for task in runs for x, _ in task)
        end = min(x[-1] for task in runs for x, _ in task)
        if start >= end:
            lacking.append(method)
            continue
        grid = np.linspace(start, end, POINTS)
        values = [_read(task, grid) for task in runs]
        band = _band(values, seeding.rng(0, "band", ALL, method))
        found.append(Curve(method, grid, np.mean([v.mean(axis=(0, 1)) for v in values], axis=0), band))
    return found, lacking


def _end(result: Result, axis: Axis) -> float:
    return float(np.median([points(run, axis)[0][-1] for run in result.runs])) or 1.0


def frame(drawn: dict[tuple[str, Axis], list[Curve]]) -> pd.DataFrame:
    """(task, axis) → curves, as one long table."""
    columns = ["task", "method", "axis", "with_pretraining", "x", "success", "low", "high"]
    rows = []
    for (task, axis), found in drawn.items():
        for c in found:
            low, high = c.band if c.band is not None else np.full((2, len(c.x)), np.nan)
            rows += [
                (task, c.method, axis.column, axis.before, *values)
                for values in zip(c.x, c.mean, low, high, strict=True)
            ]
    return pd.DataFrame(rows, columns=columns)
