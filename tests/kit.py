"""What every task of every suite must do. Plain functions `check_…(suite, task)` that raise AssertionError."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import torch

from bench.steering import execute
from bench.types import BenchEnv, Demos, State, Suite, Task

Observation = dict[str, np.ndarray[Any, Any]]
STEPS = 30  # control steps of a trajectory, fewer if the episode ends
DEMOS = {"episodes": 3, "transitions": 3003}


@dataclass
class Trajectory:
    """What an environment gave: copies made at once, and the arrays themselves."""

    observations: list[Observation] = field(default_factory=list)  # one more than the others after a reset
    given: list[Observation] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    terminated: list[Any] = field(default_factory=list)
    truncated: list[Any] = field(default_factory=list)
    infos: list[dict[str, Any]] = field(default_factory=list)

    def see(self, observation: Observation) -> None:
        """Keep an observation."""
        self.given.append(observation)
        self.observations.append({key: np.array(value) for key, value in observation.items()})

    def bits(self) -> list[Any]:
        """Everything, for comparison bit by bit."""
        seen = [(key, value.tobytes()) for o in self.observations for key, value in sorted(o.items())]
        ends = [bool(t) for t in (*self.terminated, *self.truncated)]
        return [seen, self.rewards, ends, [bool(info["success"]) for info in self.infos]]


def random_actions(env: BenchEnv, steps: int = STEPS, seed: int = 7) -> np.ndarray[Any, Any]:
    """(steps, A) float32, uniform."""
    shape = (steps, *env.action_space.shape)
    return np.random.default_rng(seed).uniform(-1.0, 1.0, shape).astype(np.float32)


def play(env: BenchEnv, actions: np.ndarray[Any, Any], first: Observation | None = None) -> Trajectory:
    """Step through the actions until the episode ends; `first` is the observation before."""
    trajectory = Trajectory()
    if first is not None:
        trajectory.see(first)
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        trajectory.see(observation)
        trajectory.rewards.append(float(reward))
        trajectory.terminated.append(terminated)
        trajectory.truncated.append(truncated)
        trajectory.infos.append(info)
        if terminated or truncated:
            break
    return trajectory


def episode(env: BenchEnv, steps: int = STEPS, **reset: Any) -> Trajectory:
    """A reset and up to so many random steps."""
    return play(env, random_actions(env, steps), env.reset(**reset)[0])


def idle_episode(env: BenchEnv, task: Task) -> Trajectory:
    """A reset and an episode of zero actions, cut after one control step more than the horizon."""
    still = np.zeros((task.horizon + 1, *env.action_space.shape), np.float32)
    return play(env, still, env.reset()[0])


def few_demos(suite: Suite, task: Task, seed: int = 0) -> Demos:
    """A few demonstrations."""
    return suite.demos(task, DEMOS[task.demo_unit], np.random.default_rng(seed))


@contextmanager
def untouched_globals() -> Iterator[None]:
    """Fails if the block draws from, or seeds, a global generator of random, NumPy or torch."""

    def states() -> list[bytes]:
        name, keys, *rest = np.random.get_state()  # noqa: NPY002
        return [repr(random.getstate()).encode(), keys.tobytes(), repr((name, rest)).encode(), _torch_state()]

    before = states()
    yield
    names = ("random", "numpy.random", "numpy.random", "torch")
    changed = [name for name, a, b in zip(names, before, states(), strict=True) if a != b]
    assert not changed, f"global random state changed: {changed}"


def _torch_state() -> bytes:
    return bytes(torch.get_rng_state().numpy().tobytes())


def check_spaces(suite: Suite, task: Task) -> None:
    """Actions in [-1, 1], float32; observations are float32 boxes named by the task, s and c apart."""
    env = suite.make(task, 1)
    assert isinstance(env.action_space, gymnasium.spaces.Box) and env.action_space.dtype == np.float32
    assert (env.action_space.low == -1.0).all() and (env.action_space.high == 1.0).all(), "actions not in [-1, 1]"
    keys = [*task.state_keys, *task.context_keys]
    assert sorted(env.observation_space.spaces) == sorted(keys), f"observation keys are not s and c: {keys}"
    assert len(set(keys)) == len(keys) and task.state_keys and task.context_keys
    assert set(task.position_keys) <= set(keys), "position_keys name no observation"
    assert all(space.dtype == np.float32 for space in env.observation_space.spaces.values())


def check_observations(suite: Suite, task: Task) -> None:
    """Finite, inside the space, of its type, no array reused, and none constant over trajectories and resets."""
    env = suite.make(task, 1)
    trajectories = [episode(env) for _ in range(3)]
    seen = [o for trajectory in trajectories for o in trajectory.observations]
    for observation in seen:
        assert all(np.isfinite(value).all() for value in observation.values()), "observation is not finite"
        assert env.observation_space.contains(observation), f"observation outside its space: {observation}"
    for trajectory in trajectories:
        for given, copied in zip(trajectory.given, trajectory.observations, strict=True):
            assert all(np.array_equal(given[k], copied[k]) for k in copied), "an observation changed after it was given"
    for key in env.observation_space.spaces:
        assert any(not np.array_equal(o[key], seen[0][key]) for o in seen), f"observation {key!r} is constant"


def check_same_seed(suite: Suite, task: Task) -> None:
    """Equal seeds of `make` give equal trajectories over two episodes, bit by bit; another seed another one."""
    runs = []
    for seed in (1, 1, 2):
        env = suite.make(task, seed)
        runs.append([episode(env).bits(), episode(env).bits()])
    assert runs[0] == runs[1], "equal seeds, different trajectories"
    assert runs[0] != runs[2], "different seeds, equal trajectories"
    assert runs[0][0] != runs[0][1], "two resets in a row give the same start"


def check_reset_seed(suite: Suite, task: Task) -> None:
    """`reset(seed=…)` gives the same two episodes whatever happened before; another seed gives others."""
    env = suite.make(task, 1)
    first = [episode(env, seed=5).bits(), episode(env).bits()]
    other = [episode(env, seed=6).bits(), episode(env).bits()]
    again = [episode(env, seed=5).bits(), episode(env).bits()]
    assert first == again, "reset(seed=5) is not reproducible"
    assert first != other, "reset ignores its seed"


def check_state(suite: Suite, task: Task) -> None:
    """A state saved in mid-episode and restored, here or in a fresh environment, has the same future and next reset."""
    env = suite.make(task, 1)
    actions = random_actions(env, task.horizon, seed=8)
    env.reset()
    here = play(env, actions[:5])
    assert not (here.terminated[-1] or here.truncated[-1]), "the episode was over after 5 random steps"
    state = env.get_state()
    saved = {key: np.array(value) for key, value in state.items()}
    assert all(isinstance(v, np.ndarray) and v.dtype.kind in "biuf" for v in state.values()), "not plain arrays"
    future = _future(env, actions[5:])
    assert _same_state(state, saved), "the saved state changed while the environment went on"
    for name, restored in (("same", env), ("fresh", suite.make(task, 2))):
        observation = restored.set_state(state)
        for key, value in here.observations[-1].items():
            assert np.array_equal(observation[key], value), f"set_state in the {name} environment: {key} differs"
        assert _same_state(restored.get_state(), saved), f"the state does not survive in the {name} environment"
        assert _future(restored, actions[5:]) == future, f"another future in the {name} environment"


def _future(env: BenchEnv, actions: np.ndarray[Any, Any]) -> list[Any]:
    """The rest of the episode and the beginning of the next."""
    return [play(env, actions).bits(), episode(env).bits()]


def _same_state(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def check_horizon(suite: Suite, task: Task) -> None:
    """Doing nothing, an episode is truncated at the horizon, not before, and is not terminated."""
    env = suite.make(task, 1)
    for _ in range(5):  # a start may succeed by itself
        idle = idle_episode(env, task)
        if not idle.terminated[-1]:
            break
    assert not any(idle.terminated), "terminated without doing anything, five times"
    steps = len(idle.rewards)
    assert idle.truncated[-1] and steps == task.horizon, f"{steps} control steps, the horizon is {task.horizon}"


def check_success(suite: Suite, task: Task) -> None:
    """`info["success"]` is a bool at every step, and an episode terminates when, and only when, it is True."""
    env = suite.make(task, 1)
    for trajectory in [*(episode(env, task.horizon) for _ in range(3)), idle_episode(env, task)]:
        for info, reward, terminated, truncated in zip(
            trajectory.infos, trajectory.rewards, trajectory.terminated, trajectory.truncated, strict=True
        ):
            assert type(info.get("success")) is bool, "info['success'] is missing or not a bool"
            assert type(terminated) is bool and type(truncated) is bool, "terminated and truncated must be bool"
            assert terminated == info["success"], "terminated must be success"
            assert reward == float(info["success"]), "the reward must be 1 at success and 0 elsewhere"
            assert not (terminated and truncated), "terminated and truncated at once"


def check_chunks(suite: Suite, task: Task) -> None:
    """Chunks give what their steps one by one give, to the bit, and end with the episode."""
    env, other = suite.make(task, 1), suite.make(task, 1)
    env.reset(seed=4)
    other.reset(seed=4)
    actions = random_actions(env, task.horizon + 7, seed=9)
    size, at = 7, 0  # no horizon is a multiple of 7
    while True:
        steps = play(env, actions[at : at + size])
        chunk = execute(other, actions[at : at + size])
        at += size
        assert chunk.count == len(steps.rewards) and chunk.reward == sum(steps.rewards), "other steps or reward"
        ends = (chunk.terminated, chunk.truncated, chunk.success)
        assert ends == (steps.terminated[-1], steps.truncated[-1], steps.infos[-1]["success"]), "another end"
        last = steps.observations[-1]
        assert last.keys() == chunk.observation.keys(), "other observation keys"
        assert all(np.array_equal(last[key], value) for key, value in chunk.observation.items()), "other observation"
        assert _same_state(env.get_state(), other.get_state()), "another state"
        if chunk.terminated or chunk.truncated:
            return


def check_demos(suite: Suite, task: Task) -> None:
    """Shapes, types, ranges and bookkeeping of the demonstrations; some succeed."""
    env = suite.make(task, 1)
    demos = few_demos(suite, task)
    n = len(demos.actions)
    assert demos.actions.shape == (n, *env.action_space.shape) and demos.actions.dtype == np.float32
    assert all(env.action_space.contains(action) for action in demos.actions), "action outside the action space"
    assert demos.ends.dtype == np.int64 and demos.ends[0] > 0, "first episode is empty, or ends are not int64"
    assert (np.diff(demos.ends) > 0).all() and demos.ends[-1] == n, "ends must increase and cover all rows"
    assert demos.success.dtype == np.bool_ and demos.success.shape == demos.ends.shape
    assert demos.success.any(), "no demonstration succeeds"
    count = n if task.demo_unit == "transitions" else len(demos.ends)
    assert count == DEMOS[task.demo_unit], f"{count} {task.demo_unit} instead of {DEMOS[task.demo_unit]}"
    assert set(demos.observations) == {*task.state_keys, *task.context_keys}, "keys are not s and c"
    for key, value in demos.observations.items():
        space = env.observation_space[key]
        assert value.dtype == np.float32 and value.shape == (n, *space.shape), f"{key}: {value.dtype} {value.shape}"
        assert np.isfinite(value).all(), f"{key} is not finite"
        if task.demos_of is None:  # else the demonstrations come from another task's, perhaps wider, space
            assert all(space.contains(row) for row in value), f"{key} outside its space"


def check_demos_reproducible(suite: Suite, task: Task) -> None:
    """Equal generators give equal demonstrations, another one others; progress rises to 1."""
    shares: list[float] = []
    first = suite.demos(task, DEMOS[task.demo_unit], np.random.default_rng(0), shares.append)
    same, other = few_demos(suite, task), few_demos(suite, task, seed=1)
    assert np.array_equal(first.actions, same.actions) and np.array_equal(first.ends, same.ends)
    assert all(np.array_equal(v, same.observations[k]) for k, v in first.observations.items())
    assert not np.array_equal(first.actions[:20], other.actions[:20]), "the generator is ignored"
    assert shares == sorted(shares) and shares and shares[0] >= 0.0 and shares[-1] == 1.0, f"progress: {shares}"


def check_global_random_states(suite: Suite, task: Task) -> None:
    """Neither make, reset, step nor demos touch a global random state, nor depend on one."""
    runs = []
    for seed in (0, 1):
        _seed_globals(seed)
        with untouched_globals():
            env = suite.make(task, 1)
            runs.append([episode(env).bits(), few_demos(suite, task).actions.tobytes()])
    assert runs[0] == runs[1], "the global random state decides what happens"


def _seed_globals(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


CHECKS = (
    check_spaces,
    check_observations,
    check_same_seed,
    check_reset_seed,
    check_state,
    check_horizon,
    check_success,
    check_chunks,
    check_demos,
    check_demos_reproducible,
    check_global_random_states,
)
