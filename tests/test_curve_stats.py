"""Statistics of learning curves against hand-computed cases, a textbook and scipy."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy import stats as reference

from bench import curve_stats, stats
from bench.types import InputError


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_steps_to_a_threshold() -> None:
    assert curve_stats.steps_to([0, 10, 20, 30], [0.1, 0.5, 0.2, 0.9], 0.5) == 10
    assert curve_stats.steps_to([0, 10], [0.1, 0.2], 0.5) is None


def test_bootstrap_over_seeds_agrees_with_scipy() -> None:
    values = rng().random(30)
    ours = stats.interval(curve_stats.resample(values[:, None], rng(), draws=20_000))
    theirs = reference.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", random_state=1)
    np.testing.assert_allclose(ours, theirs.confidence_interval, atol=0.005)


def test_bootstrap_draws_are_averages_of_rows_and_columns() -> None:
    values = np.array([[0.0, 1.0], [10.0, 11.0]])
    draws = curve_stats.resample(values, rng(), draws=500)
    # row weight in {0, 1/2, 1} × 10 plus column weight in {0, 1/2, 1}
    assert set(np.round(draws, 6)) == {a * 10 + b for a in (0, 0.5, 1) for b in (0, 0.5, 1)}
    assert curve_stats.resample(np.ones((3, 4, 5)), rng(), draws=7).shape == (7, 5)


def test_start_states_shared_by_seeds_widen_the_interval() -> None:
    """Hard and easy start states: drawing them once per resample must not average their difference away."""
    values = np.tile([0.0, 1.0], (20, 10))  # 20 seeds that agree, 20 start states that do not
    low, high = stats.interval(curve_stats.resample(values, rng()))
    assert 0.15 < high - 0.5 < 0.3 and 0.15 < 0.5 - low < 0.3  # 1.96 · 0.5 / √20 = 0.22


def test_bootstrap_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator, hits = np.random.default_rng(5), 0
    for _ in range(200):
        low, high = stats.interval(curve_stats.resample(generator.normal(size=(30, 1)), generator, draws=400))
        hits += low <= 0 <= high
    assert 176 <= hits <= 199  # 95 % nominal


def test_equal_generators_give_equal_intervals() -> None:
    values = rng().random((4, 6))
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    np.testing.assert_array_equal(curve_stats.resample(values, rng()), curve_stats.resample(values, rng()))
    np.testing.assert_array_equal(state, np.random.get_state()[1])  # noqa: NPY002


def test_times_to_a_threshold_are_censored_where_curves_end() -> None:
    time, reached = curve_stats.times_to([([0, 10, 20], [0, 0.6, 0.2]), ([0, 10, 30], [0, 0.1, 0.4])], 0.5)
    assert time.tolist() == [10, 30] and reached.tolist() == [True, False]


# 6-mercaptopurine arm of Freireich et al. 1963, weeks in remission; the estimates are in every textbook
WEEKS = [6, 6, 6, 6, 7, 9, 10, 10, 11, 13, 16, 17, 19, 20, 22, 23, 25, 32, 32, 34, 35]


RELAPSE = [c == "1" for c in "111010100110001100000"]


def test_kaplan_meier_of_a_textbook() -> None:
    found = curve_stats.kaplan_meier(WEEKS, RELAPSE)
    assert found.time.tolist() == [6, 7, 10, 13, 16, 22, 23]
    np.testing.assert_allclose(found.share, [0.857, 0.807, 0.753, 0.690, 0.627, 0.538, 0.448], atol=5e-4)
    np.testing.assert_allclose(found.error(), [0.0764, 0.0869, 0.0963, 0.1068, 0.1141, 0.1282, 0.1346], atol=5e-5)
    assert found.median() == 23 and found.runs == 21 and found.end == 35


@pytest.mark.parametrize("seed", range(5))
def test_kaplan_meier_agrees_with_scipy(seed: int) -> None:
    g = np.random.default_rng(seed)
    time, reached = g.integers(1, 15, size=30).astype(float), g.random(30) < 0.7
    found = curve_stats.kaplan_meier(time, reached)
    theirs = reference.ecdf(reference.CensoredData(uncensored=time[reached], right=time[~reached])).sf
    np.testing.assert_allclose(found.share, theirs.evaluate(found.time), atol=1e-12)
    inner = found.share > 0
    with warnings.catch_warnings():  # scipy has no interval where no run is left
        warnings.simplefilter("ignore", RuntimeWarning)
        high = theirs.confidence_interval(0.95).high.evaluate(found.time)
    expected = np.clip(found.share + 1.959964 * found.error(), 0, 1)
    np.testing.assert_allclose(high[inner], expected[inner], atol=1e-6)


def test_restricted_mean_by_hand() -> None:
    # reached at 1 (of 3 runs), censored at 2, reached at 3 (of 1): 1 + 2/3 · 2; error (4/3)² / (3 · 2)
    survival = curve_stats.kaplan_meier([1, 2, 3], [True, False, True])
    assert survival.share == pytest.approx([2 / 3, 0])
    assert survival.restricted_mean(3) == pytest.approx((7 / 3, np.sqrt(16 / 9 / 6)))
    assert survival.restricted_mean(5) == pytest.approx((7 / 3, np.sqrt(16 / 9 / 6)))  # all are there: nothing to add
    assert survival.restricted_mean(2) == pytest.approx((1 + 2 / 3, np.sqrt(4 / 9 / 6)))
    assert survival.restricted_mean(0.5) == pytest.approx((0.5, 0.0))


def test_restricted_mean_without_censoring_is_the_mean() -> None:
    time = rng().random(12) * 100
    capped = np.minimum(time, 60)
    expected = reference.ttest_1samp(capped, 0).confidence_interval()
    found = curve_stats.restricted_mean(time, np.ones(12, bool), 60)
    assert (found.value, found.low, found.high) == pytest.approx((capped.mean(), expected.low, expected.high))
    # that runs are cut at the horizon changes nothing
    cut = curve_stats.restricted_mean(capped, time < 60, 60)
    assert (cut.value, cut.low, cut.high) == pytest.approx((found.value, found.low, found.high))


def test_time_to_threshold_that_few_runs_reach() -> None:
    survival = curve_stats.kaplan_meier([10, 50, 50], [True, False, False])
    assert survival.median() == np.inf
    assert curve_stats.kaplan_meier([50, 50], [False, False]).median() == np.inf
    assert curve_stats.kaplan_meier([50, 50], [False, False]).restricted_mean(50) == (50.0, 0.0)
    assert curve_stats.kaplan_meier([10, 20, 30, 30], [True, True, False, False]).median() == 20
    assert curve_stats.restricted_mean([10], [True], 50) == stats.Estimate(10.0, 0.0, 50.0)
    found = curve_stats.restricted_mean([10, 50, 50], [True, False, False], 50)
    assert found.low >= 0 and found.high == 50
    for horizon in (0, 51):
        with pytest.raises(InputError, match="horizon"):
            survival.restricted_mean(horizon)


@pytest.mark.parametrize(
    ("time", "reached"),
    [([], []), ([1, 2], [True]), ([1, 2], [1.0, np.nan]), ([1, np.inf], [True, False]), ([-1], [True])],
)
def test_kaplan_meier_refuses_what_is_no_time(time: list[float], reached: list[bool]) -> None:
    with pytest.raises(InputError, match="time"):
        curve_stats.kaplan_meier(time, np.array(reached, dtype=float if np.nan in reached else bool))
