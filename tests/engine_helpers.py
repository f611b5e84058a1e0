"""A tiny student's network around any of the tiny VLMs."""

from __future__ import annotations

import torch
import transformers

from lerobot_policy_vita_vla.contracts import ActionSpec
from lerobot_policy_vita_vla.teacher.decoder import ActionDecoder
from lerobot_policy_vita_vla.vla.action_modules import ActionMapper, ActionQueries, StateEncoder
from lerobot_policy_vita_vla.vla.backbone import VLMBackbone
from lerobot_policy_vita_vla.vla.network import VitaVLANetwork
from lerobot_policy_vita_vla.vlm.vita15_model import (
    CHAT_TEMPLATE,
    IMAGE_TOKEN,
    VitaVLConfig,
    VitaVLForConditionalGeneration,
    VitaVLProcessor,
)
from tiny_vlms import TEXT, build, tokenizer

TASKS = ("slide", "Open a door with a revolving joint!", "Press a button from the top")
S, A, T, E = 4, 4, 3, 16


def make_network(family: str, *, dtype: torch.dtype = torch.float32, state: bool = True, **shapes):
    """A network with random weights whose features depend on pictures, words and state."""
    vlm, processor = vita15() if family == "vita_vl" else build(family, **shapes)
    backbone = VLMBackbone(vlm.to(dtype), processor)
    width, spec = backbone.width, ActionSpec(("x", "y", "z", "g"), (0.0,) * A, (1.0,) * A, (A - 1,))
    return VitaVLANetwork(
        backbone=backbone,
        state_encoder=StateEncoder(state_dim=S, width=width, gripper_dims=(A - 1,)) if state else None,
        queries=ActionQueries(num_queries=T, width=width, shared=True, init_std=0.15),
        mapper=ActionMapper(width=width, feature_dim=E),
        decoder=ActionDecoder(kind="seer", feature_dim=E, spec=spec),
        chunk_size=T,
    ).eval()


def vita15():
    """A tiny VITA-1.5 that reads pictures smaller than those it was made for, as in the paper."""
    torch.manual_seed(0)
    words = tokenizer(["<|im_start|>", IMAGE_TOKEN], pad="<|endoftext|>", eos="<|im_end|>")
    pictures = transformers.GotOcr2ImageProcessor(size={"height": 56, "width": 56}, crop_to_patches=False)
    processor = VitaVLProcessor(pictures, words, chat_template=CHAT_TEMPLATE)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower |= {"image_size": [84, 84], "patch_size": [14, 14], "layer_scale_init_value": 1.0}
    text = {"vocab_size": len(words), "pad_token_id": words.pad_token_id}
    config = VitaVLConfig(
        text_config=transformers.Qwen2Config(**TEXT | text).to_dict(),
        vision_config=tower,
        image_token_id=processor.image_token_id,
        tie_word_embeddings=False,
    )
    return VitaVLForConditionalGeneration(config).eval(), processor


def observe(batch: int = 1, cameras: int = 1, sizes=((40, 52), (40, 52)), seed: int = 0):
    """Frames of some cameras, instructions of different lengths, states."""
    generator = torch.Generator().manual_seed(seed)
    frames = [torch.rand(batch, 3, *sizes[camera], generator=generator) for camera in range(cameras)]
    return frames, list(TASKS[:batch]), torch.randn(batch, S, generator=generator)
