"""Latency of one prediction on a GPU, beside the floor of the hardware, with a profile of what the rest is.

    python runs/gpu_infer.py                                  # writes results/gpu/infer.json
    python runs/gpu_infer.py --tiny --out work/infer.json     # the same on a CPU, in shapes of nothing

Shapes, random bfloat16 weights, batch 1, two cameras: VITA-1.5-7B (InternViT-300M, Qwen2.5-7B, 448 px) and
SmolVLM2-500M (512 px, all 32 layers). Hardware: a GPU of 24 GiB for the 7B shape. Wall time: five minutes,
most of it compiling. Expected on an H200: 18 ms at 7B (floor 11.2 ms), 6 ms at 500M (floor 0.7 ms), the 99th
percentile within 1.2 times the median. Not run on a GPU yet: none was at hand when this was written.

A call starts at frames, bytes on the host, and ends at actions on the host. Four ways, each adding to the one
before:

    plain       the network as training runs it
    engine      the inference engine's pass without a graph
    graph       the same recorded as one CUDA graph
    compiled    with compiled layers: what a policy does on a GPU by default
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch

from lerobot_policy_vita_vla.bench import flops, harness, random_vlm, students
from lerobot_policy_vita_vla.evaluation.results import write_json
from lerobot_policy_vita_vla.vla.engine import Engine
from lerobot_policy_vita_vla.vla.network import VitaVLANetwork

ROOT = Path(__file__).resolve().parent.parent
SHAPES = {
    "7b": random_vlm.SHAPES["vita-1.5-7b"],
    "500m": replace(random_vlm.SHAPES["smolvlm2-500m"], text=(960, 2560, 32, 15, 5)),
}
GOAL_MS = {"7b": 18.0, "500m": 6.0}
WAYS = {
    "engine": {"recorded": False, "compiled": False},
    "graph": {"compiled": False},
    "compiled": {},
}
KINDS = {
    # What a kernel's name says it does, tried in this order.
    "attention": ("flash", "fmha", "attention", "sdpa"),
    "matrix products": ("gemm", "cutlass", "nvjet", "cublas", "matmul", "xmma", "wgmma"),
    "convolution": ("conv",),
    "pictures": ("upsample", "interpolate"),
    "copies": ("memcpy", "memset", "copy", "cat"),
}
TOP = 20
"""Kernels that are listed by name."""


def measure(name: str, shape: random_vlm.Shape, *, device: str, calls: int, peak: float, bandwidth: float):
    """Milliseconds of every way, the floor, and where the fastest way's time goes."""
    network = students.mixed_network(shape, device).eval().requires_grad_(False)
    seen = students.inputs(shape.image, batch_size=1)
    frames = [(image * 255).to(torch.uint8) for image in seen.images]
    if device == "cuda":
        frames = [frame.pin_memory() for frame in frames]
    state = seen.state

    def call(act: Callable[..., torch.Tensor]) -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            there = [frame.to(device, non_blocking=True) for frame in frames]
            with torch.inference_mode(), torch.autocast(device, torch.bfloat16):
                return act(there, seen.tasks, state.to(device, non_blocking=True)).cpu()

        return run

    engines = {way: Engine(network, **wishes) for way, wishes in WAYS.items()}
    if device != "cuda":
        engines = {"engine": engines["engine"]}
    ways = {"plain": call(network.act)} | {way: call(engine.act) for way, engine in engines.items()}
    found, actions, not_run = {}, {}, {}
    for way, run in ways.items():
        start = time.perf_counter()
        for _ in range(5):
            actions[way] = run()
        ready = time.perf_counter() - start
        if way in engines and (reason := engines[way].reason) is not None:
            # The plain path would be measured under another name.
            print(name, way, "does not run:", reason, flush=True)
            not_run[way] = reason
            continue
        times = [harness.timed(run)[0] * 1e3 for _ in range(calls)]
        found[way] = summary(times) | {"ready_s": round(ready, 1), "all_ms": [round(t, 3) for t in times]}
        print(name, way, {k: v for k, v in found[way].items() if k != "all_ms"}, flush=True)
    worked = flops.count(ways["engine"])
    weights = sum(p.numel() * p.element_size() for p in read(network))
    floor = {
        "gflop": worked / 1e9,
        "compute_ms": worked / peak * 1e3,
        "weights_ms": weights / bandwidth * 1e3,
    }
    floor["ms"] = max(floor["compute_ms"], floor["weights_ms"])
    fastest = list(found)[-1]
    row, _ = network.backbone.prompts.row(seen.tasks[0], ((shape.image,) * 2,) * 2, 1 + students.CHUNK)
    return {
        "shape": shape.to_dict(),
        "tokens": row["input_ids"].shape[1],
        "ways": found,
        "not_run": not_run,
        "floor": floor,
        "share_of_floor": floor["ms"] / found[fastest]["median_ms"],
        "goal_ms": GOAL_MS.get(name),
        "largest_difference": {
            way: (actions[way] - actions["plain"]).abs().max().item() for way in found if way != "plain"
        },
        "profile": {way: profile(ways[way], device) for way in {"plain", fastest}},
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None,
    }


def read(network: VitaVLANetwork):
    """Parameters that a prediction reads: not the rows of the word embedding, not the vocabulary's head."""
    vlm = network.backbone.vlm
    unread = {id(vlm.get_input_embeddings().weight), id(vlm.get_output_embeddings().weight)}
    return (p for p in network.parameters() if id(p) not in unread)


def summary(times: list[float]) -> dict[str, float]:
    """Median, 99th percentile and their ratio."""
    median, p99 = statistics.median(times), harness.percentile(times, 99)
    return {"median_ms": median, "p99_ms": p99, "p99_over_median": p99 / median}


def profile(run: Callable[[], object], device: str, calls: int = 10) -> dict:
    """Device milliseconds per call by kind of kernel, the largest kernels, and the time without any."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds) as record:
        start = time.perf_counter()
        for _ in range(calls):
            run()
        wall = (time.perf_counter() - start) * 1e3 / calls
    rows = []
    for event in record.key_averages():
        spent = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
        on_device = device != "cuda" or event.device_type != torch.autograd.DeviceType.CPU
        if spent and on_device:
            rows.append((spent / 1e3 / calls, event.count / calls, event.key))
    rows.sort(reverse=True)
    by_kind: dict[str, float] = {}
    for spent, _, key in rows:
        kind = next((k for k, marks in KINDS.items() if any(m in key.lower() for m in marks)), "other")
        by_kind[kind] = by_kind.get(kind, 0.0) + spent
    busy = sum(by_kind.values())
    return {
        "wall_ms": wall,
        "busy_ms": busy,
        "idle_ms": max(wall - busy, 0.0),
        "by_kind_ms": dict(sorted(by_kind.items(), key=lambda item: -item[1])),
        "kernels": [{"ms": ms, "count": n, "name": key[:120]} for ms, n, key in rows[:TOP]],
    }


def copy_rate(device: str) -> float:
    """Bytes per second that a large copy reads and writes on a device: its measured memory bandwidth."""
    block = torch.empty(2**28 if device == "cuda" else 2**24, dtype=torch.float32, device=device)
    other = torch.empty_like(block)
    seconds = [harness.timed(lambda: other.copy_(block))[0] for _ in range(10)]
    return 2 * block.numel() * 4 / min(seconds)


def main() -> None:
    """Measure every shape and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="tiny shapes on the CPU")
    parser.add_argument("--shapes", nargs="+", choices=sorted(SHAPES), default=list(SHAPES))
    parser.add_argument("--calls", type=int, default=300, help="timed predictions of each way")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "gpu" / "infer.json")
    args = parser.parse_args()
    device = "cpu" if args.tiny else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("there is no GPU here; --tiny --out FILE runs the same on the CPU in tiny shapes")
    if args.tiny and args.out == parser.get_default("out"):
        sys.exit("--tiny says nothing about a GPU and must not take its result's place: add --out FILE")
    peak = flops.matmul_peak(device, size=256 if args.tiny else 8192, seconds=0.1 if args.tiny else 2.0)
    bandwidth = copy_rate(device)
    result = {"peak_tflops": peak / 1e12, "bandwidth_gb_per_s": bandwidth / 1e9, "shapes": {}}
    for name in args.shapes:
        shape = SHAPES[name].toy() if args.tiny else SHAPES[name]
        found = measure(
            name,
            shape,
            device=device,
            calls=3 if args.tiny else args.calls,
            peak=peak,
            bandwidth=bandwidth,
        )
        result["shapes"][name] = found
        result[f"infer_{name}_ms"] = list(found["ways"].values())[-1]["median_ms"]
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    result |= {
        "command": "python runs/gpu_infer.py" + (" --tiny" if args.tiny else ""),
        "date": date.today().isoformat(),
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
    write_json(args.out, result, indent=1, allow_nan=False)


if __name__ == "__main__":
    main()
