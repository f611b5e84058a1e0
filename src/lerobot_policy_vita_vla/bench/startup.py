"""What a command costs before it does anything: help, and the imports that training and evaluation need."""

from __future__ import annotations

import argparse
from typing import Any

from lerobot_policy_vita_vla.bench import harness, processes

SIDES = {
    "help_seconds": ("`vita-vla --help`", ("-m", "vita_vla_cli", "--help")),
    "train_seconds": (
        "an interpreter with LeRobot's trainer and the student imported",
        ("-c", "import lerobot.scripts.lerobot_train, lerobot_policy_vita_vla.vla.modeling_vita_vla"),
    ),
    "lerobot_train_seconds": (
        "an interpreter with LeRobot's trainer imported",
        ("-c", "import lerobot.scripts.lerobot_train"),
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No flags of its own."""


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Start each ``args.rounds`` times, in turns."""
    names = ("help_seconds",) if args.toy else tuple(SIDES)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(args.rounds + 1):
        for name in names:
            seconds = processes.seconds(*SIDES[name][1])
            if turn:  # the first start may have to write bytecode
                taken[name].append(seconds)
    return {
        "setting": f"{args.rounds} starts each, wall time from start to end, with cached bytecode.",
        "headline": {name: f"{SIDES[name][0]}, seconds" for name in names},
        "samples": taken,
    } | {name: harness.summary(values)["median_s"] for name, values in taken.items()}
