"""Statistics against hand-computed cases, brute force and scipy."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from scipy import stats as reference

from bench import curve_stats, rank_stats, stats
from bench.stats import Bootstrap, interquartile_mean
from bench.types import InputError

PERCENTILE = Bootstrap(method="percentile")


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_success_at_k_is_the_average_over_all_subsets() -> None:
    for n in (1, 4, 7):
        for c in range(n + 1):
            outcomes = [True] * c + [False] * (n - c)
            for k in range(1, n + 1):
                brute = np.mean([any(pick) for pick in combinations(outcomes, k)])
                assert stats.success_at_k([c], n, k) == pytest.approx(brute, abs=1e-12)


def test_success_at_k_averages_over_start_states_only() -> None:
    # 8 attempts: 0 and 8 successes average to one half at any k, 4 and 4 do not
    assert stats.success_at_k([[0, 8], [4, 4]], 8, 8) == pytest.approx([0.5, 1.0])
    assert stats.success_at_k([[0, 8], [4, 4]], 8, 1) == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("k", [0, 9])
def test_success_at_k_refuses_k_beyond_the_attempts(k: int) -> None:
    with pytest.raises(ValueError, match="attempts"):
        stats.success_at_k([1], 8, k)


@pytest.mark.parametrize(("successes", "attempts"), [(0, 10), (3, 10), (10, 10), (77, 200), (1, 1)])
def test_wilson_agrees_with_scipy(successes: int, attempts: int) -> None:
    expected = reference.binomtest(successes, attempts).proportion_ci(0.95, method="wilson")
    assert stats.wilson(successes, attempts) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_of_nothing_is_everything() -> None:
    assert stats.wilson(0, 0) == (0.0, 1.0)


def test_interquartile_mean() -> None:
    assert stats.interquartile_mean([0, 1, 2, 3, 4, 5, 6, 100]) == pytest.approx((2 + 3 + 4 + 5) / 4)
    assert stats.interquartile_mean([[0.0, 1.0, 2.0, 9.0]], axis=1) == pytest.approx([1.5])


def test_area_by_hand() -> None:
    # 0 → 1 over the first half, 1 in the second: 0.25 + 0.5
    assert stats.area([0, 50, 100], [0, 1, 1], 100) == pytest.approx(0.75)
    # cut in the middle of a segment: triangle of base 25, height 0.5, over 25
    assert stats.area([0, 50, 100], [0, 1, 1], 25) == pytest.approx(0.25)
    # the first value holds before the first point
    assert stats.area([50, 100], [0.4, 0.4], 100) == pytest.approx(0.4)
    # leading axes stay
    assert stats.area([0, 100], [[0, 1], [1, 1]], 100) == pytest.approx([0.5, 1.0])


def test_area_agrees_with_numpy_and_stays_in_range() -> None:
    x = np.sort(rng().choice(1000, 20, replace=False)).astype(float)
    x -= x[0]
    y = rng().random((3, 20))
    np.testing.assert_allclose(stats.area(x, y, x[-1]), [np.interp(_dense(x), x, c).mean() for c in y], atol=1e-4)
    assert stats.area(x, np.ones(20), x[-1]) == pytest.approx(1.0)


def _dense(x: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    edges = np.linspace(x[0], x[-1], 200_001)
    return np.asarray((edges[1:] + edges[:-1]) / 2)


@pytest.mark.parametrize("end", [0, 101])
def test_area_refuses_a_range_that_is_not_there(end: float) -> None:
    with pytest.raises(ValueError, match="control steps"):
        stats.area([0, 100], [0, 1], end)


def test_on_grid_agrees_with_numpy() -> None:
    x, y = np.array([0.0, 3.0, 7.0, 20.0]), rng().random(4)
    grid = np.array([-5.0, 0.0, 1.0, 3.0, 6.9, 20.0, 30.0])
    np.testing.assert_allclose(stats.on_grid(grid, x, y), np.interp(grid, x, y), atol=1e-12)
    np.testing.assert_allclose(stats.on_grid(grid, [5.0], [0.25]), np.full(7, 0.25))


# the t interval


def test_t_interval_of_one_task_is_students() -> None:
    scores = np.array([0.1, 0.5, 0.6, 0.9])
    expected = reference.ttest_1samp(scores, 0).confidence_interval()
    ours = stats.bootstrap([scores], np.mean, rng(), Bootstrap(draws=100_000))
    assert (ours.value, ours.low, ours.high) == pytest.approx((0.525, expected.low, expected.high), abs=0.01)
    wide = stats.bootstrap([scores], np.mean, rng(), Bootstrap(draws=100_000, confidence=0.99))
    expected = reference.ttest_1samp(scores, 0).confidence_interval(0.99)
    assert (wide.low, wide.high) == pytest.approx((expected.low, expected.high), abs=0.02)


def test_t_interval_of_two_tasks_is_welchs() -> None:
    x, y = np.array([0.2, 0.9, 0.4]), np.array([0.1, 0.9, 0.3, 0.8, 0.2, 0.7])  # unequal in number and spread
    expected = reference.ttest_ind(x, -y, equal_var=False).confidence_interval()
    ours = stats.bootstrap([x, y], np.mean, rng(), Bootstrap(draws=100_000, per_task=True))
    assert (ours.low, ours.high) == pytest.approx((expected.low / 2, expected.high / 2), abs=0.01)
    assert ours.value == pytest.approx((x.mean() + y.mean()) / 2)
    # over runs instead of tasks, a task weighs as much as it has seeds: 3 x̄ / 9 + 6 ȳ / 9
    expected = reference.ttest_ind(x / 3, -y * 2 / 3, equal_var=False).confidence_interval()
    ours = stats.bootstrap([x, y], np.mean, rng(), Bootstrap(draws=100_000))
    assert (ours.low, ours.high) == pytest.approx((expected.low, expected.high), abs=0.01)
    assert ours.value == pytest.approx(np.concatenate([x, y]).mean())


def test_t_interval_where_only_start_states_differ_has_their_degrees_of_freedom() -> None:
    starts = np.array([0.0, 0.2, 0.7, 1.0])
    expected = reference.ttest_1samp(starts, 0).confidence_interval()
    ours = stats.bootstrap([np.tile(starts, (3, 1))], np.mean, rng(), Bootstrap(draws=100_000))
    assert (ours.low, ours.high) == pytest.approx((expected.low, expected.high), abs=0.02)
    cut = stats.bootstrap([np.tile(starts, (3, 1))], np.mean, rng(), Bootstrap(draws=100_000, bounds=(0, 1)))
    assert (cut.low, cut.high) == (0.0, 1.0)


def test_t_covers_with_three_seeds_where_the_percentile_bootstrap_does_not() -> None:
    generator, hits = np.random.default_rng(5), {"t": 0, "percentile": 0}
    for _ in range(200):
        scores = generator.normal(size=(1, 3))
        for method in ("t", "percentile"):
            found = stats.bootstrap(scores, np.mean, generator, Bootstrap(200, method=method))  # type: ignore[arg-type]
            hits[method] += found.low <= 0 <= found.high
    assert hits["percentile"] < 160 and 180 <= hits["t"] <= 199  # of 190 promised


# the bootstrap


@pytest.mark.parametrize("statistic", [np.mean, np.median, interquartile_mean])
def test_bootstrap_agrees_with_scipy(statistic: Callable[..., np.ndarray]) -> None:  # type: ignore[type-arg]
    scores = rng().random(25)
    ours = stats.bootstrap([scores], statistic, rng(), PERCENTILE)
    theirs = reference.bootstrap((scores,), statistic, n_resamples=10_000, method="percentile", random_state=1)
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.02)
    assert ours.value == pytest.approx(float(statistic(scores)))


@pytest.mark.parametrize("statistic", [np.mean, np.median, interquartile_mean])
@pytest.mark.parametrize("plan", [Bootstrap(500), Bootstrap(500, method="percentile"), Bootstrap(500, tasks=True)])
def test_bootstrap_follows_a_change_of_units(statistic: Callable[..., np.ndarray], plan: Bootstrap) -> None:  # type: ignore[type-arg]
    scores = rng().random((3, 5))
    plain = stats.bootstrap(scores, statistic, rng(), plan)
    scaled = stats.bootstrap(100 * scores - 7, statistic, rng(), plan)
    expected = [100 * v - 7 for v in (plain.value, plain.low, plain.high)]
    assert [scaled.value, scaled.low, scaled.high] == pytest.approx(expected)
    assert plain.low < plain.value < plain.high


def test_interquartile_mean_is_over_runs_and_not_over_tasks() -> None:
    scores = np.array([[0.0, 0.1, 0.2, 0.9], [0.3, 0.4, 0.5, 1.0]])
    assert stats.bootstrap(scores, interquartile_mean, rng()).value == pytest.approx((0.2 + 0.3 + 0.4 + 0.5) / 4)
    assert interquartile_mean(scores) == pytest.approx(reference.trim_mean(scores.ravel(), 0.25))


def test_seeds_are_resampled_within_tasks_and_tasks_only_if_asked() -> None:
    strata = [np.zeros(4), np.ones(4)]
    within = stats.bootstrap(strata, np.mean, rng(), PERCENTILE)
    assert (within.low, within.high) == (0.5, 0.5)
    plan = Bootstrap(method="percentile", tasks=True)
    assert stats.bootstrap(strata, np.mean, rng(), plan) == stats.Estimate(0.5, 0.0, 1.0)
    # t with T − 1 = 1 degree of freedom on √((1/2) / 2)
    found = stats.bootstrap(strata, np.mean, rng(), Bootstrap(draws=100_000, tasks=True))
    assert found.high - 0.5 == pytest.approx(12.706 * 0.5, rel=0.01)


def test_all_runs_of_a_resample_share_its_start_states() -> None:
    values = np.array([[0.0, 1.0], [10.0, 11.0]])  # seeds 0 and 10, start states 0 and 1
    seen: set[float] = set()
    spy = lambda runs, axis: seen.update(np.unique(np.ptp(runs, axis=1))) or runs.mean(axis=axis)  # noqa: E731
    stats.bootstrap([values], spy, rng())
    assert seen == {0.0, 10.0}  # within a resample runs differ by their seeds alone


def test_one_draw_serves_both_methods() -> None:
    scores = rng().random((2, 5))
    first = {(task, seed): scores[i, seed] + 0.25 for i, task in enumerate("ab") for seed in range(5)}
    second = {(task, seed): scores[i, seed] for i, task in enumerate("ab") for seed in range(5)}
    for statistic in (np.mean, np.median, interquartile_mean):
        for plan in (Bootstrap(), PERCENTILE, Bootstrap(tasks=True)):
            found = stats.paired(first, second, statistic, rng(), plan)
            assert (found.value, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))


def test_paired_difference_of_means_is_the_paired_t_test() -> None:
    x, y = np.array([0.5, 0.9, 0.7, 0.8]), np.array([0.4, 0.6, 0.7, 0.4])
    runs = [{("a", seed): v for seed, v in enumerate(side)} for side in (x, y)]
    expected = reference.ttest_rel(x, y).confidence_interval()
    found = stats.paired(runs[0], runs[1], np.mean, rng(), Bootstrap(draws=100_000))
    assert (found.value, found.low, found.high) == pytest.approx((0.2, expected.low, expected.high), abs=0.01)


def test_paired_interval_over_tasks_is_welchs_on_the_differences() -> None:
    first = np.array([[0.1, 0.9, 0.5], [0.5, 0.5, 0.5]])
    difference = np.array([[0.1, 0.4, 0.3], [0.0, 0.3, 0.2]])  # spread where `first` has none
    runs = [
        {(t, seed): side[i, seed] for i, t in enumerate("ab") for seed in range(3)}
        for side in (first, first - difference)
    ]
    found = stats.paired(runs[0], runs[1], np.mean, rng(), Bootstrap(draws=100_000))
    expected = reference.ttest_ind(difference[0], -difference[1], equal_var=False).confidence_interval()
    assert (found.low, found.high) == pytest.approx((expected.low / 2, expected.high / 2), abs=0.005)


def test_pairs_refuse_by_name_what_one_side_or_both_lack() -> None:
    full = {(task, seed): 0.5 for task in ("lift", "can") for seed in range(3)}
    short = {cell: v for cell, v in full.items() if cell != ("can", 2)} | {("lift", 1): float("nan")}
    assert stats.missing(short, full) == [("can", 2), ("lift", 1)]
    with pytest.raises(InputError, match=r"second: no score for \('can', 2\), \('lift', 1\)"):
        stats.paired(full, short, np.mean, rng())
    with pytest.raises(InputError, match=r"first: no score for \('can', 3\)"):
        stats.paired(full, full, np.mean, rng(), planned=[*full, ("can", 3)])
    with pytest.raises(InputError, match="start states"):
        stats.paired({("a", 0): [0, 1], ("a", 1): [0, 1]}, {("a", 0): [0], ("a", 1): [1]}, np.mean, rng())
    with pytest.raises(InputError, match="seeds of a differ"):
        stats.strata_of({("a", 0): [0, 1], ("a", 1): [0]}, [("a", 0), ("a", 1)])


def test_strata_are_sorted_and_may_be_unequal() -> None:
    runs = {("b", 10): 3.0, ("b", 9): 2.0, ("a", 5): 1.0, ("b", 99): 9.0}
    found = stats.strata_of(runs, [("b", 10), ("b", 9), ("a", 5)])
    assert [list(s) for s in found] == [[1.0], [2.0, 3.0]]


@pytest.mark.parametrize("strata", [[], [[0.5]], [[0.5, 0.6], [0.5]], [np.zeros((2, 2, 2))], [0.5, 0.6]])
def test_bootstrap_refuses_what_has_no_interval_over_seeds(strata: list[object]) -> None:
    with pytest.raises(InputError, match="seeds"):
        stats.bootstrap(strata, np.mean, rng())  # type: ignore[arg-type]


@pytest.mark.parametrize("strata", [[[0.1, 0.2], [0.1, 0.2, 0.3]], [[0.1, 0.2]]])
def test_resampling_tasks_refuses_unequal_seeds_and_a_single_task(strata: list[list[float]]) -> None:
    with pytest.raises(InputError, match="two tasks or more with equal seeds"):
        stats.bootstrap(strata, np.mean, rng(), Bootstrap(tasks=True))


def test_new_intervals_reproduce_and_follow_their_generator() -> None:
    scores = rng().random((3, 4, 6))
    calls: list[Callable[[np.random.Generator], object]] = [
        lambda g: stats.bootstrap(scores, interquartile_mean, g),
        lambda g: stats.bootstrap(scores, interquartile_mean, g, Bootstrap(tasks=True)),
        lambda g: tuple(stats.performance_profile(scores, [0.5], g).low),
        lambda g: rank_stats.rank_correlation(scores[0].ravel(), scores[1].ravel(), g),
    ]
    for call in calls:
        assert call(rng()) == call(rng()) != call(np.random.default_rng(1))


# profiles, improvement, ranks


def test_performance_profile_by_hand() -> None:
    strata = [[0.1, 0.5, 0.9], [0.5, 0.7]]
    found = stats.performance_profile(strata, [0.0, 0.1, 0.5, 0.6, 0.9], rng())
    assert found.value == pytest.approx([1.0, 0.8, 0.4, 0.4, 0.0])
    assert (found.low <= found.value).all() and (found.value <= found.high).all()
    assert found.low.min() >= 0 and found.high.max() <= 1
    assert (found.low[0], found.high[-1]) == (1.0, 0.0)  # all runs agree there


def test_profile_of_successes_is_their_mean() -> None:
    strata = [[0.0, 1.0, 1.0, 0.0, 1.0], [1.0, 1.0, 0.0, 1.0]]
    profile = stats.performance_profile(strata, [0.5], rng())
    mean = stats.bootstrap(strata, np.mean, rng(), Bootstrap(bounds=(0, 1)))
    assert (profile.value[0], profile.low[0], profile.high[0]) == pytest.approx((mean.value, mean.low, mean.high))


# nothing missing is left out in silence


@pytest.mark.parametrize(
    "call",
    [
        lambda gap: interquartile_mean(gap),  # scipy's trimmed mean would trim the gap away
        lambda gap: interquartile_mean(gap[None], axis=1),
        lambda gap: curve_stats.resample(gap[:, None], rng()),
        lambda gap: stats.bootstrap([np.zeros(5), gap], np.mean, rng()),
        lambda gap: stats.performance_profile([gap], [0.5], rng()),
        lambda gap: rank_stats.probability_of_improvement([np.zeros(5)], [gap]),
        lambda gap: rank_stats.rank_correlation(np.arange(5), gap, rng()),
        lambda gap: stats.seeds_to_decide(gap),
        lambda gap: stats.area(np.arange(5), gap, 4),
        lambda gap: curve_stats.steps_to(np.arange(5), gap, 0.5),
        lambda gap: curve_stats.times_to([(np.arange(5), gap)], 0.5),
        lambda gap: curve_stats.kaplan_meier(gap, np.ones(5, bool)),
    ],
)
def test_a_gap_is_refused_with_its_place(call: Callable[[np.ndarray], object]) -> None:  # type: ignore[type-arg]
    with pytest.raises(InputError, match=r"1 of \d+ values are missing, at .*3.*: finish") as error:
        call(np.array([0.1, 0.2, 0.3, np.nan, 0.9]))
    assert "\n" not in str(error.value)


def test_counts_that_cannot_be_are_refused() -> None:
    for bad in (-1, 9, np.nan):
        with pytest.raises(ValueError, match="attempts"):
            stats.success_at_k([bad], 8, 4)
        with pytest.raises(ValueError, match="attempts"):
            stats.wilson(bad, 8)
