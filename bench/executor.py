"""Runs a plan's stages in worker processes on this machine: dependencies, locks, failures, progress, clean stops.

The parent hands out one stage at a time to each worker and never computes. A worker that is killed fails the stage it
had, and is replaced; a stage that another process holds is waited for; what depends on a failed stage is skipped.
"""

from __future__ import annotations

import importlib
import multiprocessing as mp
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import filelock

from bench.plan import Plan, Unit
from bench.stages.common import Reporter
from bench.store import Store
from bench.types import InputError, Stopped

Key = tuple[str, str]
REPORT_SECONDS = 0.5  # least time between a worker's progress messages
STOP_SECONDS = 90.0  # how long workers may take to save their state


@dataclass
class Status:
    """What is known of one stage."""

    state: str = "pending"  # pending, running, elsewhere, done, failed, skipped
    share: float = 0.0
    text: str = ""
    success: float | None = None
    started: float = 0.0
    error: str = ""  # last line of the traceback


@dataclass
class Board:
    """What the screen shows and what the exit code says; `changed` is called after every change."""

    plan: Plan
    units: dict[Key, Status] = field(default_factory=dict)
    changed: Callable[[Key, Status], None] = lambda key, status: None

    def set(self, key: Key, state: str, error: str = "") -> None:
        status = self.units[key]
        status.state, status.error, status.started = state, error, time.monotonic()
        status.share = 1.0 if state == "done" else 0.0
        self.changed(key, status)

    @property
    def failures(self) -> dict[Key, Status]:
        return {k: s for k, s in self.units.items() if s.state == "failed"}


@dataclass
class Worker:
    """A worker process and the stage it has."""

    process: Any
    pipe: Connection
    unit: Unit | None = None


class Executor:
    """Runs a plan with `jobs` workers."""

    def __init__(self, store: Store, plan: Plan, jobs: int, board: Board) -> None:
        self.store, self.board, self.jobs = store, board, jobs
        self.units = plan.units
        self.context = mp.get_context("spawn")
        self.stopping = self.context.Event()
        self.workers: list[Worker] = []
        self.looked = 0.0  # when stages held elsewhere were last looked at
        for key, unit in self.units.items():
            entry = store.entry(*key)
            done = entry.status() == "done"
            if done:
                entry.verify()
            board.units[key] = Status("done" if done else "pending", float(done), unit.stage)

    def run(self) -> None:
        """Until nothing is left to do. Raises Stopped if it was interrupted, with all states saved."""
        waiting = [u for k, u in self.units.items() if self.board.units[k].state != "done"]
        if not waiting:
            return
        with self._interruptible():
            self.workers = [self._start() for _ in range(min(self.jobs, len(waiting)))]
            try:
                while self._step():
                    pass
            finally:
                self._close()
        if self.stopping.is_set():
            raise Stopped

    def _step(self) -> bool:
        """Hand out work and take in messages; False when all is over."""
        self._skip_blocked()
        if not self.stopping.is_set():
            for worker in self.workers:
                if worker.unit is None and (unit := self._next()):
                    self._give(worker, unit)
        busy = [w for w in self.workers if w.unit is not None]
        states = [s.state for s in self.board.units.values()]
        if not busy and (self.stopping.is_set() or not {"pending", "elsewhere"} & set(states)):
            return False
        handles = [h for w in self.workers for h in (w.pipe, w.process.sentinel)]
        for ready in wait(handles, timeout=0.5):
            for worker in [w for w in self.workers if ready in (w.pipe, w.process.sentinel)]:
                self._receive(worker)
        return True

    def _next(self) -> Unit | None:
        """The first stage in the plan's order whose inputs are done; stages held elsewhere are tried now and then."""
        states = {"pending"}
        if time.monotonic() - self.looked > 2.0:
            states.add("elsewhere")
            self.looked = time.monotonic()
        for key, unit in self.units.items():
            if self.board.units[key].state in states and all(self.board.units[w].state == "done" for w in unit.waits):
                return unit
        return None

    def _skip_blocked(self) -> None:
        for key, unit in self.units.items():
            if self.board.units[key].state in ("pending", "elsewhere"):
                states = [self.board.units[w].state for w in unit.waits]
                if "failed" in states or "skipped" in states:
                    self.board.set(key, "skipped")

    def _give(self, worker: Worker, unit: Unit) -> None:
        worker.unit = unit
        self.board.set((unit.stage, unit.key), "running")
        worker.pipe.send(unit)

    def _receive(self, worker: Worker) -> None:
        """One message of a worker, or its death."""
        try:
            if not worker.pipe.poll():
                if worker.process.is_alive():
                    return
                raise EOFError
            kind, *rest = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            self._replace(worker)
            return
        assert worker.unit is not None
        key = (worker.unit.stage, worker.unit.key)
        status = self.board.units[key]
        if kind == "progress":
            status.share, status.text, status.success = rest
            self.board.changed(key, status)
            return
        worker.unit = None
        self.board.set(key, {"busy": "elsewhere", "stopped": "pending"}.get(kind, kind), *rest)

    def _replace(self, worker: Worker) -> None:
        """A worker died: fail its stage, which resumes from its checkpoint in the next run, and start another."""
        worker.process.join()
        self.workers.remove(worker)
        if worker.unit is not None:
            key = (worker.unit.stage, worker.unit.key)
            reason = f"worker process died (exit {worker.process.exitcode}); out of memory or killed"
            self.store.entry(*key).fail(reason)
            self.board.set(key, "failed", reason)
        if not self.stopping.is_set():
            self.workers.append(self._start())

    def _start(self) -> Worker:
        mine, theirs = self.context.Pipe()
        process = self.context.Process(
            target=work, args=(theirs, str(self.store.root), self.stopping, os.getpid()), daemon=True
        )
        with single_threaded():
            process.start()
        theirs.close()
        return Worker(process, mine)

    def _close(self) -> None:
        for worker in self.workers:
            with suppress(OSError):
                worker.pipe.send(None)
        limit = time.monotonic() + (STOP_SECONDS if self.stopping.is_set() else 10.0)
        for worker in self.workers:
            worker.process.join(max(0.1, limit - time.monotonic()))
            if worker.process.is_alive():
                worker.process.terminate()
                worker.process.join()

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM ask the workers to save and stop; a second one ends them at once."""

        def handle(number: int, frame: object) -> None:
            if self.stopping.is_set():
                raise KeyboardInterrupt
            self.stopping.set()

        signals = (signal.SIGINT, signal.SIGTERM)
        earlier = [signal.signal(s, handle) for s in signals]
        try:
            yield
        finally:
            for s, handler in zip(signals, earlier, strict=True):
                signal.signal(s, handler)


@contextmanager
def single_threaded() -> Iterator[None]:
    """Children started inside get one thread each for linear algebra: the cores belong to the workers."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    earlier = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in earlier.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def work(pipe: Connection, root: str, stopping: Any, parent: int) -> None:
    """A worker: stages come in through the pipe, progress and outcomes go back, until None or the parent's end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    import torch

    torch.set_num_threads(1)
    store = Store(Path(root))
    sent = [0.0]

    def progress(share: float, text: str, success: float | None) -> None:
        if time.monotonic() - sent[0] > REPORT_SECONDS:
            sent[0] = time.monotonic()
            with suppress(OSError):
                pipe.send(("progress", share, text, success))

    def stop() -> bool:
        return stopping.is_set() or os.getppid() != parent

    while True:
        try:
            unit: Unit | None = pipe.recv()
        except (EOFError, OSError):
            return
        if unit is None:
            return
        outcome = run_unit(store, unit, Reporter(progress, stop))
        try:
            pipe.send(outcome)
        except OSError:
            return


def run_unit(store: Store, unit: Unit, reporter: Reporter) -> tuple[str, ...]:
    """Run one stage under its lock: ("done",), ("busy",), ("stopped",) or ("failed", last line)."""
    entry = store.entry(unit.stage, unit.key)
    try:
        with entry.lock(seconds=1.0):  # whoever only looks at the status holds it for a moment
            if (entry.folder / "meta.json").exists():
                return ("done",)
            try:
                importlib.import_module(f"bench.stages.{unit.stage}").run(store, entry, unit, reporter)
            except Stopped:
                return ("stopped",)
            except Exception as error:
                text = traceback.format_exc()
                entry.fail(str(error) if isinstance(error, InputError) else text)
                return ("failed", (str(error) if isinstance(error, InputError) else text).strip().splitlines()[-1])
            return ("done",)
    except filelock.Timeout:
        return ("busy",)
    except InputError as error:  # the failure itself could not be written
        return ("failed", str(error))
