"""The MLflow mirror of a study: study → trial → seed, in the tracking store that runs are in.

Like the mirror of runs it compares what MLflow has with what the study has and logs the difference, from a thread that
never raises into the study. `python -m bench sync` makes up for a server that was away.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from bench import config as cfg
from bench import tracking
from bench import tracking_files as files
from bench import tracking_points as curves
from bench import tracking_system as system
from bench.store import Store, commit, masked, with_python
from bench.store import versions as library_versions
from bench.study_book import Book, mean_of, retried
from bench.study_space import label, values_of
from bench.tracking_client import Point, Tree, quiet_client
from bench.tracking_studies import Source, of_book, of_folder, results, working

CURVES = curves.POINT_METRICS[1:]  # without success on the report states, of which a trial has one
EXPERIMENT_NAME = 250  # characters
SPREAD = 1.035  # trials with a point on the study's curve lie by this factor apart, from where that is over one
PAGE = (".png", ".svg", ".html", ".md", ".json", ".toml")  # endings of the files of a study's report


def sync(store: Store, folder: Path, uri: str) -> int:
    """Bring MLflow up to date with a study; the number of metric values that were new.

    Raises InputError if the tracking server does not answer or the study cannot be read.
    """
    source = of_folder(folder)
    return tracking.answered(lambda: Mirror(store, source, uri).sync(), uri)


class Mirror:
    """What MLflow is known to have of one study."""

    def __init__(self, store: Store, source: Source, uri: str) -> None:
        self.store, self.source, self.uri = store, source, uri
        self.client, self.turn = quiet_client(uri), tracking.Turn(source.folder)
        self.complete: set[tuple[int, bool]] = set()  # trials with everything logged, and whether they were retried
        self._tree: Tree | None = None
        self._new = 0

    def sync(self, alive: bool = False) -> int:
        """Send what MLflow lacks; the number of new metric values. Two processes of one study take turns."""
        with self.turn.lock:
            if self.turn.fresh() or self._tree is None:
                tag = ("bench.study", self.source.name)
                name = experiment_name(self.source.tasks)
                self._tree = Tree(self.client, self.uri, self.store.root, name, tag, _place)
                self.complete = set()
            self._new = 0
            self._study(self._tree, alive)
            return self._new

    def _get(
        self, tree: Tree, place: str, name: str, level: str, parent: str, params: Mapping[str, Any], start: int
    ) -> str:
        """The id of the run at a place in the tree, made if need be."""
        tags = {
            "bench.place": place, "bench.level": level, "bench.method": self.source.identity.get("method", ""),
            "mlflow.parentRunId": parent, "bench.profile": self.source.identity.get("profile", ""),
            "mlflow.source.name": "bench study", "mlflow.source.type": "LOCAL",
        }  # fmt: skip
        if level == "study" and not tree.runs:
            tags |= {"bench.versions": json.dumps(with_python(library_versions())), "bench.commit": commit()}
        return tree.get(place, name, tags, start, params)

    def _study(self, tree: Tree, alive: bool) -> None:
        source, trials = self.source, self.source.trials()
        start = int(1000 * source.study.user_attrs.get("begun", 0.0))
        space = {f"space.{key}": words for key, words in source.space.items()}
        top = self._get(tree, "", source.name, "study", "", {**source.identity, **space}, start)
        again = retried(trials)
        for trial in trials:
            retried_too = trial.number in again
            if _begun(trial) and (trial.number, retried_too) not in self.complete:
                self._trial(tree, trial, top, retried_too)
        self._new += tree.log("", history(trials) + system.points(source.folder))
        state = source.state(alive)
        if state == "done":
            self._results(tree, results(source.folder))
        tree.status("", state)

    def _trial(self, tree: Tree, trial: FrozenTrial, top: str, again: bool) -> None:
        """One trial with its instances; `again`: its setting was queued anew, as it was interrupted or failed."""
        place, start = str(trial.number), _milliseconds(trial.datetime_start)
        run_id = self._get(tree, place, f"trial {place}", "trial", top, trial.params, start)
        if "retry_of" in trial.user_attrs:
            tree.set_tag(place, "bench.retry_of", str(trial.user_attrs["retry_of"]))
        now = _milliseconds(trial.datetime_complete) or start
        points = [("instance_value", float(v), now, step) for step, v in trial.intermediate_values.items()]
        if trial.state == TrialState.COMPLETE:
            points.append(("value", float(trial.value or 0.0), now, 0))
        self._new += tree.log(place, points)
        for name, keys in sorted(trial.user_attrs.items()):
            if name.startswith("instance "):
                self._instance(tree, trial, int(name.split()[1]), keys, run_id)
        if not trial.state.is_finished():
            tree.status(place, "running" if working(trial) else "stopped")
            return
        broken = again and "error" not in trial.user_attrs  # a failed one may be tried again, too
        state = "interrupted" if broken else trial.state.name.lower()
        tags = {
            "bench.state": state + (", tried again" if again else ""),
            "bench.setting": label(values_of(trial.params)), "bench.error": trial.user_attrs.get("error", ""),
        }  # fmt: skip
        for name, value in tags.items():
            if value:
                tree.set_tag(place, name, str(value)[:4000])
        ends = {TrialState.COMPLETE: "done", TrialState.PRUNED: "stopped", TrialState.FAIL: "failed"}
        tree.status(place, "stopped" if broken else ends[trial.state], now)
        self.complete.add((trial.number, again))

    def _instance(self, tree: Tree, trial: FrozenTrial, step: int, keys: Mapping[str, str], parent: str) -> None:
        """One (task, seed) of a trial: its success curves and the data it learnt from."""
        task, seed = self.source.instances[step]
        place, start = f"{trial.number}/{step}", _milliseconds(trial.datetime_start)
        params = {"task": task, "seed": seed, "finetune": keys["finetune"]}
        self._get(tree, place, f"{task} seed {seed}", "seed", parent, params, start)
        entry = self.store.entry("finetune", keys["finetune"])
        points = curves.stored(entry)
        planned = trial.params.get("evaluation.points", self.source.points.get(task, len(points) - 1))
        self._new += tree.log(place, curves.values(curves.thin(points, planned), start, CURVES))
        pretrain = self.store.entry("pretrain", keys["pretrain"])
        sources = {"starts": entry, "demos": pretrain}
        inputs = {
            s: e.meta().get("spec", {}).get("inputs", {}).get(s) for s, e in sources.items() if e.status() == "done"
        }
        files.log_inputs(tree, place, task, {s: self.store.entry(s, key) for s, key in inputs.items() if key})
        if step in trial.intermediate_values:
            end = _written(entry.file("meta.json"))
            tree.status(place, "done", None if end is None else max(end, start))  # an earlier trial may have made it
        elif trial.state.is_finished():
            tree.status(place, "failed" if entry.status() == "failed" else "stopped")
        else:
            tree.status(place, "running" if working(trial) else "stopped")

    def _results(self, tree: Tree, found: dict[str, Any]) -> None:
        """What the re-test says, and the page with its figures: again whenever it says something else."""
        if found:
            tree.once("", "bench.results", cfg.digest(found), lambda: self._send(tree, found))

    def _send(self, tree: Tree, found: dict[str, Any]) -> None:
        """The re-test's numbers, which take the place of earlier ones by being newer, and the page."""
        from mlflow.entities import Metric

        for path in sorted(self.source.folder.iterdir()):
            if path.name == "study.json":  # its storage may be an address with a password
                self.client.log_text(tree.id(""), masked(path.read_text()), path.name)
            elif path.suffix in PAGE and path.is_file() and path.name[0] != ".":
                self.client.log_artifact(tree.id(""), str(path))
        when, step = _written(self.source.folder / "results.json") or 0, len(found.get("trials", []))
        earlier = self.client.get_run(tree.id("")).data.metrics
        values = {k: math.nan if v is None else float(v) for k, v in retest_numbers(found).items()}
        kept = {k: v for k, v in values.items() if math.isfinite(v) or k in earlier}  # nothing there: say so
        self.client.log_batch(tree.id(""), metrics=[Metric(k, v, when, step) for k, v in kept.items()])
        self._new += len(kept)


def _begun(trial: FrozenTrial) -> bool:
    """Whether a trial counts and has all of its parameters: those of one that is still being drawn may yet change."""
    return "repeats" not in trial.user_attrs and (trial.state.is_finished() or "instance 0" in trial.user_attrs)


def retest_numbers(found: Mapping[str, Any]) -> dict[str, float | None]:
    """What results.json says of the best setting's re-test and of the default's."""
    rows = found.get("retest") or []
    if not rows:
        return {}
    names = {
        "retest_best": "retest",
        "optimism": "optimism",
        "retest_finished": "finished",
        "retest_planned": "planned",
    }
    base = [row["retest"] for row in rows if row["setting"] == "default"]
    return {name: rows[0].get(key) for name, key in names.items()} | ({"retest_default": base[0]} if base else {})


def _place(tags: Mapping[str, str]) -> str:
    return tags.get("bench.place", "")


def experiment_name(tasks: list[str]) -> str:
    """The task, or the tasks side by side."""
    return " + ".join(tasks)[:EXPERIMENT_NAME]


def history(trials: list[FrozenTrial]) -> list[Point]:
    """Value of each trial and the best so far, by the trial's number; of many trials, the later the fewer."""
    points: list[Point] = []
    best, due = -math.inf, 0.0
    for trial in trials:
        if not trial.state.is_finished():  # it may still change what was best by its number
            break
        if trial.state != TrialState.COMPLETE:
            continue
        best = max(best, float(trial.value or 0.0))
        if trial.number >= due:
            due = max(trial.number + 1, int(trial.number * SPREAD))
            now = _milliseconds(trial.datetime_complete)
            points += [("trial_value", mean_of(trial), now, trial.number), ("best_value", best, now, trial.number)]
    return points


def _milliseconds(when: Any) -> int:
    return 0 if when is None else int(1000 * when.timestamp())


def _written(path: Path) -> int | None:
    """When a file was written, in ms."""
    return int(1000 * path.stat().st_mtime) if path.exists() else None


class Live(tracking.Live):
    """Mirrors a study while it goes on."""

    what = "study"

    def __init__(self, store: Store, book: Book, uri: str | None = None, period: float = tracking.PERIOD) -> None:
        super().__init__(store, book.folder, uri, period)
        self.source = of_book(book)

    def new_mirror(self) -> Mirror:
        return Mirror(self.store, self.source, self.uri)
