"""Published vision-language models of the nine tested families: shapes, checkpoints, licences of the weights.

Shapes are those of the checkpoints' config.json and preprocessor_config.json, licences those of their model
cards, both written down by hand: nothing here is downloaded, so read the card before you build on a licence.
Keys are those of `tests/tiny_vlms.py`, whose builders make the models from these shapes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "patch_size": 14,
}
"""SigLIP's image encoder of 400 million parameters."""


@dataclass(frozen=True)
class Published:
    """One checkpoint.

    Attributes:
        checkpoint: Its hub id.
        licence: Of the weights.
        image_size: Pixels per side that its image processor makes.
        tied: Whether word embeddings and lm_head are one weight.
        text: The decoder's shapes.
        vision: The image encoder's shapes.
    """

    checkpoint: str
    licence: str
    image_size: int
    tied: bool
    text: dict[str, Any] = field(default_factory=dict)
    vision: dict[str, Any] = field(default_factory=dict)


def _text(
    hidden: int, inner: int, layers: int, heads: int, kv: int, words: int, **more: Any
) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": words,
        "max_position_embeddings": 8192,
        "initializer_range": 0.02,
    } | more


def _rope(*sections: int, **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "mrope_section": list(sections), "rope_theta": 1e6} | more


PUBLISHED = {
    "smolvlm": Published(
        "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
        "Apache-2.0",
        512,
        False,
        _text(960, 2560, 32, 15, 5, 49280, head_dim=64),
        {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "patch_size": 16,
            "scale_factor": 4,
        },
    ),
    "idefics3": Published(
        "HuggingFaceM4/Idefics3-8B-Llama3",
        "Apache-2.0, on Llama 3.1 (Llama 3.1 Community License)",
        364,
        False,
        _text(4096, 14336, 32, 32, 8, 128259),
        SO400M,
    ),
    "internvl": Published(
        "OpenGVLab/InternVL3-1B-hf",
        "Apache-2.0",
        448,
        False,
        _text(896, 4864, 24, 14, 2, 151674),
        {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "patch_size": [14, 14],
        },
    ),
    "qwen2_5_vl": Published(
        "Qwen/Qwen2.5-VL-7B-Instruct",
        "Apache-2.0 (the 3B: Qwen Research License, not for commercial use)",
        224,
        False,
        _text(3584, 18944, 28, 28, 4, 152064, rope_parameters=_rope(16, 24, 24)),
        {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "pixels": (3136, 12845056),
        },
    ),
    "qwen3_vl": Published(
        "Qwen/Qwen3-VL-2B-Instruct",
        "Apache-2.0",
        224,
        True,
        _text(
            2048,
            6144,
            28,
            16,
            8,
            151936,
            head_dim=128,
            rope_parameters=_rope(24, 20, 20, mrope_interleaved=True),
        ),
        {
            "depth": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_heads": 16,
            "patch_size": 16,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [5, 11, 17],
            "pixels": (65536, 16777216),
        },
    ),
    "paligemma": Published(
        "google/paligemma-3b-pt-224",
        "Gemma Terms of Use",
        224,
        True,
        _text(2048, 16384, 18, 8, 1, 257216, head_dim=256),
        SO400M,
    ),
    "paligemma2": Published(
        "google/paligemma2-3b-pt-224",
        "Gemma Terms of Use",
        224,
        True,
        _text(2304, 9216, 26, 8, 4, 257216, head_dim=256, query_pre_attn_scalar=256),
        SO400M,
    ),
    "llava_onevision": Published(
        "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
        "Apache-2.0",
        384,
        True,
        _text(896, 4864, 24, 14, 2, 152000),
        SO400M
        | {
            "num_hidden_layers": 26,
            "pinpoints": [[384 * i, 384 * j] for i in range(1, 7) for j in range(1, 7)],
        },
    ),
    "gemma3": Published(
        "google/gemma-3-4b-it",
        "Gemma Terms of Use",
        896,
        True,
        _text(
            2560,
            10240,
            34,
            8,
            4,
            262208,
            head_dim=256,
            query_pre_attn_scalar=256,
            sliding_window=1024,
            layer_types=["full_attention" if (i + 1) % 6 == 0 else "sliding_attention" for i in range(34)],
        ),
        SO400M | {"tokens_per_image": 256},
    ),
}
