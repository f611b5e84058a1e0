"""Where to take hold of a thing: from above, by its rim or across its body."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lerobot_policy_vita_vla.demos.libero_arm import Arm
from lerobot_policy_vita_vla.demos.libero_world import World

RIMS = ("bowl", "ramekin", "mug", "plate")
"""Words in the names of things that are taken by one side of their rim."""

WIDEST = 0.077
"""Metres between the opened fingers, less a millimetre on each side."""

PALM = 0.027
"""Metres that the point between the fingers may lie below a thing's top before the palm touches it."""

AXES = np.pi / 18
"""Directions are tried every ten degrees."""

BASE = np.array([-0.6, 0.0])
"""Where the arm stands: near sides of a rim are reached better."""

# The volumes that fingers and palm sweep, along the finger axis and across it, metres.
FINGERS_ALONG, FINGERS_ACROSS = (0.036, 0.068), 0.017
PALM_ALONG, PALM_ACROSS, PALM_ABOVE = 0.115, 0.04, 0.028


class Grasp(NamedTuple):
    """One way to take hold.

    Args:
        cost: Lower is better: obstacles in the way, turning, width.
        xy: (2,) where the point between the fingers goes.
        height: Its z.
        rotation: (3, 3) of the hand.
    """

    cost: float
    xy: np.ndarray
    height: float
    rotation: np.ndarray


def grasps(world: World, arm: Arm, name: str) -> list[Grasp]:
    """Ways to take hold of a thing, best first; empty if it is too wide everywhere."""
    points, obstacles = world.points(name), world.obstacles(name)
    low, high = points.min(0), points.max(0)
    by_rim = any(word in name for word in RIMS)
    found = (_rim if by_rim else _across)(arm, points, obstacles, low, high)
    return sorted(found, key=lambda grasp: grasp.cost)


def _rim(arm: Arm, points, obstacles, low, high) -> list[Grasp]:
    middle, tall = (low[:2] + high[:2]) / 2, high[2] - low[2] > 0.03
    top = points[points[:, 2] > high[2] - 0.012]
    radius = float(np.median(np.linalg.norm(top[:, :2] - middle, axis=1))) - 0.001
    height = max(high[2] - 0.022, low[2] + 0.016) if tall else high[2] - 0.004
    found = []
    for angle in np.arange(0, 2 * np.pi, AXES):
        axis = np.array([np.cos(angle), np.sin(angle)])
        rotation, turn = arm.facing(axis)
        xy = middle + radius * axis
        cost = 0.2 * _in_the_way(obstacles, xy, axis, height) + 0.6 * abs(turn)
        found.append(Grasp(cost + 0.15 * np.linalg.norm(xy - BASE), xy, height, rotation))
    return found


def _across(arm: Arm, points, obstacles, low, high) -> list[Grasp]:
    tallness = high[2] - low[2]
    lowest = max(low[2] + 0.013, high[2] - PALM)
    found = []
    for height in (lowest, lowest + 0.008) if tallness > 0.05 else (lowest,):
        slab = points[np.abs(points[:, 2] - height) < max(0.012, 0.12 * tallness)]
        if len(slab) < 8:
            continue
        for angle in np.arange(0, np.pi, AXES):
            axis = np.array([np.cos(angle), np.sin(angle)])
            side = np.array([-axis[1], axis[0]])
            along, across = slab[:, :2] @ axis, slab[:, :2] @ side
            if (width := float(np.ptp(along))) > WIDEST:
                continue
            xy = axis * (along.max() + along.min()) / 2 + side * (across.max() + across.min()) / 2
            rotation, turn = arm.facing(axis)
            cost = 0.2 * _in_the_way(obstacles, xy, axis, height) + 0.3 * abs(turn)
            cost += 30 * max(0.0, width - 0.06) + 3 * (height - lowest)
            found.append(Grasp(cost, xy, height, rotation))
    return found


def _in_the_way(obstacles: np.ndarray, xy: np.ndarray, axis: np.ndarray, height: float) -> int:
    if not len(obstacles):
        return 0
    off = obstacles[:, :2] - xy
    along, across = np.abs(off @ axis), np.abs(off @ np.array([-axis[1], axis[0]]))
    fingers = (along > FINGERS_ALONG[0]) & (along < FINGERS_ALONG[1]) & (across < FINGERS_ACROSS)
    fingers &= obstacles[:, 2] > height - 0.016
    palm = (along < PALM_ALONG) & (across < PALM_ACROSS) & (obstacles[:, 2] > height + PALM_ABOVE)
    return int(fingers.sum()) + 2 * int(palm.sum())
