"""Checking any LeRobotDataset before hours are spent on it.

`check_dataset` never raises for a bad dataset: it lists what it found, each with the way to repair it. Three
passes, each needing the one before: files (`check_files`), numbers (`check_values`), pictures (here).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lerobot_policy_vita_vla.conventions import RecordingInfo, statistics_hash
from lerobot_policy_vita_vla.demos.check_files import PICTURES, Layout, read_layout
from lerobot_policy_vita_vla.demos.check_values import check_episodes, check_values, read_columns
from lerobot_policy_vita_vla.demos.dataset import VIDEO_BACKEND
from lerobot_policy_vita_vla.demos.declared import DECLARED_AS, command, is_label, looks_like
from lerobot_policy_vita_vla.demos.findings import ERROR, NOTE, WARNING, Finding, Findings, format_findings

__all__ = ["Finding", "Findings", "check_dataset", "format_findings"]

ACTION, STATE = "action", "observation.state"


def check_dataset(
    root: str | Path,
    repo_id: str | None = None,
    *,
    expect_action_dim: int | None = None,
    expect_cameras: tuple[str, ...] = (),
    min_episode_length: int = 10,
    sample_episodes: int = 5,
) -> Findings:
    """List what is wrong with a dataset on disk.

    Args:
        root: The dataset's folder, the one that holds ``meta/``.
        repo_id: Its name, for the commands in the findings; None takes the folder's name.
        expect_action_dim: Size of ``action``, where it is known.
        expect_cameras: Camera keys that must be there.
        min_episode_length: Shorter episodes are reported; pass the policy's chunk size or more.
        sample_episodes: Number of episodes, spread evenly, of which the first, middle and last picture are
            decoded.

    Returns:
        A list of `Finding`; empty for a sound dataset, ``.ok`` if nothing in it is an error. Nothing is
        downloaded and nothing is written.
    """
    root = Path(root).expanduser().resolve()
    repo_id = repo_id or f"local/{root.name}"
    layout, files = read_layout(root, repo_id)
    found = Findings(files)
    if layout is None:
        return found
    found += _check_features(layout, expect_action_dim, expect_cameras)
    columns, more = read_columns(layout)
    found += more
    needed = ("episode_index", "frame_index", "index", "timestamp", "task_index")
    if missing := [name for name in needed if name not in columns]:
        if not more:
            found.append(
                Finding(ERROR, f"the data files lack the columns {missing}", "record or convert again")
            )
        return found
    edit = f"lerobot-edit-dataset --repo_id {repo_id} --root {root}"
    found += check_episodes(layout, columns, min_episode_length)
    found += check_values(layout, columns, edit)
    if found.ok:
        found += _check_pictures(layout, repo_id, sample_episodes)
        found += _check_recording(layout)
    return found


def _check_features(layout: Layout, action_dim: int | None, cameras: tuple[str, ...]) -> Iterator[Finding]:
    have = ", ".join(layout.features)
    if ACTION not in layout.features:
        yield Finding(ERROR, f"there is no {ACTION!r}; the dataset has {have}", "rename the column to action")
    elif action_dim is not None and (shape := list(layout.features[ACTION]["shape"])) != [action_dim]:
        yield Finding(
            ERROR, f"action has shape {shape}, expected [{action_dim}]", "choose the matching robot"
        )
    if STATE not in layout.features:
        yield Finding(WARNING, f"there is no {STATE!r}: policies that read the state cannot be trained", "")
    found = layout.keys(*PICTURES)
    if not found:
        yield Finding(ERROR, f"there is no camera; the dataset has {have}", "record with a camera")
    if missing := [camera for camera in cameras if camera not in found]:
        example = f'--rename_map=\'{{"{(found or ["<camera>"])[0]}": "{missing[0]}"}}\''
        yield Finding(
            ERROR, f"cameras {missing} are missing; the dataset has {found}", f"train with {example}"
        )
    for key in found:
        shape = list(layout.features[key]["shape"])
        if len(shape) != 3 or 3 not in (shape[0], shape[-1]):
            yield Finding(
                ERROR, f"{key} has shape {shape}, expected (height, width, 3)", "store colour pictures"
            )


def _check_pictures(layout: Layout, repo_id: str, sample_episodes: int) -> Iterator[Finding]:
    if not layout.keys(*PICTURES):
        return
    from lerobot.datasets import LeRobotDataset

    try:
        dataset = LeRobotDataset(repo_id, root=layout.root, video_backend=VIDEO_BACKEND)
    except Exception as error:
        yield Finding(ERROR, f"LeRobot cannot open the dataset: {error}", "download or record it again")
        return
    chosen = np.unique(np.linspace(0, len(layout.episodes) - 1, sample_episodes).round().astype(int))
    for episode in (layout.episodes[i] for i in chosen):
        first, last = int(episode["dataset_from_index"]), int(episode["dataset_to_index"]) - 1
        for index in sorted({first, (first + last) // 2, last}):
            where = f"episode {episode['episode_index']}, frame {index - first}"
            try:
                frame = dataset[index]
            except Exception as error:
                yield Finding(
                    ERROR,
                    f"the pictures of {where} cannot be decoded: {type(error).__name__}: {error}",
                    "download or record it again",
                )
                break
            yield from _check_picture_values(layout, frame, where)


def _check_picture_values(layout: Layout, frame: dict, where: str) -> Iterator[Finding]:
    for key in layout.keys(*PICTURES):
        shape = tuple(layout.features[key]["shape"])
        height, width = shape[:2] if shape[-1] == 3 else shape[1:]
        picture = frame[key]
        if tuple(picture.shape[-2:]) != (height, width):
            what = f"{key} is {tuple(picture.shape[-2:])} in {where}, info.json says {(height, width)}"
            yield Finding(ERROR, what, "correct meta/info.json or record again")
        elif float(picture.max()) == float(picture.min()):
            yield Finding(WARNING, f"{key} shows one flat colour in {where}", "check the camera")


def _check_recording(layout: Layout) -> Iterator[Finding]:
    try:
        info = RecordingInfo.load(layout.root)
    except ValueError as error:
        yield Finding(WARNING, str(error), "")
        return
    if info is None:
        name = looks_like(layout.info)
        yield Finding(
            NOTE,
            "not recorded by this package: how its pictures were made and what its numbers mean is not known"
            + (f"; it has the columns of {name}" if name else ""),
            f"if it is that: {command(layout.root, name)}" if name else "",
        )
        return
    if is_label(info, layout.info["fps"]) and info.control_hz != layout.info["fps"]:
        yield Finding(
            NOTE,
            f"meta/info.json says {layout.info['fps']:g} frames per second; as {info.settings[DECLARED_AS]} "
            f"its frames are control steps, {info.control_hz:g} per second",
            "",
        )
    elif info.control_hz != layout.info["fps"]:
        yield Finding(
            ERROR,
            f"meta/info.json says {layout.info['fps']:g} frames per second, the recording was made at "
            f"{info.control_hz:g} actions per second",
            f"find out which is true: vita-vla demos replay {layout.root}",
        )
    if info.statistics_hash != statistics_hash(layout.stats):
        yield Finding(
            WARNING,
            "the statistics changed since the dataset was recorded; a teacher trained before has other ones",
            "train the teacher again, or restore meta/stats.json",
        )
