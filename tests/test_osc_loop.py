"""The compiled control loop beside robosuite's own, on the same actions: bits, errors, states, threads, refusals."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("robosuite", reason="the robosuite suite is not installed")

import mujoco
import numba

import bench
from bench import compile_cache
from bench.types import STEPPING, State
from envs import _osc_kernel, robosuite_tasks
from envs._osc_loop import ArmLoop, load_kernel, supported
from envs._robosuite_arm import CompiledArm, Simulator, StockArm, import_robosuite, make_arm, make_simulation, simulator
from envs.robosuite_tasks import FINETUNED, HORIZON, Demonstrator, LiftEnv

Array = npt.NDArray[Any]

# What the scripted motion takes hold of: the name of a site or body, and metres above its centre.
GRASPS = {
    "Lift": ("cube_main", 0.0),
    "Stack": ("cubeA_main", 0.0),
    "PickPlaceCan": ("Can_main", 0.02),
    "NutAssemblySquare": ("SquareNut_handle_site", 0.0),
    "Door": ("Door_handle", 0.0),
}
LIFT = robosuite_tasks.tasks[0]
READ = ("qpos", "qvel", "ctrl", "xpos", "xquat", "site_xpos", "site_xmat")  # all that robosuite observes comes from it


@pytest.fixture(scope="module", params=GRASPS)
def shared(request: pytest.FixtureRequest) -> Simulator:
    """A robosuite environment of its own for every task."""
    return Simulator(make_simulation(request.param))


def find(simulation: Any, name: str) -> Array:
    """The position (3,) of a site or body."""
    model, data = simulation.sim.model._model, simulation.sim.data._data
    site = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_SITE, name)
    return data.site_xpos[site] if site >= 0 else data.xpos[mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, name)]


def random_motion(simulation: Any, steps: int, rng: np.random.Generator) -> Iterator[Array]:
    """Uniform actions; the object has no say."""
    yield from rng.uniform(-1.0, 1.0, (steps, 7))


def grasp(simulation: Any, steps: int, rng: np.random.Generator) -> Iterator[Array]:
    """Above the object, down, close, up and to the side; slightly noisy."""
    name, height = GRASPS[type(simulation).__name__]
    for step in range(steps):
        share = step / steps
        target = find(simulation, name) + np.array([0.0, 0.0, height + (0.08 if share < 0.35 else 0.0)])
        way = target - simulation.sim.data.site_xpos[simulation.robots[0].eef_site_id["right"]]
        move = way / 0.05 if share < 0.75 else np.array([0.2, 0.2, 1.0])
        grip = -1.0 if share < 0.6 else 1.0
        yield np.concatenate([move + rng.normal(0.0, 0.05, 3), rng.normal(0.0, 0.05, 3), [grip]]).clip(-1.0, 1.0)


def judge(simulation: Any, action: Array) -> tuple[dict[str, Any], float, bool]:
    """robosuite's observations, reward and success from the simulator that it has now."""
    cache: dict[str, Any] = {}
    for name, observable in simulation._observables.items():
        cache[name] = np.array(observable._sensor(cache))
    return cache, float(simulation.reward(action)), bool(simulation._check_success())


def assert_same_bits(simulation: Any, arm: CompiledArm, action: Array) -> None:
    """Data, observations, reward and success are those of robosuite's own simulator."""
    for name in READ:
        np.testing.assert_array_equal(getattr(arm.data, name), getattr(simulation.sim.data._data, name), err_msg=name)
    theirs, ours = judge(simulation, action), arm.ask(lambda: judge(simulation, action))
    assert theirs[1:] == ours[1:]
    for name, value in theirs[0].items():
        np.testing.assert_array_equal(value, ours[0][name], err_msg=name)


def step_error(simulation: Any, loop: ArmLoop) -> float:
    """The largest difference of a joint's position or velocity."""
    own, data = simulation.sim.data._data, loop.data
    return float(max(np.abs(own.qpos - data.qpos).max(), np.abs(own.qvel - data.qvel).max()))


def touches(simulation: Any) -> bool:
    """Whether a finger touches something."""
    fingers = [g for group in simulation.robots[0].gripper["right"].important_geoms.values() for g in group]
    return bool(simulation.check_contact(fingers))


def holds(simulation: Any) -> bool:
    """Whether both fingers have hold of the object; of the door, whether its handle is turned."""
    match type(simulation).__name__:
        case "Door":
            return bool(abs(simulation.sim.data.qpos[simulation.handle_qpos_addr]) > 0.05)
        case "Lift":
            taken = simulation.cube
        case "Stack":
            taken = simulation.cubeA
        case "PickPlaceCan":
            taken = simulation.objects[simulation.object_id]
        case _:
            taken = simulation.nuts[simulation.nut_id]
    return bool(simulation._check_grasp(simulation.robots[0].gripper, taken))


def test_strict_repeats_robosuite_and_fast_comes_close(shared: Simulator) -> None:
    """Episodes with contact side by side; `fast` starts every step anew from robosuite's state."""
    simulation, errors, contacts, held = shared.simulation, [], 0, 0
    strict, fast = CompiledArm(shared, fast=False), ArmLoop(shared, fast=True)
    motions: list[Callable[..., Iterator[Array]]] = [random_motion, grasp, random_motion, grasp]
    for seed, motion in enumerate(motions):
        simulation.rng = np.random.default_rng(seed)
        simulation.reset()
        strict._loop.load()
        for action in motion(simulation, 60, np.random.default_rng(seed)):
            fast.load()
            simulation.step(action)
            strict._loop.step(action[None])
            fast.step(action[None])
            assert_same_bits(simulation, strict, action)
            errors.append(step_error(simulation, fast))
            contacts += motion is grasp and touches(simulation)
            held += motion is grasp and holds(simulation)
    assert contacts > 20 and held > 20
    assert np.mean(np.array(errors) <= 1e-8) >= 0.99 and max(errors) > 0.0
    assert np.median(errors) < 1e-11


def test_fast_does_as_strict_in_a_singular_posture() -> None:
    """Stretched upwards but for 1e-8 rad: robosuite's pseudo-inverse leaves out what elimination divides by."""
    shared = simulator("Lift")
    strict, fast = (CompiledArm(shared, fast) for fast in (False, True))
    strict.reset(np.random.default_rng(0), lambda: None)
    strict.step(np.zeros((1, 7)))
    state = strict.get_state()
    for arm in (strict, fast):
        arm.set_state(state)
        arm.data.qpos[:7], arm.data.qvel[:] = 1e-8, 0.0
        arm._loop._substeps = 1
        arm.step(np.full((1, 7), 0.001))
    assert np.abs(strict.data.ctrl).max() < 10.0  # N m; 80 without the truncation
    np.testing.assert_array_equal(fast.data.ctrl, strict.data.ctrl)


@numba.njit
def pseudo_inverse(matrix: Array) -> Array:
    """The kernel's, (6, 6)."""
    work = _osc_kernel._buffers()
    work.square[0] = matrix
    return _osc_kernel._pseudo_inverse(work.square, 9, work).copy()


@numba.njit
def pinv(matrix: Array) -> Array:
    """Numba's, which robosuite's controller calls."""
    return np.linalg.pinv(matrix)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("least", [1e-3, 3e-15, 3e-16, 0.0])
def test_pseudo_inverse_leaves_out_what_numbas_leaves_out(scale: float, least: float) -> None:
    """Singular values on both sides of the cut at 1e-15 of the largest, whatever its size."""
    load_kernel()
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((6, 6)))[0] for _ in range(2))
    matrix = np.ascontiguousarray(left @ np.diag([scale, *[0.5 * scale] * 4, least * scale]) @ right)
    np.testing.assert_array_equal(pseudo_inverse(matrix), pinv(matrix))


def assert_same_state(first: State, second: State) -> None:
    assert list(first) == list(second)
    for key, value in first.items():
        np.testing.assert_array_equal(value, second[key], err_msg=key, strict=True)


def test_states_go_from_any_stepping_to_any_other(shared: Simulator) -> None:
    """In mid-episode and right after a reset, also where a reset moves bodies of the model (Door)."""
    actions = np.random.default_rng(1).uniform(-1.0, 1.0, (12, 7))
    arms = {stepping: make_arm(shared, stepping) for stepping in STEPPING}
    assert all(arm.stepping == stepping for stepping, arm in arms.items())
    for before in (0, 6):
        for source in ("stock", "strict"):
            for other in arms.values():  # bodies are elsewhere in all of them
                other.reset(np.random.default_rng(9), lambda: None)
            arms[source].reset(np.random.default_rng(2), lambda: None)
            if before:
                arms[source].step(actions[:before])
            state = arms[source].get_state()
            for arm in arms.values():
                arm.set_state(state)
                assert_same_state(arm.get_state(), state)
                arm.step(actions[before : before + 4])
                np.testing.assert_array_equal(arm.ask(lambda: shared.simulation.sim.data.qpos.copy()), arm.data.qpos)
            assert_same_state(arms["stock"].get_state(), arms["strict"].get_state())
            np.testing.assert_allclose(arms["fast"].data.qpos, arms["strict"].data.qpos, rtol=0, atol=1e-6)


def demonstrated(env: LiftEnv, seed: int) -> Array:
    """The actions of a demonstration, and its outcome's."""
    observation, _ = env.reset(seed=seed)
    demonstrator, actions, over = Demonstrator(np.random.default_rng(seed)), [], False
    while not over:
        actions.append(demonstrator.act(observation))
        observation, _, terminated, truncated, _ = env.step(actions[-1])
        over = terminated or truncated
    return np.array(actions)


@pytest.fixture(scope="module")
def lifts() -> dict[str, LiftEnv]:
    """One environment for each stepping."""
    return {stepping: robosuite_tasks.make(LIFT, 5, stepping) for stepping in STEPPING}


def test_episodes_of_the_suite_are_the_same_bits(lifts: dict[str, LiftEnv]) -> None:
    """Reset, observations, reward, success and full states of `stock` and `strict`, to success and to the horizon."""
    for seed in range(3):
        actions = demonstrated(lifts["fast"], seed) if seed else np.random.default_rng(0).uniform(-1, 1, (HORIZON, 7))
        envs = [lifts["stock"], lifts["strict"]]
        first = [env.reset(seed=seed)[0] for env in envs]
        assert_same_state(*first)
        for action in actions:
            (theirs, *rest), (ours, *same) = (env.step(action) for env in envs)
            assert_same_state(theirs, ours)
            assert rest == same
        assert_same_state(*(env.get_state() for env in envs))
        assert rest[1] == (seed > 0) and rest[2] == (seed == 0)  # terminated, truncated


def test_robosuites_rule_ends_a_chunk_as_the_watched_number_does(lifts: dict[str, LiftEnv]) -> None:
    actions = demonstrated(lifts["strict"], 2)
    lifts["strict"].reset(seed=2)
    state = lifts["strict"].get_state()
    for stepping in STEPPING:
        arm = make_arm(simulator("Lift"), stepping)
        arm.set_state(state)
        assert arm.step(np.concatenate([actions, actions])) == (len(actions), True)


def test_a_compiled_reset_leaves_stock_environments_alone(lifts: dict[str, LiftEnv]) -> None:
    stock, other = lifts["stock"], lifts["strict"]
    futures = []
    for disturbed in (False, True):
        stock.reset(seed=4)
        stock.step_chunk(np.ones((3, 7)))
        if disturbed:
            other.reset(seed=5)
            other.step_chunk(np.ones((3, 7)))
        futures.append((stock.step_chunk(-np.ones((3, 7))).observation, stock.get_state()))
    for first, second in zip(*futures, strict=True):
        assert_same_state(first, second)


@pytest.mark.parametrize("stepping", STEPPING)
def test_a_chunk_is_as_many_steps(lifts: dict[str, LiftEnv], stepping: str) -> None:
    """Over success and over the horizon in the middle of a chunk."""
    env = lifts[stepping]
    for actions in (demonstrated(env, 1), np.zeros((HORIZON, 7))):
        env.reset(seed=1)
        single = [env.step(action) for action in actions]
        state = env.get_state()
        env.reset(seed=1)
        padded, taken, count = np.concatenate([actions, np.ones((7, 7))]), [], 0
        while not taken or not (taken[-1].terminated or taken[-1].truncated):
            taken.append(env.step_chunk(padded[count : count + 7]))
            count += taken[-1].count
        assert_same_state(env.get_state(), state)
        assert count == len(actions) and sum(t.reward for t in taken) == sum(s[1] for s in single)
        last = (taken[-1].terminated, taken[-1].truncated, {"success": taken[-1].success})
        assert last == single[-1][2:]
        assert_same_state(taken[-1].observation, single[-1][0])


@pytest.mark.parametrize("actions", [np.full((1, 7), np.nan), np.zeros((2, 6)), np.zeros((0, 7)), np.zeros(7)])
def test_bad_actions_are_refused(lifts: dict[str, LiftEnv], actions: Array) -> None:
    for env in lifts.values():
        env.reset(seed=1)
        with pytest.raises(ValueError, match=r"actions must be finite and \(E, 7\)"):
            env.step_chunk(actions)


def test_demonstrator_succeeds_as_often(lifts: dict[str, LiftEnv]) -> None:
    """`strict` stands for `stock` here, which would take ten times as long."""
    rates = {}
    for stepping in ("strict", "fast"):
        lifts[stepping].reset(seed=0)
        rng = np.random.default_rng(0)
        rates[stepping] = np.mean([robosuite_tasks.demonstrate(lifts[stepping], rng)[2] for _ in range(40)])
    assert abs(rates["strict"] - rates["fast"]) <= 0.05 and min(rates.values()) >= 0.9


@pytest.mark.parametrize("stepping", STEPPING)
def test_threads_do_not_disturb_each_other(stepping: str) -> None:
    """Three environments, with resets in between, give the bits that each gives alone."""

    def live(env: LiftEnv, seed: int, result: list[State]) -> None:
        rng = np.random.default_rng(seed)
        for episode in range(2):
            env.reset(seed=seed + episode)
            for _ in range(3):
                env.step_chunk(rng.uniform(-1, 1, (5, 7)))
            result.append(env.get_state())

    envs = [LiftEnv(FINETUNED[LIFT.id], seed, stepping) for seed in range(3)]
    alone: list[list[State]] = [[] for _ in envs]
    together: list[list[State]] = [[] for _ in envs]
    for seed, env in enumerate(envs):
        live(env, seed, alone[seed])
    threads = [threading.Thread(target=live, args=(env, i, together[i])) for i, env in enumerate(envs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for first, second in zip(alone, together, strict=True):
        assert len(first) == len(second) == 2
        for a, b in zip(first, second, strict=True):
            assert_same_state(a, b)


def falls_back(shared: Simulator, reason: str) -> None:
    """`strict` steps as robosuite does and says why, the first time only."""
    with pytest.warns(UserWarning, match=reason) as caught:
        arm = make_arm(shared, "strict")
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    assert isinstance(arm, StockArm) and arm.stepping == "stock"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(make_arm(shared, "fast"), StockArm)
    arm.reset(np.random.default_rng(0), lambda: None)
    before = arm.data.qpos.copy()
    assert arm.step(np.ones((2, shared.simulation.action_dim))) == (2, False)
    assert not np.array_equal(arm.data.qpos, before)


def test_another_controller_falls_back() -> None:
    config = import_robosuite().load_composite_controller_config(robot="Panda")
    config["body_parts"]["right"] = {
        **import_robosuite().load_part_controller_config(default_controller="JOINT_POSITION"),
        "gripper": {"type": "GRIP"},
    }
    falls_back(Simulator(make_simulation("Lift", controller_configs=config)), "JointPositionController")


def test_other_gains_of_the_same_controller_are_covered_and_other_frames_not() -> None:
    simulation = simulator("Lift").simulation
    arm = simulation.robots[0].part_controllers["right"]
    assert supported(simulation) is None
    for name, value in {"input_ref_frame": "world", "impedance_mode": "variable", "uncoupling": False}.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(arm, name, value)
            assert "not set up as" in (supported(simulation) or "")


def test_another_robot_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = Simulator(simulator("Lift").simulation)
    monkeypatch.setattr(shared.robot, "name", "Sawyer")
    falls_back(shared, "the robot is Sawyer, not one Panda")


def test_another_mujoco_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mujoco, "__version__", "3.10.0")
    falls_back(Simulator(simulator("Lift").simulation), "mujoco 3.10.0 is not among the versions")


def test_unknown_stepping_is_refused() -> None:
    with pytest.raises(ValueError, match="stepping is strict, fast, stock, not 'quick'"):
        robosuite_tasks.make(LIFT, 0, "quick")


CALL = """if True:
    import sys
    import numpy as np
    from bench import compile_cache
    from envs import _osc_kernel
    if "broken" in sys.argv:
        try:
            _osc_kernel.turn_matrices(np.ones((1, 3)))
        except Exception:
            print("raised")
    compile_cache.mend([_osc_kernel.turn_matrices])
    print(_osc_kernel.turn_matrices(np.ones((1, 3)))[0, 0, 0], len(_osc_kernel.turn_matrices.stats.cache_hits))
"""


def test_compiled_code_that_cannot_be_read_is_made_anew(tmp_path: Path) -> None:
    """Beside what Numba does by itself with files that were cut in half: raise, in every process."""

    def call(*argv: str) -> list[str]:
        command, environ = [sys.executable, "-c", CALL, *argv], {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout.split()

    (value, hits) = call()
    assert hits == "0"
    for ending in ("nbi", "nbc"):
        (file,) = tmp_path.rglob(f"*turn_matrices*.{ending}")
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        assert call("broken") == ["raised", value, "0"]
        assert len(file.read_bytes()) > len(whole) // 2
    assert call() == [value, "1"]


def test_all_compiled_functions_are_guarded(lifts: dict[str, LiftEnv]) -> None:
    from robosuite.utils import control_utils, transform_utils

    for function in (
        _osc_kernel.run,
        _osc_kernel.turn_matrices,
        control_utils.opspace_matrices,
        transform_utils.quat2mat,
    ):
        assert type(function._cache._cache_file) is compile_cache.ForgivingFile


@pytest.mark.parametrize("flags, chosen", [("fpu avx2 fma", "Haswell"), ("fpu avx fma", None)])
def test_blas_kernel_is_chosen_by_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, chosen: str | None
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor : 0\nflags\t\t: {flags}\n")
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Zen")
    bench._align_blas(cpuinfo)
    assert os.environ["OPENBLAS_CORETYPE"] == "Zen"  # the user's value stays
    monkeypatch.delenv("OPENBLAS_CORETYPE")
    bench._align_blas(cpuinfo)
    assert "OPENBLAS_CORETYPE" not in os.environ  # NumPy is loaded
    monkeypatch.delitem(sys.modules, "numpy")
    bench._align_blas(cpuinfo)
    assert os.environ.get("OPENBLAS_CORETYPE") == chosen


def test_different_blas_kernels_are_noticed() -> None:
    code = """if True:
        import os
        os.environ["OPENBLAS_CORETYPE"] = "Prescott"
        import numpy
        os.environ["OPENBLAS_CORETYPE"] = "Haswell"
        from envs import _osc_loop
        print(_osc_loop._aligned())
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
    environ = {key: value for key, value in os.environ.items() if key != "OPENBLAS_CORETYPE"}
    code = "import bench; from envs import _osc_loop; print(_osc_loop._aligned())"
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"]
