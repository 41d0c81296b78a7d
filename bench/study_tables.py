"""The tables of a study, from its findings as results.json has them: for its own page, the terminal and a run's report.

Runs that were planned and are not there are counted, and what compares needs all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bench.page import Table
from bench.study_space import label, show

DASH = "–"
Row = Mapping[str, Any]
RETEST = (
    "Area under the success curve on report states and fresh seeds. Differences are paired by task and seed, with 95 % "
    "t intervals from a bootstrap over seeds within tasks; without one where a task has one seed or all pairs agree, "
    "and refused where a run is missing."
)


def number(value: float | None, sign: bool = False) -> str:
    """Three digits, or a dash."""
    if value is None or math.isnan(value):
        return DASH
    return (f"{value:+.3f}" if sign else f"{value:.3f}").replace("-", "−")


def difference(row: Row | None) -> str:
    """A paired difference with its interval, or why there is none; `row` is a `Gap` as a mapping."""
    if row is None:
        return DASH
    if row["pairs"] < row["planned"]:
        return f"refused: {row['pairs']} of {row['planned']} pairs"
    ends = "" if _none(row["low"]) else f" [{number(row['low'], True)},\u00a0{number(row['high'], True)}]"
    return number(row["value"], True) + ends


def _none(value: float | None) -> bool:
    return value is None or math.isnan(value)


def retest(rows: Sequence[Row]) -> Table:
    """What was re-tested, the best first: its value in the study and on fresh seeds, and that less the default's."""
    header = ("Setting", "Study", "Re-test", "Optimism", "Re-test minus the default's", "Runs")
    found = [
        (_setting(r), number(r["study"]), number(r["retest"]), number(r["optimism"], True),
         difference(r.get("against_default")), f"{len(r['runs'])} of {r['planned']}")
        for r in rows
    ]  # fmt: skip
    return Table(header, tuple(found))


def _setting(row: Row) -> str:
    name, values = str(row["setting"]), dict(sorted(row["values"].items()))  # the order in results.json
    return name if name == "default" or not values else f"{name}: {label(values)}"


def sensitivity(rows: Sequence[Row]) -> Table:
    """The best setting with one parameter moved, the largest loss first, what was refused last."""
    header = ("Parameter", "Best", "Moved to", "Success lost", "Pairs")
    found = [
        (r["parameter"], show(r["best"]) or "all", show(r["moved_to"]) or "all", difference({**r, "value": r["lost"]}),
         f"{r['pairs']} of {r['planned']}")
        for r in by_loss(rows)
    ]  # fmt: skip
    return Table(header, tuple(found))


def by_loss(rows: Sequence[Row]) -> list[Row]:
    """Rows of the sensitivity table in its order."""
    return sorted(rows, key=lambda r: math.inf if _none(r["lost"]) else -r["lost"])


def moves(rows: Sequence[Row]) -> list[tuple[str, float, float, float]]:
    """(move, loss, low, high) in the same order; NaN where there is none."""
    found = []
    for r in by_loss(rows):
        lost, low, high = (math.nan if r[key] is None else float(r[key]) for key in ("lost", "low", "high"))
        found.append((f"{r['parameter']} → {show(r['moved_to']) or 'all'}", lost, low, high))
    return found
