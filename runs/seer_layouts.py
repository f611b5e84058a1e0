"""Whether importing Seer's checkpoints accounts for every key and parameter of the three released layouts.

    python runs/seer_layouts.py           # writes results/seer_layouts/layouts.json

For each layout a checkpoint with the published names and shapes (tests/seer_checkpoint_keys.json) and random
numbers is written, imported as a user would import the released one, loaded as a teacher, and compared with
the file, tensor by tensor. The frozen encoders are of the published sizes, with random weights. Nothing is
downloaded; the files (6 GB at most at a time) lie in a temporary folder and are removed.

Hardware: one thread of a CPU, 6 GB of memory. Wall time: about three minutes on a free core.
Expected: 400 keys each, none unknown, none missing; 67,689,614, 357,767,950 and 67,688,462 parameters.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
# The published names and shapes, and the writer of such a file, are the tests'.
sys.path.insert(0, str(ROOT / "tests"))

from lerobot_policy_vita_vla.teacher.load import load_teacher  # noqa: E402
from lerobot_policy_vita_vla.teacher.seer.official.checkpoint import open_checkpoint  # noqa: E402
from lerobot_policy_vita_vla.teacher.seer.official.importing import import_seer  # noqa: E402
from lerobot_policy_vita_vla.teacher.seer.official.layouts import LAYOUTS, our_tensors  # noqa: E402
from seer_files import published_shapes, random_tensors, save_seer  # noqa: E402

COMMAND = "python runs/seer_layouts.py"


def save_encoders(folder: Path) -> dict[str, Path]:
    """MAE ViT-B/16 and CLIP ViT-B/32 with random weights, in Hugging Face's format."""
    from transformers import (
        CLIPTextConfig,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
        ViTMAEConfig,
        ViTMAEModel,
    )

    ViTMAEModel(ViTMAEConfig(mask_ratio=0.0)).save_pretrained(folder / "mae")
    CLIPTextModelWithProjection(CLIPTextConfig()).save_pretrained(folder / "clip")
    marks = ("<|startoftext|>", "<|endoftext|>")
    CLIPTokenizer(vocab={mark: i for i, mark in enumerate(marks)}, merges=[]).save_pretrained(folder / "clip")
    return {"mae": folder / "mae", "clip": folder / "clip"}


def check(name: str, folder: Path, encoders: dict[str, Path]) -> dict[str, Any]:
    """Write, import and compare one layout."""
    shapes, published = published_shapes(name)
    source, target = folder / f"{name}.pth", folder / name
    save_seer(source, random_tensors(shapes))
    done = import_seer(source, target, layout=name, **encoders)
    tensors = open_checkpoint(source, name).tensors
    network = load_teacher(target).policy.network
    state = network.state_dict()
    arrived = our_tensors(tensors, LAYOUTS[name].n_obs_steps)
    # A teacher is frozen as a whole; trained are all parts but the two encoders.
    frozen = ("image_encoder.vit.", "instruction_encoder.model.")
    trainable = {
        key: value.numel() for key, value in network.named_parameters() if not key.startswith(frozen)
    }
    same = sum(torch.equal(state[key], value) for key, value in arrived.items())
    return {
        "keys_in_list": len(shapes),
        "keys_consumed": same + done["keys_unused_by_seer"],
        "keys_arrived": same,
        "keys_unused_by_seer": done["keys_unused_by_seer"],
        "keys_unknown": len(tensors.keys() - shapes.keys()),
        "keys_missing": len(shapes.keys() - tensors.keys()),
        "parameters_published": published,
        "parameters_in_file": done["parameters"],
        "parameters_unused_by_seer": done["parameters_unused_by_seer"],
        "parameters_trainable_here": sum(trainable.values()),
        "trainable_not_from_the_file": len(trainable.keys() - arrived.keys()),
        "parameters_decoder_and_heads": sum(p.numel() for p in network.decoder.parameters()),
        "tokens_per_step": network.layout.per_step,
        "n_obs_steps": network.n_obs_steps,
    }


def exact(row: dict[str, Any]) -> bool:
    """Whether a layout is accounted for to the last key and parameter."""
    here = row["parameters_trainable_here"] + row["parameters_unused_by_seer"]
    return (
        row["keys_consumed"] == row["keys_in_list"]
        and row["keys_unknown"] == row["keys_missing"] == row["trainable_not_from_the_file"] == 0
        and row["parameters_published"] == row["parameters_in_file"] == here
    )


def main() -> int:
    """Check all layouts; exit code 1 if one is not exact."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "seer_layouts" / "layouts.json")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    rows = {}
    with tempfile.TemporaryDirectory() as scratch:
        encoders = save_encoders(Path(scratch) / "encoders")
        for name in LAYOUTS:
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                rows[name] = check(name, Path(folder), encoders)
            rows[name]["exact"] = exact(rows[name])
            print(name, json.dumps(rows[name]), flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    record = {
        "layouts": rows,
        "layouts_exact": sum(row["exact"] for row in rows.values()),
        "peak_memory_gib": round(peak, 2),
        "command": COMMAND,
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=2) + "\n")
    return 0 if record["layouts_exact"] == len(LAYOUTS) else 1


if __name__ == "__main__":
    sys.exit(main())
