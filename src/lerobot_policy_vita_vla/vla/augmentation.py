"""Random shift of training images."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def random_shift(image_B3HW: Tensor, pixels: int) -> Tensor:
    """Shift every image by up to ``pixels`` along each axis, repeating the border (official code).

    Whole pixels, so that camera frames stay bytes.
    """
    height, width = image_B3HW.shape[-2:]
    padded = F.pad(image_B3HW, (pixels,) * 4, mode="replicate")
    offsets = torch.randint(0, 2 * pixels + 1, (len(image_B3HW), 2)).tolist()
    return torch.stack(
        [image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, offsets, strict=True)]
    )
