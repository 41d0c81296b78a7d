"""Coverage before reinforcement: Success@K of the frozen policy from stored states, at several σ if it takes one."""

from __future__ import annotations

import dataclasses

from bench import config as cfg
from bench import registry, seeding
from bench.evaluate import CoverageConfig, rollouts, spread
from bench.plan import Unit
from bench.stages import pretrain, starts
from bench.stages.common import Reporter, environments
from bench.steering import frozen
from bench.store import COVERAGE, Entry, Store, table, write_table
from bench.types import Agent, Progress


def run(store: Store, entry: Entry, unit: Unit, reporter: Reporter) -> None:
    """Roll out, write one row per episode, and choose σ by Success@1 on the selection states alone."""
    spec = unit.spec
    policy = pretrain.load(store.entry("pretrain", spec["inputs"]["pretrain"]))
    task = registry.task(spec["task"]).split(policy.dims.context_keys)
    states = starts.load(store.entry("starts", spec["inputs"]["starts"]))
    config = cfg.from_dict(CoverageConfig, spec["coverage"], "coverage")
    envs = environments(task.id, "evaluate", spec["envs"], spec["stepping"])
    agent = Agent((), lambda action, noise, progress: frozen(noise, progress), frozen, lambda z: z)
    sigmas = config.sigmas if policy.takes_sigma else (0.0,)
    counts = {"selection": config.selection_states, "report": config.states}
    rows = []
    for number, (half, sigma) in enumerate((half, sigma) for half in counts for sigma in sigmas):
        reporter.progress(number / (2 * len(sigmas)), f"{half} states, σ = {sigma:g}", None)
        episodes = rollouts(
            envs, task, policy, agent, None, Progress(0.0, 0.0, sigma), states[half][: counts[half]], config.attempts,
            spec["execute"], seeding.child(spec["seed"], "coverage", task.id, half), reporter.check, reporter.threads,
        )  # fmt: skip
        spreads = spread(episodes)
        for episode in episodes:
            row = dataclasses.asdict(episode)
            del row["first_chunk"]
            rows.append(row | {"half": half, "sigma": sigma, "spread": spreads[episode.start]})
    frame = table(rows, COVERAGE)
    write_table(entry.file("coverage.parquet"), frame, COVERAGE)
    chosen = frame[frame.half == "selection"].groupby("sigma").success.mean()
    meta = {"selected_sigma": float(chosen.index.to_numpy()[chosen.to_numpy().argmax()])}
    entry.finish(spec, meta | {"selection_success": float(chosen.max())})
