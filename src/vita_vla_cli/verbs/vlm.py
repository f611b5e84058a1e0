"""`vita-vla vlm pretrain` and `vita-vla vlm convert`; `vita-vla vlm features` is declared in features.py."""

from __future__ import annotations

import argparse
from pathlib import Path

from vita_vla_cli.verbs import features, finish_verb, new_verb


def add(verbs: argparse._SubParsersAction, name: str) -> None:
    """Declare the verb."""
    p = new_verb(
        verbs,
        name,
        "Make the mini VLM again, convert VITA-1.5 for transformers, or encode pictures once.",
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
    _add_convert(parts)
    features.add_vlm(parts)


def _add_convert(parts: argparse._SubParsersAction) -> None:
    convert = new_verb(
        parts,
        "convert",
        "Make a folder that transformers loads out of a downloaded VITA-1.5.",
        "vita-vla vlm convert vita-1.5 downloads/VITA-1.5 work/vita15",
        description="Reads the shards one by one and leaves out the audio encoder. Every tensor's name "
        "and shape is\nchecked before anything is written.",
        examples="vita-vla vlm convert vita-1.5 downloads/VITA-1.5 work/vita15 --vision downloads/InternViT\n"
        "vita-vla vlm convert vita-1.5 downloads/VITA-1.5 work/vita15 --dtype bfloat16\n"
        "vita-vla align --demos work/first/demos --teacher work/first/teacher --vlm work/vita15",
    )
    convert.add_argument("family", choices=["vita-1.5"], help="what SRC holds")
    convert.add_argument("source", metavar="SRC", type=Path, help="folder of the downloaded checkpoint")
    convert.add_argument("destination", metavar="DST", type=Path, help="folder to make; must not exist")
    convert.add_argument(
        "--vision",
        metavar="FOLDER",
        type=Path,
        help="InternViT-300M-448px, whose weights are taken where the checkpoint holds none",
    )
    convert.add_argument(
        "--image-size",
        metavar="PX",
        type=int,
        default=200,
        help="side of an image: 200 gives 49 tokens (the paper), 448 gives 256 (default: %(default)s)",
    )
    convert.add_argument(
        "--dtype",
        choices=["bfloat16", "float16", "float32"],
        help="type of the weights (default: the checkpoint's, if all agree)",
    )
    finish_verb(convert, _convert)


def _convert(args: argparse.Namespace) -> int:
    from lerobot_policy_vita_vla.vlm.vita15_convert import convert

    options = {name: getattr(args, name) for name in ("vision", "image_size", "dtype")}
    convert(args.source, args.destination, **options)
    print(f"model: {args.destination}")
    return 0


def _pretrain(args: argparse.Namespace) -> int:
    from lerobot_policy_vita_vla.vlm.pretrain import pretrain

    names = ("tasks", "seed", "steps", "resets", "frames", "workers", "threads", "scenes_file")
    pretrain(args.out, **{name: getattr(args, name) for name in names})
    print(f"model: {args.out}")
    return 0
