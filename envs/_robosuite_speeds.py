"""What `bench perf` compares: control steps by robosuite, by the compiled loops, and by MuJoCo alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from bench.types import State
from envs._robosuite_arm import Array, CompiledArm, Simulator, StockArm, make_simulation

TASKS = ("Lift", "Stack", "PickPlaceCan", "NutAssemblySquare", "Door")
STEPS, CHUNK = 48, 8  # control steps from the same start again and again, and in a chunk


def speeds() -> Iterator[tuple[str, dict[str, Callable[[], int]]]]:
    """Name of the case, and what does some control steps in each way and returns how many; robosuite's own is first.

    Random actions from one start. The limit replays the torques of those actions with nothing between the simulator's
    steps, on the compiled loops' model.
    """
    for name in TASKS:
        shared = Simulator(make_simulation(name))
        for observable in shared.simulation.observation_names:
            shared.simulation.modify_observable(observable, "enabled", True)
        if shared.uncovered is None:
            yield f"robosuite {name}", _ways(shared)


def _ways(shared: Simulator) -> dict[str, Callable[[], int]]:
    actions = np.random.default_rng(0).uniform(-1, 1, (STEPS, 7))
    stock = StockArm(shared)
    stock.reset(np.random.default_rng(1), lambda: None)
    start = stock.get_state()

    def by_robosuite() -> int:
        stock.set_state(start)
        for action in actions:
            shared.simulation.step(action)
        return STEPS

    def compiled(fast: bool) -> Callable[[], int]:
        loop = CompiledArm(shared, fast)._loop

        def run() -> int:
            loop.set_state(start)
            for at in range(0, STEPS, CHUNK):
                loop.step(actions[at : at + CHUNK])
            return STEPS

        return run

    torques = _torques(shared, by_robosuite)
    return {
        "robosuite": by_robosuite, "strict": compiled(False), "fast": compiled(True),
        "MuJoCo alone": _replay(shared, start, torques),
    }  # fmt: skip


def _torques(shared: Simulator, run: Callable[[], int]) -> Array:
    """The control signals (T, nu) of every simulator step of a run."""
    found: list[Array] = []
    sim, own = shared.simulation.sim, shared.simulation.sim.step2

    def record() -> None:
        found.append(shared.data.ctrl.copy())
        own()

    sim.step2 = record
    try:
        run()
    finally:
        del sim.step2
    return np.array(found)


def _replay(shared: Simulator, start: State, torques: Array) -> Callable[[], int]:
    import mujoco
    from mujoco import rollout

    model: Any = shared.reduced
    data = mujoco.MjData(model)
    mujoco.mj_setState(model, data, start["physics"], mujoco.mjtState.mjSTATE_INTEGRATION)
    full = np.empty(mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_FULLPHYSICS))
    mujoco.mj_getState(model, data, full, mujoco.mjtState.mjSTATE_FULLPHYSICS)

    def run() -> int:
        rollout.rollout(model, [data], full[None], torques[None])
        return STEPS

    return run
