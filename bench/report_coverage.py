"""Does what the frozen policy can do before RL predict what RL makes of it? Pairs over methods and tasks, and ranks.

A pair is one method on one task, but methods may share a pretrained policy, and with it the coverage; and an easy task
is easy for all. So intervals come from resampling policies, or whole tasks where there are enough of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bench import rank_stats, seeding
from bench.report_ranking import spread
from bench.stats import Array, Estimate
from bench.summary import Result, TaskResult
from bench.types import InputError

# From so many on, whole tasks are resampled. In 300 simulations of 5 methods on 4 policies a task, 95 % intervals held
# the truth in 0.79 – 0.90 of cases for pairs, 0.84 – 0.92 for policies (1 – 12 tasks), 0.90 – 0.94 for tasks (5 – 12).
TASKS = 5


@dataclass(frozen=True)
class Pair:
    """Coverage and outcome of one method on one task: means over the seeds that have both."""

    task: str
    method: str
    k: int
    result: Result

    @property
    def policy(self) -> str:
        """What this pair's coverage was measured on."""
        return self.result.policy or self.method

    def means(self, many: bool, gain: bool) -> tuple[float, float]:
        """(coverage, outcome); a seed whose fine-tuning is not finished has coverage only, and does not count."""
        x, y = np.mean(self.seeds(many, gain), axis=0)
        return float(x), float(y)

    def seeds(self, many: bool, gain: bool) -> list[tuple[float, float]]:
        """(coverage, outcome) of the seeds that have both."""
        before, r = self.result.before[many].seeds, self.result
        outcome = {
            run.seed: float((run.success[:, -1] - run.success[:, 0]).mean()) if gain else float(area)
            for run, area in zip(r.runs, r.areas.mean(axis=1), strict=True)
        }
        return [(x, outcome[s]) for s, x in before.items() if s in outcome]


@dataclass(frozen=True)
class Relation:
    """Rank correlation of a coverage with an outcome; None where it was refused."""

    coverage: str
    outcome: str
    pairs: int
    units: str  # what was resampled, with its number: "6 pretrained policies"
    every: Estimate | None
    within: Estimate | None  # after each task's mean is taken off both, so that easy tasks do not make it
    refused: str = ""


def pairs_of(tasks: Sequence[TaskResult]) -> list[Pair]:
    """Every method and task with a pretrained policy and a finished fine-tuning."""
    found = [
        Pair(t.task, r.method, r.before[-1].k, r)
        for t in tasks
        for r in t.ranked
        if len(r.before) == 2 and r.pretrain_steps != 0
    ]
    return [p for p in found if p.seeds(True, False)]


def relations(pairs: Sequence[Pair]) -> list[Relation]:
    """Each coverage with each outcome."""
    if not pairs:
        return []
    ks = (1, max(p.k for p in pairs))
    return [_relation(pairs, ks, many, gain) for gain in (False, True) for many in (False, True)]


def _relation(pairs: Sequence[Pair], ks: tuple[int, int], many: bool, gain: bool) -> Relation:
    x, y = np.array([p.means(many, gain) for p in pairs]).T
    names = f"Success@{ks[many]} before RL", "gain by RL" if gain else "area under curve"
    clusters, units = clusters_of(pairs)
    every, why = _ranks(x, y, clusters, *names)
    tasks = [p.task for p in pairs]
    within = None
    if len(set(tasks)) > 1:
        kept = [i for i, t in enumerate(tasks) if tasks.count(t) > 1]
        own, alike = [tasks[i] for i in kept], [clusters[i] for i in kept]
        within, _ = _ranks(_centred(x[kept], own), _centred(y[kept], own), alike, *names)
    return Relation(*names, len(pairs), units, every, within, why)


def clusters_of(pairs: Sequence[Pair]) -> tuple[list[tuple[str, ...]], str]:
    """Of each pair, what it has in common with others; and what and how many these are.

    A policy belongs to one task, so tasks are the wider clusters; fewer than `TASKS` of them give no interval to trust.
    """
    tasks = len({p.task for p in pairs})
    if tasks >= TASKS:
        return [(p.task,) for p in pairs], f"{tasks} tasks"
    found: list[tuple[str, ...]] = [(p.task, p.policy) for p in pairs]
    count = len(set(found))
    return found, f"{count} pretrained polic{'ies' if count > 1 else 'y'}"


def _centred(values: Array, tasks: list[str]) -> Array:
    """Values less the mean of their task, rounded so that what is equal stays equal in rank."""
    frame = pd.Series(values, dtype=float)
    return np.asarray((frame - frame.groupby(tasks).transform("mean")).round(12).to_numpy(float))


def _ranks(x: Array, y: Array, clusters: list[tuple[str, ...]], *names: str) -> tuple[Estimate | None, str]:
    try:
        return rank_stats.rank_correlation(x, y, seeding.rng(0, "ranks", *names), clusters, draws=5000), ""
    except InputError as error:
        return None, str(error)


def verdict(found: Sequence[Relation]) -> str:
    """Whether repeated tries before RL predict the area, as far as the intervals say; nothing without a correlation."""
    many = next((r for r in found[1:2] if r.every), None)
    if many is None or many.every is None:
        return ""
    said = f"{many.coverage} against the {many.outcome}, over {many.pairs} pairs of {many.units}: {_says(many.every)}"
    if many.within:
        said += f"; within tasks: {_says(many.within)}"
    return said + "."


def _says(e: Estimate) -> str:
    word = "it goes with the order" if e.low > 0 else "it orders the other way round" if e.high < 0 else "not shown"
    return f"{word} (rank correlation {spread(e, sign=True)})"
