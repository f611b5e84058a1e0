"""Episodes per hour: `vita-vla eval` against `lerobot-eval`, as a user starts them.

Both play the same episodes (tasks, seeds, step limit) of the same checkpoint with the same pictures:
LeRobot's command runs our environment type ``vita_metaworld``, whose cheap pictures it would not have
otherwise (its own ``metaworld`` type draws 480 px, fifty times as expensive in software).

What is fair, and what differs:

- LeRobot's command has two ways to run environments, in one process or in one process each, and a number of
  them. Each of ``--settings`` is tried at both sizes first; the one that plays the larger number of episodes
  fastest, and the one with the least time per further episode, then run in turns with ours. The number of
  episodes is a multiple of each, so that none plays episodes that do not count; a copy that has ended costs
  nothing while the others go on (`env_config`).
- Threads are each command's own choice: LeRobot's takes all cores for the policy, ours half of them.
- LeRobot's command always films the first ten episodes of a task; ours, as it comes, one failure and one
  success. ``vita-vla eval, ten films`` films ten successes as well.
- Seconds are wall time of whole processes. Two sizes tell the start from the playing: the difference of their
  times is that of the episodes in between, without imports, loading, and the start of processes.
- Success rates of both are in the result: the episodes were the same ones.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lerobot_policy_vita_vla.bench import harness

OURS, FILMING = "vita-vla eval", "vita-vla eval, ten films"
SEED = 60_000
"""First seed, outside of recordings and of the quickstart's evaluation (our choice)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which policy and how much of it."""
    parser.add_argument("--policy", type=Path, default=Path("work/quickstart/finetune"), help="checkpoint")
    parser.add_argument("--tasks", help="comma-separated (default: those of the policy's recording)")
    parser.add_argument(
        "--episodes", type=int, nargs=2, default=[8, 24], help="per task, two sizes (default: 8 24)"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="simulators of vita-vla")
    parser.add_argument("--episode-length", type=int, default=200, help="step limit (default: %(default)s)")
    parser.add_argument(
        "--settings",
        nargs="+",
        default=["sync:8", f"async:{os.cpu_count() or 1}", "async:8"],
        help="of lerobot-eval: sync (one process) or async (one each), and how many environments",
    )
    parser.set_defaults(rounds=3)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Try LeRobot's settings, then run the best against ours in turns."""
    few, many = (1, 2) if args.toy else sorted(args.episodes)
    settings = [_setting(text) for text in (["sync:1"] if args.toy else args.settings)]
    for _, copies in settings:
        if few == many or few % copies or many % copies:
            raise ValueError(
                f"--episodes must be two different multiples of every number in --settings, got {few} and "
                f"{many} with {copies}: lerobot-eval would play episodes that do not count"
            )
    commands = _Commands(args)
    calls = {f"lerobot-eval, {way}:{copies}": (way, copies) for way, copies in settings}
    tried = {
        name: {size: harness.timed(commands.lerobot(*call, size))[0] for size in (few, many)}
        for name, call in calls.items()
    }
    whole = min(tried, key=lambda name: tried[name][many])
    playing = min(tried, key=lambda name: tried[name][many] - tried[name][few])
    commands.ours(few)()  # what LeRobot's has had: files in memory, bytecode
    sides: dict[str, Callable[[], object]] = {
        _at(OURS, few): commands.ours(few),
        _at(OURS, many): commands.ours(many),
        _at(FILMING, many): commands.ours(many, videos=10),
    }
    for name in dict.fromkeys((whole, playing)):
        sides |= {_at(name, size): commands.lerobot(*calls[name], size) for size in (few, many)}
    found = harness.side_by_side(sides, rounds=args.rounds, warmup=0)
    return _figures(found, commands, tried, whole, playing, few, many)


class _Commands:
    """The two command lines, each started anew with an empty folder for its results."""

    def __init__(self, args: argparse.Namespace):
        from lerobot_policy_vita_vla.evaluation.predictor import checkpoint_folder, read_recording

        self._args = args
        self._folder = checkpoint_folder(args.policy).absolute()
        recording = read_recording(self._folder)
        if not recording and args.tasks is None:
            raise ValueError(f"{args.policy} does not say which tasks it was trained on: add --tasks")
        tasks = args.tasks.split(",") if args.tasks else sorted(recording["tasks"].values())
        self.tasks = list(dict.fromkeys(tasks))
        self._size = str(recording.get("observation_size", 96))
        self._quality = recording.get("quality", "light")
        self.described = (
            f"at most {args.episode_length} steps, pictures of {self._size} px ({self._quality}), "
            f"{args.workers} simulation processes of vita-vla"
        )
        # Both commands choose their threads themselves, as they do for a user who has set nothing.
        self._environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
        self.success: dict[str, float] = {}

    def ours(self, size: int, videos: int = 1) -> Callable[[], None]:
        args = self._args

        def call() -> None:
            with tempfile.TemporaryDirectory() as folder:
                self._run(
                    *("vita_vla_cli", "eval", f"policy={self._folder}", "--run", folder),
                    *("--tasks", ",".join(self.tasks), "--episodes", str(size), "--seed", str(SEED)),
                    *("--size", self._size, "--quality", self._quality, "--device", "cpu"),
                    *("--episode-length", str(args.episode_length), "--workers", str(args.workers)),
                    *("--videos", str(videos)),
                )
                result = json.loads((Path(folder) / "eval" / "policy" / "result.json").read_text())
            rate = result["overall"]
            self._check(OURS, rate["n_episodes"], size, rate["success_rate"])

        return call

    def lerobot(self, way: str, copies: int, size: int) -> Callable[[], None]:
        def call() -> None:
            with tempfile.TemporaryDirectory() as folder:
                self._run(
                    *("lerobot.scripts.lerobot_eval", f"--policy.path={self._folder}", "--policy.device=cpu"),
                    *("--env.type=vita_metaworld", f"--env.task={','.join(self.tasks)}", f"--seed={SEED}"),
                    *(f"--env.observation_size={self._size}", f"--env.quality={self._quality}"),
                    *(f"--env.episode_length={self._args.episode_length}", f"--eval.n_episodes={size}"),
                    *(f"--eval.batch_size={copies}", f"--eval.use_async_envs={str(way == 'async').lower()}"),
                    *(f"--output_dir={folder}/out",),
                )
                result = json.loads((Path(folder) / "out" / "eval_info.json").read_text())["overall"]
            self._check("lerobot-eval", result["n_episodes"], size, result["pc_success"] / 100)

        return call

    def _run(self, *command: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", *command],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        if done.returncode:
            raise ValueError(f"`{' '.join(command)}` failed:\n{done.stdout[-2000:]}")

    def _check(self, name: str, played: int, size: int, success: float) -> None:
        if played != (wanted := size * len(self.tasks)):
            raise ValueError(f"{name} played {played} episodes instead of {wanted}")
        self.success[_at(name, size)] = round(success, 4)


def _figures(
    found: dict[str, Any],
    commands: _Commands,
    tried: dict[str, dict[int, float]],
    whole: str,
    playing: str,
    few: int,
    many: int,
) -> dict[str, Any]:
    tasks = len(commands.tasks)

    def hourly(name: str) -> list[float]:
        """Episodes per hour of playing alone, round by round."""
        times = (found["sides"][_at(name, size)]["all_s"] for size in (few, many))
        taken = [large - small for small, large in zip(*times, strict=True)]
        if min(taken) <= 0:
            raise ValueError(
                f"{many} episodes of {name} took no longer than {few}: something else runs on this machine, "
                "or --episodes are too close together"
            )
        return [3600 * (many - few) * tasks / seconds for seconds in taken]

    ours, theirs = hourly(OURS), hourly(playing)
    ratios = {
        "eval_vs_lerobot_eval": found["ratios"][f"{_at(whole, many)}/{_at(OURS, many)}"],
        "eval_vs_lerobot_eval_playing": harness.ratio([a / b for a, b in zip(ours, theirs, strict=True)]),
        "eval_vs_lerobot_eval_ten_films": found["ratios"][f"{_at(whole, many)}/{_at(FILMING, many)}"],
    }
    numbers = {}
    for key, value in ratios.items():
        numbers |= harness.with_interval(key, value)
    per_hour = {
        name: 3600 * many * tasks / found["sides"][_at(name, many)]["median_s"] for name in (OURS, whole)
    }
    start = harness.summary(
        [
            large - 3600 * many * tasks / rate
            for large, rate in zip(found["sides"][_at(OURS, many)]["all_s"], ours, strict=True)
        ]
    )["median_s"]
    return {
        "dtype": "float32",
        "setting": f"{tasks} tasks, {few} and {many} episodes of each, {commands.described}; {whole} is "
        f"LeRobot's fastest setting (playing alone: {playing}).",
        "comparisons": {"whole commands": found},
        "headline": {
            "eval_vs_lerobot_eval": f"episodes per hour, whole commands, {many * tasks} episodes: "
            "vita-vla eval / lerobot-eval",
            "eval_vs_lerobot_eval_playing": "the same without start-up: per further episode",
            "eval_vs_lerobot_eval_ten_films": "whole commands, ours filming ten successes per task as well",
        },
        **numbers,
        "episodes_per_hour": {name: round(value, 1) for name, value in per_hour.items()},
        "episodes_per_hour_playing": {
            OURS: round(harness.percentile(ours, 50), 1),
            playing: round(harness.percentile(theirs, 50), 1),
        },
        "success_rates": commands.success,
        "tried_seconds": {name: {str(n): s for n, s in taken.items()} for name, taken in tried.items()},
        "notes": [
            f"`vita-vla eval` plays {harness.percentile(ours, 50):.0f} episodes per hour after a start of "
            f"{start:.1f} s; LeRobot's settings tried, seconds for {many} episodes per task: "
            + ", ".join(f"{name} {taken[many]:.0f}" for name, taken in tried.items())
            + "."
        ],
    }


def _setting(text: str) -> tuple[str, int]:
    way, _, copies = text.partition(":")
    if way not in ("sync", "async") or not copies.isdigit() or int(copies) < 1:
        raise ValueError(f"--settings are like sync:8 or async:2, got {text!r}")
    return way, int(copies)


def _at(name: str, size: int) -> str:
    return f"{name}, {size} per task"
