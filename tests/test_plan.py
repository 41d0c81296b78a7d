"""What a request becomes: settings from defaults to command line, profiles and presets, keys of the stages."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from bench import cli, registry
from bench import config as cfg
from bench.plan import make_plan
from bench.settings import Request, Settings, parse_seeds
from bench.types import InputError

ROOT = Path(__file__).parent.parent


def test_configuration_file_command_line_and_tasks(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(
        "[run]\nmethods = ['csp']\ntasks = ['toy']\nseeds = [3, 5]\nprofile = 'smoke'\n"
        "[csp]\nschedule = 'cosine'\n[rl]\ndecisions = 80\n['tasks']\n'toy/reach'.rl.decisions = 50\n"
    )
    args = cli.parser().parse_args(["run", "--config", str(tmp_path / "x.toml"), "--set", "rl.batch=16"])
    plan = make_plan(cli.request_of(args))
    assert {c.seed for c in plan.cells} == {3, 5} and {c.method for c in plan.cells} == {"csp"}
    decisions = {c.task: c.settings.rl.decisions for c in plan.cells}
    assert decisions == {"toy/reach": 50, "toy/reach-unseen": 80}
    assert all(c.config.schedule == "cosine" and c.settings.rl.batch == 16 for c in plan.cells)


def test_the_command_line_wins_over_every_part_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(
        "[run]\nmethods = ['csp']\ntasks = ['toy/reach']\nseeds = [3]\nprofile = 'smoke'\n[csp]\nschedule = 'cosine'\n"
        "[rl]\ndecisions = 80\n[tasks.'toy/reach']\nrl.decisions = 50\nrl.batch = 8\ncsp.clean = 0.25\n"
    )

    def request(*words: str) -> Request:
        return cli.request_of(cli.parser().parse_args(["run", "--config", str(tmp_path / "x.toml"), *words]))

    plain = request()
    assert (plain.methods, plain.seeds, plain.profile) == (("csp",), (3,), "smoke")
    given = request("--methods", "all", "--profile", "quick", "--seeds", "1", "--tasks", "toy")
    assert len(given.methods) > 1 and given.profile == "quick" and given.seeds == (0,) and len(given.tasks) == 2
    cell = make_plan(request("--set", "rl.decisions=60", "--set", "csp.clean=0.5")).cells[0]
    assert (cell.settings.rl.decisions, cell.settings.rl.batch) == (60, 8)
    assert (cell.config.clean, cell.config.schedule) == (0.5, "cosine")
    assert cli.request_of(cli.parser().parse_args(["run"])).profile == "quick"


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("1", (0,)), ("7", (0, 1, 2, 3, 4, 5, 6)), ("9", (0, 1, 2, 3, 4, 5, 6, 9, 10)), ("8,7", (8, 7)), ("7,", (7,))],
)
def test_a_number_of_seeds_leaves_out_those_that_defaults_were_tuned_on(text: str, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(text) == seeds


def test_a_task_sets_an_option_of_every_method_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    task = registry.task("toy/reach")
    changed = dataclasses.replace(
        task, settings={**task.settings, "method.z_bound": 2.0}, profiles={"smoke": {"method.clean": 0.25}}
    )
    monkeypatch.setattr(registry, "task", lambda name: changed)
    words = ["run", "--profile", "smoke", "--tasks", "toy/reach", "--methods", "bc,csp,rlpd", "--set", "csp.z_bound=3"]
    cells = {c.method: c.config for c in make_plan(cli.request_of(cli.parser().parse_args(words))).cells}
    assert cells["bc"].z_bound == 2.0 and cells["csp"].z_bound == 3.0 and cells["csp"].clean == 0.25
    changed = dataclasses.replace(task, settings={"method.zbound": 2.0})
    with pytest.raises(InputError, match=r"toy/reach: no method has the option method\.zbound.*z_bound"):
        make_plan(cli.request_of(cli.parser().parse_args(words)))


@pytest.mark.parametrize("name", ["qick", "published"])
@pytest.mark.parametrize("where", ["method", "its options", "suite"])
def test_a_profile_that_does_not_exist_is_refused(where: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor may a preset have settings of its own: nothing would read them."""
    if where == "method":
        monkeypatch.setattr(registry.methods()["bc"], "profiles", (name,), raising=False)
    elif where == "its options":
        monkeypatch.setattr(registry.methods()["csp"].Config, "profiles", {name: {}})
    else:
        task = dataclasses.replace(registry.task("toy/reach"), profiles={name: {"rl.batch": 8}})
        monkeypatch.setattr(registry, "tasks", lambda: {task.id: task})
    with pytest.raises(InputError, match=rf"(methods|envs)/.*unknown profile '{name}'"):
        make_plan(Request(("bc",), ("toy/reach",), (0,)))
    with pytest.raises(InputError, match=f"unknown profile '{name}'"):
        cli.command_list(cli.parser().parse_args(["list"]))


def test_a_file_may_be_called_as_an_option_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("--set").write_text("rl.decisions = 777\n")
    words = ["run", "--tasks", "toy/reach", "--methods", "bc", "--config", "./--set", "--set", "rl.random_decisions=50"]
    (cell, *_) = make_plan(cli.request_of(cli.parser().parse_args(words))).cells
    assert (cell.settings.rl.decisions, cell.settings.rl.random_decisions) == (777, 50)


def test_the_published_comparison_keeps_its_bounds_on_every_task() -> None:
    words = ["run", "--profile", "paper", "--methods", "all", "--tasks", "navigation"]
    configs = [c.config for c in make_plan(cli.request_of(cli.parser().parse_args(words))).cells]
    assert len(configs) > 35
    for option, published in {"z_bound": 1.5, "correction_bound": 0.2, "action_bound": 1.0}.items():
        assert {getattr(c, option, published) for c in configs} == {published}


def test_a_mistyped_key_is_told_the_nearest_one_of_its_own_section_first() -> None:
    names = ("spirl.bound", "residual.correction_bound", "csp_tmrl.exponent", "csp.end")
    assert cfg.nearest("residual.bound", names) == " (did you mean 'residual.correction_bound'?)"
    assert cfg.nearest("csp.exponent", names) == " (did you mean 'csp_tmrl.exponent'?)"
    assert cfg.nearest("zzz", names) == ""


@pytest.mark.parametrize(
    "kind", [Settings, *(m.Config for m in registry.methods().values())], ids=lambda k: k.__module__
)
def test_every_default_is_shown_as_set_takes_it(kind: type[Any]) -> None:
    for key, field in cfg.keys(kind).items():
        assert cfg.override(kind(), {key: cfg.shown(field.default)}, "test") == kind(), key


def test_settings_survive_json() -> None:
    settings = cfg.override(Settings(), {"rl.actor": "32,16", "demos.count": "auto", "rl.critic_norm": "no"}, "test")
    assert settings.rl.actor == (32, 16) and settings.demos.count is None and not settings.rl.critic_norm
    assert cfg.from_dict(Settings, json.loads(json.dumps(cfg.as_dict(settings))), "test") == settings


def test_stages_are_shared_and_keys_depend_on_what_goes_in() -> None:
    def keys(*words: str) -> dict[tuple[str, str], str]:
        request = cli.request_of(cli.parser().parse_args(["run", "--profile", "smoke", "--tasks", "toy/reach", *words]))
        return {(c.method, u.stage): u.key for c in make_plan(request).cells for u in c.units}

    plain, changed = keys(), keys("--set", "csp_tmrl.sigma_bound=0.5")
    assert plain["csp", "coverage"] == plain["csp_tmrl", "coverage"]
    assert plain["bc", "pretrain"] != plain["csp", "pretrain"] != plain["posterior_bc", "pretrain"]
    moved = {k for k in plain if plain[k] != changed[k]}
    assert moved == {("csp_tmrl", "finetune")}
    moved = {stage for (m, stage), key in keys("--set", "pretrain.steps=7").items() if plain[m, stage] != key}
    assert moved == {"pretrain", "coverage", "finetune"}


def test_paper_profile_has_the_published_settings() -> None:
    words = ["run", "--profile", "paper", "--methods", "csp,posterior_bc,rlpd,residual"]
    words += ["--tasks", "navigation/pointmaze-giant"]
    cells = make_plan(cli.request_of(cli.parser().parse_args(words))).cells
    settings = cells[0].settings
    policy, rl = settings.policy, settings.rl
    assert (policy.chunk, policy.execute, policy.architecture, policy.blocks) == (32, 5, "transformer", 4)
    assert not policy.normalise and policy.fourier == 0 and policy.euler_steps == 10
    assert policy.context == "observation"
    assert (settings.pretrain.steps, settings.pretrain.batch, settings.pretrain.learning_rate) == (200_000, 256, 3e-4)
    assert rl.actor == (256,) * 4 and rl.critic == (256,) * 3 and rl.critics == 5 and rl.activation == "mish"
    assert (rl.discount, rl.polyak, rl.learning_rate, rl.batch) == (0.995, 0.005, 3e-4, 256)
    assert (rl.envs, rl.random_decisions, rl.updates_per_decision) == (4, 2000, 0.25)
    assert not rl.entropy_in_target and not rl.bounded_value
    noised = next(c.config for c in cells if c.method == "csp")
    assert (noised.noise, noised.end, noised.sigma_training, noised.raw) == ("linear_beta", 0.364, "uniform", True)
    spread = next(c.config for c in cells if c.method == "posterior_bc")
    assert (spread.members, spread.width, spread.alpha) == (10, 512, 1.0)
    assert next(c.config for c in cells if c.method == "rlpd").action == "free"
    assert next(c.config for c in cells if c.method == "residual").correction == "free"


def test_published_preset_is_the_published_comparison() -> None:
    request = cli.request_of(cli.parser().parse_args(["run", "--preset", "published"]))
    assert set(request.tasks) == {"navigation/pointmaze-giant", "manipspace/cube-single-shifted"}
    assert len(request.methods) == 7 and len(request.seeds) == 10 and request.profile == "paper"
    for words in (["--preset", "publshed"], ["--preset", "published", "--profile", "quick"]):
        with pytest.raises(InputError, match="published"):
            cli.request_of(cli.parser().parse_args(["run", *words]))


@pytest.mark.parametrize(
    "path", sorted((ROOT / "results/reference").rglob("*.toml")), ids=lambda path: path.parent.name
)
def test_configurations_that_references_were_made_with_still_hold(path: Path) -> None:
    assert make_plan(cli.request_of(cli.parser().parse_args(["run", "--config", str(path)]))).cells


def test_preset_of_the_command_line_wins_over_the_profile_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('[run]\nprofile = "quick"\n')
    words = ["run", "--config", str(tmp_path / "run.toml"), "--preset", "published"]
    assert cli.request_of(cli.parser().parse_args(words)).profile == "paper"
