"""The one rollout loop: stored start states, a fixed quota of episodes each, success anywhere in an episode counts."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from bench import seeding
from bench.config import option
from bench.steering import chunks, execute_all, policy_noise, vectors
from bench.types import Agent, BenchEnv, FloatArray, Policy, Progress, State, Steps, Task

HALVES = ("selection", "report")
Act = Callable[[FloatArray, list[np.random.Generator]], FloatArray] | None


@dataclass(frozen=True)
class EvaluationConfig:
    """How often and from how many stored states fine-tuning is evaluated."""

    points: int = option(8, "evaluations during fine-tuning, evenly spaced, besides the one before it", low=1)
    states: int = option(24, "report states evaluated from", low=1)
    selection_states: int = option(8, "selection states evaluated from", low=0)
    attempts: int = option(1, "episodes from each state", low=1)
    stored: int = option(50, "start states stored per half of a task", low=1)
    envs: int = option(8, "environments stepped together", low=1)
    deterministic: bool = option(False, "the agent's mode instead of acting as in training")


@dataclass(frozen=True)
class CoverageConfig:
    """How coverage before RL is measured: K rollouts from each of several stored states."""

    states: int = option(12, "report states", low=1)
    selection_states: int = option(8, "selection states, on which σ is chosen", low=1)
    attempts: int = option(8, "K: episodes from each state", low=1)
    sigmas: tuple[float, ...] = option((0.0, 0.25, 0.5, 0.75, 1.0), "σ measured for policies that take one",
        low=0.0, high=1.0)  # fmt: skip


@dataclass(frozen=True)
class Episode:
    """One finished evaluation episode."""

    start: int  # index of the stored start state
    attempt: int
    success: bool
    length: int  # control steps
    sigma: float  # mean over the decisions
    first_chunk: FloatArray  # (H, A)


class _Slot:
    """One environment at work on one episode."""

    def __init__(self, env: BenchEnv, state: State, start: int, attempt: int, seed: int) -> None:
        self.env, self.start, self.attempt = env, start, attempt
        self.rng = seeding.rng(seed, "episode", start, attempt)
        self.actions = seeding.rng(seed, "actions", start, attempt)  # for an agent that acts by samples
        self.observation = env.set_state(state)
        self.length, self.sigmas = 0, list[float]()
        self.first_chunk: FloatArray | None = None

    def take(self, chunk: FloatArray, sigma: float, steps: Steps) -> Episode | None:
        """What executing the chunk (H, A) gave; the episode if it ended."""
        self.sigmas.append(sigma)
        if self.first_chunk is None:
            self.first_chunk = chunk
        self.observation = steps.observation
        self.length += steps.count
        if not (steps.terminated or steps.truncated):
            return None
        mean = float(np.mean(self.sigmas))
        return Episode(self.start, self.attempt, steps.success, self.length, mean, self.first_chunk)


def rollouts(
    envs: list[BenchEnv], task: Task, policy: Policy, agent: Agent, act: Act, progress: Progress, states: list[State],
    attempts: int, execute: int, seed: int, check: Callable[[], None] = lambda: None,
    threads: ThreadPoolExecutor | None = None,
) -> list[Episode]:  # fmt: skip
    """`attempts` episodes from each start state, in the order (start, attempt).

    `act(features (B, F), B generators) → RL action (B, D)`, or None for the pretrained policy as it is. What is drawn
    for an episode depends on (seed, start, attempt) alone: not on the number of environments, nor on the other
    episodes. `check` is called before every decision and may raise.
    """
    queue = [(i, k) for i in range(len(states)) for k in range(attempts)][::-1]
    slots: list[_Slot] = []
    free = list(envs)
    done: list[Episode] = []
    while queue or slots:
        check()
        while queue and free:
            start, attempt = queue.pop()
            slots.append(_Slot(free.pop(), states[start], start, attempt, seed))
        planned, sigma = _chunks(slots, task, policy, agent, act, progress)
        done_steps = execute_all([slot.env for slot in slots], planned[:, :execute], threads)
        going = []
        for i, slot in enumerate(slots):
            episode = slot.take(planned[i], float(sigma[i]), done_steps[i])
            if episode is None:
                going.append(slot)
            else:
                done.append(episode)
                free.append(slot.env)
        slots = going
    return sorted(done, key=lambda e: (e.start, e.attempt))


def _chunks(
    slots: list[_Slot], task: Task, policy: Policy, agent: Agent, act: Act, progress: Progress
) -> tuple[FloatArray, FloatArray]:
    observations = [slot.observation for slot in slots]
    s, c = vectors(observations, task.state_keys), vectors(observations, task.context_keys)
    noise = policy_noise(policy, [slot.rng for slot in slots])
    action = None if act is None else act(policy.features(s, c), [slot.actions for slot in slots])
    return chunks(policy, agent, s, c, action, noise, progress)


def spread(episodes: list[Episode]) -> dict[int, float]:
    """Start → deviation of the first chunk over the attempts, averaged over its entries (action spread)."""
    chunks: dict[int, list[FloatArray]] = {}
    for episode in episodes:
        chunks.setdefault(episode.start, []).append(episode.first_chunk)
    return {start: float(np.std(np.stack(rows), axis=0).mean()) for start, rows in chunks.items()}
