"""The page of a run in a browser: offline, without errors, every figure to be seen, on a phone and in the dark."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import Browser, find
from fabricate import KINDS, Fabricated

from bench import report

pytestmark = pytest.mark.skipif(find() is None, reason="no chromium here: the page was not looked at in a browser")

PHONE, DESK = 390, 1280
FIGURES = """(() => {
  const all = [...document.querySelectorAll("figure svg, figure img")], seen = new Set();
  const look = () => all.forEach(f => {
    const box = f.getBoundingClientRect();
    const drawn = f.tagName == "IMG" ? f.naturalWidth : f.querySelectorAll("path").length;
    if (box.width > 150 && box.height > 60 && drawn > 0) seen.add(f);
  });
  look();
  document.querySelectorAll("input[type=radio]").forEach(button => { button.click(); look(); });
  return {all: all.length, seen: seen.size};
})()"""
# What sticks out to the right of the window, unless it can be scrolled by itself
WIDE = """(() => {
  const inside = e => e && (getComputedStyle(e).overflowX == "auto" || inside(e.parentElement));
  const out = [...document.querySelectorAll("main *")].filter(e =>
    !e.closest("svg") && e.getBoundingClientRect().right > innerWidth + 1 && !inside(e.parentElement));
  return {page: document.documentElement.scrollWidth, out: out.map(e => e.outerHTML.slice(0, 200))};
})()"""
# Contrast of what is written in the page and in its figures with the page's paper: WCAG 2's ratio, 21 at most
CONTRAST = """(() => {
  const light = c => { const [r, g, b] = c.match(/\\d+/g).map(v => (v /= 255) <= .04045 ? v / 12.92
    : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const ratio = c => { const a = [light(c), paper].sort((x, y) => y - x); return (a[0] + .05) / (a[1] + .05); };
  const words = [...document.querySelectorAll("h1, h2, p:not(.loud), td, figcaption")]
    .map(e => getComputedStyle(e).color);
  const drawn = [...document.querySelectorAll("figure svg g[id*='text_'] > g")].map(e => getComputedStyle(e).fill);
  return {paper: getComputedStyle(document.body).backgroundColor, words: Math.min(...words.map(ratio)),
          drawn: Math.min(...drawn.map(ratio)), count: drawn.length};
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks, a failed cell, one that has not begun, and a learned noise level."""
    root = tmp_path_factory.mktemp("run")
    kinds = {name: KINDS[name] for name in ("plain", "noised", "noised_chosen", "scratch")}
    run = Fabricated(root / "results", kinds, tasks=("toy/reach", "toy/push"), points=6)
    run.fail(run.cells[0])
    for cell in run.cells[2:]:
        run.finish(cell)
    return report.write(run.store, [run.folder], root / "out")


def test_it_loads_offline_and_logs_nothing(browser: Browser, page: Path) -> None:
    browser.open(page, DESK)
    assert browser.problems() == []
    assert browser.requests() == [page.as_uri()]


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_every_figure_can_be_seen_and_nothing_sticks_out(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width)
    found: dict[str, Any] = browser.ask(FIGURES)
    assert found["seen"] == found["all"] > 20
    wide = browser.ask(WIDE)
    assert wide["out"] == [] and wide["page"] <= width


@pytest.mark.parametrize(("dark", "paper"), [(False, "rgb(255, 255, 255)"), (True, "rgb(21, 24, 28)")])
def test_words_can_be_read_on_light_and_on_dark_paper(browser: Browser, page: Path, dark: bool, paper: str) -> None:
    browser.open(page, DESK, dark=dark)
    found = browser.ask(CONTRAST)
    assert found["paper"] == paper and found["count"] > 100
    assert found["words"] > 4.5 and found["drawn"] > 4.5  # WCAG 2.2 AA


def test_a_broken_page_would_be_seen(browser: Browser, page: Path, tmp_path: Path) -> None:
    """The tests above with something for each to find."""
    text = page.read_text()
    broken = re.sub(r"(?s)<svg.*?</svg>", '<img src="https://example.org/a.png">', text, count=1)
    broken = broken.replace("<main>", '<main><p style="width: 2000px">wide</p><p style="color: #777">grey</p>', 1)
    broken = broken.replace("</body>", "<script>undefined_name()</script></body>")
    (tmp_path / "broken.html").write_text(broken)
    browser.open(tmp_path / "broken.html", PHONE, dark=True)
    assert "undefined_name" in " ".join(browser.problems()) and len(browser.requests()) == 2
    found = browser.ask(FIGURES)
    assert found["seen"] == found["all"] - 1
    assert len(browser.ask(WIDE)["out"]) == 1
    assert browser.ask(CONTRAST)["words"] < 4.5
