"""What numbers and pictures mean, written down with the data and compared wherever they are used again.

Most results that cannot be reproduced come from a convention that nobody wrote down: which camera, at which
size and orientation, which sign of the gripper. `Conventions` writes them down, `RecordingInfo` carries them
into every checkpoint, `conversion.plan_conversion` converts or refuses, `match_cameras` replaces guessing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

# Offered here as well: a dataset's scale is one of its conventions.
from lerobot_policy_vita_vla.scales import compare_statistics, statistics_hash

__all__ = [
    "Conventions",
    "RecordingInfo",
    "camera_role",
    "compare_statistics",
    "match_cameras",
    "statistics_hash",
]

RECORDING_FILE = "meta/vita_vla.json"
"""Where a recorded dataset keeps its `RecordingInfo`, relative to the dataset's root."""

WRIST_WORDS = frozenset({"wrist", "hand", "eye", "gripper", "inhand"})
PRIMARY_WORDS = frozenset(
    {
        "image",
        "top",
        "agentview",
        "front",
        "primary",
        "main",
        "base",
        "scene",
        "exterior",
        "corner",
        "corner2",
    }
)


ORIENTATIONS = (
    "as_drawn",
    "rotated_90",
    "rotated_180",
    "rotated_270",
    "mirrored",
    "upside_down",
    "transposed",
    "antitransposed",
)
"""The eight ways to lay a square picture down, against the camera's own; `conversion.orient` draws them.
Rotations are counter-clockwise; mirrored swaps left and right; transposed swaps rows and columns."""

OF_STATES, OF_ACTIONS = "axis_angle_2pi_as_euler", "euler_xyz_added"
"""The two that only a state and only an action may have; neither can be read as a rotation."""

ROTATIONS = {"axis_angle": 3, "axis_angle_2pi": 3, "euler_xyz": 3, "quaternion_xyzw": 4, OF_STATES: 3}
ROTATIONS[OF_ACTIONS] = 3
"""Rotation representation -> how many numbers it takes. ``axis_angle`` is the shortest (angle up to pi);
``axis_angle_2pi`` follows its quaternion's sign (angle up to 2 pi), as robosuite's and LeRobot's LIBERO state
does, and `OF_STATES` is its three numbers brought into the range of Euler angles as if they were some, as
Seer's training does; ``euler_xyz`` is about fixed axes x, y, z in this order, and `OF_ACTIONS` is added to
such angles number by number, as CALVIN does."""

ACTION_MODES = ("delta", "absolute")


@dataclass(frozen=True)
class Conventions:
    """What pictures, states and actions mean: to a dataset, a checkpoint, an environment or a robot.

    Args:
        image_size: Height and width, pixels.
        control_hz: Actions per second.
        image_orientation: One of `ORIENTATIONS`: how pictures lie against the camera's own.
        settle_steps: Idle steps between an environment's reset and the first action.
        refreshed: The first observation is made after them, not before; None where a record does not say,
            and then it is not compared.
        action_mode: ``"delta"`` (displacements) or ``"absolute"`` (targets).
        action_dim: A.
        position_unit: Metres per unit of the action's position, whose three numbers come first.
        state_position: Index of the hand's x in the state, its position in metres; None if not there.
        gripper_dim: Index of the gripper command; None without one.
        gripper_open: Command that opens.
        gripper_closed: Command that closes. The two together are sign and range.
        action_rotation: Key of `ROTATIONS`; None where actions do not rotate.
        action_rotation_at: Index of its first number.
        rotation_unit: Radians per unit of the action's rotation.
        state_rotation: Key of `ROTATIONS`, of the hand's orientation in the state; None if not there.
        state_rotation_at: Index of its first number.
    """

    image_size: tuple[int, int]
    control_hz: float
    image_orientation: str = "as_drawn"
    settle_steps: int = 0
    refreshed: bool | None = None
    action_mode: str = "delta"
    action_dim: int = 7
    position_unit: float = 1.0
    state_position: int | None = 0
    gripper_dim: int | None = -1
    gripper_open: float = -1.0
    gripper_closed: float = 1.0
    action_rotation: str | None = None
    action_rotation_at: int = 3
    rotation_unit: float = 1.0
    state_rotation: str | None = None
    state_rotation_at: int = 3

    def __post_init__(self):
        object.__setattr__(self, "image_size", tuple(self.image_size))
        if self.gripper_dim is not None and self.gripper_dim < 0:
            object.__setattr__(self, "gripper_dim", self.action_dim + self.gripper_dim)
        choices = {
            "image_orientation": ORIENTATIONS,
            "action_mode": ACTION_MODES,
            "action_rotation": (None, *(name for name in ROTATIONS if name != OF_STATES)),
            "state_rotation": (None, *(name for name in ROTATIONS if name != OF_ACTIONS)),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is one of {list(allowed)}, got {getattr(self, name)!r}")
        if self.gripper_open == self.gripper_closed:
            raise ValueError(f"gripper_open and gripper_closed must differ, both are {self.gripper_open}")
        for name in ("control_hz", "position_unit", "rotation_unit"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.settle_steps < 0:
            raise ValueError(f"settle_steps must not be negative, got {self.settle_steps}")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**asdict(self), "image_size": list(self.image_size)}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Conventions:
        """Inverse of `to_dict`.

        Raises:
            ValueError: For an unknown field, a missing one, or a value that does not exist.
        """
        if unknown := sorted(set(record) - {f.name for f in fields(cls)}):
            raise ValueError(f"conventions have no {unknown}; known are {[f.name for f in fields(cls)]}")
        try:
            return cls(**record)
        except TypeError as error:
            raise ValueError(f"the conventions are incomplete: {error}") from None

    def differences(self, other: Conventions) -> dict[str, tuple[Any, Any]]:
        """Field -> (here, there), for each field in which the two differ."""
        mine, theirs = asdict(self), asdict(other)
        found = {name: (mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]}
        if None in found.get("refreshed", ()):
            del found["refreshed"]
        return found


@dataclass
class RecordingInfo:
    """How demonstrations were made.

    Args:
        suite: Simulator suite, ``"metaworld"``; empty where a dataset does not say what it means.
        tasks: Instruction -> task name. Where two tasks share an instruction, their names are joined by a
            comma.
        quality: Render quality, a key of `demos.suite.RENDER_QUALITIES`.
        observation_size: Height and width of pictures, pixels.
        control_hz: Actions per second.
        camera: Name of the simulator's camera.
        image_orientation: How pictures differ from the simulator's.
        action_meaning: Meaning and range of each action dimension.
        seeds: Task -> [first, last] seed tried.
        kept: Task -> episodes stored.
        tried: Task -> episodes attempted; the difference failed and was dropped.
        noise: Settings of the disturbances.
        versions: Package -> version.
        statistics_hash: `statistics_hash` of the dataset.
        settings: What the recorder was asked for, all of it; a second run compares.
        conventions: `Conventions.to_dict`; empty in older recordings, which are their suite's own.
        version: Version of this record's layout.
    """

    suite: str
    tasks: dict[str, str]
    quality: str
    observation_size: int
    control_hz: int
    camera: str
    image_orientation: str = "rotated by 180 degrees, as LeRobot's environment does"
    action_meaning: dict[str, str] = field(default_factory=dict)
    seeds: dict[str, list[int]] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    tried: dict[str, int] = field(default_factory=dict)
    noise: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    statistics_hash: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    conventions: dict[str, Any] = field(default_factory=dict)
    version: int = 1

    @property
    def task_names(self) -> list[str]:
        """Names of all recorded tasks."""
        return [name for names in self.tasks.values() for name in names.split(",")]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> RecordingInfo:
        """Inverse of `to_dict`.

        Raises:
            ValueError: For fields this version does not know, or a missing one.
        """
        if not isinstance(record, Mapping):
            raise ValueError(f"the recording info is a {type(record).__name__}, not an object {{...}}")
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(record) - known):
            raise ValueError(
                f"the recording info has unknown fields {unknown} (layout {record.get('version')}, this "
                "package writes 1); it was written by a newer version of this package: upgrade it"
            )
        try:
            return cls(**record)
        except TypeError as error:
            raise ValueError(f"the recording info is incomplete: {error}") from None

    def save(self, root: str | Path) -> None:
        """Write ``meta/vita_vla.json`` below the dataset's root."""
        path = Path(root) / RECORDING_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def load(cls, root: str | Path) -> RecordingInfo | None:
        """Read it back; None for a dataset that was not recorded by this package.

        Raises:
            ValueError: The file is damaged; names it.
        """
        path = Path(root) / RECORDING_FILE
        if not path.is_file():
            return None
        try:
            return cls.from_dict(json.loads(path.read_text()))
        except ValueError as error:
            raise ValueError(
                f"{path} cannot be used ({error}); restore it from a copy, or remove it where nothing is "
                "known of the recording"
            ) from None

    def picture_differences(self, other: Mapping[str, Any]) -> list[str]:
        """What differs from what a policy was trained on, one line each, as far as both say it."""
        names = ("suite", "quality", "observation_size", "control_hz", "camera")
        found = {name: pair for name in names if all(pair := (getattr(self, name), other.get(name)))}
        if self.conventions and other.get("conventions"):
            there = Conventions.from_dict(other["conventions"])
            found |= Conventions.from_dict(self.conventions).differences(there)
        return [
            f"{name}: recorded with {mine!r}, here {theirs!r}"
            for name, (mine, theirs) in found.items()
            if mine != theirs
        ]


def camera_role(key: str) -> str | None:
    """``"primary"``, ``"wrist"`` or None, from the words of a camera key's last part."""
    words = set(re.split(r"[^a-z0-9]+", key.rsplit(".", 1)[-1].lower()))
    if words & WRIST_WORDS:
        return "wrist"
    return "primary" if words & PRIMARY_WORDS else None


def match_cameras(
    expected: Sequence[str], available: Sequence[str], *, flag: str = "--rename_map"
) -> dict[str, str]:
    """Find each camera a policy expects among those that data or an environment offers.

    Tried in this order, and only where the answer is unique: the same key, the same last part of the key
    (``observation.images.front`` and ``observation.front``), the same role (`camera_role`).

    Args:
        expected: Camera keys of a policy.
        available: Camera keys of data, an environment or a robot.
        flag: What settles a doubt: LeRobot's ``--rename_map`` (available: expected), or a flag that takes the
            answer of this function (expected: available).

    Returns:
        Expected key -> available key; no available camera is used twice.

    Raises:
        ValueError: If a camera has no or several candidates; names both lists and the flag that settles it.
    """
    found: dict[str, str] = {}
    for same in (lambda key: key, lambda key: key.rsplit(".", 1)[-1], camera_role):
        asked = [key for key in expected if key not in found]
        free = [key for key in available if key not in found.values()]
        for key in asked:
            kind = same(key)
            candidates = [other for other in free if same(other) == kind]
            rivals = [other for other in asked if same(other) == kind]
            if kind is not None and len(candidates) == 1 and len(rivals) == 1:
                found[key] = candidates[0]
    if missing := [key for key in expected if key not in found]:
        spare = [key for key in available if key not in found.values()]
        guess = (spare or list(available) or ["<your camera>"])[0]
        renames = flag == "--rename_map"
        example = json.dumps({guess: missing[0]} if renames else {**found, missing[0]: guess})
        raise ValueError(
            f"cannot tell which camera is {missing}: the policy expects {list(expected)}, available are "
            f"{list(available)}. Say it with {flag}='{example}' "
            f"({'available name: expected name' if renames else 'expected name: available name'})"
        )
    return found
