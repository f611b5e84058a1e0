"""The loss of each stage, on single steps or on every step of a history."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from lerobot_policy_vita_vla.vla.align import align_loss
from lerobot_policy_vita_vla.vla.finetune import finetune_loss
from lerobot_policy_vita_vla.vla.history import chunks_of_steps, per_sample

if TYPE_CHECKING:
    from lerobot_policy_vita_vla.vla.batches import Observed
    from lerobot_policy_vita_vla.vla.configuration_vita_vla import VitaVLAConfig
    from lerobot_policy_vita_vla.vla.network import VitaVLANetwork


def student_loss(
    network: VitaVLANetwork,
    config: VitaVLAConfig,
    seen: Observed,
    batch: dict[str, Any],
    target: Tensor | None,
    reduction: str,
) -> tuple[Tensor, dict[str, float]]:
    """Loss of the stage, and plain numbers for the log.

    The paper supervises all steps of a history (its code; the window is H + T). Rows of the loss are samples,
    or with H > 1 the n steps that exist, of all samples one after the other.

    Args:
        network: The student.
        config: Stage and weights.
        seen: What the student sees.
        batch: ``action`` (B, H + T - 1, A) and ``action_is_pad``; not needed for align.
        target: The teacher's features, one per row of the loss; None where the stage needs none.
        reduction: ``"mean"`` over rows, or ``"none"``: one number per sample, (B,).
    """
    if seen.valid_BH is None:
        features = network.features(seen.images, seen.tasks, seen.state)
    else:
        features = network.step_features(seen.images, seen.tasks, seen.state, seen.valid_BH)
    history = seen.valid_BH if config.n_obs_steps > 1 else None
    if config.stage == "align":
        loss, metrics = align_loss(features, target, kind=config.align_loss, reduction=reduction)
    else:
        labels = [batch["action"], batch["action_is_pad"]]
        if history is not None:
            labels = [chunks_of_steps(label, config.chunk_size, history) for label in labels]
        loss, metrics = finetune_loss(
            network.decoder,
            features,
            *labels,
            beta=config.smooth_l1_beta,
            gripper_weight=config.gripper_weight,
            target_BTE=target,
            align_kind=config.align_loss,
            align_weight=config.align_weight,
            reduction=reduction,
        )
    if reduction == "none" and history is not None:
        loss = per_sample(loss, history)
    return loss, metrics
