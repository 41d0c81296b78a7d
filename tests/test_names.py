"""The harness never spells the name of a registered method, suite or task: the folder is the registry."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench import registry

ROOT = Path(__file__).parent.parent


def spelt(text: str) -> list[str]:
    """Registered names that stand in the text as whole words."""
    names = [*registry.methods(), *registry.suites(), *registry.tasks()]
    return [name for name in names if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)]


@pytest.mark.parametrize("path", sorted((ROOT / "bench").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_registered_name_in_the_harness(path: Path) -> None:
    found = [
        f"{path.name}:{number}: {', '.join(names)}"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if (names := spelt(line))
    ]
    assert not found


def test_names_are_found_as_whole_words() -> None:
    for name in (*registry.methods(), *registry.suites(), *registry.tasks()):
        assert name in spelt(f"a docstring about `{name}`.") and name in spelt(f'if x == "{name}":')
        assert name not in spelt(f"x{name} {name}s _{name}_")
