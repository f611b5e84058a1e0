"""The three sizes of Seer: shapes and training settings, each with its source.

``base`` and ``large`` are the published networks (shapes: the released checkpoints' keys; losses and
optimiser: Seer's code). ``tiny`` is our own, for two CPU cores.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SeerPreset:
    """Defaults of one size; every field can be overridden in `SeerConfig` under the same name.

    Attributes:
        encoder: ``"pretrained"`` (frozen MAE ViT + frozen CLIP text) or ``"conv"`` (small, trained).
        width: E, the trunk's width.
        n_layers: Trunk blocks.
        n_heads: Attention heads per block.
        resampler_queries: Image tokens per camera that the Perceiver resampler makes (``"pretrained"`` only).
        foresight_tokens: Foresight queries per camera.
        queries_read_peers: Whether queries of a kind read each other (`layout.StepLayout`).
        image_size: Pixels per side at the encoder; None keeps the size of the recorded pictures.
        foresight_weight: Weight of the predicted-image loss.
        auxiliary_weight: Weight of the privileged-position loss.
        smooth_l1_beta: Threshold of the arm's smooth-L1, scaled action units.
        lr: Peak learning rate.
        weight_decay: AdamW's weight decay.
        grad_clip_norm: Gradient clipping.
        ema_decay: Decay of the weights' moving average; 0 keeps none.
        dropout: Of the trunk.
        image_shift_px: Largest random shift per axis, pixels of the encoder's input.
        brightness: Largest relative random brightness change.
    """

    encoder: str
    width: int
    n_layers: int
    n_heads: int
    resampler_queries: int
    foresight_tokens: int
    queries_read_peers: bool
    image_size: int | None
    foresight_weight: float
    auxiliary_weight: float
    smooth_l1_beta: float
    lr: float
    weight_decay: float
    grad_clip_norm: float
    ema_decay: float
    dropout: float
    image_shift_px: int
    brightness: float


# Published: image weight 0.1 is the code's (the paper says 0.5); lr 1e-3, weight decay 1e-4, clip 0.1 and the
# shift of 10 px are the code's fine-tuning settings; dropout is GPT-2's default.
_PUBLISHED = {
    "encoder": "pretrained",
    "n_layers": 24,
    "queries_read_peers": False,
    "image_size": 224,
    "foresight_weight": 0.1,
    "auxiliary_weight": 0.0,
    "smooth_l1_beta": 1.0,
    "lr": 1e-3,
    "weight_decay": 1e-4,
    "grad_clip_norm": 0.1,
    "ema_decay": 0.0,
    "dropout": 0.1,
    "image_shift_px": 10,
    "brightness": 0.0,
}

PRESETS = {
    "base": SeerPreset(**_PUBLISHED, width=384, n_heads=12, resampler_queries=6, foresight_tokens=9),
    "large": SeerPreset(**_PUBLISHED, width=1024, n_heads=16, resampler_queries=16, foresight_tokens=16),
    # Our choices. Foresight is off: decoding pictures costs as much as everything else on a CPU and doubles
    # the frames to load, while the position loss already makes the encoder look at the objects.
    "tiny": SeerPreset(
        encoder="conv",
        width=192,
        n_layers=2,
        n_heads=4,
        resampler_queries=1,
        foresight_tokens=1,
        queries_read_peers=True,
        image_size=None,
        foresight_weight=0.0,
        auxiliary_weight=0.3,
        smooth_l1_beta=0.1,
        lr=1e-3,
        weight_decay=1e-3,
        grad_clip_norm=1.0,
        ema_decay=0.998,
        dropout=0.0,
        image_shift_px=0,
        brightness=0.15,
    ),
}
