"""For suites of arms: a step is a chunk of one, actions are checked, demonstrations are the episodes that succeed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from bench.types import Demos, Steps, Task

Episode = tuple[dict[str, npt.NDArray[np.float32]], npt.NDArray[np.float32], bool]  # {key: (T, …)}, (T, A), success


class ChunkedEnv(gymnasium.Env[dict[str, Any], Any]):
    """An environment that has `step_chunk`, as `bench.types.BenchEnv` describes it."""

    observation_space: gymnasium.spaces.Dict
    action_space: gymnasium.spaces.Box

    def step_chunk(self, actions: npt.NDArray[Any]) -> Steps:
        """Up to E control steps with actions (E, A), fewer if the episode ends."""
        raise NotImplementedError

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """One control step of action (A,)."""
        taken = self.step_chunk(np.asarray(action)[None])
        return taken.observation, taken.reward, taken.terminated, taken.truncated, {"success": taken.success}


def checked(actions: Any, width: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Actions (E, width) as an array of the type. Raises ValueError."""
    found = np.asarray(actions, dtype)
    if found.ndim != 2 or found.shape[1] != width or not len(found) or not np.isfinite(found).all():
        raise ValueError(f"actions must be finite and (E, {width}), not {found.shape}")
    return found


def successful(task: Task, n: int, demonstrate: Callable[[], Episode], progress: Callable[[float], None]) -> Demos:
    """`n` episodes that succeed; those that fail are left out. Raises RuntimeError if half and more of them do."""
    episodes: list[Episode] = []
    for _ in range(2 * n + 10):
        if len(episodes) < n:
            episode = demonstrate()
            episodes += [episode] if episode[2] else []
            progress(len(episodes) / n)
    if len(episodes) < n:
        raise RuntimeError(f"{task.id}: the demonstrator succeeded in only {len(episodes)} of {2 * n + 10} episodes")
    return Demos(
        observations={key: np.concatenate([seen[key] for seen, _, _ in episodes]) for key in episodes[0][0]},
        actions=np.concatenate([actions for _, actions, _ in episodes]),
        ends=np.cumsum([len(actions) for _, actions, _ in episodes], dtype=np.int64),
        success=np.ones(n, np.bool_),
    )
