"""Links and pictures of the README and the docs lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINK = re.compile(r'\]\(([^)\s]+)\)|src="([^"]+)"')


def missing(page: Path) -> list[str]:
    """Relative links of a Markdown page that name no file."""
    found = [a or b for a, b in LINK.findall(page.read_text())]
    local = [link.partition("#")[0] for link in found if "://" not in link]
    return [link for link in local if link and not (page.parent / link).exists()]


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name)
def test_links_lead_to_files(page: Path) -> None:
    assert missing(page) == []


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text('[a](gone.md) [b](https://example.org) [c](page.md#part) <img src="gone.png" width="1%">')
    assert missing(page) == ["gone.md", "gone.png"]
