"""Copy a run's raw episodes into results/ and write its headline numbers into results/summary.json.

    python scripts/publish.py RUN results/NAME --command "make quickstart" a.teacher=teacher

``key=label`` takes the success rate of RUN/eval/label; ``key=a-b`` the difference of two labels, paired by
episode; ``key=FILE.json:field`` a number of a file in RUN, ``key=FILE.json:field/60`` divided. Only text is
copied (manifest, episodes, results, learning curves, commands): no weights, no videos.

    python scripts/publish.py results/bench --command "python runs/bench_align.py" a.x=align.json:align_x
"""

from __future__ import annotations

import argparse
import json
import shutil
from datetime import date
from pathlib import Path

from lerobot_policy_vita_vla.evaluation.results import outcomes, read_result, update_summary
from lerobot_policy_vita_vla.evaluation.statistics import paired_comparison

SUMMARY = Path(__file__).resolve().parents[1] / "results" / "summary.json"
TEXT = ("manifest.json", "ablations.json", "timing.json", "agreement.json")


def copy_text(run: Path, target: Path, labels: set[str]) -> None:
    """Copy what the numbers can be computed from again."""
    for name in TEXT:
        if (run / name).is_file():
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(run / name, target / name)
    for label in labels:
        for source in (run / "eval" / label, run / label):
            for name in ("result.json", "episodes.jsonl", "train_log.jsonl", "command.txt"):
                if (source / name).is_file():
                    place = target / source.relative_to(run)
                    place.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source / name, place / name)


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
        copy_text(args.run, args.target, {p.name for p in (args.run / "eval").glob("*")})
    today = date.today().isoformat()
    for key, value in wanted.items():
        if ".json:" in value:
            name, field = value.split(":", 1)
            field, _, divisor = field.partition("/")
            number = round(json.loads((args.run / name).read_text())[field] / float(divisor or 1), 12)
            update_summary(SUMMARY, key, number, command=args.command, date=today)
            print(f"{key}: {number:.4g}")
            continue
        if "-" in value:
            first, second = (outcomes(args.run / "eval" / label) for label in value.split("-"))
            paired = paired_comparison(first, second)
            number, n, low, high = (paired[k] for k in ("difference", "n", "low", "high"))
        else:
            overall = read_result(args.run / "eval" / value)["overall"]
            number, n, low, high = (overall[k] for k in ("success_rate", "n_episodes", "low", "high"))
        update_summary(SUMMARY, key, number, n=n, low=low, high=high, command=args.command, date=today)
        print(f"{key}: {number:.3f} ({low:.3f} to {high:.3f}), n {n}")


if __name__ == "__main__":
    main()
