"""Stage 2: the student imitates the demonstrations through the teacher's decoder (paper section 3.4).

    loss = imitation (arm + gripper_weight * gripper) + align_weight * alignment

The paper drops the alignment term (align_weight 0); keeping a little of it is our option against the drop in
success that the first steps of this stage cause.
"""

from __future__ import annotations

from torch import Tensor

from lerobot_policy_vita_vla.teacher.decoder import ActionDecoder, imitation_loss
from lerobot_policy_vita_vla.vla.align import align_loss


def finetune_loss(
    decoder: ActionDecoder,
    features_BTE: Tensor,
    action_BTA: Tensor,
    action_is_pad_BT: Tensor,
    *,
    beta: float,
    gripper_weight: float,
    target_BTE: Tensor | None = None,
    align_kind: str = "mse",
    align_weight: float = 0.0,
    reduction: str = "mean",
) -> tuple[Tensor, dict[str, float]]:
    """Imitation loss on decoded features, plus a weighted alignment term where the teacher's are given.

    Args:
        decoder: The student's own copy of the teacher's decoder.
        features_BTE: The mapper's output.
        action_BTA: Demonstrated actions, environment units.
        action_is_pad_BT: True behind the episode's end.
        beta: Smooth-L1 threshold, scaled action units.
        gripper_weight: Weight of the gripper's cross-entropy (paper: 0.01).
        target_BTE: The teacher's features, or None.
        align_kind: See `align_loss`.
        align_weight: Weight of the alignment term (paper: 0).
        reduction: ``"mean"`` or ``"none"``, (B,).

    Returns:
        The loss and its parts for the log.
    """
    loss, metrics = imitation_loss(
        decoder,
        decoder(features_BTE),
        action_BTA,
        action_is_pad_BT,
        beta=beta,
        gripper_weight=gripper_weight,
        reduction=reduction,
    )
    if target_BTE is None:
        return loss, metrics
    alignment, align_metrics = align_loss(features_BTE, target_BTE, kind=align_kind, reduction=reduction)
    metrics |= align_metrics | {"loss_align": alignment.mean().item()}
    return loss + align_weight * alignment, metrics
