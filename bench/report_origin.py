"""What is missing from a run and why, and what it takes to make it again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Any

import pandas as pd

from bench.page import Block, Code, Heading, Table, Text
from bench.report_ranking import Ranking, together
from bench.summary import TaskResult

DASH = "–"


def missing_line(cells: pd.DataFrame) -> list[Block]:
    """One loud line at the top if any cell has no result."""
    failed, waiting = (int(cells["status"].isin(s).sum()) for s in (["failed"], ["pending", "running"]))
    parts = [f"{n} {word}" for n, word in ((failed, "failed"), (waiting, "not finished")) if n]
    return [Text(f"Of the cells, {together(parts)}: see “What is missing” below.", loud=True)] if parts else []


def missing(cells: pd.DataFrame, tasks: Sequence[TaskResult], ranking: Ranking) -> list[Block]:
    """Every cell without a result and why, seeds that are not equal, and the statistics that were refused for it."""
    blocks: list[Block] = [Heading("What is missing")]
    unequal = _unequal(tasks)
    refused: dict[str, list[str]] = {}
    for s in ranking.standings:
        if s.refused:
            refused.setdefault(s.refused, []).append(s.method)
    lacking = cells[cells["status"] != "done"]
    if lacking.empty and not unequal and not refused:
        some = f"None: all {len(cells)} cells finished, and every method has the same seeds on every task."
        return [*blocks, Text(some if len(cells) else "The run has no cells.")]
    blocks += [Text(text) for text in unequal]
    blocks += [Text(f"Refused for {together(methods)}: {why}.") for why, methods in refused.items()]
    return [*blocks, *_cells(lacking)]


def _unequal(tasks: Sequence[TaskResult]) -> list[str]:
    said = []
    for task in tasks:
        seeds = {r.method: r.seeds for r in task.results}
        if len(set(map(frozenset, seeds.values()))) > 1:
            each = "; ".join(f"{m}: {', '.join(map(str, s)) or 'none'}" for m, s in sorted(seeds.items()))
            said.append(f"Seeds are not equal on {task.task}. {each}.")
    return said


def _cells(lacking: pd.DataFrame) -> list[Block]:
    if lacking.empty:
        return []
    rows = tuple(
        (c["task"], c["method"], str(c["seed"]), c["status"], c["stage"] or DASH, c["failure"] or DASH)
        for c in lacking.to_dict("records")
    )
    header = ("Task", "Method", "Seed", "Status", "Stage", "Last line of the traceback")
    blocks: list[Block] = [Table(header, rows, "missing")]
    for c in lacking[lacking["traceback"] != ""].to_dict("records"):
        blocks.append(Code(c["traceback"].rstrip(), f"Traceback of {c['method']} on {c['task']}, seed {c['seed']}"))
    return blocks


def origin(run: dict[str, Any]) -> list[Block]:
    """Commands, commit, versions and settings of a run, or of each of several that are shown as one."""
    runs = run.get("runs", [run])
    last = [str(word) for word in runs[-1].get("command", [])]
    place = last.index("--results") if "--results" in last else len(last)
    again = ["python", "-m", "bench", "report", "--run", str(run.get("run")), *last[place : place + 2]]
    lines, at = [], ""
    for each in runs:
        if (commit := str(each.get("commit") or "").rstrip("+")) not in ("", at):
            lines.append(f"git checkout {(at := commit)}")
        lines.append(shlex.join(map(str, each.get("command", []))))
    blocks: list[Block] = [Heading("To make this again"), Code("\n".join([*lines, shlex.join(again)]))]
    for commit in dict.fromkeys(str(each.get("commit") or "") for each in runs):
        if not commit:
            blocks.append(Text("The commit is unknown.", loud=True))
        elif commit.endswith("+"):
            blocks.append(Text(f"Commit {commit}: the code had changes that no commit holds.", loud=True))
    for versions in dict.fromkeys(map(_versions, runs)):
        of = [str(each.get("run")) for each in runs if _versions(each) == versions]
        blocks.append(Code(versions or "unknown", "Versions" + (f" of {together(of)}" if len(of) < len(runs) else "")))
    blocks.append(Heading("Settings that differ from the defaults", 3))
    rows = changed(run)
    if rows:
        blocks.append(Table(("Setting", "Default", "Here", "Where"), tuple(rows), "settings"))
    else:
        blocks.append(Text("None."))
    asked = "\n".join(json.dumps(each.get("experiment", {}), indent=1, sort_keys=True) for each in runs)
    return [*blocks, Code(asked, "What was asked for (run.json has the resolved configuration of every cell)")]


def _versions(run: dict[str, Any]) -> str:
    return "\n".join(f"{name}=={version}" for name, version in sorted(run.get("versions", {}).items()))


def changed(run: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """(setting, default, value, where) for whatever is not at the default, by the profile or by the user."""
    cells, known = run.get("cells", []), _defaults({c["method"] for c in run.get("cells", [])})
    every = list(dict.fromkeys(c["task"] for c in cells))
    places: dict[tuple[str, str], dict[tuple[str, str], None]] = {}
    having: dict[str, set[tuple[str, str]]] = {}
    for cell in cells:
        for key, value in cell.get("config", {}).items():
            place = cell["task"], cell["method"]
            having.setdefault(key, set()).add(place)
            if key not in known or _plain(known[key]) != _plain(value):
                places.setdefault((key, _plain(value)), {})[place] = None
    rows = []
    for (key, value), found in sorted(places.items()):
        groups: dict[str, list[str]] = {}  # tasks by the methods that are alone with this value
        for task in every:
            here = [method for place, method in found if place == task]
            alone = len(here) < sum(place == task for place, _ in having[key])
            if here:
                groups.setdefault(f" ({', '.join(here)})" if alone else "", []).append(task)
        where = [("every task" if tasks == every else ", ".join(tasks)) + who for who, tasks in groups.items()]
        rows.append((key, _plain(known[key]) if key in known else "not known here", value, "; ".join(where)))
    return rows


def _defaults(methods: set[str]) -> dict[str, Any]:
    """Dotted key → default of this version, of settings and of those methods that it has."""
    from bench import config, registry, settings  # here, as it imports all methods

    found = config.flat(config.as_dict(settings.Settings()))
    for name, module in registry.methods().items():
        if name in methods:
            found |= {f"{name}.{key}": value for key, value in config.as_dict(module.Config()).items()}
    return found


def _plain(value: Any) -> str:
    """As in run.json: tuples are lists there, and 1.0 may be 1."""
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    return "auto" if value is None else str(value)
