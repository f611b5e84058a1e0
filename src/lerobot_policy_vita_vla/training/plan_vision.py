"""What a frozen image encoder costs in a step: the blocks of a plain vision transformer, and a projector.

It is not recorded as it runs, as the language model is: families sort their pictures by what is in them, and
tensors without numbers have nothing in them. It has no backward and keeps nothing.
"""

from __future__ import annotations

import inspect
from collections import Counter

import torch
import torch.nn.functional as F
from torch import nn

from lerobot_policy_vita_vla.training.plan_model import Task
from lerobot_policy_vita_vla.training.plan_record import Cost, Operation, Shape
from lerobot_policy_vita_vla.vla.vlm_contract import projectors


def image_encoder(
    vlm: nn.Module, task: Task, size: int, dtype: str
) -> tuple[Counter[Operation], dict[Operation, Cost], int]:
    """What one batch's pictures cost.

    Args:
        vlm: The VLM.
        task: What is computed.
        size: B.
        dtype: ``--policy.dtype``.

    Returns:
        Operations and how often, what each costs, and the bytes alive at most.
    """
    config = vlm.config.vision_config
    width = getattr(config, "embed_dim", None) or config.hidden_size
    inner = getattr(config, "intermediate_size", None) or int(width * config.mlp_ratio)
    layers = getattr(config, "num_hidden_layers", None) or config.depth
    heads = getattr(config, "num_attention_heads", None) or config.num_heads
    pictures, tokens = size * task.pictures, task.patches // task.pictures
    patch = task.pixels // task.patches
    # The tanh form is several times the other's speed or slowness, by device.
    tanh = "tanh" if getattr(config, "hidden_act", "") in ("gelu_pytorch_tanh", "gelu_new") else "none"
    kind = torch.bfloat16 if dtype == "bfloat16" else next(vlm.parameters()).dtype
    rows = pictures * tokens

    def shape(*size: int) -> Shape:
        return Shape(size, torch.empty(size, device="meta").stride(), kind)

    def linear(a: int, b: int, rows: int = rows) -> Operation:
        return Operation(F.linear, (shape(rows, a), shape(b, a), shape(b)), ())

    one = shape(pictures, heads, tokens, width // heads)
    flat, wide = shape(pictures, tokens, width), shape(rows, inner)
    residual = flat
    if _channels_lie_apart(vlm):
        residual = flat._replace(stride=(tokens * width, 1, tokens))
    norm = Operation(F.layer_norm, (residual, (width,), shape(width), shape(width)), ())
    block = {
        norm: (2, 0),
        linear(width, width): (4, 2 * rows * width * width),
        Operation(F.scaled_dot_product_attention, (one, one, one), ()): (1, 4 * rows * tokens * width),
        linear(width, inner): (1, 2 * rows * width * inner),
        Operation(F.gelu, (wide,), (("approximate", tanh),)): (1, 0),
        linear(inner, width): (1, 2 * rows * width * inner),
        Operation(torch.add, (residual, flat), ()): (2, 0),
    }
    calls, costs = Counter(), {}
    for operation, (count, flops) in block.items():
        moved = sum(a.bytes for a in operation.args if isinstance(a, Shape)) + flat.bytes
        calls[operation], costs[operation] = count * layers, Cost(flops, moved)
    calls[norm] += 1  # the last one, behind the blocks
    # Camera's picture to bytes, as a processor takes it, and back: multiply, round, clamp, cast, stack, cast,
    # subtract, divide, stack, of which the casts and the first stack move less: eight passes over it.
    picture = Shape((size * task.pixels,), (1,), torch.float32)
    convert = Operation(torch.mul, (picture, 0.5), ())
    calls[convert], costs[convert] = 8, Cost(0, 2 * picture.bytes)
    if _looks_for_padding(vlm):
        marks = picture._replace(dtype=torch.bool)
        for function, *args in ((torch.eq, picture, 0.0), (torch.sum, marks), (torch.clone, picture)):
            operation = Operation(function, tuple(args), ())
            calls[operation], costs[operation] = 1, Cost(0, picture.bytes + args[0].bytes)
    embedding = linear(patch, width)
    calls[embedding] += 1
    costs[embedding] = Cost(2 * rows * patch * width, shape(rows, patch).bytes + flat.bytes)
    found = [m for p in projectors(vlm.base_model, inside_vision=True) for m in p.modules()]
    linears = [m for m in found if isinstance(m, nn.Linear)]
    for layer in linears:
        # Families that join neighbouring patches into one token show it by the width they read.
        of_tokens = rows // max(linears[0].in_features // width, 1)
        operation = linear(layer.in_features, layer.out_features, of_tokens)
        calls[operation] += 1
        flops = 2 * of_tokens * layer.in_features * layer.out_features
        costs[operation] = Cost(flops, sum(a.bytes for a in operation.args))
    return calls, costs, rows * (2 * width + max(4 * width, 2 * inner)) * kind.itemsize


def picture_bytes(vlm: nn.Module, task: Task, size: int) -> tuple[int, int]:
    """Of the cameras' pictures; and of what the VLM's processor makes of them, with the copy of some VLMs."""
    once = 4 * size * task.pixels
    return once, once * (2 if _looks_for_padding(vlm) else 1)


def _looks_for_padding(vlm: nn.Module) -> bool:
    """Whether the model looks for pictures that are padding, and copies the others (Idefics 3, SmolVLM)."""
    return "pixel_attention_mask" in inspect.signature(vlm.base_model.forward).parameters


def _channels_lie_apart(vlm: nn.Module) -> bool:
    """Whether the blocks' input keeps the layout in memory that a convolution over patches gives it.

    All additions hand it on, and layer norms copy it. A class token that joins makes it contiguous, and so
    does a convolution that reads patches already cut out (Qwen-VL).
    """
    encoder = vlm.base_model.get_encoder(modality="image")
    joined = any("cls" in name or "class" in name for name, _ in encoder.named_parameters())
    return not joined and any(isinstance(m, nn.Conv2d) for m in encoder.modules())
