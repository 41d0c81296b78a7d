"""From tidy tables to the numbers of the report: one result per task and method, with intervals, and who leads.

Only the report half of the start states is used, except where a noise level is chosen: that uses the selection half.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from bench import seeding, stats
from bench.stages.curves import Curves
from bench.stats import Array

K = 8  # Success@K before RL; fewer if a start state has fewer attempts
THRESHOLD = 0.5  # success rate whose first crossing is reported
FEW_SEEDS = 5  # below this many seeds a ranking is called weak
AXES = ("control_steps", "decisions", "gradient_steps", "policy_calls", "wall_seconds", "robot_hours")


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Before:
    """The frozen policy before RL: Success@k at the noise level chosen, per seed, on the selection half."""

    k: int
    success: Estimate
    sigma: float  # mean over seeds of the chosen level


@dataclass(frozen=True)
class Result:
    """One method on one task. Curves are success on report states against control steps."""

    task: str
    method: str
    planned: int  # seeds
    seeds: tuple[int, ...]  # finished
    before: tuple[Before, ...] = ()  # k = 1 and k = K; nothing without a pretrained policy
    grid: Array = field(default_factory=lambda: np.zeros(0))  # (G,) control steps
    mean: Array = field(default_factory=lambda: np.zeros(0))  # (G,)
    band: Array = field(default_factory=lambda: np.zeros((2, 0)))  # (2, G) low and high
    lines: tuple[tuple[Array, Array], ...] = ()  # per seed: control steps (P,), success (P,)
    areas: Array = field(default_factory=lambda: np.zeros((0, 0)))  # (R, S) per seed and start state
    area: Estimate | None = None
    final: Estimate | None = None
    gain: Estimate | None = None  # last point minus the point before RL, paired over seeds and start states
    steps_to_threshold: float | None = None  # median over seeds; None if the median seed never got there
    reached: int = 0  # seeds that got there
    pretrain_steps: float = float("nan")
    pretrain_seconds: float = float("nan")
    cost: dict[str, float] = field(default_factory=dict)  # axis → median over seeds at the last point


@dataclass(frozen=True)
class TaskResult:
    """All methods on one task, the largest area first; `end` is the range of the areas in control steps."""

    task: str
    end: float
    results: tuple[Result, ...]
    behind: dict[str, tuple[Estimate, int]]  # method → how far behind the first (area) and over how many seeds

    @property
    def ranked(self) -> tuple[Result, ...]:
        return tuple(r for r in self.results if r.area is not None)


@dataclass(frozen=True)
class _Seed:
    """Report episodes of one cell as arrays."""

    x: Array  # (P,) control steps
    y: Array  # (S, P) success, mean over attempts
    cost: dict[str, float]


def summarise(curves: Curves) -> list[TaskResult]:
    """One entry per task of the run, in the order of the run."""
    report = curves.episodes[curves.episodes["half"] == "report"]
    return [_task(curves, report, task) for task in dict.fromkeys(curves.cells["task"])]


def _task(curves: Curves, report: pd.DataFrame, task: str) -> TaskResult:
    cells = curves.cells[curves.cells["task"] == task]
    data = {
        method: dict(_seeds(report[(report["task"] == task) & (report["method"] == method)]))
        for method in dict.fromkeys(cells["method"])
    }
    ends = [seed.x[-1] for seeds in data.values() for seed in seeds.values()]
    end = float(min(ends)) if ends else 0.0
    results = [_result(curves, cells[cells["method"] == method], seeds, end) for method, seeds in data.items()]
    results.sort(key=lambda r: -r.area.value if r.area else np.inf)
    return TaskResult(task, end, tuple(results), _behind(results))


def _seeds(frame: pd.DataFrame) -> Iterator[tuple[int, _Seed]]:
    for seed, rows in frame.groupby("seed"):
        table = rows.pivot_table(index="start", columns="point", values="success", aggfunc="mean")
        axes = rows.groupby("point")[list(AXES)].first()
        x, y = axes["control_steps"].to_numpy(float), table.to_numpy(float)
        kept = np.concatenate([[True], np.diff(x) > 0])  # two points may fall due in one round
        yield int(str(seed)), _Seed(x[kept], y[:, kept], {str(k): float(v) for k, v in axes.iloc[-1].items()})


def _result(curves: Curves, cells: pd.DataFrame, seeds: dict[int, _Seed], end: float) -> Result:
    first = cells.iloc[0]
    task, method = str(first["task"]), str(first["method"])
    pretrain = cells[["pretrain_steps", "pretrain_seconds"]].mean()
    base = Result(
        task, method, len(cells), tuple(seeds), _before(curves, task, method),
        pretrain_steps=float(pretrain["pretrain_steps"]), pretrain_seconds=float(pretrain["pretrain_seconds"]),
    )  # fmt: skip
    if not seeds:
        return base
    found = list(seeds.values())
    rng = seeding.rng(0, "report", task, method)
    grid = _grid(found)
    values = _stack([stats.on_grid(grid, s.x, s.y) for s in found])
    reached = [stats.steps_to(s.x, s.y.mean(axis=0), THRESHOLD) for s in found]
    areas = _stack([stats.area(s.x, s.y, end)[:, None] for s in found])[..., 0] if end > 0 else np.zeros((0, 0))
    return Result(
        **{name: getattr(base, name) for name in ("task", "method", "planned", "seeds", "before")},
        pretrain_steps=base.pretrain_steps, pretrain_seconds=base.pretrain_seconds,
        grid=grid, mean=values.mean(axis=(0, 1)), band=stats.interval(stats.resample(values, rng)),
        lines=tuple((s.x, s.y.mean(axis=0)) for s in found),
        areas=areas, area=estimate(areas, rng) if areas.size else None,
        final=estimate(_stack([s.y[:, -1:] for s in found])[..., 0], rng), gain=_gain(found, rng),
        steps_to_threshold=stats.median_steps(reached), reached=sum(r is not None for r in reached),
        cost={axis: float(np.median([s.cost[axis] for s in found])) for axis in AXES},
    )  # fmt: skip


def _gain(seeds: list[_Seed], rng: np.random.Generator) -> Estimate:
    """Success of the last point minus that of the first, on the same seeds and start states."""
    last, first = (_stack([s.y[:, [i]] for s in seeds])[..., 0] for i in (-1, 0))
    value, (low, high) = stats.paired_difference(last, first, rng)
    return Estimate(value, low, high)


def _grid(seeds: list[_Seed]) -> Array:
    """Every evaluation point of every seed, up to where the shortest seed ends: the mean of lines is exact there."""
    end = min(s.x[-1] for s in seeds)
    points = np.unique(np.concatenate([s.x for s in seeds]))
    return np.asarray(points[points <= end])


def _stack(parts: list[Array]) -> Array:
    """(S, G) per seed → (R, S, G); if seeds had different numbers of start states, their means: (R, 1, G)."""
    if len({part.shape for part in parts}) > 1:
        parts = [part.mean(axis=0, keepdims=True) for part in parts]
    return np.stack(parts)


def estimate(values: Array, rng: np.random.Generator) -> Estimate:
    """Mean of (R, S) with the bootstrap interval; where all agree on 0 or 1, Wilson's on the R × S values."""
    mean = float(values.mean())
    if np.ptp(values) == 0 and mean in (0.0, 1.0):
        low, high = stats.wilson(mean * values.size, values.size)
    else:
        low, high = (float(v) for v in stats.interval(stats.resample(values, rng)))
    return Estimate(mean, low, high)


def counts(frame: pd.DataFrame) -> tuple[Array, int]:
    """Successes per start state (S,) and attempts per start state (the fewest), of one seed and σ."""
    by = frame.groupby("start")["success"].agg(["sum", "count"])
    return by["sum"].to_numpy(float), int(by["count"].min()) if len(by) else 0


def at_k(frame: pd.DataFrame, k: int) -> Array:
    """Success@k per start state (S,) of one seed and σ, k cut to the attempts there are."""
    successes, attempts = counts(frame)
    return stats.success_at_k(np.minimum(successes, attempts)[:, None], attempts, min(k, attempts))


def chosen_sigma(selection: pd.DataFrame, k: int) -> float:
    """The σ with the best Success@k on the selection half, the smallest of equals."""
    scores = {float(str(sigma)): float(at_k(rows, k).mean()) for sigma, rows in selection.groupby("sigma")}
    return max(sorted(scores), key=lambda sigma: scores[sigma]) if scores else 0.0


def _before(curves: Curves, task: str, method: str) -> tuple[Before, ...]:
    frame = curves.coverage[(curves.coverage["task"] == task) & (curves.coverage["method"] == method)]
    if frame.empty:
        return ()
    attempts = int(frame.groupby(["seed", "half", "sigma", "start"]).size().min())
    return tuple(_before_k(frame, k, task) for k in (1, min(K, attempts)))


def _before_k(frame: pd.DataFrame, k: int, task: str) -> Before:
    found = [one_seed(rows, k) for _, rows in frame.groupby("seed")]
    matrix = _stack([values[:, None] for values, _ in found])[..., 0]
    return Before(k, estimate(matrix, seeding.rng(0, "before", task, k)), float(np.mean([s for _, s in found])))


def one_seed(frame: pd.DataFrame, k: int) -> tuple[Array, float]:
    """Success@k per report start state (S,) of one seed's coverage rows, and the σ chosen on the selection half."""
    sigma = chosen_sigma(frame[frame["half"] == "selection"], k)
    return at_k(frame[(frame["half"] == "report") & (frame["sigma"] == sigma)], k), sigma


def by_seed(frame: pd.DataFrame, k: int, task: str) -> Estimate:
    """Success@k over the seeds of coverage rows that have one σ and one half."""
    matrix = _stack([at_k(rows, k)[:, None] for _, rows in frame.groupby("seed")])[..., 0]
    return estimate(matrix, seeding.rng(0, "before", task, k))


def _behind(results: list[Result]) -> dict[str, tuple[Estimate, int]]:
    ranked = [r for r in results if r.area is not None]
    found = {}
    for other in ranked[1:]:
        common = [s for s in ranked[0].seeds if s in other.seeds]
        pair = [_rows(r, common) for r in (ranked[0], other)]
        if not common or pair[0].shape != pair[1].shape:
            continue
        rng = seeding.rng(0, "difference", other.task, ranked[0].method, other.method)
        value, (low, high) = stats.paired_difference(pair[0], pair[1], rng)
        found[other.method] = Estimate(value, low, high), len(common)
    return found


def _rows(result: Result, seeds: list[int]) -> Array:
    return np.asarray(result.areas[[result.seeds.index(s) for s in seeds]])


def across(tasks: list[TaskResult]) -> dict[str, Estimate]:
    """Method → interquartile mean of the area over (task, seed), for methods finished on every ranked task.

    Nothing for methods with a single seed on some task: an interval over seeds does not exist there.
    """
    ranked = [t for t in tasks if t.ranked]
    found: dict[str, Estimate] = {}
    if len(ranked) < 2:
        return found
    for method in dict.fromkeys(r.method for t in ranked for r in t.ranked):
        strata = [r.areas.mean(axis=1) for t in ranked for r in t.ranked if r.method == method]
        if len(strata) == len(ranked) and min(map(len, strata)) > 1:
            rng = seeding.rng(0, "across", method)
            value, (low, high) = stats.stratified(strata, lambda v: stats.interquartile_mean(v, axis=1), rng)
            found[method] = Estimate(value, low, high)
    return dict(sorted(found.items(), key=lambda item: -item[1].value))
