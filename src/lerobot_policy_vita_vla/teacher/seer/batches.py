"""From a LeRobot batch to what the network reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lerobot_policy_vita_vla.contracts import PRIVILEGED_STATE, check_shape
from lerobot_policy_vita_vla.teacher.seer.objective import SeerBatch
from lerobot_policy_vita_vla.teacher.seer.pictures import augment, stack_cameras

if TYPE_CHECKING:
    from lerobot_policy_vita_vla.teacher.seer.configuration_seer import SeerConfig

STATE = "observation.state"


def require(batch: dict[str, Any], keys: Sequence[str]) -> None:
    """Raise ValueError unless all keys are there."""
    if missing := [key for key in keys if key not in batch]:
        raise ValueError(
            f"seer reads {missing}, which the batch does not have; it has {sorted(batch)}. Rename"
            ' observations with --rename_map=\'{"observation.images.<yours>": "observation.image"}\''
        )


def observations(batch: dict[str, Any], config: SeerConfig, n_steps: int) -> tuple[Tensor, Tensor, list[str]]:
    """The last ``n_steps`` frames of a batch, whose observations have a frame axis or none (then one frame).

    Returns:
        Pictures (B, n_steps, N, 3, size, size) in [0, 1], state (B, n_steps, S), instructions.
    """
    require(batch, (*config.cameras, STATE, "task"))
    images = [_last_frames(key, batch[key], n_steps, 4) for key in config.cameras]
    state = _last_frames(STATE, batch[STATE], n_steps, 2)
    return stack_cameras(images, config.image_size), state, list(batch["task"])


def padded_steps(batch: dict[str, Any], n_steps: int) -> Tensor | None:
    """How many of ``n_steps`` lie before the episode's start, (B,); None where the batch does not say."""
    is_pad = batch.get(f"{STATE}_is_pad")
    return None if is_pad is None else is_pad[:, -n_steps:].sum(1)


def shift_steps(value_BH: Tensor, steps_B: Tensor) -> Tensor:
    """Move each sample's steps (B, H, ...) forward in time by its own number; the ends repeat what is there.

    With a history's number of padded steps it puts the real ones in front and repeats the last behind them
    (Seer's evaluation), which changes nothing in front: no step reads a later one. Minus that number undoes
    it.
    """
    b, h = value_BH.shape[:2]
    step_BH = torch.arange(h, device=value_BH.device) + steps_B.to(value_BH.device)[:, None]
    return value_BH[torch.arange(b, device=value_BH.device)[:, None], step_BH.clamp(0, h - 1)]


def training_batch(batch: dict[str, Any], config: SeerConfig, *, augmented: bool) -> SeerBatch:
    """Split a training batch into what is seen, what is to be done and what is to be foreseen.

    LeRobot delivers frames at ``config.observation_delta_indices`` and actions at
    ``config.action_delta_indices``; with H steps of history every step gets its own chunk of labels.
    """
    frames = config.observation_delta_indices or [0]
    pictures_BKN3hw, state_BKS, task = observations(batch, config, len(frames))
    if augmented:
        pictures_BKN3hw = augment(
            pictures_BKN3hw, shift_px=config.image_shift_px, brightness=config.brightness
        )
    require(batch, ("action", "action_is_pad"))
    n_actions = len(config.action_delta_indices)
    check_shape("action", batch["action"], len(task), n_actions, None)
    is_pad_BHT = batch["action_is_pad"].unfold(1, config.chunk_size, 1)
    # A step before the episode's start shows a repeated frame: its whole chunk does not count.
    is_pad_BHT = is_pad_BHT | is_pad_BHT[..., :1]
    now = [frames.index(i) for i in config.history_indices]
    foresight, privileged = {}, None
    if config.foresight_weight > 0:
        ahead = [frames.index(i + config.foresight_steps) for i in config.history_indices]
        is_pad_BK = batch.get(f"{config.cameras[0]}_is_pad")
        if is_pad_BK is None:
            is_pad_BK = torch.zeros(len(task), len(frames), dtype=torch.bool, device=state_BKS.device)
        foresight = {"future_BHN3hw": pictures_BKN3hw[:, ahead], "future_is_pad_BH": is_pad_BK[:, ahead]}
    if config.auxiliary_weight > 0:
        require(batch, (PRIVILEGED_STATE,))
        privileged = _last_frames(PRIVILEGED_STATE, batch[PRIVILEGED_STATE], len(frames), 2)
        privileged = privileged[:, now][..., config.auxiliary_indices]
    everything_seen = now == list(range(len(frames)))
    return SeerBatch(
        pictures_BHN3hw=pictures_BKN3hw if everything_seen else pictures_BKN3hw[:, now],
        state_BHS=state_BKS[:, now],
        instructions=task,
        action_BHTA=batch["action"].unfold(1, config.chunk_size, 1).transpose(2, 3),
        action_is_pad_BHT=is_pad_BHT,
        privileged_BHX=privileged,
        **foresight,
    )


def _last_frames(key: str, value: Tensor, n_steps: int, dims_without_frames: int) -> Tensor:
    if value.ndim == dims_without_frames:
        value = value[:, None]
    if value.ndim != dims_without_frames + 1 or value.shape[1] < n_steps:
        raise ValueError(
            f"seer reads {n_steps} steps of {key}, the batch has shape {tuple(value.shape)}; a history of "
            "another length was loaded (n_obs_steps)"
        )
    return value[:, -n_steps:]
