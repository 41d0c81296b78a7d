"""Runs the trials of a study with the executor's workers: J trials side by side, each instance by instance.

A trial is one setting. Its instances (task, seed) run in a fixed order, so that the pruner can compare it with the best
trial instance by instance and stop it early; its learning curves are never compared, since a slow start is what an
exploring method looks like. A failed cell or a value that is no number fails the trial, and the study goes on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from bench.executor import Board, Executor, Key, Status
from bench.plan import Cell, Plan
from bench.screen import PLAIN_SECONDS, duration
from bench.store import Store
from bench.study_book import GRACE_SECONDS, Book, counted, pretrainings, ranked
from bench.study_space import Values, label
from bench.study_spec import SELECTION, entry_of, key_of, measure
from bench.types import InputError, Stopped

LOOK_SECONDS = 1.0  # between two looks into the book for something to do
TAKEN = "was taken for dead by another process, which tries its setting again"


@dataclass
class Running:
    """A trial at work in this process."""

    trial: Trial
    values: Values
    step: int = 0  # number of the instance at work
    cell: Cell | None = None
    scores: list[float] = field(default_factory=list)


@dataclass
class View:
    """What the screen shows of a study."""

    title: str
    running: list[Running] = field(default_factory=list)
    summary: str = ""
    say: Callable[[str], None] = lambda line: None
    progress: Callable[[Running, Status], None] = lambda running, status: None


class Trials(Executor):
    """The executor, fed by the book instead of a finished plan."""

    def __init__(self, store: Store, book: Book, jobs: int, view: View) -> None:
        self.book, self.view, self.spec = book, view, book.spec
        plan = Plan(self.spec.request, ())
        super().__init__(store, plan, jobs, Board(plan, changed=self._changed))
        self.running: list[Running] = view.running
        self.begun, self.looked, self.measured = time.monotonic(), -LOOK_SECONDS, 0
        self.waiting: list[str] = []  # trials of other processes, as said last

    def run(self) -> None:
        """Until as many trials as wanted are finished, here and elsewhere. Raises Stopped if it was interrupted."""
        self.book.revive()
        self.summarise()
        if not self.book.open_trials():
            return
        with self._interruptible():
            try:
                for _ in range(self.jobs):
                    self._start()
                while self._step() or self._others():
                    pass
            finally:
                self._close()
                for running in self.running:
                    self.book.abandon(running.trial)
        self.summarise()
        if self.stopping:
            raise Stopped

    def _others(self) -> bool:
        """Whether other processes still have trials; one that dies leaves its own to this process."""
        if self.stopping or not self.book.open_trials():
            return False
        found = self.book.elsewhere()
        if set(found) - set(self.waiting):
            rule = f"without a sign of life for {duration(GRACE_SECONDS)} it counts as dead"
            self.view.say(f"waiting for {', '.join(found)}; {rule}")
        self.waiting = found
        time.sleep(0.2)
        return True

    def _look(self) -> None:
        """Before work is handed out: see what became of the trials, and begin new ones."""
        super()._look()
        self.book.beat()
        for running in list(self.running):
            self._advance(running)
        while not self.stopping and len(self.running) < self.jobs and time.monotonic() > self.looked + LOOK_SECONDS:
            new = self.book.next()
            if new is None:
                self.looked = time.monotonic()
                return
            self._begin(*new)

    def _begin(self, trial: Trial, values: Values) -> None:
        running = Running(trial, values)
        self.running.append(running)
        again = trial.user_attrs.get("retry_of")
        self.view.say(f"trial {trial.number}: {label(values)}" + ("" if again is None else f" (again, was {again})"))
        self._instance(running)
        self._advance(running)

    def _instance(self, running: Running) -> None:
        """Put the stages of the trial's next cell up for work."""
        try:
            cell = self.spec.cell(running.values, self.spec.instances[running.step])
        except (InputError, ValueError) as error:  # the configuration does not take it
            self._fail(running, str(error), final=True)
            return
        running.cell = cell
        keys = {"finetune": key_of(cell, "finetune"), "pretrain": key_of(cell, "pretrain")}
        try:
            running.trial.set_user_attr(f"instance {running.step}", keys)
        except UpdateFinishedTrialError:
            self.running.remove(running)
            self.view.say(f"trial {running.trial.number} {TAKEN}")
            return
        for unit in cell.units:
            key = (unit.stage, unit.key)
            if key not in self.units:
                self.units[key] = unit
                self.board.units[key] = self._status(key)

    def _status(self, key: Key) -> Status:
        """Where a stage stands before this process has touched it."""
        entry = self.store.entry(*key)
        if entry.status() != "done":
            return Status("pending", 0.0, key[0])
        try:
            entry.verify()
        except InputError as error:
            return Status("failed", error=str(error))
        return Status("done", 1.0, key[0])

    def _advance(self, running: Running) -> None:
        """Go on with a trial as far as finished cells allow."""
        while running in self.running and running.cell is not None:
            states = [self.board.units[u.stage, u.key] for u in running.cell.units]
            failed = next((s for s in states if s.state == "failed"), None)
            if failed is not None:
                self._fail(running, failed.error)
            elif states[-1].state != "done":
                return
            else:
                self._measured(running, measure(entry_of(self.store, running.cell), running.cell, SELECTION))

    def _measured(self, running: Running, score: float) -> None:
        """One more instance of a trial has its value: on to the next, or to the trial's end."""
        if not math.isfinite(score):
            self._fail(running, f"no success curve on the selection states (instance {running.step})", final=True)
            return
        with suppress(UpdateFinishedTrialError):
            running.trial.report(score, running.step)
        running.scores.append(score)
        running.step += 1
        self.measured += 1
        self._tell_instance(running, score)
        if running.step == len(self.spec.instances):
            mean = sum(running.scores) / len(running.scores)
            self._end(running, f"complete, {mean:.3f}", values=mean)
        elif running.trial.should_prune():
            self._end(running, f"pruned after {running.step} instances", state=TrialState.PRUNED)
        else:
            self._instance(running)

    def _fail(self, running: Running, reason: str, final: bool = False) -> None:
        """`final`: it would fail again, so the next command does not try it once more."""
        with suppress(UpdateFinishedTrialError):
            running.trial.set_user_attr("error", reason[:1000])
            if final:
                running.trial.set_user_attr("final", True)
        self._end(running, f"failed: {reason}", state=TrialState.FAIL)

    def _end(self, running: Running, text: str, **outcome: Any) -> None:
        self.running.remove(running)
        told = self.book.tell(running.trial.number, **outcome)
        self.summarise()
        self.view.say(f"trial {running.trial.number} {text if told else TAKEN}")

    # What is shown

    def _changed(self, key: Key, status: Status) -> None:
        for running in self.running:
            if running.cell and key in [(u.stage, u.key) for u in running.cell.units]:
                self.view.progress(running, status)

    def _tell_instance(self, running: Running, score: float) -> None:
        (task, seed), number = self.spec.instances[running.step - 1], running.trial.number
        where = f"trial {number}, instance {running.step} of {len(self.spec.instances)}"
        mean = sum(running.scores) / running.step
        self.summarise()
        self.view.say(f"{where}: {score:.3f} ({task}, seed {seed}), mean {mean:.3f}; {self.view.summary}")

    def summarise(self) -> None:
        """The line with the best value, what is done, and the time left."""
        trials = self.book.trials()
        best = ranked(trials)
        done = finished(trials)
        parts = [f"best {best[0].value:.3f} (trial {best[0].number})"] if best else []
        parts += [f"{len(done)} of {self.spec.trials} trials done"]
        for state, word in ((TrialState.PRUNED, "pruned"), (TrialState.FAIL, "failed")):
            parts += [f"{sum(t.state == state for t in done)} {word}"]
        again, uses = pretrainings(trials)
        parts += [f"{again} of {uses} pretrainings shared"]
        left = self.eta(len(done))
        self.view.summary = ", ".join(parts) + ("" if left is None else f", {duration(left)} left")

    def eta(self, done: int) -> float | None:
        """Seconds left if nothing more is pruned, from the pace of this process so far; None if that is not known."""
        if not self.measured or done >= self.spec.trials:
            return None
        count = len(self.spec.instances)
        left = (self.spec.trials - done) * count - sum(r.step for r in self.running)
        return max(0, left) * (time.monotonic() - self.begun) / self.measured


def finished(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Trials that came to an end of their own."""
    return [t for t in counted(trials) if t.state.is_finished()]


@contextmanager
def screen(view: View):  # type: ignore[no-untyped-def]
    """Show a study while the block runs: a live table on a terminal, plain lines elsewhere."""
    from rich.console import Console
    from rich.live import Live

    console, begun = Console(), time.monotonic()
    if not console.is_terminal:
        view.say = lambda line: print(f"[{duration(time.monotonic() - begun)}] {line}", flush=True)
        view.progress = _plain(view, begun)
        yield
        return
    with Live(get_renderable=lambda: render(view, begun), console=console, refresh_per_second=2) as live:
        view.say = lambda line: live.console.print(f"[{duration(time.monotonic() - begun)}] {line}", markup=False)
        yield


def _plain(view: View, begun: float) -> Callable[[Running, Status], None]:
    said = [begun]

    def progress(running: Running, status: Status) -> None:
        if status.state == "running" and status.text and time.monotonic() - said[0] > PLAIN_SECONDS:
            said[0] = time.monotonic()
            view.say(f"trial {running.trial.number}, instance {running.step + 1}: {status.text}; {view.summary}")

    return progress


def render(view: View, begun: float) -> Any:
    """The live table: one row per running trial."""
    from rich.table import Table

    title = f"{view.title}: {view.summary}, {duration(time.monotonic() - begun)}"
    table = Table(title=title, expand=True, show_edge=False)
    for name in ("trial", "setting", "instance", "mean"):
        table.add_column(name, no_wrap=name != "setting", ratio=3 if name == "setting" else None)
    for r in list(view.running):
        mean = f"{sum(r.scores) / len(r.scores):.3f}" if r.scores else ""
        table.add_row(str(r.trial.number), label(r.values), str(r.step + 1), mean)
    return table
