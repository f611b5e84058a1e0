"""Tables of benchmark results: on the terminal after a run, and in docs/performance.md.

Each ``results/bench/<name>.json`` that `vita-vla bench` wrote becomes one section between the page's markers
``<!-- bench:begin -->`` and ``<!-- bench:end -->``. Only the standard library is needed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


def write(page: Path, results: Path) -> Path:
    """Put the results' tables into a page.

    Args:
        page: Markdown with both markers once each.
        results: Folder of benchmark results.

    Returns:
        The page.

    Raises:
        ValueError: There is no such page, or it lacks its markers.
    """
    if not page.is_file():
        raise ValueError(f"{page} does not exist here; --render runs in the repository's root folder")
    page.write_text(rendered(page.read_text(), results))
    return page


def rendered(text: str, results: Path) -> str:
    """A page's text with the tables in it."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"the page must hold the markers {BEGIN} and {END} once each")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    found = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
    # Other measurements of the repository lie in the same folder, in forms of their own.
    parts = [section(figures) for figures in found if "benchmark" in figures and "machine" in figures]
    body = "\n\n".join(parts) or "Nothing was measured yet."
    return f"{before}{BEGIN}\n{body}\n{END}{after}"


def section(figures: dict[str, Any]) -> str:
    """One result as Markdown."""
    lines = [f"### {figures['benchmark']}", ""]
    if setting := figures.get("setting"):
        lines += [setting, ""]
    lines += [f"`{figures['command']}`, {figures['date']}, on {_machine(figures)}.", ""]
    if rows := _headline(figures):
        lines += _markdown(("figure", "value", "95 % interval"), rows) + [""]
    for title, comparison in figures.get("comparisons", {}).items():
        lines += _markdown((title, "median", "quartiles"), _sides(comparison)) + [""]
    lines += [f"- {note}" for note in figures.get("notes", [])]
    return "\n".join(lines).strip()


def text(figures: dict[str, Any]) -> str:
    """One result for a terminal."""
    rows = [(what, value, interval) for what, value, interval in _headline(figures)]
    for title, comparison in figures.get("comparisons", {}).items():
        rows += [(f"{title}: {name}", median, spread) for name, median, spread in _sides(comparison)]
    width = max((len(row[0]) for row in rows), default=0)
    lines = [f"  {what:<{width}}  {value:>9}  {extra}".rstrip() for what, value, extra in rows]
    return "\n".join([*lines, *(f"  {note}" for note in figures.get("notes", []))])


def _headline(figures: dict[str, Any]) -> list[tuple[str, str, str]]:
    rows = []
    for key, what in figures.get("headline", {}).items():
        low, high = figures.get(f"{key}_low"), figures.get(f"{key}_high")
        interval = "" if low is None or high is None else f"{_number(low)} - {_number(high)}"
        rows.append((what, _number(figures[key]), interval))
    return rows


def _sides(comparison: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [
        (name, _seconds(side["median_s"]), f"{_seconds(side['low_s'])} - {_seconds(side['high_s'])}")
        for name, side in comparison["sides"].items()
    ]


def _markdown(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    cells = [head, tuple("---" for _ in head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row).rstrip() + " |" for row in cells]


def _machine(figures: dict[str, Any]) -> str:
    here = figures["machine"]
    where = here["gpu"]["name"] if here.get("gpu") else f"{here['cpu']}, {here['cores']} cores"
    parts = [where, f"{here['threads']} threads"]
    if dtype := figures.get("dtype"):
        parts.append(dtype)
    parts.append(f"torch {here['versions']['torch']}")
    return ", ".join(parts)


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _seconds(value: float) -> str:
    if value >= 1:
        return f"{value:.2f} s"
    return f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} us"
