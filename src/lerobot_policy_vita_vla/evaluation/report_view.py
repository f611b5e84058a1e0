"""Turns a run's results into what the page's template shows: sentences, rows and numbers as text.

Every function takes a `Run` and returns plain dicts and lists, or None where the run lacks the part.
"""

from __future__ import annotations

from typing import Any

from lerobot_policy_vita_vla.demos.suite import SUITE, task_descriptions
from lerobot_policy_vita_vla.evaluation.report_data import Evaluation, Run
from lerobot_policy_vita_vla.evaluation.report_figures import PolicyStyle
from lerobot_policy_vita_vla.evaluation.report_record import duration
from lerobot_policy_vita_vla.evaluation.statistics import paired_comparison

MINUS = "\u2212"
SUITES = {"metaworld": "Meta-World", "libero": "LIBERO"}
Styles = dict[str, PolicyStyle]


def percent(value: float, n: int = 0) -> str:
    """A rate in [0, 1] as text; one decimal only where n could tell the difference."""
    return f"{100 * value:.1f}" if n >= 500 else f"{100 * value:.0f}"


def main_label(run: Run) -> str:
    """The policy that the page is about: the two-stage student where there is one."""
    labels = [e.label for e in run.evaluations]
    return "finetune" if "finetune" in labels else next((x for x in labels if x != "teacher"), labels[0])


def headline(run: Run, styles: Styles, pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """Title, one paragraph and the few numbers that a visitor sees first."""
    tasks = list(dict.fromkeys(episode["task"] for episode in run.manifest["episodes"]))
    suite = SUITES.get(run.manifest["suite"], run.manifest["suite"])
    main = run.evaluation(main_label(run))
    n = main.overall["n_episodes"]
    solved = round(main.overall["success_rate"] * n)
    sentences = [
        f"{_subject(main.label, styles)} solves {solved} of {n} episodes "
        f"({percent(main.overall['success_rate'], n)}\u202f%)."
    ]
    teacher = run.evaluation("teacher")
    if teacher is not None and main.label != "teacher":
        sentences.append(f"Its teacher solves {percent(teacher.overall['success_rate'], n)}\u202f%.")
    for pair in pairs:
        if pair["other"] == "only_finetune" and main.label == "finetune":
            sentences.append(
                f"Without the align stage the same student solves {pair['other_rate']}\u202f%, "
                f"{pair['verdict']}."
            )
    seconds = None
    if run.timing:  # steps that ran side by side count once in the total
        seconds = run.timing.get("total_seconds") or sum(step["seconds"] for step in run.timing["steps"])
    facts = [(str(len(tasks)), "tasks" if len(tasks) > 1 else "task")]
    if run.demos:
        facts.append((f"{run.demos['total_episodes']:,}", "demonstrations"))
    facts.append((str(n), "test episodes per policy"))
    facts.append((str(len(run.evaluations)), "policies compared"))
    if seconds is not None:
        whole = any(step["name"] == "report" for step in run.timing["steps"])
        facts.append((duration(seconds), "from start to end" if whole else "up to this page"))
    title = f"{len(tasks)} {suite} tasks" if len(tasks) > 1 else f"One {suite} task: {tasks[0]}"
    if run.demos:
        title += f", learned from {run.demos['total_episodes']:,} demonstrations"
    return {"suite": suite, "title": title, "sentences": sentences, "facts": facts}


def rate_rows(run: Run, styles: Styles) -> list[dict[str, Any]]:
    """One row per policy for the interval chart and the table below it."""
    rows = []
    for evaluation in run.evaluations:
        style = styles[evaluation.label]
        row = rate_row(style.name, style.note, style.colour, evaluation.overall)
        row |= {
            "label": evaluation.label,
            "policy_type": evaluation.result.get("policy_type", ""),
            "solved": sum(bool(e["success"]) for e in evaluation.episodes),
            "same_episodes": evaluation.result["manifest_hash"] == run.manifest["hash"],
            "complete": evaluation.result.get("complete", True),
        }
        rows.append(row)
    return rows


def pair_rows(run: Run, styles: Styles) -> list[dict[str, Any]]:
    """The main policy against each other one that finished the same episodes, with McNemar's exact test."""
    main = run.evaluation(main_label(run))
    rows = []
    for other in run.evaluations:
        if other is main or not _same_episodes(main, other):
            continue
        found = paired_comparison(_outcomes(main), _outcomes(other))
        low, high = 100 * found["low"], 100 * found["high"]
        points = 100 * found["difference"]
        rows.append(
            {
                "main_name": styles[main.label].name,
                "other": other.label,
                "other_name": styles[other.label].name,
                "other_rate": percent(other.overall["success_rate"], found["n"]),
                "colour": styles[other.label].colour,
                "both": found["both"],
                "only_main": found["only_a"],
                "only_other": found["only_b"],
                "neither": found["neither"],
                "difference": f"{signed(points)} ({signed(low)} to {signed(high)})",
                "p": p_text(found["p_value"]),
                "verdict": _verdict(points, found["p_value"]),
            }
        )
    return rows


def instructions(run: Run) -> dict[str, str]:
    """Task name -> the words that a policy reads; empty for suites that this package does not play."""
    return task_descriptions() if run.manifest["suite"] == SUITE else {}


def task_table(run: Run, styles: Styles) -> dict[str, Any]:
    """Success per task (rows) and policy (columns)."""
    tasks = list(dict.fromkeys(episode["task"] for episode in run.manifest["episodes"]))
    rows = []
    for task in tasks:
        cells = []
        for evaluation in run.evaluations:
            rate = evaluation.tasks.get(task)
            cells.append(
                None
                if rate is None
                else {
                    "heat": 100 * rate["success_rate"],
                    "text": percent(rate["success_rate"]),
                    "interval": f"{percent(rate['low'])}\u2013{percent(rate['high'])}",
                    "n": rate["n_episodes"],
                }
            )
        rows.append({"task": task, "cells": cells})
    return {"policies": [styles[e.label] for e in run.evaluations], "rows": rows}


def rate_row(name: str, note: str, colour: str, rate: dict[str, Any]) -> dict[str, Any]:
    """One row of the interval chart; `rate` holds ``success_rate``, ``low``, ``high`` and ``n_episodes``."""
    n = rate["n_episodes"]
    return {
        "name": name,
        "note": note,
        "colour": colour,
        "rate": 100 * rate["success_rate"],
        "low": 100 * rate["low"],
        "high": 100 * rate["high"],
        "text": percent(rate["success_rate"], n),
        "interval": f"{percent(rate['low'], n)}\u2013{percent(rate['high'], n)}",
        "n": n,
    }


def _same_episodes(a: Evaluation, b: Evaluation) -> bool:
    same_list = a.result["manifest_hash"] == b.result["manifest_hash"]
    return same_list and _outcomes(a).keys() == _outcomes(b).keys()


def _outcomes(evaluation: Evaluation) -> dict[str, bool]:
    return {episode["id"]: bool(episode["success"]) for episode in evaluation.episodes}


def signed(points: float) -> str:
    """Whole percentage points with their sign."""
    rounded = round(points)
    return "0" if rounded == 0 else f"{'+' if rounded > 0 else MINUS}{abs(rounded)}"


def _verdict(points: float, p: float) -> str:
    """The other policy's rate in words: `points` is main minus other."""
    size = abs(round(points))
    less = (
        f"{size} point{'s' if size != 1 else ''} {'less' if points > 0 else 'more'}" if size else "the same"
    )
    clear = "a statistically clear" if p < 0.05 else "not a statistically clear"
    return f"{less} on the same episodes: {clear} difference (p {p_text(p, relation=True)})"


def p_text(p: float, *, relation: bool = False) -> str:
    """A p-value with two digits; `relation` puts "=" or "<" before it."""
    if p < 0.001:
        return "< 0.001"
    return f"= {p:.2g}" if relation else f"{p:.2g}"


def _subject(label: str, styles: Styles) -> str:
    return {
        "finetune": "The two-stage student",
        "only_finetune": "The student trained without alignment",
        "align": "The aligned student, its VLM frozen,",
        "teacher": "The teacher",
    }.get(label, styles[label].name)
