"""What numbers and pictures mean, written down with the data and compared wherever they are used again.

Most results that cannot be reproduced come from a convention that nobody wrote down: which camera, at which
size and orientation, which statistics. `RecordingInfo` travels with the demonstrations into every checkpoint;
`match_cameras` replaces guessing by key equality; `compare_statistics` refuses a decoder on another scale.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from lerobot_policy_vita_vla.contracts import ActionSpec

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

STATISTICS_TOLERANCE = 0.01
"""Our choice: a hundredth of a state's standard deviation is far below control precision."""

ACTION_RANGE_TOLERANCE = 0.05
"""Our choice: a later recording may reach a twentieth further than the one that set the scale."""

NARROWEST_ACTION_RANGE = 0.1
"""Our choice: data that uses less than a tenth of the decoder's range is in other units, not merely calm."""


@dataclass
class RecordingInfo:
    """How demonstrations were made.

    Args:
        suite: Simulator suite, ``"metaworld"``.
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
        """Read it back; None for a dataset that was not recorded by this package."""
        path = Path(root) / RECORDING_FILE
        return cls.from_dict(json.loads(path.read_text())) if path.is_file() else None

    def picture_differences(self, other: Mapping[str, Any]) -> list[str]:
        """What would make a policy trained on these pictures see something else there, one line each."""
        names = ("suite", "quality", "observation_size", "control_hz", "camera")
        return [
            f"{name}: recorded with {getattr(self, name)!r}, here {other[name]!r}"
            for name in names
            if name in other and other[name] != getattr(self, name)
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


def statistics_hash(stats: Mapping[str, Mapping[str, Any]]) -> str:
    """Fingerprint of a dataset's action and state statistics, 16 hex digits.

    Args:
        stats: LeRobot's dataset statistics: feature -> {"min", "max", "mean", "std"}. Numbers are rounded
            to six digits, so that a round trip through a file does not change the hash.
    """
    rounded = {
        f"{name}/{key}": [
            f"{value:.5e}" for value in np.ravel(np.asarray(stats[name][key], dtype=np.float64))
        ]
        for name in sorted(stats)
        if name == "action" or name == "observation.state"
        for key in ("min", "max", "mean", "std")
        if key in stats[name]
    }
    return hashlib.sha256(json.dumps(rounded, sort_keys=True).encode()).hexdigest()[:16]


def compare_statistics(
    dataset_stats: Mapping[str, Mapping[str, Any]],
    *,
    action_spec: ActionSpec | None = None,
    bounded: bool = True,
    state_stats: Mapping[str, Any] | None = None,
    tolerance: float = STATISTICS_TOLERANCE,
) -> list[str]:
    """Where a trained model's idea of actions and state differs from a dataset's.

    Args:
        dataset_stats: LeRobot's dataset statistics.
        action_spec: What the model's decoder assumes about actions.
        bounded: Whether the decoder ends in a tanh (Seer's does), so that an action beyond its scale cannot
            be expressed at all. It must then cover the dataset's range, and the dataset use a good part of
            it. A linear decoder (ACT's) must fit the dataset's mean and spread.
        state_stats: ``{"mean": (S,), "std": (S,)}`` with which the model standardises the state.
        tolerance: Allowed difference of the state, as a fraction of its standard deviation.

    Returns:
        One line per differing dimension; empty if they agree.
    """
    found: list[str] = []
    if action_spec is not None:
        found += _action_differences(action_spec, dataset_stats["action"], bounded)
    if state_stats is not None:
        found += _state_differences(state_stats, dataset_stats["observation.state"], tolerance)
    return found


def _action_differences(spec: ActionSpec, stats: Mapping[str, Any], bounded: bool) -> list[str]:
    dims = np.size(stats["min"])
    if dims != spec.dim:
        return [f"action: the model gives {spec.dim} numbers, the dataset has {dims}"]
    offset, scale = np.asarray(spec.offset), np.asarray(spec.scale)
    # The dataset in the decoder's own units; the same data gives -1..1 (bounded) or mean 0 and std 1.
    low, high = (_numbers(stats[key], offset, scale) for key in ("min", "max"))
    constant = high <= low
    if bounded:
        reach = 1.0 + 2 * ACTION_RANGE_TOLERANCE
        differs = (low < -reach) | (high > reach) | (~constant & (high - low < 2 * NARROWEST_ACTION_RANGE))
        here = [f"[{o - s:.4g}, {o + s:.4g}]" for o, s in zip(offset, scale, strict=True)]
    else:
        mean, std = _numbers(stats["mean"], offset, scale), _numbers(stats["std"], 0.0, scale)
        differs = ~constant & ((np.abs(mean) > 1.0) | (std > 2.0) | (std < 0.5))
        here = [f"mean {o:.4g} and spread {s:.4g}" for o, s in zip(offset, scale, strict=True)]
    data = np.ravel(np.asarray(stats["min"], dtype=np.float64)), np.ravel(np.asarray(stats["max"]))
    return [
        f"action {spec.names[i]!r}: the model is scaled to {here[i]}, the dataset reaches from "
        f"{data[0][i]:.4g} to {data[1][i]:.4g}"
        for i in np.flatnonzero(differs)
    ]


def _numbers(values: Any, offset: np.ndarray | float, scale: np.ndarray) -> np.ndarray:
    return (np.ravel(np.asarray(values, dtype=np.float64)) - offset) / scale


def _state_differences(model: Mapping[str, Any], data: Mapping[str, Any], tolerance: float) -> list[str]:
    mean, std, mean_here, std_here = (
        np.ravel(np.asarray(source[key], dtype=np.float64))
        for source in (model, data)
        for key in ("mean", "std")
    )
    if mean.shape != mean_here.shape:
        return [f"state: the model reads {mean.size} numbers, the dataset has {mean_here.size}"]
    unit = np.maximum(std, 1e-6)
    differs = (np.abs(mean - mean_here) > tolerance * unit) | (np.abs(std - std_here) > tolerance * unit)
    return [
        f"observation.state[{i}]: the model uses mean {mean[i]:.4g}, std {std[i]:.4g}; the dataset has "
        f"mean {mean_here[i]:.4g}, std {std_here[i]:.4g}"
        for i in np.flatnonzero(differs)
    ]
