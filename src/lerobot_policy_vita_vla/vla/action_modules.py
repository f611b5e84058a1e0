r"""The parts that turn a VLM into a policy: what it reads besides the prompt, and what is read out.

    state (B, S) --StateEncoder--> 1 token      \
                                                 >-- suffix (B, 1+K, D) --> VLM --> hidden (B, K, D)
    learned vectors --ActionQueries--> K tokens /

    hidden (B, K, D) --ActionMapper--> action features (B, T, E), what the teacher's decoder reads

Sizes at the paper's shapes (our count): state encoder 25.73 M, query 3,584, mapper 5.77 M for CALVIN
(D=3584, E=1024) or 1.67 M for LIBERO (E=384).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lerobot_policy_vita_vla.contracts import check_shape

STD_FLOOR = 1e-3
"""Smallest standard deviation (state units) that a state is divided by; a constant dimension stays near 0."""


class StateEncoder(nn.Module):
    """Encode the proprioceptive state as one token: arm and gripper apart, then mixed (paper section 1).

    Linear(arm) and Linear(gripper), concatenated, Linear(2D, D). Without gripper dimensions: Linear(S, D),
    Linear(D, D).

    Args:
        state_dim: S.
        width: D.
        gripper_dims: Which of the S dimensions are the gripper's.
        mean: (S,) of the training data, state units; None: zeros.
        std: (S,) of the training data, state units; None: ones. The paper feeds raw states; standardising is
            our choice, since robots report radians, metres and millimetres alike.
        one_hot_gripper: Encode the gripper's one dimension as two, [value < 1, value >= 1] (the paper's code
            on CALVIN, whose gripper state is -1 or 1).
    """

    def __init__(
        self,
        *,
        state_dim: int,
        width: int,
        gripper_dims: Sequence[int] = (),
        mean: Tensor | None = None,
        std: Tensor | None = None,
        one_hot_gripper: bool = False,
    ):
        super().__init__()
        if bad := [d for d in gripper_dims if not 0 <= d < state_dim]:
            raise ValueError(
                f"gripper_state_dims {bad} do not exist: the state has dimensions 0..{state_dim - 1}"
            )
        if one_hot_gripper and len(gripper_dims) != 1:
            raise ValueError(
                "one_hot_gripper needs one state dimension for the gripper, got gripper_state_dims "
                f"{list(gripper_dims)}; name it with --policy.gripper_state_dims=[<its number>]"
            )
        self.state_dim, self.one_hot_gripper = state_dim, one_hot_gripper
        groups = [[d for d in range(state_dim) if d not in gripper_dims], sorted(gripper_dims)]
        groups = [dims for dims in groups if dims]
        sizes = [len(dims) for dims in groups]
        if one_hot_gripper:
            sizes[-1] = 2
        self.inputs = nn.ModuleList(nn.Linear(size, width) for size in sizes)
        self.mix = nn.Linear(len(groups) * width, width)
        for i, dims in enumerate(groups):
            self.register_buffer(f"dims_{i}", torch.tensor(dims), persistent=False)
        mean = torch.zeros(state_dim) if mean is None else torch.as_tensor(mean).float()
        std = torch.ones(state_dim) if std is None else torch.as_tensor(std).float()
        check_shape("state mean", mean, state_dim)
        check_shape("state std", std, state_dim)
        self.register_buffer("state_mean", mean.clone())
        self.register_buffer("state_std", std.clamp_min(STD_FLOOR))

    def forward(self, state_BS: Tensor) -> Tensor:
        """(B, S) in physical units -> (B, 1, D)."""
        check_shape("observation.state", state_BS, None, self.state_dim)
        raw_BS = state_BS.float()
        state_BS = (raw_BS - self.state_mean) / self.state_std
        groups = [state_BS.index_select(1, self.get_buffer(f"dims_{i}")) for i in range(len(self.inputs))]
        if self.one_hot_gripper:
            gripper_B1 = raw_BS.index_select(1, self.get_buffer(f"dims_{len(groups) - 1}"))
            groups[-1] = torch.cat([gripper_B1 < 1, gripper_B1 >= 1], dim=1).float()
        encoded = [layer(group) for layer, group in zip(self.inputs, groups, strict=True)]
        return self.mix(torch.cat(encoded, dim=-1)).unsqueeze(1)


class ActionQueries(nn.Module):
    """The learned vectors at whose positions the action features are read (the paper's "action token").

    Args:
        num_queries: K.
        width: D.
        shared: One vector for all K places, told apart by position alone (paper), or one each.
        init_std: Spread of the initial values. The paper draws with 1; our choice is that of the VLM's own
            token embeddings: beside vectors 50 times as long, a frozen model hardly reads its words.
    """

    def __init__(self, *, num_queries: int, width: int, shared: bool, init_std: float):
        super().__init__()
        self.num_queries = num_queries
        self.vectors = nn.Parameter(torch.randn(1 if shared else num_queries, width) * init_std)

    def forward(self, batch_size: int) -> Tensor:
        """-> (B, K, D)."""
        # A copy, not a view: sharded training frees the gathered weight as soon as this returns.
        return self.vectors.expand(self.num_queries, -1).repeat(batch_size, 1, 1)


class ActionMapper(nn.Module):
    """Map hidden states at the queries to action features: Linear GELU Linear GELU Linear (paper section 1).

    Args:
        width: D.
        feature_dim: E.
        features_per_query: T / K, how many steps one query stands for. The paper's is 1.
    """

    def __init__(self, *, width: int, feature_dim: int, features_per_query: int = 1):
        super().__init__()
        self.feature_dim = feature_dim
        self.layers = nn.Sequential(
            nn.Linear(width, feature_dim),
            nn.GELU(),
            nn.Linear(feature_dim, feature_dim),
            nn.GELU(),
            nn.Linear(feature_dim, feature_dim * features_per_query),
        )

    def forward(self, hidden_BKD: Tensor) -> Tensor:
        """(B, K, D) -> (B, T, E), query k giving steps k*T/K ... (k+1)*T/K - 1."""
        return self.layers(hidden_BKD).reshape(len(hidden_BKD), -1, self.feature_dim)
