r"""Which tensor of VITA-1.5's checkpoint becomes which tensor of `vita_vl`.

Names on the left are ours (transformers' InternVL), names on the right VITA's, found by `origin`. Four kinds
of change: renaming, cutting the image encoder's fused query-key-value weights into thirds, halving the
projector's first weight, and leaving out the audio encoder. Halving stands for VITA's `features * 0.5` before
the pixel shuffle: W (x / 2) + b = (W / 2) x + b, and halving a floating-point number is exact (but for the
very smallest).

Source: VITA's published code (image encoder `InternVisionModel`, projector `mlp2x_gelu`) and InternViT's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

OUR_VISION = "model.vision_tower."
VITA_VISION = "model.vision_tower.vision_tower."
VISION_PREFIXES = ("", "vision_model.")
"""Prefixes of the same names in a folder that holds InternViT, alone or inside an InternVL."""

DROPPED = (r"model\.audio_encoder\..*", r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
"""Left out: the audio encoder, and a table of constants that old versions of transformers stored."""

VISION_NAMES = {
    r"embeddings\.cls_token": r"embeddings.class_embedding",
    r"embeddings\.position_embeddings": r"embeddings.position_embedding",
    r"embeddings\.patch_embeddings\.projection\.(\w+)": r"embeddings.patch_embedding.\1",
    r"encoder\.layer\.(\d+)\.layernorm_before\.(\w+)": r"encoder.layers.\1.norm1.\2",
    r"encoder\.layer\.(\d+)\.layernorm_after\.(\w+)": r"encoder.layers.\1.norm2.\2",
    r"encoder\.layer\.(\d+)\.lambda_([12])": r"encoder.layers.\1.ls\2",
    r"encoder\.layer\.(\d+)\.attention\.[qkv]_proj\.(\w+)": r"encoder.layers.\1.attn.qkv.\2",
    r"encoder\.layer\.(\d+)\.attention\.([qk])_norm\.(\w+)": r"encoder.layers.\1.attn.\2_norm.\3",
    r"encoder\.layer\.(\d+)\.attention\.projection_layer\.(\w+)": r"encoder.layers.\1.attn.proj.\2",
    r"encoder\.layer\.(\d+)\.mlp\.(fc[12])\.(\w+)": r"encoder.layers.\1.mlp.\2.\3",
}
"""Image encoder: our name (a pattern) -> VITA's, both without their prefix."""

OTHER_NAMES = {
    r"model\.multi_modal_projector\.linear_1\.(\w+)": r"model.mm_projector.0.\1",
    r"model\.multi_modal_projector\.linear_2\.(\w+)": r"model.mm_projector.2.\1",
    r"model\.language_model\.(.+)": r"model.\1",
    r"lm_head\.weight": r"lm_head.weight",
}
"""Projector and language model: our name -> VITA's."""


@dataclass(frozen=True)
class Origin:
    """How a tensor of ours is made.

    Args:
        name: VITA's name; of the image encoder without the prefix.
        vision: Whether it belongs to the image encoder.
        third: Which third of the first axis (0 query, 1 key, 2 value), None for all of it.
        scale: What it is multiplied by.
    """

    name: str
    vision: bool = False
    third: int | None = None
    scale: float = 1.0


def origin(name: str) -> Origin:
    """How the tensor `name` of `vita_vl` is made."""
    if name.startswith(OUR_VISION):
        inside = name.removeprefix(OUR_VISION)
        fused = re.search(r"\.([qkv])_proj\.", inside)
        third = "qkv".index(fused[1]) if fused else None
        return Origin(_rename(inside, VISION_NAMES), vision=True, third=third)
    scale = 0.5 if name == "model.multi_modal_projector.linear_1.weight" else 1.0
    return Origin(_rename(name, OTHER_NAMES), scale=scale)


def expected_shapes(shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, tuple[int, ...]], ...]:
    """What a checkpoint must hold for our tensors to be made of it.

    Args:
        shapes: Name -> shape of every tensor of a `vita_vl` model.

    Returns:
        Name -> shape of language model and projector, and the same of the image encoder (without prefix).
    """
    others: dict[str, tuple[int, ...]] = {}
    vision: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        made = origin(name)
        if made.third is not None:
            shape = (3 * shape[0], *shape[1:])
        (vision if made.vision else others)[made.name] = tuple(shape)
    return others, vision


def is_dropped(name: str) -> bool:
    """Whether a tensor of VITA's checkpoint is left out on purpose."""
    return any(re.fullmatch(pattern, name) for pattern in DROPPED)


def vision_prefix(names: Iterable[str]) -> str | None:
    """The prefix under which a folder holds InternViT, or None if it does not."""
    names = set(names)
    for prefix in VISION_PREFIXES:
        if f"{prefix}embeddings.class_embedding" in names:
            return prefix
    return None


def _rename(name: str, table: Mapping[str, str]) -> str:
    for pattern, replacement in table.items():
        if found := re.fullmatch(pattern, name):
            return found.expand(replacement)
    raise AssertionError(f"no rule for {name}; this version of transformers names InternVL's tensors anew")
