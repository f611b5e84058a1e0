"""A thing that is set down beside its place, on purpose: what the arm does there, and what the expert wants.

A policy that sees to a few centimetres lets go of a bowl where LIBERO does not call it on the plate. In clean
demonstrations a thing that was let go of is always where it belongs, so nobody has taught the policy to take
it up again, and it stays. As in `libero_miss` the arm is led through the mistake while labels are the way out
of it: to the right place as long as the thing is held, then back to it, with open fingers.

Near the place neither labels nor the expert's second way to it lead up more than taking hold of the thing
needs. Labels that lead up from beside the place and labels that lead down from over it average to none where
a policy that sees to two centimetres cannot tell the one from the other: it hovers, the thing in its hand.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lerobot_policy_vita_vla.demos.libero_arm import CLOSED, OPEN, Arm, Motion
from lerobot_policy_vita_vla.demos.libero_grasps import BASE, FAR, grasps, height_above
from lerobot_policy_vita_vla.demos.libero_miss import back
from lerobot_policy_vita_vla.demos.libero_place import LOWERING, set_down

ASIDE = (0.034, 0.055)
"""Metres from its place (ours): `On` asks for less than 3 cm, and what policies miss it by is 3 to 5 cm; they
did not go back to what lay nearer than in any demonstration, when those began at 4 cm."""

DRAWS = 8
"""Directions drawn, of which the first is taken that the arm reaches well."""

STAY_STEPS = (0, 10)
"""Steps for which the opened hand stays over the thing."""

CLEAR = 0.03
"""Metres below the height of the approach from which the opened hand moves sideways."""

SLOW = 120
"""Steps of setting it aside after which the arm counts as stuck (ours)."""

AROUND = 0.10
"""Metres from its place within which nothing stands in the way of a held thing at any height."""

LONGER = 120
"""Steps that an episode with a thing set aside may take beyond the limit."""


def applies(env) -> bool:
    """Whether the task of LIBERO's own environment puts something onto a thing, not into one or a region."""
    goals = env.parsed_problem["goal_state"]
    return any(goal[0].lower() == "on" and goal[-1] not in env.object_sites_dict for goal in goals)


def set_aside(
    arm: Arm, name: str, target: str, xy: np.ndarray, height: float, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Steps of it: (what the expert wants (7,), what the arm does (7,)).

    Ends early, with the thing still held, where the arm is stuck.

    Args:
        arm: Holds the thing over its way; afterwards open, over the thing.
        name: The thing.
        target: What it is put onto.
        xy: (2,) where its middle belongs.
        height: Where its lowest point belongs, metres.
        rng: Draws where it is set down instead.
    """
    angles, far = rng.uniform(0, 2 * np.pi, DRAWS), rng.uniform(*ASIDE)
    stay = int(rng.integers(*STAY_STEPS, endpoint=True))
    travel, way, above = arm.world.hand[2], None, 0.0
    # Where the arm is not stretched: it could not be pulled back from there.
    places = xy + far * np.stack([np.cos(angles), np.sin(angles)], 1)
    reach = np.linalg.norm(places + (arm.world.hand - arm.world.position(name))[:2] - BASE, axis=1)
    near = np.flatnonzero(reach < FAR)
    there = places[near[0] if len(near) else reach.argmin()]
    for step, done in enumerate(_mistake(arm, name, there, height, stay)):
        if arm.grip == CLOSED:
            if step == SLOW:
                return
            yield _on(arm, name, xy, height, travel), done
            continue
        if way is None:
            if not (ways := grasps(arm.world, arm, name, target)):
                return
            way = ways[0]
            above = height_above(arm.world, name, way)
        if arm.world.hand[2] < above - CLEAR:
            # Not sideways while the rim is between the fingers.
            up = np.array([*arm.world.hand[:2], above])
            yield arm.towards(up, arm.rotation, 1.0, OPEN), done
        else:
            yield back(arm, way, above), done


def _mistake(arm: Arm, name: str, xy: np.ndarray, height: float, stay: int) -> Motion:
    yield from set_down(arm, name, xy, height, coned=True)
    return (yield from arm.hold(stay))


def _on(arm: Arm, name: str, xy: np.ndarray, height: float, travel: float) -> np.ndarray:
    # Over the place, then down to it along the cone, as `set_down` goes by itself; from where it is too low
    # for that, sideways.
    world = arm.world

    def over(z: float) -> np.ndarray:
        return np.array([*(world.hand[:2] + xy - world.position(name)[:2]), z])

    if np.linalg.norm(world.position(name)[:2] - xy) > AROUND:
        return arm.towards(over(max(travel, world.hand[2])), arm.rotation, 1.0, CLOSED)
    low = world.hand[2] - (world.points(name)[:, 2].min() - height)
    heading = arm.cone(over, low, max(low, world.hand[2]))
    return arm.towards(heading, arm.rotation, LOWERING, CLOSED)
