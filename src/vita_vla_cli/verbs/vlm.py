"""`vita-vla vlm pretrain`."""

from __future__ import annotations

import argparse
from pathlib import Path

from vita_vla_cli.verbs import finish_verb, new_verb


def add(verbs: argparse._SubParsersAction, name: str) -> None:
    """Declare the verb."""
    p = new_verb(
        verbs,
        name,
        "Make the mini VLM that ships with the package again.",
        "vita-vla vlm pretrain --out work/mini_vlm",
        examples="vita-vla align --demos work/first/demos --teacher work/first/teacher --vlm work/mini_vlm",
    )
    parts = p.add_subparsers(title="parts", metavar="PART", required=True)
    pretrain = new_verb(
        parts,
        "pretrain",
        "Train it on captions of rendered scenes; no action is involved.",
        "vita-vla vlm pretrain --out work/mini_vlm",
        examples="vita-vla vlm pretrain --out work/mini_vlm --steps 200 --resets 20 --tasks easy --seed 1",
    )
    pretrain.add_argument("--out", type=Path, required=True, help="folder of the model")
    pretrain.add_argument("--tasks", default="mt50", help="scenes to render (default: mt50, all tasks)")
    pretrain.add_argument("--steps", type=int, help="updates (default: the recipe's)")
    pretrain.add_argument(
        "--resets", type=int, default=120, help="random scenes per task (default: %(default)s)"
    )
    pretrain.add_argument("--frames", type=int, default=4, help="pictures per scene (default: %(default)s)")
    pretrain.add_argument("--seed", type=int, default=0, help="of scenes and weights (default: %(default)s)")
    pretrain.add_argument("--workers", type=int, default=1, help="rendering processes (default: %(default)s)")
    pretrain.add_argument("--threads", type=int, default=2, help="of torch (default: %(default)s)")
    pretrain.add_argument(
        "--scenes-file", type=Path, help="keep the rendered scenes here, and read them if there"
    )
    finish_verb(
        pretrain,
        _pretrain,
        kept=lambda args: (
            str(args.scenes_file) if args.scenes_file else "nothing; --scenes-file keeps scenes"
        ),
        memory_hint="Smaller: --resets with half the number, --workers 1.",
    )


def _pretrain(args: argparse.Namespace) -> int:
    from lerobot_policy_vita_vla.vlm.pretrain import pretrain

    names = ("tasks", "seed", "steps", "resets", "frames", "workers", "threads", "scenes_file")
    pretrain(args.out, **{name: getattr(args, name) for name in names})
    print(f"model: {args.out}")
    return 0
