"""Stage 1: the student's action features are regressed onto the teacher's (paper section 3.3).

The vision-language model and the decoder stand still; state encoder, queries and mapper learn.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lerobot_policy_vita_vla.contracts import check_shape


def align_loss(
    features_BTE: Tensor, target_BTE: Tensor, *, kind: str, reduction: str = "mean"
) -> tuple[Tensor, dict[str, float]]:
    """Distance between the student's and the teacher's action features.

    Steps behind the end of an episode count too: the teacher has features there whether or not the
    demonstration goes on.

    Args:
        features_BTE: The mapper's output.
        target_BTE: The teacher's features, without gradient.
        kind: ``"mse"``, mean squared error (the paper's formula), or ``"norm"``, the Euclidean length of the
            difference of each feature vector, averaged (the official code).
        reduction: ``"mean"`` or ``"none"`` (one loss per sample, (B,), for LeRobot's sample weighting).

    Returns:
        The loss, scalar or (B,), and for the log ``feature_r2``: the share of the targets' variance over the
        batch that is explained, 1 at best, 0 for a constant guess.
    """
    check_shape("the teacher's action features", target_BTE, *features_BTE.shape)
    difference_BTE = features_BTE.float() - target_BTE.float()
    if kind == "mse":
        loss_B = difference_BTE.square().mean(dim=(1, 2))
    elif kind == "norm":
        loss_B = torch.linalg.vector_norm(difference_BTE, dim=-1).mean(dim=1)
    else:
        raise ValueError(f"align_loss must be 'mse' or 'norm', got {kind!r}")
    metrics = {"feature_r2": _r2(difference_BTE.detach(), target_BTE.float())}
    return (loss_B if reduction == "none" else loss_B.mean()), metrics


def _r2(difference_BTE: Tensor, target_BTE: Tensor) -> float:
    variance = target_BTE.var(dim=0, correction=0).mean()
    # One sample has no variance to explain.
    return (
        (1.0 - difference_BTE.square().mean() / variance.clamp_min(1e-12)).item()
        if len(target_BTE) > 1
        else 0.0
    )
