"""Image encoders for pictures of a size that is known: what depends on the size only is computed once.

As transformers runs them, these encoders find out from the pixels which of them are there, where each patch
stands and which window it belongs to. On a GPU every such question makes the host wait for the device, and
none can be part of a CUDA graph. For frames of one size the answers are constants:

    SmolVLM, Idefics3   position of every patch; no picture is missing, no pixel is padding
    InternVL            nothing; its answers do not depend on values
    Qwen2.5-VL          order of the patches by windows, their rotary angles, windows' lengths

The layers are the model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lerobot_policy_vita_vla.vla.engine_pictures import Unfit


def fixed_encoder(vlm: nn.Module, pixels: Tensor, grid: Tensor | None, *, dtype: torch.dtype) -> nn.Module:
    """An encoder for pixels of this shape: ``pixel_values`` -> image tokens (all of them, D) in their order.

    Args:
        vlm: A ``...ForConditionalGeneration``; its layers are used, not copied.
        pixels: An example of ``pixel_values``.
        grid: ``image_grid_thw`` of the example, where the family has it.
        dtype: What the model casts pixels to.

    Raises:
        Unfit: The family has no encoder here, or this model is set up otherwise than its family usually is.
    """
    family = vlm.config.model_type
    if family not in ENCODERS:
        raise Unfit(f"VLMs of type {family} have no image encoder of fixed shape here")
    return ENCODERS[family](vlm, pixels, grid, dtype).eval()


class SmolEncoder(nn.Module):
    """SmolVLM's and Idefics3's tower and connector."""

    def __init__(self, vlm: nn.Module, pixels: Tensor, grid: Tensor | None, dtype: torch.dtype):
        super().__init__()
        base = vlm.base_model
        self.tower, self.connector, self.dtype = base.vision_model, base.connector, dtype
        self.blocks = list(self.tower.encoder.layers)
        embeddings, side = self.tower.embeddings, self.tower.patch_size
        rows, columns = (size // side for size in pixels.shape[-2:])
        found: list[Tensor] = []
        hook = embeddings.position_embedding.register_forward_hook(lambda *call: found.append(call[2]))
        try:
            # Its own rule, in its own type: a patch's place is rounded in the type of the pixels.
            embeddings(
                pixels.flatten(0, 1)[:1].to(self.dtype),
                torch.ones(1, rows, columns, dtype=torch.bool, device=pixels.device),
            )
        finally:
            hook.remove()
        self.register_buffer("places_1PD", found[0].detach().clone(), persistent=False)

    def forward(self, pixels_BN3HW: Tensor) -> Tensor:
        """-> (tokens, D)."""
        patches = self.tower.embeddings.patch_embedding(pixels_BN3HW.flatten(0, 1).to(self.dtype))
        hidden = patches.flatten(2).transpose(1, 2) + self.places_1PD
        for block in self.blocks:
            hidden = block(hidden, None)
        return self.connector(self.tower.post_layernorm(hidden)).flatten(0, 1)


class InternEncoder(nn.Module):
    """InternVL's tower, pixel shuffle and projector (VITA-1.5's too)."""

    def __init__(self, vlm: nn.Module, pixels: Tensor, grid: Tensor | None, dtype: torch.dtype):
        super().__init__()
        if vlm.config.vision_feature_layer != -1:
            raise Unfit(f"features of encoder layer {vlm.config.vision_feature_layer} are read, not the last")
        self.base, self.dtype = vlm.base_model, dtype
        self.blocks = list(self.base.vision_tower.encoder.layer)

    def forward(self, pixels_M3HW: Tensor) -> Tensor:
        """-> (tokens, D)."""
        base, config = self.base, self.base.config
        hidden = base.vision_tower.embeddings(pixels_M3HW.to(self.dtype))
        for block in self.blocks:
            hidden = block(hidden)
        hidden = base.vision_tower.layernorm(hidden)
        if config.vision_feature_select_strategy == "default":
            hidden = hidden[:, 1:]
        pictures, patches, width = hidden.shape
        side = int(patches**0.5)
        hidden = base.pixel_shuffle(
            hidden.reshape(pictures, side, side, width), scale_factor=config.downsample_ratio
        )
        return base.multi_modal_projector(hidden.flatten(1, 2)).flatten(0, 1)


class QwenEncoder(nn.Module):
    """Qwen2.5-VL's encoder: most layers look inside windows of 112 px, some over a whole picture."""

    def __init__(self, vlm: nn.Module, pixels: Tensor, grid: Tensor | None, dtype: torch.dtype):
        super().__init__()
        from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

        self.rotate = apply_rotary_pos_emb_vision
        self.visual, self.dtype = vlm.base_model.visual, dtype
        self.blocks: list[nn.Module] = []  # run here, window by window, not by their own forward
        visual, device = self.visual, pixels.device
        self.fold = visual.spatial_merge_unit
        order, ends = visual.get_window_index(grid)
        self.windows = tuple(b - a for a, b in zip(ends, ends[1:], strict=False) if b > a)
        self.pictures = tuple(int(t * h * w) for t, h, w in grid.tolist())
        angles = visual.rot_pos_emb(grid)
        angles = angles.reshape(len(angles) // self.fold, self.fold, -1)[order.to(angles.device)]
        angles = angles.flatten(0, 1).repeat(1, 2).to(device)
        for name, value in {
            "order": order.to(device),
            "back": order.argsort().to(device),
            "cos": angles.cos(),
            "sin": angles.sin(),
        }.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, pixels_PV: Tensor) -> Tensor:
        """-> (tokens, D)."""
        visual = self.visual
        hidden = visual.patch_embed(pixels_PV.to(self.dtype))
        hidden = hidden.reshape(-1, self.fold, hidden.shape[-1])[self.order].flatten(0, 1)
        for index, block in enumerate(visual.blocks):
            whole = index in visual.fullatt_block_indexes
            mixed = self._attend(block.attn, block.norm1(hidden), self.pictures if whole else self.windows)
            hidden = hidden + mixed
            hidden = hidden + block.mlp(block.norm2(hidden))
        return visual.merger(hidden)[self.back]

    def _attend(self, attention: nn.Module, hidden_PD: Tensor, lengths: Sequence[int]) -> Tensor:
        count = len(hidden_PD)
        query, key, value = attention.qkv(hidden_PD).view(count, 3, attention.num_heads, -1).unbind(1)
        query, key = self.rotate(query, key, self.cos, self.sin)
        parts = [_chunks(x, lengths) for x in (query, key, value)]
        seen = [
            nn.functional.scaled_dot_product_attention(q, k, v, scale=attention.scaling)
            for q, k, v in zip(*parts, strict=True)
        ]
        joined = torch.cat([x.transpose(1, 2).reshape(-1, hidden_PD.shape[-1]) for x in seen])
        return attention.proj(joined)


def _chunks(x_PHd: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """(P, heads, d) -> stretches of these lengths as (stretches, heads, n, d), in one where all are equal."""
    if len(set(lengths)) == 1:
        return [x_PHd.unflatten(0, (len(lengths), lengths[0])).transpose(1, 2)]
    return [part.transpose(0, 1).unsqueeze(0) for part in x_PHd.split(list(lengths))]


ENCODERS: dict[str, Callable[..., nn.Module]] = {
    "smolvlm": SmolEncoder,
    "idefics3": SmolEncoder,
    "internvl": InternEncoder,
    "vita_vl": InternEncoder,
    "qwen2_5_vl": QwenEncoder,
}
