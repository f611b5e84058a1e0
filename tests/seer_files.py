"""Small files in the formats of Seer's releases and of the encoders that they leave out."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import torch
from torch import nn

from lerobot_policy_vita_vla.teacher.seer.official.layouts import SeerLayout

PUBLISHED = Path(__file__).with_name("seer_checkpoint_keys.json")

C, TEXT, HEADS = 64, 48, 4
MERGES = ["o p", "op e", "ope n</w>", "t h", "th e</w>"]
VOCABULARY = 2 * 256 + len(MERGES) + 2
START, END = VOCABULARY - 2, VOCABULARY - 1
# By hand: bytes 33 ("!") to 126 come first, as themselves and 256 further on as a word's last; then merges.
INSTRUCTIONS = {
    "Open the  it": [START, 512 + 2, 512 + 4, ord("i") - 33, 256 + ord("t") - 33, END],
    "the open": [START, 512 + 4, 512 + 2, END],
}


def tiny_layout(name: str, width: int = 32, n_obs_steps: int = 3) -> SeerLayout:
    """A layout of the published structure, small."""
    return SeerLayout(
        name,
        "base",
        width,
        HEADS,
        resampler_queries=2,
        foresight_tokens=4,
        n_obs_steps=n_obs_steps,
        pretrain_steps=n_obs_steps + 2,
        n_layers=2,
        text_dim=TEXT,
        text_width=C,
        text_layers=2,
        vision_dim=C,
        vision_layers=2,
    )


def published_shapes(name: str) -> tuple[dict[str, tuple[int, ...]], int]:
    """Published names and shapes of a layout, and its published number of parameters."""
    published = json.loads(PUBLISHED.read_text())
    entry = published["layouts"][name]
    found = {}
    for key, shape in entry["shapes"].items():
        copies = next((n for begin, n in published["repeat"].items() if key.startswith(begin)), 1)
        found |= {key.replace("{i}", str(i)): tuple(shape) for i in range(copies)}
    return found, entry["trainable"]


def random_tensors(shapes: dict[str, tuple[int, ...]], seed: int = 0, gain: float = 1.0) -> dict:
    """Tensors that let every part be heard: norms near 1, the rest keeping a signal's size."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator)
        is_norm = len(shape) == 1 and name.endswith("weight")
        inputs = shape[0] if "transformer_backbone.h" in name else shape[-1]
        if is_norm:
            value = 1 + 0.2 * value
        elif len(shape) == 2 and not name.endswith("latents"):
            value = gain * value / inputs**0.5
        elif len(shape) == 1:
            value = 0.2 * value
        found[name] = value
    return found


def save_seer(path: Path, tensors: dict, epoch: int = 12) -> Path:
    """What Seer's training saves."""
    state = {f"module.{name}": value for name, value in tensors.items()}
    optimizer = {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]}
    saved = {"epoch": epoch, "model_state_dict": state, "optimizer_state_dict": optimizer}
    torch.save({**saved, "lr_scheduler_state_dict": {"last_epoch": 3, "lr_lambdas": [{}]}}, path)
    return path


def mae_tensors(seed: int = 1, width: int = C, layers: int = 2, side: int = 14) -> dict:
    """MAE ViT in its authors' names."""
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + side**2, width),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for i in range(layers):
        sizes = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
        sizes |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
        for name, (out, inputs) in sizes.items():
            shapes |= {f"blocks.{i}.{name}.weight": (out, inputs), f"blocks.{i}.{name}.bias": (out,)}
        for name in ("norm1", "norm2"):
            shapes |= {f"blocks.{i}.{name}.weight": (width,), f"blocks.{i}.{name}.bias": (width,)}
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(width, 3, 16, 16, generator=generator) / 27.7
    return {**random_tensors(shapes, seed), "patch_embed.proj.weight": patches}


def clip_tensors(seed: int = 2, width: int = C, layers: int = 2, length: int = 16) -> dict:
    """CLIP's text tower in its authors' names, and numbers that float16 holds exactly, as theirs are."""
    shapes = {
        "token_embedding.weight": (VOCABULARY, width),
        "positional_embedding": (length, width),
        "text_projection": (width, TEXT),
        "ln_final.weight": (width,),
        "ln_final.bias": (width,),
    }
    for i in range(layers):
        block = f"transformer.resblocks.{i}"
        shapes |= {
            f"{block}.attn.in_proj_weight": (3 * width, width),
            f"{block}.attn.in_proj_bias": (3 * width,),
        }
        sizes = {
            "attn.out_proj": (width, width),
            "mlp.c_fc": (4 * width, width),
            "mlp.c_proj": (width, 4 * width),
        }
        for name, (out, inputs) in sizes.items():
            shapes |= {f"{block}.{name}.weight": (out, inputs), f"{block}.{name}.bias": (out,)}
        for name in ("ln_1", "ln_2"):
            shapes |= {f"{block}.{name}.weight": (width,), f"{block}.{name}.bias": (width,)}
    return {name: value.half().float() for name, value in random_tensors(shapes, seed).items()}


class _Program(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


def save_mae(folder: Path, tensors: dict) -> Path:
    """As published: the encoder under "model", here with a rest of the decoder."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(
        {"model": {**tensors, "mask_token": torch.zeros(1, 1, 8)}}, folder / "mae_pretrain_vit_base.pth"
    )
    return folder


def save_clip(folder: Path, tensors: dict, patch: int = 32) -> Path:
    """As published: a TorchScript program in float16, and its vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    program = _Program()
    everything = {
        **tensors,
        "visual.conv1.weight": torch.zeros(4, 3, patch, patch),
        "logit_scale": torch.tensor(4.6),
    }
    for name, value in everything.items():
        module = program
        *path, last = name.split(".")
        for part in path:
            if part not in dict(module.named_children()):
                module.add_module(part, nn.Module())
            module = getattr(module, part)
        module.register_parameter(last, nn.Parameter(value.half(), requires_grad=False))
    program.register_buffer("context_length", torch.tensor(16))
    torch.jit.script(program).save(str(folder / "ViT-B-32.pt"))
    lines = "\n".join(["#version: 0.2", *MERGES, "never u", ""])
    (folder / "bpe_simple_vocab_16e6.txt.gz").write_bytes(gzip.compress(lines.encode()))
    return folder
