"""Gathering and the numbers of one task, on made-up runs whose answer is known."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from fabricate import ATTEMPTS, KINDS, STARTS, Fabricated, cell_of
from known import FAST, SLOW, result_of, task_of

from bench import figures, report, report_curves, report_tables, study_spec, summary
from bench.report_ranking import rank
from bench.stages.curves import gather
from bench.store import EPISODES
from bench.summary import Run


@pytest.fixture
def run(tmp_path: Path) -> Fabricated:
    return Fabricated(tmp_path / "results")


def test_gather_takes_done_cells_and_all_finished_coverage(run: Fabricated) -> None:
    run.finish(cell_of(run, "noised_chosen", 0))
    run.fail(cell_of(run, "plain", 0))
    run.partial(cell_of(run, "plain", 1), 4)
    curves = gather(run.store, run.folder)
    cells = curves.cells.set_index(["method", "seed"])
    assert len(cells) == len(KINDS) * 3
    assert cells.loc[("noised_chosen", 0), "status"] == "done"
    assert cells.loc[("plain", 0), "status"] == "failed"
    assert cells.loc[("plain", 0), "failure"] == "RuntimeError: simulator diverged <at> step 7"
    assert cells.loc[("plain", 1), "status"] == "pending"
    assert set(curves.episodes["method"]) == {"noised_chosen"} and list(curves.episodes.columns) == list(EPISODES)
    assert len(curves.episodes) == 2 * STARTS * 2 * run.points
    # "noised" shares the policy of "noised_chosen", so its coverage is there before it is fine-tuned
    assert set(curves.coverage["method"]) == {"noised_chosen", "noised", "plain"}
    assert len(curves.coverage[curves.coverage["method"] == "noised"]) == 5 * 2 * STARTS * ATTEMPTS
    assert cells.loc[("noised", 0), "pretrain_seconds"] == 12.5


def test_running_is_seen_through_the_lock(run: Fabricated) -> None:
    cell = cell_of(run, "plain", 2)
    run.partial(cell, 2)
    with run.entry(cell, "finetune").lock():
        cells = gather(run.store, run.folder).cells.set_index(["method", "seed"])
    assert cells.loc[("plain", 2), "status"] == "running"


@pytest.mark.parametrize("harm", ["alter", "remove"])
def test_an_altered_file_makes_the_cell_fail_and_the_rest_stands(run: Fabricated, harm: str) -> None:
    run.finish_all()
    path = run.entry(cell_of(run, "plain", 1), "finetune").file("episodes.parquet")
    path.unlink() if harm == "remove" else path.write_bytes(path.read_bytes()[:-20])
    curves = gather(run.store, run.folder)
    assert (curves.cells["status"] == "failed").sum() == 1
    assert str(path) in curves.cells.loc[curves.cells["status"] == "failed", "failure"].iloc[0]
    plain = curves.episodes[curves.episodes["method"] == "plain"]
    assert set(plain["seed"]) == {0, 2}


def test_numbers_agree_with_a_plain_recomputation(run: Fabricated) -> None:
    run.finish_all()
    curves = gather(run.store, run.folder)
    (task,) = summary.summarise(curves)
    end = 500 * (run.points - 1)  # seed 0, the shortest
    assert task.end == end
    for result in task.results:
        rows = curves.episodes[(curves.episodes["method"] == result.method) & (curves.episodes["half"] == "report")]
        areas, finals = [], []
        for _, own in rows.groupby("seed"):
            points = own.groupby("point").agg(x=("control_steps", "first"), y=("success", "mean"))
            grid = np.linspace(0, end, 100_001)
            areas.append(np.interp(grid, points["x"], points["y"]).mean())
            finals.append(points["y"].iloc[-1])
        assert result.area is not None and result.final is not None
        assert result.area.value == pytest.approx(np.mean(areas), abs=1e-4)
        assert result.final.value == pytest.approx(np.mean(finals))
        assert result.area.low <= result.area.value <= result.area.high
    for curve in report_curves.curves(task, report_curves.AXES[0]):
        assert len(curve.x) > run.points and curve.x[-1] == end  # knots of all seeds
        assert curve.band is not None
        assert np.all(curve.band[0] <= curve.mean) and np.all(curve.mean <= curve.band[1])


def test_ranking_follows_the_area(run: Fabricated) -> None:
    run.finish_all()
    (task,) = summary.summarise(gather(run.store, run.folder))
    areas = [r.area.value for r in task.ranked if r.area]
    assert areas == sorted(areas, reverse=True) and len(areas) == len(KINDS)
    assert task.ranked[-1].method == "scratch"
    standings = rank([task]).standings
    assert [s.method for s in standings] == [r.method for r in task.ranked] and standings[0].gap is None
    for standing, area in zip(standings[1:], areas[1:], strict=True):
        assert standing.gap and standing.gap.value == pytest.approx(areas[0] - area)


def test_methods_that_share_a_policy_share_its_coverage(run: Fabricated) -> None:
    run.finish_all()
    curves = gather(run.store, run.folder)
    results = {r.method: r for r in summary.summarise(curves)[0].results}
    assert results["noised"].before == results["noised_chosen"].before
    assert results["scratch"].before == ()
    assert [b.k for b in results["plain"].before] == [1, 8]
    assert "noised, noised_chosen" in set(figures.coverage_table(curves)["methods"])


def test_sigma_is_chosen_on_selection_states_only() -> None:
    rows = [
        {"half": half, "sigma": sigma, "start": 0, "attempt": i, "success": good}
        for half, best in (("selection", 0.5), ("report", 0.0))
        for sigma in (0.0, 0.5)
        for i in range(4)
        for good in [(sigma == best) == (i < 3)]
    ]
    values, sigma = summary.one_seed(pd.DataFrame(rows), 1)
    assert sigma == 0.5 and values == pytest.approx([0.25])  # what report states say of the chosen σ, not their best


def test_all_failures_still_have_an_interval() -> None:
    e = summary.estimate(np.zeros((2, 10)), np.random.default_rng(0))
    assert e.value == e.low == 0 and e.high == pytest.approx(0.6576, abs=1e-4)  # Wilson's of 0 of the 2 runs, not of 20


def test_start_states_are_no_further_runs() -> None:
    """Three runs that never fail: a thousand start states each change nothing about how many runs were seen."""
    few, many = (summary.estimate(np.ones((3, n)), np.random.default_rng(0)) for n in (2, 1000))
    assert (few.low, few.high) == (many.low, many.high) == pytest.approx((0.4385, 1.0), abs=1e-4)
    few, many = (summary.difference(np.ones((3, n)), np.zeros((3, n)), np.random.default_rng(0)) for n in (2, 1000))
    assert few == many and few.value == 1.0
    assert few.low == pytest.approx(1 - np.hypot(1 - 0.4385, 0.5615), abs=1e-4)  # Newcombe's from both Wilsons
    rows = np.full((3, 5), 0.1) + 0.2  # 0.30000000000000004: rounding is no width
    assert summary.estimate(rows, np.random.default_rng(0)).high > 0.7
    band = report_curves._band([np.ones((3, 50, 2))], np.random.default_rng(0))
    assert band is not None and band[0] == pytest.approx(0.4385, abs=1e-4)


def test_of_points_at_equal_steps_the_last_counts() -> None:
    """Two points that fell due in one round, at 100 steps; areas, curves and studies follow one rule."""
    assert summary.latest(np.array([0.0, 100.0, 100.0, 200.0])).tolist() == [True, False, True, True]
    assert summary.latest(np.array([0.0, 0.0])).tolist() == [False, True] and not len(summary.latest(np.array([])))
    rows = [
        {axis: float(x) for axis in summary.AXES} | {"seed": 0, "start": 0, "point": i, "success": y,
                                                     "pretrain_steps": 0, "pretrain_seconds": 0.0}
        for i, (x, y) in enumerate([(0, 0.0), (100, 0.25), (100, 0.75), (200, 1.0)])
    ]  # fmt: skip
    (run,) = summary._runs(pd.DataFrame(rows), pd.Series({0: 30.0}))
    assert run.before["control_steps"] == 30.0
    assert run.steps.tolist() == [0, 100, 200] and run.success.tolist() == [[0.0, 0.75, 1.0]]
    x, y = report_curves.points(
        Run(0, {"gradient_steps": np.array([0.0, 0.0, 9.0])}, np.array([[0.1, 0.2, 0.3]]), {}),
        next(a for a in report_curves.AXES if a.key == "gradient_steps"),
    )
    assert x.tolist() == [0, 9] and y.tolist() == [[0.2, 0.3]]
    points = [{"control_steps": x, "success_rate": y} for x, y in ((0, 0.0), (100, 0.25), (100, 0.75), (200, 1.0))]
    assert study_spec.curve_area(points, "success_rate", 200.0) == pytest.approx(0.625)  # 0 → 0.75 → 1


def test_time_to_half_by_hand() -> None:
    fast, slow = result_of("fast", FAST), result_of("slow", SLOW)
    assert fast.half_median == 100 and fast.reached == 3 and fast.half_mean and np.isnan(fast.half_mean.low)
    assert np.isinf(slow.half_median) and slow.reached == 1  # the second seed, at 200
    assert slow.half_mean and slow.half_mean.value == 200
    cut = summary._measured(slow, 150.0)  # what is reached after the end that all share is not seen
    assert cut.reached == 0 and np.isinf(cut.half_median) and cut.half_mean is None
    table = report.report_tables.main(task_of(fast, slow, result_of("never", [[0.0, 0.1, 0.2]] * 2)))
    cells = {row[0]: row[-2:] for row in table.rows}
    assert cells["fast"] == ("100 (3/3 seeds)", "100") and cells["slow"][0] == "not reached (1/3 seeds)"
    assert cells["never"] == ("not reached (0/2 seeds)", "not reached")


def test_curves_on_an_axis_with_pretraining() -> None:
    task = task_of(result_of("trained", FAST, pretraining=40.0), result_of("bare", SLOW))
    plain, added = (next(a for a in report_curves.AXES if a.key == key) for key in ("gradient_steps",
                                                                                  "gradient_steps_all"))  # fmt: skip
    assert [c.x[[0, -1]].tolist() for c in report_curves.curves(task, plain)] == [[0, 20], [0, 20]]
    found = {c.method: c for c in report_curves.curves(task, added)}
    assert found["trained"].x.tolist() == [40, 50, 60] and found["bare"].x.tolist() == [0, 10, 20]
    assert found["trained"].mean == pytest.approx([0.2 / 3, 2.6 / 3, 2.8 / 3])
    together, lacking = report_curves.over_tasks([task, task], added)
    shares = {c.method: (c.x[0], c.x[-1]) for c in together}
    assert shares["trained"] == pytest.approx((40 / 60, 1)) and shares["bare"] == pytest.approx((0, 20 / 60))
    assert lacking == []


def test_rollouts_that_chose_sigma_are_a_cost_and_on_an_axis_of_their_own(run: Fabricated) -> None:
    run.finish_all()
    tasks = summary.summarise(gather(run.store, run.folder))
    costs = report_tables.costs_frame(tasks).set_index("method")["selection_control_steps"]
    assert costs["noised"] == 1200 and costs["plain"] == 0
    axis = next(a for a in report_curves.AXES if a.key == "control_steps_all")
    begins = {c.method: c.x[0] for c in report_curves.curves(tasks[0], axis)}
    assert begins["noised"] == 1200 and begins["plain"] == 0


def test_a_method_is_left_out_where_what_chose_sigma_is_unknown(run: Fabricated) -> None:
    run.finish_all()
    found = gather(run.store, run.folder)
    cells = found.cells
    cells.loc[cells["method"] == "noised", "selection_control_steps"] = np.nan
    tasks = summary.summarise(found)
    usual, chosen = report_curves.AXES[:2]
    drawn = {axis.key: {c.method for c in report_curves.curves(tasks[0], axis)} for axis in (usual, chosen)}
    assert drawn["control_steps"] - drawn["control_steps_all"] == {"noised"}
    assert report_curves.undrawn(tasks[0], chosen) == ["noised"] and report_curves.undrawn(tasks[0], usual) == []
    together, lacking = report_curves.over_tasks(tasks, chosen)
    assert lacking == ["noised"] and "plain" in {c.method for c in together}


def test_seeds_that_share_no_stretch_of_an_axis_still_have_a_curve() -> None:
    """Pretraining of 100 s and of 40 s, and 50 s of fine-tuning."""
    axis = next(a for a in report_curves.AXES if a.before and a.column == "wall_seconds")
    runs = [
        SimpleNamespace(
            axes={"wall_seconds": np.array([0.0, 25.0, 50.0])}, success=np.array([[0.0, 0.5, end]]),
            before={"wall_seconds": before},
        )
        for before, end in ((100.0, 1.0), (40.0, 0.5))
    ]  # fmt: skip
    curve = report_curves._curve(SimpleNamespace(task="t", method="m", runs=runs), axis)  # type: ignore[arg-type]
    assert curve.x.tolist() == [70.0, 95.0, 120.0] and curve.mean.tolist() == [0.0, 0.5, 0.75]
    assert curve.band is None and len(curve.lines) == 2
