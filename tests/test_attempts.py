"""The report's Success@K against K."""

from __future__ import annotations

import pytest
from fabricate import ATTEMPTS, Fabricated

from bench import figures, report_attempts, summary
from bench.stages.curves import Curves, gather


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory) -> Curves:
    run = Fabricated(tmp_path_factory.mktemp("run"), points=2)
    run.finish_all()
    return gather(run.store, run.folder)


def test_success_of_one_and_of_eight_tries_are_those_of_the_main_table(curves: Curves) -> None:
    found = report_attempts.table(curves).set_index(["methods", "k"])
    assert sorted(set(found.index.get_level_values("k"))) == [1, 2, 3, 5, 8] and ATTEMPTS == 8
    (task,) = summary.summarise(curves)
    for result in (r for r in task.results if r.method in ("plain", "spread_targets")):
        for before in result.before:
            row = found.loc[(result.method, before.k)]
            assert (row.success, row.low, row.high) == (before.success.value, before.success.low, before.success.high)


def test_more_tries_solve_no_fewer_states_and_a_shared_policy_is_one_line(curves: Curves) -> None:
    found = report_attempts.table(curves)
    assert set(found.methods) == {"plain", "spread_targets", "noised, noised_chosen"}
    one_level = found[found.methods != "noised, noised_chosen"].sort_values("k")
    assert one_level.groupby("methods").success.is_monotonic_increasing.all()


def test_figure_needs_three_values_of_k(curves: Curves) -> None:
    found, style = report_attempts.table(curves), figures.Style(sorted(set(curves.cells["method"])))
    assert report_attempts.figure(found, "toy/reach", style) is not None
    assert report_attempts.figure(found[found.k < 3], "toy/reach", style) is None
