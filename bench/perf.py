"""`bench perf`: what the harness costs, each figure beside its baseline, measured in turns on one core.

Environment steps and gradient steps are per second of CPU time of one thread. A cell's shares are those of the
profile's budget, put together from the cost of a round of decisions, of an evaluation and of a checkpoint. A section
that fails is recorded, and the others are measured.
"""

from __future__ import annotations

import dataclasses
import importlib
import io
import itertools
import json
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from bench import flow, policies, registry
from bench import pretraining as loop
from bench.executor import Board, Executor
from bench.perf_environments import environments, side_by_side
from bench.perf_flow import flows
from bench.perf_updates import updates
from bench.plan import Cell as PlannedCell
from bench.plan import Plan, Request, make_plan
from bench.stages import demos, finetune
from bench.stages.common import Reporter
from bench.store import LIBRARIES, Store, commit, versions, with_python, write_atomic, write_json
from bench.timing import Clock
from bench.types import InputError

WIDTH = 150  # characters of the tables where there is no terminal
ENVIRONMENTS = 4  # side by side
SHARE_OF_DEMOS = 10  # a cell is timed with one in so many demonstrations


@dataclass(frozen=True)
class Size:
    """How long is measured."""

    turns: int  # of the variants of a comparison
    seconds: float  # of CPU time for each variant in a turn
    cell_seconds: float  # of decisions in a cell
    pretrain_steps: int
    scaling_decisions: int  # of each of the cells that 1 and 2 workers share
    scaling_tasks: int  # that this is measured on, the last ones
    scaling_turns: int
    simulators: int  # of each suite


FULL = Size(7, 0.6, cell_seconds=6.0, pretrain_steps=1500, scaling_decisions=3000, scaling_tasks=100, scaling_turns=3,
            simulators=100)  # fmt: skip
QUICK = Size(3, 0.12, cell_seconds=1.5, pretrain_steps=400, scaling_decisions=800, scaling_tasks=1, scaling_turns=1,
             simulators=1)  # fmt: skip


@dataclass(frozen=True)
class Shares:
    """Where the time goes, in shares of the whole, and the speed."""

    name: str
    per_second: float  # decisions or gradient steps
    shares: dict[str, float]


def prepare(store: Store, planned: PlannedCell, say: Callable[[str], None]) -> None:
    """Run, in this process, what a cell needs before fine-tuning."""
    for unit in planned.units[:-1]:
        entry = store.entry(unit.stage, unit.key)
        if entry.status() != "done":
            say(f"{planned.name}: {unit.stage}")
            entry.folder.mkdir(parents=True, exist_ok=True)
            importlib.import_module(f"bench.stages.{unit.stage}").run(store, entry, unit, Reporter())


def request(methods: tuple[str, ...], tasks: tuple[str, ...], seeds: tuple[int, ...], size: Size) -> Request:
    """The quick profile with few demonstrations, little pretraining, and learning from the start."""
    small = {"pretrain.steps": 20, "coverage.states": 1, "coverage.selection_states": 1, "coverage.attempts": 1,
             "coverage.sigmas": (0.0,)}  # fmt: skip
    demos = {t: {"demos.count": registry.task(t).demo_count // SHARE_OF_DEMOS} for t in tasks}
    return Request(methods, tasks, seeds, "quick", small, demos)


def cell_shares(store: Store, planned: PlannedCell, size: Size, say: Callable[[str], None]) -> Shares:
    """Times the rounds, one evaluation and one checkpoint of a cell; puts together its whole budget."""
    prepare(store, planned, say)
    say(f"{planned.name}: fine-tuning")
    unit = planned.units[-1]
    entry = store.entry(unit.stage, unit.key)
    entry.folder.mkdir(parents=True, exist_ok=True)
    cell = finetune.Cell(store, entry, unit, Reporter())
    config, evaluation = cell.config, cell.evaluation
    while cell.counters.decisions < config.random_decisions + config.envs:
        cell.one_round()
    clock, rounds = Clock("harness"), 0
    with ExitStack() as patches:
        watch(clock, cell, patches)
        clock.start()
        end = time.perf_counter() + size.cell_seconds
        while time.perf_counter() < end:
            cell.one_round()
            rounds += 1
        spent = clock.stop()
    seconds = {label: s * config.decisions / (rounds * config.envs) for label, s in spent.items()}
    cell.counters.point = max(1, cell.counters.point)  # so that the agent is evaluated, not the policy before it
    for label, work in (("evaluation", cell.evaluate), ("harness", cell.save)):
        begun = time.perf_counter()
        work()
        seconds[label] = seconds.get(label, 0.0) + (time.perf_counter() - begun) * (evaluation.points + 1)
    total = sum(seconds.values())
    shares = {label: s / total for label, s in seconds.items()}
    return Shares(planned.name, config.decisions / total, shares)


def watch(clock: Clock, cell: finetune.Cell, patches: ExitStack) -> None:
    """Put the clock on the parts of a cell; what is left of a round is the harness's own."""
    for env in cell.steered.envs:
        for method in ("step_chunk" if hasattr(env, "step_chunk") else "step", "reset"):
            patches.enter_context(clock.watch(env, method, "simulation"))
    for owner, method, label in (
        (cell.policy, "act", "policy"), (cell.policy, "features", "policy"), (cell.engine, "sample", "policy"),
        (cell.engine, "learn_from_buffer", "update"),
    ):  # fmt: skip
        patches.enter_context(clock.watch(owner, method, label))


def pretraining(store: Store, planned: PlannedCell, size: Size, say: Callable[[str], None]) -> Shares:
    """Gradient steps per second of plain cloning, and the shares of forward, backward, optimiser and the rest."""
    say(f"{planned.task}: pretraining")
    unit = next(u for u in planned.units if u.stage == "demos")
    task = registry.task(unit.spec["task"])
    config = dataclasses.replace(planned.settings.pretrain, steps=size.pretrain_steps)
    clock = Clock("preparation")
    data = demos.load(store.entry("demos", unit.key), task)
    first, trainer = (
        loop.Trainer(task, data, planned.settings.policy, budget, 0, store.root / name / task.id)
        for name, budget in (("first", dataclasses.replace(config, steps=1)), ("timed", config))
    )
    first.flow()  # loads compiled code
    with ExitStack() as patches:
        for owner, method, label in (
            (flow, "samples", "forward"), (flow.Descent, "forward", "forward"), (flow.Descent, "backward", "backward"),
            (flow.Descent, "step", "optimiser"), (policies.FlowPolicy, "loss", "forward"),
            (torch.Tensor, "backward", "backward"), (torch.optim.AdamW, "step", "optimiser"),
            (loop, "release", "optimiser"), (loop, "checkpoint", "checkpoint"), (policies, "build", "set-up"),
            (flow.Descent, "__init__", "set-up"),
        ):  # fmt: skip
            patches.enter_context(clock.watch(owner, method, label))
        clock.start()
        trainer.flow()
        seconds = clock.stop()
    seconds.pop("set-up")  # a few hundredths of a second, once
    saving, training = seconds.pop("checkpoint"), sum(seconds.values())
    each = saving / (1 + training // loop.CHECKPOINT_SECONDS)  # by the clock, and one at the end, short as this may be
    seconds["preparation"] += each * training / loop.CHECKPOINT_SECONDS
    total = sum(seconds.values())
    return Shares(planned.task, size.pretrain_steps / total, {k: s / total for k, s in seconds.items()})


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


def start_up(suites: list[str], say: Callable[[str], None]) -> dict[str, float]:
    """Seconds of fresh processes: the command line, and the first step of each suite's first task."""
    say("start-up")
    found = {"bench list": _seconds([sys.executable, "-m", "bench", "list"])}
    for name in suites:
        code = (
            f"from bench import registry; s = registry.suites()[{name!r}]; e = s.make(s.tasks[0], 0); e.reset();"
            " e.step(e.action_space.sample())"
        )
        found[f"{name}: import, make, reset and first step"] = _seconds([sys.executable, "-c", code])
    return found


def _seconds(command: list[str]) -> float:
    begun = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise InputError(f"{shlex.join(command)}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    return time.perf_counter() - begun


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
        "start_up": lambda: start_up(suites, say),
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
    table = _table(title, "case", "per second", *labels)
    for s in section:
        table.add_row(s["name"], f"{s['per_second']:,.0f}", *(f"{s['shares'].get(x, 0):.1%}" for x in labels))
    return table


def _scaling(title: str, section: Mapping[str, dict[str, float]]) -> Table:
    table = _table(title, "task", "1 worker", "2 workers", "ratio", "from, to", "a worker's peak memory")
    for task, s in section.items():
        spread = f"{s['ratio_low']:.2f} to {s['ratio_high']:.2f}" if s["ratio_low"] < s["ratio_high"] else ""
        rates = f"{s['1 worker']:,.0f}", f"{s['2 workers']:,.0f}", f"{s['ratio']:.2f}", spread
        table.add_row(task, *rates, f"{s['peak_memory_mb']:,.0f} MB")
    return table


def _start_up(title: str, section: Mapping[str, float]) -> Table:
    table = _table(title, "what", "seconds")
    for name, seconds in section.items():
        table.add_row(name, f"{seconds:.1f}")
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
