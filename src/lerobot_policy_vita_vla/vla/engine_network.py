"""The student's forward pass for acting, in tensors of known shape from pixels to actions.

    pixel_values -------------> encoder (engine_vision) --> image tokens --.
    Words: embedded instruction, image columns, mask, positions ------------+--> (B, L+S', D)
    state --> StateEncoder, ActionQueries --> suffix -----------------------'        |
                                        all layers but the last, every column <------'
                            last layer: keys and values of every column, the rest of the queries only
                                                                      |
                                         ActionMapper --> ActionDecoder --> actions (B, T, A)

Nothing depends on values here, so nothing waits for a GPU, and the whole can be captured as one CUDA graph.
The layers are the model's own; what surrounds them (cache objects, mask making, searching for image tokens,
the vocabulary's head) is left away. The hidden states that nobody reads, those of all columns but the queries
in the last layer, are not computed: exact, and 3 % of the paper's 7B model.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lerobot_policy_vita_vla.vla.engine_pictures import Unfit

DECODERS = ("LlamaModel", "Qwen2Model", "Qwen2_5_VLTextModel")
"""Decoders whose layers are: norm, attention of q, k, v, o with rotary positions, norm, MLP."""

ATTENTION = ("sdpa", "eager")
"""Of the language model: what takes a mask that is made beforehand. Others act as sdpa."""


class Words(NamedTuple):
    """The instructions of a batch, as far as they can be prepared. L: columns, suffix included.

    Attributes:
        embedded_BLD: Token embeddings; what stands in the columns of images and suffix is replaced.
        positions: Position ids (B, L) or (3, B, L).
        images_BM: Columns of the image tokens.
        mask_B1LL: True where a column may look, or what is added to its scores, as the language model's
            attention takes it; None: causal, without padding.
        last_B1KL: True where the queries, the last K columns, may look; always given.
    """

    embedded_BLD: Tensor
    positions: Tensor
    images_BM: Tensor
    mask_B1LL: Tensor | None
    last_B1KL: Tensor


def masks(
    valid_BL: Tensor, num_queries: int, added: torch.dtype | None = None
) -> tuple[Tensor | None, Tensor]:
    """``mask_B1LL`` and ``last_B1KL`` of `Words`.

    Args:
        valid_BL: Which columns are no padding (padding is on the left).
        num_queries: K.
        added: Type of a mask that is added to scores (eager attention, which needs one in any case).
    """
    length = valid_BL.shape[1]
    causal_LL = torch.ones(length, length, dtype=torch.bool, device=valid_BL.device).tril()
    # Padding looks at itself, or its softmax over nothing would give values that are not numbers.
    itself_LL = torch.eye(length, dtype=torch.bool, device=valid_BL.device)
    mask_B1LL = ((causal_LL & valid_BL[:, None, :]) | itself_LL).unsqueeze(1)
    last_B1KL = mask_B1LL[:, :, -num_queries:].contiguous()
    if added is not None:
        nothing = torch.zeros(mask_B1LL.shape, dtype=added, device=valid_BL.device)
        return nothing.masked_fill(~mask_B1LL, torch.finfo(added).min), last_B1KL
    return (None if bool(valid_BL.all()) else mask_B1LL), last_B1KL


class ActingNetwork(nn.Module):
    """See the module's docstring.

    Args:
        network: A `VitaVLANetwork`, or a copy of one (`acting_copy`).
        encoder: From `engine_vision.fixed_encoder`.

    Raises:
        Unfit: The language model is of another kind than `DECODERS`.
    """

    def __init__(self, network: nn.Module, encoder: nn.Module):
        super().__init__()
        self.network, self.encoder = network, encoder
        decoder = network.backbone.vlm.base_model.get_decoder()
        if type(decoder).__name__ not in DECODERS:
            raise Unfit(f"language models of class {type(decoder).__name__} have no static pass here")
        kinds = set(getattr(decoder.config, "layer_types", None) or ["full_attention"])
        if kinds != {"full_attention"}:
            raise Unfit(f"the language model's layers look back over windows ({', '.join(sorted(kinds))})")
        self.decoder = decoder
        self.layers, self.last = list(decoder.layers[:-1]), decoder.layers[-1]
        self.rotate = _rotation(self.last.self_attn)

    def forward(
        self,
        pixels: Tensor,
        state_BS: Tensor | None,
        embedded_BLD: Tensor,
        positions: Tensor,
        images_BM: Tensor,
        mask_B1LL: Tensor | None,
        last_B1KL: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Action features (B, T, E) and action chunk (B, T, A) in environment units.

        Args:
            pixels: ``pixel_values`` as the encoder takes them.
            state_BS: Proprioceptive state in physical units, or None without a state encoder.
            embedded_BLD: See `Words`, as all that follow.
            positions: Likewise.
            images_BM: Likewise.
            mask_B1LL: Likewise.
            last_B1KL: Likewise.
        """
        batch, _, width = embedded_BLD.shape
        images_BMD = self.encoder(pixels).view(batch, -1, width).to(embedded_BLD.dtype)
        hidden = embedded_BLD.scatter(1, images_BM.unsqueeze(-1).expand_as(images_BMD), images_BMD)
        suffix = self.network.suffix(batch, state_BS).to(hidden.dtype)
        hidden = torch.cat([hidden[:, : -suffix.shape[1]], suffix], dim=1)
        rope = self.decoder.rotary_emb(hidden, positions)
        for layer in self.layers:
            hidden = layer(hidden, attention_mask=mask_B1LL, position_embeddings=rope)
        hidden = self.decoder.norm(self._last_layer(hidden, rope, last_B1KL))
        features = self.network.mapped(hidden)
        return features, self.network.decoder.to_action(self.network.decoder(features))

    def _last_layer(self, hidden_BLD: Tensor, rope: tuple[Tensor, Tensor], last_B1KL: Tensor) -> Tensor:
        layer, attention, asked = self.last, self.last.self_attn, last_B1KL.shape[2]
        normed = layer.input_layernorm(hidden_BLD)

        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)

        query = heads(attention.q_proj(normed[:, -asked:]))
        key, value = heads(attention.k_proj(normed)), heads(attention.v_proj(normed))
        cos, sin = rope
        key = self.rotate(key, cos, sin)
        query = self.rotate(query, cos[..., -asked:, :], sin[..., -asked:, :])
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        # Written out, a row's numbers do not depend on how far its columns are padded.
        scores = (query @ key.transpose(-1, -2)) * attention.scaling
        scores = scores.masked_fill(~last_B1KL, torch.finfo(scores.dtype).min)
        seen = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype) @ value
        hidden = hidden_BLD[:, -asked:] + attention.o_proj(seen.transpose(1, 2).flatten(2))
        return hidden + layer.mlp(layer.post_attention_layernorm(hidden))


class PatchProduct(nn.Module):
    """A convolution whose kernels lie side by side, as one product over patches.

    It is the same sum, and a CPU's convolution in bfloat16 takes many times as long for it: a third of a
    prediction with SmolVLM2-500M, the image encoder's layers left out.

    Args:
        convolution: Its weights are shared.
    """

    def __init__(self, convolution: nn.Conv2d | nn.Conv3d):
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias
        self.kernel = tuple(convolution.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, pixels along each axis) -> (B, O, patches along each axis)."""
        axes = len(self.kernel)
        cut: list[int] = []
        for axis, side in enumerate(self.kernel, start=2):
            count = x.shape[axis] // side
            x = x.narrow(axis, 0, count * side)
            cut += [count, side]
        x = x.reshape(*x.shape[:2], *cut)
        counts, sides = [2 + 2 * axis for axis in range(axes)], [3 + 2 * axis for axis in range(axes)]
        patches = x.permute(0, *counts, 1, *sides).flatten(1 + axes)
        return nn.functional.linear(patches, self.weight.flatten(1), self.bias).movedim(-1, 1)


def cuts_into_patches(module: nn.Module) -> bool:
    """Whether a module is a convolution that reads every value once."""
    return (
        isinstance(module, nn.Conv2d | nn.Conv3d)
        and tuple(module.kernel_size) == tuple(module.stride)
        and module.groups == 1
        and module.padding in ("valid", (0,) * len(module.kernel_size))
        and set(module.dilation) == {1}
    )


def acting_copy(network: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """The network as a module tree of its own over the same weights, for acting.

    Under autocast, a float32 weight of a linear layer is cast at every call. Here the cast ones are kept
    instead, which gives the same numbers and saves the casting; everything else shares its memory with the
    original. Convolutions that cut a picture into patches become products.

    Args:
        network: A `VitaVLANetwork`.
        dtype: Autocast's type, or None without autocast.
    """
    backbone = network.backbone
    shared: list[Any] = [*network.parameters(), *network.buffers()]
    shared += [backbone.processor, backbone.prompts, backbone.turns]
    copied = copy.deepcopy(network, {id(thing): thing for thing in shared if thing is not None}).eval()
    vlm = copied.backbone.vlm
    for module in list(copied.modules()):
        for name, child in list(module.named_children()):
            if cuts_into_patches(child):
                setattr(module, name, PatchProduct(child))
    if vlm.config.get_text_config()._attn_implementation not in ATTENTION:
        vlm.set_attn_implementation({"text_config": "sdpa"})
    if dtype is not None:
        head = vlm.get_output_embeddings()
        for module in copied.modules():
            if isinstance(module, nn.Linear | PatchProduct) and module is not head:
                for name, weight in list(module.named_parameters(recurse=False)):
                    if weight.dtype == torch.float32:
                        cast = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
                        setattr(module, name, cast)
    return copied


def _rotation(attention: nn.Module) -> Any:
    """(x (B, heads, n, d), cos, sin) -> x with its positions, as this attention does it."""
    if type(attention).__name__ == "Qwen2_5_VLAttention":
        from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_multimodal_rotary_pos_emb

        sections = attention.config.rope_parameters["mrope_section"]

        def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            return apply_multimodal_rotary_pos_emb(x, x, cos, sin, sections)[0]
    else:
        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

        def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            return apply_rotary_pos_emb(x, x, cos, sin)[0]

    return rotate
