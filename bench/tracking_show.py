"""How far runs and studies are, in words: what `show` and `list` print."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from bench.plan import STAGES
from bench.stages.curves import last_line
from bench.store import Store, read_json
from bench.study_book import counted, ranked
from bench.study_space import label, values_of
from bench.tracking_studies import Source, of_folder, working
from bench.types import InputError


def cell_line(store: Store, cell: dict[str, Any]) -> str:
    """One cell: where it stands and the success of its latest point."""
    name = f"{cell['method']} on {cell['task']}, seed {cell['seed']}"
    for stage in STAGES:
        entry = store.entry(stage, cell["stages"][stage])
        status = entry.status()
        if status == "failed":
            return f"{name}: {stage} failed: {last_line(entry.failure()) or 'nothing was written down'}"
        if status != "done" and stage != "finetune":
            return f"{name}: {stage} {status}"
    points = entry.file("points.json")
    if not points.exists():
        return f"{name}: {stage} {status}"
    try:
        latest = json.loads(points.read_text())[-1]
        return f"{name}: {status}, success {latest['success_rate']:.2f} at {latest['control_steps']} control steps"
    except (ValueError, LookupError, TypeError):
        return f"{name}: {status}, {points} is damaged"


def command_of(folder: Path) -> str:
    """The command that a study was last begun or continued with, or words for it."""
    command = read_json(folder / "study.json").get("command")
    return shlex.join(map(str, command)) if command else "the same `python -m bench study` command"


def study_summary(folder: Path) -> str:
    """One line: how far a study is, and how it is continued."""
    try:
        source = of_folder(folder)
    except InputError as error:
        return f"{folder.name}: {error}"
    return f"{folder.name}: {_standing(source)}"


def _standing(source: Source) -> str:
    trials, state = source.trials(), source.state()
    ended = [t for t in counted(trials) if t.state.is_finished()]
    words = [f"{state}, {len(ended)} of {source.wanted} trials"]
    for kind, word in ((TrialState.PRUNED, "pruned"), (TrialState.FAIL, "failed")):
        count = sum(t.state == kind for t in ended)
        words += [f"{count} {word}"] if count else []
    best = ranked(trials)
    words += [f"best {best[0].value:.3f}"] if best else []
    goes_on = state in ("stopped", "pending", "failed")
    return ", ".join(words) + (f"; go on with: {command_of(source.folder)}" if goes_on else "")


def study_lines(folder: Path) -> list[str]:
    """A study and its trials, as `show` prints them."""
    source = of_folder(folder)
    shown = [f"study {source.name}: {_standing(source)}"]
    return shown + [f"  {_trial(t, len(source.instances))}" for t in _told(source.trials())]


def _told(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    return [t for t in trials if t.state != TrialState.WAITING and "repeats" not in t.user_attrs]


def _trial(trial: FrozenTrial, instances: int) -> str:
    """One trial: where it stands, its value, its setting."""
    state = trial.state.name.lower()
    if trial.state == TrialState.RUNNING:
        state = f"{'running' if working(trial) else 'stopped'}, {len(trial.intermediate_values)} of {instances}"
    value = f", {trial.value:.3f}" if trial.state == TrialState.COMPLETE and trial.value is not None else ""
    error = str(trial.user_attrs.get("error", "")).strip().splitlines()
    return f"trial {trial.number}: {state}{value}: {label(values_of(trial.params))}" + (
        f" ({error[-1]})" if error else ""
    )
