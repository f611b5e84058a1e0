"""Students of any shape around a VLM with random weights, and batches for them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lerobot_policy_vita_vla.bench import random_vlm
from lerobot_policy_vita_vla.contracts import ActionSpec
from lerobot_policy_vita_vla.teacher.decoder import ActionDecoder
from lerobot_policy_vita_vla.vla.action_modules import ActionMapper, ActionQueries, StateEncoder
from lerobot_policy_vita_vla.vla.backbone import VLMBackbone
from lerobot_policy_vita_vla.vla.building import CPU_ATTENTION
from lerobot_policy_vita_vla.vla.network import VitaVLANetwork
from lerobot_policy_vita_vla.vla.stages import apply_stage

INSTRUCTION = "open a door with a revolving joint, then push and close the drawer"
CHUNK, STATE, ACTION, WIDTH = 3, 8, 7, 384
"""T, S, A and E of the paper's LIBERO setting."""


@dataclass
class Inputs:
    """What a student reads in a step, and what it is compared with."""

    images: list[Tensor]
    tasks: list[str]
    state: Tensor
    target: Tensor
    action: Tensor
    is_pad: Tensor

    def to(self, device: str) -> Inputs:
        """The same on a device."""
        moved = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, images=[image.to(device) for image in self.images], **moved)


def spec() -> ActionSpec:
    """Seven numbers, the last a gripper command."""
    return ActionSpec(tuple("abcdefg"), (0.0,) * ACTION, (1.0,) * ACTION, (ACTION - 1,))


def network(
    shape: random_vlm.Shape, stage: str, device: str = "cpu", attention: str = "auto"
) -> VitaVLANetwork:
    """A student with random weights in a stage, float32.

    Args:
        shape: Its VLM.
        stage: What learns.
        device: Where it runs.
        attention: As ``--policy.attn_implementation``.
    """
    vlm, processor = random_vlm.build(shape)
    if attention != "auto":
        vlm.set_attn_implementation(attention)
    elif device == "cpu":
        vlm.set_attn_implementation(CPU_ATTENTION)
    backbone = VLMBackbone(vlm, processor)
    made = VitaVLANetwork(
        backbone=backbone,
        state_encoder=StateEncoder(state_dim=STATE, width=backbone.width, gripper_dims=(6, 7)),
        queries=ActionQueries(
            num_queries=CHUNK, width=backbone.width, shared=True, init_std=backbone.embedding_std
        ),
        mapper=ActionMapper(width=backbone.width, feature_dim=WIDTH),
        decoder=ActionDecoder(kind="seer", feature_dim=WIDTH, spec=spec()),
        chunk_size=CHUNK,
    )
    apply_stage(made.parts(), stage)
    learns_language = stage in ("finetune", "only_finetune")
    made.train()
    backbone.set_mode(learns_language)
    backbone.cached = not learns_language
    return made.to(device)


def inputs(image_size: int, *, cameras: int = 2, batch_size: int, seed: int = 0) -> Inputs:
    """Random pictures, states and labels."""
    draw = torch.Generator().manual_seed(seed)
    return Inputs(
        images=[torch.rand(batch_size, 3, image_size, image_size, generator=draw) for _ in range(cameras)],
        tasks=[INSTRUCTION] * batch_size,
        state=torch.randn(batch_size, STATE, generator=draw),
        target=torch.randn(batch_size, CHUNK, WIDTH, generator=draw),
        action=torch.rand(batch_size, CHUNK, ACTION, generator=draw) * 2 - 1,
        is_pad=torch.zeros(batch_size, CHUNK, dtype=torch.bool),
    )


class SavedBytes:
    """Counts what autograd keeps for backward, parameters and shared memory counted out.

    Args:
        module: Whose parameters do not count.
    """

    def __init__(self, module: nn.Module):
        self.seen = {p.untyped_storage().data_ptr() for p in module.parameters()}
        self.total = 0
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.seen:
            self.seen.add(storage.data_ptr())
            self.total += storage.nbytes()
        return tensor


def text_shape(shape: random_vlm.Shape) -> Any:
    """The language model's arithmetic (`flops.Transformer`)."""
    from lerobot_policy_vita_vla.bench.flops import Transformer

    hidden, intermediate, layers, heads, kv_heads = shape.text
    return Transformer.decoder(
        layers=layers,
        hidden=hidden,
        intermediate=intermediate,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=hidden // heads,
    )
