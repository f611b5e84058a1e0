"""Seer in the role of a teacher."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lerobot_policy_vita_vla.contracts import ActionSpec, TeacherTargets
from lerobot_policy_vita_vla.teacher.decoder import ActionDecoder
from lerobot_policy_vita_vla.teacher.seer.modeling_seer import SeerPolicy


class SeerTeacher:
    """A trained `SeerPolicy` behind the protocol `contracts.Teacher`; read-only, no state between calls.

    Batches may carry a frame axis; the last H frames are used.

    Args:
        policy: Loaded weights; put into eval mode and frozen here.
    """

    def __init__(self, policy: SeerPolicy):
        self.policy = policy.eval().requires_grad_(False)
        config = policy.config
        self.feature_dim: int = config.width
        self.chunk_size: int = config.chunk_size
        self.state_dim: int = config.state_dim
        self.n_obs_steps: int = config.n_obs_steps
        self.cameras: tuple[str, ...] = config.cameras
        self.recording: dict[str, Any] = config.recording
        self.uses_language: bool = config.use_instruction

    @property
    def decoder(self) -> ActionDecoder:
        """Action features -> action chunk."""
        return self.policy.network.decoder

    @property
    def action_spec(self) -> ActionSpec:
        """Meaning and scale of the action dimensions."""
        return self.decoder.spec

    def to(self, device: torch.device | str) -> SeerTeacher:
        """Move the weights."""
        self.policy.to(device)
        return self

    def targets(self, batch: dict[str, Any]) -> TeacherTargets:
        """Action features (B, T, E) of the last step, float32, without gradient or augmentation."""
        return TeacherTargets(self.policy.features_of_history(batch))

    def targets_of_every_step(self, batch: dict[str, Any]) -> Tensor:
        """Action features (B, H, T, E) of all H steps, float32; of a padded step they mean nothing."""
        return self.policy.features_of_every_step(batch)

    def predict_action_chunk(self, batch: dict[str, Any]) -> Tensor:
        """Action chunk (B, T, A) in environment units."""
        return self.policy.chunk_of_history(batch)
