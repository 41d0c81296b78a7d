"""Figures of the report that compare: curves over costs, coverage against outcome, profiles, ranks, sensitivity."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from bench import summary
from bench.figures import Style, apart, new_figure, short, title
from bench.report_coverage import Pair
from bench.report_curves import Curve
from bench.report_regime import Lead
from bench.stats import Estimate, Profile
from bench.summary import TaskResult


def success(curves: Sequence[Curve], name: str, label: str, style: Style) -> Figure:
    """Success on report states against one axis: mean, 95 % band, and a thin line per seed."""
    figure, (axes,) = new_figure(style, 3.5)
    for curve in curves:
        colour = style.colour(curve.method)
        if len(curve.lines) > 1:
            for x, y in curve.lines:
                axes.plot(x, y, color=colour, linewidth=0.6, alpha=0.3)
        if curve.band is not None:
            axes.fill_between(curve.x, *curve.band, color=colour, alpha=0.1, linewidth=0)
        axes.plot(
            curve.x, curve.mean, color=colour, linewidth=2, marker=style.marker(curve.method), markersize=5,
            markevery=max(1, len(curve.x) // 8),
        )  # fmt: skip
    axes.axhline(summary.THRESHOLD, color=style.theme.ink, linewidth=0.6, linestyle=(0, (1, 3)))
    most = max((float(c.x[-1]) for c in curves), default=1.0)
    axes.set(xlabel=label, ylabel="success rate", ylim=(-0.02, 1.02), xlim=(0, most * 1.02))
    axes.xaxis.set_major_formatter(FuncFormatter(short))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    title(axes, name, style)
    _name_lines(axes, [(c.method, float(c.x[-1]), float(c.mean[-1])) for c in curves], style)
    return figure


def _name_lines(axes: Axes, ends: list[tuple[str, float, float]], style: Style, gap: float = 0.065) -> None:
    """The name of each line at the right edge, moved apart where ends are close, with a thin leader from the end."""
    low, high = axes.get_ylim()
    gap *= high - low
    places = apart([y for _, _, y in ends], gap, low + gap / 2, high - gap / 2)
    right = axes.get_xlim()[1]
    for (method, x, y), place in zip(ends, places, strict=True):
        colour, at = style.colour(method), right * 1.035
        axes.plot([x, at], [y, place], color=colour, linewidth=0.9, linestyle=(0, (2, 2)), clip_on=False)
        axes.plot([at], [place], marker=style.marker(method), color=colour, clip_on=False, markersize=5)
        axes.annotate(
            method, xy=(at, place), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9,
            color=style.theme.ink, annotation_clip=False, fontweight="bold",
        )  # fmt: skip
    axes.set_xlim(0, right)
    axes.set_ylim(low, high)


def coverage_against_outcome(pairs: Sequence[Pair], style: Style) -> Figure | None:
    """Success@1 and Success@K before RL against the area and the gain: a point per method and task, faint per seed."""
    if not pairs:
        return None
    figure, panels = new_figure(style, 5.6, rows=2, columns=2)
    k = max(p.k for p in pairs)
    for axes, (many, gain) in zip(panels, [(False, False), (True, False), (False, True), (True, True)], strict=True):
        for p in pairs:
            colour, marker = style.colour(p.method), style.marker(p.method)
            for x, y in p.seeds(many, gain):
                axes.plot([x], [y], marker=marker, color=colour, alpha=0.25, markersize=4, markeredgewidth=0)
            x, y = p.means(many, gain)
            axes.plot([x], [y], marker=marker, color=colour, markersize=8,
                      markeredgecolor=style.theme.paper, markeredgewidth=0.8)  # fmt: skip
        axes.set(xlim=(-0.04, 1.04), xlabel=f"Success@{k if many else 1} before RL" if gain else "")
        if gain:
            axes.axhline(0, color=style.theme.ink, linewidth=0.6, linestyle=(0, (1, 3)))
        else:
            axes.set_ylim(-0.04, 1.04)
    panels[0].set_ylabel("area under curve")
    panels[2].set_ylabel("gain by RL")
    low = min(a.get_ylim()[0] for a in panels[2:])
    high = max(a.get_ylim()[1] for a in panels[2:])
    for axes in panels[2:]:
        axes.set_ylim(low, high)
    _legend(figure, panels[0], list(dict.fromkeys(p.method for p in pairs)), style)
    return figure


def leads(found: Sequence[Lead], baseline: str, style: Style) -> Figure:
    """Difference of areas against the baseline's Success@K before RL, a panel per method, a point per task."""
    methods = list(dict.fromkeys(lead.method for lead in sorted(found, key=lambda lead: lead.method)))
    columns = min(3, len(methods))
    rows = -(-len(methods) // columns)
    figure, panels = new_figure(style, 0.5 + 2.4 * rows, rows=rows, columns=columns)
    ends = [v for lead in found for v in (lead.area.low, lead.area.high, 0.0) if not np.isnan(v)]
    room = 0.05 * (max(ends) - min(ends))
    for axes, method in zip(panels, methods, strict=False):
        own = [lead for lead in found if lead.method == method]
        for lead in own:
            x, y, colour = lead.coverage, lead.area, style.colour(method)
            axes.plot([x.low, x.high], [y.value, y.value], color=colour, linewidth=1.0, alpha=0.6)
            axes.plot([x.value, x.value], [y.low, y.high], color=colour, linewidth=2.0, solid_capstyle="round")
            axes.plot([x.value], [y.value], marker=style.marker(method), color=colour, markersize=7,
                      markeredgecolor=style.theme.paper, markeredgewidth=0.8)  # fmt: skip
        axes.axhline(0, color=style.theme.ink, linewidth=0.6, linestyle=(0, (1, 3)))
        axes.set(xlim=(-0.04, 1.04), ylim=(min(ends) - room, max(ends) + room))
        axes.set_xticks((0.0, 0.5, 1.0), ("0", "0.5", "1"))  # short, or the last is cut off at the figure's edge
        axes.set_title(method, loc="left", fontsize=10, fontweight="bold", color=style.theme.ink)
    for axes in panels[len(methods) :]:
        axes.remove()
    ks = ", ".join(str(k) for k in sorted({lead.k for lead in found}))
    figure.supxlabel(f"{baseline}: Success@{ks} before RL", fontsize=9, color=style.theme.ink)
    figure.supylabel(f"area above {baseline}'s", fontsize=9, color=style.theme.ink)
    return figure


def _legend(figure: Figure, axes: Axes, methods: Sequence[str], style: Style) -> None:
    """Names of methods below the panels."""
    handles = [
        axes.plot([], [], marker=style.marker(m), color=style.colour(m), linestyle="", markersize=7, label=m)[0]
        for m in sorted(methods)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False, fontsize=9,
                  labelcolor=style.theme.ink, handletextpad=0.1, columnspacing=1.2)  # fmt: skip


def profile(profiles: dict[str, Profile], style: Style) -> Figure | None:
    """Share of runs whose area is above τ; the higher the line, the better."""
    if not profiles:
        return None
    figure, (axes,) = new_figure(style, 3.4)
    for method, p in profiles.items():
        colour = style.colour(method)
        axes.fill_between(p.tau, p.low, p.high, color=colour, alpha=0.1, linewidth=0, step="post")
        axes.plot(p.tau, p.value, color=colour, linewidth=2, drawstyle="steps-post", marker=style.marker(method),
                  markersize=5, markevery=(5, 20))  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(-0.02, 1.02), xlabel="area under the success curve, τ", ylabel="share of runs above τ")
    _legend(figure, axes, list(profiles), style)
    return figure


def standings(tasks: Sequence[TaskResult], means: dict[str, Estimate], style: Style) -> Figure | None:
    """Mean area over tasks with its interval, and a faint mark per task; the largest on top."""
    if not means:
        return None
    order = list(means)[::-1]
    figure, (axes,) = new_figure(style, 0.9 + 0.36 * len(order))
    for row, method in enumerate(order):
        e, colour = means[method], style.colour(method)
        if not np.isnan(e.low):
            axes.plot([e.low, e.high], [row, row], color=colour, linewidth=2.5, solid_capstyle="round")
        each = [r.area.value for t in tasks for r in t.ranked if r.method == method and r.area]
        axes.plot(each, [row] * len(each), "|", color=style.theme.ink, markersize=9, mew=0.8)
        axes.plot([e.value], [row], marker=style.marker(method), color=colour, markersize=8)
    axes.set(yticks=range(len(order)), ylim=(-0.6, len(order) - 0.4), xlim=(0, 1))
    axes.set_xlabel("area under the success curve (marks: tasks)")
    axes.set_yticklabels(order, fontweight="bold")
    axes.grid(False, axis="y")
    return figure


def sensitivity(rows: Sequence[tuple[str, float, float, float]], style: Style) -> Figure | None:
    """Success lost when one parameter of a study's best setting is moved: (move, loss, low, high), largest on top."""
    shown = [r for r in rows if not np.isnan(r[1])][::-1]
    if not shown:
        return None
    figure, (axes,) = new_figure(style, 1.0 + 0.3 * len(shown))
    for row, (_, value, low, high) in enumerate(shown):
        if not np.isnan(low):
            axes.plot([low, high], [row, row], color=style.theme.ink, linewidth=1.6, solid_capstyle="round")
        axes.plot([value], [row], "o", color=style.theme.ink, markersize=6)
    axes.axvline(0, color=style.theme.ink, linewidth=0.6, linestyle=(0, (1, 3)))
    axes.set(yticks=range(len(shown)), ylim=(-0.6, len(shown) - 0.4), xlabel="success lost (area; right is worse)")
    axes.set_yticklabels([r[0] for r in shown])
    axes.grid(False, axis="y")
    return figure
