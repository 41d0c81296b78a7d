"""Gathering, numbers and the page, on made-up runs whose answer is known."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fabricate import ATTEMPTS, KINDS, STARTS, Fabricated, Kind

from bench import figures, report, summary
from bench.page import Items, Table, Text, html, markdown
from bench.stages.curves import gather
from bench.store import EPISODES
from bench.summary import Estimate, Result, TaskResult


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
        assert len(result.grid) > run.points and result.grid[-1] == end  # knots of all seeds
        assert np.all(result.band[0] <= result.mean) and np.all(result.mean <= result.band[1])


def test_ranking_follows_the_area(run: Fabricated) -> None:
    run.finish_all()
    (task,) = summary.summarise(gather(run.store, run.folder))
    areas = [r.area.value for r in task.ranked if r.area]
    assert areas == sorted(areas, reverse=True) and len(areas) == len(KINDS)
    assert task.ranked[-1].method == "scratch"
    for method, (gap, seeds) in task.behind.items():
        other = next(r for r in task.results if r.method == method)
        assert other.area and gap.value == pytest.approx(areas[0] - other.area.value) and seeds == 3


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
        self.text, self.open, self.links = "", [], []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [v for k, v in attrs if k in ("src", "srcset", "href") and v]
        if tag not in ("meta", "img", "source"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text())
    assert page.open == []
    return page


def test_report_of_a_mixed_run(run: Fabricated, tmp_path: Path) -> None:
    for cell in run.cells:
        failing = (cell["method"], cell["seed"]) == ("plain", 1)
        run.fail(cell) if failing else run.finish(cell)
    out = tmp_path / "out"
    page = read(report.write(run.store, run.folder, out))
    assert page.links and all(link.startswith("data:image/svg+xml;base64,") for link in page.links)
    for said in ("noised_chosen", "RuntimeError: simulator diverged <at> step 7", "14 of 15 cells finished", "0" * 40):
        assert said in page.text
    assert "python -m bench run --methods all" in page.text and "too few to rely on" in page.text
    text = (out / "report.md").read_text()
    assert "plain 2/3" in text and "RuntimeError" in text
    for name in re.findall(r"\]\((figures/[^)]+)\)", text):
        assert (out / name).stat().st_size > 1000
        assert (out / name).with_suffix(".svg").exists()
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


def test_two_tasks_are_summed_up_across_tasks(tmp_path: Path) -> None:
    kinds = {"good": Kind(0.8, 0.9), "bad": Kind(0.1, 0.2)}
    run = Fabricated(tmp_path / "results", kinds, tasks=("toy/reach", "toy/push"), points=4)
    run.finish_all()
    tasks = summary.summarise(gather(run.store, run.folder))
    assert list(summary.across(tasks)) == ["good", "bad"]
    assert "good learned fastest on these seeds" in report.verdict(tasks[0])


def task_of(*areas: float, gap: Estimate, seeds: tuple[int, ...] = (0, 1, 2, 3, 4)) -> TaskResult:
    names = ("first", "second", "third")
    results = tuple(
        Result("t/t", name, len(seeds), seeds, area=Estimate(a, a - 0.1, a + 0.1))
        for name, a in zip(names, areas, strict=False)
    )
    return TaskResult("t/t", 100.0, results, {r.method: (gap, len(seeds)) for r in results[1:]})


def test_verdict_says_when_methods_are_not_separated() -> None:
    clear = report.verdict(task_of(0.9, 0.5, gap=Estimate(0.4, 0.3, 0.5)))
    assert clear.startswith("first learned fastest (ahead of second by 0.40") and "too few" not in clear
    unclear = report.verdict(task_of(0.6, 0.5, 0.4, gap=Estimate(0.1, -0.1, 0.3)))
    assert "not separated from second and third" in unclear and "includes zero" in unclear
    assert "first impression" in report.verdict(task_of(0.9, 0.5, gap=Estimate(0.4, 0.3, 0.5), seeds=(0, 1)))
    assert "learned fastest" not in report.verdict(task_of(0.9, 0.5, gap=Estimate(0.4, 0.3, 0.5), seeds=(7,)))
    assert "one seed" in report.verdict(task_of(0.9, 0.5, gap=Estimate(0.4, 0.3, 0.5), seeds=(7,)))
    assert "no ranking" in report.verdict(task_of(0.9, gap=Estimate(0, 0, 0)))
    assert "nothing to rank" in report.verdict(TaskResult("t/t", 0.0, (Result("t/t", "a", 2, ()),), {}))


def test_page_escapes_what_it_is_given() -> None:
    evil = "<script>alert(1)</script> | &"
    blocks = [Text(evil), Items((evil,), ("#fff",)), Table((evil,), ((evil,),))]
    assert "<script>" not in html(blocks, evil)
    assert "alert(1)</script> \\| &" in markdown(blocks[2:])


def test_labels_are_kept_apart_and_inside() -> None:
    places = figures._spread([0.5, 0.5, 0.5, 0.99, 1.0], 0.1, 0.05, 0.95)
    assert np.all(np.diff(places) >= 0.1 - 1e-9) and min(places) >= 0.05 and max(places) <= 0.95 + 1e-9
