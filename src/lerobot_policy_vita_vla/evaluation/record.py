"""Keeping the books of a running evaluation: lines, videos, progress, and the final rates."""

from __future__ import annotations

import logging
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lerobot_policy_vita_vla.demos.scenes import scenes_of
from lerobot_policy_vita_vla.evaluation import results
from lerobot_policy_vita_vla.evaluation.manifest import Episode, Manifest
from lerobot_policy_vita_vla.evaluation.video import write_video
from lerobot_policy_vita_vla.evaluation.worker import FILM_EVERY, Settings

logger = logging.getLogger(__name__)

PACKAGES = (
    "lerobot_policy_vita_vla",
    "lerobot",
    "torch",
    "transformers",
    "mujoco",
    "metaworld",
    "hf-libero",
)

_warned_of_software_gl = False


class RunRecord:
    """One evaluation folder while its episodes are being played.

    Args:
        folder: Where everything is written.
        manifest: The episodes.
        run: What ``run.json`` is to say.
        done: Episodes finished earlier.
        videos_per_task: Failures and successes to film of each task.
        progress: Show a progress bar.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        run: dict[str, Any],
        done: list[dict[str, Any]],
        videos_per_task: tuple[int, int],
        progress: bool,
    ):
        self.folder, self.manifest, self.run = folder, manifest, dict(run)
        self._episodes, self._earlier = list(done), len(done)
        self._videos = {False: videos_per_task[0], True: videos_per_task[1]}
        self._progress, self._bar = progress, None
        self.result: dict[str, Any] = {}

    def begin(self, predictor, settings: Settings, plan) -> None:
        """Write ``run.json`` and open the progress bar; nothing is left behind if preparations failed
        before.
        """
        from tqdm import tqdm

        self.run |= {
            "policy_type": predictor.policy_type if predictor else "expert",
            "quality": self.manifest.quality,
            "execution": {
                "chunk_size": settings.chunk_size,
                "n_action_steps": settings.n_action_steps,
                "temporal_ensemble_coeff": settings.ensemble_coeff,
                "execute_from": settings.execute_from,
                "n_obs_steps": settings.n_obs_steps,
                "rows_per_call": plan.rows,
                "stochastic": plan.stochastic,
            },
            "versions": {"python": platform.python_version(), **_versions()},
        }
        results.write_json(self.folder / results.RUN_FILE, self.run)
        self._bar = tqdm(
            total=len(self.manifest.episodes),
            initial=self._earlier,
            desc=self.run["label"],
            unit="episode",
            disable=not self._progress,
        )

    def remaining(self) -> list[Episode]:
        """Episodes that have not finished yet, in the manifest's order."""
        finished = {episode["id"] for episode in self._episodes}
        return [episode for episode in self.manifest.episodes if episode.id not in finished]

    def films(self, task: str) -> frozenset[bool]:
        """Outcomes of which a video of another episode of this task is wanted."""
        return frozenset(
            success for success, wanted in self._videos.items() if self._filmed(task, success) < wanted
        )

    def set_renderer(self, name: str, software: bool) -> None:
        """Note what draws the pictures; software is said aloud once."""
        global _warned_of_software_gl
        self.run["renderer"] = {"name": name, "software": software}
        results.write_json(self.folder / results.RUN_FILE, self.run)
        if software and not _warned_of_software_gl:
            _warned_of_software_gl = True
            logger.warning(
                "pictures are drawn in software (%s): correct, but slow; see `vita-vla doctor`", name
            )

    def add(self, episode: Episode, outcome: dict[str, Any]) -> None:
        """Write down a finished episode."""
        success, video = outcome["success"], None
        if outcome["frames"] is not None and self._filmed(episode.task, success) < self._videos[success]:
            ending = "success" if success else "failure"
            video = f"{results.VIDEO_FOLDER}/{episode.task}_{episode.seed}_{ending}.mp4"
            write_video(
                self.folder / video, outcome["frames"], scenes_of(self.manifest.suite).control_hz / FILM_EVERY
            )
        record = {
            "id": episode.id,
            "suite": self.manifest.suite,
            "task": episode.task,
            "seed": episode.seed,
            "success": success,
            "steps": outcome["steps"],
            "policy_seed": episode.seed,
            "state_hash": outcome["state_hash"],
            "video": video,
        }
        results.append_episode(self.folder, record)
        self._episodes.append(record)
        successes = sum(episode["success"] for episode in self._episodes)
        self._bar.set_postfix_str(f"success {successes}/{len(self._episodes)}", refresh=False)
        self._bar.update()

    def close(self, seconds: float) -> None:
        """Write ``result.json`` over what has finished so far; also after an interruption.

        Args:
            seconds: Wall time of this call, loading included.
        """
        if self._bar is None:
            return
        self._bar.close()
        if not self._episodes:
            return
        before = (
            results.read_result(self.folder)["seconds"]
            if (self.folder / results.RESULT_FILE).is_file()
            else 0.0
        )
        self.result = {
            **self.run,
            "complete": len(self._episodes) == len(self.manifest.episodes),
            "episodes": len(self._episodes),
            **results.summarise(self._episodes),
            "seconds": round(before + seconds, 2),
            "episodes_per_hour": round(3600 * len(self._episodes) / (before + seconds), 1),
        }
        results.write_json(self.folder / results.RESULT_FILE, self.result)

    def _filmed(self, task: str, success: bool) -> int:
        return sum(e["task"] == task and e["success"] == success and bool(e["video"]) for e in self._episodes)


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
