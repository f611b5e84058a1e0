"""The learning-rate schedule of the paper's code: DeepSpeed's WarmupDecayLR."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lerobot.optim.schedulers import LRSchedulerConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


@LRSchedulerConfig.register_subclass("vita_warmup_decay")
@dataclass
class WarmupDecayConfig(LRSchedulerConfig):
    """Logarithmic warm-up, then linear decay to 0.

        rate(s) = log(s + 1) / log(W)      for s < W = warmup_fraction * M
                  (M - s) / (M - W)        behind,          M = accumulation * updates of the run

    Args:
        num_warmup_steps: Unused; LeRobot's base class asks for it.
        warmup_fraction: Part of M that warms up.
        accumulation: 1 is the schedule that is meant. The published code counts micro-batches in M but
            makes one step per update, so with k micro-batches per update it runs through 1/k of it: k here.
    """

    num_warmup_steps: int | None = None
    warmup_fraction: float = 0.1
    accumulation: int = 1

    def build(self, optimizer: Optimizer, num_training_steps: int) -> LambdaLR:
        """Scale the rates of all groups."""
        total = self.accumulation * num_training_steps
        # DeepSpeed's floor; the logarithm of 1 could not be divided by.
        warmup = max(2, int(self.warmup_fraction * total))

        def scale(step: int) -> float:
            if step < warmup:
                return math.log(step + 1) / math.log(warmup)
            return max(0.0, (total - step) / max(1, total - warmup))

        return LambdaLR(optimizer, scale)
