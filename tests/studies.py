"""Studies whose cells are made up in this process, for tests of what asks for them and what reads them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import cli, study
from bench.plan import Unit
from bench.store import Store, write_json
from bench.study_book import Book
from bench.study_spec import Spec
from bench.study_trials import Trials, View

ROOT = Path(__file__).parent.parent
TINY = [
    "--tasks", "toy/reach", "--profile", "smoke", "--no-tracking", "--jobs", "1", "--set", "rl.decisions=60",
    "--set", "pretrain.steps=10", "--set", "coverage.states=1", "--set", "demos.count=4",
]  # fmt: skip
SEARCH = ["--method", "csp", "--space", "schedule"]
Score = Callable[[dict[str, Any]], float | None]


def arguments(*words: str) -> argparse.Namespace:
    return cli.parser().parse_args(["study", *TINY, *words])


def specs(*words: str) -> list[Spec]:
    args = arguments(*words)
    return study.specs_of(args, cli.request_of(args))


def spec_of(*words: str) -> Spec:
    return specs(*words)[0]


class Made(Trials):
    """Trials whose cells are not run but made up: `score(spec of the fine-tuning)` is the success at every point."""

    score: Score = staticmethod(lambda spec: 0.5)
    ran: list[str]

    def _start(self) -> None:
        self.ran = getattr(self, "ran", [])

    def _step(self) -> bool:
        if self.stopping:
            return False
        self._look()
        unit = self._next()
        if unit is not None:
            self._make(unit)
        return bool(self.running)

    def _make(self, unit: Unit) -> None:
        entry, key = self.store.entry(unit.stage, unit.key), (unit.stage, unit.key)
        entry.folder.mkdir(parents=True, exist_ok=True)
        if unit.stage == "finetune":
            self.ran.append(unit.key)
            try:
                value = self.score(unit.spec)
            except RuntimeError as error:
                entry.fail(str(error))
                self.board.set(key, "failed", str(error))
                return
            write_json(entry.file("points.json"), [  # type: ignore[arg-type]
                {"control_steps": 120 * i, "wall_seconds": float(i), "selection_success_rate": value,
                 "success_rate": 0.0} for i in range(3)
            ])  # fmt: skip
        entry.finish(unit.spec, {})
        self.board.set(key, "done")


def made(
    spec: Spec, root: Path, score: Score, lines: list[str] | None = None, storage: str | None = None
) -> tuple[Book, Made]:
    """Run a study with made-up cells."""
    folder = root / "study" / spec.name
    folder.mkdir(parents=True, exist_ok=True)
    book, view = Book(spec, folder, storage), View(spec.name)
    view.say = (lines if lines is not None else []).append
    trials = Made(Store(root), book, 1, view)
    trials.score = score  # type: ignore[method-assign]
    trials.run()
    return book, trials


def by_start(spec: dict[str, Any]) -> float:
    """Best without σ, the worse the more."""
    return 0.9 - 0.8 * (spec["config"]["start"] or 0.0)
