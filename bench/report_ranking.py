"""Who learns fastest, over one task or several: areas, paired differences to the first, and what would decide.

A statistic that needs runs which are not there is refused with the reason, never computed from the rest.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench import rank_stats, seeding, stats, summary
from bench.report_curves import ALL
from bench.stats import Array, Estimate
from bench.summary import NONE, Result, TaskResult


@dataclass(frozen=True)
class Standing:
    """One method's place. The differences are first − this method; the first itself has none."""

    method: str
    done: int  # finished runs (task, seed)
    planned: int
    fewest: int = 0  # finished seeds on the task that has the fewest
    mean: Estimate | None = None  # of the area; every task counts alike
    middle: Estimate | None = None  # interquartile mean of the area over all runs; only over several tasks
    better: Estimate | None = None  # chance that a run of the first has the larger area
    paired: bool = False  # whether that is of the runs with one seed, rather than of any two
    gap: Estimate | None = None  # in mean area, paired by task, seed and start state
    more_seeds: int | None = None  # how many more would separate the two; None if they are, or it cannot be said
    refused: str = ""  # why a number is missing

    @property
    def separated(self) -> bool:
        return self.gap is not None and self.gap.low > 0


@dataclass(frozen=True)
class Ranking:
    """The methods of a run, the largest area first, those without one last."""

    tasks: tuple[str, ...]  # that have a finished cell
    empty: tuple[str, ...]  # that have none
    standings: tuple[Standing, ...]

    @property
    def ranked(self) -> tuple[Standing, ...]:
        return tuple(s for s in self.standings if s.mean is not None)


@dataclass(frozen=True)
class Pair:
    """Two methods on one task, or on all: the standing of the second with its comparison to the first."""

    task: str
    first: str
    second: Standing


def rank(tasks: Sequence[TaskResult]) -> Ranking:
    """The ranking over all tasks that have a finished cell."""
    shown = [t for t in tasks if t.ranked]
    names = dict.fromkeys(r.method for t in tasks for r in t.results)
    own = {name: _of(name, shown) for name in names}
    everywhere = {name: _of(name, tasks) for name in names}
    found = [_alone(name, own[name], everywhere[name], len(shown)) for name in names]
    found.sort(key=lambda s: -s.mean.value if s.mean else np.inf)
    compared = [s if not i or s.mean is None else _against(s, own[found[0].method], own[s.method])
                for i, s in enumerate(found)]  # fmt: skip
    return Ranking(tuple(t.task for t in shown), tuple(t.task for t in tasks if not t.ranked), tuple(compared))


def pairs(tasks: Sequence[TaskResult]) -> list[Pair]:
    """Every two methods that can be ranked, the larger area first: on all tasks, if there are several, and on each."""
    shown = [t for t in tasks if t.ranked]
    scopes = [(ALL, shown)] * (len(shown) > 1) + [(t.task, [t]) for t in shown]
    found = []
    for scope, among in scopes:
        for one, two in itertools.combinations(rank(among).ranked, 2):
            found.append(Pair(scope, one.method, _against(two, _of(one.method, among), _of(two.method, among))))
    return found


def _of(method: str, tasks: Sequence[TaskResult]) -> list[Result]:
    return [r for t in tasks for r in t.results if r.method == method]


def _alone(method: str, results: list[Result], planned: list[Result], tasks: int) -> Standing:
    """The method's own numbers; `results` are those on the `tasks` where any method has finished."""
    done, wanted = sum(len(r.seeds) for r in results), sum(r.planned for r in planned)
    standing = Standing(method, done, wanted, min((len(r.seeds) for r in results), default=0))
    lacking = [r.task for r in results if r.area is None]
    if not results or lacking or len(results) < tasks:
        where = f" on {', '.join(lacking)}" if done else ""
        return replace(standing, refused=f"the mean area, as no seed is finished{where}")
    if len(results) == 1:
        return replace(standing, mean=results[0].area)
    strata, rng = [r.areas for r in results], seeding.rng(0, "across", method)
    mean = float(np.mean([s.mean() for s in strata]))
    if standing.fewest < 2:
        why = "intervals over seeds, as some task has one seed"
        return replace(standing, mean=Estimate(mean, NONE, NONE), refused=why)
    found = stats.bootstrap(strata, np.mean, rng, replace(summary.SHARE, per_task=True))
    if not found.wide:
        runs = sum(map(len, strata))  # start states of one run are no further attempts
        found = Estimate(mean, *stats.wilson(mean * runs, runs))
    middle = stats.bootstrap(strata, stats.interquartile_mean, rng, summary.SHARE)
    return replace(standing, mean=found, middle=_known(middle))


def _against(standing: Standing, first: list[Result], other: list[Result]) -> Standing:
    """The standing with its comparison to the first."""
    unequal = [a.task for a, b in zip(first, other, strict=True) if set(a.seeds) != set(b.seeds)]
    standing = replace(standing, better=_better(first, other, not unequal), paired=not unequal)
    if unequal or any(a.areas.shape != b.areas.shape for a, b in zip(first, other, strict=True)):
        where = ", ".join(unequal) or "some task"
        why = f"the paired difference, as seeds or start states differ from {first[0].method}'s on {where}"
        return replace(standing, refused="; ".join(filter(None, [standing.refused, why])))
    gap = _gap(first, other)
    return replace(standing, gap=gap, more_seeds=_more_seeds(first, other) if gap.low <= 0 else None)


def _better(first: list[Result], other: list[Result], paired: bool) -> Estimate:
    """Paired where both have the same seeds on every task, which share random streams and often the policy."""
    if not paired:
        ours, theirs = ([r.areas.mean(axis=1) for r in side] for side in (first, other))
        return rank_stats.probability_of_improvement(ours, theirs)
    one, two = ({cell: row.mean() for cell, row in _by_cell(side).items()} for side in (first, other))
    return rank_stats.paired_improvement(one, two)


def _by_cell(results: Sequence[Result]) -> dict[stats.Cell, Array]:
    """(task, seed) → areas (S,)."""
    return {(r.task, seed): row for r in results for seed, row in zip(r.seeds, r.areas, strict=True)}


def _gap(first: list[Result], other: list[Result]) -> Estimate:
    rng = seeding.rng(0, "difference", first[0].method, other[0].method)
    if len(first) == 1:
        return summary.difference(first[0].areas, _aligned(first[0], other[0]), rng)
    value = float(np.mean([a.areas.mean() - b.areas.mean() for a, b in zip(first, other, strict=True)]))
    if min(len(r.seeds) for r in first) < 2:
        return Estimate(value, NONE, NONE)
    return _known(stats.paired(_by_cell(first), _by_cell(other), np.mean, rng, replace(summary.GAP, per_task=True)))


def _known(e: Estimate) -> Estimate:
    """Without its interval if that has no width: runs that agree say nothing of how far others would differ."""
    return e if e.wide else Estimate(e.value, NONE, NONE)


def _aligned(first: Result, other: Result) -> Array:
    """The areas of `other` in the order of the seeds of `first`."""
    return np.asarray(other.areas[[other.seeds.index(s) for s in first.seeds]])


def _more_seeds(first: list[Result], other: list[Result]) -> int | None:
    """By a t-test on the differences per seed, mean over tasks, if all tasks have the same seeds."""
    if len({frozenset(r.seeds) for r in first}) > 1 or len(first[0].seeds) < 2:
        return None
    order = first[0].seeds
    differences = [_per_seed(a, order) - _per_seed(b, order) for a, b in zip(first, other, strict=True)]
    found = stats.seeds_to_decide(np.mean(differences, axis=0))
    return None if found is None else max(found, 1)  # 0: decided but for the start states


def _per_seed(result: Result, order: Sequence[int]) -> Array:
    return np.asarray(result.areas[[result.seeds.index(s) for s in order]].mean(axis=1))


def together(names: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def spread(e: Estimate | None, sign: bool = False) -> str:
    """0.42 [0.31, 0.55], without the bracket if there is no interval, or a dash.

    With `sign`, for differences, a third digit where an end would be printed as zero and is not.
    """
    if e is None or np.isnan(e.value):
        return "–"
    near = sign and any(0 < abs(v) < 0.005 for v in (e.low, e.high))
    style = f"{'+' if sign else ''}.{3 if near else 2}f"
    text = f"{e.value:{style}}" + ("" if np.isnan(e.low) else f" [{e.low:{style}},\u00a0{e.high:{style}}]")
    return text.replace("-", "−")


def verdict(ranking: Ranking) -> str:
    """Who learned fastest and how sure that is, in a few sentences."""
    ranked = ranking.ranked
    if not ranking.tasks:
        return "No finished cell yet, so there is nothing to rank."
    if not ranked:
        return "No method has finished on every task: there is nothing to rank over all of them."
    said = [_lead(ranked) if len(ranked) > 1 else f"Only {ranked[0].method} can be ranked ({spread(ranked[0].mean)})."]
    fewest = min(s.fewest for s in ranked)
    if fewest == 1:
        said.append("With one seed nothing is said about other seeds; intervals, where given, cover start states only.")
    elif fewest < summary.FEW_SEEDS:
        said.append(f"With {fewest} seeds for some or all methods this is a first impression: too few to rely on.")
    if short := [f"{s.method} {s.done}/{s.planned}" for s in ranking.standings if s.done < s.planned]:
        said.append(f"Runs are missing: {', '.join(short)}.")
    if ranking.empty:
        said.append(f"No cell has finished on {together(ranking.empty)}.")
    return " ".join(said)


def _lead(ranked: tuple[Standing, ...]) -> str:
    """How far ahead the first is, of whom, and of whom that cannot be said."""
    first, rivals = ranked[0], ranked[1:]
    fewest = min(s.fewest for s in ranked)
    limits = " on these seeds" if 1 < fewest < summary.FEW_SEEDS else " with this one seed" if fewest == 1 else ""
    area = f"{first.method} has the largest area{limits}, {spread(first.mean)}"
    clear = [f"{s.method} (by {spread(s.gap, sign=True)})" for s in rivals if s.separated]
    if len(clear) == len(rivals):
        claim = f"{first.method} learned fastest{limits}" if fewest > 1 else area
        return f"{claim}: every paired difference to another method is above zero, to {together(clear)}."
    open_ = [_open(s) for s in rivals if s.gap is not None and not s.separated]
    refused = [s.method for s in rivals if s.gap is None]
    said = [area + "."]
    said += [f"It is separated from {together(clear)}."] if clear else []
    said += [f"It is not separated from {together(open_)}."] if open_ else []
    said += [f"It is not paired with {together(refused)}, whose runs are not the same."] if refused else []
    return " ".join(said)


def _open(s: Standing) -> str:
    if s.gap is None or np.isnan(s.gap.low):
        return f"{s.method} ({spread(s.gap, sign=True)}, no interval)"
    need = f", {about(s.more_seeds)} more seed{'s' * (s.more_seeds > 1)} would decide" if s.more_seeds else ""
    return f"{s.method} ({spread(s.gap, sign=True)}{need})"


def about(seeds: int) -> str:
    """A number of seeds that would decide, as roughly as it is known: what nobody will run is over 1,000."""
    return f"about {seeds:,}" if seeds <= 1_000 else "over 1,000"
