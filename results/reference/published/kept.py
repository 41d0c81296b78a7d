"""The pretrained policies that a results folder has kept, for the scripts here that measure them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def policies(results: Path, *methods: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Folder and specification of those that these methods pretrained, in the order of their keys."""
    for file in sorted(results.glob("stages/pretrain/*/meta.json")):
        spec = json.loads(file.read_text())["spec"]
        if spec["function"] in [f"methods.{name}" for name in methods]:
            yield file.parent, spec
