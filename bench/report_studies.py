"""Studies found in the results folder: their re-test and how sensitive the best setting is, for the report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import report_figures, study_tables
from bench.figures import Style, write_bytes
from bench.page import Block, Heading, Image, Text
from bench.store import read_json
from bench.study_space import label
from bench.types import InputError


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
        study_tables.retest(findings["retest"]), study_tables.sensitivity(findings["sensitivity"])
        return Study(str(findings["name"]), path.parent, findings)
    except InputError as error:
        return Study(path.parent.name, path.parent, {}, str(error))
    except (KeyError, TypeError, AttributeError) as error:
        why = f"{path}: not what this version writes ({error!r}); give the study's command again"
        return Study(path.parent.name, path.parent, {}, why)


def blocks(studies: list[Study], style: Style, out: Path, save: Callable[[str, Any, str], Image]) -> list[Block]:
    """A section on all studies; nothing if there are none. `save(name, figure, caption)` writes a figure to `out`."""
    if not studies:
        return []
    found: list[Block] = [Heading("Studies in the same results folder")]
    for study in studies:
        found += [Heading(study.name, 3), *_blocks(study, style, out, save)]
    return found


def _blocks(study: Study, style: Style, out: Path, save: Callable[[str, Any, str], Image]) -> list[Block]:
    if study.problem:
        return [Text(f"Not readable: {study.problem}", loud=True)]
    findings, name = study.findings, f"study_{study.name}"
    best = findings.get("best")
    said = "no setting was re-tested" if best is None else label(best)
    found: list[Block] = [Text(f"Best in the study: {said}.")]
    found += [Text(f"{line[0].upper()}{line[1:]}.") for line in findings.get("verdict", [])[1:]]
    found += [Text(study_tables.RETEST), replace(study_tables.retest(findings["retest"]), name=f"{name}_retest")]
    if rows := findings["sensitivity"]:
        found.append(replace(study_tables.sensitivity(rows), name=f"{name}_sensitivity"))
        figure = report_figures.sensitivity(study_tables.moves(rows), style)
        if figure is not None:
            said = "area lost on report states and fresh seeds when one parameter leaves its best value"
            found.append(save(f"{name}_sensitivity", figure, f"{study.name}: {said}; lines: 95 % t intervals."))
    else:
        found.append(Text("Its sensitivity was not measured."))
    return [*found, *_figures(study, out)]


def _figures(study: Study, out: Path) -> list[Block]:
    """The study's own figures, copied beside the others as PNG and SVG."""
    found: list[Block] = []
    for svg in sorted(study.folder.glob("*.svg")):
        for path in (svg, svg.with_suffix(".png")):
            if path.exists():
                write_bytes(out / f"study_{study.name}_{path.name}", path.read_bytes())
        caption = f"{study.name}: {svg.stem.replace('_', ' ')}"
        found.append(Image(f"study_{study.name}_{svg.stem}", svg.read_bytes(), caption))
    return found
