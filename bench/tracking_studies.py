"""Studies as they lie in the results folder, read without the command that made them: for sync, list and show."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.study import Study, load_study
from optuna.trial import FrozenTrial, TrialState

from bench import registry
from bench.settings import TUNING_SEEDS, settings_of
from bench.store import masked, read_json
from bench.study_book import Book, gone, open_storage, spent
from bench.study_spec import Instance, Spec
from bench.types import InputError


@dataclass(frozen=True)
class Source:
    """What is mirrored of a study: its folder, the study in its storage, and how many trials were asked for."""

    folder: Path
    study: Study
    wanted: int
    points: Mapping[str, int] = field(default_factory=dict)  # task → evaluation points planned after point 0

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
    return Source(book.folder, book.study, book.spec.trials, planned_points(book.spec))


def planned_points(spec: Spec) -> dict[str, int]:
    """Task → evaluation points that a trial's curve is to have after point 0."""
    return {t: settings_of(spec.request, registry.task(t)).evaluation.points for t in spec.request.tasks}


def storage_file(text: str) -> Path | None:
    """The file that a storage is: a journal or an SQLite database; None for a server."""
    if "://" not in text:
        return Path(text)
    scheme, _, rest = text.partition("://")
    name = rest.partition("?")[0].removeprefix("/")
    if scheme.partition("+")[0] != "sqlite" or name in ("", ":memory:") or name.startswith("file:"):
        return None
    return Path(name)


def absolute(text: str | None) -> str | None:
    """A storage so that it is found from every working folder."""
    path = None if text is None else storage_file(text)
    if text is None or path is None:
        return text
    scheme, mark, rest = text.rpartition(":///")
    query = rest.partition("?")[1:] if mark else ("", "")
    return f"{scheme}{mark}{path.resolve()}{''.join(query)}"


def of_folder(folder: Path) -> Source:
    """The source of a study by its folder alone. Raises InputError if its storage is not there."""
    record = read_json(folder / "study.json")
    storage = record.get("storage")
    file = folder / "journal.log" if storage is None else storage_file(storage)
    if file is not None and not file.exists():  # opening it would make an empty one
        where = f"no journal.log in {folder}" if storage is None else f"no file {file}, where its trials were"
        raise InputError(f"study {folder.name}: {where}; run its command again with its --storage")
    try:
        opened = load_study(study_name=record["name"], storage=open_storage(storage, folder))
    except KeyError:
        raise InputError(f"study {folder.name}: not in {masked(storage or str(file))}") from None
    except InputError as error:
        raise InputError(f"study {folder.name}: {masked(str(error))}") from None
    return Source(folder, opened, int(record["trials"]), record.get("points", {}))


def results(folder: Path) -> dict[str, Any]:
    """What the re-test found, or nothing yet."""
    path = folder / "results.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}
