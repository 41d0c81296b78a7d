"""The curves of cells as MLflow's metrics: from the files of a stage, thinned to a length that a chart can show."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from bench import store as schema
from bench import summary
from bench.store import Entry, read_table
from bench.tracking_client import CURVE_POINTS, Point
from bench.types import InputError

# Metrics of a seed's run by evaluation point; the step is control steps, so that curves share the report's axis.
POINT_METRICS = (
    "success_rate", "selection_success_rate", "decisions", "wall_seconds", "robot_hours", "sigma", "critic_loss",
    "alpha",
)  # fmt: skip
MEAN_METRICS = POINT_METRICS[:6]  # of a method's run: means over its seeds

EvaluationPoint = dict[str, Any]  # an element of points.json


def stored(entry: Entry) -> list[EvaluationPoint]:
    """The evaluation points a fine-tuning has so far."""
    with suppress(OSError, ValueError):
        return list(json.loads(entry.file("points.json").read_text()))
    return []


def thin(points: Sequence[EvaluationPoint], planned: int) -> list[EvaluationPoint]:
    """Evenly spaced ones of a curve that is to have `planned` points after point 0, and the last of these.

    Which ones does not depend on how many there are so far, so that what was sent while the run went on stays right.
    """
    stride = max(1, math.ceil(planned / (CURVE_POINTS - 2)))
    return [point for i, point in enumerate(points) if i % stride == 0 or i == planned]


def values(points: Sequence[EvaluationPoint], start: int, names: Sequence[str] = POINT_METRICS) -> list[Point]:
    """The named values of evaluation points, where there are any, as metrics."""
    return [
        (name, float(point[name]), start + int(1000 * point["wall_seconds"]), round(point["control_steps"]))
        for point in points
        for name in names
        if point.get(name) is not None and math.isfinite(point[name])
    ]


def means(seeds: Sequence[Sequence[EvaluationPoint]], start: int) -> list[Point]:
    """The mean curve of a method, at the evaluation points that all of its seeds have."""
    names = (*MEAN_METRICS, "control_steps")
    same = [
        {n: sum(p[n] for p in group) / len(group) for n in names if all(p.get(n) is not None for p in group)}
        for group in zip(*seeds, strict=False)
    ]
    return values(same, start, MEAN_METRICS)


def before(entry: Entry, start: int) -> list[Point]:
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


def costs(entry: Entry, points: Sequence[EvaluationPoint], start: int) -> list[Point]:
    """What a finished cell took, beside the time that its curve has already: at the step of its end."""
    if not points:
        return []
    meta, step = entry.meta(), round(points[-1]["control_steps"])
    when = start + int(1000 * points[-1]["wall_seconds"])
    return [
        (name, float(meta[name]), when, step)
        for name in ("peak_memory_mb", "pretrain_seconds")
        if meta.get(name) is not None and math.isfinite(meta[name])
    ]
