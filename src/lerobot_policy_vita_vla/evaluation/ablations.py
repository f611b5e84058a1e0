"""What the rows of an ablation table say together: variants compared over their training seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, variance

from lerobot_policy_vita_vla.evaluation.results import outcomes
from lerobot_policy_vita_vla.evaluation.statistics import mcnemar_exact, seed_comparison, wilson


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


@dataclass(frozen=True)
class Pooled:
    """One variant at one budget over its training seeds.

    Attributes:
        variant: As in `ablate.VARIANTS`.
        finetune_steps: The budget; 0 for a variant without stage 2.
        rows: The table's rows, by seed.
        rate: Mean success rate over the seeds, in [0, 1].
        low: Lower limit of its 95 % interval.
        high: Upper limit.
        n_episodes: Episodes that every seed played.
    """

    variant: str
    finetune_steps: int
    rows: tuple[dict, ...]
    rate: float
    low: float
    high: float
    n_episodes: int


def pool_seeds(rows: Sequence[dict]) -> list[Pooled]:
    """Rows of equal variant and budget as one rate with an interval.

    The interval is Wilson's with an effective sample size, as is usual for clustered samples (Korn and
    Graubard 1998). Seeds replay the same episodes, so however many there are they count as one play of the
    manifest (our choice: errs on the wide side), and as less where their rates differ by more than chance
    within one play explains. One seed gives plain Wilson. Unlike a bootstrap it does not shrink to nothing at
    a rate of 1.

    Args:
        rows: Of an ablation table.

    Returns:
        In the order in which variants appear in the table, budgets ascending.
    """
    groups: dict[tuple[str, int], list[dict]] = {}
    for row in rows:
        groups.setdefault((row["variant"], row["finetune_steps"]), []).append(row)
    variants = list(dict.fromkeys(variant for variant, _ in groups))
    found = []
    for variant, steps in sorted(groups, key=lambda key: (variants.index(key[0]), key[1])):
        members = sorted(groups[variant, steps], key=lambda row: row["seed"])
        rates = [row["success_rate"] for row in members]
        n = min(row["n_episodes"] for row in members)
        rate = fmean(rates)
        between = variance(rates) / len(rates) if len(rates) > 1 else 0.0
        within = rate * (1 - rate) / n
        effective = max(1.0, n * within / between) if between > within else float(n)
        low, high = wilson(rate * effective, effective)
        found.append(Pooled(variant, steps, tuple(members), rate, low, high, n))
    return found
