"""Finetune samples per second: our student against LeRobot's SmolVLA on the same backbone.

All sides run LeRobot's own training step (``lerobot_train.update_policy``: forward, backward, clipping,
optimiser, schedule left out) behind their own preprocessor, on the same pictures, with one VLM of
SmolVLM2-500M's shape, its first 16 layers, random weights:

    ours                finetune as the paper has it: language model, added parts and decoder learn
    SmolVLA, VLM        the same scope: language model and action expert learn (train_expert_only=false)
    SmolVLA, default    what LeRobot trains by default: the action expert and the state's projection only

Each computes in the type that its authors train in: ours under bfloat16 autocast over float32 weights,
SmolVLA with its VLM's weights in bfloat16 and its expert in float32.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lerobot_policy_vita_vla.bench import flops, harness, policies, random_vlm, students

SMOLVLA_CHUNK = 50
"""SmolVLA's own; ours predicts 3 actions (paper)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this benchmark."""
    parser.add_argument("--batch-size", type=int, default=4, help="samples per step (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.set_defaults(rounds=5)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure all sides in turns."""
    shape, batch_size, chunk = random_vlm.SHAPES["smolvlm2-500m"], args.batch_size, SMOLVLA_CHUNK
    if args.toy:
        shape, batch_size, chunk = shape.toy(), 2, 4
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        vlm = random_vlm.save(shape, Path(folder) / "vlm", "bfloat16")
        ours = policies.finetune_policy(vlm, Path(folder) / "teacher", shape.image, args.device)

        def smolvla(expert_only: bool) -> Any:
            lengths = {"chunk_size": chunk, "n_action_steps": chunk}
            scope = {"load_vlm_weights": True, "train_expert_only": expert_only}
            return policies.smolvla(vlm, shape, args.device, **lengths, **scope).to(args.device)

        theirs = {
            "SmolVLA, VLM": smolvla(False),
            "SmolVLA, default": smolvla(True),
        }
        # Their preprocessors read the tokenizer from the folder.
        batches = {size: _batch(shape.image, batch_size, size) for size in (students.CHUNK, chunk)}
        steps = {"ours": lerobot_step(ours, batches[students.CHUNK], args.device)}
        steps |= {name: lerobot_step(policy, batches[chunk], args.device) for name, policy in theirs.items()}
    found = harness.side_by_side(steps, rounds=args.rounds)
    work = _work(ours, shape, batches[students.CHUNK], steps["ours"])
    figures: dict[str, Any] = {
        "dtype": "bfloat16",
        "setting": (
            f"One VLM of SmolVLM2-500M's shape ({shape.text[2]} layers), random weights, two cameras of "
            f"{shape.image} px, batch {batch_size}, LeRobot's own training step; chunks of {students.CHUNK} "
            f"(ours) and {chunk} actions (SmolVLA)."
        ),
        "comparisons": {"a training step": found},
        "headline": {
            "train_vs_smolvla": "finetune samples/s, ours / SmolVLA with its VLM trained too",
            "train_vs_smolvla_default": "finetune samples/s, ours / SmolVLA by default (expert only)",
            "train_samples_per_s": "finetune samples/s, ours",
            "train_decoder_share": "share of the step's work in mapper and decoder",
            "train_flop_error": "error of the formula for the language model against the counted work",
        },
        "train_samples_per_s": batch_size / found["sides"]["ours"]["median_s"],
        "train_decoder_share": work["decoder"] / work["step"],
        "train_flop_error": work["error"],
        "learned_parameters": {name: _learned(policy) for name, policy in {"ours": ours, **theirs}.items()},
        "work": work,
        "shape": shape.to_dict(),
        "batch_size": batch_size,
    }
    for key, name in (("train_vs_smolvla", "SmolVLA, VLM"), ("train_vs_smolvla_default", "SmolVLA, default")):
        figures |= harness.with_interval(key, found["ratios"][f"{name}/ours"])
    seconds = found["sides"]["ours"]["median_s"]
    return flops.beside_peak(figures, work["step"], seconds, args.device)


def _batch(image: int, batch_size: int, chunk: int) -> dict[str, Any]:
    seen = students.inputs(image, batch_size=batch_size)
    draw = torch.Generator().manual_seed(1)
    return dict(zip(policies.CAMERAS, seen.images, strict=True)) | {
        "observation.state": seen.state,
        "task": seen.tasks,
        "action": torch.rand(batch_size, chunk, students.ACTION, generator=draw) * 2 - 1,
        "action_is_pad": torch.zeros(batch_size, chunk, dtype=torch.bool),
    }


def lerobot_step(policy: Any, batch: dict[str, Any], device: str) -> Callable[[], None]:
    """LeRobot's training step of a policy on a batch, from its preprocessor to its optimiser."""
    from accelerate import Accelerator
    from lerobot.policies.factory import make_pre_post_processors
    from lerobot.scripts.lerobot_train import update_policy
    from lerobot.utils.logging_utils import AverageMeter, MetricsTracker

    config = policy.config
    preprocessor, _ = make_pre_post_processors(config, dataset_stats=policies.stats())
    preset = config.get_optimizer_preset()
    optimizer = preset.build(policy.get_optim_params())
    accelerator = Accelerator(cpu=device == "cpu", step_scheduler_with_optimizer=False)
    meters = {
        name: AverageMeter(name, ":.3f") for name in ("loss", "grad_norm", "lr", "update_s", "gpu_mem_gb")
    }
    tracker = MetricsTracker(len(batch["task"]), 1000, 10, meters, accelerator=accelerator)

    def step() -> None:
        ready = preprocessor(dict(batch))
        update_policy(tracker, policy, ready, optimizer, preset.grad_clip_norm, accelerator)

    return step


def _learned(policy: Any) -> int:
    return sum(p.numel() for p in policy.parameters() if p.requires_grad)


def _work(policy: Any, shape: random_vlm.Shape, batch: dict, step: Callable[[], None]) -> dict[str, Any]:
    """FLOP of our step, and of its language model per sample: counted and by formula."""
    suffix = 1 + students.CHUNK
    images = [batch[camera] for camera in policies.CAMERAS]
    prompt = policy.network.backbone.prompts.encode(images, batch["task"], suffix)
    tokens = prompt.tokens["input_ids"].shape[1]
    formula = flops.naive_step(students.text_shape(shape), tokens - suffix, suffix, learns=True)
    counted = flops.count(step, inside="text_model") / len(batch["task"])
    decoder = sum(flops.count(step, inside=part) for part in ("ActionMapper", "ActionDecoder"))
    return {
        "tokens": tokens,
        "formula": formula,
        "counted": counted,
        "error": abs(counted / formula - 1),
        "decoder": decoder,
        "step": flops.count(step),
    }
