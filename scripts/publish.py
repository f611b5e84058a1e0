"""Copy a run's raw episodes into results/ and write its headline numbers into results/summary.json.

    python scripts/publish.py RUN results/NAME --command "make quickstart" a.teacher=teacher

``key=label`` takes the success rate of RUN/eval/label; ``key=label@group`` that over the tasks of a
Meta-World difficulty group; ``key=a-b`` the difference of two labels, paired by episode;
``key=ablation:VARIANT@STEPS`` two-stage minus that variant at that finetune budget over the training seeds,
from RUN/ablation/ablations.json; ``key=FILE.json:field`` a number of a file in RUN,
``key=FILE.json:field/60`` divided. Only text is copied (manifest, episodes, results, learning curves,
commands, what the recording says of itself), no weights, no videos; and of RUN and RUN/ablation only what the
numbers come from.

    python scripts/publish.py results/bench --command "vita-vla bench align" a.x=align.json:align_x
"""

from __future__ import annotations

import argparse
import json
import shutil
from datetime import date
from pathlib import Path

from lerobot_policy_vita_vla.conventions import RECORDING_FILE
from lerobot_policy_vita_vla.demos.suite import task_groups
from lerobot_policy_vita_vla.evaluation.results import (
    outcomes,
    read_episodes,
    read_result,
    summarise,
    update_summary,
)
from lerobot_policy_vita_vla.evaluation.statistics import paired_comparison

SUMMARY = Path(__file__).resolve().parents[1] / "results" / "summary.json"
TEXT = ("manifest.json", "ablations.json", "timing.json", "agreement.json")
ROW_TEXT = ("result.json", "episodes.jsonl", "train_log.jsonl", "command.txt")
ABLATION = "ablation:"


def copy_text(run: Path, target: Path, numbers: list[str]) -> None:
    """Copy what the numbers can be computed from again; everything where no number is named."""
    ablation = [value.startswith(ABLATION) for value in numbers]
    if not numbers or not all(ablation):
        folders = [p for label in (run / "eval").glob("*") for p in (label, run / label.name)]
        files = [run / name for name in TEXT] + [p / name for p in folders for name in ROW_TEXT]
        _copy(run, target, [*files, run / "demos" / RECORDING_FILE])
    if not numbers or any(ablation):
        of = run / "ablation"
        folders = [*of.glob("eval/*"), *(p.parent for p in of.glob("students/*/checkpoints"))]
        files = [run / "manifest.json", of / "ablations.json"]
        _copy(run, target, files + [p / name for p in folders for name in ROW_TEXT])


def _copy(run: Path, target: Path, files: list[Path]) -> None:
    for file in files:
        if file.is_file():
            place = target / file.relative_to(run)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)


def ablation_number(run: Path, wanted: str) -> tuple[float, int, float, float]:
    """Two-stage minus a variant at a finetune budget.

    Args:
        run: Run folder with ``ablation/ablations.json``.
        wanted: ``VARIANT@STEPS``.

    Returns:
        Difference of the mean success rates, number of paired episodes (of all seeds), and the limits of the
        95 % interval over runs and episodes.

    Raises:
        ValueError: The table does not hold this comparison.
    """
    path = run / "ablation" / "ablations.json"
    found = json.loads(path.read_text())["comparisons"] if path.is_file() else []
    by_name = {f"{c['variant']}@{c['finetune_steps']}": c for c in found}
    if wanted not in by_name:
        raise ValueError(
            f"{path} has no comparison {wanted!r}, it has {', '.join(by_name) or 'none'}; run `vita-vla "
            "ablate` with two_stage, this variant and this budget"
        )
    c = by_name[wanted]
    return c["difference"], c["n_episodes"] * c["n_runs_b"], c["low"], c["high"]


def group_rate(folder: Path, group: str) -> dict:
    """Success rate with interval over the episodes of one difficulty group's tasks.

    Raises:
        ValueError: No such group, or none of its tasks was played.
    """
    groups = task_groups()
    if group not in groups:
        raise ValueError(f"no difficulty group {group!r}; there are {', '.join(groups)}")
    records = [record for record in read_episodes(folder) if record["task"] in groups[group]]
    if not records:
        raise ValueError(f"{folder}: no episode of a task of group {group!r}")
    return summarise(records)["overall"]


def main() -> None:
    """Publish one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("target", type=Path, nargs="?", help="without it nothing is copied")
    parser.add_argument("--command", required=True, help="what made the run")
    parser.add_argument("numbers", nargs="*", metavar="KEY=LABEL", help="headline numbers")
    args = parser.parse_intermixed_args()
    if args.target is not None and "=" in str(args.target):
        args.numbers, args.target = [str(args.target), *args.numbers], None
    wanted = dict(item.split("=", 1) for item in args.numbers)
    if args.target is not None:
        copy_text(args.run, args.target, list(wanted.values()))
    today = date.today().isoformat()
    for key, value in wanted.items():
        if ".json:" in value:
            name, field = value.split(":", 1)
            field, _, divisor = field.partition("/")
            number = round(json.loads((args.run / name).read_text())[field] / float(divisor or 1), 12)
            update_summary(SUMMARY, key, number, command=args.command, date=today)
            print(f"{key}: {number:.4g}")
            continue
        if value.startswith(ABLATION):
            number, n, low, high = ablation_number(args.run, value.removeprefix(ABLATION))
        elif "-" in value:
            first, second = (outcomes(args.run / "eval" / label) for label in value.split("-"))
            paired = paired_comparison(first, second)
            number, n, low, high = (paired[k] for k in ("difference", "n", "low", "high"))
        else:
            label, _, group = value.partition("@")
            folder = args.run / "eval" / label
            overall = group_rate(folder, group) if group else read_result(folder)["overall"]
            number, n, low, high = (overall[k] for k in ("success_rate", "n_episodes", "low", "high"))
        update_summary(SUMMARY, key, number, n=n, low=low, high=high, command=args.command, date=today)
        print(f"{key}: {number:.3f} ({low:.3f} to {high:.3f}), n {n}")


if __name__ == "__main__":
    main()
