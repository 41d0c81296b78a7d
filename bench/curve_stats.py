"""Statistics of learning curves: their bands, and the time until a threshold is reached, which a run may never reach.

Axes are those of stats.py, and G points of a grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.stats import t

from bench.stats import Array, Bootstrap, Estimate, complete, freedom, increasing, interval, weights
from bench.types import InputError

Curve = tuple[npt.ArrayLike, npt.ArrayLike]  # control steps (P,), increasing, and success (P,)


def resample(values: npt.ArrayLike, rng: np.random.Generator, draws: int = 2000) -> Array:
    """Bootstrap means over seeds and start states; (R, S, ...) → (B, ...).

    Both are resampled, crossed: one draw of start states serves all seeds of a resample, because all seeds are
    evaluated from the same start states, so that a hard start state is hard in each of them.
    """
    values = complete(values, "(seed, start state)")
    seeds, starts = weights(values.shape[0], draws, rng), weights(values.shape[1], draws, rng)
    runs = np.tensordot(starts, values, (1, 1))  # (B, R, ...)
    return np.asarray(np.einsum("br,br...->b...", seeds, runs))


def band(strata: Sequence[Array], rng: np.random.Generator, plan: Bootstrap) -> Array:
    """Pointwise interval of the mean curve over T tasks, each (R_t, S_t, G) with R_t ≥ 2; → (2, G) low and high.

    Every task counts alike, as with `plan.per_task`. The interval is that of `bootstrap` at every point of the grid.
    """
    if not strata or min(map(len, strata)) < 2:
        raise InputError("a band over seeds needs two seeds or more in every task: run more seeds")
    samples = np.mean([resample(s, rng, plan.draws) for s in strata], axis=0)  # (B, G)
    if plan.method == "percentile":
        return interval(samples, plan.confidence)
    plan = replace(plan, per_task=True)
    found = [freedom([s[..., g] for s in strata], plan) for g in range(samples.shape[1])]
    degrees, widen = np.array(found).T
    value = np.mean([s.mean(axis=(0, 1)) for s in strata], axis=0)
    half = t.ppf(0.5 + plan.confidence / 2, degrees) * widen * samples.std(axis=0)
    return np.clip([value - half, value + half], *plan.bounds)


def steps_to(x: npt.ArrayLike, y: npt.ArrayLike, threshold: float) -> float | None:
    """Control steps of the first evaluation point with success ≥ threshold; None if there is none. x, y (P,)."""
    reached = np.flatnonzero(complete(y, "evaluation point") >= threshold)
    return float(np.asarray(x, dtype=float)[reached[0]]) if len(reached) else None


def times_to(curves: Sequence[Curve], threshold: float) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Of R curves: control steps at which success was first seen ≥ threshold, or at which the curve ended; and which.

    → time (R,), reached (R,) bool. Success is seen at evaluation points only, so times are late by up to one interval.
    """
    found = [steps_to(x, y, threshold) for x, y in curves]
    time = [float(increasing(x)[-1]) if f is None else f for f, (x, _) in zip(found, curves, strict=True)]
    return np.array(time), np.array([f is not None for f in found])


@dataclass(frozen=True)
class Survival:
    """Kaplan and Meier's estimate (1958) of the share of runs that have not reached the threshold by a time."""

    time: Array  # (J,) control steps at which runs reached it, increasing
    share: Array  # (J,) from that time on; 1 before the first
    hazard: Array  # (J,) Greenwood's term: reached / (on their way · still on their way); 0 where no run is left
    runs: int
    end: float  # control steps of the longest run

    def error(self) -> Array:
        """Greenwood's standard error of `share` (1926); (J,), 0 where no run is left."""
        return np.asarray(self.share * np.sqrt(np.cumsum(self.hazard)))

    def median(self) -> float:
        """The first time by which half of the runs are expected there; infinite if there is none."""
        half = np.flatnonzero(self.share <= 0.5 + 1e-12)
        return float(self.time[half[0]]) if len(half) else np.inf

    def restricted_mean(self, horizon: float) -> tuple[float, float]:
        """Mean of min(time, horizon), the area under the curve up to there, and its standard error (Greenwood)."""
        if horizon <= 0 or (horizon > self.end and not (len(self.share) and self.share[-1] == 0)):
            raise InputError(f"horizon {horizon:g} is not in (0, {self.end:g}], the control steps of the longest run")
        before = self.time < horizon
        edges = np.concatenate([[0.0], self.time[before], [horizon]])
        pieces = np.concatenate([[1.0], self.share[before]]) * np.diff(edges)
        after = np.cumsum(pieces[::-1])[::-1][1:]  # area from each event to the horizon
        return float(pieces.sum()), float(np.sqrt((after**2 * self.hazard[before]).sum()))


def kaplan_meier(time: npt.ArrayLike, reached: npt.ArrayLike) -> Survival:
    """From R runs: when each reached the threshold or, where not `reached`, how long it went without; both (R,)."""
    time, seen = complete(time, "run"), np.asarray(reached)
    if time.ndim != 1 or time.shape != seen.shape or not time.size or seen.dtype != bool:
        raise InputError(f"needs a time and a bool per run, not {time.shape} and {seen.shape} of {seen.dtype}")
    if not ((time >= 0) & (time < np.inf)).all():
        raise InputError("a time is negative or infinite: for runs that never reached it, give where they ended")
    at = np.unique(time[seen])
    risk = (time >= at[:, None]).sum(axis=1).astype(float)
    events = ((time == at[:, None]) & seen).sum(axis=1).astype(float)
    hazard = np.divide(events, risk * (risk - events), out=np.zeros(len(at)), where=risk > events)
    return Survival(at, np.cumprod(1 - events / risk), hazard, len(time), float(time.max()))


def restricted_mean(time: npt.ArrayLike, reached: npt.ArrayLike, horizon: float, confidence: float = 0.95) -> Estimate:
    """Mean control steps to the threshold, counted up to `horizon`; time, reached (R,) as in `kaplan_meier`.

    The interval is t with R − 1 degrees of freedom on Greenwood's error, unbiased by √(R / (R − 1)), within
    [0, horizon]: all of it for one run, no width if all times are equal. At 95 % it covered 0.88 – 0.95 in simulation
    with 3 to 10 runs of exponential times.
    """
    survival = kaplan_meier(time, reached)
    value, error = survival.restricted_mean(horizon)
    n = survival.runs
    half = t.ppf(0.5 + confidence / 2, n - 1) * error * np.sqrt(n / (n - 1)) if n > 1 else horizon
    return Estimate(value, max(0.0, value - half), min(horizon, value + half))
