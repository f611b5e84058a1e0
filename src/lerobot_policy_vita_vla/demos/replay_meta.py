"""What a dataset's own labels say, against its columns and against what the replay found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from lerobot_policy_vita_vla.conventions import Conventions, statistics_hash
from lerobot_policy_vita_vla.demos.replay_data import ACTION, STATE, Recording
from lerobot_policy_vita_vla.demos.replay_report import BROKEN, CONFIRMED, ReplayReport, Verdict

RANGE, MEAN = 1e-5, 1e-3
"""Parts of a number's range, and of its standard deviation, up to which statistics are rounding."""


def judge_sizes(report: ReplayReport, recording: Recording, meaning: Conventions) -> Conventions:
    """Compare the pictures' sizes with the declared one, which holds for all cameras.

    Args:
        report: Takes ``image_size``.
        recording: The dataset.
        meaning: Conventions as declared.

    Returns:
        The conventions, with the size that all cameras have.
    """
    sizes, (high, wide) = recording.image_sizes, meaning.image_size
    others = {key: size for key, size in sizes.items() if size != meaning.image_size}
    said = ", ".join(f"{key} has {h} x {w} pixels" for key, (h, w) in others.items())
    if not others:
        return meaning
    if len(others) < len(sizes):
        fine = ", ".join(key for key in sizes if key not in others)
        report.notes.append(
            f"{said}, where image_size is {high} x {wide}, as {fine} has it: there is one image_size for all "
            "cameras, so that the size of the others is not checked"
        )
        return meaning
    found = f"{said}, declared are {high} x {wide}"
    if len(set(others.values())) > 1:
        report.add(
            "image_size",
            BROKEN,
            found,
            'set "image_size" to the size of the camera that matters most; there is one for all cameras',
        )
        return meaning
    size = next(iter(others.values()))
    report.add(
        "image_size",
        BROKEN,
        found,
        f'set "image_size": {list(size)} and evaluate with pictures of this size',
    )
    return replace(meaning, image_size=size)


def judge_statistics(report: ReplayReport, recording: Recording) -> None:
    """Compare meta/stats.json with what was recorded, and with the columns that it is to describe.

    Args:
        report: Takes ``statistics``.
        recording: The dataset.
    """
    stats, recorded = recording.layout.stats, recording.info.statistics_hash if recording.info else ""
    wrong = list(_wrong_numbers(recording))
    if recorded and recorded != statistics_hash(stats):
        report.add(
            "statistics",
            BROKEN,
            "meta/stats.json is not the one that was recorded: what was trained before has another scale"
            + (f"; {'; '.join(wrong[:3])}" if wrong else ""),
            "restore meta/stats.json, or train teacher and student again on this dataset",
        )
    elif wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        report.add(
            "statistics",
            BROKEN,
            f"meta/stats.json does not describe the data, by which training scales: "
            f"{'; '.join(wrong[:3])}{more}",
            "restore the data that was recorded; if it was changed on purpose, lerobot-edit-dataset "
            "--operation.type recompute_stats, and train again what was trained on it",
        )
    elif recorded:
        report.add("statistics", CONFIRMED, f"hash {recorded}, and computed again from action and state")


def _wrong_numbers(recording: Recording) -> Iterator[str]:
    for key in (ACTION, STATE):
        values, stored = recording.column(key), recording.layout.stats.get(key)
        if not stored:
            continue
        names = recording.state_names(key, values.shape[1])
        span, spread = np.ptp(values, axis=0), values.std(axis=0)
        here = {
            "min": (values.min(axis=0), RANGE * span),
            "max": (values.max(axis=0), RANGE * span),
            "mean": (values.mean(axis=0), MEAN * spread),
        }
        for name, (actual, allowed) in here.items():
            there = np.ravel(np.asarray(stored.get(name, actual), dtype=np.float64))
            for i in np.flatnonzero(np.abs(there - actual) > allowed + 1e-6):
                yield f"{name} of {key} {names[i]} is {actual[i]:.4g}, {there[i]:.4g} is stored"


def judge_rate(
    report: ReplayReport, frames: float, declared: float, found: float | None, world: float
) -> None:
    """Compare meta/info.json's frame rate and the declared control rate, once the path has decided.

    Args:
        report: Takes ``control_rate``.
        frames: meta/info.json's frames per second.
        declared: The declared control rate, Hz.
        found: Rate at which the recorded states appear; None where no episode told.
        world: The simulator's own rate.
    """
    old = report.verdicts.get("control_rate")
    if found is None:
        if frames != declared and (old is None or old.status != BROKEN):
            report.verdicts["control_rate"] = Verdict(
                "control_rate",
                BROKEN,
                f"meta/info.json says {frames:g} frames per second, the declared control rate is "
                f"{declared:g} Hz, and states do not tell which is true",
                "find out how often the recorder acted, and write it into both; then replay again",
            )
        return
    if found not in (frames, declared) or frames == declared:
        return
    if found == declared:
        where = f'write "fps": {found:g} into meta/info.json, and frame_index / {found:g} into timestamp'
        said = f"meta/info.json says {frames:g} frames per second"
    else:
        where = f'set "control_hz": {found:g} under "conventions" in meta/vita_vla.json'
        said = f"the declared control rate is {declared:g} Hz"
    if found != world:
        where += f"; evaluation then has to run at {found:g} Hz, where the environment has {world:g}"
    report.verdicts["control_rate"] = Verdict(
        "control_rate",
        BROKEN,
        f"{said}, but states appear at {found:g} Hz, as "
        + ("the conventions say" if found == declared else "meta/info.json says"),
        where,
    )
