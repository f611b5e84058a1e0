"""`vita-vla teacher import seer`: a released checkpoint becomes a teacher."""

from __future__ import annotations

import argparse
from pathlib import Path

from vita_vla_cli.verbs import features, finish_verb, new_verb

LAYOUTS = ("calvin", "calvin-large", "libero")
EXAMPLE = "vita-vla teacher import seer Seer-Large-PT-ep5-FT-ep12.pth work/seer_large --mae mae --clip clip"


def add(teacher: argparse.ArgumentParser) -> None:
    """Add the part to the verb `teacher`, which trains where no part is named."""
    parts = teacher.add_subparsers(title="parts, instead of training", metavar="PART", required=False)
    features.add_teacher(parts)
    p = new_verb(parts, "import", "Make a teacher of a checkpoint that others released.", EXAMPLE)
    _explain_stray_words(teacher)
    kinds = p.add_subparsers(title="kinds", metavar="KIND", required=True)
    _add_seer(kinds)


def _add_seer(kinds: argparse._SubParsersAction) -> None:
    p = new_verb(
        kinds,
        "seer",
        "Import one of Seer's released checkpoints (CALVIN, CALVIN Large, LIBERO).",
        EXAMPLE,
        description=(
            "Such a file holds what Seer trained. Its frozen encoders are read from two folders:\n"
            "  hf download facebook/vit-mae-base --local-dir mae\n"
            "  hf download openai/clip-vit-base-patch32 --local-dir clip"
        ),
        examples="vita-vla teacher import seer 33.pth work/seer --layout libero --mae mae --clip clip\n"
        "vita-vla teacher import seer 33.pth work/seer_now --layout libero --n-obs-steps 1",
    )
    p.add_argument("source", type=Path, metavar="SRC", help="the .pth; read as numbers, nothing in it is run")
    p.add_argument("target", type=Path, metavar="DST", help="folder of the new teacher")
    p.add_argument(
        "--layout",
        choices=LAYOUTS,
        help="which checkpoint it is (default: told from its sizes, which cannot tell LIBERO's from those of "
        "the real robot)",
    )
    p.add_argument(
        "--mae", type=Path, help="frozen image encoder, MAE ViT-B/16 (default: the hub's cached copy)"
    )
    p.add_argument(
        "--clip", type=Path, help="frozen text encoder, CLIP ViT-B/32 (default: the hub's cached copy)"
    )
    p.add_argument(
        "--n-obs-steps",
        type=int,
        help="steps of history the teacher reads (default: as trained, 10 on CALVIN and 7 on LIBERO)",
    )
    finish_verb(
        p, _seer, memory_hint="The import needs about four times the file's trained weights.", hub=True
    )


def _seer(args: argparse.Namespace) -> int:
    from lerobot_policy_vita_vla.teacher.seer.official.importing import import_seer

    done = import_seer(
        args.source,
        args.target,
        layout=args.layout,
        mae=args.mae,
        clip=args.clip,
        n_obs_steps=args.n_obs_steps,
    )
    print(
        f"  layout {done['layout']}: {done['keys']} keys, {done['parameters']:,} parameters; none unknown, "
        f"none missing; {done['keys_unused_by_seer']} keys of parts that Seer never runs left out"
    )
    print(f"imported: {args.target}")
    return 0


def _explain_stray_words(parser: argparse.ArgumentParser) -> None:
    """A flag of lerobot-train written with a blank leaves a word behind, which is no part: say what to do."""
    plain = parser.error

    def error(message: str) -> None:
        hint = "; lerobot-train's own arguments are passed as --name=value, for example --log_freq=10"
        plain(message + hint * ("invalid choice" in message))

    parser.error = error  # type: ignore[method-assign]
