"""What the scripted experts know of a LIBERO scene: where the hand is, and which space each thing takes.

Read from the simulator; nothing here moves anything. Shapes are those that collide, sampled as points.
"""

from __future__ import annotations

import mujoco
import numpy as np

SPACING = 0.008
"""Metres between the sampled points of a shape (our choice: a third of a finger's width)."""

MOST_POINTS = 25
"""Points along one side of a shape; a cabinet's are 12 mm apart."""

MESH_POINTS = 300


def in_order(goals: list[list[str]]) -> list[list[str]]:
    """LIBERO's goals, predicates such as ``["on", "bowl_1", "plate_1"]``: what is to be closed comes last."""
    return sorted(goals, key=lambda goal: goal[0].lower() == "close")


class World:
    """The scene behind one episode.

    Args:
        env: LIBERO's own environment (``LiberoScene._env.env``), just reset.
    """

    def __init__(self, env):
        self.env = env
        self.model, self.data = env.sim.model._model, env.sim.data._data
        self._site = env.robots[0].eef_site_id
        names = [f"gripper0_finger{finger}_pad_collision" for finger in (1, 2)]
        self._pads = [mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_GEOM, name) for name in names]
        self.bodies: dict[str, int] = dict(env.obj_body_id)
        self._geoms = {name: self._collision_geoms(body) for name, body in self.bodies.items()}
        self._local: dict[int, np.ndarray] = {}

    @property
    def goals(self) -> list[list[str]]:
        """LIBERO's goal: predicates such as ``["on", "bowl_1", "plate_1"]``, all of which must hold."""
        return self.env.parsed_problem["goal_state"]

    def holds(self, goal: list[str]) -> bool:
        """Whether one predicate of the goal is true now."""
        return bool(self.env._eval_predicate(goal))

    @property
    def hand(self) -> np.ndarray:
        """Position of the point between the fingers (3,), metres."""
        return self.data.site_xpos[self._site].copy()

    @property
    def hand_rotation(self) -> np.ndarray:
        """(3, 3); the third column is where the fingers point."""
        return self.data.site_xmat[self._site].reshape(3, 3).copy()

    @property
    def finger_axis(self) -> np.ndarray:
        """Unit vector (3,) from one finger to the other."""
        vector = self.data.geom_xpos[self._pads[0]] - self.data.geom_xpos[self._pads[1]]
        return vector / np.linalg.norm(vector)

    @property
    def opening(self) -> float:
        """Distance of the finger pads, metres."""
        return float(np.linalg.norm(self.data.geom_xpos[self._pads[0]] - self.data.geom_xpos[self._pads[1]]))

    def position(self, name: str) -> np.ndarray:
        """Origin of a thing's body (3,)."""
        return self.data.xpos[self.bodies[name]].copy()

    def points(self, name: str) -> np.ndarray:
        """Points (n, 3) on the surface of a thing's collision shapes, world frame."""
        found = [self.points_of(geom) for geom in self._geoms[name]]
        return np.concatenate(found) if found else np.zeros((0, 3))

    def fixed_points(self, name: str) -> np.ndarray:
        """Points (n, 3) of a thing without its doors and drawers."""
        root = self.bodies[name]
        fixed = [geom for geom in self._geoms[name] if not self._moves(self.model.geom_bodyid[geom], root)]
        return np.concatenate([self.points_of(geom) for geom in fixed])

    def _moves(self, body: int, root: int) -> bool:
        while body != root:
            if self.model.body_jntnum[body]:
                return True
            body = self.model.body_parentid[body]
        return False

    def points_of(self, geom: int) -> np.ndarray:
        """The same for one shape."""
        if geom not in self._local:
            self._local[geom] = self._sample(geom)
        rotation = self.data.geom_xmat[geom].reshape(3, 3)
        return self._local[geom] @ rotation.T + self.data.geom_xpos[geom]

    def obstacles(self, *without: str) -> np.ndarray:
        """Points of everything but the named things."""
        found = [self.points(name) for name in self.bodies if name not in without and self._geoms[name]]
        return np.concatenate(found) if found else np.zeros((0, 3))

    def site(self, name: str) -> np.ndarray:
        """Centre of a goal region (3,)."""
        return self.data.site_xpos[self.model.site(name).id].copy()

    def is_region(self, name: str) -> bool:
        """Whether a goal names a region and not a thing."""
        return name in self.env.object_sites_dict

    def region_owner(self, name: str) -> str | None:
        """The thing that a region belongs to; None for regions of the table."""
        owner = getattr(self.env.object_sites_dict[name], "parent_name", None)
        return owner if owner in self.bodies else None

    def region_joint(self, name: str) -> int | None:
        """The joint that moves a region with its drawer or door."""
        body = self.model.site_bodyid[self.model.site(name).id]
        return int(self.model.body_jntadr[body]) if self.model.body_jntnum[body] else None

    def joint_of(self, name: str) -> int:
        """The joint of a goal's drawer (a region) or of a thing with a door.

        Raises:
            ValueError: If it has none.
        """
        joint = self.region_joint(name) if self.is_region(name) else None
        return self.hinge(name) if joint is None else joint

    def hinge(self, name: str) -> int:
        """The hinge of a thing such as a stove's knob.

        Raises:
            ValueError: If it has none.
        """
        for joint in range(self.model.njnt):
            named = mujoco.mj_id2name(self.model, mujoco.mjtObj.mjOBJ_JOINT, joint) or ""
            if self.model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_HINGE and name in named:
                return joint
        raise ValueError(f"{name} has no hinge")

    def joint_value(self, joint: int) -> float:
        """Metres or radians."""
        return float(self.data.qpos[self.model.jnt_qposadr[joint]])

    def shapes_of(self, joint: int) -> list[int]:
        """Collision shapes of the body that a joint moves."""
        body = self.model.jnt_bodyid[joint]
        return [g for g in range(self.model.ngeom) if self.model.geom_bodyid[g] == body and self._collides(g)]

    def _collides(self, geom: int) -> bool:
        return self.model.geom_group[geom] == 0

    def _collision_geoms(self, root: int) -> list[int]:
        below = {root}
        for body in range(root + 1, self.model.nbody):  # children come after their parents
            if self.model.body_parentid[body] in below:
                below.add(body)
        return [
            g for g in range(self.model.ngeom) if self.model.geom_bodyid[g] in below and self._collides(g)
        ]

    def _sample(self, geom: int) -> np.ndarray:
        kind, size = self.model.geom_type[geom], self.model.geom_size[geom]
        shapes = mujoco.mjtGeom
        if kind == shapes.mjGEOM_MESH:
            mesh = self.model.geom_dataid[geom]
            start, count = int(self.model.mesh_vertadr[mesh]), int(self.model.mesh_vertnum[mesh])
            step = max(1, count // MESH_POINTS)
            return self.model.mesh_vert[start : start + count : step].astype(np.float64)
        half = {
            shapes.mjGEOM_BOX: size,
            shapes.mjGEOM_CYLINDER: (size[0], size[0], size[1]),
            shapes.mjGEOM_CAPSULE: (size[0], size[0], size[0] + size[1]),
            shapes.mjGEOM_SPHERE: (size[0],) * 3,
        }.get(kind, (0.0, 0.0, 0.0))
        sides = [np.linspace(-h, h, int(np.clip(np.ceil(2 * h / SPACING) + 1, 2, MOST_POINTS))) for h in half]
        points = np.stack(np.meshgrid(*sides), axis=-1).reshape(-1, 3)
        return points[(np.abs(points) >= np.array(half) - 1e-9).any(axis=1)]
