"""The contracts between the harness, the methods and the suites: frozen dataclasses and Protocols, nothing else.

A suite is a module in `envs/`, a method a module in `methods/`; the module itself is the object that satisfies the
Protocol. The loop that calls them, in short::

    demos = suite.demos(task, n, rng)                           # once per task
    policy = method.pretrain(demos, config, trainer)            # once per seed
    agent = method.agent(config, dims)                          # what reinforcement may move
    env = suite.make(task, seed)                                # observation dict → agent → chunk → E control steps
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import gymnasium
import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
State = dict[str, npt.NDArray[Any]]
Arrays = dict[str, FloatArray]
PolicyInputs = tuple[FloatArray, FloatArray, FloatArray]  # z (B, *latent), σ (B,), ε (B, C)


class InputError(Exception):
    """Something the user gave is wrong. The message is one line: what, where, and how to mend it (exit code 2)."""


class Stopped(Exception):
    """The run was asked to stop; the state is saved and the stage can be resumed."""


@dataclass(frozen=True)
class Task:
    """One task of a suite, everything the harness needs to know about it.

    `settings` holds configuration values of this task in every profile, `profiles` those of one profile; a task takes
    part in a profile by default only if `profiles` names it. Keys are dotted, as on the command line: `rl.decisions`;
    `method.z_bound` is that option of every method that has it, so that a task treats all alike.
    """

    id: str  # "suite/task"
    version: int  # raised whenever trajectories, demonstrations or success change
    horizon: int  # control steps in an episode
    control_hz: float  # control steps per second of robot time
    state_keys: tuple[str, ...]  # observation keys that make s, never noised: what the robot senses of itself
    context_keys: tuple[str, ...]  # observation keys that make c; `policy.context=observation` adds those of s
    demonstrations: str  # what the demonstrations cover
    finetuning: str  # what fine-tuning asks for: the context shift
    success: str  # what success is
    demo_count: int  # demonstrations by default, in `demo_unit`
    demo_unit: str = "episodes"  # "episodes" or "transitions"
    position_keys: tuple[str, ...] = ()  # observation keys that may get Fourier features
    demos_of: str | None = None  # id of the task whose demonstrations this one uses
    settings: Mapping[str, Any] = field(default_factory=dict)
    profiles: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def split(self, context_keys: Collection[str]) -> Task:
        """The same task with these observations as c and the rest as s, each in the task's order."""
        keys = (*self.state_keys, *self.context_keys)
        s, c = (tuple(k for k in keys if (k in context_keys) == chosen) for chosen in (False, True))
        return replace(self, state_keys=s, context_keys=c)


@dataclass(frozen=True)
class Demos:
    """Demonstrations, flat over control steps; episode m is rows `ends[m-1]:ends[m]`.

    An episode is one commanded task. `observations[key]` is (N, ...) float32, `actions` is (N, A)
    float32 inside the action space, `ends` is (M,) int64 and increasing, `success` is (M,) bool.
    """

    observations: dict[str, npt.NDArray[np.float32]]
    actions: npt.NDArray[np.float32]
    ends: npt.NDArray[np.int64]
    success: npt.NDArray[np.bool_]

    def vector(self, keys: tuple[str, ...]) -> npt.NDArray[np.float32]:
        """The named observations flattened and side by side, (N, D) float32."""
        n = len(self.actions)
        columns = [self.observations[key].reshape(n, -1) for key in keys]
        return np.concatenate(columns, axis=1) if columns else np.zeros((n, 0), np.float32)


STEPPING = ("strict", "fast", "stock")


@dataclass(frozen=True)
class Steps:
    """What executing a chunk, or as much of it as fits into the episode, gave."""

    observation: dict[str, npt.NDArray[np.float32]]  # after the last step
    reward: float  # sum over the steps
    count: int  # control steps executed
    terminated: bool
    truncated: bool
    success: bool


class BenchEnv(Protocol):
    """What `Suite.make` returns: a gymnasium.Env over a Dict of named float32 boxes, with these additions.

    `step` reports `info["success"]` (bool) at every control step; the reward is 1 on success and 0 elsewhere,
    `terminated` is True on success only, `truncated` at the horizon. `get_state` returns named arrays that hold the
    *full* state (simulator, controller, goal, step counter, random generator), `set_state` restores it so that the same
    actions afterwards give the same bits, and returns the observation. `reset(seed=…)` draws a start of the fine-tuning
    distribution from the environment's own generator.

    An environment may also have `step_chunk(actions (E, A)) → Steps`, equal to calling `step` until the episode or the
    chunk ends. The harness calls it from threads, one environment in each: worth having if it releases the GIL.

    An environment that steps in another way than it was asked to has `stepping`, the way it does.

    An environment may also be looked at, by `bench.stages.video`: `top_view() → bench.video.TopView` says what lies
    beneath the path of the current episode seen from above; `render() → (H, W, 3) uint8`, gymnasium's own, is a picture
    of the current state. `render` changes nothing, and may raise where nothing can be drawn.
    """

    observation_space: gymnasium.spaces.Dict
    action_space: gymnasium.spaces.Box

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]: ...
    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]: ...
    def get_state(self) -> State: ...
    def set_state(self, state: State) -> dict[str, Any]: ...


class Suite(Protocol):
    """A module in `envs/`. Importing it must be cheap: simulators are imported inside `make` and `demos`.

    It may also have `speeds()`, which yields what `bench perf` compares: a case's name, and {way: function} where a
    call does some control steps and returns how many; the first way is the simulator's own.
    """

    requires: tuple[str, ...]  # distributions the suite needs, for `doctor`
    tasks: tuple[Task, ...]

    def make(self, task: Task, seed: int, stepping: str = "strict") -> BenchEnv:
        """A fresh environment of the fine-tuning distribution. Equal seeds give equal trajectories.

        `stepping`: "stock" is the simulator's own step, "strict" may be another way to the same bits, "fast" one that
        is equal to rounding only. A suite without such a choice does the same for all three.
        """

    def demos(self, task: Task, n: int, rng: np.random.Generator, progress: Callable[[float], None] = ...) -> Demos:
        """`n` demonstrations (in `task.demo_unit`) made on this machine; `progress` takes the share done in [0, 1]."""


@dataclass(frozen=True)
class Dims:
    """Sizes that a method needs to know."""

    state: int  # S
    context: int  # C
    action: int  # A
    chunk: int  # H control steps
    context_keys: Mapping[str, int] = field(default_factory=dict)  # context key → its width
    execute: int = 1  # E control steps of a chunk that are executed


class Policy(Protocol):
    """A frozen pretrained policy: no gradient, no global randomness."""

    dims: Dims

    @property
    def latent(self) -> tuple[int, ...]:
        """The shape of one z: (H, A) for a flow."""

    @property
    def takes_sigma(self) -> bool:
        """Whether the network was trained on noised contexts."""

    def features(self, s: FloatArray, c: FloatArray) -> FloatArray:
        """What the RL agent sees: s and c, scaled as for the policy, with Fourier features; (B, S), (B, C) → (B, F)."""

    def act(self, s: FloatArray, c: FloatArray, z: FloatArray, sigma: FloatArray, eps: FloatArray) -> FloatArray:
        """(B, S), (B, C), z (B, *latent), σ (B,) in [0, 1], ε (B, C) → chunk (B, H, A) in the action's own units."""

    def invert(self, s: FloatArray, c: FloatArray, chunk: FloatArray) -> FloatArray:
        """(B, S), (B, C), (B, H, A) → the z (B, *latent) from which `act` at σ = 0 gives the chunk."""

    def parameters(self) -> Iterator[Any]:
        """The weights, to be counted."""

    def save(self, folder: Path) -> None: ...


@dataclass(frozen=True)
class Group:
    """One part of the RL action with a temperature of its own; decoded from [-1, 1] to [low, high].

    With a `prior` the agent stays close to N(0, prior²) over its action before the tanh: the divergence from it takes
    the place of minus the entropy in the agent's loss, in the temperature's, and in the target if that has entropy.
    """

    name: str  # "z", "sigma", "eps"
    size: int
    low: float
    high: float
    target_entropy: float  # nats; with a prior: minus the divergence from it that is aimed at
    prior: float | None = None  # see above

    def decode(self, action: FloatArray) -> FloatArray:
        """(B, size) in [-1, 1] → (B, size) in [low, high]."""
        return self.low + (action + 1.0) * (0.5 * (self.high - self.low))


@dataclass(frozen=True)
class Progress:
    """Where fine-tuning stands, for σ schedules."""

    fraction: float  # of the decisions, in [0, 1]
    success: float  # success rate of the latest training episodes, in [0, 1]
    base_sigma: float  # σ with the best Success@1 before RL on the selection states


@dataclass(frozen=True)
class Agent:
    """What reinforcement controls: the action groups, and how one RL action becomes the inputs of the policy.

    `inputs(action, noise, progress)` takes the decoded groups {name: (B, size)}, standard normal `noise`
    {"z": (B, *latent), "eps": (B, C)} drawn by the harness, and returns z (B, *latent), σ (B,), ε (B, C).
    `before(noise, progress)` returns the same before any reinforcement: the pretrained policy as it is. `encode` takes
    the z (N, *latent) with which the policy repeats demonstrated chunks and returns the RL actions (N, D) in [-1, 1]
    nearest to that, for batches that hold demonstrations; it raises InputError where an agent cannot. `options`
    overrides fields of the engine's configuration that define the method. `correct(chunk (B, H, A), action)` returns
    the chunk that is executed instead of the policy's, if it is given. `selects_sigma` says that `inputs` reads
    `progress.base_sigma`, so that the rollouts which chose it count among the method's costs.
    """

    groups: tuple[Group, ...]
    inputs: Callable[[Arrays, Arrays, Progress], PolicyInputs]
    before: Callable[[Arrays, Progress], PolicyInputs]
    encode: Callable[[FloatArray], FloatArray]
    options: Mapping[str, Any] = field(default_factory=dict)
    correct: Callable[[FloatArray, Arrays], FloatArray] | None = None
    selects_sigma: bool = False


class Method(Protocol):
    """A module in `methods/`; the file name is the method's id.

    `Config` may carry a class variable `profiles`: {profile: {field: value}} of defaults that differ in a profile. A
    module that names `profiles` takes part by default in those alone. A module whose `pretrain` returns a policy of a
    class of its own has `load(folder) → Policy`, which reads what the policy's `save` wrote.
    """

    paper: str  # title, arXiv number, equation
    Config: type[Any]  # frozen dataclass of `bench.config.option` fields: defaults, units, search space

    def pretrain(self, demos: Any, config: Any, trainer: Any) -> Policy:
        """Train the base policy on the demonstrations; see `bench.pretraining.Trainer` for the loop it is given."""

    def agent(self, config: Any, dims: Dims) -> Agent: ...
