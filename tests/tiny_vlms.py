"""Random VLMs with their real processors, made on the spot: no downloads, milliseconds each.

    model, processor = build("smolvlm")
    folder = save("internvl", tmp_path)          # a folder as the hub would give it
    model, processor = build("internvl", text={"hidden_size": 512, "num_hidden_layers": 8})

A family is one function that returns ``(model, processor)``; adding one is `FAMILIES["name"] = function`.
The shapes are parameters, so the same functions make a published model on the meta device (runs/families.py).
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


def tokenizer(
    specials: list[str], *, pad: str, eos: str, named: dict[str, str] | None = None, bos=None, vocab_size=360
):
    """A byte-level BPE trained on `SENTENCES`, with the special tokens a processor wants."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokens = list(dict.fromkeys([pad, eos, *([bos] if bos else []), *specials]))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=tokens, initial_alphabet=alphabet, show_progress=False
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


def _idefics(kind: str, text: dict[str, Any], vision: dict[str, Any], image_size: int, tied: bool):
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
    patch, scale = vision.get("patch_size", 8), vision.get("scale_factor", 2)
    images = getattr(transformers, f"{kind}ImageProcessor")(
        size=size, max_image_size=size, do_image_splitting=False
    )
    smol = kind == "SmolVLM"
    video = [transformers.SmolVLMVideoProcessor(size=size, max_image_size=size)] if smol else []
    processor = getattr(transformers, f"{kind}Processor")(
        images,
        tok,
        *video,
        image_seq_len=(image_size // patch) ** 2 // scale**2,
        chat_template=chat_template("<image>", "<end_of_utterance>"),
    )
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    llama = transformers.LlamaConfig(**{"vocab_size": len(tok)} | TEXT | text, pad_token_id=tok.pad_token_id)
    config = getattr(transformers, f"{kind}Config")(
        text_config=llama.to_dict() | {"tie_word_embeddings": tied},
        vision_config=tower | {"image_size": image_size, "patch_size": patch} | vision,
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        scale_factor=scale,
        pad_token_id=tok.pad_token_id,
        tie_word_embeddings=tied,
    )
    return getattr(transformers, f"{kind}ForConditionalGeneration")(config), processor


def smolvlm(text: dict[str, Any], vision: dict[str, Any], image_size: int, tied: bool):
    """SmolVLM: SigLIP-like tower, pixel shuffle, Llama."""
    return _idefics("SmolVLM", text, vision, image_size, tied)


def idefics3(text: dict[str, Any], vision: dict[str, Any], image_size: int, tied: bool):
    """Idefics3: what SmolVLM grew out of, without videos."""
    return _idefics("Idefics3", text, vision, image_size, tied)


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


def _qwen_processor(kind: str, image_size: int, patch: int, pixels: tuple[int, int] | None):
    specials = ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tok = tokenizer(specials, pad="<|endoftext|>", eos="<|im_end|>")
    least, most = pixels or (image_size**2, image_size**2)
    size = {"shortest_edge": least, "longest_edge": most}
    kw = {"patch_size": patch, "merge_size": 2, "temporal_patch_size": 2, "size": size}
    video = "Qwen3VLVideoProcessor" if kind == "Qwen3VL" else "Qwen2VLVideoProcessor"
    processor = getattr(transformers, f"{kind}Processor")(
        transformers.Qwen2VLImageProcessor(**kw),
        tok,
        getattr(transformers, video)(**kw),
        chat_template=chat_template("<|vision_start|><|image_pad|><|vision_end|>"),
    )
    ids = tok.convert_tokens_to_ids
    tokens = {
        "image_token_id": ids("<|image_pad|>"),
        "video_token_id": ids("<|video_pad|>"),
        "vision_start_token_id": ids("<|vision_start|>"),
        "vision_end_token_id": ids("<|vision_end|>"),
    }
    special = {"pad_token_id": tok.pad_token_id, "bos_token_id": None, "eos_token_id": tok.eos_token_id}
    return processor, tokens, {"vocab_size": len(tok)} | TEXT | special


def qwen2_5_vl(text: dict[str, Any], vision: dict[str, Any], image_size: int, tied: bool):
    """Qwen2.5-VL: images of any grid, positions of three axes (M-RoPE)."""
    vision = dict(vision)
    processor, tokens, words = _qwen_processor(
        "Qwen2_5_VL", image_size, vision.get("patch_size", 4), vision.pop("pixels", None)
    )
    words |= {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 1e4}}
    words |= text
    tower = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 16,
        "out_hidden_size": words["hidden_size"],
        "fullatt_block_indexes": [1],
    }
    config = transformers.Qwen2_5_VLConfig(
        text_config=words, vision_config=tower | vision, **tokens, tie_word_embeddings=tied
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config), processor


def qwen3_vl(text: dict[str, Any], vision: dict[str, Any], image_size: int, tied: bool):
    """Qwen3-VL: as Qwen2.5-VL, and features of several encoder layers enter several decoder layers."""
    vision = dict(vision)
    processor, tokens, words = _qwen_processor(
        "Qwen3VL", image_size, vision.get("patch_size", 4), vision.pop("pixels", None)
    )
    rope = {"rope_type": "default", "mrope_section": [2, 2, 2], "mrope_interleaved": True, "rope_theta": 1e4}
    words |= {"head_dim": 12, "rope_parameters": rope} | text
    tower = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": words["hidden_size"],
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
    config = transformers.Qwen3VLConfig(
        text_config=words, vision_config=tower | vision, **tokens, tie_word_embeddings=tied
    )
    return transformers.Qwen3VLForConditionalGeneration(config), processor


def _siglip(image_size: int, vision: dict[str, Any]) -> dict[str, Any]:
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    kind = {"model_type": "siglip_vision_model", "vision_use_head": False}
    return tower | kind | {"image_size": image_size, "patch_size": 8} | vision


def _paligemma(text: dict[str, Any], vision: dict[str, Any], image_size: int, tied: bool, gemma: type):
    tok = tokenizer(["<image>"], pad="<pad>", eos="<eos>", bos="<bos>", named={"image_token": "<image>"})
    tower = _siglip(image_size, vision)
    images = transformers.SiglipImageProcessor(size={"height": image_size, "width": image_size})
    images.image_seq_length = (image_size // tower["patch_size"]) ** 2
    processor = transformers.PaliGemmaProcessor(images, tok)
    # The processor adds its location tokens to the tokenizer.
    words = {"vocab_size": len(tok), "head_dim": 12} | TEXT | text | {"pad_token_id": tok.pad_token_id}
    config = transformers.PaliGemmaConfig(
        text_config=gemma(**words).to_dict() | {"tie_word_embeddings": tied},
        vision_config=tower,
        image_token_index=tok.convert_tokens_to_ids("<image>"),
        vocab_size=words["vocab_size"],
        projection_dim=words["hidden_size"],
        hidden_size=words["hidden_size"],
        tie_word_embeddings=tied,
    )
    return transformers.PaliGemmaForConditionalGeneration(config), processor


def paligemma(text: dict[str, Any], vision: dict[str, Any], image_size: int, tied: bool):
    """PaliGemma: the prompt is read in both directions, no chat template, Gemma scales its embeddings."""
    return _paligemma(text, vision, image_size, tied, transformers.GemmaConfig)


def paligemma2(text: dict[str, Any], vision: dict[str, Any], image_size: int, tied: bool):
    """PaliGemma 2: the same on Gemma 2, whose layers alternate between a window and everything."""
    text = {"query_pre_attn_scalar": 12, "sliding_window": 4096} | text
    return _paligemma(text, vision, image_size, tied, transformers.Gemma2Config)


def llava_onevision(text: dict[str, Any], vision: dict[str, Any], image_size: int, tied: bool):
    """LLaVA-OneVision: a single picture is cut into tiles, several are not."""
    named = {"image_token": "<image>", "video_token": "<video>"}
    tok = tokenizer(["<|im_start|>", *named.values()], pad="<|endoftext|>", eos="<|im_end|>", named=named)
    vision = dict(vision)
    pinpoints = vision.pop("pinpoints", [[image_size, image_size], [image_size, 2 * image_size]])
    tower, size = _siglip(image_size, vision), {"height": image_size, "width": image_size}
    processor = transformers.LlavaOnevisionProcessor(
        transformers.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=pinpoints),
        tok,
        transformers.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=(image_size // tower["patch_size"]) ** 2,
        vision_feature_select_strategy="full",
        chat_template=chat_template("<image>\n"),
    )
    qwen = transformers.Qwen2Config(**{"vocab_size": len(tok)} | TEXT | text, pad_token_id=tok.pad_token_id)
    config = transformers.LlavaOnevisionConfig(
        text_config=qwen.to_dict() | {"tie_word_embeddings": tied},
        vision_config=tower,
        image_grid_pinpoints=pinpoints,
        image_token_index=tok.convert_tokens_to_ids("<image>"),
        video_token_index=tok.convert_tokens_to_ids("<video>"),
        tie_word_embeddings=tied,
    )
    return transformers.LlavaOnevisionForConditionalGeneration(config), processor


def gemma3(text: dict[str, Any], vision: dict[str, Any], image_size: int, tied: bool):
    """Gemma 3: image tokens see each other, most layers look back over a window only."""
    named = {
        "image_token": "<image_soft_token>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
    }
    specials = ["<|im_start|>", "<|im_end|>", *named.values()]
    tok = tokenizer(specials, pad="<pad>", eos="<eos>", bos="<bos>", named=named)
    vision = dict(vision)
    tokens_per_image = vision.pop("tokens_per_image", (image_size // 16) ** 2)
    processor = transformers.Gemma3Processor(
        transformers.Gemma3ImageProcessor(size={"height": image_size, "width": image_size}),
        tok,
        image_seq_length=tokens_per_image,
        chat_template="<bos>" + chat_template("<start_of_image>"),
    )
    words = {
        "vocab_size": len(tok),
        "head_dim": 12,
        "query_pre_attn_scalar": 12,
        # Shorter than the tests' prompts, so that a window that counted padding would be noticed.
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
        "pad_token_id": tok.pad_token_id,
    }
    ids = tok.convert_tokens_to_ids
    config = transformers.Gemma3Config(
        text_config=words | TEXT | text | {"tie_word_embeddings": tied},
        vision_config=_siglip(image_size, vision),
        mm_tokens_per_image=tokens_per_image,
        image_token_index=ids("<image_soft_token>"),
        image_token_id=ids("<image_soft_token>"),
        boi_token_index=ids("<start_of_image>"),
        eoi_token_index=ids("<end_of_image>"),
        tie_word_embeddings=tied,
    )
    model = transformers.Gemma3ForConditionalGeneration(config)
    # Zeros at initialisation: no picture would reach a random model.
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.2)
    return model, processor


FAMILIES = {
    "smolvlm": smolvlm,
    "idefics3": idefics3,
    "internvl": internvl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "paligemma": paligemma,
    "paligemma2": paligemma2,
    "llava_onevision": llava_onevision,
    "gemma3": gemma3,
}


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
