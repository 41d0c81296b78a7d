"""Point mazes of OGBench (arXiv 2410.20092): large and giant, held-out goals and instructions, a ladder of distances.

A disc of radius 0.7 is moved by hand, 0.2 × action per control step, through a maze of cells 4 units wide; success is a
distance to the goal of at most 1. Model, maze and oracle are OGBench's, positions are bit-equal to its `env.step`. Its
`reset` is not used (it draws from global generators): start and goal are drawn uniformly within ±1 of the centres of
their cells, as there, from the environment's own generator.

Cells are (row, column) as in OGBench. Held out are the middle columns of a maze, 4 to 7 of the large one: no
demonstration of the `-unseen` and `-instruction` tasks commands a goal there. Of these 17 cells, 11 are crossed on the
way between other cells and are the goals of fine-tuning; the other 6 are a blind alley that no demonstration has a
reason to enter, so the needed actions do not occur there and nothing asks for them. `coverage_count` and `needed_moves`
show both. In the giant maze, columns 6 to 9, 20 of 22 cells are crossed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import pairwise
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from bench.seeding import pack_generator, unpack_generator
from bench.types import Demos, State, Steps, Task
from bench.video import TopView
from envs import _instructions
from envs._pointmaze import (
    DIRECTIONS,
    OFFSET,
    SUBSTEPS,
    UNIT,
    Cell,
    Maze,
    Pair,
    Point,
    cell_of,
    centre,
    load_maze,
    near,
    ogbench_maze,
    route,
)

requires = ("ogbench", "mujoco", "dm_control")

RADIUS = 1.0  # distance to the goal that counts as success

HELD_OUT_COLUMNS = {"large": range(4, 8), "giant": range(6, 10)}
# Of fine-tuning by instruction. In the large maze behaviour cloning, given an instruction it never saw, goes to some
# other goal and on its way crosses none of these; in the giant maze three lie halfway on the three ways through the
# columns, and (3, 6) where a fourth way enters them.
INSTRUCTED_GOALS: dict[str, tuple[Cell, ...]] = {
    "large": ((2, 4), (3, 4), (5, 6), (5, 7)),
    "giant": ((1, 8), (3, 6), (6, 8), (10, 7)),
}
INSTRUCTED_DISTANCE = range(2, 6)  # path lengths in cells from which fine-tuning by instruction starts

DEMO_NOISE = 0.5  # standard deviation of the demonstrator's action noise (OGBench)
DEMO_STEPS = 1001  # control steps until the demonstrator is put elsewhere (OGBench)


def held_out(maze: Maze) -> tuple[Cell, ...]:
    """The free cells of the middle columns, whose goals no demonstration of the held-out tasks commands."""
    return tuple(cell for cell in maze.cells if cell[1] in HELD_OUT_COLUMNS[maze.kind])


def commanded(maze: Maze) -> tuple[Cell, ...]:
    """The other free cells."""
    return tuple(cell for cell in maze.cells if cell[1] not in HELD_OUT_COLUMNS[maze.kind])


@cache
def crossed(kind: str) -> tuple[Cell, ...]:
    """The held-out cells on the oracle's way between two commanded goals."""
    maze = load_maze(kind)
    ends = commanded(maze)
    passed = {cell for start in ends for goal in ends for cell in route(maze, start, goal)}
    return tuple(cell for cell in held_out(maze) if cell in passed)


@cache
def instructions(kind: str) -> npt.NDArray[np.float32]:
    """(rows, columns, 8): a fixed standard normal vector per cell of the maze."""
    walls = load_maze(kind).walls
    return _instructions.draw(len(walls), len(walls[0]))


def _all_pairs(maze: Maze) -> list[Pair]:
    return [(start, goal) for goal in maze.cells for start in maze.cells if start != goal]


def _unseen_pairs(maze: Maze) -> list[Pair]:
    """Goals that are held out and crossed; starts anywhere but in the blind alley."""
    goals = crossed(maze.kind)
    return [(s, g) for g in goals for s in (*commanded(maze), *goals) if s != g]


def _instructed_pairs(maze: Maze) -> list[Pair]:
    near_enough = [(s, g) for s, g in _unseen_pairs(maze) if maze.lengths[g][s] in INSTRUCTED_DISTANCE]
    return [(s, g) for s, g in near_enough if g in INSTRUCTED_GOALS[maze.kind]]


def _pairs_at(distance: int, maze: Maze) -> list[Pair]:
    return [(start, goal) for start, goal in _all_pairs(maze) if maze.lengths[goal][start] == distance]


@dataclass(frozen=True)
class Variant:
    """What a task asks for and what its demonstrations command."""

    kind: str  # of maze
    pairs: Callable[[Maze], Sequence[Pair]]  # fine-tuning: starts and goals, all equally likely
    goals: Callable[[Maze], Sequence[Cell]]  # demonstrations: commanded goals, all equally likely
    context: str = "goal"  # observation key; "instruction": the goal reaches the policy in no other way
    bounds: dict[str, float] = field(default_factory=dict)  # of what agents choose; docs/published/settings.md


LADDER = (4, 6, 8, 12)  # path lengths in cells
VARIANTS = {
    "navigation/pointmaze-large": Variant("large", _all_pairs, lambda maze: maze.cells),
    "navigation/pointmaze-large-unseen": Variant(
        "large", _unseen_pairs, commanded, bounds={"z_bound": 2.8, "correction_bound": 2.0, "action_bound": 6.0}
    ),
    **{
        f"navigation/pointmaze-{kind}-instruction": Variant(
            kind,
            _instructed_pairs,
            commanded,
            "instruction",
            {"z_bound": 4.0, "correction_bound": 6.0, "action_bound": 6.0},
        )
        for kind in HELD_OUT_COLUMNS
    },
    **{
        f"navigation/pointmaze-giant-{k}": Variant("giant", partial(_pairs_at, k), lambda maze: maze.cells)
        for k in LADDER
    },
    "navigation/pointmaze-giant": Variant(
        "giant", lambda maze: maze.tasks, lambda maze: maze.junctions, bounds={"z_bound": 1.0, "action_bound": 4.0}
    ),
}


def _task(name: str, horizon: int, demonstrations: str, finetuning: str, profiles: str, **more: Any) -> Task:
    variant = VARIANTS[f"navigation/{name}"]
    own: dict[str, dict[str, Any]] = {
        "goal": {"paper": {"policy.context": "observation"}},  # TMRL's code noises the position too
        "instruction": {"quick": {"rl.decisions": 12_000}},  # where the best methods level off
    }[variant.context]
    return Task(
        id=f"navigation/{name}",
        version=1,
        horizon=horizon,
        control_hz=10.0,
        state_keys=("position",),
        context_keys=(variant.context,),
        demonstrations=demonstrations,
        finetuning=finetuning,
        success=f"distance to the goal at most {RADIUS}",
        demo_count=200_000,
        demo_unit="transitions",
        position_keys=("position", "goal") if variant.context == "goal" else ("position",),
        settings={
            "policy.chunk": 8,
            "policy.execute": 8,
            "policy.fourier": 4,
            **{f"method.{option}": value for option, value in variant.bounds.items()},
        },
        profiles={profile: own.get(profile, {}) for profile in profiles.split()},
        **more,
    )


# Horizons: the noisy demonstrator needs about 20 control steps per cell, so 390 for the longest way of `large` (19
# cells), 290 for that of `-unseen` (14), 80 for that of `-instruction` (4). The ladder has 50 per cell, OGBench 1000.
tasks = (
    _task("pointmaze-large", 500, "goals in all 46 cells", "goals in all 46 cells", "standard"),
    _task(
        "pointmaze-large-unseen",
        400,
        "goals outside the middle columns 4 to 7, which most ways cross",
        "goals in the 11 cells of the middle columns that the demonstrations cross",
        "quick standard paper",
    ),
    *(
        _task(
            f"pointmaze-{kind}-instruction",
            200,
            f"instructions for goals outside the middle columns {min(HELD_OUT_COLUMNS[kind])} to "
            f"{max(HELD_OUT_COLUMNS[kind])}, which most ways cross",
            f"four instructions never given before, for goals in cells {goals}, from 2 to 5 cells away",
            "quick standard paper" if kind == "large" else "standard paper",
        )
        for kind, goals in INSTRUCTED_GOALS.items()
    ),
    *(
        _task(
            f"pointmaze-giant-{k}",
            50 * k,
            "goals in all 46 cells of the large maze",
            f"goals in the giant maze, {k} cells from the start by the shortest path",
            "standard paper",
            demos_of="navigation/pointmaze-large",
        )
        for k in LADDER
    ),
    _task(
        "pointmaze-giant",
        1000,
        "goals in the junction cells of the giant maze (OGBench's protocol)",
        "OGBench's five tasks, 17 to 30 cells long",
        "standard paper published",
    ),
)


class PointMazeEnv(gymnasium.Env[dict[str, Any], Any]):
    """Starts and goals drawn from `pairs`; the additions to gymnasium.Env are those of `bench.types.BenchEnv`."""

    def __init__(self, maze: Maze, pairs: Sequence[Pair], horizon: int, context: str, seed: int) -> None:
        self._point, self._pairs, self._horizon, self._key = Point(maze), pairs, horizon, context
        self._words = instructions(maze.kind)
        high = np.array([len(maze.walls[0]), len(maze.walls)], np.float32) * np.float32(UNIT) - np.float32(OFFSET + 2)
        place = gymnasium.spaces.Box(np.full(2, -OFFSET - 2, np.float32), high, (2,), np.float32)
        words = gymnasium.spaces.Box(-np.inf, np.inf, (_instructions.SIZE,), np.float32)
        spaces = {"position": place, context: place if context == "goal" else words}
        self.observation_space = gymnasium.spaces.Dict(spaces)  # type: ignore[assignment]
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self._rng = np.random.default_rng(seed)
        self.reset()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Draw a pair of cells, and a start and a goal in them."""
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        start, goal = self._pairs[int(self._rng.integers(len(self._pairs)))]
        self._point.place(near(start, self._rng))
        self._set_goal(near(goal, self._rng))
        self._steps = 0
        return self._observation(), {"success": False}

    def _set_goal(self, goal: npt.NDArray[np.float64]) -> None:
        self._goal = (float(goal[0]), float(goal[1]))
        self._context = goal.astype(np.float32) if self._key == "goal" else self._words[cell_of(*self._goal)]

    def _observation(self) -> dict[str, npt.NDArray[np.float32]]:
        return {"position": np.array([self._point.x, self._point.y], np.float32), self._key: self._context.copy()}

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Move by 0.2 × action (2,), clipped to [-1, 1], as far as the walls allow."""
        steps = self.step_chunk(np.asarray(action, np.float32)[None])
        return steps.observation, steps.reward, steps.terminated, steps.truncated, {"success": steps.success}

    def step_chunk(self, actions: npt.NDArray[np.float32]) -> Steps:
        """`step` with the actions (E, 2) one after the other, until the episode ends."""
        point, (x, y) = self._point, self._goal
        for count, action in enumerate(np.minimum(np.maximum(actions, -1.0), 1.0), 1):
            point.move(action)
            success = math.hypot(point.x - x, point.y - y) <= RADIUS
            truncated = self._steps + count >= self._horizon and not success
            if success or truncated:
                break
        self._steps += count
        return Steps(self._observation(), float(success), count, success, truncated, success)

    def get_state(self) -> State:
        """Simulator, goal, step counter and random generator."""
        return {
            "simulator": self._point.get_state(),
            "goal": np.array(self._goal),
            "steps": np.array([self._steps], np.int64),
            "generator": pack_generator(self._rng),
        }

    def set_state(self, state: State) -> dict[str, Any]:
        """Restore what `get_state` gave; returns the observation."""
        self._point.set_state(state["simulator"])
        self._set_goal(np.array(state["goal"], np.float64))
        self._steps = int(state["steps"][0])
        self._rng = unpack_generator(state["generator"])
        return self._observation()

    def top_view(self) -> TopView:
        return self._point.top_view(self._goal, RADIUS)


def make(task: Task, seed: int, stepping: str = "strict") -> PointMazeEnv:
    """An environment that asks for the starts and goals of the task's fine-tuning."""
    variant = VARIANTS[task.id]
    maze = load_maze(variant.kind)
    return PointMazeEnv(maze, variant.pairs(maze), task.horizon, variant.context, seed)


def speeds() -> Iterator[tuple[str, dict[str, Callable[[], int]]]]:
    """What `bench perf` compares: control steps by OGBench, by this suite, and by MuJoCo without anything around it."""
    for kind in ("large", "giant"):
        yield f"pointmaze-{kind}", _speeds_of(kind)


def _speeds_of(kind: str) -> dict[str, Callable[[], int]]:
    import mujoco

    theirs = ogbench_maze(kind)
    theirs.reset(options={"task_id": 1})
    task = next(task for task in tasks if VARIANTS[task.id].kind == kind)
    ours = make(task, 0)
    actions = np.random.default_rng(0).uniform(-1, 1, (1000, 2)).astype(np.float32)

    def stock() -> int:
        for action in actions:
            theirs.step(action)
        return len(actions)

    def steps() -> int:
        for action in actions:
            if any(ours.step(action)[2:4]):
                ours.reset()
        return len(actions)

    def chunks() -> int:
        done = 0
        for chunk in actions.reshape(-1, 8, 2):
            taken = ours.step_chunk(chunk)
            done += taken.count
            if taken.terminated or taken.truncated:
                ours.reset()
        return done

    def physics() -> int:
        mujoco.mj_step(theirs.model, theirs.data, nstep=SUBSTEPS * 1000)
        return 1000

    return {"stock": stock, "step": steps, "chunks of 8": chunks, "MuJoCo alone": physics}


Rows = list[tuple[float, float]]


def _command(
    point: Point, towards: dict[Cell, Cell], goal: npt.NDArray[np.float64], noise: npt.NDArray[np.float64]
) -> tuple[Rows, list[npt.NDArray[np.float32]], bool]:
    """The oracle's noisy way to a goal (2,), at most len(noise) control steps: positions, actions, success."""
    goal_x, goal_y = goal.tolist()
    positions: Rows = []
    actions: list[npt.NDArray[np.float32]] = []
    for jitter in noise:
        here = cell_of(point.x, point.y)
        x, y = (goal_x, goal_y) if towards[here] == here else centre(towards[here])
        x, y = x - point.x, y - point.y
        length = math.hypot(x, y) + 1e-6
        wanted = np.array((x / length, y / length)) + jitter
        action = np.minimum(np.maximum(wanted, -1.0), 1.0).astype(np.float32)
        positions.append((point.x, point.y))
        actions.append(action)
        point.move(action)
        if math.hypot(point.x - goal_x, point.y - goal_y) <= RADIUS:
            return positions, actions, True
    return positions, actions, False


def demos(
    task: Task, n: int, rng: np.random.Generator, progress: Callable[[float], None] = lambda share: None
) -> Demos:
    """`n` transitions by OGBench's protocol: the oracle with action noise 0.5, put elsewhere every 1001 steps.

    At each success a new goal is drawn, and each command is one episode. OGBench draws goals among the junction cells,
    and so does `pointmaze-giant`; the tasks on the large maze draw among all cells, or all that are not held out, so
    that each cell has its goals. The cell the point is in is not drawn. Ladder tasks give those of `pointmaze-large`.
    In the goal's own cell the demonstrator heads for the goal; OGBench's heads for the middle of the cell and hovers
    there without success if the goal lies in a corner: 1 in 50 goals was not reached in 1000 control steps.
    """
    variant = VARIANTS[task.demos_of or task.id]
    maze = load_maze(variant.kind)
    point, goals, words = Point(maze), list(variant.goals(maze)), instructions(variant.kind)
    positions: Rows = []
    actions: list[npt.NDArray[np.float32]] = []
    contexts, ends, success = [], [], []
    noise = np.empty((0, 2))
    while len(actions) < n:
        if not len(noise):
            point.place(near(maze.cells[rng.integers(len(maze.cells))], rng))
            noise = DEMO_NOISE * rng.standard_normal((min(DEMO_STEPS, n - len(actions)), 2))
        choice = [cell for cell in goals if cell != cell_of(point.x, point.y)]
        cell = choice[rng.integers(len(choice))]
        goal = near(cell, rng)
        passed, done, reached = _command(point, maze.towards[cell], goal, noise)
        positions += passed
        actions += done
        noise = noise[len(done) :]
        contexts.append(goal if variant.context == "goal" else words[cell])
        ends.append(len(actions))
        success.append(reached)
        progress(len(actions) / n)
    rows = np.repeat(np.array(contexts, np.float32), np.diff(ends, prepend=0), axis=0)
    observations = {"position": np.array(positions, np.float32), variant.context: rows}
    return Demos(observations, np.array(actions), np.array(ends, np.int64), np.array(success, np.bool_))


def coverage_count(demos: Demos, cells: Iterable[Cell]) -> dict[Cell, npt.NDArray[np.int64]]:
    """How often the demonstrations leave each cell upwards, to the left, downwards and to the right: cell → (4,)."""
    position = demos.observations["position"].astype(np.float64)
    at = ((position[:, ::-1] + OFFSET) / UNIT + 0.5).astype(np.int64)  # (N, 2): row, column
    step = np.diff(at, axis=0)
    step[demos.ends[:-1] - 1] = 0  # from one command to the next
    counts = {cell: np.zeros(4, np.int64) for cell in cells}
    for d, direction in enumerate(DIRECTIONS):
        for cell in map(tuple, at[:-1][(step == direction).all(axis=1)].tolist()):
            if cell in counts:
                counts[cell][d] += 1
    return counts


def needed_moves(task: Task) -> dict[tuple[Cell, int], int]:
    """(cell, number of the direction) → in how many of the task's start–goal pairs the oracle leaves the cell so."""
    variant = VARIANTS[task.id]
    maze = load_maze(variant.kind)
    needed: dict[tuple[Cell, int], int] = {}
    for start, goal in variant.pairs(maze):
        cells = route(maze, start, goal)
        for here, there in pairwise(cells):
            move = here, DIRECTIONS.index((there[0] - here[0], there[1] - here[1]))
            needed[move] = needed.get(move, 0) + 1
    return needed
