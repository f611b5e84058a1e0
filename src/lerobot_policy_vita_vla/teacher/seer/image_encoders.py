"""Image encoders: pictures of all cameras -> patch tokens and one summary per picture.

Both return ``(tokens_XQC, summary_XC)`` for X pictures; the network projects them, per camera, to the trunk's
width. Seer's names for them: image tokens and cls token.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lerobot_policy_vita_vla.teacher.seer.resampler import PerceiverResampler

# Of OpenAI's CLIP, whose preprocessing Seer applies to its MAE encoder's pictures.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class ConvImageEncoder(nn.Module):
    """A few convolutions, conditioned by the instruction, read out as keypoints and as a coarse grid.

    The last convolution is modulated channel-wise by the instruction (FiLM, Perez et al. 2018). Each of its
    channels becomes a distribution over the picture, whose mean is a keypoint (spatial softmax, Levine et al.
    2016). Standardising a channel before its softmax, with a learned temperature, matters: the raw softmax of
    a fresh network is flat, all keypoints sit in the middle, and the policy learns to ignore the picture
    (measured on five Meta-World tasks: success 0.72 without, 1.00 with it and the position loss).

    With a fourth, dilated convolution a feature sees 33 px of the picture instead of 17, which tells a small
    object from what surrounds it (object positions on unseen episodes of five other tasks, one seed: 1.2 cm
    off instead of 1.9 cm), for an eighth more time per step.

    Args:
        text_dim: Width of the instruction vector.
        image_size: Pixels per side of the pictures.
        n_layers: 3 or 4 convolutions.
        channels: Of the first, the second and the other convolutions; the last is the number of keypoints.
        grid: Cells per side of the coarse grid.
    """

    n_tokens = 1

    def __init__(
        self,
        *,
        text_dim: int,
        image_size: int,
        n_layers: int = 3,
        channels: tuple[int, int, int] = (32, 64, 64),
        grid: int = 3,
    ):
        super().__init__()
        first, second, last = channels
        self.token_dim, self.summary_dim = last * grid * grid, 2 * last
        self.conv1 = nn.Conv2d(3, first, 5, stride=2, padding=2)
        self.conv2 = nn.Conv2d(first, second, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(second, last, 3, padding=1)
        self.conv4 = nn.Conv2d(last, last, 3, padding=2, dilation=2) if n_layers == 4 else None
        self.film = nn.Linear(text_dim, 2 * last)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)
        self.sharpness = nn.Parameter(torch.full((last,), 2.0))
        side = (image_size + 3) // 4
        # Reductions over the P places are written as matrix products: on a CPU the plain ones take several
        # times longer in the channels-last layout.
        pixels = torch.eye(side * side).view(-1, 1, side, side)
        self.register_buffer(
            "cells_GP", F.adaptive_avg_pool2d(pixels, grid).flatten(1).t().contiguous(), persistent=False
        )
        y, x = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij")
        self.register_buffer("places_2P", torch.stack([x.flatten(), y.flatten()]), persistent=False)

    def standardise(self, pictures_X3hw: Tensor) -> Tensor:
        """[0, 1] -> [-1, 1]."""
        return 2.0 * pictures_X3hw - 1.0

    def forward(self, pictures_X3hw: Tensor, text_XF: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures in [0, 1] and their instruction vectors -> (X, 1, 9C), (X, 2C)."""
        x = self.standardise(pictures_X3hw).contiguous(memory_format=torch.channels_last)
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x))
        x = self.conv3(x)
        if self.conv4 is not None:
            x = self.conv4(F.relu(x))
        gain, bias = self.film(text_XF)[..., None, None].to(x.dtype).chunk(2, dim=1)
        x = F.relu(x * (1 + gain) + bias)
        x_XPC = x.permute(0, 2, 3, 1).flatten(1, 2)
        grid_XGC = self.cells_GP.to(x.dtype) @ x_XPC
        return grid_XGC.flatten(1)[:, None], self._keypoints(x_XPC)

    def _keypoints(self, x_XPC: Tensor) -> Tensor:
        mean_1P = torch.full_like(self.places_2P[:1], 1 / self.places_2P.shape[1])
        # In float32 whatever the autocast: bfloat16 would round a keypoint to a fifth of a pixel.
        with torch.autocast(x_XPC.device.type, enabled=False):
            x_XPC = x_XPC.float()
            mean_X1C = mean_1P @ x_XPC
            spread_X1C = (mean_1P @ x_XPC.square() - mean_X1C.square()).clamp_min(0).add(1e-6).sqrt()
            # Subtracting the mean as well would change nothing: a softmax ignores constants.
            weights_XPC = (x_XPC * (self.sharpness / spread_X1C)).softmax(dim=1)
            return (self.places_2P @ weights_XPC).flatten(1)


class PretrainedImageEncoder(nn.Module):
    """Frozen MAE ViT, its patches resampled to Q tokens; the summary is the ViT's cls token.

    Args:
        vit: A `transformers.ViTMAEModel` with ``mask_ratio`` 0.
        n_queries: Q.
    """

    def __init__(self, *, vit: nn.Module, n_queries: int):
        super().__init__()
        if vit.config.mask_ratio != 0:
            raise ValueError(
                f"the ViT would hide patches: its mask_ratio is {vit.config.mask_ratio}, expected 0"
            )
        self.vit = vit.requires_grad_(False)
        self.perceiver_resampler = PerceiverResampler(width=vit.config.hidden_size, n_queries=n_queries)
        self.n_tokens = n_queries
        self.token_dim = self.summary_dim = vit.config.hidden_size
        self.register_buffer("mean", torch.tensor(CLIP_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(CLIP_STD).view(3, 1, 1), persistent=False)

    def standardise(self, pictures_X3hw: Tensor) -> Tensor:
        """[0, 1] -> CLIP's zero mean and unit variance."""
        return (pictures_X3hw - self.mean) / self.std

    def forward(self, pictures_X3hw: Tensor, text_XF: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures in [0, 1] -> (X, Q, C), (X, C); the instruction is not used."""
        with torch.no_grad():
            x = self.standardise(pictures_X3hw)
            # Ascending noise keeps the patches in order: this class shuffles them even when it hides none.
            n_patches = self.vit.embeddings.num_patches
            order = torch.arange(n_patches, device=x.device, dtype=torch.float32).expand(len(x), -1)
            hidden = self.vit(x, noise=order).last_hidden_state
        return self.perceiver_resampler(hidden[:, 1:]), hidden[:, 0]


def load_mae(source: str | Path) -> nn.Module:
    """The MAE ViT from a folder or hub id, hiding no patches.

    Raises:
        ValueError: ``source`` does not hold all of the encoder's weights.
    """
    from transformers import ViTMAEModel

    vit, info = ViTMAEModel.from_pretrained(source, mask_ratio=0.0, output_loading_info=True)
    if info["missing_keys"]:
        raise ValueError(f"{source} lacks weights of the MAE ViT: {sorted(info['missing_keys'])[:5]} ...")
    # The pretraining model's decoder is no part of the encoder.
    if unknown := sorted(key for key in info["unexpected_keys"] if not key.startswith("decoder")):
        raise ValueError(
            f"{source} holds weights that its config.json does not describe ({vit.config.num_hidden_layers} "
            f"layers): {unknown[:5]} ... Part of the MAE ViT would be left out; get config.json and weights "
            "again, from one place"
        )
    return vit


def mae_from_config(config: dict[str, Any]) -> nn.Module:
    """The ViT with random weights, to be overwritten by a checkpoint; {} gives ViT-B/16's shapes."""
    from transformers import ViTMAEConfig, ViTMAEModel

    return ViTMAEModel(ViTMAEConfig(**{**config, "mask_ratio": 0.0}))
