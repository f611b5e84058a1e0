"""Ablations on the report page: success over finetune budgets, and comparisons with two-stage.

``ablation/ablations.json`` holds ``rows``, one per trained student, and ``comparisons``, one per variant and
budget (`ablations.compare_with_two_stage`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lerobot_policy_vita_vla.evaluation.ablations import Pooled, pool_seeds
from lerobot_policy_vita_vla.evaluation.report_data import Run
from lerobot_policy_vita_vla.evaluation.report_figures import OTHER_COLOURS, Colour, draw, frame
from lerobot_policy_vita_vla.evaluation.report_view import p_text, percent, rate_row, signed

_ROW_KEYS = ("label", "success_rate", "low", "high", "n_episodes")
_COMPARISON_KEYS = (
    *("variant", "finetune_steps", "difference", "low", "high"),
    *("rates_a", "rates_b", "n_runs_a", "n_runs_b", "n_episodes", "p_value"),
)
_KNOWN = {
    "two_stage": ("Two-stage", "policy-finetune"),
    "only_finetune": ("Only finetune", "policy-only-finetune"),
    "only_finetune_equal_compute": ("Only finetune (equal time)", "policy-other-2"),
    "align_only": ("Align only", "policy-align"),
    "freeze_vlm": ("Frozen VLM", "policy-freeze-vlm"),
}
_MARKERS = "osD^vPX*"
Styles = dict[str, tuple[str, str, str]]


@dataclass(frozen=True)
class Series:
    """What a figure draws of one variant: points at budgets, each with an interval.

    Attributes:
        name: What people read.
        colour: CSS variable without dashes.
        marker: matplotlib's, of the points.
        steps: Budgets, ascending.
        values: In percent or percentage points, like all below.
        lows: Lower limits.
        highs: Upper limits.
        dots: Single seeds per budget; empty where they are not shown.
    """

    name: str
    colour: str
    marker: str
    steps: Sequence[int]
    values: Sequence[float]
    lows: Sequence[float]
    highs: Sequence[float]
    dots: Sequence[Sequence[float]] = ()


def ablation_section(run: Run, prefix: str) -> dict[str, Any] | None:
    """Everything that the section shows; None where the run has no ablations.

    Args:
        run: The run.
        prefix: Of the figures' ids, unique on the page.

    Returns:
        ``figures`` (empty with one budget only), ``reasons`` (what each variant shows), ``rates`` (one row
        per variant and budget), ``comparisons`` and ``n_seeds``, the most of any row.

    Raises:
        ValueError: A row or a comparison lacks a key.
    """
    if run.ablations is None:
        return None
    found, comparisons = run.ablations["rows"], run.ablations.get("comparisons", [])
    for kind, entries, keys in (("row", found, _ROW_KEYS), ("comparison", comparisons, _COMPARISON_KEYS)):
        for entry in entries:
            if absent := [key for key in keys if key not in entry]:
                path = run.path / "ablation" / "ablations.json"
                raise ValueError(f"a {kind} of {path} lacks {absent}; run `vita-vla ablate`")
    rows = [{"variant": row["label"], "finetune_steps": 0, "seed": 0, **row} for row in found]
    pooled = pool_seeds(rows)
    styles = variant_styles([item.variant for item in pooled] + [entry["variant"] for entry in comparisons])
    return {
        "figures": _figures(pooled, comparisons, styles, prefix),
        "reasons": _reasons(pooled, styles),
        "rates": _rates(pooled, styles),
        "comparisons": [
            _comparison(entry, styles)
            for entry in sorted(
                comparisons, key=lambda e: (list(styles).index(e["variant"]), e["finetune_steps"])
            )
        ],
        "n_seeds": max(len(item.rows) for item in pooled) if pooled else 0,
    }


def variant_styles(variants: Sequence[str]) -> Styles:
    """Name, colour and marker per variant, in the order in which variants are listed."""
    known = {variant: style for variant, style in _KNOWN.items() if variant in variants}
    taken = {colour for _, colour in known.values()}
    free = [c for i in range(1, OTHER_COLOURS + 1) if (c := f"policy-other-{i}") not in taken]
    others = [variant for variant in dict.fromkeys(variants) if variant not in _KNOWN]
    found = known | {
        variant: (variant.replace("_", " ").capitalize(), free[i % len(free)])
        for i, variant in enumerate(others)
    }
    return {
        variant: (*style, _MARKERS[i % len(_MARKERS)]) for i, (variant, style) in enumerate(found.items())
    }


def success_series(pooled: Sequence[Pooled], styles: Styles) -> list[Series]:
    """Success in percent over budgets, one line per variant."""
    found = []
    for variant in _present(styles, [item.variant for item in pooled]):
        items = [item for item in pooled if item.variant == variant]
        steps = [item.finetune_steps for item in items]
        numbers = [[100 * getattr(item, key) for item in items] for key in ("rate", "low", "high")]
        found.append(Series(*styles[variant], steps, *numbers, [_seeds(item) for item in items]))
    return found


def difference_series(comparisons: Sequence[dict], styles: Styles) -> list[Series]:
    """Two-stage minus each variant in points over budgets."""
    found = []
    for variant in _present(styles, [entry["variant"] for entry in comparisons]):
        entries = [entry for entry in comparisons if entry["variant"] == variant]
        entries.sort(key=lambda entry: entry["finetune_steps"])
        numbers = [[100 * entry[key] for entry in entries] for key in ("difference", "low", "high")]
        found.append(Series(*styles[variant], [entry["finetune_steps"] for entry in entries], *numbers))
    return found


def _present(styles: Styles, variants: Sequence[str]) -> list[str]:
    return [variant for variant in styles if variant in variants]


def _seeds(item: Pooled) -> list[float]:
    """Percent of each seed, where there are several."""
    return [100 * row["success_rate"] for row in item.rows] if len(item.rows) > 1 else []


def paint(axes, series: Sequence[Series], colour: Colour, *, difference: bool) -> None:
    """Draw lines with their intervals; `difference` takes an axis around 0 in place of 0 to 100 %."""
    from matplotlib.ticker import FuncFormatter, MultipleLocator

    place, to_scale = _places({step for one in series for step in one.steps})
    apart = min(0.03, 0.12 / len(series))
    for i, one in enumerate(series):
        # Bars of several variants at one budget stand side by side, and seeds beside their bar.
        shift = (i - (len(series) - 1) / 2) * apart
        at = [place[step] + shift for step in one.steps]
        own = colour(one.colour)
        axes.plot(at, one.values, color=own, linewidth=2.2, clip_on=False)
        axes.vlines(at, one.lows, one.highs, color=own, linewidth=1.6, alpha=0.55, clip_on=False)
        for step, dots in zip(one.steps, one.dots, strict=False):
            axes.plot(
                [place[step] + shift + 0.4 * apart] * len(dots),
                dots,
                "o",
                color=own,
                markersize=3,
                clip_on=False,
                zorder=3,
            )
        edge = {"markeredgecolor": colour("card"), "markeredgewidth": 1.2}
        axes.plot(at, one.values, one.marker, color=own, markersize=6.5, **edge, clip_on=False, zorder=4)
    axes.set_xticks(list(place.values()), [f"{step:,}" for step in place])
    if difference:
        ends = [0.0, *(x for one in series for x in (*one.lows, *one.highs))]
        step = 10 if max(ends) - min(ends) <= 60 else 25
        axes.set_ylim(step * (min(ends) // step), max(step, -step * (-max(ends) // step)))
        axes.yaxis.set_major_locator(MultipleLocator(step))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: signed(v)))
        axes.axhline(0, color=colour("ink-soft"), linewidth=1.4, zorder=1)
    else:
        axes.set_ylim(0, 100)
        axes.yaxis.set_major_locator(MultipleLocator(25))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.0f}\u202f%"))
    frame(axes, colour, "finetune steps" if to_scale else "finetune steps, not to scale")


def _places(budgets: set[int]) -> tuple[dict[int, float], bool]:
    """Budget -> place on an axis of length 1, and whether to scale: not where bars would overlap."""
    ordered = sorted(budgets)
    reach = ordered[-1] - ordered[0] or 1
    to_scale = all(b - a >= 0.14 * reach for a, b in zip(ordered, ordered[1:], strict=False))
    if to_scale:
        return {step: (step - ordered[0]) / reach for step in ordered}, True
    return {step: i / (len(ordered) - 1) for i, step in enumerate(ordered)}, False


def _figures(pooled, comparisons, styles, prefix) -> list[dict[str, Any]]:
    if len({item.finetune_steps for item in pooled if item.finetune_steps}) < 2:
        return []
    found = []
    for kind, title, series in (
        ("success", "Success over finetune steps", success_series(pooled, styles)),
        ("gain", "Two-stage minus the others, points", difference_series(comparisons, styles)),
    ):
        if not series:
            continue
        last = max(step for one in series for step in one.steps)
        ends = [one for one in series if one.steps[-1] == last]
        words = signed if kind == "gain" else lambda value: f"{value:.0f}\u202f%"
        named = ", ".join(f"{one.name} {words(one.values[-1])}" for one in ends)
        figure_id = f"{prefix}-ablation-{kind}"
        svg = draw(
            figure_id,
            lambda axes, colour, series=series, kind=kind: paint(
                axes, series, colour, difference=kind == "gain"
            ),
            size=(4.6, 3.0),
        )
        found.append(
            {
                "id": figure_id,
                "title": title,
                "svg": svg,
                "curves": series,
                "ends": f"With {last:,} steps: {named}",
            }
        )
    return found


def _reasons(pooled: Sequence[Pooled], styles: Styles) -> list[str]:
    reasons = {item.variant: item.rows[0].get("why") for item in pooled if item.variant != "two_stage"}
    return [f"{styles[variant][0]}: {why}" for variant, why in reasons.items() if why]


def _rates(pooled: Sequence[Pooled], styles: Styles) -> list[dict[str, Any]]:
    several = len({item.finetune_steps for item in pooled}) > 1
    rows = []
    for item in pooled:
        name, colour, _ = styles[item.variant]
        name += f", {item.finetune_steps:,} steps" if several and item.finetune_steps else ""
        notes = []
        trained = sorted({row.get("steps", item.finetune_steps) for row in item.rows})
        if item.finetune_steps and trained != [item.finetune_steps]:
            ends = dict.fromkeys((trained[0], trained[-1]))
            notes.append(f"trained {' to '.join(f'{steps:,}' for steps in ends)} steps")
        if seeds := _seeds(item):
            notes.append(f"seeds {', '.join(percent(rate / 100, item.n_episodes) for rate in seeds)}\u202f%")
        rate = {"success_rate": item.rate, "low": item.low, "high": item.high, "n_episodes": item.n_episodes}
        rows.append(rate_row(name, "; ".join(notes), colour, rate) | {"seeds": seeds})
    return rows


def _comparison(entry: dict[str, Any], styles) -> dict[str, Any]:
    name, colour, _ = styles[entry["variant"]]
    rate_a, rate_b = (100 * sum(entry[key]) / len(entry[key]) for key in ("rates_a", "rates_b"))
    points = [signed(100 * entry[key]) for key in ("difference", "low", "high")]
    return {
        "name": f"{name}, {entry['finetune_steps']:,} steps",
        "colour": colour,
        "rates": f"{rate_a:.0f} and {rate_b:.0f}\u202f%",
        "difference": f"{points[0]} ({points[1]} to {points[2]})",
        "clear": entry["low"] > 0 or entry["high"] < 0,
        "n": str(entry["n_episodes"]),
        "seeds": str(entry["n_runs_b"]),
        "p": p_text(entry["p_value"]),
    }
