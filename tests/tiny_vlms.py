"""Random VLMs with their real processors, made on the spot: no downloads, milliseconds each.

    model, processor = build("smolvlm")
    folder = save("internvl", tmp_path)          # a folder as the hub would give it
    model, processor = build("internvl", text={"hidden_size": 512, "num_hidden_layers": 8})

A family is one function that returns ``(model, processor)``; adding one is `FAMILIES["name"] = function`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SENTENCES = [
    "Press a button from the top",
    "Open a door with a revolving joint",
    "Push and close a drawer. Open a window and slide a plate into a cabinet!",
    "user assistant system: what should the robot do, 0123456789?",
]
TEXT = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    # Far above the usual 0.02, so that attention and positions matter in a model of two layers.
    "initializer_range": 0.15,
}
QWEN_IMAGE_SIZE = {"shortest_edge": 32 * 32, "longest_edge": 32 * 32}


def tokenizer(specials: list[str], *, pad: str, eos: str, named: dict[str, str] | None = None, bos=None):
    """A byte-level BPE trained on `SENTENCES`, with the special tokens a processor wants."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokens = list(dict.fromkeys([pad, eos, *([bos] if bos else []), *specials]))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=360, special_tokens=tokens, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(SENTENCES * 4, trainer)
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=pad,
        eos_token=eos,
        bos_token=bos,
        model_max_length=1024,
        **({"extra_special_tokens": named} if named else {}),
    )
    if not named:
        made.add_special_tokens(
            {"additional_special_tokens": [t for t in tokens if t not in (pad, eos, bos)]}
        )
    return made


def chat_template(image: str, end: str = "<|im_end|>") -> str:
    """``<|im_start|>role\\n`` content ``end\\n``, one image marker per image."""
    return (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{% for c in m['content'] %}{% if c['type'] == 'image' %}"
        + image
        + "{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
        + end
        + "\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def smolvlm(text: dict[str, Any], vision: dict[str, Any], image_size: int, tied: bool):
    """SmolVLM: SigLIP-like tower, pixel shuffle, Llama."""
    named = {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "end_of_utterance_token": "<end_of_utterance>",
        "global_image_token": "<global-img>",
        "video_token": "<video>",
    }
    tok = tokenizer(
        ["<|im_start|>", *named.values()], pad="<|im_end|>", eos="<end_of_utterance>", named=named
    )
    size = {"longest_edge": image_size}
    patch = vision.get("patch_size", 8)
    processor = transformers.SmolVLMProcessor(
        transformers.SmolVLMImageProcessor(size=size, max_image_size=size, do_image_splitting=False),
        tok,
        transformers.SmolVLMVideoProcessor(size=size, max_image_size=size),
        image_seq_len=(image_size // patch) ** 2 // 4,
        chat_template=chat_template("<image>", "<end_of_utterance>"),
    )
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    llama = transformers.LlamaConfig(**TEXT | text, vocab_size=len(tok), pad_token_id=tok.pad_token_id)
    config = transformers.SmolVLMConfig(
        text_config=llama.to_dict() | {"tie_word_embeddings": tied},
        vision_config=tower | {"image_size": image_size, "patch_size": patch} | vision,
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tok.pad_token_id,
        tie_word_embeddings=tied,
    )
    return transformers.SmolVLMForConditionalGeneration(config), processor


def internvl(text: dict[str, Any], vision: dict[str, Any], image_size: int, tied: bool):
    """InternVL: InternViT, pixel shuffle, two-layer projector, Qwen2."""
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tok = tokenizer(["<|im_start|>", *named.values()], pad="<|endoftext|>", eos="<|im_end|>", named=named)
    size = {"height": image_size, "width": image_size}
    patch = vision.get("patch_size", [8, 8])[0]
    tokens_per_image = (image_size // patch) ** 2 // 4
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    processor = transformers.InternVLProcessor(
        image_processor=transformers.GotOcr2ImageProcessor(size=size, image_mean=mean, image_std=std),
        tokenizer=tok,
        video_processor=transformers.InternVLVideoProcessor(size=size),
        image_seq_length=tokens_per_image,
        chat_template=chat_template("<IMG_CONTEXT>\n"),
    )
    tower = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": [image_size, image_size],
        "patch_size": [patch, patch],
        "attention_bias": True,
        # 0.1 at its default; 1 keeps a random tower's output from vanishing.
        "layer_scale_init_value": 1.0,
    }
    qwen = transformers.Qwen2Config(**{"vocab_size": len(tok)} | TEXT | text, pad_token_id=tok.pad_token_id)
    config = transformers.InternVLConfig(
        text_config=qwen.to_dict() | {"tie_word_embeddings": tied},
        vision_config=tower | vision,
        image_token_id=processor.image_token_id,
        image_seq_length=tokens_per_image,
        tie_word_embeddings=tied,
    )
    return transformers.InternVLForConditionalGeneration(config), processor


def qwen2_5_vl(text: dict[str, Any], vision: dict[str, Any], image_size: int, tied: bool):
    """Qwen2.5-VL: images of any grid, positions of three axes (M-RoPE)."""
    specials = ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tok = tokenizer(specials, pad="<|endoftext|>", eos="<|im_end|>")
    size = {"shortest_edge": image_size**2, "longest_edge": image_size**2}
    kw = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2, "size": size}
    processor = transformers.Qwen2_5_VLProcessor(
        transformers.Qwen2VLImageProcessor(**kw),
        tok,
        transformers.Qwen2VLVideoProcessor(**kw),
        chat_template=chat_template("<|vision_start|><|image_pad|><|vision_end|>"),
    )
    text = TEXT | text
    rope = {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 1e4}
    tower = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 16,
        "out_hidden_size": text["hidden_size"],
        "fullatt_block_indexes": [1],
    }
    ids = tok.convert_tokens_to_ids
    config = transformers.Qwen2_5_VLConfig(
        text_config=text
        | {"vocab_size": len(tok), "pad_token_id": tok.pad_token_id, "rope_parameters": rope}
        | {"bos_token_id": None, "eos_token_id": tok.eos_token_id},
        vision_config=tower | vision,
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=tied,
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config), processor


FAMILIES = {"smolvlm": smolvlm, "internvl": internvl, "qwen2_5_vl": qwen2_5_vl}


def build(
    family: str,
    *,
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
    image_size: int = 32,
    tied: bool = False,
    seed: int = 0,
):
    """A random model in eval mode and its processor; ``text``/``vision`` override the tiny shapes."""
    torch.manual_seed(seed)
    model, processor = FAMILIES[family](text or {}, vision or {}, image_size, tied)
    return model.eval(), processor


def save(family: str, folder: Path, **kwargs) -> Path:
    """Write `build`'s model and processor as a hub folder and return it."""
    model, processor = build(family, **kwargs)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)
