"""robosuite's control loop for one Panda under OSC_POSE, compiled: the parts around `envs._osc_kernel`.

An `ArmLoop` steps a simulator of its own, made from a live robosuite environment but without the geoms that are only
seen: three quarters of the geoms, and nothing that physics depends on. robosuite itself is needed for resets, whose
result `load` takes over. Loops may step at the same time in several threads; what they share is not written to.
"""

from __future__ import annotations

import copy
import warnings
import xml.etree.ElementTree as ElementTree
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite.binding
import mujoco
import numpy as np
from numba.extending import get_cython_function_address

from bench.compile_cache import mend
from bench.types import State
from envs import _osc_kernel as kernel
from envs._chunked import checked
from envs._robosuite_arm import Array, Simulator, Watch, places, set_places

MUJOCO = ("3.8.1",)  # versions whose C functions and data are known to be as the kernel expects
STATE = mujoco.mjtState.mjSTATE_INTEGRATION
PHYSICS = ("body_", "dof_", "jnt_", "site_", "actuator_", "eq_", "tendon_", "sensor_", "exclude_", "key_")
# Depend on the geoms that are left out, and do not enter a step: addresses of geoms, colours, and lengths for sleeping.
UNPHYSICAL = {"body_geomadr", "body_geomnum", "body_bvhadr", "body_bvhnum", "site_rgba", "site_matid", "dof_length"}


def supported(simulation: Any) -> str | None:
    """Why the compiled loop does not cover a robosuite environment, or None if it does."""
    if mujoco.__version__ not in MUJOCO:
        return f"mujoco {mujoco.__version__} is not among the versions it was tested with ({', '.join(MUJOCO)})"
    if _library() is None:
        return "the mujoco package holds no library of its own"
    robots = simulation.robots
    if len(robots) != 1 or robots[0].name != "Panda":
        return f"the robot is {' and '.join(robot.name for robot in robots)}, not one Panda"
    parts = {name: type(part).__name__ for name, part in robots[0].part_controllers.items()}
    if list(parts.values()) != ["OperationalSpaceController", "SimpleGripController"]:
        return f"the controllers are {', '.join(parts.values())}, not OSC_POSE and GRIP"
    arm, gripper = robots[0].part_controllers.values()
    same = (
        robots[0].composite_controller.name == "BASIC",
        type(robots[0].gripper[robots[0].arms[0]]).__name__ == "PandaGripper",
        (arm.name, arm.impedance_mode, arm.input_type, arm.input_ref_frame) == ("OSC_POSE", "fixed", "delta", "base"),
        arm._goal_update_mode == "achieved" and arm.uncoupling and arm.joint_dim == kernel.JOINTS,
        arm.interpolator_pos is None and arm.interpolator_ori is None and arm.position_limits is None,
        arm.orientation_limits is None and gripper.interpolator is None and gripper.use_action_scaling,
        simulation.lite_physics and all(robots[0]._enabled_parts[name] for name in parts),
        simulation.sim.model._model.body_weldid[simulation.sim.model._model.site_bodyid[_base(simulation)]] == 0,
    )
    return None if all(same) else "the controllers are not set up as in robosuite's configuration for the Panda"


def _base(simulation: Any) -> int:
    """The site that the arm's actions refer to."""
    arm = simulation.robots[0].part_controllers[simulation.robots[0].arms[0]]
    site: int = simulation.sim.model.site_name2id(f"{arm.naming_prefix}{arm.part_name}_center")
    return site


@cache
def _library() -> Path | None:
    """The C library of the mujoco package."""
    names = ("libmujoco*.so*", "libmujoco*.dylib")
    return next((path for name in names for path in sorted(Path(mujoco.__file__).parent.glob(name))), None)


@cache
def load_kernel() -> None:
    """Make the C functions known to the compiler, and the caches of compiled code safe against truncated files."""
    llvmlite.binding.load_library_permanently(str(_library()))
    for name in kernel.LAPACK:
        address = get_cython_function_address("scipy.linalg.cython_lapack", name)
        llvmlite.binding.add_symbol(f"bench_{name}", address)
    mend([kernel.run, kernel.turn_matrices])
    if not _aligned():
        warnings.warn(
            "NumPy and SciPy use different BLAS kernels: `strict` stepping equals `stock` to rounding only; "
            "import bench before numpy, or set OPENBLAS_CORETYPE",
            stacklevel=2,
        )


def _aligned() -> bool:
    """Whether NumPy's and SciPy's BLAS round alike. Numba uses SciPy's."""
    from scipy.linalg import blas

    rng = np.random.default_rng(0)
    for _ in range(8):
        a, b, x = rng.normal(size=(3, 16)), rng.normal(size=(16, 4)), rng.normal(size=16)
        same = np.array_equal(blas.dgemv(1.0, a.T, x, trans=1), a @ x)
        if not same or not np.array_equal(blas.dgemm(1.0, b.T, a.T).T, a @ b):
            return False
    return True


def reduced_model(simulation: Any) -> mujoco.MjModel:
    """The model of a robosuite environment without geoms that are only seen; everything physical is compared."""
    text = simulation.model.get_xml()
    for process in simulation._xml_processors:
        text = process(text)
    root = ElementTree.fromstring(text)
    compiler = root.find("compiler")
    assert compiler is not None
    compiler.set("discardvisual", "true")
    model = mujoco.MjModel.from_xml_string(ElementTree.tostring(root, encoding="unicode"))
    whole = simulation.sim.model._model
    set_places(model, places(whole))
    names = [name for name in dir(whole) if name.startswith(PHYSICS) and name not in UNPHYSICAL]
    other = [name for name in names if not np.array_equal(getattr(whole, name), getattr(model, name))]
    if other or whole.stat.meaninertia != model.stat.meaninertia:
        raise RuntimeError(f"without visual geoms the model differs in {', '.join(other)}")
    model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_SENSOR  # nothing here reads them, and they cost 6 % of a step
    return model


def _turn_matrices(turns: Array) -> Array:
    """Rotation vectors (E, 3) → matrices (E, 3, 3) by robosuite's own functions: once a control step only."""
    from robosuite.utils.transform_utils import axisangle2quat, quat2mat

    return np.array([quat2mat(axisangle2quat(turn)) for turn in turns])


def _scaling(simulation: Any) -> tuple[Array, ...]:
    """Lowest and highest action, factor, shift and centre, each (6,): actions → metres and radians."""
    arm = next(iter(simulation.robots[0].part_controllers.values()))
    factor = abs(arm.output_max - arm.output_min) / abs(arm.input_max - arm.input_min)
    shift, centre = (arm.output_max + arm.output_min) / 2.0, (arm.input_max + arm.input_min) / 2.0
    return arm.input_min, arm.input_max, factor, shift, centre


def _robot(simulation: Any) -> kernel.Robot:
    """Indices and limits, read from the live controllers."""
    robot, model = simulation.robots[0], simulation.sim.model._model
    arm, gripper = robot.part_controllers.values()
    arm_ctrl, finger_ctrl = (np.array(robot._ref_actuators_indexes_dict[part]) for part in robot.part_controllers)
    numbers, cells = np.arange(1.0, model.nM + 1), np.zeros((model.nv, model.nv))
    mujoco.mj_fullM(model, cells, numbers)
    limits = model.actuator_ctrlrange
    return kernel.Robot(
        site=int(robot.eef_site_id[robot.arms[0]]),
        base=_base(simulation),
        qpos=np.array(arm.qpos_index),
        qvel=np.array(arm.qvel_index),
        ctrl=arm_ctrl,
        low=limits[arm_ctrl, 0].copy(),
        high=limits[arm_ctrl, 1].copy(),
        cell=cells[np.ix_(arm.qvel_index, arm.qvel_index)].astype(np.int64) - 1,
        finger_qpos=np.array(gripper.qpos_index),
        finger_qvel=np.array(gripper.qvel_index),
        finger_ctrl=finger_ctrl,
        finger_low=limits[finger_ctrl, 0].copy(),
        finger_high=limits[finger_ctrl, 1].copy(),
        finger_centre=0.5 * (gripper.actuator_max + gripper.actuator_min),
        finger_reach=0.5 * (gripper.actuator_max - gripper.actuator_min),
        grip_speed=np.array([-1.0, 1.0]) * robot.gripper[robot.arms[0]].speed,
    )


class ArmLoop:
    """One arm's simulator, what its controllers hold, and the compiled control step over both.

    The model is shared between loops as long as resets leave bodies where it has them; a loop that needs other places
    takes a copy. Nothing else of the model may change. With a `watch` a chunk ends as soon as the watched number
    exceeds its limit.
    """

    def __init__(self, shared: Simulator, fast: bool, watch: Watch | None = None) -> None:
        load_kernel()
        simulation = shared.simulation
        self._shared = shared
        self._fast = fast
        self._substeps = int(simulation.control_timestep / simulation.model_timestep)
        self._watch = watch
        self._robot = _robot(simulation)
        self._scaling = _scaling(simulation)
        self._use(shared.reduced)
        self._hold()

    def _use(self, model: mujoco.MjModel) -> None:
        """Make the simulator of a model. `sim` is robosuite's wrapper, for its rules of success."""
        from robosuite.utils.binding_utils import MjSim

        self.sim = MjSim(model)
        self.model, self.data = model, self.sim.data._data
        d, nv = self.data, model.nv
        self._data = kernel.Data(
            model._address, d._address, d.qpos, d.qvel, d.ctrl, d.qfrc_bias, d.qM, d.site_xpos, d.site_xmat,
            np.zeros((3, nv)), np.zeros((3, nv)),
        )  # fmt: skip
        self._watched, self._limit = self._watch(d) if self._watch else (np.zeros(1), np.inf)

    def _hold(self) -> None:
        """Make the arrays that the controllers' numbers live in. Those of length 1 are seen as such by the kernel."""
        self._held = {key: np.array(value, order="C") for key, value in self._shared.controllers().items()}
        arm, gripper = (f"controller.{part}" for part in self._shared.robot.part_controllers)
        self._grip = np.zeros(2)
        self._first_grip: Array | None = None  # before the first step robosuite holds one number instead of two
        fields = [name for name in kernel.Memory._fields if f"{arm}.{name}" in self._held]
        self._memory = kernel.Memory(
            **{name: np.atleast_1d(self._held[f"{arm}.{name}"]) for name in fields},
            finger_new_update=self._held[f"{gripper}.new_update"].reshape(1),
            finger_pos=self._held[f"{gripper}.joint_pos"],
            finger_vel=self._held[f"{gripper}.joint_vel"],
            finger_goal=self._held[f"{gripper}.goal_qvel"],
            grip=self._grip,
        )

    def load(self) -> None:
        """Take over the state of the robosuite environment, after its reset."""
        shared = self._shared
        physics = np.empty(mujoco.mj_stateSize(shared.model, STATE))
        mujoco.mj_getState(shared.model, shared.data, physics, STATE)
        held = shared.controllers()
        for key, value in self._held.items():
            value[...] = held[key]
        self._set(places(shared.model), physics, shared.gripper.current_action)

    def get_state(self) -> State:
        """Simulator, gripper and controllers; the places of bodies if they are not the shared model's."""
        physics = np.empty(mujoco.mj_stateSize(self.model, STATE))
        mujoco.mj_getState(self.model, self.data, physics, STATE)
        where = places(self.model)
        moved = {} if np.array_equal(where, self._shared.usual) else {"places": where}
        grip = self._grip if self._first_grip is None else self._first_grip
        held = {key: value.copy() for key, value in self._held.items()}
        return {"physics": physics, "gripper": grip.copy(), **held, **moved}

    def set_state(self, state: State) -> None:
        """Go on from what `get_state` gave, here or in another loop over the same task."""
        for key, value in self._held.items():
            value[...] = state[key]
        self._set(state.get("places", self._shared.usual), state["physics"], state["gripper"])

    def _set(self, where: Array, physics: Array, grip: Array) -> None:
        if not np.array_equal(places(self.model), where):
            if self.model is self._shared.reduced:
                self._use(copy.copy(self.model))
            set_places(self.model, where)
        mujoco.mj_setState(self.model, self.data, physics, STATE)
        mujoco.mj_kinematics(self.model, self.data)
        self._first_grip = grip.copy() if len(grip) == 1 else None
        self._grip[:] = grip

    def step(self, actions: Array) -> int:
        """Control steps with actions (E, 7), clipped to their range, until they or the episode end; how many."""
        actions = checked(actions, 7, np.float64)
        low, high, scale, shift, centre = self._scaling
        scaled = (np.minimum(np.maximum(actions[:, :6], low), high) - centre) * scale + shift
        turns = kernel.turn_matrices(scaled[:, 3:]) if self._fast else _turn_matrices(scaled[:, 3:])
        self._first_grip = None
        count: int = kernel.run(
            self._data, self._robot, self._memory, self._fast, self._substeps, scaled[:, :3], turns,
            actions[:, 6], self._watched, self._limit,
        )  # fmt: skip
        return count

    @property
    def ended(self) -> bool:
        """Whether the watched number exceeds its limit."""
        return bool(self._watched[0] > self._limit)
