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
        examples="vita-vla vlm pretrain --out work/mini_vlm --steps 200 --scenes 500 --seed 1",
    )
    pretrain.add_argument("--out", type=Path, required=True, help="folder of the model")
    pretrain.add_argument("--steps", type=int, help="updates (default: the recipe's)")
    pretrain.add_argument("--scenes", type=int, help="rendered scenes (default: the recipe's)")
    pretrain.add_argument("--seed", type=int, default=0, help="of scenes and weights (default: %(default)s)")
    finish_verb(pretrain, _pretrain, memory_hint="Smaller: --scenes with half the number.")


def _pretrain(args: argparse.Namespace) -> int:
    from lerobot_policy_vita_vla.vlm.pretrain import pretrain

    given = {"steps": args.steps, "scenes": args.scenes}
    pretrain(args.out, seed=args.seed, **{name: value for name, value in given.items() if value is not None})
    print(f"model: {args.out}")
    return 0
