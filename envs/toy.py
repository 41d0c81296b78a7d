"""Analytic reach: a point in a square that moves where it is told. For tests and the smoke profile; plain NumPy.

State p in [-1, 1]², action a in [-1, 1]², p ← clip(p + 0.1 a). Success is a distance to the goal below 0.15. Between
the goals of `toy/reach-unseen` and those of its demonstrations lies a gap, but every way of moving through the middle
of the square occurs in the demonstrations, on the way to goals beyond it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from bench.seeding import pack_generator, unpack_generator
from bench.types import Demos, State, Task
from bench.video import TopView

HORIZON = 40  # control steps
SPEED = 0.1  # distance per control step of a full action
RADIUS = 0.15  # distance to the goal that counts as success
ACTION_NOISE = 0.3  # standard deviation of the demonstrator's noise, per action dimension
RING = (0.6, 1.0)  # goals of the unseen task's demonstrations: max(|x|, |y|) in this range
MIDDLE = (0.0, 0.4)  # goals of its fine-tuning

requires: tuple[str, ...] = ("numpy",)


def _task(name: str, demonstrations: str, finetuning: str) -> Task:
    return Task(
        id=f"toy/{name}",
        version=1,
        horizon=HORIZON,
        control_hz=10.0,
        state_keys=("position",),
        context_keys=("goal",),
        demonstrations=demonstrations,
        finetuning=finetuning,
        success=f"distance to the goal below {RADIUS}",
        demo_count=200,
        settings={"policy.chunk": 4, "policy.execute": 4},
        profiles={"smoke": {}},
    )


tasks = (
    _task("reach", "goals in the whole square", "goals in the whole square"),
    _task("reach-unseen", "goals in the outer ring, max(|x|, |y|) >= 0.6", "goals in the middle, max(|x|, |y|) <= 0.4"),
)


def draw_in_ring(rng: np.random.Generator, low: float, high: float) -> npt.NDArray[np.float64]:
    """A point (2,) of the square, uniform over those with `low` <= max(|x|, |y|) <= `high`."""
    while True:
        point = rng.uniform(-high, high, 2)
        if np.abs(point).max() >= low:
            return point


def draw_start(rng: np.random.Generator, goal: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """A start (2,) anywhere in the square, at least two success radii from the goal (2,)."""
    while True:
        point = rng.uniform(-1.0, 1.0, 2)
        if np.linalg.norm(point - goal) >= 2 * RADIUS:
            return point


class ReachEnv(gymnasium.Env[dict[str, Any], Any]):
    """See the module's docstring; the additions to gymnasium.Env are those of `bench.types.BenchEnv`."""

    def __init__(self, seed: int, goals: tuple[float, float] = (0.0, 1.0)) -> None:
        box = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.observation_space = gymnasium.spaces.Dict({"position": box, "goal": box})  # type: ignore[assignment]
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self._goals = goals
        self._rng = np.random.default_rng(seed)
        self._steps = 0
        self._draw()

    def _draw(self) -> None:
        self._goal = draw_in_ring(self._rng, *self._goals)
        self._position = draw_start(self._rng, self._goal)

    def _observation(self) -> dict[str, npt.NDArray[np.float32]]:
        return {"position": self._position.astype(np.float32), "goal": self._goal.astype(np.float32)}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Draw a goal and a start."""
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self._steps = 0
        self._draw()
        return self._observation(), {"success": False}

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Move by 0.1 × action (2,)."""
        self._position = np.clip(self._position + SPEED * np.clip(np.asarray(action, np.float64), -1.0, 1.0), -1.0, 1.0)
        self._steps += 1
        success = bool(np.linalg.norm(self._position - self._goal) < RADIUS)
        truncated = self._steps >= HORIZON and not success
        return self._observation(), float(success), success, truncated, {"success": success}

    def get_state(self) -> State:
        """Position, goal, step counter and random generator."""
        return {
            "position": self._position.copy(),
            "goal": self._goal.copy(),
            "steps": np.array([self._steps], np.int64),
            "generator": pack_generator(self._rng),
        }

    def set_state(self, state: State) -> dict[str, Any]:
        """Restore what `get_state` gave; returns the observation."""
        self._position = np.array(state["position"], np.float64)
        self._goal = np.array(state["goal"], np.float64)
        self._steps = int(state["steps"][0])
        self._rng = unpack_generator(state["generator"])
        return self._observation()

    def top_view(self) -> TopView:
        """The square with a margin, and the goal."""
        (x, y), low, wide = self._goal, -1.0 - RADIUS, 2.0 + 2 * RADIUS
        return TopView("position", (low, low, wide, wide), goal=(float(x), float(y)), radius=RADIUS)


def make(task: Task, seed: int, stepping: str = "strict") -> ReachEnv:
    """An environment that asks for the goals of the task's fine-tuning."""
    return ReachEnv(seed, MIDDLE if task.id == "toy/reach-unseen" else (0.0, 1.0))


def demonstrator(
    position: npt.NDArray[np.float64], goal: npt.NDArray[np.float64], rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Straight to the goal, slower when it is nearer than one step, with noise; (2,), (2,) → action (2,)."""
    wanted = (goal - position) / SPEED
    wanted /= max(1.0, float(np.linalg.norm(wanted)))
    return np.clip(wanted + ACTION_NOISE * rng.standard_normal(2), -1.0, 1.0).astype(np.float32)


def demos(
    task: Task, n: int, rng: np.random.Generator, progress: Callable[[float], None] = lambda share: None
) -> Demos:
    """`n` episodes of the noisy scripted demonstrator, each up to its success or the horizon."""
    env = ReachEnv(int(rng.integers(2**62)), RING if task.id == "toy/reach-unseen" else (0.0, 1.0))
    rows: list[tuple[Any, Any, Any]] = []
    ends, successes = [], []
    for episode in range(n):
        observation, _ = env.reset()
        done = False
        while not done:
            state = env.get_state()
            action = demonstrator(state["position"], state["goal"], rng)
            rows.append((observation["position"], observation["goal"], action))
            observation, _, success, truncated, _ = env.step(action)
            done = success or truncated
        ends.append(len(rows))
        successes.append(success)
        progress((episode + 1) / n)
    position, goal, actions = (np.array(column, np.float32).reshape(-1, 2) for column in zip(*rows, strict=True))
    return Demos({"position": position, "goal": goal}, actions, np.array(ends, np.int64), np.array(successes, np.bool_))
