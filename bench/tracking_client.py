"""What the mirrors of runs and of studies need of MLflow: a quiet client, and a tree of runs that is logged to once."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from bench import config
from bench.store import masked

VALUE_LIMIT = 6000  # MLflow cuts longer parameter values silently
BATCH = 100  # parameters per request, MLflow's limit
CURVE_POINTS = 200  # of one metric of one run; with thousands of points a comparison gets slow
KIND = {"mlflow.experimentKind": "custom_model_development"}  # for the interface: training, not language models
STATUS = {"done": "FINISHED", "failed": "FAILED", "running": "RUNNING", "stopped": "KILLED", "pending": "SCHEDULED"}

Point = tuple[str, float, int, int]  # metric, value, time in ms, step


def quiet_client(uri: str) -> Any:
    """An MlflowClient that says little and fails fast."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for name in ("alembic", "mlflow", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.ERROR)  # its import sets it anew
    return mlflow.MlflowClient(tracking_uri=uri)


def brief(error: BaseException) -> str:
    """The first line of what an error says, without passwords."""
    return masked((str(error).strip().splitlines() or [type(error).__name__])[0])[:200]


def unreachable(error: BaseException | None) -> bool:
    """Whether an error comes from nobody answering, and not from what was answered."""
    while error is not None:
        if {kind.__name__ for kind in type(error).__mro__} & {"ConnectionError", "Timeout", "TimeoutError"}:
            return True
        error = error.__cause__ or error.__context__
    return False


def absolute(uri: str) -> str:
    """A tracking URI that means the same in every working directory."""
    path = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///"):
        return uri if str(path) == ":memory:" or path.is_absolute() else f"sqlite:///{path.resolve()}"
    return uri if ":" in uri or uri == "databricks" else str(path.resolve())


def shortened(value: Any) -> str:
    """A parameter value as text, shortened openly if MLflow would shorten it silently."""
    text = value if isinstance(value, str) else json.dumps(value)
    if len(text) <= VALUE_LIMIT:
        return text
    mark = f"… cut; {len(text)} characters, digest {config.digest(text)}"
    return text[: VALUE_LIMIT - len(mark)] + mark


def search_runs(client: Any, experiment: str, wanted: str) -> list[Any]:
    """All runs of an experiment that a filter lets through, however many pages they fill."""
    found: list[Any] = []
    token = None
    while True:
        page = client.search_runs([experiment], wanted, max_results=10_000, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


class Tree:
    """The runs of one experiment that carry a tag, by their place in a tree; whatever is there already is not sent.

    What was sent is known from here on, so that a second look asks MLflow nothing it was told before.
    """

    def __init__(
        self, client: Any, uri: str, beside: Path, experiment: str, tag: tuple[str, str],
        place: Callable[[Mapping[str, str]], str],
    ) -> None:  # fmt: skip
        self.client, self.tag = client, tag
        self.experiment = self._open(experiment, uri, beside)
        self.runs: dict[str, Any] = {}  # place → MLflow's run
        self._tags: dict[str, dict[str, str]] = {}  # place → tags
        self._states: dict[str, str] = {}  # place → status
        self._steps: dict[str, dict[str, set[int]]] = {}  # place → metric → steps logged; filled when first needed
        for run in search_runs(client, self.experiment, f"tags.`{tag[0]}` = '{tag[1]}'"):
            self._adopt(place(run.data.tags), run)

    def _open(self, name: str, uri: str, beside: Path) -> str:
        """The id of the experiment, made or brought back if need be."""
        found = self.client.get_experiment_by_name(name)
        if found is None:
            return str(self.client.create_experiment(name, artifact_folder(uri, beside, name), KIND))
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _adopt(self, place: str, run: Any) -> None:
        self.runs[place], self._states[place] = run, run.info.status
        self._tags[place] = dict(run.data.tags)

    def id(self, place: str) -> str:
        """MLflow's id of the run there."""
        return str(self.runs[place].info.run_id)

    def get(
        self, place: str, name: str, tags: Mapping[str, str], start: int, params: Mapping[str, Any] | None = None
    ) -> str:
        """The id of the run at a place, made if need be; its parameters are logged once."""
        if place not in self.runs:
            labels = {self.tag[0]: self.tag[1], **{k: v for k, v in tags.items() if v}}
            self._adopt(place, self.client.create_run(self.experiment, start_time=start, tags=labels, run_name=name))
        if params:
            given = params
            self.once(place, "bench.params", "logged", lambda: self._params(place, given))
        return self.id(place)

    def _params(self, place: str, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        items = [Param(name.replace(":", "_"), shortened(value)) for name, value in sorted(params.items())]
        for i in range(0, len(items), BATCH):
            self.client.log_batch(self.id(place), params=items[i : i + BATCH])

    def has(self, place: str, tag: str, value: str) -> bool:
        """Whether a run has this value of a tag."""
        return self._tags[place].get(tag) == value

    def once(self, place: str, tag: str, value: str, action: Callable[[], object]) -> None:
        """Do something for a run, then put it down as done; not again as long as the tag has this value."""
        if not self.has(place, tag, value):
            action()
            self.set_tag(place, tag, value)

    def set_tag(self, place: str, tag: str, value: str) -> None:
        """Set a tag that is not set to this already."""
        if not self.has(place, tag, value):
            self.client.set_tag(self.id(place), tag, value)
            self._tags[place][tag] = value

    def _known(self, place: str) -> dict[str, set[int]]:
        if place not in self._steps:
            run = self.runs[place]
            self._steps[place] = {
                name: {m.step for m in self.client.get_metric_history(run.info.run_id, name)}
                for name in run.data.metrics
            }
        return self._steps[place]

    def knows(self, place: str, metric: str) -> bool:
        """Whether a run has values of a metric."""
        return metric in self._known(place)

    def log(self, place: str, points: Iterable[Point], model: str | None = None) -> int:
        """Log the points whose step MLflow does not have yet, as far as a curve's length allows; their number."""
        from mlflow.entities import Metric

        known = {name: set(steps) for name, steps in self._known(place).items()}
        new = []
        for point in points:
            steps = known.setdefault(point[0], set())
            if point[3] not in steps and len(steps) < CURVE_POINTS:
                steps.add(point[3])
                new.append(point)
        for i in range(0, len(new), 1000):
            part = [Metric(*p, model_id=model) for p in new[i : i + 1000]]
            self.client.log_batch(self.id(place), metrics=part)
        self._steps[place] = known
        return len(new)

    def status(self, place: str, state: str, end: int | None = None) -> None:
        """Say how a run stands, by our word for it; `end` is when it came to that, in ms, if that is known."""
        wanted = STATUS[state]
        if self._states[place] == wanted:
            return
        if wanted in ("RUNNING", "SCHEDULED"):
            self.client.update_run(self.id(place), status=wanted)
        else:
            self.client.set_terminated(self.id(place), wanted, end)
        self._states[place] = wanted


def artifact_folder(uri: str, beside: Path, name: str) -> str | None:
    """Where an experiment's files go: beside an embedded store, or into the results folder; a server decides itself."""
    if uri.startswith("http"):
        return None
    folder = Path(uri.removeprefix("sqlite:///")).resolve().parent if uri.startswith("sqlite:///") else beside.resolve()
    return (folder / "mlartifacts" / name.replace("/", "-")).as_uri()
