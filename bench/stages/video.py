"""Two evaluation episodes of a finished cell, to be looked at: before reinforcement, and by the trained agent.

Evaluation is a function of the stored start states and the seed, so the episodes are not recorded when they happen:
the evaluation is repeated up to the end of the first report state's first episode, whose success and length have to be
those of the row that was stored; nothing else is compared. No result depends on this stage, and its failure is no
cell's.

An environment that has `top_view` is drawn (`first.png`, `last.png`), one that has `render` is filmed (`first.gif`,
`last.gif`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, cast

import numpy as np
from safetensors.torch import load_file

from bench import config as cfg
from bench import registry, rl, seeding, video
from bench.evaluate import Act, EvaluationConfig, rollouts
from bench.plan import Plan, Unit
from bench.stages import pretrain, starts
from bench.stages.common import Reporter, environments
from bench.store import EPISODES, TRAINING, Entry, Store, read_table, write_atomic
from bench.tracking_client import brief
from bench.types import BenchEnv, FloatArray, Progress, State

FILM_FRAMES = 120  # at most about this many pictures in a film; longer episodes are shown in larger steps
SHOWN = ("first", "last")


class _Over(Exception):
    """The episode has ended."""


class Recorder:
    """An environment that keeps what was seen in one episode: every observation, and pictures where it makes any."""

    def __init__(self, env: BenchEnv, horizon: int) -> None:
        self.env, self.every = env, max(1, horizon // FILM_FRAMES)
        self.observations: list[dict[str, FloatArray]] = []
        self.pictures: list[video.Picture] = []
        self.note = ""  # why there are no pictures, if that is worth saying
        self.over = self.success = False
        self._camera = getattr(env, "render", None)

    def set_state(self, state: State) -> dict[str, Any]:
        observation = self.env.set_state(state)
        self._keep(observation)
        return observation

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        taken = self.env.step(action)
        self.over, self.success = taken[2] or taken[3], bool(taken[4]["success"])
        self._keep(taken[0])
        return taken

    def _keep(self, observation: dict[str, FloatArray]) -> None:
        if self._camera is not None and (self.over or len(self.observations) % self.every == 0):
            self._film()
        self.observations.append(observation)

    def _film(self) -> None:
        try:
            assert self._camera is not None
            self.pictures.append(self._camera())
        except NotImplementedError:  # gymnasium's way to say that an environment has none
            self._camera = None
        except Exception as error:  # of whatever graphics library: the episode is drawn nevertheless
            self._camera, self.pictures, self.note = None, [], f"no film: {brief(error)}"


class Replay:
    """A finished cell, as far as its evaluation can be repeated from what it left."""

    def __init__(self, store: Store, finetune: Entry) -> None:
        finetune.verify()
        self.entry, self.meta = finetune, finetune.meta()
        self.spec: dict[str, Any] = self.meta["spec"]
        self.policy = pretrain.load(store.entry("pretrain", self.spec["inputs"]["pretrain"]))
        self.task = registry.task(self.spec["task"]).split(self.policy.dims.context_keys)
        self.states = starts.load(store.entry("starts", self.spec["inputs"]["starts"]))["report"]
        module = registry.method(self.spec["method"])
        method_config = cfg.from_dict(module.Config, self.spec["config"], self.spec["method"])
        dims = dataclasses.replace(self.policy.dims, execute=self.spec["execute"])
        self.agent = module.agent(method_config, dims)
        self.config = cfg.from_dict(rl.RLConfig, self.spec["rl"], "rl")
        self.evaluation = cfg.from_dict(EvaluationConfig, self.spec["evaluation"], "evaluation")
        rows = read_table(finetune.file("episodes.parquet"), EPISODES)
        mine = rows[(rows.half == "report") & (rows.start == 0) & (rows.attempt == 0)].sort_values("point")
        self.rows: dict[str, Any] = {"first": mine.iloc[0], "last": mine.iloc[-1]}

    def progress(self, which: str) -> Progress:
        """As it was at that evaluation."""
        share = min(1.0, int(self.rows[which].decisions) / self.config.decisions)
        return Progress(share, 0.0 if which == "first" else self._training_success(), self.meta["selected_sigma"])

    def _training_success(self) -> float:
        """Success of the latest training episodes at the end, on which a schedule of σ may depend.

        Cells from before it was stored have that of the last logged round, which may be a little older.
        """
        if "training_success" in self.meta:
            return float(self.meta["training_success"])
        training = read_table(self.entry.file("training.parquet"), TRAINING)
        return float(training.success.iloc[-1]) if len(training) else 0.0

    def act(self, which: str) -> Act:
        """None before reinforcement, then the trained agent's choice."""
        if which == "first":
            return None
        dims = self.policy.dims
        nothing = (np.zeros((1, size), np.float32) for size in (dims.state, dims.context))
        small = dataclasses.replace(self.config, buffer=self.config.envs)  # nothing is learnt any more
        engine = rl.Engine(self.policy.features(*nothing).shape[1], self.agent.groups, small, seed=0)
        tensors = load_file(self.entry.file("agent.safetensors"))
        engine.policy.load_state_dict({k[7:]: v for k, v in tensors.items() if k.startswith("policy.")})
        if self.evaluation.deterministic:
            return lambda features, draws: engine.sample(features)
        return engine.sample

    def episode(self, which: str, reporter: Reporter) -> Recorder:
        """The first report state's first episode once more. Raises RuntimeError if it is not the one that was stored.

        All environments decide together, as they did then: rounding depends on their number.
        """
        quota = self.evaluation
        envs = environments(self.task.id, "evaluate", quota.envs, self.spec["stepping"])
        recorder = Recorder(envs[-1], self.task.horizon)  # the last one is given the first state
        seed = seeding.child(seeding.child(self.spec["seed"], "agent", self.task.id), "evaluate", "report")

        def check() -> None:
            reporter.check()
            if recorder.over:
                raise _Over

        with suppress(_Over):
            rollouts(
                [*envs[:-1], cast(BenchEnv, recorder)], self.task, self.policy, self.agent, self.act(which),
                self.progress(which), self.states[: quota.states], quota.attempts, self.spec["execute"], seed, check,
            )  # fmt: skip
        stored, seen = self.rows[which], (recorder.success, len(recorder.observations) - 1)
        if seen != (bool(stored.success), int(stored.length)):
            text = f"success and length are {seen}, stored are {(bool(stored.success), int(stored.length))}"
            raise RuntimeError(f"the {which} episode does not repeat here: {text}; was the cell made elsewhere?")
        return recorder


def run(store: Store, entry: Entry, unit: Unit, reporter: Reporter) -> None:
    """Repeat both episodes, and draw and film them as far as their environment and this machine allow."""
    replay = Replay(store, store.entry("finetune", unit.spec["inputs"]["finetune"]))
    notes = set()
    for number, which in enumerate(SHOWN):
        reporter.progress(number / len(SHOWN), f"the {which} episode", None)
        recorder = replay.episode(which, reporter)
        show(entry, which, replay, recorder)
        notes |= {recorder.note} - {""}
    entry.finish(unit.spec, {"notes": sorted(notes)})


def show(entry: Entry, which: str, replay: Replay, recorder: Recorder) -> None:
    """Write the episode's drawing and film, if there are any."""
    hz = replay.task.control_hz
    if view := getattr(recorder.env, "top_view", None):
        title = describe(replay, which)
        write_atomic(
            entry.file(f"{which}.png"),
            lambda p: video.draw_path(p, view(), recorder.observations, hz, recorder.success, title),
        )
    if pictures := recorder.pictures:
        seconds = recorder.every / hz
        write_atomic(entry.file(f"{which}.gif"), lambda p: video.write_film(p, pictures, seconds))


def describe(replay: Replay, which: str) -> str:
    """Two lines above a drawing."""
    row = replay.rows[which]
    when = "before RL" if row.decisions == 0 else f"after {row.decisions} decisions"
    outcome = "success" if row.success else "no success"
    seconds = row.length / replay.task.control_hz
    who = f"{row.method} on {row.task}, seed {row.seed}"
    return f"{who}, {when}\n{outcome} after {row.length} control steps ({seconds:.1f} s)"


def remarks(store: Store, plan: Plan, made: Iterable[Unit]) -> list[str]:
    """What is to be said of the videos that a command made or tried to, each line once."""
    names = {(c.units[-1].stage, c.units[-1].key): c.name for c in plan.cells}
    lines: dict[str, None] = {}
    for unit in made:
        entry = store.entry(unit.stage, unit.key)
        if (state := entry.status()) == "done":
            lines |= {f"video: {note}": None for note in entry.meta().get("notes", [])}
        elif state == "failed":
            lines[f"video of {names[unit.waits[0]]} failed: {entry.failure().strip().splitlines()[-1]}"] = None
    return list(lines)
