"""Carrying what the hand holds, and setting it down: where, and how."""

from __future__ import annotations

from functools import partial

import numpy as np

from lerobot_policy_vita_vla.demos.libero_arm import Arm, Motion
from lerobot_policy_vita_vla.demos.libero_grasps import BROAD
from lerobot_policy_vita_vla.demos.libero_world import SPACING, World

LIFTED = 0.02
"""Metres that a thing must have risen to count as held."""

LOWERING = 0.6
"""Largest command while something held is lowered."""

BETWEEN = 0.006
"""Metres between things that share a region."""

AROUND = 0.006
"""Metres kept free around what is lowered into a drawer."""


def clear(arm: Arm, name: str, height: float) -> Motion:
    """Raise what is held until its lowest point is above ``height``."""
    needed = height - arm.world.points(name)[:, 2].min()
    if needed > 0:
        yield from arm.servo(arm.world.hand + [0, 0, needed], tolerance=0.015, steps=25)
    return True


def set_down(arm: Arm, name: str, xy: np.ndarray, height: float, coned: bool = False) -> Motion:
    """Carry a held thing to a place, lower it and let go.

    Args:
        arm: Holds it.
        name: The thing.
        xy: (2,) where its middle is to be.
        height: Where its lowest point is to be, metres.
        coned: It may come down while it is still a little aside, as nothing stands around.

    Returns:
        Whether it was not lost on the way.
    """
    world = arm.world

    def over(z: float) -> np.ndarray:
        return np.array([*(world.hand[:2] + xy - world.position(name)[:2]), z])

    travel, below = world.hand[2], world.hand[2] - world.position(name)[2]
    if coned:
        yield from arm.servo(over(travel), tolerance=BROAD, steps=80)
        low = travel - (world.points(name)[:, 2].min() - height)
        heading = partial(arm.cone, over, low, travel)
        yield from arm.servo(over(low), steps=60, speed=LOWERING, heading=heading)
    else:
        yield from arm.servo(over(travel), tolerance=0.015, steps=80)
        yield from arm.servo(over(travel), steps=20)
    if world.hand[2] - world.position(name)[2] > below + LIFTED:
        return False
    for _ in range(3):
        drop = world.points(name)[:, 2].min() - height
        if drop < 0.006:
            break
        yield from arm.servo(over(world.hand[2] - drop), steps=30, speed=LOWERING)
    yield from arm.open()
    yield from arm.servo(world.hand + [0, 0, 0.10], steps=15, tolerance=0.02)
    return (yield from arm.hold(3))


def highest_between(points: np.ndarray, start: np.ndarray, goal: np.ndarray) -> float:
    """Highest point near the straight way from ``start`` to ``goal``; 0 if there is none."""
    if not len(points):
        return 0.0
    way = goal - start
    length = np.linalg.norm(way) + 1e-9
    along = (points[:, :2] - start) @ way / length
    side = np.abs((points[:, :2] - start) @ np.array([-way[1], way[0]])) / length
    near = (along > -0.05) & (along < length + 0.05) & (side < 0.12)
    return float(points[near, 2].max()) if near.any() else 0.0


def side_by_side(world: World, name: str, region: str) -> np.ndarray:
    """Displacement (2,) of a thing from a region's centre where several things of the goal share it."""
    sharing = [goal[1] for goal in world.goals if goal[-1] == region and len(goal) == 3]
    if len(sharing) < 2:
        return np.zeros(2)
    # Along their narrow side.
    flat = world.points(name)[:, :2] - world.position(name)[:2]
    sides = [np.array([np.cos(a), np.sin(a)]) for a in np.arange(0, np.pi, np.pi / 18)]
    side = min(sides, key=lambda axis: np.ptp(flat @ axis))
    apart = np.ptp(flat @ side) + BETWEEN
    return side * apart * (sharing.index(name) - (len(sharing) - 1) / 2)


def uncovered(world: World, name: str, region: str, owner: str | None) -> np.ndarray:
    """Where (3,) in an opened drawer a thing can be set down: nearest its centre with nothing above.

    Args:
        world: The scene.
        name: The thing.
        region: Inside of the drawer.
        owner: The fixture that the drawer belongs to.
    """
    centre, joint = world.site(region), world.region_joint(region)
    if owner is None or joint is None:
        return centre
    own = np.concatenate([world.points_of(geom) for geom in world.shapes_of(joint)])
    above = world.points(owner)
    above = above[above[:, 2] > own[:, 2].max() + 0.005]
    half = np.ptp(world.points(name)[:, :2], axis=0) / 2 + AROUND
    outward = world.data.xaxis[joint][:2] * np.sign(world.joint_value(joint))
    inside = own[np.linalg.norm(own[:, :2] - centre[:2], axis=1) < AROUND + SPACING]
    floor = inside[:, 2].max() + AROUND if len(inside) else centre[2]
    for shift in np.arange(0.0, 0.12, 0.005):
        place = centre[:2] + shift * outward
        if not (np.abs(above[:, :2] - place) < half).all(axis=1).any():
            return np.array([*place, floor])
    return centre
