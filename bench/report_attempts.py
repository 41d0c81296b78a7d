"""Success@K before reinforcement against K, as in TMRL (arXiv 2605.12236): what more tries from one state bring."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from bench import summary
from bench.figures import Style, by_policy, new_figure
from bench.stages.curves import Curves

KS = (1, 2, 3, 5, 8, 10, 15, 20, 30, 50, 100)
COLUMNS = ["task", "methods", "k", "sigma", "success", "low", "high"]


def table(curves: Curves) -> pd.DataFrame:
    """Success@K on report states per policy and K up to the attempts there are; σ is chosen anew for every K."""
    rows = []
    for (task, methods), cover in by_policy(curves, curves.coverage):
        if cover.empty:
            continue
        attempts = int(cover.groupby(["seed", "half", "sigma", "start"]).size().min())
        for k in sorted({*(k for k in KS if k < attempts), attempts}):
            found = summary.before_k(cover, k, task)
            rows.append((task, methods, k, found.sigma, found.success.value, found.success.low, found.success.high))
    return pd.DataFrame(rows, columns=COLUMNS)


def figure(policies: pd.DataFrame, task: str, style: Style) -> Figure | None:
    """A line per policy with its interval; None where there are fewer than three values of K. `policies`: `table`."""
    policies = policies[policies["task"] == task]
    if policies["k"].nunique() < 3:
        return None
    drawn, (axes,) = new_figure(style, 3.1)
    for names, line in policies.groupby("methods", sort=False):
        method = str(names).split(", ")[0]
        axes.fill_between(line["k"], line["low"], line["high"], color=style.colour(method), alpha=0.12, lw=0)
        axes.plot(line["k"], line["success"], color=style.colour(method), marker=style.marker(method), linewidth=2,
                  markersize=5, label=str(names))  # fmt: skip
    axes.set(xlabel="K, tries from one start state", ylabel="Success@K before RL", ylim=(-0.02, 1.02))
    axes.set_xticks(sorted(set(policies["k"])))
    drawn.legend(loc="outside right center", frameon=False, fontsize=9, labelcolor=style.theme.ink)
    return drawn
