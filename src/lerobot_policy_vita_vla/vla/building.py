"""Making the student's parts from its configuration, and writing back what they turned out to be."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from lerobot_policy_vita_vla.contracts import Teacher
from lerobot_policy_vita_vla.teacher.decoder import build_decoder
from lerobot_policy_vita_vla.vla.action_modules import ActionMapper, ActionQueries, StateEncoder
from lerobot_policy_vita_vla.vla.backbone import VLMBackbone
from lerobot_policy_vita_vla.vla.configuration_vita_vla import VitaVLAConfig
from lerobot_policy_vita_vla.vla.lora import add_adapters
from lerobot_policy_vita_vla.vla.network import VitaVLANetwork
from lerobot_policy_vita_vla.vla.vlm_files import (
    empty_vlm,
    load_processor,
    load_vlm,
    resolve_vlm,
    stored_config,
)

PROCESSOR_FOLDER = "vlm_processor"
"""Where a checkpoint keeps the VLM's processor."""

CPU_ATTENTION = {"vision_config": "sdpa", "text_config": "eager"}
"""What ``attn_implementation=auto`` is on a CPU."""


def build_network(
    config: VitaVLAConfig,
    *,
    checkpoint: Path | None,
    vlm_is_reference: bool = False,
    teacher: Teacher | None = None,
    dataset_stats: Mapping[str, Mapping[str, Any]] | None = None,
    state_names: list[str] | None = None,
) -> VitaVLANetwork:
    """Build the network.

    Args:
        config: Its "filled in" fields are set here when they are empty.
        checkpoint: Folder whose weights will be loaded, or None for a student that starts.
        vlm_is_reference: The checkpoint leaves the VLM out, so that its weights come from ``config.vlm``.
        teacher: Gives the decoder; needed without a checkpoint.
        dataset_stats: LeRobot's dataset statistics, for scaling the state; without a checkpoint.
        state_names: Names of the state's dimensions, to find the gripper's.
    """
    backbone = build_backbone(config, checkpoint, vlm_is_reference)
    decoder = _build_decoder(config, checkpoint, teacher)
    num_queries = config.num_queries or config.chunk_size
    if config.reads_turns:
        backbone.read_histories(
            num_queries=num_queries, has_state=config.use_state_encoder, separator=config.query_separator
        )
    return VitaVLANetwork(
        backbone=backbone,
        state_encoder=_build_state_encoder(config, backbone.width, dataset_stats, state_names),
        queries=ActionQueries(
            num_queries=num_queries,
            width=backbone.width,
            shared=config.shared_queries,
            init_std=config.query_init_std or (backbone.embedding_std if checkpoint is None else 1.0),
        ),
        mapper=ActionMapper(
            width=backbone.width,
            feature_dim=decoder.feature_dim,
            features_per_query=config.chunk_size // num_queries,
        ),
        decoder=decoder,
        chunk_size=config.chunk_size,
    )


def build_backbone(
    config: VitaVLAConfig, checkpoint: Path | None = None, vlm_is_reference: bool = False
) -> VLMBackbone:
    """Build the student's trunk; arguments as of `build_network`."""
    if checkpoint is None or vlm_is_reference:
        source = resolve_vlm(config.vlm)
        vlm = load_vlm(
            source, revision=config.vlm_revision, dtype=config.vlm_dtype, attention=_attention(config)
        )
        config.vlm_config = stored_config(vlm)
    else:
        vlm = empty_vlm(config.vlm_config, dtype=config.vlm_dtype, attention=_attention(config))
    if checkpoint is None:
        processor = load_processor(source, config.vlm_revision)
    else:
        processor = load_processor(checkpoint / PROCESSOR_FOLDER)
    backbone = VLMBackbone(vlm, processor, template=config.prompt, system_prompt=config.system_prompt)
    if config.attn_implementation == "auto" and config.device == "cpu":
        # Measured on CPU in bfloat16: sdpa's forward is the faster one (the image encoder has no backward),
        # its backward the slower one (260 against 370 ms for the mini VLM's decoder, batch 64, one core).
        vlm.set_attn_implementation(CPU_ATTENTION)
    if config.uses_lora:
        add_adapters(
            vlm,
            rank=config.lora_rank,
            alpha=config.lora_alpha or 2 * config.lora_rank,
            targets=config.lora_targets,
        )
    if config.gradient_checkpointing:
        backbone.checkpoint_gradients()
    return backbone


def _attention(config: VitaVLAConfig) -> str:
    return "sdpa" if config.attn_implementation == "auto" else config.attn_implementation


def _build_decoder(config: VitaVLAConfig, checkpoint: Path | None, teacher: Teacher | None) -> nn.Module:
    if checkpoint is not None:
        return build_decoder(config.decoder)
    assert teacher is not None, "a student that starts takes its decoder's shape from the teacher"
    config.decoder = teacher.decoder.config()
    if config.decoder_init == "scratch":
        return build_decoder(config.decoder)
    return copy.deepcopy(teacher.decoder).cpu().train()


def _build_state_encoder(
    config: VitaVLAConfig,
    width: int,
    dataset_stats: Mapping[str, Mapping[str, Any]] | None,
    state_names: list[str] | None,
) -> StateEncoder | None:
    if not config.use_state_encoder:
        return None
    state_dim = config.robot_state_feature.shape[0]
    if config.gripper_state_dims is None:
        names = state_names or []
        config.gripper_state_dims = [i for i, name in enumerate(names) if "gripper" in name.lower()]
    stats = (dataset_stats or {}).get("observation.state", {}) if config.standardise_state else {}
    return StateEncoder(
        state_dim=state_dim,
        width=width,
        gripper_dims=config.gripper_state_dims,
        mean=stats.get("mean"),
        std=stats.get("std"),
        one_hot_gripper=config.one_hot_gripper,
    )


def state_names(dataset_meta: Any) -> list[str] | None:
    """Names of the state's dimensions, as LeRobot's dataset metadata has them."""
    names = (
        dataset_meta.features.get("observation.state", {}).get("names") if dataset_meta is not None else None
    )
    if isinstance(names, dict):
        names = [name for group in names.values() for name in group]
    return list(names) if names else None
