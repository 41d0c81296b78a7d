"""Fine-tuning: SAC moves what the method lets it move. Evaluated from stored states; resumed to the same bits.

A round is one decision in every environment. Everything random in a round is seeded by the round's number, so the state
is: engine (weights, optimisers, replay buffer), environments, counters, and the tables so far.
"""

from __future__ import annotations

import json
import resource
import time
from collections import deque
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import config as cfg
from bench import registry, rl, seeding
from bench.evaluate import Act, EvaluationConfig, rollouts
from bench.plan import Unit
from bench.pretraining import chunk_table, load_checkpoint
from bench.stages import demos, pretrain, starts
from bench.stages.common import Reporter, environments
from bench.steering import Decision, SteeredEnvs
from bench.store import COVERAGE, EPISODES, SIGMA, TRAINING, Entry, Store, read_table, table, write_json, write_table
from bench.types import Agent, Demos, Progress, State, Stopped, Task

RECENT = 100  # training episodes that make the running success rate
PROGRESS_BINS = 20  # of the σ table, over the decisions
LOG_ROUNDS = 50  # rounds between rows of the training table
CHECKPOINT_SECONDS = 30.0
INVERTED = 2048  # demonstrated chunks at a time: a transformer's activations of all would not fit into memory


@dataclass
class Counters:
    """Where fine-tuning stands; written to the checkpoint as it is."""

    round: int = 0  # rounds done
    point: int = 0  # evaluation points done
    decisions: int = 0
    control_steps: int = 0
    policy_calls: int = 0
    owed: float = 0.0  # fraction of a gradient step carried to the next round
    wall_seconds: float = 0.0  # fine-tuning without evaluation
    episodes: int = 0
    recent: list[bool] = field(default_factory=list)


class Cell:
    """One fine-tuning run: built from its inputs, advanced by `run`, saved and restored whole."""

    def __init__(self, store: Store, entry: Entry, unit: Unit, reporter: Reporter) -> None:
        spec = unit.spec
        self.entry, self.spec, self.reporter = entry, spec, reporter
        self.seed: int = seeding.child(spec["seed"], "agent", spec["task"])
        source = store.entry("pretrain", spec["inputs"]["pretrain"])
        self.policy, self.pretraining = pretrain.load(source), source.meta()
        self.task: Task = registry.task(spec["task"]).split(self.policy.dims.context_keys)
        self.frozen = store.entry("coverage", spec["inputs"]["coverage"])
        self.coverage = self.frozen.meta()
        self.starts: dict[str, list[State]] = starts.load(store.entry("starts", spec["inputs"]["starts"]))
        module = registry.method(spec["method"])
        method_config = cfg.from_dict(module.Config, spec["config"], spec["method"])
        dims = replace(self.policy.dims, execute=spec["execute"])
        self.agent: Agent = module.agent(method_config, dims)
        self.config = cfg.from_dict(rl.RLConfig, spec["rl"], "rl")
        self.evaluation = cfg.from_dict(EvaluationConfig, spec["evaluation"], "evaluation")
        self.steered = SteeredEnvs(
            environments(self.task.id, "train", self.config.envs, spec["stepping"]), self.task, self.policy,
            self.agent, spec["execute"], self.seed, reporter.threads,
        )  # fmt: skip
        features = self.steered.features().shape[1]
        self.engine = rl.Engine(features, self.agent.groups, self.config, seeding.child(self.seed, "engine"))
        if self.config.demo_fraction > 0:
            demos_key = self.pretraining["spec"]["inputs"]["demos"]
            self.add_demonstrations(demos.load(store.entry("demos", demos_key), self.task))
        self.counters = Counters()
        self.recent: deque[bool] = deque(maxlen=RECENT)
        self.losses: dict[str, float] = {}
        self.episodes: list[dict[str, Any]] = []
        self.training: list[dict[str, Any]] = []
        self.points: list[dict[str, Any]] = []
        self.sigma = np.zeros((2, PROGRESS_BINS, -(-self.task.horizon // spec["execute"])))  # sum and count
        self.interval: list[float] = []  # σ since the last row of the training table

    def add_demonstrations(self, data: Demos) -> None:
        """Demonstrations as decisions, with the RL action that comes nearest to repeating them.

        A successful episode ends with reward 1; of others the last decision, whose outcome was not seen, is left out.
        """
        step, starts = self.spec["execute"], np.concatenate([[0], data.ends[:-1]])
        rows = np.concatenate([np.arange(a, b, step) for a, b in zip(starts, data.ends, strict=True)])
        episode = np.searchsorted(data.ends, rows, side="right")
        last = rows + step >= data.ends[episode]
        kept = ~last | data.success[episode]
        rows, last = rows[kept], last[kept]
        after = np.where(last, rows, rows + step)
        s, c = data.vector(self.task.state_keys), data.vector(self.task.context_keys)
        chunk_rows, _ = chunk_table(data.ends, self.policy.dims.chunk)
        parts = np.array_split(rows, -(-len(rows) // INVERTED))
        z = np.concatenate([self.policy.invert(s[r], c[r], data.actions[chunk_rows[r].numpy()]) for r in parts])
        self.engine.add_demonstrations(
            self.policy.features(s[rows], c[rows]), self.policy.features(s[after], c[after]), self.agent.encode(z),
            last.astype(np.float32), last,
        )  # fmt: skip

    @property
    def progress(self) -> Progress:
        rate = sum(self.recent) / len(self.recent) if self.recent else 0.0
        share = min(1.0, self.counters.decisions / self.config.decisions)
        return Progress(share, rate, float(self.coverage["selected_sigma"]))

    def run(self) -> None:
        """To the end of the budget. Raises Stopped, with everything saved, when asked to stop."""
        saved = time.monotonic()
        while True:
            while self.counters.point <= self.points_due():
                self.evaluate()
                self.save()
                saved = time.monotonic()
            if self.counters.decisions >= self.config.decisions:
                break
            begun = time.monotonic()
            self.one_round()
            self.counters.wall_seconds += time.monotonic() - begun
            stopping = self.reporter.stop()
            if stopping or time.monotonic() - saved > CHECKPOINT_SECONDS:
                self.save()
                saved = time.monotonic()
            if stopping:
                raise Stopped
            if self.counters.round % 10 == 0:
                text = f"{self.counters.decisions} of {self.config.decisions} decisions"
                self.reporter.progress(self.progress.fraction, text, self.progress.success)

    def points_due(self) -> int:
        """How many evaluation points the decisions so far call for, besides point 0."""
        share = min(1.0, self.counters.decisions / self.config.decisions)
        return int(share * self.evaluation.points + 1e-9)

    def one_round(self) -> None:
        """One decision everywhere, and the gradient steps it pays for."""
        n = self.counters
        features = self.steered.features()
        rng = seeding.rng(self.seed, "explore", n.round)
        if n.decisions < self.config.random_decisions:
            action = self.engine.explore(len(features), rng)
        else:
            action = self.engine.sample(features, [rng] * len(features))
        numbers = list(self.steered.decided)
        decision = self.steered.decide(action, n.round, self.progress)
        after = self.steered.features(decision.observations)
        self.engine.remember(features, after, action, decision.reward, decision.terminated)
        self.count(decision, numbers)
        if n.decisions >= self.config.random_decisions:
            n.owed += self.config.updates_per_decision * len(features)
            if steps := int(n.owed):
                n.owed -= steps
                self.losses = self.engine.learn_from_buffer(steps)
        n.round += 1
        if n.round % LOG_ROUNDS == 0:
            self.log()

    def count(self, decision: Decision, numbers: list[int]) -> None:
        """Counters, running success and the σ table."""
        n = self.counters
        place = min(PROGRESS_BINS - 1, int(self.progress.fraction * PROGRESS_BINS))
        np.add.at(self.sigma[0, place], numbers, decision.sigma)
        np.add.at(self.sigma[1, place], numbers, 1)
        self.interval += decision.sigma.tolist()
        n.decisions += len(numbers)
        n.policy_calls += len(numbers)
        n.control_steps += decision.control_steps
        n.episodes += len(decision.finished)
        self.recent.extend(success for success, _ in decision.finished)

    def log(self) -> None:
        """One row of the training table."""
        n, nan = self.counters, float("nan")
        losses = {k: self.losses.get(k, nan) for k in ("critic_loss", "actor_loss", "alpha", "q", "entropy")}
        self.training.append({
            "decisions": n.decisions, "control_steps": n.control_steps, "gradient_steps": self.engine.updates,
            "success": self.progress.success, "episodes": n.episodes, "sigma": float(np.mean(self.interval)), **losses,
        })  # fmt: skip
        self.interval = []

    def evaluate(self) -> None:
        """One point: a fixed quota of episodes from each stored state, with its own environments and seeds."""
        n, act = self.counters, self.act()
        axes = {
            "point": n.point, "control_steps": n.control_steps, "decisions": n.decisions,
            "gradient_steps": self.engine.updates, "policy_calls": n.policy_calls, "wall_seconds": n.wall_seconds,
            "robot_hours": n.control_steps / self.task.control_hz / 3600,
        }  # fmt: skip
        rates: dict[str, float | None] = {"selection": None, "report": None}
        sigmas: list[float] = []
        quotas = {"selection": self.evaluation.selection_states, "report": self.evaluation.states}
        for half, quota in quotas.items():
            episodes = rollouts(
                environments(self.task.id, "evaluate", self.evaluation.envs, self.spec["stepping"]), self.task,
                self.policy, self.agent, act, self.progress, self.starts[half][:quota], self.evaluation.attempts,
                self.spec["execute"], seeding.child(self.seed, "evaluate", half), self.reporter.check,
                self.reporter.threads,
            )  # fmt: skip
            for e in episodes:
                self.episodes.append(axes | self.fixed() | {
                    "half": half, "start": e.start, "attempt": e.attempt, "success": e.success, "length": e.length,
                    "sigma": e.sigma,
                })  # fmt: skip
            rates[half] = float(np.mean([e.success for e in episodes])) if episodes else None
            sigmas += [e.sigma for e in episodes if half == "report"]
        losses = {k: self.losses.get(k) for k in ("critic_loss", "actor_loss", "alpha")}
        self.points.append(axes | losses | {
            "success_rate": rates["report"], "selection_success_rate": rates["selection"],
            "sigma": float(np.mean(sigmas)),
        })  # fmt: skip
        n.point += 1

    def act(self) -> Act:
        """None before reinforcement, then the agent's choice."""
        if self.counters.point == 0:
            return None
        if self.evaluation.deterministic:
            return lambda features, draws: self.engine.sample(features)
        return self.engine.sample

    def fixed(self) -> dict[str, Any]:
        """Columns that are the same on every row of this cell."""
        return {
            "method": self.spec["method"], "task": self.task.id, "seed": self.spec["seed"],
            "pretrain_steps": self.pretraining["steps"], "pretrain_seconds": self.pretraining["seconds"],
        }  # fmt: skip

    def save(self) -> None:
        """Write the checkpoint; the earlier one stays valid until the new one is whole."""
        folder = self.entry.checkpoint
        folder.mkdir(parents=True, exist_ok=True)
        self.counters.recent = [bool(x) for x in self.recent]
        record = {"counters": asdict(self.counters), "losses": self.losses, "episodes": self.episodes,
                  "training": self.training, "points": self.points, "interval": self.interval}  # fmt: skip
        state = {f"env.{k}": torch.from_numpy(np.array(v)) for k, v in self.steered.get_state().items()}
        text = torch.from_numpy(np.frombuffer(json.dumps(record).encode(), np.uint8).copy())
        tensors = {"record": text, "sigma": torch.from_numpy(self.sigma), **state, **self.engine.get_state()}
        rl.save_tensors(folder / "cell.safetensors", tensors)
        write_json(self.entry.file("points.json"), self.points)

    def restore(self) -> None:
        """Go on from the checkpoint, if there is one."""
        path: Path = self.entry.checkpoint / "cell.safetensors"
        if not path.exists():
            return
        tensors = load_checkpoint(path)
        record = json.loads(tensors.pop("record").numpy().tobytes())
        self.sigma = tensors.pop("sigma").numpy()
        self.counters = Counters(**record["counters"])
        self.recent.extend(self.counters.recent)
        self.losses, self.episodes, self.training = record["losses"], record["episodes"], record["training"]
        self.points, self.interval = record["points"], record["interval"]
        self.steered.set_state({k[4:]: v.numpy() for k, v in tensors.items() if k.startswith("env.")})
        self.engine.set_state(tensors)

    def finish(self) -> None:
        """Write the tables and the agent."""
        write_table(self.entry.file("episodes.parquet"), table(self.episodes, EPISODES), EPISODES)
        write_table(self.entry.file("training.parquet"), table(self.training, TRAINING), TRAINING)
        write_table(self.entry.file("sigma.parquet"), table(self.sigma_rows(), SIGMA), SIGMA)
        self.engine.save_agent(self.entry.file("agent.safetensors"))
        self.entry.finish(self.spec, {
            "stepping": getattr(self.steered.envs[0], "stepping", self.spec["stepping"]),
            "pretrain_seconds": self.pretraining["seconds"], "wall_seconds": self.counters.wall_seconds,
            "selected_sigma": self.coverage["selected_sigma"], "selection_control_steps": self.selection_steps(),
            "peak_memory_mb": peak_memory_mb(),
            "training_success": self.progress.success,  # with the agent, what repeats the last evaluation
        })  # fmt: skip

    def selection_steps(self) -> int:
        """Control steps of the frozen policy by which the agent's σ was chosen; 0 where there was nothing to choose."""
        frame = read_table(self.frozen.file("coverage.parquet"), COVERAGE)
        chosen = frame[frame.half == "selection"]
        return int(chosen.length.sum()) if self.agent.selects_sigma and chosen.sigma.nunique() > 1 else 0

    def sigma_rows(self) -> list[dict[str, Any]]:
        """Mean σ by progress and decision number, for policies that take one."""
        if not self.policy.takes_sigma:
            return []
        total, count = self.sigma
        return [
            {"progress": (i + 0.5) / PROGRESS_BINS, "decision": j, "sigma": total[i, j] / count[i, j],
             "count": int(count[i, j])}
            for i, j in zip(*np.nonzero(count), strict=True)
        ]  # fmt: skip


def peak_memory_mb() -> float:
    """The largest resident size of this worker process so far, whatever it ran, in MiB.

    Where the system tells: `getrusage` also counts the parent as it was when it started this process.
    """
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(store: Store, entry: Entry, unit: Unit, reporter: Reporter) -> None:
    """Fine-tune one cell; goes on from its checkpoint."""
    cell = Cell(store, entry, unit, reporter)
    cell.restore()
    cell.run()
    cell.finish()
