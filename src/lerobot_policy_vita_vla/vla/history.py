"""Histories in batches: which steps exist, what each is trained on, and what a running episode remembers.

LeRobot fills an episode's start by repeating its first frame and says so in ``observation.*_is_pad``; the
student reads only the steps that exist, so a history grows 1..H, in training as in acting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Memory:
    """What a policy keeps of the running episodes of a batch between two steps.

    Attributes:
        seen: Batch key -> (B, n, ...), the last n <= H observations.
        past: Keys and values of these steps, where the next one can use them (`backbone.turn_step`).
    """

    seen: dict[str, Tensor] = field(default_factory=dict)
    past: Any = None


def remember(memory: Memory | None, batch: dict[str, Any], keys: Sequence[str], n_obs_steps: int) -> Memory:
    """Append a step's observation (B, ...); beyond H steps the oldest leaves, and with it the past.

    Every later key and value depended on the step that left: what follows has to be computed anew.

    Raises:
        ValueError: If the batch has another number of episodes than the memory.
    """
    if memory is None:
        return Memory({key: batch[key].unsqueeze(1) for key in keys})
    before, now = len(memory.seen[keys[0]]), len(batch[keys[0]])
    if before != now:
        raise ValueError(
            f"the memory is of {before} episodes, the batch has {now}; call reset(), or pass no memory, "
            "where episodes start"
        )
    full = memory.seen[keys[0]].shape[1] == n_obs_steps
    seen = {
        key: torch.cat([memory.seen[key][:, int(full) :], batch[key].unsqueeze(1)], dim=1) for key in keys
    }
    return Memory(seen, None if full else memory.past)


def steps_that_exist(batch: dict[str, Any], images_BH3hw: Tensor) -> Tensor:
    """(B, H) bool, False for the frames that LeRobot repeats before an episode's start.

    Args:
        batch: ``observation.*_is_pad`` (B, H), the same for all observations; absent: all steps exist.
        images_BH3hw: A camera's images.
    """
    shape, device = images_BH3hw.shape[:2], images_BH3hw.device
    marks = (v for k, v in batch.items() if k.startswith("observation.") and k.endswith("_is_pad"))
    is_pad = next((mark for mark in marks if mark.shape == shape), None)
    if is_pad is None:
        return torch.ones(shape, dtype=torch.bool, device=device)
    valid_BH = ~is_pad.to(device)
    # Padding stands in front, and the newest step is always there.
    assert bool((valid_BH.int().diff(dim=1) >= 0).all()) and bool(valid_BH[:, -1].all())
    return valid_BH


def chunks_of_steps(action_BWA: Tensor, chunk_size: int, valid_BH: Tensor) -> Tensor:
    """Actions (or their padding) of W = H + T - 1 steps -> each existing step's own chunk (n, T, ...)."""
    return action_BWA.unfold(1, chunk_size, 1).movedim(-1, 2)[valid_BH]


def per_sample(loss_n: Tensor, valid_BH: Tensor) -> Tensor:
    """Mean over each sample's steps, (B,)."""
    loss_BH = torch.zeros(valid_BH.shape, dtype=loss_n.dtype, device=loss_n.device)
    return loss_BH.masked_scatter(valid_BH, loss_n).sum(dim=1) / valid_BH.sum(dim=1)
