"""The robosuite suite: exact states, clean resets, robosuite's own step, and a demonstrator that succeeds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("robosuite", reason="the robosuite suite is not installed")

from bench.types import State, Task
from envs import _robosuite_arm, robosuite_tasks
from envs.robosuite_tasks import DEMONSTRATED, FINETUNED, HORIZON, Area, Demonstrator, LiftEnv

LIFT, UNSEEN = robosuite_tasks.tasks
EPISODES = 100  # for the demonstrator's success rate


@pytest.fixture(scope="module")
def used() -> LiftEnv:
    """An environment in the middle of a life: two episodes in, the second left unfinished."""
    env = LiftEnv(DEMONSTRATED[LIFT.id], seed=11)
    robosuite_tasks.demonstrate(env, np.random.default_rng(5))
    env.reset()
    for action in random_actions(7, seed=3):
        env.step(action)
    return env


@pytest.fixture(scope="module")
def other() -> LiftEnv:
    """An environment with a simulator of its own, and robosuite's own step, to restore states into."""
    _robosuite_arm.simulator.cache_clear()
    return LiftEnv(DEMONSTRATED[LIFT.id], seed=12, stepping="stock")


def random_actions(n: int, seed: int) -> npt.NDArray[np.float32]:
    """(n, 7) in [-1, 1]."""
    return np.random.default_rng(seed).uniform(-1, 1, (n, 7)).astype(np.float32)


def assert_same(first: State, second: State) -> None:
    """Same names, same bits."""
    assert first.keys() == second.keys()
    for key, value in first.items():
        np.testing.assert_array_equal(value, second[key], err_msg=key, strict=True)


def trace(env: LiftEnv, actions: npt.NDArray[np.float32]) -> Iterator[State]:
    """The full state after every action, and after a reset at the end."""
    for action in actions:
        observation, *_ = env.step(action)
        assert env.observation_space.contains(observation)
        yield env.get_state()
    env.reset()
    yield env.get_state()


def demonstrated_until(env: LiftEnv, step: int) -> State:
    """The state after `step` control steps of a demonstration that is the same every time."""
    observation, _ = env.reset(seed=4)
    demonstrator = Demonstrator(np.random.default_rng(6))
    for _ in range(step):
        observation, _, terminated, *_ = env.step(demonstrator.act(observation))
        assert not terminated
    return env.get_state()


@pytest.mark.parametrize("step", [0, 9, 25, 29], ids=["reset", "reaching", "closing", "lifting"])
def test_restored_state_goes_on_with_the_same_bits(used: LiftEnv, other: LiftEnv, step: int) -> None:
    state = demonstrated_until(used, step)
    if step == 29:
        simulation, gripper = used._simulation, used._robot.gripper["right"]
        assert used._arm.ask(lambda: simulation._check_grasp(gripper, simulation.cube))
    actions = random_actions(12, seed=step)
    actions[:6, 6] = 1.0  # keep what is grasped
    expected = list(trace(used, actions))
    for env in (used, other):
        observation = env.set_state(state)
        assert_same(observation, {key: state[f"observation.{key}"] for key in observation})
        assert_same(env.get_state(), state)
        for now, then in zip(trace(env, actions), expected, strict=True):
            assert_same(now, then)


def test_reset_of_a_used_environment_is_that_of_a_fresh_one(used: LiftEnv) -> None:
    fresh = robosuite_tasks.make(LIFT, seed=21)
    fresh.reset()
    used.reset(seed=21)
    assert_same(used.get_state(), fresh.get_state())
    for now, then in zip(trace(used, random_actions(5, seed=8)), trace(fresh, random_actions(5, seed=8)), strict=True):
        assert_same(now, then)


def test_step_is_robosuites_own(used: LiftEnv, other: LiftEnv) -> None:
    other.set_state(demonstrated_until(used, 20))
    for action in random_actions(5, seed=9):
        used.step(action)
        other._simulation.step(action.astype(np.float64))
        np.testing.assert_array_equal(used._data.qpos, other._data.qpos)
        np.testing.assert_array_equal(used._data.qvel, other._data.qvel)
    assert used._arm.ask(used._simulation._check_success) == other._simulation._check_success()


def test_demonstrator_succeeds_in_95_of_100_episodes(used: LiftEnv) -> None:
    rng = np.random.default_rng(0)
    used.reset(seed=0)
    episodes = [robosuite_tasks.demonstrate(used, rng) for _ in range(EPISODES)]
    assert sum(success for *_, success in episodes) >= 95
    lengths = [len(actions) for _, actions, success in episodes if success]
    assert 1.5 <= HORIZON / np.median(lengths) <= 2.0
    for observations, actions, _ in episodes:
        assert actions.shape == (len(actions), 7) and actions.dtype == np.float32 and np.abs(actions).max() <= 1.0
        for key, space in used.observation_space.spaces.items():
            assert space.contains(observations[key][0]) and observations[key].dtype == np.float32


def inside(areas: tuple[Area, ...], point: npt.NDArray[np.float32]) -> bool:
    """Whether a cube position (3,) lies over one of the areas."""
    return any(
        all(low - 1e-6 <= x <= high + 1e-6 for x, (low, high) in zip(point[:2], (area.x, area.y), strict=True))
        for area in areas
    )


def test_finetuning_asks_for_places_that_were_not_demonstrated() -> None:
    demonstrated, finetuned = DEMONSTRATED[UNSEEN.id], FINETUNED[UNSEEN.id]
    demos = robosuite_tasks.demos(UNSEEN, 8, np.random.default_rng(2))
    starts = demos.observations["cube_pos"][np.concatenate([[0], demos.ends[:-1]])]
    assert demos.success.all() and len(demos.actions) == demos.ends[-1]
    assert all(inside(demonstrated, start) and not inside(finetuned, start) for start in starts)
    env = robosuite_tasks.make(UNSEEN, seed=1)
    asked = [env.reset()[0]["cube_pos"] for _ in range(50)]
    assert all(inside(finetuned, start) and not inside(demonstrated, start) for start in asked)
    assert np.ptp(asked, axis=0)[:2].min() > 0.05
    assert {bool(place[1] > 0) for place in asked} == {True, False}
    moves = demos.actions[:, 1]  # to both sides: no direction that fine-tuning needs is missing
    assert min((moves > 0.3).sum(), (moves < -0.3).sum()) > 10


@pytest.mark.parametrize("backend", [None, "disabled"])
def test_importing_robosuite_is_silent_and_leaves_the_process_as_it_was(backend: str | None) -> None:
    code = (
        "import os, random, sys, numpy as np\n"
        "from envs import robosuite_tasks as r\n"
        "assert 'robosuite' not in sys.modules and 'mujoco' not in sys.modules\n"
        "before = np.random.get_state()[1].tobytes(), random.getstate(), os.environ.get('MUJOCO_GL')\n"
        "r.make(r.tasks[0], 0)\n"
        "assert before == (np.random.get_state()[1].tobytes(), random.getstate(), os.environ.get('MUJOCO_GL'))\n"
    )
    environ = {key: value for key, value in os.environ.items() if key != "MUJOCO_GL"}
    environ |= {"MUJOCO_GL": backend} if backend else {}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_state_and_context_are_what_is_observed(used: LiftEnv) -> None:
    task: Task
    for task in robosuite_tasks.tasks:
        assert {*task.state_keys, *task.context_keys} == set(used.observation_space.spaces)


def test_environments_that_share_a_simulator_do_not_disturb_each_other() -> None:
    def follow(env: LiftEnv, seed: int, between: LiftEnv | None) -> list[npt.NDArray[np.float32]]:
        env.reset(seed=seed)
        rng, seen = np.random.default_rng(seed), []
        for _ in range(8):
            if between is not None:
                between.step(np.ones(7, np.float32))
            seen.append(env.step(rng.uniform(-1, 1, 7))[0]["eef_pos"])
        return seen

    first, second = robosuite_tasks.make(LIFT, 0), robosuite_tasks.make(LIFT, 1)
    alone = follow(first, 3, None)
    second.reset(seed=4)
    assert np.array_equal(alone, follow(first, 3, second))
