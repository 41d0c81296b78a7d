"""The harness never names a registered method, suite or task in its code: the folder is the registry."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from bench import registry

ROOT = Path(__file__).parent.parent


def spelt(code: str) -> set[str]:
    """Registered names that are a string, a name, an attribute or an imported module of the code."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        for field in ("value", "id", "attr", "name", "module"):
            text = getattr(node, field, None)
            found |= {text, *text.split(".")} if isinstance(text, str) else set()
    return found & {*registry.methods(), *registry.suites(), *registry.tasks()}


@pytest.mark.parametrize("path", sorted((ROOT / "bench").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_registered_name_in_the_harness(path: Path) -> None:
    assert not spelt(path.read_text())


def test_names_are_found_in_code_and_not_in_prose() -> None:
    for name in (*registry.methods(), *registry.suites()):
        assert spelt(f"if x == {name!r}: pass") == {name}
        assert spelt(f"from methods.{name} import Config") == {name} == spelt(f"import envs.{name}")
        assert not spelt(f'"""A sentence about {name}."""\nx{name} = 1')
