"""OGBench's manipspace (arXiv 2410.20092): a UR5e arm with a gripper puts one or two cubes where they are asked to go.

Actions are (5,) in [-1, 1]: position change (at most 5 cm a control step), turn (at most 0.3 rad), and the gripper (at
most its full opening, +1 closes). 20 control steps per second. The context is the goal position of every cube, the rest
of OGBench's observation is s; both as OGBench scales them. Success is OGBench's: each cube's centre within 4 cm of its
goal. Scene, controller and demonstrator are OGBench's, the controller compiled for `fast` stepping; its `reset` is not
used, for it draws actions from an unseeded generator.

In the shifted tasks the demonstrations have cubes and goals in a strip before the arm, and fine-tuning has both on the
table to its right and left. The arm's own starts are OGBench's everywhere, so the demonstrations move to both sides.

In the instruction task an instruction, a fixed random vector for each of 18 places, stands in for the goal position.
Fine-tuning asks for four of those places in other words: by vectors that no demonstration carries.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from bench.seeding import fence, pack_generator, unpack_generator
from bench.types import Demos, State, Steps, Task
from bench.video import Picture, TopView
from envs import _instructions
from envs._chunked import ChunkedEnv, Episode, checked, successful
from envs._cube_scene import CENTRE, REACH, SCALE, CubeScene, Layout

requires = ("ogbench", "mujoco", "dm_control")

AREA = np.array([[0.30, -0.30], [0.55, 0.30]])  # metres, x and y: where OGBench's data has cubes and goals
HEIGHT = 0.02  # metres: centre of a cube that lies on the table
CARRY = 0.08  # metres: least distance between a cube and its goal, twice that of success
APART = 0.08  # metres: least distance between two cubes, two goals, and a goal and another cube
STRIP = {1: 0.05, 2: 0.10}  # metres: half width of the demonstrated strip by number of cubes; two need more room
MARGIN = 0.10  # metres beyond AREA that drawings show: the gripper may go 5 cm beyond it
OUTSIDE = 0.10  # metres: fine-tuning of the shifted tasks asks for |y| beyond this
HORIZONS = {1: 200, 2: 500}  # control steps, OGBench's; the demonstrator's median episodes take 64 and 152
PLAN_NOISE, PLAN_SMOOTHING = 0.1, 0.5  # of OGBench's demonstrator in its play data

# Metres: where the instruction task has goals, at least 10 cm apart, so that one place is not success at another.
PLACES = np.array([(x, y) for x in (0.325, 0.425, 0.525) for y in (-0.25, -0.15, -0.05, 0.05, 0.15, 0.25)])
REWORDED = (1, 5, 9, 14)  # of PLACES: what fine-tuning asks for in other words
AROUND = 0.01  # metres by x and by y: how far from its place a goal is at most

Allowed = Callable[[npt.NDArray[np.float64], npt.NDArray[np.float64]], bool]


def anywhere(starts: npt.NDArray[np.float64], goals: npt.NDArray[np.float64]) -> bool:
    """Starts (n, 3) and goals (n, 3): all of them."""
    return True


def inside(half: float, starts: npt.NDArray[np.float64], goals: npt.NDArray[np.float64]) -> bool:
    """All of them at most `half` metres to the left or right of the arm."""
    return bool((np.abs(np.concatenate([starts, goals])[:, 1]) <= half).all())


def outside(half: float, starts: npt.NDArray[np.float64], goals: npt.NDArray[np.float64]) -> bool:
    """All of them more than `half` metres to the left or right of the arm."""
    return bool((np.abs(np.concatenate([starts, goals])[:, 1]) > half).all())


def place_of(goals: npt.NDArray[np.float64]) -> int | None:
    """The index in PLACES of the first of goals (n, 3); None if it is not at one."""
    near = np.flatnonzero((np.abs(PLACES - goals[0, :2]) <= AROUND).all(1))
    return int(near[0]) if len(near) else None


def at(places: Collection[int], starts: npt.NDArray[np.float64], goals: npt.NDArray[np.float64]) -> bool:
    """Starts anywhere, the goal at one of these PLACES."""
    return place_of(goals) in places


@cache
def instructions() -> npt.NDArray[np.float32]:
    """(2, 18, 8): for each of PLACES a fixed standard normal vector, and another that says the same in other words."""
    return _instructions.draw(2, len(PLACES))


@dataclass(frozen=True)
class Split:
    """What an episode may ask for, and in which words; None: by the goal's position."""

    allowed: Allowed
    words: int | None = None

    @property
    def context(self) -> str:
        """The observation key that tells the policy what is asked for."""
        return "goal" if self.words is None else "instruction"


@dataclass(frozen=True)
class Variant:
    """How many cubes, and which starts and goals the demonstrations have and fine-tuning asks for."""

    cubes: int
    demonstrated: Split
    finetuned: Split
    bounds: dict[str, float] = field(default_factory=dict)  # of what agents choose; docs/published/settings.md


def draw_layout(rng: np.random.Generator, cubes: int, allowed: Allowed) -> Layout:
    """Starts and goals uniform in AREA among those that are allowed and keep their distances."""
    while True:
        places = np.full((2, cubes, 3), HEIGHT)
        places[..., :2] = rng.uniform(AREA[0], AREA[1], (2, cubes, 2))
        starts, goals = places
        if _apart(starts, goals) and allowed(starts, goals):
            yaws = rng.uniform(0.0, 2 * np.pi, (2, cubes))
            return Layout(starts, yaws[0], goals, yaws[1])


def _apart(starts: npt.NDArray[np.float64], goals: npt.NDArray[np.float64]) -> bool:
    """Whether no cube or goal is in the way of another, and no cube begins near its goal."""

    def distances(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.asarray(np.linalg.norm(a[:, None] - b[None], axis=-1))

    others = np.where(np.eye(len(starts), dtype=bool), np.inf, 0.0)
    between = min((distances(a, a) + others).min() for a in (starts, goals))
    crosswise = (distances(starts, goals) + others).min()
    own = np.diagonal(distances(starts, goals)).min()
    return bool(min(between, crosswise) >= APART and own >= CARRY)


VARIANTS = {
    "manipspace/cube-single": Variant(1, Split(anywhere), Split(anywhere), bounds={"correction_bound": 0.05}),
    "manipspace/cube-single-shifted": Variant(1, Split(partial(inside, STRIP[1])), Split(partial(outside, OUTSIDE))),
    "manipspace/cube-single-instruction": Variant(
        1, Split(partial(at, range(len(PLACES))), words=0), Split(partial(at, REWORDED), words=1), {"z_bound": 2.8}
    ),
    "manipspace/cube-double": Variant(2, Split(anywhere), Split(anywhere)),
    "manipspace/cube-double-shifted": Variant(2, Split(partial(inside, STRIP[2])), Split(partial(outside, OUTSIDE))),
}


PUBLISHED = "manipspace/cube-single-shifted"  # our choice: the filter of the published cube data is not public


def _task(name: str, demo_count: int, demonstrations: str, finetuning: str) -> Task:
    task_id = f"manipspace/{name}"
    variant = VARIANTS[task_id]
    context = variant.finetuned.context
    return Task(
        id=task_id,
        version=2,
        horizon=HORIZONS[variant.cubes],
        control_hz=20.0,
        state_keys=("joint_pos", "joint_vel", "effector_pos", "effector_yaw", "gripper", "cube_pos", "cube_rot"),
        context_keys=(context,),
        demonstrations=demonstrations,
        finetuning=finetuning,
        success=f"every cube's centre is within {100 * REACH:.0f} cm of its goal",
        demo_count=demo_count,
        position_keys=("effector_pos", "cube_pos", "goal") if context == "goal" else ("effector_pos", "cube_pos"),
        settings={
            "policy.chunk": 8,
            "policy.execute": 4,
            "rl.envs": 4,
            **{f"method.{option}": value for option, value in variant.bounds.items()},
        },
        profiles={"standard": {}, "paper": {}} | ({"published": {}} if task_id == PUBLISHED else {}),
    )


_AREA = "cubes and goals at x {0[0]:.2f} to {1[0]:.2f} m, y {0[1]:+.2f} to {1[1]:+.2f} m".format(*AREA)

tasks = (
    _task("cube-single", 1000, _AREA, _AREA),
    _task(
        "cube-single-shifted", 300, f"{_AREA}, |y| at most {STRIP[1]:.2f} m", f"{_AREA}, |y| more than {OUTSIDE:.2f} m"
    ),
    _task(
        "cube-single-instruction",
        1000,
        f"an instruction for each of {len(PLACES)} places at least 10 cm apart, cubes anywhere",
        f"four instructions never given before, for {len(REWORDED)} of the places, cubes anywhere",
    ),
    _task("cube-double", 1000, _AREA, _AREA),
    _task(
        "cube-double-shifted", 1000, f"{_AREA}, |y| at most {STRIP[2]:.2f} m", f"{_AREA}, |y| more than {OUTSIDE:.2f} m"
    ),
)


def _spaces(cubes: int, context: str) -> dict[str, gymnasium.Space[Any]]:
    sizes = {
        "joint_pos": 6,  # radians
        "joint_vel": 6,  # radians per second
        "effector_pos": 3,  # decimetres from (0.425, 0, 0) m
        "effector_yaw": 2,  # cosine, sine
        "gripper": 2,  # how far closed, 0 to 3; force on the right pad, 0 to 1
        "cube_pos": 3 * cubes,  # decimetres, as above
        "cube_rot": 6 * cubes,  # quaternion, cosine and sine of the yaw
        context: 3 * cubes if context == "goal" else _instructions.SIZE,  # a goal in decimetres, as above
    }
    return {key: gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32) for key, size in sizes.items()}


class CubeEnv(ChunkedEnv):
    """Starts and goals drawn from `split`; the additions to gymnasium.Env are those of `bench.types.BenchEnv`."""

    def __init__(self, cubes: int, split: Split, horizon: int, seed: int, fast: bool = False) -> None:
        self.scene = CubeScene(cubes, fast)
        self._split, self._horizon = split, horizon
        self.observation_space = gymnasium.spaces.Dict(_spaces(cubes, split.context))
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (5,), np.float32)
        self._rng = np.random.default_rng(seed)
        self.reset()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Draw cubes, goals and the arm's pose."""
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        layout = draw_layout(self._rng, self.scene.cubes, self._split.allowed)
        self.scene.place(layout, self._rng)
        words = self._split.words
        self._instruction = None if words is None else instructions()[words, place_of(layout.goals)]
        self._steps, self._last = 0, self._observe()
        return dict(self._last), {"success": False}

    def _observe(self) -> dict[str, npt.NDArray[np.float32]]:
        seen = self.scene.observe()
        if self._instruction is not None:
            del seen["goal"]
            seen["instruction"] = self._instruction.copy()
        return seen

    def step_chunk(self, actions: npt.NDArray[Any]) -> Steps:
        """Control steps of actions (E, 5), clipped to [-1, 1], until the episode ends; observes only at the end."""
        actions = checked(actions, 5, np.float32)
        for count, action in enumerate(np.minimum(np.maximum(actions, -1.0), 1.0), 1):
            self.scene.step(action)
            success = bool(self.scene.at_goal().all())
            truncated = self._steps + count >= self._horizon and not success
            if success or truncated:
                break
        self._steps, self._last = self._steps + count, self._observe()
        return Steps(dict(self._last), float(success), count, success, truncated, success)

    def render(self) -> Picture:  # type: ignore[override]
        """Arm, cubes, and goals as pale cubes, in plain shapes. Raises RuntimeError where nothing can be drawn."""
        return self.scene.picture()

    def top_view(self) -> TopView:
        """The table with the ways of the gripper and of the first cube, and that cube's goal.

        In decimetres from the middle of the table, as observed. A second cube is seen in films only: a drawing has room
        for one goal, and for one place in an observation.
        """
        x, y = (float(value) for value in self.scene.observe()["goal"][:2])
        left, low = (AREA[0] - MARGIN - CENTRE[:2]) * SCALE
        width, height = (AREA[1] - AREA[0] + 2 * MARGIN) * SCALE
        area = (float(left), float(low), float(width), float(height))
        return TopView("effector_pos", area, goal=(x, y), radius=REACH * SCALE, objects=("cube_pos",), unit="dm")

    def get_state(self) -> State:
        """Simulator, controller, goals, step counter, random generator, and the observation, which is computed once."""
        return {
            **self.scene.get_state(),
            "steps": np.array([self._steps], np.int64),
            "generator": pack_generator(self._rng),
            **{f"observation.{key}": value.copy() for key, value in self._last.items()},
        }

    def set_state(self, state: State) -> dict[str, Any]:
        """Restore what `get_state` gave; returns the observation."""
        self.scene.set_state(state)
        self._steps, self._rng = int(state["steps"][0]), unpack_generator(state["generator"])
        self._last = {key: state[f"observation.{key}"].copy() for key in self.observation_space.spaces}
        self._instruction = self._last.get("instruction")
        return dict(self._last)


def make(task: Task, seed: int, stepping: str = "strict") -> CubeEnv:
    """An environment that asks for the starts and goals of the task's fine-tuning; `fast` compiles the controller."""
    variant = VARIANTS[task.id]
    return CubeEnv(variant.cubes, variant.finetuned, task.horizon, seed, fast=stepping == "fast")


def demonstrate(env: CubeEnv, rng: np.random.Generator) -> Episode:
    """One episode of OGBench's plan oracle: observations {key: (T, …)}, actions (T, 5), and whether it succeeded.

    It moves cube after cube, in random order, by a plan from keyframe to keyframe with smoothed noise, as OGBench's
    play data does. The episode ends at success, so after the last cube nothing is let go of.
    """
    from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle

    scene = env.scene.ogbench
    oracle = CubePlanOracle(env=scene, noise=PLAN_NOISE, noise_smoothing=PLAN_SMOOTHING)
    observation, _ = env.reset()
    observations, actions, over, success = [], [], False, False
    for cube in rng.permutation(env.scene.cubes):
        scene._target_block = int(cube)
        with fence(int(rng.integers(2**32))):  # it draws its plan from the global generator
            oracle.reset(None, scene.compute_ob_info())
        while not (oracle.done or over):
            wanted = oracle.select_action(None, scene.compute_ob_info())
            observations.append(observation)
            actions.append(wanted.astype(np.float32))
            observation, _, success, truncated, _ = env.step(actions[-1])
            over = success or truncated
    return {key: np.stack([seen[key] for seen in observations]) for key in observation}, np.stack(actions), success


def demos(
    task: Task, n: int, rng: np.random.Generator, progress: Callable[[float], None] = lambda share: None
) -> Demos:
    """`n` successful episodes of the demonstrator; those that fail are left out."""
    variant = VARIANTS[task.demos_of or task.id]
    env = CubeEnv(variant.cubes, variant.demonstrated, task.horizon, int(rng.integers(2**62)))
    return successful(task, n, lambda: demonstrate(env, rng), progress)


def speeds() -> Iterator[tuple[str, dict[str, Callable[[], int]]]]:
    """What `bench perf` compares: control steps by OGBench, by this suite, and by MuJoCo without anything around it."""
    for task in (task for task in tasks if VARIANTS[task.id].finetuned == Split(anywhere)):
        yield task.id.split("/")[1], _speeds_of(task)


def _speeds_of(task: Task) -> dict[str, Callable[[], int]]:
    import mujoco

    strict, fast = make(task, 0), make(task, 0, "fast")
    scene, start = strict.scene, strict.get_state()
    actions = np.random.default_rng(0).uniform(-1, 1, (200, 5)).astype(np.float32)
    controls = []
    for action in actions:
        scene.step(action)
        controls.append(scene.data.ctrl.copy())

    def stock() -> int:
        strict.set_state(start)
        for action in actions:
            scene.ogbench.step(action)
        return len(actions)

    def chunks(env: CubeEnv) -> int:
        env.set_state(start)
        done = 0
        for chunk in actions.reshape(-1, 4, 5):
            taken = env.step_chunk(chunk)
            done += taken.count
            if taken.terminated or taken.truncated:
                env.reset()
        return done

    def physics() -> int:
        strict.set_state(start)
        for control in controls:
            scene.data.ctrl[:] = control
            mujoco.mj_step(scene.model, scene.data, nstep=scene.ogbench._n_steps)
        return len(controls)

    return {
        "stock": stock, "strict, chunks of 4": partial(chunks, strict), "fast, chunks of 4": partial(chunks, fast),
        "MuJoCo alone": physics,
    }  # fmt: skip
