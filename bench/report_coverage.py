"""Does what the frozen policy can do before RL predict what RL makes of it? Pairs over methods and tasks, and ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bench import seeding, stats
from bench.report_ranking import spread
from bench.stats import Array, Estimate
from bench.summary import Result, TaskResult
from bench.types import InputError


@dataclass(frozen=True)
class Pair:
    """Coverage and outcome of one method on one task: means over its seeds."""

    task: str
    method: str
    k: int
    result: Result

    def coverage(self, many: bool) -> float:
        return self.result.before[many].success.value

    def outcome(self, gain: bool) -> float:
        found = self.result.gain if gain else self.result.area
        return found.value if found else float("nan")

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
    every: Estimate | None
    within: Estimate | None  # after each task's mean is taken off both, so that easy tasks do not make it
    refused: str = ""


def pairs_of(tasks: Sequence[TaskResult]) -> list[Pair]:
    """Every method and task with a pretrained policy and a finished fine-tuning."""
    return [Pair(t.task, r.method, r.before[-1].k, r) for t in tasks for r in t.ranked if len(r.before) == 2 and r.gain]


def relations(pairs: Sequence[Pair]) -> list[Relation]:
    """Each coverage with each outcome."""
    if not pairs:
        return []
    ks = (1, max(p.k for p in pairs))
    return [_relation(pairs, ks, many, gain) for gain in (False, True) for many in (False, True)]


def _relation(pairs: Sequence[Pair], ks: tuple[int, int], many: bool, gain: bool) -> Relation:
    x, y = np.array([p.coverage(many) for p in pairs]), np.array([p.outcome(gain) for p in pairs])
    names = f"Success@{ks[many]} before RL", "gain by RL" if gain else "area under curve"
    every, why = _ranks(x, y, *names)
    tasks = [p.task for p in pairs]
    within = None
    if len(set(tasks)) > 1:
        kept = [i for i, t in enumerate(tasks) if tasks.count(t) > 1]
        own = [tasks[i] for i in kept]
        within, _ = _ranks(_centred(x[kept], own), _centred(y[kept], own), *names)
    return Relation(*names, len(pairs), every, within, why)


def _centred(values: Array, tasks: list[str]) -> Array:
    """Values less the mean of their task, rounded so that what is equal stays equal in rank."""
    frame = pd.Series(values, dtype=float)
    return np.asarray((frame - frame.groupby(tasks).transform("mean")).round(12).to_numpy(float))


def _ranks(x: Array, y: Array, *names: str) -> tuple[Estimate | None, str]:
    try:
        return stats.rank_correlation(x, y, seeding.rng(0, "ranks", *names), draws=5000), ""
    except InputError as error:
        return None, str(error)


def verdict(found: Sequence[Relation]) -> str:
    """Whether repeated tries before RL predict the area, as far as the intervals say; nothing without a correlation."""
    many = next((r for r in found[1:2] if r.every), None)
    if many is None or many.every is None:
        return ""
    said = f"{many.coverage} against the {many.outcome}, over {many.pairs} pairs: {_says(many.every)}"
    if many.within:
        said += f"; within tasks: {_says(many.within)}"
    return said + "."


def _says(e: Estimate) -> str:
    word = "it goes with the order" if e.low > 0 else "it orders the other way round" if e.high < 0 else "not shown"
    return f"{word} (rank correlation {spread(e, sign=True)})"
