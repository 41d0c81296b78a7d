"""What a run shows: a live table of cells on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.table import Table

from bench.executor import Board, Key, Status
from bench.plan import Cell

PLAIN_SECONDS = 30.0  # between progress lines where there is no terminal
BAR = 12  # characters


def duration(seconds: float) -> str:
    """`1:05` or `2:03:04`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def current(cell: Cell, board: Board) -> tuple[Key, Status]:
    """The stage a cell is at: the first that is not done, or its last."""
    keys = [(u.stage, u.key) for u in cell.units]
    for key in keys:
        if board.units[key].state == "failed":
            return key, board.units[key]
    key = next((k for k in keys if board.units[k].state != "done"), keys[-1])
    return key, board.units[key]


def eta(status: Status) -> float | None:
    """Seconds left of a running stage, from the time it has taken so far."""
    if status.state != "running" or status.share < 0.02:
        return None
    return (time.monotonic() - status.started) * (1 - status.share) / status.share


def describe(cell: Cell, board: Board) -> tuple[str, str, str, str]:
    """Stage, progress, success and ETA of a cell."""
    key, status = current(cell, board)
    text = {
        "done": "done", "pending": "waits", "elsewhere": "another process has it", "skipped": "skipped",
        "failed": f"failed: {status.error}",
    }.get(status.state, status.text)  # fmt: skip
    bar = "█" * round(status.share * BAR) + "·" * (BAR - round(status.share * BAR))
    progress = f"{bar} {text}" if status.state == "running" else text
    success = "" if status.success is None else f"{status.success:.2f}"
    left = eta(status)
    return key[0], progress, success, "" if left is None else duration(left)


def render(board: Board, begun: float) -> Table:
    """The live table."""
    states = [s.state for s in board.units.values()]
    title = f"{states.count('done')} of {len(states)} stages done, {duration(time.monotonic() - begun)}"
    table = Table(title=title, expand=True, show_edge=False)
    for name in ("task", "method", "seed", "stage", "progress", "success", "left"):
        table.add_column(name, no_wrap=True, ratio=3 if name == "progress" else None)
    for cell in board.plan.cells:
        stage, progress, success, left = describe(cell, board)
        colour = {"failed": "red", "skipped": "red", "done": "green"}.get(current(cell, board)[1].state, "")
        row = (cell.task, cell.method, str(cell.seed), stage, progress, success, left)
        table.add_row(*row, style=colour or None)
    return table


class _LiveTable:
    """Renders itself anew at every refresh."""

    def __init__(self, board: Board) -> None:
        self.board, self.begun = board, time.monotonic()

    def __rich__(self) -> Table:
        return render(self.board, self.begun)


@contextmanager
def screen(board: Board) -> Iterator[None]:
    """Show the board while the block runs."""
    console = Console()
    if console.is_terminal:
        with Live(_LiveTable(board), console=console, refresh_per_second=2, vertical_overflow="visible"):
            yield
    else:
        board.changed = _plain(board)
        yield


def _plain(board: Board):  # type: ignore[no-untyped-def]
    begun = time.monotonic()
    said: dict[Key, tuple[str, float]] = {}
    owners: dict[Key, str] = {}
    for cell in board.plan.cells:
        for unit in cell.units:
            owners.setdefault((unit.stage, unit.key), cell.name)
    for unit in board.plan.videos:
        owners[unit.stage, unit.key] = owners[unit.waits[0]]

    def changed(key: Key, status: Status) -> None:
        now = time.monotonic()
        state, last = said.get(key, ("", 0.0))
        if status.state == state and (status.state != "running" or now - last < PLAIN_SECONDS):
            return
        said[key] = (status.state, now)
        done = sum(s.state == "done" for s in board.units.values())
        text = status.error or (status.text if status.state == state == "running" else "")
        success = "" if status.success is None or not text else f", success {status.success:.2f}"
        left = eta(status) if text else None
        rest = "" if left is None else f", {duration(left)} left"
        share = f" {status.share:.0%}" if status.state == "running" and status.share else ""
        line = f"[{duration(now - begun)} {done}/{len(board.units)}] {key[0]} {status.state}{share}: {owners[key]}"
        print(line + (f" ({text}{success}{rest})" if text else ""), flush=True)

    return changed
