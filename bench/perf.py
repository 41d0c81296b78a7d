"""`bench perf`: what the harness costs, each figure beside its baseline, measured in turns on one core.

Environment steps and gradient steps are per second of CPU time of one thread. A section that fails is recorded, and the
others are measured.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from bench.executor import Board, Executor
from bench.perf_cells import FULL, QUICK, Size, cell_shares, prepare, pretraining, request
from bench.perf_environments import environments, side_by_side
from bench.perf_flow import flows
from bench.perf_updates import updates
from bench.plan import Plan, make_plan
from bench.store import LIBRARIES, Store, commit, versions, with_python, write_atomic, write_json
from bench.types import InputError

WIDTH = 150  # characters of the tables where there is no terminal
ENVIRONMENTS = 4  # side by side


def scaling(store: Store, method: str, task: str, size: Size, say: Callable[[str], None]) -> dict[str, float]:
    """Decisions per second of 1 and of 2 workers in turns, each with two cells, and the workers' peak memory."""
    rates, memory = np.zeros((size.scaling_turns, 2)), 0.0
    for turn, jobs in itertools.product(range(size.scaling_turns), (1, 2)):
        first = 4 * turn + 2 * jobs
        wanted = request((method,), (task,), (first, first + 1), size)
        plan = make_plan(dataclasses.replace(wanted, overrides={**wanted.overrides, **short(size)}))
        for planned in plan.cells:
            prepare(store, planned, say)
        say(f"{method} on {task}: two cells by {jobs} worker{'s' * (jobs > 1)}")
        rates[turn, jobs - 1] = jobs * decision_rate(store, plan, jobs)
        metas = [store.entry(u.stage, u.key).meta() for u in plan.units.values() if u.stage == "finetune"]
        memory = max(memory, *(m["peak_memory_mb"] for m in metas))
    return workers(rates) | {"peak_memory_mb": memory}


def workers(rates: np.ndarray[Any, Any]) -> dict[str, float]:
    """Medians over the turns of the rates (turns, 2) of 1 and of 2 workers, and of their paired ratio with extremes."""
    one, two = np.median(rates, axis=0)
    ratios = rates[:, 1] / rates[:, 0]
    return {"1 worker": float(one), "2 workers": float(two), "ratio": float(np.median(ratios)),
            "ratio_low": float(ratios.min()), "ratio_high": float(ratios.max())}  # fmt: skip


def short(size: Size) -> dict[str, Any]:
    """A cell of a few seconds with small evaluations: before it, half-way and at its end."""
    return {"rl.decisions": size.scaling_decisions, "rl.random_decisions": 100, "evaluation.points": 2,
            "evaluation.states": 8}  # fmt: skip


def decision_rate(store: Store, plan: Plan, jobs: int) -> float:
    """Decisions per second of a cell in its second half, when all code is loaded: the mean over the cells.

    Without evaluations and checkpoints. That the cells of several workers run side by side is taken for granted.
    """
    board = Board(plan)
    executor = Executor(store, plan, jobs, board)
    executor.threads = 1  # a worker alone would step environments on all cores
    executor.run()
    for (stage, _), status in board.units.items():
        if status.state != "done":
            raise InputError(f"{stage} {status.state}: {status.error}")
    rates: list[float] = []
    for cell in plan.cells:
        fine_tuned = store.entry("finetune", cell.units[-1].key)
        rates.append(late_rate(json.loads(fine_tuned.file("points.json").read_text())))
    return sum(rates) / len(rates)


def late_rate(points: Sequence[Mapping[str, Any]]) -> float:
    """Decisions per second of fine-tuning between the last two evaluations."""
    before, end = points[-2:]
    return float((end["decisions"] - before["decisions"]) / (end["wall_seconds"] - before["wall_seconds"]))


STEP = """
import time
from bench import registry
suite = registry.suites()[{!r}]
env = suite.make(suite.tasks[0], 0)
made = time.perf_counter()
env.reset()
env.step(env.action_space.sample())
print(time.perf_counter() - made)
"""


def start_up(suites: list[str], turns: int, say: Callable[[str], None]) -> dict[str, list[float]]:
    """Seconds of fresh processes in every turn: the command line, and the first step of each suite's first task."""
    found: dict[str, list[float]] = defaultdict(list)
    for turn in range(turns):
        say(f"start-up, {turn + 1} of {turns}")
        found["bench list"].append(_process([sys.executable, "-m", "bench", "list"])[0])
        for name in suites:
            seconds, printed = _process([sys.executable, "-c", STEP.format(name)])
            found[f"{name}: import, make, reset and first step"].append(seconds)
            found[f"{name}: of these reset and first step"].append(float(printed.split()[-1]))
    return dict(found)


def _process(command: list[str]) -> tuple[float, str]:
    """Seconds that a command takes, and what it prints."""
    begun = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"{shlex.join(command)}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    return time.perf_counter() - begun, done.stdout


def sections(
    methods: tuple[str, ...], tasks: tuple[str, ...], size: Size, folder: Path, say: Callable[[str], None]
) -> dict[str, Callable[[], Any]]:
    """What is measured, by the name it has in the JSON; of the suites, those of the tasks."""
    store = Store(folder)
    plan = make_plan(request(methods, tasks, (0,), size))
    firsts = list({cell.task: cell for cell in reversed(plan.cells)}.values())
    executed = {cell.task: cell.settings.policy.execute for cell in firsts}
    suites = list(dict.fromkeys(name.split("/")[0] for name in tasks))
    return {
        "environments": lambda: environments(suites, size.simulators, size.turns, size.seconds, say),
        "side_by_side": lambda: side_by_side(tasks, ENVIRONMENTS, executed, size.turns, size.seconds, say),
        "updates": lambda: updates(size.turns, size.seconds, say),
        "flows": lambda: flows(size.turns, size.seconds, say),
        "cells": lambda: [cell_shares(store, cell, size, say) for cell in plan.cells],
        "pretraining": lambda: [pretraining(store, cell, size, say) for cell in reversed(firsts)],
        "scaling": lambda: {t: scaling(store, methods[0], t, size, say) for t in tasks[-size.scaling_tasks :]},
        "start_up": lambda: start_up(suites, size.cell_turns, say),
    }


def measure(
    parts: Mapping[str, Callable[[], Any]], quick: bool, save: Callable[[dict[str, Any]], None],
    say: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """Everything, ready for JSON; saved after each section, with the reason where one failed."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {"machine": machine(), "quick": quick, "failed": {}}
    for name, part in parts.items():
        try:
            found[name] = json.loads(json.dumps(part(), default=dataclasses.asdict))
        except Exception as error:
            found["failed"][name] = (str(error).strip().splitlines() or [type(error).__name__])[0]
            say(f"{name} failed: {found['failed'][name]}")
        save(found)
    return found


def machine() -> dict[str, Any]:
    """What it was measured on."""
    name = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return {
        "date": time.strftime("%Y-%m-%d"), "cpu": name, "cores": psutil.cpu_count(), "commit": commit(),
        "versions": with_python(versions(LIBRARIES)),
    }  # fmt: skip


def tables(found: Mapping[str, Any]) -> list[Table]:
    """The sections that were measured as tables, median first."""
    makers: dict[str, tuple[str, Callable[[str, Any], Table]]] = {
        "environments": ("control steps per second of CPU time", _rates),
        "side_by_side": (f"control steps per second of wall time, {ENVIRONMENTS} environments on all cores", _rates),
        "updates": ("gradient steps per second of CPU time", _rates),
        "flows": ("the flow by compiled code and by torch, per second of CPU time", _rates),
        "cells": ("fine-tuning cells: decisions per second, and where the time goes", _shares),
        "pretraining": ("pretraining: gradient steps per second, and where the time goes", _shares),
        "scaling": ("decisions per second of 1 and of 2 workers, evaluation aside", _scaling),
        "start_up": ("seconds of a fresh process", _start_up),
    }
    return [make(title, found[name]) for name, (title, make) in makers.items() if name in found]


def _rates(title: str, section: Mapping[str, list[dict[str, Any]]]) -> Table:
    table = _table(title, "case", "way", "median", "quartiles", "× first", "quartiles")
    for name, rates in section.items():
        for r in rates:
            table.add_row(
                name, r["name"], f"{r['per_second']:,.0f}", f"{r['low']:,.0f} to {r['high']:,.0f}",
                f"{r['ratio']:.2f}", f"{r['ratio_low']:.2f} to {r['ratio_high']:.2f}",
            )  # fmt: skip
            name = ""
    return table


def _shares(title: str, section: list[dict[str, Any]]) -> Table:
    labels = list(dict.fromkeys(label for s in section for label in s["shares"]))
    table = _table(title, "case", "per second", "from, to", *labels)
    for s in section:
        spread = f"{s['low']:,.0f} to {s['high']:,.0f}" if s["low"] < s["high"] else ""
        shares = (f"{s['shares'].get(x, 0):.1%}" for x in labels)
        table.add_row(s["name"], f"{s['per_second']:,.0f}", spread, *shares)
    return table


def _scaling(title: str, section: Mapping[str, dict[str, float]]) -> Table:
    table = _table(title, "task", "1 worker", "2 workers", "ratio", "from, to", "a worker's peak memory")
    for task, s in section.items():
        spread = f"{s['ratio_low']:.2f} to {s['ratio_high']:.2f}" if s["ratio_low"] < s["ratio_high"] else ""
        rates = f"{s['1 worker']:,.0f}", f"{s['2 workers']:,.0f}", f"{s['ratio']:.2f}", spread
        table.add_row(task, *rates, f"{s['peak_memory_mb']:,.0f} MB")
    return table


def _start_up(title: str, section: Mapping[str, list[float]]) -> Table:
    table = _table(title, "what", "seconds", "from, to")
    for name, seconds in section.items():
        spread = f"{min(seconds):.3f} to {max(seconds):.3f}" if len(seconds) > 1 else ""
        table.add_row(name, f"{np.median(seconds):.3f}", spread)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.MARKDOWN)
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i == 0 else "right")
    return table


def markdown(found: Mapping[str, Any]) -> str:
    """The tables as a document, with the machine."""
    m = found["machine"]
    text = Console(file=io.StringIO(), width=WIDTH)
    text.print(f"Measured on {m['date']} on {m['cpu']}, {m['cores']} cores, torch {m['versions']['torch']}, "
               f"commit {m['commit']}.", soft_wrap=True, highlight=False)  # fmt: skip
    for table in tables(found):
        title, table.title = table.title, None
        text.print(f"\n### {str(title)[0].upper()}{str(title)[1:]}\n", soft_wrap=True)
        text.print(table)
    return "\n".join(line.rstrip() for line in text.file.getvalue().splitlines()) + "\n"  # type: ignore[attr-defined]


def run(methods: tuple[str, ...], tasks: tuple[str, ...], quick: bool, results: Path) -> tuple[Path, dict[str, str]]:
    """Measure, print, and write JSON and tables to `results`/perf: the JSON's path, and the sections that failed."""
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    begun = time.monotonic()

    def say(text: str) -> None:
        console.print(f"[{time.monotonic() - begun:4.0f} s] {text}", style="dim", highlight=False, markup=False)

    path = results / "perf" / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)

    def save(found: dict[str, Any]) -> None:
        write_json(path, found)
        write_atomic(path.with_suffix(".md"), lambda p: p.write_text(markdown(found)))

    with tempfile.TemporaryDirectory() as folder:
        found = measure(sections(methods, tasks, QUICK if quick else FULL, Path(folder), say), quick, save, say)
    for table in tables(found):
        console.print(table)
        console.print()
    return path, found["failed"]
