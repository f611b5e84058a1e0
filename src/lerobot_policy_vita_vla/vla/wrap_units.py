"""Which modules of a student sharded training gathers one by one.

    unit                          instances in VITA-1.5-7B   why
    decoder layers                28                         0.23 B parameters each, run one after the other
    image encoder's layers        24                         likewise, 12.6 M each
    token embedding               1                          0.5 B, read once at the start
    lm_head                       1                          never called, so never gathered
    state encoder, queries,       1 each                     float32 beside a frozen bfloat16 VLM: the trained
    mapper, action decoder                                   weights of a unit must share one type

What is left (norms, patch embedding, projector) belongs to the policy itself, gathered for the whole pass.
"""

from __future__ import annotations

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

ADDED = ("state_encoder", "queries", "mapper", "decoder")


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The layers of a model that transformers marks as repeated blocks; none where a family marks none."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def block_classes(vlm: nn.Module) -> list[str]:
    """Class names of a VLM's repeated blocks: what accelerate and LeRobot call modules not to split.

    Raises:
        ValueError: The VLM has none. Everything would be one unit, gathered at once on every GPU: the memory
            of unsharded training, without a word.
    """
    names = sorted({type(block).__name__ for block in repeated_blocks(vlm)})
    if not names:
        raise ValueError(
            f"{type(vlm).__name__} cannot be sharded: its layers are not marked as repeated blocks (no "
            f"{GradientCheckpointingLayer.__name__} inside), so that every GPU would hold all weights at "
            "once. Train without FSDP (plain `accelerate launch` or `torchrun` replicates the model; "
            "--policy.lora_rank=16 and --policy.vlm_dtype=bfloat16 save memory), or use another VLM"
        )
    return names


def wrap_units(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """Name and module of every unit, innermost first, as `fully_shard` wants them.

    Args:
        network: A `VitaVLANetwork`.

    Raises:
        ValueError: See `block_classes`.
    """
    vlm = network.backbone.vlm
    classes = set(block_classes(vlm))
    units = [
        (name, module)
        for name, module in network.named_modules()
        # Nested blocks would be gathered within a gathered block.
        if type(module).__name__ in classes and not _inside_block(network, name, classes)
    ]
    words, head = vlm.get_input_embeddings(), vlm.get_output_embeddings()
    if head is None or words.weight is not head.weight:
        # Tied ones stay with the policy itself: one weight cannot belong to two units.
        big = {id(m): m for m in (words, head) if m is not None}
        units += [(name, m) for name, m in network.named_modules() if id(m) in big]
    units += [(part, getattr(network, part)) for part in ADDED if getattr(network, part) is not None]
    return units


def _inside_block(network: nn.Module, name: str, classes: set[str]) -> bool:
    parents = name.split(".")[:-1]
    above = (network.get_submodule(".".join(parents[:end])) for end in range(1, len(parents) + 1))
    return any(type(module).__name__ in classes for module in above)
