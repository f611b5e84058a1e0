"""LeRobot's pipelines around the student. They move data and rename it; scaling lives in the network."""

from __future__ import annotations

from typing import Any

import torch
from lerobot.processor import PolicyAction, PolicyProcessorPipeline, make_default_pre_post_processors

from lerobot_policy_vita_vla.vla.configuration_vita_vla import VitaVLAConfig


def make_vita_vla_pre_post_processors(
    config: VitaVLAConfig,
    dataset_stats: dict[str, dict[str, torch.Tensor]] | None = None,
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]],
    PolicyProcessorPipeline[PolicyAction, PolicyAction],
]:
    """Rename, batch, device, normalizer (identity) before; unnormalizer (identity) and cpu after.

    The identity steps stay because LeRobot overrides them by name when a run starts from a checkpoint.
    """
    return make_default_pre_post_processors(config, dataset_stats, normalizer_device=config.device)
