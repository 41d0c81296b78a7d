"""The figures of the report, by matplotlib's object interface: one function per figure, nothing global.

A method has one colour and one marker everywhere, after Okabe and Ito's palette that colour-blind readers can tell
apart (https://jfly.uni-koeln.de/color/), its blue a little lighter to be seen on dark paper too.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from bench import page, summary
from bench.stages.curves import Curves
from bench.stats import Array
from bench.store import write_atomic
from bench.summary import Result, TaskResult

COLOURS = ("#1F7FC8", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A8A8A", "#A08A00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DPI = 160  # of PNG
WIDTH = 5.0  # inches; small, so that text stays readable when the page is as narrow as a phone


@dataclass(frozen=True)
class Theme:
    ink: str
    faint: str
    paper: str


LIGHT = Theme(page.INK, page.LINE, page.PAPER)  # the page puts dark ones in their place where the reader wants that


class Style:
    """Method → colour and marker, fixed by the sorted names of the run's methods."""

    def __init__(self, methods: Sequence[str], theme: Theme = LIGHT) -> None:
        self.names, self.theme = sorted(methods), theme

    def colour(self, method: str) -> str:
        return COLOURS[self.names.index(method) % len(COLOURS)]

    def marker(self, method: str) -> str:
        position = self.names.index(method)
        return MARKERS[(position + position // len(MARKERS)) % len(MARKERS)]


def render(figure: Figure, kind: str) -> bytes:
    """The figure as "svg" or "png"; equal figures give equal bytes.

    The canvases are called directly: `savefig` draws everything twice, and a report has many figures.
    """
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "bench"}):
        if kind == "svg":
            FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})  # type: ignore[no-untyped-call]
        else:
            figure.set_dpi(DPI)
            FigureCanvasAgg(figure).print_png(buffer)  # type: ignore[no-untyped-call]
    figure.set_layout_engine("none")  # the places found hold for the other kind too
    return buffer.getvalue()


def save(folder: Path, name: str, figure: Figure, caption: str) -> page.Image:
    """Write the figure to the folder as PNG and SVG; what the page needs of it."""
    found = {kind: render(figure, kind) for kind in ("png", "svg")}
    for kind, content in found.items():
        write_bytes(folder / f"{name}.{kind}", content)
    return page.Image(name, found["svg"], caption)


def write_bytes(path: Path, content: bytes) -> None:
    write_atomic(path, lambda p: p.write_bytes(content))


def new_figure(
    style: Style, height: float, rows: int = 1, columns: int = 1, width: float = WIDTH
) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), facecolor=style.theme.paper, layout="constrained")
    panels = [figure.add_subplot(rows, columns, i + 1) for i in range(rows * columns)]
    for axes in panels:
        _dress(axes, style.theme)
    return figure, panels


def _dress(axes: Axes, theme: Theme) -> None:
    axes.set_facecolor(theme.paper)
    axes.grid(True, color=theme.faint, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.ink, labelsize=9, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.faint)
    for text in (axes.xaxis.label, axes.yaxis.label):
        text.set_color(theme.ink)
        text.set_fontsize(10)


def title(axes: Axes, text: str, style: Style) -> None:
    axes.set_title(text, loc="left", fontsize=10, color=style.theme.ink)


def short(value: float, _: object = None) -> str:
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def apart(values: list[float], gap: float, low: float, high: float) -> list[float]:
    """Places in the order of the values, at least `gap` apart and inside [low, high] if there is room."""
    order = np.argsort(values, kind="stable")
    places = np.asarray(values, dtype=float)[order]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gap)
    if len(places) and places[-1] > high:
        places[-1] = high
        for i in range(len(places) - 2, -1, -1):
            places[i] = min(places[i], places[i + 1] - gap)
    places = places + max(0.0, low - places[0]) if len(places) else places
    result = np.empty_like(places)
    result[order] = places
    return [float(v) for v in result]


def areas(task: TaskResult, style: Style) -> Figure | None:
    """Area under the success curve per method, the largest on top, with intervals and a faint dot per seed."""
    shown = task.ranked[::-1]
    if not shown:
        return None
    figure, (axes,) = new_figure(style, 0.9 + 0.34 * len(shown))
    for row, result in enumerate(shown):
        if result.area is None:
            continue
        colour = style.colour(result.method)
        axes.plot([result.area.low, result.area.high], [row, row], color=colour, linewidth=2.5, solid_capstyle="round")
        axes.plot(
            result.areas.mean(axis=1), [row] * len(result.areas), "|", color=style.theme.ink, markersize=9, mew=0.8
        )
        axes.plot([result.area.value], [row], marker=style.marker(result.method), color=colour, markersize=8)
    axes.set(yticks=range(len(shown)), ylim=(-0.6, len(shown) - 0.4), xlim=(0, 1))
    axes.set_xlabel("area under the success curve (marks: seeds)")
    axes.set_yticklabels([r.method for r in shown], fontweight="bold")
    axes.grid(False, axis="y")
    return figure


def coverage(task: TaskResult, style: Style) -> Figure | None:
    """Bars of Success@1 and Success@K of the frozen policies, σ chosen on selection states; None without any."""
    shown = [r for r in task.results if r.before][::-1]
    if not shown:
        return None
    figure, (axes,) = new_figure(style, 1.3 + 0.55 * len(shown))
    for row, result in enumerate(shown):
        _bars(axes, row, result, style)
    axes.set(yticks=range(len(shown)), xlim=(0, 1.0), xlabel="success before reinforcement")
    axes.set_yticklabels([r.method for r in shown], fontweight="bold")
    axes.grid(False, axis="y")
    k = shown[0].before[-1].k
    axes.set_title(f"{task.task}: Success@1 solid, @{k} hatched", loc="right", fontsize=10, color=style.theme.ink)
    return figure


def _bars(axes: Axes, row: int, result: Result, style: Style) -> None:
    colour = style.colour(result.method)
    for before, offset, hatch in zip(result.before, (0.19, -0.19), ("", "////"), strict=True):
        e = before.success
        axes.barh(
            row + offset, e.value, height=0.34, facecolor=style.theme.paper if hatch else colour, edgecolor=colour,
            hatch=hatch or None, linewidth=1,
        )  # fmt: skip
        axes.plot([e.low, e.high], [row + offset] * 2, color=style.theme.ink, linewidth=1.2, clip_on=False)


def coverage_by_sigma(policies: pd.DataFrame, task: str, style: Style) -> Figure | None:
    """Success@1 and Success@K against σ for the policies that take σ; methods sharing a policy share a line.

    `policies` is a `coverage_table`.
    """
    levels = policies.groupby(["task", "methods"])["sigma"].transform("nunique")
    policies = policies[(policies["task"] == task) & (levels > 1)]
    if policies.empty:
        return None
    figure, panels = new_figure(style, 3.1, columns=2)
    for axes, (k, rows) in zip(panels, policies.groupby("k"), strict=False):
        for names, line in rows.groupby("methods"):
            method = str(names).split(", ")[0]
            axes.fill_between(line["sigma"], line["low"], line["high"], color=style.colour(method), alpha=0.15, lw=0)
            axes.plot(
                line["sigma"], line["success"], color=style.colour(method), marker=style.marker(method), linewidth=2,
                markersize=5, label=str(names),
            )  # fmt: skip
        axes.set(xlabel="noise level σ of the context", ylim=(-0.02, 1.02), xlim=(-0.03, 1.03))
        title(axes, f"Success@{k}", style)
    panels[0].set_ylabel("success before RL")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower left", ncols=1, frameon=False, fontsize=9, labelcolor=style.theme.ink
    )
    if policies["k"].nunique() == 1:
        panels[1].remove()
    return figure


def coverage_table(curves: Curves) -> pd.DataFrame:
    """Success@1 and Success@K on report states, with intervals, and action spread, per policy and σ.

    The spread is the deviation of the first chunk over tries from one start state, averaged over states and entries.
    """
    rows = []
    frame = curves.coverage[curves.coverage["half"] == "report"]
    for (task, methods), cover in by_policy(curves, frame):
        if cover.empty:
            continue
        attempts = int(cover.groupby(["seed", "sigma", "start"]).size().min())
        for k in sorted({1, min(summary.K, attempts)}):
            for sigma, at in cover.groupby("sigma"):
                e = summary.by_seed(at, k, task)
                names = {"task": task, "methods": methods, "k": k, "sigma": float(str(sigma))}
                spread = float(at["spread"].mean())
                rows.append({**names, "success": e.value, "low": e.low, "high": e.high, "spread": spread})
    return pd.DataFrame(rows, columns=["task", "methods", "k", "sigma", "success", "low", "high", "spread"])


def by_policy(curves: Curves, frame: pd.DataFrame) -> list[tuple[tuple[str, str], pd.DataFrame]]:
    """((task, methods that share the policy), coverage rows of one of them)."""
    found = []
    for task, cells in curves.cells.groupby("task", sort=False):
        shared: dict[tuple[str, ...], list[str]] = {}
        for method, own in cells.groupby("method", sort=False):
            keys = tuple(own.sort_values("seed")["coverage_key"])
            shared.setdefault(keys, []).append(str(method))
        for names in shared.values():
            rows = frame[(frame["task"] == task) & (frame["method"] == names[0])]
            found.append(((str(task), ", ".join(names)), rows))
    return found


def sigma(curves: Curves, task: str, style: Style) -> Figure | None:
    """Mean σ chosen over training (left) and by decision number within the episode, late in training (right)."""
    rows = curves.sigma[(curves.sigma["task"] == task) & (curves.sigma["count"] > 0)]
    if rows.empty:
        return None
    figure, (over, within) = new_figure(style, 3.1, columns=2)
    for method, own in rows.groupby("method"):
        colour = style.colour(str(method))
        late = own[own["progress"] > own["progress"].max() - 1 / 3]
        for axes, part, column in ((over, own, "progress"), (within, late, "decision")):
            for _, seed in part.groupby("seed"):
                axes.plot(*weighted(seed, column), color=colour, linewidth=0.7, alpha=0.4)
            axes.plot(*weighted(part, column), color=colour, linewidth=2, label=str(method))
    over.set(xlabel="share of fine-tuning done", ylabel="mean σ chosen", xlim=(0, 1))
    within.set(xlabel="decision within the episode")
    title(over, "over training", style)
    title(within, "in the last third", style)
    for axes in (over, within):
        axes.set_ylim(-0.02, max(0.3, float(rows["sigma"].max()) * 1.1))
    handles, labels = over.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower left", ncols=2, frameon=False, fontsize=9, labelcolor=style.theme.ink
    )
    return figure


def weighted(rows: pd.DataFrame, column: str) -> tuple[Array, Array]:
    """Values of `column` and the mean σ at each, weighted by how many decisions it stands for."""
    total = rows.assign(product=rows["sigma"] * rows["count"]).groupby(column)[["product", "count"]].sum()
    return total.index.to_numpy(float), (total["product"] / total["count"]).to_numpy(float)
