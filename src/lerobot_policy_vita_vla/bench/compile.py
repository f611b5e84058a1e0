"""What ``--policy.compile_model=true`` saves in a finetune step: language model plain and compiled.

Forward and backward of the student around the mini VLM on stored vision features, as
`runs/libero_scripted.sh` trains it: two cameras of 96 px, bfloat16 autocast over float32 weights. The update
of the weights, a kernel of its own, is left out on both sides. Compiling itself is no part of the ratio; its
seconds stand beside it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lerobot_policy_vita_vla.bench import harness, policies, students
from lerobot_policy_vita_vla.vla.compiling import compile_layers

IMAGE = 96


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this benchmark."""
    parser.add_argument("--batch-size", type=int, default=64, help="samples per step (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.set_defaults(rounds=15)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure both sides in turns, on one set of weights and one batch."""
    batch_size = 2 if args.toy else args.batch_size
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        made = [
            policies.finetune_policy("mini", Path(folder) / "teacher", IMAGE, args.device) for _ in range(2)
        ]
    plain, compiled = (policy.train().network for policy in made)
    compiled.load_state_dict(plain.state_dict())
    sizes = replace(students.LIBERO, width=plain.decoder.feature_dim)
    seen = students.inputs(IMAGE, batch_size=batch_size, sizes=sizes).to(args.device)
    seen = replace(seen, images=students.stored_pictures(plain, seen, "bfloat16"))

    def step(network: Any) -> list[torch.Tensor]:
        learns = [p for p in network.parameters() if p.requires_grad]
        with torch.autocast(args.device, torch.bfloat16):
            loss = students.step_loss(network, seen, "finetune")
        return torch.autograd.grad(loss, learns)

    wanted = step(plain)
    compile_layers(compiled.backbone.vlm)
    start = time.perf_counter()
    found = step(compiled)
    compiling_s = time.perf_counter() - start
    steps = harness.side_by_side(
        {"plain": lambda: step(plain), "compiled": lambda: step(compiled)}, rounds=args.rounds
    )
    apart = torch.cat([(a - b).flatten() for a, b in zip(found, wanted, strict=True)]).norm()
    return {
        "dtype": "bfloat16",
        "setting": (
            f"The mini VLM, stored vision features of two cameras of {IMAGE} px, batch {batch_size}; forward "
            "and backward of stage finetune."
        ),
        "comparisons": {"a finetune step": steps},
        "headline": {
            "compile_speedup": "finetune step, plain / compiled layers, time",
            "compile_grad_diff": "relative difference of their gradients under bfloat16",
            "compile_seconds": "compiling, seconds",
        },
        **harness.with_interval("compile_speedup", steps["ratios"]["plain/compiled"]),
        "compile_grad_diff": (apart / torch.cat([g.flatten() for g in wanted]).norm()).item(),
        "compile_seconds": compiling_s,
        "batch_size": batch_size,
    }
