"""From one of Seer's released checkpoints to a teacher of ours: `vita-vla teacher import seer`.

.pth (what Seer trained) + MAE ViT-B/16 + CLIP ViT-B/32  ->  a folder that `load_teacher` and LeRobot load
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from lerobot.configs import FeatureType, PolicyFeature
from torch import nn

from lerobot_policy_vita_vla.files import check_writable
from lerobot_policy_vita_vla.teacher.seer.configuration_seer import SeerConfig
from lerobot_policy_vita_vla.teacher.seer.modeling_seer import SeerPolicy
from lerobot_policy_vita_vla.teacher.seer.official.benchmarks import BENCHMARKS, Benchmark
from lerobot_policy_vita_vla.teacher.seer.official.checkpoint import SeerCheckpoint, open_checkpoint
from lerobot_policy_vita_vla.teacher.seer.official.frozen_encoders import (
    CLIP,
    MAE,
    Source,
    from_hub,
    read_clip,
    read_mae,
)
from lerobot_policy_vita_vla.teacher.seer.official.layouts import LAYOUTS, SeerLayout, our_tensors
from lerobot_policy_vita_vla.teacher.seer.official.original_encoders import HEAD_WIDTH
from lerobot_policy_vita_vla.teacher.seer.processor_seer import make_seer_pre_post_processors
from lerobot_policy_vita_vla.teacher.weights import load_strictly

logger = logging.getLogger(__name__)

IMAGE_SIZE = 224
"""Pixels per side at Seer's image encoder."""

OWN_BUFFERS = ("state_mean", "state_std", "auxiliary_mean", "decoder.offset", "decoder.scale")
"""Statistics of our network. Seer has none: mean 0 and spread 1 leave its numbers as they are."""


def import_seer(
    source: str | Path,
    target: str | Path,
    *,
    layout: str | None = None,
    mae: str | Path | None = None,
    clip: str | Path | None = None,
    n_obs_steps: int | None = None,
    layouts: Mapping[str, SeerLayout] = LAYOUTS,
) -> dict[str, Any]:
    """Write a released checkpoint as a policy ``seer`` with everything that it needs.

    Args:
        source: The ``.pth``.
        target: Folder to write; must not exist, or be empty.
        layout: Name in ``layouts``; None tells it from the tensors' sizes, where they tell.
        mae: Folder or file of the frozen image encoder; None takes the hub's copy from the cache.
        clip: Folder or file of the frozen text encoder; None takes the hub's copy from the cache.
        n_obs_steps: Steps of history to read, 1 up to the layout's; None reads all. The first steps of the
            time embedding are kept: the teacher then always acts as Seer does so early in an episode.
        layouts: Layouts to choose from.

    Returns:
        What was imported: layout, epoch, counts of keys and parameters, hash of the file. The checkpoint's
        ``config.json`` holds it too, in ``recording``.

    Raises:
        ValueError: Anything about the files is not as it should be. Then nothing is written.
    """
    target = Path(target).expanduser()
    _check_free(target)
    checkpoint = open_checkpoint(source, layout, layouts=layouts)
    chosen = checkpoint.layout
    steps = chosen.n_obs_steps if n_obs_steps is None else n_obs_steps
    if not 1 <= steps <= chosen.n_obs_steps:
        raise ValueError(
            f"n_obs_steps must lie in 1..{chosen.n_obs_steps} (layout {chosen.name}), got {steps}"
        )
    if checkpoint.time_steps > chosen.n_obs_steps:
        logger.warning(
            "%s has a time embedding of %d steps: it was saved before finetuning, under another attention "
            "mask. It is something to finetune from; its actions mean little",
            checkpoint.path.name,
            checkpoint.time_steps,
        )
    mae, clip = from_hub(MAE) if mae is None else mae, from_hub(CLIP) if clip is None else clip
    vit, (text, tokenizer) = read_mae(mae), read_clip(clip)
    _check_encoders(chosen, vit, text, mae, clip)
    record = {
        "imported": "Seer",
        "layout": chosen.name,
        "file": checkpoint.path.name,
        "sha256": checkpoint.sha256(),
        "epoch": checkpoint.epoch,
        "time_steps": checkpoint.time_steps,
        "n_obs_steps": steps,
        **checkpoint.counts(),
    }
    config = _config(chosen, BENCHMARKS[chosen.name], steps, vit, text, record)
    policy = SeerPolicy(config)
    _fill(policy, checkpoint, vit, text)
    policy.network.instruction_encoder.tokenizer = tokenizer
    with _whole_folder(target) as folder:
        policy.eval().save_pretrained(folder)
        for pipeline in make_seer_pre_post_processors(config):
            pipeline.save_pretrained(folder)
    return record


def _config(
    layout: SeerLayout,
    benchmark: Benchmark,
    n_obs_steps: int,
    vit: nn.Module,
    text: nn.Module,
    record: dict[str, Any],
) -> SeerConfig:
    state = {"observation.state": PolicyFeature(FeatureType.STATE, (len(benchmark.state),))}
    pictures = {key: PolicyFeature(FeatureType.VISUAL, (3, *size)) for key, size in benchmark.cameras.items()}
    spec = benchmark.action_spec()
    return SeerConfig(
        preset=layout.preset,
        n_obs_steps=n_obs_steps,
        history="grow",
        chunk_size=layout.action_tokens,
        # Seer predicts at every step and executes one action.
        n_action_steps=1,
        temporal_ensemble_coeff=benchmark.ensemble_coeff,
        width=layout.width,
        n_layers=layout.n_layers,
        n_heads=layout.n_heads,
        resampler_queries=layout.resampler_queries,
        foresight_tokens=layout.foresight_tokens,
        image_size=vit.config.image_size,
        vision_config=vit.config.to_diff_dict(),
        text_config=text.config.to_diff_dict(),
        gripper_state_dims=list(benchmark.gripper_state_dims),
        gripper_state_one_hot=benchmark.gripper_state_one_hot,
        gripper_dims=list(spec.gripper_dims),
        gripper_kind=spec.gripper_kind,
        action_spec=spec.to_dict(),
        recording=benchmark.recording(record).to_dict(),
        input_features={**pictures, **state},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (spec.dim,))},
    )


@torch.no_grad()
def _fill(policy: SeerPolicy, checkpoint: SeerCheckpoint, vit: nn.Module, text: nn.Module) -> None:
    network = policy.network
    own = network.state_dict()
    state = our_tensors(checkpoint.tensors, policy.config.n_obs_steps)
    state |= {f"image_encoder.vit.{name}": tensor for name, tensor in vit.state_dict().items()}
    state |= {f"instruction_encoder.model.{name}": tensor for name, tensor in text.state_dict().items()}
    state |= {name: own[name] for name in OWN_BUFFERS}
    load_strictly(network, state, checkpoint.path)


def _check_encoders(
    layout: SeerLayout, vit: nn.Module, text: nn.Module, mae: str | Path, clip: str | Path
) -> None:
    wanted = {"image_size": IMAGE_SIZE, "patch_size": layout.patch}
    _check_tower("image", vit.config, layout.vision_dim, layout.vision_layers, wanted, MAE, mae)
    wanted = {"projection_dim": layout.text_dim}
    _check_tower("text", text.config, layout.text_width, layout.text_layers, wanted, CLIP, clip)


def _check_tower(
    which: str,
    config: Any,
    width: int,
    layers: int,
    further: dict[str, int],
    source: Source,
    path: str | Path,
) -> None:
    # Weights of the same shapes may be another model's: heads are in no shape, and fewer blocks load as well.
    wanted = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // HEAD_WIDTH,
        "intermediate_size": 4 * width,
        **further,
    }
    found = {name: getattr(config, name) for name in wanted}
    if wrong := [
        f"{name} {found[name]} (not {wanted[name]})" for name in wanted if found[name] != wanted[name]
    ]:
        raise ValueError(
            f"the {which} encoder at {path} is not the one that this checkpoint was trained on, "
            f"{source.what}: it has {', '.join(wrong)}. {source.fix_beside(path)}"
        )


def _check_free(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} exists already; choose another folder, or remove it first")
    check_writable(target, "DST")


@contextmanager
def _whole_folder(target: Path) -> Iterator[Path]:
    """A folder that becomes ``target`` once all is written, and otherwise vanishes."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    new_parents = [folder for folder in partial.parents if not folder.exists()]
    partial.mkdir(parents=True)
    try:
        yield partial
        if target.exists():
            target.rmdir()
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):  # one that another program has filled meanwhile stays
            for folder in new_parents:
                folder.rmdir()
        raise
