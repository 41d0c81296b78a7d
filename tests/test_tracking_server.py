"""The mirror against a real MLflow server on PostgreSQL, on loopback: also one that dies in a run."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fabricate import KINDS, Fabricated
from safetensors.numpy import save_file
from studies import SEARCH, by_start, made, spec_of

from bench import study_tracking, tracking
from bench.store import write_json
from bench.tracking_client import quiet_client
from bench.types import InputError

SOME = {name: KINDS[name] for name in ("plain", "noised_chosen")}
SECONDS = 40.0  # to wait for a server to answer


def binary(name: str) -> str | None:
    """A program of PostgreSQL; Debian keeps the server's out of the path."""
    beside = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(beside[-1]) if beside else None)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait(ready: Callable[[], bool], what: str, process: subprocess.Popen[bytes]) -> None:
    """Until it is; fails if its process ends first."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        with suppress(OSError):
            if ready():
                return
        assert process.poll() is None, f"{what} ended with {process.returncode}"
        time.sleep(0.1)
    raise AssertionError(f"{what} did not answer within {SECONDS} s")


def kill(process: subprocess.Popen[bytes], how: int = signal.SIGKILL) -> None:
    """End a process and all it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, how)
    process.wait(20)


def connects(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), 1):
        return True


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """A new PostgreSQL cluster in a temporary folder; the URL of its database."""
    if binary("initdb") is None or binary("postgres") is None:
        pytest.skip("no PostgreSQL: apt-get install postgresql")
    pytest.importorskip("psycopg2", reason="no driver for PostgreSQL: pip install psycopg2-binary")
    folder, port = Path(tempfile.mkdtemp(prefix="tmrl-pg-", dir="/tmp")), free_port()
    options: dict[str, Any] = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    if os.geteuid() == 0:  # the server refuses to run as root
        user = pwd.getpwnam("nobody")
        os.chown(folder, user.pw_uid, user.pw_gid)
        options |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    process = None
    try:
        data = str(folder / "data")
        init = [str(binary("initdb")), "-D", data, "-U", "bench", "-A", "trust", "-N", "--locale=C", "-E", "UTF8"]
        subprocess.run(init, check=True, **options)
        start = [str(binary("postgres")), "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", str(folder), "-F"]
        process = subprocess.Popen(start, start_new_session=True, **(options | {"stderr": subprocess.DEVNULL}))
        wait(lambda: connects(port), "postgres", process)
        yield f"postgresql+psycopg2://bench@127.0.0.1:{port}/postgres"
    finally:
        if process is not None:
            kill(process, signal.SIGQUIT)
        shutil.rmtree(folder, ignore_errors=True)


class Server:
    """An MLflow server that can be killed and started again at the same address."""

    def __init__(self, database: str, folder: Path) -> None:
        self.database, self.folder, self.port = database, folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            sys.executable, "-m", "mlflow", "server", "--backend-store-uri", self.database, "--workers", "1", "--host",
            "127.0.0.1", "--port", str(self.port), "--artifacts-destination", str(self.folder / "artifacts"),
        ]  # fmt: skip
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=os.environ | quiet, stdout=log, stderr=log, start_new_session=True
            )
        wait(self.healthy, "mlflow server", self.process)

    def healthy(self) -> bool:
        with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
            return bool(answer.status == 200)

    def die(self) -> None:
        if self.process is not None:
            kill(self.process)
        self.process = None


@pytest.fixture(scope="module")
def started(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(database, tmp_path_factory.mktemp("server"))
    try:
        yield server
    finally:
        server.die()


@pytest.fixture
def server(started: Server) -> Server:
    """The server, up again if a test before this one has killed it."""
    if started.process is None:
        started.start()
    return started


def everything(uri: str, tag: str, name: str) -> dict[str, dict[str, list[int]]]:
    """Run's name below its parents → metric → steps, for all runs of a run or study; none was made twice."""
    client, found = quiet_client(uri), {}
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id], f"tags.`{tag}` = '{name}'"):
            place = f"{experiment.name} {run.data.tags.get('bench.place', '')} {run.info.run_name}"
            assert place not in found, f"{place} was made twice"
            found[place] = {
                metric: [p.step for p in client.get_metric_history(run.info.run_id, metric)]
                for metric in run.data.metrics
            }
    return found


def check_once(found: dict[str, dict[str, list[int]]]) -> None:
    for place, metrics in found.items():
        assert len(metrics) < 40
        for metric, steps in metrics.items():
            twice = [step for step, count in Counter(steps).items() if count > 1]
            assert not twice and len(steps) <= 200, f"{place}: {metric} at {twice}"


def test_a_run_is_complete_after_the_server_died_in_its_middle(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Fabricated(tmp_path / "results", SOME, seeds=(0, 1), points=6, name="dies")
    first, second = run.cells[0], run.cells[1]
    write_json(run.folder / "system.json", [{"seconds": 10.0, "time": time.time(), "cpu_utilization_percentage": 50.0}])  # type: ignore[arg-type]
    with tracking.Live(run.store, run.folder, server.uri, period=0.1):
        run.partial(first, 3)
        wait(lambda: "success_rate" in steps_of(server, "plain seed 0"), "the mirror", process_of(server))
        server.die()
        run.finish(first)
        run.partial(second, 4)
        time.sleep(1.0)
    assert "goes on" in capsys.readouterr().err
    with pytest.raises(InputError, match="start it"):
        tracking.sync(run.store, run.folder, server.uri)
    server.start()
    for cell in run.cells:
        run.finish(cell)
    assert tracking.sync(run.store, run.folder, server.uri) > 0
    assert tracking.sync(run.store, run.folder, server.uri) == 0
    found = everything(server.uri, "bench.run", "dies")
    check_once(found)
    assert len(found) == 1 + 2 + 4
    for cell in run.cells:
        curve = found[f"toy/reach  {cell['method']} seed {cell['seed']}"]
        wanted = [point["control_steps"] for point in run.points_json(cell, 6)]
        assert curve["success_rate"] == wanted and len(curve["critic_loss"]) == 5 and len(curve["final_success"]) == 1
    assert all(len(found[f"toy/reach  {method}"]["success_rate"]) == 6 for method in SOME)
    assert found["toy/reach  dies"]["system/cpu_utilization_percentage"][0] == 10


def steps_of(server: Server, name: str) -> dict[str, list[int]]:
    """Metric → steps of a run of the dying comparison, as far as it is there."""
    return everything(server.uri, "bench.run", "dies").get(f"toy/reach  {name}", {})


def process_of(server: Server) -> subprocess.Popen[bytes]:
    assert server.process is not None
    return server.process


def test_model_data_and_files_go_through_the_server(server: Server, tmp_path: Path) -> None:
    run = Fabricated(tmp_path / "results", {"plain": KINDS["plain"]}, seeds=(0,), points=3, name="files")
    run.finish_all()
    entry = run.entry(run.cells[0], "finetune")
    save_file({"w": np.ones(3, np.float32)}, entry.file("agent.safetensors"))
    tracking.sync(run.store, run.folder, server.uri)
    client = quiet_client(server.uri)
    experiment = client.get_experiment_by_name("toy/reach").experiment_id
    seed = client.search_runs([experiment], "tags.`bench.run` = 'files' and tags.`bench.level` = 'seed'")[0]
    assert {f.path for f in client.list_artifacts(seed.info.run_id)} >= {"points.json", "meta.json"}
    assert len(seed.inputs.dataset_inputs) == 2
    model = client.search_logged_models([experiment], filter_string=f"source_run_id = '{seed.info.run_id}'")[0]
    assert [m.key for m in model.metrics] == ["final_success"] and str(model.status) == "READY"
    stored = [p.name for p in server.folder.rglob("*.safetensors")]
    assert stored == ["agent.safetensors"]


def test_a_study_is_complete_after_the_server_was_away(server: Server, tmp_path: Path) -> None:
    spec = spec_of(*SEARCH, "--trials", "3", "--seeds", "2")
    book, trials = made(spec, tmp_path, by_start)
    write_json(book.folder / "study.json", {"name": spec.name, **spec.identity(), "trials": spec.trials})
    study_tracking.sync(trials.store, book.folder, server.uri)
    server.die()
    with pytest.raises(InputError, match="start it"):
        study_tracking.sync(trials.store, book.folder, server.uri)
    server.start()
    assert study_tracking.sync(trials.store, book.folder, server.uri) == 0
    found = everything(server.uri, "bench.study", spec.name)
    check_once(found)
    assert len(found) == 1 + 3 + 3 * 2
    assert sum("value" in metrics for metrics in found.values()) == 3
