"""Several policies on one manifest, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from lerobot_policy_vita_vla.evaluation.results import outcomes, read_result
from lerobot_policy_vita_vla.evaluation.statistics import paired_comparison


def compare(folders: Sequence[str | Path]) -> dict[str, Any]:
    """Collect evaluation folders into one table, with a paired test for every pair.

    Args:
        folders: ``eval/<label>`` folders, all of one manifest and finished.

    Returns:
        ``manifest_hash``; ``tasks``; ``policies``, one ``{"label", "policy_type", "overall", "tasks"}`` per
        folder in the order given; ``pairs``, one `statistics.paired_comparison` with ``a`` and ``b`` per
        pair. With k policies there are k (k - 1) / 2 tests: judge single p-values accordingly.

    Raises:
        ValueError: If the folders are of different manifests, unfinished, or share a label.
    """
    results = [read_result(folder) for folder in folders]
    if not results:
        raise ValueError("nothing to compare: name at least one evaluation folder")
    for folder, result in zip(folders, results, strict=True):
        if result["manifest_hash"] != results[0]["manifest_hash"]:
            raise ValueError(
                f"{folder} played another manifest ({result['manifest_hash'][:12]}) than {folders[0]} "
                f"({results[0]['manifest_hash'][:12]}): evaluate both on one manifest to compare them"
            )
        if not result["complete"]:
            raise ValueError(f"{folder} is unfinished ({result['episodes']} episodes): run it again to go on")
    labels = [result["label"] for result in results]
    if len(set(labels)) < len(labels):
        raise ValueError(f"labels must differ, got {labels}")
    played = dict(zip(labels, (outcomes(folder) for folder in folders), strict=True))
    return {
        "manifest_hash": results[0]["manifest_hash"],
        "tasks": list(results[0]["tasks"]),
        "policies": [
            {key: result[key] for key in ("label", "policy_type", "overall", "tasks")} for result in results
        ],
        "pairs": [
            {"a": a, "b": b, **paired_comparison(played[a], played[b])} for a, b in combinations(labels, 2)
        ],
    }


def to_markdown(comparison: dict[str, Any]) -> str:
    """Two Markdown tables of a `compare` result: rates per policy and task, and the paired tests."""
    tasks = comparison["tasks"]
    lines = [
        "| policy | success | 95 % interval | n | " + " | ".join(tasks) + " |",
        "|" + "---|" * (4 + len(tasks)),
    ]
    for policy in comparison["policies"]:
        overall = policy["overall"]
        cells = [f"{policy['tasks'][task]['success_rate']:.2f}" for task in tasks]
        lines.append(
            f"| {policy['label']} | {overall['success_rate']:.2f} "
            f"| {overall['low']:.2f} to {overall['high']:.2f} | {overall['n_episodes']} | "
            + " | ".join(cells)
            + " |"
        )
    if comparison["pairs"]:
        lines += [
            "",
            "| a - b | difference | 95 % interval | only a | only b | p (exact McNemar) |",
            "|---|---|---|---|---|---|",
        ]
    for pair in comparison["pairs"]:
        lines.append(
            f"| {pair['a']} - {pair['b']} | {pair['difference']:+.2f} "
            f"| {pair['low']:+.2f} to {pair['high']:+.2f} "
            f"| {pair['only_a']} | {pair['only_b']} | {pair['p_value']:.3g} |"
        )
    return "\n".join(lines) + "\n"
