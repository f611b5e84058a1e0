"""Random shift of training images, of one step or of a history."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def shifted_cameras(
    batch: dict[str, Tensor], cameras: Sequence[str], *, pixels: int, wrist_pixels: int | None, apart: bool
) -> dict[str, Tensor]:
    """Every camera's images (B, 3, H, W) or (B, steps, 3, H, W), randomly shifted.

    Args:
        batch: Holds them.
        cameras: Their keys.
        pixels: Largest shift along each axis.
        wrist_pixels: The same for cameras whose name contains "wrist"; None: as all.
        apart: Draw for every step of a history (the paper's code); else one draw per sample, so that what
            moves is the scene.
    """
    shifted = {}
    for key in cameras:
        image = batch[key]
        most = wrist_pixels if wrist_pixels is not None and "wrist" in key else pixels
        # Steps are samples, to be drawn for, or channels, to be shifted along.
        flat = image.flatten(0, 1) if apart and image.ndim == 5 else image.flatten(1, -3)
        shifted[key] = random_shift(flat, most).view_as(image) if most else image
    return shifted


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
