"""Low-rank adapters on the language model, and on nothing else."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import Tensor, nn

BASE = ".base_layer."


def add_adapters(vlm: nn.Module, *, rank: int, alpha: float, targets: Sequence[str] | None = None) -> None:
    """Put adapters on Linear layers of the VLM's decoder, in place.

    The target is a pattern over full names: bare leaf names (``q_proj``) also hit the image encoder's layers
    in most families.

    Args:
        vlm: A ``...ForConditionalGeneration``; it keeps its class and names, each adapted layer's weight
            moving to ``<layer>.base_layer``.
        rank: Rank of the adapters.
        alpha: Their scale is alpha / rank.
        targets: Names of the layers within a block, such as ``q_proj``; None: all.

    Raises:
        ValueError: For a target that the decoder does not have.
    """
    from peft import LoraConfig, inject_adapter_in_model

    decoder = vlm.base_model.get_decoder()
    prefix = next(name for name, module in vlm.named_modules() if module is decoder)
    leaves = {
        name.rsplit(".", 1)[-1] for name, module in decoder.named_modules() if isinstance(module, nn.Linear)
    }
    if unknown := sorted(set(targets or ()) - leaves):
        elsewhere = {name.rsplit(".", 1)[-1] for name, m in vlm.named_modules() if isinstance(m, nn.Linear)}
        outside = sorted(elsewhere.intersection(unknown))
        raise ValueError(
            f"--policy.lora_targets names {unknown}, which the language model does not have"
            + (f" ({outside} lie outside of it, where adapters would train frozen parts)" if outside else "")
            + f"; its layers are {sorted(leaves)}"
        )
    leaves = set(targets) if targets else leaves
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
