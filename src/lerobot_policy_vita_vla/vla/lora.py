"""Low-rank adapters on the language model, and on nothing else."""

from __future__ import annotations

import re

from torch import Tensor, nn

BASE = ".base_layer."


def add_adapters(vlm: nn.Module, *, rank: int, alpha: float) -> None:
    """Put adapters on every Linear layer of the VLM's decoder, in place.

    The target is a pattern over full names: bare leaf names (``q_proj``) also hit the image encoder's layers
    in most families.

    Args:
        vlm: A ``...ForConditionalGeneration``; it keeps its class and names, each adapted layer's weight
            moving to ``<layer>.base_layer``.
        rank: Rank of the adapters.
        alpha: Their scale is alpha / rank.
    """
    from peft import LoraConfig, inject_adapter_in_model

    decoder = vlm.base_model.get_decoder()
    prefix = next(name for name, module in vlm.named_modules() if module is decoder)
    leaves = {
        name.rsplit(".", 1)[-1] for name, module in decoder.named_modules() if isinstance(module, nn.Linear)
    }
    pattern = re.escape(prefix) + r"\..*\.(" + "|".join(sorted(leaves)) + ")"
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=pattern), vlm)


def adapted_names(state: dict[str, Tensor], expected: set[str]) -> dict[str, Tensor]:
    """Rename a state dict without adapters to the names of a model with them; others pass unchanged."""
    renamed = {}
    for name, value in state.items():
        module, _, leaf = name.rpartition(".")
        wrapped = f"{module}{BASE}{leaf}"
        renamed[wrapped if name not in expected and wrapped in expected else name] = value
    return renamed
