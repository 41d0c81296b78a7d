"""What a study found: the re-test of its best settings, how sensitive the best one is, tables, figures and one page.

Everything reported comes from the re-test: fresh seeds, report states, every setting on the same ones. The study's own
values chose the settings, so they are too high; by how much is said.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import seeding, stats, study_tables
from bench.page import Block, Code, Heading, Table, Text, html, markdown
from bench.store import Store, write_atomic, write_json
from bench.study_book import Book, mean_of, pretrainings, ranked
from bench.study_space import Parameter, Values, label, moves, settle, show, values_of
from bench.study_spec import REPORT, Instance, Spec, entry_of, measure, setting_of
from bench.study_trials import finished

Runs = Mapping[Instance, float]
Rows = list[list[str]]  # the first is the header


@dataclass(frozen=True)
class Gap:
    """A mean paired difference with its 95 % interval; all NaN unless every planned pair is there.

    The interval is NaN too for fewer than two seeds, and where all pairs agree: few that do are no certainty.
    """

    value: float
    low: float
    high: float
    pairs: int
    planned: int

    def __str__(self) -> str:
        return study_tables.difference(asdict(self))


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
    """Mean of first − second over all instances of the re-test, with a bootstrap over seeds within their tasks.

    It is refused where a run is missing: one that diverged is not missing by chance.
    """
    planned = spec.fresh
    pairs = sum(i in first and i in second for i in planned)
    if pairs < len(planned):
        return Gap(math.nan, math.nan, math.nan, pairs, len(planned))
    value = float(np.mean([first[i] - second[i] for i in planned]))
    if spec.retest_seeds < 2:
        return Gap(value, math.nan, math.nan, pairs, pairs)
    rng = seeding.rng(spec.seed, "study", "gap")
    found = stats.paired(first, second, np.mean, rng, stats.Bootstrap(bounds=(-1.0, 1.0)), planned)
    low, high = (found.low, found.high) if found.wide else (math.nan, math.nan)
    return Gap(value, low, high, pairs, pairs)


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
    return _rows(study_tables.sensitivity(_sensitivity(found)))


def retest_rows(settings: Sequence[Setting], spec: Spec) -> Rows:
    """The re-test table."""
    return _rows(study_tables.retest(_retest(settings, spec)))


def _rows(table: Table) -> Rows:
    return [list(table.header), *map(list, table.rows)]


def text(rows: Rows) -> str:
    """A table as aligned text."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def trial_rows(book: Book) -> Rows:
    """Every trial: state, value, instances, setting, error."""
    rows = [["trial", "state", "value", "instances", "setting", "error"]]
    for t in finished(book.trials()):
        error = str(t.user_attrs.get("error", "")).splitlines()
        measured = [study_tables.number(mean_of(t)), str(len(t.intermediate_values))]
        why = error[-1] if error else ""
        rows.append([str(t.number), t.state.name.lower(), *measured, label(values_of(t.params)), why])
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
    trials: int = 0  # that came to an end of their own

    @property
    def best(self) -> Setting | None:
        """The setting with the best study value: the re-test reports, it does not choose."""
        return self.settings[0] if self.settings else None


def default_of(settings: Sequence[Setting]) -> Setting | None:
    """The default among the re-tested settings."""
    return next((s for s in settings if s.name == "default"), None)


def verdict(spec: Spec, found: Findings) -> list[str]:
    """What to believe, in a few lines."""
    best = found.best
    if best is None:
        return ["no setting was re-tested"]
    lines = [f"best in the study: {best.name}, {label(best.values)}"]
    runs = f"{len(best.runs)} of {len(spec.fresh)} fresh runs"
    if not best.runs:
        lines.append(f"re-test: none of the {len(spec.fresh)} fresh runs is finished, so nothing is compared")
    elif len(best.runs) < len(spec.fresh):
        lines.append(f"re-test on {runs}: {best.mean:.3f}; the others are missing, so nothing is compared")
    else:
        lines.append(
            f"re-test on {runs}: {best.mean:.3f}; the study said {best.study:.3f}: "
            f"{best.optimism:+.3f} more, for being chosen on it and for its seeds and start states"
        )
    base = default_of(found.settings)
    if base is not None and base is not best:
        against = gap(best.runs, base.runs, spec)
        lines.append(f"against the default: {against}{_told(against)}")
    return lines


def _told(against: Gap) -> str:
    """What the difference to the default says of using the best setting."""
    if against.low > 0 or math.isnan(against.value):
        return ""
    if against.high < 0:
        return "; the best of the study is worse than the default: keep the default"
    worse = ", and below it in this re-test" if against.value < 0 else ""
    return f"; not told apart from it{worse}"


def write(spec: Spec, store: Store, book: Book, folder: Path, found: Findings, command: Sequence[str]) -> Path:
    """Pages (report.md and index.html), figures and findings in the study's folder; returns report.md.

    results.json comes last: whoever finds it takes the study for done, and the rest for complete.
    """
    from bench import figures, study_figures

    findings = record(spec, book, found)
    drawn = study_figures.draw(spec, book, findings["importances"])
    images = [figures.save(folder, name, figure, caption) for name, (figure, caption) in drawn.items()]
    blocks = [*_answer(spec, findings, command), *_details(spec, book, found), Heading("Figures"), *images]
    page = folder / "report.md"
    write_atomic(page, lambda p: p.write_text(markdown(blocks, figures="")))
    write_atomic(folder / "index.html", lambda p: p.write_text(html(blocks, f"Study {spec.name}")))
    write_json(folder / "results.json", findings)
    return page


def _answer(spec: Spec, findings: Mapping[str, Any], command: Sequence[str]) -> list[Block]:
    again, uses = findings["pretrainings"]["shared"], findings["pretrainings"]["used"]
    return [
        Heading(f"Study {spec.name}", 1), Code(shlex.join(command)),
        Text(f"{spec.method} on {', '.join(spec.request.tasks)}, profile {spec.request.profile}; "
             f"{len(spec.instances)} instances a trial; {again} of {uses} pretrainings shared."),
        *(Text(f"{line[0].upper()}{line[1:]}.") for line in findings["verdict"]),
        Heading("Re-test"), Text(study_tables.RETEST), study_tables.retest(findings["retest"]),
    ]  # fmt: skip


def _details(spec: Spec, book: Book, found: Findings) -> list[Block]:
    space = [(p.key, p.describe(), show(spec.base[p.key]) or "all") for p in spec.space]
    header, *trials = trial_rows(book)
    return [
        Heading("Sensitivity"), Text(sensitivity_note(found, spec)),
        *([study_tables.sensitivity(_sensitivity(found.sensitivity))] if found.sensitivity else []),
        Heading("Space"), Table(("Parameter", "Range", "Default"), tuple(space)),
        Heading("Trials"), Text("Area under the success curve on selection states."),
        Table(tuple(header), tuple(map(tuple, trials))),
    ]  # fmt: skip


def sensitivity_note(found: Findings, spec: Spec) -> str:
    """What the sensitivity table is made of."""
    if not found.sensitivity and found.best is not None and not found.best.values:
        return "Not measured: the best setting has no parameters of the space."
    if not found.sensitivity:
        return "Not measured (`--sensitivity yes` measures it)."
    return (
        "Success lost when one parameter leaves its best value: for another choice, by a factor of 2 (log ranges) or "
        f"by a quarter of the range; each on the {len(spec.fresh)} re-test runs of the best setting, paired."
    )


def record(spec: Spec, book: Book, found: Findings) -> dict[str, Any]:
    """The findings as JSON; what is missing is null."""
    best = found.best
    again, uses = pretrainings(book.trials())
    header, *trials = trial_rows(book)
    return {
        "name": spec.name, "identity": spec.identity(), "best": best.values if best else None,
        "verdict": verdict(spec, found), "retest": _retest(found.settings, spec),
        "sensitivity": _sensitivity(found.sensitivity), "importances": importances(book),
        "pretrainings": {"shared": again, "used": uses},
        "trials": [dict(zip(header, row, strict=True)) for row in trials],
    }  # fmt: skip


def _retest(settings: Sequence[Setting], spec: Spec) -> list[dict[str, Any]]:
    """A row per setting: `finished` of `planned` runs, and its paired difference to the default (null for itself)."""
    base, planned = default_of(settings), len(spec.fresh)
    rows = []
    for s in settings:
        against = None if base is None or s is base else gap(s.runs, base.runs, spec)
        rows.append({
            "setting": s.name, "values": s.values, "study": _json(s.study), "retest": _json(s.mean),
            "optimism": _json(s.optimism) if len(s.runs) == planned else None, "finished": len(s.runs),
            "planned": planned, "missing": [[t, seed] for t, seed in spec.fresh if (t, seed) not in s.runs],
            "runs": [[t, seed, v] for (t, seed), v in s.runs.items()],
            "against_default": against and _plain(against),
        })  # fmt: skip
    return rows


def _sensitivity(found: Sequence[tuple[Move, Gap]]) -> list[dict[str, Any]]:
    """A row per move of the best setting."""
    rows = []
    for move, lost in found:
        row = _plain(lost)
        row["lost"] = row.pop("value")
        rows.append({"parameter": move.parameter.key, "best": move.before, "moved_to": move.after, **row})
    return rows


def _plain(found: Gap) -> dict[str, Any]:
    return {key: _json(value) for key, value in asdict(found).items()}


def _json(value: float) -> float | None:
    return value if math.isfinite(value) else None
