"""What Seer is trained on: imitation + foresight + (ours) object positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lerobot_policy_vita_vla.teacher.decoder import imitation_loss
from lerobot_policy_vita_vla.teacher.seer.network import SeerNetwork
from lerobot_policy_vita_vla.teacher.seer.pictures import patchify


@dataclass(frozen=True)
class SeerBatch:
    """Tensors of one training step, in physical units.

    Attributes:
        pictures_BHN3hw: What is seen, augmented, in [0, 1].
        state_BHS: Proprioceptive state.
        instructions: B strings.
        action_BHTA: The chunk that each step of the history should predict.
        action_is_pad_BHT: True where a step of a chunk, or its observation, lies outside the episode.
        future_BHN3hw: The pictures ``foresight_steps`` later, augmented alike; None without foresight.
        future_is_pad_BH: True where they lie behind the episode's end.
        privileged_BHX: Privileged numbers to predict; None without that loss.
    """

    pictures_BHN3hw: Tensor
    state_BHS: Tensor
    instructions: Sequence[str]
    action_BHTA: Tensor
    action_is_pad_BHT: Tensor
    future_BHN3hw: Tensor | None = None
    future_is_pad_BH: Tensor | None = None
    privileged_BHX: Tensor | None = None


@dataclass(frozen=True)
class SeerWeights:
    """Weights and thresholds of the losses, as in `SeerConfig`."""

    smooth_l1_beta: float
    gripper_weight: float
    foresight_weight: float
    auxiliary_weight: float
    auxiliary_scale: float


def seer_loss(
    network: SeerNetwork, batch: SeerBatch, weights: SeerWeights, reduction: str = "mean"
) -> tuple[Tensor, dict[str, float]]:
    """Loss and its parts, as numbers for logging.

    Args:
        network: In train mode.
        batch: See `SeerBatch`.
        weights: See `SeerWeights`.
        reduction: ``"mean"``, or ``"none"`` for one loss per sample (B,).
    """
    output = network(batch.pictures_BHN3hw, batch.state_BHS, batch.instructions)
    b, h = batch.state_BHS.shape[:2]
    loss, parts = imitation_loss(
        network.decoder,
        network.decode(output.action_BHTE.flatten(0, 1)),
        batch.action_BHTA.flatten(0, 1),
        batch.action_is_pad_BHT.flatten(0, 1),
        beta=weights.smooth_l1_beta,
        gripper_weight=weights.gripper_weight,
        reduction=reduction,
    )
    if reduction == "none":
        loss = loss.view(b, h).mean(1)
    for name, weight, extra in (
        ("loss_foresight", weights.foresight_weight, _foresight_loss),
        ("loss_auxiliary", weights.auxiliary_weight, _auxiliary_loss),
    ):
        if weight > 0:
            extra_B = extra(network, output, batch, weights)
            loss = loss + weight * (extra_B if reduction == "none" else extra_B.mean())
            parts[name] = extra_B.mean().item()
    return loss, parts


def _foresight_loss(network, output, batch: SeerBatch, weights: SeerWeights) -> Tensor:
    """Mean squared error of standardised patches, averaged over cameras (Seer's code); (B,)."""
    shape_BHN = output.foresight_BHNFE.shape[:3]
    predicted_XPD = network.foresight_decoder(output.foresight_BHNFE.flatten(0, 2)).float()
    with torch.no_grad():
        future_X3hw = network.image_encoder.standardise(batch.future_BHN3hw.flatten(0, 2))
        target_XPD = patchify(future_X3hw, network.foresight_decoder.patch)
    error_BH = (predicted_XPD - target_XPD).square().mean((1, 2)).view(shape_BHN).mean(2)
    valid_BH = (~batch.future_is_pad_BH).float()
    return (error_BH * valid_BH).sum(1) / valid_BH.sum(1).clamp_min(1)


def _auxiliary_loss(network, output, batch: SeerBatch, weights: SeerWeights) -> Tensor:
    """Smooth-L1 of the standardised privileged numbers; (B,)."""
    target_BHX = (batch.privileged_BHX.float() - network.auxiliary_mean) / weights.auxiliary_scale
    guess_BHX = network.auxiliary_head(output.seen_BHG).float()
    error_BHX = F.smooth_l1_loss(guess_BHX, target_BHX, reduction="none")
    return error_BHX.mean((1, 2))
