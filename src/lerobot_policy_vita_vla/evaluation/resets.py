"""Whether resetting a simulator leaves anything of the episode before, on every episode of a manifest.

A new simulator costs as much as several episodes, so an evaluation keeps one per slot and task and resets it
by the episode's seed. That is right only if the reset one goes the same way as a new one, bit by bit. Where
it does not, `runner.evaluate` has ``fresh_simulators``.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from lerobot_policy_vita_vla.demos.scenes import STATE
from lerobot_policy_vita_vla.evaluation.manifest import Episode, Manifest
from lerobot_policy_vita_vla.evaluation.worker import open_scene

NOISE = 0.3
"""Standard deviation of what is added to the expert's actions (our choice: enough to miss, push and tip
things over, so that states are reached in which something could be left behind)."""

LOOK_EVERY = 10
"""Steps between pictures that are compared."""


def compare_resets(manifest: Manifest, episodes_per_task: int | None = None) -> dict[str, dict[str, Any]]:
    """Play every episode in a new simulator, and in one that has played the task's episodes before it.

    Args:
        manifest: The episodes, played by the disturbed scripted expert.
        episodes_per_task: Only the first ones of each task; None is all.

    Returns:
        Task -> ``episodes``, how many were compared, and ``different``, ids of those that went another way.
    """
    found: dict[str, dict[str, Any]] = {}
    for task in manifest.tasks:
        episodes = [episode for episode in manifest.episodes if episode.task == task][:episodes_per_task]
        kept, different = open_scene(manifest, task), []
        # Backwards: the simulator that is kept has then played others before the first episode as well.
        for episode in reversed(episodes):
            new = open_scene(manifest, task)
            if trace(new, episode) != trace(kept, episode):
                different.append(episode.id)
            new.close()
        kept.close()
        found[task] = {"episodes": len(episodes), "different": different[::-1]}
    return found


def trace(scene: Any, episode: Episode) -> str:
    """SHA-256 over the states of every step and some pictures of an episode.

    Args:
        scene: A simulator of the episode's task.
        episode: Its seed also draws the disturbance.
    """
    digest, noise = hashlib.sha256(), np.random.default_rng(episode.seed)
    scene.rendering = False
    scene.reset(seed=episode.seed)
    steps, over = 0, False
    while not over:
        _add(digest, scene, looks=steps % LOOK_EVERY == 0)
        action = scene.expert_action()
        action = np.clip(action + noise.normal(0, NOISE, action.shape), -1, 1).astype(np.float32)
        _, _, terminated, truncated, _ = scene.step(action)
        steps, over = steps + 1, terminated or truncated
    _add(digest, scene, looks=True)
    return digest.hexdigest()


def _add(digest, scene: Any, looks: bool) -> None:
    digest.update(scene.privileged_state().tobytes())
    if looks:
        observation = scene.observation()
        digest.update(np.ascontiguousarray(observation.pop(STATE)).tobytes())
        for key in sorted(observation):
            digest.update(np.ascontiguousarray(observation[key]).tobytes())
