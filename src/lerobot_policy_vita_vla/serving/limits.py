"""What a robot may be told: limits of each number of an action, and of its change between two steps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lerobot_policy_vita_vla.files import read_json
from vita_vla_client.playback import within_change

POSTPROCESSOR = "policy_postprocessor*.safetensors"

WILD = 1.0
"""An action further outside its limits than this times their width is not cut but refused: what lies that far
from everything that was ever demonstrated is no slightly large action but a wrong one (our choice)."""

NARROW = 1e-4
"""A dimension whose limits lie closer than this share of their own size counts as one that does not move."""

ROUNDING = 1e-5
"""Share of the limits' size by which float32 may miss them; less than that is not counted as cut."""


class UnusableActionsError(ValueError):
    """A chunk that no limits make safe."""


@dataclass(frozen=True)
class ActionLimits:
    """Bounds of an action's numbers, in the robot's units.

    Args:
        low_A: Smallest value of each, (A,).
        high_A: Largest value of each, (A,).
        max_change_A: Largest change from one step to the next, (A,); None where there is no such limit.
        source: Where they come from, for the log.
    """

    low_A: np.ndarray
    high_A: np.ndarray
    max_change_A: np.ndarray | None = None
    source: str = ""

    def __post_init__(self):
        for name in ("low_A", "high_A", "max_change_A"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, np.asarray(value, dtype=np.float32))
        shapes = {a.shape for a in (self.low_A, self.high_A, self.max_change_A) if a is not None}
        if len(shapes) != 1 or len(self.low_A.shape) != 1:
            raise ValueError(
                f"limits from {self.source}: low, high and max_change must be lists of one length"
            )
        if not all(
            np.isfinite(a).all() for a in (self.low_A, self.high_A, self.max_change_A) if a is not None
        ):
            raise ValueError(f"limits from {self.source}: every number must be finite")
        if not (self.low_A <= self.high_A).all():
            raise ValueError(
                f"limits from {self.source}: low {self.low_A} must not exceed high {self.high_A}"
            )
        if self.max_change_A is not None and not (self.max_change_A > 0).all():
            raise ValueError(
                f"limits from {self.source}: max_change must be positive, got {self.max_change_A}"
            )

    def apply(self, chunk_TA: np.ndarray, before_A: np.ndarray | None = None) -> tuple[np.ndarray, int]:
        """Cut a chunk to the limits.

        Args:
            chunk_TA: Actions (T, A).
            before_A: The action that was sent before them, (A,), from which the first one's change counts.

        Returns:
            The chunk, and how many of its numbers were changed.

        Raises:
            UnusableActionsError: A number is not finite, or lies outside by more than `WILD` widths.
        """
        check_finite(chunk_TA)
        width_A = self.high_A - self.low_A
        size_A = np.maximum(np.abs(self.low_A), np.abs(self.high_A))
        # A number that hardly moved in the demonstrations has no width to measure by: it is only cut.
        moved_A = width_A > NARROW * size_A
        beyond_TA = np.maximum(self.low_A - chunk_TA, chunk_TA - self.high_A)
        outside_TA = beyond_TA / np.where(moved_A, width_A, np.inf)
        if (outside_TA > WILD).any():
            t, a = np.unravel_index(outside_TA.argmax(), outside_TA.shape)
            raise UnusableActionsError(
                f"action {t} of the chunk has {chunk_TA[t, a]:.4g} in dimension {a}, whose limits are "
                f"{self.low_A[a]:.4g} to {self.high_A[a]:.4g}"
            )
        cut_TA = np.clip(chunk_TA, self.low_A, self.high_A)
        if self.max_change_A is not None:
            before_A = cut_TA[0] if before_A is None else before_A
            for t in range(len(cut_TA)):
                before_A = cut_TA[t] = within_change(cut_TA[t], before_A, self.max_change_A)
        return cut_TA, int((np.abs(cut_TA - chunk_TA) > ROUNDING * np.maximum(size_A, width_A)).sum())


def check_finite(chunk_TA: np.ndarray) -> None:
    """Raise `UnusableActionsError` for NaN or infinity."""
    if not np.isfinite(chunk_TA).all():
        t, a = np.argwhere(~np.isfinite(chunk_TA))[0]
        raise UnusableActionsError(f"action {t} of the chunk has {chunk_TA[t, a]} in dimension {a}")


def demonstrated_limits(folder: Path) -> ActionLimits | None:
    """The range of the actions a checkpoint was trained on, or None where it does not keep it.

    Args:
        folder: A ``pretrained_model`` folder; LeRobot stores the dataset's statistics with its processors.
    """
    from safetensors import safe_open

    for file in sorted(folder.glob(POSTPROCESSOR)):
        with safe_open(file, "numpy") as stored:
            if {"action.min", "action.max"} <= set(stored.keys()):
                low_A, high_A = stored.get_tensor("action.min"), stored.get_tensor("action.max")
                return ActionLimits(low_A.ravel(), high_A.ravel(), source="the demonstrations' range")
    return None


def read_limits(path: Path, names: Sequence[str] | None = None) -> ActionLimits:
    """Limits from a JSON file ``{"low": [...], "high": [...], "max_change": [...]}``; the last is optional.

    Args:
        path: The file.
        names: Names of the action's numbers, for the message about a wrong length.

    Raises:
        ValueError: The file is not there, is no JSON, or does not fit the action.
    """
    if not path.is_file():
        raise ValueError(f"no limits at {path}; make them with `vita-vla demos limits DEMOS --out {path}`")
    try:
        record: Any = json.loads(path.read_text())
        if not isinstance(record, dict) or not {"low", "high"} <= set(record) <= {
            "low",
            "high",
            "max_change",
            "names",
        }:
            raise ValueError('it must hold "low" and "high", and may hold "max_change" and "names"')
        limits = ActionLimits(record["low"], record["high"], record.get("max_change"), source=str(path))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} does not hold action limits: {error}") from None
    written = record.get("names")
    if names and written and len(written) == len(names) and list(written) != list(names):
        raise ValueError(
            f"{path} limits {', '.join(map(str, written))}, the policy's actions are {', '.join(names)}: "
            "make the "
            "limits of the dataset that it was trained on"
        )
    if names and len(limits.low_A) != len(names):
        raise ValueError(
            f"{path} limits {len(limits.low_A)} numbers, the policy's actions have {len(names)}: "
            f"{', '.join(names)}"
        )
    return limits


def limits_of_dataset(root: Path) -> dict[str, Any]:
    """What `read_limits` reads, from demonstrations: range, and largest change within an episode.

    Args:
        root: A LeRobotDataset.
    """
    import pyarrow.parquet as parquet

    info = read_json(root / "meta" / "info.json")
    if "action" not in info["features"]:
        raise ValueError(f"{root} has no column action, only {sorted(info['features'])}")
    files = sorted((root / "data").glob("*/*.parquet"))
    if not files:
        raise ValueError(f"{root}/data holds no parquet files; download the dataset again")
    tables = [parquet.read_table(file, columns=["action", "episode_index"]) for file in files]
    actions_NA = np.concatenate([np.stack(table["action"].to_numpy()) for table in tables]).astype(np.float64)
    episode_N = np.concatenate([table["episode_index"].to_numpy() for table in tables])
    change_NA = np.abs(np.diff(actions_NA, axis=0))[np.diff(episode_N) == 0]
    record: dict[str, Any] = {"low": actions_NA.min(0).tolist(), "high": actions_NA.max(0).tolist()}
    # A number that never changed may not change; but a limit of zero would also forbid the first value.
    record["max_change"] = np.maximum(change_NA.max(0), 1e-6).tolist()
    names = info["features"]["action"].get("names")
    return record | ({"names": names} if isinstance(names, list) else {})
