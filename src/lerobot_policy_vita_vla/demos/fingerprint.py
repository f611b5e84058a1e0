"""Whether two folders hold the same demonstrations, without reading every picture.

What was computed from a dataset (a teacher's features, a frozen encoder's) is worth nothing for another one,
and nothing else would tell: shapes agree. The fingerprint covers what LeRobot writes down of the content: the
features' definitions, the number of frames, the statistics of every feature over the dataset and over every
episode, the tasks, and the sizes of the video files. Numbers or pictures that were changed behind
LeRobot's back, without their statistics, go unnoticed.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from lerobot_policy_vita_vla.contracts import TEACHER_FEATURES


def fingerprint(root: str | Path) -> str:
    """Identity of a LeRobotDataset's content; columns of ours that were added later do not change it.

    Args:
        root: The dataset's folder.

    Returns:
        64 hexadecimal digits.

    Raises:
        ValueError: The folder holds no LeRobotDataset.
    """
    root = Path(root)
    info = _read(root / "meta" / "info.json", root)
    videos = sorted(root.glob("videos/**/*.mp4"))
    facts = {
        "features": _without_ours(info["features"]),
        "fps": info["fps"],
        "frames": info["total_frames"],
        "episodes": info["total_episodes"],
        "stats": _without_ours(_read(root / "meta" / "stats.json", root)),
        "videos": [(str(file.relative_to(root)), file.stat().st_size) for file in videos],
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for file in sorted(root.glob("meta/episodes/**/*.parquet")):
        digest.update(file.read_bytes())
    digest.update(json.dumps(_tasks(root)).encode())
    return digest.hexdigest()


def _without_ours(by_feature: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in by_feature.items() if key != TEACHER_FEATURES}


def _tasks(root: Path) -> list[str]:
    import pandas as pd

    file = root / "meta" / "tasks.parquet"
    return [str(task) for task in pd.read_parquet(file).index] if file.is_file() else []


def _read(path: Path, root: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{root} is not a LeRobotDataset: {path.relative_to(root)} is missing")
    return json.loads(path.read_text())
