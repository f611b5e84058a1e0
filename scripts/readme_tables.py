"""Write the generated parts of the documentation: result tables of README.md and of pages in docs, file map.

    python scripts/readme_tables.py            writes them
    python scripts/readme_tables.py --check    exit code 1 if they are not what would be written

Numbers come from results/summary.json alone (`evaluation.results.update_summary` writes it), the clauses of
the file map from the files' own docstrings. Only the standard library is needed.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SUMMARY = ROOT / "results" / "summary.json"
NOT_MEASURED = "not measured yet"

GROUP_COLUMNS = (("teacher", "teacher"), ("only_finetune", "finetune only"), ("two_stage", "two-stage"))


def mt50_tasks() -> str:
    """How many of Meta-World's 50 tasks were played, in words."""
    manifest = ROOT / "results" / "mt50" / "manifest.json"
    if not manifest.is_file():
        return "MT50"
    played = len({episode["task"] for episode in json.loads(manifest.read_text())["episodes"]})
    return "MT50" if played == 50 else f"{played} of MT50's 50 tasks"


# Tables of the README: title, then key of summary.json -> what it measures. Keys that are listed nowhere here
# appear in a last table, under their own names, so that no published number is left out.
TABLES: tuple[tuple[str, dict[str, str]], ...] = (
    (
        "Five Meta-World tasks: success rates",
        {
            "a.teacher": "teacher (Seer, preset tiny)",
            "a.two_stage": "two-stage: align, then finetune",
            "a.only_finetune": "finetune only (no alignment before)",
            "a.two_stage_minus_only_ft": "two-stage minus finetune only, 300 steps each, 3 seeds",
            "a.two_stage_minus_only_ft_100": "the same, 100 finetune steps",
            "a.two_stage_minus_only_ft_30": "the same, 30 finetune steps",
            "a.two_stage_minus_only_ft_equal_compute": "at equal total time: 300 steps and align",
            "a.two_stage_minus_only_ft_equal_compute_100": "at equal total time: 100 steps and align",
            "a.two_stage_minus_only_ft_equal_compute_30": "at equal total time: 30 steps and align",
            "a.align_only": "align only (the VLM was never trained)",
            "a.blind_teacher": "teacher without pictures",
            "a.state_only": "teacher without pictures and instruction",
            "a.no_instruction": "teacher without instruction",
        },
    ),
    (
        "Other tasks: success rates",
        {
            "a.heldout_teacher": "teacher, ten tasks on which no recipe was tuned",
            "a.heldout_two_stage": "two-stage, the same ten tasks",
            "a.grasp_teacher": "teacher, pick-place and push",
            "a.grasp_two_stage": "two-stage, pick-place and push",
        },
    ),
    (
        "The paper's benchmarks, on scripted demonstrations: success rates",
        {
            "c.mt50_teacher": f"Meta-World, {mt50_tasks()}: teacher",
            "c.mt50_only_finetune": "the same, finetune only",
            "c.mt50_two_stage": "the same, two-stage",
            "c.mt50_align_only": "the same, align only",
            "c.mt50_expert": "the same, scripted expert",
            "c.mt50_blind_teacher": "the same, teacher without pictures",
            "c.mt50_no_instruction": "the same, teacher without instruction",
            "c.mt50_state_only": "the same, teacher without both",
            **{
                f"c.mt50_{key}_{group}": f"{what}, tasks called {group.replace('_', ' ')}"
                for group in ("easy", "medium", "hard", "very_hard")
                for key, what in GROUP_COLUMNS
            },
            **{
                f"c.libero_{suite}_{key}": f"LIBERO-{suite.capitalize()}: {what}"
                for suite in ("object", "spatial")
                for key, what in (
                    *GROUP_COLUMNS,
                    ("two_stage_minus_only_ft", "two-stage minus finetune only"),
                    ("expert", "scripted expert"),
                )
            },
            **{
                f"c.libero_{suite}_{without}_{key}": f"LIBERO-{suite.capitalize()}: {what}, {lacking}"
                for suite, without, lacking in (
                    ("object", "no_misses", "no misses in the demonstrations"),
                    ("spatial", "no_asides", "no bowls set aside, and an earlier expert"),
                )
                for key, what in GROUP_COLUMNS
            },
            "c.libero_spatial_held_two_stage": "LIBERO-Spatial on starts that nobody looked at: two-stage",
            "c.libero_spatial_held_only_finetune": "the same, finetune only",
            "c.libero_spatial_held_two_stage_minus_only_ft": "the same, two-stage minus finetune only",
            "c.libero_spatial_no_asides_two_stage_minus_only_ft": "no bowls set aside: two-stage minus "
            "finetune only",
            "c.libero_spatial_no_asides_expert": "the same, scripted expert",
        },
    ),
    (
        "What it costs",
        {
            "a.quickstart_minutes": "`make quickstart` on two cores, minutes",
            "a.align_speedup": "align step, naive / cached prefix, time",
            "a.align_memory_ratio": "align step, naive / cached prefix, memory kept for backward",
            "a.align_grad_diff": "largest relative difference of their gradients",
            "a.import_seconds": "import of the plugin after LeRobot's own, seconds",
            "a.help_seconds": "`vita-vla --help`, seconds",
        },
    ),
    (
        "The paper's sizes",
        {
            "b.families": "VLM families that pass every check of the conformance suite",
            "b.align_params_calvin": "parameters trained by align, CALVIN (E = 1024)",
            "b.align_params_libero": "parameters trained by align, LIBERO (E = 384)",
            "b.finetune_params": "parameters trained by finetune, 7B",
            "b.convert_peak_gib": "VITA-1.5 conversion, peak memory in GiB (two shards: 9.06)",
            "b.plan_error": "largest error of planned memory or time, share of the measured value",
            "c.seer_layouts": "layouts of Seer's releases imported key by key, of 3 (random numbers in "
            "the published names and shapes)",
            "c.replay_caught": "broken conventions that a replay on Meta-World and LIBERO catches, of 70",
        },
    ),
    (
        "Speed: ratios, both sides in turns in one run",
        {
            "d.align_speedup": "align step, naive / cached prefix",
            "d.align_memory_ratio": "the same, memory kept for backward",
            "d.infer_vs_smolvla": "an action chunk, SmolVLA / our student on the same VLM, CPU, bfloat16",
            "d.infer_vs_smolvla_no_vision": "the same without the image encoder",
            "d.serve_ratio": "an action chunk, through the policy server / in process, same machine",
            "d.eval_vs_lerobot_eval": "520 episodes, time of `lerobot-eval` / `vita-vla eval`, whole",
            "d.eval_vs_lerobot_eval_playing": "the same without start-up, per further episode",
            "d.quickstart_minutes": "`make quickstart` on two cores, minutes",
        },
    ),
)
OTHERS = "Other measurements"

# Tables of docs/benchmarks.md: name -> folder in results/, and label of an evaluation -> title of its column.
STAGES = {"teacher": "teacher", "only_finetune": "finetune only", "finetune": "two-stage"}
LACKING = {
    "no_instruction": "teacher, no instruction",
    "blind_teacher": "teacher, no pictures",
    "state_only": "teacher, neither",
}
BENCHMARKS: dict[str, tuple[str, dict[str, str]]] = {
    "mt50": ("mt50", STAGES | {"align": "align only", "expert": "scripted expert"} | LACKING),
    "libero_object": ("libero/libero_object", STAGES | {"expert": "scripted expert"}),
    "libero_spatial": ("libero/libero_spatial", STAGES | {"expert": "scripted expert"}),
}

# Order of the file map: the flow of the pipeline, then what surrounds it.
FOLDERS = (
    "src/lerobot_policy_vita_vla",
    "src/lerobot_policy_vita_vla/demos",
    "src/lerobot_policy_vita_vla/teacher",
    "src/lerobot_policy_vita_vla/teacher/seer",
    "src/lerobot_policy_vita_vla/teacher/seer/official",
    "src/lerobot_policy_vita_vla/vla",
    "src/lerobot_policy_vita_vla/vlm",
    "src/lerobot_policy_vita_vla/training",
    "src/lerobot_policy_vita_vla/evaluation",
    "src/lerobot_policy_vita_vla/serving",
    "src/lerobot_policy_vita_vla/bench",
    "src/vita_vla_client",
    "src/vita_vla_cli",
    "src/vita_vla_cli/verbs",
    "scripts",
    "runs",
)


def results_text(summary: dict[str, dict[str, Any]]) -> str:
    """The result tables as Markdown.

    Args:
        summary: Content of results/summary.json: key -> ``{"value", "n", "low", "high", "command", "date"}``;
            may hold any part of the keys.
    """
    known = {key for _, rows in TABLES for key in rows}
    others = {key: f"`{key}`" for key in sorted(set(summary) - known)}
    tables = [*TABLES, (OTHERS, others)] if others else TABLES
    return "\n\n".join(_table(title, rows, summary) for title, rows in tables)


def _table(title: str, rows: dict[str, str], summary: dict[str, dict[str, Any]]) -> str:
    lines = [f"| {title} | value | 95 % interval | n | measured with |", "| --- | --- | --- | --- | --- |"]
    for key, what in rows.items():
        entry = summary.get(key)
        if entry is None:
            cells = (what, NOT_MEASURED, "", "", "")
        else:
            low, high, n = entry.get("low"), entry.get("high"), entry.get("n")
            interval = "" if low is None or high is None else f"{_number(low)} - {_number(high)}"
            how = f"`{entry['command']}`" if entry.get("command") else ""
            how = " ".join(part for part in (how, f"({entry['date']})" if entry.get("date") else "") if part)
            cells = (what, _number(entry["value"]), interval, "" if n is None else str(n), how)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells).rstrip() + " |")
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def read_summary() -> dict[str, dict[str, Any]]:
    """Content of results/summary.json; empty before anything was measured."""
    return json.loads(SUMMARY.read_text()) if SUMMARY.is_file() else {}


def file_map_text() -> str:
    """The file map as Markdown: one clause per source file, from its docstring or first comment."""
    parts = [
        "# File map\n\nWritten by `scripts/readme_tables.py` from the files' own docstrings. "
        "Imports go one way, which a test enforces:\n\n"
        "    contracts, conventions, ema, optimizer, chunking <- demos <- teacher <- vla "
        "<- evaluation, training, serving <- bench <- cli"
    ]
    for folder in FOLDERS:
        lines = [
            f"- `{path.name}`: {clause}" for path in source_files(ROOT / folder) if (clause := _clause(path))
        ]
        if lines:
            parts.append(f"## {folder}\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def source_files(folder: Path) -> list[Path]:
    """Python and shell files directly in a folder, by name."""
    return sorted(path for path in folder.glob("*") if path.suffix in (".py", ".sh"))


def _clause(path: Path) -> str:
    text = path.read_text()
    if path.suffix == ".py":
        doc = ast.get_docstring(ast.parse(text)) or ""
    else:
        comments = re.findall(r"^# (.*)$", text.split("\n\n", 1)[0], flags=re.MULTILINE)
        doc = " ".join(comments)
    paragraph = " ".join(doc.split("\n\n", 1)[0].split())
    sentence = re.split(r"(?<=[.!?]) (?=[A-Z`])", paragraph, maxsplit=1)[0]
    return sentence.rstrip(".:").replace("``", "`")


def between(text: str, name: str, content: str) -> str:
    """Replace what stands between ``<!-- name:begin -->`` and ``<!-- name:end -->``.

    Raises:
        ValueError: The markers are missing.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"expected the markers {begin} and {end} once each")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{content}\n{end}{rest.split(end)[1]}"


def schedules_text(folder: Path) -> str:
    """Success of each finetune schedule after some steps, from results named ``<schedule>-<steps>``."""
    found: dict[str, dict[int, str]] = {}
    for path in folder.glob("*/result.json"):
        schedule, steps = path.parent.name.rsplit("-", 1)
        rate = json.loads(path.read_text())["overall"]
        found.setdefault(schedule, {})[int(steps)] = _rate(rate)
    columns = sorted({steps for rates in found.values() for steps in rates})
    lines = [f"| schedule | {' | '.join(f'{steps} steps' for steps in columns)} |"]
    lines.append("| --- |" + " --- |" * len(columns))
    for schedule in sorted(found, key=lambda name: (name != "plain", name)):
        cells = [found[schedule].get(steps, "") for steps in columns]
        lines.append(f"| `{schedule}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def variants_text(folder: Path) -> str:
    """Every variant of one ablation with its rate, and two-stage minus it, from ablations.json."""
    table = json.loads((folder / "ablations.json").read_text())
    against = {(c["variant"], c["finetune_steps"]): c for c in table["comparisons"]}
    budgets = sorted({row["finetune_steps"] for row in table["rows"]} - {0})
    lines = [
        "| variant | finetune steps | what it shows | success | two-stage minus it |",
        "| --- " * 5 + "|",
    ]
    for row in sorted(table["rows"], key=lambda row: -row["success_rate"]):
        for budget in [row["finetune_steps"]] if row["finetune_steps"] else budgets:
            found = against.get((row["variant"], budget))
            difference = ""
            if found:
                interval = f"{_number(found['low'])} - {_number(found['high'])}".replace(" - -", " to -")
                difference = f"{found['difference']:+.2f} ({interval}), p {found['p_value']:.2g}"
            cells = (f"`{row['variant']}`", str(row["steps"]), row["why"], _rate(row), difference)
            lines.append("| " + " | ".join(cells).rstrip() + " |")
    return "\n".join(lines)


def tasks_text(folder: Path, labels: dict[str, str]) -> str:
    """Success of several policies on every task of one run.

    Args:
        folder: Of a published run.
        labels: Label of an evaluation -> title of its column.
    """
    found = {label: folder / "eval" / label / "result.json" for label in labels}
    results = {label: json.loads(path.read_text()) for label, path in found.items() if path.is_file()}
    if not results:
        return NOT_MEASURED.capitalize() + "."
    columns = list(results.values())
    tasks = sorted({task for result in columns for task in result["tasks"]}, key=_natural)
    said = _instructions()
    rows = [["task", *(labels[label] for label in results)], ["---"] * (len(results) + 1)]
    whole = f"all {len(tasks)}, {columns[0]['overall']['n_episodes']} episodes"
    rows.append([whole, *(_rate(result["overall"]) for result in columns)])
    for task in tasks:
        name = f"`{task}`: {said[task]}" if task in said else f"`{task}`"
        rows.append([name, *(_number(result["tasks"][task]["success_rate"]) for result in columns)])
    recording = folder / "demos" / "meta" / "vita_vla.json"
    if recording.is_file():
        made = json.loads(recording.read_text())
        rows[0].append("expert while recording")
        rows[1].append("---")
        for row, counted in zip(rows[2:], (tasks, *([task] for task in tasks)), strict=True):
            kept, tried = (sum(made[key][task] for task in counted) for key in ("kept", "tried"))
            row.append(f"{kept} of {tried}")
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def precision_text(path: Path) -> str:
    """What runs/mt50_precision.py found: one row per network, from its file."""
    if not path.is_file():
        return NOT_MEASURED.capitalize() + "."
    found = json.loads(path.read_text())
    rows = found["rows"]
    limits = list(rows[0]["within_steps"])
    titles = ["error of positions", "smooth-L1 threshold"]
    titles += [f"success within {limit} steps" for limit in limits]
    lines = [f"| {' | '.join(titles)} |", "| --- " * len(titles) + "|"]
    for row in rows:
        cells = [f"{1000 * row['error_m']:.0f} mm", _number(row["beta"])]
        cells += [_rate(row["within_steps"][limit]) for limit in limits]
        lines.append(f"| {' | '.join(cells)} |")
    # Per task the worst of object and goal: the one is a constant in some tasks.
    off = {
        task: 1000 * max(_rms(errors[:3]), _rms(errors[3:]))
        for task, errors in found["teacher_rms_error_m"].items()
    }
    worst, best = max(off, key=off.get), min(off, key=off.get)
    lines.append(
        f"\nThe trained teacher sees the worse of the two {_rms(off.values()):.0f} mm off per axis on unseen "
        f"episodes (root mean square over tasks), {off[best]:.0f} mm in `{best}` and {off[worst]:.0f} mm in "
        f"`{worst}`."
    )
    return "\n".join(lines)


def _rms(values: Iterable[float]) -> float:
    squares = [value * value for value in values]
    return (sum(squares) / len(squares)) ** 0.5


def _rate(rate: dict[str, float]) -> str:
    return f"{_number(rate['success_rate'])} ({_number(rate['low'])} - {_number(rate['high'])})"


def _instructions() -> dict[str, str]:
    path = ROOT / "results" / "libero" / "experts.json"
    tasks = json.loads(path.read_text())["tasks"] if path.is_file() else {}
    return {name: entry["instruction"] for name, entry in tasks.items()}


def _natural(name: str) -> tuple[str, int]:
    stem, _, number = name.rpartition("_")
    return (stem, int(number)) if number.isdigit() else (name, 0)


def generated() -> dict[Path, str]:
    """Every generated file with the content it should have."""
    readme, schedules = ROOT / "README.md", ROOT / "docs" / "schedules.md"
    pages = {
        readme: between(readme.read_text(), "results", results_text(read_summary())),
        ROOT / "docs" / "file_map.md": file_map_text(),
    }
    if schedules.is_file():
        table = schedules_text(ROOT / "results" / "finetune_dip" / "eval")
        pages[schedules] = between(schedules.read_text(), "schedules", table)
    benchmarks = ROOT / "docs" / "benchmarks.md"
    if benchmarks.is_file():
        text = benchmarks.read_text()
        for name, (folder, labels) in BENCHMARKS.items():
            text = between(text, name, tasks_text(ROOT / "results" / folder, labels))
        text = between(text, "precision", precision_text(ROOT / "results/mt50_precision/precision.json"))
        pages[benchmarks] = text
    ablations = ROOT / "docs" / "ablations.md"
    if ablations.is_file():
        table = variants_text(ROOT / "results" / "variants")
        pages[ablations] = between(ablations.read_text(), "variants", table)
    return pages


def main(argv: list[str] | None = None) -> int:
    """Write or check; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit code 1 if something differs"
    )
    args = parser.parse_args(argv)
    stale = [path for path, text in generated().items() if not path.is_file() or path.read_text() != text]
    for path in stale:
        if args.check:
            sys.stderr.write(f"{path.relative_to(ROOT)} is stale: run python scripts/readme_tables.py\n")
        else:
            path.write_text(generated()[path])
            sys.stdout.write(f"wrote {path.relative_to(ROOT)}\n")
    return 1 if stale and args.check else 0


if __name__ == "__main__":
    sys.exit(main())
