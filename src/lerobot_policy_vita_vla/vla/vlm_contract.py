"""What a VLM must be like to serve as the student's trunk, and where its parts are."""

from __future__ import annotations

import inspect
from collections import Counter
from typing import Any

from torch import nn


def projectors(base: nn.Module, *, inside_vision: bool = False) -> list[nn.Module]:
    """Modules between image encoder and decoder; in Qwen-VL they are the encoder's mergers."""
    vision, language = base.get_encoder(modality="image"), base.get_decoder()
    found = [child for child in base.children() if child is not vision and child is not language]
    if inside_vision:
        found += [child for name, child in vision.named_children() if "merger" in name]
    return found


def check_vlm(vlm: nn.Module, processor: Any) -> None:
    """Raise ValueError naming what a model lacks to serve as the student's trunk."""
    name = type(vlm).__name__

    def require(met: bool, requirement: str) -> None:
        if not met:
            raise ValueError(
                f"{name} cannot be the student's VLM: {requirement}. Tested families: SmolVLM, Idefics3, "
                "InternVL, Qwen2.5-VL, Qwen3-VL, PaliGemma, PaliGemma 2, LLaVA-OneVision and Gemma 3"
            )

    base = getattr(vlm, "base_model", vlm)
    require(base is not vlm, "it needs a base model without a vocabulary head (vlm.base_model)")
    decoder = base.get_decoder() if hasattr(base, "get_decoder") else base
    inside = set(base.modules())
    require(
        decoder is not base and decoder in inside, "it needs a decoder of its own (base_model.get_decoder())"
    )
    encoder = base.get_encoder(modality="image") if hasattr(base, "get_encoder") else base
    require(
        encoder is not base and encoder is not decoder and encoder in inside,
        "it needs an image encoder of its own (base_model.get_encoder(modality='image'))",
    )
    require(
        vlm.get_input_embeddings() in set(decoder.modules()),
        "its token embedding must be a part of its decoder",
    )
    for module, label, needed in (
        (base, "base model", ("input_ids", "pixel_values", "position_ids", "past_key_values")),
        (decoder, "decoder", ("inputs_embeds", "attention_mask", "position_ids", "past_key_values")),
    ):
        accepted = inspect.signature(module.forward).parameters
        missing = [argument for argument in needed if argument not in accepted]
        require(not missing, f"its {label} must accept {', '.join(missing)}")
    images, tokenizer = getattr(processor, "image_processor", None), getattr(processor, "tokenizer", None)
    require(
        images is not None and tokenizer is not None, "its processor needs an image_processor and a tokenizer"
    )
    require(
        getattr(images, "backend", None) == "torchvision",
        f"its image processor must work on tensors (backend 'torchvision'), got {type(images).__name__}",
    )
    require(tokenizer.pad_token_id is not None, "its tokenizer needs a padding token")
    types = Counter(str(p.dtype).removeprefix("torch.") for p in vlm.parameters() if p.is_floating_point())
    require(
        len(types) == 1,
        f"its weights have several types ({', '.join(f'{n} of {kind}' for kind, n in types.most_common())}), "
        "between which it cannot compute; load it in one (--policy.vlm_dtype) or save it again in one "
        "(model.to(torch.bfloat16).save_pretrained(folder))",
    )


def parts_of(vlm: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """language, vision, projector, lm_head and, with LoRA, adapters: every parameter once, by name."""
    base = vlm.base_model
    projector = {id(p) for module in projectors(base, inside_vision=True) for p in module.parameters()}
    language = {id(p) for p in base.get_decoder().parameters()}
    vision = {id(p) for p in base.get_encoder(modality="image").parameters()} - projector
    inside = {id(p) for p in base.parameters()}
    parts: dict[str, dict[str, nn.Parameter]] = {
        part: {} for part in ("vision", "projector", "language", "lm_head", "adapters")
    }
    for name, parameter in vlm.named_parameters():
        key = id(parameter)
        if key in language:
            # Tied word embeddings are listed under the decoder's name and belong to it.
            part = "adapters" if ".lora_" in name else "language"
        elif key in vision:
            part = "vision"
        else:
            part = "projector" if key in inside else "lm_head"
        parts[part][f"vlm.{name}"] = parameter
    return parts
