"""The command line as a user meets it: bad input in one line with exit code 2, failures, resumption, Ctrl-C, help."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from bench import cli, doctor, executor, report, tracking
from bench.plan import Plan, make_plan
from bench.stages import video
from bench.store import Store, masked
from bench.types import InputError

TINY = [
    "--methods", "bc,csp", "--tasks", "toy/reach", "--profile", "smoke", "--no-tracking",
    "--set", "rl.decisions=60", "--set", "pretrain.steps=30", "--set", "coverage.states=2",
]  # fmt: skip
ROOT = Path(__file__).parent.parent


def bench(*args: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-m", "bench", *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, **options)  # type: ignore[call-overload,no-any-return]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("results")
    done = bench("run", *TINY, "--results", str(results))
    assert done.returncode == 0, done.stderr
    return results


BAD = {
    "method": (["run", "--methods", "csp_tmlr"], "csp_tmrl"),
    "task": (["run", "--tasks", "toy/reech"], "toy/reach"),
    "profile": (["run", "--profile", "quik"], "quick"),
    "option": (["run", "--method", "bc"], "--methods"),
    "command": (["rnu"], "run"),
    "key": (["run", "--set", "pretrain.step=5"], "pretrain.steps"),
    "method key": (["run", "--set", "csp.schedul=cosine"], "schedule"),
    "no value": (["run", "--set", "pretrain.steps"], "KEY=VALUE"),
    "type": (["run", "--set", "pretrain.steps=many"], "whole number"),
    "range": (["run", "--set", "csp.clean=1.5"], "outside [0.0, 1.0]"),
    "not finite": (["run", "--set", "rl.discount=nan"], "outside"),
    "infinite": (["run", "--set", "rl.decisions=inf"], "not a whole number"),
    "overflow": (["run", "--set", "rl.decisions=1e400"], "not a whole number"),
    "empty": (["run", "--methods", ""], "--methods is empty"),
    "choice": (["run", "--set", "csp.noise=cosin"], "cosine"),
    "chunk": (["run", "--tasks", "toy", "--set", "policy.execute=9"], "policy.chunk"),
    "seeds": (["run", "--seeds", "two"], "--seeds"),
    "jobs": (["run", "--tasks", "toy", "--jobs", "0"], "--jobs"),
    "context key": (["run", "--methods", "csp", "--tasks", "toy", "--set", "csp.noised=gaol"], "goal"),
    "heads": (["run", "--set", "policy.architecture=transformer", "--set", "policy.heads=3"], "policy.heads"),
    "nothing to learn": (["run", "--set", "rl.decisions=100"], "rl.random_decisions"),
    "no sigma": (["run", "--set", "coverage.sigmas="], "coverage.sigmas"),
    "no file": (["run", "--config", "nowhere.toml"], "nowhere.toml"),
    "a folder": (["run", "--config", "/"], "cannot read"),
    "no results": (["report", "--results", "nowhere"], "nowhere"),
    "no results to list": (["list", "--results", "nowhere"], "nowhere"),
    "empty path": (["run", "--results", ""], "the path is empty"),
    "another's option": (["study", "--dry-run"], "bench study --help"),
    "type of an option": (["run", "--jobs", "many"], "'many'; see"),
    "seeds without end": (["run", "--seeds", "99999999999999999999,1"], "of 0 to 2147483647"),
    "a thousand million seeds": (["run", "--seeds", "1000000000"], "up to 1000000"),
    "sigma twice": (["run", "--set", "coverage.sigmas=0,0,0.5"], "every σ once"),
    "below its range": (["run", "--set", "csp.z_bound=-1"], "--set: csp.z_bound = -1.0 is outside"),
    "another method": (["run", "--methods", "csp", "--set", "bc.z_bound=2"], "bc is not among the methods"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_code_2(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, expected = BAD[name]
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1, err
    assert expected in err
    assert not list(tmp_path.iterdir()), "bad input must leave nothing behind"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[run\n", "not valid TOML"),
        ("[run]\nmethod = 'bc'\n", "run.method"),
        ("[csp]\nschedul = 'cosine'\n", "schedule"),
        ("[tasks.'toy/reech']\nrl.decisions = 5\n", "toy/reach"),
        ("run = 5\n", "run = 5 is not a table"),
        ("tasks = 3\n", "tasks = 3 is not a table"),
        ("[tasks]\n'toy/reach' = 5\n", "'toy/reach' = 5 is not a table"),
        ("rl = 5\n", "unknown key 'rl'"),
        ("[[rl]]\ndecisions = 5\n", "unknown key 'rl'"),
        ("[run]\nmethods = 5\n", "unknown method '5'"),
        ("[run]\nmethods = []\n", "--methods is empty"),
        ("[run]\nprofile = 5\n", "unknown profile '5'"),
        ("[run]\nprofile = { a = 1 }\n", "unknown profile"),
        ("[run]\nseeds = true\n", "--seeds"),
        ("[rl]\ndecisions = inf\n", "x.toml: rl.decisions = inf is not a whole number"),
        ("[csp]\nz_bound = -1\n", "x.toml: csp.z_bound = -1.0 is outside"),
        ("[tasks.'toy/reach']\nrl.batch = 'b'\n", "x.toml: tasks.'toy/reach': rl.batch = 'b' is not"),
        ("[rl]\nactor = [inf]\n", "not a whole number"),
    ],
)
def test_bad_configuration_files(text: str, expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(text)
    assert cli.main(["run", "--tasks", "toy", "--config", str(tmp_path / "x.toml"), "--dry-run"]) == 2
    err = capsys.readouterr().err
    assert expected in err and err.count("\n") == 1


def test_an_empty_plan_of_a_folder_that_is_not_there_leaves_it_so(tmp_path: Path) -> None:
    assert cli.main(["run", "--tasks", "toy", "--dry-run", "--results", str(tmp_path / "typo")]) == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("port", ["0", "-5", "65536"])
def test_a_port_that_cannot_be(port: str, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ui", "--results", str(finished), "--port", port]) == 2
    assert "from 1 to 65535" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[]", "{}", "{", '{"command": [], "cells": [{}]}', '{"cells": []}', "null"])
def test_a_damaged_record_is_one_line_and_written_anew(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, store = make_plan(cli.request_of(cli.parser().parse_args(["run", *TINY]))), Store(tmp_path)
    path = plan.write(store) / "run.json"
    whole = set(json.loads(path.read_text()))
    path.write_text(text)
    for command in ("show", "report", "sync"):
        assert cli.main([command, "--results", str(tmp_path)]) == 2
        err = capsys.readouterr().err
        assert str(path) in err and err.count("\n") == 1
    assert cli.main(["list", "--results", str(tmp_path)]) == 0 and str(path) in capsys.readouterr().out
    plan.write(store)
    assert set(json.loads(path.read_text())) == whole


@pytest.mark.parametrize("text", ["[{", "[]", '[{"success_rate": null, "control_steps": 5}]', "{}"])
def test_damaged_points_are_said_where_cells_are_shown(
    text: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = next(finished.glob("stages/finetune/*/points.json"))
    whole = path.read_text()
    path.write_text(text)
    assert cli.main(["show", "--results", str(finished)]) == 0
    path.write_text(whole)
    assert capsys.readouterr().out.count(f"done, {path} is damaged") == 1


def test_second_run_skips_everything(finished: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (finished / "stages").rglob("*") if p.is_file()}
    record = next(finished.glob("runs/*/run.json"))
    content, written = record.read_bytes(), record.stat().st_mtime_ns
    again = bench("run", *TINY, "--results", str(finished), "--jobs", "1")
    assert again.returncode == 0 and " 0 of " in again.stdout
    assert record.read_bytes() == content and record.stat().st_mtime_ns > written
    assert before == {p: p.stat().st_mtime_ns for p in (finished / "stages").rglob("*") if p.is_file()}


def test_a_run_that_goes_on_keeps_its_birthday(tmp_path: Path) -> None:
    words = ["run", *TINY, "--results", str(tmp_path)]
    plan, store = make_plan(cli.request_of(cli.parser().parse_args(words))), Store(tmp_path)
    path = plan.write(store, 3) / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"created": 5.0, "command": ["old"]}))
    plan.write(store, 0)
    assert json.loads(path.read_text())["command"] == ["old"]
    plan.write(store, 1)
    record = json.loads(path.read_text())
    assert record["created"] == 5.0 and record["updated"] > 5.0 and record["command"] != ["old"]


def test_a_page_that_is_older_than_a_stage_is_written_and_mirrored_anew(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another run may have finished what this one's page shows as failed."""
    done: list[str] = []

    def mirror(*_: object) -> nullcontext[None]:
        done.append("mirror")
        return nullcontext()

    monkeypatch.setattr(report, "write", lambda *_: done.append("page"))
    monkeypatch.setattr(tracking, "Live", mirror)
    words = ["run", *TINY, "--results", str(finished)]
    words.remove("--no-tracking")
    page, record = next(finished.glob("runs/*/report/index.html")), next(finished.glob("runs/*/run.json"))
    os.utime(page)
    assert cli.main(words) == 0 and done == []
    os.utime(page, (1, 1))
    assert cli.main([*words, "--tracking-uri", "http://me:secret@there"]) == 0 and done == ["mirror", "page"]
    out = capsys.readouterr().out
    assert "python -m bench ui --results " in out and "--tracking-uri 'http://me:***@there'\n" in out
    os.utime(page)
    meta = next(finished.glob("stages/video/*/meta.json"))
    content, before = meta.read_bytes(), record.read_bytes()
    meta.unlink()
    monkeypatch.setattr(executor.Executor, "run", lambda self: None)
    monkeypatch.setattr(video, "remarks", lambda store, plan, made: [f"{len(made)} film"])
    assert cli.main(words) == 0 and done[2:] == ["mirror", "page"]
    meta.write_bytes(content)
    assert capsys.readouterr().err == "1 film\n" and record.read_bytes() == before


def test_a_film_that_comes_later_changes_no_more_of_the_record_than_its_key(tmp_path: Path) -> None:
    def plan(*words: str) -> Plan:
        return make_plan(cli.request_of(cli.parser().parse_args(["run", *TINY, "--results", str(tmp_path), *words])))

    store, without, usual = Store(tmp_path), plan("--set", "video.seeds=0"), plan()
    path = without.write(store) / "run.json"
    before = json.loads(path.read_text())
    assert {c["stages"].pop("video") for c in before["cells"]} == {None}
    for again in (usual, without):
        again.write(store, 0)
        record = json.loads(path.read_text())
        assert [c["stages"].pop("video") for c in record["cells"]] == [v.key for v in usual.videos]
        assert record == before


def test_passwords_are_not_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    address, shown = "postgresql+psycopg2://me:se%40c@there:5432/x", "postgresql+psycopg2://me:***@there:5432/x"
    assert masked(f"at {address}, {address}") == f"at {shown}, {shown}"
    assert (
        masked("redis://:a@b/c@there/0 x://h/d?user=u&password=p&y=1")
        == "redis://:***@there/0 x://h/d?user=u&password=***&y=1"
    )
    for plain in ("sqlite:////tmp/a:b@c.db", "http://127.0.0.1:5000", "http://me@there/x", "rl.decisions=5"):
        assert masked(plain) == plain
    words = ["run", *TINY, "--results", str(tmp_path), "--tracking-uri", address]
    monkeypatch.setattr(sys, "argv", ["bench", *words])
    plan, store = make_plan(cli.request_of(cli.parser().parse_args(words))), Store(tmp_path)
    record = json.loads((plan.write(store) / "run.json").read_text())
    assert record["command"] == ["python", "-m", "bench", *words[:-1], shown]
    entry = store.entry("demos", "x")
    entry.folder.mkdir(parents=True)
    entry.finish({}, {})
    assert entry.meta()["arguments"] == record["command"][3:]
    assert cli.main(["run", "--methods", address]) == 2 and shown in capsys.readouterr().err


def test_report_show_and_list(finished: Path) -> None:
    assert bench("report", "--results", str(finished), "--out", str(finished / "out")).returncode == 0
    assert (finished / "out" / "index.html").exists() and (finished / "out" / "report.md").exists()
    (name,) = (path.name for path in (finished / "runs").iterdir())
    twice = bench("report", "--results", str(finished), "--run", f"{name}, {name}")
    assert twice.returncode == 0 and (finished / "runs" / name / "report") in Path(twice.stdout.split()[1]).parents
    shown = bench("show", "--results", str(finished)).stdout
    assert shown.count("done, success") == 2
    listed = bench("list", "--results", str(finished)).stdout
    assert "csp_tmrl" in listed and "navigation/pointmaze-giant" in listed and "smoke-" in listed
    assert "csp.schedule" in bench("list", "--keys").stdout
    unknown = bench("show", "smoke-nothing", "--results", str(finished))
    assert unknown.returncode == 2 and "smoke-" in unknown.stderr


@pytest.mark.parametrize("damage", ["cut", "altered", "missing"])
@pytest.mark.parametrize("name", ["demos.safetensors", "policy.safetensors", "episodes.parquet"])
def test_a_damaged_file_is_refused_by_name(finished: Path, tmp_path: Path, name: str, damage: str) -> None:
    results = tmp_path / "copy"
    shutil.copytree(finished, results)
    path = next(results.rglob(name))
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    run = bench("run", *TINY, "--results", str(results))
    assert run.returncode == 2 and run.stderr.count("\n") == 1
    assert str(path) in run.stderr and "run again" in run.stderr


def test_demonstrations_of_another_simulator_are_refused(finished: Path, tmp_path: Path) -> None:
    from bench import registry
    from bench.stages import demos

    results = tmp_path / "copy"
    shutil.copytree(finished, results)
    meta = next(results.glob("stages/demos/*/meta.json"))
    record = json.loads(meta.read_text())
    record["simulators"]["numpy"] = "1.0"
    meta.write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"made with numpy 1\.0"):
        demos.load(Store(results).entry("demos", meta.parent.name), registry.task("toy/reach"))


def test_unwritable_results_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = bench("run", *TINY, "--results", str(tmp_path / "file"))
    assert done.returncode == 2 and "cannot write" in done.stderr and done.stderr.count("\n") == 1


def test_full_disk_is_said_and_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench import store

    def full(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="No space left"):
        store.write_atomic(tmp_path / "x", full)
    assert not list(tmp_path.iterdir())


def test_a_failing_cell_does_not_stop_the_grid(tmp_path: Path) -> None:
    """Two cells find a checkpoint that is none."""
    words = ["run", *TINY, "--results", str(tmp_path), "--tasks", "toy"]
    plan = make_plan(cli.request_of(cli.parser().parse_args(words)))
    for cell in plan.cells:
        if cell.task == "toy/reach-unseen":
            folder = Store(tmp_path).entry("finetune", cell.units[-1].key).checkpoint
            folder.mkdir(parents=True)
            (folder / "cell.safetensors").write_bytes(b"cut short")
    done = bench(*words)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("failed: ")]
    assert len(lines) == 2 and all("damaged checkpoint" in line for line in lines)
    page = next(tmp_path.rglob("index.html")).read_text()
    assert "damaged checkpoint" in page
    shown = bench("show", "--results", str(tmp_path)).stdout
    assert shown.count("done, success") == 2 and shown.count("finetune failed") == 2


def test_unreachable_tracking_server_costs_a_warning(tmp_path: Path) -> None:
    words = [w for w in TINY if w != "--no-tracking"]
    done = bench("run", *words, "--results", str(tmp_path), "--tracking-uri", "http://127.0.0.1:9")
    assert done.returncode == 0
    assert done.stderr.count("unreachable") == 1 and "sync" in done.stderr


def test_two_runs_share_the_work(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "bench", "run", *TINY, "--results", str(tmp_path), "--jobs", "1"]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    outputs = [p.communicate(timeout=120) for p in both]
    assert [p.returncode for p in both] == [0, 0], outputs
    folders = [p.name for p in tmp_path.glob("stages/*/*") if p.is_dir()]
    assert len(folders) == len(set(folders)) == 10
    assert not list(tmp_path.rglob("failed.json")) and not list(tmp_path.rglob("checkpoint"))


def test_interrupt_saves_and_goes_on(tmp_path: Path) -> None:
    words = [*TINY, "--results", str(tmp_path), "--set", "rl.decisions=1600", "--jobs", "1"]
    command = [sys.executable, "-W", "ignore", "-m", "bench", "run", *words]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    limit = time.monotonic() + 60
    while not list(tmp_path.glob("stages/finetune/*/points.json")) and time.monotonic() < limit:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.count("\n") == 2, err
    assert err.startswith("stopping: saving the state; Ctrl-C again ends at once\n") and "goes on from here" in err
    checkpoints = list(tmp_path.glob("stages/finetune/*/checkpoint/cell.safetensors"))
    assert len(checkpoints) == 1
    assert bench("run", *words).returncode == 0


def test_help_texts(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main(["--help"])
    top = capsys.readouterr().out
    assert done.value.code == 0
    for command in ("run", "report", "ui", "sync", "list", "show", "doctor"):
        assert command in top
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        assert "--results" in capsys.readouterr().out or command == "doctor"


def test_doctor_names_wrong_pairs_and_the_cure() -> None:
    good = {"numpy": "1.26.4", "mujoco": "3.8.1", "dm_control": "1.0.41", "robosuite": "1.5.2", "ogbench": "1.2.2",
            "stable-baselines3": "2.9.2", "gymnasium": "1.4.0", "torch": "2.13.0+cpu", "pandas": "3.0.6",
            "mlflow": "3.17.2", "optuna": "5.0.0"}  # fmt: skip
    assert all(f.ok for f in doctor.check_versions(good))
    for change, words in (
        ({"mujoco": "3.10.0"}, "mujoco 3.10.0 does not fit"),
        ({"dm_control": "1.0.50"}, "dm_control 1.0.50 does not match mujoco 3.8.1"),
        ({"numpy": "2.1.0"}, "numpy 2.1.0 does not fit"),
    ):
        wrong = [f for f in doctor.check_versions(good | change) if not f.ok]
        assert any(words in f.what and "pip install" in f.fix for f in wrong), change
    without = {k: v for k, v in good.items() if k != "robosuite"}
    missing = [f for f in doctor.check_versions(without) if not f.ok]
    assert len(missing) == 1 and "--no-deps robosuite" in missing[0].fix


def test_doctor_finds_this_installation_well() -> None:
    findings = list(doctor.examine())
    assert [f for f in findings if not f.ok] == []
    assert any("robosuite_tasks: steps" in f.what for f in findings)


def test_doctor_shows_findings_as_they_come(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []

    def examine() -> Iterator[doctor.Finding]:
        yield doctor.Finding(False, "a is missing", "install a")
        seen.append(capsys.readouterr().out)
        yield doctor.Finding(True, "b")

    monkeypatch.setattr(doctor, "examine", examine)
    assert cli.main(["doctor"]) == 1
    assert seen == ["WRONG a is missing\n      install a\n"] and capsys.readouterr().out == "ok    b\n"
