"""A scripted expert for LIBERO: from the goal's predicates to movements, from simulator state.

    goals of the task, in order -> a skill each: pick and place, drawer, knob -> one action per call

It acts through the same seven numbers as a policy. Not every task has an expert: those whose goals need
another skill are refused by name (`unknown_goals`); how often the others succeed is measured by
runs/libero_experts.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from lerobot_policy_vita_vla.demos.libero_arm import OPEN, Arm, Motion
from lerobot_policy_vita_vla.demos.libero_aside import set_aside
from lerobot_policy_vita_vla.demos.libero_fixtures import open_drawer, push_shut, turn_knob
from lerobot_policy_vita_vla.demos.libero_grasps import Grasp, approach, grasps, height_above, sink
from lerobot_policy_vita_vla.demos.libero_insert import bring_in, find_opening, handle_grasps
from lerobot_policy_vita_vla.demos.libero_miss import disturbed, missed_grasp
from lerobot_policy_vita_vla.demos.libero_place import (
    LIFTED,
    clear,
    highest_between,
    set_down,
    side_by_side,
    uncovered,
)
from lerobot_policy_vita_vla.demos.libero_world import World, in_order

TRIES = 3
"""Grasps of a thing, and attempts at a goal, before giving up."""

OPEN_ENOUGH = 0.10
"""Metres that a drawer must stand open before something is put into it."""

HIGHEST = 1.36
"""Metres above the floor that the hand reaches with the fingers down."""

LIFT_IN = 0.09
"""Metres above an opening's floor to which the hand raises a mug by its handle."""

OUT_FROM_UNDER = 0.04
"""Metres that a leaning hand goes on along its slant before it rises."""

FLAT = 0.04
"""Metres of height, a plate's say, up to which things are set down on a thing's edge on purpose."""

RAISED_LESS = 0.03
"""Metres below the hand that let go of it to which a thing set aside is raised again."""

LIFTING, LIFTING_TIGHT = (0.8, 45), (0.5, 72)
"""Largest command and most steps while lifting, and where the grasp is tight: pulled up fast, it slips."""


def unknown_goals(goals: list[list[str]]) -> list[str]:
    """Goals for which there is no skill, as text; from predicates alone, without a simulator."""
    return [
        " ".join(goal) for goal in goals if goal[0].lower() not in ("on", "in", "open", "close", "turnon")
    ]


class Expert:
    """The expert of one episode; its first call begins.

    Args:
        env: LIBERO's own environment, reset and settled.
        miss: Lets the first grasp miss and draws how (`libero_miss`); None lets nothing miss.
        aside: Lets what is put onto a flat thing be set down beside its place at first and draws where
            (`libero_aside`); None lets nothing be.

    Attributes:
        executed: (7,) what the arm is to do instead of the last action while it makes a mistake, else None.

    Raises:
        ValueError: If the task needs a skill that is missing.
    """

    def __init__(
        self, env, miss: np.random.Generator | None = None, aside: np.random.Generator | None = None
    ):
        self.world = World(env)
        self._miss, self._aside, self.executed = miss, aside, None
        if missing := unknown_goals(self.world.goals):
            raise ValueError(
                f"the scripted expert has no skill for the goal {missing[0]!r}: leave the task out, or take "
                "LIBERO's own demonstrations (docs/libero.md)"
            )
        self.arm = Arm(self.world)
        self._motion = self._solve()

    def action(self) -> np.ndarray:
        """The next action (7,) float32 in [-1, 1]; stays when everything is done or it has given up."""
        return next(self._motion)

    def _solve(self):
        # What is to be closed in the end is filled before.
        for goal in in_order(self.world.goals):
            for _ in range(TRIES):
                # What slipped on its way is picked up where it fell.
                if self.world.holds(goal) or ((yield from self._skill(*goal)) and self.world.holds(goal)):
                    break
            else:
                break
        yield from self._stay()

    def _stay(self) -> Motion:
        while True:
            yield self.arm.command()

    def _skill(self, predicate: str, name: str, where: str = "") -> Motion:
        predicate = predicate.lower()
        if predicate == "open":
            return (yield from open_drawer(self.arm, name))
        if predicate == "close":
            joint, goal = self.world.joint_of(name), [predicate, name]
            return (yield from push_shut(self.arm, joint, lambda: self.world.holds(goal)))
        if predicate == "turnon":
            return (yield from turn_knob(self.arm, name))
        if predicate == "in" and "basket" in where:
            return (yield from self._into_basket(name, where))
        if predicate == "in" and "microwave" in where:
            return (yield from self._through_opening(name, where))
        if where in self.world.bodies:
            return (yield from self._onto_thing(name, where))
        if predicate == "in":
            return (yield from self._into_drawer(name, where))
        return (yield from self._onto_region(name, where))

    def _into_basket(self, name: str, region: str) -> Motion:
        world = self.world
        basket = world.points(world.region_owner(region) or region.removesuffix("_contain_region"))
        rim, middle = basket[:, 2].max(), (basket[:, :2].min(0) + basket[:, :2].max(0)) / 2
        tall = np.ptp(world.points(name)[:, 2])
        if not (yield from self._pick(name, rim + 0.055 + tall / 2, goal=middle)):
            return False
        yield from clear(self.arm, name, rim + 0.03)
        # Tall cartons can stay wedged on the opened fingers: set them down inside instead of dropping them.
        below_hand = world.hand[2] - world.points(name)[:, 2].min()
        height = max(rim - 0.11, min(rim - 0.06, rim - 0.02 - below_hand))
        return (yield from set_down(self.arm, name, middle, height))

    def _onto_thing(self, name: str, target: str) -> Motion:
        world = self.world
        start, goal = world.position(name)[:2], world.position(target)[:2]
        shape = world.points(target)
        near = np.linalg.norm(shape[:, :2] - goal, axis=1) < 0.04
        base = shape[near, 2].max() if near.any() else shape[:, 2].max()
        high = max(highest_between(world.obstacles(name, target), start, goal), shape[:, 2].max())
        tall = np.ptp(world.points(name)[:, 2])
        if not (yield from self._pick(name, high + tall + 0.05, goal=goal)):
            return False
        yield from clear(self.arm, name, high + 0.025)
        if self._aside is not None and np.ptp(shape[:, 2]) < FLAT:
            rng, self._aside = self._aside, None
            yield from self._instead(set_aside(self.arm, name, target, goal, base + 0.006, rng))
            # Raised as little as can be: nothing stands in its way, and labels are to lead up nowhere else.
            lift = self.world.hand[2] - RAISED_LESS
            find = partial(grasps, on=target)
            if self.arm.grip != OPEN or not (yield from self._pick(name, lift, find, tries=1)):
                yield from self._stay()  # fumbling is not what it is to show: an attempt that is dropped
        return (yield from set_down(self.arm, name, goal, base + 0.006, coned=True))

    def _onto_region(self, name: str, region: str) -> Motion:
        world = self.world
        centre, owner = world.site(region), world.region_owner(region)
        # A region of the table has no height of its own; the thing stands on the same table.
        base = world.points(name)[:, 2].min() if owner is None else centre[2]
        on_top = "top_side" in region
        if owner is not None and (on_top or "cook" in region):
            shape = world.points(owner)
            near = np.linalg.norm(shape[:, :2] - centre[:2], axis=1) < 0.05
            base = max(centre[2], shape[near, 2].max()) if near.any() else centre[2]
        high = max(base, world.obstacles(name)[:, 2].max()) if on_top else base + 0.08
        tall = np.ptp(world.points(name)[:, 2])
        if not (yield from self._pick(name, min(high + tall + 0.05, HIGHEST), goal=centre[:2])):
            return False
        yield from clear(self.arm, name, high + 0.02)
        place = centre[:2] + side_by_side(world, name, region)
        return (yield from set_down(self.arm, name, place, base + 0.004))

    def _into_drawer(self, name: str, region: str) -> Motion:
        world = self.world
        joint = world.region_joint(region)
        shut = joint is not None and abs(world.joint_value(joint)) < OPEN_ENOUGH
        if shut and not (yield from open_drawer(self.arm, region, 0.155)):
            return False
        owner = world.region_owner(region)
        high = (world.points(owner) if owner else world.obstacles(name))[:, 2].max()
        if not (yield from self._pick(name, high + 0.10)):
            return False
        yield from clear(self.arm, name, high + 0.02)
        *place, floor = uncovered(world, name, region, owner)
        return (yield from set_down(self.arm, name, np.array(place), floor))

    def _through_opening(self, name: str, region: str) -> Motion:
        world = self.world
        opening = find_opening(world, region, world.region_owner(region))
        if not (yield from self._pick(name, opening.floor + LIFT_IN, handle_grasps)):
            return False
        yield from bring_in(self.arm, name, opening)
        return world.holds(["in", name, region])

    def _pick(
        self, name: str, lift: float, find=grasps, goal: np.ndarray | None = None, tries: int = TRIES
    ) -> Motion:
        arm, world = self.arm, self.world
        for attempt in range(tries):
            ways = find(world, arm, name)
            if not ways:
                return False
            # Later attempts take clearly different grasps, not the neighbours of the one that failed.
            way = ways[min(3 * attempt, len(ways) - 1)]
            above = height_above(world, name, way)
            if attempt:
                yield from arm.open()
                up = np.array([*world.hand[:2], max(above, world.hand[2])])
                yield from arm.servo(up, steps=25, tolerance=0.02)
            yield from approach(arm, way, above)
            if self._miss is not None:
                yield from self._miss_once(name, way, above, lift, goal)
                yield from approach(arm, way, above)
                if not way.coned:
                    yield from arm.open()
            yield from sink(arm, way, above)
            yield from arm.close()
            before = world.position(name)[2]
            if way.under:
                # Back along the same slant, from under what hangs over it.
                yield from arm.servo(way.behind(above + OUT_FROM_UNDER), tolerance=0.03, steps=30)
            up = np.array([*world.hand[:2], max(lift, way.height + 0.05)])
            speed, steps = LIFTING_TIGHT if way.tight else LIFTING
            yield from arm.servo(up, tolerance=0.02, steps=steps, speed=speed)
            if world.position(name)[2] > before + LIFTED:
                return True
        return False

    def _miss_once(self, name: str, way: Grasp, above: float, lift: float, goal: np.ndarray | None) -> Motion:
        rng, self._miss = self._miss, None
        before = self.world.position(name)
        yield from self._instead(missed_grasp(self.arm, name, way, above, lift, goal, rng))
        if disturbed(self.arm, name, before):
            yield from self._stay()  # its labels would be wrong: an attempt that is dropped
        return True

    def _instead(self, mistake: Iterator[tuple[np.ndarray, np.ndarray]]) -> Iterator[np.ndarray]:
        for wanted, self.executed in mistake:
            yield wanted
        self.executed = None
