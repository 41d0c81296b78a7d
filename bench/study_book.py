"""A study's book: its storage, whose trial is whose, what is still to do. Several processes may write in one book.

Optuna's file lock outlives a killed process; ours, as everywhere in the harness, dies with it. A trial says which
process has it (host, process id, time of its start), so that one whose process is gone is failed and tried again. RDB
storages have heartbeats too, for trials of other machines.
"""

from __future__ import annotations

import logging
import os
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
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

HEARTBEAT_SECONDS = 30
GRACE_SECONDS = 180  # without a heartbeat, a trial in an RDB storage counts as dead
UNCLAIMED_SECONDS = 60.0  # a running trial that nobody has put a name to for so long counts as dead
ATTEMPTS = 3  # of a trial whose process died; after that it counts as failed
LOCK_SECONDS = 60.0
RAN = (TrialState.COMPLETE, TrialState.PRUNED)
ACTIVE = (*RAN, TrialState.RUNNING)


class DyingLock:
    """The lock of a journal file; it ends with its process."""

    def __init__(self, path: Path) -> None:
        self.lock = filelock.FileLock(path, timeout=LOCK_SECONDS)

    def acquire(self) -> bool:
        self.lock.acquire()
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
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def gone(attrs: dict[str, Any]) -> bool:
    """Whether the process of a trial ran on this machine and does no more."""
    if attrs.get("host") != socket.gethostname():
        return False
    try:
        return bool(abs(psutil.Process(int(attrs["pid"])).create_time() - float(attrs["started"])) > 1.0)
    except psutil.NoSuchProcess:
        return True


def check_storage(text: str | None) -> None:
    """Raises InputError for what is neither the URL of a database nor a place for a journal file."""
    path = Path(text or "")
    if text is not None and "://" not in text and (path.suffix != ".log" or not path.parent.is_dir()):
        raise InputError(f"--storage {text!r}: give a database URL (sqlite:///file.db) or a journal file (file.log)")


def open_storage(text: str | None, folder: Path, lost: Callable[[Study, FrozenTrial], None]) -> Any:
    """The journal in the study's folder, another journal file, or a database by its URL; `lost` takes stale trials.

    Raises InputError for a storage that cannot be opened.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if text is not None and "://" in text:
        return _database(text, lost)
    path = folder / "journal.log" if text is None else Path(text)
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    lock: Any = DyingLock(path.with_name(f".{path.name}.lock"))
    try:
        mend(path, lock)
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    except OSError as error:
        raise InputError(f"--storage {path}: cannot open ({error.strerror})") from None
    except (ValueError, KeyError) as error:
        raise InputError(f"--storage {path}: not a journal of Optuna ({error})") from None


def mend(path: Path, lock: DyingLock) -> None:
    """Cut off the half line that a process killed while writing leaves, which would spoil all that follows."""
    if not path.exists():
        return
    lock.acquire()
    try:
        content = path.read_bytes()
        if content and not content.endswith(b"\n"):
            with path.open("r+b") as handle:
                handle.truncate(content.rfind(b"\n") + 1)
    finally:
        lock.release()


def _database(url: str, lost: Callable[[Study, FrozenTrial], None]) -> Any:
    logging.getLogger("alembic").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return optuna.storages.RDBStorage(
                url, heartbeat_interval=HEARTBEAT_SECONDS, grace_period=GRACE_SECONDS,
                heartbeat_stale_trial_callback=lost,
            )  # fmt: skip
    except Exception as error:  # SQLAlchemy's, or that of whatever driver the URL names
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"--storage {url}: cannot open ({reason})") from None


class Book:
    """The study in its storage."""

    def __init__(self, spec: Spec, folder: Path, storage: str | None) -> None:
        self.spec, self.folder = spec, folder
        beside = Path(storage) if storage is not None and "://" not in storage else None
        self.lock_file = beside.with_name(f".{spec.name}.lock") if beside else folder / ".lock"
        self.beaten = 0.0  # time of the latest heartbeat
        with self._lock():
            store = open_storage(storage, folder, self._lost)
            self.storage = store
            try:
                self.study = self._open(store)
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

    def next(self) -> tuple[Trial, Values] | None:
        """A new trial of this process with its setting, or None if as many as wanted were begun."""
        with self._lock():
            self._reclaim()
            while spent(self.trials()) < self.spec.trials:
                trial = self.study.ask()
                for name, value in owner().items():
                    trial.set_user_attr(name, value)
                values = suggest(trial, self.spec.space, self.spec.base)
                if not self._repeated(trial, values):
                    return trial, values
            return None

    def _repeated(self, trial: Trial, values: Values) -> bool:
        """Set a trial aside whose setting another one has; as often as there are trials, then it is let through.

        Optuna takes no notice of failed trials, so that one is what it becomes.
        """
        trials = self.trials()
        same = [t.number for t in trials if t.state in ACTIVE and t.number != trial.number
                and values_of(t.params) == values]  # fmt: skip
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

    def _reclaim(self) -> None:
        """Fail the trials whose process is gone, and queue their settings again."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(self.study)
        for trial in self.trials():
            if trial.state == TrialState.RUNNING and (_unclaimed(trial) or gone(trial.user_attrs)):
                self._retry(trial, trial.user_attrs.get("attempt", 1) + 1)

    def abandon(self, trial: Trial) -> None:
        """Give back a trial that was interrupted: another process, or this command again, goes on with it."""
        with self._lock():
            frozen = next(t for t in self.trials() if t.number == trial.number)
            if frozen.state == TrialState.RUNNING:
                self._retry(frozen, frozen.user_attrs.get("attempt", 1))

    def _retry(self, trial: FrozenTrial, attempt: int) -> None:
        self._queue(trial, attempt)
        self.tell(trial.number, state=TrialState.FAIL)

    def tell(self, number: int, **outcome: Any) -> None:
        """Finish a trial, unless another process has taken it for dead and done so."""
        with suppress(optuna.exceptions.UpdateFinishedTrialError, ValueError):
            self.study.tell(number, **outcome)

    def _queue(self, trial: FrozenTrial, attempt: int) -> None:
        if attempt <= ATTEMPTS and trial.number not in retried(self.trials()):
            params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
            self.study.enqueue_trial(params, user_attrs={"retry_of": trial.number, "attempt": attempt})

    def _lost(self, study: Study, trial: FrozenTrial) -> None:
        """Optuna has failed a trial whose heartbeat stopped."""
        self._queue(trial, trial.user_attrs.get("attempt", 1) + 1)

    def beat(self, trials: Sequence[Trial]) -> None:
        """Heartbeats of this process's trials, where the storage takes them."""
        if hasattr(self.storage, "record_heartbeat") and time.monotonic() - self.beaten > HEARTBEAT_SECONDS / 2:
            self.beaten = time.monotonic()
            for trial in trials:
                self.storage.record_heartbeat(trial._trial_id)


def _unclaimed(trial: FrozenTrial) -> bool:
    """Begun a while ago by a process that was killed before it put its name down."""
    begun = trial.datetime_start
    return "pid" not in trial.user_attrs and begun is not None and time.time() - begun.timestamp() > UNCLAIMED_SECONDS


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
