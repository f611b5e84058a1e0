"""What starting costs: `vita-vla --help`, and importing the plugin beyond what LeRobot imports itself.

    python runs/measure_imports.py            (about a minute; writes results/bench/imports.json)

Hardware: any; needs no GPU. Each number is the median over fresh interpreters with cached bytecode.

`import_seconds` is the import of the plugin after `lerobot.configs` and `lerobot.envs`: every LeRobot command
that loads plugins with policies (train, eval, rollout) has imported both before, and a registered environment
type needs the second. `import_seconds_after_configs` counts the latter as ours.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

IMPORT = """
import time
import {before}
start = time.perf_counter()
import lerobot_policy_vita_vla
print(time.perf_counter() - start)
"""


def run(*command: str) -> str:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout


def import_seconds(before: str) -> float:
    return float(run(sys.executable, "-c", IMPORT.format(before=before)).split()[-1])


def help_seconds() -> float:
    start = time.perf_counter()
    run(sys.executable, "-m", "vita_vla_cli", "--help")
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("results/bench/imports.json"))
    args = parser.parse_args()

    def median(measure, *values):
        measure(*values)  # the first start may have to write bytecode
        samples = [measure(*values) for _ in range(args.repeats)]
        return round(statistics.median(samples), 4), [round(s, 4) for s in samples]

    outcome = {
        "repeats": args.repeats,
        "python": sys.version.split()[0],
        "cpu_cores": os.cpu_count(),
        "samples": {},
    }
    for name, measure, values in (
        ("help_seconds", help_seconds, ()),
        ("import_seconds", import_seconds, ("lerobot.configs, lerobot.envs",)),
        ("import_seconds_after_configs", import_seconds, ("lerobot.configs",)),
    ):
        outcome[name], outcome["samples"][name] = median(measure, *values)
        print(f"{name}: {outcome[name]}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(outcome, indent=1) + "\n")


if __name__ == "__main__":
    main()
