"""MAE ViT-B/16 and CLIP ViT-B/32 as their authors published them, turned into Hugging Face's classes."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lerobot_policy_vita_vla.teacher.seer.official.torch_files import (
    is_script,
    read_checkpoint,
    read_script_tensors,
)
from lerobot_policy_vita_vla.teacher.weights import load_strictly

VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
MAE_EPS = 1e-6
"""Of the ViT's layer norms as its authors built it; Hugging Face's configuration says 1e-12."""
HEAD_WIDTH = 64
"""Of both original encoders, at every size."""
CLIP_PATCH = 32
"""Pixels per side of a patch of CLIP's image tower, which nothing here reads, but which tells ViT-B/32 from
ViT-B/16, whose text tower has the same shapes."""


def original_mae(path: Path, fix: str) -> nn.Module:
    """Facebook's ``{"model": tensors}``; the decoder that some versions hold is left out.

    Args:
        path: ``mae_pretrain_vit_base.pth``.
        fix: What to do about a file that does not hold it.

    Raises:
        ValueError: The file is damaged, unsafe or of another model.
    """
    from transformers import ViTMAEConfig, ViTMAEModel

    saved = read_checkpoint(path)
    tensors = saved.get("model", saved) if isinstance(saved, dict) else {}
    tensors = {k: v for k, v in tensors.items() if not k.startswith(("decoder_", "mask_token"))}
    layers = _count(tensors, r"blocks\.(\d+)\.")
    wanted = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight")
    _require(tensors, wanted, path, fix)
    width, patch = tensors["cls_token"].shape[-1], tensors["patch_embed.proj.weight"].shape[-1]
    side = round((tensors["pos_embed"].shape[1] - 1) ** 0.5)
    vit = ViTMAEModel(
        ViTMAEConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=width // HEAD_WIDTH,
            intermediate_size=tensors["blocks.0.mlp.fc1.weight"].shape[0],
            image_size=side * patch,
            patch_size=patch,
            layer_norm_eps=MAE_EPS,
            mask_ratio=0.0,
        )
    )
    names = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj.": "embeddings.patch_embeddings.projection.",
        "norm.": "layernorm.",
        "blocks.": "encoder.layer.",
        ".norm1.": ".layernorm_before.",
        ".norm2.": ".layernorm_after.",
        ".attn.proj.": ".attention.output.dense.",
        ".mlp.fc1.": ".intermediate.dense.",
        ".mlp.fc2.": ".output.dense.",
    }
    qkv = {".attn.qkv.": [f".attention.attention.{part}." for part in ("query", "key", "value")]}
    load_strictly(vit, _renamed(tensors, names, qkv), path)
    return vit.eval()


def original_clip(path: Path, fix: str) -> tuple[nn.Module, Any]:
    """OpenAI's TorchScript archive or its state dict, without the image tower; the model and its tokenizer.

    Args:
        path: ``ViT-B-32.pt``, beside its vocabulary.
        fix: What to do about a file that does not hold it.

    Raises:
        ValueError: The file is damaged, unsafe or of another model, or the vocabulary is missing.
    """
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    if not path.with_name(VOCABULARY).is_file():
        raise ValueError(
            f"{path} has no vocabulary: put {VOCABULARY}, which comes with OpenAI's `clip` package, into "
            f"{path.parent}, or take Hugging Face's copy, which holds both. {fix}"
        )
    saved = read_script_tensors(path) if is_script(path) else read_checkpoint(path)
    picture = saved.get("visual.conv1.weight") if isinstance(saved, dict) else None
    check_patch(picture.shape[-1] if isinstance(picture, Tensor) else None, path, fix)
    dropped = ("visual.", "logit_scale", "input_resolution", "context_length", "vocab_size")
    tensors = {k: v for k, v in saved.items() if not k.startswith(dropped)} if isinstance(saved, dict) else {}
    first = "transformer.resblocks.0.mlp.c_fc.weight"
    wanted = ("token_embedding.weight", "positional_embedding", "text_projection", first)
    _require(tensors, wanted, path, fix)
    vocabulary, width = tensors["token_embedding.weight"].shape
    projection = tensors.pop("text_projection")
    model = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=tensors[first].shape[0],
            projection_dim=projection.shape[1],
            num_hidden_layers=_count(tensors, r"transformer\.resblocks\.(\d+)\."),
            num_attention_heads=width // HEAD_WIDTH,
            max_position_embeddings=len(tensors["positional_embedding"]),
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
        )
    )
    names = {
        "token_embedding.": "text_model.embeddings.token_embedding.",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "transformer.resblocks.": "text_model.encoder.layers.",
        "ln_final.": "text_model.final_layer_norm.",
        ".ln_1.": ".layer_norm1.",
        ".ln_2.": ".layer_norm2.",
        ".attn.out_proj.": ".self_attn.out_proj.",
        ".mlp.c_fc.": ".mlp.fc1.",
        ".mlp.c_proj.": ".mlp.fc2.",
    }
    qkv = {".attn.in_proj_": [f".self_attn.{part}_proj." for part in "qkv"]}
    state = {**_renamed(tensors, names, qkv), "text_projection.weight": projection.t().float()}
    load_strictly(model, state, path)
    return model.eval(), _clip_tokenizer(path.with_name(VOCABULARY), vocabulary)


def check_patch(patch: int | None, path: Path, fix: str) -> None:
    """Refuse a CLIP whose image tower has other patches than ViT-B/32's; None is one that does not say."""
    if patch not in (None, CLIP_PATCH):
        raise ValueError(
            f"{path} is a CLIP whose images come in patches of {patch} px: Seer reads texts as "
            f"ViT-B/{CLIP_PATCH} encodes them. {fix}"
        )


def _clip_tokenizer(path: Path, n_tokens: int) -> Any:
    """CLIP's tokenizer from its published merges: 256 bytes, the same ending a word, merges, two marks."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    n_merges = n_tokens - 2 * 256 - 2
    try:
        lines = gzip.decompress(path.read_bytes()).decode().split("\n")[1 : 1 + n_merges]
    except (gzip.BadGzipFile, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); copy it again from OpenAI's `clip` package") from None
    merges = [tuple(line.split()) for line in lines]
    if len(merges) != n_merges or any(len(pair) != 2 for pair in merges):
        raise ValueError(
            f"{path} does not hold the {n_merges} merges of this CLIP; copy it again from OpenAI's `clip` "
            "package"
        )
    units = list(bytes_to_unicode().values())
    tokens = [*units, *(f"{unit}</w>" for unit in units), *("".join(pair) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)


def _renamed(
    tensors: dict[str, Tensor], names: dict[str, str], qkv: dict[str, list[str]]
) -> dict[str, Tensor]:
    """Original names -> Hugging Face's; query, key and value, stored as one there, come apart."""
    found = {}
    for key, tensor in tensors.items():
        for old, new in names.items():
            if old.startswith(".") and old in key:
                key = key.replace(old, new)
            elif not old.startswith(".") and key.startswith(old):
                key = new + key.removeprefix(old)
        joined = next((old for old in qkv if old in key), None)
        parts = [key] if joined is None else [key.replace(joined, new) for new in qkv[joined]]
        found |= dict(zip(parts, tensor.float().chunk(len(parts)), strict=True))
    return found


def _require(tensors: dict[str, Any], names: tuple[str, ...], path: Path, fix: str) -> None:
    if missing := [name for name in names if name not in tensors]:
        raise ValueError(f"{path} is another model: it lacks {', '.join(missing)}. {fix}")
    if strange := [name for name, value in tensors.items() if not isinstance(value, Tensor)]:
        raise ValueError(
            f"{path} holds no tensor under {strange[0]!r}, but a {type(tensors[strange[0]]).__name__}"
        )


def _count(tensors: dict[str, Any], pattern: str) -> int:
    found = [int(match.group(1)) for name in tensors if (match := re.match(pattern, name))]
    return max(found, default=-1) + 1
