"""Layouts of Seer's released checkpoints: which tensors they hold, and where each goes in `SeerNetwork`.

A released ``.pth`` holds what its training changed and nothing else: the frozen image and text encoders, the
attention mask and fixed position embeddings are absent. Three layouts exist (CALVIN, CALVIN Large, LIBERO);
their names are the same, their shapes follow from a few numbers. Some modules are stored although no forward
pass reads them (`UNUSED`); they are checked like all others and then left out.

Letters: E trunk width, C vision width, Q image tokens and F foresight tokens per camera, T action tokens, H
steps of the time embedding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

PREFIX = "module."
"""Of every name: the checkpoints were saved from a distributed wrapper."""

TIME = "transformer_backbone_position_embedding"

UNUSED = (
    "action_pose_encoder",
    "action_gripper_position_encoder",
    "action_projector",
    "recon_state_decoder",
    "recon_arm_state_decoder",
    "recon_gripper_state_decoder",
)
"""Stored modules that Seer's forward pass never reads: actions are no input, no state is reconstructed."""

OURS = {
    "text_projector.": "text_projector.",
    "arm_state_encoder.": "state_encoder.arm_state_encoder.",
    "gripper_state_encoder.": "state_encoder.gripper_state_encoder.",
    "state_projector.": "state_encoder.state_projector.",
    "perceiver_resampler.": "image_encoder.perceiver_resampler.",
    "image_primary_projector.": "image_projectors.0.",
    "image_wrist_projector.": "image_projectors.1.",
    "cls_token_primary_projector.": "cls_projectors.0.",
    "cls_token_wrist_projector.": "cls_projectors.1.",
    "embedding_layer_norm.": "embedding_layer_norm.",
    "transformer_backbone.": "trunk.",
    "action_decoder.": "decoder.trunk.",
    "arm_action_decoder.0.": "decoder.arm_head.",
    "gripper_action_decoder.0.": "decoder.gripper_head.",
    "image_decoder_obs_pred_projector.": "foresight_decoder.token_projector.",
    "image_decoder.": "foresight_decoder.blocks.",
    "image_decoder_norm.": "foresight_decoder.norm.",
    "image_decoder_pred.": "foresight_decoder.pred.",
    "action_pred_token": "action_queries",
    "obs_tokens": "foresight_queries",
    "mask_token": "foresight_decoder.mask_token",
    TIME: "time_embedding",
}
"""Beginning of a name there -> beginning of the name here; the rest of the name is the same."""

# Hugging Face's GPT-2 stores these (inputs, outputs), torch.nn.Linear (outputs, inputs). The square one would
# load either way round.
CONV1D = re.compile(
    r"transformer_backbone\.h\.\d+\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight"
)


@dataclass(frozen=True)
class SeerLayout:
    """Sizes of one released network.

    Args:
        name: What ``--layout`` calls it.
        preset: Preset of `SeerConfig` with the same sizes.
        width: E.
        n_heads: Heads of the trunk, which no tensor's shape tells.
        n_layers: Blocks of the trunk.
        resampler_queries: Q.
        foresight_tokens: F.
        n_obs_steps: Steps of history that the network was finetuned with.
        pretrain_steps: H of the checkpoint before finetuning, whose time embedding is longer.
        arm_dim: Arm numbers in state and action.
        text_dim: Width of the frozen text encoder's output.
        text_width: Width of its blocks.
        text_layers: Blocks of it.
        vision_dim: C.
        vision_layers: Blocks of the frozen image encoder.
        action_tokens: T.
        patch: Pixels per side of a predicted patch.
        resampler_depth: Layers of the resampler.
        resampler_inner: Heads times head width of the resampler.
        foresight_depth: Blocks of the foresight decoder.
        shared_with: Other checkpoints of the same sizes but other conventions, so that sizes cannot tell.
    """

    name: str
    preset: str
    width: int
    n_heads: int
    resampler_queries: int
    foresight_tokens: int
    n_obs_steps: int
    pretrain_steps: int
    n_layers: int = 24
    arm_dim: int = 6
    text_dim: int = 512
    text_width: int = 512
    text_layers: int = 12
    vision_dim: int = 768
    vision_layers: int = 12
    action_tokens: int = 3
    patch: int = 16
    resampler_depth: int = 3
    resampler_inner: int = 512
    foresight_depth: int = 2
    shared_with: str = ""

    def shapes(self, time_steps: int | None = None) -> dict[str, tuple[int, ...]]:
        """Name without `PREFIX` -> shape, of every stored tensor; ``time_steps`` is H (None: finetuned)."""
        e, c, half = self.width, self.vision_dim, self.width // 2
        found = {
            "action_pred_token": (1, 1, self.action_tokens, e),
            "obs_tokens": (1, 1, 2 * self.foresight_tokens, e),
            TIME: (1, time_steps or self.n_obs_steps, 1, e),
            "mask_token": (1, 1, e),
            "perceiver_resampler.latents": (self.resampler_queries, c),
        }
        linears = {
            "text_projector": (e, self.text_dim),
            "arm_state_encoder": (e, self.arm_dim),
            "gripper_state_encoder": (e, 2),
            "state_projector": (e, 2 * e),
            "action_pose_encoder": (e, self.arm_dim),
            "action_gripper_position_encoder": (e, 2),
            "action_projector": (e, 2 * e),
            "image_decoder_obs_pred_projector": (e, e),
            "image_decoder_pred": (3 * self.patch**2, e),
        }
        for camera in ("primary", "wrist"):
            linears |= {f"image_{camera}_projector": (e, c), f"cls_token_{camera}_projector": (e, c)}
        for trunk, arm, gripper in (
            ("action_decoder", "arm_action_decoder", "gripper_action_decoder"),
            ("recon_state_decoder", "recon_arm_state_decoder", "recon_gripper_state_decoder"),
        ):
            linears |= {f"{trunk}.0": (half, e), f"{trunk}.2": (half, half)}
            linears |= {f"{arm}.0": (self.arm_dim, half), f"{gripper}.0": (1, half)}
        norms = {"embedding_layer_norm": e, "transformer_backbone.ln_f": e, "image_decoder_norm": e}
        norms["perceiver_resampler.norm"] = c
        for i in range(self.resampler_depth):
            layer = f"perceiver_resampler.layers.{i}"
            norms |= {f"{layer}.0.norm_media": c, f"{layer}.0.norm_latents": c, f"{layer}.1.0": c}
            found |= {
                f"{layer}.0.to_q.weight": (self.resampler_inner, c),
                f"{layer}.0.to_kv.weight": (2 * self.resampler_inner, c),
                f"{layer}.0.to_out.weight": (c, self.resampler_inner),
                f"{layer}.1.1.weight": (4 * c, c),
                f"{layer}.1.3.weight": (c, 4 * c),
            }
        for i in range(self.n_layers):
            block = f"transformer_backbone.h.{i}"
            norms |= {f"{block}.ln_1": e, f"{block}.ln_2": e}
            for name, inputs, outputs in (
                ("attn.c_attn", e, 3 * e),
                ("attn.c_proj", e, e),
                ("mlp.c_fc", e, 4 * e),
                ("mlp.c_proj", 4 * e, e),
            ):
                found |= {f"{block}.{name}.weight": (inputs, outputs), f"{block}.{name}.bias": (outputs,)}
        for i in range(self.foresight_depth):
            block = f"image_decoder.{i}"
            norms |= {f"{block}.norm1": e, f"{block}.norm2": e}
            linears |= {f"{block}.attn.qkv": (3 * e, e), f"{block}.attn.proj": (e, e)}
            linears |= {f"{block}.mlp.fc1": (4 * e, e), f"{block}.mlp.fc2": (e, 4 * e)}
        for name, shape in linears.items():
            found |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
        for name, size in norms.items():
            found |= {f"{name}.weight": (size,), f"{name}.bias": (size,)}
        return found


LAYOUTS = {
    layout.name: layout
    for layout in (
        SeerLayout("calvin", "base", 384, 12, 6, 9, n_obs_steps=10, pretrain_steps=14),
        SeerLayout("calvin-large", "large", 1024, 16, 16, 16, n_obs_steps=10, pretrain_steps=14),
        SeerLayout(
            "libero",
            "base",
            384,
            12,
            6,
            9,
            n_obs_steps=7,
            pretrain_steps=11,
            shared_with="Seer's real-robot checkpoints, which encode the gripper otherwise",
        ),
    )
}
"""Sizes: the released checkpoints' tensors and the scripts that trained them."""


def our_tensors(tensors: Mapping[str, Tensor], n_obs_steps: int) -> dict[str, Tensor]:
    """Checked tensors of a checkpoint -> the same under `SeerNetwork`'s names, without `UNUSED`.

    Args:
        tensors: Names without `PREFIX`.
        n_obs_steps: H of our network. A longer time embedding is cut to its first H steps (Seer's code).
    """
    found = {}
    for name, tensor in tensors.items():
        if is_unused(name):
            continue
        if CONV1D.fullmatch(name):
            tensor = tensor.t()
        elif name == TIME:
            tensor = tensor[0, :n_obs_steps]
        elif name in OURS:
            # Learned tokens carry axes for batch and step.
            tensor = tensor.flatten(0, -2) if name != "mask_token" else tensor.flatten()
        found[our_name(name)] = tensor
    return found


def our_name(name: str) -> str:
    """A used tensor's name in `SeerNetwork`."""
    begin = name if name in OURS else max((b for b in OURS if name.startswith(b)), key=len)
    return OURS[begin] + name.removeprefix(begin)


def is_unused(name: str) -> bool:
    """Whether a stored tensor belongs to a module that no forward pass reads."""
    return name.split(".", 1)[0] in UNUSED
