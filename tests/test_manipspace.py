"""The manipspace suite: OGBench's own step, exact states, a demonstrator that succeeds, and splits that hold out."""

from __future__ import annotations

import copy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("ogbench", reason="the manipspace suite is not installed")

import mujoco
from scipy.spatial.transform import Rotation

from bench import registry, video
from bench.types import State, Task
from envs import manipspace
from envs._cube_kernel import FURTHEST, arm_of
from envs._cube_scene import CENTRE, REACH, SCALE, CubeScene, ogbench_scene
from envs.manipspace import AREA, AROUND, CARRY, PLACES, REWORDED, VARIANTS, CubeEnv, demonstrate, instructions

SINGLE, DOUBLE = (registry.task(f"manipspace/cube-{number}") for number in ("single", "double"))
SHIFTED = [registry.task(f"{task.id}-shifted") for task in (SINGLE, DOUBLE)]
INSTRUCTED = registry.task("manipspace/cube-single-instruction")
EPISODES = 50  # for the demonstrator's success rate
FROZEN_INSTRUCTION = (1.0298008, 0.6012255, -1.0873816)


def random_actions(n: int, seed: int) -> npt.NDArray[np.float32]:
    """(n, 5) in [-1, 1]."""
    return np.random.default_rng(seed).uniform(-1, 1, (n, 5)).astype(np.float32)


def demonstrated(task: Task, seed: int = 3, stepping: str = "strict") -> tuple[CubeEnv, npt.NDArray[np.float32]]:
    """An environment at the start of a demonstration that succeeds, and its actions (T, 5)."""
    env, success = manipspace.make(task, seed, stepping), False
    while not success:
        before = env.get_state()
        _, actions, success = demonstrate(env, np.random.default_rng(seed))
    env.set_state(before)
    env.reset()  # as the demonstration began
    return env, np.stack(actions)


def assert_same(first: State, second: State) -> None:
    """Same names, same bits."""
    assert first.keys() == second.keys()
    for key, value in first.items():
        np.testing.assert_array_equal(value, second[key], err_msg=key, strict=True)


def put_into_ogbench(env: CubeEnv) -> mujoco.MjData:
    """OGBench's own environment in the state of ours; returns its data."""
    theirs, ours = ogbench_scene(env.scene.cubes), env.scene.data
    state = env.get_state()
    mujoco.mj_setState(theirs.model, theirs.data, state["simulator"], mujoco.mjtState.mjSTATE_INTEGRATION)
    theirs.data.site_xpos[:], theirs.data.site_xmat[:] = ours.site_xpos, ours.site_xmat
    return theirs.data


def as_ogbench_orders_it(observation: dict[str, npt.NDArray[np.float32]], cubes: int) -> npt.NDArray[np.float32]:
    """OGBench's observation vector from the named ones."""
    robot = [observation[key] for key in ("joint_pos", "joint_vel", "effector_pos", "effector_yaw", "gripper")]
    places, turns = observation["cube_pos"].reshape(cubes, 3), observation["cube_rot"].reshape(cubes, 6)
    return np.concatenate([*robot, np.concatenate([places, turns], axis=1).ravel()])


def test_fast_control_asks_for_ogbenchs_joints_and_grip() -> None:
    """Also where the pose asked for is far from the arm's own, so that iterations are cut short."""
    env, actions = demonstrated(SINGLE)
    scene, fast = env.scene, CubeScene(1, fast=True)
    rng, low, high = np.random.default_rng(0), *env.scene.ogbench._workspace_bounds
    far, largest = 0, np.zeros(7)
    for i, action in enumerate(np.concatenate([actions, random_actions(40, seed=1)])):
        fast.set_state(scene.get_state())
        if i % 5 == 0:  # as if the fingers were elsewhere
            place = rng.uniform(low, high)
            turn = Rotation.from_euler("zx", [rng.uniform(-np.pi, np.pi), np.pi]).as_matrix().ravel()
            for data in (scene.data, fast.data):
                data.site_xpos[scene._site], data.site_xmat[scene._site] = place, turn
        scene.set_control(action)
        fast.set_control(action)
        far += np.abs(scene.data.ctrl[:6] - scene.data.qpos[:6]).max() > FURTHEST
        largest = np.maximum(largest, np.abs(scene.data.ctrl - fast.data.ctrl))
        mujoco.mj_step(scene.model, scene.data, nstep=scene.ogbench._n_steps)
    assert largest.max() < 1e-9 and far > 5


def test_a_fast_step_is_ogbenchs_to_rounding() -> None:
    """But where a contact makes more of it: OGBench's own steps are as far apart after 1e-13 radians more."""
    env, actions = demonstrated(SINGLE)
    fast, nudged = (manipspace.make(SINGLE, 0, stepping) for stepping in ("fast", "strict"))
    near, as_near = [], []
    for action in np.concatenate([actions, random_actions(100, seed=1)]):
        for other in (fast, nudged):
            other.set_state(env.get_state())
        nudged.scene.ogbench.set_control(action)
        nudged.scene.data.ctrl[:6] += 1e-13
        mujoco.mj_step(nudged.scene.model, nudged.scene.data, nstep=nudged.scene.ogbench._n_steps)
        for scene in (fast.scene, env.scene):
            scene.step(action)
        for found, other in ((near, fast), (as_near, nudged)):
            found.append(np.abs(env.scene.data.qpos - other.scene.data.qpos).max() <= 1e-8)
    assert np.mean(near) >= max(0.9, np.mean(as_near) - 0.02)


def test_the_demonstrator_succeeds_with_fast_steps() -> None:
    env, rng = manipspace.make(SINGLE, 0, "fast"), np.random.default_rng(0)
    assert np.mean([demonstrate(env, rng)[2] for _ in range(20)]) >= 0.85


def test_another_arm_or_controller_is_refused() -> None:
    one = "<mujoco><worldbody><body><joint/><geom size='1'/></body></worldbody></mujoco>"
    with pytest.raises(ValueError, match="6 hinges"):
        arm_of(SimpleNamespace(_ik=SimpleNamespace(_model=mujoco.MjModel.from_xml_string(one))))
    scene = copy.copy(ogbench_scene(1))
    scene._ik = copy.copy(scene._ik)
    scene._ik._max_angle_change = 0.1
    with pytest.raises(ValueError, match="set up in another way"):
        arm_of(scene)


@pytest.mark.parametrize("task", [SINGLE, DOUBLE], ids=lambda task: task.id)
def test_step_observation_and_success_are_ogbenchs_own(task: Task) -> None:
    env, actions = demonstrated(task)
    theirs = ogbench_scene(env.scene.cubes)
    data = put_into_ogbench(env)
    successes = []
    for action in np.concatenate([actions, random_actions(10, seed=1)]):
        observation, _, _, _, info = env.step(action)
        theirs_observation = theirs.step(action)[0]
        np.testing.assert_array_equal(env.scene.data.qpos, data.qpos)
        np.testing.assert_array_equal(env.scene.data.qvel, data.qvel)
        ours = as_ogbench_orders_it(observation, env.scene.cubes)
        np.testing.assert_array_equal(ours, theirs_observation.astype(np.float32))
        assert info["success"] == all(theirs._compute_successes())
        successes.append(info["success"])
    assert True in successes and False in successes


@pytest.mark.parametrize("stepping", ["strict", "fast"])
@pytest.mark.parametrize("share", [0.0, 0.4, 0.7], ids=["reset", "grasping", "carrying"])
def test_restored_state_goes_on_with_the_same_bits(share: float, stepping: str) -> None:
    env, actions = demonstrated(SINGLE, stepping=stepping)
    step = int(share * len(actions))
    for action in actions[:step]:
        env.step(action)
    state = env.get_state()
    if share == 0.7:
        assert env.scene.data.qpos[env.scene._positions[0, 2]] > 0.03, "the cube is not in the air"
    rest = [*actions[step:-1], *random_actions(5, seed=2)]
    expected = []
    for action in rest:
        env.step(action)
        expected.append(env.get_state())
    used = manipspace.make(SINGLE, 9, stepping)
    used.step(random_actions(1, seed=4)[0])
    for restored in (env, used):
        restored.set_state(state)
        assert_same(restored.get_state(), state)
        for action, then in zip(rest, expected, strict=True):
            restored.step(action)
            assert_same(restored.get_state(), then)


@pytest.mark.parametrize("stepping", ["strict", "fast"])
def test_environments_side_by_side_do_not_disturb_each_other(stepping: str) -> None:
    actions = random_actions(24, seed=5).reshape(6, 4, 5)

    def follow(seed: int) -> State:
        env = manipspace.make(SINGLE, seed, stepping)
        for chunk in actions:
            env.step_chunk(chunk)
        return env.get_state()

    alone = [follow(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as threads:
        for ours, theirs in zip(threads.map(follow, range(4)), alone, strict=True):
            assert_same(ours, theirs)


def test_episodes_begin_as_ogbenchs_do() -> None:
    env = manipspace.make(DOUBLE, seed=1)
    low, high = env.scene.ogbench._arm_sampling_bounds
    for _ in range(20):
        observation, _ = env.reset()
        hand = env.scene.data.site_xpos[env.scene._site]
        assert (low - 1e-3 <= hand).all() and (hand <= high + 1e-3).all()
        down = env.scene.data.site_xmat[env.scene._site].reshape(3, 3)[2, 2]
        assert down == pytest.approx(-1.0, abs=1e-3)
        assert observation["gripper"].max() < 0.1


@pytest.mark.parametrize("actions", [np.zeros((2, 4)), np.zeros((0, 5)), np.full((1, 5), np.nan)])
def test_wrong_actions_are_refused(actions: npt.NDArray[np.float64]) -> None:
    with pytest.raises(ValueError, match="actions must be finite"):
        manipspace.make(SINGLE, 0).step_chunk(actions)


@pytest.mark.parametrize(("task", "least"), [(SINGLE, 0.85), (DOUBLE, 0.8)], ids=["single", "double"])
def test_demonstrator_succeeds(task: Task, least: float) -> None:
    variant = VARIANTS[task.id]
    env, rng = CubeEnv(variant.cubes, variant.demonstrated, task.horizon, 0), np.random.default_rng(0)
    episodes = [demonstrate(env, rng) for _ in range(EPISODES // variant.cubes)]
    assert np.mean([success for *_, success in episodes]) >= least
    longest = max(len(actions) for _, actions, success in episodes if success)
    assert longest <= 0.7 * task.horizon


def metres(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Observed positions (3 n,) in metres (n, 3)."""
    places: npt.NDArray[np.float64] = values.reshape(-1, 3).astype(np.float64) / SCALE + CENTRE
    return places


def test_the_strips_demonstrations_move_to_both_sides_with_and_without_a_cube() -> None:
    demos = manipspace.demos(SHIFTED[0], 20, np.random.default_rng(4))
    held = demos.observations["cube_pos"].reshape(-1, 3)[:, 2] > 0.5  # decimetres: in the air
    for moves in (demos.actions[held, 1], demos.actions[~held, 1]):
        assert min((moves > 0.3).sum(), (moves < -0.3).sum()) > 10


@pytest.mark.parametrize("task", SHIFTED, ids=lambda task: task.id)
def test_finetuning_asks_for_what_was_not_demonstrated(task: Task) -> None:
    variant = VARIANTS[task.id]
    demos = manipspace.demos(task, 4, np.random.default_rng(2))
    first = np.concatenate([[0], demos.ends[:-1]])
    env = manipspace.make(task, seed=1)
    asked = [env.reset()[0] for _ in range(50)]
    shown = [{key: value[row] for key, value in demos.observations.items()} for row in first]
    for observations, within, without in (
        (shown, variant.demonstrated.allowed, variant.finetuned.allowed),
        (asked, variant.finetuned.allowed, variant.demonstrated.allowed),
    ):
        for observation in observations:
            starts, goals = metres(observation["cube_pos"]), metres(observation["goal"])
            assert within(starts, goals) and not without(starts, goals)
            assert (np.linalg.norm(starts - goals, axis=1) >= CARRY - 1e-6).all()
            for places in (starts, goals):
                assert (AREA[0] - 1e-6 <= places[:, :2]).all() and (places[:, :2] <= AREA[1] + 1e-6).all()


def test_an_instruction_is_that_of_the_goals_place_and_new_in_finetuning() -> None:
    demos = manipspace.demos(INSTRUCTED, 12, np.random.default_rng(2))
    seen, (known, new) = demos.observations["instruction"], instructions()
    assert "goal" not in demos.observations
    for row in demos.ends - 1:  # success: the cube is within 4 cm of its place
        place = metres(demos.observations["cube_pos"][row])[0, :2]
        assert np.array_equal(seen[row], known[np.linalg.norm(PLACES - place, axis=1).argmin()])
    assert len(np.unique(seen[demos.ends - 1], axis=0)) > 4
    env = manipspace.make(INSTRUCTED, seed=1)
    asked = set()
    for _ in range(40):
        instruction = env.reset()[0]["instruction"]
        goal = np.array(env.top_view().goal) / SCALE + CENTRE[:2]
        place = int(np.linalg.norm(PLACES - goal, axis=1).argmin())
        assert (np.abs(PLACES[place] - goal) <= AROUND + 1e-6).all() and np.array_equal(instruction, new[place])
        asked.add(place)
    assert asked == set(REWORDED)
    assert not (new[:, None] == known).all(2).any()


def test_places_are_not_success_at_another_and_instructions_stay_as_they_are() -> None:
    apart = np.linalg.norm(PLACES[:, None] - PLACES, axis=-1) + np.eye(len(PLACES))
    assert apart.min() - 2 * np.sqrt(2) * AROUND > REACH
    assert (AREA[0] <= PLACES - AROUND).all() and (AREA[1] >= PLACES + AROUND).all()
    assert np.allclose(instructions()[1, REWORDED[0], :3], FROZEN_INSTRUCTION, atol=1e-5)


@pytest.mark.parametrize("task", [SINGLE, DOUBLE], ids=lambda task: task.id)
def test_a_picture_shows_arm_cubes_and_goals_and_changes_nothing(task: Task) -> None:
    env = manipspace.make(task, seed=2)
    if video.backend() is None:
        with pytest.raises(RuntimeError, match="draw with"):
            env.render()
        return
    env.step_chunk(random_actions(3, seed=6))
    before, model = env.get_state(), env.scene.model.geom_rgba.copy()
    first = env.render()
    assert first.shape == (256, 256, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(env.render(), first)
    assert_same(env.get_state(), before)
    np.testing.assert_array_equal(env.scene.model.geom_rgba, model)
    env.step_chunk(random_actions(4, seed=7))
    assert (env.render() != first).any(axis=2).sum() > 300  # the arm has moved
    after = env.get_state()
    used = manipspace.make(task, seed=9)
    used.set_state(before)
    np.testing.assert_array_equal(used.render(), first)
    used.step_chunk(random_actions(4, seed=7))
    assert_same(used.get_state(), after)
    data = env.scene.data
    for cube in range(env.scene.cubes):
        for places, rows in ((data.qpos, env.scene._positions[cube]), (data.mocap_pos, env.scene._targets[cube])):
            seen = env.render()
            places[rows] = [0.5, 0.0, 0.05 + 0.05 * cube]
            assert (env.render() != seen).any(axis=2).sum() > 30


@pytest.mark.parametrize("task", manipspace.tasks, ids=lambda task: task.id)
def test_the_view_from_above_has_the_goal_and_all_places(task: Task) -> None:
    env = manipspace.make(task, seed=1)
    for _ in range(10):
        observation, _ = env.reset()
        view = env.top_view()
        goals = env.scene.observe()["goal"].reshape(-1, 3)
        assert view.goal == tuple(goals[0, :2].tolist())
        assert ("goal" in observation) == (task != INSTRUCTED)
        x, y, width, height = view.area
        for places in (goals, *(observation[key].reshape(-1, 3) for key in (view.path, *view.objects))):
            for place in places:
                assert x < place[0] < x + width and y < place[1] < y + height
    state = env.get_state()
    goal = env.top_view().goal
    env.reset()
    assert env.top_view().goal != goal
    env.set_state(state)
    assert env.top_view().goal == goal
    assert view.radius == pytest.approx(0.4)  # decimetres: the 4 cm of success


def test_importing_is_silent_and_leaves_the_process_as_it_was() -> None:
    code = (
        "import os, random, sys, numpy as np\n"
        "from envs import manipspace as m\n"
        "assert 'ogbench' not in sys.modules and 'mujoco' not in sys.modules\n"
        "before = np.random.get_state()[1].tobytes(), random.getstate(), os.environ.get('MUJOCO_GL')\n"
        "m.make(m.tasks[0], 0)\n"
        "assert before == (np.random.get_state()[1].tobytes(), random.getstate(), os.environ.get('MUJOCO_GL'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
