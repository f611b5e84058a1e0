"""Where to take hold of a thing, from above, by its rim or across its body, and how to come over it."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np

from lerobot_policy_vita_vla.demos.libero_arm import Arm, Motion
from lerobot_policy_vita_vla.demos.libero_world import World

RIMS = ("bowl", "ramekin", "mug", "plate")
"""Words in the names of things that are taken by one side of their rim."""

WIDEST = 0.077
"""Metres between the opened fingers, less a millimetre on each side."""

PALM = 0.027
"""Metres that the point between the fingers may lie below a thing's top before the palm touches it."""

KNOB = 0.010
"""Metres below its top at which a knob is taken."""

AXES = np.pi / 18
ANGLES = np.arange(0, 2 * np.pi, AXES)
"""Directions are tried every ten degrees."""

BASE = np.array([-0.6, 0.0])
"""Where the arm stands: near sides of a rim are reached better."""

FAR, FAR_COST = 0.65, 30.0
"""Metres from there beyond which the arm is all but stretched, and what a metre more costs: a stretched arm
can hardly be pulled back, and stays where it has carried the thing."""

LEAN, LEAN_COST = np.radians(35), 0.3
"""Where nothing upright is free, the hand leans along the rim, away from what hangs over it."""

INWARD, INWARD_COST = (0.01, 0.02), 10.0
"""Metres nearer a thing's middle than its rim that the hand comes down where nothing over the rim itself is
free, and what a metre of it costs: the outer finger has more room beside the rim, in a drawer say, and the
closing fingers draw the thing to themselves."""

UPRIGHT = -0.99
"""Vertical part of where the fingers point, above which a hand leans."""

BROAD = 0.05
"""Metres aside at which the way down along a cone begins."""

TILTED = 0.006
"""Metres between a rim's highest and lowest side above which a thing leans, on a plate's edge say."""

DEEP = 0.012
"""Metres from a rim's grasp at which the fingers close."""

DESCENT = 0.55
"""Largest command on the way down to a grasp."""

OPENED, OPENING_STEPS = 0.07, 8
"""Metres between the fingers that count as open, and steps that it takes at most."""

LAST = 0.03
"""Metres that the hand sinks over a thing before it aims."""

NEAR = 0.35
"""Metres around a thing in which obstacles count."""

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
        hits: Obstacle points in its way.
        under: Something hangs over the thing, so that it leaves the way the hand came.
        thin: Between the fingers is a rim of a few millimetres: their positions hardly tell it from nothing.
        coned: The hand comes down along a cone: there is room beside a deep thing's rim, and nothing above.
        tight: It comes down nearer the thing's middle than the rim, beside which there is no room.
    """

    cost: float
    xy: np.ndarray
    height: float
    rotation: np.ndarray
    hits: int = 0
    under: bool = False
    thin: bool = False
    coned: bool = False
    tight: bool = False

    def behind(self, height: float) -> np.ndarray:
        """Where (3,) the hand is at a height, on its straight way to the grasp and back."""
        reach = self.rotation[:, 2]
        return np.array([*self.xy, self.height]) + reach * (height - self.height) / reach[2]


def height_above(world: World, name: str, way: Grasp) -> float:
    """Height (metres) over a thing from which the hand goes down to a grasp."""
    return max(world.points(name)[:, 2].max() + 0.06, way.height + 0.09)


def over(arm: Arm, way: Grasp, above: float) -> np.ndarray:
    """Where (3,) the hand goes first: over the grasp, higher if it is high already, so as not to dive."""
    return way.behind(max(above, min(arm.world.hand[2], above + 0.1)))


def approach(arm: Arm, way: Grasp, above: float) -> Motion:
    """Over the grasp at height ``above`` (metres), then closer, where it aims unless a cone leads down."""
    if way.coned:
        return (
            yield from arm.servo(over(arm, way, above), way.rotation, tolerance=BROAD, turn_tolerance=np.pi)
        )
    yield from arm.servo(over(arm, way, above), way.rotation, tolerance=0.02, turn_tolerance=0.12)
    near = 0.008 if way.rotation[2, 2] < UPRIGHT else 0.015
    aim = way.behind(above - LAST)
    return (yield from arm.servo(aim, way.rotation, tolerance=near, turn_tolerance=0.05, steps=40))


def sink(arm: Arm, way: Grasp, above: float) -> Motion:
    """Down to the grasp after `approach`, with open fingers."""
    if not way.coned:
        return (yield from arm.servo(way.behind(way.height), way.rotation, steps=45, speed=DESCENT))
    for _ in range(OPENING_STEPS):
        if arm.world.opening > OPENED:
            break
        yield arm.command()
    heading = partial(arm.cone, way.behind, way.height, above)
    bottom = way.behind(way.height)
    return (yield from arm.servo(bottom, way.rotation, tolerance=DEEP, speed=DESCENT, heading=heading))


def grasps(world: World, arm: Arm, name: str, on: str = "") -> list[Grasp]:
    """Ways to take hold of a thing, best first; empty if it is too wide everywhere.

    Args:
        world: The scene.
        arm: Its hand.
        name: The thing.
        on: What it lies on, whose rim is in nobody's way.
    """
    points, obstacles = world.points(name), world.obstacles(name, *([on] if on else []))
    low, high = points.min(0), points.max(0)
    obstacles = obstacles[np.linalg.norm(obstacles[:, :2] - (low + high)[:2] / 2, axis=1) < NEAR]
    by_rim = any(word in name for word in RIMS)
    found = (_rim if by_rim else _across)(arm, points, obstacles, low, high)
    return sorted(found, key=lambda grasp: grasp.cost)


def _rim(arm: Arm, points, obstacles, low, high) -> list[Grasp]:
    middle, tall = (low[:2] + high[:2]) / 2, high[2] - low[2] > 0.03
    top = points[points[:, 2] > high[2] - 0.012]
    radius = float(np.median(np.linalg.norm(top[:, :2] - middle, axis=1))) - 0.001
    sides = _sides(points, middle) if tall else np.full(len(ANGLES), high[2])
    if np.ptp(sides) < TILTED:
        sides[:] = high[2]

    def at(angle: float, rim: float, lean: float = 0.0, inward: float = 0.0) -> Grasp:
        height = max(rim - 0.022, low[2] + 0.016) if tall else rim - 0.004
        axis = np.array([np.cos(angle), np.sin(angle), 0.0])
        rotation, turn = arm.facing(axis[:2])
        rotation = arm.leaning(rotation, np.array([-axis[1], axis[0], 0.0]), lean)
        xy = middle + (radius - inward) * axis[:2]
        hits = _in_the_way(obstacles, np.array([*xy, height]), axis, rotation)
        away = np.linalg.norm(xy - BASE)
        cost = 0.2 * hits + 0.6 * abs(turn) + 0.15 * away + FAR_COST * max(0.0, away - FAR)
        under = lean != 0
        cost += (LEAN_COST if under else 0.0) + INWARD_COST * inward
        coned, tight = tall and not under, inward > 0
        return Grasp(cost, xy, height, rotation, hits, under, thin=True, coned=coned, tight=tight)

    directions = list(zip(ANGLES, sides, strict=True))
    found = [at(angle, rim) for angle, rim in directions]
    if tall and min(grasp.hits for grasp in found) > 0:
        # As far as the inner finger stays clear of the opposite side.
        free = [inward for inward in INWARD if inward < 2 * radius - FINGERS_ALONG[1]]
        found += [at(angle, rim, inward=inward) for angle, rim in directions for inward in free]
    if min(grasp.hits for grasp in found) > 0:
        found += [at(angle, rim, lean) for angle, rim in directions for lean in (LEAN, -LEAN)]
    return found


def _sides(points: np.ndarray, middle: np.ndarray) -> np.ndarray:
    # Height of the rim in each of the directions.
    off = points[:, :2] - middle
    towards = np.exp(1j * ANGLES).view(float).reshape(-1, 2) @ off.T
    near = towards > np.cos(AXES) * np.linalg.norm(off, axis=1)
    found = np.where(near, points[:, 2], -np.inf).max(1)
    return np.where(near.any(1), found, points[:, 2].max())


def _across(arm: Arm, points, obstacles, low, high) -> list[Grasp]:
    tallness = high[2] - low[2]
    lowest = max(low[2] + 0.013, high[2] - PALM)
    # Height and what of the thing lies between the fingers there.
    reach = max(0.012, 0.12 * tallness)
    heights = (lowest, lowest + 0.008) if tallness > 0.05 else (lowest,)
    slabs = [(height, points[np.abs(points[:, 2] - height) < reach]) for height in heights]
    slabs.append((high[2] - KNOB, _knob(points, high[2])))
    found = []
    for height, slab in slabs:
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
            hits = _in_the_way(obstacles, np.array([*xy, height]), np.array([*axis, 0.0]), rotation)
            cost = 0.2 * hits + 0.3 * abs(turn) + 30 * max(0.0, width - 0.06) + 3 * (height - lowest)
            found.append(Grasp(cost, xy, height, rotation, hits))
    return found


def _knob(points: np.ndarray, top: float) -> np.ndarray:
    # The part of a lid's knob that the fingers hold; other parts may reach as high, a handle for instance.
    # Empty where what is highest is no knob but a whole side.
    highest = points[points[:, 2] > top - 0.003, :2]
    if np.ptp(highest, axis=0).max() > 3 * KNOB:
        return np.zeros((0, 3))
    centre = highest.mean(axis=0)
    near = np.linalg.norm(points[:, :2] - centre, axis=1) < 2 * KNOB
    return points[near & (np.abs(points[:, 2] - top + KNOB) < KNOB - 0.002)]


def _in_the_way(obstacles: np.ndarray, centre: np.ndarray, axis: np.ndarray, rotation: np.ndarray) -> int:
    # Points in what fingers and palm sweep on their straight way to `centre`.
    if not len(obstacles):
        return 0
    off, reach = obstacles - centre, rotation[:, 2]
    along, across, back = np.abs(off @ axis), np.abs(off @ np.cross(reach, axis)), -(off @ reach)
    fingers = (along > FINGERS_ALONG[0]) & (along < FINGERS_ALONG[1]) & (across < FINGERS_ACROSS)
    fingers &= back > -0.016
    palm = (along < PALM_ALONG) & (across < PALM_ACROSS) & (back > PALM_ABOVE)
    return int(fingers.sum()) + 2 * int(palm.sum())
