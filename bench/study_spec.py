"""What a study is: its method, tasks, seeds, space and budget, the cells its trials need, and what it maximises.

The objective is the mean over instances (task, seed) of the area under the success curve over control steps, on the
selection states. Tuning seeds begin at 1,000,000 and those of the re-test at 2,000,000: neither are reporting seeds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench import config as cfg
from bench import registry, stats, summary
from bench.plan import STAGE_VERSIONS, Cell, Plan, make_plan
from bench.settings import TUNING_SEEDS, Request, settings_of
from bench.store import LIBRARIES, Entry, Store, versions
from bench.study_space import Parameter, PerTask, Values, plain, show
from bench.types import InputError

RETEST_SEEDS = 2_000_000
Instance = tuple[str, int]  # (task, seed)
SELECTION, REPORT = "selection_success_rate", "success_rate"  # in points.json


@dataclass(frozen=True)
class Spec:
    """One method's study. `request` has this method alone, and the user's seeds, from which both other kinds come."""

    name: str
    request: Request
    space: tuple[Parameter, ...]
    base: Mapping[str, Any]  # dotted key → value of every field without the study, `PerTask` where tasks differ
    trials: int
    seed: int = 0  # of the sampler
    grid: tuple[Values, ...] = ()  # all settings of a grid, or none: then the sampler chooses
    retests: int = 3  # best settings that are re-tested
    retest_seeds: int = 3
    sensitivity: str = "auto"  # "auto", "yes" or "no"

    @property
    def method(self) -> str:
        return self.request.methods[0]

    @property
    def instances(self) -> tuple[Instance, ...]:
        """(task, seed) in the order of a trial: every task once before the next seed."""
        return tuple((task, TUNING_SEEDS + seed) for seed in self.request.seeds for task in self.request.tasks)

    @property
    def fresh(self) -> tuple[Instance, ...]:
        """The instances of the re-test."""
        return tuple((t, RETEST_SEEDS + seed) for seed in range(self.retest_seeds) for t in self.request.tasks)

    def cell(self, values: Values, instance: Instance) -> Cell:
        """The cell of a trial: selection states as many as the profile has of either half, report states one."""
        task, seed = instance
        now = settings_of(self.request, registry.task(task)).evaluation
        many = max(now.states, now.selection_states)
        swap = {"evaluation.states": 1, "evaluation.selection_states": many, "coverage.states": 1}
        return self._plan(swap | values, task, seed)

    def retest_cell(self, values: Values, instance: Instance) -> Cell:
        """The cell of a re-test, as `run` would make it."""
        return self._plan(values, *instance)

    def refusal(self, values: Values) -> str:
        """Why a task's or the method's configuration does not take a setting, or nothing."""
        try:
            for task in self.request.tasks:
                self.retest_cell(values, (task, RETEST_SEEDS))
        except (InputError, ValueError) as error:
            return str(error)
        return ""

    def _plan(self, values: Values, task: str, seed: int) -> Cell:
        command = {**self.request.command, **values}
        wanted = replace(self.request, tasks=(task,), seeds=(seed,), command=command, words="--set or --grid")
        return make_plan(wanted).cells[0]

    def plan(self, settings: Sequence[Values]) -> Plan:
        """The re-test of several settings as one plan, the settings in turn."""
        return Plan(self.request, tuple(self.retest_cell(v, i) for v in settings for i in self.fresh))

    def identity(self) -> dict[str, str]:
        """What may not change when a study goes on: name of the thing → its value in one line."""
        request = self.request
        settings = cfg.flat({f"{layer}": dict(values) for layer, values in _layers(request).items()})
        return {
            "method": self.method, "tasks": ", ".join(request.tasks), "profile": request.profile,
            "seeds": show(request.seeds), "sampler seed": str(self.seed),
            "space": "; ".join(f"{p.key}: {p.describe()}" for p in self.space),
            "settings": ", ".join(f"{k}={show(v)}" for k, v in sorted(settings.items())) or "none",
            "versions": json.dumps({**STAGE_VERSIONS, **versions(LIBRARIES)}, sort_keys=True),
        }  # fmt: skip


def _layers(request: Request) -> dict[str, Any]:
    return {"all": {**request.overrides}, **{t: {**v} for t, v in request.task_overrides.items()},
            "set": {**request.command}}  # fmt: skip


def compare(wanted: Mapping[str, str], stored: Mapping[str, str], name: str) -> None:
    """Raises InputError that names what differs between a study in the storage and the one asked for."""
    for thing, value in wanted.items():
        if stored.get(thing) != value:
            raise InputError(
                f"study {name!r} is there with other {thing}: {stored.get(thing)!r}, not {value!r}; give another --name"
            )


def base_of(request: Request) -> dict[str, Any]:
    """Dotted key → value of every field of the request's one method: the common one of its tasks, or one per task."""
    cells = make_plan(replace(request, seeds=request.seeds[:1])).cells
    own = [cell.record()["config"] for cell in cells]
    return {
        key: first if all(config[key] == first for config in own) else PerTask(tuple(config[key] for config in own))
        for key, first in own[0].items()
    }


def curve_area(points: Sequence[Mapping[str, Any]], name: str, end: float) -> float:
    """Mean success from control step 0 to `end`; the last point's value holds to the end. NaN if a value is missing.

    A fixed range makes settings comparable whose episodes end early and which thus use fewer control steps.
    """
    steps = np.array([float(point["control_steps"]) for point in points])
    rates = np.array([math.nan if point.get(name) is None else float(point[name]) for point in points])
    kept = summary.latest(steps)
    x, y = steps[kept], rates[kept]
    if not len(x) or not np.isfinite(y).all():
        return math.nan
    if x[-1] < end:
        x, y = np.append(x, end), np.append(y, y[-1])
    return float(stats.area(x, y, end))


def measure(entry: Entry, cell: Cell, name: str) -> float:
    """The area of a finished cell, on one half of the start states. NaN if its points cannot be read."""
    try:
        points = json.loads(entry.file("points.json").read_text())
    except (OSError, ValueError):
        return math.nan
    settings = cell.settings
    return curve_area(points, name, settings.rl.decisions * settings.policy.execute)


def entry_of(store: Store, cell: Cell) -> Entry:
    """The folder of a cell's last stage, fine-tuning."""
    return store.entry(cell.units[-1].stage, cell.units[-1].key)


def key_of(cell: Cell, stage: str) -> str:
    """The key of one of a cell's stages."""
    return next(u.key for u in cell.units if u.stage == stage)


def write_toml(path: Path, spec: Spec, values: Values, header: Sequence[str]) -> None:
    """A file for `run --config` that gives this setting, with what the user had set, on the study's tasks."""
    from bench.store import write_atomic

    request = spec.request
    rest = {k: v for k, v in {**request.overrides, **request.command}.items() if k not in values}
    lines = [f"# {line}" for line in header]
    lines += [f"{k} = {_toml(v)}" for k, v in (rest | values).items()]
    lines += ["", "[run]", f"methods = {_toml([spec.method])}", f"tasks = {_toml(list(request.tasks))}"]
    lines += [f"profile = {_toml(request.profile)}"]
    for task, own in request.task_overrides.items():
        kept = {k: v for k, v in own.items() if k not in values and k not in request.command}
        lines += ["", f"[tasks.{_toml(task)}]", *(f"{k} = {_toml(v)}" for k, v in kept.items())] if kept else []
    write_atomic(path, lambda p: p.write_text("\n".join(lines) + "\n"))


def _toml(value: Any) -> str:
    if value is None:
        return '"auto"'
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def setting_of(values: Values, base: Mapping[str, Any]) -> bool:
    """Whether a setting is the default, on every task."""
    return all(plain(base[k]) == v for k, v in values.items())
