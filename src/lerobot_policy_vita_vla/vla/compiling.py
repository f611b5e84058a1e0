"""A language model that learns, compiled layer by layer (``--policy.compile_model=true``).

A layer of a small language model spends more time on what lies between its matrix products (norms, rotary
positions, gates, casts under autocast) than on the products. The compiler fuses that. Layer by layer, because
all layers of a stack share what is compiled for the first, and what surrounds them (masks, image tokens,
hooks) stays as it is.
"""

from __future__ import annotations

import torch
from torch import nn

from lerobot_policy_vita_vla.vla.wrap_units import repeated_blocks


def compile_layers(vlm: nn.Module) -> None:
    """Compile a VLM's decoder layers in place; weights and their names stay as they are.

    Compiling itself happens in the first pass and takes tens of seconds, once more where prompts of another
    length come along (lengths are variables from then on).

    Args:
        vlm: A ``...ForConditionalGeneration`` of transformers.

    Raises:
        ValueError: Nothing can be compiled here (no C++ compiler, a GPU without Triton), or the language
            model has no layers that are marked as repeated blocks.
    """
    decoder = vlm.base_model.get_decoder()
    layers = repeated_blocks(decoder)
    if not layers:
        raise ValueError(
            f"{type(decoder).__name__} cannot be compiled layer by layer: none of its layers is marked as a "
            "repeated block (GradientCheckpointingLayer); pass --policy.compile_model=false"
        )
    _check_compiler(next(decoder.parameters()).device)
    for layer in layers:
        layer.compile()


def in_a_line(error: Exception) -> str:
    """A compiler's or driver's error without its trace."""
    return f"{type(error).__name__}: {str(error).strip().partition('\n')[0][:200]}"


def _check_compiler(device: torch.device) -> None:
    """Compile one addition: what is missing shows here in seconds, in words, before anything is trained."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
    except Exception as error:  # compilers and drivers raise whatever they like
        raise ValueError(
            f"--policy.compile_model=true: nothing can be compiled on this machine ({in_a_line(error)}). "
            "On a CPU a C++ compiler is needed (apt-get install g++), on a GPU Triton and a C compiler; or "
            "pass --policy.compile_model=false"
        ) from error
