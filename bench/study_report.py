"""What a study found: the re-test of its best settings, how sensitive the best one is, tables, figures and one page.

Everything reported comes from the re-test: fresh seeds, report states, every setting on the same ones. The study's own
values chose the settings, so they are too high; by how much is said.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import seeding, stats
from bench.store import Store, write_atomic, write_json
from bench.study_book import Book, mean_of, pretrainings, ranked
from bench.study_space import Parameter, Values, label, moves, settle, show, values_of
from bench.study_spec import REPORT, Instance, Spec, entry_of, measure, setting_of
from bench.study_trials import finished
from bench.types import InputError

Runs = Mapping[Instance, float]
Rows = list[list[str]]  # the first is the header


@dataclass(frozen=True)
class Gap:
    """A mean paired difference with its 95 % interval, which is NaN for fewer than two seeds."""

    value: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        if not self.pairs:
            return "no pair finished"
        return f"{self.value:+.3f}" + ("" if math.isnan(self.low) else f" [{self.low:+.3f}, {self.high:+.3f}]")


@dataclass(frozen=True)
class Setting:
    """A setting that was re-tested."""

    name: str  # "trial 7" or "default"
    values: Values
    study: float  # its value in the study; NaN if it was no complete trial
    runs: Runs  # instance → area on the report states; finished ones only

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.runs.values()))) if self.runs else math.nan

    @property
    def optimism(self) -> float:
        """What the study's value promised too much."""
        return self.study - self.mean


@dataclass(frozen=True)
class Move:
    """The best setting with one parameter moved."""

    parameter: Parameter
    before: Any
    after: Any
    values: Values


def gap(first: Runs, second: Runs, spec: Spec) -> Gap:
    """Mean of first − second over the instances both have, with a bootstrap over seeds within their tasks."""
    shared = sorted(set(first) & set(second))
    if not shared:
        return Gap(math.nan, math.nan, math.nan, 0)
    one, other = ({i: runs[i] for i in shared} for runs in (first, second))
    value = float(np.mean([one[i] - other[i] for i in shared]))
    try:
        rng = seeding.rng(spec.seed, "study", "gap")
        found = stats.paired(one, other, np.mean, rng, stats.Bootstrap(bounds=(-1.0, 1.0)))
    except InputError:  # one seed in a task has no interval
        return Gap(value, math.nan, math.nan, len(shared))
    if found.low == found.high:  # all differences are equal: few seeds that agree are no certainty
        return Gap(value, math.nan, math.nan, len(shared))
    return Gap(value, found.low, found.high, len(shared))


def candidates(spec: Spec, book: Book) -> list[tuple[str, Values, float]]:
    """(name, setting, study value): the best few, the best first, and the default at the end unless it is among them.

    The default's study value is known if it was a trial.
    """
    every = ranked(book.trials())
    best = [(f"trial {t.number}", values_of(t.params), float(t.value or 0.0)) for t in every]
    chosen = best[: spec.retests]
    if any(setting_of(v, spec.base) for _, v, _ in chosen):
        return [("default" if setting_of(v, spec.base) else n, v, x) for n, v, x in chosen]
    known = [x for _, v, x in best if setting_of(v, spec.base)]
    return [*chosen, ("default", {}, known[0] if known else math.nan)]


def runs_of(spec: Spec, store: Store, values: Values) -> dict[Instance, float]:
    """What a setting reached in the re-test, where it is finished."""
    found = {}
    for instance in spec.fresh:
        cell = spec.retest_cell(values, instance)
        entry = entry_of(store, cell)
        score = measure(entry, cell, REPORT) if entry.status() == "done" else math.nan
        if math.isfinite(score):
            found[instance] = score
    return found


def neighbours(spec: Spec, best: Values) -> list[Move]:
    """The best setting with one parameter moved at a time."""
    found = []
    for p in spec.space:
        if p.key in best:
            for value in moves(p, best[p.key]):
                found.append(Move(p, best[p.key], value, settle(best | {p.key: value}, spec.space, spec.base)))
    return found


def sensitivity_rows(found: Sequence[tuple[Move, Gap]]) -> Rows:
    """The sensitivity table: the largest loss first."""
    rows = [["parameter", "best", "moved to", "success lost", "pairs"]]
    for move, lost in sorted(found, key=lambda row: -row[1].value if row[1].pairs else math.inf):
        key, before, after = move.parameter.key, move.before, move.after
        rows.append([key, show(before) or "all", show(after) or "all", str(lost), str(lost.pairs)])
    return rows


def retest_rows(settings: Sequence[Setting], spec: Spec) -> Rows:
    """The re-test table."""
    base = next((s for s in settings if s.name == "default"), None)
    rows = [["setting", "study", "re-test", "optimism", "against the default", "runs"]]
    for s in settings:
        whole = len(s.runs) == len(spec.fresh)  # means over other runs than the rest's are no comparison
        against = ""
        if base is not None and s is not base:
            against = str(gap(s.runs, base.runs, spec)) if whole else "runs are missing"
        numbers = [_number(s.study), _number(s.mean), _number(s.optimism, sign=True) if whole else ""]
        name = s.name if not s.values or s.name == "default" else f"{s.name}: {label(s.values)}"
        rows.append([name, *numbers, against, f"{len(s.runs)} of {len(spec.fresh)}"])
    return rows


def _number(value: float, sign: bool = False) -> str:
    return "" if math.isnan(value) else f"{value:+.3f}" if sign else f"{value:.3f}"


def text(rows: Rows) -> str:
    """A table as aligned text."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def markdown(rows: Rows) -> str:
    """A table as Markdown."""
    safe = [[c.replace("|", "\\|") for c in row] for row in rows]
    lines = [safe[0], ["---"] * len(safe[0]), *safe[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def trial_rows(book: Book) -> Rows:
    """Every trial: state, value, instances, setting, error."""
    rows = [["trial", "state", "value", "instances", "setting", "error"]]
    for t in finished(book.trials()):
        error = str(t.user_attrs.get("error", "")).splitlines()
        rows.append([str(t.number), t.state.name.lower(), _number(mean_of(t)), str(len(t.intermediate_values)),
                     label(values_of(t.params)), error[-1] if error else ""])  # fmt: skip
    return rows


def importances(book: Book) -> dict[str, float]:
    """Parameter → share of what decides between good and other trials (conditional PED-ANOVA); largest first."""
    import warnings

    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return dict(optuna.importance.get_param_importances(book.study))
        except (ValueError, RuntimeError):  # too few complete trials
            return {}


@dataclass(frozen=True)
class Findings:
    """All that is reported of a study."""

    settings: tuple[Setting, ...]  # the best first
    sensitivity: tuple[tuple[Move, Gap], ...]

    @property
    def best(self) -> Setting | None:
        """The setting with the best study value: the re-test reports, it does not choose."""
        return self.settings[0] if self.settings else None


def verdict(spec: Spec, found: Findings) -> list[str]:
    """What to believe, in a few lines."""
    best = found.best
    if best is None or not best.runs:
        return ["no setting was re-tested"]
    lines = [f"best in the study: {best.name}, {label(best.values)}"]
    lines.append(
        f"re-test on {len(best.runs)} fresh runs: {best.mean:.3f}; the study said {best.study:.3f}: "
        f"{best.optimism:+.3f} more, for being chosen on it and for its seeds and start states"
    )
    base = next((s for s in found.settings if s.name == "default"), None)
    if base is not None and base is not best:
        against = gap(best.runs, base.runs, spec)
        clear = against.low > 0 or against.high < 0
        lines.append(f"against the default: {against}" + ("" if clear else "; not told apart from it"))
    return lines


def write(spec: Spec, store: Store, book: Book, folder: Path, found: Findings, command: Sequence[str]) -> Path:
    """Page, tables and figures in the study's folder; returns the page."""
    from bench import study_figures

    write_json(folder / "results.json", record(spec, book, found))
    figures = study_figures.write(spec, book, folder, importances(book))
    again, uses = pretrainings(book.trials())
    parts = [
        f"# Study {spec.name}",
        f"`{' '.join(command)}`",
        f"{spec.method} on {', '.join(spec.request.tasks)}, profile {spec.request.profile}; "
        f"{len(spec.instances)} instances a trial; {again} of {uses} pretrainings shared.",
        "\n".join(f"- {line}" for line in verdict(spec, found)),
        "## Re-test", "Area under the success curve on report states and fresh seeds; differences are paired.",
        markdown(retest_rows(found.settings, spec)),
        "## Sensitivity", sensitivity_note(found, spec), markdown(sensitivity_rows(found.sensitivity)),
        "## Space", markdown([["parameter", "range", "default"]] + [
            [p.key, p.describe(), show(spec.base[p.key]) or "all"] for p in spec.space]),
        "## Trials", "Area under the success curve on selection states.", markdown(trial_rows(book)),
        "## Figures", "\n\n".join(f"![{name}]({path.name})" for name, path in figures.items()),
    ]  # fmt: skip
    page = folder / "report.md"
    write_atomic(page, lambda p: p.write_text("\n\n".join(parts) + "\n"))
    return page


def sensitivity_note(found: Findings, spec: Spec) -> str:
    """What the sensitivity table is made of."""
    if not found.sensitivity:
        return "Not measured (`--sensitivity yes` measures it)."
    return (
        "Success lost when one parameter leaves its best value: for another choice, by a factor of 2 (log ranges) or "
        f"by a quarter of the range; each on the {len(spec.fresh)} re-test runs of the best setting, paired."
    )


def record(spec: Spec, book: Book, found: Findings) -> dict[str, Any]:
    """The findings as JSON; what is missing is null."""
    best = found.best
    rows = [
        {"parameter": m.parameter.key, "best": m.before, "moved_to": m.after, "lost": _json(g.value),
         "low": _json(g.low), "high": _json(g.high), "pairs": g.pairs}
        for m, g in found.sensitivity
    ]  # fmt: skip
    retest = [
        {"setting": s.name, "values": s.values, "study": _json(s.study), "retest": _json(s.mean),
         "optimism": _json(s.optimism), "runs": [[t, seed, v] for (t, seed), v in s.runs.items()]}
        for s in found.settings
    ]  # fmt: skip
    again, uses = pretrainings(book.trials())
    return {
        "name": spec.name, "identity": spec.identity(), "best": best.values if best else None, "retest": retest,
        "sensitivity": rows, "importances": importances(book), "pretrainings": {"shared": again, "used": uses},
        "trials": [dict(zip(trial_rows(book)[0], row, strict=True)) for row in trial_rows(book)[1:]],
    }  # fmt: skip


def _json(value: float) -> float | None:
    return value if math.isfinite(value) else None
