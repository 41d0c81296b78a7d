"""Stored start states of the fine-tuning distribution, in two halves that are never mixed: selection and report."""

from __future__ import annotations

import numpy as np

from bench import registry, seeding
from bench.evaluate import HALVES
from bench.plan import Unit
from bench.stages.common import Reporter, environment
from bench.store import Entry, Store, read_arrays, write_arrays
from bench.types import State

FILE = "starts.safetensors"
ROOT = 2_606  # root of the start states' seeds, the same for all methods and seeds


def run(store: Store, entry: Entry, unit: Unit, reporter: Reporter) -> None:
    """Draw and write `count` states per half."""
    task = registry.task(unit.spec["task"])
    env = environment(task.id, "evaluate", 0)
    stacked: dict[str, np.ndarray] = {}  # type: ignore[type-arg]
    for half in HALVES:
        states = []
        for i in range(unit.spec["count"]):
            env.reset(seed=seeding.child(ROOT, "starts", task.id, half, i) % 2**31)
            states.append(env.get_state())
            reporter.progress(i / unit.spec["count"], f"{half} states", None)
            reporter.check()
        stacked |= {f"{half}/{k}": np.stack([np.asarray(s[k]) for s in states]) for k in states[0]}
    write_arrays(entry.file(FILE), stacked)
    entry.finish(unit.spec, {"task": task.id, "states": unit.spec["count"]})


def load(entry: Entry) -> dict[str, list[State]]:
    """Half → states, checked against their digest."""
    entry.verify()
    arrays = read_arrays(entry.file(FILE))
    count = entry.meta()["states"]
    return {
        half: [{k.split("/", 1)[1]: v[i] for k, v in arrays.items() if k.startswith(f"{half}/")} for i in range(count)]
        for half in HALVES
    }
