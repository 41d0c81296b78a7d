"""The page of a run: its files, what it says, what it shows of studies."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fabricate import KINDS, Fabricated

from bench import cli, figures, report, report_curves, report_origin, summary
from bench.page import Table, Text, html, latex, markdown
from bench.report_ranking import rank
from bench.stages.curves import gather
from bench.store import write_json
from bench.types import InputError


@pytest.fixture
def run(tmp_path: Path) -> Fabricated:
    return Fabricated(tmp_path / "results")


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
    page = read(report.write(run.store, [run.folder], out))
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
    page = read(report.write(run.store, [run.folder], tmp_path / "out"))
    assert "No cell of this run has finished" in page.text and "15 not finished" in page.text


def test_reports_of_equal_files_are_equal(tmp_path: Path) -> None:
    kinds = {"plain": KINDS["plain"], "noised_chosen": KINDS["noised_chosen"]}
    run = Fabricated(tmp_path / "results", kinds, seeds=(0, 1), points=4)
    run.finish_all()
    pages = [report.write(run.store, [run.folder], tmp_path / name).read_bytes() for name in ("a", "b")]
    assert pages[0] == pages[1]


def parted(run: Fabricated, *parts: list[dict[str, Any]]) -> list[Path]:
    """Runs of some of its cells each, in the same results folder."""
    folders = []
    for i, cells in enumerate(parts):
        record = json.loads((run.folder / "run.json").read_text()) | {"run": f"part-{i}", "cells": cells}
        folders.append(run.folder.parent / f"part-{i}")
        folders[-1].mkdir()
        write_json(folders[-1] / "run.json", record)
    return folders


def test_several_runs_make_one_report(run: Fabricated, tmp_path: Path) -> None:
    run.finish_all()
    own = [cell for cell in run.cells if cell["method"] == "noised"]
    for cell in run.cells:
        cell["config"]["rl.temperature"] = 0.03 if cell in own else 0.1
    both = parted(run, [c for c in run.cells if c not in own], [*own, run.cells[0]])
    page = read(report.write(run.store, both, tmp_path / "two")).text
    report.write(run.store, [run.folder], tmp_path / "one")
    for name in ("summary", "differences", "ranking"):
        found = [pd.read_csv(tmp_path / n / f"tables/{name}.csv") for n in ("one", "two")]
        keys = [c for c in ("task", "method", "minus") if c in found[0]]
        pd.testing.assert_frame_equal(*(f.sort_values(keys, ignore_index=True) for f in found))
    assert "Runs part-0,part-1, profile smoke, 15 of 15 cells" in page and "--run part-0,part-1" in page
    assert page.count("bench run --methods all") == 2 and "every task (noised)" in page
    assert page.count("git checkout") == 1


def test_seeds_that_came_later_join_though_other_settings_of_the_pictures(
    run: Fabricated, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor does a run of before an option was there differ in it."""
    run.finish_all()
    later = [c for c in run.cells if c["seed"] == 2]
    for cell in later:
        cell["config"] |= {"video.seeds": 0, "rl.newer": 1}
    for cell in run.cells:
        cell["config"].setdefault("video.seeds", 1)
    first, second = parted(run, [c for c in run.cells if c not in later], later)
    record = json.loads((second / "run.json").read_text())
    write_json(second / "run.json", record | {"versions": {"python": "3.12.0"}})
    assert cli.main(["report", "--results", str(run.store.root), "--run", "part-0, part-1,"]) == 0
    page = run.store.root / "reports/part-0+part-1/index.html"
    assert capsys.readouterr().out == f"report: {page}\n" and "15 of 15 cells finished" in (text := read(page).text)
    assert all(f"Versions of {folder.name}" in text for folder in (first, second))


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("rl.decisions", "part-0 and part-1 differ in rl.decisions of plain on toy/reach;"),
        ("evaluation.states", "differ in evaluation.states of toy/reach;"),
        ("starts", "differ in start states of toy/reach;"),
        ("demos", "differ in demonstrations of toy/reach;"),
        ("finetune", "differ in results of plain on toy/reach, seed 2;"),
    ],
)
def test_runs_that_contradict_each_other_make_no_report(run: Fabricated, tmp_path: Path, where: str, said: str) -> None:
    run.finish_all()
    for cell in run.cells:
        cell["config"]["evaluation.states"] = 4
    cells = json.loads(json.dumps([c for c in run.cells if c["method"] == "plain"]))
    cells[2]["config" if "." in where else "stages"][where] = "another"
    with pytest.raises(InputError, match=said):
        report.write(run.store, parted(run, run.cells, cells), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tables_are_there_in_three_formats(run: Fabricated, tmp_path: Path) -> None:
    run.finish_all()
    report.write(run.store, [run.folder], tmp_path / "out")
    for name in ("ranking", "summary", "coverage", "correlation", "costs", "settings"):
        found = {ending: (tmp_path / "out/tables" / f"{name}.{ending}").read_text() for ending in ("csv", "md", "tex")}
        rows = len(pd.read_csv(tmp_path / "out/tables" / f"{name}.csv"))
        assert found["tex"].startswith(r"\begin{tabular}") and found["tex"].isascii()
        assert found["md"].count("\n") >= 3 and (name == "coverage" or found["md"].count("\n") == rows + 2)
    curves = pd.read_csv(tmp_path / "out/tables/curves.csv")
    assert set(curves["axis"]) == {axis.column for axis in report_curves.AXES}


@pytest.mark.parametrize("unknown", [("noised",), tuple(KINDS)])
def test_an_axis_on_which_costs_are_unknown_says_so_or_is_left_out(
    run: Fabricated, tmp_path: Path, unknown: tuple[str, ...]
) -> None:
    """Fine-tuning of before the control steps that chose σ were recorded."""
    run.finish_all()
    for cell in run.cells:
        if cell["method"] in unknown:
            path = run.entry(cell, "finetune").file("meta.json")
            meta = json.loads(path.read_text())
            del meta["selection_control_steps"]
            path.write_text(json.dumps(meta))
    text = read(report.write(run.store, [run.folder], tmp_path / "out")).text
    assert ("Without noised: what came before is not known" in text) == (unknown == ("noised",))
    assert ("success against control steps with the choice of σ" in text) == (unknown == ("noised",))
    assert "success against control steps." in text


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
    cells.append({"method": "o", "task": "c/c", "seed": 0, "config": {"rl.decisions": 20_000, **same}})
    rows = {(key, here): where for key, _, here, where in report_origin.changed({"cells": cells})}
    assert rows == {("rl.decisions", "7"): "a/a, b/b", ("rl.decisions", "8"): "c/c (m)", ("m.odd", "1"): "every task"}


def test_studies_in_the_results_folder_are_shown_and_broken_ones_named(run: Fabricated, tmp_path: Path) -> None:
    run.finish_all()
    folder = run.store.root / "study"
    for name in ("good", "bad", "old"):
        (folder / name).mkdir(parents=True)
    gap = {"value": -0.2, "low": -0.3, "high": -0.1, "pairs": 3, "planned": 3}
    best = {"setting": "trial 3", "values": {"plain.x": 0.5}, "study": 0.7, "retest": 0.6, "optimism": 0.1,
            "runs": [["t/t", i, 0.6] for i in range(3)], "planned": 3, "against_default": gap}  # fmt: skip
    findings: dict[str, Any] = {
        "name": "good", "best": {"plain.x": 0.5}, "verdict": ["x", "re-test", "worse than the default"],
        "retest": [best, best | {"setting": "default", "runs": [], "retest": None, "against_default": None}],
        "sensitivity": [{"parameter": "plain.x", "best": 0.5, "moved_to": 0.25, "lost": lost, "low": low, "high": high,
                         "pairs": pairs, "planned": 3}
                        for lost, low, high, pairs in ((0.123, 0.1, 0.2, 3), (None, None, None, 1))],
    }  # fmt: skip
    write_json(folder / "good" / "results.json", findings)
    (folder / "bad" / "results.json").write_text("{")
    old = {"name": "old", "best": None, "retest": [{"setting": "default"}], "sensitivity": []}
    write_json(folder / "old" / "results.json", old)
    for ending, content in (("svg", b"<svg></svg>"), ("png", b"PNG")):
        (folder / "good" / f"history.{ending}").write_bytes(content)
    page = read(report.write(run.store, [run.folder], tmp_path / "out"))
    assert "Best in the study: plain.x=0.5." in page.text and "+0.123 [+0.100,\u00a0+0.200]" in page.text
    assert "−0.200 [−0.300,\u00a0−0.100]" in page.text and "Worse than the default." in page.text
    assert "refused: 1 of 3 pairs" in page.text and "0 of 3" in page.text
    assert page.text.count("Not readable") == 2 and "not what this version writes" in page.text
    text = (tmp_path / "out/report.md").read_text()
    assert "(figures/study_good_history.png)" in text and (tmp_path / "out/figures/study_good_history.svg").exists()
    assert all((tmp_path / "out" / name).exists() for name in re.findall(r"\]\((figures/[^)]+)\)", text))
    assert (tmp_path / "out/figures/study_good_sensitivity.svg").exists()
    assert (tmp_path / "out/tables/study_good_sensitivity.tex").exists()


def test_page_escapes_what_it_is_given() -> None:
    evil = "<script>alert(1)</script> | &"
    blocks = [Text(evil), Table((evil,), ((evil,),))]
    assert "<script>" not in html(blocks, evil)
    assert "alert(1)</script> \\| &" in markdown(blocks[1:])
    assert r"50~\% \& a\_b $\sigma$" in latex(Table(("50\u00a0% & a_b σ",), ()))


def test_labels_are_kept_apart_and_inside() -> None:
    places = figures.apart([0.5, 0.5, 0.5, 0.99, 1.0], 0.1, 0.05, 0.95)
    assert np.all(np.diff(places) >= 0.1 - 1e-9) and min(places) >= 0.05 and max(places) <= 0.95 + 1e-9
