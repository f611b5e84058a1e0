"""The foresight decoder: foresight tokens -> the picture some steps ahead (training only).

    [foresight 1..F] [mask 1..P] -> 2 ViT blocks -> norm -> pixels of the P patches

Predicting the future picture makes the trunk plan; the action tokens read the same foresight tokens
("inverse dynamics"). Nothing of this runs at inference.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ViTBlock(nn.Module):
    """Pre-norm ViT block; parameters are named as timm's."""

    def __init__(self, *, width: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.norm1 = nn.LayerNorm(width)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, x_XPE: Tensor) -> Tensor:
        """(X, P, E) -> (X, P, E)."""
        x, p, _ = x_XPE.shape
        q, k, v = self.attn["qkv"](self.norm1(x_XPE)).view(x, p, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        read = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x_XPE = x_XPE + self.attn["proj"](read)
        return x_XPE + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x_XPE))))


class ForesightDecoder(nn.Module):
    """Predict a picture's standardised patches from its foresight tokens.

    Args:
        width: E.
        n_tokens: F, a square number.
        n_patches: P, a square number.
        patch: Pixels per patch side (16, as the encoder's).
        depth: ViT blocks (Seer: 2).
        n_heads: Heads per block (Seer: 16).
    """

    def __init__(
        self, *, width: int, n_tokens: int, n_patches: int, patch: int, depth: int = 2, n_heads: int = 16
    ):
        super().__init__()
        self.n_tokens, self.patch = n_tokens, patch
        self.mask_token = nn.Parameter(0.02 * torch.randn(width))
        self.token_projector = nn.Linear(width, width)
        self.blocks = nn.ModuleList(ViTBlock(width=width, n_heads=n_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.pred = nn.Linear(width, 3 * patch * patch)
        positions = torch.cat([grid_positions(n_tokens, width), grid_positions(n_patches, width)])
        self.register_buffer("positions_PE", positions, persistent=False)

    def forward(self, tokens_XFE: Tensor) -> Tensor:
        """(X, F, E) -> (X, P, 3 * patch^2)."""
        n_patches = len(self.positions_PE) - self.n_tokens
        masks_XPE = self.mask_token.expand(len(tokens_XFE), n_patches, -1)
        tokens_XFE = self.token_projector(tokens_XFE)
        x = torch.cat([tokens_XFE, masks_XPE.to(tokens_XFE.dtype)], dim=1) + self.positions_PE
        for block in self.blocks:
            x = block(x)
        return self.pred(self.norm(x[:, self.n_tokens :]))


def grid_positions(n: int, width: int) -> Tensor:
    """Fixed 2-D sine-cosine embeddings of a square grid of n cells, (n, width) (He et al. 2022)."""
    side = round(n**0.5)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    frequencies = 10000.0 ** (-torch.arange(width // 4) / (width // 4))
    # MAE's order: the columns' half first.
    angles = [axis.flatten()[:, None] * frequencies for axis in (x, y)]
    return torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)
