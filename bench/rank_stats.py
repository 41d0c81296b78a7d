"""Statistics of who is ahead: probability of improvement, of pairs or of independent runs, and rank correlation.

Axes are those of stats.py. Probability of improvement: Agarwal et al. 2021, https://arxiv.org/abs/2108.13264; there all
runs are independent.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.stats import norm

from bench.stats import (
    Array,
    Cell,
    Estimate,
    complete,
    interval,
    strata_of,
    weights,
    wilson,
)
from bench.types import InputError


def paired_improvement(
    first: Mapping[Cell, npt.ArrayLike],
    second: Mapping[Cell, npt.ArrayLike],
    planned: Collection[Cell] | None = None,
    confidence: float = 0.95,
) -> Estimate:
    """P(X > Y) + P(X = Y) / 2 for the runs X of `first` and Y of `second` with one seed; mean over T tasks.

    Runs (task, seed) → (); both methods must have all planned ones, unless given those that either has. Runs of one
    seed share random streams and often the pretrained policy: what is easy for one is easy for the other, which the
    unpaired number mixes in. The interval is Wilson's with all pairs as independent attempts, a tie being half a win.
    At 95 % it held the truth in 94 – 98 % of simulations with 3 and 8 tasks of 2 to 10 seeds and chances from 0.05 to
    0.95 that differ by task, in 84 – 100 % with one task.
    """
    planned = {*first, *second} if planned is None else planned
    if not planned:
        raise InputError("both methods need a run on every task: finish them")
    x, y = strata_of(first, planned, "first"), strata_of(second, planned, "second")
    wins = [(np.sign(a - b) + 1) / 2 for a, b in zip(x, y, strict=True)]
    value, pairs = float(np.mean([w.mean() for w in wins])), sum(map(len, wins))
    return Estimate(value, *wilson(value * pairs, pairs, confidence))


def probability_of_improvement(
    first: Sequence[npt.ArrayLike], second: Sequence[npt.ArrayLike], confidence: float = 0.95
) -> Estimate:
    """P(X > Y) + P(X = Y) / 2 for a run X of `first` and Y of `second` on one task, mean over T tasks; (R_t,) each.

    Per task this is Mann–Whitney's U over R_x R_y: for runs that share nothing, in any number. Runs of equal seeds
    share much, which is for `paired_improvement`. The interval is Newcombe's score interval ("method 5", 2006,
    doi:10.1002/sim.2324) with the variances of the tasks added up: in simulation it covered 0.88 – 1.00 from 2 seeds
    up, where the bootstrap has no width once all runs of one side win and covered 0.22 – 0.78 with 2 or 3 seeds on one
    task.
    """
    x, y = ([complete(v, f"task {i}, seed") for i, v in enumerate(side)] for side in (first, second))
    if not x or len(x) != len(y) or min(map(len, [*x, *y])) < 1:
        raise InputError(f"both methods need a run on every task, not {len(x)} and {len(y)} tasks: finish them")
    wins = [((np.sign(a[:, None] - b) + 1) / 2).mean() for a, b in zip(x, y, strict=True)]
    value, z = float(np.mean(wins)), norm.ppf(0.5 + confidence / 2)
    counts = [(len(a), len(b)) for a, b in zip(x, y, strict=True)]

    def outside(p: float) -> float:
        either = (1 - p) / (2 - p) + p / (1 + p)
        variance = sum(p * (1 - p) * (1 + ((m + n) / 2 - 1) * either) / (m * n) for m, n in counts) / len(x) ** 2
        return float((p - value) ** 2 - z**2 * variance)

    inside = min(max(value, 1e-9), 1 - 1e-9)
    low = brentq(outside, 0.0, inside) if value > 0 else 0.0
    return Estimate(value, low, brentq(outside, inside, 1.0) if value < 1 else 1.0)


def rank_correlation(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    rng: np.random.Generator,
    clusters: Sequence[Hashable] | None = None,
    draws: int = 10_000,
    confidence: float = 0.95,
) -> Estimate:
    """Spearman's rank correlation of n pairs, x and y (n,), with the percentile bootstrap over clusters of pairs.

    `clusters` (n,) names what pairs have in common, such as a pretrained policy or a task: pairs of a cluster are drawn
    together. Without it every pair is drawn by itself, which is right for independent ones only. A resample in which
    one side is constant orders nothing and counts as 0. At 95 % it covered 0.87 – 0.94 in simulation with 5 independent
    pairs, 0.95 – 0.98 from 8 on.
    """
    pairs = complete(np.array([x, y], dtype=float), "(side, pair)")
    names = list(range(pairs.shape[1])) if clusters is None else list(clusters)
    known = {name: i for i, name in enumerate(dict.fromkeys(names))}
    if len(names) != pairs.shape[1]:
        raise InputError(f"{len(names)} names of clusters for {pairs.shape[1]} pairs: give one each")
    if len(known) < 4 or not np.ptp(pairs, axis=1).all():
        raise InputError(
            f"a rank correlation needs four pairs or more that are independent (here {len(known)}), not all equal on "
            "one side: add methods or tasks"
        )
    share = weights(len(known), draws, rng)[:, [known[name] for name in names]]
    low, high = interval(_spearman(pairs, share), confidence)
    return Estimate(float(_spearman(pairs, np.ones((1, len(names))))[0]), float(low), float(high))


def _spearman(pairs: Array, share: Array) -> Array:
    """Of pairs (2, n), each counted `share` (B, n) times, → (B,): Pearson's correlation of the weighted mid-ranks."""
    share = share / share.sum(axis=1, keepdims=True)
    ranks = [share @ ((side[:, None] < side) + (side[:, None] == side) / 2) for side in pairs]
    a, b = (r - (share * r).sum(axis=1, keepdims=True) for r in ranks)
    scale = np.sqrt((share * a**2).sum(axis=1) * (share * b**2).sum(axis=1))
    return np.asarray((share * a * b).sum(axis=1) / np.where(scale > 1e-9, scale, np.inf))
