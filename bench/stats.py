"""The statistics of the report. Every function names its array axes; whatever is random takes its own generator.

Axes: R seeds, S start states, P evaluation points, T tasks, B bootstrap resamples. A stratum is what one task gave:
(R,) one score per seed or (R, S) one per seed and start state; R may differ between tasks. A run is a (task, seed).
A missing score is NaN or an absent key. It is refused by name (`InputError`), never left out. Curves: curve_stats.py;
probability of improvement and rank correlation: rank_stats.py.

Interquartile means, stratified bootstrap and performance profiles: Agarwal et al. 2021, "Deep reinforcement learning at
the edge of the statistical precipice", https://arxiv.org/abs/2108.13264.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import binom
from scipy.stats import nct, norm, t, trim_mean

from bench.types import InputError

Array = npt.NDArray[np.float64]
Interval = tuple[float, float]
Cell = tuple[str, int]  # (task, seed)
Statistic = Callable[..., Array]  # called with an array and `axis`: np.mean, np.median, interquartile_mean


@dataclass(frozen=True)
class Estimate:
    """A statistic with its interval."""

    value: float
    low: float
    high: float

    @property
    def wide(self) -> bool:
        """Whether the interval has a width, beyond rounding. Runs that all agree leave none, and prove little."""
        return self.high - self.low > 1e-9


@dataclass(frozen=True)
class Bootstrap:
    """How an interval is made. Seeds are always resampled within their task; start states too where a stratum has them.

    "t" is value ± t · standard error: the spread of the resamples, widened by √(R / (R − 1)) for what resampling R
    seeds loses, with Satterthwaite's degrees of freedom. "percentile", the usual choice in the literature, takes
    quantiles of the resamples and is too narrow for few seeds; bias correction ("BCa") adds 0.06 at most to its rows.
    How often a 95 % interval held the truth, in 500 simulated experiments each (normal, beta, bimodal scores):

        seeds                                      2            3            5            10
        mean, one task: percentile            0.44 – 0.51  0.70 – 0.74  0.84 – 0.89  0.86 – 0.91
                        t                     0.54 – 0.95  0.72 – 0.95  0.92 – 0.96  0.92 – 0.95
        mean and IQM, 8 tasks: percentile     0.76 – 0.80  0.86 – 0.88  0.89 – 0.93  0.91 – 0.94
                        t                     0.97 – 0.99  0.96 – 0.98  0.94 – 0.95  0.94 – 0.96
        mean, one task, with 20 start states: percentile
                                              0.84 – 0.96  0.90 – 0.96  0.93 – 0.97  0.95 – 0.97
                        t                     0.91 – 0.98  0.94 – 0.99  0.96 – 0.98  0.97 – 0.98

    The low ends at 2 and 3 seeds are tasks that a run either learns or not: all seeds may agree by chance. A median
    of such runs is worse (t 0.85 – 0.90). With start states, t over seeds alone covers 0.71 – 0.96.
    """

    draws: int = 10_000
    confidence: float = 0.95
    method: Literal["t", "percentile"] = "t"
    tasks: bool = False  # resample tasks too: for claims about other tasks like these; needs equal seeds in all tasks
    per_task: bool = False  # the statistic of the T task means, rather than of all runs
    bounds: Interval = (-np.inf, np.inf)  # range of the statistic; "t" is cut there


STRATIFIED = Bootstrap()


def complete(values: npt.ArrayLike, axes: str) -> Array:
    """`values` as floats, refused where any is missing."""
    array = np.asarray(values, dtype=float)
    if np.isnan(array).any():
        gaps = [tuple(int(i) for i in gap) for gap in np.argwhere(np.isnan(array))]
        raise InputError(f"{len(gaps)} of {array.size} values are missing, at {axes} {_some(gaps)}: finish those runs")
    return array


def _some(items: Collection[object], limit: int = 5) -> str:
    rest = len(items) - limit
    return ", ".join(map(str, list(items)[:limit])) + (f" and {rest} more" if rest > 0 else "")


def missing(runs: Mapping[Cell, npt.ArrayLike], planned: Collection[Cell]) -> list[Cell]:
    """The planned (task, seed) that have no score, or a score with a gap; sorted."""
    return [c for c in sorted(set(planned)) if c not in runs or bool(np.isnan(np.asarray(runs[c], float)).any())]


def strata_of(runs: Mapping[Cell, npt.ArrayLike], planned: Collection[Cell], name: str = "runs") -> list[Array]:
    """T strata (R_t,) or (R_t, S_t), tasks and seeds sorted, of exactly the planned runs; each value () or (S_t,)."""
    if absent := missing(runs, planned):
        raise InputError(f"{name}: no score for {_some(absent)}: finish these seeds or leave them out of every method")
    cells, strata = sorted(set(planned)), []
    for task in dict.fromkeys(task for task, _ in cells):
        rows = [np.asarray(runs[c], dtype=float) for c in cells if c[0] == task]
        if len({row.shape for row in rows}) > 1:
            raise InputError(f"{name}: seeds of {task} differ in their number of start states: evaluate them alike")
        strata.append(np.stack(rows))
    return strata


def success_at_k(successes: npt.ArrayLike, attempts: int, k: int) -> Array:
    """Chance that at least one of k attempts from the same start state succeeds; (..., S) counts → (...,).

    Unbiased per start state: 1 − C(n−c, k)/C(n, k) for c successes in n attempts; then the mean over start states.
    """
    c = np.asarray(successes, dtype=float)
    if not 1 <= k <= attempts:
        raise ValueError(f"k = {k} is outside [1, {attempts}], the number of attempts per start state")
    if not ((c >= 0) & (c <= attempts)).all():
        raise ValueError(f"successes are outside [0, {attempts}], the number of attempts per start state, or missing")
    failures = attempts - c
    possible = failures >= k  # with fewer failures than k, one of the k must succeed
    kept = np.where(possible, failures, k)
    return np.asarray(np.where(possible, 1 - binom(kept, k) / binom(attempts, k), 1.0).mean(axis=-1))


def wilson(successes: float, attempts: float, confidence: float = 0.95) -> Interval:
    """Wilson score interval (1927) of a proportion of independent attempts; (0, 1) when there are none."""
    if attempts <= 0:
        return 0.0, 1.0
    if not -1e-9 <= successes <= attempts + 1e-9:
        raise ValueError(f"{successes} successes are not among {attempts} attempts")
    z = float(norm.ppf(0.5 + confidence / 2))
    p, w = successes / attempts, z * z / attempts
    centre = (p + w / 2) / (1 + w)
    half = z / (1 + w) * np.sqrt(p * (1 - p) / attempts + w / (4 * attempts))
    low = 0.0 if successes <= 0 else float(centre - half)
    high = 1.0 if successes >= attempts else float(centre + half)
    return low, high


def interquartile_mean(values: npt.ArrayLike, axis: int | None = None) -> Array:
    """Mean of the middle half along `axis` (all values if None): a quarter is cut off at each end, rounded down."""
    return np.asarray(trim_mean(complete(values, "index"), 0.25, axis=axis))


def interval(samples: npt.ArrayLike, confidence: float = 0.95) -> Array:
    """Percentile interval over the first axis; (B, ...) → (2, ...)."""
    tail = (1 - confidence) / 2
    return np.asarray(np.quantile(np.asarray(samples, dtype=float), [tail, 1 - tail], axis=0))


def weights(count: int, draws: int, rng: np.random.Generator) -> Array:
    """How often each of `count` units is in each of `draws` resamples, over `count`: (B, count), rows sum to 1."""
    drawn = rng.integers(count, size=(draws, count)) + count * np.arange(draws)[:, None]  # a multinomial, faster
    return np.bincount(drawn.ravel(), minlength=draws * count).reshape(draws, count) / count


def bootstrap(
    strata: Sequence[npt.ArrayLike], statistic: Statistic, rng: np.random.Generator, plan: Bootstrap = STRATIFIED
) -> Estimate:
    """A statistic over the runs of T strata (R_t,) or (R_t, S_t), with the interval that `plan` describes.

    `statistic(values, axis=1)` maps (B, ΣR) → (B,). An interval of no width says that the seeds there are agree, not
    that others would.
    """
    return _estimate([s[None] for s in _checked(strata)], statistic, rng, plan)


def paired(
    first: Mapping[Cell, npt.ArrayLike],
    second: Mapping[Cell, npt.ArrayLike],
    statistic: Statistic,
    rng: np.random.Generator,
    plan: Bootstrap = STRATIFIED,
    planned: Collection[Cell] | None = None,
) -> Estimate:
    """statistic(first) − statistic(second), over runs (task, seed) → () or (S,).

    Both methods must have all planned runs; unless given, those are the runs that either has. Equal seeds share
    start states and random streams, so one draw of seeds and start states serves both methods.
    """
    planned = {*first, *second} if planned is None else planned
    both = [_checked(strata_of(runs, planned, name)) for runs, name in ((first, "first"), (second, "second"))]
    if any(a.shape != b.shape for a, b in zip(*both, strict=True)):
        raise InputError("the two methods differ in their number of start states: evaluate them alike")
    return _estimate([np.stack(pair) for pair in zip(*both, strict=True)], statistic, rng, plan)


def _checked(strata: Sequence[npt.ArrayLike]) -> list[Array]:
    """Strata as (R_t, S_t), S_t = 1 where there is one score per seed."""
    found = [complete(s, f"task {i}, (seed, start state)") for i, s in enumerate(strata)]
    if any(s.ndim not in (1, 2) for s in found):
        raise InputError(f"strata are (seeds,) or (seeds, start states), not {_some({s.shape for s in found})}")
    if not found or min(map(len, found)) < 2:
        raise InputError("an interval over seeds needs two seeds or more in every task: run more seeds")
    return [s.reshape(len(s), -1) for s in found]


def _estimate(strata: list[Array], statistic: Statistic, rng: np.random.Generator, plan: Bootstrap) -> Estimate:
    """T arrays (M, R_t, S_t) of one method, or of two whose difference is meant."""
    sign = np.array([1.0, -1.0])[: len(strata[0])]

    def contrast(parts: list[Array]) -> Array:
        kept = [p.mean(axis=2, keepdims=True) for p in parts] if plan.per_task else parts
        runs = np.concatenate(kept, axis=2)  # (M, B, ΣR)
        return np.asarray(sum(s * statistic(method, axis=1) for s, method in zip(sign, runs, strict=True)))

    value = float(contrast([s.mean(axis=2)[:, None] for s in strata])[0])
    samples = contrast(_redraw(strata, rng, plan))
    low, high = _limits(np.asarray(value), samples, [np.tensordot(sign, s, 1) for s in strata], plan)
    return Estimate(value, float(low), float(high))


def _redraw(strata: list[Array], rng: np.random.Generator, plan: Bootstrap) -> list[Array]:
    """T arrays (M, R_t, S_t) → T arrays (M, B, R_t) of resampled runs; the M methods share every draw.

    All seeds are evaluated from the same start states, so one draw of these serves all seeds of a task: a hard one is
    hard in each. With `plan.tasks` they are only averaged: the spread between tasks holds theirs already.
    """
    if plan.tasks:
        if len(strata) < 2 or len({s.shape[1] for s in strata}) > 1:
            raise InputError("resampling tasks needs two tasks or more with equal seeds: finish the missing seeds")
        runs = np.stack([s.mean(axis=2) for s in strata], axis=1)  # (M, T, R)
        _, count, seeds = runs.shape
        task = rng.integers(count, size=(plan.draws, count, 1))
        drawn = runs[:, task, rng.integers(seeds, size=(plan.draws, count, seeds))]
        return [drawn[:, :, i] for i in range(count)]
    return [_redraw_seeds(s, rng, plan.draws) for s in strata]


def _redraw_seeds(values: Array, rng: np.random.Generator, draws: int) -> Array:
    _, seeds, starts = values.shape
    drawn = rng.integers(seeds, size=(draws, seeds))
    if starts == 1:
        return np.asarray(values[:, drawn, 0])
    runs = np.swapaxes(values @ weights(starts, draws, rng).T, 1, 2)  # (M, B, R)
    return np.asarray(np.take_along_axis(runs, drawn[None], axis=2))


def _limits(value: Array, samples: Array, strata: list[Array], plan: Bootstrap) -> Array:
    """Both ends of the interval: value (...,), samples (B, ...), strata (R_t, S_t) → (2, ...)."""
    if plan.method == "percentile":
        return interval(samples, plan.confidence)
    degrees, widen = freedom(strata, plan)
    half = t.ppf(0.5 + plan.confidence / 2, degrees) * widen * samples.std(axis=0)
    return np.clip([value - half, value + half], *plan.bounds)


def freedom(strata: list[Array], plan: Bootstrap) -> tuple[float, float]:
    """Satterthwaite's degrees of freedom (1946), and how much too small the standard deviation of resamples is.

    Both are exact for a mean of normal runs and taken over for other statistics. A bootstrap of n values with unbiased
    variance v gives their mean the variance v (n − 1) / n², where v / n is right.
    """
    parts = []  # (share of this axis in the variance of the mean, its degrees of freedom)
    if plan.tasks:
        strata = [np.array([[s.mean()] for s in strata])]
    for values in strata:
        for means in (values.mean(axis=1), values.mean(axis=0)):
            if (n := len(means)) > 1:
                parts.append(((1 if plan.per_task else len(values)) ** 2 * means.var(ddof=1) / n, n - 1))
    share, each = np.array(parts).T
    if share.sum() == 0:
        return float(each.sum()), 1.0
    return share.sum() ** 2 / (share**2 / each).sum(), np.sqrt(share.sum() / (share * each / (each + 1)).sum())


@dataclass(frozen=True)
class Profile:
    """Share of runs above each τ, with pointwise intervals; all (G,)."""

    tau: Array
    value: Array
    low: Array
    high: Array


def performance_profile(
    strata: Sequence[npt.ArrayLike], tau: npt.ArrayLike, rng: np.random.Generator, plan: Bootstrap = STRATIFIED
) -> Profile:
    """Share of all runs of T strata with a score > τ, for each τ of a grid (G,); `plan.per_task` means nothing here."""
    checked, tau = _checked(strata), np.asarray(tau, dtype=float)
    runs = np.concatenate([s.mean(axis=1) for s in checked])
    drawn = np.concatenate(_redraw([s[None] for s in checked], rng, plan), axis=2)[0]
    value = (runs > tau[:, None]).mean(axis=1)
    samples = np.stack([(drawn > level).mean(axis=1) for level in tau], axis=1)
    low, high = np.clip(_limits(value, samples, checked, plan), 0.0, 1.0)
    return Profile(tau, value, low, high)


def seeds_to_decide(differences: npt.ArrayLike, power: float = 0.8, level: float = 0.05) -> int | None:
    """How many more seeds would decide: paired differences (R,) → the two-sided t-test's interval excludes zero.

    0 if it does already; else the fewest that reach `power` if effect and spread stay as observed; None if the effect
    is 0. An effect seen on few seeds is uncertain, and so is this number.
    """
    d = complete(differences, "seed")
    if len(d) < 2 or not 0 < level < power < 1:
        raise InputError(f"needs two seeds or more and 0 < level < power < 1, not {len(d)}, {level} and {power}")
    mean, spread = float(d.mean()), float(d.std(ddof=1))
    if mean == 0:
        return None
    if abs(mean) > t.isf(level / 2, len(d) - 1) * spread / np.sqrt(len(d)):
        return 0
    effect = abs(mean) / spread
    z = norm.isf(level / 2)
    guess = ((z + norm.ppf(power)) / effect) ** 2 + z**2 / 2  # Guenther 1981: of the normal test, and what t adds
    if guess > 10_000:
        return int(np.ceil(guess)) - len(d) if guess < 1e15 else None
    n = max(len(d) + 1, int(guess) - 5)
    while _power(effect, n, level) < power:
        n += 1
    return n - len(d)


def _power(effect: float, n: int, level: float) -> float:
    """Power of the two-sided one-sample t-test for n values whose mean is `effect` standard deviations from zero."""
    edge, shift = t.isf(level / 2, n - 1), effect * np.sqrt(n)
    return float(nct.sf(edge, n - 1, shift) + nct.cdf(-edge, n - 1, shift))


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
    x, y = increasing(x), complete(y, "evaluation point")
    if end <= 0:
        raise ValueError(f"end = {end} control steps is not a range")
    if end > x[-1] + 1e-9:
        raise ValueError(f"the curve ends at {x[-1]:g} control steps, before {end:g}")
    grid = np.unique(np.concatenate([[0.0], x[x < end], [end]]))
    curve = on_grid(grid, x, y)
    return np.asarray(((curve[..., 1:] + curve[..., :-1]) / 2 * np.diff(grid)).sum(axis=-1) / end)


def increasing(x: npt.ArrayLike) -> Array:
    x = complete(x, "evaluation point")
    if not x.size or (np.diff(x) <= 0).any():
        raise InputError("the control steps of a curve do not increase: keep one row per evaluation point, in order")
    return x
