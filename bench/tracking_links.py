"""`bench ui`: MLflow's own interface, and links to comparisons in it that are ready made.

MLflow keeps a shared view (filter and charts) as a tag of the experiment, which a link names. So the link opens the
charts we choose for the runs we choose: its page for comparing runs shows last values only.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from bench import config
from bench.store import Store, masked
from bench.tracking_client import absolute, brief, quiet_client, search_runs
from bench.types import InputError

CARD_HEIGHT = 520  # pixels
AXES = 8  # parameters in a parallel-coordinates chart; more cannot be read
CURVES = ("success_rate", "selection_success_rate")
COLUMNS = (  # of the table of runs
    "attributes.`Models`", "metrics.`success_at_1`", "metrics.`success_rate`", "metrics.`wall_seconds`",
)  # fmt: skip


def run_links(uri: str, base: str, run: str) -> list[tuple[str, str]]:
    """(what, address) per task: a page with the success curves of the run's methods, and the table of its runs."""
    every = f"tags.`bench.run` = '{run}'"
    wanted = f"{every} and tags.`bench.level` = 'method'"
    client, links = quiet_client(uri), []
    for experiment in client.search_experiments():
        if search_runs(client, experiment.experiment_id, wanted):
            shown = view(wanted, _curves(), "metrics.`success_rate`")
            table = view(every, _curves(), "attributes.start_time") | {"selectedColumns": list(COLUMNS)}
            links += [
                (f"compare the methods on {experiment.name}", _share(client, base, experiment, shown, "CHART")),
                (f"all runs on {experiment.name}", _share(client, base, experiment, table, "TABLE")),
            ]
    return links


def study_link(uri: str, base: str, study: str) -> str | None:
    """Address of a page with the parallel coordinates of a study's trials; nothing if MLflow has none that ended."""
    wanted = f"tags.`bench.study` = '{study}' and tags.`bench.level` = 'trial'"
    client = quiet_client(uri)
    for experiment in client.search_experiments():
        trials = search_runs(client, experiment.experiment_id, wanted)
        if trials:
            done = f"{wanted} and metrics.value >= 0"  # only complete trials have a value, and no axis lacks theirs
            return _share(client, base, experiment, view(done, [_parallel(trials)], "metrics.`value`"), "CHART")
    return None


def view(wanted: str, charts: list[dict[str, Any]], order: str) -> dict[str, Any]:
    """The state of MLflow's page of runs: a filter, a section with our charts, all runs shown.

    `order` has to be a metric: in order of time MLflow folds the runs that are wanted under their parents.
    """
    section = {"uuid": "bench", "name": "Comparison", "display": True, "isReordered": True, "deleted": False,
               "isGenerated": False, "columns": len(charts), "cardHeight": CARD_HEIGHT}  # fmt: skip
    common = {"metricSectionId": "bench", "deleted": False, "isGenerated": False}
    return {
        "searchFilter": wanted, "orderByKey": order, "orderByAsc": False, "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": [{"uuid": f"bench-{i}", **common, **chart} for i, chart in enumerate(charts)],
        "compareRunSections": [section], "isAccordionReordered": True, "hideEmptyCharts": True, "groupBy": None,
    }  # fmt: skip


def _curves() -> list[dict[str, Any]]:
    line = {
        "type": "LINE", "runsCountToCompare": 100, "lineSmoothness": 0, "scaleType": "linear", "xAxisKey": "step",
        "xAxisScaleType": "linear", "selectedXAxisMetricKey": "", "yAxisKey": "metric", "yAxisExpressions": [],
        "displayPoints": True, "ignoreOutliers": False, "useGlobalXaxisKey": True, "useGlobalLineSmoothing": True,
        "range": {},
    }  # fmt: skip
    return [line | {"metricKey": m, "selectedMetricKeys": [m]} for m in CURVES]


def _parallel(trials: list[Any]) -> dict[str, Any]:
    """The parameters that every complete trial has and that differ between them, and the value."""
    params = [t.data.params for t in trials if "value" in t.data.metrics]
    shared = [name for name in (params[0] if params else {}) if all(name in p for p in params)]
    varied = [name for name in shared if len({p[name] for p in params}) > 1]
    return {
        "type": "PARALLEL", "runsCountToCompare": 1000, "selectedParams": sorted(varied)[:AXES],
        "selectedMetrics": ["value"], "showAllRuns": True,
    }  # fmt: skip


def _share(client: Any, base: str, experiment: Any, state: dict[str, Any], mode: str) -> str:
    """Store a view where MLflow looks for shared ones, unless it is there; its address, as CHART or TABLE."""
    name = f"bench-{config.digest(state)}"
    tag = f"mlflow.sharedViewState.{name}"
    if tag not in experiment.tags:
        client.set_experiment_tag(experiment.experiment_id, tag, json.dumps(state))
    query = urlencode({"viewStateShareKey": name, "compareRunsMode": mode})
    return f"{base}/#/experiments/{experiment.experiment_id}/runs?{query}"


def print_links(uri: str, base: str, run_folder: Path | None, study_folder: Path | None) -> None:
    """Where to look, one line each; what is not mirrored is named with what mirrors it."""
    try:
        if run_folder is not None:
            links = run_links(uri, base, run_folder.name)
            for what, link in links:
                print(f"{what}: {link}", flush=True)
            if not links:
                print(f"{run_folder.name} is not in MLflow yet: python -m bench sync", flush=True)
        if study_folder is not None:
            address = study_link(uri, base, study_folder.name)
            missing = f"{study_folder.name} is not in MLflow yet: python -m bench sync"
            print(f"parallel coordinates of {study_folder.name}: {address}" if address else missing, flush=True)
    except Exception as error:  # whatever the store says: the server may start nevertheless
        print(f"no links: {brief(error)}", file=sys.stderr, flush=True)


def ui(
    store: Store, uri: str, port: int = 5000, run_folder: Path | None = None, study_folder: Path | None = None
) -> int:
    """Print where to look, then become MLflow's own server on 127.0.0.1, until interrupted.

    For the address of a server nothing is started, only the links are printed, and 0 is returned.
    """
    if not 1 <= port <= 65535:
        raise InputError(f"--port {port}: give a number from 1 to 65535")
    uri, remote = absolute(uri), uri.startswith("http")  # before the working directory changes
    if not remote:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                raise InputError(f"port {port} is in use; choose another with --port")
    base = masked(uri.rstrip("/")) if remote else f"http://127.0.0.1:{port}"
    print(f"MLflow: {base}", flush=True)
    print_links(uri, base, run_folder, study_folder)
    if remote:
        return 0
    command = [sys.executable, "-m", "mlflow", "ui", "--workers", "1", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--backend-store-uri", uri, "--uvicorn-opts", "--log-level critical"]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    os.chdir(store.root)  # where nothing of the user's is picked up
    os.execve(sys.executable, command, os.environ | quiet | {"PYTHONWARNINGS": "ignore"})
