"""A tiny VITA-1.5 as its publishers store it, and its arithmetic stated again in plain torch.

Nothing here uses the package: names, shapes and formulas are those of the published code of VITA and
InternViT (image encoder, `mlp2x_gelu`, pixel shuffle), read as facts. The language model is transformers'
Qwen2Model, the class that VITA's own is derived from.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from transformers import Qwen2Config, Qwen2Model

from tiny_vlms import tokenizer

VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 448,
    "patch_size": 14,
    "qkv_bias": True,
    "qk_normalization": False,
    "norm_type": "layer_norm",
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu",
    "model_type": "intern_vit_6b",
}
TEXT = {
    "vocab_size": 512,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "use_sliding_window": False,
    "sliding_window": None,
    "max_window_layers": 28,
}
SPECIALS = ["<|im_start|>", "<|image_pad|>"]


def published_shapes(vision: dict = VISION, text: dict = TEXT) -> tuple[dict, dict]:
    """Name -> shape of the checkpoint without the image encoder, and of InternViT without a prefix."""
    d, m, p = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    positions = (vision["image_size"] // p) ** 2 + 1
    encoder = {
        "embeddings.class_embedding": (1, 1, d),
        "embeddings.position_embedding": (1, positions, d),
        "embeddings.patch_embedding.weight": (d, 3, p, p),
        "embeddings.patch_embedding.bias": (d,),
    }
    for i in range(vision["num_hidden_layers"]):
        layer = {
            "attn.qkv": [(3 * d, d), (3 * d,)],
            "attn.proj": [(d, d), (d,)],
            "mlp.fc1": [(m, d), (m,)],
            "mlp.fc2": [(d, m), (d,)],
            "norm1": [(d,), (d,)],
            "norm2": [(d,), (d,)],
        }
        for name, (weight, bias) in layer.items():
            encoder[f"encoder.layers.{i}.{name}.weight"] = weight
            encoder[f"encoder.layers.{i}.{name}.bias"] = bias
        encoder |= {f"encoder.layers.{i}.ls1": (d,), f"encoder.layers.{i}.ls2": (d,)}
    w, h = text["hidden_size"], text["intermediate_size"]
    kv = w // text["num_attention_heads"] * text["num_key_value_heads"]
    others = {
        "model.embed_tokens.weight": (text["vocab_size"], w),
        "model.norm.weight": (w,),
        "lm_head.weight": (text["vocab_size"], w),
        "model.mm_projector.0.weight": (w, 4 * d),
        "model.mm_projector.0.bias": (w,),
        "model.mm_projector.2.weight": (w, w),
        "model.mm_projector.2.bias": (w,),
        # A few of the audio encoder's.
        "model.audio_encoder.encoder.enc.0.core.weight": (8, 8),
        "model.audio_encoder.adpter.project.weight": (w, 8),
    }
    for i in range(text["num_hidden_layers"]):
        layer = {
            "self_attn.q_proj": [(w, w), (w,)],
            "self_attn.k_proj": [(kv, w), (kv,)],
            "self_attn.v_proj": [(kv, w), (kv,)],
            "self_attn.o_proj": [(w, w)],
            "mlp.gate_proj": [(h, w)],
            "mlp.up_proj": [(h, w)],
            "mlp.down_proj": [(w, h)],
            "input_layernorm": [(w,)],
            "post_attention_layernorm": [(w,)],
        }
        for name, shapes in layer.items():
            for kind, shape in zip(("weight", "bias"), shapes, strict=False):
                others[f"model.layers.{i}.{name}.{kind}"] = shape
    return others, encoder


def random_weights(seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[dict, dict]:
    """Random tensors of `published_shapes`, large enough that every part matters."""
    generator = torch.Generator().manual_seed(seed)

    def draw(name: str, shape: tuple) -> Tensor:
        noise = torch.randn(shape, generator=generator)
        norm = "norm" in name and name.endswith("weight") or name.split(".")[-1] in ("ls1", "ls2")
        spread = 0.2 if norm or name.endswith("bias") else 1.5 * shape[-1] ** -0.5 if len(shape) == 2 else 0.3
        return (noise * spread + (1.0 if norm else 0.0)).to(dtype)

    return tuple({name: draw(name, shape) for name, shape in part.items()} for part in published_shapes())


def write_settings(folder: Path, **changes) -> None:
    """config.json and tokenizer of a checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    config = TEXT | {
        "architectures": ["VITAQwen2ForCausalLM"],
        "model_type": "vita-Qwen2",
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": 4 * VISION["hidden_size"],
        "mm_vision_tower": "InternViT-300M-448px",
        "image_aspect_ratio": "square",
        "tie_word_embeddings": False,
        "use_s2": False,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config | changes))
    tokenizer(SPECIALS, pad="<|endoftext|>", eos="<|im_end|>").save_pretrained(folder)


def write_shards(folder: Path, weights: dict, shards: int = 3, form: str = "safetensors") -> None:
    """Weights as ``shards`` files with an index, or as one file; ``form`` is "safetensors" or "bin"."""
    folder.mkdir(parents=True, exist_ok=True)
    stem, names = {"safetensors": "model", "bin": "pytorch_model"}[form], sorted(weights)
    index = {}
    for number in range(shards):
        file = f"{stem}-{number + 1:05d}-of-{shards:05d}.{form}" if shards > 1 else f"{stem}.{form}"
        part = {name: weights[name] for name in names[number::shards]}
        (save_file if form == "safetensors" else torch.save)(part, folder / file)
        index |= dict.fromkeys(part, file)
    if shards > 1:
        (folder / f"{stem}.{form}.index.json").write_text(json.dumps({"weight_map": index}))


def write_checkpoint(
    folder: Path, *, inside: bool = True, shards: int = 3, form: str = "safetensors", **kwargs
) -> Path:
    """A checkpoint with or without the image encoder inside, and one beside it as ``vision``."""
    others, encoder = random_weights(**kwargs)
    if inside:
        others |= {f"model.vision_tower.vision_tower.{name}": value for name, value in encoder.items()}
    write_settings(folder)
    write_shards(folder, others, shards, form)
    write_vision(folder.with_name("vision"), encoder)
    return folder


def write_vision(folder: Path, encoder: dict, prefix: str = "", shards: int = 1) -> Path:
    """InternViT in a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(VISION))
    write_shards(folder, {prefix + name: value for name, value in encoder.items()}, shards)
    return folder


# --- the published arithmetic


def intern_vit(w: dict, pixels: Tensor) -> Tensor:
    """(N, 3, H, W) -> (N, 1+P, D), class token first: InternViT, norms before each half, none at the end."""
    d, heads, patch = VISION["hidden_size"], VISION["num_attention_heads"], VISION["patch_size"]
    patches = F.conv2d(
        pixels, w["embeddings.patch_embedding.weight"], w["embeddings.patch_embedding.bias"], stride=patch
    )
    n, _, rows, columns = patches.shape
    x = torch.cat(
        [w["embeddings.class_embedding"].expand(n, 1, d), patches.flatten(2).transpose(1, 2)], dim=1
    )
    trained = VISION["image_size"] // patch
    first, grid = w["embeddings.position_embedding"].split([1, trained**2], dim=1)
    grid = grid.reshape(1, trained, trained, d).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(rows, columns), mode="bicubic", align_corners=False)
    x = x + torch.cat([first, grid.flatten(2).transpose(1, 2)], dim=1)
    for i in range(VISION["num_hidden_layers"]):
        p = {k.removeprefix(f"encoder.layers.{i}."): v for k, v in w.items() if f"layers.{i}." in k}
        y = F.layer_norm(x, (d,), p["norm1.weight"], p["norm1.bias"], VISION["layer_norm_eps"])
        q, k, v = F.linear(y, p["attn.qkv.weight"], p["attn.qkv.bias"]).split(d, dim=-1)
        q, k, v = (t.reshape(n, -1, heads, d // heads).transpose(1, 2) for t in (q, k, v))
        attention = torch.softmax(q @ k.transpose(-2, -1) / (d // heads) ** 0.5, dim=-1)
        y = (attention @ v).transpose(1, 2).reshape(n, -1, d)
        x = x + p["ls1"] * F.linear(y, p["attn.proj.weight"], p["attn.proj.bias"])
        y = F.layer_norm(x, (d,), p["norm2.weight"], p["norm2.bias"], VISION["layer_norm_eps"])
        y = F.gelu(F.linear(y, p["mlp.fc1.weight"], p["mlp.fc1.bias"]))
        x = x + p["ls2"] * F.linear(y, p["mlp.fc2.weight"], p["mlp.fc2.bias"])
    return x


def image_tokens(
    others: dict, encoder: dict, pixels: Tensor, *, scale: float = 0.5, layer_norm: bool = False
) -> Tensor:
    """(N, 3, H, W) -> (N, tokens, width). ``scale`` and ``layer_norm`` exist to be changed by a test."""
    features = intern_vit(encoder, pixels)[:, 1:] * scale
    n, count, d = features.shape
    side = int(count**0.5)
    grid = features.reshape(n, side, side, d)
    folded = torch.stack(
        [
            torch.cat([grid[:, 2 * r + a, 2 * c + b] for a in (0, 1) for b in (0, 1)], dim=-1)
            for r in range(side // 2)
            for c in range(side // 2)
        ],
        dim=1,
    )
    if layer_norm:
        folded = F.layer_norm(folded, (4 * d,))
    hidden = F.linear(folded, others["model.mm_projector.0.weight"], others["model.mm_projector.0.bias"])
    return F.linear(
        F.gelu(hidden), others["model.mm_projector.2.weight"], others["model.mm_projector.2.bias"]
    )


def hidden_states(others: dict, encoder: dict, parts: list, **kwargs) -> Tensor:
    """Last hidden states of one prompt.

    Args:
        others: Weights without the image encoder.
        encoder: The image encoder's.
        parts: In order, token ids as lists and images as (3, H, W).
        **kwargs: For `image_tokens`.
    """
    language = Qwen2Model(Qwen2Config(**TEXT)).eval()
    names = language.state_dict().keys()
    language.load_state_dict({name: others[f"model.{name}"] for name in names})
    embedded = [
        image_tokens(others, encoder, part.unsqueeze(0), **kwargs)[0]
        if isinstance(part, Tensor)
        else others["model.embed_tokens.weight"][part]
        for part in parts
    ]
    return language(inputs_embeds=torch.cat(embedded).unsqueeze(0)).last_hidden_state[0]
