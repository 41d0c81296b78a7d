"""The control step of robosuite's Panda under OSC_POSE, compiled: torques, gripper and simulator steps of a chunk.

The simulator is called through its C library, so `envs._osc_loop` must have loaded that before anything here runs.
`strict` repeats robosuite's operations in their order: NumPy's and Numba's products agree bit by bit if both use the
same BLAS kernel. `fast` solves by elimination and applies the nullspace term without forming its matrix; in a singular
posture, and in the first simulator step after a reset, it does what `strict` does.

All of it is in one file because Numba's cache looks at this file alone to see whether it is stale.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit, types

Array = npt.NDArray[Any]

JOINTS = 7
PIVOT = 1e-10  # smallest pivot of an elimination, relative to the largest diagonal element
NULLSPACE_KP = 10  # robosuite's own, 1/s²
NULLSPACE_KV = 2 * np.sqrt(NULLSPACE_KP)

_pair = (types.intp, types.intp)  # addresses of model and data
mj_step1 = types.ExternalFunction("mj_step1", types.void(*_pair))
mj_step2 = types.ExternalFunction("mj_step2", types.void(*_pair))
mj_jac_site = types.ExternalFunction("mj_jacSite", types.void(*_pair, types.intp, types.intp, types.int32))
# LAPACK's, under names of our own; every argument is an address.
LAPACK = {"dgesdd": 14, "dgetrf": 6, "dgetri": 7}
dgesdd, dgetrf, dgetri = (
    types.ExternalFunction(f"bench_{name}", types.void(*[types.intp] * count)) for name, count in LAPACK.items()
)


class Data(NamedTuple):
    """Addresses of mjModel and mjData, views of the data, and two buffers of the kernel."""

    model: int
    data: int
    qpos: Array  # (nq,)
    qvel: Array  # (nv,)
    ctrl: Array  # (nu,)
    bias: Array  # qfrc_bias (nv,)
    inertia: Array  # qM, the mass matrix as MuJoCo stores it (nM,)
    site_xpos: Array  # (nsite, 3)
    site_xmat: Array  # (nsite, 9)
    jac_pos: Array  # (3, nv), buffer
    jac_rot: Array  # (3, nv), buffer


class Robot(NamedTuple):
    """What does not change during an episode."""

    site: int  # between the fingers
    base: int  # site the actions refer to
    qpos: Array  # indices of the arm's joints (7,)
    qvel: Array  # (7,)
    ctrl: Array  # (7,)
    low: Array  # N m (7,)
    high: Array  # N m (7,)
    cell: Array  # index into `inertia` of every element of the arm's mass matrix, -1 for zero (7, 7)
    finger_qpos: Array  # (2,)
    finger_qvel: Array  # (2,)
    finger_ctrl: Array  # (2,)
    finger_low: Array  # metres (2,)
    finger_high: Array  # metres (2,)
    finger_centre: Array  # metres (2,)
    finger_reach: Array  # metres (2,)
    grip_speed: Array  # change of the gripper's position target in a control step, with the sign of closing (2,)


class Memory(NamedTuple):
    """What the controllers hold: the arm's, then the gripper's."""

    new_update: Array  # whether the next use computes the following anew (1,) bool
    ref_pos: Array  # metres (3,)
    ref_ori_mat: Array  # (3, 3)
    ref_pos_vel: Array  # m/s (3,)
    ref_ori_vel: Array  # rad/s (3,)
    joint_pos: Array  # rad (7,)
    joint_vel: Array  # rad/s (7,)
    J_pos: Array  # (3, 7)
    J_ori: Array  # (3, 7)
    J_full: Array  # (6, 7)
    mass_matrix: Array  # kg m² (7, 7)
    initial_joint: Array  # rad (7,)
    origin_pos: Array  # metres (3,)
    origin_ori: Array  # (3, 3)
    kp: Array  # 1/s² (6,)
    kd: Array  # 1/s (6,)
    goal_pos: Array  # in the base's frame, metres (3,)
    goal_ori: Array  # (3, 3)
    finger_new_update: Array  # (1,) bool
    finger_pos: Array  # metres (2,)
    finger_vel: Array  # m/s (2,)
    finger_goal: Array  # in [-1, 1] (2,)
    grip: Array  # the gripper's position target in [-1, 1] (2,)


class Work(NamedTuple):
    """Buffers of the kernel."""

    goal_pos: Array  # in the world, metres (3,)
    goal_ori: Array  # (3, 3)
    force: Array  # wanted, per unit of inertia (3,)
    torque: Array  # (3,)
    back: Array  # acceleration towards the first posture (7,)
    joint: Array  # torques, N m (7,)
    wrench: Array  # (6,)
    joints: Array  # mass matrix and Jᵀ, each padded to 8 columns (7, 16)
    columns: Array  # Jᵀ (7, 8)
    mobility: Array  # J · M⁻¹ · Jᵀ and two right-hand sides (6, 8)
    turning: Array  # its last block and a right-hand side (3, 4)
    sums: Array  # J · velocity, -J · acceleration, and the wrench (3, 8)
    inverse: Array  # of the mass matrix, symmetric (7, 7)
    narrow: Array  # Jacobian · M⁻¹ and the like (6, 7)
    narrow_half: Array  # (3, 7)
    wide: Array  # M⁻¹ · Jᵀ (7, 6)
    wide_inverse: Array  # that times (J · M⁻¹ · Jᵀ)⁻¹ (7, 6)
    nullspace: Array  # (7, 7)
    square: Array  # for the pseudo-inverse: matrix, U, V and result (4, 6, 6)
    square_half: Array  # (4, 3, 3)
    space: Array  # workspace of LAPACK
    space_int: Array  # int32: pivots, information, sizes 3, 6 and 7, length of `space`, then workspace
    letter: Array  # (1,) uint8


@njit(inline="always")
def _buffers():
    n = JOINTS
    sizes = np.zeros(64, np.int32)
    sizes[8], sizes[9], sizes[10], sizes[11] = 3, 6, n, 1024
    return Work(
        np.zeros(3), np.zeros((3, 3)), np.zeros(3), np.zeros(3), np.zeros(n), np.zeros(n), np.zeros(6),
        np.zeros((n, 16)), np.zeros((n, 8)), np.zeros((6, 8)), np.zeros((3, 4)), np.zeros((3, 8)), np.zeros((n, n)),
        np.zeros((6, n)), np.zeros((3, n)), np.zeros((n, 6)), np.zeros((n, 6)), np.zeros((n, n)), np.zeros((4, 6, 6)),
        np.zeros((4, 3, 3)), np.zeros(1024), sizes, np.full(1, ord("S"), np.uint8),
    )  # fmt: skip


@njit(inline="always")
def _update(sim, robot, memory, fast):
    """Read the state of arm and fingers. Velocities of the base are left out: it does not move."""
    mj_jac_site(sim.model, sim.data, sim.jac_pos.ctypes.data, sim.jac_rot.ctypes.data, robot.site)
    for i in range(3):
        memory.ref_pos[i] = sim.site_xpos[robot.site, i]
        for j in range(3):
            memory.ref_ori_mat[i, j] = sim.site_xmat[robot.site, 3 * i + j]
    for j in range(JOINTS):
        memory.joint_pos[j] = sim.qpos[robot.qpos[j]]
        memory.joint_vel[j] = sim.qvel[robot.qvel[j]]
        for i in range(3):
            pos, rot = sim.jac_pos[i, robot.qvel[j]], sim.jac_rot[i, robot.qvel[j]]
            memory.J_pos[i, j], memory.J_full[i, j] = pos, pos
            memory.J_ori[i, j], memory.J_full[3 + i, j] = rot, rot
        for i in range(JOINTS):
            cell = robot.cell[i, j]
            memory.mass_matrix[i, j] = sim.inertia[cell] if cell >= 0 else 0.0
    for i in range(2):
        memory.finger_pos[i] = sim.qpos[robot.finger_qpos[i]]
        memory.finger_vel[i] = sim.qvel[robot.finger_qvel[i]]
    if not fast:
        np.dot(sim.jac_pos, sim.qvel, memory.ref_pos_vel)
        np.dot(sim.jac_rot, sim.qvel, memory.ref_ori_vel)
        return
    for i in range(3):
        pos = rot = 0.0
        for j in range(JOINTS):
            pos += memory.J_full[i, j] * memory.joint_vel[j]
            rot += memory.J_full[3 + i, j] * memory.joint_vel[j]
        memory.ref_pos_vel[i], memory.ref_ori_vel[i] = pos, rot


@njit(inline="always")
def _pose_in_base(memory):
    """The pose (4, 4) of the site between the fingers in the base's frame."""
    inverse, pose = np.zeros((4, 4)), np.zeros((4, 4))
    turned = memory.origin_ori.T.copy()
    inverse[:3, :3] = turned
    inverse[:3, 3] = -np.dot(turned, memory.origin_pos)
    pose[:3, :3] = memory.ref_ori_mat
    pose[:3, 3] = memory.ref_pos
    inverse[3, 3] = pose[3, 3] = 1.0
    return np.dot(inverse, pose)


@njit
def _set_goal(sim, robot, memory, work, move, turn, grip):
    """New goals from where the arm is; the gripper's target goes on by its speed in the direction of `grip`'s sign."""
    memory.origin_pos[:] = sim.site_xpos[robot.base]
    memory.origin_ori[:] = sim.site_xmat[robot.base].reshape(3, 3)
    pose = _pose_in_base(memory)
    memory.goal_pos[:] = pose[:3, 3] + move
    memory.goal_ori[:] = np.dot(turn, pose[:3, :3].copy())
    work.goal_pos[:] = memory.origin_pos + np.dot(memory.origin_ori, memory.goal_pos)
    work.goal_ori[:] = np.dot(memory.origin_ori, memory.goal_ori)
    for i in range(2):
        memory.grip[i] = min(max(memory.grip[i] + robot.grip_speed[i] * np.sign(grip), -1.0), 1.0)
        memory.finger_goal[i] = memory.grip[i]


@njit(inline="always")
def _want(memory, work):
    """Force and torque that the goals ask for, per unit of inertia."""
    now, then = memory.ref_ori_mat, work.goal_ori
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3  # half the sum of the cross products of the axes now and the axes wanted
        first = now[j, 0] * then[k, 0] - now[k, 0] * then[j, 0]
        second = now[j, 1] * then[k, 1] - now[k, 1] * then[j, 1]
        third = now[j, 2] * then[k, 2] - now[k, 2] * then[j, 2]
        lean = 0.5 * (first + second + third)
        way = work.goal_pos[i] - memory.ref_pos[i]
        work.force[i] = way * memory.kp[i] + -memory.ref_pos_vel[i] * memory.kd[i]
        work.torque[i] = lean * memory.kp[3 + i] + -memory.ref_ori_vel[i] * memory.kd[3 + i]


@njit
def _invert(work):
    """Overwrites `work.inverse`, which lies by columns as LAPACK has it, by its inverse as Numba computes it."""
    at = work.space_int.ctypes.data
    pivots, info, size, length = at, at + 4 * 7, at + 4 * 10, at + 4 * 11
    dgetrf(size, size, work.inverse.ctypes.data, size, pivots, info)
    if work.space_int[7] == 0:
        dgetri(size, work.inverse.ctypes.data, size, pivots, work.space.ctypes.data, length, info)
    if work.space_int[7] != 0:
        raise ValueError("the mass matrix has no inverse")


@njit
def _pseudo_inverse(square, size, work):
    """The pseudo-inverse of `square[0]` as that of Numba's `numpy.linalg.pinv`, with buffers made beforehand.

    `square` is (4, n, n), and n is stored at index `size` of `work.space_int`. The result lies by columns.
    """
    n = square.shape[1]
    columns, left, right, result = square[3], square[1], square[2], square[0]
    for i in range(n):
        for j in range(n):
            if not np.isfinite(square[0, i, j]):
                raise ValueError("the arm's state is not finite")
            columns[j, i] = square[0, i, j]
    # LAPACK stores by columns: `left` and `right` are the transposes of U and Vᵀ
    values, at = work.wrench, work.space_int.ctypes.data
    info, sized, length, space_int = at + 4 * 7, at + 4 * size, at + 4 * 11, at + 4 * 12
    dgesdd(
        work.letter.ctypes.data, sized, sized, columns.ctypes.data, sized, values.ctypes.data, left.ctypes.data, sized,
        right.ctypes.data, sized, work.space.ctypes.data, length, space_int, info,
    )  # fmt: skip
    if work.space_int[7] != 0:
        raise ValueError("the singular value decomposition did not converge")
    kept, least = 0, values[0] * 1e-15
    for k in range(n):
        if values[k] > least:
            values[k] = 1.0 / values[k]
            kept = k
    for i in range(n):
        for k in range(kept + 1):
            right[i, k] = right[i, k] * values[k]
    if kept == n - 1:
        np.dot(left.T, right.T, result)
    else:
        result[:] = np.dot(left[: kept + 1].T, right[:, : kept + 1].copy().T)
    return result.T


@njit
def _strict(sim, robot, memory, work):
    """Joint torques, in robosuite's order of operations. Its mass matrix lies in memory by columns."""
    _want(memory, work)
    mass, full, pos, ori = memory.mass_matrix.T, memory.J_full, memory.J_pos, memory.J_ori
    work.inverse[:] = memory.mass_matrix
    _invert(work)
    inverse = work.inverse.T
    np.dot(np.dot(full, inverse, work.narrow), full.T, work.square[0])
    by_full = _pseudo_inverse(work.square, 9, work)
    np.dot(np.dot(inverse, full.T, work.wide), by_full, work.wide_inverse)
    np.dot(work.wide_inverse, full, work.nullspace)
    for i in range(JOINTS):
        for j in range(JOINTS):
            work.nullspace[i, j] = (1.0 if i == j else 0.0) - work.nullspace[i, j]
    np.dot(np.dot(pos, inverse, work.narrow_half), pos.T, work.square_half[0])
    np.dot(_pseudo_inverse(work.square_half, 8, work), work.force, work.joint[:3])
    np.dot(np.dot(ori, inverse, work.narrow_half), ori.T, work.square_half[0])
    np.dot(_pseudo_inverse(work.square_half, 8, work), work.torque, work.joint[3:6])
    work.wrench[:] = work.joint[:6]
    for j in range(JOINTS):
        away = memory.initial_joint[j] - memory.joint_pos[j]
        work.back[j] = NULLSPACE_KP * away - NULLSPACE_KV * memory.joint_vel[j]
    np.dot(mass, work.back, work.joint)
    free = np.dot(work.nullspace.T, work.joint)
    np.dot(full.T, work.wrench, work.joint)
    for j in range(JOINTS):
        work.joint[j] = (work.joint[j] + sim.bias[robot.qvel[j]]) + free[j]


@njit(inline="always")
def _eliminate(rows, n, width):
    """Gaussian elimination of a symmetric block (n, n) with more columns after it; whether it is regular."""
    largest = 0.0
    for i in range(n):
        largest = max(largest, rows[i, i])
    for j in range(n):
        if not rows[j, j] > PIVOT * largest:
            return False
        inverse = 1.0 / rows[j, j]
        for i in range(j + 1, n):
            factor = rows[j, i] * inverse
            for c in range(width):
                rows[i, c] -= factor * rows[j, c]
    return True


@njit(inline="always")
def _substitute(rows, n, column, solution, start):
    """Solve the eliminated rows for a column; adds to `solution[start:start + n]`."""
    for i in range(n - 1, -1, -1):
        value = rows[i, column]
        for k in range(i + 1, n):
            value -= rows[i, k] * rows[k, column]
        rows[i, column] = value / rows[i, i]
        solution[start + i] += rows[i, column]


@njit(error_model="numpy")
def _fast(sim, robot, memory, work):
    """Joint torques as those of `_strict` to rounding; False, and none, in a singular posture.

    With N the nullspace matrix, M the mass matrix and a the acceleration: Nᵀ·M·a = M·a - Jᵀ·(J·M⁻¹·Jᵀ)⁻¹·J·a.
    Rows are padded to 8 so that a row is one or two registers.
    """
    joints, columns, mobility, turning, sums = work.joints, work.columns, work.mobility, work.turning, work.sums
    mj_jac_site(sim.model, sim.data, sim.jac_pos.ctypes.data, sim.jac_rot.ctypes.data, robot.site)
    for c in range(8):
        sums[0, c] = sums[1, c] = sums[2, c] = 0.0
    for j in range(JOINTS):
        dof = robot.qvel[j]
        speed = sim.qvel[dof]
        back = NULLSPACE_KP * (memory.initial_joint[j] - sim.qpos[robot.qpos[j]]) - NULLSPACE_KV * speed
        work.back[j] = back
        for i in range(3):
            columns[j, i] = sim.jac_pos[i, dof]
            columns[j, 3 + i] = sim.jac_rot[i, dof]
        for c in range(8):
            joints[j, 8 + c] = columns[j, c]
            sums[0, c] += columns[j, c] * speed
            sums[1, c] -= columns[j, c] * back
    for j in range(JOINTS):
        torque = sim.bias[robot.qvel[j]]
        for k in range(JOINTS):
            cell = robot.cell[j, k]
            joints[j, k] = sim.inertia[cell] if cell >= 0 else 0.0
            torque += joints[j, k] * work.back[k]
        work.joint[j] = torque
    if not _eliminate(joints, JOINTS, 16):
        return False
    for a in range(6):
        for b in range(8):
            mobility[a, b] = 0.0
    for j in range(JOINTS):
        inverse = 1.0 / joints[j, j]
        for a in range(6):
            factor = joints[j, 8 + a] * inverse
            for b in range(8):
                mobility[a, b] += factor * joints[j, 8 + b]
    for i in range(3):
        memory.ref_pos[i], memory.ref_pos_vel[i] = sim.site_xpos[robot.site, i], sums[0, i]
        memory.ref_ori_vel[i] = sums[0, 3 + i]
        for k in range(3):
            memory.ref_ori_mat[i, k] = sim.site_xmat[robot.site, 3 * i + k]
            turning[i, k] = mobility[3 + i, 3 + k]
    _want(memory, work)
    for i in range(3):
        mobility[i, 6], mobility[3 + i, 6] = sums[1, i], sums[1, 3 + i]
        mobility[i, 7], turning[i, 3] = work.force[i], work.torque[i]
    if not (_eliminate(mobility, 6, 8) and _eliminate(turning, 3, 4)):
        return False
    _substitute(mobility, 6, 6, sums[2], 0)
    _substitute(mobility, 3, 7, sums[2], 0)  # the first block's elimination is that of the block alone
    _substitute(turning, 3, 3, sums[2], 3)
    for j in range(JOINTS):
        torque = work.joint[j]
        for c in range(6):
            torque += columns[j, c] * sums[2, c]
        work.joint[j] = torque
    return True


@njit(inline="always")
def _command(sim, robot, memory, work):
    """Write the actuators' commands."""
    for j in range(JOINTS):
        sim.ctrl[robot.ctrl[j]] = min(max(work.joint[j], robot.low[j]), robot.high[j])
    for i in range(2):
        target = robot.finger_centre[i] + robot.finger_reach[i] * memory.finger_goal[i]
        sim.ctrl[robot.finger_ctrl[i]] = min(max(target, robot.finger_low[i]), robot.finger_high[i])


@njit(nogil=True, cache=True)
def turn_matrices(turns):
    """Rotation vectors (E, 3) in radians → matrices (E, 3, 3), from quaternions rounded to single precision."""
    matrices = np.empty((len(turns), 3, 3))
    quaternion = np.empty(4, np.float32)
    for e in range(len(turns)):
        angle = np.sqrt(turns[e, 0] ** 2 + turns[e, 1] ** 2 + turns[e, 2] ** 2)
        scale = np.sin(angle / 2.0) / angle if angle > 0.0 else 0.0
        quaternion[0] = np.cos(angle / 2.0)
        quaternion[1:] = turns[e] * scale
        quaternion *= np.sqrt(2.0 / np.float64(np.dot(quaternion, quaternion)))
        q = np.outer(quaternion, quaternion)
        for i in range(3):
            j, k = (i + 1) % 3, (i + 2) % 3
            matrices[e, i, i] = 1.0 - q[1 + j, 1 + j] - q[1 + k, 1 + k]
            matrices[e, j, k] = q[1 + j, 1 + k] - q[1 + i, 0]
            matrices[e, k, j] = q[1 + j, 1 + k] + q[1 + i, 0]
    return matrices


@njit(nogil=True, cache=True)
def run(sim, robot, memory, fast, substeps, moves, turns, grips, watched, limit):
    """Control steps until the chunk ends or `watched` (1,) exceeds `limit`; returns how many.

    `moves` (E, 3) in metres, `turns` (E, 3, 3), `grips` (E,). The first simulator step after a reset uses what the
    controllers computed while the reset was under way, as in robosuite.
    """
    work = _buffers()
    for step in range(len(moves)):
        for substep in range(substeps):
            mj_step1(sim.model, sim.data)
            fresh = substep > 0 or memory.new_update[0]
            if fresh and (substep in (0, substeps - 1) or not fast):
                _update(sim, robot, memory, fast)
            if substep == 0:
                _set_goal(sim, robot, memory, work, moves[step], turns[step], grips[step])
            if not (fast and fresh and _fast(sim, robot, memory, work)):
                if fast and fresh:
                    _update(sim, robot, memory, fast)
                _strict(sim, robot, memory, work)
            _command(sim, robot, memory, work)
            mj_step2(sim.model, sim.data)
        memory.new_update[0] = True
        memory.finger_new_update[0] = True
        if watched[0] > limit:
            return step + 1
    return len(moves)
