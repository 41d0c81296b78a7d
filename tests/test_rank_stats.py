"""Who is ahead, rank correlation, and the seeds that would decide: by hand, by brute force and by scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as reference

from bench import rank_stats, stats
from bench.types import InputError


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_probability_of_improvement_agrees_with_mann_whitney() -> None:
    g = rng()
    first, second = ([np.round(g.random(n), 1) for n in counts] for counts in ((5, 8, 3), (4, 8, 6)))  # with ties
    shares = [reference.mannwhitneyu(x, y).statistic / (len(x) * len(y)) for x, y in zip(first, second, strict=True)]
    found, back = (rank_stats.probability_of_improvement(*sides) for sides in ((first, second), (second, first)))
    assert found.value == pytest.approx(np.mean(shares))
    assert (back.low, back.value, back.high) == pytest.approx((1 - found.high, 1 - found.value, 1 - found.low))


def test_interval_of_the_probability_of_improvement_is_wilsons_for_single_runs() -> None:
    # one run each: every task is one coin toss
    for wins in range(6):
        first = [[1.0]] * wins + [[0.0]] * (5 - wins)
        found = rank_stats.probability_of_improvement(first, [[0.5]] * 5, confidence=0.9)
        assert (found.low, found.high) == pytest.approx(stats.wilson(wins, 5, 0.9), abs=1e-6)
    # more runs leave less doubt
    widths = [np.ptp([f.low, f.high]) for n in (2, 5, 50) if (f := _improvement(n))]
    assert widths[0] > widths[1] > widths[2] > 0


def _improvement(runs: int) -> stats.Estimate:
    return rank_stats.probability_of_improvement([np.ones(runs)], [np.zeros(runs)])


def test_probability_of_improvement_solves_newcombes_equation() -> None:
    x, y = [3.0, 5.0, 6.0, 8.0], [1.0, 4.0, 7.0]
    found = rank_stats.probability_of_improvement([x], [y])
    assert found.value == pytest.approx(8 / 12)
    for p in (found.low, found.high):
        either = (1 - p) / (2 - p) + p / (1 + p)
        assert (p - 8 / 12) ** 2 == pytest.approx(1.959964**2 * p * (1 - p) * (1 + 2.5 * either) / 12, rel=1e-5)
    assert found.low < 8 / 12 < found.high


@pytest.mark.parametrize("sides", [([[1.0]], [[1.0], [2.0]]), ([[]], [[1.0]]), ([], [])])
def test_probability_of_improvement_needs_a_run_on_every_task(
    sides: tuple[list[list[float]], list[list[float]]],
) -> None:
    with pytest.raises(InputError, match="every task"):
        rank_stats.probability_of_improvement(*sides)


def test_rank_correlation_agrees_with_scipy() -> None:
    x = np.round(rng().random(30), 1)  # with ties
    y = np.round(x + np.random.default_rng(1).normal(size=30) / 3, 1)
    found = rank_stats.rank_correlation(x, y, rng())
    theirs = reference.bootstrap(
        (x, y), lambda a, b: reference.spearmanr(a, b).statistic,
        paired=True, vectorized=False, n_resamples=1000, method="percentile", random_state=1,
    )  # fmt: skip
    assert found.value == pytest.approx(reference.spearmanr(x, y).statistic)
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.05)


def test_rank_correlation_at_its_ends() -> None:
    x = np.arange(8.0)
    found = rank_stats.rank_correlation(x, x**3, rng())
    assert (found.value, found.low, found.high) == pytest.approx((1.0, 1.0, 1.0))
    assert rank_stats.rank_correlation(x, -x, rng()).high == pytest.approx(-1.0)
    lone = np.array([0.0, 0.0, 0.0, 0.0, 1.0])  # a third of the resamples leave the last pair out: no order, no NaN
    found = rank_stats.rank_correlation(lone, lone, rng())
    assert (found.value, found.low, found.high) == pytest.approx((1.0, 0.0, 1.0))
    for short in ([1, 2, 3], [1, 1, 1, 1]):
        with pytest.raises(InputError, match="four pairs"):
            rank_stats.rank_correlation(short, np.arange(len(short)), rng())


@pytest.mark.parametrize(("effect", "needed"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_seeds_to_decide_agrees_with_published_sample_sizes(effect: float, needed: int) -> None:
    """One-sample t-test, two-sided, level 0.05, power 0.8: the values that G*Power gives for Cohen's effects."""
    differences = np.array([-1.0, 0.0, 1.0]) + effect  # standard deviation 1
    assert stats.seeds_to_decide(differences) == needed - 3
    assert stats.seeds_to_decide(-1000 * differences) == needed - 3


@pytest.mark.parametrize("power", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("effect", [0.05, 0.3, 0.45, 0.7, 1.1, 1.9])
def test_seeds_to_decide_is_the_fewest(effect: float, power: float) -> None:
    def reached(n: int) -> bool:
        edge = reference.t.isf(0.025, n - 1)
        return bool(1 - reference.nct.cdf(edge, n - 1, effect * np.sqrt(n)) >= power)

    more = stats.seeds_to_decide(np.array([-1.0, 0.0, 1.0]) + effect, power)
    assert more is not None and reached(3 + more) and (more == 1 or not reached(2 + more))


def test_seeds_to_decide_reaches_its_power_in_simulation() -> None:
    differences = np.array([-1.0, 0.0, 1.0]) + 0.7
    more = stats.seeds_to_decide(differences, power=0.9, level=0.01)
    assert more is not None
    draws = rng().normal(0.7, 1.0, size=(20_000, 3 + more))
    assert (reference.ttest_1samp(draws, 0, axis=1).pvalue < 0.01).mean() == pytest.approx(0.9, abs=0.012)


def test_seeds_to_decide_at_its_ends() -> None:
    assert stats.seeds_to_decide([0.5, 0.6, 0.55]) == 0  # decided already
    assert stats.seeds_to_decide([0.2, 0.2]) == 0
    assert stats.seeds_to_decide([-0.5, 0.5]) is None
    assert stats.seeds_to_decide([0.0, 0.0, 0.0]) is None
    # a hundredth of a standard deviation: (1.95996 + 0.84162)² · 10⁴ + 1.95996² / 2 = 78490.7
    assert stats.seeds_to_decide(np.array([-1.0, 0.0, 1.0]) + 0.01) == 78_491 - 3
    with pytest.raises(InputError, match="two seeds"):
        stats.seeds_to_decide([0.5])


# pairs


def runs_of(*tasks: list[float]) -> dict[tuple[str, int], float]:
    return {(f"task {i}", seed): v for i, scores in enumerate(tasks) for seed, v in enumerate(scores)}


def test_paired_improvement_by_hand() -> None:
    # task 0: win, tie, loss, win; task 1: two wins. Mean over tasks of 2.5 / 4 and 1
    first, second = runs_of([0.5, 0.4, 0.1, 0.9], [0.2, 0.3]), runs_of([0.4, 0.4, 0.2, 0.8], [0.1, 0.2])
    found = rank_stats.paired_improvement(first, second)
    assert found.value == pytest.approx((2.5 / 4 + 1) / 2)
    assert (found.low, found.high) == pytest.approx(stats.wilson(6 * (2.5 / 4 + 1) / 2, 6))
    back = rank_stats.paired_improvement(second, first)
    assert (back.low, back.value, back.high) == pytest.approx((1 - found.high, 1 - found.value, 1 - found.low))


def test_pairs_see_what_hard_seeds_hide() -> None:
    """The first is better by a little in every seed, and seeds differ by a lot."""
    hard = np.arange(6) / 10
    first, second = runs_of(list(hard + 0.01)), runs_of(list(hard))
    found = rank_stats.paired_improvement(first, second)
    assert found.value == 1.0 and (found.low, found.high) == pytest.approx(stats.wilson(6, 6))
    blind = rank_stats.probability_of_improvement([hard + 0.01], [hard])
    assert blind.value == pytest.approx(21 / 36) and blind.low < 0.5


def test_tasks_count_alike_however_many_pairs_they_have() -> None:
    found = rank_stats.paired_improvement(runs_of([0.5, 0.6], [0.1]), runs_of([0.4, 0.7], [0.0]))
    assert found.value == 0.75 and (found.low, found.high) == pytest.approx(stats.wilson(0.75 * 3, 3))


def test_pairs_are_refused_where_one_is_missing() -> None:
    full = runs_of([0.1, 0.2, 0.3])
    short = {cell: v for cell, v in full.items() if cell[1] != 1}
    with pytest.raises(InputError, match=r"second: no score for \('task 0', 1\)"):
        rank_stats.paired_improvement(full, short)
    with pytest.raises(InputError, match=r"first: no score for \('task 0', 3\)"):
        rank_stats.paired_improvement(full, full, planned=[*full, ("task 0", 3)])
    with pytest.raises(InputError, match="every task"):
        rank_stats.paired_improvement({}, {})


# clusters


def test_resampled_ranks_are_those_of_the_pairs_written_out() -> None:
    pairs = np.round(rng().random((2, 12)), 1)  # with ties
    counts = rng().integers(0, 4, size=(50, 12)).astype(float)
    found = rank_stats._spearman(pairs, counts)
    for value, count in zip(found, counts.astype(int), strict=True):
        assert value == pytest.approx(reference.spearmanr(*np.repeat(pairs, count, axis=1)).statistic)


def test_pairs_of_a_cluster_are_drawn_together() -> None:
    """Four pairs, each written down five times, say no more than four pairs."""
    x, y = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, 4.0])
    names = [name for name in "abcd" for _ in range(5)]
    once = rank_stats.rank_correlation(x, y, rng())
    many = rank_stats.rank_correlation(np.repeat(x, 5), np.repeat(y, 5), rng(), names)
    assert (many.value, many.low, many.high) == pytest.approx((once.value, once.low, once.high))
    blind = rank_stats.rank_correlation(np.repeat(x, 5), np.repeat(y, 5), rng())
    assert blind.high - blind.low < (many.high - many.low) / 2
    with pytest.raises(InputError, match=r"four pairs or more that are independent \(here 3\)"):
        rank_stats.rank_correlation(np.arange(6.0), np.arange(6.0), rng(), list("aabbcc"))
    with pytest.raises(InputError, match="give one each"):
        rank_stats.rank_correlation(np.arange(6.0), np.arange(6.0), rng(), list("abcd"))
