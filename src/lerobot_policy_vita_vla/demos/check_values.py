"""Whether the numbers in a dataset can be learned from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from lerobot_policy_vita_vla.demos.check_files import PICTURES, Layout
from lerobot_policy_vita_vla.demos.findings import ERROR, NOTE, WARNING, Finding

MAX_DEVIATIONS = 50.0
"""Our choice: a value this many standard deviations off the mean makes a loss explode."""

MIN_QUANTILE_SHARE = 1e-3
"""Our choice: where the 1st..99th percentile covers less of the range than this, quantile scaling
explodes."""


def read_columns(layout: Layout) -> tuple[dict[str, np.ndarray], list[Finding]]:
    """All numeric columns: name -> (frames,) or (frames, size), in the order of the files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [key for key, feature in layout.features.items() if feature["dtype"] not in (*PICTURES, "string")]
    columns: dict[str, list[np.ndarray]] = {}
    found: list[Finding] = []
    for path in layout.data_files:
        try:
            table = pq.read_table(path, columns=[n for n in names if n in pq.read_schema(path).names])
        except Exception as error:
            fix = "download or record the dataset again"
            return {}, [Finding(ERROR, f"{path} cannot be read: {error}", fix)]
        for name in table.column_names:
            column = table[name].combine_chunks()
            if column.null_count:
                what = f"{column.null_count} frames in {path} have no {name}"
                found.append(Finding(ERROR, what, "fill the gaps or drop the column"))
                continue
            if pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
                values = column.flatten()
                if not pa.types.is_primitive(values.type):
                    continue
                shaped = values.to_numpy(zero_copy_only=False).reshape(len(column), -1)
            elif pa.types.is_primitive(column.type):
                shaped = column.to_numpy(zero_copy_only=False)
            else:
                continue
            columns.setdefault(name, []).append(shaped)
    return {name: np.concatenate(parts) for name, parts in columns.items()}, found


def check_values(layout: Layout, columns: dict[str, np.ndarray], edit: str) -> Iterator[Finding]:
    """NaN, infinities, shapes, constant dimensions, statistics that explode or do not fit the data.

    Args:
        layout: The dataset.
        columns: From `read_columns`.
        edit: Beginning of a lerobot-edit-dataset command for this dataset.
    """
    episode = columns["episode_index"]
    for key, feature in layout.features.items():
        if key not in columns or not feature["dtype"].startswith("float") or key == "timestamp":
            continue
        values = columns[key].reshape(len(episode), -1)
        names = _dimension_names(feature, values.shape[1])
        size = int(np.prod(feature["shape"]))
        if values.shape[1] != size:
            what = f"{key} holds {values.shape[1]} numbers per frame, info.json says {size}"
            yield Finding(ERROR, what, "correct meta/info.json or record again")
            continue
        if (~np.isfinite(values)).any():
            frames, dims = np.nonzero(~np.isfinite(values))
            bad = sorted({int(e) for e in episode[frames]})
            yield Finding(
                ERROR,
                f"{key} has {len(frames)} values that are NaN or infinite, in "
                f"{_some(names[d] for d in sorted(set(dims)))}, episodes {_some(bad)}",
                f'{edit} --operation.type delete_episodes --operation.episode_indices "{bad}"',
            )
            continue
        yield from _check_ranges(key, names, values, edit)
        yield from _check_stats(key, names, values, layout.stats.get(key), edit)


def _check_ranges(key: str, names: list[str], values: np.ndarray, edit: str) -> Iterator[Finding]:
    low, high = values.min(axis=0), values.max(axis=0)
    learned = key in ("action", "observation.state")
    constant = [names[i] for i in np.flatnonzero(high == low)]
    if constant and learned:
        yield Finding(
            WARNING if key == "action" else NOTE,
            f"{key} is constant in {_some(constant)}: nothing can be learned there",
            "fine for a joint that is not used; otherwise check the recorder",
        )
    if not learned:
        return
    spread = np.maximum(values.std(axis=0), 1e-12)
    reach = np.maximum(high - values.mean(axis=0), values.mean(axis=0) - low) / spread
    q01, q99 = np.quantile(values, [0.01, 0.99], axis=0)
    share = (q99 - q01) / np.maximum(high - low, 1e-12)
    two_valued = np.array([len(np.unique(values[:, i])) <= 2 for i in range(values.shape[1])])
    for i in np.flatnonzero((high > low) & ~two_valued):
        if reach[i] > MAX_DEVIATIONS or share[i] < MIN_QUANTILE_SHARE:
            yield Finding(
                WARNING,
                f"{key} {names[i]!r} hardly ever moves: its extreme is {reach[i]:.0f} standard deviations "
                f"off the mean, 98 % of its values cover {share[i]:.2%} of [{low[i]:.4g}, {high[i]:.4g}]. "
                "Normalised by mean and deviation or by quantiles it explodes",
                "remove the outliers, or normalise by minimum and maximum",
            )
    if key == "action" and (outside := [names[i] for i in np.flatnonzero((low < -1) | (high > 1))]):
        yield Finding(
            NOTE, f"action {_some(outside)} leaves [-1, 1]; it is scaled by its minimum and maximum"
        )


def _check_stats(
    key: str, names: list[str], values: np.ndarray, stats: dict[str, Any] | None, edit: str
) -> Iterator[Finding]:
    fix = f"{edit} --operation.type recompute_stats --operation.overwrite true"
    if stats is None or not {"min", "max", "mean", "std"} <= set(stats):
        yield Finding(ERROR, f"meta/stats.json lacks statistics of {key}", fix)
        return
    here = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0)}
    unit = np.maximum(values.std(axis=0), 1e-6)
    wrong: set[str] = set()
    for name, actual in here.items():
        stored = np.ravel(np.asarray(stats[name], dtype=np.float64))
        if stored.shape != actual.shape or not np.isfinite(stored).all():
            yield Finding(ERROR, f"meta/stats.json has unusable {name} of {key}: {stats[name]}", fix)
            return
        wrong |= {names[i] for i in np.flatnonzero(np.abs(stored - actual) > 0.05 * unit)}
    if wrong:
        what = f"meta/stats.json does not describe the data: {key} {_some(sorted(wrong))}"
        yield Finding(ERROR if key == "action" else WARNING, what, fix)


def check_episodes(layout: Layout, columns: dict[str, np.ndarray], min_length: int) -> Iterator[Finding]:
    """Order and length of episodes, timestamps against the frame rate, task strings."""
    again = "the file was edited by hand or merged wrongly; record or convert it again"
    fps = layout.info["fps"]
    if not fps or fps <= 0:
        yield Finding(
            ERROR, f"meta/info.json says {fps} frames per second", "write the recorder's rate there"
        )
        return
    frame = columns["frame_index"]
    starts = np.flatnonzero(np.diff(columns["episode_index"], prepend=-1) != 0)
    expected = np.arange(len(frame)) - np.repeat(starts, np.diff(np.append(starts, len(frame))))
    if not np.array_equal(columns["index"], np.arange(len(frame))) or not np.array_equal(frame, expected):
        yield Finding(ERROR, "frames are not numbered one after another within their episodes", again)
        return
    late = np.abs(columns["timestamp"] - frame / fps)
    if late.max() > 0.5 / fps:
        at = int(columns["episode_index"][late.argmax()])
        yield Finding(
            ERROR,
            f"timestamps do not fit {fps} frames per second: {late.max():.4g} s off in episode {at}",
            "write the true rate into meta/info.json, or resample the recording to it",
        )
    lengths = {int(e["episode_index"]): int(e["length"]) for e in layout.episodes}
    if short := [episode for episode, length in lengths.items() if length < min_length]:
        yield Finding(
            WARNING,
            f"{len(short)} episodes are shorter than {min_length} frames: {_some(short)}",
            "delete them, or check that the recorder was not stopped at once",
        )
    used = {int(task) for task in np.unique(columns["task_index"])}
    if unknown := used - set(layout.tasks):
        yield Finding(ERROR, f"frames name tasks {_some(unknown)} that meta/tasks.parquet lacks", again)
    if empty := [task for task in used & set(layout.tasks) if not layout.tasks[task].strip()]:
        frames = int(np.isin(columns["task_index"], empty).sum())
        yield Finding(
            ERROR,
            f"{frames} frames have an empty instruction; a policy that reads it learns nothing from them",
            "write what the robot is to do: lerobot-edit-dataset --operation.type modify_tasks",
        )


def _dimension_names(feature: dict[str, Any], size: int) -> list[str]:
    names = feature.get("names")
    if isinstance(names, dict):
        names = next(iter(names.values()), None)
    return [str(n) for n in names] if names and len(names) == size else [f"[{i}]" for i in range(size)]


def _some(items, limit: int = 8) -> str:
    items = [str(item) for item in items]
    return ", ".join(items[:limit]) + (f" and {len(items) - limit} more" if len(items) > limit else "")
