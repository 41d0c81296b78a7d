"""From tidy tables to the numbers of the report: one result per task and method, with intervals, and who leads.

Only the report half of the start states is used, except where a noise level is chosen: that uses the selection half.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from bench import curve_stats, seeding, stats
from bench.stages.curves import Curves
from bench.stats import Array, Bootstrap, Estimate

K = 8  # Success@K before RL; fewer if a start state has fewer attempts
THRESHOLD = 0.5  # success rate whose first crossing is reported
FEW_SEEDS = 5  # below this many seeds a ranking is called weak
SHARE = Bootstrap(draws=2000, bounds=(0.0, 1.0))  # success rates and areas; 2000 draws give the error within 2 %
GAP = replace(SHARE, bounds=(-1.0, 1.0))  # differences of those
NONE = float("nan")  # the ends of an interval that cannot be had
AXES = ("control_steps", "decisions", "gradient_steps", "policy_calls", "wall_seconds", "robot_hours")


@dataclass(frozen=True)
class Before:
    """The frozen policy before RL: Success@k at the noise level chosen, per seed, on the selection half."""

    k: int
    success: Estimate
    sigma: float  # mean over seeds of the chosen level
    seeds: dict[int, float] = field(default_factory=dict)  # seed → its Success@k


@dataclass(frozen=True)
class Run:
    """Report episodes of one finished cell."""

    seed: int
    axes: dict[str, Array]  # axis → its value at every evaluation point (P,); control steps increase
    success: Array  # (S, P), mean over attempts
    before: dict[str, float]  # axis → what pretraining, or the choice of σ, cost on it; other axes have none

    @property
    def steps(self) -> Array:
        return self.axes["control_steps"]


@dataclass(frozen=True)
class Result:
    """One method on one task; success is that of report states."""

    task: str
    method: str
    planned: int  # seeds
    seeds: tuple[int, ...]  # finished
    policy: str = ""  # key of the pretrained policies, one per planned seed: methods that share them have the same
    before: tuple[Before, ...] = ()  # k = 1 and k = K; nothing without a pretrained policy
    runs: tuple[Run, ...] = ()  # one per finished seed
    areas: Array = field(default_factory=lambda: np.zeros((0, 0)))  # (R, S) per seed and start state
    area: Estimate | None = None
    final: Estimate | None = None
    gain: Estimate | None = None  # last point minus the point before RL, paired over seeds and start states
    half_median: float = float("nan")  # control steps to THRESHOLD, Kaplan–Meier; infinite if half did not get there
    half_mean: Estimate | None = None  # the same, mean counted up to the end of the areas; None if no seed got there
    reached: int = 0  # seeds that got there before the end of the areas
    pretrain_steps: float = float("nan")
    pretrain_seconds: float = float("nan")
    selection_steps: float = float("nan")  # control steps of the rollouts that chose σ, mean over seeds
    cost: dict[str, float] = field(default_factory=dict)  # axis → median over seeds at the last point
    memory: float = float("nan")  # largest peak over seeds, MB


@dataclass(frozen=True)
class TaskResult:
    """All methods on one task, the largest area first; `end` is the range of the areas in control steps."""

    task: str
    end: float
    results: tuple[Result, ...]

    @property
    def ranked(self) -> tuple[Result, ...]:
        return tuple(r for r in self.results if r.area is not None)


def summarise(curves: Curves) -> list[TaskResult]:
    """One entry per task of the run, in the order of the run."""
    report = curves.episodes[curves.episodes["half"] == "report"]
    return [_task(curves, report, task) for task in dict.fromkeys(curves.cells["task"])]


def _task(curves: Curves, report: pd.DataFrame, task: str) -> TaskResult:
    cells = curves.cells[curves.cells["task"] == task]
    own = report[report["task"] == task]
    data = {
        method: list(_runs(own[own["method"] == method], mine.set_index("seed")["selection_control_steps"]))
        for method, mine in cells.groupby("method", sort=False)
    }
    ends = [run.steps[-1] for runs in data.values() for run in runs]
    end = float(min(ends)) if ends else 0.0
    results = [_result(curves, cells[cells["method"] == method], runs, end) for method, runs in data.items()]
    results.sort(key=lambda r: -r.area.value if r.area else np.inf)
    return TaskResult(task, end, tuple(results))


def _runs(frame: pd.DataFrame, selection: pd.Series[float]) -> Iterator[Run]:
    """Report episodes of a method on a task, and per seed the control steps that chose its σ."""
    for seed, rows in frame.groupby("seed"):
        success = rows.pivot_table(index="start", columns="point", values="success", aggfunc="mean").to_numpy(float)
        points = rows.groupby("point")[list(AXES)].first()
        steps = points["control_steps"].to_numpy(float)
        kept = latest(steps)
        axes = {axis: points[axis].to_numpy(float)[kept] for axis in AXES}
        first = rows.iloc[0]
        spent = {"gradient_steps": float(first["pretrain_steps"]), "wall_seconds": float(first["pretrain_seconds"])}
        spent["control_steps"] = float(selection[seed])
        yield Run(int(str(seed)), axes, success[:, kept], spent)


def latest(x: Array) -> npt.NDArray[np.bool_]:
    """Which of P evaluation points count on an axis, x (P,), never decreasing → (P,): of those with equal x the last.

    The project's rule for every curve and area. Points fall due by decisions, and two may fall due in one round; on
    other axes a point may come before anything was spent again, such as gradient steps in the random phase. The later
    evaluation is never of an earlier policy.
    """
    return np.append(np.diff(x) > 0, True) if len(x) else np.zeros(0, dtype=bool)


def _result(curves: Curves, cells: pd.DataFrame, runs: list[Run], end: float) -> Result:
    first = cells.iloc[0]
    task, method = str(first["task"]), str(first["method"])
    result = Result(
        task, method, len(cells), tuple(run.seed for run in runs),
        " ".join(sorted(set(cells["coverage_key"]) - {""})), _before(curves, task, method), tuple(runs),
        pretrain_steps=float(cells["pretrain_steps"].mean()),
        pretrain_seconds=float(cells["pretrain_seconds"].mean()),
        selection_steps=float(cells["selection_control_steps"].mean()), memory=float(cells["peak_memory_mb"].max()),
    )  # fmt: skip
    return _measured(result, end) if runs else result


def _measured(result: Result, end: float) -> Result:
    """The result with what its runs say; at least one."""
    runs, rng = result.runs, seeding.rng(0, "report", result.task, result.method)
    areas = _stack([stats.area(r.steps, r.success, end) for r in runs]) if end > 0 else np.zeros((0, 0))
    last, first = (_stack([r.success[:, i] for r in runs]) for i in (-1, 0))
    time, reached = curve_stats.times_to([(r.steps, r.success.mean(axis=0)) for r in runs], THRESHOLD)
    time, reached = np.minimum(time, end), reached & (time <= end)  # all are watched equally long
    return replace(
        result, areas=areas, area=estimate(areas, rng) if areas.size else None, final=estimate(last, rng),
        gain=difference(last, first, rng), half_median=curve_stats.kaplan_meier(time, reached).median(),
        half_mean=_restricted(time, reached, end), reached=int(reached.sum()),
        cost={axis: float(np.median([r.axes[axis][-1] for r in runs])) for axis in AXES},
    )  # fmt: skip


def _restricted(time: Array, reached: np.ndarray[tuple[int], np.dtype[np.bool_]], end: float) -> Estimate | None:
    """Mean steps to the threshold up to `end`; no interval where the seeds cannot give one."""
    if not reached.any() or end <= 0:
        return None
    found = curve_stats.restricted_mean(time, reached, end)
    return Estimate(found.value, NONE, NONE) if len(time) == 1 or not found.wide else found


def _stack(parts: list[Array]) -> Array:
    """(S,) per seed → (R, S); if seeds had different numbers of start states, their means: (R, 1)."""
    if len({part.shape for part in parts}) > 1:
        parts = [part.mean(axis=0, keepdims=True) for part in parts]
    return np.stack(parts)


def estimate(values: Array, rng: np.random.Generator) -> Estimate:
    """Mean of (R, S) with its t interval over seeds and start states; of one seed, over its start states only.

    Where that has no width, as all agree, Wilson's of R attempts: start states of one seed share a policy, so a
    thousand of them that agree are one run's word. Of one seed too, though it then speaks of other seeds.
    """
    mean, units = float(values.mean()), _units(values)
    found = stats.bootstrap([units], np.mean, rng, SHARE) if len(units) > 1 else Estimate(mean, mean, mean)
    if found.wide:
        return found
    return Estimate(mean, *stats.wilson(mean * len(values), len(values)))


def difference(first: Array, second: Array, rng: np.random.Generator) -> Estimate:
    """Mean of first − second, both (R, S), paired by seed and start state, with its interval as in `estimate`.

    Where that has no width, Newcombe's of two rates of R attempts that are not paired (Statistics in Medicine 17,
    873–890, 1998, method 10), which is the wider one.
    """
    units = _units(first - second)
    value = float((first - second).mean())
    found = stats.bootstrap([units], np.mean, rng, GAP) if len(units) > 1 else Estimate(value, value, value)
    if found.wide:
        return found
    a, b = float(first.mean()), float(second.mean())
    (a_low, a_high), (b_low, b_high) = (stats.wilson(m * len(first), len(first)) for m in (a, b))
    below, above = np.hypot(a - a_low, b_high - b), np.hypot(a_high - a, b - b_low)
    return Estimate(value, float(value - below), float(value + above))


def _units(values: Array) -> Array:
    """What is resampled: seeds with their start states (R, S); of a single seed its start states (S,)."""
    return values if len(values) > 1 else values[0]


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
    return tuple(before_k(frame, k, task) for k in (1, min(K, attempts)))


def before_k(frame: pd.DataFrame, k: int, task: str) -> Before:
    """Success@k of coverage rows of both halves, per seed at the σ that its selection half chose."""
    found = {int(str(seed)): one_seed(rows, k) for seed, rows in frame.groupby("seed")}
    success = estimate(_stack([values for values, _ in found.values()]), seeding.rng(0, "before", task, k))
    sigma = float(np.mean([sigma for _, sigma in found.values()]))
    return Before(k, success, sigma, {seed: float(values.mean()) for seed, (values, _) in found.items()})


def one_seed(frame: pd.DataFrame, k: int) -> tuple[Array, float]:
    """Success@k per report start state (S,) of one seed's coverage rows, and the σ chosen on the selection half."""
    sigma = chosen_sigma(frame[frame["half"] == "selection"], k)
    return at_k(frame[(frame["half"] == "report") & (frame["sigma"] == sigma)], k), sigma


def by_seed(frame: pd.DataFrame, k: int, task: str) -> Estimate:
    """Success@k over the seeds of coverage rows that have one σ and one half."""
    matrix = _stack([at_k(rows, k) for _, rows in frame.groupby("seed")])
    return estimate(matrix, seeding.rng(0, "before", task, k))
