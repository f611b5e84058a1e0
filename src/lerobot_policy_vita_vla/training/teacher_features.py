"""A teacher's action features of every frame, as a column of the dataset: `vita-vla teacher features`.

The column is named so that LeRobot's loader and pipelines hand it on (`contracts.TEACHER_FEATURES`); align
then regresses onto it and never runs the teacher. Beside it lies what it comes from, which is compared before
it is used (`vla.precomputed`). Teachers are small and their features too: 1024 numbers of 3 steps take 12 KiB
per frame, 3.4 GB for the 273 thousand frames of LIBERO.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import torch

from lerobot_policy_vita_vla.contracts import TEACHER_FEATURES
from lerobot_policy_vita_vla.conventions import match_cameras
from lerobot_policy_vita_vla.demos.dataset import VIDEO_BACKEND
from lerobot_policy_vita_vla.demos.fingerprint import fingerprint
from lerobot_policy_vita_vla.vla.precomputed import TEACHER_RECORD, teacher_hash
from lerobot_policy_vita_vla.vla.teaching import TeacherSource

logger = logging.getLogger(__name__)


def add_teacher_features(
    demos: Path, teacher: str, out: Path, *, device: str = "cpu", batch_size: int = 64, limit_gib: float = 2.0
) -> Path:
    """Write a copy of a dataset with the teacher's features.

    Args:
        demos: Folder of the LeRobotDataset.
        teacher: Its run or checkpoint folder.
        out: Folder of the copy; must not exist. Until the copy is whole it is called ``<out>.partial``.
        device: Where the teacher runs.
        batch_size: Frames at once.
        limit_gib: Largest size of pictures that are decoded into memory at once.

    Returns:
        ``out``.

    Raises:
        ValueError: ``out`` exists, the teacher reads a history or other cameras, or features are there.
    """
    from lerobot.datasets import LeRobotDataset
    from lerobot.datasets.dataset_tools import add_features

    from lerobot_policy_vita_vla.training.frame_cache import every_frame

    if out.exists():
        raise ValueError(f"{out} exists already; remove it (rm -r {out}) or choose another --out")
    source = TeacherSource(teacher, device)
    if (steps := getattr(source.teacher, "n_obs_steps", 1)) > 1:
        raise ValueError(
            f"the teacher at {teacher} reads {steps} steps, so that its features of a frame depend on how "
            "much of the history a sample holds; let align run it, or train one with --policy.n_obs_steps=1"
        )
    dataset = LeRobotDataset(
        f"local/{demos.absolute().name}", root=demos, return_uint8=True, video_backend=VIDEO_BACKEND
    )
    if TEACHER_FEATURES in dataset.meta.features:
        raise ValueError(f"{demos} holds teacher features already; use it, or start from the demos without")
    cameras = match_cameras(source.teacher.cameras, dataset.meta.camera_keys, flag="--policy.teacher_cameras")
    size = source.teacher.chunk_size * source.teacher.feature_dim
    logger.info("teacher features: %d frames, %.3f GiB", len(dataset), len(dataset) * size * 4 / 2**30)
    rows, found = 0, np.empty((len(dataset), size), np.float32)
    for batch in every_frame(dataset, batch_size, limit_gib):
        batch = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
        for key in dataset.meta.camera_keys:
            if batch[key].dtype == torch.uint8:
                batch[key] = batch[key].float() / 255.0  # as the training loop hands them on
        features = source.targets(batch, cameras).float().cpu().flatten(1).numpy()
        found[rows : rows + len(features)] = features
        rows += len(features)
    assert rows == len(dataset)
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    column = (found, {"dtype": "float32", "shape": (size,), "names": None})
    add_features(dataset, {TEACHER_FEATURES: column}, output_dir=partial, repo_id=f"local/{out.name}")
    _keep_our_files(demos, partial)
    _add_statistics(partial, found)
    record = {"teacher": teacher_hash(teacher), "dataset": fingerprint(demos), "cameras": cameras}
    (partial / TEACHER_RECORD).write_text(json.dumps(record, indent=1) + "\n")
    if fingerprint(partial) != record["dataset"]:
        raise ValueError(
            f"the copy {partial} differs from {demos}: LeRobot changed more than the one column. Check the "
            f"dataset with `vita-vla demos check {demos}`"
        )
    partial.rename(out)
    return out


def _add_statistics(copy: Path, values: np.ndarray) -> None:
    """LeRobot copies the statistics of what was there and leaves the new column without."""
    from lerobot.datasets.compute_stats import get_feature_stats

    file = copy / "meta" / "stats.json"
    stats = json.loads(file.read_text())
    found = get_feature_stats(values, axis=0, keepdims=False)
    stats[TEACHER_FEATURES] = {name: np.asarray(value).tolist() for name, value in found.items()}
    file.write_text(json.dumps(stats, indent=4) + "\n")


def _keep_our_files(demos: Path, copy: Path) -> None:
    """What lies in ``meta/`` beside LeRobot's own files, such as how the demonstrations were recorded."""
    for file in (demos / "meta").iterdir():
        if file.is_file() and not (copy / "meta" / file.name).exists():
            shutil.copyfile(file, copy / "meta" / file.name)
            os.utime(copy / "meta" / file.name)
