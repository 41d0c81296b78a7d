"""A run folder with made-up episodes, written through the store: for tests of what reads runs."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import seeding
from bench.store import COVERAGE, EPISODES, SIGMA, TRAINING, Entry, Store, table, write_json, write_table

STARTS, ATTEMPTS = 12, 8


@dataclass(frozen=True)
class Kind:
    """How the made-up method behaves: success before RL, at the end, and where it learns (share of the budget)."""

    before: float
    after: float
    middle: float = 0.5
    policy: str | None = "plain"  # key of the shared pretrained policy
    takes_sigma: bool = False
    learns_sigma: bool = False


KINDS = {
    "plain": Kind(0.2, 0.6, 0.5),
    "spread_targets": Kind(0.25, 0.75, 0.4, policy="spread"),
    "noised": Kind(0.2, 0.8, 0.35, policy="noised", takes_sigma=True),
    "noised_chosen": Kind(0.15, 0.95, 0.3, policy="noised", takes_sigma=True, learns_sigma=True),
    "scratch": Kind(0.02, 0.5, 0.7, policy=None),
}


class Fabricated:
    """A run folder under construction; stages are written one by one, so that half-finished runs can be had."""

    def __init__(
        self, root: Path, kinds: dict[str, Kind] | None = None, tasks: tuple[str, ...] = ("toy/reach",),
        seeds: tuple[int, ...] = (0, 1, 2), points: int = 11, name: str = "20261120-demo", starts: int = STARTS,
    ) -> None:  # fmt: skip
        self.store, self.kinds, self.points, self.starts = Store(root), kinds or KINDS, points, starts
        self.folder = root / "runs" / name
        self.folder.mkdir(parents=True)
        self.cells = [self._cell(m, t, s) for t in tasks for m in self.kinds for s in seeds]
        run = {
            "run": name, "created": time.time() - 500, "updated": time.time(), "profile": "smoke", "commit": "0" * 40,
            "command": ["python", "-m", "bench", "run", "--methods", "all"], "versions": {"python": "3.11.0"},
            "experiment": {"rl": {"decisions": 1000}, "eval": {"points": points}}, "cells": self.cells,
        }  # fmt: skip
        write_json(self.folder / "run.json", run)

    def _cell(self, method: str, task: str, seed: int) -> dict[str, Any]:
        flat = task.replace("/", "-")
        policy = self.kinds[method].policy
        shared = f"{flat}-{policy}-{seed}"
        keys = {
            "demos": f"{flat}-demos", "starts": f"{flat}-starts", "pretrain": shared if policy else None,
            "coverage": shared if policy else None, "finetune": f"{flat}-{method}-{seed}",
        }  # fmt: skip
        config = {"rl.decisions": 1000, f"{method}.schedule": "cosine"}
        return {"method": method, "task": task, "seed": seed, "config": config, "stages": keys}

    def entry(self, cell: dict[str, Any], stage: str) -> Entry:
        entry = self.store.entry(stage, cell["stages"][stage])
        entry.folder.mkdir(parents=True, exist_ok=True)
        return entry

    def prepare(self, cell: dict[str, Any]) -> None:
        """Every stage before fine-tuning, where not done."""
        for stage in ("demos", "starts", "pretrain", "coverage"):
            if cell["stages"][stage] is None or self.entry(cell, stage).status() == "done":
                continue
            entry = self.entry(cell, stage)
            meta: dict[str, Any] = {}
            if stage == "pretrain":
                meta = {"steps": 2000, "seconds": 12.5, "parameters": 500_000}
            if stage == "coverage":
                write_table(entry.file("coverage.parquet"), self.coverage(cell), COVERAGE)
                meta = {"selected_sigma": 0.25 if self.kinds[cell["method"]].takes_sigma else 0.0}
            entry.finish({}, meta)

    def coverage(self, cell: dict[str, Any]) -> Any:
        """Coverage episodes; with σ, single tries get worse and repeated tries better up to σ = 0.5."""
        kind, rng = self.kinds[cell["method"]], seeding.rng(cell["seed"], cell["stages"]["coverage"])
        rows = []
        for sigma in (0.0, 0.25, 0.5, 0.75, 1.0) if kind.takes_sigma else (0.0,):
            spread = 0.3 + sigma  # of a start state's chance around the mean; small at large σ
            for half in ("selection", "report"):
                level = kind.before * (1 - 0.6 * abs(sigma - 0.25))
                chance = np.clip(rng.beta(level / spread, (1 - level) / spread, self.starts), 0, 1)
                success = rng.random((self.starts, ATTEMPTS)) < chance[:, None]
                rows += [
                    {"half": half, "sigma": sigma, "start": i, "attempt": j, "success": success[i, j], "length": 50,
                     "spread": 0.1 + sigma}
                    for i in range(self.starts) for j in range(ATTEMPTS)
                ]  # fmt: skip
        return table(rows, COVERAGE)

    def axes(self, cell: dict[str, Any], point: int) -> dict[str, Any]:
        """The axes of an evaluation point; seeds differ a little, as episodes end early."""
        steps = point * 500 + (7 * cell["seed"] if point else 0)
        return {
            "control_steps": steps, "decisions": steps // 5, "gradient_steps": steps // 5, "policy_calls": steps // 5,
            "wall_seconds": steps / 50, "robot_hours": steps / 20 / 3600,
        }  # fmt: skip

    def curve(self, cell: dict[str, Any]) -> np.ndarray[Any, Any]:
        kind = self.kinds[cell["method"]]
        x = np.linspace(0, 1, self.points)
        rise = 1 / (1 + np.exp(-(x - kind.middle) / 0.08)) - 1 / (1 + np.exp(kind.middle / 0.08))
        shift = seeding.rng(cell["seed"], "shift", cell["method"]).normal(0, 0.05)
        return np.clip(kind.before + (kind.after - kind.before) * rise + shift, 0, 1)

    def episodes(self, cell: dict[str, Any]) -> list[dict[str, Any]]:
        rng = seeding.rng(cell["seed"], "episodes", cell["stages"]["finetune"])
        kind, rows = self.kinds[cell["method"]], []
        offset = seeding.rng(0, "starts").normal(0, 0.15, self.starts)
        for point, chance in enumerate(self.curve(cell)):
            common = self.axes(cell, point) | {
                "method": cell["method"], "task": cell["task"], "seed": cell["seed"], "point": point, "length": 60,
                "pretrain_steps": 2000 if kind.policy else 0, "pretrain_seconds": 12.5 if kind.policy else 0.0,
                "sigma": 0.3 if kind.learns_sigma else 0.0,
            }  # fmt: skip
            for half in ("selection", "report"):
                success = rng.random((self.starts, 2)) < np.clip(chance + offset, 0, 1)[:, None]
                rows += [
                    common | {"half": half, "start": i, "attempt": j, "success": bool(success[i, j])}
                    for i in range(self.starts)
                    for j in range(2)
                ]
        return rows

    def points_json(self, cell: dict[str, Any], count: int) -> list[dict[str, Any]]:
        frame = table(self.episodes(cell), EPISODES)
        rate = frame.groupby(["point", "half"])["success"].mean()
        kind = self.kinds[cell["method"]]
        return [
            {"point": p, **self.axes(cell, p), "success_rate": float(rate[p, "report"]),
             "selection_success_rate": float(rate[p, "selection"]), "sigma": 0.3 if kind.learns_sigma else None,
             "critic_loss": 0.1 / (p + 1) if p else None, "actor_loss": -0.5 if p else None,
             "alpha": 0.01 if p else None}
            for p in range(count)
        ]  # fmt: skip

    def partial(self, cell: dict[str, Any], count: int) -> None:
        """Fine-tuning that has come to `count` evaluation points and is not finished."""
        self.prepare(cell)
        write_json(self.entry(cell, "finetune").file("points.json"), self.points_json(cell, count))

    def finish(self, cell: dict[str, Any]) -> None:
        """Fine-tuning done, all files written."""
        self.partial(cell, self.points)
        entry = self.entry(cell, "finetune")
        write_table(entry.file("episodes.parquet"), table(self.episodes(cell), EPISODES), EPISODES)
        write_table(entry.file("training.parquet"), table(self._training(cell), TRAINING), TRAINING)
        write_table(entry.file("sigma.parquet"), table(self._sigma(cell), SIGMA), SIGMA)
        entry.finish({}, {
            "pretrain_seconds": 12.5, "wall_seconds": 100.0, "peak_memory_mb": 800.0, "selected_sigma": 0.25,
            "selection_control_steps": 1200 if self.kinds[cell["method"]].takes_sigma else 0,
        })  # fmt: skip

    def fail(self, cell: dict[str, Any], count: int = 3) -> None:
        self.partial(cell, count)
        text = (
            'Traceback (most recent call last):\n  File "x.py", line 1\nRuntimeError: simulator diverged <at> step 7\n'
        )
        self.entry(cell, "finetune").fail(text)

    def finish_all(self) -> None:
        for cell in self.cells:
            self.finish(cell)

    def reset(self, cell: dict[str, Any]) -> None:
        shutil.rmtree(self.entry(cell, "finetune").folder)

    def _training(self, cell: dict[str, Any]) -> list[dict[str, Any]]:
        return [
            {"decisions": 100 * i, "control_steps": 500 * i, "gradient_steps": 100 * i, "success": float(s),
             "episodes": 5, "sigma": 0.3, "critic_loss": 0.1, "actor_loss": -0.5, "alpha": 0.01, "q": 0.2,
             "entropy": -1.0}
            for i, s in enumerate(self.curve(cell))
        ]  # fmt: skip

    def _sigma(self, cell: dict[str, Any]) -> list[dict[str, Any]]:
        if not self.kinds[cell["method"]].learns_sigma:
            return []
        return [
            {
                "progress": (i + 0.5) / 10,
                "decision": d,
                "sigma": 0.2 + 0.3 * i / 10 + 0.3 * np.exp(-d / 4),
                "count": 20 - d,
            }
            for i in range(10)
            for d in range(12)
        ]


def cell_of(run: Fabricated, method: str, seed: int) -> dict[str, Any]:
    return next(c for c in run.cells if (c["method"], c["seed"]) == (method, seed))
