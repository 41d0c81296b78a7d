"""Demonstrations: made by the suite's own demonstrator on this machine, once per task, checked before every use."""

from __future__ import annotations

import time

import numpy as np

from bench import registry, seeding
from bench.plan import Unit, simulators
from bench.stages.common import Reporter
from bench.store import Entry, Store, read_arrays, write_arrays
from bench.types import Demos, InputError, State, Task

FILE = "demos.safetensors"


def run(store: Store, entry: Entry, unit: Unit, reporter: Reporter) -> None:
    """Make and write the demonstrations."""
    task = registry.task(unit.spec["task"])
    begun = time.monotonic()
    rng = seeding.rng(unit.spec["config"]["seed"], "demos", task.id)

    def progress(share: float) -> None:
        reporter.progress(share, "demonstrations", None)
        reporter.check()

    demos = registry.suite_of(task).demos(task, unit.spec["count"], rng, progress)
    arrays: State = {f"observation/{k}": v for k, v in demos.observations.items()}
    arrays |= {"actions": demos.actions, "ends": demos.ends, "success": demos.success}
    write_arrays(entry.file(FILE), arrays)
    entry.finish(unit.spec, {
        "task": task.id, "transitions": len(demos.actions), "episodes": len(demos.ends),
        "success_rate": float(demos.success.mean()), "simulators": simulators(task),
        "seconds": time.monotonic() - begun,
    })  # fmt: skip


def load(entry: Entry, task: Task) -> Demos:
    """The demonstrations. Raises InputError if the file is altered, incomplete or of another simulator version."""
    entry.verify()
    made, now = entry.meta()["simulators"], simulators(task)
    for name in {*made, *now}:
        if made.get(name) != now.get(name):
            raise InputError(
                f"{entry.folder}: made with {name} {made.get(name)}, this is {now.get(name)}; remove it and run again"
            )
    arrays = read_arrays(entry.file(FILE))
    observations = {k.split("/", 1)[1]: v for k, v in arrays.items() if k.startswith("observation/")}
    demos = Demos(observations, arrays["actions"], arrays["ends"], arrays["success"])
    check(demos, task, str(entry.file(FILE)))
    return demos


def check(demos: Demos, task: Task, where: str) -> None:
    """Raises InputError naming the field that does not fit the task."""
    n = len(demos.actions)
    for key in (*task.state_keys, *task.context_keys):
        if key not in demos.observations:
            raise InputError(f"{where}: observation {key!r} is missing; {task.id} needs it")
        if len(demos.observations[key]) != n or not np.isfinite(demos.observations[key]).all():
            raise InputError(
                f"{where}: observation {key!r} has {len(demos.observations[key])} rows for {n} actions, or NaN"
            )
    if not n or not np.isfinite(demos.actions).all() or np.abs(demos.actions).max() > 1:
        raise InputError(f"{where}: actions are missing or outside [-1, 1]")
    if not len(demos.ends) or demos.ends[-1] != n or (np.diff(demos.ends, prepend=0) <= 0).any():
        raise InputError(f"{where}: ends must increase and finish at {n}")
