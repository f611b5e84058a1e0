"""What the rows of an ablation table say together: variants compared over their training seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lerobot_policy_vita_vla.evaluation.results import outcomes
from lerobot_policy_vita_vla.evaluation.statistics import mcnemar_exact, seed_comparison


def compare_with_two_stage(rows: Sequence[dict], eval_folder: Path) -> list[dict]:
    """Two-stage minus every other variant at the same finetune budget, over the training seeds they share.

    Args:
        rows: The table's rows.
        eval_folder: Holds one folder of episodes per row, named by its label.

    Returns:
        One entry per variant and budget: ``variant``, ``finetune_steps``, and what
        `evaluation.statistics.seed_comparison` gives (difference with a bootstrap interval over runs and
        episodes) plus ``p_value``, the exact McNemar test over all paired episodes.
    """
    by_key = {(row["variant"], row["finetune_steps"], row["seed"]): row["label"] for row in rows}
    found = []
    for variant, steps in sorted({(v, n) for v, n, _ in by_key if v != "two_stage"}):
        for budget in sorted({n for v, n, _ in by_key if v == "two_stage"}) if steps == 0 else [steps]:
            seeds = [
                seed
                for v, n, seed in by_key
                if (v, n) == (variant, steps) and ("two_stage", budget, seed) in by_key
            ]
            if not seeds:
                continue
            ours, theirs = (
                [outcomes(eval_folder / by_key[name, n, seed]) for seed in seeds]
                for name, n in (("two_stage", budget), (variant, steps))
            )
            pairs = [(a[key], b[key]) for a, b in zip(ours, theirs, strict=True) for key in a]
            p_value = mcnemar_exact(pairs.count((True, False)), pairs.count((False, True)))
            comparison = seed_comparison(ours, theirs)
            found.append({"variant": variant, "finetune_steps": budget, **comparison, "p_value": p_value})
    return found
