"""What a request says and what it comes to: profiles, settings and options of a method, from all their layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from bench import config as cfg
from bench import registry
from bench.config import option
from bench.evaluate import CoverageConfig, EvaluationConfig
from bench.nets import PolicyConfig
from bench.pretraining import PretrainConfig
from bench.rl import RLConfig
from bench.types import STEPPING, InputError, Task


@dataclass(frozen=True)
class DemosConfig:
    """The demonstrations, the same for every method and seed."""

    count: int | None = option(None, "demonstrations in the task's own unit; auto: the task's default", low=1)
    seed: int = option(0, "seed of the demonstrations", low=0)


@dataclass(frozen=True)
class SimulationConfig:
    """How simulators are stepped, the same for every method; demonstrations and start states are always strict."""

    stepping: str = option(
        "strict", "the simulator's own step, a faster way to the same bits, or one that is equal to rounding only",
        choices=STEPPING,
    )  # fmt: skip


@dataclass(frozen=True)
class VideoConfig:
    """Which cells get pictures of a first and a last evaluation episode."""

    seeds: int = option(1, "seeds of each method and task with pictures of two episodes; 0: none", low=0)


@dataclass(frozen=True)
class Settings:
    """Everything about a cell that is not the method's own."""

    simulation: SimulationConfig = field(default=SimulationConfig())
    demos: DemosConfig = field(default=DemosConfig())
    policy: PolicyConfig = field(default=PolicyConfig())
    pretrain: PretrainConfig = field(default=PretrainConfig())
    coverage: CoverageConfig = field(default=CoverageConfig())
    rl: RLConfig = field(default=RLConfig())
    evaluation: EvaluationConfig = field(default=EvaluationConfig())
    video: VideoConfig = field(default=VideoConfig())


OF_METHODS = "method."  # begins keys of tasks and profiles that are options of every method that has them
# What a profile changes for every task; a task's own budgets stand in its suite (`Task.profiles`).
PROFILES: dict[str, dict[str, Any]] = {
    "smoke": {
        "demos.count": 40, "policy.width": 32, "policy.blocks": 1, "policy.euler_steps": 4, "pretrain.steps": 150,
        "pretrain.batch": 64, "coverage.states": 4, "coverage.selection_states": 3, "coverage.attempts": 4,
        "coverage.sigmas": (0.0, 0.5), "rl.decisions": 240, "rl.envs": 4, "rl.random_decisions": 40, "rl.batch": 32,
        "rl.actor": (32, 32), "rl.critic": (32, 32), "evaluation.points": 2, "evaluation.states": 4,
        "evaluation.selection_states": 2, "evaluation.stored": 6, "evaluation.envs": 4,
    },
    "quick": {
        "simulation.stepping": "fast", "policy.euler_steps": 3, "pretrain.steps": 3_600, "rl.decisions": 9_000,
        "rl.batch": 128,
        "rl.actor": (128, 128), "rl.critic": (128, 128), "evaluation.points": 6, "evaluation.states": 32,
        "evaluation.selection_states": 8,
    },
    "standard": {
        "pretrain.steps": 40_000, "rl.decisions": 40_000, "evaluation.states": 50, "evaluation.selection_states": 50,
        "coverage.states": 50, "coverage.selection_states": 20, "coverage.attempts": 20, "evaluation.points": 20,
    },
    "paper": {
        "pretrain.steps": 200_000, "pretrain.learning_rate": 3e-4, "pretrain.schedule": "constant",
        "policy.chunk": 32, "policy.execute": 5, "policy.architecture": "transformer", "policy.blocks": 4,
        "policy.normalise": False, "policy.fourier": 0, "rl.decisions": 3_600_000, "rl.envs": 4,
        "rl.random_decisions": 2_000,
        "rl.updates_per_decision": 0.25, "rl.discount": 0.995, "rl.actor": (256,) * 4, "rl.critic": (256,) * 3,
        "rl.critics": 5, "rl.critic_norm": True, "rl.activation": "mish", "rl.temperature": 1.0,
        "method.z_bound": 1.5, "method.correction_bound": 0.2, "method.action_bound": 1.0,
        "rl.entropy_in_target": False, "rl.bounded_value": False,
        "evaluation.states": 50, "evaluation.selection_states": 50,
        "coverage.states": 50, "coverage.selection_states": 50, "coverage.attempts": 20, "evaluation.points": 36,
    },
}  # fmt: skip
# Comparisons by name: the profile that has their settings. Their tasks name them (`Task.profiles`).
PRESETS = {"published": "paper"}
TUNING_SEEDS = 1_000_000  # the first of those that are for the trials of studies
SEED_END = 2**31  # the first that no run takes
TUNED_ON = (7, 8)  # seeds on which defaults and the suites' bounds were chosen; a number of seeds leaves them out
SEEDS = {"smoke": 1, "quick": 3, "standard": 5, "paper": 10}


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    methods: tuple[str, ...]
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    profile: str = "quick"
    overrides: Mapping[str, Any] = field(default_factory=dict)  # dotted key → value, from the file
    task_overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # task id → the same; wins over it
    command: Mapping[str, Any] = field(default_factory=dict)  # dotted key → value, from --set; wins over both
    file: str = "--config"  # where `overrides` stand, for messages
    words: str = "--set"  # where `command` stands, for messages

    def layers(self, task: str) -> tuple[tuple[str, Mapping[str, Any]], ...]:
        """Where the user says something about a task, and what; the later wins."""
        own = self.task_overrides.get(task, {})
        return (self.file, self.overrides), (f"{self.file}: tasks.{task!r}", own), (self.words, self.command)

    def record(self) -> dict[str, Any]:
        """What run.json says of the request."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in ("file", "words")}


def check_request(request: Request) -> None:
    """Raises InputError for a profile or a key that there is not, or a key of a method that is not asked for."""
    if request.profile not in PROFILES:
        guess = cfg.nearest(request.profile, PROFILES)
        raise InputError(f"unknown profile {request.profile!r}{guess}; known: {', '.join(PROFILES)}")
    check_profiles()
    known = set(all_keys())
    for where, values in [layer for task in ("", *request.task_overrides) for layer in request.layers(task)]:
        for key in values:
            if key not in known:
                guess = cfg.nearest(key, known)
                raise InputError(f"{where}: unknown key {key!r}{guess}; `bench list --keys` shows all")
    others = set(registry.methods()) - set(request.methods)
    for key in request.command:
        if (name := key.split(".")[0]) in others:
            raise InputError(f"--set {key}: {name} is not among the methods asked for ({', '.join(request.methods)})")


def check_profiles() -> None:
    """Raises InputError for a method or a task that names a profile there is not, and so would take part in none.

    A preset is named by its tasks alone, without settings: those are its profile's.
    """
    for id, task in registry.tasks().items():
        named = [name for name, values in task.profiles.items() if values or name not in PRESETS]
        _check_named(f"envs/{id.split('/')[0]}.py: {id}", named)
    for name, module in registry.methods().items():
        own = getattr(module, "profiles", ())
        if isinstance(own, str):
            raise InputError(f"methods/{name}.py: profiles must be a tuple, such as ('quick',)")
        _check_named(f"methods/{name}.py", [*own, *getattr(module.Config, "profiles", ())])


def _check_named(where: str, profiles: Iterable[str]) -> None:
    for profile in profiles:
        if profile not in PROFILES:
            guess = cfg.nearest(profile, PROFILES)
            raise InputError(f"{where}: unknown profile {profile!r}{guess}; known: {', '.join(PROFILES)}")


def all_keys() -> list[str]:
    """Every key that can be set."""
    own = [f"{name}.{key}" for name, module in registry.methods().items() for key in cfg.keys(module.Config)]
    return [*cfg.keys(Settings), *own]


def settings_of(request: Request, task: Task) -> Settings:
    """Defaults < task < profile < task in this profile < the user's."""

    def own(values: Mapping[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in values.items() if not k.startswith(OF_METHODS)}

    settings = cfg.override(Settings(), own(task.settings), task.id)
    settings = cfg.override(settings, own(PROFILES[request.profile]), f"profile {request.profile}")
    settings = cfg.override(settings, own(task.profiles.get(request.profile, {})), f"{task.id} in {request.profile}")
    names = {f.name for f in dataclasses.fields(Settings)}
    for where, values in request.layers(task.id):
        mine = {k: v for k, v in values.items() if k.split(".")[0] in names}
        settings = cfg.override(settings, mine, where)
    _check_settings(settings, task)
    most = max(settings.evaluation.states, settings.evaluation.selection_states, settings.coverage.states,
               settings.coverage.selection_states)  # fmt: skip
    if most > settings.evaluation.stored:
        return cfg.override(settings, {"evaluation.stored": most}, task.id)
    return settings


def _check_settings(settings: Settings, task: Task) -> None:
    """Raises InputError for values that do not go together."""
    policy, rl = settings.policy, settings.rl
    if policy.execute > policy.chunk:
        raise InputError(f"{task.id}: policy.execute = {policy.execute} is over policy.chunk = {policy.chunk}")
    if policy.architecture == "transformer" and policy.width % policy.heads:
        raise InputError(f"policy.width = {policy.width} must be a multiple of policy.heads = {policy.heads}")
    if rl.random_decisions >= rl.decisions:
        text = f"rl.random_decisions = {rl.random_decisions} leaves nothing to learn of rl.decisions = {rl.decisions}"
        raise InputError(f"{task.id}: {text}")
    sigmas = settings.coverage.sigmas
    if len(set(sigmas)) < len(sigmas):
        raise InputError(f"coverage.sigmas = {sigmas}: give every σ once, a second one would repeat the same tries")
    if not sigmas:
        raise InputError("coverage.sigmas is empty; give at least one, such as 0,0.5")
    if settings.pretrain.device == "cuda" and not torch.cuda.is_available():
        raise InputError("pretrain.device = cuda, but torch finds no GPU here; set it to cpu")


def _check_config(config: Any, method: str, task: Task) -> None:
    """Raises InputError for context keys that the task lacks."""
    for key, field_ in cfg.keys(type(config)).items():
        for name in getattr(config, key) if field_.metadata.get("context_keys") else ():
            if name not in task.context_keys:
                guess = cfg.nearest(name, task.context_keys)
                raise InputError(f"{method}.{key}: {task.id} has no context key {name!r}{guess}")


def config_of(request: Request, method: str, task: Task) -> Any:
    """The method's Config: its defaults < the task's < the profile's < the task's in this profile < the user's."""
    config = registry.methods()[method].Config()
    profile, where = f"profile {request.profile}", f"{task.id} in {request.profile}"
    config = cfg.override(config, _options(config, task.settings, task.id), task.id)
    config = cfg.override(config, _options(config, PROFILES[request.profile], profile), profile)
    config = cfg.override(config, getattr(config, "profiles", {}).get(request.profile, {}), method)
    config = cfg.override(config, _options(config, task.profiles.get(request.profile, {}), where), where)
    for said, values in request.layers(task.id):
        mine = {k.split(".", 1)[1]: v for k, v in values.items() if k.startswith(f"{method}.")}
        config = cfg.override(config, mine, said, f"{method}.")
    _check_config(config, method, task)
    return config


def _options(config: Any, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Of the values that are meant for every method those that this one has. Raises InputError if none has one."""
    options = {k.removeprefix(OF_METHODS): v for k, v in values.items() if k.startswith(OF_METHODS)}
    for key in options:
        known = {key for module in registry.methods().values() for key in cfg.keys(module.Config)}
        if key not in known:
            raise InputError(f"{where}: no method has the option {OF_METHODS}{key}{cfg.nearest(key, known)}")
    return {k: v for k, v in options.items() if k in cfg.keys(type(config))}


def pair(text: str) -> tuple[str, str]:
    """Key and value of `--set`. Raises InputError."""
    key, sign, value = text.partition("=")
    if not sign:
        raise InputError(f"--set {text!r}: write KEY=VALUE, such as --set rl.decisions=8000")
    return key.strip(), value


def parse_seeds(text: str) -> tuple[int, ...]:
    """`5` is the first five, 0 to 4, none of them one that defaults were tuned on; `0,3,7` those. Raises InputError."""
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise InputError(f"--seeds {text!r}: give a number of seeds (5) or a list (0,3,7)") from None
    if "," not in text and numbers:
        if numbers[0] > TUNING_SEEDS:
            raise InputError(f"--seeds {text!r}: give a number of seeds up to {TUNING_SEEDS}, or a list (0,3,7)")
        numbers = [seed for seed in range(numbers[0] + len(TUNED_ON)) if seed not in TUNED_ON][: max(numbers[0], 0)]
    seeds = tuple(dict.fromkeys(numbers))
    if not seeds or min(seeds) < 0 or max(seeds) >= SEED_END:
        raise InputError(f"--seeds {text!r}: give a number of seeds (5), or a list (0,3,7) of 0 to {SEED_END - 1}")
    return seeds
