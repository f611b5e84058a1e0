"""Leaving out what a camera cannot see, for software rendering: pictures stay the same, bit by bit.

MuJoCo hands every geom of a scene to the renderer, and a software renderer transforms all their corners
before it finds that most lie outside of the picture. Here a geom whose bounding box lies outside of what the
camera sees, directly or in a mirror, is not handed over.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import mujoco
import numpy as np

Window = tuple[np.ndarray, np.ndarray]

HIDDEN_GROUP = mujoco.mjNGROUP - 1
"""Group of the geoms that are left out, while a scene is put together."""

MARGIN = 1e-4
"""Metres by which a box is taken to be larger than it is; what float32 rounds when drawing is below that."""


class Culling:
    """Decides which geoms a camera can see, and puts scenes together without the others.

    Where a light casts shadows nothing is left out: shadows of things outside of the picture fall into it.

    Args:
        model: A compiled scene, its meshes as they will be drawn.
    """

    def __init__(self, model: mujoco.MjModel):
        self._model = model
        boxes = np.array(model.geom_aabb, dtype=np.float64).reshape(-1, 2, 3)
        for geom in np.flatnonzero(model.geom_type == mujoco.mjtGeom.mjGEOM_MESH):
            # Not the compiler's box: a mesh that was thinned may reach out of it.
            mesh = model.geom_dataid[geom]
            start = model.mesh_vertadr[mesh]
            corners = model.mesh_vert[start : start + model.mesh_vertnum[mesh]]
            low, high = corners.min(axis=0), corners.max(axis=0)
            boxes[geom] = (low + high) / 2, (high - low) / 2
        self._middle_G3, self._half_G3 = boxes[:, 0], boxes[:, 1] + MARGIN
        # Planes and height fields have no box, or none that ends.
        endless = (mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_HFIELD)
        self._endless_G = np.isin(model.geom_type, endless) | (boxes[:, 1].max(axis=1) == 0)
        # MuJoCo draws reflections in planes and in the upper sides of boxes.
        flat = np.isin(model.geom_type, (mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_BOX))
        polished = np.append(model.mat_reflectance, 0.0)[model.geom_matid] > 0
        self._mirrors = np.flatnonzero(flat & polished)

    def update_scene(
        self, scene: mujoco.MjvScene, data: mujoco.MjData, camera: str, options: mujoco.MjvOption
    ) -> None:
        """What ``mjv_updateScene`` does, without the geoms that a square picture cannot show.

        Args:
            scene: Filled.
            data: The state to draw.
            camera: Name of the scene's camera whose view counts.
            options: What is drawn at all; geoms of the last group never are.
        """
        model = self._model
        options.geomgroup[HIDDEN_GROUP] = 0
        groups = model.geom_group.copy()
        view = mujoco.MjvCamera()
        view.type, view.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, model.camera(camera).id
        mujoco.mjv_updateCamera(model, data, view, scene)
        shadows = scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] and model.light_castshadow.any()
        if not (shadows or scene.camera[0].orthographic):
            model.geom_group[~self._seen(scene, data, np.array(options.geomgroup)[groups] > 0)] = HIDDEN_GROUP
        try:
            mujoco.mjv_updateScene(model, data, options, None, view, mujoco.mjtCatBit.mjCAT_ALL, scene)
        finally:
            model.geom_group[:] = groups

    def _seen(self, scene: mujoco.MjvScene, data: mujoco.MjData, drawn_G: np.ndarray) -> np.ndarray:
        left, right = scene.camera  # two eyes, pictures are drawn from between them
        eye_3 = (np.array(left.pos) + np.array(right.pos)) / 2
        forward_3, up_3 = np.array(left.forward), np.array(left.up)
        view_33 = np.stack([np.cross(forward_3, up_3), up_3, forward_3])
        slope = max(abs(left.frustum_top), abs(left.frustum_bottom)) / left.frustum_near
        axes_G33 = data.geom_xmat.reshape(-1, 3, 3)
        boxes = _Boxes(
            data.geom_xpos + (axes_G33 @ self._middle_G3[..., None])[..., 0],
            axes_G33 * self._half_G3[:, None],
        )
        picture = np.array([-slope, -slope]), np.array([slope, slope])
        direct_G = (boxes.seen(eye_3, view_33, picture) | self._endless_G) & drawn_G
        seen_G = direct_G.copy()
        for mirror in self._mirrors[direct_G[self._mirrors]]:
            # The rest of the picture cannot show what is seen in the mirror.
            part = picture if self._endless_G[mirror] else boxes.window(mirror, eye_3, view_33, picture)
            normal_3 = axes_G33[mirror, :, 2]
            box = self._model.geom_type[mirror] == mujoco.mjtGeom.mjGEOM_BOX
            height = (eye_3 - data.geom_xpos[mirror]) @ normal_3 - box * self._model.geom_size[mirror, 2]
            flip_33 = np.eye(3) - 2 * np.outer(normal_3, normal_3)
            seen_G |= boxes.seen(eye_3 - 2 * height * normal_3, view_33 @ flip_33, part) | self._endless_G
        return seen_G


class _Boxes(NamedTuple):
    """Boxes of G geoms in the world: middles, and columns from the middle to the middles of three sides."""

    middle_G3: np.ndarray
    spans_G33: np.ndarray

    def seen(self, eye_3: np.ndarray, view_33: np.ndarray, window: Window) -> np.ndarray:
        """(G,) bool: no plane through the eye and a side of the window has the box on its outer side.

        Args:
            eye_3: Where it is seen from.
            view_33: To the right, up and forward.
            window: Part of the picture, lower left and upper right, in metres per metre of distance.
        """
        right_3, up_3, forward_3 = view_33
        (low_x, low_y), (high_x, high_y) = window
        inwards_53 = np.stack(
            [
                right_3 - low_x * forward_3,
                high_x * forward_3 - right_3,
                up_3 - low_y * forward_3,
                high_y * forward_3 - up_3,
                forward_3,
            ]
        )
        reach_G5 = np.abs(self.spans_G33.transpose(0, 2, 1) @ inwards_53.T).sum(axis=1)
        return ((self.middle_G3 - eye_3) @ inwards_53.T + reach_G5 > 0).all(axis=1)

    def window(self, box: int, eye_3: np.ndarray, view_33: np.ndarray, picture: Window) -> Window:
        """The part of the picture that a box may cover."""
        signs_83 = np.array(list(itertools.product((-1, 1), repeat=3)))
        corners_83 = (self.middle_G3[box] - eye_3 + signs_83 @ self.spans_G33[box].T) @ view_33.T
        if corners_83[:, 2].min() <= MARGIN:
            return picture
        places_82 = corners_83[:, :2] / corners_83[:, 2:]
        return np.maximum(places_82.min(axis=0), picture[0]), np.minimum(places_82.max(axis=0), picture[1])
