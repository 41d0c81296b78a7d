"""Links and pictures of the README and the docs lead somewhere, anchors to a heading."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINK = re.compile(r'\]\(([^)\s]+)\)|src="([^"]+)"')
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def anchors(page: Path) -> set[str]:
    """What links to a Markdown page's headings are called: lower case, no punctuation, dashes for spaces."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in HEADING.findall(page.read_text())}


def missing(page: Path) -> list[str]:
    """Relative links of a Markdown page that name no file, or no heading of a Markdown page."""
    found = (a or b for a, b in LINK.findall(page.read_text()))
    return [link for link in found if "://" not in link and not leads_somewhere(page, link)]


def leads_somewhere(page: Path, link: str) -> bool:
    name, _, anchor = link.partition("#")
    file = page.parent / name if name else page
    return file.exists() and (not anchor or anchor in anchors(file))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert missing(page) == []


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    dead = ["gone.md", "page.md#apart", "#gone", "gone.png"]
    page.write_text(
        "# A part\n[a](gone.md) [b](https://example.org) [c](page.md#a-part) [d](page.md#apart) [e](#a-part) "
        '[f](#gone) <img src="gone.png" width="1%">'
    )
    assert missing(page) == dead
