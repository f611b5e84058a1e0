"""From settings to a network: the only place where Seer's parts are put together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from lerobot_policy_vita_vla.contracts import ActionSpec
from lerobot_policy_vita_vla.teacher.decoder import ActionDecoder
from lerobot_policy_vita_vla.teacher.seer.foresight import ForesightDecoder
from lerobot_policy_vita_vla.teacher.seer.image_encoders import (
    ConvImageEncoder,
    PretrainedImageEncoder,
    load_mae,
    mae_from_config,
)
from lerobot_policy_vita_vla.teacher.seer.instruction import (
    ClipInstructionEncoder,
    HashedInstructionEncoder,
    clip_from_config,
    load_clip,
)
from lerobot_policy_vita_vla.teacher.seer.layout import StepLayout
from lerobot_policy_vita_vla.teacher.seer.network import SeerNetwork
from lerobot_policy_vita_vla.teacher.seer.state_encoders import SplitStateEncoder, mlp_state_encoder
from lerobot_policy_vita_vla.teacher.seer.trunk import Trunk

if TYPE_CHECKING:
    from lerobot_policy_vita_vla.teacher.seer.configuration_seer import SeerConfig

PATCH = 16
"""Pixels per side of a predicted patch: the ViT's."""


def build_network(config: SeerConfig, *, load_pretrained: bool) -> SeerNetwork:
    """Build the network that ``config`` describes.

    Args:
        config: With features validated and ``action_spec`` filled in.
        load_pretrained: Read the frozen encoders' weights from ``config.vision_encoder`` and
            ``config.text_encoder``, and note their configurations in ``config``. False gives them random
            weights, for a checkpoint to overwrite or for counting parameters.
    """
    frozen = config.encoder == "pretrained"
    instruction = _clip(config, load_pretrained) if frozen else HashedInstructionEncoder()
    if frozen:
        image = PretrainedImageEncoder(vit=_mae(config, load_pretrained), n_queries=config.resampler_queries)
        state = SplitStateEncoder(
            state_dim=config.state_dim,
            gripper_dims=config.gripper_state_dims,
            width=config.width,
            one_hot=config.gripper_state_one_hot,
        )
    else:
        image = ConvImageEncoder(
            text_dim=instruction.dim, image_size=config.image_size, n_layers=config.conv_layers
        )
        state = mlp_state_encoder(state_dim=config.state_dim, width=config.width)
    foresight = None
    if config.foresight_weight > 0:
        foresight = ForesightDecoder(
            width=config.width,
            n_tokens=config.foresight_tokens,
            n_patches=(config.image_size // PATCH) ** 2,
            patch=PATCH,
        )
    spec = ActionSpec.from_dict(config.action_spec)
    return SeerNetwork(
        layout=StepLayout(
            n_cameras=len(config.cameras),
            image_tokens=image.n_tokens,
            foresight_tokens=config.foresight_tokens,
            action_tokens=config.chunk_size,
            queries_read_peers=config.queries_read_peers,
        ),
        n_obs_steps=config.n_obs_steps,
        width=config.width,
        state_dim=config.state_dim,
        instruction_encoder=instruction,
        state_encoder=state,
        image_encoder=image,
        trunk=Trunk(
            width=config.width, n_layers=config.n_layers, n_heads=config.n_heads, dropout=config.dropout
        ),
        decoder=ActionDecoder(kind="seer", feature_dim=config.width, spec=spec),
        foresight_decoder=foresight,
        n_auxiliary=len(config.auxiliary_indices) if config.auxiliary_weight > 0 else 0,
        use_images=config.use_images,
        use_state=config.use_state,
        use_instruction=config.use_instruction,
    )


def _mae(config: SeerConfig, load_pretrained: bool) -> nn.Module:
    if not load_pretrained:
        return mae_from_config(config.vision_config)
    vit = load_mae(config.vision_encoder)
    config.vision_config = vit.config.to_diff_dict()
    return vit


def _clip(config: SeerConfig, load_pretrained: bool) -> ClipInstructionEncoder:
    if not load_pretrained:
        return ClipInstructionEncoder(model=clip_from_config(config.text_config), tokenizer=None)
    model, tokenizer = load_clip(config.text_encoder)
    config.text_config = model.config.to_diff_dict()
    return ClipInstructionEncoder(model=model, tokenizer=tokenizer)
