"""Teacher-student agreement on the report page: one line and one heat map per policy.

``agreement.json`` holds one report of `agreement.agreement` per policy label.
"""

from __future__ import annotations

from typing import Any

from lerobot_policy_vita_vla.evaluation.report_data import POLICY_ORDER, Run
from lerobot_policy_vita_vla.evaluation.report_figures import PolicyStyle

COLUMNS = 8
"""Chunk steps shown of a longer chunk, evenly spread: what a phone can show."""

DASH = "\u2013"

_KEYS = ("n", "action_names", "r2", "gripper_agreement", "overall", "features", "student_mae", "teacher_mae")


def agreement_tables(run: Run, styles: dict[str, PolicyStyle]) -> dict[str, Any] | None:
    """Rows for the summary and a heat map (action dimension x chunk step) per policy.

    Raises:
        ValueError: A report lacks a key or its tables do not fit its action names.
    """
    if not run.agreement:
        return None
    order = [label for label in POLICY_ORDER if label in run.agreement]
    labels = [*order, *sorted(set(run.agreement) - set(order))]
    summary, tables = [], []
    for label in labels:
        report = run.agreement[label]
        _check(report, label, run)
        style, overall, features = styles[label], report["overall"], report["features"]
        summary.append(
            {
                "name": style.name,
                "colour": style.colour,
                "actions": _number(overall["r2"]),
                "gripper": _percent(overall["gripper_agreement"]),
                "features": _number(features["overall"] if features else None),
                "student_mae": f"{_mean(report['student_mae']):.3f}",
                "teacher_mae": f"{_mean(report['teacher_mae']):.3f}",
            }
        )
        tables.append({"name": style.name, "colour": style.colour, **_heat_map(report)})
    n = max(run.agreement[label]["n"] for label in labels)
    return {"summary": summary, "tables": tables, "n": n, "dashes": _dashes(summary)}


def _dashes(summary: list[dict[str, Any]]) -> str:
    """Why some cells of the summary hold a dash; empty where none does."""
    reasons = {
        "actions": "The teacher's actions do not vary.",
        "features": "Action features need a student with the teacher's decoder.",
        "gripper": "A gripper decision needs a gripper that only opens or closes in the demonstrations.",
    }
    return " ".join(text for key, text in reasons.items() if any(row[key] == DASH for row in summary))


def _heat_map(report: dict[str, Any]) -> dict[str, Any]:
    r2, names = report["r2"], report["action_names"]
    steps = _spread(len(r2))
    rows, left_out = [], []
    for dim, name in enumerate(names):
        values = [r2[t][dim] for t in steps]
        if all(value is None for value in values):
            left_out.append(name)
        else:
            rows.append({"name": name, "cells": [_cell(value, _number(value)) for value in values]})
    if report["gripper_agreement"] is not None:
        values = [report["gripper_agreement"][t] for t in steps]
        cells = [_cell(value, _percent(value)) for value in values]
        rows.append({"name": "same gripper decision", "cells": cells})
        left_out = [name for name in left_out if "gripper" not in name]
    note = f"Not shown, since the teacher's answer does not vary: {', '.join(left_out)}." if left_out else ""
    return {"columns": [str(t + 1) for t in steps], "rows": rows, "note": note}


def _check(report: Any, label: str, run: Run) -> None:
    path = run.path / "agreement.json"
    if not isinstance(report, dict) or (absent := [key for key in _KEYS if key not in report]):
        found = absent if isinstance(report, dict) else type(report).__name__
        raise ValueError(
            f"{path}: the report of {label!r} lacks {found}; run `vita-vla eval --agreement` again"
        )
    if not report["r2"] or any(len(row) != len(report["action_names"]) for row in report["r2"]):
        raise ValueError(f"{path}: r2 of {label!r} needs one number per action dimension and chunk step")


def _spread(steps: int) -> list[int]:
    if steps <= COLUMNS:
        return list(range(steps))
    return [round(i * (steps - 1) / (COLUMNS - 1)) for i in range(COLUMNS)]


def _cell(value: float | None, text: str) -> dict[str, Any]:
    # A negative R2 (worse than answering the mean) gets the shade of 0; its number says the rest.
    return {"heat": 100 * min(max(value or 0.0, 0.0), 1.0), "text": text}


def _number(value: float | None) -> str:
    return DASH if value is None else f"{value:.2f}".replace("-", "\u2212")


def _percent(value: float | None) -> str:
    return DASH if value is None else f"{100 * value:.0f}\u202f%"


def _mean(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else float("nan")
