"""What freezing the prefix saves in stage 1, and what precomputed teacher features save on top.

An align step of the student on one VLM both ways: one pass over everything (naive), and the prefix without
gradient followed by the suffix on its keys and values (cached). Then the cached step with a teacher (Seer,
preset tiny) that computes its features in every step, and with features that were computed before.

The images are encoded once in either way, without gradient, which dilutes the first ratio: a third of the
forward here, a sixth in VITA-1.5-7B with two cameras.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lerobot_policy_vita_vla.bench import flops, harness, policies, random_vlm, students
from lerobot_policy_vita_vla.vla.align import align_loss


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this benchmark."""
    parser.add_argument(
        "--shape", choices=sorted(random_vlm.SHAPES), default="internvl-8x512", help="the VLM"
    )
    parser.add_argument("--batch-size", type=int, default=16, help="samples (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="bfloat16 runs under autocast (default: %(default)s)",
    )
    parser.add_argument(
        "--attention",
        choices=("auto", "eager", "sdpa"),
        default="auto",
        help="of the VLM in all sides; auto is the student's default, on a CPU eager in the language model",
    )
    parser.set_defaults(rounds=5)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, count and compare gradients."""
    shape, batch_size = random_vlm.SHAPES[args.shape], args.batch_size
    if args.toy:
        shape, batch_size = shape.toy(), 2
    torch.manual_seed(0)
    network = students.network(shape, "align", args.device, args.attention)
    seen = students.inputs(shape.image, batch_size=batch_size).to(args.device)
    teacher = _teacher(shape.image, args.device)
    learns = [p for p in network.parameters() if p.requires_grad]

    def step(cached: bool, targets: Callable[[], Tensor], pictures: Any = seen.images) -> list[Tensor]:
        network.backbone.cached = cached
        with torch.autocast(args.device, torch.bfloat16, enabled=args.dtype == "bfloat16"):
            features = network.features(pictures, seen.tasks, seen.state)
        return torch.autograd.grad(align_loss(features, targets(), kind="mse")[0], learns)

    def stored() -> Tensor:
        return seen.target

    ways = {"naive": lambda: step(False, stored), "cached": lambda: step(True, stored)}
    pictures = students.stored_pictures(network, seen, args.dtype)
    without_encoder = {"cached, vision features stored": lambda: step(True, stored, pictures)}
    saved, gradients = {}, {}
    for way, call in ways.items():
        count = students.SavedBytes(network)
        with count.hooks:
            gradients[way] = call()
        saved[way] = count.total
    steps = harness.side_by_side(ways | without_encoder, rounds=args.rounds)
    with_teacher = harness.side_by_side(
        {
            "teacher in every step": lambda: step(True, lambda: teacher(seen)),
            "precomputed": lambda: step(True, stored),
        },
        rounds=args.rounds,
    )
    speedup = steps["ratios"]["naive/cached"]
    encoded = steps["ratios"]["naive/cached, vision features stored"]
    teaching = with_teacher["ratios"]["teacher in every step/precomputed"]
    pairs = zip(gradients["naive"], gradients["cached"], strict=True)
    network.backbone.vlm.set_attn_implementation("eager")  # the CPU's fused one is not counted
    work = _work(network, shape, seen, ways)
    figures = {
        "dtype": args.dtype,
        "setting": (
            f"{args.shape} with random weights, two images of {shape.image_tokens} tokens, "
            f"{work['prefix']} tokens of prompt in all, batch {batch_size}, attention {args.attention}."
        ),
        "comparisons": {"an align step": steps, "an align step with a teacher": with_teacher},
        "headline": {
            "align_speedup": "align step, naive / cached prefix, time",
            "align_memory_ratio": "align step, naive / cached prefix, memory kept for backward",
            "align_grad_diff": "largest relative difference of their gradients",
            "align_stored_speedup": "align step, naive / cached prefix and stored vision features, time",
            "align_teacher_speedup": "align step, teacher in every step / precomputed features, time",
            "align_flop_ratio": "align step, naive / cached prefix, work of the language model",
            "align_flop_error": "largest error of the formulas against the counted work",
        },
        **harness.with_interval("align_speedup", speedup),
        "align_memory_ratio": saved["naive"] / saved["cached"],
        "align_grad_diff": max(((a - b).abs().max() / a.abs().max()).item() for a, b in pairs),
        **harness.with_interval("align_stored_speedup", encoded),
        **harness.with_interval("align_teacher_speedup", teaching),
        "align_flop_ratio": work["formula"]["naive"] / work["formula"]["cached"],
        "align_flop_error": work["error"],
        "saved_bytes": saved,
        "work": work,
        "shape": shape.to_dict(),
        "batch_size": batch_size,
    }
    seconds = steps["sides"]["cached"]["median_s"]
    return flops.beside_peak(figures, flops.count(ways["cached"]), seconds, args.device)


def _work(network: Any, shape: random_vlm.Shape, seen: students.Inputs, ways: dict) -> dict[str, Any]:
    """FLOP per sample of the language model in both ways, counted and by formula."""
    suffix = 1 + students.CHUNK
    prompt = network.backbone.prompts.encode(seen.images, seen.tasks, suffix)
    prefix = prompt.tokens["input_ids"].shape[1] - suffix
    text = students.text_shape(shape)
    formula = {
        "naive": flops.naive_step(text, prefix, suffix),
        "cached": flops.cached_step(text, prefix, suffix),
    }
    counted = {
        way: flops.count(call, inside="language_model") / len(seen.tasks) for way, call in ways.items()
    }
    error = max(abs(counted[way] / formula[way] - 1) for way in ways)
    return {
        "prefix": prefix,
        "counted": counted,
        "formula": formula,
        "error": error,
    }


def _teacher(image_size: int, device: str) -> Callable[[students.Inputs], Tensor]:
    """Seer, preset tiny, with random weights, on the two cameras."""
    from lerobot_policy_vita_vla.teacher.seer.teacher import SeerTeacher

    teacher = SeerTeacher(policies.tiny_teacher(image_size, device).eval()).to(device)

    def targets(seen: students.Inputs) -> Tensor:
        batch = dict(zip(policies.CAMERAS, seen.images, strict=True))
        batch |= {"observation.state": seen.state, "task": seen.tasks}
        features = teacher.targets(batch).features_BTE
        # Its width is its own; the target only has to have the student's.
        return features.repeat(1, 1, -(-students.WIDTH // features.shape[-1]))[..., : students.WIDTH]

    return targets
