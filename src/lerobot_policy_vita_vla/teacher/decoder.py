"""The action decoder: the part of the teacher that the student keeps.

    features (B, T, E) -> trunk -> heads -> raw (B, T, A) -> to_action -> environment units (B, T, A)

``raw`` holds, for regressed dimensions, the action in the spec's scaled units (tanh keeps Seer's in [-1, 1]);
for a binary gripper, a logit. Two kinds exist:

* ``seer``: Linear(E, E/2) ReLU Linear(E/2, E/2) ReLU; arm head + tanh; gripper head (paper.md section 5:
  112,327 parameters at E=384, 791,047 at E=1024 with 6 arm dimensions and one gripper).
* ``linear``: one Linear(E, A), which is all that LeRobot's ACT has behind its transformer.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lerobot_policy_vita_vla.contracts import ActionSpec, check_shape

DECODER_KINDS = ("seer", "linear")


class ActionDecoder(nn.Module):
    """Decode action features into an action chunk.

    Args:
        kind: ``"seer"`` or ``"linear"``, see the module's docstring.
        feature_dim: E.
        spec: Meaning and scale of the A action dimensions. Its offset and scale are buffers, saved with the
            weights, so that a decoder can never be separated from its statistics.
    """

    def __init__(self, *, kind: str, feature_dim: int, spec: ActionSpec):
        super().__init__()
        if kind not in DECODER_KINDS:
            raise ValueError(f"decoder kind must be one of {DECODER_KINDS}, got {kind!r}")
        self.kind, self.feature_dim, self.spec = kind, feature_dim, spec
        if kind == "seer":
            half = feature_dim // 2
            self.trunk = nn.Sequential(
                nn.Linear(feature_dim, half), nn.ReLU(), nn.Linear(half, half), nn.ReLU()
            )
            self.arm_head = nn.Linear(half, len(spec.arm_dims))
            self.gripper_head = nn.Linear(half, len(spec.binary_dims)) if spec.binary_dims else None
        else:
            self.head = nn.Linear(feature_dim, spec.dim)
        self.register_buffer("offset", torch.tensor(spec.offset, dtype=torch.float32))
        self.register_buffer("scale", torch.tensor(spec.scale, dtype=torch.float32))
        # Where each raw dimension comes from once arm and gripper outputs are concatenated.
        order = torch.tensor(spec.arm_dims + spec.binary_dims).argsort()
        self.register_buffer("order", order, persistent=False)

    def forward(self, features_BTE: Tensor) -> Tensor:
        """(B, T, E) -> raw (B, T, A): scaled units for regressed dimensions, logits for a binary gripper."""
        check_shape("action features", features_BTE, None, None, self.feature_dim)
        if self.kind == "linear":
            return self.head(features_BTE)
        hidden = self.trunk(features_BTE)
        raw = torch.tanh(self.arm_head(hidden))
        if self.gripper_head is None:
            return raw
        return torch.cat([raw, self.gripper_head(hidden)], dim=-1)[..., self.order]

    def to_action(self, raw_BTA: Tensor) -> Tensor:
        """Raw decoder output -> environment units (B, T, A); a binary gripper closes where its logit > 0."""
        check_shape("decoder output", raw_BTA, None, None, self.spec.dim)
        raw_BTA = raw_BTA.float()
        scaled = raw_BTA.clone()
        for dim in self.spec.binary_dims:
            scaled[..., dim] = torch.where(raw_BTA[..., dim] > 0, 1.0, -1.0)
        return scaled * self.scale + self.offset

    def scale_action(self, action_BTA: Tensor) -> Tensor:
        """Environment units -> scaled units, the inverse of `to_action` for regressed dimensions."""
        return (action_BTA.float() - self.offset) / self.scale

    def config(self) -> dict[str, Any]:
        """All that `build_decoder` needs to make this module again, without weights."""
        return {"kind": self.kind, "feature_dim": self.feature_dim, "spec": self.spec.to_dict()}


def build_decoder(config: dict[str, Any]) -> ActionDecoder:
    """Make a decoder with fresh weights from `ActionDecoder.config`."""
    spec = ActionSpec.from_dict(config["spec"])
    return ActionDecoder(kind=config["kind"], feature_dim=config["feature_dim"], spec=spec)


def imitation_loss(
    decoder: ActionDecoder,
    raw_BTA: Tensor,
    action_BTA: Tensor,
    action_is_pad_BT: Tensor,
    *,
    beta: float,
    gripper_weight: float,
    reduction: str = "mean",
) -> tuple[Tensor, dict[str, float]]:
    """Arm regression + gripper classification (paper: L = L_arm + 0.01 L_gripper; official code: smooth-L1).

    Args:
        decoder: The decoder that produced ``raw_BTA``; its spec says which dimension is what.
        raw_BTA: `ActionDecoder.forward`'s output.
        action_BTA: Demonstrated actions, environment units.
        action_is_pad_BT: True where a step lies behind the episode's end; such steps do not count.
        beta: Smooth-L1 threshold, scaled units.
        gripper_weight: Weight of the gripper's binary cross-entropy.
        reduction: ``"mean"`` or ``"none"`` (one loss per sample, (B,), for LeRobot's sample weighting).

    Returns:
        The loss, scalar or (B,), and its parts as plain numbers for logging.
    """
    spec = decoder.spec
    check_shape("demonstrated actions", action_BTA, *raw_BTA.shape)
    raw, target = raw_BTA.float(), decoder.scale_action(action_BTA)
    valid_BT = (~action_is_pad_BT).float()
    count_B = valid_BT.sum(1).clamp_min(1.0)

    def per_sample(loss_BTK: Tensor) -> Tensor:
        return (loss_BTK.mean(-1) * valid_BT).sum(1) / count_B

    arm = list(spec.arm_dims)
    arm_B = per_sample(F.smooth_l1_loss(raw[..., arm], target[..., arm], beta=beta, reduction="none"))
    total_B, parts = arm_B, {"loss_arm": arm_B.mean().item()}
    if spec.binary_dims:
        dims = list(spec.binary_dims)
        label = (target[..., dims] > 0).float()
        gripper_B = per_sample(F.binary_cross_entropy_with_logits(raw[..., dims], label, reduction="none"))
        total_B = total_B + gripper_weight * gripper_B
        parts["loss_gripper"] = gripper_B.mean().item()
    if reduction == "none":
        return total_B, parts
    # Weight every valid step alike, so that padded samples do not count for more than their steps.
    return (total_B * count_B).sum() / count_B.sum(), parts
