"""Measures how far the goal moves what a policy of the shifted cube does.

`.venv/bin/python results/reference/published/goal.py RESULTS` in the repository's root prints rows of goal.csv, one for
every policy of bc, posterior_bc and csp that the results folder has for the task, σ of csp and distance of the goal
from the middle line, in decimetres: 0.4 lies where the demonstrations have goals, 2 beyond. At 1,000 demonstrated
states the goal is put on either side, all else equal, one z each: `moved` is the difference of the chunk's mean
sideways action, root mean square over states, in units of the action space. Where σ is above 0, ε is 0.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from typing import Any

import kept
import numpy as np
import numpy.typing as npt

from bench import policies, registry, seeding
from bench.stages import demos
from bench.store import Store

COLUMNS = "task", "policy", "raw", "seed", "sigma", "goal_y", "moved"
TASK, SIDEWAYS = "manipspace/cube-single-shifted", 1
STATES = 1_000


def measure(store: Store, folder: Path, spec: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Rows of a pretrained policy."""
    policy = policies.load(folder)
    task = registry.task(TASK).split(policy.dims.context_keys)
    shown = demos.load(store.entry("demos", spec["inputs"]["demos"]), task)
    rng = seeding.rng(0, "goal", TASK)
    rows = rng.choice(len(shown.actions), STATES, replace=False)
    states, contexts = shown.vector(task.state_keys)[rows], shown.vector(task.context_keys)[rows]
    z = rng.standard_normal((STATES, 1, policy.dims.action)).repeat(policy.dims.chunk, 1).astype(np.float32)

    def sideways(y: float, sigma: float) -> npt.NDArray[np.float32]:
        placed = contexts.copy()
        placed[:, SIDEWAYS] = y
        told = np.full(STATES, sigma, np.float32)
        chunks: npt.NDArray[np.float32] = policy.act(states, placed, z, told, np.zeros_like(contexts))
        mean: npt.NDArray[np.float32] = chunks[..., SIDEWAYS].mean(1)
        return mean

    found = []
    for sigma in (0.0, 0.25, 0.5, 1.0) if policy.takes_sigma else (0.0,):
        for y in (0.4, 2.0):
            moved = float(np.sqrt(np.square(sideways(y, sigma) - sideways(-y, sigma)).mean()))
            name, raw = spec["function"].split(".")[1], spec["config"].get("raw", "")
            found.append((TASK, name, raw, spec["seed"], sigma, y, round(moved, 3)))
    return found


def main() -> None:
    """Rows of the task's policies."""
    parser = argparse.ArgumentParser(description="Prints how far the goal moves what policies of the shifted cube do.")
    parser.add_argument("results", type=Path, help="results folder with the policies")
    wanted = parser.parse_args()
    rows: list[tuple[Any, ...]] = []
    for folder, spec in kept.policies(wanted.results, "bc", "posterior_bc", "csp"):
        if spec["task"] == TASK:
            rows += measure(Store(wanted.results), folder, spec)
    if not rows:
        parser.error(f"{wanted.results}: no policy for {TASK}")
    csv.writer(sys.stdout, lineterminator="\n").writerows([COLUMNS, *sorted(rows, key=str)])


if __name__ == "__main__":
    main()
