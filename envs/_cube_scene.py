"""OGBench's cube scene (arXiv 2410.20092) with a state that can be saved: arm, gripper, cubes and their targets.

Model, controller and inverse kinematics are OGBench's own objects; a control step leaves out what it computes beside
(colours, two unread observations and info dictionaries) and gives the same bits. A fast scene has the controller
compiled (`envs._cube_kernel`), and its steps equal OGBench's to rounding.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.seeding import fence
from bench.types import FloatArray, State
from bench.video import Picture
from envs._camera import Camera, View

CENTRE = np.array([0.425, 0.0, 0.0])  # metres; OGBench's observations count positions from here
SCALE = 10.0  # and in decimetres
OPENING_SCALE = 3.0  # OGBench's, of the gripper's opening
FULL_OPENING = 0.8  # radians of the gripper's driver joint at which OGBench calls it closed
FULL_CONTACT = 50.0  # newtons on the right finger pad that count as 1
REACH = 0.04  # metres between a cube's centre and its target that count as success (OGBench)

# The shapes that collide (group 3), with cubes and floor (1): what is seen in OGBench has 185,000 faces, and a picture
# of it takes 28 ms instead of 7.
VIEW = View(centre=(0.36, 0.0, 0.20), distance=1.25, azimuth=150.0, elevation=-32.0, groups=(1, 3))
COLOURS = {"floor": (0.58, 0.54, 0.47), "ur5e/robotiq/": (0.30, 0.33, 0.38), "ur5e/": (0.72, 0.74, 0.77)}  # by name
LIGHT = {"ambient": 0.35, "diffuse": 0.45, "specular": 0.0}  # of all lamps together; OGBench's bleach the floor
PALE = 0.4  # opacity of a target, which has its cube's colour


@dataclass(frozen=True)
class Layout:
    """Where an episode's cubes lie and where they are asked to go; metres and radians, world frame."""

    starts: npt.NDArray[np.float64]  # (n, 3)
    start_yaws: npt.NDArray[np.float64]  # (n,)
    goals: npt.NDArray[np.float64]  # (n, 3)
    goal_yaws: npt.NDArray[np.float64]  # (n,): what the demonstrator aims for; no part of success or observation


@cache
def ogbench_scene(cubes: int) -> Any:
    """OGBench's environment with 1 or 2 cubes; its model is shared by all scenes of this process and never changed."""
    with fence(0), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its import of mujoco.viewer complains that there is no display
        from ogbench.manipspace.envs.cube_env import CubeEnv

        names = {1: "single", 2: "double"}
        scene = CubeEnv(names[cubes], mode="data_collection", terminate_at_goal=False, visualize_info=False)
        scene.reset(seed=0)
    return scene


class CubeCamera(Camera):
    """Draws a scene of OGBench's in plain shapes and colours, the targets as pale cubes."""

    def __init__(self, scene: Any) -> None:
        import mujoco

        model = copy.copy(scene.model)
        for geom in map(model.geom, range(model.ngeom)):
            if geom.name.startswith("wall_"):
                geom.group = 0  # unseen
            for name, colour in reversed(COLOURS.items()):
                if geom.name.startswith(name):
                    geom.matid, geom.rgba[:3] = -1, colour
        for i, colour in enumerate(scene._cube_colors[: scene._num_cubes]):
            model.geom(f"object_{i}").rgba = colour
            model.geom(f"target_object_{i}").rgba = [*colour[:3], PALE]
        for name, strength in LIGHT.items():
            getattr(model, f"light_{name}")[:] = strength / model.nlight
        super().__init__(model, VIEW)
        self._options.flags[mujoco.mjtVisFlag.mjVIS_CONVEXHULL] = 1  # of the gripper's meshes, 66,000 faces
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SKYBOX] = 0

    def picture(self, source: Any) -> Picture:
        """As of any camera, with the targets, which are no part of the positions."""
        self._data.mocap_pos[:], self._data.mocap_quat[:] = source.mocap_pos, source.mocap_quat
        return super().picture(source)


@cache
def camera(cubes: int) -> CubeCamera:
    """Makes pictures of all scenes with so many cubes. Raises RuntimeError where nothing can be drawn.

    One for all, and never let go of: what MuJoCo frees then belongs to whatever camera was used last.
    """
    return CubeCamera(ogbench_scene(cubes))


class CubeScene:
    """One scene with simulator data of its own. Safe to be used in another thread than its siblings."""

    def __init__(self, cubes: int, fast: bool = False) -> None:
        import mujoco
        from ogbench.manipspace import controllers, lie

        self._mujoco, self._lie, self.cubes = mujoco, lie, cubes
        theirs = ogbench_scene(cubes)
        self.ogbench = copy.copy(theirs)  # what it computes, it computes on the data below
        self.model, self.data = theirs.model, mujoco.MjData(theirs.model)
        self.ogbench._data = self.data
        self.ogbench._ik = controllers.DiffIKController(model=theirs._ik._model, sites=["attachment_site"])
        self._site = theirs._pinch_site_id
        self._pad = self.model.body("ur5e/robotiq/right_pad").id
        places = [int(self.model.joint(f"object_joint_{i}").qposadr[0]) for i in range(cubes)]
        self._positions = np.add.outer(places, np.arange(3))  # of qpos (n, 3)
        self._quaternions = np.add.outer(places, np.arange(3, 7))  # of qpos (n, 4)
        self._targets = np.array(theirs._cube_target_mocap_ids)
        self._spec = mujoco.mjtState.mjSTATE_INTEGRATION
        self._arm: Any = None  # of the compiled controller
        if fast:
            from envs import _cube_kernel

            self._arm, self._compiled_control = _cube_kernel.arm_of(theirs), _cube_kernel.control

    def place(self, layout: Layout, rng: np.random.Generator) -> None:
        """Begin an episode as OGBench does, the arm where `rng` puts it: gripper down, 20 to 35 cm above the table."""
        mujoco, scene, data = self._mujoco, self.ogbench, self.data
        mujoco.mj_resetData(self.model, data)
        data.qpos[scene._arm_joint_ids] = scene._home_qpos
        mujoco.mj_kinematics(self.model, data)
        scene.np_random = rng
        scene.initialize_arm()
        data.qpos[self._positions] = layout.starts
        data.qpos[self._quaternions] = [self._turned(yaw) for yaw in layout.start_yaws]
        data.mocap_pos[self._targets] = layout.goals
        data.mocap_quat[self._targets] = [self._turned(yaw) for yaw in layout.goal_yaws]
        mujoco.mj_forward(self.model, data)
        mujoco.mj_rnePostConstraint(self.model, data)

    def _turned(self, yaw: float) -> FloatArray:
        quaternion: FloatArray = self._lie.SO3.from_z_radians(yaw).wxyz
        return quaternion

    def set_control(self, action: npt.NDArray[np.float32]) -> None:
        """Ask the arm and the gripper for what action (5,) in [-1, 1] says."""
        scene, data = self.ogbench, self.data
        if self._arm is None:
            scene.set_control(action)
            return
        joints, opening = data.qpos[scene._arm_joint_ids], data.qpos[scene._gripper_opening_joint_id] / FULL_OPENING
        tips, matrix = data.site_xpos[self._site], data.site_xmat[self._site]
        grip = self._compiled_control(self._arm, action, tips, matrix, joints, opening)
        data.ctrl[scene._arm_actuator_ids], data.ctrl[scene._gripper_actuator_ids] = joints, grip

    def step(self, action: npt.NDArray[np.float32]) -> None:
        """A control step of OGBench with action (5,) in [-1, 1]."""
        self.set_control(action)
        self._mujoco.mj_step(self.model, self.data, nstep=self.ogbench._n_steps)

    def at_goal(self) -> npt.NDArray[np.bool_]:
        """Which cubes (n,) are within 4 cm of their targets."""
        way = self.data.qpos[self._positions] - self.data.mocap_pos[self._targets]
        reached: npt.NDArray[np.bool_] = np.array([np.linalg.norm(w) <= REACH for w in way])
        return reached

    def observe(self) -> dict[str, npt.NDArray[np.float32]]:
        """What OGBench's observation holds, by name, as it scales it, and the targets scaled like the cubes.

        Its site positions, as in OGBench, are one simulator step (2 ms) older than the joints.
        """
        data = self.data
        self._mujoco.mj_rnePostConstraint(self.model, data)  # the forces on the finger pads
        yaw = self._yaw(self._lie.SO3.from_matrix(data.site_xmat[self._site].reshape(3, 3)))
        opening = np.clip(data.qpos[self.ogbench._gripper_opening_joint_id] / FULL_OPENING, 0, 1)
        contact = np.clip(np.linalg.norm(data.cfrc_ext[self._pad]) / FULL_CONTACT, 0, 1)
        quaternions = data.qpos[self._quaternions]
        yaws = [self._yaw(self._lie.SO3(wxyz=q)) for q in quaternions]
        values = {
            "joint_pos": data.qpos[self.ogbench._arm_joint_ids],
            "joint_vel": data.qvel[self.ogbench._arm_joint_ids],
            "effector_pos": (data.site_xpos[self._site] - CENTRE) * SCALE,
            "effector_yaw": np.array([np.cos(yaw), np.sin(yaw)]),
            "gripper": np.array([opening * OPENING_SCALE, contact]),
            "cube_pos": ((data.qpos[self._positions] - CENTRE) * SCALE).ravel(),
            "cube_rot": np.array([[*q, np.cos(y), np.sin(y)] for q, y in zip(quaternions, yaws, strict=True)]).ravel(),
            "goal": ((data.mocap_pos[self._targets] - CENTRE) * SCALE).ravel(),
        }
        return {key: value.astype(np.float32) for key, value in values.items()}

    def _yaw(self, rotation: Any) -> float:
        yaw: float = rotation.compute_yaw_radians()
        return yaw

    def picture(self) -> Picture:
        """Arm, cubes and targets, (256, 256, 3)."""
        return camera(self.cubes).picture(self.data)

    def get_state(self) -> State:
        """The simulator's state with warm start, controls and targets, and the site pose that is older than it."""
        state = np.empty(self._mujoco.mj_stateSize(self.model, self._spec))
        self._mujoco.mj_getState(self.model, self.data, state, self._spec)
        site = np.concatenate([self.data.site_xpos[self._site], self.data.site_xmat[self._site]])
        return {"simulator": state, "site": site}

    def set_state(self, state: State) -> None:
        """Restore what `get_state` gave. All else in the data is computed from it before it is read."""
        self._mujoco.mj_setState(self.model, self.data, state["simulator"], self._spec)
        self.data.site_xpos[self._site], self.data.site_xmat[self._site] = state["site"][:3], state["site"][3:]
