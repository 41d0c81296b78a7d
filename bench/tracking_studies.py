"""Studies as they lie in the results folder, read without the command that made them: for sync, list and show."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.study import Study, load_study
from optuna.trial import FrozenTrial, TrialState

from bench.store import read_json
from bench.study_book import Book, check_storage, gone, open_storage, spent
from bench.study_spec import TUNING_SEEDS, Instance
from bench.types import InputError


@dataclass(frozen=True)
class Source:
    """What is mirrored of a study: its folder, the study in its storage, and how many trials were asked for."""

    folder: Path
    study: Study
    wanted: int

    @property
    def name(self) -> str:
        return self.study.study_name

    @property
    def identity(self) -> dict[str, str]:
        """What the study is, in words: as the study compares it with what is asked for."""
        return dict(self.study.user_attrs.get("identity", {}))

    @property
    def tasks(self) -> list[str]:
        return self.identity.get("tasks", "").split(", ")

    @property
    def instances(self) -> list[Instance]:
        """(task, seed) in the order of a trial."""
        seeds = [TUNING_SEEDS + int(seed) for seed in self.identity.get("seeds", "0").split(",")]
        return [(task, seed) for seed in seeds for task in self.tasks]

    @property
    def space(self) -> dict[str, str]:
        """Parameter → its range in words."""
        pairs = (text.partition(": ") for text in self.identity.get("space", "").split("; ") if text)
        return {key: words for key, _, words in pairs}

    def trials(self) -> list[FrozenTrial]:
        """Every trial so far."""
        return self.study.get_trials(deepcopy=False)

    def state(self, alive: bool = False) -> str:
        """done, failed (no trial was complete), running, stopped or pending; `alive`: a process is at it."""
        trials = self.trials()
        if alive or any(working(t) for t in trials):
            return "running"
        if self.wanted > spent(trials) or not (self.folder / "results.json").exists():
            return "stopped" if trials else "pending"
        if any(t.state == TrialState.RUNNING for t in trials):
            return "stopped"
        return "done" if any(t.state == TrialState.COMPLETE for t in trials) else "failed"


def working(trial: FrozenTrial) -> bool:
    """Whether a trial runs in a process that is not known to be gone."""
    mark = trial.user_attrs.get("owner")
    return trial.state == TrialState.RUNNING and not (mark and gone(mark))


def of_book(book: Book) -> Source:
    """The source of a study that this process works at."""
    return Source(book.folder, book.study, book.spec.trials)


def of_folder(folder: Path) -> Source:
    """The source of a study by its folder alone. Raises InputError if its storage is not there."""
    record = read_json(folder / "study.json")
    storage = record.get("storage")
    if storage is None and not (folder / "journal.log").exists():
        raise InputError(f"study {folder.name}: no journal.log in {folder}; run its command again with its --storage")
    check_storage(storage)
    try:
        opened = load_study(study_name=record["name"], storage=open_storage(storage, folder))
    except KeyError:
        raise InputError(f"study {folder.name}: not in {storage or folder / 'journal.log'}") from None
    return Source(folder, opened, int(record["trials"]))


def results(folder: Path) -> dict[str, Any]:
    """What the re-test found, or nothing yet."""
    path = folder / "results.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}
