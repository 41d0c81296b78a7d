"""What a study reports: re-test, optimism, sensitivity, heat map, the best setting as a file, and MLflow."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.trial import TrialState
from studies import SEARCH, by_start, made, spec_of

from bench import cli, study_book, study_figures, study_report, study_space, study_spec, study_tracking
from bench.plan import make_plan
from bench.store import Store
from bench.study_report import Findings, Gap, Move, Setting
from bench.study_space import Parameter
from bench.study_spec import RETEST_SEEDS

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


def test_sensitivity_of_known_numbers() -> None:
    """Pairs that all differ by 0.2 leave no doubt; unpaired noise of ±0.3 between seeds must not matter."""
    spec = spec_of(*SEARCH, "--seeds", "1", "--retest-seeds", "4")
    best = {("toy/reach", i): 0.5 + 0.3 * (-1) ** i for i in range(4)}
    worse = {k: v - 0.2 for k, v in best.items()}
    lost = study_report.gap(best, worse, spec)
    assert lost.value == pytest.approx(0.2) and lost.low == pytest.approx(0.2) and lost.pairs == 4
    mixed = {k: v - 0.1 * k[1] for k, v in best.items()}  # 0, 0.1, 0.2, 0.3
    wide = study_report.gap(best, mixed, spec)
    assert wide.value == pytest.approx(0.15) and wide.low < 0.1 < 0.2 < wide.high
    partly = study_report.gap(best, {k: worse[k] for k in list(worse)[:3]}, spec)
    assert partly.pairs == 3 and partly.value == pytest.approx(0.2)
    single = study_report.gap({("t", 0): 0.5}, {("t", 0): 0.25}, spec)
    assert str(single) == "+0.250" and str(study_report.gap({}, best, spec)) == "no pair finished"
    p = spec.space[0]
    rows = study_report.sensitivity_rows([
        (Move(p, "constant", "linear", {}), wide), (Move(p, "constant", "cosine", {}), lost),
        (Move(p, "constant", "success", {}), Gap(math.nan, math.nan, math.nan, 0)),
    ])  # fmt: skip
    assert [row[2] for row in rows] == ["moved to", "cosine", "linear", "success"]
    assert rows[1][3] == "+0.200 [+0.200, +0.200]"


def test_optimism_is_the_study_minus_the_retest() -> None:
    spec = spec_of(*SEARCH)
    base = Setting("default", {}, 0.4, {("toy/reach", i): 0.4 for i in range(3)})
    best = Setting("trial 7", {"csp.start": 0.5}, 0.9, {("toy/reach", i): 0.6 for i in range(3)})
    rows = study_report.retest_rows([best, base], spec)
    assert rows[1][:4] == ["trial 7: csp.start=0.5", "0.900", "0.600", "+0.300"]
    assert rows[1][4] == "+0.200 [+0.200, +0.200]" and rows[2][4] == ""
    text = " ".join(study_report.verdict(spec, Findings((best, base), ())))
    assert "+0.300 more, for being chosen" in text and "not told apart" not in text
    none = Setting("trial 7", {}, 0.9, base.runs)
    assert "not told apart" in " ".join(study_report.verdict(spec, Findings((none, base), ())))


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
    assert rows == ["constant"] and columns[0] == "0 to 0.25" and columns[-1] == "auto" and counts.sum() == 12
    assert sums[0, -1] / counts[0, -1] == pytest.approx(0.9)


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
    mirror = study_tracking.Mirror(store, book, uri)
    mirror.sync()
    runs = list(mirror.runs.values())
    study_tracking.Mirror(store, book, uri).sync()
    found = mirror.client.search_runs([mirror.experiment])
    assert len(found) == len(runs), "a second mirror adds nothing"
    place = {r.data.tags["bench.place"]: r for r in found}
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
        history = mirror.client.get_metric_history(run.info.run_id, "instance_value")
        assert len(history) == len(t.intermediate_values)
    assert len({name for r in found for name in r.data.metrics}) < 40
