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

from lerobot_policy_vita_vla.demos import scenes
from lerobot_policy_vita_vla.demos.suite import SUITE
from lerobot_policy_vita_vla.evaluation.results import write_json
from lerobot_policy_vita_vla.files import read_json

VERSION = 1
SEED = scenes.METAWORLD.seed
"""First evaluation seed, far from the seeds of recorded demonstrations (our choice)."""


@dataclass(frozen=True)
class Episode:
    """One episode: ``id`` is ``<task>/<seed>``; the seed also drives a stochastic policy's random numbers.

    On LIBERO seeds 0..49 are the indices of the official initial states.
    """

    id: str
    task: str
    seed: int


@dataclass(frozen=True)
class Manifest:
    """Which episodes are played, and what the camera shows.

    Attributes:
        quality: Key of `demos.suite.RENDER_QUALITIES`, or `demos.libero_suite.LIBERO_QUALITIES`.
        observation_size: Height and width of the pictures, pixels.
        episode_length: Steps after which an episode counts as failed.
        episodes: In the order in which they are handed out.
        suite: ``"metaworld"`` or ``"libero"``.
        protocol: Key of `demos.libero_suite.PROTOCOLS`; None for suites that have none.
    """

    quality: str
    observation_size: int
    episode_length: int
    episodes: tuple[Episode, ...]
    suite: str = SUITE
    version: int = VERSION
    protocol: str | None = None

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
            # Left out where there is none: hashes of older manifests stay what they were.
            **({"protocol": self.protocol} if self.protocol else {}),
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
    seed: int | None = None,
    quality: str = "light",
    observation_size: int | None = None,
    episode_length: int | None = None,
    protocol: str | None = None,
) -> Manifest:
    """Lay down the episodes of an evaluation.

    Args:
        tasks: Task names and groups as `scenes.resolve` reads them, or a list of such.
        episodes_per_task: Episodes of each task, with seeds ``seed``, ``seed + 1``, ... (the same for every
            task).
        seed: First seed; None is the suite's.
        quality: How pictures are drawn; what the policies were trained on (`predictor.recording_defaults`).
        observation_size: Height and width of the pictures, pixels; None is the suite's or the protocol's.
        episode_length: Steps after which an episode counts as failed; None is the suite's or the protocol's.
        protocol: LIBERO: key of `demos.libero_suite.PROTOCOLS`; None is ``"lerobot"``.

    Raises:
        ValueError: For unknown tasks (with the nearest names), or numbers out of range.
    """
    spec = tasks if isinstance(tasks, str) else ",".join(tasks)
    suite = scenes.suite_of_tasks(spec)
    names = scenes.resolve(suite, spec)
    if suite == scenes.LIBERO.name:
        protocol = protocol or "lerobot"
    scenes.check_look(suite, quality, protocol)
    size = scenes.picture_size(suite, protocol, observation_size)
    seed = scenes.scenes_of(suite).seed if seed is None else seed
    if episode_length is None:
        episode_length = scenes.default_length(suite, names, protocol)
    if episodes_per_task < 1:
        raise ValueError(f"episodes_per_task must be at least 1, got {episodes_per_task}")
    scenes.check_seeds(suite, seed, episodes_per_task)
    if not 1 <= episode_length <= (most := scenes.longest(suite)):
        raise ValueError(f"episode_length must lie in 1..{most}, got {episode_length}")
    episodes = tuple(
        Episode(id=f"{task}/{number}", task=task, seed=number)
        for task in names
        for number in range(seed, seed + episodes_per_task)
    )
    return Manifest(quality, size, episode_length, episodes, suite=suite, protocol=protocol)


def load_manifest(path: str | Path) -> Manifest:
    """Read a manifest and check that nobody edited it.

    Raises:
        ValueError: If the file is missing, of another version, edited after it was written, or names tasks
            that the suite does not have.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no manifest at {path}; write one first with make_manifest(...).save(path)")
    stored = read_json(path)
    known = (scenes.METAWORLD.name, scenes.LIBERO.name)
    if stored.get("version") != VERSION or stored.get("suite") not in known:
        raise ValueError(
            f"{path} is version {stored.get('version')!r} of suite {stored.get('suite')!r}; this package "
            f"reads version {VERSION} of {' and '.join(known)}"
        )
    claimed = stored.pop("hash", None)
    if claimed != (actual := _content_hash(stored)):
        raise ValueError(
            f"{path} was edited after it was written (hash {str(claimed)[:12]} stored, {actual[:12]} found). "
            "Results are tied to the episodes listed at the start: make a new manifest in another folder"
        )
    spec = ",".join(dict.fromkeys(episode["task"] for episode in stored["episodes"]))
    scenes.resolve(stored["suite"], spec)
    scenes.check_look(stored["suite"], stored["quality"], stored.get("protocol"))
    episodes = tuple(Episode(**episode) for episode in stored["episodes"])
    return Manifest(**{**stored, "episodes": episodes})


def _content_hash(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _describe(manifest: Manifest) -> str:
    return (
        f"{len(manifest.episodes)} episodes of {len(manifest.tasks)} tasks from seed "
        f"{manifest.episodes[0].seed}, {manifest.quality}, {manifest.observation_size} px, "
        f"{manifest.episode_length} steps" + (f", protocol {manifest.protocol}" if manifest.protocol else "")
    )
