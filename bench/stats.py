"""The statistics of the report. Every function names its array axes; whatever is random takes its own generator.

Axes: R seeds, S start states, P evaluation points, T tasks, B bootstrap resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln
from scipy.stats import norm, trim_mean

Array = npt.NDArray[np.float64]
Interval = tuple[float, float]


def success_at_k(successes: npt.ArrayLike, attempts: int, k: int) -> Array:
    """Chance that at least one of k attempts from the same start state succeeds; (..., S) counts → (...,).

    Unbiased per start state: 1 − C(n−c, k)/C(n, k) for c successes in n attempts; then the mean over start states.
    """
    c = np.asarray(successes, dtype=float)
    if not 1 <= k <= attempts:
        raise ValueError(f"k = {k} is outside [1, {attempts}], the number of attempts per start state")
    failures = attempts - c
    possible = failures >= k  # with fewer failures than k, one of the k must succeed
    kept = np.where(possible, failures, k)
    log_miss = _log_choose(kept, k) - _log_choose(np.asarray(float(attempts)), k)
    return np.asarray(np.where(possible, -np.expm1(log_miss), 1.0).mean(axis=-1))


def _log_choose(n: Array, k: int) -> Array:
    return np.asarray(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1))


def wilson(successes: float, attempts: float, confidence: float = 0.95) -> Interval:
    """Wilson score interval of a proportion of independent attempts; (0, 1) when there are none."""
    if attempts <= 0:
        return 0.0, 1.0
    z = float(norm.ppf(0.5 + confidence / 2))
    p, w = successes / attempts, z * z / attempts
    centre = (p + w / 2) / (1 + w)
    half = z / (1 + w) * np.sqrt(p * (1 - p) / attempts + w / (4 * attempts))
    low = 0.0 if successes <= 0 else float(centre - half)
    high = 1.0 if successes >= attempts else float(centre + half)
    return low, high


def interquartile_mean(values: npt.ArrayLike, axis: int | None = None) -> Array:
    """Mean of the middle half along `axis` (all values if None): a quarter is cut off at each end, rounded down."""
    return np.asarray(trim_mean(np.asarray(values, dtype=float), 0.25, axis=axis))


def interval(samples: npt.ArrayLike, confidence: float = 0.95) -> Array:
    """Percentile interval over the first axis; (B, ...) → (2, ...)."""
    tail = (1 - confidence) / 2
    return np.asarray(np.quantile(np.asarray(samples, dtype=float), [tail, 1 - tail], axis=0))


def weights(count: int, draws: int, rng: np.random.Generator) -> Array:
    """How often each of `count` units is in each of `draws` resamples, over `count`: (B, count), rows sum to 1."""
    return np.asarray(rng.multinomial(count, np.full(count, 1 / count), size=draws) / count)


def resample(values: npt.ArrayLike, rng: np.random.Generator, draws: int = 2000) -> Array:
    """Bootstrap means over seeds and start states; (R, S, ...) → (B, ...).

    Both are resampled, crossed: one draw of start states serves all seeds of a resample, because all seeds are
    evaluated from the same start states, so that a hard start state is hard in each of them.
    """
    values = np.asarray(values, dtype=float)
    seeds, starts = weights(values.shape[0], draws, rng), weights(values.shape[1], draws, rng)
    return np.asarray(np.einsum("br,bs,rs...->b...", seeds, starts, values, optimize=True))


def paired_difference(
    first: npt.ArrayLike, second: npt.ArrayLike, rng: np.random.Generator, draws: int = 2000
) -> tuple[float, Interval]:
    """Mean difference first − second and its bootstrap interval, paired by seed and start state; both (R, S).

    Equal seeds and start states share demonstrations and evaluation, so one draw serves both methods.
    """
    difference = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    low, high = interval(resample(difference, rng, draws))
    return float(difference.mean()), (float(low), float(high))


def stratified(
    strata: Sequence[npt.ArrayLike],
    statistic: Callable[[Array], Array],
    rng: np.random.Generator,
    draws: int = 2000,
) -> tuple[float, Interval]:
    """A statistic over all values of all strata, with a bootstrap that resamples within each stratum.

    `strata` is T arrays (R_t,): one value per seed, one array per task. `statistic` maps (B, ΣR) → (B,).
    """
    arrays = [np.asarray(s, dtype=float) for s in strata]
    drawn = [a[rng.integers(len(a), size=(draws, len(a)))] for a in arrays]
    low, high = interval(statistic(np.concatenate(drawn, axis=1)))
    value = statistic(np.concatenate(arrays)[None, :])
    return float(value[0]), (float(low), float(high))


def on_grid(grid: npt.ArrayLike, x: npt.ArrayLike, y: npt.ArrayLike) -> Array:
    """Curves read off at `grid` by straight lines between their points; x (P,) increasing, y (..., P) → (..., G).

    Outside the points the nearest one holds.
    """
    grid, x, y = (np.asarray(v, dtype=float) for v in (grid, x, y))
    if len(x) == 1:
        return np.broadcast_to(y, (*y.shape[:-1], len(grid))).copy()
    right = np.clip(np.searchsorted(x, grid), 1, len(x) - 1)
    share = np.clip((grid - x[right - 1]) / (x[right] - x[right - 1]), 0.0, 1.0)
    return np.asarray(y[..., right - 1] * (1 - share) + y[..., right] * share)


def area(x: npt.ArrayLike, y: npt.ArrayLike, end: float) -> Array:
    """Area under curves from control step 0 to `end`, over `end`: a mean success in [0, 1]; y (..., P) → (...,).

    Trapezoids between the evaluation points; before the first point its value holds. To compare methods, `end` is
    the range that all of them have.
    """
    x = np.asarray(x, dtype=float)
    if end <= 0:
        raise ValueError(f"end = {end} control steps is not a range")
    if end > x[-1] + 1e-9:
        raise ValueError(f"the curve ends at {x[-1]:g} control steps, before {end:g}")
    grid = np.unique(np.concatenate([[0.0], x[x < end], [end]]))
    curve = on_grid(grid, x, y)
    return np.asarray(((curve[..., 1:] + curve[..., :-1]) / 2 * np.diff(grid)).sum(axis=-1) / end)


def steps_to(x: npt.ArrayLike, y: npt.ArrayLike, threshold: float) -> float | None:
    """Control steps of the first evaluation point with success ≥ threshold; None if there is none. x, y (P,)."""
    reached = np.flatnonzero(np.asarray(y, dtype=float) >= threshold)
    return float(np.asarray(x, dtype=float)[reached[0]]) if len(reached) else None


def median_steps(values: Sequence[float | None]) -> float | None:
    """Median over seeds where `None` (never reached) counts as later than everything; None if that is the median.

    With an even number of seeds the later of the middle two, so half of the seeds must have reached it and one more.
    """
    ordered = sorted(np.inf if v is None else v for v in values)
    if not ordered:
        return None
    middle = ordered[len(ordered) // 2]
    return None if np.isinf(middle) else float(middle)
