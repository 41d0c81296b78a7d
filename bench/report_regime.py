"""Where does a method pay? Its lead over the run's first method, against how often that one succeeds before RL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench import seeding, summary
from bench.report_ranking import spread
from bench.stats import Array, Estimate
from bench.summary import Result, TaskResult


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
    for method in dict.fromkeys(lead.method for lead in sorted(found, key=lambda lead: lead.method)):
        own = [lead for lead in found if lead.method == method]
        above = [lead.task for lead in own if lead.area.low > 0]
        below = [lead.task for lead in own if lead.area.high < 0]
        words = [f"above on {', '.join(above)}"] * bool(above) + [f"below on {', '.join(below)}"] * bool(below)
        said.append(f"{method} is {' and '.join(words) or 'separated nowhere'}")
    caution = " With one seed nothing is said about other seeds." if all(lead.seeds == 1 for lead in found) else ""
    return f"Against {baseline}, by area: {'; '.join(said)}.{caution}"


def rows(found: Sequence[Lead]) -> list[tuple[str, ...]]:
    """What is printed: the baseline's coverage, then the method's lead."""
    return [(lead.task, spread(lead.coverage), lead.method, str(lead.seeds), spread(lead.area, sign=True),
             spread(lead.final, sign=True)) for lead in found]  # fmt: skip
