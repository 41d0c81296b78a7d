"""Pretraining: a method's frozen policy from the demonstrations."""

from __future__ import annotations

import importlib

from bench import config as cfg
from bench import nets, policies, registry, seeding
from bench.plan import Unit
from bench.pretraining import PretrainConfig, Trainer
from bench.stages import demos
from bench.stages.common import Reporter
from bench.store import Entry, Store
from bench.types import Policy


def run(store: Store, entry: Entry, unit: Unit, reporter: Reporter) -> None:
    """Train and write the policy; goes on from its checkpoint."""
    spec = unit.spec
    task = registry.task(spec["task"])
    data = demos.load(store.entry("demos", spec["inputs"]["demos"]), task)
    module = importlib.import_module(spec["function"])
    trainer = Trainer(
        task, data, cfg.from_dict(nets.PolicyConfig, spec["policy"], "policy"),
        cfg.from_dict(PretrainConfig, spec["pretrain"], "pretrain"), seeding.child(spec["seed"], "policy", task.id),
        entry.checkpoint, lambda share, text: reporter.progress(share, text, None), reporter.stop,
    )  # fmt: skip
    policy = module.pretrain(data, cfg.from_dict(module.Config, spec["config"], spec["function"]), trainer)
    policy.save(entry.folder)
    entry.finish(unit.spec, {
        "steps": trainer.gradient_steps, "seconds": trainer.seconds,
        "parameters": sum(p.numel() for p in policy.parameters()),
    })  # fmt: skip


def load(entry: Entry) -> Policy:
    """The frozen policy, checked against its digest."""
    entry.verify()
    module = registry.method(entry.meta()["spec"]["function"].rpartition(".")[2])
    policy: Policy = getattr(module, "load", policies.load)(entry.folder)
    return policy
