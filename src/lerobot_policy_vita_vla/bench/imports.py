"""What importing the plugin costs beyond what LeRobot imports itself, in fresh interpreters.

``import_seconds`` is the import after ``lerobot.configs`` and ``lerobot.envs``: every LeRobot command that
loads plugins with policies (train, eval, rollout) has imported both before, and a registered environment type
needs the second. ``import_seconds_after_configs`` counts the latter as ours.
"""

from __future__ import annotations

import argparse
from typing import Any

from lerobot_policy_vita_vla.bench import harness, processes

PACKAGE = "lerobot_policy_vita_vla"
AFTER = {
    "import_seconds": "lerobot.configs, lerobot.envs",
    "import_seconds_after_configs": "lerobot.configs",
}
CODE = """
import time
import {before}
start = time.perf_counter()
import {package}
print(time.perf_counter() - start)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No flags of its own."""


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Import it ``args.rounds`` times each way."""
    wanted = {"import_seconds": "json"} if args.toy else AFTER
    package = "this" if args.toy else PACKAGE
    taken: dict[str, list[float]] = {key: [] for key in wanted}
    for turn in range(args.rounds + 1):
        for key, before in wanted.items():
            seconds = processes.reported(CODE.format(before=before, package=package))
            if turn:  # the first start may have to write bytecode
                taken[key].append(seconds)
    figures: dict[str, Any] = {
        "setting": f"Importing `{package}` in {args.rounds} fresh interpreters with cached bytecode.",
        "headline": {key: f"import of the plugin after {before}, seconds" for key, before in wanted.items()},
        "samples": taken,
    }
    for key, values in taken.items():
        summary = harness.summary(values)
        figures |= {key: summary["median_s"]}
    return figures
