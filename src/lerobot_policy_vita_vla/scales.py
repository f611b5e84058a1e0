"""Whether a trained model and a dataset scale actions and state alike.

`statistics_hash` recognises a dataset by its numbers; `compare_statistics` names each dimension that a model
would read or write on another scale.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from lerobot_policy_vita_vla.contracts import ActionSpec

STATISTICS_TOLERANCE = 0.01
"""Our choice: a hundredth of a state's standard deviation is far below control precision."""

ACTION_RANGE_TOLERANCE = 0.05
"""Our choice: a later recording may reach a twentieth further than the one that set the scale."""

NARROWEST_ACTION_RANGE = 0.1
"""Our choice: data that uses less than a tenth of the decoder's range is in other units, not merely calm."""


def statistics_hash(stats: Mapping[str, Mapping[str, Any]]) -> str:
    """Fingerprint of a dataset's action and state statistics, 16 hex digits.

    Args:
        stats: LeRobot's dataset statistics: feature -> {"min", "max", "mean", "std"}. Numbers are rounded
            to six digits, so that a round trip through a file does not change the hash.
    """
    rounded = {
        f"{name}/{key}": [
            f"{value:.5e}" for value in np.ravel(np.asarray(stats[name][key], dtype=np.float64))
        ]
        for name in sorted(stats)
        if name == "action" or name == "observation.state"
        for key in ("min", "max", "mean", "std")
        if key in stats[name]
    }
    return hashlib.sha256(json.dumps(rounded, sort_keys=True).encode()).hexdigest()[:16]


def compare_statistics(
    dataset_stats: Mapping[str, Mapping[str, Any]],
    *,
    action_spec: ActionSpec | None = None,
    bounded: bool = True,
    state_stats: Mapping[str, Any] | None = None,
    same_units: bool = False,
    tolerance: float = STATISTICS_TOLERANCE,
) -> list[str]:
    """Where a trained model's idea of actions and state differs from a dataset's.

    Args:
        dataset_stats: LeRobot's dataset statistics.
        action_spec: What the model's decoder assumes about actions.
        bounded: Whether the decoder ends in a tanh (Seer's does), so that an action beyond its scale cannot
            be expressed at all. It must then cover the dataset's range, and the dataset use a good part of
            it. A linear decoder (ACT's) must fit the dataset's mean and spread.
        state_stats: ``{"mean": (S,), "std": (S,)}`` with which the model standardises the state.
        same_units: The model and the dataset declare the same units, so that a dimension which uses little of
            its range is calm, whatever it looks like.
        tolerance: Allowed difference of the state, as a fraction of its standard deviation.

    Returns:
        One line per differing dimension; empty if they agree.
    """
    found: list[str] = []
    if action_spec is not None:
        found += _action_differences(action_spec, dataset_stats["action"], bounded, same_units)
    if state_stats is not None:
        found += _state_differences(state_stats, dataset_stats["observation.state"], tolerance)
    return found


def _action_differences(
    spec: ActionSpec, stats: Mapping[str, Any], bounded: bool, same_units: bool
) -> list[str]:
    dims = np.size(stats["min"])
    if dims != spec.dim:
        return [f"action: the model gives {spec.dim} numbers, the dataset has {dims}"]
    offset, scale = np.asarray(spec.offset), np.asarray(spec.scale)
    # The dataset in the decoder's own units; the same data gives -1..1 (bounded) or mean 0 and std 1.
    low, high = (_numbers(stats[key], offset, scale) for key in ("min", "max"))
    constant = high <= low
    if bounded:
        reach = 1.0 + 2 * ACTION_RANGE_TOLERANCE
        narrow = ~constant & (high - low < 2 * NARROWEST_ACTION_RANGE) & (not same_units)
        differs = (low < -reach) | (high > reach) | narrow
        here = [f"[{o - s:.4g}, {o + s:.4g}]" for o, s in zip(offset, scale, strict=True)]
    else:
        mean, std = _numbers(stats["mean"], offset, scale), _numbers(stats["std"], 0.0, scale)
        differs = ~constant & ((np.abs(mean) > 1.0) | (std > 2.0) | (std < 0.5))
        here = [f"mean {o:.4g} and spread {s:.4g}" for o, s in zip(offset, scale, strict=True)]
    data = np.ravel(np.asarray(stats["min"], dtype=np.float64)), np.ravel(np.asarray(stats["max"]))
    return [
        f"action {spec.names[i]!r}: the model is scaled to {here[i]}, the dataset reaches from "
        f"{data[0][i]:.4g} to {data[1][i]:.4g}"
        for i in np.flatnonzero(differs)
    ]


def _numbers(values: Any, offset: np.ndarray | float, scale: np.ndarray) -> np.ndarray:
    return (np.ravel(np.asarray(values, dtype=np.float64)) - offset) / scale


def _state_differences(model: Mapping[str, Any], data: Mapping[str, Any], tolerance: float) -> list[str]:
    mean, std, mean_here, std_here = (
        np.ravel(np.asarray(source[key], dtype=np.float64))
        for source in (model, data)
        for key in ("mean", "std")
    )
    if mean.shape != mean_here.shape:
        return [f"state: the model reads {mean.size} numbers, the dataset has {mean_here.size}"]
    unit = np.maximum(std, 1e-6)
    differs = (np.abs(mean - mean_here) > tolerance * unit) | (np.abs(std - std_here) > tolerance * unit)
    return [
        f"observation.state[{i}]: the model uses mean {mean[i]:.4g}, std {std[i]:.4g}; the dataset has "
        f"mean {mean_here[i]:.4g}, std {std_here[i]:.4g}"
        for i in np.flatnonzero(differs)
    ]
