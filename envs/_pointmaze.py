"""OGBench's point mazes (arXiv 2410.20092): the maze with its oracle, and the disc that is moved through it."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt

from bench.seeding import fence
from bench.video import TopView

Cell = tuple[int, int]  # (row, column)
Pair = tuple[Cell, Cell]  # (start, goal)

UNIT = 4.0  # width of a cell
OFFSET = 4.0  # cell (i, j) has its centre at x = 4 j - 4, y = 4 i - 4
NOISE = 1.0  # starts and goals lie uniformly within ± this of the centres of their cells
SPEED = np.float32(0.2)  # units per control step of a full action; float32 as the actions, or the last bit differs
SUBSTEPS = 5  # simulator steps in a control step
FREE = (UNIT / 2 - 0.7) / UNIT - 1e-6  # in cells: nearer to the centre than this, the disc cannot touch the next cell
DIRECTIONS: tuple[Cell, ...] = ((-1, 0), (0, -1), (1, 0), (0, 1))  # up, left, down, right, in the oracle's order


@dataclass(frozen=True)
class Maze:
    """A maze as OGBench builds it; the model is shared by all environments of this process and never changed."""

    kind: str  # "large" or "giant"
    model: Any
    walls: list[list[bool]]
    cells: tuple[Cell, ...]  # the free ones
    junctions: tuple[Cell, ...]  # free cells that are not the inside of a straight corridor
    tasks: tuple[Pair, ...]  # OGBench's five
    lengths: dict[Cell, npt.NDArray[np.int64]]  # goal → (rows, columns) path length in cells, -1 in walls
    towards: dict[Cell, dict[Cell, Cell]]  # goal → cell → the oracle's next cell


@cache
def load_maze(kind: str) -> Maze:
    """The maze "large" or "giant"; the oracle is asked once per goal cell, for it searches the maze every time."""
    env = ogbench_maze(kind)
    walls = [[bool(w) for w in row] for row in env.maze_map]
    cells = tuple((i, j) for i, row in enumerate(walls) for j, wall in enumerate(row) if not wall)
    lengths = {goal: env.get_oracle_subgoal(centre(cells[0]), centre(goal))[1] for goal in cells}
    return Maze(
        kind=kind,
        model=env.model,
        walls=walls,
        cells=cells,
        junctions=tuple(cell for cell in cells if not _in_corridor(walls, cell)),
        tasks=tuple((info["init_ij"], info["goal_ij"]) for info in env.task_infos),
        lengths=lengths,
        towards={goal: {cell: _next_cell(lengths[goal], cell) for cell in cells} for goal in cells},
    )


def ogbench_maze(kind: str) -> Any:
    """OGBench's environment, without the temporary file and the open descriptor that it leaves behind."""
    made: list[tuple[int, str]] = []

    def mkstemp(**options: Any) -> tuple[int, str]:
        made.append(tempfile.mkstemp(**options))
        return made[-1]

    with fence(0):
        from ogbench.locomaze import maze

        try:
            with mock.patch.object(maze, "tempfile", SimpleNamespace(mkstemp=mkstemp)):
                return maze.make_maze_env("point", "maze", maze_type=kind)
        finally:
            for descriptor, path in made:
                os.close(descriptor)
                os.unlink(path)


def _in_corridor(walls: list[list[bool]], cell: Cell) -> bool:
    """Whether exactly two opposite neighbours are free: such cells are no goals in OGBench's own demonstrations."""
    i, j = cell
    up, left, down, right = (walls[i + di][j + dj] for di, dj in DIRECTIONS)
    return up == down and left == right and up != left


def _next_cell(lengths: npt.NDArray[np.int64], cell: Cell) -> Cell:
    """The neighbour nearest to the goal, the first of equals, as in OGBench's `get_oracle_subgoal`."""
    around = [(cell[0] + di, cell[1] + dj) for di, dj in DIRECTIONS]
    return min([cell, *(c for c in around if lengths[c] >= 0)], key=lambda c: lengths[c])


def centre(cell: Cell) -> tuple[float, float]:
    """(x, y) of the middle of a cell."""
    return cell[1] * UNIT - OFFSET, cell[0] * UNIT - OFFSET


def cell_of(x: float, y: float) -> Cell:
    """The cell that a position lies in."""
    return int((y + OFFSET) / UNIT + 0.5), int((x + OFFSET) / UNIT + 0.5)


def near(cell: Cell, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """A position (2,) within ±1 of the centre of a cell."""
    return np.array(centre(cell)) + rng.uniform(-NOISE, NOISE, 2)


def route(maze: Maze, start: Cell, goal: Cell) -> list[Cell]:
    """The oracle's cells from start to goal, both included."""
    cells = [start]
    while cells[-1] != goal:
        cells.append(maze.towards[goal][cells[-1]])
    return cells


class Point:
    """The disc in its maze: OGBench's physics without what changes nothing."""

    def __init__(self, maze: Maze) -> None:
        import mujoco

        self._mujoco, self._model, self._walls = mujoco, maze.model, maze.walls
        self._data = mujoco.MjData(maze.model)
        self._qpos, self._qvel, self._warmstart = self._data.qpos, self._data.qvel, self._data.qacc_warmstart
        self._part = mujoco.mjtState.mjSTATE_INTEGRATION
        self._size = mujoco.mj_stateSize(maze.model, self._part)
        self.x, self.y = self._qpos.tolist()

    def place(self, position: npt.NDArray[np.float64]) -> None:
        """Put the disc at rest at (2,)."""
        self._mujoco.mj_resetData(self._model, self._data)
        self._qpos[:] = position
        self.x, self.y = self._qpos.tolist()

    def move(self, action: npt.NDArray[np.float32]) -> None:
        """One control step with an action (2,) in [-1, 1].

        The disc is displaced and its velocity zeroed, and no force but that of a wall acts. So where it touches none,
        `mj_step` would leave it where it is, with accelerations of zero for the next solver to start from.
        """
        self._qpos += SPEED * action
        self._qvel[:] = 0.0
        self.x, self.y = self._qpos.tolist()
        if self._touches():
            self._mujoco.mj_step(self._model, self._data, nstep=SUBSTEPS)
            self.x, self.y = self._qpos.tolist()
        else:
            self._warmstart[:] = 0.0

    def _touches(self) -> bool:
        """Whether the square around the disc reaches into a wall: never wrongly False."""
        v, u = (self.y + OFFSET) / UNIT + 0.5, (self.x + OFFSET) / UNIT + 0.5
        i, j = int(v), int(u)
        v, u = v - i - 0.5, u - j - 0.5  # in cells, from the centre
        di, dj = (v > FREE) - (v < -FREE), (u > FREE) - (u < -FREE)
        walls = self._walls
        return walls[i][j] or walls[i + di][j] or walls[i][j + dj] or walls[i + di][j + dj]

    def get_state(self) -> npt.NDArray[np.float64]:
        """The simulator's full state, (n,)."""
        state = np.empty(self._size)
        self._mujoco.mj_getState(self._model, self._data, state, self._part)
        return state

    def set_state(self, state: npt.NDArray[np.float64]) -> None:
        """Restore what `get_state` gave."""
        self._mujoco.mj_setState(self._model, self._data, np.asarray(state, np.float64), self._part)
        self.x, self.y = self._qpos.tolist()

    def top_view(self, goal: tuple[float, float], radius: float) -> TopView:
        """The maze and a goal (x, y)."""
        corner, walls = -OFFSET - UNIT / 2, self._walls
        boxes = [
            (corner + j * UNIT, corner + i * UNIT, UNIT, UNIT)
            for i, row in enumerate(walls) for j, wall in enumerate(row) if wall
        ]  # fmt: skip
        area = (corner, corner, len(walls[0]) * UNIT, len(walls) * UNIT)
        return TopView("position", area, tuple(boxes), goal, radius)
