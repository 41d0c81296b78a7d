"""Runs a plan's stages in worker processes on this machine: dependencies, locks, failures, progress, clean stops.

The parent hands out one stage at a time to each worker and never computes. A worker that is killed fails the stage it
had, and is replaced; a stage that another process holds is waited for; what depends on a failed stage is skipped.

Nothing that a killed worker could hold is shared: the wish to stop is one byte without a lock, and each worker has its
own pipe. Workers ignore Ctrl-C and SIGTERM, which reach the whole process group: the parent tells them.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import multiprocessing as mp
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import filelock

from bench.plan import Plan, Unit, default_jobs, turn
from bench.stages.common import Reporter
from bench.store import Store
from bench.types import InputError, Stopped

Key = tuple[str, str]
REPORT_SECONDS = 0.5  # least time between a worker's progress messages
STOP_SECONDS = 30.0  # how long workers may take to save their state
RETRY_SECONDS = (2.0, 10.0)  # between two tries of a stage that another process holds: at first, at most
SIGNALS = (signal.SIGINT, signal.SIGTERM)


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


@dataclass
class Worker:
    """A worker process and the stage it has."""

    process: Any
    pipe: Connection
    unit: Unit | None = None

    @property
    def key(self) -> Key | None:
        return (self.unit.stage, self.unit.key) if self.unit else None


class Executor:
    """Runs a plan with `jobs` workers."""

    def __init__(self, store: Store, plan: Plan, jobs: int, board: Board) -> None:
        self.store, self.board, self.jobs = store, board, jobs
        self.units = plan.units
        self.threads = default_jobs() // jobs  # that each worker may step environments with
        self.context = mp.get_context("spawn")
        self.stopping = False  # a signal has asked for it
        self.shared: Any = self.context.RawValue("b", 0)  # the same, as the workers see it
        self.deadline = 0.0  # when the workers must have saved
        self.ending = False  # workers are being killed; further signals change nothing
        self.workers: list[Worker] = []
        self.tries: dict[Key, tuple[float, float]] = {}  # stage held elsewhere → (time of the next try, seconds added)
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
            try:
                for _ in range(min(self.jobs, len(waiting))):
                    self._start()
                while self._step():
                    pass
            finally:
                self._close()
        if self.stopping:
            raise Stopped

    def _step(self) -> bool:
        """Hand out work and take in messages; False when all is over."""
        if self.stopping and not self.shared.value:
            self.shared.value = 1
            print("stopping: saving the state; Ctrl-C again ends at once", file=sys.stderr, flush=True)
        if self.stopping and time.monotonic() > self.deadline:
            return False
        self._look()
        for worker in list(self.workers):
            if not self.stopping and worker.unit is None and (unit := self._next()):
                self._give(worker, unit)
        left = {"pending", "elsewhere"} & {s.state for s in self.board.units.values()}
        if not any(w.unit for w in self.workers) and (self.stopping or not left):
            return False
        handles = [h for w in self.workers for h in (w.pipe, w.process.sentinel)]
        for ready in wait(handles, timeout=0.5):
            for worker in [w for w in self.workers if ready in (w.pipe, w.process.sentinel)]:
                self._receive(worker)
        return True

    def _look(self) -> None:
        """What another process finished is done; what waits for a failed stage is skipped."""
        for key, unit in self.units.items():
            state = self.board.units[key].state
            if state == "elsewhere" and self._finished(key):
                self.board.set(key, "done")
            elif state in ("pending", "elsewhere"):
                states = {self.board.units[w].state for w in unit.waits}
                if states & {"failed", "skipped"}:
                    self.board.set(key, "skipped")

    def _finished(self, key: Key) -> bool:
        return self.store.entry(*key).file("meta.json").exists()

    def _next(self) -> Unit | None:
        """A stage whose inputs are done, the first in line, else one held elsewhere whose next try is due."""
        given = {w.key for w in self.workers}
        ready = [
            key for key, unit in self.units.items()
            if key not in given and all(self.board.units[w].state == "done" for w in unit.waits)
        ]  # fmt: skip
        new = [key for key in ready if self.board.units[key].state == "pending"]
        now = time.monotonic()
        due = [key for key in ready if self.board.units[key].state == "elsewhere" and self.tries[key][0] <= now]
        new.sort(key=lambda key: turn(self.units[key]))
        chosen = new or sorted(due, key=lambda key: self.tries[key])
        return self.units[chosen[0]] if chosen else None

    def _give(self, worker: Worker, unit: Unit) -> None:
        try:
            worker.pipe.send(unit)
            worker.unit = unit
        except OSError:  # it died while it had nothing to do
            self._replace(worker)

    def _receive(self, worker: Worker) -> None:
        """One message of a worker, or its death."""
        try:
            if not worker.pipe.poll():
                if worker.process.is_alive():
                    return
                raise EOFError
            kind, *rest = worker.pipe.recv()
        except (EOFError, OSError):
            self._replace(worker)
            return
        assert worker.key is not None
        key, status = worker.key, self.board.units[worker.key]
        if kind == "progress":
            status.share, status.text, status.success = rest
            self.board.changed(key, status)
        elif kind == "locked":
            self.board.set(key, "running")
        else:
            worker.unit = None
            if kind == "busy":
                self._postpone(key)
            else:
                self.board.set(key, {"stopped": "pending"}.get(kind, kind), *rest)

    def _postpone(self, key: Key) -> None:
        """Another process holds the stage: look again later, and later still the next time."""
        first, most = RETRY_SECONDS
        pause = min(most, 1.5 * self.tries[key][1]) if key in self.tries else first
        self.tries[key] = (time.monotonic() + pause, pause)
        if self.board.units[key].state != "elsewhere":
            self.board.set(key, "elsewhere")

    def _replace(self, worker: Worker) -> None:
        """A worker died: fail its stage, which resumes from its checkpoint in the next run, and start another.

        While stopping nothing is failed: whoever ended the parent may have ended the worker too.
        """
        worker.process.join()
        worker.pipe.close()
        self.workers.remove(worker)
        if worker.key is not None and self._finished(worker.key):
            self.board.set(worker.key, "done")
        elif worker.key is not None and self.stopping:
            self.board.set(worker.key, "pending")
        elif worker.key is not None:
            reason = f"worker process died (exit {worker.process.exitcode}); out of memory or killed"
            with suppress(InputError, OSError):
                self.store.entry(*worker.key).fail(reason)
            self.board.set(worker.key, "failed", reason)
        if not self.stopping:
            self._start()

    def _start(self) -> None:
        """One more worker, which never sees the signals meant for this process."""
        mine, theirs = self.context.Pipe()
        process = self.context.Process(
            target=work, args=(theirs, str(self.store.root), self.shared, os.getpid(), self.threads), daemon=True
        )
        resource_tracker.ensure_running()  # here, because its start unblocks the signals
        earlier = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            with single_threaded():
                process.start()
            self.workers.append(Worker(process, mine))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, earlier)
        theirs.close()

    def _close(self) -> None:
        """End the workers: idle ones have nothing to lose, others go on from their checkpoint in the next run."""
        self.ending = True
        for worker in self.workers:
            worker.process.kill()
        for worker in self.workers:
            worker.process.join()

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM ask the workers to save and stop; a second one ends them at once."""

        def handle(number: int, frame: object) -> None:
            if self.stopping and not self.ending:
                self.ending = True
                raise KeyboardInterrupt
            if not self.stopping:
                self.deadline = time.monotonic() + STOP_SECONDS
                self.stopping = True

        earlier = [signal.signal(s, handle) for s in SIGNALS]
        try:
            yield
        finally:
            for s, handler in zip(SIGNALS, earlier, strict=True):
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


def work(pipe: Connection, root: str, stopping: Any, parent: int, threads: int) -> None:
    """A worker: stages come in through the pipe, progress and outcomes go back, until the parent's end."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    import torch

    torch.set_num_threads(1)
    store = Store(Path(root))
    side_by_side = ThreadPoolExecutor(threads) if threads > 1 else None
    sent = [0.0]

    def progress(share: float, text: str, success: float | None) -> None:
        if time.monotonic() - sent[0] > REPORT_SECONDS:
            sent[0] = time.monotonic()
            with suppress(OSError):
                pipe.send(("progress", share, text, success))

    def stop() -> bool:
        return bool(stopping.value) or os.getppid() != parent

    def locked() -> None:
        with suppress(OSError):
            pipe.send(("locked",))

    while True:
        try:
            unit: Unit = pipe.recv()
            release_memory()
            pipe.send(run_unit(store, unit, Reporter(progress, stop, side_by_side), locked))
        except (EOFError, OSError):
            return


def release_memory() -> None:
    """Give freed memory back: compilers and training leave hundreds of MB that the C library keeps for itself."""
    gc.collect()
    with suppress(AttributeError, OSError):  # not every C library can
        ctypes.CDLL(None).malloc_trim(0)


def run_unit(
    store: Store, unit: Unit, reporter: Reporter, locked: Callable[[], None] = lambda: None
) -> tuple[str, ...]:
    """Run one stage under its lock: ("done",), ("busy",), ("stopped",) or ("failed", last line).

    `locked` is called when the lock is held and there is something to do.
    """
    entry = store.entry(unit.stage, unit.key)
    try:
        with entry.lock(seconds=1.0):  # whoever only looks at the status holds it for a moment
            if (entry.folder / "meta.json").exists():
                return ("done",)
            locked()
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
    except (InputError, OSError) as error:  # the lock or the failure itself could not be written
        return ("failed", str(error))
