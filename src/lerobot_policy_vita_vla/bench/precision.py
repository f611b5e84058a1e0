"""What fewer bits do to a policy: to its actions on recorded frames, and to its success rate.

    vita-vla bench precision --policy outputs/finetune --demos work/demos --precision int8 --manifest m.json

Two gates. Actions: on frames of a dataset, how far the policy's chunk is from its chunk in float32, beside
how far bfloat16 is. Success: both variants play every episode of a manifest; the lower end of the paired
difference's 95 % interval must not lie below the margin. ``--write`` sets ``precision`` in the checkpoint's
config.json, and refuses where a gate fails or the second was not tried.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lerobot_policy_vita_vla.contracts import ActionSpec
from lerobot_policy_vita_vla.demos.dataset import VIDEO_BACKEND
from lerobot_policy_vita_vla.evaluation.results import write_json
from lerobot_policy_vita_vla.vla.engine_precision import PRECISIONS

REFERENCE = {"dtype": "float32", "engine": "off", "precision": "full"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this benchmark."""
    parser.add_argument("--policy", type=Path, required=True, help="a student: checkpoint or training run")
    parser.add_argument("--demos", type=Path, required=True, help="folder of a dataset with its cameras")
    parser.add_argument("--precision", choices=PRECISIONS[1:], default="int8", help="(default: %(default)s)")
    parser.add_argument("--frames", type=int, default=128, help="frames compared (default: %(default)s)")
    parser.add_argument(
        "--max-difference",
        type=float,
        default=0.02,
        help="largest mean difference of regressed dimensions, 1 being half a range (default: %(default)s)",
    )
    parser.add_argument(
        "--max-flips",
        type=float,
        default=0.01,
        help="largest share of other gripper decisions (default: %(default)s)",
    )
    parser.add_argument("--manifest", type=Path, help="episodes that both variants play")
    parser.add_argument(
        "--margin",
        type=float,
        default=0.1,
        help="success rate that may be lost, at the interval's lower end (default: %(default)s)",
    )
    parser.add_argument("--write", action="store_true", help="set it in the checkpoint if both gates pass")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default: %(default)s)"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Compare, and write the setting where that was asked for and is allowed."""
    from lerobot_policy_vita_vla.evaluation.predictor import checkpoint_folder

    folder = checkpoint_folder(args.policy)
    saved = check_policy(folder)
    if args.write and args.manifest is None:
        raise ValueError("--write needs --manifest: a setting is not written without its success rate")
    frames = 4 if args.toy else args.frames
    tested = {"precision": args.precision, "engine": "auto"}
    chunks = {
        name: predict(folder, args.demos, settings, frames, args.device)
        for name, settings in {
            "float32": REFERENCE,
            "bfloat16": {"dtype": "bfloat16", "precision": "full"},
            args.precision: tested,
        }.items()
    }
    spec = ActionSpec.from_dict(saved["decoder"]["spec"])
    apart = {name: difference(chunks["float32"], chunk, spec) for name, chunk in chunks.items()}
    found = apart[args.precision]
    gates = {"actions": found["mean"] <= args.max_difference and (found["flips"] or 0.0) <= args.max_flips}
    figures: dict[str, Any] = {
        "dtype": args.precision,
        "setting": f"{args.policy} on {len(chunks['float32'])} frames of {args.demos}.",
        "headline": {
            "precision_difference": f"{args.precision}: mean difference of actions, 1 is half a range",
            "precision_difference_bfloat16": "bfloat16: the same",
        },
        "precision_difference": found["mean"],
        "precision_difference_bfloat16": apart["bfloat16"]["mean"],
        "differences": apart,
        "gates": gates,
    }
    if args.manifest is not None:
        pair = success(folder, args.manifest, tested, args.device)
        gates["success"] = pair["low"] >= -args.margin
        figures |= {"success": pair, "precision_success": pair["difference"]}
        figures |= {"precision_success_low": pair["low"], "precision_success_high": pair["high"]}
        figures["headline"]["precision_success"] = f"success rate, {args.precision} - full"
    figures["notes"] = [f"Gate '{name}': {'passed' if ok else 'failed'}." for name, ok in gates.items()]
    if args.write:
        write_setting(folder, args.precision, gates)
        figures["notes"].append(f"precision={args.precision} written to {folder}/config.json.")
    return figures


def check_policy(folder: Path) -> dict[str, Any]:
    """A checkpoint's settings.

    Raises:
        ValueError: It is no student of ours, or one that the engine does not run.
    """
    saved = json.loads((folder / "config.json").read_text())
    if saved.get("type") != "vita_vla":
        raise ValueError(f"{folder} holds a policy of type {saved.get('type')!r}, expected 'vita_vla'")
    if saved["n_obs_steps"] > 1:
        raise ValueError(f"{folder} reads {saved['n_obs_steps']} steps, which the engine does not run")
    return saved


@contextlib.contextmanager
def variant(folder: Path, settings: dict[str, Any]) -> Iterator[Path]:
    """The checkpoint with other settings: a folder of links beside a config.json of its own."""
    with tempfile.TemporaryDirectory() as made:
        for file in folder.iterdir():
            if file.name != "config.json":
                (Path(made) / file.name).symlink_to(file.resolve())
        saved = json.loads((folder / "config.json").read_text())
        (Path(made) / "config.json").write_text(json.dumps(saved | settings))
        yield Path(made)


@torch.inference_mode()
def predict(folder: Path, demos: Path, settings: dict[str, Any], frames: int, device: str) -> np.ndarray:
    """Action chunks (n, T, A) in environment units for frames spread evenly over a dataset.

    Raises:
        ValueError: The engine was asked for and does not run.
    """
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    from lerobot_policy_vita_vla.vla.modeling_vita_vla import VitaVLAPolicy

    dataset = LeRobotDataset(demos.name, root=demos, video_backend=VIDEO_BACKEND)
    chosen = np.linspace(0, len(dataset) - 1, min(frames, len(dataset))).astype(int)
    with variant(folder, settings) as changed:
        config = PreTrainedConfig.from_pretrained(changed)
        config.device = device
        policy = VitaVLAPolicy.from_pretrained(changed, config=config).to(device).eval()
    chunks = []
    # One by one: a row's numbers may depend on its company, which is not what is measured here.
    for index in chosen:
        frame = dataset[int(index)]
        seen = {key: frame[key][None].to(device) for key in config.input_features}
        chunks.append(policy.predict_action_chunk(seen | {"task": [frame["task"]]}).float().cpu().numpy())
    if settings.get("precision", "full") != "full" and policy.engine.reason is not None:
        raise ValueError(
            f"precision={settings['precision']} is the engine's, and the engine does not run: "
            f"{policy.engine.reason}"
        )
    return np.concatenate(chunks)


def difference(reference: np.ndarray, other: np.ndarray, spec: ActionSpec) -> dict[str, float | None]:
    """How far chunks (n, T, A) are apart.

    Returns:
        ``mean`` and ``p99`` of the absolute difference over regressed dimensions in the decoder's scaled
        units, where 1 is half a dimension's range; ``flips``, the share of gripper decisions that differ,
        None without a binary dimension.
    """
    scaled = [(chunk - np.asarray(spec.offset)) / np.asarray(spec.scale) for chunk in (reference, other)]
    arm, binary = list(spec.arm_dims), list(spec.binary_dims)
    apart = np.abs(scaled[0][..., arm] - scaled[1][..., arm])
    flips = (scaled[0][..., binary] > 0) != (scaled[1][..., binary] > 0)
    return {
        "mean": float(apart.mean()),
        "p99": float(np.quantile(apart, 0.99)),
        "flips": float(flips.mean()) if binary else None,
    }


def success(folder: Path, manifest: Path, tested: dict[str, Any], device: str) -> dict[str, Any]:
    """`paired_comparison` of the tested variant and the full one on a manifest, tested minus full."""
    from lerobot_policy_vita_vla.evaluation.results import outcomes
    from lerobot_policy_vita_vla.evaluation.runner import evaluate
    from lerobot_policy_vita_vla.evaluation.statistics import paired_comparison

    played = {}
    with tempfile.TemporaryDirectory() as out:
        for label, settings in {"tested": tested, "full": {"precision": "full"}}.items():
            with variant(folder, settings) as changed:
                evaluate(changed, manifest, Path(out) / label, label=label, device=device)
            played[label] = outcomes(Path(out) / label)
    return paired_comparison(played["tested"], played["full"])


def write_setting(folder: Path, precision: str, gates: dict[str, bool]) -> None:
    """Set ``precision`` in a checkpoint's config.json, whole or not at all.

    Raises:
        ValueError: A gate failed, or one was not tried.
    """
    failed = [name for name in ("actions", "success") if not gates.get(name, False)]
    if failed:
        raise ValueError(
            f"precision={precision} is not written to {folder}: it did not pass {' and '.join(failed)}; try "
            "--precision of another type, more --frames or a manifest of more episodes"
        )
    path = folder / "config.json"
    write_json(path, json.loads(path.read_text()) | {"precision": precision}, indent=4)
