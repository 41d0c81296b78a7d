"""Whose trial is whose: several processes at one study, and what becomes of trials whose process or cells failed."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from optuna.trial import TrialState
from studies import ROOT, SEARCH, by_start, made, spec_of

from bench import study_book
from bench.study_book import Book
from bench.study_spec import Spec
from bench.types import Stopped


def test_a_dead_trial_is_failed_and_tried_again(tmp_path: Path) -> None:
    """A process asks for a trial and is killed; one that lives keeps its own."""
    code = (
        "import os, sys; sys.path.insert(0, 'tests')\n"
        "from pathlib import Path; import studies as t\n"
        f"spec = t.spec_of(*t.SEARCH, '--trials', '3', '--name', 'x')\n"
        f"book = t.Book(spec, Path({str(tmp_path)!r}), None)\n"
        "print([book.next()[1] for _ in range(2)][1], flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    spec = spec_of(*SEARCH, "--trials", "3", "--name", "x")
    book = Book(spec, tmp_path, None)
    assert [t.state for t in book.trials()] == [TrialState.RUNNING] * 2
    first, second = book.next(), book.next()
    assert first and second and first[1] == {"csp.schedule": "constant", "csp.start": None}
    assert str(second[1]) == done.stdout.strip()
    third = book.next()
    assert third and not book.next(), "three trials, the two dead ones not counted"
    states = [t.state for t in book.trials()]
    assert states == [TrialState.FAIL] * 2 + [TrialState.RUNNING] * 3
    assert study_book.retried(book.trials()) == {0, 1} and study_book.spent(book.trials()) == 3
    assert not study_book.gone(study_book.owner()) and study_book.gone(study_book.owner() | {"started": 5.0})
    assert not study_book.gone({"host": "elsewhere", "pid": 1, "started": 5.0})


def test_a_killed_process_is_gone_before_its_parent_has_noticed() -> None:
    process = subprocess.Popen(["sleep", "60"])
    mark = study_book.owner() | {"pid": process.pid, "started": psutil.Process(process.pid).create_time()}
    assert not study_book.gone(mark)
    process.kill()
    limit = time.monotonic() + 10
    while not study_book.gone(mark) and time.monotonic() < limit:
        time.sleep(0.01)
    assert study_book.gone(mark) and process.wait() == -9


def book_of(spec: Spec, folder: Path, **mark: Any) -> Book:
    """The book as another process has it open: one that is gone, unless the mark says something else."""
    book = Book(spec, folder, None)
    book.owner = book.owner | {"started": 5.0} | mark
    return book


@pytest.mark.parametrize("writes", range(4))
def test_a_process_killed_between_two_writes_leaves_its_trial(
    writes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However far it came in saying whose the trial is."""
    spec, real, count = spec_of(*SEARCH, "--trials", "1"), optuna.trial.Trial.set_user_attr, itertools.count()

    def killed(trial: optuna.trial.Trial, name: str, value: Any) -> None:
        if next(count) >= writes:
            raise KeyboardInterrupt
        real(trial, name, value)

    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(optuna.trial.Trial, "set_user_attr", killed)
        book_of(spec, tmp_path).next()
    book, limit = Book(spec, tmp_path, None), time.monotonic() + 10
    if writes == 0:
        assert not book.next(), "a trial just begun is not taken from whoever is about to put a name to it"
        monkeypatch.setattr(study_book, "UNCLAIMED_SECONDS", 0.05)
    while not (found := book.next()) and time.monotonic() < limit:
        time.sleep(0.01)
    assert found and found[1] == {"csp.schedule": "constant", "csp.start": None}
    assert [t.state for t in book.trials()] == [TrialState.FAIL, TrialState.RUNNING]


def test_a_trial_that_always_dies_is_given_up(tmp_path: Path) -> None:
    spec, count = spec_of(*SEARCH, "--trials", "1"), 0
    while book_of(spec, tmp_path, started=float(count)).next():
        count += 1
    book = Book(spec, tmp_path, None)
    assert count == study_book.ATTEMPTS and {t.state for t in book.trials()} == {TrialState.FAIL}
    assert not book.open_trials()
    book.revive()
    assert book.next(), "whoever gives the command again may have mended it"


def test_a_process_of_another_machine_is_dead_without_heartbeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(*SEARCH, "--trials", "1")
    monkeypatch.setattr(study_book, "HEARTBEAT_SECONDS", 0.0)
    far, book = book_of(spec, tmp_path, host="elsewhere pid:[1]"), Book(spec, tmp_path, None)
    assert far.next() and not book.next()
    monkeypatch.setattr(study_book, "GRACE_SECONDS", 0.3)
    for _ in range(4):
        time.sleep(0.2)
        far.beat()
        assert not book.next(), "it lives"
    time.sleep(0.4)
    assert book.next() and [t.state for t in book.trials()] == [TrialState.FAIL, TrialState.RUNNING]
    assert not far.tell(0, values=0.5), "whoever was taken for dead is told so"
    assert book.trials()[0].state == TrialState.FAIL


def test_a_study_says_whom_it_waits_for_and_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, lines = spec_of(*SEARCH, "--trials", "2", "--seeds", "1"), []
    folder = tmp_path / "study" / spec.name
    folder.mkdir(parents=True)
    assert book_of(spec, folder, host="elsewhere pid:[1]", pid=4711).next()
    monkeypatch.setattr(study_book, "GRACE_SECONDS", 2.0)
    signal.alarm(60)  # ends the tests where this one would wait for ever
    try:
        book, _ = made(spec, tmp_path, by_start, lines)
    finally:
        signal.alarm(0)
    waiting = [line for line in lines if "waiting" in line]
    rule = "without a sign of life for 3:00 it counts as dead"
    assert waiting == [f"waiting for trial 0 of process 4711 on elsewhere; {rule}"], lines
    assert [t.state.name for t in book.trials()] == ["FAIL", "COMPLETE", "COMPLETE"]


def test_a_finished_trial_is_left_alone_and_a_wrong_outcome_is_not_hidden(tmp_path: Path) -> None:
    book = Book(spec_of(*SEARCH, "--trials", "2"), tmp_path, None)
    trial, _ = book.next() or pytest.fail("no trial")
    with pytest.raises(ValueError, match="No values were told"):
        book.tell(trial.number, state=TrialState.COMPLETE)
    assert book.tell(trial.number, values=0.5) and not book.tell(trial.number, values=0.9)
    assert book.trials()[0].value == 0.5
    book.study.enqueue_trial({})
    with pytest.raises(ValueError, match="WAITING"):
        book.tell(1, values=0.5)


def test_failed_trials_are_tried_once_more_by_the_same_command(tmp_path: Path) -> None:
    """But not within one command, and not those that would fail again, as their value is no number."""
    spec, broken = spec_of("--method", "csp", "--grid", "csp.schedule=constant,linear,exponential"), [True]

    def score(cell: dict[str, Any]) -> float:
        if broken and cell["config"]["schedule"] == "constant":
            raise RuntimeError("no space left on the disk")
        return float("nan") if cell["config"]["schedule"] == "exponential" else 0.5

    def states() -> list[str]:
        return [t.state.name for t in book.trials()]

    book, first = made(spec, tmp_path, score)
    assert states() == ["FAIL", "COMPLETE", "FAIL"]
    book, again = made(spec, tmp_path, score)
    assert states() == ["FAIL", "COMPLETE", "FAIL", "FAIL"] and study_book.retried(book.trials()) == {0}
    broken.clear()
    lines: list[str] = []
    book, mended = made(spec, tmp_path, score, lines)
    assert states() == ["FAIL", "COMPLETE", "FAIL", "FAIL", "COMPLETE"]
    assert "trial 4: csp.schedule=constant (again, was 3)" in lines
    assert [t.number for t in study_book.counted(book.trials())] == [1, 2, 4] and not book.open_trials()
    assert set(first.ran) >= set(again.ran) == set(mended.ran[:1]), "the cell that failed is run again"
    book, _ = made(spec, tmp_path, score)
    assert len(book.trials()) == 5


def test_whoever_comes_to_help_does_not_repeat_failed_trials(tmp_path: Path) -> None:
    spec = spec_of(*SEARCH, "--trials", "2")
    book = Book(spec, tmp_path, None)
    first, _ = book.next() or pytest.fail("no trial")
    assert book.tell(first.number, state=TrialState.FAIL) and book.next()
    Book(spec, tmp_path, None).revive()
    assert not study_book.retried(book.trials())


@pytest.mark.parametrize("database", [False, True])
def test_two_processes_share_a_study(database: bool, tmp_path: Path) -> None:
    """Each trial is begun once, by one of them; both wait for the last one, and draw different points."""
    storage = f"sqlite:///{tmp_path}/study.db" if database else None
    code = (
        "import sys, time; sys.path.insert(0, 'tests')\n"
        "from pathlib import Path; import studies as t\n"
        "spec = t.spec_of('--method', 'csp', '--space', 'z_bound', '--trials', '8', '--seeds', '2', '--name', 'x')\n"
        "slow = lambda cell: time.sleep(0.1) or 0.5\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        f"book, trials = t.made(spec, Path({str(tmp_path)!r}), slow, None, {storage!r})\n"
        "assert not book.open_trials() and '8 of 8 trials done' in trials.view.summary, trials.view.summary\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    both = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, text=True, **pipes) for _ in range(2)]  # type: ignore[call-overload]
    for process in both:
        process.stdout.readline()
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [p.communicate(timeout=60) for p in both]
    assert [p.returncode for p in both] == [0, 0], outputs
    words = ["--method", "csp", "--space", "z_bound", "--trials", "8", "--seeds", "2", "--name", "x"]
    trials = Book(spec_of(*words), tmp_path / "study" / "x", storage).trials()
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 8
    assert (
        len({t.user_attrs["owner"]["pid"] for t in trials}) == 2 and len({t.params["csp.z_bound"] for t in trials}) == 8
    )


def test_an_interrupt_leaves_the_trial_to_the_next(tmp_path: Path) -> None:
    spec, calls = spec_of(*SEARCH, "--seeds", "2", "--trials", "2", "--name", "x"), []

    def score(cell: dict[str, Any]) -> float:
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return by_start(cell)

    with pytest.raises(Stopped):
        made(spec, tmp_path, score)
    book, second = made(spec, tmp_path, by_start)
    trials = book.trials()
    assert [t.state.name for t in trials] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert trials[2].params == trials[1].params and trials[2].user_attrs["retry_of"] == 1
    assert len(second.ran) == 1, "the cells that were done are not run again"


def test_half_a_line_of_a_killed_process_is_cut_off(tmp_path: Path) -> None:
    spec = spec_of(*SEARCH, "--seeds", "1", "--trials", "2", "--name", "x")
    made(spec, tmp_path, by_start)
    path = tmp_path / "study" / "x" / "journal.log"
    with path.open("ab") as handle:
        handle.write(b'{"op_code":4,"wor')
    book, _ = made(replace(spec, trials=4), tmp_path, by_start)
    assert [t.state for t in book.trials()] == [TrialState.COMPLETE] * 4
