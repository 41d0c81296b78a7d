"""The report of a run: index.html, report.md, figures (PNG, SVG) and tables (CSV, Markdown, LaTeX).

It opens with the answer: who learns fastest, and how sure that is. It can be written at any time, also while the run
goes on: what is missing or failed is shown as such, and nothing stands in for it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table as RichTable

from bench import (
    figures,
    report_attempts,
    report_coverage,
    report_curves,
    report_figures,
    report_origin,
    report_regime,
    report_studies,
    report_tables,
    report_words,
    seeding,
    stats,
    summary,
)
from bench.page import Block, Choice, Heading, Image, Table, Text, html, latex, markdown
from bench.report_curves import ALL, Axis, Curve
from bench.report_ranking import pairs, rank, verdict
from bench.stages.curves import Curves, gather
from bench.store import Store, write_atomic
from bench.summary import TaskResult
from bench.types import InputError

CHIEF = ("Method", "Success@1 before RL", "Final success", "Area under curve")  # columns shown on the terminal


def write(store: Store, folders: Sequence[Path], out: Path) -> Path:
    """Write one report of the runs into `out` and return the path of its page. Raises InputError if it cannot."""
    curves = gather(store, *folders)
    try:
        for folder in ("figures", "tables"):
            (out / folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"report folder {out}: cannot write ({error.strerror}); choose another with --out") from None
    report = Report(curves, out)
    blocks = report.blocks(report_studies.find(store.root))
    report.tables(blocks)
    write_atomic(out / "report.md", lambda p: p.write_text(markdown(blocks)))
    write_atomic(out / "index.html", lambda p: p.write_text(html(blocks, f"Report: {_name(curves.run)}")))
    return out / "index.html"


def _name(run: dict[str, Any]) -> str:
    return f"Run{'s' * ('runs' in run)} {run.get('run')}"


def show(store: Store, run_folder: Path) -> None:
    """Print each task's verdict and the main table's chief columns, which fit 80 characters, on the terminal."""
    console = Console()
    tasks = summary.summarise(gather(store, run_folder))
    for task in tasks:
        table = report_tables.main(task)
        grid = RichTable(
            title=task.task, caption=verdict(rank([task])), title_justify="left", caption_justify="left"
        )  # fmt: skip
        chief = [table.header.index(name) for name in CHIEF]
        for i in chief:
            grid.add_column(table.header[i], overflow="fold")
        for row in table.rows:
            grid.add_row(*(row[i] for i in chief))
        console.print(grid)
    if len(tasks) > 1:
        console.print(f"All tasks together: {verdict(rank(tasks))}", highlight=False, markup=False)


class Report:
    """The blocks of one run's page; figures are written as they are made."""

    def __init__(self, curves: Curves, out: Path) -> None:
        self.curves, self.out = curves, out
        self.tasks = summary.summarise(curves)
        self.ranking = rank(self.tasks)
        self.style = figures.Style(sorted(set(curves.cells["method"])))
        self.pairs = report_coverage.pairs_of(self.tasks)
        self.relations = report_coverage.relations(self.pairs)
        self.baseline = str(curves.cells["method"].iloc[0])
        self.leads = report_regime.leads(self.tasks, self.baseline)
        self.coverage, self.attempts = figures.coverage_table(curves), report_attempts.table(curves)
        self.drawn: dict[tuple[str, Axis], list[Curve]] = {}

    def blocks(self, studies: list[report_studies.Study]) -> list[Block]:
        """The whole page."""
        run, cells = self.curves.run, self.curves.cells
        done = int((cells["status"] == "done").sum())
        made = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(float(run.get("updated", 0))))
        return [
            Heading("Which method learns fastest from reinforcement?", 1),
            Text(f"{_name(run)}, profile {run.get('profile')}, {done} of {len(cells)} cells finished, {made}."),
            *report_origin.missing_line(cells),
            *self._answer(),
            *self._speed(),
            *self._relation(),
            *self._regime(),
            *[block for task in self.tasks for block in self._task(task)],
            *self._costs(),
            *report_studies.blocks(studies, self.style, self.out / "figures", self._save),
            *report_origin.missing(cells, self.tasks, self.ranking),
            *report_origin.origin(run),
        ]

    def _save(self, name: str, figure: Figure, caption: str) -> Image:
        """Write the figure as PNG and SVG."""
        return figures.save(self.out / "figures", name, figure, caption)

    def _maybe(self, name: str, figure: Figure | None, caption: str) -> list[Block]:
        return [] if figure is None else [self._save(name, figure, caption)]

    # sections

    def _answer(self) -> list[Block]:
        blocks: list[Block] = [Heading("The answer")]
        if not any(t.ranked for t in self.tasks):
            return [*blocks, Text("No cell of this run has finished: there is no result yet.", loud=True)]
        several = len(self.ranking.tasks) > 1
        means = {s.method: s.mean for s in self.ranking.ranked if s.mean}
        over = f" over {len(self.ranking.tasks)} tasks" if several else ""
        blocks += [Text(verdict(self.ranking)), report_tables.ranking(self.ranking)]
        if several:
            sure = all(not math.isnan(e.low) for e in means.values())
            caption = f"Mean area under the success curve{over}" + (", with 95 % intervals." if sure else ".")
            blocks += self._maybe("ranking", report_figures.standings(self.tasks, means, self.style), caption)
        else:
            (task,) = (t for t in self.tasks if t.ranked)
            caption = f"{task.task}: area under the success curve, with 95 % intervals."
            blocks += self._maybe("ranking", figures.areas(task, self.style), caption)
        blocks += self._profile(over)
        return [*blocks, Text(report_words.intervals(self.ranking, self.tasks))]

    def _profile(self, over: str) -> list[Block]:
        """Performance profiles of the methods with two runs or more on every task."""
        tau, found = [i / 100 for i in range(101)], {}
        shown = [t for t in self.tasks if t.ranked]
        for s in self.ranking.ranked:
            areas = [r.areas.mean(axis=1) for t in shown for r in t.ranked if r.method == s.method]
            if s.fewest > 1:
                rng = seeding.rng(0, "profile", s.method)
                found[s.method] = stats.performance_profile(areas, tau, rng, summary.SHARE)
        without = [s.method for s in self.ranking.ranked if s.fewest < 2]
        caption = report_words.PROFILE.format(over) + (
            f" Without {', '.join(without)}: one run on some task." if without else ""
        )
        return self._maybe("profile", report_figures.profile(found, self.style), caption)

    def _speed(self) -> list[Block]:
        """Curves on every axis, of all tasks together and of each."""
        if not self.ranking.tasks:
            return []
        options = tuple((axis.label, tuple(images)) for axis in report_curves.AXES if (images := self._on(axis)))
        return [Heading("How fast each method learns"), Text(report_words.CURVES), Choice("Success against", options)]

    def _on(self, axis: Axis) -> list[Image]:
        images = []
        shown = [t for t in self.tasks if t.ranked]
        if len(shown) > 1:
            found, lacking = report_curves.over_tasks(shown, axis)
            if found:
                self.drawn[ALL, axis] = found
                figure = report_figures.success(found, ALL, f"share of the {axis.label}", self.style)
                without = f" Without {', '.join(lacking)}: not finished or not known on every task." if lacking else ""
                caption = f"Mean over {len(shown)} tasks against the share of the {axis.label}.{without}"
                images.append(self._save(f"success_all{_suffix(axis)}", figure, caption))
        for task in shown:
            curves = self.drawn[task.task, axis] = report_curves.curves(task, axis)
            if not curves:
                continue
            figure = report_figures.success(curves, task.task, axis.label, self.style)
            name = f"success_{_flat(task.task)}{_suffix(axis)}"
            lacking = report_curves.undrawn(task, axis)
            without = f" Without {', '.join(lacking)}: what came before is not known." if lacking else ""
            images.append(self._save(name, figure, f"{task.task}: success against {axis.label}.{without}"))
        return images

    def _relation(self) -> list[Block]:
        """Coverage before RL against what RL makes of it."""
        if not self.pairs:
            return []
        blocks: list[Block] = [Heading("Does coverage before RL predict the outcome?")]
        said = report_coverage.verdict(self.relations)
        blocks += [Text(said)] if said else []
        blocks += [report_tables.relations(self.relations), Text(report_words.RELATION)]
        blocks += [Text(f"No rank correlation: {r.refused}.") for r in self.relations[:1] if r.refused]
        caption = "Frozen policy before RL against area and gain: large, a method on a task; small, its seeds."
        figure = report_figures.coverage_against_outcome(self.pairs, self.style)
        return [*blocks, *self._maybe("coverage_against_outcome", figure, caption)]

    def _regime(self) -> list[Block]:
        """Where a method leads the run's first one: on which tasks, by how that one's policy does before RL."""
        if len({lead.task for lead in self.leads}) < 2:
            return []
        caption = f"Lead over {self.baseline}, a point per task, against its success before RL."
        return [
            Heading("Where does a method pay?"),
            Text(
                report_regime.verdict(self.leads, self.baseline)
                + report_regime.left_out(self.tasks, self.leads, self.baseline)
            ),
            *self._maybe("leads", report_figures.leads(self.leads, self.baseline, self.style), caption),
            report_tables.leads(self.leads, self.baseline),
            Text(report_words.LEADS),
        ]

    def _task(self, task: TaskResult) -> list[Block]:
        name, flat = task.task, _flat(task.task)
        blocks: list[Block] = [Heading(name)]
        if len(self.tasks) > 1:
            blocks.append(Text(verdict(rank([task]))))
        blocks += [report_tables.main(task), Text(report_words.TASK)]
        if len(self.tasks) > 1:
            caption = f"{name}: area under the success curve, with 95 % intervals."
            blocks += self._maybe(f"areas_{flat}", figures.areas(task, self.style), caption)
        drawn = {
            "coverage": (figures.coverage(task, self.style), report_words.COVERAGE),
            "attempts": (report_attempts.figure(self.attempts, name, self.style), report_words.ATTEMPTS),
            "coverage_sigma": (figures.coverage_by_sigma(self.coverage, name, self.style), report_words.LEVELS),
            "sigma": (figures.sigma(self.curves, name, self.style), report_words.SIGMA),
        }
        for kind, (figure, caption) in drawn.items():
            blocks += self._maybe(f"{kind}_{flat}", figure, f"{name}: {caption}")
        if (self.coverage["task"] == name).any():
            table = report_tables.coverage(self.coverage, name)
            blocks += [Heading("Coverage before reinforcement, by noise level", 3), table]
        return blocks

    def _costs(self) -> list[Block]:
        said = (
            "Medians over seeds at the last point; pretraining and the steps to choose σ are means over seeds, memory "
            "the largest peak."
        )
        return [Heading("What it cost"), Text(said), report_tables.costs(self.tasks)] if self.tasks else []

    # files

    def tables(self, blocks: Sequence[Block]) -> None:
        """Every table as a file: numbers as CSV, and as printed in Markdown and LaTeX."""
        frames = {
            "ranking": report_tables.ranking_frame(self.ranking), "summary": report_tables.summary_frame(self.tasks),
            "differences": report_tables.differences_frame(pairs(self.tasks)),
            "seeds": report_tables.seeds_frame(self.tasks), "curves": report_curves.frame(self.drawn),
            "coverage": self.coverage, "attempts": self.attempts,
            "correlation": report_tables.relations_frame(self.relations),
            "leads": report_tables.leads_frame(self.leads), "costs": report_tables.costs_frame(self.tasks),
            "cells": self.curves.cells.drop(columns=["traceback", "coverage_key"]),
        }  # fmt: skip
        printed = {b.name: b for b in blocks if isinstance(b, Table) and b.name}
        if self.tasks:
            main = [(t.task, report_tables.main(t)) for t in self.tasks]
            cover = [(t.task, report_tables.coverage(self.coverage, t.task)) for t in self.tasks]
            printed["summary"] = report_tables.joined(main, "summary")
            printed["coverage"] = report_tables.joined([c for c in cover if c[1].rows] or cover, "coverage")
        for name, table in printed.items():
            frames.setdefault(name, pd.DataFrame(table.rows, columns=list(table.header)))
            figures.write_bytes(self.out / "tables" / f"{name}.md", markdown([table]).encode())
            figures.write_bytes(self.out / "tables" / f"{name}.tex", latex(table).encode())
        for name, frame in frames.items():
            figures.write_bytes(self.out / "tables" / f"{name}.csv", frame.to_csv(index=False).encode())


def _flat(task: str) -> str:
    return task.replace("/", "-")


def _suffix(axis: Axis) -> str:
    return "" if axis == report_curves.AXES[0] else f"_{axis.key}"
