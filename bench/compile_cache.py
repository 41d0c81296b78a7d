"""Numba's files of compiled code, read with suspicion: one that cannot be read counts as missing and is written anew.

Numba itself raises what the unpickler raises, at the first call, and again in every process after that.
"""

from __future__ import annotations

import os
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


def mend(functions: Iterable[Any], parts: Iterable[str] = ()) -> None:
    """Let those of the functions that Numba caches survive files that cannot be read.

    Numba looks at a function's own file alone to see whether its code is stale: `parts` are further files of it.
    """
    stamps = tuple((stat.st_mtime_ns, stat.st_size) for stat in map(os.stat, parts))
    for function in functions:
        file = getattr(getattr(function, "_cache", None), "_cache_file", None)
        if isinstance(file, IndexDataCacheFile):
            file.__class__ = ForgivingFile
            file._source_stamp = (file._source_stamp, stamps) if stamps else file._source_stamp
