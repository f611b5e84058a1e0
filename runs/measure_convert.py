"""Memory and time of `vita-vla vlm convert` at the real shapes, into results/bench/convert.json.

    nice -n 19 python runs/measure_convert.py --work work/convert

Hardware: any with 40 GiB of free disk; needs no GPU. About ten minutes on two cores. It writes synthetic
shards with the names, shapes and sizes of VITA-1.5-7B (bfloat16, about 5 GB each, image encoder inside, an
audio encoder of 0.7 GB to be left out), converts them in a child process and removes them; once as
safetensors and once as pickled .bin.

`convert_peak_gib` is the highest resident memory of the child (VmHWM, mapped files counted) minus what was
resident before the conversion, when everything was imported. The bound is two shards of the source. Wall time
is only worth something on an idle machine; CPU time includes the imports.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from datetime import date
from importlib import metadata
from pathlib import Path

TEXT = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "hidden_act": "silu",
}
AUDIO_PARAMETERS = 350_000_000
GIB = 2**30


def write_settings(folder: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    config = TEXT | {
        "model_type": "vita-Qwen2",
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": 4096,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    vocabulary = {token: i for i, token in enumerate(["<|endoftext|>", "<|im_end|>", "<|image_pad|>", "a"])}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="a")),
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
    ).save_pretrained(folder)


def write_shards(folder: Path, shard_bytes: int, form: str) -> list[int]:
    """Synthetic shards; returns their sizes in bytes."""
    import torch
    from safetensors.torch import save_file

    from lerobot_policy_vita_vla.vlm import vita15_names as names
    from lerobot_policy_vita_vla.vlm.vita15_config import read_config
    from lerobot_policy_vita_vla.vlm.vita15_convert import model_shapes

    others, vision = names.expected_shapes(model_shapes(read_config(folder, None)))
    shapes = others | {names.VITA_VISION + name: shape for name, shape in vision.items()}
    shapes |= {f"model.audio_encoder.{i}.weight": (AUDIO_PARAMETERS // 350, 35) for i in range(10)}
    groups: list[dict] = [{}]
    held = 0
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        if groups[-1] and held + size > shard_bytes:
            groups.append({})
            held = 0
        groups[-1][name] = shape
        held += size
    stem = {"safetensors": "model", "bin": "pytorch_model"}[form]
    noise = torch.randn(1 << 20).bfloat16()
    index, sizes = {}, []
    for number, group in enumerate(groups, 1):
        file = folder / f"{stem}-{number:05d}-of-{len(groups):05d}.{form}"
        tensors = {}
        for name, shape in group.items():
            numel = torch.Size(shape).numel()
            tensors[name] = noise.repeat(-(-numel // len(noise)))[:numel].view(shape).clone()
        (save_file if form == "safetensors" else torch.save)(tensors, file)
        index |= dict.fromkeys(group, file.name)
        sizes.append(file.stat().st_size)
        print(f"  {file.name}: {sizes[-1] / 1e9:.2f} GB", flush=True)
    (folder / f"{stem}.{form}.index.json").write_text(json.dumps({"weight_map": index}))
    return sizes


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def child(source: Path, destination: Path) -> None:
    """Convert and print what it took."""
    from lerobot_policy_vita_vla.vlm.vita15_convert import convert

    before, start = resident("VmRSS"), time.perf_counter()
    convert(source, destination)
    seconds = time.perf_counter() - start
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                "baseline_bytes": before,
                "peak_bytes": resident("VmHWM"),
                "seconds": round(seconds, 1),
                "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
                "output_shard_bytes": [f.stat().st_size for f in sorted(destination.glob("*.safetensors"))],
            }
        )
    )


def measure(work: Path, shard_bytes: int, form: str) -> dict:
    shutil.rmtree(work, ignore_errors=True)
    source = work / "source"
    source.mkdir(parents=True)
    write_settings(source)
    try:
        # In a process of its own, so that the one below starts with nothing in memory.
        out = run(
            "--step", "write", "--work", str(work), "--shard-gb", str(shard_bytes / 1e9), "--form", form
        )
        sizes = json.loads(out.splitlines()[-1])
        found = json.loads(run("--step", "convert", "--work", str(work)).splitlines()[-1])
    finally:
        shutil.rmtree(work, ignore_errors=True)
    peak = (found["peak_bytes"] - found["baseline_bytes"]) / GIB
    return {
        "form": form,
        "source_shard_gib": [round(size / GIB, 3) for size in sizes],
        "output_shard_gib": [round(size / GIB, 3) for size in found.pop("output_shard_bytes")],
        "baseline_gib": round(found["baseline_bytes"] / GIB, 3),
        "peak_above_baseline_gib": round(peak, 3),
        "two_largest_shards_gib": round(sum(sorted(sizes)[-2:]) / GIB, 3),
        "ratio_to_two_shards": round(peak * GIB / sum(sorted(sizes)[-2:]), 3),
        "seconds": found["seconds"],
        "cpu_seconds": found["cpu_seconds"],
    }


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    print(done.stdout, end="", flush=True)
    return done.stdout


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, default=Path("work/convert"), help="made, and removed at the end"
    )
    parser.add_argument("--shard-gb", type=float, default=4.9, help="of the source (default: %(default)s)")
    parser.add_argument("--forms", nargs="+", default=["safetensors", "bin"], help="of the source's shards")
    parser.add_argument("--out", type=Path, default=Path("results/bench/convert.json"))
    parser.add_argument("--step", choices=["write", "convert"], help=argparse.SUPPRESS)
    parser.add_argument("--form", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step == "write":
        print(json.dumps(write_shards(args.work / "source", int(args.shard_gb * 1e9), args.form)))
        return
    if args.step == "convert":
        child(args.work / "source", args.work / "converted")
        return
    runs = [measure(args.work, int(args.shard_gb * 1e9), form) for form in args.forms]
    outcome = {
        "convert_peak_gib": max(r["peak_above_baseline_gib"] for r in runs),
        "bound_gib": min(r["two_largest_shards_gib"] for r in runs),
        "ratio_to_two_shards": max(r["ratio_to_two_shards"] for r in runs),
        "runs": runs,
        "shapes": TEXT | {"vision": "InternViT-300M-448px", "audio_parameters": AUDIO_PARAMETERS},
        "dtype": "bfloat16",
        "command": f"python runs/measure_convert.py --shard-gb {args.shard_gb} "
        f"--forms {' '.join(args.forms)}",
        "date": date.today().isoformat(),
        "cpu_cores": os.cpu_count(),
        "versions": {n: metadata.version(n) for n in ("torch", "transformers", "safetensors")}
        | {"python": sys.version.split()[0]},
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(outcome, indent=1) + "\n")
    print(f"peak {outcome['convert_peak_gib']} GiB, two shards {outcome['bound_gib']} GiB: {args.out}")


if __name__ == "__main__":
    main()
