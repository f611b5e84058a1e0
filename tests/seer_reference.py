"""Seer's published arithmetic once more, as plain functions of tensors in its own names.

Written from the description of the published networks, not from this package: no class of it is used, masks
are made pair by pair, attention is spelled out.

    w      Seer's checkpoint, names without "module."
    mae    MAE ViT, original names           clip   CLIP's text tower, original names
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


def linear(w, name, x):
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def norm(w, name, x, eps=1e-5):
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


def attend(q, k, v, heads, bias=0.0):
    """(X, m, e), (X, n, e) x 2 -> (X, m, e); ``bias`` is added to the scores."""

    def split(x):
        return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)

    q, k, v = split(q), split(k), split(v)
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias
    return (scores.softmax(-1) @ v).transpose(1, 2).reshape(q.shape[0], q.shape[2], -1)


def vit(w, x):
    """Pictures (X, 3, 224, 224) -> cls token and patches (X, 1 + P, C)."""
    weight = w["patch_embed.proj.weight"]
    x = F.conv2d(x, weight, w["patch_embed.proj.bias"], stride=weight.shape[-1]).flatten(2).transpose(1, 2)
    cls = (w["cls_token"] + w["pos_embed"][:, :1]).expand(len(x), -1, -1)
    x = torch.cat([cls, x + w["pos_embed"][:, 1:]], dim=1)
    heads, i = x.shape[-1] // 64, 0
    while f"blocks.{i}.norm1.weight" in w:
        qkv = linear(w, f"blocks.{i}.attn.qkv", norm(w, f"blocks.{i}.norm1", x, 1e-6)).chunk(3, -1)
        x = x + linear(w, f"blocks.{i}.attn.proj", attend(*qkv, heads))
        inner = linear(w, f"blocks.{i}.mlp.fc1", norm(w, f"blocks.{i}.norm2", x, 1e-6))
        x = x + linear(w, f"blocks.{i}.mlp.fc2", F.gelu(inner))
        i += 1
    return norm(w, "norm", x, 1e-6)


def text(w, tokens):
    """Token ids of one instruction, from start to end mark -> (F,)."""
    x = (w["token_embedding.weight"][tokens] + w["positional_embedding"][: len(tokens)])[None]
    causal = torch.full((len(tokens), len(tokens)), -math.inf).triu(1)
    heads, i = x.shape[-1] // 64, 0
    while f"transformer.resblocks.{i}.ln_1.weight" in w:
        block = f"transformer.resblocks.{i}"
        joined = F.linear(norm(w, f"{block}.ln_1", x), w[f"{block}.attn.in_proj_weight"])
        qkv = (joined + w[f"{block}.attn.in_proj_bias"]).chunk(3, -1)
        x = x + linear(w, f"{block}.attn.out_proj", attend(*qkv, heads, causal))
        inner = linear(w, f"{block}.mlp.c_fc", norm(w, f"{block}.ln_2", x))
        x = x + linear(w, f"{block}.mlp.c_proj", inner * torch.sigmoid(1.702 * inner))
        i += 1
    return norm(w, "ln_final", x)[0, -1] @ w["text_projection"]


def resampler(w, patches):
    """(X, P, C) -> (X, Q, C)."""
    name = "perceiver_resampler"
    x, i = w[f"{name}.latents"].expand(len(patches), -1, -1), 0
    while f"{name}.layers.{i}.0.to_q.weight" in w:
        layer = f"{name}.layers.{i}"
        media = norm(w, f"{layer}.0.norm_media", patches)
        latents = norm(w, f"{layer}.0.norm_latents", x)
        k, v = linear(w, f"{layer}.0.to_kv", torch.cat([media, latents], 1)).chunk(2, -1)
        read = attend(linear(w, f"{layer}.0.to_q", latents), k, v, 8)
        x = x + linear(w, f"{layer}.0.to_out", read)
        x = x + linear(w, f"{layer}.1.3", F.gelu(linear(w, f"{layer}.1.1", norm(w, f"{layer}.1.0", x))))
        i += 1
    return norm(w, f"{name}.norm", x)


def mask(steps, observed, foresight, action):
    """0 where the row may read the column, minus infinity elsewhere; pair by pair."""
    kinds = ["observed"] * observed + ["foresight"] * foresight + ["action"] * action
    tokens = [(step, kind) for step in range(steps) for kind in kinds]
    bias = torch.full((len(tokens), len(tokens)), -math.inf)
    for row, (reader_step, reader) in enumerate(tokens):
        for column, (step, kind) in enumerate(tokens):
            seen = kind == "observed" and step <= reader_step
            foreseen = reader == "action" and kind == "foresight" and step == reader_step
            if seen or foreseen:
                bias[row, column] = 0.0
    return bias


def conv1d(w, name, x):
    """GPT-2 stores this weight (inputs, outputs)."""
    return x @ w[f"{name}.weight"] + w[f"{name}.bias"]


def gelu_tanh(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def seer(w, mae, clip, pictures, state, tokens, *, heads, one_hot):
    """Arm actions (B, H, T, 6) in [-1, 1] and the gripper's probability to be 1, (B, H, T, 1).

    Args:
        w: See the module.
        mae: See the module.
        clip: See the module.
        pictures: (B, H, 2, 3, 224, 224) in [0, 1], primary and wrist.
        state: (B, H, S), raw.
        tokens: Token ids, one list per sample.
        heads: Of the trunk.
        one_hot: CALVIN: the seventh number of the state is a class. Otherwise numbers 7 and 8 are encoded.
    """
    b, h = state.shape[:2]
    instruction = torch.stack([text(clip, ids) for ids in tokens])
    parts = [linear(w, "text_projector", instruction)[:, None, None].expand(b, h, 1, -1)]
    gripper = state[..., 6:]
    if one_hot:
        gripper = torch.stack([(gripper[..., 0] < 1).float(), (gripper[..., 0] >= 1).float()], -1)
    both = [linear(w, "arm_state_encoder", state[..., :6]), linear(w, "gripper_state_encoder", gripper)]
    parts.append(linear(w, "state_projector", torch.cat(both, -1))[:, :, None])
    seen = vit(mae, ((pictures - MEAN) / STD).flatten(0, 2)).unflatten(0, (b, h, 2))
    for i, camera in enumerate(("primary", "wrist")):
        image = resampler(w, seen[:, :, i, 1:].flatten(0, 1)).unflatten(0, (b, h))
        parts.append(linear(w, f"image_{camera}_projector", image))
    for i, camera in enumerate(("primary", "wrist")):
        parts.append(linear(w, f"cls_token_{camera}_projector", seen[:, :, i, :1]))
    observed = sum(part.shape[2] for part in parts)
    foresight, action = w["obs_tokens"].shape[2], w["action_pred_token"].shape[2]
    parts += [w["obs_tokens"].expand(b, h, -1, -1), w["action_pred_token"].expand(b, h, -1, -1)]
    x = torch.cat(parts, dim=2) + w["transformer_backbone_position_embedding"][:, :h]
    x = norm(w, "embedding_layer_norm", x.flatten(1, 2))
    bias, i = mask(h, observed, foresight, action), 0
    while f"transformer_backbone.h.{i}.ln_1.weight" in w:
        block = f"transformer_backbone.h.{i}"
        qkv = conv1d(w, f"{block}.attn.c_attn", norm(w, f"{block}.ln_1", x)).chunk(3, -1)
        x = x + conv1d(w, f"{block}.attn.c_proj", attend(*qkv, heads, bias))
        inner = gelu_tanh(conv1d(w, f"{block}.mlp.c_fc", norm(w, f"{block}.ln_2", x)))
        x = x + conv1d(w, f"{block}.mlp.c_proj", inner)
        i += 1
    features = norm(w, "transformer_backbone.ln_f", x).unflatten(1, (h, -1))[:, :, -action:]
    hidden = linear(w, "action_decoder.2", linear(w, "action_decoder.0", features).relu()).relu()
    arm = torch.tanh(linear(w, "arm_action_decoder.0", hidden))
    return arm, torch.sigmoid(linear(w, "gripper_action_decoder.0", hidden))


def positions(side, width):
    """Fixed embeddings of a grid's cells, row by row, (side^2, width): sines, cosines of column, then row."""
    rates = [10000.0 ** (-4 * i / width) for i in range(width // 4)]
    cells = []
    for row in range(side):
        for column in range(side):
            numbers = []
            for place in (column, row):
                numbers += [math.sin(place * rate) for rate in rates] + [
                    math.cos(place * rate) for rate in rates
                ]
            cells.append(numbers)
    return torch.tensor(cells)


def foresee(w, features, *, side):
    """Trunk's output at the foresight tokens (B, H, N, F, E) -> patches (B, H, N, side^2, 3 * 16 * 16)."""
    x = linear(w, "image_decoder_obs_pred_projector", features.flatten(0, 2))
    n, width = x.shape[1:]
    x = torch.cat([x, w["mask_token"].expand(len(x), side**2, -1)], 1)
    x = x + torch.cat([positions(round(n**0.5), width), positions(side, width)])
    for i in range(2):
        block = f"image_decoder.{i}"
        qkv = linear(w, f"{block}.attn.qkv", norm(w, f"{block}.norm1", x)).chunk(3, -1)
        x = x + linear(w, f"{block}.attn.proj", attend(*qkv, 16))
        inner = F.gelu(linear(w, f"{block}.mlp.fc1", norm(w, f"{block}.norm2", x)))
        x = x + linear(w, f"{block}.mlp.fc2", inner)
    patches = linear(w, "image_decoder_pred", norm(w, "image_decoder_norm", x[:, n:]))
    return patches.unflatten(0, features.shape[:3])
