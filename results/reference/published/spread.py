"""Measures how far posterior_bc's ensemble spreads against how far the demonstrated actions lie around its mean.

`.venv/bin/python results/reference/published/spread.py RESULTS [TASK ...]` in the repository's root prints rows of
spread.csv, one for every task of which the results folder has a policy of bc or posterior_bc: root mean squares over
the demonstrated chunks, in deviations of the action. The ensemble is the quick profile's, fitted anew (a minute each).
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from pathlib import Path
from typing import Any

import kept
import torch

from bench import config, nets, registry, seeding
from bench.pretraining import PretrainConfig, Trainer
from bench.stages import demos
from bench.store import Store
from methods import posterior_bc

COLUMNS = "task", "context", "members", "seed", "spread", "residual"
CHUNKS = 20_000  # of which the residual is taken


class Keeping(Trainer):
    """Keeps what was fitted."""

    def fit(self, name: str, module: torch.nn.Module, *rest: Any) -> None:
        """As Trainer's."""
        super().fit(name, module, *rest)
        self.fitted = module


def measure(store: Store, spec: dict[str, Any]) -> tuple[Any, ...]:
    """A row for the demonstrations, context and seed of a pretrained policy."""
    task = registry.task(spec["task"])
    ensemble = posterior_bc.Config(**posterior_bc.Config.profiles["quick"])
    with tempfile.TemporaryDirectory() as folder:
        trainer = Keeping(
            task, demos.load(store.entry("demos", spec["inputs"]["demos"]), task),
            config.from_dict(nets.PolicyConfig, spec["policy"], "policy"),
            config.from_dict(PretrainConfig, spec["pretrain"], "pretrain"),
            seeding.child(spec["seed"], "policy", task.id), Path(folder),
        )  # fmt: skip
        spread = posterior_bc.posterior_std(ensemble, trainer)
    rows = torch.randperm(len(spread), generator=torch.Generator().manual_seed(0))[:CHUNKS]
    features = trainer.no_policy().conditions(trainer.s, trainer.c)[rows]
    actions = (trainer.a - trainer.a.mean(0)) / trainer.a.std(0).clamp_min(1e-3)
    with torch.inference_mode():
        mean = trainer.fitted(features.expand(ensemble.members, -1, -1)).mean(0).view(-1, *spread.shape[1:])
    residual = (actions[trainer.index[rows]] - mean)[trainer.weight[rows] > 0]
    found = [float(x.square().mean().sqrt()) for x in (spread[trainer.weight > 0], residual)]
    return task.id, spec["policy"]["context"], ensemble.members, spec["seed"], *(round(x, 3) for x in found)


def main() -> None:
    """Rows of the tasks named, or of all."""
    parser = argparse.ArgumentParser(description="Prints how far posterior_bc's ensemble spreads.")
    parser.add_argument("results", type=Path, help="results folder with policies of bc or posterior_bc")
    parser.add_argument("tasks", nargs="*", help="task ids; none: all there are")
    wanted = parser.parse_args()
    first: dict[str, dict[str, Any]] = {}
    for _, spec in kept.policies(wanted.results, "bc", "posterior_bc"):
        if not wanted.tasks or spec["task"] in wanted.tasks:
            first.setdefault(spec["task"], spec)
    if not first:
        parser.error(f"{wanted.results}: no policy of bc or posterior_bc for {', '.join(wanted.tasks) or 'any task'}")
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(COLUMNS)
    for spec in first.values():
        out.writerow(measure(Store(wanted.results), spec))


if __name__ == "__main__":
    main()
