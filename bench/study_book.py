"""A study's book: its storage, whose trial is whose, what is still to do. Several processes may write in one book.

Optuna's file lock outlives a killed process; ours, as everywhere in the harness, dies with it. A trial says which
process has it (machine, process id, time of its start), so that one whose process is gone is failed and tried again.
Whether a process of another machine still lives is told by its heartbeat in the storage. Optuna's own heartbeats know
databases only, and no trial whose process was killed before the first one.
"""

from __future__ import annotations

import logging
import os
import socket
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock
import optuna
import psutil
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from bench import seeding
from bench.study_space import Values, default, params_of, suggest, values_of
from bench.study_spec import Spec, compare
from bench.types import InputError

HEARTBEAT_SECONDS = 30.0
GRACE_SECONDS = 180.0  # a process whose heartbeat was not seen to change for so long counts as dead
UNCLAIMED_SECONDS = 10.0  # and so does that of a trial which was seen for so long without an owner
ATTEMPTS = 3  # of a trial whose process died; after that it counts as failed
LOCK_SECONDS = 60.0
RAN = (TrialState.COMPLETE, TrialState.PRUNED)


class DyingLock:
    """The lock of a journal file; it ends with its process.

    A process killed while writing leaves half a line, which would spoil all that follows: the next one cuts it off.
    """

    def __init__(self, path: Path, journal: Path) -> None:
        self.lock, self.journal = filelock.FileLock(path, timeout=LOCK_SECONDS), journal

    def acquire(self) -> bool:
        self.lock.acquire()
        try:
            cut_half_line(self.journal)
        except BaseException:
            self.lock.release()
            raise
        return True

    def release(self) -> None:
        self.lock.release()


class NumberedSampler(BaseSampler):
    """TPE whose draws depend on (study seed, trial's number): a study that goes on never repeats its random points.

    Groups of parameters that occur together are modelled together, which conditional spaces need. After a setting that
    had been tried before, the next one is uniform: where choices are few, TPE stays on the best one.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.inner: BaseSampler = RandomSampler()

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        seed = seeding.child(self.seed, "sampler", trial.number) % 2**32
        last = study.get_trials(deepcopy=False)[trial.number - 1] if trial.number else None
        if last is not None and "repeats" in last.user_attrs:
            self.inner = RandomSampler(seed)
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.inner = TPESampler(multivariate=True, group=True, constant_liar=True, seed=seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.inner.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self.inner.sample_relative(study, trial, search_space)

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: Any) -> Any:
        return self.inner.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self.inner.after_trial(study, trial, state, values)


def owner() -> dict[str, Any]:
    """What tells this process from every other."""
    return {"host": machine(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def machine() -> str:
    """What process ids belong to: the host, and within it the container."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # only Linux has such
        return socket.gethostname()


def gone(mark: Mapping[str, Any]) -> bool:
    """Whether the process with this owner's mark ran on this machine and does no more."""
    if mark["host"] != machine():
        return False
    try:
        process = psutil.Process(int(mark["pid"]))
        ended = process.status() == psutil.STATUS_ZOMBIE  # killed, and its parent has not asked for it yet
        return ended or bool(abs(process.create_time() - float(mark["started"])) > 1.0)
    except psutil.NoSuchProcess:
        return True


def pulse(mark: Mapping[str, Any]) -> str:
    """Name of the study's attribute that holds the latest heartbeat of an owner."""
    return f"beat {mark['host']} {mark['pid']} {mark['started']}"


def check_storage(text: str | None) -> None:
    """Raises InputError for what is neither the URL of a database nor a place for a journal file."""
    path = Path(text or "")
    if text is not None and "://" not in text and path.suffix == ".log" and not path.parent.is_dir():
        raise InputError(f"--storage {text!r}: there is no folder {path.parent}")
    if text is not None and "://" not in text and path.suffix != ".log":
        raise InputError(f"--storage {text!r}: give a database URL (sqlite:///file.db) or a journal file (file.log)")


def open_storage(text: str | None, folder: Path) -> Any:
    """The journal in the study's folder, another journal file, or a database by its URL.

    Raises InputError for a storage that cannot be opened.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if text is not None and "://" in text:
        return _database(text)
    path = folder / "journal.log" if text is None else Path(text)
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    lock: Any = DyingLock(path.with_name(f".{path.name}.lock"), path)
    try:
        lock.acquire()
        lock.release()
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    except OSError as error:
        raise InputError(f"--storage {path}: cannot open ({error.strerror})") from None
    except (ValueError, KeyError) as error:
        raise InputError(f"--storage {path}: not a journal of Optuna ({error})") from None


def cut_half_line(path: Path) -> None:
    """Cut a file that does not end with its last line's end there."""
    with suppress(FileNotFoundError), path.open("r+b") as handle:
        if not handle.seek(0, os.SEEK_END):
            return
        handle.seek(-1, os.SEEK_END)
        if handle.read(1) != b"\n":
            handle.seek(0)
            handle.truncate(handle.read().rfind(b"\n") + 1)


def _database(url: str) -> Any:
    logging.getLogger("alembic").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return optuna.storages.RDBStorage(url)
    except Exception as error:  # SQLAlchemy's, or that of whatever driver the URL names
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"--storage {url}: cannot open ({reason})") from None


class Book:
    """The study in its storage."""

    def __init__(self, spec: Spec, folder: Path, storage: str | None) -> None:
        self.spec, self.folder = spec, folder
        beside = Path(storage) if storage is not None and "://" not in storage else None
        self.lock_file = beside.with_name(f".{spec.name}.lock") if beside else folder / ".lock"
        self.owner = owner()
        self.beaten = -HEARTBEAT_SECONDS  # time of this process's latest heartbeat
        self.seen: dict[int, tuple[Any, float]] = {}  # running trial → its owner's latest heartbeat, since when
        with self._lock():
            try:
                self.study = self._open(open_storage(storage, folder))
            except (ValueError, KeyError) as error:
                raise InputError(f"--storage {storage or folder}: not readable ({error})") from None

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """One process at a time decides what is next."""
        try:
            with filelock.FileLock(self.lock_file, timeout=LOCK_SECONDS):
                yield
        except filelock.Timeout:
            raise InputError(f"{self.lock_file}: held by another process for over a minute; end that one") from None

    def _open(self, storage: Any) -> Study:
        """The study of that name, begun if it is new; one that asks for something else is refused."""
        study = optuna.create_study(
            storage=storage, study_name=self.spec.name, direction="maximize", load_if_exists=True,
            sampler=NumberedSampler(self.spec.seed), pruner=self._pruner(),
        )  # fmt: skip
        stored = study.user_attrs.get("identity")
        if stored is not None:
            compare(self.spec.identity(), stored, self.spec.name)
            return study
        first = default(self.spec.space, self.spec.base)
        for values in self.spec.grid or (() if first is None else (first,)):
            study.enqueue_trial(params_of(values, self.spec.space), skip_if_exists=True)
        if first is None and not self.spec.grid:  # no point of the space: a trial without parameters
            study.enqueue_trial({}, user_attrs={"default": True}, skip_if_exists=True)
        study.set_user_attr("begun", time.time())
        study.set_user_attr("identity", self.spec.identity())
        return study

    def _pruner(self) -> optuna.pruners.BasePruner:
        """Over instances, never over the learning curve; a grid is measured in full."""
        if self.spec.grid:
            return optuna.pruners.NopPruner()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.pruners.WilcoxonPruner()

    def trials(self) -> list[FrozenTrial]:
        """Every trial so far."""
        return self.study.get_trials(deepcopy=False)

    def _stored(self, number: int) -> FrozenTrial:
        return next(t for t in self.trials() if t.number == number)

    def next(self) -> tuple[Trial, Values] | None:
        """A new trial of this process with its setting, or None if as many as wanted were begun."""
        self.beat()
        with self._lock():
            self._reclaim()
            while spent(self.trials()) < self.spec.trials:
                trial = self.study.ask()
                trial.set_user_attr("owner", self.owner)  # at once: a half-written one would be nobody's
                if "default" in trial.user_attrs:
                    return trial, {}
                values = suggest(trial, self.spec.space, self.spec.base)
                if not self._repeated(trial, values):
                    return trial, values
            return None

    def _repeated(self, trial: Trial, values: Values) -> bool:
        """Set a trial aside whose setting another one has; as often as there are trials, then it is let through.

        Optuna takes no notice of failed trials, so that one is what it becomes.
        """
        trials = self.trials()
        same = [t.number for t in counted(trials) if t.number != trial.number and values_of(t.params) == values]
        if not same or sum("repeats" in t.user_attrs for t in trials) >= self.spec.trials:
            return False
        trial.set_user_attr("repeats", same[0])
        self.tell(trial.number, state=TrialState.FAIL)
        return True

    def open_trials(self) -> int:
        """Trials that are still to be finished by some process."""
        trials = self.trials()
        running = sum(t.state == TrialState.RUNNING for t in trials)
        return running + max(0, self.spec.trials - spent(trials))

    def elsewhere(self) -> list[str]:
        """The trials that other processes have, each with its process."""
        found = []
        for trial in self.trials():
            mark = trial.user_attrs.get("owner")
            if trial.state == TrialState.RUNNING and mark != self.owner:
                who = f"process {mark['pid']} on {mark['host'].split()[0]}" if mark else "a process without a name"
                found.append(f"trial {trial.number} of {who}")
        return found

    def _reclaim(self) -> None:
        """Fail the trials whose process is dead, and queue their settings again."""
        beats = self.study.user_attrs
        for trial in self.trials():
            if trial.state == TrialState.RUNNING and self._dead(trial, beats):
                self._retry(trial, trial.user_attrs.get("attempt", 1) + 1)

    def _dead(self, trial: FrozenTrial, beats: Mapping[str, Any]) -> bool:
        """Whether a running trial's process is gone, or gave no sign of life while this one was looking.

        How old a heartbeat is by the clock says nothing: machines' clocks differ.
        """
        mark = trial.user_attrs.get("owner")
        if mark == self.owner:
            return False
        beat, now = beats.get(pulse(mark)) if mark else None, time.monotonic()
        if trial.number not in self.seen or self.seen[trial.number][0] != beat:
            self.seen[trial.number] = beat, now
        silent = now - self.seen[trial.number][1]
        return (gone(mark) or silent > GRACE_SECONDS) if mark else silent > UNCLAIMED_SECONDS

    def revive(self) -> None:
        """Queue the failed trials again that need not fail again, as whoever repeats the command may have mended why.

        Not while other processes are at work: this one has then come to help.
        """
        with self._lock():
            self._reclaim()
            trials = self.trials()
            if any(t.state == TrialState.RUNNING for t in trials):
                return
            for trial in counted(trials):
                if trial.state == TrialState.FAIL and "final" not in trial.user_attrs:
                    self._queue(trial, 1)

    def abandon(self, trial: Trial) -> None:
        """Give back a trial that was interrupted: another process, or this command again, goes on with it."""
        with self._lock():
            frozen = self._stored(trial.number)
            if frozen.state == TrialState.RUNNING:
                self._retry(frozen, frozen.user_attrs.get("attempt", 1))

    def _retry(self, trial: FrozenTrial, attempt: int) -> None:
        if attempt <= ATTEMPTS:
            self._queue(trial, attempt)
        self.tell(trial.number, state=TrialState.FAIL)

    def tell(self, number: int, **outcome: Any) -> bool:
        """Finish a trial; False if another process has taken it for dead and done so."""
        if self._stored(number).state.is_finished():
            return False
        with suppress(optuna.exceptions.UpdateFinishedTrialError):  # in this very moment
            self.study.tell(number, skip_if_finished=True, **outcome)
        return True

    def _queue(self, trial: FrozenTrial, attempt: int) -> None:
        if trial.number in retried(self.trials()):
            return
        params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        kept = {"default": True} if "default" in trial.user_attrs else {}
        self.study.enqueue_trial(params, user_attrs={**kept, "retry_of": trial.number, "attempt": attempt})

    def beat(self) -> None:
        """A sign of life of this process, for those on other machines."""
        if time.monotonic() - self.beaten >= HEARTBEAT_SECONDS:
            self.beaten = time.monotonic()
            self.study.set_user_attr(pulse(self.owner), time.time())


def retried(trials: Sequence[FrozenTrial]) -> set[int]:
    """Numbers of the trials that were queued again."""
    return {t.user_attrs["retry_of"] for t in trials if "retry_of" in t.user_attrs}


def counted(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Trials that were begun and count: neither to be tried again nor set aside as repeats."""
    again = retried(trials)
    return [
        t for t in trials
        if t.state != TrialState.WAITING and t.number not in again and "repeats" not in t.user_attrs
    ]  # fmt: skip


def spent(trials: Sequence[FrozenTrial]) -> int:
    """Trials that count against the budget."""
    return len(counted(trials))


def ranked(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Complete trials, the best first; of equal settings the first one."""
    best = sorted((t for t in trials if t.state == TrialState.COMPLETE), key=lambda t: (-(t.value or 0.0), t.number))
    seen: list[Values] = []
    kept = []
    for trial in best:
        values = values_of(trial.params)
        if values not in seen:
            seen.append(values)
            kept.append(trial)
    return kept


def mean_of(trial: FrozenTrial) -> float:
    """Mean over the instances a trial has measured, pruned or not; NaN without any."""
    values = list(trial.intermediate_values.values())
    return sum(values) / len(values) if values else float("nan")


def pretrainings(trials: Sequence[FrozenTrial]) -> tuple[int, int]:
    """(pretrained policies used again, uses): uses are instances of trials, each with its pretraining's key."""
    keys = [
        value["pretrain"]
        for t in counted(trials)
        for name, value in t.user_attrs.items() if name.startswith("instance ")
    ]  # fmt: skip
    return len(keys) - len(set(keys)), len(keys)
