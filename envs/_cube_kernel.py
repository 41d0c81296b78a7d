"""What OGBench's manipulation environments make of an action, compiled: the pose it asks for, and joints that take it.

Does what OGBench's `set_control` and its differential inverse kinematics do, in other operations, and so equals them to
rounding, which counts for more near singular postures. The arm's poses are a product of exponentials of its joints'
axes, as they lie where all joints are zero. `tips` are between the fingers (OGBench's site `pinch`), `end` is the arm's
(`attachment_site`); quaternions are (w, x, y, z).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import mujoco
import numpy as np
import numpy.typing as npt

from bench.compiled import compiled, entry

Array = npt.NDArray[Any]

# OGBench's numbers (controllers/diff_ik.py, envs/manipspace_env.py)
JOINTS = 6
ITERATIONS = 20
NEAR = 1e-4  # metres and radians: nearer to the pose than this, the search ends
DAMPING = 1e-12
FURTHEST = np.radians(45)  # that a joint moves in one iteration
FULL_GRIP = 255.0  # control value that closes the gripper
DOWN = (0.0, 1.0, 0.0, 0.0)  # the quaternion of tips that point down


class Arm(NamedTuple):
    """What does not change during an episode."""

    anchors: Array  # points on the joints' axes where all joints are zero, metres (6, 3)
    axes: Array  # their directions (6, 3)
    end: Array  # the arm's end there, metres (3,)
    end_turn: Array  # its quaternion (4,)
    offset: Array  # from the tips to the end, in the tips' frame, metres (3,)
    offset_turn: Array  # (4,)
    low: Array  # where the tips may be asked to go, metres (3,)
    high: Array  # (3,)
    action_low: Array  # metres, radians, share of the gripper's opening (5,)
    action_high: Array  # (5,)


@compiled
def quaternion_product(a: Any, b: Any) -> Any:
    """The second rotation, then the first."""
    return (
        a[0] * b[0] - a[1] * b[1] - a[2] * b[2] - a[3] * b[3],
        a[0] * b[1] + a[1] * b[0] + a[2] * b[3] - a[3] * b[2],
        a[0] * b[2] - a[1] * b[3] + a[2] * b[0] + a[3] * b[1],
        a[0] * b[3] + a[1] * b[2] - a[2] * b[1] + a[3] * b[0],
    )


@compiled
def cross(a: Any, b: Any) -> Any:
    """Of two vectors."""
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


@compiled
def turned(turn: Any, vector: Any) -> Any:
    """A vector turned by a quaternion."""
    axis = turn[1], turn[2], turn[3]
    twice = cross(axis, vector)
    again = cross(axis, twice)
    return (
        vector[0] + 2 * (turn[0] * twice[0] + again[0]),
        vector[1] + 2 * (turn[0] * twice[1] + again[1]),
        vector[2] + 2 * (turn[0] * twice[2] + again[2]),
    )


@compiled
def turn_between(now: Any, then: Any) -> Any:
    """The rotation vector, in radians, that turns the first quaternion into the second the shorter way."""
    way = quaternion_product(then, (now[0], -now[1], -now[2], -now[3]))
    sine = np.sqrt(way[1] ** 2 + way[2] ** 2 + way[3] ** 2)
    if sine == 0:
        return 0.0, 0.0, 0.0
    angle = 2 * np.arctan2(sine, way[0])
    scale = (angle - 2 * np.pi if angle > np.pi else angle) / sine
    return scale * way[1], scale * way[2], scale * way[3]


@compiled
def pose(arm: Arm, joints: Array, axes: Array, anchors: Array) -> Any:
    """Position and quaternion of the end with joints (6,); where their axes lie goes into axes and anchors, (6, 3)."""
    turn, shift = (1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0)
    for i in range(JOINTS):
        anchor = turned(turn, arm.anchors[i])
        axis = turned(turn, arm.axes[i])
        half = joints[i] / 2
        sine = np.sin(half)
        turn = quaternion_product((np.cos(half), sine * axis[0], sine * axis[1], sine * axis[2]), turn)
        back = turned(turn, arm.anchors[i])
        for k in range(3):
            axes[i, k], anchors[i, k] = axis[k], anchor[k] + shift[k]
        shift = shift[0] + anchor[0] - back[0], shift[1] + anchor[1] - back[1], shift[2] + anchor[2] - back[2]
    end = turned(turn, arm.end)
    return (end[0] + shift[0], end[1] + shift[1], end[2] + shift[2]), quaternion_product(turn, arm.end_turn)


@compiled
def reach(arm: Arm, position: Any, turn: Any, joints: Array) -> None:
    """Move joints (6,), radians, in place, until the end is near that position (3,) with that quaternion.

    Damped least squares: joints change by Jᵀ (J Jᵀ + λ I)⁻¹ error, scaled so that none moves more than FURTHEST.
    """
    axes, anchors = np.empty((JOINTS, 3)), np.empty((JOINTS, 3))
    jacobian, error = np.empty((6, JOINTS)), np.empty(6)
    for _ in range(ITERATIONS):
        end, end_turn = pose(arm, joints, axes, anchors)
        turning = turn_between(end_turn, turn)
        for k in range(3):
            error[k], error[3 + k] = position[k] - end[k], turning[k]
        if np.sqrt((error[:3] ** 2).sum()) <= NEAR and np.sqrt((error[3:] ** 2).sum()) <= NEAR:
            return
        for i in range(JOINTS):
            lever = end[0] - anchors[i, 0], end[1] - anchors[i, 1], end[2] - anchors[i, 2]
            moving = cross(axes[i], lever)
            for k in range(3):
                jacobian[k, i], jacobian[3 + k, i] = moving[k], axes[i, k]
        update = jacobian.T @ np.linalg.solve(jacobian @ jacobian.T + DAMPING * np.eye(6), error)
        furthest = np.abs(update).max()
        joints += update * (FURTHEST / furthest) if furthest > FURTHEST else update


@entry
def control(arm: Arm, action: Array, tips: Array, tips_matrix: Array, joints: Array, opening: float) -> float:
    """Set joints (6,), radians, in place to what action (5,) float32 asks of them; returns the gripper's control value.

    `tips` (3,) in metres, `tips_matrix` the (9,) of their rotation matrix, `opening` how far the gripper is closed.
    """
    share = np.float32(0.5) * (action + np.float32(1.0))  # in float32, as OGBench does on such an action
    wanted = share * (arm.action_high - arm.action_low) + arm.action_low
    half = (np.arctan2(tips_matrix[3], tips_matrix[0]) + wanted[3]) / 2  # of the yaw; to wrap it changes no rotation
    position = np.minimum(np.maximum(tips + wanted[:3], arm.low), arm.high)
    turn = quaternion_product((np.cos(half), 0.0, 0.0, np.sin(half)), DOWN)
    offset = turned(turn, arm.offset)
    end = position[0] + offset[0], position[1] + offset[1], position[2] + offset[2]
    reach(arm, end, quaternion_product(turn, arm.offset_turn), joints)
    return FULL_GRIP * min(max(min(max(opening, 0.0), 1.0) + wanted[4], 0.0), 1.0)


def arm_of(scene: Any) -> Arm:
    """The arm of OGBench's environment. Raises ValueError if it or its controller is not the one that is compiled."""
    solver, model = scene._ik, scene._ik._model
    if model.njnt != JOINTS or (model.jnt_type != mujoco.mjtJoint.mjJNT_HINGE).any():
        raise ValueError(f"an arm of {JOINTS} hinges is needed")
    settings = solver._qp0, solver._max_angle_change, *solver._damping.diagonal(), *scene._effector_down_rotation.wxyz
    if settings != (None, FURTHEST, *[DAMPING] * 6, *DOWN):
        raise ValueError("the arm's controller is set up in another way than OGBench 1.2.2 does it")
    data = mujoco.MjData(model)
    data.qpos[:] = 0.0
    mujoco.mj_kinematics(model, data)
    site = model.site("attachment_site").id
    turn = np.empty(4)
    mujoco.mju_mat2Quat(turn, data.site_xmat[site])
    offset = scene._T_pa
    return Arm(
        data.xanchor.copy(), data.xaxis.copy(), data.site_xpos[site].copy(), turn,
        offset.translation().copy(), offset.rotation().wxyz.copy(), *scene._workspace_bounds.copy(),
        scene.action_low, scene.action_high,
    )  # fmt: skip
