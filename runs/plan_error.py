"""How far `vita-vla plan` is off on this CPU: predicted against measured memory and step time.

    OMP_NUM_THREADS=1 python runs/plan_error.py            # writes results/plan/plan_error.json

Configurations: the mini VLM at align and at finetune, and an InternVL of 8 layers x 512 with random weights
at finetune with gradient checkpointing. Hardware: one core, 3 GiB. Takes about two minutes of CPU.

Measured are real steps (forward, backward, update), in two processes of their own.

Memory: the highest resident memory (VmHWM) during the steps minus what was resident before the model was
built, when a copy of it had made a step of one sample and was gone (libraries load on first use); the
allocator gives freed blocks back at once (MALLOC_MMAP_THRESHOLD_), so that resident is what is alive.

Time: CPU time of one thread, the median of several steps; the operations are measured between them, so
that both see the same machine. The allocator keeps freed blocks, as a GPU's does: else the system's price for
fresh pages, which depends on what ran before, is a third of a small step. Wall time is not used: on a busy
machine it says nothing.

The prediction knows nothing of these steps: operations are measured one by one, what Python takes around them
on a decoder of width 8 (plan.py), and nothing is fitted.

Expected: every error below 0.15; on a busy machine below 0.08, times predicted a little too short.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

ROOT = Path(__file__).resolve().parent.parent
# The tests' builder makes a VLM with its processor on the spot, without a download.
sys.path.insert(0, str(ROOT / "tests"))

from lerobot_policy_vita_vla.bench import students  # noqa: E402
from lerobot_policy_vita_vla.evaluation.results import write_json  # noqa: E402
from lerobot_policy_vita_vla.training.plan import operation_seconds, update_time  # noqa: E402
from lerobot_policy_vita_vla.training.plan_model import (  # noqa: E402
    INSTRUCTION,
    Task,
    prompt_of,
    task_of_vlm,
)
from lerobot_policy_vita_vla.training.plan_step import Options, record_step  # noqa: E402
from lerobot_policy_vita_vla.vla.backbone import VLMBackbone  # noqa: E402
from lerobot_policy_vita_vla.vla.vlm_files import load_processor, resolve_vlm  # noqa: E402
from tiny_vlms import build  # noqa: E402

CONFIGURATIONS = {
    "mini_align": {"vlm": "mini", "stage": "align", "batch_size": 32, "px": 96},
    "mini_finetune": {"vlm": "mini", "stage": "finetune", "batch_size": 16, "px": 96},
    "internvl_8x512_finetune_checkpointing": {
        "vlm": "internvl",
        "stage": "finetune",
        "batch_size": 4,
        "px": 224,
        "gradient_checkpointing": True,
    },
}
SIZES, CAMERAS = students.Sizes(state=4, action=4, width=192, gripper=(3,)), 1
STEPS = 6
TEXT = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 8000,
    "initializer_range": 0.02,
}
VISION = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "patch_size": [14, 14],
}


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def describe(name: str) -> tuple[Task, Options, Any]:
    """What a configuration is to `plan`, and its VLM's processor."""
    made = CONFIGURATIONS[name]
    task = task_of_vlm(
        "mini",
        cameras=CAMERAS,
        image_px=made["px"],
        state_dim=SIZES.state,
        action_dim=SIZES.action,
        chunk_size=SIZES.chunk,
        width=SIZES.width,
    )
    processor = load_processor(resolve_vlm("mini"))
    if made["vlm"] == "internvl":
        with torch.device("meta"):
            shapes, processor = build("internvl", text=TEXT, vision=VISION, image_size=made["px"])
        tokens, patches, pixels = prompt_of(shapes.config, processor, [(made["px"], made["px"])] * CAMERAS)
        task = replace(
            task, name=name, vlm=shapes.config, prefix_tokens=tokens, patches=patches, pixels=pixels
        )
    options = Options(
        stage=made["stage"],
        batch_size=made["batch_size"],
        dtype="float32",
        gradient_checkpointing=made.get("gradient_checkpointing", False),
        on_gpu=False,
    )
    return task, options, processor


def student(task: Task, options: Options, processor: Any, px: int) -> Callable[[], None]:
    """A training step of a fresh student."""
    size = options.batch_size
    vlm = AutoModelForImageTextToText.from_config(task.vlm, dtype=torch.float32)
    vlm.set_attn_implementation({"vision_config": "sdpa", "text_config": "eager"})
    backbone = VLMBackbone(vlm, processor)
    network = students.assemble(backbone, SIZES)
    students.enter(network, options.stage)
    if options.gradient_checkpointing:
        backbone.checkpoint_gradients()
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-4)
    seen = students.inputs(px, cameras=CAMERAS, batch_size=size, sizes=SIZES)
    seen.tasks = [INSTRUCTION] * size

    def run() -> None:
        loss = students.step_loss(network, seen, options.stage)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def memory(name: str) -> dict:
    """Predicted and measured peak, bytes."""
    task, options, processor = describe(name)
    px = CONFIGURATIONS[name]["px"]
    step = record_step(task, options)
    student(task, replace(options, batch_size=1), processor, px)()
    gc.collect()
    before = resident("VmRSS")
    run = student(task, options, processor, px)
    run()  # makes the optimiser's states
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest resident memory so far
    run()
    measured = resident("VmHWM") - before
    return {
        "predicted": step.peak,
        "measured": measured,
        "error": abs(step.peak / measured - 1),
        "parts": {k: getattr(step, k) for k in ("weights", "gradients", "states", "kept")},
        "parameters": step.parameters,
        "task": {k: getattr(task, k) for k in Task.__dataclass_fields__ if k not in ("vlm", "decoder")},
    }


def seconds(name: str) -> dict:
    """Predicted and measured CPU time of a step."""
    task, options, processor = describe(name)
    step = record_step(task, options)
    run = student(task, options, processor, CONFIGURATIONS[name]["px"])
    run()
    taken, every = [], -(-len(step.calls) // STEPS)
    predicted = update_time(step, "cpu")
    for number, share in enumerate(operation_seconds(step, "cpu")):
        predicted += share
        # Steps between the operations' measurement, so that both see the same machine.
        if number % every == 0:
            start = time.process_time()
            run()
            taken.append(time.process_time() - start)
    measured = statistics.median(taken)
    return {
        "predicted": predicted,
        "measured": measured,
        "error": abs(predicted / measured - 1),
        "all_measured": taken,
    }


def main() -> None:
    """Run each configuration in a process of its own and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=CONFIGURATIONS, help="print one configuration, write nothing")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "plan" / "plan_error.json")
    parser.add_argument("--child", choices=CONFIGURATIONS, help=argparse.SUPPRESS)
    parser.add_argument("--what", choices=("memory", "seconds"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        print(json.dumps((memory if args.what == "memory" else seconds)(args.child)))
        return
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    returning = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    keeping = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**40)}
    found = {}
    for name in [args.only] if args.only else CONFIGURATIONS:
        found[name] = {"settings": CONFIGURATIONS[name]}
        for what, extra in (("memory", returning), ("seconds", keeping)):
            done = subprocess.run(
                [sys.executable, __file__, "--child", name, "--what", what],
                env=environment | extra,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            result = found[name][what] = json.loads(done.stdout.splitlines()[-1])
            shown = {k: result[k] for k in ("predicted", "measured", "error")}
            print(name, what, json.dumps(shown), flush=True)
    if args.only:
        return
    largest = max(entry[what]["error"] for entry in found.values() for what in ("memory", "seconds"))
    result = {
        "largest_error": round(largest, 4),
        "configurations": found,
        "command": "OMP_NUM_THREADS=1 python runs/plan_error.py",
        "date": date.today().isoformat(),
        "threads": 1,
        "machine": platform.processor() or platform.machine(),
        "versions": {name: metadata.version(name) for name in ("torch", "transformers")}
        | {"python": platform.python_version()},
    }
    write_json(args.out, result, indent=1)
    print(f"largest error: {largest:.3f}")


if __name__ == "__main__":
    main()
