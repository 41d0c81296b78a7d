"""Draws what no single run has: the five figures in this folder, from the tables in it.

`.venv/bin/python results/reference/published/draw.py` in the repository's root. leads.csv holds rows of the runs' own
tables/leads.csv; narrow.csv the same with z within 1.5, but for bc's success before RL, which is that of leads.csv, so
that a task has one place; bounds.csv the areas on tuning seeds; reach.csv how far z moves what a policy does;
published_curves.csv what can be read off the curves of TMRL (arXiv 2605.12236), ± 0.02.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench import figures, report_figures, report_regime
from bench.report_regime import Lead
from bench.stats import Estimate

FOLDER = Path(__file__).parent
STEERED = ("bc", "csp", "csp_tmrl", "posterior_bc")
NAMES = {"TMRL": "csp_tmrl", "DSRL": "bc", "PostBC": "posterior_bc", "RLPD": "rlpd", "SPiRL": "spirl"}
CONTROL_STEPS = 20  # of a published step: one decision of up to 5 control steps in each of 4 environments
NAMED = {
    "navigation/pointmaze-giant": "the giant maze's own",
    "navigation/pointmaze-giant-4": "4 cells away",
    "navigation/pointmaze-giant-6": "6 cells away",
    "navigation/pointmaze-giant-8": "8 cells away",
    "navigation/pointmaze-giant-instruction": "instructions, giant",
    "navigation/pointmaze-large-instruction": "instructions, large",
    "navigation/pointmaze-large-unseen": "unseen goals",
    "manipspace/cube-single": "the cube",
    "manipspace/cube-single-instruction": "the cube in other words",
    "manipspace/cube-single-shifted": "the cube elsewhere",
    "robosuite_tasks/lift-unseen": "the arm, unseen cubes",
}
BESIDE = {  # a published task → panels of ours: name → folder and task
    "pointmaze-giant": {
        "ours, 6 cells away": ("ladder", "navigation/pointmaze-giant-6"),
        "ours, instructions": ("instruction", "navigation/pointmaze-giant-instruction"),
    },
    "cube-single": {
        "ours, in other words": ("cube", "manipspace/cube-single-instruction"),
        "ours, the cube itself": ("cube_single", "manipspace/cube-single"),
    },
}


def read(name: str) -> list[Lead]:
    """Leads of a table of this folder."""

    def estimate(row: pd.Series, name: str) -> Estimate:
        return Estimate(row[name], row[f"{name}_low"], row[f"{name}_high"])

    values = "baseline_success", "area", "final"
    return [
        Lead(r["task"], r["method"], r["k"], *(estimate(r, n) for n in values), r["seeds"])
        for _, r in pd.read_csv(FOLDER / name).iterrows()
    ]


def leads() -> Figure:
    """Lead over bc against bc's Success@K before RL."""
    return report_figures.leads(read("leads.csv"), "bc", figures.Style(STEERED))


def crossover() -> Figure:
    """Lead of csp_tmrl over bc, tasks from the hardest for bc to the easiest; grey where the lead ends."""
    style = figures.Style(STEERED)
    colour, ink = style.colour("csp_tmrl"), style.theme.ink
    wide = [lead for lead in read("leads.csv") if lead.method == "csp_tmrl"]
    shown = {"z within 1.5": read("narrow.csv"), "z as far as suits the task": wide}
    rows = {lead.task: i for i, lead in enumerate(wide)}
    success = [lead.coverage.value for lead in wide]
    figure, panels = figures.new_figure(style, 3.8, columns=2, width=8.0)
    for axes, (name, found) in zip(panels, shown.items(), strict=True):
        axes.plot([lead.area.value for lead in found], [rows[lead.task] for lead in found], color=colour, linestyle="",
                  marker=style.marker("csp_tmrl"), markersize=7)  # fmt: skip
        for lead in found:
            axes.plot([lead.area.low, lead.area.high], [rows[lead.task]] * 2, color=colour, linewidth=2.0)
        if place := report_regime.crossover(found):
            edges = [-0.5, *range(len(rows)), len(rows) - 0.5]
            low, value, high = np.interp([place.low, place.value, place.high], [0, *success, np.inf], edges)
            axes.axhspan(low, high, color=ink, alpha=0.1, linewidth=0)
            if np.isfinite(place.value):
                axes.axhline(value, color=ink, linewidth=1.2)
        axes.axvline(0, color=ink, linewidth=0.6, linestyle=(0, (1, 3)))
        axes.set(ylim=(len(rows) - 0.5, -0.5), xlim=(-0.8, 0.6), yticks=range(len(rows)))
        axes.set_yticklabels([f"{NAMED[task]}  {x:.2f}" for task, x in zip(rows, success, strict=True)])
        axes.tick_params(axis="y", labelleft=axes is panels[0])
        figures.title(axes, name, style)
    figure.supxlabel("area of csp_tmrl less bc's", fontsize=9, color=ink)
    figure.supylabel("tasks by bc's Success@8 before RL", fontsize=9, color=ink)
    return figure


def bounds() -> Figure:
    """Area against the bound of z, correction or action: small points are seeds, large ones their means."""
    table = pd.read_csv(FOLDER / "bounds.csv")
    table = table[(table["alpha"].isna() | table["alpha"].isin([1, 8])) & (table["bound"] >= 0.2)]
    style = figures.Style((*STEERED, "residual", "rlpd"))
    tasks = ("giant-instruction", "large-instruction", "large-unseen", "giant")
    figure, panels = figures.new_figure(style, 6.2, rows=2, columns=2)
    for axes, task in zip(panels, tasks, strict=True):
        own = table[table["task"] == f"pointmaze-{task}"]
        for (method, wide), rows in own.groupby(["method", own["alpha"] == 8]):
            kind = {
                "color": style.colour(method), "marker": style.marker(method), "linestyle": "--" if wide else "-",
                "markerfacecolor": "none" if wide else style.colour(method),
            }  # fmt: skip
            mean = rows.groupby("bound")["area"].mean()
            axes.plot(mean.index, mean, markersize=7, label=f"{method}, α = 8" if wide else method, **kind)
            kind["linestyle"] = ""
            axes.plot(rows["bound"], rows["area"], markersize=3, alpha=0.5, **kind)
        axes.set(xscale="log", xlim=(0.17, 6.9), ylim=(0, 1))
        axes.set_xticks([0.2, 0.5, 1, 2, 4, 6], labels=["0.2", "0.5", "1", "2", "4", "6"], minor=False)
        axes.minorticks_off()
        axes.set_xlabel("bound of z, correction or action", fontsize=9)
        figures.title(axes, f"pointmaze-{task}", style)
    label(figure, panels, style, "area under the success curve")
    return figure


def reach() -> Figure:
    """Area of every setting of bound and α on the tuning seed against how far z moves the policy's chunks."""
    tuned = pd.concat([pd.read_csv(FOLDER / folder / "tuning.csv") for folder in ("equal", "equal_close")])
    tuned = tuned[tuned["method"].isin(STEERED) & ~tuned["setting"].str.contains("temperature|exponent|start")]
    z_bound = tuned["setting"].str.extract(r"z_bound=([\d.]+)")[0].astype(float).fillna(2.8)  # unseen goals' own
    alpha = tuned["setting"].str.extract(r"alpha=([\d.]+)")[0].astype(float)
    alpha = alpha.fillna(1.0).where(tuned["method"] == "posterior_bc", 0.0)
    tuned = tuned.assign(z_bound=z_bound, alpha=alpha, policy=tuned["method"].replace("csp_tmrl", "csp"))
    areas = tuned.groupby(["task", "method", "policy", "alpha", "z_bound"], as_index=False)["area"].mean()
    reached = pd.read_csv(FOLDER / "reach.csv").fillna({"alpha": 0.0})
    reached["task"] = reached["task"].str.removeprefix("navigation/")
    ends = reached.groupby(["task", "policy", "alpha", "z_bound"])["reach"].agg(["min", "median", "max"])
    table = areas.join(ends, on=["task", "policy", "alpha", "z_bound"])
    style = figures.Style(STEERED)
    figure, panels = figures.new_figure(style, 3.6, columns=3, width=8.0)
    tasks = "large-instruction", "giant-instruction", "large-unseen"
    for axes, task in zip(panels, tasks, strict=True):
        own = table[table["task"] == f"pointmaze-{task}"]
        cloned = own[own["method"].isin(["bc", "posterior_bc"])]
        rank = cloned["area"].corr(cloned["median"], method="spearman")
        for method, rows in own.groupby("method"):
            axes.hlines(rows["area"], rows["min"], rows["max"], color=style.colour(method), alpha=0.3)
            axes.plot(rows["median"], rows["area"], color=style.colour(method), marker=style.marker(method),
                      linestyle="", markersize=6, label=method)  # fmt: skip
            for _, row in rows[(rows["alpha"] > 1) & (rows["z_bound"] == 1.5)].iterrows():
                axes.annotate(f"{row['alpha']:.0f}", (row["median"], row["area"]), (4, -9), fontsize=7,
                              textcoords="offset points", color=style.theme.ink)  # fmt: skip
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.set_xlabel(f"reach of z; rank correlation, cloned: {rank:.2f}", fontsize=8)
        figures.title(axes, f"pointmaze-{task}", style)
    label(figure, panels, style, "area under the success curve")
    return figure


def beside() -> Figure:
    """The published curves and ours over the same axis."""
    style = figures.Style([*NAMES.values(), "csp", "residual"])
    published = pd.read_csv(FOLDER / "published_curves.csv").replace({"method": NAMES})
    published = published.rename(columns={"online_steps": "x", "success_rate": "success"})
    curves = {}
    for theirs, ours in BESIDE.items():
        curves[f"published, {theirs}"] = published[published["task"] == theirs]
        for name, (folder, task) in ours.items():
            table = pd.read_csv(FOLDER / folder / "tables" / "curves.csv")
            table = table[(table["axis"] == "control_steps") & ~table["with_pretraining"] & (table["x"] > 0)]
            own = table[(table["task"] == task) & table["method"].isin(list(NAMES.values()))]
            curves[name] = own.assign(x=own["x"] / CONTROL_STEPS)
    figure, panels = figures.new_figure(style, 6.2, rows=len(BESIDE), columns=3, width=8.0)
    for axes, (name, table) in zip(panels, curves.items(), strict=True):
        for method, rows in table.groupby("method"):
            axes.plot(rows["x"], rows["success"], color=style.colour(method), marker=style.marker(method),
                      markersize=3.5, label=method)  # fmt: skip
        axes.set(xscale="log", xlim=(100, 1.2e6), ylim=(-0.02, 1.02))
        axes.set_xticks([1e2, 1e3, 1e4, 1e5, 1e6], labels=["100", "1k", "10k", "100k", "1M"])
        axes.minorticks_off()
        axes.set_xlabel(f"steps of {CONTROL_STEPS} control steps", fontsize=9)
        figures.title(axes, name, style)
    label(figure, panels, style, "success rate")
    return figure


def label(figure: Figure, panels: list[Axes], style: figures.Style, y: str) -> None:
    """The name of what is drawn upwards, and those of the lines below."""
    lines = {text: line for axes in panels for line, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.supylabel(y, fontsize=9, color=style.theme.ink)
    side_by_side = 5 if figure.get_figwidth() > figures.WIDTH else 3
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=min(len(lines), side_by_side),
                  frameon=False, fontsize=9, labelcolor=style.theme.ink)  # fmt: skip


if __name__ == "__main__":
    for draw in (crossover, leads, bounds, reach, beside):
        figures.write_bytes(FOLDER / f"{draw.__name__}.png", figures.render(draw(), "png"))
