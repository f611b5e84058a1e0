"""A tiny real recording, made once per test session, and copies of it to damage."""

import atexit
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from lerobot_policy_vita_vla.conventions import RecordingInfo
from lerobot_policy_vita_vla.demos.record import record

# Picking needs the gripper, so that no dimension of the dataset is constant.
TASKS = "reach-v3,pick-place-v3"
ARGUMENTS = {"observation_size": 32, "seed": 100, "progress": False}


@cache
def tiny_recording() -> tuple[Path, RecordingInfo]:
    """Two tasks, two episodes each, recorded by two worker processes."""
    root = Path(mkdtemp(prefix="vita_demos_")) / "demos"
    atexit.register(shutil.rmtree, root.parent, ignore_errors=True)
    return root, record(TASKS, 2, root, workers=2, **ARGUMENTS)


def copy_of_recording(folder: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_recording()[0], folder / "demos"))
