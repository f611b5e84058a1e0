"""Carrying what the hand holds, and setting it down."""

from __future__ import annotations

from functools import partial

import numpy as np

from lerobot_policy_vita_vla.demos.libero_arm import Arm, Motion
from lerobot_policy_vita_vla.demos.libero_grasps import BROAD

LIFTED = 0.02
"""Metres that a thing must have risen to count as held."""

LOWERING = 0.6
"""Largest command while something held is lowered."""


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
