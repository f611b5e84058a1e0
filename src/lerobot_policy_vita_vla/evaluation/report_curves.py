"""Learning curves on the report page: one figure per loss, one per further number of the training logs.

A training descends the sum `loss`, and stages add different terms to the same imitation loss: the alignment
that finetuning keeps, the object positions and future pictures of a teacher. Side by side only the imitation
can be compared, so it is what the first figures show; the sums follow among the further numbers.
"""

from __future__ import annotations

from typing import Any

from lerobot_policy_vita_vla.evaluation.report_data import Run, Stage
from lerobot_policy_vita_vla.evaluation.report_figures import PolicyStyle, curve_from_log, draw_curves

IMITATION = "imitation"
"""What is computed here of a line of the log, beside what was logged."""

TITLES = {
    ("teacher", IMITATION): "Teacher: imitation loss",
    ("align", "loss"): "Align: distance to the teacher's action features",
    ("finetune", IMITATION): "Finetune: imitation loss",
    ("teacher", "loss"): "Teacher: loss",
    ("finetune", "loss"): "Finetune: loss",
}
PANELS = {"teacher": ["teacher"], "align": ["align"], "finetune": ["finetune", "only_finetune"]}
TOTAL = "loss with all terms"
GRIPPER_WEIGHT = 0.01
"""The paper's, and the default of teacher and student: where a checkpoint does not say."""

# LeRobot's bookkeeping in each log line; nothing to draw.
_NOT_A_METRIC = {"step", "loss", "samples", "episodes", "epochs", "update_s", "dataloading_s", IMITATION}
Styles = dict[str, PolicyStyle]


def learning_curves(run: Run, styles: Styles, prefix: str) -> dict[str, Any] | None:
    """``losses`` and ``further``, lists of figures, and whether some losses are the ``imitation`` alone."""
    logs = {stage.name: with_imitation(stage) for stage in run.stages if stage.log}
    if not logs:
        return None
    drawn = {name for names in PANELS.values() for name in names}
    panels = [*PANELS.items(), *((name, [name]) for name in logs if name not in drawn)]
    losses, parts = [], set()
    for i, (panel, names) in enumerate(panels):
        # Curves of one figure show the same thing: the imitation only where all of them have it.
        there = [logs[name] for name in names if name in logs]
        key = IMITATION if there and all(IMITATION in log[-1] for log in there) else "loss"
        words = "imitation loss" if key == IMITATION else "loss"
        title = TITLES.get((panel, key)) or f"{styles[panel].name}: {words}"
        if figure := _figure(logs, names, key, title, styles, f"{prefix}-loss{i}"):
            losses.append(figure)
            parts.add(key)
    keys = {key for log in logs.values() for row in log for key in row} - _NOT_A_METRIC
    further = [(key, key, list(logs)) for key in sorted(keys)]
    if summed := [name for name, log in logs.items() if IMITATION in log[-1]]:
        further.append((TOTAL, "loss", summed))
    figures = (
        _figure(logs, names, key, title, styles, f"{prefix}-{_slug(title)}") for title, key, names in further
    )
    return {"losses": losses, "further": [f for f in figures if f], "imitation": IMITATION in parts}


def with_imitation(stage: Stage) -> list[dict[str, Any]]:
    """A stage's log; lines that hold the parts of the imitation loss get their weighted sum as well."""
    weight = (stage.settings.get("policy") or {}).get("gripper_weight")
    weight = GRIPPER_WEIGHT if weight is None else weight
    log = []
    for row in stage.log:
        if isinstance(row.get("loss_arm"), int | float):
            row = row | {IMITATION: row["loss_arm"] + weight * (row.get("loss_gripper") or 0.0)}
        log.append(row)
    return log


def _figure(logs, names, key, title, styles, figure_id) -> dict[str, Any] | None:
    pairs = [(name, curve_from_log(logs[name], key, styles[name])) for name in names if name in logs]
    curves = [curve for _, curve in pairs if curve is not None]
    if not curves:
        return None
    last = [f"{c.values[-1]:.3g} after {c.steps[-1]:,.0f} steps" for c in curves]
    named = [f"{c.name}: {end}" for c, end in zip(curves, last, strict=True)]
    ends = "At the end: " + (last[0] if len(last) == 1 else "; ".join(named))
    return {
        "id": figure_id,
        "title": title,
        "svg": draw_curves(figure_id, curves),
        "curves": curves,
        "ends": ends,
    }


def _slug(key: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in key.lower())
