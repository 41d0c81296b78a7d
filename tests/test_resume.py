"""Kill −9 at any time and start again: the same bits as the unbroken run. Evaluation changes nothing in training."""

from __future__ import annotations

import multiprocessing as mp
import random
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench import plan as planning
from bench.executor import run_unit, single_threaded
from bench.settings import Request
from bench.stages.common import Reporter
from bench.store import COVERAGE, EPISODES, TRAINING, Store, read_table, sha256

TIMED = ["wall_seconds", "pretrain_seconds"]
SMALL: dict[str, Any] = {
    "demos.count": 30, "policy.width": 32, "policy.blocks": 1, "policy.euler_steps": 2, "pretrain.steps": 120,
    "pretrain.batch": 32, "rl.batch": 16, "rl.actor": (16,), "rl.critic": (16,), "rl.random_decisions": 16,
    "rl.decisions": 120, "rl.envs": 2, "evaluation.points": 3, "evaluation.states": 2, "evaluation.envs": 2,
    "evaluation.selection_states": 1, "evaluation.stored": 2, "coverage.states": 2, "coverage.selection_states": 2,
    "coverage.attempts": 2, "coverage.sigmas": (0.0, 0.5),
}  # fmt: skip


def make(method: str, task: str, **changes: Any) -> planning.Plan:
    return planning.make_plan(Request((method,), (task,), (0,), "smoke", SMALL | changes))


def run_all(store: Store, plan: planning.Plan, stages: tuple[str, ...] = planning.STAGES) -> None:
    for unit in plan.units.values():
        if unit.stage in stages:
            outcome = run_unit(store, unit, Reporter())
            assert outcome == ("done",), outcome


def victim(root: str, plan: planning.Plan) -> None:
    """Runs with a checkpoint after every round and step, so that a kill finds one of every kind."""
    import torch

    from bench import pretraining
    from bench.stages import finetune

    torch.set_num_threads(1)
    pretraining.CHECKPOINT_SECONDS = finetune.CHECKPOINT_SECONDS = 0.01
    run_all(Store(Path(root)), plan)


def kill_at_work(root: Path, plan: planning.Plan) -> None:
    """Start and kill −9 in pretraining, start and kill twice in fine-tuning, each at a random time; then finish."""
    draws, context = random.Random(0), mp.get_context("spawn")
    for stage in ("pretrain", "finetune", "finetune", None):
        process = context.Process(target=victim, args=(str(root), plan))
        before = newest(root, stage)
        with single_threaded():
            process.start()
        while stage and newest(root, stage) <= before and process.is_alive():
            time.sleep(0.005)
        process.join(draws.uniform(0.0, 0.3) if stage else None)
        assert stage is None or process.is_alive(), f"{stage} was over before it could be killed"
        process.kill()
        process.join()
    assert process.exitcode == 0


def newest(root: Path, stage: str | None) -> int:
    """Time of the latest checkpoint of a stage, in nanoseconds."""
    times = [0]
    for path in root.glob(f"stages/{stage}/*/checkpoint/*.safetensors"):
        with suppress(FileNotFoundError):
            times.append(path.stat().st_mtime_ns)
    return max(times)


def contents(store: Store, plan: planning.Plan) -> Mapping[str, Any]:
    """Everything that must be equal: weights by digest, tables without the clock."""
    keys = {u.stage: u.key for u in plan.units.values()}
    tuned, trained = store.entry("finetune", keys["finetune"]), store.entry("pretrain", keys["pretrain"])
    return {
        "policy": sha256(trained.file("policy.safetensors")),
        "agent": sha256(tuned.file("agent.safetensors")),
        "episodes": read_table(tuned.file("episodes.parquet"), EPISODES).drop(columns=TIMED),
        "training": read_table(tuned.file("training.parquet"), TRAINING),
        "sigma": pd.read_parquet(tuned.file("sigma.parquet")),
    }


def assert_same(a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    for name, value in a.items():
        if isinstance(value, pd.DataFrame):
            pd.testing.assert_frame_equal(value, b[name], check_exact=True)
        else:
            assert value == b[name], name


CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("csp_tmrl", "toy/reach-unseen", {"rl.decisions": 1000}),
    ("posterior_bc", "toy/reach", {"rl.decisions": 1000}),
    ("spirl", "toy/reach", {"rl.decisions": 1000, "rl.demo_fraction": 0.25}),
    ("csp_tmrl", "navigation/pointmaze-large-unseen", {"demos.count": 3000, "rl.decisions": 1000}),
    ("csp", "robosuite_tasks/lift-unseen", {"demos.count": 3, "rl.decisions": 100}),
]


@pytest.mark.parametrize(("method", "task", "changes"), CASES, ids=[f"{c[0]}-{c[1]}" for c in CASES])
def test_killed_and_resumed_is_the_unbroken_run(
    method: str, task: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    plan = make(method, task, **{"pretrain.steps": 600} | changes)
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    kill_at_work(broken, plan)
    run_all(Store(whole), plan)
    assert_same(contents(Store(whole), plan), contents(Store(broken), plan))


@pytest.mark.parametrize("task", ["toy/reach-unseen", "robosuite_tasks/lift-unseen"])
def test_threads_change_no_bit(task: str, tmp_path: Path) -> None:
    plan = make("csp", task, **{"demos.count": 3, "pretrain.steps": 10, "rl.envs": 4})
    alone, together = Store(tmp_path / "alone"), Store(tmp_path / "together")
    run_all(alone, plan)
    with ThreadPoolExecutor(4) as threads:
        for unit in plan.units.values():
            assert run_unit(together, unit, Reporter(threads=threads)) == ("done",)
    assert_same(contents(alone, plan), contents(together, plan))


def test_stopped_in_the_middle_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """The same in one process, stopped after every few rounds: certain to resume in the middle of episodes."""
    plan = make("csp_tmrl", "toy/reach-unseen")
    whole, broken = Store(tmp_path / "whole"), Store(tmp_path / "broken")
    run_all(whole, plan)
    stops = 0
    for unit in plan.units.values():
        while True:
            asked, patience = iter(range(10**9)), 7 + 5 * stops  # grows, for not every stage can stop half-way
            reporter = Reporter(stop=lambda asked=asked, patience=patience: next(asked) >= patience)
            outcome = run_unit(broken, unit, reporter)
            if outcome == ("done",):
                break
            assert outcome == ("stopped",), outcome
            stops += 1
    assert stops > 5
    assert_same(contents(whole, plan), contents(broken, plan))


@pytest.mark.parametrize("task", ["toy/reach-unseen", "robosuite_tasks/lift-unseen"])
def test_evaluation_changes_nothing_in_training(task: str, tmp_path: Path) -> None:
    """On lift, training and evaluation even share a simulator."""
    size = {} if task.startswith("toy") else {"demos.count": 3, "rl.decisions": 40}
    agents = []
    for points, deterministic in ((1, True), (6, False)):
        changes = {"evaluation.points": points, "evaluation.deterministic": deterministic, "evaluation.states": points}
        plan = make("csp_tmrl", task, **size, **changes)
        store = Store(tmp_path / str(points))
        run_all(store, plan)
        agents.append(contents(store, plan))
    assert agents[0]["agent"] == agents[1]["agent"]
    pd.testing.assert_frame_equal(agents[0]["training"], agents[1]["training"], check_exact=True)
    assert len(agents[0]["episodes"]) != len(agents[1]["episodes"])


@pytest.mark.parametrize(
    ("method", "changes", "chosen"),
    [("csp", {}, True), ("csp", {"csp.start": 0.5}, False), ("csp_tmrl", {}, True), ("bc", {}, False),
     ("csp_tmrl", {"csp_tmrl.sigma": "random"}, False), ("csp", {"coverage.sigmas": (0.5,)}, False)],
)  # fmt: skip
def test_rollouts_that_chose_sigma_are_counted(
    method: str, changes: dict[str, Any], chosen: bool, tmp_path: Path
) -> None:
    plan = make(method, "toy/reach-unseen", **{"pretrain.steps": 10, "rl.decisions": 40} | changes)
    store = Store(tmp_path)
    run_all(store, plan)
    keys = {u.stage: u.key for u in plan.units.values()}
    rolled = read_table(store.entry("coverage", keys["coverage"]).file("coverage.parquet"), COVERAGE)
    steps = rolled[rolled["half"] == "selection"]["length"].sum()
    assert steps > 0 and store.entry("finetune", keys["finetune"]).meta()["selection_control_steps"] == chosen * steps


def test_every_evaluation_owes_its_quota_and_carries_every_axis(tmp_path: Path) -> None:
    plan = make("bc", "toy/reach-unseen")
    store = Store(tmp_path)
    run_all(store, plan)
    episodes = contents(store, plan)["episodes"]
    counts = episodes.groupby(["point", "half"]).size().unstack()
    assert (counts["report"] == 2).all() and (counts["selection"] == 1).all() and len(counts) == 4
    axes = episodes.groupby("point")[["control_steps", "decisions", "gradient_steps", "policy_calls"]].first()
    assert (axes.diff().iloc[2:] > 0).all().all()
    assert (
        axes.decisions.iloc[-1] == 120 and axes.gradient_steps.iloc[-1] == 120 - 16 + 2
    )  # the round that ends the random phase learns
    assert (episodes.robot_hours == episodes.control_steps / 10 / 3600).all()
    assert axes.control_steps.iloc[-1] <= 120 * 4


def test_a_stage_held_by_another_process_is_left_alone(tmp_path: Path) -> None:
    plan, store = make("bc", "toy/reach"), Store(tmp_path)
    unit = next(iter(plan.units.values()))
    with store.entry(unit.stage, unit.key).lock():
        assert run_unit(store, unit, Reporter()) == ("busy",)
        assert store.entry(unit.stage, unit.key).status() == "running"
    assert run_unit(store, unit, Reporter()) == ("done",)
    begun = time.monotonic()
    assert run_unit(store, unit, Reporter()) == ("done",) and time.monotonic() - begun < 0.5


def test_demonstrations_in_the_batch(tmp_path: Path) -> None:
    """They change what is learned."""
    agents = []
    for name, fraction in (("without", 0.0), ("with", 0.5)):
        plan = make("csp_tmrl", "toy/reach-unseen", **{"rl.demo_fraction": fraction})
        run_all(Store(tmp_path / name), plan)
        agents.append(contents(Store(tmp_path / name), plan)["agent"])
    assert agents[0] != agents[1]
