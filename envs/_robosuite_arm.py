"""A Panda in a robosuite environment, stepped by robosuite (`StockArm`) or by the compiled loop (`CompiledArm`).

Both reset robosuite's own environment, of which a process has one for each name: it takes 110 MB and seconds to build.
The state of either can be given to the other. Importing this imports no simulator.
"""

from __future__ import annotations

import copy
import logging
import os
import threading
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bench.seeding import fence
from bench.types import STEPPING, State
from envs._camera import Camera, View

Array = npt.NDArray[Any]
Watch = Callable[[Any], tuple[Array, float]]  # MjData → a view (1,) of it, and the limit that means success if exceeded

CONTROL_HZ = 20.0
# The shapes that collide (group 0) and the floor (1): what is seen in robosuite has 182,000 faces, and a picture of it
# takes 50 ms instead of 6.
VIEW = View(centre=(-0.1, 0.0, 1.0), distance=1.5, azimuth=150.0, elevation=-28.0, groups=(0, 1))
# robosuite's colours of these shapes → those of pictures: table, arm, gripper, objects.
COLOURS = {
    (0.5, 0.5, 0.0): (0.80, 0.74, 0.64), (0.0, 0.5, 0.0): (0.85, 0.87, 0.90), (0.0, 0.0, 0.5): (0.30, 0.33, 0.38),
    (0.5, 0.0, 0.0): (0.85, 0.20, 0.15),
}  # fmt: skip


@cache
def import_robosuite() -> Any:
    """robosuite, imported in silence and without what it does to the environment's variables."""
    logging.getLogger("robosuite_logs").addFilter(lambda record: record.levelno >= logging.ERROR)
    backend = os.environ.get("MUJOCO_GL")
    with warnings.catch_warnings(), fence(0):
        warnings.simplefilter("ignore")
        import robosuite
        from robosuite.utils import control_utils, transform_utils

        from bench.compile_cache import mend
    os.environ.pop("MUJOCO_GL", None)
    if backend is not None:
        os.environ["MUJOCO_GL"] = backend
    mend([*vars(control_utils).values(), *vars(transform_utils).values()])
    return robosuite


def make_simulation(name: str, **options: Any) -> Any:
    """A robosuite environment with one Panda. What it draws at construction (object sizes) is the same every time."""
    suite = import_robosuite()
    defaults = {
        "robots": "Panda",
        "controller_configs": suite.load_composite_controller_config(robot="Panda"),
        "use_camera_obs": False,
        "has_offscreen_renderer": False,
        "renderer": "mujoco",  # none; the default builds a viewer
        "control_freq": CONTROL_HZ,
        "ignore_done": True,
        "hard_reset": False,
        "seed": 0,
    }
    with fence(0):
        simulation = suite.make(name, **{**defaults, **options})
    for observable in simulation.observation_names:
        simulation.modify_observable(observable, "enabled", False)
    return simulation


def places(model: Any) -> Array:
    """Where bodies stand in their parents (nbody, 7); robosuite's Door and PickPlace change that at resets."""
    return np.concatenate([model.body_pos, model.body_quat], axis=1)


def set_places(model: Any, values: Array) -> None:
    """Move bodies, (nbody, 7)."""
    model.body_pos[:], model.body_quat[:] = values[:, :3], values[:, 3:]


@dataclass
class Simulator:
    """What all arms in environments of one robosuite name share.

    The stock arm that acts is the owner; the others keep their state aside until their turn, which costs 0.1 ms.
    """

    simulation: Any
    owner: StockArm | None = None
    lock: Any = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self.simulation.reset()  # for fresh controllers
        self.robot = self.simulation.robots[0]
        self.model = self.simulation.sim.model._model
        self.data = self.simulation.sim.data._data
        kinds = (np.ndarray, np.generic, bool, int, float)
        parts = self.robot.part_controllers.items()
        held = ((part, key) for part, one in parts for key, value in vars(one).items() if isinstance(value, kinds))
        self.held = tuple(held)  # part and attribute of every number that fresh controllers hold
        self.usual = places(self.model)

    @cached_property
    def uncovered(self) -> str | None:
        """Why the compiled loop does not cover this environment."""
        try:
            from envs._osc_loop import load_kernel, supported

            reason = supported(self.simulation)
            if reason is None:
                load_kernel()
                self.reduced  # noqa: B018  # built here, so that a failure is a reason too
            return reason
        except (ImportError, AttributeError, OSError, RuntimeError, ValueError) as failure:
            return f"it cannot be built here ({failure})"

    @cached_property
    def reduced(self) -> Any:
        """The model of the compiled loops."""
        from envs._osc_loop import reduced_model

        model = reduced_model(self.simulation)
        set_places(model, self.usual)
        return model

    def camera(self) -> Camera:
        """Makes pictures of the arms of this name. Raises RuntimeError where nothing can be drawn."""
        covered = self.uncovered is None
        model = copy.copy(self.reduced if covered else self.model)
        for colour in model.geom_rgba:
            if (plain := COLOURS.get(tuple(colour[:3].tolist()))) is not None:
                colour[:3] = plain
        return Camera(model, VIEW if covered else replace(VIEW, groups=(0,)))

    def reset(self, rng: np.random.Generator, place: Callable[[], None]) -> None:
        """robosuite's reset with objects where `place` puts them. The owner puts its state aside before."""
        self.simulation.rng = rng  # for the noise of the arm's first joint positions, 0.02 rad
        self.simulation.reset()
        place()
        self.data.qacc_warmstart[:] = 0.0  # comes from where robosuite itself had put the objects
        self.simulation.sim.forward()
        self.set_controllers(self.controllers())  # cuts arrays that robosuite shares between attributes

    def controllers(self) -> State:
        """Goals, and what the controllers computed and use again. What they hold only later is computed before use."""
        parts = self.robot.part_controllers
        return {f"controller.{part}.{name}": np.array(getattr(parts[part], name)) for part, name in self.held}

    def set_controllers(self, state: State) -> None:
        """Give the controllers what `controllers` returned."""
        for part, name in self.held:
            value = state[f"controller.{part}.{name}"]
            setattr(self.robot.part_controllers[part], name, value.copy() if value.ndim else value.item())

    @property
    def gripper(self) -> Any:
        return self.robot.gripper[self.robot.arms[0]]


@cache
def simulator(name: str) -> Simulator:
    """The simulator that all arms of a name share."""
    return Simulator(make_simulation(name))


class Arm(Protocol):
    """What steps, on behalf of an environment."""

    data: Any  # mujoco.MjData, which the environment reads its observations from
    stepping: str  # what it is, whatever was asked for

    def turn(self) -> AbstractContextManager[Any]:
        """Encloses steps or a reset and the reading of `data` after them."""

    def reset(self, rng: np.random.Generator, place: Callable[[], None]) -> None: ...

    def step(self, actions: Array) -> tuple[int, bool]:
        """Control steps with actions (E, 7) in [-1, 1] until they end or one succeeds: how many, and success."""

    def ask(self, question: Callable[[], Any]) -> Any:
        """The answer of robosuite's environment, about this arm's simulator."""

    def get_state(self) -> State:
        """Simulator, gripper and controllers, and the places of bodies where a reset has changed them."""

    def set_state(self, state: State) -> None: ...


class StockArm:
    """robosuite's own step, without its observables, on the simulator that the arms of a name share."""

    stepping = "stock"

    def __init__(self, shared: Simulator) -> None:
        self._shared = shared
        self._aside: State | None = None  # this arm's state while another has the simulator
        self.data = shared.data

    def turn(self) -> AbstractContextManager[Any]:
        lock: AbstractContextManager[Any] = self._shared.lock  # till then the data are another arm's
        return lock

    def _take(self) -> None:
        """Become the simulator's owner."""
        dispossess(self._shared, self)
        self._shared.owner = self
        if self._aside is not None:
            self._restore(self._aside)
            self._aside = None

    def reset(self, rng: np.random.Generator, place: Callable[[], None]) -> None:
        with self._shared.lock:
            self._take()
            self._shared.reset(rng, place)

    def step(self, actions: Array) -> tuple[int, bool]:
        simulation = self._shared.simulation
        with self._shared.lock:
            self._take()
            for count, action in enumerate(actions, 1):
                for substep in range(int(simulation.control_timestep / simulation.model_timestep)):
                    simulation.sim.step1()
                    simulation._pre_action(action, policy_step=substep == 0)
                    simulation.sim.step2()
                if simulation._check_success():
                    return count, True
        return len(actions), False

    def ask(self, question: Callable[[], Any]) -> Any:
        with self._shared.lock:
            self._take()
            return question()

    def get_state(self) -> State:
        with self._shared.lock:
            if self._aside is not None:
                return {key: value.copy() for key, value in self._aside.items()}
            return self._state()

    def _state(self) -> State:
        import mujoco

        shared, kind = self._shared, mujoco.mjtState.mjSTATE_INTEGRATION
        physics = np.empty(mujoco.mj_stateSize(shared.model, kind))
        mujoco.mj_getState(shared.model, shared.data, physics, kind)
        where = places(shared.model)
        moved = {} if np.array_equal(where, shared.usual) else {"places": where}
        return {"physics": physics, "gripper": shared.gripper.current_action.copy(), **shared.controllers(), **moved}

    def set_state(self, state: State) -> None:
        with self._shared.lock:
            self._take()
            self._restore(state)

    def _restore(self, state: State) -> None:
        import mujoco

        shared = self._shared
        set_places(shared.model, state.get("places", shared.usual))
        mujoco.mj_setState(shared.model, shared.data, state["physics"], mujoco.mjtState.mjSTATE_INTEGRATION)
        shared.gripper.current_action = state["gripper"].copy()
        shared.set_controllers(state)


def dispossess(shared: Simulator, newcomer: StockArm | None = None) -> None:
    """Let the owner of the simulator put its state aside, unless it is the newcomer itself."""
    if shared.owner is not None and shared.owner is not newcomer:
        shared.owner._aside = shared.owner._state()
        shared.owner = None


class CompiledArm:
    """The compiled loop; robosuite's environment is needed for resets and, without a `watch`, for its rule of success.

    With a `watch` a chunk of steps is one call that does not hold the interpreter's lock.
    """

    def __init__(self, shared: Simulator, fast: bool, watch: Watch | None = None) -> None:
        from envs._osc_loop import ArmLoop

        self._shared = shared
        self._watch = watch
        self.stepping = "fast" if fast else "strict"
        with shared.lock:
            self._loop = ArmLoop(shared, fast, watch)

    @property
    def data(self) -> Any:
        return self._loop.data

    def turn(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def reset(self, rng: np.random.Generator, place: Callable[[], None]) -> None:
        with self._shared.lock:
            dispossess(self._shared)
            self._shared.reset(rng, place)
            self._loop.load()

    def step(self, actions: Array) -> tuple[int, bool]:
        if self._watch is not None:
            return self._loop.step(actions), self._loop.ended
        for count, action in enumerate(actions, 1):
            self._loop.step(action[None])
            if self.ask(self._shared.simulation._check_success):
                return count, True
        return len(actions), False

    def ask(self, question: Callable[[], Any]) -> Any:
        holders = (self._shared.simulation, self._shared.robot)
        with self._shared.lock:
            own = holders[0].sim
            for holder in holders:
                holder.sim = self._loop.sim
            try:
                return question()
            finally:
                for holder in holders:
                    holder.sim = own

    def get_state(self) -> State:
        return self._loop.get_state()

    def set_state(self, state: State) -> None:
        self._loop.set_state(state)


def make_arm(shared: Simulator, stepping: str, watch: Watch | None = None) -> Arm:
    """An arm that steps as asked, or as robosuite does where the compiled loop does not cover its environment."""
    if stepping not in STEPPING:
        raise ValueError(f"stepping is {', '.join(STEPPING)}, not {stepping!r}")
    if stepping == "stock":
        return StockArm(shared)
    if shared.uncovered is not None:
        _say(f"robosuite's own, slow step is used for {type(shared.simulation).__name__}: {shared.uncovered}")
        return StockArm(shared)
    return CompiledArm(shared, stepping == "fast", watch)


@cache
def _say(text: str) -> None:
    """Warn, once for each text."""
    warnings.warn(text, stacklevel=2)
