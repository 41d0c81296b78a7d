"""Measures how far z moves what a policy does: which actions an agent that steers z can choose between.

`.venv/bin/python results/reference/published/reach.py RESULTS SEED TASK ...` in the repository's root prints rows of
reach.csv, one for every policy of bc, posterior_bc and csp that the results folder has for them, σ of csp and bound of
z. At 1,000 demonstrated states, with their contexts and, where σ is above 0, one ε each, 16 z are drawn evenly within
the bound, each for the whole chunk, as the agent's first are: `reach` is the deviation over z of the chunk's mean
action, root mean square over states and action entries, `at_edge` the share of action entries at the edge of the
action space.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from typing import Any

import kept
import numpy as np

from bench import policies, registry, seeding
from bench.stages import demos
from bench.store import Store

COLUMNS = "task", "policy", "alpha", "sigma", "seed", "z_bound", "reach", "at_edge"
BOUNDS = 1.0, 1.5, 2.0, 2.8, 4.0, 6.0, 8.0
STATES, DRAWS = 1_000, 16


def measure(store: Store, folder: Path, spec: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Rows of a pretrained policy."""
    policy = policies.load(folder)
    task = registry.task(spec["task"]).split(policy.dims.context_keys)
    shown = demos.load(store.entry("demos", spec["inputs"]["demos"]), task)
    rng = seeding.rng(0, "reach", task.id)
    rows = np.repeat(rng.choice(len(shown.actions), STATES, replace=False), DRAWS)
    states, contexts = shown.vector(task.state_keys)[rows], shown.vector(task.context_keys)[rows]
    z = rng.uniform(-1, 1, (len(rows), 1, policy.dims.action)).repeat(policy.dims.chunk, 1)
    eps = rng.standard_normal((STATES, policy.dims.context)).repeat(DRAWS, 0)
    found = []
    for sigma in (0.0, 0.5, 1.0) if policy.takes_sigma else (0.0,):
        for bound in BOUNDS:
            inputs = states, contexts, z * bound, np.full(len(rows), sigma), eps
            chunks = policy.act(*(x.astype(np.float32) for x in inputs))
            means = chunks.mean(1).reshape(STATES, DRAWS, -1)
            reach = float(np.sqrt(means.var(1, ddof=1).mean()))
            name, alpha = spec["function"].split(".")[1], spec["config"].get("alpha", "")
            numbers = round(reach, 3), round(float((np.abs(chunks) >= 1).mean()), 3)
            found.append((task.id, name, alpha, sigma, spec["seed"], bound, *numbers))
    return found


def main() -> None:
    """Rows of the policies of a seed, for the tasks named."""
    parser = argparse.ArgumentParser(description="Prints how far z moves what pretrained policies do.")
    parser.add_argument("results", type=Path, help="results folder with the policies")
    parser.add_argument("seed", type=int, help="seed of the policies")
    parser.add_argument("tasks", nargs="+", help="task ids")
    wanted = parser.parse_args()
    rows: list[tuple[Any, ...]] = []
    for folder, spec in kept.policies(wanted.results, "bc", "posterior_bc", "csp"):
        if spec["seed"] == wanted.seed and spec["task"] in wanted.tasks:
            rows += measure(Store(wanted.results), folder, spec)
    if not rows:
        parser.error(f"{wanted.results}: no policy of seed {wanted.seed} for {', '.join(wanted.tasks)}")
    csv.writer(sys.stdout, lineterminator="\n").writerows([COLUMNS, *sorted(rows)])


if __name__ == "__main__":
    main()
