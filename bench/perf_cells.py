"""Where the time of a fine-tuning cell and of a pretraining goes, for `bench perf`.

A cell's shares are those of the profile's budget, put together from the cost of a round of decisions, of an evaluation
and of a checkpoint.
"""

from __future__ import annotations

import dataclasses
import importlib
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch

from bench import flow, policies, registry
from bench import pretraining as loop
from bench.plan import Cell as PlannedCell
from bench.settings import Request
from bench.stages import demos, finetune
from bench.stages.common import Reporter
from bench.store import Store
from bench.timing import Clock

SHARE_OF_DEMOS = 20  # a cell is timed with one in so many demonstrations


@dataclass(frozen=True)
class Size:
    """How long is measured."""

    turns: int  # of the variants of a comparison
    seconds: float  # of CPU time for each variant in a turn
    cell_turns: int  # of a cell, a pretraining and the start-up
    cell_seconds: float  # of decisions of a cell in a turn
    pretrain_steps: int  # in a turn
    scaling_decisions: int  # of each of the cells that 1 and 2 workers share
    scaling_tasks: int  # that this is measured on, the last ones
    scaling_turns: int
    simulators: int  # of each suite


FULL = Size(7, 0.6, cell_turns=3, cell_seconds=2.0, pretrain_steps=500, scaling_decisions=3000, scaling_tasks=100,
            scaling_turns=3, simulators=100)  # fmt: skip
QUICK = Size(3, 0.12, cell_turns=1, cell_seconds=1.2, pretrain_steps=250, scaling_decisions=800, scaling_tasks=1,
             scaling_turns=1, simulators=1)  # fmt: skip


@dataclass(frozen=True)
class Shares:
    """Where the time goes, in shares of the whole, and the speed."""

    name: str
    per_second: float  # decisions or gradient steps, the median over the turns
    low: float  # the slowest turn
    high: float  # the fastest
    shares: dict[str, float]  # of all turns


def combined(name: str, units: float, turns: Sequence[dict[str, float]]) -> Shares:
    """Of turns that each took so many seconds by label for the units."""
    totals = np.array([sum(seconds.values()) for seconds in turns])
    rates = units / totals
    shares = {label: sum(t.get(label, 0.0) for t in turns) / float(totals.sum()) for label in turns[0]}
    return Shares(name, float(np.median(rates)), float(rates.min()), float(rates.max()), shares)


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
    """Times rounds, an evaluation and a checkpoint of a cell in each turn; puts together its whole budget."""
    prepare(store, planned, say)
    say(f"{planned.name}: fine-tuning")
    unit = planned.units[-1]
    entry = store.entry(unit.stage, unit.key)
    entry.folder.mkdir(parents=True, exist_ok=True)
    cell = finetune.Cell(store, entry, unit, Reporter())
    while cell.counters.decisions < cell.config.random_decisions + cell.config.envs:
        cell.one_round()
    cell.counters.point = max(1, cell.counters.point)  # so that the agent is evaluated, not the policy before it
    turns = [_cell_turn(cell, size.cell_seconds) for _ in range(size.cell_turns)]
    return combined(planned.name, cell.config.decisions, turns)


def _cell_turn(cell: finetune.Cell, least: float) -> dict[str, float]:
    """Seconds of the whole budget by label, from at least so many of rounds."""
    config, clock, rounds = cell.config, Clock("harness"), 0
    with ExitStack() as patches:
        watch(clock, cell, patches)
        clock.start()
        end = time.perf_counter() + least
        while time.perf_counter() < end:
            cell.one_round()
            rounds += 1
        spent = clock.stop()
    seconds = {label: s * config.decisions / (rounds * config.envs) for label, s in spent.items()}
    for label, work in (("evaluation", cell.evaluate), ("harness", cell.save)):
        begun = time.perf_counter()
        work()
        seconds[label] = seconds.get(label, 0.0) + (time.perf_counter() - begun) * (cell.evaluation.points + 1)
    return seconds


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
    data = demos.load(store.entry("demos", unit.key), task)

    def trainer(name: str, steps: int) -> loop.Trainer:
        budget = dataclasses.replace(planned.settings.pretrain, steps=steps)
        return loop.Trainer(task, data, planned.settings.policy, budget, 0, store.root / name / task.id)

    trainer("first", 1).flow()  # loads compiled code
    turns = [_pretraining_turn(trainer(f"turn {i}", size.pretrain_steps)) for i in range(size.cell_turns)]
    return combined(planned.task, size.pretrain_steps, turns)


def _pretraining_turn(trainer: loop.Trainer) -> dict[str, float]:
    """Seconds of a training by label."""
    clock = Clock("preparation")
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
    return seconds
