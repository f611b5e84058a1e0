"""Drawing Meta-World scenes: one drawing context for all scenes of a task in a thread.

A context holds the task's meshes and textures on the drawing side. Making one costs as much as a hundred
pictures (0.2 to 0.3 s in software), so the scenes of a task, which differ in positions and colours only, take
turns with one.
"""

from __future__ import annotations

import threading
import weakref

import mujoco
import numpy as np

from lerobot_policy_vita_vla.demos.suite import CAMERA, RenderQuality

_shared: weakref.WeakValueDictionary[tuple, Drawing] = weakref.WeakValueDictionary()


class Drawing:
    """A drawing context and what is drawn with it.

    Freed with the last scene that holds it.

    Args:
        model: Any compiled scene of the task, at the quality to be drawn (`lighten`).
        quality: How pictures are drawn.
        size: Height and width of pictures, pixels.
    """

    def __init__(self, model: mujoco.MjModel, quality: RenderQuality, size: int):
        self._renderer = mujoco.Renderer(model, size, size)
        self._shadows = quality.shadows
        self._options, self._camera = mujoco.MjvOption(), mujoco.MjvCamera()
        self._camera.type, self._camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, model.camera(CAMERA).id
        # For a scene that is dropped without close(), and before the interpreter exits: freed later,
        # MuJoCo's drawing context complains with a traceback.
        self._release = weakref.finalize(self, _free, self._renderer)

    def draw(self, model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray:
        """The picture (size, size, 3) uint8 of one scene.

        Args:
            model: The scene's own: where its bodies and lights are, and what is hidden.
            data: Its state.
        """
        scene = self._renderer.scene
        # What `Renderer.update_scene` does, except that it knows the first scene's model only.
        mujoco.mjv_updateScene(
            model, data, self._options, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL, scene
        )
        if not self._shadows:
            scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
            scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        # LeRobot turns this camera's picture by 180 degrees.
        return np.flip(self._renderer.render(), (0, 1)).copy()


def shared_drawing(task: str, model: mujoco.MjModel, quality: RenderQuality, size: int) -> Drawing:
    """The drawing context for scenes of a task in this thread, made where there is none.

    Args:
        task: Whose scene ``model`` is; equal names mean equal meshes and textures.
        model: See `Drawing`.
        quality: See `Drawing`.
        size: See `Drawing`.
    """
    # A context can be current in one thread at a time.
    key = (task, quality, size, threading.get_ident())
    drawing = _shared.get(key)
    if drawing is None:
        drawing = _shared[key] = Drawing(model, quality, size)
    return drawing


def lighten(model: mujoco.MjModel, quality: RenderQuality) -> None:
    """Give a compiled scene, in place, the look of a quality."""
    if quality.native:
        return
    model.vis.quality.offsamples = quality.samples
    if not quality.shadows:
        model.vis.quality.shadowsize = 0
    for geom in range(model.ngeom):
        if _is_heavy_arm_mesh(model, geom, quality.hide_meshes_above):
            model.geom_rgba[geom, 3] = 0.0


def _free(renderer: mujoco.Renderer) -> None:
    # What MuJoCo frees it frees in whichever context is current; drawing makes this renderer's current.
    # Without that, another scene's pictures would break.
    renderer.render()
    renderer.close()


def _is_heavy_arm_mesh(model: mujoco.MjModel, geom: int, limit: int | None) -> bool:
    if limit is None or model.geom_type[geom] != mujoco.mjtGeom.mjGEOM_MESH:
        return False
    body = model.body(model.geom_bodyid[geom]).name
    # right_hand is the block that carries the fingers; the fingers themselves are other bodies.
    of_the_arm = body.startswith("right_l") or body in (
        "head",
        "pedestal",
        "right_arm_base_link",
        "right_hand",
    )
    return of_the_arm and model.mesh_facenum[model.geom_dataid[geom]] > limit
