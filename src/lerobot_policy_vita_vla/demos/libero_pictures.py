"""Drawing a LIBERO scene: with a renderer of its own, at a named quality."""

from __future__ import annotations

import weakref

import mujoco
import numpy as np

from lerobot_policy_vita_vla.demos.culling import Culling
from lerobot_policy_vita_vla.demos.libero_install import cache_folder
from lerobot_policy_vita_vla.demos.libero_meshes import thin_visual_meshes
from lerobot_policy_vita_vla.demos.libero_suite import CAMERAS, LIBERO_QUALITIES


class Painter:
    """Draws the cameras of one compiled scene.

    Args:
        model: The scene; its visual meshes are thinned in place where the quality asks for it.
        data: The state to draw.
        size: Height and width of pictures, pixels.
        quality: Key of `libero_suite.LIBERO_QUALITIES`.
    """

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, size: int, quality: str):
        settings = LIBERO_QUALITIES[quality]
        model.vis.quality.offsamples = settings.samples
        if settings.keep_faces < 1:
            thin_visual_meshes(model, settings.keep_faces, cache_folder() / "meshes")
        self._data = data
        self._renderer = mujoco.Renderer(model, size, size)
        self._options = mujoco.MjvOption()
        self._options.geomgroup[0] = 0  # collision shapes, as robosuite hides them
        self._culling = Culling(model)
        self._release = weakref.finalize(self, _free, self._renderer)

    def draw(self) -> dict[str, np.ndarray]:
        """Camera name -> picture (size, size, 3) uint8, upside down, as robosuite returns it."""
        pictures = {}
        for name, camera in CAMERAS.items():
            self._culling.update_scene(self._renderer.scene, self._data, camera, self._options)
            pictures[name] = np.flipud(self._renderer.render())
        return pictures

    def close(self) -> None:
        """Free the drawing context."""
        self._release()


def _free(renderer: mujoco.Renderer) -> None:
    # MuJoCo frees in whichever context is current; drawing makes this renderer's current.
    renderer.render()
    renderer.close()
