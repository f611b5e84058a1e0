"""How often LIBERO's scripted experts succeed, per task, into results/libero/experts.json.

On drawn starts (seeds from 1000 on, as demonstrations use) and without disturbance; success is LIBERO's own
predicate within the step limit of the protocol `lerobot`. Tasks without an expert are listed with the reason.

    .venv/bin/python runs/libero_experts.py --episodes 10 --seed 2000

Hardware: one CPU core; nothing is drawn. 3 to 7 CPU seconds per episode: 40 tasks x 10 episodes take about 35
minutes. Needs the extra `libero` and the assets (docs/libero.md). Continues where it was stopped; a task that
was measured with other starts is measured again. The tables of docs/libero.md are written from the file.
Experts were repaired while looking at starts 1000 to 1002: judge them on others.
"""

import argparse
import json
import time
from datetime import date
from pathlib import Path

from lerobot_policy_vita_vla.demos.libero_suite import SAMPLED_FROM, SUITES, instruction, resolve_libero_tasks
from lerobot_policy_vita_vla.evaluation.results import write_json
from lerobot_policy_vita_vla.evaluation.statistics import rate_with_interval

ENOUGH = 0.8
"""Below this an expert's demonstrations are too biased towards easy starts; the file says so."""

ROOT = Path(__file__).resolve().parents[1]
PAGE, OUT = ROOT / "docs" / "libero.md", ROOT / "results" / "libero" / "experts.json"
BEGIN = "<!-- experts: written by runs/libero_experts.py from results/libero/experts.json -->"
END = "<!-- end of experts -->"


def play(task: str, seeds: range) -> dict:
    from lerobot_policy_vita_vla.demos.libero import LiberoScene

    scene, outcomes, steps = LiberoScene(task, observation_size=16), [], []
    scene.rendering = False
    began = time.process_time()
    for seed in seeds:
        scene.reset(seed=seed)
        success, ended, count = False, False, 0
        while not (success or ended):
            try:
                action = scene.expert_action()
            except ValueError as error:
                scene.close()
                return {"instruction": instruction(task), "expert": None, "reason": str(error)}
            _, _, success, ended, _ = scene.step(action)
            count += 1
        outcomes.append(success)
        steps.append(count)
    scene.close()
    return {
        "instruction": instruction(task),
        "expert": rate_with_interval(sum(outcomes), len(outcomes)),
        "enough": sum(outcomes) >= ENOUGH * len(outcomes),
        "failed_seeds": [seed for seed, success in zip(seeds, outcomes, strict=True) if not success],
        "mean_steps": sum(steps) / len(steps),
        "cpu_seconds": round(time.process_time() - began, 1),
    }


def page(tasks: dict) -> str:
    """The tables of docs/libero.md: one row per suite, tasks below `ENOUGH` by name, and one row per task."""
    rows = ["| suite | tasks | successes | 95 % | below 0.8 |", "|---|---|---|---|---|"]
    each = ["| task | successes | 95 % | |", "|---|---|---|---|"]
    for suite in SUITES:
        found = {
            name: row for name, row in tasks.items() if name.rpartition("_")[0] == suite and row["expert"]
        }
        if not found:
            continue
        counts = [(_good(row), row["expert"]["n_episodes"]) for row in found.values()]
        good, count = (sum(column) for column in zip(*counts, strict=True))
        below = [
            f"{name} ({row['expert']['success_rate']:.2f})"
            for name, row in found.items()
            if not row["enough"]
        ]
        interval = _interval(rate_with_interval(good, count))
        rows.append(
            f"| {suite} | {len(found)} | {good} of {count} | {interval} | {', '.join(below) or 'none'} |"
        )
        each += [
            f"| `{name}` | {_good(row)} of {row['expert']['n_episodes']} | {_interval(row['expert'])} | "
            f"{row['instruction']} |"
            for name, row in found.items()
        ]
    asked = {(row["asked"]["episodes"], row["asked"]["first_seed"]) for row in tasks.values()}
    says = "; ".join(
        f"{episodes} episodes per task from seed {seed} on (`{command(episodes, seed)}`)"
        for episodes, seed in sorted(asked)
    )
    return "\n".join([f"Drawn starts, no disturbance, {says}:", "", *rows, "", *each, ""])


def command(episodes: int, seed: int) -> str:
    """The line that measures it."""
    return f"python runs/libero_experts.py --episodes {episodes} --seed {seed}"


def _good(row: dict) -> int:
    return round(row["expert"]["success_rate"] * row["expert"]["n_episodes"])


def _interval(rate: dict) -> str:
    return f"{rate['low']:.2f} - {rate['high']:.2f}"


def write_page(tasks: dict) -> None:
    """Replace the table in docs/libero.md."""
    text = PAGE.read_text()
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    PAGE.write_text(f"{head}{BEGIN}\n{page(tasks)}{END}{tail}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--suites", default=",".join(SUITES[:4]), help="suites or tasks (default: %(default)s)"
    )
    parser.add_argument("--episodes", type=int, default=10, help="per task (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=SAMPLED_FROM, help="first start (default: %(default)s)")
    parser.add_argument("--again", action="store_true", help="measure also what is measured already")
    parser.add_argument("--out", type=Path, default=OUT, help="(default: results/libero/experts.json)")
    args = parser.parse_args()
    if args.episodes < 1:
        parser.error(f"--episodes must be at least 1, got {args.episodes}")
    asked = {"episodes": args.episodes, "first_seed": args.seed}
    done = json.loads(args.out.read_text())["tasks"] if args.out.is_file() else {}
    for task in resolve_libero_tasks(args.suites):
        if done.get(task, {}).get("asked") == asked and not args.again:
            continue
        done[task] = {**play(task, range(args.seed, args.seed + args.episodes)), "asked": asked}
        print(task, done[task], flush=True)
        said = {"command": command(args.episodes, args.seed), "date": str(date.today())}
        write_json(args.out, said | {"tasks": done})
    if args.out.resolve() == OUT.resolve():
        write_page(done)


if __name__ == "__main__":
    main()
