"""Studies: what is suggested, what is pruned or failed, what is refused, and a real one.

Most cells are made up; those at the end are real, in real processes.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from studies import ROOT, SEARCH, TINY, arguments, by_start, made, spec_of, specs

from bench import cli, registry, settings, study, study_book, study_report, study_space, study_spec
from bench import config as cfg
from bench.settings import TUNING_SEEDS
from bench.store import Store
from bench.study_book import Book, NumberedSampler
from bench.study_spec import RETEST_SEEDS
from bench.types import InputError, Stopped

# What is suggested


@pytest.mark.parametrize("method", registry.methods())
def test_conditions_name_siblings_and_values_they_can_have(method: str) -> None:
    fields = study_space.fields_of(method)
    for key, p in study_space.parameters(method, ["toy/reach"]).items():
        for other, values in p.when:
            allowed = fields[other].metadata["choices"] or (True, False)
            assert set(values) < set(allowed), f"{key} counts always, or never"
        if p.kind != "choice":
            assert p.limits[0] <= p.low < p.high <= p.limits[1], key


def test_only_what_counts_is_suggested() -> None:
    spec, counts = spec_of(*SEARCH), {"csp.stop": 0, "csp.length": 0, "csp.start": 0}
    made_study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(60):
        trial = made_study.ask()
        values = study_space.suggest(trial, spec.space, spec.base)
        kind = values["csp.schedule"]
        assert ("csp.stop" in values) == (kind != "constant")
        assert ("csp.length" in values) == (kind in ("linear", "cosine", "exponential"))
        assert ("csp.start" in trial.params) != trial.params["csp.start:auto"] == (values["csp.start"] is None)
        assert study_space.values_of(trial.params) == values
        assert study_space.params_of(values, spec.space) == trial.params
        for name in counts:
            counts[name] += name in trial.params
        spec.cell(values, spec.instances[0])  # is accepted
    assert all(10 < n < 55 for n in counts.values())


def test_spaces_of_every_method_and_fields_by_name() -> None:
    keys = {
        s.method: {p.key for p in s.space} for s in specs("--methods", ",".join(registry.methods()), "--space", "noise")
    }
    for method in registry.methods():
        searches = [f.metadata.get("search") or {} for f in study_space.fields_of(method).values()]
        assert (method in keys) == any(search.get("space") == "noise" for search in searches)
    assert {"csp.noise", "csp.end", "csp.sigma_training", "csp.z_bound"} <= keys["csp"]
    assert {"csp_tmrl.learn_eps", "csp_tmrl.eps_bound"} <= keys["csp_tmrl"] and "posterior_bc.alpha" in keys[
        "posterior_bc"
    ]
    assert {p.key for p in spec_of("--method", "bc", "--space", "rl,z_bound").space} == {
        "bc.z_bound", *(k for k, f in cfg.keys(settings.Settings).items() if f.metadata.get("search"))}  # fmt: skip
    assert [s.method for s in specs("--space", "schedule")] == ["csp", "csp_tmrl"]


def test_context_keys_are_choices_where_there_are_several(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "csp.noised" not in study_space.parameters("csp", ["toy/reach"])
    two = replace(registry.task("toy/reach"), context_keys=("goal", "height"))
    monkeypatch.setattr(registry, "task", lambda name: two)
    assert study_space.parameters("csp", ["toy/reach"])["csp.noised"].choices == ("", "goal", "height")


def test_seeds_and_start_states_are_not_those_of_reports() -> None:
    spec = spec_of(*SEARCH, "--seeds", "0,4", "--retest-seeds", "2")
    assert [s for _, s in spec.instances] == [TUNING_SEEDS, TUNING_SEEDS + 4]
    assert [s for _, s in spec.fresh] == [RETEST_SEEDS, RETEST_SEEDS + 1]
    cell = spec.cell({"csp.start": 0.5}, spec.instances[0])
    assert (cell.settings.evaluation.states, cell.settings.evaluation.selection_states) == (1, 4)
    assert cell.config.start == 0.5
    again = spec.retest_cell({}, spec.fresh[0])
    assert (again.settings.evaluation.states, again.settings.evaluation.selection_states) == (4, 2)
    two = spec_of(*SEARCH, "--tasks", "toy", "--seeds", "2")
    assert [t for t, _ in two.instances] == ["toy/reach", "toy/reach-unseen"] * 2


def test_area_of_a_curve_over_a_fixed_range() -> None:
    points = [{"control_steps": x, "y": y} for x, y in ((0, 0.0), (50, 0.5), (100, 1.0))]
    assert study_spec.curve_area(points, "y", 100.0) == pytest.approx(0.5)
    assert study_spec.curve_area(points, "y", 200.0) == pytest.approx(0.75)  # the last value holds
    assert study_spec.curve_area(points, "y", 50.0) == pytest.approx(0.25)
    assert math.isnan(study_spec.curve_area([*points, {"control_steps": 120, "y": None}], "y", 200.0))
    assert math.isnan(study_spec.curve_area([{"control_steps": 0, "y": float("nan")}], "y", 9.0))
    assert math.isnan(study_spec.curve_area([], "y", 9.0))
    twice = [{"control_steps": x, "y": y} for x, y in ((0, 0.0), (50, 0.1), (50, 0.5), (100, 1.0))]
    assert study_spec.curve_area(twice, "y", 100.0) == pytest.approx(0.5), "of one round's points the report's counts"


# The default, where tasks differ


def test_the_default_is_each_task_s_own(tmp_path: Path) -> None:
    """Two tasks with different σ: the first trial, the re-test's default and the sensitivity moves leave it to them."""
    (tmp_path / "my.toml").write_text('[tasks."toy/reach"]\ncsp.start = 0.25\n')
    words = ["--tasks", "toy", "--seeds", "1", "--config", str(tmp_path / "my.toml")]
    spec = spec_of("--method", "csp", "--space", "csp.start,csp.schedule", *words, "--trials", "3")
    used: list[tuple[str, float | None]] = []

    def score(cell: dict[str, Any]) -> float:
        used.append((cell["task"], cell["config"]["start"]))
        return by_start(cell)

    book, _ = made(spec, tmp_path, score)
    assert used[:2] == [("toy/reach", 0.25), ("toy/reach-unseen", None)]
    assert all(a == b for (_, a), (_, b) in zip(used[2::2], used[3::2], strict=True)), "other trials set both"
    first = book.trials()[0]
    assert first.state == TrialState.COMPLETE and first.params == {} and first.value == pytest.approx(0.8)
    assert ("default", {}, pytest.approx(0.8)) in study_report.candidates(spec, book)
    for start in (0.25, None):
        assert not study_spec.setting_of({"csp.start": start}, spec.base)
    assert study_space.settle({"csp.schedule": "linear"}, spec.space, spec.base) == {"csp.schedule": "linear"}
    assert study_space.show(spec.base["csp.start"]) == "0.25 / auto by task"


def test_a_condition_holds_if_it_holds_on_some_task(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text('[tasks."toy/reach"]\ncsp.schedule = "linear"\n')
    words = ["--method", "csp", "--space", "csp.length", "--tasks", "toy", "--config", str(tmp_path / "my.toml")]
    assert [p.key for p in spec_of(*words).space] == ["csp.length"]


def test_a_default_that_the_search_could_not_take_is_a_trial_too(tmp_path: Path) -> None:
    spec = spec_of("--method", "bc", "--space", "temperature", "--set", "rl.temperature=2", "--trials", "2")
    used: list[float] = []
    book, _ = made(spec, tmp_path, lambda cell: used.append(cell["rl"]["temperature"]) or 0.5)
    assert used[:3] == [2.0] * 3 and used[3] <= 1.0
    assert ("default", {}, 0.5) in study_report.candidates(spec, book)


# Trials


def test_states_of_trials_and_what_is_pruned(tmp_path: Path) -> None:
    """The default is best; with six instances a worse one is stopped after four, never at its learning curve."""
    spec = spec_of("--method", "csp", "--space", "csp.start", "--trials", "14", "--seeds", "6")

    def fate(start: float) -> int:
        return round(start * 1e6) % 3 if start else 2

    def score(cell: dict[str, Any]) -> float | None:
        kind = fate(cell["config"]["start"] or 0.0)
        if kind == 0:
            raise RuntimeError("simulator diverged")
        return float("nan") if kind == 1 else by_start(cell)

    lines: list[str] = []
    book, _ = made(spec, tmp_path, score, lines)
    trials = study_book.counted(book.trials())
    assert len(trials) == 14 and trials[0].state == TrialState.COMPLETE and trials[0].params == {"csp.start:auto": True}
    for t in trials:
        start = t.params.get("csp.start", 0.0)
        wanted = TrialState.FAIL if fate(start) < 2 else TrialState.COMPLETE if start == 0 else TrialState.PRUNED
        assert t.state == wanted, (start, t.state)
        assert len(t.intermediate_values) == {TrialState.FAIL: 0, TrialState.COMPLETE: 6}.get(t.state, 4)
    assert {t.state for t in trials} == {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}
    errors = {t.user_attrs["error"] for t in trials if t.state == TrialState.FAIL}
    assert "simulator diverged" in errors and any("no success curve" in e for e in errors)
    assert study_book.ranked(trials)[0].value == pytest.approx(0.9)
    again, uses = study_book.pretrainings(trials)
    assert uses - again == 6 and any("12 of 18 pretrainings shared" in line for line in lines)


def test_a_study_that_goes_on_asks_for_the_points_of_an_unbroken_one(tmp_path: Path) -> None:
    def points(root: Path, *counts: int) -> list[dict[str, Any]]:
        for n in counts:
            book, _ = made(spec_of(*SEARCH, "--seeds", "1", "--trials", str(n), "--name", "x"), root, by_start)
        return [t.params for t in book.trials()]

    whole, parts = points(tmp_path / "a", 14), points(tmp_path / "b", 3, 7, 14)
    assert whole == parts
    starts = [p["csp.start"] for p in whole if "csp.start" in p]
    assert len(starts) == len(set(starts)) > 3


def test_finished_cells_are_not_run_again(tmp_path: Path) -> None:
    spec = spec_of(*SEARCH, "--seeds", "2", "--trials", "3")
    _, first = made(spec, tmp_path, by_start)
    assert len(first.ran) == len(set(first.ran)) == 6
    (tmp_path / "study" / spec.name / "journal.log").unlink()
    book, second = made(spec, tmp_path, by_start)
    assert not getattr(second, "ran", []) and [t.state for t in book.trials()] == [TrialState.COMPLETE] * 3


@pytest.mark.parametrize("seed", range(3))
def test_a_setting_that_failed_is_not_spent_on_again(seed: int, tmp_path: Path) -> None:
    words = ["--seeds", "1", "--trials", "4", "--seed", str(seed)]
    spec = spec_of("--method", "csp", "--space", "csp.schedule", *words)

    def score(cell: dict[str, Any]) -> float:
        raise RuntimeError("diverged")

    book, _ = made(spec, tmp_path, score)
    assert len({t.params["csp.schedule"] for t in study_book.counted(book.trials())}) == 4


def refuse(monkeypatch: pytest.MonkeyPatch, schedule: str, error: type[Exception]) -> None:
    """The method's configuration refuses a schedule, as it might in its `__post_init__`."""

    def check(config: Any, method: str, task: Any) -> None:
        if config.schedule == schedule:
            raise error(f"{method} cannot do {schedule}")

    monkeypatch.setattr(settings, "_check_config", check)


@pytest.mark.parametrize("error", [InputError, ValueError])
def test_a_setting_that_the_configuration_refuses_fails_its_trial_alone(
    error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, "cosine", error)
    spec = spec_of("--method", "csp", "--space", "csp.schedule", "--seeds", "1", "--trials", "5")
    book, _ = made(spec, tmp_path, by_start)
    trials = {t.params["csp.schedule"]: t for t in study_book.counted(book.trials())}
    assert trials["cosine"].user_attrs["error"] == "csp cannot do cosine" and len(trials) == 5
    assert [t.state for t in trials.values()].count(TrialState.COMPLETE) == 4
    made(spec, tmp_path, by_start)
    assert not study_book.retried(book.trials()), "it would be refused again"


@pytest.mark.parametrize("error", [InputError, ValueError])
def test_a_neighbour_that_the_configuration_refuses_is_left_out(
    error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = spec_of(
        "--method", "csp", "--space", "csp.schedule", "--seeds", "1", "--trials", "1", "--sensitivity", "yes"
    )
    book, _ = made(spec, tmp_path, by_start)
    refuse(monkeypatch, "cosine", error)
    monkeypatch.setattr(study, "run_cells", lambda *_: 0)
    found, _ = study.retest(spec, Store(tmp_path), book, 1)
    assert [move.after for move, _ in found.sensitivity] == ["linear", "exponential", "success"]
    assert "not valid, left out: csp.schedule=cosine: csp cannot do cosine\n" in capsys.readouterr().out


def test_nothing_of_an_earlier_state_remains_while_a_study_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args, old = (
        arguments(*SEARCH, "--results", str(tmp_path)),
        {"results.json", "report.md", "index.html", "best.toml", "slice.png", "noise_schedule_start.svg"},
    )
    spec = specs(*SEARCH)[0]
    folder = tmp_path / "study" / spec.name
    folder.mkdir(parents=True)
    own = {"notes.md", "mine.png", "mine.svg"}
    for name in old | own:
        (folder / name).write_text("{}")

    def interrupted(trials: Any) -> None:
        raise Stopped

    monkeypatch.setattr(study.Trials, "run", interrupted)
    with pytest.raises(Stopped):
        study.run_study(spec, Store(tmp_path), args)
    left = {p.name for p in folder.iterdir()}
    assert not left & old and {"journal.log", "study.json"} | own <= left
    record = json.loads((folder / "study.json").read_text())
    assert record["storage"] is None and record["command"][:3] == ["python", "-m", "bench"]


def test_seeds_of_the_file_count(tmp_path: Path) -> None:
    """Those of the command line win; with neither there are three, whatever the profile has."""
    (tmp_path / "my.toml").write_text("[run]\nseeds = [4, 7]\n")
    (tmp_path / "none.toml").write_text('[run]\nmethods = ["csp"]\n')

    def seeds(*words: str, given: str | None = None) -> tuple[int, ...]:
        args = arguments(*SEARCH, *words)
        args.seeds = given
        return study.specs_of(args, cli.request_of(args))[0].request.seeds

    assert seeds("--config", str(tmp_path / "my.toml")) == (4, 7)
    assert seeds("--config", str(tmp_path / "my.toml"), given="2") == (0, 1)
    assert seeds("--config", str(tmp_path / "none.toml")) == seeds() == (0, 1, 2)


def test_draws_depend_on_the_number_of_the_trial_alone() -> None:
    def draws(seed: int, count: int) -> list[float]:
        one = optuna.create_study(sampler=NumberedSampler(seed))
        return [one.ask().suggest_float("x", 0, 1) for _ in range(count)]

    assert draws(0, 5) == draws(0, 5) != draws(1, 5)
    assert len(set(draws(0, 8))) == 8


def test_another_study_of_the_same_name_is_refused(tmp_path: Path) -> None:
    Book(spec_of(*SEARCH, "--name", "x"), tmp_path, None)
    Book(spec_of(*SEARCH, "--name", "x", "--trials", "99"), tmp_path, None)
    for words, thing in (
        ((*SEARCH, "--seeds", "2"), "seeds"), ((*SEARCH, "--tasks", "toy"), "tasks"),
        (("--method", "csp", "--space", "csp.start"), "space"), (("--method", "bc", "--space", "all"), "method"),
        ((*SEARCH, "--set", "rl.batch=16"), "settings"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=f"with other {thing}"):
            Book(spec_of(*words, "--name", "x"), tmp_path, None)


def test_databases_are_storages_too(tmp_path: Path) -> None:
    url, spec = f"sqlite:///{tmp_path}/study.db", spec_of(*SEARCH, "--trials", "2", "--name", "x")
    book = Book(spec, tmp_path, url)
    first = book.next()
    assert first
    other = Book(spec, tmp_path, url)
    assert len(other.trials()) == 1 and other.trials()[0].user_attrs["owner"] == study_book.owner()
    assert study_book.pulse(book.owner) in other.study.user_attrs, "a first heartbeat comes before the first trial"


def test_a_setting_that_was_tried_is_not_spent_on_again(tmp_path: Path) -> None:
    spec = spec_of("--method", "csp", "--space", "csp.schedule,csp.start", "--seeds", "1", "--trials", "14")
    book, _ = made(spec, tmp_path, by_start)
    trials = book.trials()
    kept = [t.params for t in study_book.counted(trials)]
    assert len(kept) == 14 < len(trials) and all(kept.count(p) == 1 for p in kept)
    for t in trials:
        if "repeats" in t.user_attrs:
            assert t.params == trials[t.user_attrs["repeats"]].params and not t.intermediate_values
    few = spec_of("--method", "csp", "--space", "csp.schedule", "--seeds", "1", "--trials", "9", "--name", "few")
    book, second = made(few, tmp_path, by_start)
    assert study_book.spent(book.trials()) == 9 and len(second.ran) <= 5, "nine trials of five settings still end"


# Grids


def test_a_grid_measures_every_combination_once(tmp_path: Path) -> None:
    spec = spec_of("--method", "csp", "--grid", "csp.schedule=constant,linear", "--grid", "csp.stop=0,0.25",
                   "--grid", "csp.start=auto,0.5", "--seeds", "1")  # fmt: skip
    assert spec.trials == 6  # a constant schedule has no end
    book, _ = made(spec, tmp_path, by_start)
    values = [study_space.values_of(t.params) for t in book.trials()]
    assert values == list(spec.grid) and {t.state for t in book.trials()} == {TrialState.COMPLETE}
    assert values[0] == {"csp.schedule": "constant", "csp.start": None}
    assert {"csp.schedule": "linear", "csp.stop": 0.25, "csp.start": 0.5} in values


# Bad input

BAD = {
    "unknown space": (["--space", "nois"], "noise"),
    "no search space": (["--space", "bc.z_shape"], "bc.z_shape has no search space"),
    "unknown field": (["--space", "csp.strat"], "csp.start"),
    "empty space": (["--space", ","], "--space is empty"),
    "nothing of the method": (["--method", "bc", "--space", "schedule"], "nothing of it belongs to bc"),
    "does not count": (["--method", "csp", "--space", "csp.stop"], "not used with csp.schedule = constant"),
    "neither": (["--method", "bc"], "one of --space"),
    "both": (["--space", "rl", "--grid", "rl.batch=8"], "one of --space"),
    "trials": (["--space", "rl", "--trials", "0"], "--trials 0"),
    "best": (["--space", "rl", "--best", "0"], "--best 0"),
    "storage": (["--method", "bc", "--space", "rl", "--storage", "postgers"], "--storage 'postgers'"),
    "storage scheme": (["--method", "bc", "--space", "rl", "--storage", "no://where"], "cannot open"),
    "grid key": (["--grid", "csp.strat=1"], "csp.start"),
    "grid type": (["--method", "csp", "--grid", "csp.start=high"], "not a number"),
    "grid range": (["--method", "csp", "--grid", "csp.start=0,1.5"], "--grid: csp.start = 1.5 is outside [0.0, 1.0]"),
    "grid choice": (["--method", "csp", "--grid", "csp.schedule=cosin"], "cosine"),
    "grid of lists": (["--method", "csp", "--grid", "rl.actor=64,64"], "a list of numbers cannot be swept"),
    "grid twice": (["--method", "csp", "--grid", "csp.start=0", "--grid", "csp.start=0.5"], "has a grid already"),
    "storage folder": (["--method", "bc", "--space", "rl", "--storage", "/nope/x.log"], "there is no folder /nope"),
    "grid empty": (["--method", "csp", "--grid", "csp.start"], "KEY=VALUE"),
    "grid does not count": (["--method", "csp", "--grid", "csp.stop=0.1,0.2"], "not used with csp.schedule"),
    "grid and trials": (["--grid", "rl.batch=8", "--trials", "3"], "leave --trials out"),
    "seeds": (["--space", "rl", "--seeds", "1000000,"], "too large"),
    "name": (["--method", "bc", "--space", "rl", "--name", "../x"], "--name"),
    "option": (["--space", "rl", "--trial", "5"], "--trials"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_code_2(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words, expected = BAD[name]
    assert cli.main(["study", *TINY, *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and expected in err, err
    assert not [p for p in tmp_path.rglob("*") if p.is_file()], "bad input must leave no file behind"


# Real cells


def bench(*words: str, tracking: str = "--no-tracking") -> subprocess.Popen[str]:
    tiny = [w for w in TINY if w != "--no-tracking"]
    command = [sys.executable, "-W", "ignore", "-m", "bench", "study", *tiny, tracking, *words]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def cells(root: Path) -> dict[str, float]:
    """Fine-tunings that are done, and when."""
    return {p.parent.name: p.stat().st_mtime for p in root.glob("stages/finetune/*/meta.json")}


def test_killed_resumed_and_reported(tmp_path: Path) -> None:
    """Killed in the second trial; the same command goes on, with a tracking server that is not there."""
    words = ["--method", "csp", "--space", "csp.start", "--seeds", "2", "--trials", "3", "--name", "x",
             "--retest-seeds", "2", "--best", "1", "--results", str(tmp_path)]  # fmt: skip
    process, limit = bench(*words), time.monotonic() + 60
    while len(cells(tmp_path)) < 3 and time.monotonic() < limit:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = cells(tmp_path)
    assert len(before) == 3
    done = bench(*words, tracking="--tracking-uri=http://127.0.0.1:9")
    out, err = done.communicate(timeout=120)
    assert done.returncode == 0 and err.count("unreachable; the study goes on") == 1, err
    assert cells(tmp_path).items() >= before.items() and "(again, was 1)" in out
    folder = tmp_path / "study" / "x"
    results = json.loads((folder / "results.json").read_text())
    assert [t["state"] for t in results["trials"]].count("complete") == 3 and results["sensitivity"]
    assert len(results["retest"]) in (1, 2) and all(len(r["runs"]) == 2 for r in results["retest"])
    assert {"history.png", "slice.png", "importances.png", "noise_schedule.png", "best.toml", "report.md"} <= {
        p.name for p in folder.iterdir()}  # fmt: skip
    made_last = max((p for p in folder.iterdir() if p.name[0] != "."), key=lambda p: p.stat().st_mtime_ns)
    assert made_last.name in ("results.json", "system.json"), "it says that the rest is there"
    for text in ("pretrainings shared", "optimism", "success lost", "best setting: python -m bench run --config"):
        assert text in out.lower()
    assert cli.main(["run", "--config", str(folder / "best.toml"), "--results", str(tmp_path), "--dry-run"]) == 0
