"""What a run asks of its machine: samples kept in `system.json` beside the run, and from there in MLflow.

They go into a file first, like all that is mirrored, so that a tracking server that is away costs none of them.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import filelock
import psutil

from bench.store import write_json
from bench.tracking_client import CURVE_POINTS, Point
from bench.types import InputError

FILE = "system.json"
FIRST_SECONDS = 10.0  # between samples at the beginning
GROWTH = 0.05  # later: this share of the time so far, so that 200 samples reach over 15 days
MEGABYTE = 2**20


class Sampler:
    """Takes samples while a run or study works; of several processes at one, the first that came. Never raises."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self.lock = filelock.FileLock(folder / ".system.lock", timeout=0)
        self.rows: list[dict[str, float]] = []
        self.begun = self.taken = 0.0  # when this process's part began, and the latest sample, on the monotonic clock
        self.earlier = 0.0  # seconds of work before this process's part

    def look(self, last: bool = False) -> None:
        """Take a sample if one is due; the `last` one of a process is due at once."""
        with suppress(OSError, ValueError, psutil.Error, filelock.Timeout, InputError):
            if not self.lock.is_locked:
                self._begin()
            passed = self.earlier + time.monotonic() - self.begun
            since = time.monotonic() - self.taken
            wait = 1.0 if last else max(FIRST_SECONDS, GROWTH * passed)
            if since >= wait and len(self.rows) < CURVE_POINTS:
                self.rows.append({"seconds": round(passed, 1), "time": round(time.time(), 1), **sample(self.path)})
                self.taken = time.monotonic()
                write_json(self.path, self.rows)  # type: ignore[arg-type]

    def _begin(self) -> None:
        self.lock.acquire()
        self.rows = stored(self.path.parent)
        self.earlier = self.rows[-1]["seconds"] if self.rows else 0.0
        self.begun = self.taken = time.monotonic()
        psutil.cpu_percent()  # from now on it is the mean since its last call

    def close(self) -> None:
        """A last sample, and another process may go on."""
        self.look(last=True)
        self.lock.release()


def sample(path: Path) -> dict[str, float]:
    """CPU in percent since the last sample, all cores together; memory of the machine and of this run in MB; disk."""
    memory, disk = psutil.virtual_memory(), psutil.disk_usage(str(path.parent))
    return {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": round(memory.used / MEGABYTE, 1),
        "system_memory_usage_percentage": memory.percent,
        "run_memory_megabytes": round(_own_memory() / MEGABYTE, 1),
        "disk_available_megabytes": round(disk.free / MEGABYTE, 1),
    }


def _own_memory() -> int:
    """Resident bytes of this process and its workers; pages they share count for each."""
    own, total = psutil.Process(), 0
    for process in (own, *own.children(recursive=True)):
        with suppress(psutil.Error):  # it may have ended by now
            total += process.memory_info().rss
    return total


def stored(folder: Path) -> list[dict[str, Any]]:
    """The samples of a run or study so far."""
    with suppress(OSError, ValueError):
        return list(json.loads((folder / FILE).read_text()))
    return []


def points(folder: Path) -> list[Point]:
    """The samples as metrics, named as MLflow's own are so that it shows them as such; the step is seconds of work."""
    return [
        (f"system/{name}", float(value), int(1000 * row["time"]), round(row["seconds"]))
        for row in stored(folder)
        for name, value in row.items()
        if name not in ("seconds", "time")
    ]
