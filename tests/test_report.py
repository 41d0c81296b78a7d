"""Gathering, numbers and the page, on made-up runs whose answer is known."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fabricate import ATTEMPTS, KINDS, STARTS, Fabricated

from bench import figures, report, report_coverage, report_curves, report_origin, summary
from bench.page import Table, Text, html, latex, markdown
from bench.report_ranking import Ranking, Standing, rank, spread, verdict
from bench.stages.curves import gather
from bench.stats import Estimate
from bench.store import EPISODES, write_json
from bench.summary import Result, Run, TaskResult


@pytest.fixture
def run(tmp_path: Path) -> Fabricated:
    return Fabricated(tmp_path / "results")


def cell_of(run: Fabricated, method: str, seed: int) -> dict[str, object]:
    return next(c for c in run.cells if (c["method"], c["seed"]) == (method, seed))


# gathering


def test_gather_takes_done_cells_and_all_finished_coverage(run: Fabricated) -> None:
    run.finish(cell_of(run, "noised_chosen", 0))
    run.fail(cell_of(run, "plain", 0))
    run.partial(cell_of(run, "plain", 1), 4)
    curves = gather(run.store, run.folder)
    cells = curves.cells.set_index(["method", "seed"])
    assert len(cells) == len(KINDS) * 3
    assert cells.loc[("noised_chosen", 0), "status"] == "done"
    assert cells.loc[("plain", 0), "status"] == "failed"
    assert cells.loc[("plain", 0), "failure"] == "RuntimeError: simulator diverged <at> step 7"
    assert cells.loc[("plain", 1), "status"] == "pending"
    assert set(curves.episodes["method"]) == {"noised_chosen"} and list(curves.episodes.columns) == list(EPISODES)
    assert len(curves.episodes) == 2 * STARTS * 2 * run.points
    # "noised" shares the policy of "noised_chosen", so its coverage is there before it is fine-tuned
    assert set(curves.coverage["method"]) == {"noised_chosen", "noised", "plain"}
    assert len(curves.coverage[curves.coverage["method"] == "noised"]) == 5 * 2 * STARTS * ATTEMPTS
    assert cells.loc[("noised", 0), "pretrain_seconds"] == 12.5


def test_running_is_seen_through_the_lock(run: Fabricated) -> None:
    cell = cell_of(run, "plain", 2)
    run.partial(cell, 2)
    with run.entry(cell, "finetune").lock():
        cells = gather(run.store, run.folder).cells.set_index(["method", "seed"])
    assert cells.loc[("plain", 2), "status"] == "running"


@pytest.mark.parametrize("harm", ["alter", "remove"])
def test_an_altered_file_makes_the_cell_fail_and_the_rest_stands(run: Fabricated, harm: str) -> None:
    run.finish_all()
    path = run.entry(cell_of(run, "plain", 1), "finetune").file("episodes.parquet")
    path.unlink() if harm == "remove" else path.write_bytes(path.read_bytes()[:-20])
    curves = gather(run.store, run.folder)
    assert (curves.cells["status"] == "failed").sum() == 1
    assert str(path) in curves.cells.loc[curves.cells["status"] == "failed", "failure"].iloc[0]
    plain = curves.episodes[curves.episodes["method"] == "plain"]
    assert set(plain["seed"]) == {0, 2}


# numbers


def test_numbers_agree_with_a_plain_recomputation(run: Fabricated) -> None:
    run.finish_all()
    curves = gather(run.store, run.folder)
    (task,) = summary.summarise(curves)
    end = 500 * (run.points - 1)  # seed 0, the shortest
    assert task.end == end
    for result in task.results:
        rows = curves.episodes[(curves.episodes["method"] == result.method) & (curves.episodes["half"] == "report")]
        areas, finals = [], []
        for _, own in rows.groupby("seed"):
            points = own.groupby("point").agg(x=("control_steps", "first"), y=("success", "mean"))
            grid = np.linspace(0, end, 100_001)
            areas.append(np.interp(grid, points["x"], points["y"]).mean())
            finals.append(points["y"].iloc[-1])
        assert result.area is not None and result.final is not None
        assert result.area.value == pytest.approx(np.mean(areas), abs=1e-4)
        assert result.final.value == pytest.approx(np.mean(finals))
        assert result.area.low <= result.area.value <= result.area.high
    for curve in report_curves.curves(task, report_curves.AXES[0]):
        assert len(curve.x) > run.points and curve.x[-1] == end  # knots of all seeds
        assert curve.band is not None
        assert np.all(curve.band[0] <= curve.mean) and np.all(curve.mean <= curve.band[1])


def test_ranking_follows_the_area(run: Fabricated) -> None:
    run.finish_all()
    (task,) = summary.summarise(gather(run.store, run.folder))
    areas = [r.area.value for r in task.ranked if r.area]
    assert areas == sorted(areas, reverse=True) and len(areas) == len(KINDS)
    assert task.ranked[-1].method == "scratch"
    standings = rank([task]).standings
    assert [s.method for s in standings] == [r.method for r in task.ranked] and standings[0].gap is None
    for standing, area in zip(standings[1:], areas[1:], strict=True):
        assert standing.gap and standing.gap.value == pytest.approx(areas[0] - area)


def test_methods_that_share_a_policy_share_its_coverage(run: Fabricated) -> None:
    run.finish_all()
    curves = gather(run.store, run.folder)
    results = {r.method: r for r in summary.summarise(curves)[0].results}
    assert results["noised"].before == results["noised_chosen"].before
    assert results["scratch"].before == ()
    assert [b.k for b in results["plain"].before] == [1, 8]
    assert "noised, noised_chosen" in set(figures.coverage_table(curves)["methods"])


def test_sigma_is_chosen_on_selection_states_only() -> None:
    rows = [
        {"half": half, "sigma": sigma, "start": 0, "attempt": i, "success": good}
        for half, best in (("selection", 0.5), ("report", 0.0))
        for sigma in (0.0, 0.5)
        for i in range(4)
        for good in [(sigma == best) == (i < 3)]
    ]
    values, sigma = summary.one_seed(pd.DataFrame(rows), 1)
    assert sigma == 0.5 and values == pytest.approx([0.25])  # what report states say of the chosen σ, not their best


def test_all_failures_still_have_an_interval() -> None:
    e = summary.estimate(np.zeros((2, 10)), np.random.default_rng(0))
    assert e.value == e.low == 0 and 0.1 < e.high < 0.2  # Wilson, 0 of 20: 0.161


# the page


class Page(HTMLParser):
    """Collects text, and whether tags balance."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.open, self.links, self.ids, self.svgs = "", [], [], [], 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [v for k, v in attrs if k in ("src", "srcset", "href", "xlink:href") and v]
        self.ids += [v for k, v in attrs if k == "id"]
        self.svgs += tag == "svg"
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text())
    assert page.open == [] and len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links if link[0] == "#"} <= set(page.ids)
    return page


def test_report_of_a_mixed_run(run: Fabricated, tmp_path: Path) -> None:
    for cell in run.cells:
        failing = (cell["method"], cell["seed"]) == ("plain", 1)
        run.fail(cell) if failing else run.finish(cell)
    out = tmp_path / "out"
    page = read(report.write(run.store, run.folder, out))
    assert page.svgs > 10 and all(link.startswith("#") for link in page.links)  # nothing from outside
    assert "http" not in (out / "index.html").read_text() and "<script" not in (out / "index.html").read_text()
    for said in (
        "noised_chosen",
        "RuntimeError: simulator diverged <at> step 7",
        "14 of 15 cells finished",
        "0" * 40,
        "plain: 0, 2;",
    ):
        assert said in page.text
    assert "python -m bench run --methods all" in page.text and "too few to rely on" in page.text
    text = (out / "report.md").read_text()
    assert "plain 2/3" in text and "RuntimeError" in text
    named = set(re.findall(r"\]\((figures/[^)]+)\)", text))
    assert named == {f"figures/{p.name}" for p in (out / "figures").glob("*.png")} and len(named) == page.svgs
    for name in named:
        assert (out / name).stat().st_size > 1000 and (out / name).with_suffix(".svg").stat().st_size > 1000
    table = pd.read_csv(out / "tables" / "summary.csv").set_index("method")
    assert table.loc["plain", "seeds_done"] == 2 and table.loc["plain", "seeds_planned"] == 3
    assert len(pd.read_csv(out / "tables" / "cells.csv")) == 15


def test_report_of_a_run_with_nothing_finished(run: Fabricated, tmp_path: Path) -> None:
    page = read(report.write(run.store, run.folder, tmp_path / "out"))
    assert "No cell of this run has finished" in page.text and "15 not finished" in page.text


def test_reports_of_equal_files_are_equal(tmp_path: Path) -> None:
    kinds = {"plain": KINDS["plain"], "noised_chosen": KINDS["noised_chosen"]}
    run = Fabricated(tmp_path / "results", kinds, seeds=(0, 1), points=4)
    run.finish_all()
    pages = [report.write(run.store, run.folder, tmp_path / name).read_bytes() for name in ("a", "b")]
    assert pages[0] == pages[1]


def test_tables_are_there_in_three_formats(run: Fabricated, tmp_path: Path) -> None:
    run.finish_all()
    report.write(run.store, run.folder, tmp_path / "out")
    for name in ("ranking", "summary", "coverage", "correlation", "costs", "settings"):
        found = {ending: (tmp_path / "out/tables" / f"{name}.{ending}").read_text() for ending in ("csv", "md", "tex")}
        rows = len(pd.read_csv(tmp_path / "out/tables" / f"{name}.csv"))
        assert found["tex"].startswith(r"\begin{tabular}") and found["tex"].isascii()
        assert found["md"].count("\n") >= 3 and (name == "coverage" or found["md"].count("\n") == rows + 2)
    curves = pd.read_csv(tmp_path / "out/tables/curves.csv")
    assert set(curves["axis"]) == {axis.column for axis in report_curves.AXES}


# known answers

STEPS = np.array([0.0, 100.0, 200.0])


def result_of(method: str, curves: list[list[float]], task: str = "t/t", pretraining: float = 0.0) -> Result:
    """A method whose seeds 0, 1, … have these success rates after 0, 100 and 200 steps, in one start state."""
    runs = tuple(
        Run(seed, {axis: STEPS * (1 if axis == "control_steps" else 0.1) for axis in summary.AXES}, np.array([ys]),
            {"gradient_steps": pretraining})
        for seed, ys in enumerate(curves)
    )  # fmt: skip
    seeds = tuple(range(len(curves)))
    return summary._measured(Result(task, method, len(curves), seeds, runs=runs), 200.0)


def task_of(*results: Result) -> TaskResult:
    ordered = sorted(results, key=lambda r: -r.area.value if r.area else 0)
    return TaskResult(results[0].task, 200.0, tuple(ordered))


FAST = [[0.0, 0.8, 0.8], [0.0, 1.0, 1.0], [0.2, 0.8, 1.0]]  # areas 0.6, 0.75, 0.7
SLOW = [[0.0, 0.0, 0.4], [0.0, 0.2, 0.6], [0.0, 0.0, 0.2]]  # areas 0.1, 0.25, 0.05


def test_ranking_by_hand() -> None:
    first, second = rank([task_of(result_of("slow", SLOW), result_of("fast", FAST))]).standings
    assert (first.method, first.done, first.planned) == ("fast", 3, 3)
    assert first.mean and first.mean.value == pytest.approx(2.05 / 3)
    # Student's interval of 0.6, 0.75, 0.7: 0.6833 ± 4.3027 · 0.07638 / √3
    assert (first.mean.low, first.mean.high) == pytest.approx((0.4936, 0.8731), abs=0.01)
    assert second.gap and second.gap.value == pytest.approx(0.55)  # 0.5, 0.5, 0.65: ± 4.3027 · 0.0866 / √3
    assert (second.gap.low, second.gap.high) == pytest.approx((0.3349, 0.7651), abs=0.01)
    assert second.better and second.better.value == 1.0 and second.more_seeds is None


def test_ranking_over_tasks_counts_every_task_alike() -> None:
    results = [result_of("only", FAST, "a/a"), result_of("only", SLOW[:2], "b/b")]
    (standing,) = rank([task_of(r) for r in results]).standings
    assert standing.mean and standing.mean.value == pytest.approx((2.05 / 3 + 0.175) / 2)
    assert standing.middle and standing.middle.value == pytest.approx((0.25 + 0.6 + 0.7) / 3)  # 0.1 and 0.75 cut off


def test_pairs_are_refused_where_seeds_differ_and_a_method_without_a_task_is_not_ranked() -> None:
    tasks = [
        task_of(result_of("fast", FAST, "a/a"), result_of("short", SLOW[:2], "a/a"), result_of("gone", SLOW, "a/a")),
        task_of(result_of("fast", FAST, "b/b"), result_of("short", SLOW, "b/b"), Result("b/b", "gone", 3, ())),
    ]
    ranking = rank(tasks)
    fast, short, gone = ranking.standings
    assert fast.method == "fast" and short.gap is None and short.better and short.better.value == 1
    assert "seeds or start states differ from fast's on a/a" in short.refused
    assert gone.mean is None and "no seed is finished on b/b" in gone.refused and (gone.done, gone.planned) == (3, 6)
    said = verdict(ranking)
    assert "not paired with short" in said and "gone 3/6" in said and "learned fastest" not in said
    assert report_curves.over_tasks(tasks, report_curves.AXES[0])[1] == ["gone"]


def test_time_to_half_by_hand() -> None:
    fast, slow = result_of("fast", FAST), result_of("slow", SLOW)
    assert fast.half_median == 100 and fast.reached == 3 and fast.half_mean and np.isnan(fast.half_mean.low)
    assert np.isinf(slow.half_median) and slow.reached == 1  # the second seed, at 200
    assert slow.half_mean and slow.half_mean.value == 200
    cut = summary._measured(slow, 150.0)  # what is reached after the end that all share is not seen
    assert cut.reached == 0 and np.isinf(cut.half_median) and cut.half_mean is None
    table = report.report_tables.main(task_of(fast, slow, result_of("never", [[0.0, 0.1, 0.2]] * 2)))
    cells = {row[0]: row[-2:] for row in table.rows}
    assert cells["fast"] == ("100 (3/3 seeds)", "100") and cells["slow"][0] == "not reached (1/3 seeds)"
    assert cells["never"] == ("not reached (0/2 seeds)", "not reached")


def test_curves_on_an_axis_with_pretraining() -> None:
    task = task_of(result_of("trained", FAST, pretraining=40.0), result_of("bare", SLOW))
    plain, added = (next(a for a in report_curves.AXES if a.key == key) for key in ("gradient_steps",
                                                                                  "gradient_steps_all"))  # fmt: skip
    assert [c.x[[0, -1]].tolist() for c in report_curves.curves(task, plain)] == [[0, 20], [0, 20]]
    found = {c.method: c for c in report_curves.curves(task, added)}
    assert found["trained"].x.tolist() == [40, 50, 60] and found["bare"].x.tolist() == [0, 10, 20]
    assert found["trained"].mean == pytest.approx([0.2 / 3, 2.6 / 3, 2.8 / 3])
    together, lacking = report_curves.over_tasks([task, task], added)
    shares = {c.method: (c.x[0], c.x[-1]) for c in together}
    assert shares["trained"] == pytest.approx((40 / 60, 1)) and shares["bare"] == pytest.approx((0, 20 / 60))
    assert lacking == []


def test_coverage_predicts_what_it_is_made_to_predict() -> None:
    tasks = []
    for t, easy in (("a/a", 0.0), ("b/b", 0.4)):
        results = []
        for i in range(4):
            level = easy + 0.1 * i
            before = tuple(
                summary.Before(k, Estimate(x, x, x), 0.0, {0: x}) for k, x in ((1, 0.5 - level / 2), (8, level))
            )
            found = result_of(f"m{i}", [[level, level, level + 0.05 * i]] * 2, t)
            results.append(replace(found, before=before))
        tasks.append(task_of(*results))
    found = report_coverage.relations(report_coverage.pairs_of(tasks))
    assert [(r.coverage, r.outcome) for r in found][1] == ("Success@8 before RL", "area under curve")
    assert found[1].every and found[1].every.value == pytest.approx(1.0) and found[1].pairs == 8
    assert found[0].every and found[0].every.value == pytest.approx(-1.0)
    assert found[1].within and found[1].within.value == pytest.approx(1.0)
    assert "goes with the order" in report_coverage.verdict(found)
    few = report_coverage.relations(report_coverage.pairs_of(tasks)[:3])
    assert few[0].every is None and "four pairs" in few[0].refused


# wording


def ranking_of(*gaps: Estimate, fewest: int = 5) -> Ranking:
    names = ("second", "third", "fourth")
    rest = [
        Standing(name, fewest, fewest, fewest, Estimate(0.5, 0.4, 0.6), gap=gap, more_seeds=4 if gap.low <= 0 else None)
        for name, gap in zip(names, gaps, strict=False)
    ]
    first = Standing("first", fewest, fewest, fewest, Estimate(0.9, 0.8, 1.0))
    return Ranking(("t/t",), (), (first, *rest))


def test_verdict_says_no_more_than_the_intervals() -> None:
    clear, open_ = Estimate(0.4, 0.3, 0.5), Estimate(0.1, -0.1, 0.3)
    said = verdict(ranking_of(clear))
    assert said.startswith("first learned fastest: every paired difference") and "too few" not in said
    said = verdict(ranking_of(clear, open_))
    assert "learned fastest" not in said and "separated from second (by +0.40" in said
    assert "not separated from third (+0.10 [−0.10,\u00a0+0.30], about 4 more seeds would decide)" in said
    assert "on these seeds" in verdict(ranking_of(clear, fewest=2)) and "too few" in verdict(
        ranking_of(clear, fewest=2)
    )
    assert "learned fastest" not in verdict(ranking_of(clear, fewest=1))
    assert "With one seed" in verdict(ranking_of(clear, fewest=1))
    assert "Only first can be ranked" in verdict(ranking_of())
    assert "nothing to rank" in verdict(rank([TaskResult("t/t", 0.0, (Result("t/t", "a", 2, ()),))]))


def test_numbers_are_printed_so_that_zero_is_zero() -> None:
    assert spread(Estimate(0.06, 0.003, 0.11), sign=True) == "+0.060 [+0.003,\u00a0+0.110]"
    assert spread(Estimate(0.06, -0.02, 0.11), sign=True) == "+0.06 [−0.02,\u00a0+0.11]"
    assert spread(Estimate(0.5, float("nan"), float("nan"))) == "0.50" and spread(None) == "–"


def test_nothing_missing_is_said_too(run: Fabricated) -> None:
    run.finish_all()
    tasks = summary.summarise(curves := gather(run.store, run.folder))
    blocks = report_origin.missing(curves.cells, tasks, rank(tasks))
    assert "None: all 15 cells finished" in markdown(blocks)


def test_settings_are_compared_with_the_defaults() -> None:
    same = {"rl.discount": 0.99, "coverage.sigmas": [0.0, 0.25, 0.5, 0.75, 1]}  # a tuple in the code
    cells = [
        {"method": "m", "task": t, "seed": 0, "config": {"rl.decisions": n, **same, "m.odd": 1.0}}
        for t, n in (("a/a", 7), ("b/b", 7), ("c/c", 8))
    ]
    rows = {(key, here): where for key, _, here, where in report_origin.changed({"cells": cells})}
    assert rows == {("rl.decisions", "7"): "a/a, b/b", ("rl.decisions", "8"): "c/c", ("m.odd", "1"): "every task"}


def test_studies_in_the_results_folder_are_shown_and_broken_ones_named(run: Fabricated, tmp_path: Path) -> None:
    run.finish_all()
    folder = run.store.root / "study"
    for name in ("good", "bad"):
        (folder / name).mkdir(parents=True)
    findings: dict[str, Any] = {
        "name": "good", "best": {"plain.x": 0.5}, "retest": [
            {"setting": "trial 3", "study": 0.7, "retest": 0.6, "optimism": 0.1, "runs": [["t/t", 1, 0.6]]}],
        "sensitivity": [{"parameter": "plain.x", "best": 0.5, "moved_to": 0.25, "lost": lost, "low": low, "high": high,
                         "pairs": 3} for lost, low, high in ((0.123, 0.1, 0.2), (None, None, None))],
    }  # fmt: skip
    write_json(folder / "good" / "results.json", findings)
    (folder / "bad" / "results.json").write_text("{")
    page = read(report.write(run.store, run.folder, tmp_path / "out"))
    assert "Best in the study: plain.x = 0.5" in page.text and "0.123" in page.text and "0.100 to 0.200" in page.text
    assert "Not readable" in page.text
    assert (tmp_path / "out/figures/study_good_sensitivity.svg").exists()
    assert (tmp_path / "out/tables/study_good_sensitivity.tex").exists()


# the page in a browser

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LOOK = """<script>window.onload = () => {
  const seen = new Set(), page = document.documentElement;
  document.body.style.width = "390px";
  let widest = 0;
  const look = () => {
    for (const svg of document.querySelectorAll("figure svg, figure img")) {
      const box = svg.getBoundingClientRect();
      if (box.width > 150 && box.height > 60) seen.add(svg);
    }
    widest = Math.max(widest, document.querySelector("main").scrollWidth);
  };
  look();
  for (const button of document.querySelectorAll("input[type=radio]")) { button.click(); look(); }
  const all = document.querySelectorAll("figure svg, figure img").length;
  const paper = getComputedStyle(document.body).backgroundColor;
  page.innerHTML = "<body>" + JSON.stringify({seen: seen.size, all, widest, paper}) + "</body>";
}</script></head>"""


@pytest.mark.skipif(BROWSER is None, reason="no chromium here: the page was not looked at in a browser")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_figure_is_visible_in_a_browser_on_a_phone(run: Fabricated, tmp_path: Path, dark: bool) -> None:
    for cell in run.cells[1:]:
        run.finish(cell)
    page = report.write(run.store, run.folder, tmp_path / "out")
    page.write_text(page.read_text().replace("</head>", LOOK, 1))
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=500,900", "--enable-logging=stderr", f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    found = json.loads(re.sub(r"<[^>]*>", "", done.stdout))
    assert found["seen"] == found["all"] > 10 and found["widest"] <= 390
    assert found["paper"] == ("rgb(21, 24, 28)" if dark else "rgb(255, 255, 255)")


def test_page_escapes_what_it_is_given() -> None:
    evil = "<script>alert(1)</script> | &"
    blocks = [Text(evil), Table((evil,), ((evil,),))]
    assert "<script>" not in html(blocks, evil)
    assert "alert(1)</script> \\| &" in markdown(blocks[1:])
    assert r"50~\% \& a\_b $\sigma$" in latex(Table(("50\u00a0% & a_b σ",), ()))


def test_labels_are_kept_apart_and_inside() -> None:
    places = figures.apart([0.5, 0.5, 0.5, 0.99, 1.0], 0.1, 0.05, 0.95)
    assert np.all(np.diff(places) >= 0.1 - 1e-9) and min(places) >= 0.05 and max(places) <= 0.95 + 1e-9


def test_seeds_that_share_no_stretch_of_an_axis_still_have_a_curve() -> None:
    """Pretraining of 100 s and of 40 s, and 50 s of fine-tuning."""
    axis = next(a for a in report_curves.AXES if a.pretraining and a.column == "wall_seconds")
    runs = [
        SimpleNamespace(
            axes={"wall_seconds": np.array([0.0, 25.0, 50.0])}, success=np.array([[0.0, 0.5, end]]),
            pretraining={"wall_seconds": before},
        )
        for before, end in ((100.0, 1.0), (40.0, 0.5))
    ]  # fmt: skip
    curve = report_curves._curve(SimpleNamespace(task="t", method="m", runs=runs), axis)  # type: ignore[arg-type]
    assert curve.x.tolist() == [70.0, 95.0, 120.0] and curve.mean.tolist() == [0.0, 0.5, 0.75]
    assert curve.band is None and len(curve.lines) == 2
