"""Putting a mug through a side opening, as into LIBERO's microwave: held by its handle, from the front.

The handle points out of the opening, so that the hand stays in front of it; the hand leans outwards, so that
the palm does not meet the roof.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lerobot_policy_vita_vla.demos.libero_arm import Arm, Motion
from lerobot_policy_vita_vla.demos.libero_grasps import Grasp
from lerobot_policy_vita_vla.demos.libero_world import World

LEAN = np.radians(25)

CORE = 0.05
"""Half the width of what is looked at around a region's centre, metres."""

IN_FRONT, BEFORE = 0.012, 0.20
"""Metres between grip and opening when a mug is set down, and before it is brought in."""

BACK = 0.10
"""Metres that the hand retreats before it rises."""


class Opening(NamedTuple):
    """A space that is open on one side.

    Args:
        outward: (3,) horizontal unit vector out of it.
        front: Coordinate of its front along ``outward``.
        middle: Coordinate of its middle across.
        floor: Height of its floor, metres.
    """

    outward: np.ndarray
    front: float
    middle: float
    floor: float

    @property
    def across(self) -> np.ndarray:
        """(3,) horizontal unit vector along the front."""
        return np.array([-self.outward[1], self.outward[0], 0.0])

    def at(self, depth: float) -> np.ndarray:
        """Point (2,) in the middle, ``depth`` metres in front of the opening."""
        return (self.outward * (self.front + depth) + self.across * self.middle)[:2]


def find_opening(world: World, region: str, owner: str) -> Opening:
    """The side of a region on which nothing of its owner stands, doors left aside.

    Args:
        world: The scene.
        region: For instance a microwave's inside.
        owner: The thing that it belongs to.
    """
    centre = world.site(region)
    rotation = world.data.site_xmat[world.model.site(region).id].reshape(3, 3)
    points = world.fixed_points(owner) - centre
    level = points[np.abs(points[:, 2]) < CORE]
    sides = [sign * rotation[:, axis] * [1, 1, 0] for axis in (0, 1) for sign in (1, -1)]
    sides = [side / np.linalg.norm(side) for side in sides if np.linalg.norm(side) > 0.5]

    def walls(side: np.ndarray) -> int:
        across = np.abs(level @ np.cross(side, [0, 0, 1.0]))
        return int(((level @ side > 0) & (across < CORE)).sum())

    outward = min(sides, key=walls)
    found = Opening(outward, 0.0, 0.0, 0.0)
    over = points[(points[:, 2] > CORE) & (np.abs(points @ found.across) < CORE)]
    inside = level[np.abs(level @ outward) < CORE] @ found.across
    left, right = inside[inside < 0].max(), inside[inside > 0].min()
    under = points[(points[:, 2] < 0) & (np.linalg.norm(points[:, :2], axis=1) < CORE)]
    return Opening(
        outward,
        float((over @ outward).max() + centre @ outward),
        float((left + right) / 2 + centre @ found.across),
        float(under[:, 2].max() + centre[2]),
    )


def handle_grasps(world: World, arm: Arm, name: str) -> list[Grasp]:
    """The way to take a mug by its handle, the hand leaning outwards; empty if it has none."""
    points = world.points(name)
    ring = points[points[:, 2] > points[:, 2].max() - 0.012, :2]
    middle = (ring.min(0) + ring.max(0)) / 2
    radius = np.ptp(ring, axis=0).min() / 2
    distance = np.linalg.norm(points[:, :2] - middle, axis=1)
    bar = points[distance > 0.9 * distance.max()]
    if distance.max() < radius + 0.015:
        return []
    out = bar[:, :2].mean(0) - middle
    out = np.array([*out / np.linalg.norm(out), 0.0])
    upright, _ = arm.facing(np.array([-out[1], out[0]]))
    height = float(bar[:, 2].min() + bar[:, 2].max()) / 2
    return [Grasp(0.0, bar[:, :2].mean(0), height, arm.leaning(upright, -out, LEAN))]


def bring_in(arm: Arm, name: str, opening: Opening) -> Motion:
    """Carry what is held by its handle through an opening, set it down, and come out again."""
    world, outward = arm.world, opening.outward

    def height(bottom: float) -> float:
        return world.hand[2] + bottom - world.points(name)[:, 2].min()

    before = np.array([*opening.at(BEFORE), height(opening.floor + 0.02)])
    yield from arm.servo(before, tolerance=0.012, steps=80)
    inside = np.array([*opening.at(IN_FRONT), before[2]])
    yield from arm.servo(inside, tolerance=0.008, steps=60, speed=0.6)
    inside[2] = height(opening.floor + 0.003)
    yield from arm.servo(inside, steps=30, speed=0.5)
    yield from arm.open()
    yield from arm.servo(world.hand + outward * BACK, tolerance=0.02, steps=25)
    return (yield from arm.servo(world.hand + [0.0, 0.0, 0.15], arm.upright, tolerance=0.04, steps=25))
