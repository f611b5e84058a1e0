"""Pictures of Meta-World scenes with the positions of what they show: the mini VLM's pre-training data.

Each scene starts from a seeded random reset. The hand then wanders: stretches of the scripted expert with
noise (so that drawers stand half open and pucks are held in the air, as in demonstrations) alternate with
stretches in a random direction (so that the hand is seen everywhere). One picture is kept after every
stretch. No action is stored: what is learned from here is where things are, not what to do about them.

The state that a reset returns may be stale in Meta-World (the simulator has not been forwarded since the
objects were placed), so no picture is taken before the first step.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

POINTS = ("hand", "object", "second", "goal")
"""The places of a scene, in the order of `Scenes.points` and `Scenes.pixels`."""

POINT_COLUMNS = (slice(0, 3), slice(4, 7), slice(11, 14), slice(36, 39))
"""Where each of `POINTS` stands in Meta-World's 39 numbers."""

GRIPPER_COLUMN = 3

SEED_BASE = 1_000_000
"""Reset seeds start here, far from those of demonstrations and evaluations: no test scene was seen before."""

_SEEDS_PER_RUN = 100_000


@dataclass
class Scenes:
    """Pictures and what stands where in them.

    Args:
        images: (N, size, size, 3) uint8.
        points: (N, 4, 3) float32 metres, one row per entry of `POINTS`.
        pixels: (N, 4, 2) float32, column and row of each point in the picture, as fractions of its size;
            outside [0, 1] when out of view.
        gripper: (N,) float32 opening, 0 closed to 1 open.
        tasks: (N,) index into `task_names`.
        seeds: (N,) reset seed of the scene; frames of one reset share it.
        task_names: Meta-World names, as ``reach-v3``.
    """

    images: np.ndarray
    points: np.ndarray
    pixels: np.ndarray
    gripper: np.ndarray
    tasks: np.ndarray
    seeds: np.ndarray
    task_names: list[str]

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, rows: np.ndarray) -> Scenes:
        """The scenes at `rows` (indices or a mask)."""
        arrays = {name: getattr(self, name)[rows] for name in _ARRAYS}
        return Scenes(**arrays, task_names=self.task_names)

    def split(self, holdout_fraction: float = 0.1) -> tuple[Scenes, Scenes]:
        """Training scenes and held-out scenes; frames of one reset never fall on both sides.

        The last `holdout_fraction` of every task's resets is held out (at least one, if there are two).
        """
        held = np.zeros(len(self), dtype=bool)
        for task in np.unique(self.tasks):
            rows = self.tasks == task
            seeds = np.unique(self.seeds[rows])
            count = min(max(1, round(len(seeds) * holdout_fraction)), len(seeds) - 1)
            if count > 0:
                held |= rows & np.isin(self.seeds, seeds[-count:])
        return self.subset(~held), self.subset(held)

    def save(self, path: Path) -> None:
        """Write everything to one uncompressed .npz file."""
        np.savez(
            path, task_names=np.array(self.task_names), **{name: getattr(self, name) for name in _ARRAYS}
        )

    @classmethod
    def load(cls, path: Path) -> Scenes:
        """Read what `save` wrote."""
        with np.load(path) as stored:
            arrays = {name: stored[name] for name in _ARRAYS}
            return cls(**arrays, task_names=[str(name) for name in stored["task_names"]])


_ARRAYS = ("images", "points", "pixels", "gripper", "tasks", "seeds")


def collect(
    tasks: Sequence[str],
    *,
    resets: int = 120,
    frames: int = 4,
    seed: int = 0,
    quality: str = "light",
    observation_size: int = 96,
    workers: int = 1,
) -> Scenes:
    """Render scenes of every task; the same arguments give the same scenes, whatever `workers` is.

    Args:
        tasks: Meta-World task names.
        resets: Random resets per task.
        frames: Pictures per reset. A reset costs about as much as three pictures, so a few are taken of each.
        seed: Chooses the resets and the hand's ways.
        quality: Rendering quality, see `demos.metaworld.RENDER_QUALITIES`.
        observation_size: Pixels along each side.
        workers: Processes; each renders whole tasks.

    Raises:
        ValueError: if a count is not positive or there are more resets than seeds set aside for a run.
    """
    if min(resets, frames, workers) < 1 or resets > _SEEDS_PER_RUN or seed < 0:
        raise ValueError(
            f"resets, frames and workers must be at least 1, resets at most {_SEEDS_PER_RUN}, seed at least "
            f"0; got resets={resets}, frames={frames}, workers={workers}, seed={seed}"
        )
    jobs = [(task, resets, frames, seed, quality, observation_size) for task in tasks]
    if workers == 1:
        parts = [_collect_task(*job) for job in jobs]
    else:
        # spawn: a forked process would share the parent's rendering context.
        with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn")) as pool:
            parts = list(pool.map(_collect_task, *zip(*jobs, strict=True)))
    for index, part in enumerate(parts):
        part["tasks"] = np.full(len(part["images"]), index, dtype=np.int64)
    return Scenes(**{k: np.concatenate([p[k] for p in parts]) for k in _ARRAYS}, task_names=list(tasks))


def _collect_task(
    task: str, resets: int, frames: int, seed: int, quality: str, size: int
) -> dict[str, np.ndarray]:
    from lerobot_policy_vita_vla.demos.metaworld import SceneEnv

    env = SceneEnv(task, quality=quality, observation_size=size)
    # The name is part of the seed, so that a task's scenes do not depend on which other tasks are collected.
    random = np.random.default_rng([seed, *task.encode()])
    rows: dict[str, list] = {name: [] for name in _ARRAYS if name != "tasks"}
    try:
        for reset in range(resets):
            scene_seed = SEED_BASE + seed * _SEEDS_PER_RUN + reset
            env.rendering = False
            env.reset(seed=scene_seed)
            for _ in range(frames):
                image, state = _wander(env, random)
                points = np.stack([state[columns] for columns in POINT_COLUMNS])
                rows["images"].append(image)
                rows["points"].append(points)
                rows["pixels"].append(project(env, points))
                rows["gripper"].append(state[GRIPPER_COLUMN])
                rows["seeds"].append(scene_seed)
    finally:
        env.close()
    kinds = {"images": np.uint8, "seeds": np.int64}
    return {name: np.asarray(values, dtype=kinds.get(name, np.float32)) for name, values in rows.items()}


def _wander(env, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Move the hand for a stretch; the picture and the 39 numbers at its end."""
    follow_expert = random.random() < 0.6
    steps = int(random.integers(3, 25 if follow_expert else 12))
    drift = random.uniform(-1, 1, 4).astype(np.float32)
    noise = random.choice([0.1, 0.5])
    for step in range(steps):
        action = drift
        if follow_expert:
            action = env.expert_action().astype(np.float32)
            action[:3] += random.normal(0, noise, 3)
        env.rendering = step == steps - 1
        observation, _, terminated, truncated, _ = env.step(np.clip(action, -1, 1).astype(np.float32))
        if terminated or truncated:
            break
    if not env.rendering:
        # The task ended before the stretch did: look at how it ended, with the hand held still.
        env.rendering = True
        observation, *_ = env.step(np.zeros(4, dtype=np.float32))
    return np.array(observation["pixels"], dtype=np.uint8), env.privileged_state()


def project(env, points: np.ndarray) -> np.ndarray:
    """Where world points fall in the environment's picture.

    Args:
        env: A `SceneEnv` (any MetaworldEnv) whose simulation has been stepped.
        points: (..., 3) metres.

    Returns:
        (..., 2) float32: column and row as fractions of the picture's size, origin top left.
    """
    model, data = env._env.model, env._env.data
    camera = model.camera(env.camera_name).id
    local = (points - data.cam_xpos[camera]) @ data.cam_xmat[camera].reshape(3, 3)
    # MuJoCo's camera looks along -z, x to the right, y up; cam_fovy is the full vertical angle in degrees.
    depth = np.maximum(-local[..., 2], 1e-6)
    scale = 0.5 / np.tan(np.radians(model.cam_fovy[camera]) / 2)
    column = 0.5 + scale * local[..., 0] / depth
    row = 0.5 - scale * local[..., 1] / depth
    if env.camera_name == "corner2":  # LeRobot turns this camera's picture by 180 degrees.
        column, row = 1 - column, 1 - row
    return np.stack([column, row], axis=-1).astype(np.float32)
