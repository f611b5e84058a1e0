"""From one set of conventions to another, where that loses nothing; a refusal with the fix where it does.

    world  --pictures, state-->  policy          world: an environment or a robot
    world  <------actions------  policy          policy: a checkpoint, or the dataset it learned from

Exact are: laying a picture down another way, an affine change of the gripper's command, another
representation or unit of the same rotation or displacement. Not exact, hence refused: other pixels, another
rate, a target instead of a displacement, other settle steps, a quaternion whose sign was lost, Euler angles
at gimbal lock, and numbers that are no rotation (`conventions.OF_STATES`, `conventions.OF_ACTIONS`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.spatial.transform import Rotation

from lerobot_policy_vita_vla.conventions import OF_ACTIONS, OF_STATES, ORIENTATIONS, ROTATIONS, Conventions

GIMBAL_LOCK = 1e-6
"""Cosine of the second Euler angle below which scipy's other two are rounding, or arbitrary."""

_TURNS = {
    # Quarter turns counter-clockwise, after mirroring left and right.
    "as_drawn": (0, False),
    "rotated_90": (1, False),
    "rotated_180": (2, False),
    "rotated_270": (3, False),
    "mirrored": (0, True),
    "upside_down": (2, True),
    "transposed": (1, True),
    "antitransposed": (3, True),
}


def orient(pictures: np.ndarray, orientation: str) -> np.ndarray:
    """Lay camera pictures (..., H, W, C) down in one of `conventions.ORIENTATIONS`."""
    turns, mirrored = _TURNS[orientation]
    pictures = np.flip(pictures, -2) if mirrored else pictures
    return np.ascontiguousarray(np.rot90(pictures, turns, axes=(-3, -2)))


@cache
def orientation_between(have: str, want: str) -> str:
    """What turns a picture in orientation ``have`` into one in orientation ``want``."""
    corners = np.arange(4).reshape(2, 2, 1)
    goal = orient(corners, want)
    start = orient(corners, have)
    return next(name for name in ORIENTATIONS if np.array_equal(orient(start, name), goal))


@cache
def orientation_after(first: str, second: str) -> str:
    """The single orientation that equals ``first``, then ``second``."""
    corners = np.arange(4).reshape(2, 2, 1)
    goal = orient(orient(corners, first), second)
    return next(name for name in ORIENTATIONS if np.array_equal(orient(corners, name), goal))


def read_rotation(numbers: np.ndarray, representation: str) -> Rotation:
    """Numbers (..., 3 or 4) in radians or as a quaternion -> rotations (scipy's).

    Raises:
        ValueError: For a representation whose numbers do not tell the rotation.
    """
    if representation in (OF_STATES, OF_ACTIONS):
        raise ValueError(f"numbers in representation {representation!r} do not tell the rotation")
    flat = np.asarray(numbers, dtype=np.float64).reshape(-1, ROTATIONS[representation])
    if representation == "quaternion_xyzw":
        return Rotation.from_quat(flat)
    if representation == "euler_xyz":
        return Rotation.from_euler("xyz", flat)
    return Rotation.from_rotvec(flat)


def write_rotation(rotations: Rotation, representation: str) -> np.ndarray:
    """Rotations -> numbers (n, 3 or 4); for ``axis_angle_2pi`` the quaternion that scipy keeps decides.

    Raises:
        ValueError: If Euler angles are asked for at gimbal lock, where two of them are arbitrary.
    """
    if representation == "quaternion_xyzw":
        return rotations.as_quat()
    if representation == "euler_xyz":
        return _euler(rotations)
    if representation == OF_STATES:
        return wrap_as_euler(write_rotation(rotations, "axis_angle_2pi"))
    if representation == OF_ACTIONS:
        raise ValueError(f"a rotation has no numbers in representation {OF_ACTIONS!r}: they are differences")
    shortest = rotations.as_rotvec()
    if representation == "axis_angle":
        return shortest
    # The same rotation the other way round, where the quaternion's real part is negative.
    angle = np.linalg.norm(shortest, axis=-1, keepdims=True)
    longer = shortest - 2 * np.pi * shortest / np.maximum(angle, 1e-12)
    other_way = (rotations.as_quat()[..., 3:] < 0) & (angle > 1e-12)
    return np.where(other_way, longer, shortest)


def wrap_as_euler(vectors: np.ndarray) -> np.ndarray:
    """Vectors (n, 3) as if they were Euler angles xyz, brought into their range: `conventions.OF_STATES`.

    What Seer's loading of LIBERO's demonstrations does to axis-angle vectors. Numbers beyond half a turn (the
    second: a quarter) change.
    """
    return _euler(Rotation.from_euler("xyz", vectors))


def _euler(rotations: Rotation) -> np.ndarray:
    matrices = rotations.as_matrix()
    if (np.hypot(matrices[..., 0, 0], matrices[..., 1, 0]) < GIMBAL_LOCK).any():
        raise ValueError(
            "a rotation lies at gimbal lock (its second Euler angle is a quarter of a turn), where the other "
            "two Euler angles are arbitrary: use a policy with axis-angle vectors or quaternions"
        )
    return rotations.as_euler("xyz")


def _rewrite(numbers: np.ndarray, at: int, have: tuple[str, float], want: tuple[str, float]) -> np.ndarray:
    # Rotation numbers that begin at `at`, each as (representation, radians per unit).
    if have == want:
        return numbers
    size = ROTATIONS[have[0]]
    if have[0] == want[0] == OF_ACTIONS:
        numbers = np.array(numbers)
        numbers[..., at : at + size] *= have[1] / want[1]
        return numbers
    rotation = read_rotation(numbers[..., at : at + size] * have[1], have[0])
    new = write_rotation(rotation, want[0]).reshape(*numbers.shape[:-1], -1) / want[1]
    return np.concatenate([numbers[..., :at], new, numbers[..., at + size :]], axis=-1).astype(numbers.dtype)


@dataclass(frozen=True)
class Conversion:
    """Between a policy and the world it acts in; made by `plan_conversion`.

    Args:
        policy: What the policy, or its dataset, means.
        world: What the environment or robot means.
    """

    policy: Conventions
    world: Conventions

    @property
    def steps(self) -> list[str]:
        """What is converted, one line each; empty where nothing is."""
        return [
            f"{name}: {mine!r} for the policy, {theirs!r} in the environment"
            for name, (mine, theirs) in self.policy.differences(self.world).items()
        ]

    def pictures(self, pictures: np.ndarray) -> np.ndarray:
        """World's pictures (..., H, W, C) as the policy knows them."""
        have, want = self.world.image_orientation, self.policy.image_orientation
        return pictures if have == want else orient(pictures, orientation_between(have, want))

    def state(self, state: np.ndarray) -> np.ndarray:
        """World's state (..., S) as the policy knows it."""
        have, want = self.world.state_rotation, self.policy.state_rotation
        if have == want:
            return state
        return _rewrite(np.asarray(state), self.world.state_rotation_at, (have, 1.0), (want, 1.0))

    def actions(self, actions: np.ndarray) -> np.ndarray:
        """Policy's actions (..., A) as the world executes them."""
        mine, theirs = self.policy, self.world
        out = np.array(actions)
        if mine.gripper_dim is not None:
            closed = (out[..., mine.gripper_dim] - mine.gripper_open) / (
                mine.gripper_closed - mine.gripper_open
            )
            if (mine.gripper_open, mine.gripper_closed) != (theirs.gripper_open, theirs.gripper_closed):
                span = theirs.gripper_closed - theirs.gripper_open
                out[..., mine.gripper_dim] = theirs.gripper_open + closed * span
        if mine.position_unit != theirs.position_unit:
            out[..., :3] *= mine.position_unit / theirs.position_unit
        if mine.action_rotation is None:
            return out
        return _rewrite(
            out,
            mine.action_rotation_at,
            (mine.action_rotation, mine.rotation_unit),
            (theirs.action_rotation, theirs.rotation_unit),
        )


REFUSALS = {
    "image_size": "other pixels are other pictures: let the environment draw {mine[0]} x {mine[1]}",
    "control_hz": "an action is what happens in 1/{mine:g} s: run the environment or robot at {mine:g} Hz",
    "settle_steps": "let the environment do {mine} idle steps after its reset",
    "refreshed": "let the environment make its first observation as the policy's did: after the idle steps "
    "(True) or before them (False)",
    "action_mode": "let the controller take {mine} actions",
    "state_position": "give the policy the state it was trained on",
    "state_rotation_at": "give the policy the state it was trained on",
    "action_rotation_at": "train on data with this environment's order of action numbers",
}
"""Field -> what to do where it differs; ``mine`` is the policy's value."""


def plan_conversion(policy: Conventions, world: Conventions) -> Conversion:
    """How a policy and a world with other conventions understand each other.

    Raises:
        ValueError: If they cannot without loss; names every convention that differs, both values and the fix.
    """
    found = policy.differences(world)
    problems = [
        f"{name} is {mine!r} for the policy and {theirs!r} here: {REFUSALS[name].format(mine=mine)}"
        for name, (mine, theirs) in found.items()
        if name in REFUSALS
    ]
    for name in ("action_rotation", "state_rotation"):
        mine, theirs = found.get(name, (None, None))
        if (mine is None) != (theirs is None):
            problems.append(f"{name} is {mine!r} for the policy and {theirs!r} here: one of them has none")
    pair = found.get("action_rotation", ())
    if OF_ACTIONS in pair and None not in pair:
        problems.append(
            f"action_rotation is {pair[0]!r} for the policy and {pair[1]!r} here: three numbers that are "
            "added to Euler angles turn the hand otherwise in each of its orientations; train on actions in "
            "this environment's representation"
        )
    mine, theirs = found.get("state_rotation", (None, None))
    if theirs == OF_STATES and mine is not None:
        problems.append(
            f"state_rotation is {mine!r} for the policy and {theirs!r} here, which does not tell the "
            f"rotation: let the environment give quaternion_xyzw or {mine}"
        )
    elif mine in ("axis_angle_2pi", OF_STATES) and theirs not in (None, "quaternion_xyzw", "axis_angle_2pi"):
        problems.append(
            f"state_rotation is {mine!r} for the policy and {theirs!r} here, which has lost the quaternion's "
            "sign: let the environment give quaternion_xyzw or axis_angle_2pi"
        )
    if mine == "quaternion_xyzw" and theirs in ("axis_angle", "euler_xyz"):
        problems.append(
            f"state_rotation is {mine!r} for the policy and {theirs!r} here, which has lost the quaternion's "
            "sign: let the environment give quaternions"
        )
    problems += _layout_problems(policy, world)
    if problems:
        raise ValueError("conventions that cannot be converted without loss:\n  " + "\n  ".join(problems))
    return Conversion(policy, world)


def _layout_problems(policy: Conventions, world: Conventions) -> list[str]:
    if (policy.gripper_dim is None) != (world.gripper_dim is None):
        return [
            f"gripper_dim is {policy.gripper_dim} for the policy and {world.gripper_dim} here: one has none"
        ]
    longer = ROTATIONS.get(world.action_rotation, 0) - ROTATIONS.get(policy.action_rotation, 0)
    dim, gripper = policy.action_dim + longer, policy.gripper_dim
    if gripper is not None and policy.action_rotation and gripper > policy.action_rotation_at:
        gripper += longer
    if (dim, gripper) == (world.action_dim, world.gripper_dim):
        return []
    return [
        f"action_dim and gripper_dim are {policy.action_dim} and {policy.gripper_dim} for the policy, "
        f"{world.action_dim} and {world.gripper_dim} here: train on this environment's data"
    ]
