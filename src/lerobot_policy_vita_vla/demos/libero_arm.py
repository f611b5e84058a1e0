"""Moving LIBERO's hand by the actions that a policy has: displacements of an operational-space controller.

Every movement is a generator of actions (7,): it looks at the world again after each one, so a disturbance is
answered, and its return value says whether it arrived.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

import numpy as np
from scipy.spatial.transform import Rotation

from lerobot_policy_vita_vla.demos.libero_world import World

Motion = Generator[np.ndarray, None, bool]
Way = Callable[[float], np.ndarray]

OPEN, CLOSED = -1.0, 1.0

GAIN = 12.0
"""Action units per metre: a displacement of 8 cm or more is commanded at full speed."""

INTEGRAL, INTEGRAL_LIMIT, INTEGRAL_WITHIN = 2.5, 0.5, 0.04
"""Joint friction stops a purely proportional law one to two centimetres short of its goal."""

SLOW = 0.004
"""Metres per step below which the integral grows: while the hand still moves, it would only overshoot."""

TURN_GAIN, TURN_LIMIT = 2.0, 0.6

CONE_TIP, CONE_STEEP, CONE_TURN = 0.008, 4.0, 0.05
"""A cone over a goal, on whose surface the hand comes down: metres aside that are near enough at the bottom,
metres higher per metre aside, and metres aside that a radian of turning counts as."""

STALLED_AFTER, STALLED_TURNING = 12, 20
"""Steps without getting nearer after which a movement is as good as it gets."""

DOWN = np.array([0.0, 0.0, -1.0])


class Arm:
    """The hand of one episode.

    Args:
        world: Its scene, just reset.

    Attributes:
        grip: Command of the gripper, `OPEN` or `CLOSED`.
        upright: (3, 3) the start heading with the fingers pointing straight down.
    """

    def __init__(self, world: World):
        self.world, self.grip = world, OPEN
        heading = world.hand_rotation[:, 0]
        heading = heading - (heading @ DOWN) * DOWN
        heading /= np.linalg.norm(heading)
        self.upright = np.stack([heading, np.cross(DOWN, heading), DOWN], axis=1)
        self.rotation = self.upright

    def command(self, move=(0.0, 0.0, 0.0), turn=(0.0, 0.0, 0.0), grip: float | None = None) -> np.ndarray:
        """One action; ``grip`` None is the gripper's present command."""
        grip = self.grip if grip is None else grip
        return np.clip(np.concatenate([move, turn, [grip]]), -1.0, 1.0).astype(np.float32)

    def towards(self, target: np.ndarray, rotation: np.ndarray, speed: float, grip: float) -> np.ndarray:
        """One action (7,) of a movement without its memory, as `servo` has; ``grip`` commands the gripper."""
        move = _slowed((target - self.world.hand) * GAIN, speed)
        return self.command(move, _turning(_turned(rotation, self.world.hand_rotation)), grip)

    def cone(self, way: Way, low: float, high: float, rotation: np.ndarray | None = None) -> np.ndarray:
        """Where (3,) the hand heads for on a way down: the lower, the less it is aside.

        Nothing is waited for: a policy that sees where it is to a centimetre comes down as well. One that
        learned to come down only within half a centimetre hovers.

        Args:
            way: Point (3,) of the way at a height.
            low: Height of its end, metres.
            high: Height from which it starts.
            rotation: (3, 3) to turn to; None is the last one asked for.
        """
        hand = self.world.hand
        turn = _turned(self.rotation if rotation is None else rotation, self.world.hand_rotation)
        aside = np.linalg.norm((hand - way(hand[2]))[:2]) + CONE_TURN * np.linalg.norm(turn)
        return way(float(np.clip(low + CONE_STEEP * (aside - CONE_TIP), low, high)))

    def servo(
        self,
        target: np.ndarray,
        rotation: np.ndarray | None = None,
        *,
        tolerance: float = 0.006,
        turn_tolerance: float = 0.06,
        steps: int = 70,
        speed: float = 1.0,
        heading: Callable[[], np.ndarray] | None = None,
    ) -> Motion:
        """Go to a position and orientation.

        Args:
            target: (3,) metres.
            rotation: (3, 3); None keeps the last one asked for.
            tolerance: Metres.
            turn_tolerance: Radians.
            steps: Give up after this many.
            speed: Largest command.
            heading: What to head for (3,) meanwhile, asked at every step; None is the target itself.
        """
        if rotation is not None:
            self.rotation = rotation
        nearest, last, stalled, integral = np.inf, np.inf, 0, np.zeros(3)
        for _ in range(steps):
            off = target - self.world.hand
            turn = _turned(self.rotation, self.world.hand_rotation)
            distance, angle = np.linalg.norm(off), np.linalg.norm(turn)
            if distance < tolerance and angle < turn_tolerance:
                return True
            stalled = stalled + 1 if distance > nearest - 4e-4 else 0
            nearest = min(nearest, distance)
            if stalled > (STALLED_AFTER if angle < turn_tolerance else STALLED_TURNING):
                break
            integral = np.where(off * integral < 0, 0.0, integral)
            if distance < INTEGRAL_WITHIN and last - distance < SLOW:
                integral = np.clip(integral + off * INTEGRAL, -INTEGRAL_LIMIT, INTEGRAL_LIMIT)
            last = distance
            ahead = off if heading is None else heading() - self.world.hand
            yield self.command(_slowed(ahead * GAIN + integral, speed), _turning(turn))
        return bool(np.linalg.norm(target - self.world.hand) < 2 * tolerance)

    def close(self) -> Motion:
        """Close the gripper until it is still: the command ramps for 8 steps and the fingers lag behind."""
        self.grip, last, still = CLOSED, self.world.opening, 0
        for step in range(20):
            yield self.command()
            opening = self.world.opening
            still = still + 1 if abs(opening - last) < 4e-4 else 0
            last = opening
            if step > 7 and still >= 2:
                break
        return True

    def hold(self, steps: int) -> Motion:
        """Stay."""
        for _ in range(steps):
            yield self.command()
        return True

    def ready(self) -> Motion:
        """Open the gripper unless it is open."""
        return (yield from self.hold(0) if self.grip == OPEN else self.open())

    def open(self) -> Motion:
        """Open the gripper; 8 steps are its ramp."""
        self.grip = OPEN
        return (yield from self.hold(8))

    def leaning(self, rotation: np.ndarray, direction: np.ndarray, angle: float) -> np.ndarray:
        """An orientation tipped so that the fingers lead and the palm follows.

        Args:
            rotation: (3, 3) with the fingers down.
            direction: (3,) horizontal unit vector in which the fingers lead.
            angle: Radians from the vertical.
        """
        return Rotation.from_rotvec(np.cross(DOWN, direction) * angle).as_matrix() @ rotation

    def facing(self, axis: np.ndarray) -> tuple[np.ndarray, float]:
        """Upright orientation with the fingers along ``axis`` (2,), and the turn from the start heading.

        The axis has no sign: of its two directions the nearer one is taken.
        """
        in_hand = self.world.hand_rotation.T @ self.world.finger_axis
        now = self.upright @ in_hand
        turn = np.arctan2(axis[1], axis[0]) - np.arctan2(now[1], now[0])
        turn = (turn + np.pi / 2) % np.pi - np.pi / 2
        return Rotation.from_rotvec([0.0, 0.0, turn]).as_matrix() @ self.upright, float(turn)


def _turned(wanted: np.ndarray, there: np.ndarray) -> np.ndarray:
    return Rotation.from_matrix(wanted @ there.T).as_rotvec()


def _turning(turn: np.ndarray) -> np.ndarray:
    return np.clip(turn * TURN_GAIN, -TURN_LIMIT, TURN_LIMIT)


def _slowed(move: np.ndarray, speed: float) -> np.ndarray:
    # The whole vector, so that the hand keeps its direction.
    return move * min(1.0, speed / max(np.abs(move).max(), 1e-9))
