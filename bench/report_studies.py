"""Studies found in the results folder: their re-test and how sensitive the best setting is, for the report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import report_figures
from bench.figures import Style
from bench.page import Bitmap, Block, Heading, Image, Table, Text
from bench.store import read_json
from bench.types import InputError

DASH = "–"


@dataclass(frozen=True)
class Study:
    """What results.json of a study says, and its figures."""

    name: str
    folder: Path
    findings: dict[str, Any]
    problem: str = ""  # why it cannot be read


def find(root: Path) -> list[Study]:
    """Finished studies below the results folder, and those whose findings cannot be read; by name."""
    return [_study(path) for path in sorted((root / "study").glob("*/results.json"))]


def _study(path: Path) -> Study:
    try:
        findings = read_json(path)
        return Study(str(findings["name"]), path.parent, findings)
    except (InputError, KeyError, TypeError) as error:
        return Study(path.parent.name, path.parent, {}, str(error) if isinstance(error, InputError) else f"{path}: odd")


def blocks(studies: list[Study], style: Style, save: Callable[[str, Any, str], Image]) -> list[Block]:
    """A section on all studies; nothing if there are none. `save(name, figure, caption)` writes a figure."""
    if not studies:
        return []
    found: list[Block] = [Heading("Studies in the same results folder")]
    for study in studies:
        found += [Heading(study.name, 3), *_blocks(study, style, save)]
    return found


def _blocks(study: Study, style: Style, save: Callable[[str, Any, str], Image]) -> list[Block]:
    if study.problem:
        return [Text(f"Not readable: {study.problem}", loud=True)]
    best = study.findings.get("best")
    said = ", ".join(f"{k} = {_show(v)}" for k, v in best.items()) if best else "no setting was re-tested"
    found: list[Block] = [Text(f"Best in the study: {said or 'the default'}."), _retest(study)]
    rows = _moves(study)
    if rows:
        found.append(_sensitivity(study))
        figure = report_figures.sensitivity(rows, style)
        if figure is not None:
            caption = (
                f"{study.name}: area lost on report states and fresh seeds when one parameter leaves its best value."
            )
            found.append(save(f"study_{study.name}_sensitivity", figure, caption))
    else:
        found.append(Text("Its sensitivity was not measured."))
    for path in sorted(study.folder.glob("*.png")):
        found.append(Bitmap(f"study_{study.name}_{path.stem}", path.read_bytes(), f"{study.name}: {path.stem}"))
    return found


def _retest(study: Study) -> Table:
    header = ("Setting", "Value in the study", "Re-test", "Optimism", "Runs")
    rows = [
        (str(r["setting"]), _number(r["study"]), _number(r["retest"]), _number(r["optimism"]), str(len(r["runs"])))
        for r in study.findings.get("retest", [])
    ]
    return Table(header, tuple(rows), f"study_{study.name}_retest")


def _sensitivity(study: Study) -> Table:
    header = ("Parameter", "Best", "Moved to", "Success lost", "95 % interval", "Pairs")
    rows = [
        (r["parameter"], _show(r["best"]), _show(r["moved_to"]), _number(r["lost"]),
         DASH if r["low"] is None else f"{_number(r['low'])} to {_number(r['high'])}", str(r["pairs"]))
        for r in _sorted(study)
    ]  # fmt: skip
    return Table(header, tuple(rows), f"study_{study.name}_sensitivity")


def _sorted(study: Study) -> list[dict[str, Any]]:
    rows = study.findings.get("sensitivity", [])
    return sorted(rows, key=lambda r: -r["lost"] if r["lost"] is not None else np.inf)


def _moves(study: Study) -> list[tuple[str, float, float, float]]:
    """(move, loss, low, high), the largest loss first; NaN where there is none."""
    found = []
    for r in _sorted(study):
        lost, low, high = (np.nan if r[key] is None else float(r[key]) for key in ("lost", "low", "high"))
        found.append((f"{r['parameter']} → {_show(r['moved_to'])}", lost, low, high))
    return found


def _show(value: Any) -> str:
    if value is None:
        return "auto"
    if isinstance(value, float):
        return f"{value:.3g}"
    return ", ".join(map(str, value)) or "all" if isinstance(value, list | tuple) else str(value)


def _number(value: float | None) -> str:
    return DASH if value is None else f"{value:.3f}".replace("-", "−")
