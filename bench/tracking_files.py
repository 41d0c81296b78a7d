"""What of a cell goes to MLflow beside its curves: tables and videos, the data it learnt from, and its policy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import config
from bench.store import Entry
from bench.tracking_client import Tree
from bench.tracking_points import EvaluationPoint

ARTIFACTS = ("episodes.parquet", "training.parquet", "sigma.parquet", "points.json", "meta.json")
VIDEOS = ("first", "last")  # names, without ending, of the videos of a cell's first and last policy
CONTEXTS = {"demos": "training", "starts": "evaluation"}  # stage → what its data is for, in MLflow's words
WEIGHTS = (("pretrain", "policy.safetensors"), ("pretrain", "policy.json"), ("finetune", "agent.safetensors"))

Entries = Mapping[str, Entry]  # by stage


def log_tables(tree: Tree, place: str, entries: Entries) -> None:
    """The tables of a finished cell as artifacts."""
    files = [entries["finetune"].file(name) for name in ARTIFACTS]
    files += [entries["coverage"].file("coverage.parquet")] if "coverage" in entries else []
    for path in files:
        if path.exists():
            tree.client.log_artifact(tree.id(place), str(path))
    if "demos" in entries and entries["demos"].status() == "done":
        tree.set_tag(place, "bench.demos_digest", digest(entries["demos"]))


def videos(entries: Entries) -> list[Path]:
    """The videos among the files of a cell's finished stages."""
    return sorted(
        path
        for stage in ("finetune", "video")
        if stage in entries and entries[stage].status() == "done"
        for name in VIDEOS
        for path in entries[stage].folder.glob(f"{name}.*")
    )


def log_videos(tree: Tree, place: str, found: list[Path]) -> None:
    """Videos as artifacts, in a folder of their own."""
    for path in found:
        tree.client.log_artifact(tree.id(place), str(path), "videos")


def digest(entry: Entry) -> str:
    """One digest for the files of a finished stage."""
    return config.digest(entry.meta().get("files", {}))


def log_inputs(tree: Tree, place: str, task: str, entries: Entries) -> None:
    """The demonstrations and start states that a cell has, as datasets with their digests, once."""
    found = {stage: entries[stage] for stage in CONTEXTS if stage in entries and entries[stage].status() == "done"}
    if found:
        mark = " ".join(entry.key for entry in found.values())
        tree.once(place, "bench.inputs", mark, lambda: _log_inputs(tree, place, task, found))


def _log_inputs(tree: Tree, place: str, task: str, found: Entries) -> None:
    """One request; MLflow keeps one entry however often the same dataset is logged for a run."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = []
    for stage, entry in found.items():
        meta = entry.meta()
        profile = {k: meta[k] for k in ("episodes", "transitions", "success_rate", "states") if k in meta}
        data = Dataset(
            task if stage == "demos" else f"{task} {stage}", digest(entry), "local",
            json.dumps({"uri": str(entry.folder.resolve())}), profile=json.dumps(profile),
        )  # fmt: skip
        inputs.append(DatasetInput(data, [InputTag("mlflow.data.context", CONTEXTS[stage])]))
    tree.client.log_inputs(tree.id(place), datasets=inputs)


def log_model(tree: Tree, place: str, cell: Mapping[str, Any], entries: Entries, points: list[EvaluationPoint]) -> None:
    """A model entry that holds the policy and the agent as safetensors, with what it reached at the end.

    May be cut off anywhere and called again: the entry is found by the run that it comes from.
    """
    from mlflow.entities import LoggedModelOutput

    client, run_id = tree.client, tree.id(place)
    made = client.search_logged_models([tree.experiment], filter_string=f"source_run_id = '{run_id}'")
    params = {name: str(cell[name]) for name in ("method", "task", "seed")}
    model = next(iter(made), None) or client.create_logged_model(
        tree.experiment, f"{cell['method']}-seed-{cell['seed']}", run_id, _labels(cell), params, "policy"
    )
    for stage, name in WEIGHTS:
        if stage in entries and entries[stage].file(name).exists():
            client.log_model_artifact(model.model_id, str(entries[stage].file(name)))
    client.finalize_logged_model(model.model_id, "READY")
    step = round(points[-1]["control_steps"]) if points else 0
    if model.model_id not in {output.model_id for output in client.get_run(run_id).outputs.model_outputs}:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
    if points:
        when = int(1000 * float(entries["finetune"].meta().get("finished", 0.0)))
        tree.log(place, [("final_success", float(points[-1]["success_rate"]), when, step)], model.model_id)


def _labels(cell: Mapping[str, Any]) -> dict[str, str]:
    """Which stages the weights come from."""
    return {f"bench.{stage}": str(key) for stage, key in cell["stages"].items() if key}
