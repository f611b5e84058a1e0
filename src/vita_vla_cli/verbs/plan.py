"""`vita-vla plan`."""

from __future__ import annotations

import argparse
from pathlib import Path

from vita_vla_cli.verbs import finish_verb, new_verb

GPUS = ("rtx3090", "rtx4090", "l40s", "a100", "h100", "h200")
"""Keys of `training.plan.DEVICES`; help must not wait for torch."""
OF_THE_ROBOT = {
    "cameras": (2, "how many there are"),
    "image_px": (256, "side of a camera's picture"),
    "state_dim": (8, "numbers of the state"),
    "action_dim": (7, "numbers of an action"),
    "chunk_size": (3, "actions that the teacher predicts"),
    "width": (1024, "of the teacher's features"),
    "n_obs_steps": (1, "time steps that the student reads"),
}
"""What a checkpoint says itself: default and meaning."""


def add(verbs: argparse._SubParsersAction, name: str) -> None:
    """Declare the verb."""
    p = new_verb(
        verbs,
        name,
        "Memory and time of a training step before it is paid for, and the flags that fit.",
        "vita-vla plan --gpu-memory 24 --vlm vita-1.5 --cameras 2 --stage align",
        description="Memory is recorded on the model's shapes; no weights are loaded, no GPU is needed.\n"
        "Times are measured where the device is here (--gpu cuda, --gpu cpu), else estimated from its\n"
        "data sheet.",
        examples="vita-vla plan --gpu h200 --vlm vita-1.5 --cameras 2 --stage finetune --batch-size 8\n"
        "vita-vla plan --gpu a100 --gpus 8 --vlm vita-1.5 --stage finetune --batch-size 16\n"
        "vita-vla plan --gpu-memory 24 --policy work/first/align --stage finetune --batch-size 32",
    )
    source = p.add_mutually_exclusive_group(required=True)
    source.add_argument("--policy", metavar="RUN", help="a student's run folder or checkpoint")
    source.add_argument(
        "--vlm", help="'mini', a folder, a hub id with --online, or 'vita-1.5': the paper's shapes"
    )
    p.add_argument("--stage", choices=("align", "finetune", "only_finetune", "freeze_vlm"), default="align")
    p.add_argument(
        "--batch-size", type=int, default=8, help="samples per update on one device (default: %(default)s)"
    )
    p.add_argument("--gpu", choices=(*GPUS, "cuda", "cpu"), help="whose speed, and memory unless given")
    p.add_argument("--gpu-memory", type=float, metavar="GIB", help="memory of one device")
    p.add_argument("--gpus", type=int, default=1, help="devices (default: %(default)s)")
    for name, (default, meaning) in OF_THE_ROBOT.items():
        flag = f"--{name.replace('_', '-')}"
        p.add_argument(flag, type=int, help=f"with --vlm: {meaning} (default: {default})")
    finish_verb(p, run, hub=True)


def run(args: argparse.Namespace) -> int:
    """Plan and print; 1 where nothing fits."""
    from lerobot_policy_vita_vla.training import plan, plan_model

    robot = {name: getattr(args, name) for name in OF_THE_ROBOT}
    given = {name: value for name, value in robot.items() if value is not None}
    for name, value in {"batch_size": args.batch_size, "gpus": args.gpus, **given}.items():
        if value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if args.policy and given:
        flag = f"--{next(iter(given)).replace('_', '-')}"
        raise ValueError(f"{flag} goes with --vlm; with --policy the checkpoint says it: leave {flag} out")
    gib = _memory(args, plan.DEVICES)
    if args.policy:
        from vita_vla_cli.training_line import checkpoint_folder

        fix = "vita-vla align --demos DEMOS --teacher TEACHER_RUN"
        task = plan_model.task_of_policy(Path(checkpoint_folder(args.policy, flag="--policy", fix=fix)))
    else:
        defaults = {name: default for name, (default, _) in OF_THE_ROBOT.items()}
        task = plan_model.task_of_vlm(args.vlm, **defaults | given)
    rows = plan.plan(
        task, stage=args.stage, batch_size=args.batch_size, gib=gib, devices=args.gpus, speed=args.gpu
    )
    print(_text(task, rows, gib, args))
    return 0 if any(row.needed_gib <= gib for row in rows) else 1


def _memory(args: argparse.Namespace, devices: dict) -> float:
    if args.gpu_memory is not None:
        if args.gpu_memory <= 0:
            raise ValueError(f"--gpu-memory must be positive, got {args.gpu_memory}")
        return args.gpu_memory
    if args.gpu in devices:
        return devices[args.gpu].gib
    if args.gpu == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ValueError("--gpu cuda: there is no GPU here; name one, such as --gpu h200")
        return torch.cuda.get_device_properties(0).total_memory / 2**30
    if args.gpu == "cpu":
        from lerobot_policy_vita_vla.training.launch import free_memory_gib

        return free_memory_gib()
    raise ValueError("how much memory is there? pass --gpu-memory 24, or a device whose it is: --gpu rtx4090")


def _text(task, rows: list, gib: float, args: argparse.Namespace) -> str:
    step, steps = rows[0].step, max(task.turns, 1)
    history = f", in {steps} turns; at an episode's start there are fewer" if steps > 1 else ""
    lines = [
        f"{task.name}: {step.parameters / 1e9:.2f} x 10^9 parameters; one sample is {task.pictures} "
        f"pictures, {task.prefix_tokens} tokens of prompt and {steps * task.suffix_tokens} of state and "
        f"queries{history}",
        f"stage {args.stage}, {args.batch_size} samples per update on each of {args.gpus} device(s) of "
        f"{gib:.0f} GiB",
        "",
        "fits  needs   weights  grads  states  kept   s/update  samples/s  learns",
    ]
    for row in rows:
        s = row.step
        time = f"{row.seconds:9.3g} {row.samples_per_second:10.3g}" if row.seconds else f"{'-':>9} {'-':>10}"
        sizes = " ".join(f"{n / 2**30:7.2f}" for n in (s.weights, s.gradients, s.states, s.kept))
        fits = "yes" if row.needed_gib <= gib else "no"
        lines.append(f"{fits:4} {row.needed_gib:7.2f} {sizes} {time}  {s.learned / 1e6:.1f} M: {row.reason}")
    fitting = [row for row in rows if row.needed_gib <= gib]
    lines.append("")
    if fitting:
        lines += ["use, the most useful first:"]
        lines += [f"  {' '.join(row.flags())}" for row in fitting]
    else:
        least = min(rows, key=lambda row: row.needed_gib)
        lines.append(
            f"nothing fits {gib:.0f} GiB; the least is {least.needed_gib:.1f} GiB with "
            f"{' '.join(least.flags())}. More devices spread a finetune's weights: --gpus 4"
        )
    lines.append(_times(args.gpu))
    return "\n".join(lines)


def _times(gpu: str | None) -> str:
    if gpu is None:
        return "no times: name the device with --gpu"
    if gpu in ("cuda", "cpu"):
        return "times: the step's operations, each measured here; data loading comes on top"
    return (
        f"times: estimated from the data sheet of {gpu} at 40 % of its arithmetic and 80 % of its bandwidth, "
        "not measured; data loading comes on top"
    )
