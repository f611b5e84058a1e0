"""Colours, figures and learning curves of the report page.

The page has a light and a dark scheme, so a figure must not contain colours of its own: matplotlib draws with
placeholder colours, which are then replaced by the page's CSS variables, and text takes the page's font.
Bars, intervals and heat maps are HTML with CSS: they have to re-flow between a phone and a desktop, which a
fixed picture cannot.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

from lerobot_policy_vita_vla.evaluation.report_data import POLICY_ORDER

MAX_POINTS = 240
"""Points kept per curve: about one per pixel of the drawn width, so that the page stays small."""

_KNOWN = {
    "teacher": ("Teacher", "the small action model"),
    "finetune": ("Two-stage", "align, then finetune"),
    "only_finetune": ("Only finetune", "same student, no align stage"),
    "align": ("Align only", "VLM frozen, no finetune"),
    "freeze_vlm": ("Frozen VLM", "finetune with the VLM frozen"),
}
OTHER_COLOURS = 6
"""Colours of the page for policies without one of their own: ``policy-other-1`` and so on."""

Colour = Callable[[str], str]
"""Name of a CSS variable without dashes -> a colour that matplotlib takes."""


@dataclass(frozen=True)
class PolicyStyle:
    """How one policy looks on the page, the same in every chart.

    Attributes:
        label: Folder name under ``eval/``.
        name: What people read.
        note: A few words that explain the name; may be empty.
        colour: Name of the CSS variable without dashes, e.g. ``policy-teacher``.
    """

    label: str
    name: str
    note: str
    colour: str


def policy_styles(labels: Iterable[str]) -> dict[str, PolicyStyle]:
    """Styles for these labels; unknown ones get the remaining colours in the order of their names."""
    styles = {
        label: PolicyStyle(label, name, note, f"policy-{label.replace('_', '-')}")
        for label, (name, note) in _KNOWN.items()
    }
    for i, label in enumerate(sorted(set(labels) - set(POLICY_ORDER))):
        name = label.replace("_", " ").replace("-", " ").capitalize()
        styles[label] = PolicyStyle(label, name, "", f"policy-other-{i % OTHER_COLOURS + 1}")
    return styles


@dataclass(frozen=True)
class Curve:
    """One line: ``values`` over ``steps``; ``dash`` is a matplotlib line style."""

    name: str
    colour: str
    steps: Sequence[float]
    values: Sequence[float]
    dash: str = "-"


def curve_from_log(log: list[dict[str, Any]], key: str, style: PolicyStyle, dash: str = "-") -> Curve | None:
    """The finite values of `key` in a training log, or None where there are fewer than two."""
    points = [(row["step"], float(row[key])) for row in log if isinstance(row.get(key), int | float)]
    points = [(step, value) for step, value in points if math.isfinite(value)]
    if len(points) < 2:
        return None
    every = math.ceil(len(points) / MAX_POINTS)
    # The last point is always kept: it is the value that people read off.
    kept = [*points[:-1:every], points[-1]]
    return Curve(style.name, style.colour, [p[0] for p in kept], [p[1] for p in kept], dash)


def draw_curves(figure_id: str, curves: Sequence[Curve], *, log_scale: bool | None = None) -> str:
    """An inline SVG of learning curves, see `draw`.

    Args:
        figure_id: Unique on the page.
        curves: What to draw; each as a faint raw line with its moving average on top.
        log_scale: Logarithmic vertical axis; None takes it where positive values spread over more
            than a factor of 8.
    """
    values = [v for curve in curves for v in curve.values]
    if log_scale is None:
        log_scale = min(values) > 0 and max(values) / min(values) > 8

    def paint(axes, colour: Colour) -> None:
        from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

        for curve in curves:
            own = colour(curve.colour)
            axes.plot(curve.steps, curve.values, color=own, linewidth=1, alpha=0.3)
            smooth = moving_average(curve.values)
            axes.plot(curve.steps, smooth, color=own, linewidth=2.2, linestyle=curve.dash)
            axes.plot(curve.steps[-1:], smooth[-1:], marker="o", markersize=5, color=own)
        if log_scale:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=7))
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.3g}"))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
        frame(axes, colour, "training step")

    return draw(figure_id, paint)


def frame(axes, colour: Colour, xlabel: str) -> None:
    """Grid, ticks and spines as every figure of the page has them."""
    axes.grid(True, axis="y", color=colour("line"), linewidth=1)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, colors=colour("ink-soft"))
    axes.set_xlabel(xlabel, color=colour("ink-soft"))
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(colour("line"))


def draw(
    figure_id: str, paint: Callable[[Any, Colour], None], *, size: tuple[float, float] = (4.2, 2.6)
) -> str:
    """An inline SVG with CSS colours, transparent background and no fixed size.

    Args:
        figure_id: Unique on the page; becomes the prefix of every id in the SVG.
        paint: Draws into matplotlib's axes; asks the function that it gets for the colour of a CSS variable.
        size: Width and height, inches.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    colours: dict[str, str] = {}

    def placeholder(variable: str) -> str:
        return colours.setdefault(variable, f"#f000{16 + len(colours):02x}")

    # A salt makes the ids in the SVG, and so the page, the same on every run.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": figure_id, "font.size": 11}):
        figure = Figure(figsize=size, layout="constrained")
        paint(figure.subplots(), placeholder)
        stream = StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(stream.getvalue(), figure_id, colours)


def moving_average(values: Sequence[float]) -> list[float]:
    """Centred mean over about a fifteenth of the curve, shorter at its ends so that no value is shifted."""
    half = max(1, len(values) // 30)
    smooth = []
    for i in range(len(values)):
        reach = min(half, i, len(values) - 1 - i)
        window = values[i - reach : i + reach + 1]
        smooth.append(sum(window) / len(window))
    return smooth


def _inline(svg: str, figure_id: str, colours: dict[str, str]) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r'\1 aria-hidden="true" focusable="false"', svg
    )
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    # Several figures share one page: their ids, and what points to them, must differ.
    svg = re.sub(r'\bid="', f'id="{figure_id}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{figure_id}-", svg)
    for variable, placeholder in colours.items():
        svg = svg.replace(placeholder, f"var(--{variable})")
    return re.sub(r"\s*\n\s*", " ", svg)
