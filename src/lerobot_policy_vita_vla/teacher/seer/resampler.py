"""Perceiver resampler: many patch features become a few image tokens (Flamingo, Alayrac et al. 2022)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PerceiverAttention(nn.Module):
    """Latents attend to the patches and to themselves."""

    def __init__(self, *, width: int, n_heads: int = 8, head_dim: int = 64):
        super().__init__()
        inner = n_heads * head_dim
        self.n_heads = n_heads
        self.norm_media = nn.LayerNorm(width)
        self.norm_latents = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, patches_XPC: Tensor, latents_XQC: Tensor) -> Tensor:
        """Patches (X, P, C) and latents (X, Q, C) -> what the latents read (X, Q, C)."""
        latents_XQC = self.norm_latents(latents_XQC)
        read = torch.cat([self.norm_media(patches_XPC), latents_XQC], dim=1)
        q, (k, v) = self.to_q(latents_XQC), self.to_kv(read).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v)
        return self.to_out(out.transpose(1, 2).flatten(2))


class PerceiverResampler(nn.Module):
    """Turn P patch features of width C into Q tokens of the same width.

    Args:
        width: C (768 for ViT-B).
        n_queries: Q.
        depth: Layers (Seer: 3).
    """

    def __init__(self, *, width: int, n_queries: int, depth: int = 3):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(n_queries, width))
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    PerceiverAttention(width=width),
                    nn.Sequential(
                        nn.LayerNorm(width),
                        nn.Linear(width, 4 * width, bias=False),
                        nn.GELU(),
                        nn.Linear(4 * width, width, bias=False),
                    ),
                ]
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, patches_XPC: Tensor) -> Tensor:
        """(X, P, C) -> (X, Q, C), X any batch of pictures."""
        latents_XQC = self.latents.expand(len(patches_XPC), -1, -1)
        for attention, feed_forward in self.layers:
            latents_XQC = latents_XQC + attention(patches_XPC, latents_XQC)
            latents_XQC = latents_XQC + feed_forward(latents_XQC)
        return self.norm(latents_XQC)
