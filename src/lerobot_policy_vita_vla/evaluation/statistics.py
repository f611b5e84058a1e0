"""How sure a success rate is, and whether two policies differ.

A rate of n episodes carries Wilson's interval; two policies on one manifest are compared episode by episode,
which needs far fewer episodes than comparing two rates; and where each method was trained with several seeds,
the spread between the trainings enters the interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Z_95 = 1.959963984540054
"""Two-sided 95 % point of the normal distribution."""


def wilson(successes: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % score interval of a proportion (Wilson 1927), valid at 0 and 1 and for small n.

    Args:
        successes: 0..n; a fraction where `n` is an effective sample size.
        n: At least 1.

    Returns:
        Lower and upper limit in [0, 1].
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"an interval needs 0 <= successes <= n and n >= 1, got {successes} of {n}")
    rate, z2 = successes / n, Z_95**2
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n * n))
    # At the ends the limit is exact; subtraction leaves 1e-17 there.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return low, high


def rate_with_interval(successes: int, n: int) -> dict[str, float | int]:
    """``{"success_rate", "n_episodes", "low", "high"}`` as result files hold it."""
    low, high = wilson(successes, n)
    return {"success_rate": successes / n, "n_episodes": n, "low": low, "high": high}


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided p-value of McNemar's exact test: only episodes on which the policies disagree count.

    Under "no difference" each of them falls to either side with probability 1/2 (Fagerland et al. 2013, eq.
    3).
    """
    if only_a < 0 or only_b < 0:
        raise ValueError(f"counts must not be negative, got {only_a} and {only_b}")
    if only_a + only_b == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(only_a, only_a + only_b, 0.5).pvalue)


def paired_comparison(a: Mapping[str, bool], b: Mapping[str, bool]) -> dict[str, Any]:
    """Compare two policies that played the same episodes.

    Args:
        a: Episode id -> success of the first policy.
        b: The same episodes of the second policy.

    Returns:
        ``difference`` (success rate of a minus b) with its 95 % interval ``low``/``high`` (Newcombe 1998,
        method 10: Wilson limits combined with the correlation of the pairs; recommended by Fagerland et al.
        2014), ``n``, the counts ``both``, ``only_a``, ``only_b``, ``neither``, and McNemar's exact
        ``p_value``.

    Raises:
        ValueError: If the episodes are not the same.
    """
    if set(a) != set(b) or not a:
        raise ValueError(
            f"a paired comparison needs the same episodes on both sides, got {len(a)} and {len(b)} with "
            f"{len(set(a) & set(b))} in common; evaluate both on one manifest to the end"
        )
    both = sum(a[key] and b[key] for key in a)
    only_a = sum(a[key] and not b[key] for key in a)
    only_b = sum(b[key] and not a[key] for key in a)
    neither = len(a) - both - only_a - only_b
    low, high = _newcombe(both, only_a, only_b, neither)
    return {
        "difference": (only_a - only_b) / len(a),
        "n": len(a),
        "both": both,
        "only_a": only_a,
        "only_b": only_b,
        "neither": neither,
        "p_value": mcnemar_exact(only_a, only_b),
        "low": low,
        "high": high,
    }


def _newcombe(both: int, only_a: int, only_b: int, neither: int) -> tuple[float, float]:
    n = both + only_a + only_b + neither
    rate_a, rate_b = (both + only_a) / n, (both + only_b) / n
    low_a, high_a = wilson(both + only_a, n)
    low_b, high_b = wilson(both + only_b, n)
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    cross = both * neither - only_a * only_b
    # Method 10 shrinks a positive correlation by a continuity correction and leaves a negative one.
    if cross > 0:
        cross = max(cross - n / 2, 0.0)
    phi = cross / math.sqrt(margins) if margins else 0.0

    def distance(x: float, y: float) -> float:
        return math.sqrt(max(x * x - 2 * phi * x * y + y * y, 0.0))

    difference = rate_a - rate_b
    low = difference - distance(rate_a - low_a, high_b - rate_b)
    high = difference + distance(high_a - rate_a, rate_b - low_b)
    return max(low, -1.0), min(high, 1.0)


def seed_comparison(
    a_runs: Sequence[Mapping[str, bool]],
    b_runs: Sequence[Mapping[str, bool]],
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare two methods, each trained several times, on one manifest.

    The interval is the percentile interval of a bootstrap that draws training runs and, within every task,
    episodes (Agarwal et al. 2021, section 4, stratified; the same episodes for both methods since they are
    paired). Episodes of one run are not independent evidence about the method, so pooling them would promise
    too much. With few runs the bootstrap still understates the spread; five or more per method are advisable.

    Args:
        a_runs: One mapping of episode id (``<task>/<seed>``) to success per training run of the first method.
        b_runs: The same for the second method; runs need not be matched.
        resamples: Bootstrap draws.
        seed: Of the bootstrap.

    Returns:
        ``difference`` of the mean success rates (a minus b), ``low``, ``high``, ``rates_a`` and ``rates_b``
        per run, ``n_runs_a``, ``n_runs_b``, ``n_episodes``.
    """
    if not a_runs or not b_runs:
        raise ValueError(f"each method needs at least one run, got {len(a_runs)} and {len(b_runs)}")
    ids = sorted(a_runs[0])
    if not ids or any(sorted(run) != ids for run in (*a_runs, *b_runs)):
        raise ValueError(
            "every run must hold the same episodes; evaluate all of them on one manifest to the end"
        )
    a = np.array([[run[key] for key in ids] for run in a_runs], dtype=float)
    b = np.array([[run[key] for key in ids] for run in b_runs], dtype=float)
    tasks = np.array([key.rsplit("/", 1)[0] for key in ids])
    strata = [np.flatnonzero(tasks == task) for task in np.unique(tasks)]
    generator = np.random.default_rng(seed)
    draws = np.empty(resamples)
    for index in range(resamples):
        episodes = np.concatenate([generator.choice(stratum, len(stratum)) for stratum in strata])
        rows_a, rows_b = generator.integers(len(a), size=len(a)), generator.integers(len(b), size=len(b))
        draws[index] = a[rows_a][:, episodes].mean() - b[rows_b][:, episodes].mean()
    low, high = np.quantile(draws, [0.025, 0.975])
    return {
        "difference": float(a.mean() - b.mean()),
        "low": float(low),
        "high": float(high),
        "rates_a": a.mean(axis=1).tolist(),
        "rates_b": b.mean(axis=1).tolist(),
        "n_runs_a": len(a),
        "n_runs_b": len(b),
        "n_episodes": len(ids),
    }
