"""The MLflow mirror of a study: study → trial → seed, in the tracking store that runs are in.

Like the mirror of runs it compares what MLflow has with what the study has and logs the difference, from a thread that
never raises into the study. Running the same command again makes up for a server that was away.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import filelock
from optuna.trial import FrozenTrial, TrialState

from bench import config as cfg
from bench import tracking
from bench.store import Store, commit, with_python
from bench.store import versions as library_versions
from bench.study_book import Book, mean_of, retried
from bench.study_space import label, values_of
from bench.study_spec import Spec

CURVES = tracking.POINT_METRICS[1:]  # without success on the report states, of which a trial has one
STATUS = {
    TrialState.COMPLETE: "FINISHED", TrialState.PRUNED: "KILLED", TrialState.FAIL: "FAILED",
    TrialState.RUNNING: "RUNNING",
}  # fmt: skip


class Mirror:
    """What MLflow is known to have of one study."""

    def __init__(self, store: Store, book: Book, uri: str) -> None:
        self.store, self.book, self.spec, self.folder, self.uri = store, book, book.spec, book.folder, uri
        self.client = tracking._client(uri)
        self.experiment = ""
        self.runs: dict[str, Any] = {}  # "", "3" or "3/0": study, trial or instance → MLflow's run
        self.steps: dict[str, set[tuple[str, int]]] = {}  # run id → (metric, step) logged
        self.complete: set[str] = set()  # trials with everything logged

    def sync(self) -> None:
        """Send what MLflow lacks. Two processes of one study take turns."""
        with filelock.FileLock(self.folder / ".mlflow.lock", timeout=tracking.LOCK_SECONDS):
            last = self.folder / ".mlflow.by"
            if not self.experiment or not last.exists() or last.read_text() != str(os.getpid()):
                self._open()
                last.write_text(str(os.getpid()))
            self._study()

    def _open(self) -> None:
        """Find or make the experiment, and the runs it has of this study."""
        name = experiment_name(self.spec)
        found = self.client.get_experiment_by_name(name)
        if found is not None and found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        self.experiment = found.experiment_id if found else self.client.create_experiment(name, self._artifacts(name))
        self.runs, self.steps, self.complete = {}, {}, set()
        for run in tracking._search(self.client, self.experiment, f"tags.`bench.study` = '{self.spec.name}'"):
            self._adopt(run.data.tags.get("bench.place", ""), run)

    def _artifacts(self, name: str) -> str | None:
        """Artifacts lie beside an embedded store; a server decides itself."""
        if not self.uri.startswith("sqlite:///"):
            return None
        folder = Path(self.uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts" / name.replace("/", "-")
        return folder.as_uri()

    def _adopt(self, place: str, run: Any) -> None:
        self.runs[place] = run
        self.steps[run.info.run_id] = {
            (name, m.step) for name in run.data.metrics for m in self.client.get_metric_history(run.info.run_id, name)
        }

    def _get(self, place: str, name: str, level: str, parent: str, params: Mapping[str, Any], start: int) -> str:
        """The id of the run at a place in the tree, made if need be."""
        if place not in self.runs:
            tags = {"bench.study": self.spec.name, "bench.place": place, "bench.level": level,
                    "bench.method": self.spec.method, "bench.commit": commit()}  # fmt: skip
            tags |= {"mlflow.parentRunId": parent} if parent else {}
            tags |= {"bench.versions": json.dumps(with_python(library_versions()))} if level == "study" else {}
            made = self.client.create_run(self.experiment, start_time=start, tags=tags, run_name=name)
            self._adopt(place, made)
        run = self.runs[place]
        if "bench.params" not in run.data.tags:
            self._params(run.info.run_id, params)
            run.data.tags["bench.params"] = "logged"
        return str(run.info.run_id)

    def _params(self, run_id: str, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        items = [Param(name.replace(":", "_"), tracking._value(value)) for name, value in sorted(params.items())]
        for i in range(0, len(items), tracking.BATCH):
            self.client.log_batch(run_id, params=items[i : i + tracking.BATCH])
        self.client.set_tag(run_id, "bench.params", "logged")

    def _log(self, run_id: str, points: list[tracking.Point]) -> None:
        from mlflow.entities import Metric

        new = [p for p in points if (p[0], p[3]) not in self.steps[run_id]]
        if new:
            self.client.log_batch(run_id, metrics=[Metric(*p) for p in new])
            self.steps[run_id] |= {(p[0], p[3]) for p in new}

    def _status(self, place: str, wanted: str) -> None:
        run = self.runs[place]
        if run.info.status == wanted:
            return
        if wanted in ("RUNNING", "SCHEDULED"):
            self.client.update_run(run.info.run_id, status=wanted)
        else:
            self.client.set_terminated(run.info.run_id, wanted)
        run.info._status = wanted

    def _study(self) -> None:
        trials = self.book.trials()
        start = int(1000 * self.book.study.user_attrs.get("begun", 0.0))
        space = {f"space.{p.key}": p.describe() for p in self.spec.space}
        top = self._get("", self.spec.name, "study", "", {**self.spec.identity(), **space}, start)
        for trial in trials:
            skipped = trial.state == TrialState.WAITING or "repeats" in trial.user_attrs
            if not skipped and str(trial.number) not in self.complete:
                self._trial(trial, top, trial.number in retried(trials))
        self._log(top, history(trials))
        results = self.folder / "results.json"
        if results.exists() and not self.book.open_trials():
            self._results(top, json.loads(results.read_text()))
            self._status("", "FINISHED")
        else:
            self._status("", "RUNNING" if any(not t.state.is_finished() for t in trials) else "SCHEDULED")

    def _trial(self, trial: FrozenTrial, top: str, again: bool) -> None:
        """One trial with its instances; `again`: it was interrupted, and its setting queued anew."""
        place, start = str(trial.number), _milliseconds(trial.datetime_start)
        run_id = self._get(place, f"trial {place}", "trial", top, trial.params, start)
        now = _milliseconds(trial.datetime_complete) or start
        points = [("instance_value", float(v), now, step) for step, v in trial.intermediate_values.items()]
        if trial.state == TrialState.COMPLETE:
            points.append(("value", float(trial.value or 0.0), now, 0))
        self._log(run_id, points)
        for name, keys in sorted(trial.user_attrs.items()):
            if name.startswith("instance "):
                self._instance(trial, int(name.split()[1]), keys["finetune"], run_id)
        if not trial.state.is_finished():
            self._status(place, "RUNNING")
            return
        tags = {
            "bench.state": "interrupted, tried again" if again else trial.state.name.lower(),
            "bench.setting": label(values_of(trial.params)), "bench.error": trial.user_attrs.get("error", ""),
        }  # fmt: skip
        for name, value in tags.items():
            if value:
                self.client.set_tag(run_id, name, str(value)[:4000])
        self._status(place, "KILLED" if again else STATUS[trial.state])
        self.complete.add(place)

    def _instance(self, trial: FrozenTrial, step: int, key: str, parent: str) -> None:
        """One (task, seed) of a trial: its success curves."""
        task, seed = self.spec.instances[step]
        place, start = f"{trial.number}/{step}", _milliseconds(trial.datetime_start)
        params = {"task": task, "seed": seed, "finetune": key}
        run_id = self._get(place, f"{task} seed {seed}", "seed", parent, params, start)
        entry = self.store.entry("finetune", key)
        self._log(run_id, tracking._values(tracking._points(entry), start, CURVES))
        if step in trial.intermediate_values:
            self._status(place, "FINISHED")
        elif trial.state.is_finished():
            self._status(place, "FAILED" if entry.status() == "failed" else "KILLED")
        else:
            self._status(place, "RUNNING")

    def _results(self, top: str, results: dict[str, Any]) -> None:
        """What the re-test says, and the page with its figures."""
        run = self.runs[""]
        mark = cfg.digest(results)
        if run.data.tags.get("bench.results") == mark:
            return
        start = int(run.info.start_time)
        rows = results.get("retest") or []
        named = {"retest_best": rows[0]["retest"], "optimism": rows[0]["optimism"]} if rows else {}
        for row in rows:
            if row["setting"] == "default":
                named["retest_default"] = row["retest"]
        step = len(results.get("trials", []))
        self._log(top, [(name, float(value), start, step) for name, value in named.items() if value is not None])
        for path in sorted(self.folder.iterdir()):
            if path.suffix in (".png", ".md", ".json", ".toml") and path.is_file():
                self.client.log_artifact(top, str(path))
        self.client.set_tag(top, "bench.results", mark)
        run.data.tags["bench.results"] = mark


def experiment_name(spec: Spec) -> str:
    """The task, or the tasks side by side."""
    return " + ".join(spec.request.tasks)[:250]


def history(trials: list[FrozenTrial]) -> list[tracking.Point]:
    """Value of each trial and the best so far, by the trial's number."""
    points: list[tracking.Point] = []
    best = float("-inf")
    for trial in trials:
        if not trial.state.is_finished():  # it may still change what was best by its number
            break
        now = _milliseconds(trial.datetime_complete)
        if trial.state == TrialState.COMPLETE:
            best = max(best, float(trial.value or 0.0))
            points += [("trial_value", mean_of(trial), now, trial.number), ("best_value", best, now, trial.number)]
    return points


def _milliseconds(when: Any) -> int:
    return 0 if when is None else int(1000 * when.timestamp())


class Live(tracking.Live):
    """Mirrors a study while it goes on."""

    def __init__(self, store: Store, book: Book, uri: str | None = None, period: float = tracking.PERIOD) -> None:
        super().__init__(store, book.folder, uri, period)
        self.book, self._study_mirror = book, None

    def _once(self) -> None:
        try:
            self._study_mirror = self._study_mirror or Mirror(self.store, self.book, self.uri)  # type: ignore[assignment]
            self._study_mirror.sync()  # type: ignore[attr-defined]
        except Exception as error:
            self._study_mirror = None
            self._warn("unreachable" if self.uri.startswith("http") else f"not usable ({tracking._brief(error)})")

    def _warn(self, what: str) -> None:
        if not self._warned:
            self._warned = True
            print(f"tracking server {self.uri} {what}; the study goes on; the same command catches up", file=sys.stderr)
