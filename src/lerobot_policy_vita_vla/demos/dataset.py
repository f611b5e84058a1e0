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

from lerobot_policy_vita_vla.contracts import EXECUTED_ACTION, PRIVILEGED_STATE
from lerobot_policy_vita_vla.demos.expert import Demonstration
from lerobot_policy_vita_vla.demos.suite import CONTROL_HZ

IMAGE, STATE, ACTION = "observation.image", "observation.state", "action"
STATE_NAMES = ["hand_x", "hand_y", "hand_z", "gripper_opening"]
ACTION_NAMES = ["x", "y", "z", "gripper"]
ACTION_MEANING = {
    "x, y, z": "hand displacement in [-1, 1], 1 = 1 cm per step, world axes",
    "gripper": "-1 opens, +1 closes",
}


def features(observation_size: int) -> dict[str, dict]:
    """LeRobot's feature table for a recording with pictures of ``observation_size`` pixels."""

    def vector(size: int, names: list[str] | None = None) -> dict:
        return {"dtype": "float32", "shape": (size,), "names": names}

    picture = (observation_size, observation_size, 3)
    return {
        IMAGE: {"dtype": "image", "shape": picture, "names": ["height", "width", "channels"]},
        STATE: vector(4, STATE_NAMES),
        PRIVILEGED_STATE: vector(39),
        ACTION: vector(4, ACTION_NAMES),
        EXECUTED_ACTION: vector(4, ACTION_NAMES),
    }


class DatasetWriter:
    """A new LeRobotDataset that demonstrations are appended to.

    Args:
        root: Folder of the dataset; must not exist.
        repo_id: Its name on the hub, should it be pushed.
        observation_size: Height and width of pictures, pixels.
    """

    def __init__(self, root: Path, *, repo_id: str, observation_size: int):
        from lerobot.datasets import LeRobotDataset

        self._dataset = LeRobotDataset.create(
            repo_id=repo_id,
            fps=CONTROL_HZ,
            root=root,
            features=features(observation_size),
            robot_type="sawyer",
            use_videos=False,
        )

    def append(self, demonstration: Demonstration, instruction: str) -> None:
        """Write one episode.

        Raises:
            OSError: If the disk has no room for it.
        """
        # LeRobot only logs a picture that it could not write, and would store what there is of it.
        if shutil.disk_usage(self._dataset.root).free < 2 * demonstration.pictures.nbytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._dataset.root))
        columns = (IMAGE, STATE, PRIVILEGED_STATE, ACTION, EXECUTED_ACTION)
        with _quiet_progress_bars():
            for frame in zip(*demonstration, strict=True):
                self._dataset.add_frame({**dict(zip(columns, frame, strict=True)), "task": instruction})
            self._dataset.save_episode()

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
