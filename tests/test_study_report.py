"""What a study reports: re-test, optimism, sensitivity, heat map, the best setting as a file, and MLflow."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex
from mlflow import MlflowClient
from optuna.trial import TrialState
from studies import SEARCH, by_start, made, spec_of

from bench import (
    cli,
    figures,
    report_studies,
    study,
    study_book,
    study_figures,
    study_report,
    study_space,
    study_spec,
    study_tables,
    study_tracking,
    tracking_studies,
)
from bench.figures import Style
from bench.page import INK, LINE, PAPER, Image, Table
from bench.plan import make_plan
from bench.store import Store, read_json, write_json
from bench.study_report import Findings, Move, Setting
from bench.study_space import Parameter
from bench.study_spec import RETEST_SEEDS, Spec

# What is reported


def test_where_sensitivity_moves_a_parameter() -> None:
    number = Parameter("m.x", "float", 0.0, 1.0, limits=(0.0, 1.0))
    assert study_space.moves(number, 0.5) == [0.25, 0.75] and study_space.moves(number, 0.9) == [0.65, 1.0]
    assert study_space.moves(number, 1.0) == [0.75]
    assert study_space.moves(replace(number, auto=True), 0.5) == [0.25, 0.75, None]
    assert study_space.moves(replace(number, auto=True), None) == [0.25, 0.75]
    assert study_space.moves(Parameter("m.x", "float", 0.01, 1.0, True), 0.1) == [0.05, 0.2]
    assert study_space.moves(Parameter("m.x", "int", 1, 9, True), 3) == [2, 6]
    words = Parameter("m.x", "choice", choices=("a", "b", "c"))
    assert study_space.moves(words, "b") == ["a", "c"]
    assert study_space.moves(replace(words, choices=(8, 2, 4)), 4) == [2, 8]
    assert study_space.moves(replace(words, choices=(True, False)), True) == [False]


def test_neighbours_keep_what_still_counts() -> None:
    spec = spec_of(*SEARCH)
    best = {"csp.schedule": "linear", "csp.start": 0.5, "csp.stop": 0.1, "csp.length": 0.3}
    found = {(m.parameter.key, m.after): m.values for m in study_report.neighbours(spec, best)}
    assert found["csp.schedule", "constant"] == {"csp.schedule": "constant", "csp.start": 0.5}
    assert found["csp.schedule", "success"] == {k: v for k, v in best.items() if k != "csp.length"} | {
        "csp.schedule": "success"
    }
    constant = study_report.neighbours(spec, {"csp.schedule": "constant", "csp.start": None})
    linear = next(m for m in constant if m.after == "linear")
    assert linear.values == {"csp.schedule": "linear", "csp.start": None, "csp.stop": 0.0, "csp.length": 0.5}


def fresh(spec: Spec, *values: float) -> dict[tuple[str, int], float]:
    """The runs of a re-test; fewer values than seeds leave the last ones missing."""
    return dict(zip(spec.fresh, values, strict=False))


def test_sensitivity_of_known_numbers() -> None:
    """Pairs that all but agree leave little doubt; unpaired noise of ±0.3 between seeds must not matter."""
    spec = spec_of(*SEARCH, "--seeds", "1", "--retest-seeds", "4")
    best = fresh(spec, 0.8, 0.2, 0.8, 0.2)
    worse = {k: v - lost for (k, v), lost in zip(best.items(), (0.19, 0.2, 0.2, 0.21), strict=True)}
    lost = study_report.gap(best, worse, spec)
    assert lost.value == pytest.approx(0.2) and 0.18 < lost.low < lost.high < 0.22 and lost.pairs == lost.planned == 4
    mixed = {k: v - 0.1 * i for i, (k, v) in enumerate(best.items())}  # 0, 0.1, 0.2, 0.3
    wide = study_report.gap(best, mixed, spec)
    assert wide.value == pytest.approx(0.15) and wide.low < 0.1 < 0.2 < wide.high
    alike = study_report.gap(best, {k: v - 0.2 for k, v in best.items()}, spec)
    assert str(alike) == "+0.200"  # four seeds that agree, but for rounding, say nothing of how far others would differ
    p = spec.space[0]
    rows = study_report.sensitivity_rows([
        (Move(p, "constant", "linear", {}), wide), (Move(p, "constant", "cosine", {}), lost),
        (Move(p, "constant", "success", {}), study_report.gap(best, {}, spec)),
    ])  # fmt: skip
    assert [row[2] for row in rows] == ["Moved to", "cosine", "linear", "success"]
    assert rows[1][3].startswith("+0.200 [+0.18") and rows[3][3:] == ["refused: 0 of 4 pairs", "0 of 4"]


def test_missing_runs_of_a_retest_are_counted_and_nothing_is_compared() -> None:
    """The run that is missing may be missing because it diverged."""
    spec = spec_of(*SEARCH, "--seeds", "1", "--retest-seeds", "3")
    base = Setting("default", {}, 0.4, fresh(spec, 0.3, 0.4, 0.5))
    best = Setting("trial 7", {"csp.start": 0.5}, 0.9, fresh(spec, 0.8, 0.9))
    found = study_report.gap(best.runs, base.runs, spec)
    assert math.isnan(found.value) and math.isnan(found.low) and (found.pairs, found.planned) == (2, 3)
    assert str(found) == "refused: 2 of 3 pairs"
    rows = study_report.retest_rows([best, base], spec)
    assert rows[1][3:] == ["–", "refused: 2 of 3 pairs", "2 of 3"] and rows[2][5] == "3 of 3"
    said = study_report.verdict(spec, Findings((best, base), ()))
    assert "re-test on 2 of 3 fresh runs: 0.850; the others are missing" in said[1] and "promised" not in said[1]
    assert said[2] == "against the default: refused: 2 of 3 pairs"
    row, other = study_report._retest([best, base], spec)
    assert row["missing"] == [["toy/reach", RETEST_SEEDS + 2]] and (row["finished"], row["planned"]) == (2, 3)
    assert row["optimism"] is None and row["against_default"] == {
        "value": None, "low": None, "high": None, "pairs": 2, "planned": 3
    }  # fmt: skip
    assert other["against_default"] is None and other["missing"] == []
    single = spec_of(*SEARCH, "--seeds", "1", "--retest-seeds", "1")
    assert str(study_report.gap(fresh(single, 0.5), fresh(single, 0.25), single)) == "+0.250"


def test_a_retest_without_a_finished_run_is_no_missing_retest() -> None:
    spec = spec_of(*SEARCH, "--retest-seeds", "3")
    base, best = Setting("default", {}, 0.4, {}), Setting("trial 7", {"csp.start": 0.5}, 0.9, {})
    said = study_report.verdict(spec, Findings((best, base), ()))
    assert said[0] == "best in the study: trial 7, csp.start=0.5"
    assert said[1] == "re-test: none of the 3 fresh runs is finished, so nothing is compared"
    assert study_report.verdict(spec, Findings((), ())) == ["no setting was re-tested"]


def test_why_sensitivity_was_not_measured() -> None:
    spec = spec_of(*SEARCH)
    moved, still = Setting("trial 7", {"csp.start": 0.5}, 0.9, {}), Setting("default", {}, 0.4, {})
    assert "--sensitivity yes" in study_report.sensitivity_note(Findings((moved, still), ()), spec)
    note = study_report.sensitivity_note(Findings((still,), ()), spec)
    assert note == "Not measured: the best setting has no parameters of the space."


def test_methods_are_compared_with_their_runs_and_trials() -> None:
    """A mean over some of the runs is not taken for one over all."""
    spec = spec_of(*SEARCH, "--retest-seeds", "3", "--trials", "9")
    base = Setting("default", {}, 0.4, fresh(spec, 0.4, 0.4, 0.4))
    part = Setting("trial 7", {"csp.start": 0.5}, 0.9, fresh(spec, 0.6, 0.8))
    whole, none = replace(part, runs=fresh(spec, 0.6, 0.7, 0.8)), replace(part, runs={})
    rows = study.compare_rows([(spec, Findings((one, base), (), 7)) for one in (part, whole, none)])[1:]
    assert rows[0][:6] == ["csp", "7 of 9", "0.400 (3 of 3)", "0.700 (2 of 3)", "refused: 2 of 3 pairs", "–"]
    assert rows[1][3] == "0.700 (3 of 3)" and rows[1][4].startswith("+0.300 [") and rows[1][5] == "+0.200"
    assert rows[2][3] == "– (0 of 3)" and "nan" not in str(rows)
    assert study.compare_rows([(spec, Findings((base,), (), 9))])[1][4] == "–", "the default is best"


def test_optimism_is_the_study_minus_the_retest() -> None:
    spec = spec_of(*SEARCH)
    base = Setting("default", {}, 0.4, fresh(spec, 0.4, 0.4, 0.4))
    best = Setting("trial 7", {"csp.start": 0.5}, 0.9, fresh(spec, 0.59, 0.6, 0.61))
    rows = study_report.retest_rows([best, base], spec)
    assert rows[1][:4] == ["trial 7: csp.start=0.5", "0.900", "0.600", "+0.300"]
    assert rows[1][4].startswith("+0.200 [+0.17") and rows[2][4] == "–"
    text = " ".join(study_report.verdict(spec, Findings((best, base), ())))
    assert "+0.300 more, for being chosen" in text and "not told apart" not in text and "worse" not in text


@pytest.mark.parametrize(
    ("reached", "said"),
    [
        ((0.4, 0.4, 0.4), "; not told apart from it"),
        ((0.1, 0.5, 0.4), "; not told apart from it, and below it in this re-test"),
        ((0.2, 0.21, 0.19), "; the best of the study is worse than the default: keep the default"),
    ],
)
def test_a_best_setting_that_is_no_better_is_said_to_be(reached: tuple[float, ...], said: str) -> None:
    spec = spec_of(*SEARCH)
    base = Setting("default", {}, 0.4, fresh(spec, 0.4, 0.4, 0.4))
    best = Setting("trial 7", {"csp.start": 0.5}, 0.9, fresh(spec, *reached))
    assert study_report.verdict(spec, Findings((best, base), ()))[2].endswith(said)


def test_pages_of_a_study_have_their_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """report.md beside them, index.html with them inside; what a run's report says of a study is made from the same."""

    def before_results(folder: Path, content: Any) -> None:
        done = {p.name for p in folder.parent.iterdir()}
        assert {"index.html", "report.md", "history.svg"} <= done, "results.json says that the rest is there"
        write_json(folder, content)

    monkeypatch.setattr(study_report, "write_json", before_results)
    spec = spec_of(*SEARCH, "--seeds", "1", "--trials", "8", "--name", "x")
    book, _ = made(spec, tmp_path, by_start)
    settings = tuple(
        Setting(name, values, study, fresh(spec, *(study - 0.1 * i for i in range(3))))
        for name, values, study in study_report.candidates(spec, book)
    )
    moved = [(m, study_report.gap(settings[0].runs, settings[-1].runs, spec))
             for m in study_report.neighbours(spec, settings[0].values)]  # fmt: skip
    found = Findings(settings, tuple(moved))
    page = study_report.write(spec, Store(tmp_path), book, book.folder, found, ["bench", "study", "--name", "a b"])
    text, whole = page.read_text(), page.with_name("index.html").read_text()
    named = set(re.findall(r"\]\(([^)]+)\)", text))
    assert {"history.png", "slice.png", "contour.png", "noise_schedule.png"} <= named
    assert named == {p.name for p in page.parent.glob("*.png")}
    assert {p.stem for p in page.parent.glob("*.svg")} == {p.stem for p in page.parent.glob("*.png")}
    assert whole.count("<svg") == len(named) and "src=" not in whole and "bench study --name 'a b'" in text
    results = read_json(page.with_name("results.json"))
    assert results["retest"][0]["planned"] == 3
    assert results["retest"][-1]["against_default"]["pairs"] == 3 and results["verdict"][0].startswith("best in")
    (tmp_path / "figures").mkdir()
    (page.parent / "mine.svg").write_bytes((page.parent / "history.svg").read_bytes())  # without a PNG
    blocks = report_studies.blocks(report_studies.find(tmp_path), Style(()), tmp_path / "figures",
                                   partial(figures.save, tmp_path / "figures"))  # fmt: skip
    tables = [b.rows for b in blocks if isinstance(b, Table)]
    assert tables == [
        study_tables.retest(results["retest"]).rows,
        study_tables.sensitivity(results["sensitivity"]).rows,
    ]
    assert [list(row) for row in tables[0]] == study_report.retest_rows(settings, spec)[1:]
    shown = {b.name for b in blocks if isinstance(b, Image)}
    assert shown == {p.stem for p in (tmp_path / "figures").glob("*.svg")}
    shown.remove("study_x_mine")
    assert shown == {p.stem for p in (tmp_path / "figures").glob("*.png")}
    assert {f"study_x_{name.removesuffix('.png')}" for name in named} == shown - {"study_x_sensitivity"}


def test_white_on_dark_cells_stays_white_on_dark_paper(tmp_path: Path) -> None:
    """The page puts its own paper in the place of plain white."""
    spec = spec_of("--method", "csp", "--grid", "csp.schedule=constant,linear", "--grid", "csp.start=0.25,0.75",
                   "--seeds", "1")  # fmt: skip
    book, _ = made(spec, tmp_path, by_start)
    figure = study_figures.heat(spec, book.trials(), next(p for p in spec.space if p.axis == "level"))
    assert figure is not None
    colours = {to_hex(t.get_color()) for t in figure.axes[0].texts}
    assert len(colours) == 2 and not colours & {INK, LINE, PAPER}


def test_candidates_are_the_best_and_the_default(tmp_path: Path) -> None:
    spec = spec_of("--method", "csp", "--space", "csp.start", "--seeds", "1", "--trials", "10", "--best", "2")
    book, _ = made(spec, tmp_path, lambda cell: 1.0 - by_start(cell))
    found = study_report.candidates(spec, book)
    assert [n for n, _, _ in found][2] == "default" and found[0][2] > found[1][2] > found[2][2] == pytest.approx(0.1)
    book, _ = made(replace(spec, name="y"), tmp_path / "y", by_start)
    assert study_report.candidates(spec, book)[0][0] == "default"


def test_noise_and_schedule_are_counted(tmp_path: Path) -> None:
    spec = spec_of("--method", "csp", "--grid", "csp.schedule=constant,linear", "--grid", "csp.start=0.25,0.75",
                   "--seeds", "1")  # fmt: skip
    book, _ = made(spec, tmp_path, by_start)
    level = next(p for p in spec.space if p.axis == "level")
    rows, columns, sums, counts = study_figures.heat_table(spec, book.trials(), level)
    assert (rows, columns) == (["constant", "linear"], ["0.25", "0.75"]) and (counts == 1).all()
    np.testing.assert_allclose(sums, [[0.7, 0.3], [0.7, 0.3]])
    searched = spec_of("--method", "csp", "--space", "csp.start", "--seeds", "1", "--trials", "12")
    book, _ = made(searched, tmp_path, by_start)
    rows, columns, sums, counts = study_figures.heat_table(
        searched, study_book.counted(book.trials()), searched.space[0]
    )
    assert rows == ["constant"] and columns[0] == "0 to\n0.25" and columns[-1] == "auto" and counts.sum() == 12
    assert sums[0, -1] / counts[0, -1] == pytest.approx(0.9)


def test_pruned_trials_are_not_pooled_with_complete_ones(tmp_path: Path) -> None:
    """A pruned trial stopped for being low, and has a mean over fewer instances."""
    spec = spec_of("--method", "csp", "--space", "csp.start", "--trials", "2", "--seeds", "5", "--name", "x")
    given = iter([0.9] * 5 + [0.1] * 4)
    book, _ = made(spec, tmp_path, lambda cell: next(given))
    assert [t.state for t in book.trials()] == [TrialState.COMPLETE, TrialState.PRUNED]
    _, _, sums, counts = study_figures.heat_table(spec, book.trials(), spec.space[0])
    assert counts.sum() == 1 and sums.sum() == pytest.approx(0.9)


def test_the_best_setting_is_a_file_that_run_takes(tmp_path: Path) -> None:
    """With a file, task tables and --set, all of which must survive; what was tuned wins."""
    (tmp_path / "my.toml").write_text(
        'rl.batch = 24\n[csp]\nnoise = "linear"\n[tasks."toy/reach"]\ncsp.start = 0.1\nrl.envs = 2\n'
    )
    spec = spec_of(*SEARCH, "--config", str(tmp_path / "my.toml"), "--retest-seeds", "1")
    for values in (
        {"csp.schedule": "cosine", "csp.start": 0.5, "csp.stop": 0.1, "csp.length": 0.25},
        {"csp.start": None},
    ):
        study_spec.write_toml(tmp_path / "best.toml", spec, values, ["a note"])
        words = ["run", "--config", str(tmp_path / "best.toml"), "--seeds", f"{RETEST_SEEDS},"]
        cell = make_plan(cli.request_of(cli.parser().parse_args(words))).cells[0]
        wanted = spec.retest_cell(values, spec.fresh[0])
        assert cell == wanted and cell.config.start == values["csp.start"] and cell.settings.rl.envs == 2


def test_mlflow_has_study_trial_and_seed(tmp_path: Path) -> None:
    spec = spec_of("--method", "csp", "--space", "z_bound", "--trials", "3", "--seeds", "5", "--name", "x")
    given = iter([0.9] * 5 + [0.1] * 4)  # the second trial is pruned, the third fails

    def score(cell: dict[str, Any]) -> float:
        if (value := next(given, None)) is None:
            raise RuntimeError("diverged")
        return value

    book, _ = made(spec, tmp_path, score)
    store, uri = Store(tmp_path), f"sqlite:///{tmp_path}/mlflow.db"
    study_report.write(spec, store, book, book.folder, Findings((), ()), ["bench"])
    mirror = study_tracking.Mirror(store, tracking_studies.of_book(book), uri)
    mirror.sync()
    client, counts = MlflowClient(uri), []
    for _ in range(2):
        found = client.search_runs([e.experiment_id for e in client.search_experiments()])
        counts.append(len(found))
        study_tracking.Mirror(store, tracking_studies.of_book(book), uri).sync()
    assert counts[0] == counts[1] > 3, "a second mirror adds nothing"
    place = {r.data.tags.get("bench.place", ""): r for r in found}
    assert place[""].info.status == "FINISHED" and place[""].data.metrics["best_value"] == pytest.approx(0.9)
    states = {TrialState.COMPLETE: "FINISHED", TrialState.PRUNED: "KILLED", TrialState.FAIL: "FAILED"}
    assert [t.state for t in book.trials()] == list(states)
    for t in book.trials():
        run = place[str(t.number)]
        assert run.info.status == states[t.state] and run.data.tags["mlflow.parentRunId"] == place[""].info.run_id
        assert float(run.data.params["csp.z_bound"]) == t.params["csp.z_bound"]
        for step in t.intermediate_values:
            seed = place[f"{t.number}/{step}"]
            assert seed.data.tags["mlflow.parentRunId"] == run.info.run_id and seed.info.status == "FINISHED"
            assert seed.data.metrics["selection_success_rate"] == pytest.approx(t.intermediate_values[step])
        history = client.get_metric_history(run.info.run_id, "instance_value")
        assert len(history) == len(t.intermediate_values)
    assert len({name for r in found for name in r.data.metrics}) < 40
