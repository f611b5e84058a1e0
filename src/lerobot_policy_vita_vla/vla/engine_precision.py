"""The language model's linear layers in eight bits, by torchao.

Only the engine's copy of the network is changed, never the weights that are trained and saved. Weights are
scaled per output, activations per token as they come, both to eight bits, and the product is taken in eight
bits. That pays where a prompt is long enough to be limited by arithmetic (some 180 tokens on an H200), in
compiled layers on a GPU. On a CPU, layers that are not compiled become slower; there it only saves memory.

What it does to the actions depends on the model and the task, so nothing switches it on but a person, after
`vita-vla bench precision` has compared actions and success rates.
"""

from __future__ import annotations

import torch
from torch import nn

PRECISIONS = ("full", "int8", "float8")

LOOSE = 0.3
"""Relative difference of action features from the plain path's that an eight-bit engine may have before it is
taken for broken; whether it is good enough is for `bench precision` to say."""


def quantise(network: nn.Module, precision: str) -> nn.Module:
    """Change the linear layers of a network's language model in place.

    Args:
        network: The engine's own copy (`engine_network.acting_copy`).
        precision: One of `PRECISIONS`; ``"full"`` changes nothing.

    Raises:
        ValueError: torchao is not installed, or the device has no arithmetic in ``"float8"``.
    """
    if precision == "full":
        return network
    try:
        from torchao import quantization
    except ImportError as error:
        raise ValueError(
            f"precision={precision} needs torchao; install it with `uv pip install torchao`, or pass "
            "--policy.precision=full"
        ) from error
    layers = network.backbone.vlm.base_model.get_decoder().layers
    if precision == "float8":
        device = next(layers.parameters()).device
        if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
            raise ValueError(
                f"precision=float8 needs a GPU of compute capability 8.9 or more, the policy is on {device}; "
                "pass --policy.precision=int8 or full"
            )
        config = quantization.Float8DynamicActivationFloat8WeightConfig()
    else:
        config = quantization.Int8DynamicActivationInt8WeightConfig()
    quantization.quantize_(layers, config)
    return network
