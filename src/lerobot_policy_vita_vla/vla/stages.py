"""Which parts of the student learn in which stage: one table, applied in the open.

    part            align   finetune   only_finetune   freeze_vlm     what it is
    vision            .        .            .              .          image encoder
    projector         .        .            .              .          image features -> token embeddings
    language          .      learns       learns           .          decoder layers and token embeddings
    lm_head           .        .            .              .          never called
    state_encoder   learns   learns       learns         learns
    queries         learns   learns       learns         learns
    mapper          learns   learns       learns         learns
    decoder           .      learns       learns         learns       taken from the teacher

With LoRA the part ``adapters`` learns in the place of ``language``. Source: the paper, "What trains".
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import nn

PARTS = ("vision", "projector", "language", "lm_head", "state_encoder", "queries", "mapper", "decoder")
ADAPTERS = "adapters"

_ADDED = ("state_encoder", "queries", "mapper")
TRAINABLE: dict[str, tuple[str, ...]] = {
    "align": _ADDED,
    "finetune": ("language", *_ADDED, "decoder"),
    "only_finetune": ("language", *_ADDED, "decoder"),
    "freeze_vlm": (*_ADDED, "decoder"),
}

_CONTINUES: dict[str, tuple[str, ...]] = {
    # stage: stages whose checkpoint it may start from
    "align": ("align",),
    "finetune": ("align", "finetune", "freeze_vlm"),
    "only_finetune": ("only_finetune",),
    "freeze_vlm": ("align", "freeze_vlm"),
}
_FROM_SCRATCH = ("align", "only_finetune", "freeze_vlm")

Parts = Mapping[str, Mapping[str, nn.Parameter]]


def apply_stage(parts: Parts, stage: str) -> dict[str, int]:
    """Set ``requires_grad`` of every parameter for the stage and log each part.

    Args:
        parts: Part -> name -> parameter; together all parameters, each once.
        stage: A key of `TRAINABLE`.

    Returns:
        Part -> number of parameters, the trainable parts only.

    Raises:
        ValueError: For an unknown stage.
    """
    if stage not in TRAINABLE:
        raise ValueError(f"unknown stage {stage!r}; stages are {tuple(TRAINABLE)}")
    learns = set(TRAINABLE[stage])
    if parts.get(ADAPTERS) and "language" in learns:
        learns = learns - {"language"} | {ADAPTERS}
    counts = {}
    for part, parameters in parts.items():
        for parameter in parameters.values():
            parameter.requires_grad_(part in learns)
        count = sum(parameter.numel() for parameter in parameters.values())
        if not count:
            continue
        state = "learns" if part in learns else "frozen"
        logging.info("stage %s: %-13s %s, %s parameters", stage, part, state, f"{count:,}")
        if part in learns:
            counts[part] = count
    return counts


def check_stage_order(stage: str, previous: str | None) -> None:
    """Raise ValueError unless ``stage`` may start from a checkpoint of ``previous`` (None: from scratch)."""
    if stage not in TRAINABLE:
        raise ValueError(f"unknown stage {stage!r}; stages are {tuple(TRAINABLE)}")
    if previous is None and stage not in _FROM_SCRATCH:
        raise ValueError(
            f"stage {stage!r} continues an aligned student, but no checkpoint was given. Align first and "
            "pass its checkpoint, --policy.path=<align run>/checkpoints/last/pretrained_model "
            "--policy.stage=finetune, or "
            "skip alignment on purpose with --policy.stage=only_finetune"
        )
    if previous is not None and previous not in _CONTINUES[stage]:
        raise ValueError(
            f"stage {stage!r} cannot start from a checkpoint of stage {previous!r}, only from one of "
            f"{_CONTINUES[stage]}"
            + (" or without a checkpoint (--policy.type=vita_vla)" if stage in _FROM_SCRATCH else "")
        )
