"""Whether an evaluation may keep its simulators: every episode of a manifest, in a new one and in one that
has played others before, state by state and picture by picture.

    python runs/check_resets.py work/quickstart/manifest.json --out results/bench/resets.json

Hardware: two CPU cores. Time: about a minute per 100 episodes of Meta-World. Expected: no episode differs;
exit code 1 if one does, and the flag with which to evaluate then.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from lerobot_policy_vita_vla.evaluation.manifest import load_manifest
from lerobot_policy_vita_vla.evaluation.resets import compare_resets
from lerobot_policy_vita_vla.evaluation.results import write_json


def main() -> int:
    """Compare, write, and say it in one line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--episodes", type=int, help="only the first ones of each task")
    parser.add_argument("--out", type=Path, help="write the result there")
    args = parser.parse_args()
    manifest = load_manifest(args.manifest)
    tasks = compare_resets(manifest, args.episodes)
    compared = sum(task["episodes"] for task in tasks.values())
    different = [name for task in tasks.values() for name in task["different"]]
    if args.out is not None:
        command = shlex.join(["python", *sys.argv])
        result = {"manifest_hash": manifest.hash, "suite": manifest.suite, "compared": compared}
        write_json(args.out, {**result, "different": len(different), "tasks": tasks, "command": command})
    print(f"{compared} episodes compared, {len(different)} differ {' '.join(different)}".strip())
    if different:
        print("evaluate these tasks with: vita-vla eval ... --fresh-simulators")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
