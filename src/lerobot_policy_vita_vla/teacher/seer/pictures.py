"""Pictures on their way to the encoder: common size, random shift and brightness, patches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def stack_cameras(images: Sequence[Tensor], size: int) -> Tensor:
    """N tensors (B, K, 3, h, w) in [0, 1] -> (B, K, N, 3, size, size).

    Pictures of another size are resized (bicubic, antialiased, as CLIP's preprocessing); an oblong picture is
    squeezed, since cropping could cut the object off.
    """
    resized = []
    for image_BK3hw in images:
        if image_BK3hw.shape[-2:] != (size, size):
            flat = image_BK3hw.flatten(0, 1).float()
            flat = F.interpolate(flat, (size, size), mode="bicubic", antialias=True, align_corners=False)
            image_BK3hw = flat.clamp(0, 1).unflatten(0, image_BK3hw.shape[:2])
        resized.append(image_BK3hw)
    return resized[0][:, :, None] if len(resized) == 1 else torch.stack(resized, dim=2)


def augment(pictures_BKN3hw: Tensor, *, shift_px: int, brightness: float) -> Tensor:
    """Shift every picture by up to ``shift_px`` per axis and scale its brightness by 1 +- ``brightness``.

    One draw per sample and camera, shared by its K frames, so that motion stays motion (Seer's code draws
    anew for every frame, although it names the function as if it did not). Pixels shifted in repeat the
    border.
    """
    b, k, n, _, height, width = pictures_BKN3hw.shape
    device = pictures_BKN3hw.device
    if shift_px:
        shift_BN2 = torch.randint(-shift_px, shift_px + 1, (b, 1, n, 2), device=device).expand(b, k, n, 2)
        shift_X2 = shift_BN2.reshape(-1, 2)
        rows = (torch.arange(height, device=device) + shift_X2[:, :1]).clamp(0, height - 1)
        columns = (torch.arange(width, device=device) + shift_X2[:, 1:]).clamp(0, width - 1)
        # Indexing channels-last pixels moves whole pixels and leaves the layout that convolutions want.
        pixels_Xhw3 = pictures_BKN3hw.flatten(0, 2).permute(0, 2, 3, 1)
        sample = torch.arange(len(rows), device=device)[:, None, None]
        shifted = pixels_Xhw3[sample, rows[:, :, None], columns[:, None, :]]
        pictures_BKN3hw = shifted.permute(0, 3, 1, 2).unflatten(0, (b, k, n))
    if brightness:
        gain = 1 + brightness * (2 * torch.rand(b, 1, n, 1, 1, 1, device=device) - 1)
        pictures_BKN3hw = (pictures_BKN3hw * gain).clamp(0, 1)
    return pictures_BKN3hw


def patchify(pictures_X3hw: Tensor, patch: int) -> Tensor:
    """(X, 3, h, w) -> (X, P, 3 * patch^2), patches in rows, each standardised on its own (He et al. 2022)."""
    pixels_XDP = F.unfold(pictures_X3hw.float(), kernel_size=patch, stride=patch)
    # Pixel-major within a patch, channels last: the order that MAE and the released checkpoints predict.
    pixels_XPD = pixels_XDP.unflatten(1, (3, -1)).permute(0, 3, 2, 1).flatten(2)
    mean, var = pixels_XPD.mean(-1, keepdim=True), pixels_XPD.var(-1, keepdim=True)
    return (pixels_XPD - mean) / (var + 1e-6).sqrt()
