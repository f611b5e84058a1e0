"""From the settings files of a VITA-1.5 checkpoint to the configuration and the processor of `vita_vl`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AddedToken, AutoTokenizer, GotOcr2ImageProcessor

from lerobot_policy_vita_vla.vlm.vita15_model import (
    CHAT_TEMPLATE,
    IMAGE_TOKEN,
    VitaVLConfig,
    VitaVLForConditionalGeneration,
    VitaVLProcessor,
)

IMAGE_SIZE = 200
"""Pixels along each side: the paper's published code resizes every camera to 200 x 200, which gives 49
tokens. VITA itself was trained at 448 (256 tokens)."""

INTERN_VIT_300M = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "image_size": 448,
    "patch_size": 14,
    "num_channels": 3,
    "qkv_bias": True,
    "qk_normalization": False,
    "norm_type": "layer_norm",
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu",
}
"""InternViT-300M-448px, VITA-1.5's image encoder: the published configuration, under its own names."""

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
"""ImageNet's, from the preprocessor_config.json of InternViT-300M-448px."""

BICUBIC = 3
"""PIL's number, which the same file names."""

NEEDED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "mm_hidden_size",
)
OPTIONAL = (
    "hidden_act",
    "attention_dropout",
    "initializer_range",
    "use_sliding_window",
    "sliding_window",
    "max_window_layers",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
REQUIRED_VALUES = {
    "model_type": ("vita-qwen2", "vita-Qwen2"),
    "mm_projector_type": ("mlp2x_gelu",),
    "tie_word_embeddings": (False,),
    "use_s2": (False, None),
    "rope_scaling": (None,),
    "mm_vision_select_layer": (-1, None),
}
"""What the conversion is right for. VITA-1.0 (a mixture of experts), other projectors and other layers of the
image encoder would need another network."""


def read_config(source: Path, vision: Path | None) -> VitaVLConfig:
    """The configuration of a converted checkpoint.

    Args:
        source: VITA-1.5's folder.
        vision: InternViT's folder, whose configuration is taken then; None stands for InternViT-300M-448px.

    Raises:
        ValueError: A settings file is missing or describes another network.
    """
    stored = _read_json(source / "config.json")
    for name, allowed in REQUIRED_VALUES.items():
        if stored.get(name) not in allowed:
            raise ValueError(
                f"{source / 'config.json'} says {name}={stored.get(name)!r}, expected {allowed[0]!r}: this "
                "is not VITA-1.5; download VITA-MLLM/VITA-1.5, or pass its folder"
            )
    if missing := [name for name in NEEDED if stored.get(name) is None]:
        raise ValueError(f"{source / 'config.json'} lacks {', '.join(missing)}; download it again")
    encoder = _vision_settings(vision)
    folded = 4 * encoder["hidden_size"]
    if stored["mm_hidden_size"] != folded:
        raise ValueError(
            f"{source / 'config.json'} says mm_hidden_size={stored['mm_hidden_size']}, but 2 x 2 patches of "
            f"an image encoder of width {encoder['hidden_size']} are {folded}; pass the encoder that the "
            "checkpoint was trained with as --vision"
        )
    return VitaVLConfig(
        text_config={name: stored[name] for name in NEEDED[:-1]}
        | {name: stored[name] for name in OPTIONAL if stored.get(name) is not None}
        | {"model_type": "qwen2", "tie_word_embeddings": False},
        vision_config={
            "attention_bias": encoder["qkv_bias"],
            "use_qk_norm": encoder["qk_normalization"],
            # Without a final norm, as in InternViT; "mean pooling" is what transformers calls that.
            "use_mean_pooling": True,
        }
        | {k: v for k, v in encoder.items() if k not in ("qkv_bias", "qk_normalization")},
        downsample_ratio=0.5,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=False,
        architectures=[VitaVLForConditionalGeneration.__name__],
    )


def build_processor(source: Path, config: VitaVLConfig, image_size: int) -> VitaVLProcessor:
    """The processor of a converted checkpoint; sets the image token in ``config``.

    Args:
        source: VITA-1.5's folder, for its tokenizer.
        config: Of the same checkpoint.
        image_size: Pixels along each side of an image.

    Raises:
        ValueError: The tokenizer does not belong to the weights, or the size does not divide into tokens.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, config=config.text_config, padding_side="left", local_files_only=True
        )
    except Exception as error:  # the tokenizers library raises nothing more specific
        raise ValueError(f"the tokenizer in {source} cannot be read ({error}); download it again") from error
    if IMAGE_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False)])
    if tokenizer.pad_token_id is None:
        raise ValueError(f"{source / 'tokenizer_config.json'} names no pad_token; Qwen2.5's is <|endoftext|>")
    if len(tokenizer) > config.text_config.vocab_size:
        raise ValueError(
            f"the tokenizer in {source} has {len(tokenizer)} tokens, the model's vocabulary "
            f"{config.text_config.vocab_size}; the files are not of one checkpoint, download it again"
        )
    processor = VitaVLProcessor(
        GotOcr2ImageProcessor(
            size={"height": image_size, "width": image_size},
            image_mean=MEAN,
            image_std=STD,
            resample=BICUBIC,
            crop_to_patches=False,
        ),
        tokenizer,
        chat_template=CHAT_TEMPLATE,
        patch_size=config.vision_config.patch_size[0],
    )
    config.image_token_id = processor.image_token_id
    config.image_seq_length = processor.tokens_per_image(image_size, image_size)
    return processor


def _vision_settings(vision: Path | None) -> dict[str, Any]:
    if vision is None:
        return INTERN_VIT_300M
    stored = _read_json(vision / "config.json")
    stored = stored.get("vision_config", stored)
    if missing := [name for name in INTERN_VIT_300M if name not in stored and name != "num_channels"]:
        raise ValueError(
            f"{vision / 'config.json'} is not InternViT's, it lacks {', '.join(missing)}; pass the folder of "
            "OpenGVLab/InternViT-300M-448px as --vision"
        )
    return {name: stored.get(name, default) for name, default in INTERN_VIT_300M.items()}


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(f"{file} does not exist; pass the folder that holds the downloaded checkpoint")
    try:
        return dict(json.loads(file.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error}); download it again") from error
