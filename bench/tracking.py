"""The MLflow mirror of a run: experiment = task; comparison → method → seed. The files are the truth.

`sync` compares what MLflow has with what lies on disk and logs the difference, so it can be called at any time and any
number of times. `Live` calls it while a run goes on. One process writes; MLflow is imported only when needed.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shlex
import socket
import sys
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import filelock

from bench import config, summary
from bench import store as schema
from bench.stages.curves import cell_status, stages
from bench.store import Entry, Store, read_json, read_table
from bench.types import InputError

# Metrics of a seed's run by evaluation point; the step is control steps, so that curves share the report's axis.
POINT_METRICS = (
    "success_rate", "selection_success_rate", "decisions", "wall_seconds", "robot_hours", "sigma", "critic_loss",
    "alpha",
)  # fmt: skip
MEAN_METRICS = POINT_METRICS[:6]  # of a method's run: means over its seeds
ARTIFACTS = ("episodes.parquet", "training.parquet", "sigma.parquet", "points.json", "meta.json")
VALUE_LIMIT = 6000  # MLflow cuts longer parameter values silently
BATCH = 100  # parameters per request, MLflow's limit
PERIOD = 5.0  # seconds between two looks at the files while a run goes on
LAST_SECONDS = 30.0  # how long the end of a run waits for the last look
LOCK_SECONDS = 20.0  # how long to wait for another process that mirrors the same run

Point = tuple[str, float, int, int]  # metric, value, time in ms, step


def default_uri(store: Store) -> str:
    """The embedded store of a results folder."""
    return f"sqlite:///{(store.root / 'mlflow.db').resolve()}"


def _client(uri: str) -> Any:
    """An MlflowClient that says little and fails fast."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    for name in ("alembic", "mlflow", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.ERROR)  # its import sets it anew
    return mlflow.MlflowClient(tracking_uri=uri)


def sync(store: Store, run_folder: Path, uri: str) -> int:
    """Bring MLflow up to date with the run's files; the number of metric values that were new.

    Raises InputError if the tracking server does not answer.
    """
    read_json(run_folder / "run.json")
    try:
        return Mirror(store, run_folder, uri).sync()
    except Exception as error:
        raise InputError(f"tracking store {uri}: {_brief(error)}; start it, or choose another --tracking-uri") from None


def _brief(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


class Mirror:
    """What MLflow is known to have of one run, so that a second look asks it nothing it was told already."""

    def __init__(self, store: Store, run_folder: Path, uri: str) -> None:
        self.store, self.folder, self.uri = store, run_folder, uri
        self.client = _client(uri)
        self.run: dict[str, Any] = {}
        self._experiments: dict[str, str] = {}  # task → experiment id
        self._runs: dict[tuple[str, str, str], Any] = {}  # task, method, seed → MLflow's run
        self._status: dict[str, str] = {}  # run id → status
        self._steps: dict[str, dict[str, set[int]]] = {}  # run id → metric → steps logged
        self._complete: set[str] = set()  # seed runs with everything logged, artifacts too

    def sync(self) -> int:
        """Send what MLflow lacks; the number of new metric values. Two processes take turns."""
        with filelock.FileLock(self.folder / ".mlflow.lock", timeout=LOCK_SECONDS):
            last = self.folder / ".mlflow.by"  # the process that synced last: what another sent must be asked anew
            if not last.exists() or last.read_text() != str(os.getpid()):
                self._runs, self._status, self._steps, self._complete = {}, {}, {}, set()
                last.write_text(str(os.getpid()))
            return self._sync()

    def _sync(self) -> int:
        self.run = read_json(self.folder / "run.json")
        cells: list[dict[str, Any]] = self.run.get("cells", [])
        return sum(self._task(task, [c for c in cells if c["task"] == task]) for task in _unique(cells, "task"))

    def _task(self, task: str, cells: list[dict[str, Any]]) -> int:
        """Mirror the cells of one task; the number of new metric values."""
        self._open(task)
        top = self._get(task, "", "", self.run.get("run", self.folder.name), {})
        new, states = 0, []
        for method in _unique(cells, "method"):
            own = [c for c in cells if c["method"] == method]
            parent = self._get(task, method, "", method, {"mlflow.parentRunId": top}, _common(own))
            seeds = [self._cell(cell, parent) for cell in own]
            states += [state for state, _, _ in seeds]
            new += sum(count for _, count, _ in seeds)
            new += self._log(parent, _mean_points([points for _, _, points in seeds], self._start()))
            self._set_status(parent, combined([state for state, _, _ in seeds]))
        self._set_status(top, combined(states))
        return new

    def _cell(self, cell: dict[str, Any], parent: str) -> tuple[str, int, list[dict[str, Any]]]:
        """Mirror one cell; (status, number of new metric values, its evaluation points)."""
        seed = str(cell["seed"])
        tags = {"mlflow.parentRunId": parent, "bench.demos": cell["stages"]["demos"]}
        run_id = self._get(cell["task"], cell["method"], seed, f"{cell['method']} seed {seed}", tags, cell["config"])
        entries = stages(self.store, cell)
        state, _ = cell_status(entries)
        points = _points(entries["finetune"])
        if run_id in self._complete:
            return state, 0, points
        new = self._log(run_id, _values(points, self._start()))
        if "coverage" in entries and "success_at_1" not in self._steps[run_id]:
            new += self._log(run_id, _before(entries["coverage"], self._start()))
        if state == "done":
            self._finish(run_id, cell, entries)
        self._set_status(run_id, state)
        return state, new, points

    def _start(self) -> int:
        """The run's beginning in ms; metrics lie at this time plus their wall seconds."""
        return int(1000 * float(self.run.get("created", 0)))

    # MLflow's side

    def _open(self, task: str) -> None:
        """Find or make the task's experiment, and find the runs it has of this comparison."""
        if task in self._experiments:
            return
        found = self.client.get_experiment_by_name(task)
        if found is not None and found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        self._experiments[task] = (
            found.experiment_id if found else self.client.create_experiment(task, self._artifacts(task))
        )
        wanted = f"tags.`bench.run` = '{self.run.get('run', self.folder.name)}'"
        for run in _search(self.client, self._experiments[task], wanted):
            tags = run.data.tags
            self._adopt((task, tags.get("bench.method", ""), tags.get("bench.seed", "")), run)

    def _artifacts(self, task: str) -> str | None:
        """Artifacts lie beside an embedded store; a server decides itself."""
        if not self.uri.startswith("sqlite:///"):
            return None
        folder = Path(self.uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts" / task.replace("/", "-")
        return folder.as_uri()

    def _adopt(self, key: tuple[str, str, str], run: Any) -> None:
        run_id = run.info.run_id
        self._runs[key] = run
        self._status[run_id] = run.info.status
        self._steps[run_id] = {
            name: {m.step for m in self.client.get_metric_history(run_id, name)} for name in run.data.metrics
        }

    def _get(
        self, task: str, method: str, seed: str, name: str, tags: Mapping[str, str],
        params: Mapping[str, Any] | None = None,
    ) -> str:  # fmt: skip
        """The id of the run for (task, method, seed), made if need be; "" stands for a level above."""
        key = (task, method, seed)
        if key not in self._runs:
            level = "seed" if seed else "method" if method else "comparison"
            labels = {"bench.task": task, "bench.method": method, "bench.seed": seed, "bench.level": level}
            every = self._tags() | {k: v for k, v in labels.items() if v} | dict(tags)
            if params is not None:
                every["bench.config_hash"] = config.digest(dict(params))
            made = self.client.create_run(self._experiments[task], start_time=self._start(), tags=every, run_name=name)
            self._adopt(key, made)
        run = self._runs[key]
        if params and "bench.params" not in run.data.tags:
            self._params(run.info.run_id, params)
            run.data.tags["bench.params"] = "logged"
        return str(run.info.run_id)

    def _tags(self) -> dict[str, str]:
        run = self.run
        versions = json.dumps(run.get("versions", {}), sort_keys=True)
        tags = {
            "bench.run": run.get("run", self.folder.name), "bench.profile": run.get("profile", ""),
            "bench.commit": run.get("commit", ""), "bench.versions": versions,
            "bench.command": shlex.join(map(str, run.get("command", [])))[:4000],
        }  # fmt: skip
        return {k: str(v) for k, v in tags.items() if v}

    def _params(self, run_id: str, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        items = [Param(name, _value(value)) for name, value in sorted(params.items())]
        for i in range(0, len(items), BATCH):
            self.client.log_batch(run_id, params=items[i : i + BATCH])
        self.client.set_tag(run_id, "bench.params", "logged")

    def _log(self, run_id: str, points: Iterable[Point]) -> int:
        """Log the points whose step MLflow does not have yet, in one request per 1000; their number."""
        from mlflow.entities import Metric

        known = self._steps[run_id]
        new = [p for p in points if p[3] not in known.get(p[0], ())]
        for i in range(0, len(new), 1000):
            self.client.log_batch(run_id, metrics=[Metric(*p) for p in new[i : i + 1000]])
        for name, _, _, step in new:
            known.setdefault(name, set()).add(step)
        return len(new)

    def _finish(self, run_id: str, cell: dict[str, Any], entries: dict[str, Entry]) -> None:
        """Artifacts and the digest of the demonstrations, once."""
        run = self._runs[cell["task"], cell["method"], str(cell["seed"])]
        if run.data.tags.get("bench.artifacts") != cell["stages"]["finetune"]:
            files = [entries["finetune"].file(name) for name in ARTIFACTS]
            files += [entries["coverage"].file("coverage.parquet")] if "coverage" in entries else []
            for path in files:
                if path.exists():
                    self.client.log_artifact(run_id, str(path))
            if entries["demos"].status() == "done":
                self.client.set_tag(
                    run_id, "bench.demos_digest", config.digest(entries["demos"].meta().get("files", {}))
                )
            self.client.set_tag(run_id, "bench.artifacts", cell["stages"]["finetune"])
        self._complete.add(run_id)

    def _set_status(self, run_id: str, state: str) -> None:
        wanted = {"done": "FINISHED", "failed": "FAILED", "running": "RUNNING"}.get(state, "SCHEDULED")
        if self._status.get(run_id) == wanted:
            return
        if wanted in ("FINISHED", "FAILED"):
            self.client.set_terminated(run_id, wanted)
        else:
            self.client.update_run(run_id, status=wanted)
        self._status[run_id] = wanted


def combined(states: list[str]) -> str:
    """The status of a group: running if one runs, else failed if one failed, done if all are, else pending."""
    for state in ("running", "failed"):
        if state in states:
            return state
    return "done" if states and set(states) == {"done"} else "pending"


def _unique(cells: list[dict[str, Any]], name: str) -> list[str]:
    return list(dict.fromkeys(str(c[name]) for c in cells))


def _common(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """The configuration values that all cells share."""
    first = cells[0]["config"]
    return {k: v for k, v in first.items() if all(k in c["config"] and c["config"][k] == v for c in cells)}


def _value(value: Any) -> str:
    """A parameter value as text, shortened openly if MLflow would shorten it silently."""
    text = value if isinstance(value, str) else json.dumps(value)
    if len(text) <= VALUE_LIMIT:
        return text
    mark = f"… cut; {len(text)} characters, digest {config.digest(text)}"
    return text[: VALUE_LIMIT - len(mark)] + mark


def _search(client: Any, experiment: str, wanted: str) -> list[Any]:
    return list(client.search_runs([experiment], wanted, max_results=10_000))


def _points(entry: Entry) -> list[dict[str, Any]]:
    """The evaluation points a fine-tuning has so far."""
    with suppress(OSError, ValueError):
        return list(json.loads(entry.file("points.json").read_text()))
    return []


def _before(entry: Entry, start: int) -> list[Point]:
    """Success@1 and Success@K before RL as metrics at step 0."""
    try:
        frame = read_table(entry.file("coverage.parquet"), schema.COVERAGE) if entry.status() == "done" else None
    except InputError:  # the report says so; here the rest goes on
        frame = None
    if frame is None or frame.empty:
        return []
    attempts = int(frame.groupby(["half", "sigma", "start"]).size().min())
    return [
        (f"success_at_{k}", float(summary.one_seed(frame, k)[0].mean()), start, 0)
        for k in sorted({1, min(summary.K, attempts)})
    ]


def _values(points: list[dict[str, Any]], start: int, names: tuple[str, ...] = POINT_METRICS) -> list[Point]:
    """The named values of evaluation points, where there are any, as metrics."""
    return [
        (name, float(point[name]), start + int(1000 * point["wall_seconds"]), round(point["control_steps"]))
        for point in points
        for name in names
        if point.get(name) is not None and math.isfinite(point[name])
    ]


def _mean_points(seeds: list[list[dict[str, Any]]], start: int) -> list[Point]:
    """The mean curve of a method, at the evaluation points that all of its seeds have."""
    names = (*MEAN_METRICS, "control_steps")
    means = [
        {n: sum(p[n] for p in same) / len(same) for n in names if all(p.get(n) is not None for p in same)}
        for same in zip(*seeds, strict=False)
    ]
    return _values(means, start, MEAN_METRICS)


class Live:
    """Mirrors a run while it goes on, from a thread of the run's parent process; it never raises into the run.

    A tracking server that does not answer costs one line, and is tried again; `sync` makes up for it afterwards.
    """

    def __init__(self, store: Store, run_folder: Path, uri: str | None = None, period: float = PERIOD) -> None:
        self.store, self.folder, self.period = store, run_folder, period
        self.uri = uri or default_uri(store)
        self._mirror: Mirror | None = None
        self._warned = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="tracking", daemon=True)

    def __enter__(self) -> Live:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop.set()
        self._thread.join(0 if kind is KeyboardInterrupt else LAST_SECONDS)
        if self._thread.is_alive():
            self._warn("is slow")

    def _loop(self) -> None:
        while not self._stop.wait(self.period):
            self._once()
        self._once()

    def _once(self) -> None:
        try:
            self._mirror = self._mirror or Mirror(self.store, self.folder, self.uri)
            self._mirror.sync()
        except Exception as error:
            self._mirror = None  # what was logged is not known for certain any more: ask again
            self._warn("unreachable" if self.uri.startswith("http") else f"not usable ({_brief(error)})")

    def _warn(self, what: str) -> None:
        if not self._warned:
            self._warned = True
            print(
                f"tracking server {self.uri} {what}; the run goes on; `python -m bench sync` catches up",
                file=sys.stderr,
            )


def compare_links(uri: str, base: str, run: str) -> dict[str, str]:
    """Task → address of the page with the success curves of the run's methods; from there one click to compare all."""
    client = _client(uri)
    links: dict[str, str] = {}
    for experiment in client.search_experiments():
        wanted = f"tags.`bench.run` = '{run}' and tags.`bench.level` = 'method'"
        found = sorted(_search(client, experiment.experiment_id, wanted), key=lambda r: str(r.info.run_name))
        ids = [r.info.run_id for r in found]
        if ids:
            runs, within = quote(json.dumps(ids)), quote(json.dumps([experiment.experiment_id]))
            shown = "metric=%22success_rate%22&plot_metric_keys=%5B%22success_rate%22%5D&x_axis=step"
            links[experiment.name] = f"{base}/#/metric?runs={runs}&experiments={within}&{shown}"
    return links


def ui(store: Store, uri: str, port: int = 5000, run_folder: Path | None = None) -> int:
    """Print where to look, then become MLflow's own server on 127.0.0.1, until interrupted.

    For the address of a server nothing is started, only the links are printed, and 0 is returned.
    """
    remote = uri.startswith("http")
    base = uri.rstrip("/") if remote else f"http://127.0.0.1:{port}"
    print(f"MLflow: {base}", flush=True)
    if run_folder is not None:
        with suppress(Exception):
            for task, link in compare_links(uri, base, run_folder.name).items():
                print(f"compare the methods on {task}: {link}", flush=True)
    if remote:
        return 0
    command = [sys.executable, "-m", "mlflow", "ui", "--workers", "1", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--backend-store-uri", uri, "--uvicorn-opts", "--log-level critical"]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise InputError(f"port {port} is in use; choose another with --port")
    os.chdir(store.root)  # where nothing of the user's is picked up
    os.execve(sys.executable, command, os.environ | quiet | {"PYTHONWARNINGS": "ignore"})
