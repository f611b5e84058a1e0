"""What freezing the prefix saves in stage 1: time, memory and nothing else.

Runs an align step of the student both ways on one VLM, in turns: one pass over everything (naive), and the
prefix without gradient followed by the suffix on its keys and values (cached).

    python runs/bench_align.py            # writes results/bench/align.json

VLM: InternVL class, random weights, 8 layers x 512, two images of 64 tokens, 35 of text, batch 16, float32.
Hardware: one thread of a CPU, 2 GiB of memory. Wall time: about two minutes.
Expected: cached about 1.9 times as fast, a seventh of the memory kept for backward, gradients equal to 1e-6.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
# The tests' builder makes a VLM with its processor on the spot, without a download.
sys.path.insert(0, str(ROOT / "tests"))

from lerobot_policy_vita_vla.contracts import ActionSpec  # noqa: E402
from lerobot_policy_vita_vla.teacher.decoder import ActionDecoder  # noqa: E402
from lerobot_policy_vita_vla.vla.action_modules import ActionMapper, ActionQueries, StateEncoder  # noqa: E402
from lerobot_policy_vita_vla.vla.align import align_loss  # noqa: E402
from lerobot_policy_vita_vla.vla.backbone import VLMBackbone  # noqa: E402
from lerobot_policy_vita_vla.vla.network import VitaVLANetwork  # noqa: E402
from lerobot_policy_vita_vla.vla.stages import apply_stage  # noqa: E402
from tiny_vlms import build  # noqa: E402

TEXT = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "initializer_range": 0.02,
}
# Both ways run the image encoder once, without gradient, so its share of the forward pass dilutes the ratio:
# about a third here, a sixth in VITA-1.5-7B with two cameras.
VISION = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "patch_size": [14, 14],
}
INSTRUCTION = "Open a door with a revolving joint. Push and close a drawer!"
T, E, S = 3, 384, 8


def make_network(text: dict, vision: dict, image_size: int) -> VitaVLANetwork:
    """A student at stage align on an InternVL of the given shape."""
    backbone = VLMBackbone(*build("internvl", text=text, vision=vision, image_size=image_size))
    spec = ActionSpec(tuple("abcdefg"), (0.0,) * 7, (1.0,) * 7, (6,))
    network = VitaVLANetwork(
        backbone=backbone,
        state_encoder=StateEncoder(state_dim=S, width=backbone.width, gripper_dims=(6, 7)),
        queries=ActionQueries(
            num_queries=T, width=backbone.width, shared=True, init_std=backbone.embedding_std
        ),
        mapper=ActionMapper(width=backbone.width, feature_dim=E),
        decoder=ActionDecoder(kind="seer", feature_dim=E, spec=spec),
        chunk_size=T,
    )
    apply_stage(network.parts(), "align")
    return network


class SavedBytes:
    """Counts what autograd keeps for backward, parameters and shared memory counted out."""

    def __init__(self, network: nn.Module):
        self.seen = {p.untyped_storage().data_ptr() for p in network.parameters()}
        self.total = 0
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.seen:
            self.seen.add(storage.data_ptr())
            self.total += storage.nbytes()
        return tensor


def benchmark_align(
    *,
    text: dict = TEXT,
    vision: dict = VISION,
    image_size: int = 224,
    batch_size: int = 16,
    repeats: int = 5,
) -> dict:
    """Compare both ways to compute an align step.

    Args:
        text: Shape of the language model.
        vision: Shape of the image encoder.
        image_size: Pixels per side.
        batch_size: B.
        repeats: Timed steps per way, interleaved.

    Returns:
        ``align_speedup`` and ``align_memory_ratio`` (naive / cached), ``align_grad_diff`` (largest difference
        of a gradient, relative to the largest of its tensor), and the raw figures: CPU seconds, bytes.
    """
    torch.manual_seed(0)
    network = make_network(text, vision, image_size)
    images = [torch.rand(batch_size, 3, image_size, image_size) for _ in range(2)]
    state, target = torch.randn(batch_size, S), torch.randn(batch_size, T, E)
    learns = [p for p in network.parameters() if p.requires_grad]
    ways = {"naive": False, "cached": True}

    def step(cached: bool) -> list[Tensor]:
        network.backbone.cached = cached
        loss, _ = align_loss(network.features(images, [INSTRUCTION] * batch_size, state), target, kind="mse")
        return torch.autograd.grad(loss, learns)

    seconds, saved, gradients = {way: [] for way in ways}, {}, {}
    for way, cached in ways.items():
        count = SavedBytes(network)
        with count.hooks:
            gradients[way] = step(cached)
        saved[way] = count.total
    for _ in range(repeats):
        for way, cached in ways.items():
            start = time.process_time()
            step(cached)
            seconds[way].append(time.process_time() - start)
    median = {way: statistics.median(values) for way, values in seconds.items()}
    backbone, forward = network.backbone, []
    pixels = backbone.prompts.encode(images, [INSTRUCTION] * batch_size, 1 + T).pixels
    runs = (
        lambda: backbone.vlm.base_model.get_image_features(**pixels),
        lambda: network.features(images, [INSTRUCTION] * batch_size, state),
    )
    for run in runs:
        with torch.no_grad():
            start = time.process_time()
            run()
            forward.append(time.process_time() - start)
    pairs = zip(gradients["naive"], gradients["cached"], strict=True)
    return {
        "align_speedup": median["naive"] / median["cached"],
        "align_memory_ratio": saved["naive"] / saved["cached"],
        "align_grad_diff": max(((a - b).abs().max() / a.abs().max()).item() for a, b in pairs),
        "image_share_of_forward": forward[0] / forward[1],
        "seconds": seconds,
        "saved_bytes": saved,
        "shape": {"text": text, "vision": vision, "image_size": image_size, "batch_size": batch_size},
    }


def main() -> None:
    """Run it at the documented size and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "bench" / "align.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = benchmark_align(repeats=arguments.repeats)
    result |= {
        "command": "python runs/bench_align.py",
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "threads": 1,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    for key in ("align_speedup", "align_memory_ratio", "align_grad_diff"):
        print(f"{key}: {result[key]:.3g}")


if __name__ == "__main__":
    main()
