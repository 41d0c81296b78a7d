"""The executor when things die: killed workers, stages held by another process, signals. Workers are real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from bench import cli, executor, report, screen
from bench.executor import Board, Executor, Key, Status, Worker
from bench.plan import Plan, Unit, make_plan
from bench.store import Store

ROOT = Path(__file__).parent.parent
WORDS = [
    "--methods", "bc", "--tasks", "toy", "--profile", "smoke", "--no-tracking", "--jobs", "1", "--set",
    "rl.decisions=120", "--set", "pretrain.steps=5", "--set", "coverage.states=1", "--set", "demos.count=4",
]  # fmt: skip


def plan() -> Plan:
    return make_plan(cli.request_of(cli.parser().parse_args(["run", *WORDS])))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """`bench run` in this process, without its report."""
    monkeypatch.setattr(report, "write", lambda *_: Path("index.html"))
    monkeypatch.setattr(report, "show", lambda *_: None)
    return lambda: cli.main(["run", *WORDS, "--results", str(tmp_path)])


def failed(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("failed: ")]


def once_running(monkeypatch: pytest.MonkeyPatch, stage: str, act: Callable[[int], None]) -> list[Key]:
    """Call `act(worker's pid)` the first time that a worker runs such a stage; returns where the key will stand."""
    plain, done = Executor._receive, []

    def receive(self: Executor, worker: Worker) -> None:
        plain(self, worker)
        key = worker.key
        if not done and key and key[0] == stage and self.board.units[key].state == "running":
            done.append(key)
            act(worker.process.pid)

    monkeypatch.setattr(Executor, "_receive", receive)
    return done


def test_worker_killed_before_its_stage_begins(
    run: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    plain, killed = Executor._give, []

    def give(self: Executor, worker: Worker, unit: Unit) -> None:
        plain(self, worker, unit)
        if not killed:
            killed.append((unit.stage, unit.key))
            os.kill(worker.process.pid, signal.SIGKILL)

    monkeypatch.setattr(Executor, "_give", give)
    assert run() == 1
    out, err = capfd.readouterr()
    assert len(failed(err)) == 1 and "worker process died (exit -9)" in err and "demos" in err
    assert "Traceback" not in err
    states = [Store(tmp_path).entry(*key).status() for key in plan().units]
    assert states.count("done") == 7 and states.count("failed") == 1, out
    assert run() == 0
    assert {Store(tmp_path).entry(*key).status() for key in plan().units} == {"done"}


def test_worker_killed_during_its_stage(
    run: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    killed = once_running(monkeypatch, "finetune", lambda pid: os.kill(pid, signal.SIGKILL))
    assert run() == 1
    err = capfd.readouterr().err
    assert len(failed(err)) == 1 and "finetune: worker process died (exit -9)" in err
    entry = Store(tmp_path).entry(*killed[0])
    assert entry.status() == "failed" and "worker process died" in entry.failure()
    states = [Store(tmp_path).entry(*key).status() for key in plan().units]
    assert states.count("done") == 10
    assert run() == 0
    assert {Store(tmp_path).entry(*key).status() for key in plan().units} == {"done"}


def test_two_held_stages_do_not_starve_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first stage stays held until the second cell, whose own stage was let go, is done."""
    monkeypatch.setattr(executor, "RETRY_SECONDS", (0.2, 0.5))
    store, wanted, board = Store(tmp_path), plan(), Board(plan())
    first, second = [key for key in wanted.units if key[0] == "demos"]
    last = wanted.cells[1].units[-1]
    held = threading.Event()

    def other() -> None:
        with store.entry(*first).lock():
            with store.entry(*second).lock():
                held.set()
                limit = time.monotonic() + 15
                while {board.units[k].state for k in (first, second)} != {"elsewhere"} and time.monotonic() < limit:
                    time.sleep(0.05)
            limit = time.monotonic() + 15
            while board.units[last.stage, last.key].state != "done" and time.monotonic() < limit:
                time.sleep(0.05)
            released.append(board.units[last.stage, last.key].state)

    seen: list[tuple[Key, str]] = []
    released: list[str] = []
    board.changed = lambda key, status: seen.append((key, status.state))
    runner = Executor(store, wanted, 1, board)
    thread = threading.Thread(target=other, daemon=True)
    thread.start()
    held.wait()
    runner.run()
    thread.join()
    assert released == ["done"] and {s.state for s in board.units.values()} == {"done"}
    for key in (first, second):
        states = [state for k, state in seen if k == key]
        assert list(dict.fromkeys(states)) == ["elsewhere", "running", "done"] and states.count("elsewhere") == 1


def test_a_stage_finished_elsewhere_is_done_without_a_worker(tmp_path: Path) -> None:
    board, store = Board(plan()), Store(tmp_path)
    runner = Executor(store, plan(), 1, board)
    key = next(iter(board.units))
    board.set(key, "elsewhere")
    runner._look()
    assert board.units[key].state == "elsewhere"
    folder = store.entry(*key).folder
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text("{}")
    runner._look()
    assert board.units[key].state == "done"


def test_tries_come_less_often(tmp_path: Path) -> None:
    board = Board(plan())
    runner = Executor(Store(tmp_path), plan(), 1, board)
    key = next(iter(board.units))
    pauses = []
    for _ in range(8):
        runner._postpone(key)
        pauses.append(runner.tries[key][1])
    assert pauses[0] == 2.0 and pauses == sorted(pauses) and pauses[-1] == 10.0
    unit = runner._next()
    assert unit is not None and (unit.stage, unit.key) != key


@pytest.mark.parametrize("signals", [1, 2])
def test_a_worker_that_does_not_answer(
    run: Callable[[], int], signals: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A frozen worker: one signal ends it when the time to save is over, a second one at once."""
    monkeypatch.setattr(executor, "STOP_SECONDS", 1.0 if signals == 1 else 60.0)
    plain, begun, pids = Executor._step, [], []

    def freeze(pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        pids.append(pid)
        begun.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    def step(self: Executor) -> bool:
        if self.shared.value and signals == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self)

    key = once_running(monkeypatch, "demos", freeze)
    monkeypatch.setattr(Executor, "_step", step)
    assert run() == 130
    assert time.monotonic() - begun[0] < 5
    err = capfd.readouterr().err
    assert err.splitlines()[0] == "stopping: saving the state; Ctrl-C again ends at once" and err.count("\n") == 2
    assert not psutil.pid_exists(pids[0]) and Store(tmp_path).entry(*key[0]).status() == "pending"


def test_sigterm_to_the_group_records_no_failure(tmp_path: Path) -> None:
    """A batch system's end of time, while the worker still starts: its first second is as quiet as the rest."""
    command = [sys.executable, "-W", "ignore", "-m", "bench", "run", *WORDS, "--results", str(tmp_path)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    limit = time.monotonic() + 30
    while len(psutil.Process(process.pid).children()) < 2 and time.monotonic() < limit:  # resource tracker and worker
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and err.count("\n") == 2 and err.startswith("stopping: "), err
    assert not list(tmp_path.rglob("failed.json")) and "failed" not in out


def test_no_worker_outlives_a_killed_parent(tmp_path: Path) -> None:
    words = [*WORDS, "--set", "rl.decisions=100000", "--results", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "bench", "run", *words], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    limit = time.monotonic() + 60
    while not list(tmp_path.glob("stages/finetune/*/points.json")) and time.monotonic() < limit:
        time.sleep(0.1)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) >= 2  # resource tracker and worker
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive


def test_a_worker_that_died_idle_costs_no_stage(tmp_path: Path) -> None:
    """The stage that could not be handed over is still to do, and another worker stands ready."""
    board = Board(plan())
    runner = Executor(Store(tmp_path), plan(), 1, board)
    runner._start()
    idle = runner.workers[0]
    idle.process.kill()
    idle.process.join()
    try:
        unit = runner._next()
        assert unit is not None
        runner._give(idle, unit)
        assert idle not in runner.workers and len(runner.workers) == 1
        assert board.units[unit.stage, unit.key].state == "pending" and runner._next() == unit
    finally:
        runner._close()


def test_plain_lines_tell_the_time_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(screen, "PLAIN_SECONDS", 0.0)
    board = Board(plan(), {key: Status() for key in plan().units})
    key = next(iter(board.units))
    changed = screen._plain(board)
    status = board.units[key]
    status.state, status.started = "running", time.monotonic() - 30
    changed(key, status)
    status.share, status.text = 0.5, "5 of 10"
    changed(key, status)
    first, second = capsys.readouterr().out.splitlines()
    assert "left" not in first and "50%" in second and ("0:30 left" in second or "0:29 left" in second)
