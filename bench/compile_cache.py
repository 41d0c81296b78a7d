"""Numba's files of compiled code, read with suspicion: one that cannot be read counts as missing and is written anew.

Numba itself raises what the unpickler raises, at the first call, and again in every process after that.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from numba.core.caching import IndexDataCacheFile


class ForgivingFile(IndexDataCacheFile):
    """Index and data of one function. An unpickler may raise nearly anything on bytes that were cut or overwritten."""

    def _load_index(self) -> Any:
        try:
            return super()._load_index()  # type: ignore[no-untyped-call]
        except Exception:
            return {}

    def _load_data(self, name: str) -> Any:
        try:
            return super()._load_data(name)  # type: ignore[no-untyped-call]
        except Exception as broken:
            raise FileNotFoundError(name) from broken


def mend(functions: Iterable[Any]) -> None:
    """Let those of the functions that Numba caches survive files that cannot be read."""
    for function in functions:
        file = getattr(getattr(function, "_cache", None), "_cache_file", None)
        if isinstance(file, IndexDataCacheFile):
            file.__class__ = ForgivingFile
