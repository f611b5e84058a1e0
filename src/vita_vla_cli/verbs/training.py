"""`vita-vla teacher`, `align`, `finetune`: compose a `lerobot-train` line, print it, run it."""

from __future__ import annotations

import argparse
import math
import shlex
import shutil
from pathlib import Path

from vita_vla_cli import training_line
from vita_vla_cli.environment import fast_dtype
from vita_vla_cli.recipe import FULL
from vita_vla_cli.verbs import finish_verb, new_verb, teacher_import

SUMMARIES = {
    "teacher": "Train the small action model that the VLM will learn from.",
    "align": "Match the VLM's action features to the teacher's; the VLM stays frozen.",
    "finetune": "Train the language model on the demonstrations, through the teacher's decoder.",
}
EXAMPLES = {
    "teacher": "vita-vla teacher --demos work/first/demos",
    "align": "vita-vla align --demos work/first/demos --teacher work/first/teacher",
    "finetune": "vita-vla finetune --demos work/first/demos --from work/first/align",
}
MORE_EXAMPLES = {
    "teacher": """\
vita-vla teacher --demos work/first/demos --preset base --steps 20000 --device cuda
vita-vla teacher --demos work/first/demos --policy.type=act --out work/first/act
vita-vla teacher --demos work/first/demos --resume --steps 2000
vita-vla teacher import seer 33.pth work/seer --layout libero --mae mae --clip clip""",
    "align": """\
vita-vla align --demos work/first/demos --teacher work/first/teacher --steps 1000 --policy.align_loss=norm
vita-vla align --demos work/first/demos --teacher work/first/teacher --vlm org/model --online
vita-vla align --demos work/first/demos --teacher work/first/teacher --dry-run""",
    "finetune": """\
vita-vla finetune --demos work/first/demos --teacher work/first/teacher --only-finetune
vita-vla finetune --demos work/first/demos --from work/first/align --stage freeze_vlm
vita-vla finetune --demos work/first/demos --from work/first/align --policy.lora_rank=16 --batch-size 16""",
}
DESCRIPTION = """\
Training runs inside lerobot-train. The line that does the same without this tool is printed first and kept
in OUT/command.txt; with several GPUs start that line with `accelerate launch` or `torchrun`. Any argument of
lerobot-train may be added as --name=value (--policy.ema_decay=0.99, --log_freq=10) and wins over ours."""
ALIGN_WEIGHT = "--policy.align_weight"
MEMORY = (
    "Smaller: --batch-size with half the samples; --dtype bfloat16; --policy.gradient_checkpointing=true and "
    "--policy.lora_rank=16 (align, finetune); --preset tiny (teacher)."
)


def add(verbs: argparse._SubParsersAction, name: str) -> None:
    """Declare one training verb."""
    p = new_verb(
        verbs, name, SUMMARIES[name], EXAMPLES[name], description=DESCRIPTION, examples=MORE_EXAMPLES[name]
    )
    steps, batch, lr, _ = FULL.stage(name)
    # `teacher import` needs none, so that the flag cannot be argparse's to require.
    p.add_argument(
        "--demos", type=Path, required=name != "teacher", metavar="ROOT", help="folder of the LeRobotDataset"
    )
    if name == "teacher":
        p.add_argument(
            "--preset", default="tiny", choices=("tiny", "base", "large"), help="size (default: tiny)"
        )
        small = "with --preset tiny"
    else:
        p.add_argument(
            "--teacher",
            metavar="RUN",
            required=name == "align",
            help="trained teacher: its run folder or a checkpoint folder"
            + ("; needed without --from" if name == "finetune" else ""),
        )
        p.add_argument(
            "--vlm",
            help="'mini' (ships with the package), a folder, or a hub id with --online (default: mini)"
            + ("; only without --from, which has its own" if name == "finetune" else ""),
        )
        small = "with the mini VLM"
    if name == "finetune":
        p.add_argument("--from", dest="start", metavar="ALIGN_RUN", help="run folder of the alignment")
        p.add_argument("--only-finetune", action="store_true", help="short for --stage only_finetune")
        p.add_argument(
            "--stage",
            choices=training_line.STAGES,
            default="finetune",
            help="finetune continues --from; only_finetune skips alignment; freeze_vlm: added parts only",
        )
    p.add_argument("--out", type=Path, help=f"run folder (default: {_default_out_text(name)} beside ROOT)")
    p.add_argument("--steps", type=_positive, default=steps, help=f"updates (default: {steps})")
    p.add_argument(
        "--batch-size", type=_positive, default=batch, help=f"samples per update (default: {batch})"
    )
    p.add_argument(
        "--lr",
        type=_positive_number,
        help=f"peak learning rate (default: {lr:g} {small}, else the policy's own)",
    )
    p.add_argument(
        "--seed", type=int, default=FULL.seed, help=f"of weights and data order (default: {FULL.seed})"
    )
    p.add_argument("--device", help="cpu, cuda, mps (default: the best one there is)")
    p.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help=f"precision (default: the faster one on the device {small}, else the policy's own)",
    )
    p.add_argument(
        "--no-cache", action="store_true", help="read frames from disk instead of keeping them in memory"
    )
    p.add_argument("--resume", action="store_true", help="continue OUT's last checkpoint up to --steps")
    p.add_argument("--overwrite", action="store_true", help="remove OUT first if it holds a training run")
    p.add_argument("--dry-run", action="store_true", help="print the lerobot-train line and stop")
    finish_verb(
        p, lambda args: run(name, args), kept=_kept, memory_hint=MEMORY, takes_lerobot_flags=True, hub=True
    )
    if name == "teacher":
        teacher_import.add(p)


def run(name: str, args: argparse.Namespace) -> int:
    """Compose, print, train."""
    if args.demos is None:
        args.parser.error("the following arguments are required: --demos")
    args.out = args.out or args.demos.parent / _default_out(name, args)
    argv = _resume(args) if args.resume else _fresh(name, args)
    print("equivalent: " + shlex.join(["lerobot-train", *argv]))
    if args.dry_run:
        return 0
    if args.resume:
        if (done := _steps_done(args.out)) >= args.steps:
            return _nothing_to_do(args, done)
    else:
        _make_room(args.out, args.overwrite)
    from lerobot_policy_vita_vla.files import check_writable
    from lerobot_policy_vita_vla.training.launch import run_training

    # Where nothing can be written is found out now, not by the first checkpoint.
    check_writable(args.out / "checkpoints" if args.resume else args.out, "--out")
    run_training(argv, cache=not args.no_cache)
    print(f"trained: {args.out}/checkpoints/last/pretrained_model")
    return 0


def _fresh(name: str, args: argparse.Namespace) -> list[str]:
    training_line.check_extra(args.extra)
    if not args.dry_run:
        training_line.dataset_folder(args.demos)
    stage, start, teacher, vlm, preset = name, None, None, None, None
    if name == "teacher":
        preset, small = args.preset, args.preset == "tiny"
    else:
        if name == "finetune":
            stage, start = _finetune_stage(args)
        if args.teacher is not None:
            teacher = training_line.checkpoint_folder(
                args.teacher,
                flag="--teacher",
                fix=f"vita-vla teacher --demos {args.demos}",
                online=args.online,
                must_exist=not args.dry_run,
            )
        vlm = args.vlm or "mini"
        small = (_vlm_of(start) or ("mini" if args.dry_run else "")) == "mini" if start else vlm == "mini"
    _, _, lr, flags = FULL.stage(name)
    given = {flag.split("=", 1)[0] for flag in args.extra}
    if small and start is not None and ALIGN_WEIGHT not in given:
        _require_teacher_of(start, teacher)
        flags = (*flags, f"{ALIGN_WEIGHT}={FULL.kept_alignment:g}")
    return training_line.compose(
        stage,
        demos=args.demos,
        out=args.out,
        steps=args.steps,
        batch_size=args.batch_size,
        seed=args.seed,
        preset=preset,
        vlm=vlm,
        teacher=teacher,
        start=start,
        lr=args.lr if args.lr is not None or not small else lr,
        device=args.device,
        dtype=args.dtype or (fast_dtype(args.device) if small else None),
        extra=[*(f for f in flags if small and f.split("=", 1)[0] not in given), *args.extra],
    )


def _finetune_stage(args: argparse.Namespace) -> tuple[str, str | None]:
    stage = "only_finetune" if args.only_finetune else args.stage
    if stage == "only_finetune":
        if args.start is not None:
            raise ValueError(
                "--only-finetune starts from the VLM itself: leave --from out, or leave --only-finetune out"
            )
    elif args.start is None and stage == "finetune":
        raise ValueError(
            "finetune continues an alignment: add --from ALIGN_RUN, made by\n"
            f"  vita-vla align --demos {args.demos} --teacher TEACHER_RUN\n"
            "or skip the alignment with --only-finetune --teacher TEACHER_RUN"
        )
    if args.start is None:
        if args.teacher is None:
            raise ValueError(
                f"--stage {stage} without --from needs --teacher RUN: its decoder produces the actions"
            )
        return stage, None
    fix = f"vita-vla align --demos {args.demos} --teacher TEACHER_RUN"
    start = training_line.checkpoint_folder(
        args.start, flag="--from", fix=fix, online=args.online, must_exist=not args.dry_run
    )
    kind = _saved_config(start).get("type", "vita_vla")
    if kind != "vita_vla":
        raise ValueError(
            f"--from {args.start} holds a policy of type {kind!r}, not an aligned student. Make one:\n"
            f"  {fix}\nor skip the alignment with --only-finetune --teacher {args.start}"
        )
    its_vlm = _vlm_of(start)
    if args.vlm is not None and its_vlm is not None and args.vlm != its_vlm:
        raise ValueError(
            f"--vlm {args.vlm}: --from {args.start} holds VLM {its_vlm!r} already; leave --vlm out"
        )
    return stage, start


def _require_teacher_of(start: str, teacher: str | None) -> None:
    """Refuse to keep the alignment term where the teacher is no longer where stage 1 found it."""
    known = _saved_config(start).get("teacher_path")
    on_the_hub = known is not None and len(Path(known).parts) == 2
    if teacher is None and known and not on_the_hub and not Path(known).exists():
        raise ValueError(
            f"--from {start}: its teacher {known} is gone, and stage 2 keeps following it. Name where it is "
            f"now with --teacher RUN, or do without it: {ALIGN_WEIGHT}=0"
        )


def _vlm_of(checkpoint: str) -> str | None:
    return _saved_config(checkpoint).get("vlm")


def _saved_config(checkpoint: str) -> dict:
    """A local checkpoint's config.json; empty for one of the hub, or one that is still to be made."""
    config = Path(checkpoint) / "config.json"
    return training_line.read_json(config) if config.is_file() else {}


def _resume(args: argparse.Namespace) -> list[str]:
    training_line.check_extra(args.extra)
    config = args.out / training_line.TRAIN_CONFIG
    if not config.is_file():
        raise ValueError(f"--resume: {config} does not exist; start the run without --resume")
    moved = training_line.dataset_since_moved(config, args.demos, args.extra)
    return [f"--config_path={config}", "--resume=true", f"--steps={args.steps}", *moved, *args.extra]


def _steps_done(out: Path) -> int:
    """Updates behind the last checkpoint, 0 where it does not say."""
    state = (out / training_line.TRAIN_CONFIG).parents[1] / "training_state" / "training_step.json"
    return training_line.read_json(state).get("step", 0) if state.is_file() else 0


def _nothing_to_do(args: argparse.Namespace, done: int) -> int:
    fix = f"--steps counts from the run's start; to go on, pass more than {done}, such as --steps {2 * done}"
    if done > args.steps:
        raise ValueError(f"--resume --steps {args.steps}: {args.out} is at step {done} already; {fix}")
    print(f"nothing to do: {args.out} is at step {done} already; {fix}")
    return 0


def _make_room(out: Path, overwrite: bool) -> None:
    """LeRobot refuses an existing folder; remove one only where asked, and only if it is a training run."""
    if not out.exists():
        return
    if out.is_dir() and not any(out.iterdir()):
        out.rmdir()
        return
    finished = (out / "checkpoints" / "last").exists()
    is_run = finished or (out / "checkpoints").is_dir() or (out / "train_log.jsonl").is_file()
    if not is_run:
        raise ValueError(f"--out {out} exists and is not a training run; choose another --out")
    if not overwrite:
        resume = "--resume (continues it), " if finished else ""
        raise ValueError(
            f"--out {out} exists already: add {resume}--overwrite (removes it), or choose another --out"
        )
    shutil.rmtree(out)


def _default_out(name: str, args: argparse.Namespace) -> str:
    if name != "finetune":
        return name
    return "only_finetune" if args.only_finetune else args.stage


def _default_out_text(name: str) -> str:
    return "the stage's name" if name == "finetune" else name


def _kept(args: argparse.Namespace) -> str:
    if args.out is not None and (args.out / training_line.TRAIN_CONFIG).is_file():
        return (
            f"the last checkpoint, {args.out}/checkpoints/last; the same command with --resume continues it"
        )
    return f"no checkpoint yet (runs below {training_line.SAVE_ONLY_AT_END_BELOW} steps save at the end)"


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {value}")
    return value


def _positive_number(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text}")
    return value
