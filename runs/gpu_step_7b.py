"""One align and one finetune step of the 7B shape on a GPU, beside the floors of the hardware.

    python runs/gpu_step_7b.py                                # writes results/gpu/step_7b.json
    python runs/gpu_step_7b.py --tiny --out work/step.json    # the same on a CPU, in shapes of nothing

Shape: VITA-1.5-7B (InternViT-300M, two-layer projector, Qwen2.5-7B), random bfloat16 weights, two cameras of
448 px (512 image tokens), an instruction, a state and three queries. Hardware: a GPU of 80 GiB for align, of
100 GiB for finetune (pure bfloat16: 2 bytes each of weight, gradient and two moments). Wall time: minutes.
Expected on an H200 (141 GiB): at most the floors' samples per second; how near is what this measures. Not run
on a GPU yet: none was at hand when this was written.

Floors, per sample, computed for 556 tokens: align 8.85 TFLOP, finetune 23.46 TFLOP; 22.5 and 59.5 ms at 394
TFLOP/s, half of what large products sustain on an H200. `plan` holds what `vita-vla plan` predicts: memory,
and the seconds of a step as the sum of its operations, each measured on the same device; `error` is how far
both are from what was measured.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from datetime import date
from pathlib import Path

import torch

from lerobot_policy_vita_vla.bench import harness, random_vlm, students
from lerobot_policy_vita_vla.evaluation.results import write_json
from lerobot_policy_vita_vla.training.plan import update_seconds
from lerobot_policy_vita_vla.training.plan_model import INSTRUCTION, Task
from lerobot_policy_vita_vla.training.plan_step import Options, record_step

ROOT = Path(__file__).resolve().parent.parent
SIZES, CAMERAS = students.Sizes(width=1024), 2
FLOORS = {
    "align": {"tflop": 8.85, "ms": 22.5, "samples_per_second": 44.5},
    "finetune": {"tflop": 23.46, "ms": 59.5, "samples_per_second": 16.8},
}


def measure(stage: str, *, device: str, tiny: bool, batch_size: int, repeats: int) -> dict:
    """One stage: seconds of a step and the most memory it takes."""
    shape = random_vlm.SHAPES["vita-1.5-7b"]
    shape = shape.toy() if tiny else shape
    network = students.mixed_network(shape, device, SIZES)
    backbone = network.backbone
    counts = students.enter(network, stage)
    seen = students.inputs(shape.image, cameras=CAMERAS, batch_size=batch_size, sizes=SIZES).to(device)
    seen.tasks = [INSTRUCTION] * batch_size
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-4)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            loss = students.step_loss(network, seen, stage)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # kernels are chosen, moments made
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = [harness.timed(step)[0] for _ in range(repeats)]
    places = 1 + SIZES.chunk
    prompt = backbone.prompts.encode([i[:1] for i in seen.images], [INSTRUCTION], places)
    tokens = prompt.tokens["input_ids"].shape[1] - places
    task = Task(
        name="7b",
        vlm=backbone.vlm.config,
        prefix_tokens=tokens,
        patches=CAMERAS * ((shape.image // shape.patch) ** 2 + 1),
        pictures=CAMERAS,
        pixels=CAMERAS * 3 * shape.image**2,
        state_dim=SIZES.state,
        chunk_size=SIZES.chunk,
        num_queries=SIZES.chunk,
        decoder=network.decoder.config(),
    )
    on_gpu = device == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_gpu else None
    options = Options(stage, batch_size, vlm_dtype="bfloat16", dtype="bfloat16", on_gpu=on_gpu)
    planned = record_step(task, options)
    predicted = update_seconds(planned, options, device)
    best = min(seconds)
    result = {
        "batch_size": batch_size,
        "prompt_tokens": tokens + places,
        "trainable_parameters": sum(counts.values()),
        "seconds": seconds,
        "samples_per_second": batch_size / best,
        "peak_gib": peak / 2**30 if on_gpu else None,
        "plan": {
            "peak_gib": planned.peak / 2**30,
            "seconds": predicted,
            "tflop_per_sample": planned.flops / batch_size / 1e12,
        },
        "error": {
            "memory": abs(planned.peak / peak - 1) if on_gpu else None,
            "seconds": abs(predicted / statistics.median(seconds) - 1),
        },
    }
    if not tiny:
        floor = FLOORS[stage]
        result |= {"floor": floor, "share_of_floor": batch_size / best / floor["samples_per_second"]}
    return result


def main() -> None:
    """Measure both stages and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="tiny shapes on the CPU")
    parser.add_argument("--align-batch", type=int, default=32)
    parser.add_argument("--finetune-batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "gpu" / "step_7b.json")
    args = parser.parse_args()
    device = "cpu" if args.tiny else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("there is no GPU here; --tiny --out FILE runs the same on the CPU in tiny shapes")
    if args.tiny and args.out == parser.get_default("out"):
        sys.exit("--tiny says nothing about the 7B shape and must not take its place: add --out FILE")
    result = {}
    for stage, size in (("align", args.align_batch), ("finetune", args.finetune_batch)):
        result[stage] = measure(
            stage, device=device, tiny=args.tiny, batch_size=2 if args.tiny else size, repeats=args.repeats
        )
        print(stage, json.dumps(result[stage]), flush=True)
        if device == "cuda":
            torch.cuda.empty_cache()
    result |= {
        "command": "python runs/gpu_step_7b.py" + (" --tiny" if args.tiny else ""),
        "date": date.today().isoformat(),
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
    write_json(args.out, result, indent=1, allow_nan=False)


if __name__ == "__main__":
    main()
