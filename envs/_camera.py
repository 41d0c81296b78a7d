"""Pictures of a MuJoCo simulator without a display. Importing this imports no simulator.

`mujoco.Renderer` draws with what MUJOCO_GL said when mujoco was imported, which is too early to choose, and setting the
variable breaks later imports where the library is missing. So what draws is loaded here, by name.
"""

from __future__ import annotations

import atexit
import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.video import Picture, backend, lack

SIZE = 256  # pixels, width and height
BACKGROUND = 245  # grey where nothing is


@dataclass(frozen=True)
class View:
    """Where a camera stands and what it shows."""

    centre: tuple[float, float, float]  # metres, what it looks at
    distance: float  # metres, from there
    azimuth: float  # degrees: 0 looks along +x, 90 along +y
    elevation: float  # degrees, negative from above
    groups: tuple[int, ...]  # of geoms that are shown


class Camera:
    """Draws a model of its own, which it may change, in the positions of a simulator that it only reads.

    No multisampling, shadows and reflections: without a graphics card they take most of the time.
    """

    def __init__(self, model: Any, view: View) -> None:
        import mujoco

        name = backend()
        if name is None:
            raise RuntimeError("; ".join(lack()))
        model.vis.global_.offwidth = model.vis.global_.offheight = SIZE
        model.vis.quality.offsamples = 0
        self._mujoco, self._model, self._data = mujoco, model, mujoco.MjData(model)
        self._surface = importlib.import_module(f"mujoco.{name}").GLContext(SIZE, SIZE)
        atexit.register(self._free)  # before mujoco.egl ends the library, after which it complains
        self._surface.make_current()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        self._scene = mujoco.MjvScene(model, model.ngeom + 100)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = 0
        self._options, self._place = mujoco.MjvOption(), mujoco.MjvCamera()
        self._options.geomgroup[:], self._options.sitegroup[:] = 0, 0
        self._options.geomgroup[list(view.groups)] = 1
        self._place.lookat[:], self._place.distance = view.centre, view.distance
        self._place.azimuth, self._place.elevation = view.azimuth, view.elevation

    def _free(self) -> None:
        """At the end and not before: a context frees what is then current, which may be another camera's."""
        try:
            self._surface.make_current()
        except Exception:
            self._surface._context = None  # another library has ended the display, so nothing is left to be freed
            return
        self._context.free()
        self._surface.free()

    def picture(self, source: Any) -> Picture:
        """(SIZE, SIZE, 3) uint8 of the positions in `source`, a `mujoco.MjData`."""
        mujoco, whole = self._mujoco, self._mujoco.MjrRect(0, 0, SIZE, SIZE)
        self._data.qpos[:] = source.qpos
        mujoco.mj_fwdPosition(self._model, self._data)
        every = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(self._model, self._data, self._options, None, self._place, every, self._scene)
        self._surface.make_current()
        mujoco.mjr_render(whole, self._scene, self._context)
        picture, depth = np.empty((SIZE, SIZE, 3), np.uint8), np.empty((SIZE, SIZE), np.float32)
        mujoco.mjr_readPixels(picture, depth, whole, self._context)
        picture[depth == 1.0] = BACKGROUND
        return picture[::-1]
