"""A grasp that misses, on purpose: what the arm does there, and what the expert wants meanwhile.

A policy that saw badly closes its fingers beside the thing and carries nothing to the goal. In clean
demonstrations an empty closed hand never occurs, so it has not learned to come back: all failures of teacher
and student on LIBERO-Spatial and -Object that were looked at went that way. Here the arm is led through the
same mistake, while the label of every frame is the way back (DART, Laskey et al. 2017, with the policy's own
mistake as the noise).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lerobot_policy_vita_vla.demos.libero_arm import CLOSED, OPEN, Arm, Motion
from lerobot_policy_vita_vla.demos.libero_grasps import BROAD, DESCENT, LAST, Grasp, over

BESIDE = (0.0, 0.04)
"""Metres sideways from the grasp at which the fingers close (ours, as are the ranges below)."""

ABOVE_TOP = (0.03, 0.06)
"""Metres above the thing's top at which they are to close; the hand sinks by up to two centimetres meanwhile.
They must hold nothing: where something is held, going on is right and not coming back."""

LIFT_STEPS = (0, 20)
"""Steps for which the empty hand rises."""

CARRY_CHANCE = 0.7
"""Share of misses in which the empty hand also sets out for the goal, up to all the way."""

THIN_CARRY = 0.5
"""Of that way at most, where the thing would be held by a thin rim: there the empty fingers stand a few
millimetres closer than those that hold it. Policies that had seen both over the goal held the bowl there and
did not set it down."""

LONGER = 120
"""Steps that an episode with a miss may take beyond the limit."""

NEAR = 0.02
"""Metres sideways within which the hand is over the grasp."""

TOUCHED = 0.01
"""Metres that the thing may have moved."""


def missed_grasp(
    arm: Arm,
    name: str,
    way: Grasp,
    above: float,
    lift: float,
    goal: np.ndarray | None,
    rng: np.random.Generator,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Steps of a miss: (what the expert wants (7,), what the arm does (7,)).

    Args:
        arm: Over the grasp with open fingers; afterwards anywhere between there and the goal.
        name: The thing.
        way: The grasp that is missed.
        above: Height of the approach.
        lift: Height at which the thing would be carried.
        goal: (2,) where it would be carried; None stays.
        rng: Draws where the fingers close and how far the empty hand gets.
    """
    for done in _mistake(arm, name, way, lift, goal, rng):
        yield back(arm, way, above), done
    arm.grip = OPEN


def disturbed(arm: Arm, name: str, before: np.ndarray) -> bool:
    """Whether the thing is not where it was (3,): then the miss was none."""
    return bool(np.linalg.norm(arm.world.position(name) - before) > TOUCHED)


def _mistake(arm: Arm, name: str, way: Grasp, lift: float, goal: np.ndarray | None, rng) -> Motion:
    angle, beside = rng.uniform(0, 2 * np.pi), rng.uniform(*BESIDE)
    height = arm.world.points(name)[:, 2].max() + rng.uniform(*ABOVE_TOP)
    rise = int(rng.integers(*LIFT_STEPS, endpoint=True))
    carried = rng.uniform() if rng.uniform() < CARRY_CHANCE else 0.0
    if way.thin:
        carried *= THIN_CARRY
    there = way.behind(height) + beside * np.array([np.cos(angle), np.sin(angle), 0.0])
    yield from arm.servo(there, tolerance=0.01, steps=25, speed=DESCENT)
    yield from arm.close()
    yield from arm.servo(np.array([*there[:2], lift]), tolerance=0.02, steps=rise, speed=0.8)
    if goal is not None and carried > 0:
        on = arm.world.hand.copy()
        on[:2] += carried * (goal - on[:2])
        yield from arm.servo(on, tolerance=0.02, steps=60)
    return True


def back(arm: Arm, way: Grasp, above: float) -> np.ndarray:
    """An action (7,) from anywhere to over a grasp, then down to it, as the expert goes; fingers open."""
    hand = arm.world.hand
    if np.linalg.norm(hand[:2] - way.behind(hand[2])[:2]) > (BROAD if way.coned else NEAR):
        target, speed = over(arm, way, above), 1.0
    elif way.coned:
        low = above - LAST if arm.grip == CLOSED else way.height
        target, speed = arm.cone(way.behind, low, above, way.rotation), DESCENT
    elif arm.grip == CLOSED:
        # Down only with open fingers.
        target, speed = way.behind(above - LAST), 1.0
    else:
        target, speed = way.behind(way.height), DESCENT
    return arm.towards(target, way.rotation, speed, OPEN)
