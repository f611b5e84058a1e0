"""How often LIBERO's scripted experts succeed, per task, into results/libero/experts.json.

On drawn starts (seeds from 1000 on, as demonstrations use) and without disturbance; success is LIBERO's own
predicate within the step limit of the protocol `lerobot`. Tasks without an expert are listed with the reason.

    .venv/bin/python runs/libero_experts.py --suites libero_object,libero_spatial --episodes 10

Hardware: one CPU core; nothing is drawn. 3 to 7 CPU seconds per episode: 40 tasks x 10 episodes take about 35
minutes. Needs the extra `libero` and the assets (docs/libero.md). Continues where it was stopped; a
task that was measured with other starts is measured again.
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--suites", default=",".join(SUITES[:4]), help="suites or tasks (default: %(default)s)"
    )
    parser.add_argument("--episodes", type=int, default=10, help="per task (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=SAMPLED_FROM, help="first start (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("results/libero/experts.json"))
    args = parser.parse_args()
    if args.episodes < 1:
        parser.error(f"--episodes must be at least 1, got {args.episodes}")
    asked = {"episodes": args.episodes, "first_seed": args.seed}
    done = json.loads(args.out.read_text())["tasks"] if args.out.is_file() else {}
    for task in resolve_libero_tasks(args.suites):
        if done.get(task, {}).get("asked") == asked:
            continue
        done[task] = {**play(task, range(args.seed, args.seed + args.episodes)), "asked": asked}
        print(task, done[task], flush=True)
        write_json(
            args.out, {"command": "python runs/libero_experts.py", "date": str(date.today()), "tasks": done}
        )


if __name__ == "__main__":
    main()
