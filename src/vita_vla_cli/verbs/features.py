"""`vita-vla teacher features` and `vita-vla vlm features`: compute once what training would compute often."""

from __future__ import annotations

import argparse
from pathlib import Path

from vita_vla_cli.environment import fast_dtype
from vita_vla_cli.verbs import finish_verb, new_verb

TEACHER_EXAMPLE = (
    "vita-vla teacher features --demos work/first/demos --teacher work/first/teacher --out work/first/taught"
)
VLM_EXAMPLE = "vita-vla vlm features --demos work/first/demos --out work/first/vision"


def add_teacher(parts: argparse._SubParsersAction) -> None:
    """Declare `teacher features`."""
    p = new_verb(
        parts,
        "features",
        "Copy demonstrations with the teacher's action features, so that align never runs it.",
        TEACHER_EXAMPLE,
        description="A column of the copy, which training finds by itself. Used only with the same teacher, "
        "the same\ndemonstrations and without random image shifts; anything else is refused.",
        examples="vita-vla align --demos work/first/taught --teacher work/first/teacher",
    )
    p.add_argument("--demos", type=Path, required=True, metavar="ROOT", help="folder of the LeRobotDataset")
    p.add_argument("--teacher", required=True, metavar="RUN", help="its run folder or a checkpoint folder")
    p.add_argument("--out", type=Path, required=True, help="folder of the copy; must not exist")
    _common(p)
    finish_verb(p, _teacher, memory_hint="Smaller: --batch-size with half the frames.")


def add_vlm(parts: argparse._SubParsersAction) -> None:
    """Declare `vlm features`."""
    p = new_verb(
        parts,
        "features",
        "Encode the pictures of demonstrations once; the image encoder is frozen in all stages.",
        VLM_EXAMPLE,
        description="Pays with a small VLM, whose image encoder is most of a training step. Says how much "
        "disk it takes\nbefore it takes it. Used only with the same pictures, encoder and precision, and "
        "without random\nimage shifts; anything else is refused.",
        examples="vita-vla align --demos work/first/demos --teacher work/first/teacher "
        "--policy.vision_features=work/first/vision\n"
        "vita-vla finetune --demos work/first/demos --from work/first/align "
        "--policy.vision_features=work/first/vision",
    )
    p.add_argument("--demos", type=Path, required=True, metavar="ROOT", help="folder of the LeRobotDataset")
    p.add_argument("--vlm", default="mini", help="as of `vita-vla align` (default: %(default)s)")
    p.add_argument("--out", type=Path, required=True, help="folder of the features; must not exist")
    p.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="precision of the training that reads them (default: the faster one on the device)",
    )
    p.add_argument(
        "--disk-share",
        type=float,
        default=0.25,
        help="largest part of the free disk to take (default: %(default)s)",
    )
    _common(p)
    finish_verb(p, _vlm, hub=True, memory_hint="Smaller: --batch-size with half the frames.")


def _common(p: argparse.ArgumentParser) -> None:
    p.add_argument("--batch-size", type=int, default=64, help="frames at once (default: %(default)s)")
    p.add_argument("--device", help="cpu, cuda, mps (default: the best one there is, as in training)")


def _teacher(args: argparse.Namespace) -> int:
    from vita_vla_cli.training_line import dataset_folder

    dataset_folder(args.demos)
    from lerobot_policy_vita_vla.training.launch import free_memory_gib
    from lerobot_policy_vita_vla.training.teacher_features import add_teacher_features

    made = add_teacher_features(
        args.demos,
        args.teacher,
        args.out,
        device=_device(args),
        batch_size=args.batch_size,
        limit_gib=free_memory_gib() / 2,
    )
    print(f"demonstrations with the teacher's features: {made}")
    return 0


def _vlm(args: argparse.Namespace) -> int:
    from vita_vla_cli.training_line import dataset_folder

    dataset_folder(args.demos)
    from lerobot_policy_vita_vla.training.launch import free_memory_gib
    from lerobot_policy_vita_vla.training.vision_features import store_vision

    made = store_vision(
        args.demos,
        args.out,
        vlm=args.vlm,
        dtype=args.dtype or fast_dtype(args.device),
        device=_device(args),
        batch_size=args.batch_size,
        disk_share=args.disk_share,
        limit_gib=free_memory_gib() / 2,
    )
    print(f"vision features: {made}; use them with --policy.vision_features={made}")
    return 0


def _device(args: argparse.Namespace) -> str:
    from lerobot.utils.device_utils import auto_select_torch_device

    return args.device or auto_select_torch_device().type
