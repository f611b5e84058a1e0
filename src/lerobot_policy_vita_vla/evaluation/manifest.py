"""The list of episodes that an evaluation consists of, written before anything runs.

Every policy that is compared plays the same episodes, identified as ``<task>/<seed>``. A seed decides the
initial state alone: no episode depends on another one, on the order, or on how many run at a time. The file
carries a hash of its content, so that results of two different lists are never paired by accident.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lerobot_policy_vita_vla.demos.suite import (
    EPISODE_LENGTH,
    MAX_EPISODE_LENGTH,
    OBSERVATION_SIZE,
    SUITE,
    check_quality,
    resolve_tasks,
)
from lerobot_policy_vita_vla.evaluation.results import write_json

VERSION = 1
SEED = 50_000
"""First evaluation seed, far from the seeds of recorded demonstrations (our choice)."""


@dataclass(frozen=True)
class Episode:
    """One episode: ``id`` is ``<task>/<seed>``; the seed also drives a stochastic policy's random numbers."""

    id: str
    task: str
    seed: int


@dataclass(frozen=True)
class Manifest:
    """Which episodes are played, and what the camera shows.

    Attributes:
        quality: Key of `demos.suite.RENDER_QUALITIES`.
        observation_size: Height and width of the pictures, pixels.
        episode_length: Steps after which an episode counts as failed.
        episodes: In the order in which they are handed out.
    """

    quality: str
    observation_size: int
    episode_length: int
    episodes: tuple[Episode, ...]
    suite: str = SUITE
    version: int = VERSION

    @property
    def tasks(self) -> list[str]:
        """Task names, in order of first appearance."""
        return list(dict.fromkeys(episode.task for episode in self.episodes))

    @property
    def hash(self) -> str:
        """SHA-256 of the content, hexadecimal."""
        return _content_hash(self._content())

    def _content(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "suite": self.suite,
            "quality": self.quality,
            "observation_size": self.observation_size,
            "episode_length": self.episode_length,
            "episodes": [asdict(episode) for episode in self.episodes],
        }

    def save(self, path: str | Path) -> Path:
        """Write the manifest; writing the same one again does nothing.

        Raises:
            ValueError: If another manifest lies there: results may already refer to it.
        """
        path = Path(path)
        if path.exists():
            if (there := load_manifest(path)).hash != self.hash:
                raise ValueError(
                    f"{path} already holds another manifest ({_describe(there)}; wanted {_describe(self)}). "
                    "A manifest is written once: use another folder, or delete it and the results beside it"
                )
            return path
        write_json(path, {**self._content(), "hash": self.hash})
        return path


def make_manifest(
    tasks: str | Sequence[str],
    episodes_per_task: int,
    seed: int = SEED,
    quality: str = "light",
    observation_size: int = OBSERVATION_SIZE,
    episode_length: int = EPISODE_LENGTH,
) -> Manifest:
    """Lay down the episodes of an evaluation.

    Args:
        tasks: Task names and groups as `demos.suite.resolve_tasks` reads them, or a list of such.
        episodes_per_task: Episodes of each task, with seeds ``seed``, ``seed + 1``, ... (the same for every
            task).
        seed: First seed.
        quality: How pictures are drawn; what the policies were trained on (`predictor.recording_defaults`).
        observation_size: Height and width of the pictures, pixels.
        episode_length: Steps after which an episode counts as failed.

    Raises:
        ValueError: For unknown tasks (with the nearest names), or numbers out of range.
    """
    names = resolve_tasks(tasks if isinstance(tasks, str) else ",".join(tasks))
    if episodes_per_task < 1:
        raise ValueError(f"episodes_per_task must be at least 1, got {episodes_per_task}")
    if not 0 <= seed < 2**32 - episodes_per_task:
        raise ValueError(f"seed must lie in 0..2**32 - episodes_per_task (NumPy's seeds), got {seed}")
    if not 1 <= episode_length <= MAX_EPISODE_LENGTH:
        raise ValueError(f"episode_length must lie in 1..{MAX_EPISODE_LENGTH}, got {episode_length}")
    episodes = tuple(
        Episode(id=f"{task}/{number}", task=task, seed=number)
        for task in names
        for number in range(seed, seed + episodes_per_task)
    )
    return Manifest(check_quality(quality), observation_size, episode_length, episodes)


def load_manifest(path: str | Path) -> Manifest:
    """Read a manifest and check that nobody edited it.

    Raises:
        ValueError: If the file is missing, of another version, edited after it was written, or names tasks
            that the suite does not have.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no manifest at {path}; write one first with make_manifest(...).save(path)")
    stored = json.loads(path.read_text())
    if stored.get("version") != VERSION or stored.get("suite") != SUITE:
        raise ValueError(
            f"{path} is version {stored.get('version')!r} of suite {stored.get('suite')!r}; this package "
            f"reads version {VERSION} of {SUITE!r}"
        )
    claimed = stored.pop("hash", None)
    if claimed != (actual := _content_hash(stored)):
        raise ValueError(
            f"{path} was edited after it was written (hash {str(claimed)[:12]} stored, {actual[:12]} found). "
            "Results are tied to the episodes listed at the start: make a new manifest in another folder"
        )
    resolve_tasks(",".join(dict.fromkeys(episode["task"] for episode in stored["episodes"])))
    episodes = tuple(Episode(**episode) for episode in stored["episodes"])
    return Manifest(**{**stored, "episodes": episodes})


def _content_hash(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _describe(manifest: Manifest) -> str:
    return (
        f"{len(manifest.episodes)} episodes of {len(manifest.tasks)} tasks from seed "
        f"{manifest.episodes[0].seed}, {manifest.quality}, {manifest.observation_size} px, "
        f"{manifest.episode_length} steps"
    )
