"""From a LeRobot batch to what the student's network reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from lerobot.utils.constants import OBS_STATE
from torch import Tensor

from lerobot_policy_vita_vla.vla.augmentation import shifted_cameras
from lerobot_policy_vita_vla.vla.history import steps_that_exist

if TYPE_CHECKING:
    from lerobot_policy_vita_vla.vla.configuration_vita_vla import VitaVLAConfig
    from lerobot_policy_vita_vla.vla.pictures import StoredPictures


class Observed(NamedTuple):
    """What the student sees of a batch.

    Attributes:
        images: One (B, 3, h, w) per camera, or (B, H, 3, h, w) where the prompt has turns; or what was
            computed of them before.
        tasks: B instructions.
        state: (B, S) or (B, H, S), None without a state encoder.
        valid_BH: Which steps exist; None where the prompt has no turns.
    """

    images: list[Tensor] | StoredPictures
    tasks: list[str]
    state: Tensor | None
    valid_BH: Tensor | None


def observed_keys(config: VitaVLAConfig) -> list[str]:
    """Batch keys of the observations that the student reads."""
    return [*config.image_features, *([OBS_STATE] if config.use_state_encoder else [])]


def observed(
    batch: dict[str, Any], config: VitaVLAConfig, pictures: StoredPictures | None = None
) -> Observed:
    """Take from a batch what the student reads, with a frame axis where the prompt has turns.

    Args:
        batch: See contracts.py.
        config: What the student reads.
        pictures: The images' embeddings where they were computed before; the batch then needs no images.

    Raises:
        ValueError: Without instructions, or with histories of another length than the student's.
    """
    tasks = batch.get("task")
    if tasks is None:
        raise ValueError("the batch has no 'task': the student needs an instruction for every sample")
    images = pictures or [batch[key] for key in config.image_features]
    state = batch[OBS_STATE] if config.use_state_encoder else None
    if not config.reads_turns:
        return Observed(images, list(tasks), state, None)
    if images[0].ndim == 4:
        images = [image.unsqueeze(1) for image in images]
        state = None if state is None else state.unsqueeze(1)
    if (steps := images[0].shape[1]) > config.n_obs_steps:
        raise ValueError(
            f"the batch has histories of {steps} steps, the student reads n_obs_steps={config.n_obs_steps}"
        )
    return Observed(images, list(tasks), state, steps_that_exist(batch, images[0]))


def shifted(batch: dict[str, Any], config: VitaVLAConfig) -> dict[str, Any]:
    """The batch with its images randomly shifted."""
    return batch | shifted_cameras(
        batch,
        list(config.image_features),
        pixels=config.image_shift_px,
        wrist_pixels=config.wrist_shift_px,
        apart=config.shift_draw == "apart",
    )
