"""Who is ahead, what coverage predicts, and what is said of it, on results whose answer is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
from known import FAST, SLOW, result_of, task_of

from bench import report_coverage, report_curves, report_tables, report_words, summary
from bench.report_ranking import Ranking, Standing, about, pairs, rank, spread, verdict
from bench.stats import Estimate
from bench.summary import Result, TaskResult


def test_ranking_by_hand() -> None:
    first, second = rank([task_of(result_of("slow", SLOW), result_of("fast", FAST))]).standings
    assert (first.method, first.done, first.planned) == ("fast", 3, 3)
    assert first.mean and first.mean.value == pytest.approx(2.05 / 3)
    # Student's interval of 0.6, 0.75, 0.7: 0.6833 ± 4.3027 · 0.07638 / √3
    assert (first.mean.low, first.mean.high) == pytest.approx((0.4936, 0.8731), abs=0.01)
    assert second.gap and second.gap.value == pytest.approx(0.55)  # 0.5, 0.5, 0.65: ± 4.3027 · 0.0866 / √3
    assert (second.gap.low, second.gap.high) == pytest.approx((0.3349, 0.7651), abs=0.01)
    assert second.better and second.better.value == 1.0 and second.more_seeds is None and second.paired
    assert second.better.low == pytest.approx(0.4385, abs=1e-4)  # Wilson's of 3 of 3 pairs


def test_ranking_over_tasks_counts_every_task_alike() -> None:
    results = [result_of("only", FAST, "a/a"), result_of("only", SLOW[:2], "b/b")]
    (standing,) = rank([task_of(r) for r in results]).standings
    assert standing.mean and standing.mean.value == pytest.approx((2.05 / 3 + 0.175) / 2)
    assert standing.middle and standing.middle.value == pytest.approx((0.25 + 0.6 + 0.7) / 3)  # 0.1 and 0.75 cut off


def test_pairs_are_refused_where_seeds_differ_and_a_method_without_a_task_is_not_ranked() -> None:
    tasks = [
        task_of(result_of("fast", FAST, "a/a"), result_of("short", SLOW[:2], "a/a"), result_of("gone", SLOW, "a/a")),
        task_of(result_of("fast", FAST, "b/b"), result_of("short", SLOW, "b/b"), Result("b/b", "gone", 3, ())),
    ]
    ranking = rank(tasks)
    fast, short, gone = ranking.standings
    assert fast.method == "fast" and short.gap is None and short.better and short.better.value == 1
    assert not short.paired and report_tables.ranking(ranking).rows[1][4].endswith("(not paired)")
    assert "seeds or start states differ from fast's on a/a" in short.refused
    assert gone.mean is None and "no seed is finished on b/b" in gone.refused and (gone.done, gone.planned) == (3, 6)
    said = verdict(ranking)
    assert "not paired with short" in said and "gone 3/6" in said and "learned fastest" not in said
    assert report_curves.over_tasks(tasks, report_curves.AXES[0])[1] == ["gone"]


def test_coverage_predicts_what_it_is_made_to_predict() -> None:
    tasks = []
    for t, easy in (("a/a", 0.0), ("b/b", 0.4)):
        results = []
        for i in range(4):
            level = easy + 0.1 * i
            before = tuple(
                summary.Before(k, Estimate(x, x, x), 0.0, {0: x}) for k, x in ((1, 0.5 - level / 2), (8, level))
            )
            found = result_of(f"m{i}", [[level, level, level + 0.05 * i]] * 2, t)
            results.append(replace(found, before=before))
        tasks.append(task_of(*results))
    found = report_coverage.relations(report_coverage.pairs_of(tasks))
    assert [(r.coverage, r.outcome) for r in found][1] == ("Success@8 before RL", "area under curve")
    assert found[1].every and found[1].every.value == pytest.approx(1.0) and found[1].pairs == 8
    assert found[0].every and found[0].every.value == pytest.approx(-1.0)
    assert found[1].within and found[1].within.value == pytest.approx(1.0)
    assert "goes with the order" in report_coverage.verdict(found)
    few = report_coverage.relations(report_coverage.pairs_of(tasks)[:3])
    assert few[0].every is None and "four pairs" in few[0].refused


def ranking_of(*gaps: Estimate, fewest: int = 5) -> Ranking:
    names = ("second", "third", "fourth")
    rest = [
        Standing(name, fewest, fewest, fewest, Estimate(0.5, 0.4, 0.6), gap=gap, more_seeds=4 if gap.low <= 0 else None)
        for name, gap in zip(names, gaps, strict=False)
    ]
    first = Standing("first", fewest, fewest, fewest, Estimate(0.9, 0.8, 1.0))
    return Ranking(("t/t",), (), (first, *rest))


def test_seeds_that_nobody_will_run_are_not_counted_out() -> None:
    assert about(4) == "about 4" and about(1_000) == "about 1,000" and about(9_554) == "over 1,000"


def test_verdict_says_no_more_than_the_intervals() -> None:
    clear, open_ = Estimate(0.4, 0.3, 0.5), Estimate(0.1, -0.1, 0.3)
    said = verdict(ranking_of(clear))
    assert said.startswith("first learned fastest: every paired difference") and "too few" not in said
    said = verdict(ranking_of(clear, open_))
    assert "learned fastest" not in said and "separated from second (by +0.40" in said
    assert "not separated from third (+0.10 [−0.10,\u00a0+0.30], about 4 more seeds would decide)" in said
    assert "on these seeds" in verdict(ranking_of(clear, fewest=2)) and "too few" in verdict(
        ranking_of(clear, fewest=2)
    )
    assert "learned fastest" not in verdict(ranking_of(clear, fewest=1))
    assert "With one seed" in verdict(ranking_of(clear, fewest=1))
    assert "Only first can be ranked" in verdict(ranking_of())
    assert "nothing to rank" in verdict(rank([TaskResult("t/t", 0.0, (Result("t/t", "a", 2, ()),))]))


def test_numbers_are_printed_so_that_zero_is_zero() -> None:
    assert spread(Estimate(0.06, 0.003, 0.11), sign=True) == "+0.060 [+0.003,\u00a0+0.110]"
    assert spread(Estimate(0.06, -0.02, 0.11), sign=True) == "+0.06 [−0.02,\u00a0+0.11]"
    assert spread(Estimate(0.5, float("nan"), float("nan"))) == "0.50" and spread(None) == "–"


def test_better_is_paired_by_seed() -> None:
    """Ahead in every seed by less than seeds differ: 3 wins of 3 pairs, and 6 of 9 where seeds are mixed."""
    low = [[x, x, x] for x in (0.1, 0.4, 0.7)]
    high = [[x + 0.1] * 3 for (x, *_) in low]
    _, second = rank([task_of(result_of("high", high), result_of("low", low))]).standings
    assert second.better and second.better.value == 1.0 and second.paired
    _, second = rank([task_of(result_of("high", high), result_of("low", low[:2]))]).standings
    assert second.better and not second.paired


def test_every_two_methods_are_compared_on_all_tasks_and_on_each() -> None:
    """The larger area of the task comes first, and what is between two does not depend on a third."""
    one, other = "a/a", "b/b"
    mid = [[0.0, 0.4, 0.4], [0.0, 0.5, 0.5], [0.1, 0.4, 0.5]]  # areas 0.3, 0.375, 0.35
    tasks = [
        task_of(result_of("fast", FAST, one), result_of("mid", mid, one), result_of("slow", SLOW, one)),
        task_of(result_of("fast", SLOW, other), result_of("mid", FAST, other), result_of("slow", SLOW[:2], other)),
    ]
    found = report_tables.differences_frame(pairs(tasks)).set_index(["task", "method", "minus"])
    assert len(found) == 9
    assert found.loc[(one, "fast", "mid"), ["area", "better"]].tolist() == pytest.approx([1.025 / 3, 1.0])
    assert found.loc[(one, "mid", "slow"), ["area", "better"]].tolist() == pytest.approx([0.625 / 3, 1.0])
    assert found.loc[(other, "mid", "fast"), ["area", "better"]].tolist() == pytest.approx([0.55, 1.0])
    both = found.loc[("all tasks", "mid", "fast")]
    assert both["area"] == pytest.approx((0.55 - 1.025 / 3) / 2) and both["better"] == 0.5 and both["paired"]
    short = found.loc[(other, "mid", "slow")]
    assert not short["paired"] and short.isna()["area"]


def test_areas_of_every_seed() -> None:
    found = report_tables.seeds_frame([task_of(result_of("fast", FAST), result_of("slow", SLOW[:2]))])
    assert found.set_index(["method", "seed"])["area"].to_dict() == pytest.approx(
        {("fast", 0): 0.6, ("fast", 1): 0.75, ("fast", 2): 0.7, ("slow", 0): 0.1, ("slow", 1): 0.25}
    )
    assert found["final"].tolist() == [0.8, 1.0, 1.0, 0.4, 0.6]


def test_the_page_says_which_probability_it_is() -> None:
    tasks = [task_of(result_of("fast", FAST), result_of("slow", SLOW))]
    said = report_words.intervals(rank(tasks), tasks)
    assert "of the pairs as" in said and "Mann–Whitney" not in said and "Wilson's" in said
    tasks = [task_of(result_of("fast", FAST), result_of("slow", SLOW[:2]))]
    said = report_words.intervals(rank(tasks), tasks)
    assert "of the pairs as" not in said and "Mann–Whitney" in said
    tasks = [task_of(result_of("fast", FAST), result_of("slow", SLOW[:2]), result_of("mid", SLOW))]
    assert "or where so marked of any seed" in report_words.intervals(rank(tasks), tasks)


def covered(result: Result, coverage: dict[int, float], policy: str) -> Result:
    before = tuple(summary.Before(k, Estimate(0.99, 0.9, 1.0), 0.0, coverage) for k in (1, 8))
    return replace(result, before=before, policy=policy)


def test_coverage_is_paired_with_the_outcome_by_seed() -> None:
    """Seed 2 has coverage and no finished fine-tuning: it counts on neither side."""
    found = covered(result_of("m", FAST[:2]), {0: 0.1, 1: 0.3, 2: 0.9}, "p")
    (pair,) = report_coverage.pairs_of([task_of(found)])
    assert pair.means(True, False) == pytest.approx((0.2, (0.6 + 0.75) / 2))
    assert pair.means(True, True) == pytest.approx((0.2, 0.9))
    assert report_coverage.pairs_of([task_of(covered(result_of("m", FAST), {7: 0.5}, "p"))]) == []


def test_methods_that_share_a_policy_are_one_cluster() -> None:
    def tasks(count: int) -> list[TaskResult]:
        return [
            task_of(*(covered(result_of(m, FAST[: i + 2], f"t/{t}"), {0: 0.1 * i + 0.01 * t, 1: 0.2}, f"{t}-{policy}")
                      for i, (m, policy) in enumerate((("csp", "one"), ("csp_tmrl", "one")))))
            for t in range(count)
        ]  # fmt: skip

    pairs = report_coverage.pairs_of(tasks(3))
    found = report_coverage.relations(pairs)[0]
    assert found.pairs == 6 and found.units == "3 pretrained policies"
    assert found.every is None and "(here 3)" in found.refused  # six pairs, but three things that vary
    assert report_coverage.clusters_of(report_coverage.pairs_of(tasks(5)))[1] == "5 tasks"
