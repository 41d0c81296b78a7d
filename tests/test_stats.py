"""Statistics against hand-computed cases, brute force and scipy."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy import stats as reference

from bench import stats


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


def test_steps_to_a_threshold() -> None:
    assert stats.steps_to([0, 10, 20, 30], [0.1, 0.5, 0.2, 0.9], 0.5) == 10
    assert stats.steps_to([0, 10], [0.1, 0.2], 0.5) is None
    assert stats.median_steps([10, None, 30]) == 30
    assert stats.median_steps([10, None]) is None
    assert stats.median_steps([10, 20, None]) == 20
    assert stats.median_steps([]) is None


def test_bootstrap_over_seeds_agrees_with_scipy() -> None:
    values = rng().random(30)
    ours = stats.interval(stats.resample(values[:, None], rng(), draws=20_000))
    theirs = reference.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", random_state=1)
    np.testing.assert_allclose(ours, theirs.confidence_interval, atol=0.005)


def test_bootstrap_draws_are_averages_of_rows_and_columns() -> None:
    values = np.array([[0.0, 1.0], [10.0, 11.0]])
    draws = stats.resample(values, rng(), draws=500)
    # row weight in {0, 1/2, 1} × 10 plus column weight in {0, 1/2, 1}
    assert set(np.round(draws, 6)) == {a * 10 + b for a in (0, 0.5, 1) for b in (0, 0.5, 1)}
    assert stats.resample(np.ones((3, 4, 5)), rng(), draws=7).shape == (7, 5)


def test_start_states_shared_by_seeds_widen_the_interval() -> None:
    """Hard and easy start states: drawing them once per resample must not average their difference away."""
    values = np.tile([0.0, 1.0], (20, 10))  # 20 seeds that agree, 20 start states that do not
    low, high = stats.interval(stats.resample(values, rng()))
    assert 0.15 < high - 0.5 < 0.3 and 0.15 < 0.5 - low < 0.3  # 1.96 · 0.5 / √20 = 0.22


def test_bootstrap_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator, hits = np.random.default_rng(5), 0
    for _ in range(200):
        low, high = stats.interval(stats.resample(generator.normal(size=(30, 1)), generator, draws=400))
        hits += low <= 0 <= high
    assert 176 <= hits <= 199  # 95 % nominal


def test_paired_difference_ignores_what_both_share() -> None:
    shared = rng().normal(size=(5, 8)) * 10
    value, (low, high) = stats.paired_difference(shared + 0.5, shared, rng())
    assert (value, low, high) == pytest.approx((0.5, 0.5, 0.5))


def test_stratified_bootstrap_keeps_every_stratum() -> None:
    strata = [np.zeros(4), np.ones(4)]  # resampling across strata would move the mean
    value, (low, high) = stats.stratified(strata, lambda v: v.mean(axis=1), rng())
    assert (value, low, high) == pytest.approx((0.5, 0.5, 0.5))


def test_equal_generators_give_equal_intervals() -> None:
    values = rng().random((4, 6))
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    np.testing.assert_array_equal(stats.resample(values, rng()), stats.resample(values, rng()))
    np.testing.assert_array_equal(state, np.random.get_state()[1])  # noqa: NPY002
