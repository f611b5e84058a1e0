"""Students of any shape around a VLM with random weights, and batches for them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lerobot_policy_vita_vla.bench import random_vlm
from lerobot_policy_vita_vla.contracts import ActionSpec
from lerobot_policy_vita_vla.teacher.decoder import ActionDecoder, imitation_loss
from lerobot_policy_vita_vla.vla.action_modules import ActionMapper, ActionQueries, StateEncoder
from lerobot_policy_vita_vla.vla.align import align_loss
from lerobot_policy_vita_vla.vla.backbone import VLMBackbone
from lerobot_policy_vita_vla.vla.building import CPU_ATTENTION
from lerobot_policy_vita_vla.vla.network import VitaVLANetwork
from lerobot_policy_vita_vla.vla.pictures import StoredPictures, embed_pictures
from lerobot_policy_vita_vla.vla.stages import TRAINABLE, apply_stage

INSTRUCTION = "open a door with a revolving joint, then push and close the drawer"


@dataclass(frozen=True)
class Sizes:
    """What a student reads and gives, apart from its VLM; by default the paper's LIBERO setting.

    Args:
        state: S, numbers of the robot's state.
        action: A, numbers of an action, the last a gripper command.
        chunk: T, actions of a chunk, and queries.
        width: E, of the teacher's action features.
        gripper: Places in the state that hold the gripper.
    """

    state: int = 8
    action: int = 7
    chunk: int = 3
    width: int = 384
    gripper: tuple[int, ...] = (6, 7)

    @property
    def spec(self) -> ActionSpec:
        """What the numbers of an action mean."""
        names = tuple(f"a{number}" for number in range(self.action))
        return ActionSpec(names, (0.0,) * self.action, (1.0,) * self.action, (self.action - 1,))


LIBERO = Sizes()
CHUNK, STATE, ACTION, WIDTH = LIBERO.chunk, LIBERO.state, LIBERO.action, LIBERO.width


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


def assemble(backbone: VLMBackbone, sizes: Sizes = LIBERO, init_std: float = 0.02) -> VitaVLANetwork:
    """A student with random weights around a VLM, on torch's default device.

    Args:
        backbone: Its VLM.
        sizes: See `Sizes`.
        init_std: Spread of the fresh queries.
    """
    return VitaVLANetwork(
        backbone=backbone,
        state_encoder=StateEncoder(state_dim=sizes.state, width=backbone.width, gripper_dims=sizes.gripper),
        queries=ActionQueries(num_queries=sizes.chunk, width=backbone.width, shared=True, init_std=init_std),
        mapper=ActionMapper(width=backbone.width, feature_dim=sizes.width),
        decoder=ActionDecoder(kind="seer", feature_dim=sizes.width, spec=sizes.spec),
        chunk_size=sizes.chunk,
    )


def enter(student: VitaVLANetwork, stage: str) -> dict[str, int]:
    """Make a student ready to train in a stage; returns what learns: part -> number of weights."""
    counts = apply_stage(student.parts(), stage)
    learns_language = "language" in TRAINABLE[stage]
    student.train()
    student.backbone.set_mode(learns_language)
    student.backbone.cached = not learns_language
    return counts


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
    made = assemble(backbone, init_std=backbone.embedding_std)
    enter(made, stage)
    return made.to(device)


def mixed_network(shape: random_vlm.Shape, device: str, sizes: Sizes = LIBERO) -> VitaVLANetwork:
    """A student with random weights, its VLM in bfloat16 and made where it stays, the rest in float32."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            vlm, processor = random_vlm.build(shape)
    finally:
        torch.set_default_dtype(torch.float32)
    backbone = VLMBackbone(vlm, processor)
    with torch.device(device):
        return assemble(backbone, sizes)


def step_loss(student: VitaVLANetwork, seen: Inputs, stage: str) -> Tensor:
    """What a training step of ``"align"`` or ``"finetune"`` minimises, without augmentation and averages."""
    features = student.features(seen.images, seen.tasks, seen.state)
    if stage == "align":
        return align_loss(features, seen.target, kind="mse")[0]
    raw, decoder = student.decoder(features), student.decoder
    return imitation_loss(decoder, raw, seen.action, seen.is_pad, beta=0.1, gripper_weight=0.01)[0]


def inputs(
    image_size: int, *, cameras: int = 2, batch_size: int, seed: int = 0, sizes: Sizes = LIBERO
) -> Inputs:
    """Random pictures, states and labels."""
    draw = torch.Generator().manual_seed(seed)
    return Inputs(
        images=[torch.rand(batch_size, 3, image_size, image_size, generator=draw) for _ in range(cameras)],
        tasks=[INSTRUCTION] * batch_size,
        state=torch.randn(batch_size, sizes.state, generator=draw),
        target=torch.randn(batch_size, sizes.chunk, sizes.width, generator=draw),
        action=torch.rand(batch_size, sizes.chunk, sizes.action, generator=draw) * 2 - 1,
        is_pad=torch.zeros(batch_size, sizes.chunk, dtype=torch.bool),
    )


def stored_pictures(student: VitaVLANetwork, seen: Inputs, dtype: str) -> StoredPictures:
    """The images' embeddings, as `training.vision_features` stores them.

    Args:
        student: Whose image encoder makes them.
        seen: Holds the images.
        dtype: ``"bfloat16"`` encodes under autocast.
    """
    backbone = student.backbone
    with torch.no_grad(), torch.autocast(seen.state.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        made = embed_pictures(backbone.vlm, backbone.prompts.pixels(seen.images), len(seen.tasks))
    return StoredPictures(made, tuple(tuple(image.shape[-2:]) for image in seen.images))


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
