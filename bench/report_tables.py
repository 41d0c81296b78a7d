"""The tables of the report: as printed (`Table`, which becomes HTML, Markdown and LaTeX) and as numbers (CSV)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from bench import report_regime, summary
from bench.page import Table
from bench.report_coverage import Relation
from bench.report_ranking import Pair, Ranking, about, spread
from bench.report_regime import Lead
from bench.stats import Estimate
from bench.summary import Result, TaskResult

DASH = "–"
NOT_PAIRED = " (not paired)"
COSTS = ("control_steps", "decisions", "gradient_steps", "policy_calls", "robot_hours")


def number(value: float | None) -> str:
    """A count with thin spaces between thousands, or a dash."""
    if value is None or math.isnan(value):
        return DASH
    return f"{value:,.0f}".replace(",", "\u202f")


def _ends(name: str, e: Estimate | None) -> dict[str, float]:
    values = (e.value, e.low, e.high) if e else (math.nan,) * 3
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))


# ranking


def ranking(found: Ranking) -> Table:
    """Who is ahead, and how each other method compares to the first."""
    several = len(found.tasks) > 1
    first = found.ranked[0].method if found.ranked else "the first"
    header = ["Method", "Runs", "Mean area" if several else "Area under curve", *(["IQM of areas"] if several else [])]
    header += [f"P({first} is better)", f"{first} minus this", "More seeds to decide"]
    rows = []
    for s in found.standings:
        lead = s is found.standings[0] and s.mean is not None
        more = DASH if lead or s.gap is None else "separated" if s.separated else _more(s.more_seeds)
        cells = [s.method, f"{s.done}/{s.planned}", spread(s.mean), *([spread(s.middle)] if several else [])]
        better = spread(s.better) + ("" if s.better is None or s.paired else NOT_PAIRED)
        rows.append((*cells, better, spread(s.gap, sign=True), more))
    return Table(tuple(header), tuple(rows), "ranking")


def _more(seeds: int | None) -> str:
    return "cannot be said" if seeds is None else about(seeds)


def ranking_frame(found: Ranking) -> pd.DataFrame:
    """The ranking as numbers; differences are first − method."""
    rows = [
        {"place": i, "method": s.method, "runs_done": s.done, "runs_planned": s.planned, **_ends("mean_area", s.mean),
         **_ends("iqm_area", s.middle), **_ends("first_is_better", s.better),
         "first_is_better_paired": s.paired if s.better else None, **_ends("first_minus_this", s.gap),
         "more_seeds_to_decide": s.more_seeds, "refused": s.refused}
        for i, s in enumerate(found.standings, 1)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def differences_frame(found: Sequence[Pair]) -> pd.DataFrame:
    """Every two methods as numbers: the area of `method` minus that of `minus`, and how often it is the larger one."""
    rows = [
        {"task": p.task, "method": p.first, "minus": p.second.method, **_ends("area", p.second.gap),
         **_ends("better", p.second.better), "paired": p.second.paired}
        for p in found
    ]  # fmt: skip
    return pd.DataFrame(rows)


def seeds_frame(tasks: Sequence[TaskResult]) -> pd.DataFrame:
    """Area and last success of every finished run."""
    rows = [
        {"task": r.task, "seed": seed, "method": r.method, "area": area.mean(), "final": run.success[:, -1].mean()}
        for task in tasks for r in task.results for seed, area, run in zip(r.seeds, r.areas, r.runs, strict=True)
    ]  # fmt: skip
    return pd.DataFrame(rows)


# one task


def main(task: TaskResult) -> Table:
    """A row per method, the largest area first."""
    k = max((b.k for r in task.results for b in r.before), default=summary.K)
    header = (
        "Method", "Seeds", "Success@1 before RL", f"Success@{k} before RL", "Final success", "Gain by RL",
        "Area under curve", "Control steps to 50 %, median", f"Mean of these, counted up to {number(task.end)}",
    )  # fmt: skip
    return Table(header, tuple(_main_row(r) for r in task.results))


def _main_row(r: Result) -> tuple[str, ...]:
    found = [spread(b.success) + (f" at\u00a0σ\u00a0{b.sigma:.2f}" if b.sigma else "") for b in r.before]
    before = found or [DASH, DASH]
    numbers = (spread(r.final), spread(r.gain, sign=True), spread(r.area))
    return r.method, f"{len(r.seeds)}/{r.planned}", *before, *numbers, _half(r), _half_mean(r)


def _half(r: Result) -> str:
    """The median of the time to the threshold; how many seeds got there stands with it."""
    if not r.seeds or math.isnan(r.half_median):
        return DASH
    seeds = f"({r.reached}/{len(r.seeds)} seeds)"
    if math.isinf(r.half_median):
        return f"not reached {seeds}"
    return f"{number(r.half_median)} {seeds}" if r.half_median else f"from the start {seeds}"


def _half_mean(r: Result) -> str:
    e = r.half_mean
    if e is None:
        return "not reached" if r.seeds else DASH
    return number(e.value) + ("" if math.isnan(e.low) else f" [{number(e.low)},\u00a0{number(e.high)}]")


def joined(tables: Sequence[tuple[str, Table]], name: str) -> Table:
    """Tables of several tasks as one, with the task in front; columns are those of the first."""
    rows = tuple((task, *row) for task, table in tables for row in table.rows)
    return Table(("Task", *tables[0][1].header), rows, name)


def summary_frame(tasks: Sequence[TaskResult]) -> pd.DataFrame:
    """The main tables as numbers, a row per task and method."""
    return pd.DataFrame([_numbers(r, task) for task in tasks for r in task.results])


def _numbers(r: Result, task: TaskResult) -> dict[str, Any]:
    one, many = r.before if r.before else (None, None)
    row: dict[str, Any] = {
        "task": r.task, "method": r.method, "seeds_done": len(r.seeds), "seeds_planned": r.planned,
        "seeds": " ".join(map(str, r.seeds)), "area_end_control_steps": task.end,
        **_ends("success_at_1", one.success if one else None), **_ends("success_at_k", many.success if many else None),
        **_ends("final_success", r.final), **_ends("gain", r.gain), **_ends("area", r.area),
        "k": many.k if many else 0, "sigma_at_1": one.sigma if one else math.nan,
        "sigma_at_k": many.sigma if many else math.nan, "control_steps_to_half_median": r.half_median,
        **_ends("control_steps_to_half_mean", r.half_mean), "seeds_reaching_half": r.reached,
    }  # fmt: skip
    return row


# coverage, its relation to the outcome, costs


def coverage(frame: pd.DataFrame, task: str) -> Table:
    """Success@k and action spread of the frozen policies at every σ."""
    frame = frame[frame["task"] == task]
    ks = sorted(set(frame["k"]))
    rows = []
    for (methods, sigma), at in frame.groupby(["methods", "sigma"]):
        success = {r["k"]: spread(Estimate(r["success"], r["low"], r["high"])) for r in at.to_dict("records")}
        rows.append((str(methods), f"{sigma:.2f}", *(success.get(k, DASH) for k in ks), f"{at['spread'].mean():.3f}"))
    return Table(("Policy of", "σ", *(f"Success@{k}" for k in ks), "Action spread"), tuple(rows))


def relations(found: Sequence[Relation]) -> Table:
    """Rank correlations of coverage before RL with what RL makes of it."""
    header = ("Coverage", "Outcome", "Pairs", "Resampled", "Rank correlation", "The same within tasks")
    rows = [(r.coverage, r.outcome, str(r.pairs), r.units, spread(r.every, sign=True),
             spread(r.within, sign=True)) for r in found]  # fmt: skip
    return Table(header, tuple(rows), "correlation")


def relations_frame(found: Sequence[Relation]) -> pd.DataFrame:
    """The same as numbers."""
    rows = [
        {"coverage": r.coverage, "outcome": r.outcome, "pairs": r.pairs, "resampled": r.units,
         **_ends("spearman", r.every), **_ends("spearman_within_tasks", r.within), "refused": r.refused}
        for r in found
    ]  # fmt: skip
    return pd.DataFrame(rows)


def leads(found: Sequence[Lead], baseline: str) -> Table:
    """Every method's lead over the baseline, the hardest task first."""
    ks = ", ".join(str(k) for k in sorted({lead.k for lead in found}))
    header = ("Task", f"{baseline}, Success@{ks} before RL", "Method", "Seeds", "Area above", "Final success above")
    return Table(header, tuple(report_regime.rows(found)), "leads")


def leads_frame(found: Sequence[Lead]) -> pd.DataFrame:
    """The same as numbers."""
    return pd.DataFrame([
        {"task": lead.task, "method": lead.method, "seeds": lead.seeds, "k": lead.k,
         **_ends("baseline_success", lead.coverage), **_ends("area", lead.area), **_ends("final", lead.final)}
        for lead in found
    ])  # fmt: skip


def costs(tasks: Sequence[TaskResult]) -> Table:
    """What each method cost on each task."""
    header = ("Task", "Method", "Pretraining steps", "Pretraining seconds", "Control steps to choose σ",
              "Fine-tuning seconds", *(axis.replace("_", " ").capitalize() for axis in COSTS),
              "Peak memory, MB")  # fmt: skip
    rows = [
        (r.task, r.method, number(r.pretrain_steps), _seconds(r.pretrain_seconds), number(r.selection_steps),
         _seconds(r.cost.get("wall_seconds", math.nan)),
         *(f"{r.cost[a]:.2f}" if a == "robot_hours" and r.cost else number(r.cost.get(a)) for a in COSTS),
         number(r.memory))
        for task in tasks for r in task.results
    ]  # fmt: skip
    return Table(header, tuple(rows), "costs")


def _seconds(value: float) -> str:
    return f"{value:.1f}" if value < 10 else number(value)


def costs_frame(tasks: Sequence[TaskResult]) -> pd.DataFrame:
    """The same as numbers; medians over seeds at the last point, pretraining is a mean, memory the largest."""
    rows = [
        {"task": r.task, "method": r.method, "pretrain_steps": r.pretrain_steps, "pretrain_seconds": r.pretrain_seconds,
         "selection_control_steps": r.selection_steps,
         **{f"end_{axis}": r.cost.get(axis, math.nan) for axis in summary.AXES}, "peak_memory_mb": r.memory}
        for task in tasks for r in task.results
    ]  # fmt: skip
    return pd.DataFrame(rows)
