"""Writing demonstrations as a LeRobotDataset.

Pictures are stored as PNG inside the parquet files, not as video. Measured at 96 px (one core): PNG costs 4.0
ms per frame to write, AV1 video 3.7 to 4.6 ms, so speed does not decide; PNG keeps the exact pixels that
evaluation will show the policy, and reading a random frame needs no video decoder. It costs disk: 8 kB per
frame against 1 kB.
"""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from lerobot_policy_vita_vla.contracts import EXECUTED_ACTION, PRIVILEGED_STATE
from lerobot_policy_vita_vla.demos.expert import Demonstration
from lerobot_policy_vita_vla.demos.scenes import METAWORLD, Scenes

STATE, ACTION = "observation.state", "action"

VIDEO_BACKEND = "pyav"
"""What all our readers and writers name. Left to itself LeRobot tries torchcodec, whether there are videos or
not, which without FFmpeg's libraries prints a hundred lines of traceback and then takes this one."""


def features(scenes: Scenes, observation_size: int) -> dict[str, dict]:
    """LeRobot's feature table for a recording of a suite with pictures of ``observation_size`` pixels."""

    def vector(size: int, names: tuple[str, ...] | None = None) -> dict:
        return {"dtype": "float32", "shape": (size,), "names": list(names) if names else None}

    shape = (observation_size, observation_size, 3)
    picture = {"dtype": "image", "shape": shape, "names": ["height", "width", "channels"]}
    table = {camera: dict(picture) for camera in scenes.cameras.values()}
    table[STATE] = vector(scenes.state_dim, scenes.state_names)
    table[PRIVILEGED_STATE] = vector(scenes.privileged_dim)
    table[ACTION] = vector(scenes.action_dim, scenes.action_names)
    table[EXECUTED_ACTION] = vector(scenes.action_dim, scenes.action_names)
    return table


class DatasetWriter:
    """A new LeRobotDataset that demonstrations are appended to.

    Args:
        root: Folder of the dataset; must not exist.
        repo_id: Its name on the hub, should it be pushed.
        observation_size: Height and width of pictures, pixels.
        scenes: The suite that was recorded.
    """

    def __init__(self, root: Path, *, repo_id: str, observation_size: int, scenes: Scenes = METAWORLD):
        from lerobot.datasets import LeRobotDataset

        self._scenes = scenes
        self._dataset = LeRobotDataset.create(
            repo_id=repo_id,
            fps=scenes.control_hz,
            root=root,
            features=features(scenes, observation_size),
            robot_type=scenes.robot,
            use_videos=False,
            video_backend=VIDEO_BACKEND,
        )

    def append(self, demonstration: Demonstration, instruction: str) -> None:
        """Write one episode.

        Args:
            demonstration: Of the suite that was named.
            instruction: What the robot is told.

        Raises:
            OSError: If the disk has no room for it.
        """
        # LeRobot only logs a picture that it could not write, and would store what there is of it.
        if shutil.disk_usage(self._dataset.root).free < 2 * demonstration.pictures.nbytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._dataset.root))
        columns = self._columns(demonstration)
        with _quiet_progress_bars():
            for frame in zip(*columns.values(), strict=True):
                self._dataset.add_frame({**dict(zip(columns, frame, strict=True)), "task": instruction})
            self._dataset.save_episode()

    def _columns(self, demonstration: Demonstration) -> dict[str, np.ndarray]:
        cameras = list(self._scenes.cameras.values())
        pictures = demonstration.pictures
        columns = {cameras[0]: pictures}
        if len(cameras) > 1:
            columns = {camera: pictures[:, number] for number, camera in enumerate(cameras)}
        columns[STATE] = demonstration.state
        columns[PRIVILEGED_STATE] = demonstration.environment_state
        return {**columns, ACTION: demonstration.action, EXECUTED_ACTION: demonstration.executed_action}

    def finish(self) -> dict:
        """Close the files; returns the dataset's statistics."""
        self._dataset.finalize()
        # LeRobot leaves the folders behind in which it staged pictures.
        for folder in sorted((self._dataset.root / "images").rglob("*"), reverse=True):
            folder.rmdir()
        (self._dataset.root / "images").rmdir()
        return self._dataset.meta.stats


@contextmanager
def _quiet_progress_bars():
    # Each saved episode would print a bar of its own from inside `datasets`.
    import datasets

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
