"""What the mini VLM learns to say about a picture, and how to read it back.

A caption names what stands where, and nothing about what to do::

    hand 50 60 20 open, drawer handle 42 55 9, goal 42 74 9.

The numbers are centimetres from a corner of the workspace: ``x + 50`` (left to right as the robot sees it),
``y`` (away from the robot's base) and ``z`` (up). Each is one token between 0 and 99, so one step of the
language model says one coordinate to the centimetre. Our choice: a prototype with 24 bins per axis (4 cm
wide across the table) was coarser than the objects, a puck being 4 cm wide.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from lerobot_policy_vita_vla.demos.suite import task_descriptions

NUMBERS = 100
"""Number words ``0`` to ``99``."""

ORIGIN_CM = np.array([50.0, 0.0, 0.0])
"""Added to a position in centimetres before it is rounded: x runs from -50 cm to 49 cm."""

GRIPPER_WORDS = ((0.4, "closed"), (0.8, "half open"), (float("inf"), "open"))
"""Upper bound of the opening (0 to 1) and what it is called."""

DESCRIBE = "describe the scene"
"""The question that asks for a caption without naming a task."""

# What Meta-World's first object position belongs to, in words. The longest matching start of a task's name
# counts.
_OBJECTS = {
    "assembly": "nut",
    "basketball": "ball",
    "bin-picking": "puck",
    "box-close": "cover",
    "button-press": "button",
    "coffee-button": "button",
    "coffee": "mug",
    "dial-turn": "dial",
    "disassemble": "nut",
    "door": "door handle",
    "door-lock": "lock",
    "door-unlock": "lock",
    "drawer": "drawer handle",
    "faucet": "faucet",
    "hammer": "hammer",
    "hand-insert": "block",
    "handle": "handle",
    "lever": "lever",
    "peg": "peg",
    "pick": "puck",
    "plate": "plate",
    "push": "puck",
    "reach": "puck",
    "shelf": "block",
    "soccer": "ball",
    "stick": "stick",
    "sweep": "puck",
    "window": "window handle",
}

# Tasks with a second object, at the state's columns 11:14.
_SECONDS = {"hammer": "nail", "stick-pull": "bottle", "stick-push": "bottle"}

_GROUP = re.compile(r"\s*([a-z][a-z ]*?)\s+(\d+)\s+(\d+)\s+(\d+)((?:\s+[a-z]+)*)\s*")


def scene_names(task: str) -> tuple[str, str, str | None, str]:
    """What the four points of a scene are called, in the order of `scenes.POINTS`.

    Every task's goal is named, because the picture shows it: as a coloured marker, or by a fixed offset from
    the thing to be moved (a button's goal is the button pressed in). One is weaker: sweep-v3's has no marker
    and lies at the table's side on the puck's starting y.

    Args:
        task: Meta-World name, as ``drawer-open-v3``.

    Returns:
        Words for hand, object, second object (None if the scene has one object) and goal.

    Raises:
        ValueError: for an unknown task.
    """
    if task not in task_descriptions():
        raise ValueError(f"unknown Meta-World task {task!r}; names look like 'drawer-open-v3'")
    name = task.removesuffix("-v3")
    start = max((key for key in _OBJECTS if name.startswith(key)), key=len)
    return "hand", _OBJECTS[start], _SECONDS.get(name), "goal"


def to_words(position_m: Sequence[float]) -> tuple[int, int, int]:
    """A position in metres as three number words, clipped to what can be said."""
    return tuple(int(v) for v in np.clip(np.rint(to_centimetres(position_m)), 0, NUMBERS - 1))


def to_centimetres(position_m: Sequence[float] | np.ndarray) -> np.ndarray:
    """Metres (..., 3) in the simulator's axes to centimetres from the captions' origin, unrounded."""
    return np.asarray(position_m, dtype=np.float64) * 100 + ORIGIN_CM


def to_metres(words: Sequence[int] | np.ndarray) -> np.ndarray:
    """Number words (..., 3) back to metres in the simulator's axes."""
    return (np.asarray(words, dtype=np.float64) - ORIGIN_CM) / 100


def gripper_word(opening: float) -> str:
    """What a gripper opening between 0 (closed) and 1 (open) is called."""
    return next(word for bound, word in GRIPPER_WORDS if opening < bound)


def caption(task: str, points_m: np.ndarray, gripper: float) -> str:
    """The caption of a scene.

    Args:
        task: Meta-World name.
        points_m: (4, 3) metres: hand, object, second object, goal, as `scenes.POINTS`.
        gripper: Opening, 0 closed to 1 open.
    """
    groups = []
    for name, point in zip(scene_names(task), points_m, strict=True):
        if name is not None:
            groups.append(f"{name} {' '.join(map(str, to_words(point)))}")
    groups[0] += f" {gripper_word(gripper)}"
    return ", ".join(groups) + "."


def parse_caption(text: str) -> dict[str, np.ndarray]:
    """Read a caption back.

    Args:
        text: What the VLM said.

    Returns:
        Name -> (3,) metres, in the order named. Parts that do not read as a name and three numbers are left
        out, so a caption that makes no sense gives an empty mapping.
    """
    places = {}
    for part in text.lower().strip().rstrip(".").split(","):
        if match := _GROUP.fullmatch(part):
            name, *numbers, _ = match.groups()
            places[name] = to_metres([int(number) for number in numbers])
    return places


def instructions() -> Mapping[str, str]:
    """Task name -> instruction, for all 50 tasks, as LeRobot words them."""
    return task_descriptions()


def vocabulary() -> list[str]:
    """All texts that prompts and captions are made of: what the tokenizer must know as whole words."""
    names = {name for task in task_descriptions() for name in scene_names(task) if name}
    texts = [*task_descriptions().values(), DESCRIBE, *sorted(names), *(word for _, word in GRIPPER_WORDS)]
    return [text.lower() for text in texts]
