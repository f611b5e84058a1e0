"""How a run was made, for the report page: pipeline, time, commands, versions, and what is missing."""

from __future__ import annotations

import shlex
from typing import Any

from lerobot_policy_vita_vla.evaluation.report_data import HOW_TO_MAKE, Run
from lerobot_policy_vita_vla.evaluation.report_figures import PolicyStyle

PIPELINE_IN_WORDS = (
    "Pipeline: demonstrations train a small teacher; in align, the queries of a pretrained vision-language "
    "model learn the teacher's action features; in finetune, the model learns to act through the teacher's "
    "decoder; eval plays episodes with every policy."
)
_QUALITIES = {
    "light": "Pictures of quality \u201clight\u201d: visual meshes of the arm that cost much to draw are "
    "hidden, shadows, reflections and anti-aliasing are off. Physics and success checks are untouched. "
    "Success rates belong to this quality and should not be set beside rates of another one.",
    "standard": "Pictures of quality \u201cstandard\u201d: LeRobot's own rendering of the scene.",
}


def duration(seconds: float) -> str:
    """``4.2 s``, ``3 min 05 s`` or ``2 h 10 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def one_option_per_line(command: str) -> str:
    """The same command, readable on a narrow screen: a backslash and a new line before every option."""
    try:
        words = shlex.split(command)
    except ValueError:  # a lone quote: shown as it was written
        return command
    lines = [[]]
    for word in words:
        if word.startswith("--") and lines[-1]:
            lines.append([])
        lines[-1].append(word)
    return " \\\n  ".join(shlex.join(line) for line in lines)


def timeline(run: Run, styles: dict[str, PolicyStyle]) -> dict[str, Any] | None:
    """The steps of the run: start and length in percent of the whole; in turn, where no starts are known.

    Returns:
        Rows, the time that passed, whether steps ran ``beside`` each other, and whether making the page was
        measured too (``with_page``): it is the last step, and not over while the page is made.
    """
    if run.timing is None or not run.timing["steps"]:
        return None
    steps = run.timing["steps"]
    if bad := [step for step in steps if not {"name", "seconds"} <= step.keys()]:
        raise ValueError(f"{run.path / 'timing.json'}: every step needs name and seconds, got {bad[0]}")
    known = all("start" in step for step in steps) and "total_seconds" in run.timing
    total = (run.timing["total_seconds"] if known else sum(step["seconds"] for step in steps)) or 1.0
    rows, start = [], 0.0
    for step in steps:
        start = step["start"] if known else start
        style = styles.get(step["name"].split("/")[-1])
        rows.append(
            {
                "name": step["name"],
                "text": duration(step["seconds"]),
                "share": f"{100 * step['seconds'] / total:.0f}",
                "start": 100 * start / total,
                "length": 100 * step["seconds"] / total,
                "colour": style.colour if style else "accent",
            }
        )
        start += step["seconds"]
    spent = sum(step["seconds"] for step in steps)
    return {
        "rows": rows,
        "total": duration(total),
        "beside": known and spent > 1.01 * total,
        "with_page": any(step["name"] == "report" for step in steps),
    }


def pipeline_nodes(run: Run) -> list[dict[str, Any]]:
    """The five boxes of the picture at the top: name and two short lines each."""
    demos, n_tasks = run.demos, len({e["task"] for e in run.manifest["episodes"]})
    n_policies = len(run.evaluations)
    n_episodes = len(run.manifest["episodes"])
    first = f"{demos['total_episodes']:,} episodes" if demos else "recorded episodes"
    second = f"{n_tasks} tasks, {demos['fps']:g} Hz" if demos else f"{n_tasks} tasks"
    return [
        {"name": "demos", "colour": "other-1", "lines": [first, second]},
        {"name": "teacher", "colour": "teacher", "lines": ["small action model", _steps(run, "teacher")]},
        {"name": "align", "colour": "align", "lines": ["VLM frozen", _steps(run, "align")]},
        {"name": "finetune", "colour": "finetune", "lines": ["LLM and decoder", _steps(run, "finetune")]},
        {"name": "eval", "colour": "other-2", "lines": [f"{n_episodes} episodes", f"{n_policies} policies"]},
    ]


def provenance(run: Run, styles: dict[str, PolicyStyle]) -> dict[str, Any]:
    """Commands, versions, hashes, renderer."""
    commands, unknown = known_commands(run)
    versions: dict[str, list[str]] = {}
    for evaluation in run.evaluations:
        for name, version in (evaluation.result.get("versions") or {}).items():
            if version != "not installed" and str(version) not in versions.setdefault(name, []):
                versions[name].append(str(version))
    renderers = []
    for evaluation in run.evaluations:
        renderer = evaluation.result.get("renderer") or {}
        name = renderer.get("name", "unknown renderer")
        text = f"{name} ({'software' if renderer.get('software') else 'hardware'} rendering)"
        if text not in renderers:
            renderers.append(text)
    quality = run.manifest.get("quality")
    return {
        "commands": [(name, one_option_per_line(command)) for name, command in commands],
        "unknown": unknown,
        "versions": {name: ", ".join(found) for name, found in sorted(versions.items())},
        "hashes": [("manifest", run.manifest["hash"])]
        + [(f"{s.name} weights (sha256)", s.weights_sha256) for s in run.stages if s.weights_sha256],
        "renderers": renderers,
        "quality": _QUALITIES.get(quality, f"Picture quality: {quality}." if quality else ""),
        "speed": [
            (styles[e.label].name, duration(e.result["seconds"]), f"{e.result['episodes_per_hour']:,.0f}")
            for e in run.evaluations
            if e.result.get("seconds") and e.result.get("episodes_per_hour")
        ],
    }


def known_commands(run: Run) -> tuple[list[tuple[str, str]], list[str]]:
    """Commands by what they made, in the order of the flow, and the parts whose command is not known.

    A quickstart writes down every command of its own. Of a run made by hand, trainings keep the line of
    `lerobot-train` that they stand for, and evaluations the command that asked for them.
    """
    steps = run.timing["steps"] if run.timing else []
    commands = [(step["name"], step["command"]) for step in steps if step.get("command")]
    names = {name for name, _ in commands}
    complete = bool(commands) and len(commands) == len(steps)
    by_hand = [
        (stage.name, stage.command) for stage in run.stages if stage.command and stage.name not in names
    ]
    # One eval command usually plays several policies.
    asked: dict[str, list[str]] = {}
    for evaluation in run.evaluations:
        command = evaluation.result.get("command")
        if command and command not in {text for _, text in commands}:
            asked.setdefault(command, []).append(evaluation.label)
    by_hand += [(f"eval: {', '.join(labels)}", command) for command, labels in asked.items()]
    parts = {
        "the recording of the demonstrations (demos/)": ("demos", run.demos is not None),
        "the agreement with the teacher (agreement.json)": ("agreement", run.agreement is not None),
        "the stored picture features (vision/)": ("vision", "--policy.vision_features=" in str(by_hand)),
    }
    unknown = [words for words, (name, there) in parts.items() if there and name not in names]
    page = (
        []
        if not complete or "report" in names
        else [("report", shlex.join(["vita-vla", "report", str(run.path)]))]
    )
    return commands + by_hand + page, unknown


def missing_parts(run: Run, *, has_videos: bool) -> list[tuple[str, str]]:
    """What the run folder lacks, with the command that makes it."""
    found = {stage.name for stage in run.stages if stage.log}
    parts = [("demos", run.demos is not None)]
    parts += [(name, name in found) for name in ("teacher", "align", "finetune", "only_finetune")]
    parts += [
        ("agreement", run.agreement is not None),
        ("videos", has_videos),
        ("ablations", run.ablations is not None),
    ]
    return [(name, HOW_TO_MAKE[name].replace("RUN", str(run.path))) for name, there in parts if not there]


def _steps(run: Run, name: str) -> str:
    stage = run.stage(name)
    steps = stage.log[-1]["step"] if stage and stage.log else None
    return f"{steps:,} steps" if steps else "no log"
