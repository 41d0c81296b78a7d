"""A Panda arm lifts a cube off a table: robosuite 1.5, operational-space control at 20 Hz, sparse reward.

Actions are (7,) in [-1, 1]: position change (at most 5 cm a control step), rotation change (axis-angle, at most
0.5 rad), and the gripper, whose sign alone counts (+1 closes). In `lift-unseen` the demonstrations have the cube in a
narrow strip before the arm and fine-tuning asks for the table to its right and left.

A control step is robosuite's own (`stock`), the same bits from a compiled loop (`strict`), or equal to rounding
(`fast`). Observations are read from the simulator after it. As in robosuite, site and body poses are then one simulator
step (2 ms) old, and so is success.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import gymnasium
import numpy as np
import numpy.typing as npt

from bench.seeding import pack_generator, unpack_generator
from bench.types import Demos, FloatArray, State, Steps, Task
from bench.video import Picture, TopView
from envs._chunked import ChunkedEnv, Episode, checked, successful
from envs._robosuite_arm import CONTROL_HZ, make_arm, simulator
from envs._robosuite_speeds import speeds as speeds

HORIZON = 60  # control steps; the demonstrator's median episode takes 34
TABLE_HEIGHT = 0.8  # metres
FULL_MOVE = 0.05  # metres that a position action of 1 asks for
FULL_TURN = 0.5  # radians that a rotation action of 1 asks for
ACTION_NOISE = 0.15  # standard deviation of the demonstrator's noise, per action dimension
POINTING_DOWN = np.array([0.0, 1.0, 0.0, 1.0, 0.0, 0.0])  # first two columns of the gripper's rotation, end to end

QUICK = {
    "pretrain.batch": 128, "pretrain.steps": 8_000, "rl.decisions": 6_000, "rl.discount": 0.97,
    "evaluation.points": 5, "evaluation.states": 48,
    "coverage.states": 10, "coverage.selection_states": 5, "coverage.sigmas": (0.0, 0.25, 0.5),
}  # fmt: skip

requires: tuple[str, ...] = ("robosuite", "mujoco", "numba")


@dataclass(frozen=True)
class Area:
    """A rectangle of the table, metres from its centre; +x points away from the robot, +y to its left."""

    x: tuple[float, float]
    y: tuple[float, float]

    def draw(self, rng: np.random.Generator) -> npt.NDArray[np.float64]:
        """A point (2,), uniform."""
        return rng.uniform((self.x[0], self.y[0]), (self.x[1], self.y[1]))

    def __str__(self) -> str:
        return f"x {self.x[0]:+.2f} to {self.x[1]:+.2f} m, y {self.y[0]:+.2f} to {self.y[1]:+.2f} m"


TABLE = Area((-0.12, 0.12), (-0.20, 0.20))
STRIP = Area(TABLE.x, (-0.03, 0.03))  # before the arm, so that the demonstrations move to both sides
RIGHT, LEFT = Area(TABLE.x, (-0.24, -0.03)), Area(TABLE.x, (0.03, 0.24))
# Equally large areas of a task are equally likely.
DEMONSTRATED = {"robosuite_tasks/lift": (TABLE,), "robosuite_tasks/lift-unseen": (STRIP,)}
FINETUNED = {"robosuite_tasks/lift": (TABLE,), "robosuite_tasks/lift-unseen": (RIGHT, LEFT)}


def _task(name: str, profiles: tuple[str, ...]) -> Task:
    task_id = f"robosuite_tasks/{name}"
    return Task(
        id=task_id,
        version=1,
        horizon=HORIZON,
        control_hz=CONTROL_HZ,
        state_keys=("eef_pos", "eef_rot", "gripper_qpos"),
        context_keys=("cube_pos",),
        demonstrations=f"cube at {' or '.join(map(str, DEMONSTRATED[task_id]))}, its sides parallel to the table's",
        finetuning=f"cube at {' or '.join(map(str, FINETUNED[task_id]))}, its sides parallel to the table's",
        success="the cube's centre is more than 4 cm above the table",
        demo_count=200,
        position_keys=("eef_pos", "cube_pos"),
        settings={"policy.chunk": 8, "policy.execute": 4, "rl.envs": 4, "rl.random_decisions": 160},
        profiles={profile: QUICK if profile == "quick" else {} for profile in profiles},
    )


tasks = (_task("lift", ("standard", "paper")), _task("lift-unseen", ("quick", "standard", "paper")))


def _box(*bounds: tuple[float, float]) -> gymnasium.spaces.Box:
    low, high = np.array(bounds, np.float32).T
    return gymnasium.spaces.Box(low, high, dtype=np.float32)


ROBOT_SPACES = {
    "eef_pos": _box((-1.5, 0.5), (-1.0, 1.0), (0.0, 2.0)),  # metres, world frame
    "eef_rot": _box(*[(-1.0, 1.0)] * 6),  # first two columns of the rotation matrix, end to end: no sign, no jump
    "gripper_qpos": _box((-0.01, 0.05), (-0.05, 0.01)),  # metres, each finger
}


class ArmEnv(ChunkedEnv):
    """One Panda in a robosuite environment. A subclass places the objects and says what is seen of them."""

    name: ClassVar[str]  # robosuite's name of the environment
    horizon: ClassVar[int]  # control steps
    object_spaces: ClassVar[dict[str, gymnasium.spaces.Box]]

    def __init__(self, areas: tuple[Area, ...], seed: int, stepping: str = "strict") -> None:
        super().reset(seed=seed)  # makes self.np_random, all that episodes draw from
        self._areas = areas
        shared = simulator(self.name)
        self._simulation, self._robot = shared.simulation, shared.robot
        self._arm = make_arm(shared, stepping, self._watch if type(self)._watch is not ArmEnv._watch else None)
        self.stepping = self._arm.stepping
        self._site = self._robot.eef_site_id["right"]
        self._fingers = self._robot._ref_gripper_joint_pos_indexes["right"]
        self._steps = 0
        self._last: dict[str, npt.NDArray[np.float32]] = {}
        self.observation_space = gymnasium.spaces.Dict({**ROBOT_SPACES, **self.object_spaces})
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (7,), np.float32)

    @property
    def _data(self) -> Any:
        """The simulator's data, a `mujoco.MjData`."""
        return self._arm.data

    def _place_objects(self) -> None:
        """Put the objects where this episode has them in `self._simulation`, drawing from `self.np_random`."""
        raise NotImplementedError

    def _see_objects(self) -> dict[str, FloatArray]:
        """The observations of `object_spaces`, read from `self._data`."""
        raise NotImplementedError

    def _watch(self, data: Any) -> tuple[FloatArray, float]:
        """Success as one number: a view (1,) of `data`, and the limit that it exceeds then.

        An optional, fast form of robosuite's rule, which costs 10 to 50 µs a control step and a call for each.
        """
        raise NotImplementedError

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self._steps = 0
        with self._arm.turn():
            self._arm.reset(self.np_random, self._place_objects)
            self._last = self._observe()
        return dict(self._last), {"success": False}

    def step_chunk(self, actions: npt.NDArray[Any]) -> Steps:
        """Up to E control steps with actions (E, 7), fewer if the episode ends."""
        actions = checked(actions, 7, np.float64)
        actions = np.minimum(np.maximum(actions[: max(self.horizon - self._steps, 1)], -1.0), 1.0)
        with self._arm.turn():
            count, success = self._arm.step(actions)
            self._last = self._observe()
        self._steps += count
        truncated = self._steps >= self.horizon and not success
        return Steps(dict(self._last), float(success), count, success, truncated, success)

    def _observe(self) -> dict[str, npt.NDArray[np.float32]]:
        data = self._data
        values = {
            "eef_pos": data.site_xpos[self._site],
            "eef_rot": data.site_xmat[self._site].reshape(3, 3)[:, :2].T.ravel(),
            "gripper_qpos": data.qpos[self._fingers],
            **self._see_objects(),
        }
        boxes = {**ROBOT_SPACES, **self.object_spaces}
        return {k: np.minimum(np.maximum(values[k], b.low), b.high).astype(np.float32) for k, b in boxes.items()}

    @cached_property
    def _camera(self) -> Any:
        return simulator(self.name).camera()

    def render(self) -> Picture:  # type: ignore[override]
        """The arm and the table, in plain shapes. Raises RuntimeError where nothing can be drawn."""
        picture: Picture = self._arm.ask(lambda: self._camera.picture(self._data))
        return picture

    def top_view(self) -> TopView:
        """The middle of the table with the ways of the gripper and of the objects."""
        places = tuple(key for key in self.object_spaces if key.endswith("_pos"))
        return TopView("eef_pos", (-0.3, -0.3, 0.6, 0.6), objects=places, unit="m")

    def get_state(self) -> State:
        return {
            **self._arm.get_state(),
            "steps": np.array(self._steps),
            "generator": pack_generator(self.np_random),
            **{f"observation.{key}": value.copy() for key, value in self._last.items()},
        }

    def set_state(self, state: State) -> dict[str, Any]:
        self._arm.set_state(state)
        self._steps = int(state["steps"])
        self.np_random = unpack_generator(state["generator"])
        self._last = {key: value.copy() for key, value in _under(state, "observation.").items()}
        return dict(self._last)


class LiftEnv(ArmEnv):
    """robosuite's Lift with the cube's place drawn from an area. Its half sides are 2.1, 2.1 and 2.0 cm."""

    name = "Lift"
    horizon = HORIZON
    object_spaces: ClassVar = {"cube_pos": _box((-1.0, 1.0), (-1.0, 1.0), (0.0, 2.0))}  # metres, world frame

    def _place_objects(self) -> None:
        cube = self._simulation.cube
        area = self._areas[int(self.np_random.integers(len(self._areas)))]
        position = [*area.draw(self.np_random), TABLE_HEIGHT + cube.size[2] + 0.001]
        self._simulation.sim.data.set_joint_qpos(cube.joints[0], np.array([*position, 1.0, 0.0, 0.0, 0.0]))

    def _see_objects(self) -> dict[str, FloatArray]:
        return {"cube_pos": self._data.xpos[self._simulation.cube_body_id]}

    def _watch(self, data: Any) -> tuple[FloatArray, float]:
        height = data.xpos[self._simulation.cube_body_id, 2:]
        return height, self._simulation.model.mujoco_arena.table_offset[2] + 0.04


def _under(state: State, prefix: str) -> State:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def make(task: Task, seed: int, stepping: str = "strict") -> LiftEnv:
    """A fresh environment of the fine-tuning area. Equal seeds give equal trajectories."""
    return LiftEnv(FINETUNED[task.id], seed, stepping)


class Demonstrator:
    """Reaches above the cube, descends, closes the gripper, lifts: one object per episode.

    Proportional control of position and orientation with Gaussian noise on every action; speed and the height of
    approach differ from episode to episode.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._gain = rng.uniform(0.6, 1.2)
        self._approach = rng.uniform(0.04, 0.08)  # metres above the cube
        self._phase = "reach"
        self._closing = 0  # control steps since the gripper began to close

    def act(self, observation: dict[str, Any]) -> npt.NDArray[np.float32]:
        """The named observations of one control step → action (7,) in [-1, 1]."""
        error = observation["cube_pos"] - observation["eef_pos"]
        self._advance(error)
        if self._phase == "reach":
            error[2] += self._approach
        elif self._phase == "lift":
            error = np.array([0.0, 0.0, 0.1])
        grip = 1.0 if self._phase in ("close", "lift") else -1.0
        turn = _turn_to(POINTING_DOWN, observation["eef_rot"])
        action = np.concatenate([self._gain * error / FULL_MOVE, 0.5 * turn / FULL_TURN, [grip]])
        action[:6] += self._rng.normal(0.0, ACTION_NOISE, 6)
        clipped: npt.NDArray[np.float32] = action.clip(-1.0, 1.0).astype(np.float32)
        return clipped

    def _advance(self, error: FloatArray) -> None:
        """Change the phase by the way (3,) in metres from the gripper to the cube."""
        if self._phase == "reach" and np.linalg.norm(error[:2]) < 0.015:
            self._phase = "descend"
        elif self._phase == "descend" and np.linalg.norm(error) < 0.012:
            self._phase = "close"
        elif self._phase == "close":
            self._closing += 1
            self._phase = "lift" if self._closing == 5 else "close"


def _turn_to(target: FloatArray, rotation: FloatArray) -> FloatArray:
    """The small rotation (3,) in radians that leads from `rotation` to `target`, both (6,) as in `eef_rot`."""
    now, then = rotation.reshape(2, 3), target.reshape(2, 3)
    turn: FloatArray = 0.5 * (np.cross(now, then).sum(axis=0) + np.cross(np.cross(*now), np.cross(*then)))
    return turn


def demonstrate(env: LiftEnv, rng: np.random.Generator) -> Episode:
    """One episode of the demonstrator: observations {key: (T, ...)}, actions (T, 7), and whether it succeeded."""
    observation, info = env.reset()
    demonstrator = Demonstrator(rng)
    observations, actions, over = [], [], False
    while not over:
        observations.append(observation)
        actions.append(demonstrator.act(observation))
        observation, _, terminated, truncated, info = env.step(actions[-1])
        over = terminated or truncated
    return {key: np.stack([o[key] for o in observations]) for key in observation}, np.stack(actions), info["success"]


def demos(task: Task, n: int, rng: np.random.Generator, progress: Callable[[float], None] = lambda _: None) -> Demos:
    """`n` successful episodes of the scripted demonstrator. The few that fail (under 5 in 100) are left out."""
    env = LiftEnv(DEMONSTRATED[task.id], int(rng.integers(2**63)))
    return successful(task, n, lambda: demonstrate(env, rng), progress)
