"""`vita-vla demos record`, `check`, `declare`, `replay` and `limits`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from vita_vla_cli.recipe import FULL
from vita_vla_cli.verbs import finish_verb, new_verb

TASKS_HELP = "names with or without -v3, comma-separated, or a group: easy, medium, hard, very_hard, mt50"
SUITE_HELP = (
    "object, spatial, goal, 10 or 90, in any case, with or without libero_, or single tasks: "
    "libero_object_3,libero_goal_0"
)
PROTOCOL_HELP = (
    "LIBERO: lerobot, openvla, seer, seer-training, vita-paper "
    "(docs/libero.md; default: lerobot, or as trained)"
)
QUALITIES = ("light", "standard")


def add(verbs: argparse._SubParsersAction, name: str) -> None:
    """Declare the verb and its parts."""
    p = new_verb(
        verbs,
        name,
        "Record demonstrations of scripted experts, or check a dataset and its conventions.",
        "vita-vla demos record --tasks door-open,drawer-open --episodes 60 --root work/first/demos",
        description="The result is a LeRobotDataset; one recorded elsewhere works as well (check it first).",
        examples="vita-vla demos record --tasks easy --episodes 20 --root work/easy/demos\n"
        "vita-vla demos check work/first/demos\n"
        "vita-vla demos replay work/first/demos",
    )
    parts = p.add_subparsers(title="parts", metavar="PART", required=True)
    _add_record(parts)
    _add_check(parts)
    _add_declare(parts)
    _add_replay(parts)
    _add_limits(parts)


def _add_record(parts: argparse._SubParsersAction) -> None:
    p = new_verb(
        parts,
        "record",
        "Let the scripted experts play and keep their successes.",
        "vita-vla demos record --tasks door-open,drawer-open --episodes 60 --root work/first/demos",
        examples="vita-vla demos record --tasks push,reach --episodes 5 --root work/try/demos --workers 1\n"
        "vita-vla demos record --suite libero_object --episodes 30 --root work/libero/demos",
    )
    which = p.add_mutually_exclusive_group(required=True)
    which.add_argument("--tasks", help=TASKS_HELP)
    which.add_argument("--suite", help=f"LIBERO: {SUITE_HELP}")
    p.add_argument("--protocol", help=PROTOCOL_HELP)
    p.add_argument(
        "--episodes", type=int, default=FULL.episodes_per_task, help="per task (default: %(default)s)"
    )
    p.add_argument("--root", type=Path, required=True, help="folder of the new dataset")
    p.add_argument(
        "--size", type=int, help=f"pixels (default: {FULL.observation_size}; LIBERO: the protocol's)"
    )
    p.add_argument(
        "--quality",
        choices=QUALITIES,
        default=FULL.quality,
        help="light hides purely visual arm meshes, ten times faster without a GPU; standard is LeRobot's "
        "own picture (default: %(default)s)",
    )
    p.add_argument(
        "--seed", type=int, help=f"first episode's (default: {FULL.demo_seed}; LIBERO: 1000, drawn starts)"
    )
    p.add_argument(
        "--misses",
        type=float,
        metavar="SHARE",
        help="LIBERO: share of episodes whose first grasp is made to miss, so that policies learn to come "
        "back (default: 0.35)",
    )
    p.add_argument(
        "--asides",
        type=float,
        metavar="SHARE",
        help="LIBERO: share of episodes in which what goes onto a plate is first set down beside its middle, "
        "so that policies learn to take it up again (default: 0.35)",
    )
    p.add_argument("--workers", type=int, default=FULL.workers, help="processes (default: %(default)s)")
    finish_verb(
        p, _record, kept=lambda args: _kept(args.root), memory_hint="Smaller: --workers 1, --size 64."
    )


def _add_check(parts: argparse._SubParsersAction) -> None:
    p = new_verb(
        parts,
        "check",
        "Look for what makes training fail or learn nonsense.",
        "vita-vla demos check work/first/demos",
        description="Exit code 1 if the dataset cannot be trained on.",
    )
    p.add_argument("root", type=Path, metavar="ROOT", help="folder of the dataset")
    finish_verb(p, _check)


def _add_declare(parts: argparse._SubParsersAction) -> None:
    p = new_verb(
        parts,
        "declare",
        "Write down what the numbers of a dataset from the hub mean (meta/vita_vla.json).",
        "vita-vla demos declare work/libero/hub --as lerobot/libero",
        description="For data that this package did not record: picture orientation, rotation "
        "representation, gripper, control rate, settle steps, as the dataset's makers have them. Checkpoints "
        "keep them, and evaluation compares. Refused if the dataset is visibly another one.",
    )
    p.add_argument("root", type=Path, metavar="ROOT", help="folder of the dataset")
    p.add_argument("--as", dest="name", required=True, metavar="NAME", help="lerobot/libero")
    finish_verb(p, _declare)


def _add_replay(parts: argparse._SubParsersAction) -> None:
    p = new_verb(
        parts,
        "replay",
        "Execute recorded actions again and compare what is seen: finds broken conventions.",
        "vita-vla demos replay work/first/demos",
        description="Picture orientation, gripper sign and range, rotation representation, action mode, "
        "control rate and settle steps, each confirmed or broken, with what to set. Exit code 1 if one is "
        "broken.",
        examples="vita-vla demos replay work/first/demos --episodes 5 --json work/first/replay.json",
    )
    p.add_argument("root", type=Path, metavar="ROOT", help="folder of the dataset")
    p.add_argument("--episodes", type=int, default=1, help="of each instruction (default: %(default)s)")
    p.add_argument(
        "--simulator", metavar="MODULE:CLASS", help="your own (docs/conventions.md); default: the recording's"
    )
    p.add_argument("--json", type=Path, metavar="FILE", help="also write the report there")
    finish_verb(p, _replay)


def _add_limits(parts: argparse._SubParsersAction) -> None:
    p = new_verb(
        parts,
        "limits",
        "Range and largest change per step of the demonstrated actions, as limits for a robot.",
        "vita-vla demos limits data/my_robot --out work/robot/limits.json",
        description='For `vita-vla serve --limits`. A JSON file with "low", "high" and "max_change", one '
        "number per dimension of the action: look at it, and make it narrower where the robot needs it.",
    )
    p.add_argument("root", type=Path, metavar="ROOT", help="folder of the dataset")
    p.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON file, not yet there")
    finish_verb(p, _limits)


def _record(args: argparse.Namespace) -> int:
    from lerobot_policy_vita_vla.demos.libero_suite import suite_option
    from lerobot_policy_vita_vla.demos.record import record

    given = {"observation_size": args.size, "seed": args.seed}
    if args.tasks is not None:
        usual = {"observation_size": FULL.observation_size, "seed": FULL.demo_seed}
        given = {name: usual[name] if value is None else value for name, value in given.items()}
    mistakes = {"miss_chance": args.misses, "aside_chance": args.asides}
    info = record(
        args.tasks if args.suite is None else suite_option(args.suite),
        args.episodes,
        args.root,
        quality=args.quality,
        workers=args.workers,
        protocol=args.protocol,
        mistakes={name: share for name, share in mistakes.items() if share is not None},
        **given,
    )
    for task, kept in info.kept.items():
        print(f"  {task}: {kept} episodes, {info.tried[task] - kept} failed attempts dropped")
    print(f"recorded: {args.root}")
    return 0


def _check(args: argparse.Namespace) -> int:
    from lerobot_policy_vita_vla.demos.check import check_dataset

    findings = check_dataset(args.root)
    print(findings)
    return 0 if findings.ok else 1


def _declare(args: argparse.Namespace) -> int:
    from lerobot_policy_vita_vla.demos.declared import declare

    info = declare(args.root, args.name)
    for name, value in info.conventions.items():
        print(f"  {name}: {value}")
    print(f"declared: {args.root} is {args.name}, {len(info.tasks)} instructions, suite {info.suite}")
    return 0


def _replay(args: argparse.Namespace) -> int:
    from lerobot_policy_vita_vla.demos.replay import replay
    from lerobot_policy_vita_vla.files import check_writable

    if args.json is not None:
        if args.json.is_dir():
            raise ValueError(f"--json {args.json} is a folder; name a file, {args.json / 'replay.json'}")
        check_writable(args.json, "--json")
    if args.simulator:
        sys.path.insert(0, str(Path.cwd()))  # where a module of the user's own lies
    report = replay(
        args.root,
        episodes=args.episodes,
        simulator=args.simulator,
        # Apart from the report, which may be read by a program.
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(report)
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report.to_dict(), indent=2) + "\n")
    return 0 if report.ok else 1


def _kept(root: Path) -> str:
    scratch = root.with_name(root.name + ".recording")
    return f"finished attempts in {scratch}; the same command goes on" if scratch.exists() else "nothing"


def _limits(args: argparse.Namespace) -> int:
    from lerobot_policy_vita_vla.serving.limits import limits_of_dataset

    if args.out.exists():
        raise FileExistsError(f"{args.out} exists already; it may hold your own limits: choose another file")
    record = limits_of_dataset(args.root)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=2) + "\n")
    dims = len(record["low"])
    for name, low, high, change in zip(
        record.get("names") or [f"action_{i}" for i in range(dims)],
        record["low"],
        record["high"],
        record["max_change"],
        strict=True,
    ):
        print(f"  {name}: {low:.4g} to {high:.4g}, at most {change:.4g} per step")
    print(f"limits: {args.out}")
    return 0
