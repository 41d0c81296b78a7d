"""The report of a run: figures (PNG and SVG), tables (CSV), report.md, and index.html, one page with all of it.

It opens with the answer: who learns fastest on each task, and how sure that is. It can be written at any time, also
while the run goes on: what is missing or failed is shown as such, and nothing stands in for it.
"""

from __future__ import annotations

import json
import math
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table as RichTable

from bench import figures, summary
from bench.page import Block, Code, Heading, Image, Items, Table, Text, html, markdown
from bench.stages.curves import Curves, gather
from bench.store import Store, write_atomic
from bench.summary import Estimate, Result, TaskResult
from bench.types import InputError

DASH = "–"
CHIEF = ("Method", "Success@1 before RL", "Final success", "Area under curve")  # columns shown on the terminal


def write(store: Store, run_folder: Path, out: Path) -> Path:
    """Write the report of the run into `out` and return the path of its page. Raises InputError if it cannot."""
    curves = gather(store, run_folder)
    tasks = summary.summarise(curves)
    try:
        for folder in ("figures", "tables"):
            (out / folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"report folder {out}: cannot write ({error.strerror}); choose another with --out") from None
    images = {task.task: _images(curves, task, out / "figures") for task in tasks}
    _tables(curves, tasks, out / "tables")
    blocks = _blocks(curves, tasks, images)
    write_atomic(out / "report.md", lambda p: p.write_text(markdown(blocks)))
    write_atomic(out / "index.html", lambda p: p.write_text(html(blocks, f"Report of run {curves.run.get('run')}")))
    return out / "index.html"


def show(store: Store, run_folder: Path) -> None:
    """Print each task's verdict and the main table's chief columns, which fit 80 characters, on the terminal."""
    console = Console()
    for task in summary.summarise(gather(store, run_folder)):
        table = _main_table(task)
        grid = RichTable(title=task.task, caption=verdict(task), title_justify="left", caption_justify="left")
        chief = [table.header.index(name) for name in CHIEF]
        for i in chief:
            grid.add_column(table.header[i], overflow="fold")
        for row in table.rows:
            grid.add_row(*(row[i] for i in chief))
        console.print(grid)


# figures


def _images(curves: Curves, task: TaskResult, folder: Path) -> dict[str, Image]:
    """Kind of figure → image, for the figures this task has data for; the files are written on the way."""
    methods = sorted(set(curves.cells["method"]))
    light, dark = (_figures(curves, task, figures.Style(methods, theme)) for theme in (figures.LIGHT, figures.DARK))
    captions = _captions(task)
    found = {}
    for kind, figure in light.items():
        name = f"{kind}_{task.task.replace('/', '-')}"
        vector, bitmap = figures.render(figure, "svg"), figures.render(figure, "png")
        _bytes(folder / f"{name}.svg", vector)
        _bytes(folder / f"{name}.png", bitmap)
        found[kind] = Image(name, vector, figures.render(dark[kind], "svg"), captions[kind])
    return found


def _bytes(path: Path, content: bytes) -> None:
    write_atomic(path, lambda p: p.write_bytes(content))


def _figures(curves: Curves, task: TaskResult, style: figures.Style) -> dict[str, Figure]:
    drawn = {
        "areas": figures.areas(task, style),
        "success": figures.success(task, style),
        "coverage": figures.coverage(task, style),
        "coverage_sigma": figures.coverage_by_sigma(curves, task.task, style),
        "sigma": figures.sigma(curves, task.task, style),
    }
    return {kind: figure for kind, figure in drawn.items() if figure is not None}


def _captions(task: TaskResult) -> dict[str, str]:
    name = task.task
    return {
        "areas": f"{name}: area under the success curve, with 95 % intervals.",
        "success": f"{name}: success on report states during fine-tuning. Thick: mean over seeds, with its 95 % band; "
        "thin: single seeds.",
        "coverage": f"{name}: the frozen policies before reinforcement: success of one try, and of the best of several "
        "tries from the same start state; lines are 95 % intervals. The noise level was chosen on other start states.",
        "coverage_sigma": f"{name}: the frozen policies that take a noise level, before reinforcement, at each level.",
        "sigma": f"{name}: noise level that fine-tuning chose, over training and within the episode.",
    }


# tables


def _tables(curves: Curves, tasks: list[TaskResult], folder: Path) -> None:
    lines = [
        {"task": r.task, "method": r.method, "control_steps": x, "success": y, "low": low, "high": high}
        for task in tasks
        for r in task.results
        for x, y, low, high in zip(r.grid, r.mean, *r.band, strict=True)
    ]
    frames = {
        "summary": pd.DataFrame([_numbers(r, task) for task in tasks for r in task.results]),
        "curves": pd.DataFrame(lines, columns=["task", "method", "control_steps", "success", "low", "high"]),
        "coverage": figures.coverage_table(curves),
        "cells": curves.cells.drop(columns=["traceback", "coverage_key"]),
    }
    for name, frame in frames.items():
        write_atomic(folder / f"{name}.csv", lambda p, f=frame: f.to_csv(p, index=False))  # type: ignore[misc]


def _numbers(result: Result, task: TaskResult) -> dict[str, Any]:
    """One row of summary.csv: plain numbers."""
    row: dict[str, Any] = {
        "task": result.task, "method": result.method, "seeds_done": len(result.seeds), "seeds_planned": result.planned,
        "seeds": " ".join(map(str, result.seeds)), "area_end_control_steps": task.end,
    }  # fmt: skip
    one, many = result.before if result.before else (None, None)
    estimates = {
        "success_at_1": one.success if one else None, "success_at_k": many.success if many else None,
        "final_success": result.final, "gain": result.gain, "area": result.area,
    }  # fmt: skip
    for name, e in estimates.items():
        row |= {name: e.value, f"{name}_low": e.low, f"{name}_high": e.high} if e else dict.fromkeys(
            (name, f"{name}_low", f"{name}_high"), math.nan
        )  # fmt: skip
    row |= {"k": many.k if many else 0, "sigma_at_1": one.sigma if one else math.nan}
    row |= {"sigma_at_k": many.sigma if many else math.nan, "control_steps_to_half": result.steps_to_threshold}
    row |= {"seeds_reaching_half": result.reached, "pretrain_steps": result.pretrain_steps}
    row |= {"pretrain_seconds": result.pretrain_seconds}
    return row | {f"end_{axis}": result.cost.get(axis, math.nan) for axis in summary.AXES}


def number(value: float | None) -> str:
    """A count with thin spaces between thousands, or a dash."""
    if value is None or math.isnan(value):
        return DASH
    return f"{value:,.0f}".replace(",", "\u202f")


def spread(e: Estimate | None) -> str:
    """0.42 [0.31, 0.55], or a dash."""
    return f"{e.value:.2f} [{e.low:.2f},\u00a0{e.high:.2f}]".replace("-", "−") if e else DASH


def _main_table(task: TaskResult) -> Table:
    k = max((b.k for r in task.results for b in r.before), default=summary.K)
    header = (
        "Method", "Seeds", "Success@1 before RL", f"Success@{k} before RL", "Final success", "Gain by RL",
        "Area under curve", "Control steps to 50 %", "Pretraining",
    )  # fmt: skip
    return Table(header, tuple(_main_row(r) for r in task.results))


def _main_row(r: Result) -> tuple[str, ...]:
    before = [f"{spread(b.success)}" + (f" at\u00a0σ\u00a0{b.sigma:.2f}" if b.sigma else "") for b in r.before] or [
        DASH,
        DASH,
    ]
    half = DASH
    if r.area is not None or r.final is not None:
        never = f"not reached ({r.reached}/{len(r.seeds)} seeds)"
        half = (
            never
            if r.steps_to_threshold is None
            else number(r.steps_to_threshold) + " (from the start)" * (r.steps_to_threshold == 0)
        )
    none = math.isnan(r.pretrain_steps)
    cost = DASH if none else f"{number(r.pretrain_steps)} steps, {r.pretrain_seconds:.0f}\u00a0s"
    return r.method, f"{len(r.seeds)}/{r.planned}", *before, spread(r.final), spread(r.gain), spread(r.area), half, cost


def _coverage_table(curves: Curves, task: str) -> Table:
    frame = figures.coverage_table(curves)
    frame = frame[frame["task"] == task]
    ks = sorted(set(frame["k"]))
    rows = []
    for (methods, sigma), at in frame.groupby(["methods", "sigma"]):
        success = {r["k"]: spread(Estimate(r["success"], r["low"], r["high"])) for r in at.to_dict("records")}
        rows.append((str(methods), f"{sigma:.2f}", *(success.get(k, DASH) for k in ks), f"{at['spread'].mean():.3f}"))
    return Table(("Policy of", "σ", *(f"Success@{k}" for k in ks), "Action spread"), tuple(rows))


def _cost_table(task: TaskResult) -> Table:
    header = ("Method", *(axis.replace("_", " ") for axis in summary.AXES))
    rows = [
        (r.method, *(f"{r.cost[a]:.2f}" if a == "robot_hours" else number(r.cost[a]) for a in summary.AXES))
        for r in task.results
        if r.cost
    ]
    return Table(header, tuple(rows))


# text


def verdict(task: TaskResult) -> str:
    """Who learned fastest on this task and how sure that is, in one to three sentences."""
    ranked = task.ranked
    if not ranked:
        return "No finished cell yet, so there is nothing to rank."
    first = ranked[0]
    said = [_lead(task, first)] if len(ranked) > 1 else [f"Only {first.method} has finished, so there is no ranking."]
    fewest = min(len(r.seeds) for r in ranked)
    if fewest == 1:
        said.append("With one seed the intervals cover start states only and say nothing about other seeds.")
    elif fewest < summary.FEW_SEEDS:
        said.append(f"With {fewest} seeds for some or all methods this is a first impression: too few to rely on.")
    missing = [f"{r.method} {len(r.seeds)}/{r.planned}" for r in task.results if len(r.seeds) < r.planned]
    if missing:
        said.append(f"Seeds are missing: {', '.join(missing)}.")
    return " ".join(said)


def _lead(task: TaskResult, first: Result) -> str:
    rivals = task.ranked[1:]
    open_ = [r.method for r in rivals if r.method not in task.behind or task.behind[r.method][0].low <= 0]
    nearest = rivals[0].method
    gap = f" (ahead of {nearest} by {spread(task.behind[nearest][0])})" if nearest in task.behind else ""
    if not open_:
        fewest = min(len(r.seeds) for r in task.ranked)
        where = "" if fewest >= summary.FEW_SEEDS else " on these seeds" if fewest > 1 else " with this one seed"
        claim = "learned fastest" if fewest > 1 else "has the largest area"
        return f"{first.method} {claim}{where}{gap}: every paired difference to another method is above zero."
    return (
        f"{first.method} has the largest area{gap}, but is not separated from {_and(open_)}: "
        "the interval of the paired difference includes zero."
    )


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def _intervals(tasks: list[TaskResult]) -> str:
    """How the intervals are made, and what they are worth with the seeds there are."""
    fewest = min((len(r.seeds) for t in tasks for r in t.ranked), default=0)
    text = (
        "Area is the mean success over the control steps of fine-tuning (trapezoids between evaluation points, up to "
        "the number of control steps that every finished cell of the task reached; 1 is success from the start). "
        "Intervals are 95 % percentile bootstrap intervals over seeds and start states, resampled together, as all "
        "seeds are evaluated from the same start states; differences are paired by seed and start state and not "
        "corrected for the number of comparisons."
    )
    if 0 < fewest < summary.FEW_SEEDS:
        seeds = f"{fewest} seed{'s' * (fewest > 1)}"
        text += f" A bootstrap over as few as {seeds} is too narrow: take it as a lower bound of the doubt."
    return text


def _answer(curves: Curves, tasks: list[TaskResult], images: dict[str, dict[str, Image]]) -> list[Block]:
    style = figures.Style(sorted(set(curves.cells["method"])))
    blocks: list[Block] = [Heading("The answer")]
    if not any(t.ranked for t in tasks):
        blocks.append(Text("No cell of this run has finished: there is no result yet.", loud=True))
    for task in tasks:
        blocks += [Heading(task.task, 3), Text(verdict(task))]
        if task.ranked:
            texts = tuple(f"{r.method}  {spread(r.area)}" for r in task.ranked)
            blocks.append(Items(texts, tuple(style.colour(r.method) for r in task.ranked)))
        blocks += [images[task.task][kind] for kind in ("areas",) if kind in images[task.task]]
    whole = summary.across(tasks)
    if whole:
        lines = tuple(f"{name}  {spread(e)}" for name, e in whole.items())
        blocks += [
            Heading("Across tasks", 3),
            Text("Interquartile mean of the area over tasks and seeds, seeds resampled within each task."),
            Items(lines, tuple(style.colour(name) for name in whole)),
        ]
    return [*blocks, Text(_intervals(tasks))]


def _blocks(curves: Curves, tasks: list[TaskResult], images: dict[str, dict[str, Image]]) -> list[Block]:
    run = curves.run
    done, planned = int((curves.cells["status"] == "done").sum()), len(curves.cells)
    made = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(float(run.get("updated", 0))))
    blocks: list[Block] = [
        Heading("Which method learns fastest from reinforcement?", 1),
        Text(f"Run {run.get('run')}, profile {run.get('profile')}, {done} of {planned} cells finished, {made}."),
        *_missing_line(curves.cells),
        *_answer(curves, tasks, images),
    ]
    for task in tasks:
        shown = images[task.task]
        blocks += [Heading(task.task), _main_table(task)]
        blocks += [shown[kind] for kind in ("success", "coverage", "coverage_sigma", "sigma") if kind in shown]
        blocks += [Heading("Coverage before reinforcement, by noise level", 3), _coverage_table(curves, task.task)]
        if task.ranked:
            blocks += [Heading("What it cost, median over seeds, at the last point", 3), _cost_table(task)]
    return [*blocks, *_cells(curves.cells), *_origin(run)]


def _missing_line(cells: pd.DataFrame) -> list[Block]:
    failed, waiting = (int(cells["status"].isin(s).sum()) for s in (["failed"], ["pending", "running"]))
    parts = [f"{n} {word}" for n, word in ((failed, "failed"), (waiting, "not finished")) if n]
    return [Text(f"Of the cells, {_and(parts)}: see “Cells” below.", loud=True)] if parts else []


def _cells(cells: pd.DataFrame) -> list[Block]:
    """Every cell that has no result, and why."""
    blocks: list[Block] = [Heading("Cells")]
    lacking = cells[cells["status"] != "done"]
    if lacking.empty:
        return [*blocks, Text(f"All {len(cells)} cells finished." if len(cells) else "The run has no cells.")]
    rows = tuple(
        (c["task"], c["method"], str(c["seed"]), c["status"], c["stage"] or DASH, c["failure"] or DASH)
        for c in lacking.to_dict("records")
    )
    blocks.append(Table(("Task", "Method", "Seed", "Status", "Stage", "Last line of the traceback"), rows))
    for c in lacking[lacking["traceback"] != ""].to_dict("records"):
        blocks.append(Code(c["traceback"].rstrip(), f"Traceback of {c['method']} on {c['task']}, seed {c['seed']}"))
    return blocks


def _origin(run: dict[str, Any]) -> list[Block]:
    versions = ", ".join(f"{name} {version}" for name, version in sorted(run.get("versions", {}).items()))
    return [
        Heading("Where these numbers come from"),
        Code(shlex.join(map(str, run.get("command", [])))),
        Text(f"Commit {run.get('commit') or 'unknown'}. Versions: {versions}."),
        Code(
            json.dumps(run.get("experiment", {}), indent=1, sort_keys=True),
            "What was asked for (run.json has the resolved configuration of every cell)",
        ),
    ]
