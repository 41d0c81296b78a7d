"""The rollout loop: what an episode draws is its own."""

from __future__ import annotations

import numpy as np
import pytest

from bench import nets, policies, registry
from bench.evaluate import Act, rollouts
from bench.steering import SteeringConfig, steer_z, z_group
from bench.types import Agent, Arrays, Dims, PolicyInputs, Progress

TASK = registry.task("toy/reach")
DIMS = Dims(state=2, context=2, action=2, chunk=4, context_keys={"goal": 2})


def inputs(action: Arrays, noise: Arrays, progress: Progress) -> PolicyInputs:
    return steer_z(action["z"], DIMS, SteeringConfig()), np.zeros(len(action["z"]), np.float32), noise["eps"]


def before(noise: Arrays, progress: Progress) -> PolicyInputs:
    return noise["z"], np.zeros(len(noise["z"]), np.float32), noise["eps"]


@pytest.mark.parametrize("act", [None, lambda features, draws: np.stack([g.uniform(-1, 1, 2) for g in draws])])
def test_episodes_do_not_depend_on_each_other_nor_on_the_environments(act: Act) -> None:
    policy = policies.build(DIMS, nets.PolicyConfig(chunk=4, width=16, blocks=1, euler_steps=2), ((), ()), None, 0)
    agent = Agent((z_group(SteeringConfig(), DIMS),), inputs, before, lambda z: z)
    envs = [registry.suite_of(TASK).make(TASK, i) for i in range(4)]
    states = []
    for i in range(6):
        envs[0].reset(seed=i)
        states.append(envs[0].get_state())

    def episodes(count: int, chosen: list[int]) -> list[tuple[int, int, bool, int, bytes]]:
        found = rollouts(
            envs[:count], TASK, policy, agent, act, Progress(0.0, 0.0, 0.0), [states[i] for i in chosen], 2, 4, seed=3
        )
        return [(e.start, e.attempt, e.success, e.length, e.first_chunk.round(5).tobytes()) for e in found]

    alone = episodes(1, [0, 1, 2, 3, 4, 5])
    assert alone == episodes(4, [0, 1, 2, 3, 4, 5])
    assert alone[:6] == episodes(3, [0, 1, 2])
    assert len({chunk for *_, chunk in alone}) == 12
