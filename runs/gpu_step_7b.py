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
import time
from datetime import date
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
# The tests' builder makes a VLM with its processor on the spot, without a download.
sys.path.insert(0, str(ROOT / "tests"))

from lerobot_policy_vita_vla.contracts import ActionSpec  # noqa: E402
from lerobot_policy_vita_vla.evaluation.results import write_json  # noqa: E402
from lerobot_policy_vita_vla.teacher.decoder import ActionDecoder, imitation_loss  # noqa: E402
from lerobot_policy_vita_vla.training.plan import update_seconds  # noqa: E402
from lerobot_policy_vita_vla.training.plan_model import INSTRUCTION, Task  # noqa: E402
from lerobot_policy_vita_vla.training.plan_step import Options, record_step  # noqa: E402
from lerobot_policy_vita_vla.vla.action_modules import ActionMapper, ActionQueries, StateEncoder  # noqa: E402
from lerobot_policy_vita_vla.vla.align import align_loss  # noqa: E402
from lerobot_policy_vita_vla.vla.backbone import VLMBackbone  # noqa: E402
from lerobot_policy_vita_vla.vla.network import VitaVLANetwork  # noqa: E402
from lerobot_policy_vita_vla.vla.stages import apply_stage  # noqa: E402
from tiny_vlms import build  # noqa: E402

TEXT = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "initializer_range": 0.02,
}
VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": [14, 14],
}
FLOORS = {
    "align": {"tflop": 8.85, "ms": 22.5, "samples_per_second": 44.5},
    "finetune": {"tflop": 23.46, "ms": 59.5, "samples_per_second": 16.8},
}
S, A, T, E, CAMERAS = 8, 7, 3, 1024, 2


def measure(stage: str, *, device: str, tiny: bool, batch_size: int, repeats: int) -> dict:
    """One stage: seconds of a step and the most memory it takes."""
    px, text, vision = (56, {}, {"patch_size": [14, 14]}) if tiny else (448, TEXT, VISION)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        vlm, processor = build("internvl", text=text, vision=vision, image_size=px)
    torch.set_default_dtype(torch.float32)
    backbone = VLMBackbone(vlm, processor)
    spec = ActionSpec(tuple("abcdefg"), (0.0,) * A, (1.0,) * A, (A - 1,))
    with torch.device(device):
        network = VitaVLANetwork(
            backbone=backbone,
            state_encoder=StateEncoder(state_dim=S, width=backbone.width, gripper_dims=(6, 7)),
            queries=ActionQueries(num_queries=T, width=backbone.width, shared=True, init_std=0.02),
            mapper=ActionMapper(width=backbone.width, feature_dim=E),
            decoder=ActionDecoder(kind="seer", feature_dim=E, spec=spec),
            chunk_size=T,
        )
        images = [torch.rand(batch_size, 3, px, px) for _ in range(CAMERAS)]
        state, target = torch.randn(batch_size, S), torch.randn(batch_size, T, E)
        action, is_pad = torch.rand(batch_size, T, A), torch.zeros(batch_size, T, dtype=torch.bool)
    counts = apply_stage(network.parts(), stage)
    trains = stage == "finetune"
    backbone.cached = not trains
    network.train()
    backbone.set_mode(trains)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-4)

    def step() -> float:
        wait(device)
        start = time.perf_counter()
        with torch.autocast(device, torch.bfloat16):
            features = network.features(images, [INSTRUCTION] * batch_size, state)
            if trains:
                raw = network.decoder(features)
                loss, _ = imitation_loss(network.decoder, raw, action, is_pad, beta=0.1, gripper_weight=0.01)
            else:
                loss, _ = align_loss(features, target, kind="mse")
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        wait(device)
        return time.perf_counter() - start

    step()  # kernels are chosen, moments made
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = [step() for _ in range(repeats)]
    prompt = backbone.prompts.encode([i[:1] for i in images], [INSTRUCTION], 1 + T)
    tokens = prompt.tokens["input_ids"].shape[1] - 1 - T
    patch = vision["patch_size"][0]
    task = Task(
        name="7b",
        vlm=vlm.config,
        prefix_tokens=tokens,
        patches=CAMERAS * ((px // patch) ** 2 + 1),
        pictures=CAMERAS,
        pixels=CAMERAS * 3 * px**2,
        state_dim=S,
        chunk_size=T,
        num_queries=T,
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
        "prompt_tokens": tokens + 1 + T,
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


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


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
