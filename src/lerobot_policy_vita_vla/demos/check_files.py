"""Whether a LeRobotDataset's files are all there, whole, and agree about how much they hold."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lerobot_policy_vita_vla.demos.findings import ERROR, WARNING, Finding

PICTURES = ("image", "video")
VERSION = "v3.0"


@dataclass
class Layout:
    """What a dataset's meta folder says, as far as it could be read.

    Args:
        root: The dataset's folder.
        info: ``meta/info.json``.
        episodes: One dict per episode, without the statistics columns.
        tasks: Task index -> instruction.
        stats: ``meta/stats.json``.
        data_files: Parquet files with the frames, in order.
    """

    root: Path
    info: dict[str, Any]
    episodes: list[dict[str, Any]]
    tasks: dict[int, str]
    stats: dict[str, dict[str, Any]]
    data_files: list[Path]

    @property
    def features(self) -> dict[str, dict[str, Any]]:
        """Feature name -> dtype, shape, names."""
        return self.info["features"]

    def keys(self, *dtypes: str) -> list[str]:
        """Names of the features with one of these dtypes."""
        return [name for name, feature in self.features.items() if feature["dtype"] in dtypes]


def read_layout(root: Path, repo_id: str) -> tuple[Layout | None, list[Finding]]:
    """Read the meta folder and open every file once.

    Returns:
        The layout, or None where frames cannot be looked at, and what was found.
    """
    if found := _missing_or_old(root, repo_id):
        return None, [found]
    try:
        info = json.loads((root / "meta/info.json").read_text())
        fields = ("features", "fps", "total_episodes", "total_frames", "data_path")
        if missing := [name for name in fields if name not in info]:
            raise ValueError(f"it lacks {missing}")
    except ValueError as error:
        what = f"{root / 'meta/info.json'} is damaged: {error}"
        return None, [Finding(ERROR, what, "restore this file from a copy, or record the dataset again")]
    episodes, found = _read_tables(sorted((root / "meta/episodes").glob("*/*.parquet")), "stats/")
    tasks, more = _read_tables([root / "meta/tasks.parquet"])
    found += more
    stats: dict = {}
    try:
        stats = json.loads((root / "meta/stats.json").read_text())
    except (OSError, ValueError) as error:
        found.append(Finding(ERROR, f"meta/stats.json cannot be read: {error}", _recompute(root, repo_id)))
    if not episodes and not found:
        found.append(
            Finding(
                ERROR,
                f"{root}/meta/episodes holds no episode: the recording was never finished",
                "call LeRobotDataset.finalize() after the last episode; record again",
            )
        )
    if any(f.level == ERROR for f in found):
        return None, found
    layout = Layout(
        root,
        info,
        episodes,
        {int(row["task_index"]): str(row.get("task", row.get("__index_level_0__", ""))) for row in tasks},
        stats,
        [],
    )
    found = _check_data_files(layout) + _check_video_files(layout)
    return (None if any(f.level == ERROR for f in found) else layout), found


def _missing_or_old(root: Path, repo_id: str) -> Finding | None:
    convert = (
        "python -m lerobot.scripts.convert_dataset_v21_to_v30 "
        f"--repo-id={repo_id} --root={root} --push-to-hub=false"
    )
    partial = root.with_name(root.name + ".recording")
    if not root.is_dir():
        fix = f"run the recording that started {partial} again; it goes on" if partial.is_dir() else ""
        return Finding(
            ERROR, f"{root} is not a folder", fix or "check the path: it is the one that holds meta/"
        )
    info = root / "meta/info.json"
    if not info.is_file():
        nested = sorted(p.parent.parent for p in root.glob("*/meta/info.json"))
        fix = f"did you mean {nested[0]}?" if nested else "check the path, or record again"
        return Finding(ERROR, f"{root} is no LeRobotDataset: {info} is missing", fix)
    try:
        written = str(json.loads(info.read_text()).get("codebase_version", "unknown"))
    except ValueError:
        return None
    if (root / "meta/episodes.jsonl").is_file() or written.startswith("v2"):
        what = f"{root} has the old format {written}, LeRobot 0.6 reads {VERSION}"
        first = "convert it to v2.1 with an older LeRobot, then: " if written == "v2.0" else ""
        return Finding(ERROR, what, first + convert)
    if not written.startswith("v3"):
        return Finding(ERROR, f"{root} has format {written}, this LeRobot reads {VERSION}", "upgrade LeRobot")
    return None


def _read_tables(paths: list[Path], skip: str = "\0") -> tuple[list[dict[str, Any]], list[Finding]]:
    import pyarrow.parquet as pq

    rows, found = [], []
    for path in paths:
        try:
            file = pq.ParquetFile(path)
            columns = [name for name in file.schema_arrow.names if not name.startswith(skip)]
            rows += file.read(columns=columns).to_pylist()
        except Exception as error:
            found.append(_unreadable(path, error))
    return rows, found


def _check_data_files(layout: Layout) -> list[Finding]:
    import pyarrow.parquet as pq

    found, rows = [], 0
    numbers = {(e["data/chunk_index"], e["data/file_index"]) for e in layout.episodes}
    for chunk, file in sorted(numbers):
        path = layout.root / layout.info["data_path"].format(chunk_index=chunk, file_index=file)
        try:
            rows += pq.ParquetFile(path).metadata.num_rows
        except Exception as error:
            found.append(_unreadable(path, error))
        layout.data_files.append(path)
    if found:
        return found
    counts = {
        "meta/info.json says": (layout.info["total_episodes"], layout.info["total_frames"]),
        "meta/episodes says": (len(layout.episodes), sum(e["length"] for e in layout.episodes)),
        "the data files hold": (len(layout.episodes), rows),
    }
    if len(set(counts.values())) > 1:
        what = "; ".join(f"{who} {e} episodes, {f} frames" for who, (e, f) in counts.items())
        found.append(
            Finding(
                ERROR,
                f"the dataset disagrees with itself: {what}",
                "it was written only half, or merged by hand; record or download it again",
            )
        )
    return found


def _check_video_files(layout: Layout) -> list[Finding]:
    found = []
    for key in layout.keys("video"):
        columns = (f"videos/{key}/chunk_index", f"videos/{key}/file_index")
        if columns[0] not in layout.episodes[0]:
            found.append(
                Finding(ERROR, f"meta/episodes names no video file for {key}", "download the dataset again")
            )
            continue
        for chunk, file in sorted({tuple(e[c] for c in columns) for e in layout.episodes}):
            path = layout.root / layout.info["video_path"].format(
                video_key=key, chunk_index=chunk, file_index=file
            )
            if not path.is_file() or path.stat().st_size == 0:
                found.append(_unreadable(path, "missing or empty"))
    staged = layout.root / "images"
    if staged.is_dir() and any(staged.rglob("*.png")):
        found.append(
            Finding(
                WARNING,
                f"{staged} holds pictures of an episode that was never saved",
                f"the recording was cut off; what was saved is whole. To free the space: rm -r {staged}",
            )
        )
    return found


def _unreadable(path: Path, error: object) -> Finding:
    fix = "download or record the dataset again; the writer may have been stopped before finalize()"
    return Finding(ERROR, f"{path} cannot be read: {error}", fix)


def _recompute(root: Path, repo_id: str) -> str:
    return (
        f"lerobot-edit-dataset --repo_id {repo_id} --root {root} --operation.type recompute_stats "
        "--operation.overwrite true"
    )
