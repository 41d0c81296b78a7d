"""Timing in turns against a clock that is known, and the measurements end to end on the toy suite."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bench import perf, perf_cells, perf_environments, perf_flow, perf_updates
from bench.plan import make_plan
from bench.rl import RLConfig
from bench.store import Store
from bench.timing import Clock, in_turns
from bench.types import InputError

TINY = perf_cells.Size(
    turns=1,
    seconds=0.01,
    cell_turns=2,
    cell_seconds=0.1,
    pretrain_steps=12,
    scaling_decisions=160,
    scaling_tasks=1,
    scaling_turns=2,
    simulators=1,
)


def quiet(text: str) -> None:
    pass


def test_ratios_are_those_of_the_work() -> None:
    now = [0.0]

    def work(cost: float, units: int) -> int:
        now[0] += cost
        return units

    ways = {"first": lambda: work(0.5, 1), "twice": lambda: work(0.5, 2), "half": lambda: work(1.0, 1)}
    rates = in_turns(ways, 3, 10.0, lambda: now[0])
    assert [(r.name, r.per_second, r.ratio) for r in rates] == [("first", 2, 1), ("twice", 4, 2), ("half", 1, 0.5)]
    assert all(r.low == r.high == r.per_second and r.ratio_low == r.ratio_high == r.ratio for r in rates)


def test_ratios_are_paired_by_turn() -> None:
    """A machine that slows down from turn to turn changes the rates, and not their ratio."""
    now, turn = [0.0], [0]

    def work(units: int) -> int:
        turn[0] += 1
        now[0] += (turn[0] + 1) // 2  # both ways are slower in every further turn
        return units

    ways = {"a": lambda: work(1), "b": lambda: work(3)}
    rates = in_turns(ways, 4, 0.5, lambda: now[0])
    assert rates[0].low < rates[0].high
    assert rates[1].ratio_low == rates[1].ratio == rates[1].ratio_high == pytest.approx(3.0)


def test_a_clock_gives_each_label_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    inner = SimpleNamespace(step=lambda: now.__setitem__(0, now[0] + 2.0))
    clock = Clock("rest")
    with clock.watch(inner, "step", "inner"):
        clock.start()
        now[0] += 1.0
        clock.enter("outer")
        now[0] += 4.0
        inner.step()
        clock.leave()
        inner.step()
        assert clock.stop() == {"rest": 1.0, "outer": 4.0, "inner": 4.0}
    inner.step()
    assert clock.stop()["inner"] == 4.0


def test_products_of_an_update_are_counted_by_hand() -> None:
    config = RLConfig(actor=(3,), critic=(4,), critics=2, batch=5)
    flops = sum(x.numel() * y.shape[1] for x, y in perf_updates.products(7, 2, config))
    actor = 5 * (2 * (7 * 3 + 3 * 4) + (7 * 3 + 3 * 4) + 4 * 3)
    critic = 5 * (3 * (9 * 4 + 4) + (9 * 4 + 4) + 4)
    assert flops == actor + 2 * critic + 5 * (4 * 2 + 4)  # the way down to the action, each row by one critic


def test_cells_pretraining_and_workers_are_measured(tmp_path: Path) -> None:
    store, task = Store(tmp_path), "toy/reach"
    plan = make_plan(perf_cells.request(("bc",), (task,), (0,), TINY))
    cell = perf_cells.cell_shares(store, plan.cells[0], TINY, quiet)
    training = perf_cells.pretraining(store, plan.cells[0], TINY, quiet)
    for shares, labels in (
        (cell, {"harness", "policy", "simulation", "update", "evaluation"}),
        (training, {"preparation", "forward", "backward", "optimiser"}),
    ):
        assert set(shares.shares) == labels and all(x > 0 for x in shares.shares.values())
        assert sum(shares.shares.values()) == pytest.approx(1.0)
        assert 0 < shares.low <= shares.per_second <= shares.high
    workers = perf.scaling(store, "bc", task, TINY, quiet)
    assert 0 < workers["ratio_low"] <= workers["ratio"] <= workers["ratio_high"] and workers["1 worker"] > 0
    beside = perf_environments.side_by_side((task,), 2, {task: 4}, 1, 0.02, quiet)[task]
    assert [r.name for r in beside][:2] == ["stock in SubprocVecEnv", "strict"] and all(r.per_second for r in beside)
    found = {
        "machine": perf.machine(), "environments": {}, "side_by_side": {task: [vars(r) for r in beside]},
        "cells": [vars(cell)], "pretraining": [vars(training)], "scaling": {task: workers}, "start_up": {"x": [1.0]},
    }  # fmt: skip
    text = perf.markdown(found)
    assert "stock in SubprocVecEnv" in text and "preparation" in text and "bc on toy/reach, seed 0" in text
    assert "### Seconds of a fresh process" in text and "gradient steps per second of CPU" not in text


def test_turns_are_medians_and_extremes_of_the_rate_and_shares_of_all() -> None:
    found = perf_cells.combined("x", 12, [{"a": 1.0, "b": 1.0}, {"a": 2.0, "b": 2.0}, {"a": 4.0, "b": 2.0}])
    assert (found.low, found.per_second, found.high) == (2.0, 3.0, 6.0)
    assert found.shares == pytest.approx({"a": 7 / 12, "b": 5 / 12})


def test_start_up_is_measured_in_fresh_processes() -> None:
    found = perf.start_up(["toy"], 2, quiet)
    whole, step = (
        found[f"toy: {what}"] for what in ("import, make, reset and first step", "of these reset and first step")
    )
    assert len(found["bench list"]) == 2 and all(0 < s < w for s, w in zip(step, whole, strict=True))
    with pytest.raises(InputError, match="nonsense"):
        perf.start_up(["nonsense"], 1, quiet)


def test_workers_are_compared_turn_by_turn_once_their_code_is_loaded() -> None:
    assert perf.workers(np.array([[10.0, 18.0], [20.0, 40.0], [30.0, 30.0]])) == {
        "1 worker": 20.0, "2 workers": 30.0, "ratio": 1.8, "ratio_low": 1.0, "ratio_high": 2.0
    }  # fmt: skip
    times = (0, 0.0), (80, 8.0), (160, 10.0)
    assert perf.late_rate([{"decisions": n, "wall_seconds": s} for n, s in times]) == 40.0


def test_the_flow_is_measured_with_torch_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = perf_flow.flows(1, 0.01, quiet)
    assert list(found)[-1] == "gradient steps of 256 samples" and len(found) == 5
    assert all([r.name for r in rates] == ["torch", "compiled"] and rates[1].per_second > 0 for rates in found.values())


def test_steps_of_a_gpu_are_counted_kernel_by_kernel_and_as_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, and without the half minute that compiling takes."""
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda loss, **_: compiled.append(loss) or loss)
    found = perf_flow.graphs(torch.device("cpu"))
    assert {name: work() for name, work in found.items()} == {"torch": 10, "one graph": 10} and len(compiled) == 1


def test_a_cell_that_fails_under_the_workers_is_named(tmp_path: Path) -> None:
    store, plan = Store(tmp_path), make_plan(perf_cells.request(("bc",), ("toy/reach",), (0,), TINY))
    for unit in plan.cells[0].units[:-1]:  # done, and nothing in them
        entry = store.entry(unit.stage, unit.key)
        entry.folder.mkdir(parents=True)
        entry.finish(unit.spec, {})
    with pytest.raises(InputError, match="finetune failed"):
        perf.decision_rate(store, plan, 1)


def test_a_section_that_fails_leaves_the_others() -> None:
    saved: list[dict[str, Any]] = []

    def broken() -> None:
        raise RuntimeError("no such part\nand more")

    parts = {"updates": lambda: {"a": []}, "cells": broken, "start_up": lambda: {"x": [1.0]}}
    found = perf.measure(parts, True, lambda now: saved.append(dict(now)), quiet)
    assert found["failed"] == {"cells": "no such part"} and len(saved) == 3
    assert [t.title for t in perf.tables(found)] == [
        "gradient steps per second of CPU time",
        "seconds of a fresh process",
    ]
