"""Reading and writing what an evaluation leaves behind.

    eval/<label>/run.json        who plays what: manifest, policy, execution settings; written before the
    first episode eval/<label>/episodes.jsonl  one line per finished episode, only ever appended to
    eval/<label>/result.json     rates with intervals over the finished episodes eval/<label>/videos/*.mp4
    a few failures and successes per task

An interrupted evaluation leaves valid lines behind, and going on is a matter of skipping their episodes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from datetime import date as calendar_date
from pathlib import Path
from typing import Any

from lerobot_policy_vita_vla.evaluation.statistics import rate_with_interval

RUN_FILE, EPISODES_FILE, RESULT_FILE, VIDEO_FOLDER = "run.json", "episodes.jsonl", "result.json", "videos"


def write_json(path: str | Path, content: Any, *, indent: int = 2, allow_nan: bool = True) -> Path:
    """Write JSON so that a reader, or a crash, never meets half a file.

    Args:
        path: File; its folder is made where it does not exist.
        content: What to write.
        indent: Spaces per level.
        allow_nan: False refuses numbers that are none (ValueError), which JSON does not know.

    Returns:
        The file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=indent, allow_nan=allow_nan) + "\n"
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def append_episode(folder: str | Path, record: dict[str, Any]) -> None:
    """Append one finished episode to ``episodes.jsonl``."""
    with open(Path(folder) / EPISODES_FILE, "a") as file:
        file.write(json.dumps(record) + "\n")


def read_episodes(folder: str | Path) -> list[dict[str, Any]]:
    """Finished episodes, in the order in which they finished.

    A last line that was cut off when the process was killed is removed from the file: its episode runs again.

    Raises:
        ValueError: For any other line that is not JSON.
    """
    path = Path(folder) / EPISODES_FILE
    if not path.is_file():
        return []
    text = path.read_text()
    whole, _, torn = text.rpartition("\n")
    if torn:
        with open(path, "r+") as file:
            file.truncate(len((whole + "\n").encode()) if whole else 0)
    records = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path} line {number} is not JSON ({error}); remove the line or the folder"
            ) from error
    return records


def read_result(folder: str | Path) -> dict[str, Any]:
    """The content of ``result.json``.

    Raises:
        ValueError: If no episode of the evaluation has finished yet.
    """
    path = Path(folder) / RESULT_FILE
    if not path.is_file():
        raise ValueError(
            f"no result at {path}: evaluate the policy first (an unfinished evaluation continues)"
        )
    return json.loads(path.read_text())


def outcomes(folder: str | Path) -> dict[str, bool]:
    """Episode id -> success, what paired comparisons take."""
    return {record["id"]: bool(record["success"]) for record in read_episodes(folder)}


def summarise(records: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Rates with Wilson's 95 % interval: ``{"overall": {...}, "tasks": {task: {...}}}``; needs one record."""
    by_task: dict[str, list[bool]] = {}
    for record in records:
        by_task.setdefault(record["task"], []).append(bool(record["success"]))
    everything = [success for successes in by_task.values() for success in successes]
    return {
        "overall": rate_with_interval(sum(everything), len(everything)),
        "tasks": {
            task: rate_with_interval(sum(by_task[task]), len(by_task[task])) for task in sorted(by_task)
        },
    }


def update_summary(
    path: str | Path,
    key: str,
    value: float,
    n: int | None = None,
    low: float | None = None,
    high: float | None = None,
    command: str | None = None,
    date: str | None = None,
) -> dict[str, Any]:
    """Set one published number in ``results/summary.json`` and leave the others alone.

    Args:
        path: The file; made if missing. One flat object, key -> ``{"value", "n", "low", "high", "command",
            "date"}``.
        key: What is measured, such as ``"quickstart.teacher.success_rate"``: letters, digits and ``. _ -``.
        value: The number.
        n: How many episodes (samples, repeats) stand behind it.
        low: Lower limit of its interval.
        high: Upper limit of its interval.
        command: The command that measures it again.
        date: ``YYYY-MM-DD``; None is today.

    Returns:
        The whole content after the change.
    """
    if not re.fullmatch(r"[A-Za-z0-9._-]+", key):
        raise ValueError(f"a key consists of letters, digits and . _ - only, got {key!r}")
    if (low is not None and low > value) or (high is not None and high < value):
        raise ValueError(f"{key}: the value {value} lies outside its interval [{low}, {high}]")
    if n is not None and n < 1:
        raise ValueError(f"{key}: n counts what was measured and must be at least 1, got {n}")
    path = Path(path)
    content = json.loads(path.read_text()) if path.is_file() else {}
    content[key] = {
        "value": value,
        "n": n,
        "low": low,
        "high": high,
        "command": command,
        "date": calendar_date.fromisoformat(date).isoformat() if date else calendar_date.today().isoformat(),
    }
    content = dict(sorted(content.items()))
    write_json(path, content)
    return content
