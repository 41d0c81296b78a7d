"""What the methods must equal, in closed form or bit for bit, and what every registered method must satisfy."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench import config as cfg
from bench import nets, policies, registry, seeding
from bench.evaluate import rollouts
from bench.plan import make_plan
from bench.pretraining import PretrainConfig, Trainer, chunk_table
from bench.settings import Request
from bench.stages.pretrain import load
from bench.stats import wilson
from bench.steering import decode, frozen
from bench.store import Entry
from bench.types import Agent, Demos, Dims, InputError, Progress, Task
from methods import bc, csp, csp_tmrl, posterior_bc, residual, rlpd

SMALL = nets.PolicyConfig(chunk=4, execute=4, width=32, blocks=1, euler_steps=4)
SHORT = PretrainConfig(steps=40, batch=32)
FAST_POSTERIOR = {"members": 3, "width": 16, "steps": 10, "batch": 16}


def toy_demos(name: str = "toy/reach", n: int = 40) -> tuple[Task, Demos]:
    task = registry.task(name)
    return task, registry.suite_of(task).demos(task, n, np.random.default_rng(0))


def train(
    module: Any, folder: Path, policy: nets.PolicyConfig = SMALL, budget: PretrainConfig = SHORT, **options: Any
) -> policies.FlowPolicy:
    task, demos = toy_demos()
    config = cfg.override(module.Config(), options, "test")
    return module.pretrain(demos, config, Trainer(task, demos, policy, budget, seed=3, folder=folder))


def inputs(policy: policies.BasePolicy, batch: int = 16, sigma: float = 0.0) -> list[np.ndarray]:
    rng, d = np.random.default_rng(1), policy.dims
    shapes = [(batch, d.state), (batch, d.context), (batch, *policy.latent)]
    s, c, z = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    eps = rng.standard_normal((batch, d.context)).astype(np.float32)
    return [s, c, z, np.full(batch, sigma, np.float32), eps]


@pytest.mark.parametrize("architecture", ["mlp", "transformer"])
def test_csp_told_zero_noise_is_bc_bit_for_bit(tmp_path: Path, architecture: str) -> None:
    net = dataclasses.replace(SMALL, architecture=architecture)
    plain = train(bc, tmp_path / "a", net)
    told = train(csp, tmp_path / "b", net, sigma_training="zero")
    weights = told.state_dict()
    for name, value in plain.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert np.array_equal(plain.act(*inputs(plain)), told.act(*inputs(told)))


def test_csp_with_noise_differs_from_bc(tmp_path: Path) -> None:
    plain, told = train(bc, tmp_path / "a"), train(csp, tmp_path / "b")
    assert not np.array_equal(plain.act(*inputs(plain)), told.act(*inputs(told)))


def test_posterior_without_spread_is_bc_bit_for_bit(tmp_path: Path) -> None:
    plain = train(bc, tmp_path / "a")
    none = train(posterior_bc, tmp_path / "b", alpha=0.0, **FAST_POSTERIOR)
    some = train(posterior_bc, tmp_path / "c", alpha=1.0, **FAST_POSTERIOR)
    assert np.array_equal(plain.act(*inputs(plain)), none.act(*inputs(none)))
    assert not np.array_equal(plain.act(*inputs(plain)), some.act(*inputs(some)))


def test_whole_observation_as_context_changes_bc_by_no_bit(tmp_path: Path) -> None:
    raw = dataclasses.replace(SMALL, normalise=False)  # a mean over more columns is rounded in another way
    plain = train(bc, tmp_path / "a", raw)
    whole = train(bc, tmp_path / "b", dataclasses.replace(raw, context="observation"))
    s, c, *more = inputs(plain)
    assert np.array_equal(plain.act(s, c, *more), whole.act(s[:, :0], np.concatenate([s, c], axis=1), *more))


def test_whole_observation_as_context_is_noised_and_found_again_in_the_file(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, context="observation")
    policy = train(csp, tmp_path, config)
    assert policy.noise is not None and policy.noise.mask == (True,) * 4 and policy.dims.state == 0
    policy.save(tmp_path)
    loaded = policies.load(tmp_path)
    task = registry.task("toy/reach")
    assert task.split(loaded.dims.context_keys) == nets.split(task, config)
    assert nets.split(task, config).context_keys == ("position", "goal")
    assert task.split({"goal": 2}) == task


def test_csp_at_pure_noise_ignores_the_context(tmp_path: Path) -> None:
    for shape in ("linear_beta", "cosine", "linear"):
        policy = train(csp, tmp_path / shape, noise=shape, end=0.0)
        s, c, z, sigma, eps = inputs(policy, sigma=1.0)
        assert np.array_equal(policy.act(s, c, z, sigma, eps), policy.act(s, c * 7 + 2, z, sigma, eps)), shape
        half = np.full_like(sigma, 0.5)
        assert not np.array_equal(policy.act(s, c, z, half, eps), policy.act(s, c * 7 + 2, z, half, eps)), shape


def test_published_noise_schedule() -> None:
    """100 steps of linear β from 1e-4 to 0.02: the cumulative product is 0.364 at the end."""
    product = np.concatenate([[1.0], np.cumprod(1 - np.linspace(1e-4, 0.02, 100))])
    assert product[-1] == pytest.approx(csp.PUBLISHED_END, abs=5e-4)
    assert np.allclose(csp.alpha_bar("linear_beta", float(product[-1])), product, atol=1e-6)
    for shape in ("linear_beta", "cosine", "linear"):
        table = np.array(csp.alpha_bar(shape, 0.1))
        assert table[0] == 1.0 and table[-1] == 0.1 and (np.diff(table) < 0).all()


def test_corruption_has_the_stated_moments_and_mask() -> None:
    noise = nets.ContextNoise(csp.alpha_bar("linear", 0.0), (True, False))
    c, eps = torch.full((200_000, 2), 2.0), torch.randn((200_000, 2), generator=torch.Generator().manual_seed(0))
    noised = noise.corrupt(c, torch.full((200_000,), 0.75), eps)
    assert noised[:, 0].mean().item() == pytest.approx(2.0 * math.sqrt(0.25), abs=0.01)
    assert noised[:, 0].var().item() == pytest.approx(0.75, abs=0.01)
    assert torch.equal(noised[:, 1], c[:, 1])


def test_noised_context_keys() -> None:
    dims = Dims(2, 5, 2, 4, {"goal": 2, "cube_pos": 3})
    assert csp.context_noise(csp.Pretraining(noised=("goal",)), dims).mask == (True, True, False, False, False)


def test_sigma_schedules() -> None:
    def sigma(schedule: str, fraction: float, success: float = 0.0) -> float:
        config = csp.Config(schedule=schedule, start=0.8, stop=0.2, length=0.5)
        return csp.scheduled_sigma(config, Progress(fraction, success, base_sigma=0.3))

    for schedule in ("linear", "cosine", "exponential"):
        assert sigma(schedule, 0.0) == pytest.approx(0.8)
        assert sigma(schedule, 0.5) == pytest.approx(0.2)
        assert sigma(schedule, 1.0) == pytest.approx(0.2)
    assert sigma("constant", 0.9) == 0.8
    assert sigma("linear", 0.25) == pytest.approx(0.5)
    assert sigma("cosine", 0.125) == pytest.approx(0.8 - 0.6 * (0.5 - 0.5 * math.cos(math.pi / 4)))
    assert sigma("exponential", 0.25) == pytest.approx(0.8 - 0.6 * (1 - math.exp(-2.5)) / (1 - math.exp(-5)))
    assert sigma("success", 0.9, success=0.25) == pytest.approx(0.65)
    assert csp.scheduled_sigma(csp.Config(), Progress(0.4, 0.0, base_sigma=0.3)) == 0.3


def test_flow_recovers_a_known_conditional_mixture(tmp_path: Path) -> None:
    """At c = 1 the action is −0.5 with probability 1/4, else 0.5; at c = −1 it is 0."""
    rng = np.random.default_rng(0)
    c = rng.choice([-1.0, 1.0], (4000, 1)).astype(np.float32)
    branch = np.where(rng.random((4000, 1)) < 0.25, -0.5, 0.5)
    a = np.where(c > 0, branch, 0.0) + 0.05 * rng.standard_normal((4000, 1))
    demos = Demos(
        {"position": np.zeros((4000, 1), np.float32), "goal": c}, a.astype(np.float32), np.arange(1, 4001), c[:, 0] > 0
    )
    task = dataclasses.replace(registry.task("toy/reach"), position_keys=())
    net = nets.PolicyConfig(chunk=1, execute=1, width=64, blocks=2, euler_steps=20)
    trainer = Trainer(task, demos, net, PretrainConfig(steps=1500, batch=256, learning_rate=2e-3), 0, tmp_path)
    policy = bc.pretrain(demos, bc.Config(), trainer)
    z = np.random.default_rng(1).standard_normal((2000, 1, 1)).astype(np.float32)
    zero = np.zeros((2000, 1), np.float32)

    def sample(context: float) -> np.ndarray:
        return policy.act(zero, zero + context, z, zero[:, 0], zero)[:, 0, 0]

    low = sample(1.0) < 0
    assert low.mean() == pytest.approx(0.25, abs=0.04)
    assert np.median(sample(1.0)[~low]) == pytest.approx(0.5, abs=0.04)
    assert np.median(sample(1.0)[low]) == pytest.approx(-0.5, abs=0.06)
    assert abs(sample(-1.0).mean()) < 0.04 and sample(-1.0).std() < 0.12


def success_on_toy(policy: policies.FlowPolicy, episodes: int = 150) -> int:
    task = registry.task("toy/reach")
    envs = [registry.suite_of(task).make(task, i) for i in range(10)]
    states = []
    for i in range(episodes):
        envs[0].reset(seed=i)
        states.append(envs[0].get_state())
    agent = Agent((), lambda action, noise, progress: frozen(noise, progress), frozen, lambda z: z)
    done = rollouts(envs, task, policy, agent, None, Progress(0, 0, 0), states, 1, 4, seed=5)
    return sum(e.success for e in done)


def test_csp_without_noise_is_not_worse_than_bc_in_distribution(tmp_path: Path) -> None:
    budget = PretrainConfig(steps=1200, batch=128, learning_rate=2e-3)
    net = dataclasses.replace(SMALL, width=64, blocks=2)
    plain = success_on_toy(train(bc, tmp_path / "a", net, budget))
    told = success_on_toy(train(csp, tmp_path / "b", net, budget))
    assert wilson(plain, 150)[0] > 0.5, plain
    assert wilson(told, 150)[1] >= wilson(plain, 150)[0], (told, plain)


def test_posterior_spread_is_larger_where_there_are_no_demonstrations(tmp_path: Path) -> None:
    task, demos = toy_demos()
    trainer = Trainer(task, demos, SMALL, SHORT, 0, tmp_path)
    resamples = posterior_bc.bootstrap(3, trainer)
    starts = {0, *demos.ends[:-1].tolist()}
    assert not torch.equal(resamples[0][:50], resamples[1][:50])
    for rows in resamples:  # whole episodes: a row follows its predecessor unless an episode begins
        jumps = rows[1:][rows[1:] != rows[:-1] + 1]
        assert {int(r) for r in jumps} <= starts
    spread = posterior_bc.posterior_std(posterior_bc.Config(members=4, width=32, steps=60), trainer)
    assert spread.shape == (len(demos.actions), 4, 2) and bool((spread > 0).all())


def test_chunk_table_stops_at_the_end_of_an_episode() -> None:
    index, weight = chunk_table(np.array([3, 5]), 3)
    assert index.tolist() == [[0, 1, 2], [1, 2, 2], [2, 2, 2], [3, 4, 4], [4, 4, 4]]
    assert weight.tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize("name", sorted(registry.methods()))
class TestEveryMethod:
    """The kit: a new file in methods/ is tested the moment it exists."""

    def policy(self, name: str, folder: Path) -> policies.BasePolicy:
        module = registry.method(name)
        options = getattr(module.Config, "profiles", {}).get("smoke", {})
        source = __import__(module.pretrain.__module__, fromlist=["Config"])
        return train(source, folder, **options)

    def test_policy_is_frozen_seeded_and_survives_saving(self, name: str, tmp_path: Path) -> None:
        before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        policy = self.policy(name, tmp_path / "a")
        again = self.policy(name, tmp_path / "b")
        assert torch.equal(before[0], torch.get_rng_state())
        assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
        assert not any(p.requires_grad for p in policy.parameters())
        chunk = policy.act(*inputs(policy, sigma=0.4))
        assert np.array_equal(chunk, again.act(*inputs(policy, sigma=0.4)))
        assert chunk.shape == (16, 4, 2) and np.abs(chunk).max() <= 1
        entry = Entry("pretrain", "k", tmp_path / "saved")
        entry.folder.mkdir()
        policy.save(entry.folder)
        entry.finish({"function": registry.method(name).pretrain.__module__}, {})
        assert np.array_equal(chunk, load(entry).act(*inputs(policy, sigma=0.4)))

    def test_agent_gives_inputs_of_the_right_shape(self, name: str, tmp_path: Path) -> None:
        module, policy = registry.method(name), self.policy(name, tmp_path)
        dims = dataclasses.replace(policy.dims, execute=3)
        agent = module.agent(module.Config(), dims)
        rng = np.random.default_rng(0)
        noise = {
            "z": rng.standard_normal((5, *policy.latent)).astype(np.float32),
            "eps": rng.standard_normal((5, dims.context)).astype(np.float32),
        }
        action = {g.name: g.decode(rng.uniform(-1, 1, (5, g.size)).astype(np.float32)) for g in agent.groups}
        progress = Progress(0.5, 0.5, base_sigma=0.25)
        for z, sigma, eps in (agent.inputs(action, noise, progress), agent.before(noise, progress)):
            assert z.shape == (5, *policy.latent) and sigma.shape == (5,) and eps.shape == (5, dims.context)
            assert (sigma >= 0).all() and (sigma <= 1).all()
        assert np.array_equal(agent.before(noise, progress)[0], noise["z"])
        here, there = (agent.inputs(action, noise, Progress(0.5, 0.5, base_sigma)) for base_sigma in (0.25, 0.75))
        assert agent.selects_sigma == any(not np.array_equal(a, b) for a, b in zip(here, there, strict=True))
        if agent.correct is not None:
            chunk = rng.uniform(-1, 1, (5, 4, 2)).astype(np.float32)
            assert agent.correct(chunk, action).shape == chunk.shape and np.abs(agent.correct(chunk, action)).max() <= 1

    def test_demonstrations_are_encoded_as_actions_that_repeat_them(self, name: str, tmp_path: Path) -> None:
        module, policy = registry.method(name), self.policy(name, tmp_path)
        agent = module.agent(module.Config(), dataclasses.replace(policy.dims, execute=4))
        z = np.random.default_rng(0).standard_normal((5, *policy.latent)).astype(np.float32) / 4
        z = np.repeat(z[:, :1], z.shape[1], axis=1) if z.ndim == 3 else z
        try:
            encoded = agent.encode(z)
        except InputError as error:
            assert "rl.demo_fraction" in str(error)
            return
        assert encoded.shape == (5, sum(g.size for g in agent.groups)) and np.abs(encoded).max() <= 1
        noise = {"z": np.zeros_like(z), "eps": np.zeros((5, policy.dims.context), np.float32)}
        repeated, sigma, _ = agent.inputs(decode(agent, encoded), noise, Progress(0.5, 0.5, base_sigma=0.0))
        assert np.allclose(repeated, z, atol=1e-6) and (sigma == 0).all()

    def test_every_option_is_described(self, name: str, tmp_path: Path) -> None:
        module = registry.method(name)
        assert module.paper and module.__doc__
        for key, field in cfg.keys(module.Config).items():
            assert field.metadata.get("help"), key


@pytest.mark.parametrize(
    ("start", "bound", "exponent", "sigma"),
    [
        (None, 1.0, 1.0, [0.0, 0.125, 0.25, 0.625, 1.0]),
        (0.5, 1.0, 1.0, [0.0, 0.25, 0.5, 0.75, 1.0]),  # published: linear
        (0.0, 0.8, 1.0, [0.0, 0.0, 0.0, 0.4, 0.8]),
        (0.9, 0.2, 1.0, [0.0, 0.1, 0.2, 0.2, 0.2]),
        (0.5, 1.0, 3.0, [0.0, 0.4375, 0.5, 0.5625, 1.0]),
        (0.0, 0.8, 3.0, [0.0, 0.0, 0.0, 0.1, 0.8]),
    ],
)
def test_the_middle_of_the_agents_range_is_where_sigma_starts(
    start: float | None, bound: float, exponent: float, sigma: list[float]
) -> None:
    choice = np.linspace(-1, 1, 5, dtype=np.float32)
    config = csp_tmrl.Config(start=start, sigma_bound=bound, exponent=exponent)
    chosen = csp_tmrl.chosen_sigma(config, choice, Progress(0.0, 0.0, base_sigma=0.25))
    assert chosen.dtype == np.float32 and np.allclose(chosen, sigma)


@pytest.mark.parametrize("setter", ["agent", "random", "constant"])
def test_sigma_of_the_agent_and_of_its_controls(setter: str) -> None:
    dims, batch = Dims(2, 3, 2, 4), 4000
    config = csp_tmrl.Config(sigma=setter, sigma_bound=0.8, start=0.4, exponent=1.0, learn_eps=True)
    agent = csp_tmrl.agent(config, dims)
    assert [g.name for g in agent.groups] == ["z", "sigma", "eps"][:: 1 if setter == "agent" else 2]
    rng = np.random.default_rng(0)
    noise = {"z": rng.standard_normal((batch, 4, 2)), "eps": rng.standard_normal((batch, 3))}
    action = decode(agent, np.full((batch, sum(g.size for g in agent.groups)), 0.5, np.float32))
    sigma = agent.inputs(action, noise, Progress(0.5, 0.5, 0.25))[1]
    if setter == "random":
        assert sigma.min() >= 0 and sigma.max() <= 0.8
        assert np.quantile(sigma, [0.25, 0.5, 0.75]) == pytest.approx([0.2, 0.4, 0.6], abs=0.03)
    else:
        assert np.allclose(sigma, {"agent": 0.6, "constant": 0.8}[setter])
    z = np.zeros((5, 4, 2), np.float32)
    if setter == "agent":
        assert agent.encode(z).shape == (5, sum(g.size for g in agent.groups))
    else:
        with pytest.raises(InputError, match=r"rl\.demo_fraction"):
            agent.encode(z)


def test_csp_and_csp_tmrl_share_their_pretraining() -> None:
    assert csp_tmrl.pretrain is csp.pretrain
    assert cfg.part(csp.Config(), "pretrain") == cfg.part(csp_tmrl.Config(), "pretrain")


def test_children_of_a_seed_are_independent() -> None:
    assert seeding.child(0, "a", 1) == seeding.child(0, "a", 1)
    assert len({seeding.child(s, *n) for s in (0, 1) for n in (("a", 1), ("a", 2), ("b", 1), ("a",), ("a1",))}) == 10


def test_inversion_finds_the_noise_that_repeats_a_chunk(tmp_path: Path) -> None:
    policy = train(bc, tmp_path, budget=PretrainConfig(steps=300, batch=64))
    s, c, z, sigma, eps = inputs(policy)
    s, c, z = 0.3 * s, 0.3 * c, 0.3 * z  # away from the action bounds, which cannot be inverted
    chunk = policy.act(s, c, z, sigma, eps)
    inside = np.abs(chunk).max(axis=(1, 2)) < 1
    assert inside.sum() > 4
    assert np.allclose(policy.invert(s, c, chunk)[inside], z[inside], atol=0.02)


def test_a_correction_moves_executed_steps_alone_and_stays_inside() -> None:
    dims = Dims(3, 2, 2, 4, execute=2)
    chunk = np.float32([[[0.0, 0.9], [0.2, 0.0], [0.1, 0.1], [0.1, 0.1]]])
    for correction, delta, want in [
        ("held", [0.25, 0.5], [[0.25, 1.0], [0.45, 0.5]]),
        ("free", [0.25, 0.5, -0.5, 0.0], [[0.25, 1.0], [-0.3, 0.0]]),
    ]:
        agent = residual.agent(residual.Config(correction_bound=0.5, correction=correction), dims)
        assert [g.size for g in agent.groups] == [len(delta)] and agent.correct is not None
        corrected = agent.correct(chunk, {"correction": np.float32([delta])})
        assert np.allclose(corrected[:, :2], want) and np.array_equal(corrected[:, 2:], chunk[:, 2:])


def test_actions_from_a_wide_range_are_clipped_and_repeat_demonstrations() -> None:
    dims = Dims(3, 2, 2, 4, execute=4)
    agent = rlpd.agent(rlpd.Config(action_bound=4.0), dims)
    (group,) = agent.groups
    noise, progress = {"eps": np.zeros((1, 2), np.float32)}, Progress(0.0, 0.0, 0.0)
    demonstrated = np.full((1, 4, 2), [0.5, -1.0], np.float32)
    for u, want in [(agent.encode(demonstrated), demonstrated), (np.float32([[1.0, -0.5]]), [[[1.0, -1.0]] * 4])]:
        action = {"action": group.decode(u)}
        assert np.allclose(agent.inputs(action, noise, progress)[0], want, atol=1e-5)


def test_options_that_define_a_method_are_recorded_and_not_overruled() -> None:
    def cells(*names: str, **values: Any) -> list[Any]:
        return list(make_plan(Request(names, ("toy/reach",), (0,), "smoke", command=values)).cells)

    assert cells("rlpd")[0].record()["config"]["rl.demo_fraction"] == 0.5
    assert cells("bc")[0].record()["config"]["rl.demo_fraction"] == 0.0
    with pytest.raises(InputError, match="rlpd is defined by"):
        cells("rlpd", **{"rl.demo_fraction": 0.25})
    with pytest.raises(InputError, match="cannot repeat a chunk"):
        cells("residual", **{"rl.demo_fraction": 0.25})
