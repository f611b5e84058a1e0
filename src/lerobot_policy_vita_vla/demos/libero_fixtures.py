"""Opening and closing LIBERO's drawers and doors, and turning its stove's knob."""

from __future__ import annotations

from collections.abc import Callable

import mujoco
import numpy as np
from scipy.spatial.transform import Rotation

from lerobot_policy_vita_vla.demos.libero_arm import CLOSED, Arm, Motion

PULL = 0.175
"""Metres that a drawer is pulled."""

TILT = np.radians(8)
"""The hand reaches for a handle almost horizontally, tilted down so that the palm clears the drawer above."""

UP = np.array([0.0, 0.0, 1.0])

LEAN = np.radians(45)
"""A hand that pushes a drawer leans this much, so that its fingers arrive before its palm does."""

BESIDE = 0.05
"""Metres in front of what is to be pushed at which the hand comes down."""

DEEPER = 0.02
"""Metres (or radians) beyond shut that are asked for: friction eats the rest."""


def open_drawer(arm: Arm, region: str, distance: float = PULL) -> Motion:
    """Pull a drawer open by its handle.

    Args:
        arm: The hand.
        region: The drawer's region, which moves with it.
        distance: Metres.
    """
    world = arm.world
    joint = world.region_joint(region)
    if joint is None:
        return False
    axis, (low, high) = world.data.xaxis[joint].copy(), world.model.jnt_range[joint]
    outward = axis if abs(high) > abs(low) else -axis
    handle = max(world.shapes_of(joint), key=lambda geom: world.data.geom_xpos[geom] @ outward)
    centre = world.data.geom_xpos[handle].copy()
    reach = -outward * np.cos(TILT) - UP * np.sin(TILT)
    rotation = _pointing(arm, reach)
    yield from arm.ready()
    away = centre - reach * 0.16
    away[2] = max(world.hand[2], centre[2] + 0.12)
    yield from arm.servo(away, rotation, tolerance=0.03, turn_tolerance=0.3, steps=60)
    yield from arm.servo(centre - reach * 0.10, rotation, tolerance=0.012, turn_tolerance=0.10, steps=60)
    yield from arm.servo(
        centre + reach * 0.004, rotation, tolerance=0.008, turn_tolerance=0.12, steps=40, speed=0.6
    )
    yield from arm.close()
    pulled = world.hand + outward * distance
    yield from arm.servo(pulled, rotation, tolerance=0.008, turn_tolerance=0.5, steps=60)
    yield from arm.open()
    back = world.hand - reach * 0.10 + UP * 0.05
    yield from arm.servo(back, rotation, tolerance=0.03, turn_tolerance=0.5, steps=25)
    yield from arm.servo(world.hand + UP * 0.06, arm.upright, tolerance=0.04, turn_tolerance=0.8, steps=30)
    return abs(world.joint_value(joint)) > distance / 2


def push_shut(arm: Arm, joint: int, is_shut: Callable[[], bool]) -> Motion:
    """Push a drawer or a door until it is shut.

    Args:
        arm: The hand.
        joint: A slide or a hinge with a vertical axis; shut at 0.
        is_shut: What LIBERO calls shut.
    """
    world = arm.world
    model, data = world.model, world.data
    axis, start = data.xaxis[joint].copy(), world.joint_value(joint)
    slides = model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_SLIDE
    anchor = data.xanchor[joint].copy()
    point = _push_point(arm, joint, slides, anchor, axis * np.sign(start))

    def target(value: float) -> tuple[np.ndarray, np.ndarray]:
        # Where the pushed point is at a joint value, and which way it goes when the joint closes.
        if slides:
            return point + axis * (value - start), -axis * np.sign(start)
        arm_of_force = Rotation.from_rotvec(axis * (value - start)).apply(point - anchor)
        way = np.cross(axis, arm_of_force) * -np.sign(start)
        return anchor + arm_of_force, way / np.linalg.norm(way)

    here, way = target(start)
    # The hand's narrow side first: the palm is three times as wide along the fingers' axis.
    rotation = arm.leaning(arm.facing(np.array([-way[1], way[0]]))[0], way, LEAN if slides else 0.0)
    arm.grip = CLOSED
    before = here - way * BESIDE
    over = np.array([*before[:2], max(world.hand[2], before[2] + 0.15)])
    yield from arm.servo(over, rotation, tolerance=0.03, turn_tolerance=0.2)
    yield from arm.servo(before, tolerance=0.012, turn_tolerance=0.15, steps=50)
    for value in np.linspace(start, -np.sign(start) * DEEPER, 2 if slides else 8)[1:]:
        there, way = target(value)
        yield from arm.servo(there, tolerance=0.01, turn_tolerance=0.5, steps=60 if slides else 15)
        if is_shut():
            break
    yield from arm.servo(world.hand - way * 0.05, tolerance=0.02, turn_tolerance=0.5, steps=12)
    yield from arm.servo(world.hand + UP * 0.12, arm.upright, tolerance=0.04, turn_tolerance=0.4, steps=25)
    return is_shut()


def _push_point(arm: Arm, joint: int, slides: bool, anchor: np.ndarray, outward: np.ndarray) -> np.ndarray:
    # A drawer is pushed at what is furthest out, its handle; a door near its free edge, below its top.
    world = arm.world
    shapes = world.shapes_of(joint)
    if slides:
        return world.data.geom_xpos[max(shapes, key=lambda g: world.data.geom_xpos[g] @ outward)].copy()
    points = np.concatenate([world.points_of(geom) for geom in shapes])
    away = np.linalg.norm((points - anchor)[:, :2], axis=1)
    edge = points[away > 0.85 * away.max()].mean(axis=0)
    edge[2] = points[:, 2].max() - 0.02
    return edge


def turn_knob(arm: Arm, name: str) -> Motion:
    """Take a stove's knob from above and turn it on."""
    world = arm.world
    joint = world.hinge(name)
    centre_of_turn = world.data.xanchor[joint].copy()
    geoms = world.shapes_of(joint)
    knob = max(geoms, key=lambda g: world.data.geom_xpos[g][2] + 0.1 * world.model.geom_size[g].max())
    extent = np.abs(world.data.geom_xmat[knob].reshape(3, 3)) @ world.model.geom_size[knob]
    centre = world.data.geom_xpos[knob].copy()
    rotation, _ = arm.facing(np.array([0.0, 1.0]) if extent[0] > extent[1] else np.array([1.0, 0.0]))
    height = centre[2] + 0.004
    yield from arm.ready()
    above = np.array([*centre[:2], height + 0.10])
    yield from arm.servo(above, rotation, tolerance=0.015, turn_tolerance=0.08, steps=60)
    yield from arm.servo(np.array([*centre[:2], height]), rotation, steps=45, speed=0.6)
    yield from arm.close()
    offset = np.array([*(centre[:2] - centre_of_turn[:2]), 0.0])
    before = world.joint_value(joint)
    for angle in np.linspace(0.15, 1.1, 8):
        turned = Rotation.from_rotvec(UP * angle)
        target = np.array([*centre_of_turn[:2], height]) + turned.apply(offset)
        yield from arm.servo(target, turned.as_matrix() @ rotation, steps=8)
    moved = abs(world.joint_value(joint) - before)
    yield from arm.open()
    yield from arm.servo(world.hand + UP * 0.12, arm.upright, tolerance=0.03, turn_tolerance=0.3, steps=30)
    return moved > 0.5


def _pointing(arm: Arm, reach: np.ndarray) -> np.ndarray:
    """Orientation whose fingers point along ``reach`` and close vertically; of the two, the smaller turn."""
    world = arm.world
    vertical = UP - (UP @ reach) * reach
    vertical /= np.linalg.norm(vertical)
    fingers = world.hand_rotation.T @ world.finger_axis
    fingers[2] = 0.0
    fingers /= np.linalg.norm(fingers)
    forward = np.array([0.0, 0.0, 1.0])
    in_hand = np.stack([fingers, forward, np.cross(fingers, forward)], axis=1)
    found = []
    for axis in (vertical, -vertical):
        in_world = np.stack([axis, reach, np.cross(axis, reach)], axis=1)
        rotation = in_world @ in_hand.T
        turn = Rotation.from_matrix(rotation @ world.hand_rotation.T).magnitude()
        found.append((turn, rotation))
    return min(found, key=lambda pair: pair[0])[1]
