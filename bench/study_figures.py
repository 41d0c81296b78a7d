"""The figures of a study: history, importances, slices, contour, and noise level × schedule."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from bench.figures import COLOURS, Style, new_figure
from bench.study_book import RAN, Book, mean_of
from bench.study_space import Parameter, fields_of, plain, show, values_of
from bench.study_spec import Spec

STYLE = Style(())
PALE = "#fefefe"  # on dark cells; white itself is the page's paper, which is dark in the dark
BINS = 4  # of a numeric noise level
MARKS = {TrialState.COMPLETE: (COLOURS[0], "o", "complete"), TrialState.PRUNED: (COLOURS[1], "x", "pruned")}


CAPTIONS = {
    "history": "Value of every trial, and the best complete one so far; a pruned trial's is of fewer instances.",
    "importances": "Which parameters decide between good and other trials (conditional PED-ANOVA).",
    "slice": "Value of every trial against each parameter; a pruned trial's is of fewer instances.",
    "contour": "Value of the complete trials over the two most important parameters.",
    "noise_schedule": "Mean value of the complete trials by noise level and schedule; n is their number.",
}


def draw(spec: Spec, book: Book, importance: Mapping[str, float]) -> dict[str, tuple[Figure, str]]:
    """What the trials allow: name → figure and caption."""
    trials = [t for t in book.trials() if t.state in RAN and t.intermediate_values]
    names = sorted({name for t in trials for name in t.params}, key=lambda n: -importance.get(n, 0.0))
    drawn = {"history": history(trials), "importances": importances(importance), "slice": slices(trials, names)}
    if len(names) > 1:
        drawn["contour"] = contour(trials, names[0], names[1])
    for level in (p for p in spec.space if p.axis == "level"):
        name = "noise_schedule" if "noise_schedule" not in drawn else f"noise_schedule_{level.key.split('.')[-1]}"
        drawn[name] = heat(spec, trials, level)
    said = {name: CAPTIONS["noise_schedule" if name.startswith("noise_schedule") else name] for name in drawn}
    return {name: (figure, said[name]) for name, figure in drawn.items() if figure is not None}


def _figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    return new_figure(STYLE, height, rows, columns, width)


def _legend(axes: Axes) -> None:
    axes.legend(frameon=False, fontsize="small", labelcolor=STYLE.theme.ink)


def _bar(figure: Figure, image: ScalarMappable) -> None:
    """A scale of colours, in the page's ink."""
    bar = figure.colorbar(image)
    bar.set_label("area, selection states", color=STYLE.theme.ink)
    bar.ax.tick_params(colors=STYLE.theme.ink)
    bar.outline.set_visible(False)  # type: ignore[operator]


def _complete(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Without pruned ones, whose value is a mean over fewer instances and stopped for being low."""
    return [t for t in trials if t.state == TrialState.COMPLETE]


def history(trials: Sequence[FrozenTrial]) -> Figure | None:
    """Value of every trial, and the best complete one so far."""
    if not trials:
        return None
    figure, (axes,) = _figure(5.0, 3.2)
    _scatter(axes, trials, [t.number for t in trials], [mean_of(t) for t in trials])
    if done := _complete(trials):
        best = np.maximum.accumulate([mean_of(t) for t in done])
        axes.step([t.number for t in done], best, where="post", color=STYLE.theme.ink, linewidth=1, label="best so far")
    axes.set(xlabel="trial", ylabel="area, selection states")
    _legend(axes)
    return figure


def _scatter(axes: Axes, trials: Sequence[FrozenTrial], x: Sequence[float], y: Sequence[float]) -> None:
    for state, (colour, mark, name) in MARKS.items():
        rows = [i for i, t in enumerate(trials) if t.state == state]
        if rows:
            axes.scatter([x[i] for i in rows], [y[i] for i in rows], s=20, color=colour, marker=mark, label=name)


def importances(found: Mapping[str, float]) -> Figure | None:
    """Bars, the most important parameter on top."""
    if not found:
        return None
    names = list(found)[::-1]
    figure, (axes,) = _figure(5.0, 0.8 + 0.35 * len(names))
    axes.barh(names, [found[n] for n in names], color=COLOURS[0])
    axes.set(xlabel="importance (conditional PED-ANOVA)")
    return figure


class _Place:
    """Where a parameter's values stand on an axis."""

    def __init__(self, trials: Sequence[FrozenTrial], name: str) -> None:
        self.name = name
        distribution = next(t.distributions[name] for t in trials if name in t.params)
        self.choices: list[Any] | None = None
        self.log = bool(getattr(distribution, "log", False))
        if isinstance(distribution, CategoricalDistribution):
            self.choices = list(distribution.choices)

    def at(self, value: Any) -> float:
        return float(value) if self.choices is None else float(self.choices.index(value))

    def dress(self, axes: Axes, which: str) -> None:
        axis = getattr(axes, f"{which}axis")
        getattr(axes, f"set_{which}label")(self.name)
        if self.choices is not None:
            names = [show(c) or "all" for c in self.choices]
            axis.set_ticks(range(len(names)), names, fontsize="small")
            if which == "x" and sum(map(len, names)) > 16:
                axis.set_tick_params(rotation=40)
            getattr(axes, f"set_{which}lim")(-0.5, len(self.choices) - 0.5)
        elif self.log:
            getattr(axes, f"set_{which}scale")("log")


def slices(trials: Sequence[FrozenTrial], names: Sequence[str]) -> Figure | None:
    """Value against each parameter by itself."""
    if not trials or not names:
        return None
    columns = min(2, len(names))
    rows = math.ceil(len(names) / columns)
    figure, panels = _figure(2.5 * columns, 2.2 * rows, rows, columns)
    for axes, name in itertools.zip_longest(panels, names):
        if name is None:
            axes.set_axis_off()
            continue
        mine, place = [t for t in trials if name in t.params], _Place(trials, name)
        _scatter(axes, mine, [place.at(t.params[name]) for t in mine], [mean_of(t) for t in mine])
        place.dress(axes, "x")
    for i in range(0, len(panels), columns):
        panels[i].set_ylabel("area")
    return figure


def contour(trials: Sequence[FrozenTrial], first: str, second: str) -> Figure | None:
    """Value over the two most important parameters; filled between complete trials where both are numbers."""
    mine = [t for t in _complete(trials) if first in t.params and second in t.params]
    if len(mine) < 2:
        return None
    places = _Place(mine, first), _Place(mine, second)
    x, y = ([p.at(t.params[p.name]) for t in mine] for p in places)
    value = [mean_of(t) for t in mine]
    figure, (axes,) = _figure(4.6, 3.6)
    if all(p.choices is None for p in places) and len(mine) > 3:
        with suppress(ValueError, RuntimeError):  # all trials on one line have no triangles
            axes.tricontourf(x, y, value, levels=10, cmap="viridis", alpha=0.7)
    points = axes.scatter(x, y, c=value, cmap="viridis", edgecolors=STYLE.theme.ink, linewidths=0.5, s=30)
    for place, which in zip(places, "xy", strict=True):
        place.dress(axes, which)
    _bar(figure, points)
    return figure


def heat(spec: Spec, trials: Sequence[FrozenTrial], level: Parameter) -> Figure | None:
    """Mean value of the complete trials by schedule and noise level; each cell says of how many."""
    rows, columns, sums, counts = heat_table(spec, trials, level)
    if not counts.sum():
        return None
    figure, (axes,) = _figure(1.6 + 0.95 * len(columns), 1.4 + 0.5 * len(rows))
    mean = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    image = axes.imshow(mean, cmap="viridis", aspect="auto")
    middle = (np.nanmin(mean) + np.nanmax(mean)) / 2
    for i, j in np.argwhere(counts > 0):
        colour = PALE if mean[i, j] <= middle else "black"
        axes.text(j, i, f"{mean[i, j]:.2f}\nn={int(counts[i, j])}", ha="center", va="center", color=colour, fontsize=7)
    axes.set_xticks(range(len(columns)), columns, fontsize="small")
    axes.set_yticks(range(len(rows)), rows, fontsize="small")
    axes.set(xlabel=level.key, ylabel="schedule")
    axes.grid(False)
    _bar(figure, image)
    return figure


def heat_table(
    spec: Spec, trials: Sequence[FrozenTrial], level: Parameter
) -> tuple[list[str], list[str], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Schedules, levels, and for each pair the sum of the complete trials' values and their number."""
    key = _schedule(spec)
    studied = next((p for p in spec.space if p.key == key), None)
    fixed = spec.method if key is None else plain(spec.base[key])
    rows = [show(c) for c in studied.choices] if studied else [show(fixed)]
    columns, find = _bins(level)
    sums, counts = np.zeros((len(rows), len(columns))), np.zeros((len(rows), len(columns)))
    for trial in _complete(trials):
        values = values_of(trial.params)
        if level.key in values:
            i = rows.index(show(values[key])) if studied and key is not None else 0
            j = find(values[level.key])
            sums[i, j] += mean_of(trial)
            counts[i, j] += 1
    return rows, columns, sums, counts


def _schedule(spec: Spec) -> str | None:
    """The method's field that says which schedule σ follows, if it has one."""
    for key, field in fields_of(spec.method).items():
        if (field.metadata.get("search") or {}).get("axis") == "schedule":
            return key
    return None


def _bins(level: Parameter) -> tuple[list[str], Any]:
    """Names of the columns, and a function from a value to its column."""
    if level.kind == "choice":
        return [show(c) or "all" for c in level.choices], lambda value: level.choices.index(value)
    ends = np.geomspace(level.low, level.high, BINS + 1) if level.log else np.linspace(level.low, level.high, BINS + 1)
    names = [f"{a:.2g} to\n{b:.2g}" for a, b in itertools.pairwise(ends)]

    def find(value: Any) -> int:
        return BINS if value is None else int(np.clip(np.searchsorted(ends, value, side="right") - 1, 0, BINS - 1))

    return [*names, *(["auto"] if level.auto else [])], find
