"""The MLflow mirror: says what the files say, says nothing twice, and never stands in the way of a run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from fabricate import KINDS, Fabricated

from bench import tracking
from bench.store import write_json
from bench.types import InputError

mlflow = pytest.importorskip("mlflow")
SOME = {name: KINDS[name] for name in ("plain", "noised_chosen")}
DEAD = "http://127.0.0.1:9"  # the discard port: nothing listens


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A new sqlite store takes seconds to make; its file is copied into each test."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    tracking._client(f"sqlite:///{path}").search_experiments()
    return path.read_bytes()


@pytest.fixture
def run(tmp_path: Path, empty_database: bytes) -> Fabricated:
    made = Fabricated(tmp_path / "results", SOME, seeds=(0, 1), points=4)
    (tmp_path / "results" / "mlflow.db").write_bytes(empty_database)
    return made


def sync(run: Fabricated) -> int:
    return tracking.sync(run.store, run.folder, tracking.default_uri(run.store))


class Seen:
    """What MLflow has for the run: runs by (method, seed), "" for a level above."""

    def __init__(self, run: Fabricated) -> None:
        self.client = tracking._client(tracking.default_uri(run.store))
        self.experiment = self.client.get_experiment_by_name("toy/reach")
        found = self.client.search_runs([self.experiment.experiment_id])
        keys = [(r.data.tags.get("bench.method", ""), r.data.tags.get("bench.seed", "")) for r in found]
        assert len(set(keys)) == len(keys), "a run was made twice"
        self.runs = dict(zip(keys, found, strict=True))

    def history(self, method: str, seed: str, metric: str = "success_rate") -> list[tuple[int, float]]:
        points = self.client.get_metric_history(self.runs[method, seed].info.run_id, metric)
        return [(p.step, p.value) for p in sorted(points, key=lambda p: p.step)]

    def status(self, method: str = "", seed: str = "") -> str:
        return str(self.runs[method, seed].info.status)


def test_sync_mirrors_and_a_second_one_adds_nothing(run: Fabricated) -> None:
    run.finish_all()
    assert sync(run) > 0
    before = Seen(run)
    assert sync(run) == 0
    seen = Seen(run)
    assert set(seen.runs) == set(before.runs) and len(seen.runs) == 1 + 2 + 4
    assert {r.info.status for r in seen.runs.values()} == {"FINISHED"}
    for cell in run.cells:
        expected = [(p["control_steps"], p["success_rate"]) for p in run.points_json(cell, 4)]
        assert seen.history(cell["method"], str(cell["seed"])) == expected
    every = {name for r in seen.runs.values() for name in r.data.metrics}
    assert every == {*tracking.POINT_METRICS, "success_at_1", "success_at_8"} and len(every) < 40


def test_levels_params_tags_and_artifacts(run: Fabricated) -> None:
    run.finish_all()
    sync(run)
    seen = Seen(run)
    top, method, seed = seen.runs["", ""], seen.runs["plain", ""], seen.runs["plain", "1"]
    assert method.data.tags["mlflow.parentRunId"] == top.info.run_id
    assert seed.data.tags["mlflow.parentRunId"] == method.info.run_id
    assert seed.data.params == {"rl.decisions": "1000", "plain.schedule": "cosine"} == method.data.params
    for tag in ("bench.config_hash", "bench.commit", "bench.versions", "bench.demos", "bench.demos_digest"):
        assert seed.data.tags[tag]
    names = {f.path for f in seen.client.list_artifacts(seed.info.run_id)}
    assert names == {*tracking.ARTIFACTS, "coverage.parquet"}
    assert seed.info.artifact_uri.startswith((run.store.root / "mlartifacts").resolve().as_uri())


def test_a_partial_then_finished_cell_has_each_point_once(run: Fabricated) -> None:
    cell = run.cells[0]
    run.partial(cell, 2)
    with run.entry(cell, "finetune").lock():
        sync(run)
        seen = Seen(run)
        assert len(seen.history("plain", "0")) == 2
        assert seen.status("plain", "0") == seen.status("plain") == seen.status() == "RUNNING"
        assert seen.status("plain", "1") == "SCHEDULED"
        assert seen.history("plain", "") == []  # seed 1 has no point yet
    run.finish_all()
    sync(run)
    seen = Seen(run)
    for metric in ("success_rate", "critic_loss", "decisions"):
        steps = [step for step, _ in seen.history("plain", "0", metric)]
        assert len(steps) == len(set(steps)) == (3 if metric == "critic_loss" else 4)
    assert {r.info.status for r in seen.runs.values()} == {"FINISHED"}


def test_one_mirror_that_goes_on_logs_each_point_once(run: Fabricated) -> None:
    mirror = tracking.Mirror(run.store, run.folder, tracking.default_uri(run.store))
    for count in (1, 2, 2, 3):
        run.partial(run.cells[0], count)
        mirror.sync()
    assert [step for step, _ in Seen(run).history("plain", "0")] == [0, 500, 1000]


def test_a_method_has_the_mean_curve_of_its_seeds(run: Fabricated) -> None:
    run.finish_all()
    sync(run)
    seen = Seen(run)
    pairs = zip(seen.history("plain", "0"), seen.history("plain", "1"), strict=True)
    assert seen.history("plain", "") == [(round((a[0] + b[0]) / 2), pytest.approx((a[1] + b[1]) / 2)) for a, b in pairs]


def test_a_failed_cell_is_failed_until_it_is_mended(run: Fabricated) -> None:
    for cell in run.cells[1:]:
        run.finish(cell)
    run.fail(run.cells[0])
    sync(run)
    seen = Seen(run)
    assert seen.status("plain", "0") == seen.status("plain") == seen.status() == "FAILED"
    assert seen.status("plain", "1") == seen.status("noised_chosen") == "FINISHED"
    run.finish(run.cells[0])
    sync(run)
    seen = Seen(run)
    assert {r.info.status for r in seen.runs.values()} == {"FINISHED"}
    assert len(seen.history("plain", "0")) == 4


def test_long_and_many_parameters(run: Fabricated) -> None:
    record = json.loads((run.folder / "run.json").read_text())
    many: dict[str, Any] = {f"group.p{i}": i for i in range(250)}
    record["cells"][0]["config"] = many | {"long": "x" * 7000, "none": None, "pair": [1, 2]}
    write_json(run.folder / "run.json", record)
    sync(run)
    params = Seen(run).runs["plain", "0"].data.params
    assert len(params) == 253 and params["none"] == "null" and params["pair"] == "[1, 2]"
    assert len(params["long"]) <= tracking.VALUE_LIMIT and "cut; 7000 characters" in params["long"]


def test_live_mirrors_while_the_run_goes_on(run: Fabricated, capsys: pytest.CaptureFixture[str]) -> None:
    with tracking.Live(run.store, run.folder, period=0.1):
        run.partial(run.cells[0], 2)
        time.sleep(1.5)
        run.finish_all()
    seen = Seen(run)
    assert len(seen.history("plain", "0")) == 4 and seen.status() == "FINISHED"
    assert capsys.readouterr().err == ""


def test_a_dead_server_costs_one_warning(run: Fabricated, capsys: pytest.CaptureFixture[str]) -> None:
    begun = time.monotonic()
    with tracking.Live(run.store, run.folder, DEAD, period=0.05):
        time.sleep(1.0)
    assert time.monotonic() - begun < 10
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines == [
        f"tracking server {DEAD} unreachable; the run goes on; `python -m bench sync` catches up",
    ]


def test_live_lets_the_runs_own_error_through(run: Fabricated) -> None:
    with pytest.raises(KeyError), tracking.Live(run.store, run.folder, DEAD, period=0.05):
        raise KeyError


def test_sync_with_a_dead_server_says_so_in_one_line(run: Fabricated) -> None:
    with pytest.raises(InputError) as caught:
        tracking.sync(run.store, run.folder, DEAD)
    assert DEAD in str(caught.value) and "\n" not in str(caught.value)


def test_links_compare_the_methods_of_the_run(run: Fabricated) -> None:
    run.finish_all()
    sync(run)
    links = tracking.compare_links(tracking.default_uri(run.store), "http://127.0.0.1:5000", run.folder.name)
    seen = Seen(run)
    assert list(links) == ["toy/reach"]
    for method in SOME:
        assert seen.runs[method, ""].info.run_id in links["toy/reach"]
    assert seen.runs["plain", "0"].info.run_id not in links["toy/reach"]
