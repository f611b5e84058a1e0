"""One demonstration: the scripted expert acts, is disturbed, and its undisturbed answers are the labels.

A policy that imitates only clean runs never sees how to come back. So in three of four episodes what the arm
executes differs from what the expert wanted, while the stored label stays the expert's own action (DART,
Laskey et al. 2017). Nothing is random beyond the seed: an attempt is a function of (task, seed, settings).
"""

from __future__ import annotations

import gc
import os
import zlib
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lerobot_policy_vita_vla.demos.scenes import STATE, make_scene, scenes_of


class Mistake(NamedTuple):
    """What an expert can be made to do wrong.

    Args:
        words: What it is, for messages.
        allow: The scene's method that allows it for one episode.
        stream: Number of the random generator that draws it.
    """

    words: str
    allow: str
    stream: int


MISTAKES = {
    "miss_chance": Mistake("missed grasps", "let_expert_miss", 1),
    "aside_chance": Mistake("things set down beside their place", "let_expert_set_aside", 2),
}
"""Fields of `Disturbance` -> the mistakes whose share they are."""


@dataclass(frozen=True)
class Disturbance:
    """How executed actions differ from the expert's.

    Args:
        levels: Standard deviation of the noise on x, y and z, in action units (1 = 1 cm per step); attempt i
            uses ``levels[i % len(levels)]``. Our choice: 0, 0.2, 0.4, 0.6; scripted experts still succeed in
            nine of ten episodes.
        kick_chance: Chance per step, in episodes with noise, that a kick starts: one random displacement
            repeated ``kick_steps`` times. Our choice: 0.04.
        kick_steps: Length of a kick. Our choice: 6 steps, up to 6 cm off course.
        miss_chance: Share of attempts in which the first grasp is made to miss (`libero_miss`); LIBERO only.
        aside_chance: Share of attempts, drawn independently, in which what belongs onto a flat thing is first
            set down beside its middle (`libero_aside`); LIBERO only.
    """

    levels: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6)
    kick_chance: float = 0.04
    kick_steps: int = 6
    miss_chance: float = 0.0
    aside_chance: float = 0.0

    def __post_init__(self):
        object.__setattr__(self, "levels", tuple(float(level) for level in self.levels))
        if not self.levels or min(self.levels) < 0 or max(self.levels) > 1:
            raise ValueError(f"noise levels are one or more numbers in [0, 1], got {self.levels}")
        for name, flaw in MISTAKES.items():
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"the share of {flaw.words} lies in [0, 1], got {getattr(self, name)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; as before there were mistakes where there are none."""
        fields = {**asdict(self), "levels": list(self.levels)}
        return {name: value for name, value in fields.items() if value or name not in MISTAKES}


def drawn_mistakes(task: str, seed: int, noise: Disturbance) -> dict[str, np.random.Generator]:
    """The mistakes that an attempt is to make: field of `Disturbance` -> generator that draws how."""
    found = {}
    for name, flaw in MISTAKES.items():
        # A generator of its own: attempts without the mistake are the same with and without it.
        own = np.random.default_rng([seed, zlib.crc32(task.encode()), flaw.stream])
        if own.random() < getattr(noise, name):
            found[name] = own
    return found


@dataclass(frozen=True)
class Attempt:
    """One try at one demonstration: everything a worker process needs to know.

    Args:
        task: Task name.
        number: Counts the attempts at this task from 0.
        seed: Initial state.
        quality: Key of `suite.RENDER_QUALITIES`.
        observation_size: Height and width of pictures, pixels.
        disturbance: Settings of the noise.
        max_steps: Steps after which the attempt counts as failed.
        tail_steps: Steps recorded after the first success.
        folder: Where the result goes.
        suite: Name of the suite (`scenes.scenes_of`).
        protocol: LIBERO: key of `libero_suite.PROTOCOLS`.
    """

    task: str
    number: int
    seed: int
    quality: str
    observation_size: int
    disturbance: Disturbance
    max_steps: int
    tail_steps: int
    folder: str
    suite: str = "metaworld"
    protocol: str | None = None

    @property
    def path(self) -> Path:
        """The finished demonstration; an attempt that failed leaves an empty ``.failed`` file beside it."""
        return Path(self.folder) / self.task / f"{self.number:05d}.npz"

    def outcome(self) -> bool | None:
        """True: succeeded, False: failed, None: not tried yet."""
        if self.path.is_file():
            return True
        return False if self.path.with_suffix(".failed").is_file() else None


class Demonstration(NamedTuple):
    """T frames; what is seen at a frame and what the expert wants there."""

    pictures: np.ndarray
    """(T, size, size, 3) uint8; of N > 1 cameras (T, N, size, size, 3), in the order of `Scenes.cameras`."""
    state: np.ndarray
    """(T, S) float32, as the policy sees it."""
    environment_state: np.ndarray
    """(T, P) float32, privileged: the scene's ``known_state``."""
    action: np.ndarray
    """(T, A) float32: the expert's undisturbed answer."""
    executed_action: np.ndarray
    """(T, A) float32: what the arm did."""


def run_attempt(attempt: Attempt) -> bool:
    """Run an attempt in this process and leave its result in the scratch folder; returns whether it
    succeeded.

    Files appear whole or not at all, so a stopped recording can go on from what is there. An attempt whose
    result is there already, finished before an earlier one was when the recording stopped, is not repeated.
    """
    if (known := attempt.outcome()) is not None:
        return known
    attempt.path.parent.mkdir(parents=True, exist_ok=True)
    env = _environment(
        attempt.suite, attempt.task, attempt.quality, attempt.observation_size, attempt.protocol
    )
    demonstration = demonstrate(env, attempt)
    unfinished = attempt.path.with_suffix(".part")
    try:
        with unfinished.open("wb") as file:
            if demonstration is not None:
                # Consecutive pictures fit into deflate's window: 0.7 kB per frame at 96 px instead of 28 kB.
                np.savez_compressed(file, **demonstration._asdict())
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
    succeeded = demonstration is not None
    os.replace(unfinished, attempt.path if succeeded else attempt.path.with_suffix(".failed"))
    return succeeded


def load_demonstration(path: Path) -> Demonstration:
    """Read what `run_attempt` wrote."""
    with np.load(path) as arrays:
        return Demonstration(**arrays)


def demonstrate(env, attempt: Attempt) -> Demonstration | None:
    """Let the expert act in a scene; None if it does not succeed within ``max_steps``."""
    rng = np.random.default_rng([attempt.seed, zlib.crc32(attempt.task.encode())])
    noise, scenes = attempt.disturbance, scenes_of(attempt.suite)
    level = noise.levels[attempt.number % len(noise.levels)]
    frames, kick_left, kick, succeeded_at = [], 0, np.zeros(3), None
    env.rendering = True
    observation, _ = env.reset(seed=attempt.seed)
    limit, mistakes = attempt.max_steps, False
    for name, own in drawn_mistakes(attempt.task, attempt.seed, noise).items():
        limit, mistakes = limit + getattr(env, MISTAKES[name].allow)(own), True
    for step in range(limit + attempt.tail_steps):
        action = env.expert_action()
        instead = env.executed_action() if mistakes else None
        executed = (action if instead is None else instead).copy()
        executed[:3] = np.clip(executed[:3] + rng.normal(0.0, 1.0, 3) * level, -1.0, 1.0)
        if kick_left == 0 and level > 0 and rng.random() < noise.kick_chance:
            kick_left, kick = noise.kick_steps, rng.uniform(-1.0, 1.0, 3)
        if kick_left > 0:
            executed[:3], kick_left = kick, kick_left - 1
        seen = [observation[key] for key in scenes.cameras]
        pictures = seen[0] if len(seen) == 1 else np.stack(seen)
        frames.append((pictures, observation[STATE], env.known_state(), action, executed))
        observation, _, success, _, _ = env.step(executed)
        if success and succeeded_at is None:
            succeeded_at = step
        if succeeded_at is None and step + 1 >= limit:
            return None
        if succeeded_at is not None and step >= succeeded_at + attempt.tail_steps:
            break
    pictures, *numbers = (np.stack(column) for column in zip(*frames, strict=True))
    return Demonstration(pictures, *(column.astype(np.float32) for column in numbers))


@lru_cache(maxsize=2)
def _environment(suite: str, task: str, quality: str, observation_size: int, protocol: str | None):
    # Building a simulator costs as much as a demonstration; a worker keeps the task it is at and the one
    # before.
    return make_scene(suite, task, quality=quality, observation_size=observation_size, protocol=protocol)


def forget_scenes() -> None:
    """Free the simulators that `run_attempt` keeps in this process.

    Left to the interpreter's end, they would outlive the display that they draw on, and say so in tracebacks.
    """
    _environment.cache_clear()
    gc.collect()  # MuJoCo's renderers and contexts refer to each other
