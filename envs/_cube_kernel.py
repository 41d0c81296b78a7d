"""What OGBench's manipulation environments make of an action, compiled: the pose it asks for, and joints that take it.

Does what OGBench's `set_control` and its differential inverse kinematics do, in other operations, and so equals them to
rounding. The arm's poses are a product of exponentials of its joints' axes, as they lie where all joints are zero.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bench.compiled import compiled, entry

Array = npt.NDArray[Any]

JOINTS = 6
ITERATIONS = 20  # OGBench's, as all that follows
NEAR = 1e-4  # metres and radians: nearer to the pose than this, the search ends
DAMPING = 1e-12
FURTHEST = np.radians(45)  # that a joint moves in one iteration
FULL_OPENING = 0.8  # radians of the gripper's driver joint at which it is closed
FULL_GRIP = 255.0  # control value that closes it


class Arm(NamedTuple):
    """What does not change during an episode. Quaternions are (w, x, y, z)."""

    anchors: Array  # points on the joints' axes where all joints are zero, metres (6, 3)
    axes: Array  # their directions (6, 3)
    site: Array  # the end of the arm, metres (3,)
    site_turn: Array  # (4,)
    offset: Array  # from the fingertips to it, in their frame, metres (3,)
    offset_turn: Array  # (4,)
    low: Array  # where the fingertips may be asked to go, metres (3,)
    high: Array  # (3,)
    action_low: Array  # metres, radians, share of the gripper's opening (5,)
    action_high: Array  # (5,)


@compiled
def product(a: Any, b: Any) -> Any:
    """Of two quaternions."""
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
    way = product(then, (now[0], -now[1], -now[2], -now[3]))
    sine = np.sqrt(way[1] ** 2 + way[2] ** 2 + way[3] ** 2)
    if sine == 0:
        return 0.0, 0.0, 0.0
    angle = 2 * np.arctan2(sine, way[0])
    scale = (angle - 2 * np.pi if angle > np.pi else angle) / sine
    return scale * way[1], scale * way[2], scale * way[3]


@compiled
def pose(arm: Arm, joints: Array, axes: Array, anchors: Array) -> Any:
    """Position and quaternion of the arm's end; writes where the joints' axes lie into `axes` and `anchors`, (6, 3)."""
    turn, shift = (1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0)
    for i in range(JOINTS):
        anchor = turned(turn, arm.anchors[i])
        axis = turned(turn, arm.axes[i])
        half = joints[i] / 2
        sine = np.sin(half)
        turn = product((np.cos(half), sine * axis[0], sine * axis[1], sine * axis[2]), turn)
        back = turned(turn, arm.anchors[i])
        for k in range(3):
            axes[i, k], anchors[i, k] = axis[k], anchor[k] + shift[k]
        shift = shift[0] + anchor[0] - back[0], shift[1] + anchor[1] - back[1], shift[2] + anchor[2] - back[2]
    site = turned(turn, arm.site)
    return (site[0] + shift[0], site[1] + shift[1], site[2] + shift[2]), product(turn, arm.site_turn)


@compiled
def reach(arm: Arm, position: Any, turn: Any, joints: Array) -> None:
    """Move joints (6,), in place, so that the arm's end has that pose, by damped least squares."""
    axes, anchors = np.empty((JOINTS, 3)), np.empty((JOINTS, 3))
    jacobian, error = np.empty((6, JOINTS)), np.empty(6)
    for _ in range(ITERATIONS):
        site, site_turn = pose(arm, joints, axes, anchors)
        turning = turn_between(site_turn, turn)
        for k in range(3):
            error[k], error[3 + k] = position[k] - site[k], turning[k]
        if np.sqrt((error[:3] ** 2).sum()) <= NEAR and np.sqrt((error[3:] ** 2).sum()) <= NEAR:
            return
        for i in range(JOINTS):
            lever = site[0] - anchors[i, 0], site[1] - anchors[i, 1], site[2] - anchors[i, 2]
            moving = cross(axes[i], lever)
            for k in range(3):
                jacobian[k, i], jacobian[3 + k, i] = moving[k], axes[i, k]
        update = jacobian.T @ np.linalg.solve(jacobian @ jacobian.T + DAMPING * np.eye(6), error)
        furthest = np.abs(update).max()
        joints += update * (FURTHEST / furthest) if furthest > FURTHEST else update


@entry
def control(arm: Arm, action: Array, tips: Array, tips_turn: Array, joints: Array, driver: float) -> float:
    """Set joints (6,), radians, in place to what action (5,) float32 asks of them; returns the gripper's control value.

    `tips` (3,) in metres and `tips_turn`, the (9,) of a rotation matrix, are where the fingertips are, and `driver` is
    the gripper's joint in radians.
    """
    share = np.float32(0.5) * (action + np.float32(1.0))  # in float32, as OGBench does on such an action
    wanted = share * (arm.action_high - arm.action_low) + arm.action_low
    half = (np.arctan2(tips_turn[3], tips_turn[0]) + wanted[3]) / 2  # of the angle about the vertical
    position = np.minimum(np.maximum(tips + wanted[:3], arm.low), arm.high)
    turn = (0.0, np.cos(half), np.sin(half), 0.0)  # turned about the vertical after pointing down
    offset = turned(turn, arm.offset)
    end = position[0] + offset[0], position[1] + offset[1], position[2] + offset[2]
    reach(arm, end, product(turn, arm.offset_turn), joints)
    opening = min(max(driver / FULL_OPENING, 0.0), 1.0)
    return FULL_GRIP * min(max(opening + wanted[4], 0.0), 1.0)


def arm_of(scene: Any) -> Arm:
    """The arm of OGBench's environment. Raises ValueError if it has not six hinges."""
    import mujoco

    model = scene._ik._model
    if model.njnt != JOINTS or (model.jnt_type != mujoco.mjtJoint.mjJNT_HINGE).any():
        raise ValueError(f"an arm of {JOINTS} hinges is needed")
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
