"""Where does a method pay? Its lead over the run's first method, against how often that one succeeds before RL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench import seeding, summary
from bench.report_ranking import spread
from bench.stats import Array, Estimate
from bench.summary import Result, TaskResult

FEW_TASKS = 4  # below this many a line through their leads says nothing
DRAWS = 10_000
RISING = 0.05  # share of resamples whose line rises through 0 above which nothing is said
NORMAL = 1.96  # half of a 95 % interval in standard deviations


@dataclass(frozen=True)
class Lead:
    """One method against the baseline on one task."""

    task: str
    method: str
    k: int
    coverage: Estimate  # the baseline's Success@k before RL
    area: Estimate  # difference of areas, paired by seed and start state
    final: Estimate  # difference of success at the end, paired in the same way
    seeds: int  # that both have finished


@dataclass(frozen=True)
class Crossover:
    """The baseline's success before RL at which a straight line through the tasks' leads falls to 0.

    −∞ where the line is below 0 for any success, ∞ where it is above.
    """

    value: float
    low: float
    high: float


def leads(tasks: Sequence[TaskResult], baseline: str) -> list[Lead]:
    """Every other method on every task on which both have finished seeds in common, the hardest task first."""
    found = []
    for task in tasks:
        base = next((r for r in task.ranked if r.method == baseline and r.before), None)
        found += [
            _lead(base, r) for r in task.ranked if base and r.method != baseline and set(r.seeds) & set(base.seeds)
        ]
    return sorted(found, key=lambda lead: (lead.coverage.value, lead.task, lead.method))


def _lead(base: Result, other: Result) -> Lead:
    common = [seed for seed in base.seeds if seed in other.seeds]
    mine, theirs = ([result.seeds.index(seed) for seed in common] for result in (other, base))
    rng, before = seeding.rng(0, "lead", base.task, other.method), base.before[-1]
    return Lead(
        base.task, other.method, before.k, before.success,
        summary.difference(other.areas[mine], base.areas[theirs], rng),
        summary.difference(_final(other)[mine], _final(base)[theirs], rng), len(common),
    )  # fmt: skip


def _final(result: Result) -> Array:
    """Success at the end, (R, S)."""
    return np.stack([run.success[:, -1] for run in result.runs])


def crossover(found: Sequence[Lead]) -> Crossover | None:
    """Where one method's lead ends, with an interval; None with fewer than FEW_TASKS tasks or where no line falls.

    Tasks are resampled, and in each resample leads and successes are drawn anew, from two halves of normal
    distributions as wide as their intervals. So the interval covers other tasks like these, as far as a line describes
    them. It is wide: where one was named in 300 simulated experiments each with 4 to 11 tasks and 3 or 5 seeds, it held
    the truth in 0.99 to 1.00, where resampled tasks alone did in 0.82 to 0.90.
    """
    if len(found) < FEW_TASKS:
        return None
    rng, n = seeding.rng(0, "crossover", found[0].method), len(found)
    rows = rng.integers(n, size=(DRAWS, n))
    (x, xs), (y, ys) = (_drawn(part, rows, rng) for part in ([d.coverage for d in found], [d.area for d in found]))
    (value,), places = _crossing(x, y), _crossing(xs, ys)
    rising = np.isnan(places)
    if np.isnan(value) or rising.mean() > RISING:
        return None
    low, high = np.quantile(places[~rising], (0.025, 0.975), method="nearest")  # others make NaN of infinite places
    return Crossover(float(value), float(low), float(high))


def _drawn(estimates: Sequence[Estimate], rows: npt.NDArray[np.int64], rng: np.random.Generator) -> tuple[Array, Array]:
    """Values of N estimates (1, N), and those in rows (D, N), drawn as wide as their intervals, if any."""
    ends: Array = np.array([(e.value, e.low, e.high) for e in estimates], dtype=float)
    value, low, high = ends[rows].transpose(2, 0, 1)
    shift = rng.standard_normal(rows.shape)
    reach = np.nan_to_num(np.where(shift > 0, high - value, value - low))
    return ends[:, 0][None], np.asarray(value + reach / NORMAL * shift, dtype=float)


def _crossing(x: Array, y: Array) -> Array:
    """Where least-squares lines of D samples (D, N) fall to 0 on [0, 1] → (D,); NaN for those that rise through it."""
    across = x - x.mean(axis=1, keepdims=True)
    width = np.square(across).sum(axis=1)
    slope: Array = np.divide((across * y).sum(axis=1), width, out=np.zeros(len(x)), where=width > 1e-12)
    left = y.mean(axis=1) - slope * x.mean(axis=1)
    right = left + slope
    place: Array = np.divide(-left, slope, out=np.full(len(x), np.nan), where=(left > 0) & (right <= 0))
    place[(left <= 0) & (right <= 0)], place[(left > 0) & (right > 0)] = -np.inf, np.inf
    return place


def left_out(tasks: Sequence[TaskResult], found: Sequence[Lead], baseline: str) -> str:
    """A sentence on the tasks on which a method cannot be compared, or nothing."""
    there = {(lead.task, lead.method) for lead in found}
    names = [
        f"{r.method} on {task.task}"
        for task in tasks for r in task.results
        if r.method != baseline and (task.task, r.method) not in there
    ]  # fmt: skip
    return f" Left out, as no seed is finished for it and {baseline}: {', '.join(names)}." if names else ""


def verdict(found: Sequence[Lead], baseline: str) -> str:
    """Of each method, on which tasks its area is above the baseline's, and on which it is below."""
    said = []
    for method in sorted({lead.method for lead in found}):
        own = [lead for lead in found if lead.method == method]
        above = [lead.task for lead in own if lead.area.low > 0]
        below = [lead.task for lead in own if lead.area.high < 0]
        words = [f"above on {', '.join(above)}"] * bool(above) + [f"below on {', '.join(below)}"] * bool(below)
        said.append(f"{method} is {' and '.join(words) or 'separated nowhere'}")
    caution = " With one seed nothing is said about other seeds." if all(lead.seeds == 1 for lead in found) else ""
    return f"Against {baseline}, by area: {'; '.join(said)}.{caution}{_leads_end(found, baseline)}"


def _leads_end(found: Sequence[Lead], baseline: str) -> str:
    """A sentence on where the methods' leads end, or nothing."""
    names = {-np.inf: "none", np.inf: "any"}
    said = []
    for method in sorted({lead.method for lead in found}):
        if place := crossover([lead for lead in found if lead.method == method]):
            value, low, high = (names.get(v, f"{v:.2f}") for v in (place.value, place.low, place.high))
            said.append(f"{method} {value} [{low}, {high}]")
    text = f" Ahead up to this success of {baseline} before RL, by a straight line through the tasks: "
    return f"{text}{', '.join(said)}." if said else ""


def rows(found: Sequence[Lead]) -> list[tuple[str, ...]]:
    """What is printed: the baseline's coverage, then the method's lead."""
    return [(lead.task, spread(lead.coverage), lead.method, str(lead.seeds), spread(lead.area, sign=True),
             spread(lead.final, sign=True)) for lead in found]  # fmt: skip
