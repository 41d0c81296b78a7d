"""From a request to cells and the stages they need: methods × tasks × seeds × profile, resolved and keyed.

A stage's key is the hash of everything that goes into it, so cells that need the same thing share one stage: methods
with equal pretraining one policy, all methods one set of demonstrations and start states.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import config as cfg
from bench import nets, registry
from bench.settings import Request, Settings, check_request, config_of, settings_of
from bench.store import LIBRARIES, Store, commit, masked, read_json, versions, with_python, write_json
from bench.types import Dims, InputError, Task

STAGES = ("demos", "starts", "pretrain", "coverage", "finetune")
# Raised when a stage's code changes what it computes, so that older results are not taken for new ones.
STAGE_VERSIONS = {"demos": 2, "starts": 2, "pretrain": 2, "coverage": 2, "finetune": 3}
# Stages that no result depends on, with such a version: not part of a cell, and run when nothing else is ready.
EXTRAS = {"video": 1}


@dataclass(frozen=True)
class Unit:
    """One stage to run: a key, what it waits for, and a specification that a worker process can read."""

    stage: str
    key: str
    waits: tuple[tuple[str, str], ...]  # (stage, key)
    spec: dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One method on one task with one seed."""

    method: str
    task: str
    seed: int
    settings: Settings
    config: Any  # the method's Config
    units: tuple[Unit, ...]

    @property
    def name(self) -> str:
        return f"{self.method} on {self.task}, seed {self.seed}"

    def record(self) -> dict[str, Any]:
        """What run.json says of the cell."""
        values = cfg.flat(cfg.as_dict(self.settings)) | {
            f"{self.method}.{k}": v for k, v in cfg.as_dict(self.config).items()
        }
        stages: dict[str, str | None] = dict.fromkeys(STAGES)
        stages |= {u.stage: u.key for u in self.units}
        return {"method": self.method, "task": self.task, "seed": self.seed, "config": values, "stages": stages}


@dataclass(frozen=True)
class Plan:
    """All cells of a request; stages with equal keys are one."""

    request: Request
    cells: tuple[Cell, ...]
    videos: tuple[Unit, ...] = ()

    @property
    def units(self) -> dict[tuple[str, str], Unit]:
        """(stage, key) → unit, in the order they should run."""
        units = [u for cell in self.cells for u in cell.units]
        return {(u.stage, u.key): u for u in [*units, *self.videos]}

    @property
    def run_id(self) -> str:
        """Requests for equal cells are one run."""
        return f"{self.request.profile}-{cfg.digest(sorted({u.key for c in self.cells for u in c.units}))[:8]}"

    def records(self) -> list[dict[str, Any]]:
        """What run.json says of the cells."""
        records = [c.record() for c in self.cells]
        self._add_videos(records)
        return records

    def simulators(self) -> dict[str, str]:
        """Versions of what the suites of the cells require."""
        found: dict[str, str] = {}
        for name in dict.fromkeys(cell.task for cell in self.cells):
            found |= simulators(registry.task(name))
        return found

    def write(self, store: Store, left: int = 1) -> Path:
        """Write run.json; returns the run's folder.

        With no stage of a cell left, who made the run stays as it was recorded, and only keys of videos are added.
        """
        folder = store.root / "runs" / self.run_id
        folder.mkdir(parents=True, exist_ok=True)
        path, now = folder / "run.json", time.time()
        earlier: dict[str, Any] = {}
        with suppress(InputError):  # missing, or damaged and now written anew
            earlier = read_run(folder)
        if earlier and not left:
            if self._add_videos(earlier["cells"]):
                write_json(path, earlier)
            os.utime(path)  # the latest run is the one asked for last
            return folder
        record = {
            "run": self.run_id, "created": earlier.get("created", now), "updated": now,
            "profile": self.request.profile, "commit": commit(),
            "command": ["python", "-m", "bench", *map(masked, sys.argv[1:])],
            "versions": with_python(versions() | self.simulators()), "experiment": self.request.record(),
            "cells": self.records(),
        }  # fmt: skip
        write_json(path, record)
        return folder

    def _add_videos(self, cells: list[dict[str, Any]]) -> bool:
        """Give recorded cells the keys of their videos in this plan; whether any was another before."""
        videos, changed = {u.spec["inputs"]["finetune"]: u.key for u in self.videos}, False
        for stages in (cell["stages"] for cell in cells):
            key = videos.get(stages["finetune"], stages.get("video"))
            changed, stages["video"] = changed or key != stages.get("video"), key
        return changed

    def outdated(self, store: Store, page: Path) -> bool:
        """Whether a page of the run is missing, or older than one of the stages that are done."""
        paths = [store.entry(*key).file("meta.json") for key in self.units]
        newest = max((path.stat().st_mtime for path in paths if path.exists()), default=0.0)
        return not page.exists() or page.stat().st_mtime < newest


def read_run(folder: Path) -> dict[str, Any]:
    """The run.json of a run. Raises InputError if it is missing, broken or lacks what `Plan.write` put there."""
    path = folder / "run.json"
    record = read_json(path)
    cells, command = record.get("cells"), record.get("command")
    if not isinstance(command, list) or not isinstance(cells, list) or not all(map(_is_cell, cells)):
        raise InputError(f"{path}: damaged; the command that began the run writes it anew")
    return record


def _is_cell(record: Any) -> bool:
    """Whether this is what `Cell.record` returned once."""
    if not isinstance(record, dict) or not {"method", "task", "seed", "stages"} <= set(record):
        return False
    return isinstance(record["stages"], dict) and set(STAGES) <= set(record["stages"])


def make_plan(request: Request) -> Plan:
    """Resolve and check every cell before anything runs. Raises InputError for whatever does not fit."""
    check_request(request)
    cells = [
        _cell(request, method, task, seed)
        for seed in request.seeds for task in request.tasks for method in request.methods
    ]  # fmt: skip
    shown = [c for c in cells if c.seed in request.seeds[: c.settings.video.seeds]]
    return Plan(request, tuple(cells), tuple(_unit("video", c.units[-1:]) for c in shown))


def _cell(request: Request, method: str, task_id: str, seed: int) -> Cell:
    task, module = registry.task(task_id), registry.method(method)
    settings = settings_of(request, task)
    seen = nets.split(task, settings.policy)
    config = config_of(request, method, seen)
    settings = _with_options(request, method, seen, settings, config)
    source = registry.task(task.demos_of) if task.demos_of else task
    plain = cfg.as_dict(settings)
    demos = _unit("demos", (), task=source.id, version=source.version, config=plain["demos"],
                  count=settings.demos.count or source.demo_count, simulators=simulators(source))  # fmt: skip
    starts = _unit("starts", (), task=task.id, version=task.version, count=settings.evaluation.stored,
                   simulators=simulators(task))  # fmt: skip
    pretrain = _unit("pretrain", (demos,), task=source.id, seed=seed, function=module.pretrain.__module__,
                     config=cfg.part(config, "pretrain"), policy=plain["policy"],
                     pretrain=plain["pretrain"], libraries=versions(LIBRARIES))  # fmt: skip
    coverage = _unit("coverage", (pretrain, starts), task=task.id, seed=seed, coverage=plain["coverage"],
                     execute=settings.policy.execute, envs=settings.evaluation.envs,
                     stepping=settings.simulation.stepping)  # fmt: skip
    finetune = _unit("finetune", (coverage, pretrain, starts), task=task.id, seed=seed, method=method,
                     config=cfg.as_dict(config), rl=plain["rl"], evaluation=plain["evaluation"],
                     execute=settings.policy.execute, stepping=settings.simulation.stepping,
                     libraries=versions(LIBRARIES))  # fmt: skip
    return Cell(method, task_id, seed, settings, config, (demos, starts, pretrain, coverage, finetune))


def _with_options(request: Request, method: str, task: Task, settings: Settings, config: Any) -> Settings:
    """The settings with the engine's options that define the method. Raises InputError if the user wants others."""
    widths = dict.fromkeys(task.context_keys, 1)  # the true ones are known once there are demonstrations
    dims = Dims(1, len(widths), 1, settings.policy.chunk, widths, settings.policy.execute)
    agent = registry.methods()[method].agent(config, dims)
    wanted = {key for _, values in request.layers(task.id) for key in values}
    for name, value in agent.options.items():
        if f"rl.{name}" in wanted and getattr(settings.rl, name) != value:
            raise InputError(f"rl.{name}: {method} is defined by {value}; leave the key out, or the method")
    if settings.rl.demo_fraction > 0:
        agent.encode(np.zeros((1, settings.policy.chunk, 1), np.float32))
    return dataclasses.replace(settings, rl=dataclasses.replace(settings.rl, **agent.options))


def _unit(stage: str, waits: tuple[Unit, ...], **spec: Any) -> Unit:
    spec["inputs"] = {u.stage: u.key for u in waits}
    key = cfg.digest({"stage": stage, "version": (STAGE_VERSIONS | EXTRAS)[stage], **spec})
    return Unit(stage, key, tuple((u.stage, u.key) for u in waits), spec)


def turn(unit: Unit) -> tuple[int, int, int]:
    """Where a stage stands in the line of those that are ready, the smallest first.

    Seed by seed, so that whole comparisons come early; within a seed what others wait for comes first, so that the
    workers do not end with one of them alone on a long chain. Pictures come last of all: no number waits for them, and
    what they take does not enter a cell's peak memory.
    """
    if unit.stage in EXTRAS:
        return 1, 0, 0
    return 0, unit.spec.get("seed", -1), STAGES.index(unit.stage)


def simulators(task: Task) -> dict[str, str]:
    """Versions of what the task's suite requires."""
    return versions(registry.suite_of(task).requires)


def default_jobs() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))
