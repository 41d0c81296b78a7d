"""The report's section on where a method leads the run's first one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fabricate import KINDS, Fabricated

from bench import report, report_regime, stats
from bench.stats import Estimate
from bench.summary import Before, Result, Run, TaskResult


def result(task: str, method: str, coverage: float, ends: dict[int, float]) -> Result:
    """Success rises from 0.1 to the end of each seed, in five start states."""
    runs = tuple(
        Run(seed, {"control_steps": np.array([0.0, 10.0])}, np.tile([0.1, end], (5, 1)), {})
        for seed, end in ends.items()
    )
    areas = np.stack([stats.area(run.steps, run.success, 10.0) for run in runs])
    before = Before(8, Estimate(coverage, coverage - 0.1, coverage + 0.1), 0.0)
    area = Estimate(float(areas.mean()), 0.0, 1.0)
    return Result(task, method, len(ends), tuple(ends), before=(before, before), runs=runs, areas=areas, area=area)


@pytest.fixture
def found() -> list[report_regime.Lead]:
    easy = (result("easy", "first", 0.9, {0: 0.5, 1: 0.7}), result("easy", "other", 0.9, {1: 0.1, 0: 0.1}))
    hard = (result("hard", "other", 0.4, {1: 0.9, 2: 0.9}), result("hard", "first", 0.1, {0: 0.3, 1: 0.5, 2: 0.5}))
    return report_regime.leads([TaskResult("easy", 10.0, easy), TaskResult("hard", 10.0, hard)], "first")


def test_leads_are_paired_by_seed_and_ordered_by_what_the_first_method_could_do(
    found: list[report_regime.Lead],
) -> None:
    assert [(lead.task, lead.seeds) for lead in found] == [("hard", 2), ("easy", 2)]
    assert [lead.coverage.value for lead in found] == [0.1, 0.9]
    assert [lead.area.value for lead in found] == pytest.approx([0.2, -0.25])
    assert [lead.final.value for lead in found] == pytest.approx([0.4, -0.5])


def test_leads_are_paired_by_seed_whatever_the_order() -> None:
    """Seeds far apart, each method a tenth above the other within a seed: only the pairing shows it."""
    ends = {0: 0.1, 1: 0.5, 2: 0.8}
    first = result("t", "first", 0.5, ends)
    other = result("t", "other", 0.5, {seed: ends[seed] + 0.1 + 0.01 * seed for seed in (2, 0, 1)})
    (lead,) = report_regime.leads([TaskResult("t", 10.0, (first, other))], "first")
    assert 0 < lead.area.low < lead.area.value == pytest.approx(0.055)
    assert 0 < lead.final.low < lead.final.value == pytest.approx(0.11)


def test_leads_of_methods_that_both_fail() -> None:
    results = tuple(result("t", name, 0.1, {0: 0.0, 1: 0.0}) for name in ("first", "other"))
    (lead,) = report_regime.leads([TaskResult("t", 10.0, results)], "first")
    assert lead.final.value == 0.0 and lead.final.low < 0 < lead.final.high


def test_methods_without_a_seed_in_common_are_named() -> None:
    results = (result("t", "first", 0.1, {0: 0.5}), result("t", "other", 0.1, {1: 0.5}))
    tasks = [TaskResult("t", 10.0, results)]
    assert report_regime.leads(tasks, "first") == []
    assert "other on t" in report_regime.left_out(tasks, [], "first")


@pytest.mark.parametrize(
    ("area", "said"),
    [
        (Estimate(0.2, 0.1, 0.3), "other is above on hard."),
        (Estimate(-0.2, -0.3, -0.1), "other is below on hard."),
        (Estimate(0.2, -0.1, 0.5), "other is separated nowhere."),
    ],
)
def test_verdict_says_on_which_side_an_interval_lies(
    found: list[report_regime.Lead], area: Estimate, said: str
) -> None:
    lead = dataclasses.replace(found[0], area=area)
    assert report_regime.verdict([lead], "first") == f"Against first, by area: {said}"
    once = dataclasses.replace(lead, seeds=1)
    assert "nothing is said about other seeds" in report_regime.verdict([once], "first")


def test_page_has_the_section_with_two_tasks_and_not_with_one(tmp_path: Path) -> None:
    kinds = {"plain": KINDS["plain"], "noised_chosen": KINDS["noised_chosen"]}
    for name, tasks in (("one", ("toy/reach",)), ("two", ("toy/reach", "toy/reach-unseen"))):
        run = Fabricated(tmp_path / name, kinds, tasks, points=4)
        run.finish_all()
        page = report.write(run.store, [run.folder], tmp_path / name / "out").read_text()
        assert ("Where does a method pay?" in page) == (name == "two")
        leads = pd.read_csv(tmp_path / name / "out/tables/leads.csv")
        assert set(leads["method"]) == {"noised_chosen"} and len(leads) == len(tasks)
        assert (tmp_path / name / "out/figures/leads.png").exists() == (name == "two")


def leads_of(points: dict[float, float], below: float, above: float | None = None) -> list[report_regime.Lead]:
    """A task per point: the first method's success before RL, known, → the other's lead, with its interval's reach."""
    above = below if above is None else above
    return [
        report_regime.Lead(f"t{i}", "other", 8, Estimate(x, x, x), lead := Estimate(y, y - below, y + above), lead, 5)
        for i, (x, y) in enumerate(points.items())
    ]


FALLING = {0.0: 0.2, 0.2: 0.12, 0.4: 0.04, 0.6: -0.04, 0.8: -0.12, 1.0: -0.2}


def test_a_lead_ends_where_the_line_through_the_tasks_falls_to_nothing() -> None:
    sharp, wide = (report_regime.crossover(leads_of(FALLING, width)) for width in (0.01, 0.1))
    assert sharp is not None and wide is not None
    assert sharp.value == pytest.approx(0.5) and sharp.low < 0.5 < sharp.high < sharp.low + 0.1
    assert wide.high - wide.low > 2 * (sharp.high - sharp.low)
    assert wide == report_regime.crossover(leads_of(FALLING, 0.1))
    assert "straight line through the tasks: other 0.50 [0.4" in report_regime.verdict(leads_of(FALLING, 0.01), "first")


def test_where_a_lead_ends_is_as_uncertain_as_tasks_scatter_around_the_line() -> None:
    """Without intervals of their own only resampled tasks make a width; leads that may be larger move the end up."""
    scatter = {x: y + 0.1 * (-1) ** i for i, (x, y) in enumerate(FALLING.items())}
    sure = report_regime.crossover(leads_of(FALLING, float("nan")))
    scattered = report_regime.crossover(leads_of(scatter, float("nan")))
    assert sure is not None and sure.low == pytest.approx(0.5) == sure.high
    assert scattered is not None and scattered.high - scattered.low > 0.1
    up, down = (report_regime.crossover(leads_of(FALLING, *reach)) for reach in ((0.01, 0.2), (0.2, 0.01)))
    assert up is not None and down is not None and up.low + up.high > 1.05 and down.low + down.high < 0.95


@pytest.mark.parametrize(("shift", "said"), [(0.5, "other any [any, any]"), (-0.5, "other none [none, none]")])
def test_a_lead_that_ends_nowhere(shift: float, said: str) -> None:
    assert said in report_regime.verdict(leads_of({x: y + shift for x, y in FALLING.items()}, 0.01), "first")


@pytest.mark.parametrize("x", [0.1, 0.35, 0.7])
def test_equal_tasks_say_on_which_side_a_lead_is_and_not_where_it_ends(x: float) -> None:
    found = [lead for y in (0.1, 0.2, 0.3, 0.2, 0.1, 0.3, 0.2) for lead in leads_of({x: y}, 0.01)]
    assert report_regime.crossover(found) == report_regime.Crossover(np.inf, np.inf, np.inf)


def test_no_end_of_a_lead_is_named_where_there_is_none() -> None:
    rising = {x: -y for x, y in FALLING.items()}
    assert report_regime.crossover(leads_of(rising, 0.01)) is None
    assert report_regime.crossover(leads_of({0.0: 0.1, 0.3: -0.1, 0.7: 0.1, 1.0: -0.1}, 0.3)) is None
    assert report_regime.crossover(leads_of(FALLING, 0.01)[1:5]) is not None
    assert report_regime.crossover(leads_of(FALLING, 0.01)[:3]) is None
    assert "straight line" not in report_regime.verdict(leads_of(rising, 0.01), "first")


def test_the_end_of_a_lead_is_inside_its_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """Experiments with eight tasks that scatter around a line through 0 at 0.5, five seeds each."""
    monkeypatch.setattr(report_regime, "DRAWS", 1000)
    rng, half, inside = np.random.default_rng(0), 2.78 / 5**0.5, []
    for _ in range(100):
        found = []
        for x in rng.uniform(0, 1, 8):
            runs = 0.2 - 0.4 * x + rng.normal(0, 0.05) + rng.normal(0, 0.08, 5)
            mean, reach = runs.mean(), half * runs.std(ddof=1)
            lead = Estimate(mean, mean - reach, mean + reach)
            found.append(report_regime.Lead("t", "m", 8, Estimate(x, max(x - 0.1, 0), min(x + 0.1, 1)), lead, lead, 5))
        if place := report_regime.crossover(found):
            inside.append(place.low <= 0.5 <= place.high)
    assert len(inside) > 80 and np.mean(inside) >= 0.95
