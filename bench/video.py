"""How an episode is shown: from above as a drawing, or as a film of pictures of the environment's own.

Suites import this, so it is cheap: what draws and what encodes is imported when something is drawn.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.types import FloatArray

Picture = npt.NDArray[np.uint8]  # (H, W, 3)
BACKENDS = ("egl", "osmesa")  # what MuJoCo draws with where there is no display, the quicker one first
PACKAGES = {"egl": "libegl1 libegl-mesa0 libgl1-mesa-dri", "osmesa": "libosmesa6"}  # of Debian
DISABLED = ("disable", "disabled", "off", "false", "0")  # values by which MuJoCo turns rendering off
PROBE = """
import mujoco
scene = '<mujoco><worldbody><light pos="0 0 3"/><geom size="1"/></worldbody></mujoco>'
model = mujoco.MjModel.from_xml_string(scene)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 16, 16) as renderer:
    renderer.update_scene(data)
    assert renderer.render().any(), "the picture is empty"
"""


@dataclass(frozen=True)
class TopView:
    """What lies beneath the path of an episode, seen from above; boxes are (x, y of a corner, width, height)."""

    path: str  # observation key; its first two entries are the place (x, y) of what the agent moves
    area: tuple[float, float, float, float]  # the box that is shown
    walls: tuple[tuple[float, float, float, float], ...] = ()
    goal: tuple[float, float] | None = None
    radius: float = 0.0  # distance to the goal that counts as success
    objects: tuple[str, ...] = ()  # observation keys of other places
    unit: str = ""  # of x and y


@cache
def backend() -> str | None:
    """What MuJoCo can draw with here: the value of MUJOCO_GL if that is set, else EGL or OSMesa; None: nothing.

    Tried in another process, because a broken graphics library ends the one that loads it.
    """
    wanted = os.environ.get("MUJOCO_GL", "").lower().strip()
    if wanted in DISABLED:
        return None
    return next((name for name in ((wanted,) if wanted else BACKENDS) if _draws(name)), None)


def _draws(name: str) -> bool:
    command, variables = [sys.executable, "-c", PROBE], os.environ | {"MUJOCO_GL": name}
    try:
        done = subprocess.run(command, env=variables, capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def lack() -> tuple[str, str]:
    """Where nothing can be drawn: why, and what mends it."""
    wanted = os.environ.get("MUJOCO_GL", "").lower().strip()
    if not wanted:
        return "MuJoCo finds nothing to draw with", f"apt-get install {', or '.join(PACKAGES.values())}"
    install = f"apt-get install {PACKAGES[wanted]}, or " if wanted in PACKAGES else ""
    return f"MuJoCo cannot draw with MUJOCO_GL={wanted}", f"{install}unset MUJOCO_GL"


def write_film(path: Path, pictures: Sequence[Picture], seconds: float) -> None:
    """An animated GIF that shows each picture so long, and the last for a second more.

    MLflow and browsers show it as they show any picture. OpenCV's wheel has no encoder of H.264, and that of WebM
    writes a complaint to the terminal for every film.
    """
    from PIL import Image

    images = [Image.fromarray(picture) for picture in pictures]
    shown = [round(1000 * seconds)] * len(images)
    shown[-1] += 1000
    images[0].save(path, "GIF", save_all=True, append_images=images[1:], duration=shown, loop=0)


def draw_path(
    path: Path, view: TopView, observations: Sequence[dict[str, FloatArray]], hz: float, success: bool, title: str
) -> None:
    """A PNG of the episode from above: walls, start, goal, the way coloured by time, and where it ended."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 5.2), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _draw_ground(axes, view)
    for key in view.objects:
        place = _places(observations, key)
        axes.plot(*place.T, color="tab:red", linewidth=1.5, zorder=3)
        axes.plot(*place[0], "s", color="tab:red", markersize=6, label=key, zorder=3)
    way = _places(observations, view.path)
    line = LineCollection(np.stack([way[:-1], way[1:]], axis=1), cmap="viridis", linewidth=2, zorder=4)
    line.set_array(np.arange(len(way) - 1) / hz)
    axes.add_collection(line)
    axes.plot(*way[0], "o", color="white", markeredgecolor="black", markersize=8, label="start", zorder=5)
    marker, size, label = ("*", 14, "success") if success else ("X", 9, "end, no success")
    axes.plot(*way[-1], marker, color="tab:orange", markeredgecolor="black", markersize=size, label=label, zorder=6)
    axes.set_title(title, fontsize=10)
    figure.colorbar(line, ax=axes, label="time, s", shrink=0.8)
    figure.legend(loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    figure.savefig(path, format="png")


def _draw_ground(axes: Any, view: TopView) -> None:
    """Walls, goal and the edges of what is shown."""
    from matplotlib.patches import Circle, Rectangle

    x, y, width, height = view.area
    axes.set(xlim=(x, x + width), ylim=(y, y + height), aspect="equal")
    axes.set_xlabel(f"x, {view.unit}" if view.unit else "x")
    axes.set_ylabel(f"y, {view.unit}" if view.unit else "y")
    for left, bottom, wide, high in view.walls:
        axes.add_patch(Rectangle((left, bottom), wide, high, color="0.75", linewidth=0))
    if view.goal is not None:
        axes.add_patch(Circle(view.goal, view.radius, color="tab:green", alpha=0.5, linewidth=0, label="goal"))


def _places(observations: Sequence[dict[str, FloatArray]], key: str) -> FloatArray:
    """(T + 1, 2)."""
    return np.array([observation[key][:2] for observation in observations], np.float64)
