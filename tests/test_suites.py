"""The kit over every task that exists, and for each of its rules a suite that breaks it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import gymnasium
import kit
import numpy as np
import pytest

from bench import registry
from bench.seeding import pack_generator
from bench.steering import execute
from bench.types import Demos, InputError, Steps, Task
from envs import toy

TASK = toy.tasks[0]


BROKEN = {
    "syntax": ("def f(:\n", "suites/new.py, line 1: SyntaxError"),
    "its own code": ("x = 1\ny = x / 0\n", "suites/new.py, line 2: ZeroDivisionError: division by zero"),
    "members": ("requires = ()\n", "lacks tasks, make, demos"),
    "tasks": ("requires = ()\ntasks = make = demos = None\n", "tasks must be a tuple"),
    "requires": ("requires = 'numpy'\ntasks = make = demos = ()\n", "requires must be a tuple"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_suite_is_said_in_one_line_with_its_place(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, expected = BROKEN[name]
    folder = tmp_path / "suites"
    folder.mkdir()
    (folder / "new.py").write_text(text)
    package = ModuleType("suites")
    package.__path__ = [str(folder)]
    monkeypatch.setitem(sys.modules, "suites", package)
    monkeypatch.delitem(sys.modules, "suites.new", raising=False)
    monkeypatch.setattr(registry, "suites_package", package)
    with pytest.raises(InputError) as error:
        registry.suites.__wrapped__()
    assert expected in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("check", kit.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", sorted(registry.tasks()))
def test_task(name: str, check: Callable[..., None]) -> None:
    task = registry.task(name)
    check(registry.suite_of(task), task)


@pytest.mark.parametrize("name", sorted(name for name, task in registry.tasks().items() if task.demos_of))
def test_borrowed_demonstrations_fit(name: str) -> None:
    task = registry.task(name)
    source = registry.task(task.demos_of or "")
    assert source.demos_of is None
    assert (source.state_keys, source.context_keys) == (task.state_keys, task.context_keys)
    assert (source.demo_count, source.demo_unit) == (task.demo_count, task.demo_unit)


def test_importing_the_suites_imports_no_simulator() -> None:
    code = """if True:
        import sys, gymnasium, numpy, bench.types, bench.seeding
        before = set(sys.modules)
        from bench import registry
        needed = {package for suite in registry.suites().values() for package in suite.requires}
        print(*sorted(needed & (set(sys.modules) - before)))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# Suites that break a rule. Each fault is a subclass of the toy's environment or a change of its demonstrations.


class Deaf(toy.ReachEnv):
    """Ignores the seed of `make`."""

    def __init__(self, seed: int) -> None:
        super().__init__(0)


class Careless(toy.ReachEnv):
    """Takes its seed from elsewhere."""

    made = 0

    def __init__(self, seed: int) -> None:
        Careless.made += 1
        super().__init__(Careless.made)


class DeafReset(toy.ReachEnv):
    """Ignores the seed of `reset`."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return super().reset()


class Unseedable(toy.ReachEnv):
    """Seeds its generator without using it: starts repeat for ever."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return super().reset(seed=3)


class ForgetsCounter(toy.ReachEnv):
    def set_state(self, state: Any) -> Any:
        return super().set_state({**state, "steps": np.zeros(1, np.int64)})


class ForgetsGenerator(toy.ReachEnv):
    def set_state(self, state: Any) -> Any:
        return super().set_state({**state, "generator": pack_generator(self._rng)})


class KeepsGoal(toy.ReachEnv):
    def set_state(self, state: Any) -> Any:
        return super().set_state({**state, "goal": self._goal})


class LiveState(toy.ReachEnv):
    """Hands out an array that it goes on changing."""

    def __init__(self, seed: int) -> None:
        self._live = np.zeros(2)
        super().__init__(seed)

    def get_state(self) -> Any:
        return {**super().get_state(), "position": self._live}

    def step(self, action: Any) -> Any:
        result = super().step(action)
        self._live[:] = self._position
        return result


class Hidden(toy.ReachEnv):
    """Has a state of its own that it does not tell."""

    wind = 0.0

    def step(self, action: Any) -> Any:
        self.wind = 0.5 * self.wind + 0.1 * float(action[0])
        return super().step(action + self.wind)


class PickledState(toy.ReachEnv):
    def get_state(self) -> Any:
        return {**super().get_state(), "extra": np.array([None], object)}


class Outside(toy.ReachEnv):
    def _observation(self) -> Any:
        return {**super()._observation(), "goal": (self._goal + 2.0).astype(np.float32)}


class NotFinite(toy.ReachEnv):
    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        anything = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.observation_space = gymnasium.spaces.Dict({"position": anything, "goal": anything})  # type: ignore

    def _observation(self) -> Any:
        return {**super()._observation(), "goal": np.full(2, np.inf, np.float32)}


class Constant(toy.ReachEnv):
    def _observation(self) -> Any:
        return {**super()._observation(), "goal": np.zeros(2, np.float32)}


class Reused(toy.ReachEnv):
    """Gives the same array again and again."""

    shared = np.zeros(2, np.float32)

    def _observation(self) -> Any:
        self.shared[:] = self._position
        return {**super()._observation(), "position": self.shared}


class Doubles(toy.ReachEnv):
    def _observation(self) -> Any:
        return {"position": self._position, "goal": self._goal}


class Altered(toy.ReachEnv):
    """What `step` returns, changed."""

    def alter(self, terminated: bool, truncated: bool, success: bool) -> tuple[Any, Any, Any]:
        return terminated, truncated, success

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        terminated, truncated, success = self.alter(terminated, truncated, info["success"])
        return observation, reward, terminated, truncated, {"success": success}


class Endless(Altered):
    def alter(self, terminated: bool, truncated: bool, success: bool) -> tuple[Any, Any, Any]:
        return terminated, False, success


class Short(Altered):
    def alter(self, terminated: bool, truncated: bool, success: bool) -> tuple[Any, Any, Any]:
        return terminated, truncated or self._steps >= toy.HORIZON - 1, success


class DeathAtHorizon(Altered):
    def alter(self, terminated: bool, truncated: bool, success: bool) -> tuple[Any, Any, Any]:
        return terminated or truncated, False, success


class FloatSuccess(Altered):
    def alter(self, terminated: bool, truncated: bool, success: bool) -> tuple[Any, Any, Any]:
        return terminated, truncated, float(success)


class EndsBoth(Altered):
    def alter(self, terminated: bool, truncated: bool, success: bool) -> tuple[Any, Any, Any]:
        return truncated, truncated, truncated


class NoSuccess(toy.ReachEnv):
    def step(self, action: Any) -> Any:
        return (*super().step(action)[:4], {})


class WideActions(toy.ReachEnv):
    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.action_space = gymnasium.spaces.Box(-2.0, 2.0, (2,), np.float32)


class ExtraKey(toy.ReachEnv):
    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.observation_space["more"] = self.observation_space["goal"]


class DrawsGlobally(toy.ReachEnv):
    def step(self, action: Any) -> Any:
        np.random.rand()  # noqa: NPY002
        return super().step(action)


class DependsOnGlobals(toy.ReachEnv):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return super().reset(seed=int(np.random.get_state()[1][0]))  # noqa: NPY002


class LongChunk(toy.ReachEnv):
    """Goes on after the episode's end."""

    def step_chunk(self, actions: Any) -> Steps:
        results = [self.step(action) for action in actions]
        observation, _, terminated, truncated, info = results[-1]
        total = sum(result[1] for result in results)
        return Steps(observation, total, len(actions), terminated, truncated, info["success"])


class StaleChunk(toy.ReachEnv):
    """Sees what there was before the chunk."""

    def step_chunk(self, actions: Any) -> Steps:
        before, plain = self._observation(), toy.ReachEnv(0)
        plain.set_state(self.get_state())
        steps = execute(plain, actions)
        self.set_state(plain.get_state())
        return dataclasses.replace(steps, observation=before)


WRONG_ENVIRONMENTS = [
    (kit.check_same_seed, Deaf),
    (kit.check_same_seed, Careless),
    (kit.check_same_seed, Unseedable),
    (kit.check_reset_seed, DeafReset),
    (kit.check_reset_seed, Unseedable),
    (kit.check_state, ForgetsCounter),
    (kit.check_state, ForgetsGenerator),
    (kit.check_state, KeepsGoal),
    (kit.check_state, LiveState),
    (kit.check_state, Hidden),
    (kit.check_state, PickledState),
    (kit.check_observations, Outside),
    (kit.check_observations, NotFinite),
    (kit.check_observations, Constant),
    (kit.check_observations, Reused),
    (kit.check_observations, Doubles),
    (kit.check_horizon, Endless),
    (kit.check_horizon, Short),
    (kit.check_horizon, DeathAtHorizon),
    (kit.check_success, DeathAtHorizon),
    (kit.check_success, FloatSuccess),
    (kit.check_success, EndsBoth),
    (kit.check_success, NoSuccess),
    (kit.check_chunks, LongChunk),
    (kit.check_chunks, StaleChunk),
    (kit.check_spaces, WideActions),
    (kit.check_spaces, ExtraKey),
    (kit.check_global_random_states, DrawsGlobally),
    (kit.check_global_random_states, DependsOnGlobals),
]


@pytest.mark.parametrize(("check", "kind"), WRONG_ENVIRONMENTS, ids=lambda item: item.__name__)
def test_the_kit_refuses_the_environment(check: Callable[..., None], kind: type[toy.ReachEnv]) -> None:
    suite = SimpleNamespace(make=lambda task, seed: kind(seed), demos=toy.demos)
    with pytest.raises(AssertionError):
        check(suite, TASK)


def broken(**changes: Callable[[Demos], Any]) -> Callable[..., Demos]:
    """The toy's demonstrations with fields replaced."""

    def demos(task: Task, n: int, rng: np.random.Generator, progress: Any = lambda share: None) -> Demos:
        right = toy.demos(task, n, rng, progress)
        return dataclasses.replace(right, **{name: change(right) for name, change in changes.items()})

    return demos


def stubborn(task: Task, n: int, rng: np.random.Generator, progress: Any = lambda share: None) -> Demos:
    return toy.demos(task, n, np.random.default_rng(0), progress)


def moody(task: Task, n: int, rng: np.random.Generator, progress: Any = lambda share: None) -> Demos:
    return toy.demos(task, n, np.random.default_rng(), progress)


def silent(task: Task, n: int, rng: np.random.Generator, progress: Any = lambda share: None) -> Demos:
    return toy.demos(task, n, rng)


def draws(task: Task, n: int, rng: np.random.Generator, progress: Any = lambda share: None) -> Demos:
    np.random.rand()  # noqa: NPY002
    return toy.demos(task, n, rng, progress)


WRONG_DEMOS = {
    "actions outside": (kit.check_demos, broken(actions=lambda d: d.actions * 2)),
    "actions in double": (kit.check_demos, broken(actions=lambda d: d.actions.astype(np.float64))),
    "ends fall": (kit.check_demos, broken(ends=lambda d: d.ends[[1, 0, 2]])),
    "ends repeat": (kit.check_demos, broken(ends=lambda d: d.ends[[0, 2, 2]])),
    "ends short": (kit.check_demos, broken(ends=lambda d: d.ends - 1)),
    "first empty": (kit.check_demos, broken(ends=lambda d: d.ends * [0, 1, 1])),
    "one more": (
        kit.check_demos,
        broken(ends=lambda d: np.insert(d.ends, 0, 1), success=lambda d: np.ones(4, np.bool_)),
    ),
    "success count": (kit.check_demos, broken(success=lambda d: d.success[:2])),
    "no success": (kit.check_demos, broken(success=lambda d: d.success & False)),
    "key missing": (kit.check_demos, broken(observations=lambda d: {"goal": d.observations["goal"]})),
    "outside": (kit.check_demos, broken(observations=lambda d: {k: v + 2 for k, v in d.observations.items()})),
    "shape": (kit.check_demos, broken(observations=lambda d: {k: v[:, :1] for k, v in d.observations.items()})),
    "not finite": (kit.check_demos, broken(observations=lambda d: {k: v * np.nan for k, v in d.observations.items()})),
    "stubborn": (kit.check_demos_reproducible, stubborn),
    "moody": (kit.check_demos_reproducible, moody),
    "silent": (kit.check_demos_reproducible, silent),
    "draws globally": (kit.check_global_random_states, draws),
}


@pytest.mark.parametrize("fault", WRONG_DEMOS)
def test_the_kit_refuses_the_demonstrations(fault: str) -> None:
    check, demos = WRONG_DEMOS[fault]
    with pytest.raises(AssertionError):
        check(SimpleNamespace(make=toy.make, demos=demos), TASK)
