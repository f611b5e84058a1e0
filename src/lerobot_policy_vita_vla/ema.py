"""An exponential moving average of the trained weights, kept inside the policy.

The average lives in the policy's state dict (names ``ema.*``) beside the raw weights, so that a checkpoint
both resumes exactly and acts with the averaged weights: ``eval()`` swaps them in, ``train()`` swaps the raw
ones back. LeRobot 0.6 calls ``policy.update()`` after every optimiser step, where the average advances.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

PREFIX = "ema."


class ParameterEMA(nn.Module):
    """Averages the given parameters with a decay that warms up.

    The decay at update n is ``min(decay, (1 + n) / (10 + n))``, so that a short run is not held back by its
    initial weights (our choice).

    Args:
        parameters: ``(name, parameter)`` pairs to average, typically the trainable ones.
        decay: Final decay in (0, 1).
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], decay: float):
        super().__init__()
        if not 0.0 < decay < 1.0:
            raise ValueError(f"ema_decay must lie in (0, 1), got {decay}; 0 in the config disables it")
        pairs = list(parameters)
        self.decay = decay
        self.active = False
        # Plain attributes: the parameters belong to the policy and must not be registered twice.
        object.__setattr__(self, "_tracked", tuple(p for _, p in pairs))
        self._names = [_buffer_name(name) for name, _ in pairs]
        for name, (_, parameter) in zip(self._names, pairs, strict=True):
            self.register_buffer(name, parameter.detach().clone())
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    @property
    def averages(self) -> list[Tensor]:
        """The averaged tensors, in the order of the parameters given."""
        return [getattr(self, name) for name in self._names]

    @torch.no_grad()
    def update(self) -> None:
        """Advance the average by one optimiser step."""
        assert not self.active, "the average advances on raw weights only"
        self.updates += 1
        n = self.updates.item()
        decay = min(self.decay, (1 + n) / (10 + n))
        torch._foreach_lerp_(self.averages, [p.data for p in self._tracked], 1.0 - decay)

    @torch.no_grad()
    def activate(self, active: bool) -> None:
        """Exchange averaged and raw weights so that the policy acts with the average (or trains again)."""
        if active == self.active:
            return
        for name, parameter in zip(self._names, self._tracked, strict=True):
            averaged = getattr(self, name)
            raw = parameter.data
            parameter.data = averaged.to(raw.device, raw.dtype)
            setattr(self, name, raw)
        self.active = active


def fold_average(state: dict[str, Tensor], keep: bool = False) -> dict[str, Tensor]:
    """Turn a checkpoint's weights into those that it acts with, unless its average is to be continued.

    Args:
        state: A policy's state dict, with or without ``ema.*`` entries.
        keep: Leave everything as it is (the same stage goes on).

    Returns:
        A state dict without ``ema.*`` entries in which the averaged tensors replace the raw ones.
    """
    if keep or not any(key.startswith(PREFIX) for key in state):
        return state
    folded = {key: value for key, value in state.items() if not key.startswith(PREFIX)}
    for key in folded:
        averaged = state.get(PREFIX + _buffer_name(key))
        if averaged is not None:
            folded[key] = averaged
    return folded


def _buffer_name(parameter_name: str) -> str:
    # Buffer names may not hold a dot.
    return parameter_name.replace(".", "__")
