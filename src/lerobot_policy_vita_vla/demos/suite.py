"""What the Meta-World suite consists of: task names, groups, instructions and render qualities.

Pure data, read without starting a simulator: command lines and environment configs validate names here before
anything heavy is imported.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

SUITE = "metaworld"
CONTROL_HZ = 80
"""Meta-World steps 5 x 2.5 ms per action; LeRobot's environment says the same."""

CAMERA = "corner2"
CAMERA_POSITION = (0.75, 0.075, 0.7)
"""Where LeRobot's environment moves that camera to."""

OBSERVATION_SIZE = 96
"""Our choice: a small teacher succeeds in 98 of 100 episodes of five tasks at this size."""

EPISODE_LENGTH = 200
"""Our choice: 48 of 50 scripted experts succeed within 200 steps on every seed tried; Meta-World's own limit
is 500."""

MAX_EPISODE_LENGTH = 500
"""Meta-World refuses to step further."""

SIZES = (16, 480)
"""Smallest and largest picture, pixels, of every suite; LeRobot's own of Meta-World has 480."""


@dataclass(frozen=True)
class RenderQuality:
    """How pictures are drawn.

    Args:
        native: Draw with LeRobot's own environment code at 480 x 480 and shrink the picture by area
            averaging.
        hide_meshes_above: Hide arm meshes with more faces than this; None hides nothing. Software renderers
            pay per vertex, and the arm is 67 000 of the scene's 68 500 faces. The fingers and the objects
            stay.
        shadows: Draw shadows and reflections.
        samples: Anti-aliasing samples per pixel.
    """

    native: bool
    hide_meshes_above: int | None = None
    shadows: bool = True
    samples: int = 4


RENDER_QUALITIES: dict[str, RenderQuality] = {
    # LeRobot's own picture, for results that are compared with others.
    "standard": RenderQuality(native=True),
    # 2 ms a picture at 96 px where "standard" costs 165 ms (software rendering, one core). Policies trained
    # on one quality do not transfer to the other.
    "light": RenderQuality(native=False, hide_meshes_above=1500, shadows=False, samples=0),
}


def check_quality(quality: str) -> str:
    """Return ``quality`` or raise ValueError naming the known ones."""
    if quality not in RENDER_QUALITIES:
        raise ValueError(f"unknown render quality {quality!r}; choose one of {sorted(RENDER_QUALITIES)}")
    return quality


def check_size(observation_size: int) -> int:
    """Return the size of pictures, pixels, or raise ValueError naming the range."""
    least, most = SIZES
    if not least <= observation_size <= most:
        raise ValueError(
            f"observation_size must lie in {least}..{most} pixels, got {observation_size}: change --size"
        )
    return observation_size


@cache
def _tables() -> dict[str, dict]:
    # LeRobot's own module reads the same file, but importing it starts MuJoCo.
    package = find_spec("lerobot.envs")
    path = Path(package.origin).parent / "metaworld_config.json"
    return json.loads(path.read_text())


def task_descriptions() -> dict[str, str]:
    """Task name (with ``-v3``) -> instruction, LeRobot's wording, for all 50 tasks."""
    return dict(_tables()["TASK_DESCRIPTIONS"])


def task_groups() -> dict[str, list[str]]:
    """Group name (``easy``, ``medium``, ``hard``, ``very_hard``, ``mt50``) -> task names."""
    return {**_tables()["DIFFICULTY_TO_TASKS"], "mt50": sorted(task_descriptions())}


def resolve_tasks(spec: str) -> list[str]:
    """Turn what a user typed into task names, in the order given, without repeats.

    Args:
        spec: Comma-separated task names (``-v3`` may be left out) and groups, such as ``"door-open,easy"``.

    Returns:
        Names ending in ``-v3``.

    Raises:
        ValueError: For an unknown name, with the nearest known ones; for an empty list.
    """
    known, groups = task_descriptions(), task_groups()
    tasks: list[str] = []
    for word in (part.strip() for part in spec.split(",")):
        if not word:
            continue
        name = word.removeprefix("metaworld-")
        name = name if name.endswith("-v3") else f"{name}-v3"
        if word in groups:
            tasks.extend(groups[word])
        elif name in known:
            tasks.append(name)
        else:
            nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            hint = f"; did you mean {', '.join(nearest)}?" if nearest else "."
            raise ValueError(
                f"unknown Meta-World task or group {word!r}{hint} Groups: {', '.join(groups)}. "
                f"Tasks: {', '.join(sorted(known))}"
            )
    if not tasks:
        raise ValueError(f"no task in {spec!r}; name at least one, for example door-open-v3")
    return list(dict.fromkeys(tasks))
