"""A frozen policy inside an environment: RL action → chunk → E control steps, batched over environments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import numpy as np

from bench import seeding
from bench.config import option
from bench.types import (
    Agent,
    Arrays,
    BenchEnv,
    Dims,
    FloatArray,
    Group,
    Policy,
    PolicyInputs,
    Progress,
    State,
    Steps,
    Task,
)


@dataclass(frozen=True)
class SteeringConfig:
    """How far the agent may move the flow's noise z, common to all methods that steer it."""

    z_bound: float = option(
        1.5, "z lies in [−bound, bound]", unit="deviations", low=0.0, high=10.0,
        search={"space": "noise", "low": 0.5, "high": 6.0},
    )  # fmt: skip
    z_shape: str = option("repeated", "one A-vector for the whole chunk, or one per step", choices=("repeated", "free"))


def z_group(config: SteeringConfig, dims: Dims) -> Group:
    """The action group that steers z (DSRL, arXiv 2506.15799), with target entropy −A."""
    size = dims.action * (1 if config.z_shape == "repeated" else dims.chunk)
    return Group("z", size, -config.z_bound, config.z_bound, -float(size))


def steer_z(z: FloatArray, dims: Dims, config: SteeringConfig) -> FloatArray:
    """Decoded group (B, A) or (B, H·A) → (B, H, A)."""
    if config.z_shape == "free":
        return z.reshape(len(z), dims.chunk, dims.action)
    return np.repeat(z[:, None], dims.chunk, axis=1)


def encode_z(z: FloatArray, config: SteeringConfig) -> FloatArray:
    """z (N, H, A) → the group's action (N, A) or (N, H·A) in [-1, 1] that comes nearest to it."""
    nearest = z.reshape(len(z), -1) if config.z_shape == "free" else z.mean(axis=1)
    return np.clip(nearest / max(config.z_bound, 1e-6), -1.0, 1.0)


def frozen(noise: Arrays, progress: Progress) -> PolicyInputs:
    """The pretrained policy as it is, before any agent: z and ε as drawn, σ as chosen (0 where it takes none)."""
    return noise["z"], np.full(len(noise["z"]), progress.base_sigma, np.float32), noise["eps"]


def vectors(observations: list[dict[str, FloatArray]], keys: tuple[str, ...]) -> FloatArray:
    """Observation dictionaries → (B, D) float32 of the named keys side by side."""
    rows = [np.concatenate([np.ravel(o[k]) for k in keys]) if keys else np.zeros(0) for o in observations]
    return np.asarray(rows, np.float32)


def decode(agent: Agent, action: FloatArray) -> dict[str, FloatArray]:
    """RL action (B, D) in [-1, 1] → decoded groups {name: (B, size)}."""
    groups: dict[str, FloatArray] = {}
    start = 0
    for group in agent.groups:
        groups[group.name] = group.decode(action[:, start : start + group.size])
        start += group.size
    return groups


def policy_noise(policy: Policy, draws: list[np.random.Generator]) -> dict[str, FloatArray]:
    """Standard normal {"z": (B, *latent), "eps": (B, C)}, row b from generator b."""
    size = math.prod(policy.latent)
    rows = np.stack([g.standard_normal(size + policy.dims.context, np.float32) for g in draws])
    return {"z": rows[:, :size].reshape(-1, *policy.latent), "eps": rows[:, size:]}


def chunks(
    policy: Policy, agent: Agent, s: FloatArray, c: FloatArray, action: FloatArray | None, noise: Arrays,
    progress: Progress,
) -> tuple[FloatArray, FloatArray]:  # fmt: skip
    """Chunks (B, H, A) and σ (B,) for s (B, S), c (B, C) and RL actions (B, D), or None for the policy as it is."""
    if action is None:
        z, sigma, eps = agent.before(noise, progress)
        return policy.act(s, c, z, sigma, eps), sigma
    groups = decode(agent, action)
    z, sigma, eps = agent.inputs(groups, noise, progress)
    chunk = policy.act(s, c, z, sigma, eps)
    return (chunk if agent.correct is None else agent.correct(chunk, groups)), sigma


def execute(env: BenchEnv, actions: FloatArray) -> Steps:
    """The actions (E, A) one after the other, until the episode ends."""
    if step_chunk := getattr(env, "step_chunk", None):
        steps: Steps = step_chunk(actions)
        return steps
    total, count = 0.0, 0
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        total, count = total + reward, count + 1
        if terminated or truncated:
            break
    return Steps(observation, total, count, terminated, truncated, bool(info["success"]))


def execute_all(envs: Sequence[BenchEnv], chunks: FloatArray, threads: ThreadPoolExecutor | None) -> list[Steps]:
    """A chunk (E, A) in each environment, side by side if there are threads and the environments are made for them."""
    if threads is None or not all(hasattr(env, "step_chunk") for env in envs):
        return [execute(env, chunk) for env, chunk in zip(envs, chunks, strict=True)]
    futures = [threads.submit(execute, env, chunk) for env, chunk in zip(envs, chunks, strict=True)]
    wait(futures)  # none steps on when one has failed
    return [future.result() for future in futures]


@dataclass
class Decision:
    """What one decision of every environment gave; row b is environment b."""

    reward: FloatArray  # (B,) sum over the executed control steps
    terminated: np.ndarray  # type: ignore[type-arg]  # (B,) bool, success
    control_steps: int  # executed by all environments together
    observations: list[dict[str, FloatArray]]  # after the decision, before any reset
    sigma: FloatArray  # (B,) σ that was used
    finished: list[tuple[bool, int]] = field(default_factory=list)  # (success, control steps) of ended episodes


class SteeredEnvs:
    """Several copies of a task's environment, stepped by decisions and reset as soon as an episode ends.

    Terminal observations are returned before the reset, so no transition reaches into the next episode.
    """

    def __init__(
        self, envs: list[BenchEnv], task: Task, policy: Policy, agent: Agent, execute: int, seed: int,
        threads: ThreadPoolExecutor | None = None,
    ) -> None:  # fmt: skip
        self.envs, self.task, self.policy, self.agent, self.execute = envs, task, policy, agent, execute
        self.threads = threads
        self.seed = seed
        self.observations = [env.reset(seed=seeding.child(seed, "env", i) % 2**31)[0] for i, env in enumerate(envs)]
        self.lengths = [0] * len(envs)
        self.decided = [0] * len(envs)  # decisions in the running episode

    def features(self, observations: list[dict[str, FloatArray]] | None = None) -> FloatArray:
        """What the agent sees now, (B, F)."""
        now = self.observations if observations is None else observations
        return self.policy.features(vectors(now, self.task.state_keys), vectors(now, self.task.context_keys))

    def decide(self, action: FloatArray, round_number: int, progress: Progress) -> Decision:
        """Execute one RL action (B, D) in every environment."""
        draws = np.random.default_rng(seeding.child(self.seed, "noise", round_number))
        noise = policy_noise(self.policy, [draws] * len(self.envs))
        s, c = vectors(self.observations, self.task.state_keys), vectors(self.observations, self.task.context_keys)
        return self._execute(*chunks(self.policy, self.agent, s, c, action, noise, progress))

    def _execute(self, chunks: FloatArray, sigma: FloatArray) -> Decision:
        """The first E steps of the chunks (B, H, A) everywhere, and resets where an episode ended."""
        done = execute_all(self.envs, chunks[:, : self.execute], self.threads)
        out = Decision(
            reward=np.array([d.reward for d in done], np.float32),
            terminated=np.array([d.terminated for d in done]),
            control_steps=sum(d.count for d in done),
            observations=[d.observation for d in done],
            sigma=sigma,
        )
        for i, (env, steps) in enumerate(zip(self.envs, done, strict=True)):
            self.observations[i] = steps.observation
            self.lengths[i] += steps.count
            self.decided[i] += 1
            if steps.terminated or steps.truncated:
                out.finished.append((steps.success, self.lengths[i]))
                self.observations[i] = env.reset()[0]
                self.lengths[i] = self.decided[i] = 0
        return out

    def get_state(self) -> State:
        """Named arrays that hold all environments and counters."""
        state: State = {"lengths": np.array(self.lengths), "decided": np.array(self.decided)}
        for i, env in enumerate(self.envs):
            state |= {f"{i}/{k}": np.asarray(v) for k, v in env.get_state().items()}
        return state

    def set_state(self, state: State) -> None:
        """The inverse of `get_state`: the same actions afterwards give the same bits."""
        self.lengths, self.decided = state["lengths"].tolist(), state["decided"].tolist()
        for i, env in enumerate(self.envs):
            mine = {k.split("/", 1)[1]: v for k, v in state.items() if k.startswith(f"{i}/")}
            self.observations[i] = env.set_state(mine)
