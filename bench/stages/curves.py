"""Stage 5 of 5: everything a run left on disk as a handful of tidy tables. Reads files, writes nothing.

What is gathered: episodes, training and σ of cells that are done; coverage of every cell whose coverage stage is done,
even if its fine-tuning is not; one row for every planned cell, whatever became of it. Files are compared with their
digests first; a cell with an altered file counts as failed, with the reason, and none of its numbers is used.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pandas as pd

from bench import store as schema
from bench.plan import STAGES, read_run
from bench.store import Entry, Store, read_table
from bench.types import InputError

_CELL: dict[str, str] = {"method": "str", "task": "str", "seed": "int64"}


@dataclass(frozen=True)
class Curves:
    """Tidy tables of a run, or of several as one; each but `cells` starts with the columns method, task, seed."""

    run: dict[str, Any]  # run.json, or what `join` makes of several
    cells: pd.DataFrame  # one row per planned cell: status, failure, costs, chosen σ
    episodes: pd.DataFrame  # one row per episode of an evaluation during fine-tuning
    coverage: pd.DataFrame  # one row per episode of the frozen policy before RL
    training: pd.DataFrame  # one row per logging interval of fine-tuning
    sigma: pd.DataFrame  # mean chosen σ by progress and decision number; only where σ is learned or scheduled


def stages(store: Store, cell: dict[str, Any]) -> dict[str, Entry]:
    """Stage → entry for the stages the cell has, in order."""
    return {name: store.entry(name, cell["stages"][name]) for name in STAGES if cell["stages"].get(name)}


def cell_status(entries: dict[str, Entry]) -> tuple[str, str]:
    """(status, name of the stage that failed or runs, or nothing): done, failed, running or pending."""
    if entries["finetune"].status() == "done":
        return "done", ""
    states = {name: entry.status() for name, entry in entries.items()}
    for wanted in ("failed", "running"):
        for name, state in states.items():
            if state == wanted:
                return wanted, name
    return "pending", ""


def last_line(traceback: str) -> str:
    """The line of a traceback that says what went wrong."""
    lines = [line.strip() for line in traceback.splitlines() if line.strip()]
    return lines[-1] if lines else ""


class _Reader:
    """Reads verified tables of entries, each entry verified once however many cells share it."""

    def __init__(self) -> None:
        self._verified: dict[Path, str] = {}

    def problem(self, entry: Entry) -> str:
        """Why the entry's files cannot be trusted, or nothing."""
        if entry.folder not in self._verified:
            try:
                entry.verify()
                self._verified[entry.folder] = ""
            except InputError as error:
                self._verified[entry.folder] = str(error)
        return self._verified[entry.folder]

    def table(self, entry: Entry, name: str, columns: dict[str, str], cell: dict[str, Any]) -> pd.DataFrame:
        frame = read_table(entry.file(name), columns)
        for position, column in enumerate(_CELL):
            if column in frame.columns:
                frame[column] = cell[column]
            else:
                frame.insert(position, column, cell[column])
        return frame


def join(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The records of several runs as one, with themselves as `runs`; a single one as it is.

    Methods may have their own settings. Raises InputError where one method has several on a task, or where methods had
    other demonstrations or were not evaluated alike.
    """
    if len(records) == 1:
        return records[0]
    cells: dict[tuple[str, str, int], dict[str, Any]] = {}
    seen: dict[str, tuple[dict[str, Any], Any]] = {}
    for record in records:
        for cell in record["cells"]:
            for place, values in _shared(cell).items():
                known, name = seen.setdefault(place, (values, record.get("run")))
                if differ := sorted(k for k in known.keys() & values.keys() if known[k] != values[k]):
                    named = ", ".join(differ[:4]) + ", ..." * (len(differ) > 4)
                    raise InputError(
                        f"runs {name} and {record.get('run')} differ in {named} of {place}; no report can show both"
                    )
            cells.setdefault((cell["method"], cell["task"], cell["seed"]), cell)
    profiles = dict.fromkeys(str(record.get("profile")) for record in records)
    return {
        "run": ",".join(str(record.get("run")) for record in records), "profile": ", ".join(profiles),
        "updated": max(float(record.get("updated") or 0) for record in records),
        "cells": list(cells.values()), "runs": list(records),
    }  # fmt: skip


def _shared(cell: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What all cells of a task, of a method on it, and of a seed of that must have in common."""
    config = {key: value for key, value in cell.get("config", {}).items() if not key.startswith("video.")}
    fair = {key: value for key, value in config.items() if key.startswith(("evaluation.", "coverage.", "simulation."))}
    stages, task = cell["stages"], cell["task"]
    method = f"{cell['method']} on {task}"
    return {
        task: fair | {"start states": stages["starts"], "demonstrations": stages["demos"]}, method: config,
        f"{method}, seed {cell['seed']}": {"results": stages["finetune"]},
    }  # fmt: skip


def gather(store: Store, *folders: Path) -> Curves:
    """All tables of the runs in `folders`.

    Raises InputError only if a run.json cannot be read, or if the runs contradict each other.
    """
    run = join([read_run(folder) for folder in folders])
    reader = _Reader()
    rows: list[dict[str, Any]] = []
    parts: dict[str, list[pd.DataFrame]] = {"episodes": [], "coverage": [], "training": [], "sigma": []}
    for cell in run["cells"]:
        row, tables = _cell(store, reader, cell)
        rows.append(row)
        for name, frame in tables.items():
            parts[name].append(frame)
    columns = {
        "episodes": schema.EPISODES, "coverage": _CELL | schema.COVERAGE,
        "training": _CELL | schema.TRAINING, "sigma": _CELL | schema.SIGMA,
    }  # fmt: skip
    joined = {name: _join(frames, columns[name]) for name, frames in parts.items()}
    return Curves(run=run, cells=_cells(rows), **joined)


def _join(frames: Iterable[pd.DataFrame], columns: dict[str, str]) -> pd.DataFrame:
    found = [frame for frame in frames if len(frame)]
    if not found:
        return schema.table([], columns)
    return pd.concat(found, ignore_index=True)[list(columns)].astype(cast(Any, columns))


def _cells(rows: list[dict[str, Any]]) -> pd.DataFrame:
    columns = {
        **_CELL, "status": "str", "stage": "str", "failure": "str", "traceback": "str", "pretrain_steps": "float64",
        "pretrain_seconds": "float64", "parameters": "float64", "selected_sigma": "float64",
        "selection_control_steps": "float64", "wall_seconds": "float64",
        "peak_memory_mb": "float64", "coverage_key": "str",
    }  # fmt: skip
    return schema.table(rows, columns)


def _cell(store: Store, reader: _Reader, cell: dict[str, Any]) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    entries = stages(store, cell)
    status, stage = cell_status(entries)
    traceback = entries[stage].failure() if status == "failed" else ""
    tables: dict[str, pd.DataFrame] = {}
    meta: dict[str, dict[str, Any]] = {}
    try:
        meta = {name: entry.meta() for name, entry in entries.items() if _readable(entry, reader)}
        if "coverage" in meta:
            tables["coverage"] = reader.table(entries["coverage"], "coverage.parquet", schema.COVERAGE, cell)
        if status == "done":
            for name, columns in _FINETUNE.items():
                tables[name] = reader.table(entries["finetune"], f"{name}.parquet", columns, cell)
    except InputError as error:
        status, stage, traceback, tables = "failed", "files", str(error), {}
    return _row(cell, status, stage, traceback, meta), tables


_FINETUNE = {"episodes": schema.EPISODES, "training": schema.TRAINING, "sigma": schema.SIGMA}


def _readable(entry: Entry, reader: _Reader) -> bool:
    """Whether the entry is done and one that is read here. Raises InputError if its files were altered."""
    if entry.stage not in ("pretrain", "coverage", "finetune") or entry.status() != "done":
        return False
    if problem := reader.problem(entry):
        raise InputError(problem)
    return True


def _row(
    cell: dict[str, Any], status: str, stage: str, traceback: str, meta: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    pretrain, coverage, finetune = (meta.get(name, {}) for name in ("pretrain", "coverage", "finetune"))
    none = float("nan")
    return {
        "method": cell["method"], "task": cell["task"], "seed": cell["seed"], "status": status, "stage": stage,
        "failure": last_line(traceback), "traceback": traceback,
        "pretrain_steps": pretrain.get("steps", none), "pretrain_seconds": pretrain.get("seconds", none),
        "parameters": pretrain.get("parameters", none),
        "selected_sigma": coverage.get("selected_sigma", finetune.get("selected_sigma", none)),
        "selection_control_steps": finetune.get("selection_control_steps", none),
        "wall_seconds": finetune.get("wall_seconds", none), "peak_memory_mb": finetune.get("peak_memory_mb", none),
        "coverage_key": cell["stages"].get("coverage") or "",
    }  # fmt: skip
