"""The mazes: equal to OGBench to the last bit, and the context shift is the one that is claimed."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.seeding import fence
from bench.types import Demos, Task
from envs import navigation as nav

TASKS = {task.id.removeprefix("navigation/"): task for task in nav.tasks}
LARGE_HELD_OUT = ("pointmaze-large-unseen", "pointmaze-large-instruction")
HELD_OUT_TASKS = (*LARGE_HELD_OUT, "pointmaze-giant-instruction")


@pytest.fixture(scope="module")
def demos() -> dict[str, Demos]:
    """The full demonstrations of the tasks on the large maze, and of those with held-out goals."""
    names = ("pointmaze-large", *HELD_OUT_TASKS)
    return {n: nav.demos(TASKS[n], TASKS[n].demo_count, np.random.default_rng(0)) for n in names}


def ogbench(kind: str) -> Any:
    with fence(0):
        return nav.ogbench_maze(kind)


def wall_hugging(rng: np.random.Generator, steps: int) -> np.ndarray[Any, Any]:
    """(steps, 2): full speed in one direction for 1 to 60 control steps, then in another, sometimes with noise."""
    parts: list[Any] = []
    while sum(map(len, parts)) < steps:
        length = int(rng.integers(1, 60))
        direction = rng.choice([-1.0, -0.3, 0.0, 0.3, 1.0], 2)
        parts.append(direction + rng.choice([0.0, 0.2]) * rng.standard_normal((length, 2)))
    return np.clip(np.concatenate(parts)[:steps], -1, 1).astype(np.float32)


def random_walk(rng: np.random.Generator, steps: int) -> np.ndarray[Any, Any]:
    return rng.uniform(-1, 1, (steps, 2)).astype(np.float32)


@pytest.mark.parametrize("actions", [random_walk, wall_hugging])
@pytest.mark.parametrize("name", ["pointmaze-large", "pointmaze-giant"])
def test_positions_and_success_are_those_of_ogbench_to_the_last_bit(name: str, actions: Any) -> None:
    theirs, ours = ogbench(name.removeprefix("pointmaze-")), nav.make(TASKS[name], 3)
    rng = np.random.default_rng(4)
    solved = touched = 0
    for episode in range(12):
        ours.reset()
        if episode % 3 == 0:  # a goal that is soon met
            here = ours._point
            ours._set_goal(np.array([here.x, here.y]) + rng.uniform(0.8, 1.4, 2))
        theirs.set_state(np.array([ours._point.x, ours._point.y]), np.zeros(2))
        theirs.set_goal(goal_xy=np.array(ours._goal))
        for action in actions(rng, 500):
            _, reward, terminated, _, info = theirs.step(action)
            result = ours.step(action)
            assert (ours._point.x, ours._point.y) == tuple(theirs.data.qpos)
            assert np.array_equal(ours._point._warmstart, theirs.data.qacc_warmstart)
            assert result[1:3] == (reward, terminated)
            assert result[4] == {"success": bool(info["success"])}
            touched += theirs.data.ncon > 1  # the floor is always touched
            solved += terminated
            if terminated:
                break
    assert solved >= 1 and touched > (500 if actions is wall_hugging else 5)


def test_actions_beyond_the_box_are_clipped() -> None:
    env = nav.make(TASKS["pointmaze-large"], 0)
    env.reset(seed=1)
    state = env.get_state()
    wide = env.step(np.array([7.0, -0.5], np.float32))[0]
    env.set_state(state)
    assert np.array_equal(env.step(np.array([1.0, -0.5], np.float32))[0]["position"], wide["position"])


def test_starts_and_goals_lie_within_one_of_the_centres_of_the_cells_asked_for() -> None:
    env = nav.make(TASKS["pointmaze-giant"], 0)
    seen = set()
    for _ in range(60):
        env.reset()
        ends = np.array([[env._point.x, env._point.y], env._goal])
        cells = nav.cell_of(*ends[0]), nav.cell_of(*ends[1])
        assert (np.abs(ends - [nav.centre(cell) for cell in cells]) <= 1.0).all()
        seen.add(cells)
    assert seen == {((1, 1), (10, 14)), ((1, 14), (10, 1)), ((8, 14), (1, 1)), ((8, 3), (5, 12)), ((5, 9), (3, 8))}


def test_the_oracle_is_ogbenchs() -> None:
    rng = np.random.default_rng(0)
    for kind in ("large", "giant"):
        maze, env = nav.load_maze(kind), ogbench(kind)
        for _ in range(60):
            start, goal = (maze.cells[i] for i in rng.integers(len(maze.cells), size=2))
            subgoal, lengths = env.get_oracle_subgoal(nav.near(start, rng), nav.near(goal, rng))
            assert nav.centre(maze.towards[goal][start]) == tuple(subgoal)
            assert maze.lengths[goal][start] == lengths[start] == len(nav.route(maze, start, goal)) - 1


def test_no_temporary_file_or_descriptor_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = len(os.listdir("/dev/fd"))
    for _ in range(3):
        ogbench("large")
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/dev/fd")) == before


def goal_cells(demos: Demos) -> set[nav.Cell]:
    return {nav.cell_of(*goal) for goal in np.unique(demos.observations["goal"], axis=0).tolist()}


def test_held_out_goals_are_never_commanded_and_all_others_are(demos: dict[str, Demos]) -> None:
    maze = nav.load_maze("large")
    held_out = set(nav.held_out(maze))
    assert len(held_out) == 17 and {j for _, j in held_out} == {4, 5, 6, 7}
    assert goal_cells(demos["pointmaze-large-unseen"]) == set(maze.cells) - held_out
    assert goal_cells(demos["pointmaze-large"]) == set(maze.cells)


@pytest.mark.parametrize("name", HELD_OUT_TASKS)
def test_fine_tuning_asks_for_held_out_goals_only(name: str) -> None:
    task, variant = TASKS[name], nav.VARIANTS[f"navigation/{name}"]
    maze = nav.load_maze(variant.kind)
    asked = {goal for _, goal in variant.pairs(maze)}
    assert asked <= set(nav.held_out(maze))
    assert asked == set(nav.INSTRUCTED_GOALS[maze.kind] if "instruction" in name else nav.crossed(maze.kind))
    env = nav.make(task, 0)
    for _ in range(50):
        env.reset()
        assert nav.cell_of(*env._goal) in asked


@pytest.mark.parametrize("name", HELD_OUT_TASKS)
def test_the_needed_actions_occur_in_the_demonstrations(name: str, demos: dict[str, Demos]) -> None:
    maze = nav.load_maze(nav.VARIANTS[f"navigation/{name}"].kind)
    counts = nav.coverage_count(demos[name], maze.cells)
    moves = nav.needed_moves(TASKS[name])
    assert {cell for cell, _ in moves} & set(nav.held_out(maze))
    few = {(cell, nav.DIRECTIONS[d]): counts[cell][d] for cell, d in moves if counts[cell][d] < 15}
    assert not few
    inside = [counts[cell][d] for cell, d in moves if cell in nav.held_out(maze)]
    assert min(inside) >= 40


def test_nothing_enters_the_blind_alley_on_purpose(demos: dict[str, Demos]) -> None:
    maze = nav.load_maze("large")
    alley = set(nav.held_out(maze)) - set(nav.crossed("large"))
    assert alley == {(6, 6), (7, 6), (7, 5), (7, 4), (6, 4), (5, 4)}
    counts = nav.coverage_count(demos["pointmaze-large-unseen"], maze.cells)
    assert counts[(5, 6)][nav.DIRECTIONS.index((1, 0))] < 10


def test_coverage_count_counts_passages_by_direction_within_episodes() -> None:
    cells = [(1, 1), (1, 2), (1, 2), (2, 2), (2, 1), (1, 1), (1, 2)]  # the fifth begins another episode
    position = np.array([nav.centre(cell) for cell in cells], np.float32)
    flat = Demos({"position": position}, np.zeros((7, 2), np.float32), np.array([4, 7]), np.ones(2, np.bool_))
    counts = nav.coverage_count(flat, [(1, 1), (1, 2), (2, 1), (2, 2)])
    assert {cell: count.tolist() for cell, count in counts.items()} == {
        (1, 1): [0, 0, 0, 2],  # to the right in both episodes
        (1, 2): [0, 0, 1, 0],
        (2, 1): [1, 0, 0, 0],
        (2, 2): [0, 0, 0, 0],  # the first episode ends here
    }


@pytest.mark.parametrize("distance", nav.LADDER)
def test_giant_pairs_have_the_distance_of_their_task(distance: int) -> None:
    env, maze = nav.make(TASKS[f"pointmaze-giant-{distance}"], 0), nav.load_maze("giant")
    theirs = ogbench("giant")
    for _ in range(30):
        env.reset()
        lengths = theirs.get_oracle_subgoal((env._point.x, env._point.y), env._goal)[1]
        assert lengths[nav.cell_of(env._point.x, env._point.y)] == distance
    assert len(set(env._pairs)) == len(env._pairs) == sum(int((m == distance).sum()) for m in maze.lengths.values())


def commands(demos: Demos) -> set[bytes]:
    return {row.tobytes() for row in demos.observations["instruction"]}


@pytest.mark.parametrize(("kind", "commanded"), [("large", 29), ("giant", 64)])
def test_instructions_are_fixed_and_those_of_fine_tuning_are_unseen(
    kind: str, commanded: int, demos: dict[str, Demos]
) -> None:
    env = nav.make(TASKS[f"pointmaze-{kind}-instruction"], 0)
    shown = set()
    for _ in range(80):
        instruction = env.reset()[0]["instruction"]
        assert np.array_equal(instruction, nav.instructions(kind)[nav.cell_of(*env._goal)])
        shown.add(instruction.tobytes())
    seen = commands(demos[f"pointmaze-{kind}-instruction"])
    assert len(shown) == 4 and len(seen) == commanded
    assert not shown & seen
    assert abs(nav.instructions(kind).std() - 1.0) < 0.05


def test_the_large_mazes_instructions_stay_as_they_are() -> None:
    assert np.allclose(nav.instructions("large")[2, 4, :3], FROZEN_INSTRUCTION, atol=1e-5)


FROZEN_INSTRUCTION = (-0.618237, 0.399996, 1.376777)


def test_the_instructed_demonstrations_are_the_unseen_ones_with_another_context(demos: dict[str, Demos]) -> None:
    plain, instructed = (demos[name] for name in LARGE_HELD_OUT)
    assert np.array_equal(plain.actions, instructed.actions) and np.array_equal(plain.ends, instructed.ends)
    cells = [nav.cell_of(*goal) for goal in plain.observations["goal"][plain.ends - 1].tolist()]
    rows = instructed.observations["instruction"][instructed.ends - 1]
    assert np.array_equal(rows, [nav.instructions("large")[cell] for cell in cells])


def test_one_command_per_episode_and_only_the_cut_ones_fail(demos: dict[str, Demos]) -> None:
    data = demos["pointmaze-large"]
    goals = data.observations["goal"]
    for begin, end in zip([0, *data.ends[:-1]], data.ends, strict=True):
        assert (goals[begin:end] == goals[begin]).all()
    cuts = set(range(nav.DEMO_STEPS, len(goals), nav.DEMO_STEPS)) | {len(goals)}
    assert cuts <= set(data.ends.tolist())
    assert set(data.ends[~data.success].tolist()) <= cuts
    assert 0.80 < data.success.mean() < 0.90


def demonstrator_steps(task: Task, tries: int) -> list[int]:
    """Control steps that the demonstrator needs from the starts of fine-tuning."""
    variant, rng = nav.VARIANTS[task.id], np.random.default_rng(0)
    maze = nav.load_maze(variant.kind)
    point, pairs, steps = nav.Point(maze), variant.pairs(maze), []
    for _ in range(tries):
        start, goal = pairs[rng.integers(len(pairs))]
        point.place(nav.near(start, rng))
        noise = nav.DEMO_NOISE * rng.standard_normal((task.horizon, 2))
        _, actions, reached = nav._command(point, maze.towards[goal], nav.near(goal, rng), noise)
        assert reached
        steps.append(len(actions))
    return steps


@pytest.mark.parametrize("name", TASKS)
def test_the_demonstrator_always_succeeds_well_before_the_horizon(name: str) -> None:
    assert max(demonstrator_steps(TASKS[name], 200)) < 0.85 * TASKS[name].horizon
