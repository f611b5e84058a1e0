"""State encoders: the standardised proprioceptive state -> one token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SplitStateEncoder(nn.Module):
    """Seer's: arm and gripper apart, joined by one more linear layer.

    Args:
        state_dim: S.
        gripper_dims: Which of them are the gripper's.
        width: E.
        one_hot: The gripper is one number, -1 closed or 1 open, encoded as a class (Seer on CALVIN).
    """

    def __init__(self, *, state_dim: int, gripper_dims: Sequence[int], width: int, one_hot: bool = False):
        super().__init__()
        gripper = sorted(d % state_dim for d in gripper_dims)
        arm = [d for d in range(state_dim) if d not in gripper]
        if one_hot and len(gripper) != 1:
            raise ValueError(
                f"gripper_state_one_hot wants one number of the state to be the gripper's, got {gripper}; "
                f"pass for instance --policy.gripper_state_dims='[{state_dim - 1}]'"
            )
        self.one_hot = one_hot
        self.register_buffer("arm_dims", torch.tensor(arm), persistent=False)
        self.register_buffer("gripper_dims", torch.tensor(gripper), persistent=False)
        self.arm_state_encoder = nn.Linear(len(arm), width)
        self.gripper_state_encoder = nn.Linear(2 if one_hot else len(gripper), width)
        self.state_projector = nn.Linear(2 * width, width)

    def forward(self, state_BHS: Tensor) -> Tensor:
        """(B, H, S) -> (B, H, E)."""
        arm = self.arm_state_encoder(state_BHS[..., self.arm_dims])
        gripper_BHG = state_BHS[..., self.gripper_dims]
        if self.one_hot:
            # Seer's code: everything below 1 is closed.
            gripper_BHG = F.one_hot((gripper_BHG[..., 0] >= 1).long(), 2).to(state_BHS.dtype)
        gripper = self.gripper_state_encoder(gripper_BHG)
        return self.state_projector(torch.cat([arm, gripper], dim=-1))


def mlp_state_encoder(*, state_dim: int, width: int, hidden: int = 128) -> nn.Module:
    """The small network's: one hidden layer over all of the state."""
    return nn.Sequential(nn.Linear(state_dim, hidden), nn.GELU(), nn.Linear(hidden, width))
