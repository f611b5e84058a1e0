"""Gradient accumulation inside the optimiser, since `lerobot-train` 0.6 has none.

    batch    1         2         ...  k            k + 1
    grad     g1        g1 + g2        g1 + ... + gk  reset
    update   -         -              AdamW((g1 + ... + gk) / k)

LeRobot's loop calls ``step`` and ``zero_grad`` after every batch; k - 1 of k such calls do nothing here.
(accelerate's own setting divides the loss by k and steps all the same: a learning rate in disguise.)
Clipping concerns the whole gradient, so the optimiser does it, and LeRobot is told not to clip.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lerobot.optim.optimizers import AdamWConfig, OptimizerConfig, OptimizerParams

from lerobot_policy_vita_vla.optimizer import can_fuse, is_sharded


class AccumulatingAdamW(torch.optim.AdamW):
    """AdamW that updates once every ``accumulation`` calls of `step`, on the mean of the gradients.

    Args:
        params: As of `torch.optim.AdamW`.
        accumulation: k, batches per update.
        clip_norm: Largest norm of the mean gradient; 0 does not clip.
        **settings: As of `torch.optim.AdamW`.
    """

    def __init__(self, params: Any, *, accumulation: int, clip_norm: float, **settings: Any):
        super().__init__(params, **settings)
        self.accumulation, self.clip_norm = accumulation, clip_norm
        self.batches = 0

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Count a batch; update when it is the k-th."""
        self.batches += 1
        if self.batches < self.accumulation:
            return None
        learned = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        for parameter in learned:
            parameter.grad.div_(self.accumulation)
        if self.clip_norm > 0:
            torch.nn.utils.clip_grad_norm_(learned, self.clip_norm)
        return super().step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, unless they are being summed."""
        if 0 < self.batches < self.accumulation:
            return
        self.batches = 0
        super().zero_grad(set_to_none)


@OptimizerConfig.register_subclass("vita_accumulating_adamw")
@dataclass
class AccumulatingAdamWConfig(AdamWConfig):
    """Settings of `AccumulatingAdamW`.

    Args:
        grad_clip_norm: 0: LeRobot's loop would clip partial sums.
        accumulation: k.
        clip_norm: See `AccumulatingAdamW`.
    """

    grad_clip_norm: float = 0.0
    accumulation: int = 1
    clip_norm: float = 0.0

    def build(self, params: OptimizerParams) -> AccumulatingAdamW:
        """Make the optimiser.

        Raises:
            ValueError: Clipping under FSDP1, where a process knows the norm of its own shard only.
        """
        if is_sharded() and self.clip_norm > 0:
            raise ValueError(
                "--policy.accumulation clips gradients in the optimiser, which under FSDP sees a part of "
                "them only; pass --policy.grad_clip_norm=0, or larger batches without accumulation"
            )
        return AccumulatingAdamW(
            params,
            lr=self.lr,
            betas=tuple(self.betas),
            eps=self.eps,
            weight_decay=self.weight_decay,
            accumulation=self.accumulation,
            clip_norm=self.clip_norm,
            fused=can_fuse(params) or None,
        )
