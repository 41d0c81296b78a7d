"""The MLflow mirror: says what the files say, says nothing twice, and never stands in the way of a run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import filelock
import numpy as np
import pytest
from fabricate import KINDS, Fabricated
from safetensors.numpy import save_file

from bench import cli, study_tracking, tracking, tracking_files, tracking_links, tracking_system
from bench import tracking_points as curves
from bench.store import write_json
from bench.tracking_client import CURVE_POINTS, VALUE_LIMIT, absolute, quiet_client
from bench.types import InputError

mlflow = pytest.importorskip("mlflow")
SOME = {name: KINDS[name] for name in ("plain", "noised_chosen")}
DEAD = "http://127.0.0.1:9"  # the discard port: nothing listens


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A new sqlite store takes seconds to make; its file is copied into each test."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    quiet_client(f"sqlite:///{path}").search_experiments()
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
        self.client = quiet_client(tracking.default_uri(run.store))
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
    assert (
        every
        == {
            *curves.POINT_METRICS,
            "success_at_1",
            "success_at_8",
            "final_success",
            "peak_memory_mb",
            "pretrain_seconds",
        }
        and len(every) < 40
    )


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
    assert names == {*tracking_files.ARTIFACTS, "coverage.parquet"}
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
    assert len(params["long"]) <= VALUE_LIMIT and "cut; 7000 characters" in params["long"]


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


def test_what_a_server_says_is_passed_on(
    run: Fabricated, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(live: tracking.Live) -> None:
        raise RuntimeError("no experiment of that name\nat all")

    monkeypatch.setattr(tracking.Live, "new_mirror", refused)
    with tracking.Live(run.store, run.folder, "http://me:secret@there", period=0.05):
        time.sleep(0.2)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tracking server http://me:***@there not usable (no experiment of that name); the run goes")


def test_live_lets_the_runs_own_error_through(run: Fabricated) -> None:
    with pytest.raises(KeyError), tracking.Live(run.store, run.folder, DEAD, period=0.05):
        raise KeyError


def test_sync_with_a_dead_server_says_so_in_one_line(run: Fabricated) -> None:
    with pytest.raises(InputError) as caught:
        tracking.sync(run.store, run.folder, DEAD)
    assert DEAD in str(caught.value) and "\n" not in str(caught.value)


def test_sync_blames_the_store_only_for_its_own_errors(run: Fabricated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "LOCK_SECONDS", 0.05)
    with filelock.FileLock(run.folder / ".mlflow.lock"), pytest.raises(InputError, match="another process is mirror"):
        sync(run)
    run.finish_all()
    run.entry(run.cells[0], "finetune").file("meta.json").write_text("{")
    with pytest.raises(InputError, match=r"^\S*meta\.json: not valid JSON"):
        sync(run)
    record = json.loads((run.folder / "run.json").read_text())
    del record["cells"][0]["task"]
    write_json(run.folder / "run.json", record)
    with pytest.raises(InputError, match=r"run\.json: damaged"):
        sync(run)


def test_sync_goes_on_after_what_it_cannot_mirror(
    run: Fabricated, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def of_study(store: Any, folder: Path, uri: str) -> int:
        if folder.name != "c":
            raise InputError(f"study {folder.name}: its storage is away")
        return 3

    for name in "abc":
        write_json_in(run.store.root / "study" / name)
    monkeypatch.setattr(study_tracking, "sync", of_study)
    monkeypatch.setattr(tracking, "sync", lambda store, folder, uri: 7)
    assert cli.main(["sync", "--results", str(run.store.root)]) == 2
    out, err = capsys.readouterr()
    assert f"{run.folder.name}: 7 new points" in out and "c: 3 new points" in out
    assert err.count("\n") == 1 and all(f"study {name}: its storage is away" in err for name in "ab")


def write_json_in(folder: Path) -> None:
    folder.mkdir(parents=True)
    write_json(folder / "study.json", {"name": folder.name})


def test_passwords_do_not_reach_mlflow(run: Fabricated) -> None:
    record = json.loads((run.folder / "run.json").read_text())
    write_json(run.folder / "run.json", record | {"command": ["bench", "--tracking-uri", "http://me:secret@there"]})
    sync(run)
    for found in Seen(run).runs.values():
        assert found.data.tags["bench.command"] == "bench --tracking-uri http://me:***@there"


def test_a_cell_of_an_earlier_run_does_not_end_before_its_start(run: Fabricated) -> None:
    run.finish_all()
    record = json.loads((run.folder / "run.json").read_text())
    write_json(run.folder / "run.json", record | {"created": time.time() + 1000})
    sync(run)
    assert all(r.info.end_time == r.info.start_time for r in Seen(run).runs.values())


def test_the_interface_opens_the_store_that_the_run_wrote_to(
    run: Fabricated, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A relative path is one of the working directory, which the server's is not."""
    started: list[list[str]] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tracking_links.os, "execve", lambda program, command, environment: started.append(command))
    for uri in ("sqlite:///my.db", "mine"):
        monkeypatch.chdir(tmp_path)
        tracking_links.ui(run.store, uri, 9)
    assert Path.cwd() == run.store.root
    stores = [command[command.index("--backend-store-uri") + 1] for command in started]
    assert stores == [f"sqlite:///{tmp_path}/my.db", f"{tmp_path}/mine"]
    for uri in (*stores, "http://there", "sqlite:///:memory:", "databricks"):
        assert absolute(uri) == uri


def test_links_that_cannot_be_made_are_said(run: Fabricated, capsys: pytest.CaptureFixture[str]) -> None:
    assert tracking_links.ui(run.store, DEAD, run_folder=run.folder) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("no links: ")


def test_links_open_the_curves_of_the_methods(run: Fabricated) -> None:
    run.finish_all()
    sync(run)
    base, uri = "http://127.0.0.1:5000", tracking.default_uri(run.store)
    links = dict(tracking_links.run_links(uri, base, run.folder.name))
    assert links == dict(tracking_links.run_links(uri, base, run.folder.name))
    assert list(links) == ["compare the methods on toy/reach", "all runs on toy/reach"]
    experiment = Seen(run).experiment
    address = links["compare the methods on toy/reach"]
    key = parse_qs(urlsplit(urlsplit(address).fragment).query)["viewStateShareKey"][0]
    assert f"/experiments/{experiment.experiment_id}/runs" in address
    state = json.loads(experiment.tags[f"mlflow.sharedViewState.{key}"])
    shown = quiet_client(uri).search_runs([experiment.experiment_id], state["searchFilter"])
    assert {r.info.run_name for r in shown} == set(SOME)
    assert state["compareRunCharts"][0]["metricKey"] == "success_rate"


def test_data_and_model_are_logged_once(run: Fabricated) -> None:
    run.finish_all()
    cell = run.cells[0]
    save_file({"w": np.ones(3, np.float32)}, run.entry(cell, "pretrain").file("policy.safetensors"))
    save_file({"w": np.ones(3, np.float32)}, run.entry(cell, "finetune").file("agent.safetensors"))
    for _ in range(2):
        sync(run)
        forget(run, "bench.model", "bench.inputs")  # as if killed before it was put down as done
    seen = Seen(run)
    found = seen.client.get_run(seen.runs["plain", "0"].info.run_id)
    data = {(d.dataset.name, d.dataset.digest) for d in found.inputs.dataset_inputs}
    assert {name for name, _ in data} == {"toy/reach", "toy/reach starts"} and len(found.inputs.dataset_inputs) == 2
    assert ("toy/reach", found.data.tags["bench.demos_digest"]) in data
    models = seen.client.search_logged_models([seen.experiment.experiment_id])
    assert len(models) == len(run.cells) and {str(m.status) for m in models} == {"READY"}
    mine = next(m for m in models if m.source_run_id == found.info.run_id)
    assert mine.params == {"method": "plain", "task": "toy/reach", "seed": "0"}
    assert [(m.key, m.value) for m in mine.metrics] == [("final_success", run.points_json(cell, 4)[-1]["success_rate"])]
    assert [o.model_id for o in found.outputs.model_outputs] == [mine.model_id]
    folder = Path(mine.artifact_location.removeprefix("file://"))
    assert {p.name for p in folder.iterdir()} == {"policy.safetensors", "agent.safetensors"}


def forget(run: Fabricated, *tags: str) -> None:
    """Take tags off every run that has them."""
    client = quiet_client(tracking.default_uri(run.store))
    for found in Seen(run).runs.values():
        for tag in tags:
            if tag in found.data.tags:
                client.delete_tag(found.info.run_id, tag)


def test_videos_may_come_after_the_rest(run: Fabricated) -> None:
    run.finish_all()
    sync(run)
    (run.entry(run.cells[0], "finetune").file("last.mp4")).write_bytes(b"film")
    record = json.loads((run.folder / "run.json").read_text())
    record["cells"][1]["stages"]["video"] = "film-1"
    write_json(run.folder / "run.json", record)
    entry = run.store.entry("video", "film-1")
    entry.folder.mkdir(parents=True)
    entry.file("first.gif").write_bytes(b"film")
    entry.finish({}, {})
    assert sync(run) == 0
    seen = Seen(run)
    paths = [
        f.path for seed in ("0", "1")
        for f in seen.client.list_artifacts(seen.runs["plain", seed].info.run_id, "videos")
    ]  # fmt: skip
    assert paths == ["videos/last.mp4", "videos/first.gif"]


def test_a_cell_that_was_broken_off_is_killed_until_it_goes_on(run: Fabricated) -> None:
    cell = run.cells[0]
    run.partial(cell, 2)
    sync(run)
    seen = Seen(run)
    assert seen.status("plain", "0") == seen.status("plain") == seen.status() == "KILLED"
    assert seen.status("plain", "1") == "SCHEDULED"
    mirror = tracking.Mirror(run.store, run.folder, tracking.default_uri(run.store))
    mirror.sync(alive=True)  # the run was started again, and comes to this cell later
    assert Seen(run).status("plain", "0") == "SCHEDULED" and Seen(run).status() == "RUNNING"
    run.finish(cell)
    mirror.sync()
    assert Seen(run).status("plain", "0") == "FINISHED"


def test_a_curve_is_at_most_200_points_with_its_first_and_last(tmp_path: Path) -> None:
    for planned in (1, 150, 197, 198, 199, 200, 201, 399, 5000):
        points = [{"control_steps": i} for i in range(planned + 1)]
        kept = [p["control_steps"] for p in curves.thin(points, planned)]
        assert len(kept) <= CURVE_POINTS and kept[0] == 0 and kept[-1] == planned
        assert kept == list(range(planned + 1)) or planned >= CURVE_POINTS - 1
        half = [p["control_steps"] for p in curves.thin(points[: planned // 2], planned)]
        assert half == kept[: len(half)]  # what was sent while it grew is what is kept in the end


def test_no_metric_gets_more_points_than_a_curve_may_have(run: Fabricated) -> None:
    sync(run)
    mirror = tracking.Mirror(run.store, run.folder, tracking.default_uri(run.store))
    tree = mirror._tree_of("toy/reach")
    assert tree.log("", [("x", 0.0, 0, i) for i in range(300)]) == CURVE_POINTS
    assert tree.log("", [("x", 0.0, 0, i) for i in range(300)]) == 0


def test_system_metrics_go_through_a_file_and_on_after_a_restart(
    run: Fabricated, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(tracking_system.time, "monotonic", lambda: clock[0])
    first, other = tracking_system.Sampler(run.folder), tracking_system.Sampler(run.folder)
    for _ in range(20_000):  # 28 hours
        first.look()
        other.look()  # another process at the same run takes none
        clock[0] += 5.0
    first.close()
    seconds = [row["seconds"] for row in tracking_system.stored(run.folder)]
    assert seconds[:4] == [10, 20, 30, 40] and 90_000 < seconds[-1] <= 100_000 and len(seconds) < CURVE_POINTS
    assert not other.rows
    again = tracking_system.Sampler(run.folder)
    again.look()
    clock[0] += 6000.0
    again.look()
    assert again.rows[-1]["seconds"] == seconds[-1] + 6000
    again.close()
    sync(run)
    found = Seen(run).history("", "", "system/cpu_utilization_percentage")
    assert [step for step, _ in found] == [round(row["seconds"]) for row in again.rows]
    assert sync(run) == 0


def test_system_metrics_never_raise(run: Fabricated, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path) -> dict[str, float]:
        raise OSError("no /proc")

    monkeypatch.setattr(tracking_system, "sample", broken)
    monkeypatch.setattr(tracking_system, "FIRST_SECONDS", 0.0)
    sampler = tracking_system.Sampler(run.folder)
    sampler.look()
    sampler.close()
    assert tracking_system.stored(run.folder) == []


def test_another_process_at_the_same_run_is_no_reason_to_warn(
    run: Fabricated, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "LOCK_SECONDS", 0.05)
    with filelock.FileLock(run.folder / ".mlflow.lock"), tracking.Live(run.store, run.folder, period=0.05):
        time.sleep(0.5)
    assert capsys.readouterr().err == ""


def test_what_another_process_sent_is_asked_anew(run: Fabricated) -> None:
    uri = tracking.default_uri(run.store)
    mine, other = (tracking.Mirror(run.store, run.folder, uri) for _ in range(2))
    sent = []
    for count, mirror in enumerate((mine, other, mine, other), 1):
        run.partial(run.cells[0], count)
        sent.append(mirror.sync())
    assert sent[1] == sent[2] == sent[3]  # one more point each; MLflow itself drops what is equal to the last digit
    assert [step for step, _ in Seen(run).history("plain", "0")] == [0, 500, 1000, 1500]
