"""`vita-vla ablate`."""

from __future__ import annotations

import argparse
from pathlib import Path

from vita_vla_cli.recipe import FULL
from vita_vla_cli.verbs import finish_verb, new_verb


def add(verbs: argparse._SubParsersAction, name: str) -> None:
    """Declare the verb."""
    p = new_verb(
        verbs,
        name,
        "Train variants of the recipe at equal budgets, into one table.",
        "vita-vla ablate work/first --variants two_stage,only_finetune,freeze_vlm",
        description="Uses RUN/demos, RUN/teacher and RUN/manifest.json of a run that `vita-vla quickstart`\n"
        "or the single verbs made. Finished variants are kept: the same command continues.",
        examples="""\
vita-vla ablate work/first --finetune-steps 100,300,900 --seeds 0,1,2
vita-vla ablate work/first --list""",
    )
    p.add_argument("folder", type=Path, metavar="RUN", help="run folder")
    p.add_argument("--list", action="store_true", help="print the variants, with what each shows, and stop")
    p.add_argument("--variants", help="comma-separated (default: all)")
    p.add_argument("--seeds", default="0", help="training seeds, comma-separated (default: 0)")
    p.add_argument(
        "--align-steps", type=int, default=FULL.align_steps, help="updates of stage 1 (default: %(default)s)"
    )
    p.add_argument(
        "--finetune-steps",
        default=str(FULL.finetune_steps),
        help="updates of stage 2; several, comma-separated, make a curve (default: %(default)s)",
    )
    p.add_argument("--batch-size", type=int, default=FULL.finetune_batch, help="(default: %(default)s)")
    p.add_argument("--vlm", default="mini", help="'mini', or a folder (default: mini)")
    p.add_argument("--out", type=Path, help="folder of the results (default: RUN/ablation)")
    p.add_argument(
        "--workers", type=int, default=FULL.workers, help="simulation processes (default: %(default)s)"
    )
    finish_verb(
        p,
        run,
        kept=lambda args: "finished variants and episodes; the same command continues",
        memory_hint="Smaller: --batch-size with half the samples, --workers 1.",
        takes_lerobot_flags=True,
        hub=True,
    )


def run(args: argparse.Namespace) -> int:
    """Run or list the variants."""
    from lerobot_policy_vita_vla.ablate import VARIANTS, run_ablation

    if args.list:
        width = max(map(len, VARIANTS))
        print("\n".join(f"{name:<{width}}  {variant.why}" for name, variant in VARIANTS.items()))
        return 0
    from vita_vla_cli import training_line

    training_line.check_extra(args.extra)
    training_line.dataset_folder(args.folder / "demos")
    fix = f"vita-vla teacher --demos {args.folder / 'demos'}"
    teacher = training_line.checkpoint_folder(str(args.folder / "teacher"), flag="RUN", fix=fix)
    out = args.out or args.folder / "ablation"
    rows = run_ablation(
        out,
        demos=args.folder / "demos",
        teacher=Path(teacher),
        manifest=args.folder / "manifest.json",
        vlm=args.vlm,
        variants=args.variants.split(",") if args.variants else tuple(VARIANTS),
        align_steps=args.align_steps,
        finetune_steps=_numbers("--finetune-steps", args.finetune_steps),
        seeds=_numbers("--seeds", args.seeds),
        batch_size=args.batch_size,
        settings=args.extra,
        workers=args.workers,
    )
    width = max(len(row["label"]) for row in rows)
    for row in rows:
        print(
            f"{row['label']:<{width}}  {row['success_rate']:.2f} ({row['low']:.2f} - {row['high']:.2f})  "
            f"n {row['n_episodes']}  {row['train_seconds']:.0f} s of training"
        )
    print(f"table: {out / 'ablations.json'}")
    return 0


def _numbers(flag: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{flag} takes whole numbers, comma-separated, got {text!r}") from None
