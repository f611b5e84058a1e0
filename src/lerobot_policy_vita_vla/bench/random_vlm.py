"""Vision-language models of published shapes with random weights and real processors: no downloads.

Speed depends on shapes, types and token counts, not on what the weights say. Tokenizers are byte-level and
small; the word embedding has the published size all the same.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lerobot_policy_vita_vla.vlm.model import BICUBIC, CHAT_TEMPLATE, build_tokenizer


@dataclass(frozen=True)
class Shape:
    """What decides how much a VLM computes.

    Args:
        kind: ``"smolvlm"`` (SigLIP, pixel shuffle, Llama) or ``"internvl"`` (InternViT, pixel shuffle,
            two-layer projector, Qwen2).
        image: Pixels along each side of a picture.
        patch: Pixels along each side of a patch.
        fold: Patches along each side that become one token.
        vision: hidden, intermediate, layers, heads of the image encoder.
        text: hidden, intermediate, layers, heads, key-value heads of the language model.
        vocabulary: Rows of the word embedding.
    """

    kind: str
    image: int
    patch: int
    fold: int
    vision: tuple[int, int, int, int]
    text: tuple[int, int, int, int, int]
    vocabulary: int

    @property
    def image_tokens(self) -> int:
        """Tokens that one picture becomes."""
        return (self.image // self.patch // self.fold) ** 2

    def toy(self) -> Shape:
        """The same kind in a size that takes milliseconds."""
        return replace(
            self, image=32, patch=8, fold=2, vision=(32, 64, 1, 2), text=(48, 96, 2, 4, 2), vocabulary=400
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a result."""
        return asdict(self)


SHAPES = {
    # SmolVLM2-500M with the first 16 of its 32 layers, which is what SmolVLA uses.
    "smolvlm2-500m": Shape("smolvlm", 512, 16, 4, (768, 3072, 12, 12), (960, 2560, 16, 15, 5), 49280),
    # InternViT-300M, two-layer projector, Qwen2.5-7B.
    "vita-1.5-7b": Shape("internvl", 448, 14, 2, (1024, 4096, 24, 16), (3584, 18944, 28, 28, 4), 152064),
    # The shape in which `align` is compared: a language model of 8 x 512 behind a small image encoder.
    "internvl-8x512": Shape("internvl", 224, 14, 2, (256, 1024, 2, 4), (512, 2048, 8, 8, 4), 32000),
}


def build(shape: Shape) -> tuple[Any, Any]:
    """A model of this shape with random weights (float32) and its processor."""
    return (_smolvlm if shape.kind == "smolvlm" else _internvl)(shape)


def save(shape: Shape, folder: str | Path, dtype: str = "float32") -> Path:
    """Write such a model as the hub would give it; the same seed of torch gives the same weights."""
    import torch

    model, processor = build(shape)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)


def _text(shape: Shape, tokenizer: Any) -> dict[str, Any]:
    hidden, intermediate, layers, heads, kv_heads = shape.text
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "vocab_size": max(shape.vocabulary, len(tokenizer)),
        "max_position_embeddings": 2048,
        # As in SmolVLM2-500M; SmolVLA's code looks for a vocabulary head of its own.
        "tie_word_embeddings": False,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _vision(shape: Shape) -> dict[str, Any]:
    hidden, intermediate, layers, heads = shape.vision
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


def _smolvlm(shape: Shape) -> tuple[Any, Any]:
    import transformers

    tokenizer = build_tokenizer()
    edge = {"longest_edge": shape.image}
    options = {"size": edge, "max_image_size": edge, "resample": BICUBIC}
    processor = transformers.SmolVLMProcessor(
        transformers.SmolVLMImageProcessor(do_image_splitting=False, **options),
        tokenizer,
        transformers.SmolVLMVideoProcessor(**options),
        image_seq_len=shape.image_tokens,
        chat_template=CHAT_TEMPLATE,
    )
    config = transformers.SmolVLMConfig(
        vision_config=_vision(shape) | {"image_size": shape.image, "patch_size": shape.patch},
        text_config=_text(shape, tokenizer) | {"model_type": "llama"},
        scale_factor=shape.fold,
        image_token_id=processor.image_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    return transformers.SmolVLMForConditionalGeneration(config), processor


def _internvl(shape: Shape) -> tuple[Any, Any]:
    import transformers

    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer().backend_tokenizer,
        pad_token="<pad>",
        eos_token="<end_of_utterance>",
        extra_special_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    )
    size = {"height": shape.image, "width": shape.image}
    processor = transformers.InternVLProcessor(
        image_processor=transformers.GotOcr2ImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=transformers.InternVLVideoProcessor(size=size),
        image_seq_length=shape.image_tokens,
        chat_template=CHAT_TEMPLATE.replace("<image>", "<IMG_CONTEXT>\n"),
    )
    sides = {"image_size": [shape.image] * 2, "patch_size": [shape.patch] * 2}
    config = transformers.InternVLConfig(
        text_config=_text(shape, tokenizer) | {"model_type": "qwen2"},
        vision_config=_vision(shape) | sides | {"attention_bias": True},
        image_token_id=processor.image_token_id,
        image_seq_length=shape.image_tokens,
        downsample_ratio=1 / shape.fold,
        tie_word_embeddings=False,
    )
    return transformers.InternVLForConditionalGeneration(config), processor
